"""What makes training fast whatever the method: memory that is kept, steps that are compiled or recorded."""

import ctypes
import logging
import threading
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

logger = logging.getLogger(__name__)

RECORDED_AFTER = 3  # calls before one is recorded as a CUDA graph
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # of glibc's malloc.h


def prepare(threads: int) -> None:
    """Set up this process for small networks on a CPU: threads, no denormals, freed memory kept."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # denormals make small networks many times slower on a CPU
    keep_memory()


@lru_cache
def keep_memory() -> bool:
    """Have glibc keep freed memory for the next tensor; False where there is no glibc.

    By default every tensor above 32 MB is mapped anew and each of its pages cleared by the system, which can cost
    more than the arithmetic on it.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # older versions refuse a threshold so high; there no block at all is mapped by itself
    mapped = mallopt(_M_MMAP_THRESHOLD, 1 << 30) or mallopt(_M_MMAP_MAX, 0)
    return bool(mapped and mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1))


class _Fusible(TorchFunctionMode):
    """While a step is traced: group norm in plain arithmetic, which the compiler fuses with its neighbours and which
    works in any memory layout; no copies into the plain layout; convolutions as :class:`_Conv` differentiates them."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "group_norm":
            return _group_norm(*args, **kwargs)
        if name == "contiguous" and len(args) == 1 and not kwargs and args[0].ndim == 4:
            return args[0]
        if name == "conv2d":
            return _conv2d(*args, **kwargs)
        return func(*args, **kwargs)


def _pair(value) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _conv2d(x: Tensor, w: Tensor, bias=None, stride=1, padding=0, dilation=1, groups: int = 1) -> Tensor:
    if torch.is_autocast_enabled(x.device.type):  # which does not see operations of ours
        x, w = (t.to(torch.get_autocast_dtype(x.device.type)) for t in (x, w))
    if isinstance(padding, str):
        return torch.ops.aten.conv2d.padding(x, w, bias, stride, padding, dilation, groups)
    y = _Conv.apply(x, w, (_pair(stride), _pair(padding), _pair(dilation), groups))
    return y if bias is None else y + bias.view(-1, 1, 1)


def _conv_backward(g: Tensor, x: Tensor, w: Tensor, how: tuple, of_x: bool) -> Tensor:
    stride, padding, dilation, groups = how
    places = (stride, padding, dilation, False, [0, 0], groups, [of_x, not of_x, False])
    return torch.ops.aten.convolution_backward(g, x, w, None, *places)[0 if of_x else 1]


class _Conv(torch.autograd.Function):
    """Convolution y(x, w), linear in both, so that its derivatives of any order are y, its transpose in x
    (:class:`_ConvX`) and its transpose in w (:class:`_ConvW`). PyTorch's own second derivative takes w's gradient as a
    convolution with kernels as large as the images, which is slow on a CPU."""

    @staticmethod
    def forward(x, w, how):
        stride, padding, dilation, groups = how
        return torch.ops.aten.convolution(x, w, None, stride, padding, dilation, False, [0, 0], groups)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])
        ctx.how = inputs[2]

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        need_x, need_w, _ = ctx.needs_input_grad
        return (
            _ConvX.apply(g, w, x, ctx.how) if need_x else None,
            _ConvW.apply(g, x, w, ctx.how) if need_w else None,
            None,
        )


class _ConvX(torch.autograd.Function):
    """The transpose in x, of (g, w); ``like_x`` gives the shape."""

    @staticmethod
    def forward(g, w, like_x, how):
        return _conv_backward(g, like_x, w, how, True)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])
        ctx.how = inputs[3]

    @staticmethod
    def backward(ctx, d):
        g, w = ctx.saved_tensors
        return _Conv.apply(d, w, ctx.how), _ConvW.apply(g, d, w, ctx.how), None, None


class _ConvW(torch.autograd.Function):
    """The transpose in w, of (g, x); ``like_w`` gives the shape."""

    @staticmethod
    def forward(g, x, like_w, how):
        return _conv_backward(g, x, like_w, how, False)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])
        ctx.how = inputs[3]

    @staticmethod
    def backward(ctx, v):
        g, x = ctx.saved_tensors
        return _Conv.apply(x, v, ctx.how), _ConvX.apply(g, v, x, ctx.how), None, None


def _group_norm(x: Tensor, groups: int, weight=None, bias=None, eps: float = 1e-5, cudnn: bool = True) -> Tensor:
    channels, shape = x.shape[1], (-1, 1, 1)
    apart = x.float() if x.dtype == torch.bfloat16 else x  # fused, so that no float32 image is ever written
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
    """``f`` of tensors; what :meth:`_make` makes of it, for each set of shapes that it is called with."""

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
    """``f`` of tensors, compiled for each set of shapes that it is called with; ``f`` itself where that fails.

    ``f`` may use :mod:`torch.func`; Python code in it runs once for a set of shapes. On a GPU the compiled code is
    captured as a CUDA graph (``reduce-overhead``).
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
        except Exception as error:  # no C++ compiler, no inductor, an operation it cannot do: all the same to us
            logger.warning("torch.compile cannot be used here, steps run uncompiled: %s", _reason(error))
            return self.f
        if mode is None:
            return compiled
        return lambda *args: tree_map(Tensor.clone, compiled(*args))  # a captured graph reuses its memory


class Recorded(_ByShape):
    """``f`` of tensors on a GPU, recorded once for each set of shapes as a CUDA graph; ``f`` itself where that fails.

    The kernels of a small network's step take less time than launching them one by one; a graph is launched at once.
    Nothing is compiled, so recording takes but a few calls of ``f``. Python code in it runs only then, and it must not
    wait for the device.
    """

    lock = threading.Lock()  # inputs and results of a graph lie at fixed places

    def __init__(self, f: Callable[..., Any]):
        super().__init__(f)
        self.memory: Any = None  # of its graphs: one runs at a time, and what it returns is copied

    def __call__(self, *args: Tensor):
        with self.lock:
            return super().__call__(*args)

    def _make(self, args: tuple[Tensor, ...]) -> Callable[..., Any]:
        places = tuple(a.clone(memory_format=torch.contiguous_format) for a in args)
        try:
            with torch.cuda.device(args[0].device):
                aside = torch.cuda.Stream()
                aside.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(aside):  # libraries make their choices and plans before anything is recorded
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
    """The same images with their channels next to each other in memory, as convolutions and pooling like it best."""
    return x_NCHW.contiguous(memory_format=torch.channels_last)
