"""Fast training steps: freed memory is kept, and steps are compiled or recorded as CUDA graphs."""

import ctypes
import logging
import os
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from tadlib.errors import require

logger = logging.getLogger(__name__)

RECORDED_AFTER = 3  # calls before one is recorded as a CUDA graph
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # of glibc's malloc.h


def prepare(threads: int) -> None:
    """Set up this process for small networks on a CPU: threads, no denormals, freed memory kept.

    InputError where this machine has fewer cores than ``threads``: torch would start that many and stand still.
    """
    cores = os.cpu_count() or 1
    require(threads <= cores, f"threads must not exceed the {cores} cores of this machine, got {threads}")
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # denormals make small networks many times slower on a CPU
    keep_memory()


@lru_cache
def keep_memory() -> None:
    """Have glibc, where there is one, keep freed memory for the next tensor.

    By default every tensor above 32 MB is mapped anew and each of its pages cleared by the system, which can cost
    more than the arithmetic on it.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        # older versions refuse so high a threshold; for them, mapping is switched off altogether
        if mallopt(_M_MMAP_THRESHOLD, 1 << 30) or mallopt(_M_MMAP_MAX, 0):
            mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


class _Fusible(TorchFunctionMode):
    """Replaces operations while a step is traced: group norm by plain arithmetic, which the compiler fuses with its
    neighbours and which works in any memory layout; copies into the plain layout by nothing; convolutions by
    :class:`_Conv`."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "contiguous" and len(args) == 1 and not kwargs and args[0].ndim == 4:
            return args[0]
        return {"group_norm": _group_norm, "conv2d": _conv2d}.get(name, func)(*args, **kwargs)


def _pair(value) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _conv2d(x: Tensor, w: Tensor, bias=None, stride=1, padding=0, dilation=1, groups: int = 1) -> Tensor:
    if torch.is_autocast_enabled(x.device.type):  # autocast does not see custom operations
        x, w = (t.to(torch.get_autocast_dtype(x.device.type)) for t in (x, w))
    if isinstance(padding, str):
        return torch.ops.aten.conv2d.padding(x, w, bias, stride, padding, dilation, groups)
    y = _Conv.apply(0, None, x, w, (_pair(stride), _pair(padding), _pair(dilation), False, [0, 0], groups))
    return y if bias is None else y + bias.view(-1, 1, 1)


class _Conv(torch.autograd.Function):
    """The convolution y(x, w), number 0, and its transposes x(g, w), number 1, and w(g, x), number 2.

    They come from one form ⟨g, y(x, w)⟩, linear in g, x and w: leaving out the argument ``number`` gives a function of
    the other two (of the one left out, only the shape is used). So the derivatives of each are the other two, to any
    order. PyTorch's own second derivative takes w's gradient as a convolution with kernels as large as the images,
    which is slow on a CPU.
    """

    @staticmethod
    def forward(number, g, x, w, how):
        if number == 0:
            return torch.ops.aten.convolution(x, w, None, *how)
        return torch.ops.aten.convolution_backward(g, x, w, None, *how, [number == 1, number == 2, False])[number - 1]

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.number, *gxw, ctx.how = inputs
        ctx.save_for_backward(*gxw)

    @staticmethod
    def backward(ctx, d):
        gxw = list(ctx.saved_tensors)
        gxw[ctx.number] = d
        needed = [i != ctx.number and ctx.needs_input_grad[i + 1] for i in range(3)]
        return None, *(_Conv.apply(i, *gxw, ctx.how) if needed[i] else None for i in range(3)), None


def _group_norm(x: Tensor, groups: int, weight=None, bias=None, eps: float = 1e-5, cudnn: bool = True) -> Tensor:
    channels, shape = x.shape[1], (-1, 1, 1)
    apart = x.float() if x.dtype == torch.bfloat16 else x  # fused: no float32 image is ever written
    apart = apart if groups == channels else apart.unflatten(1, (groups, -1))
    axes = tuple(range(1 if groups == 1 else 2, apart.ndim))
    variance, mean = torch.var_mean(apart, axes, correction=0, keepdim=True)
    y = ((apart - mean) * (variance + eps).rsqrt()).reshape(x.shape)
    y = y if weight is None else y * weight.view(shape)
    return (y if bias is None else y + bias.view(shape)).to(x.dtype)


def _reason(error: Exception) -> str:
    """The first two lines of an error, in one: the compiler's cause is on the second."""
    return " ".join(line.strip() for line in str(error).splitlines()[:2]) or type(error).__name__


class _ByShape:
    """A function ``f`` of tensors, replaced by what :meth:`_make` makes of it for each set of input shapes."""

    def __init__(self, f: Callable[..., Any]):
        self.f = f
        self.made: dict[tuple, Callable[..., Any]] = {}

    def __call__(self, *args: Tensor):
        key = tuple((a.shape, a.dtype, a.device) for a in args)
        if key not in self.made:
            self.made[key] = self._make(args)
        return self.made[key](*args)

    def _make(self, args: tuple[Tensor, ...]) -> Callable[..., Any]:
        raise NotImplementedError


class Compiled(_ByShape):
    """A function ``f`` of tensors, compiled for each set of input shapes; ``f`` itself where that fails.

    ``f`` may differentiate; its Python code runs once for a set of shapes. On a GPU the compiled code is captured as a
    CUDA graph (``reduce-overhead``).
    """

    def _make(self, args: tuple[Tensor, ...]) -> Callable[..., Any]:
        mode = "reduce-overhead" if args[0].is_cuda else None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the compiler's own code
                with _Fusible():
                    traced = make_fx(self.f)(*args)
                compiled = torch.compile(traced, dynamic=False, mode=mode)
                compiled(*args)
        except Exception as error:  # no C++ compiler, no inductor, an unsupported operation: all handled alike
            logger.warning("torch.compile cannot be used here, steps run uncompiled: %s", _reason(error))
            return self.f
        if mode is None:
            return compiled
        return lambda *args: tree_map(Tensor.clone, compiled(*args))  # a captured graph reuses its memory


class Recorded(_ByShape):
    """A function ``f`` of tensors on a GPU, recorded as a CUDA graph for each set of input shapes; ``f`` itself where
    that fails.

    The kernels of a small network's step take less time than launching them one by one; a graph is launched at once.
    Nothing is compiled, so recording takes only a few calls of ``f``. Its Python code runs only then, and must not wait
    for the device.
    """

    lock = threading.Lock()  # inputs and results of a graph lie at fixed addresses

    def __init__(self, f: Callable[..., Any]):
        super().__init__(f)
        self.memory: Any = None  # shared by its graphs: one runs at a time, and its results are copied

    def __call__(self, *args: Tensor):
        with self.lock:
            return super().__call__(*args)

    def _make(self, args: tuple[Tensor, ...]) -> Callable[..., Any]:
        places = tuple(a.clone(memory_format=torch.contiguous_format) for a in args)
        try:
            with torch.cuda.device(args[0].device):
                aside = torch.cuda.Stream()
                aside.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(aside):  # libraries choose their algorithms before the recording
                    for _ in range(RECORDED_AFTER):
                        self.f(*places)
                torch.cuda.current_stream().wait_stream(aside)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=self.memory):
                    results = self.f(*places)
            self.memory = graph.pool()
        except Exception as error:
            logger.warning("no CUDA graph is recorded, steps are launched one by one: %s", _reason(error))
            return self.f

        def replay(*args: Tensor):
            for place, a in zip(places, args, strict=True):
                place.copy_(a)
            graph.replay()
            return tree_map(Tensor.clone, results)

        return replay


def channels_last(x_NCHW: Tensor) -> Tensor:
    """A copy of the images whose channels are adjacent in memory, which is fastest for convolutions and pooling.

    A copy even where the layout would pass: with one channel several do, and compiled code is made for one of them.
    """
    return x_NCHW.clone(memory_format=torch.channels_last)
