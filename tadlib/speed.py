"""What makes training fast whatever the method: memory that is kept between steps, and compiled steps."""

import ctypes
import logging
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

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # of glibc's malloc.h


def prepare(threads: int) -> None:
    """Set up this process for small networks on a CPU: threads, no denormals, freed memory kept."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # denormals make small networks many times slower on a CPU
    keep_memory()


@lru_cache
def keep_memory() -> bool:
    """Have glibc keep freed memory for the next tensor; False where there is no glibc.

    By default every tensor above 32 MB is mapped anew and each of its pages cleared by the system, which costs more
    than arithmetic on it (``relu`` of 100x128x32x32 floats on one core: 34 ms so, 5 ms with memory that is kept).
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
    works in any memory layout, and no copies into the plain layout."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "group_norm":
            return _group_norm(*args, **kwargs)
        if name == "contiguous" and len(args) == 1 and not kwargs and args[0].ndim == 4:
            return args[0]
        return func(*args, **kwargs)


def _group_norm(x: Tensor, groups: int, weight=None, bias=None, eps: float = 1e-5, cudnn: bool = True) -> Tensor:
    channels, shape = x.shape[1], (-1, 1, 1)
    apart = x if groups == channels else x.unflatten(1, (groups, -1))
    axes = tuple(range(1 if groups == 1 else 2, apart.ndim))
    variance, mean = torch.var_mean(apart, axes, correction=0, keepdim=True)
    y = ((apart - mean) * (variance + eps).rsqrt()).reshape(x.shape)
    y = y if weight is None else y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)


class Compiled:
    """``f`` of tensors, compiled for each set of shapes that it is called with; ``f`` itself where that fails.

    ``f`` may use :mod:`torch.func`; Python code in it runs once for a set of shapes. On a GPU the compiled code is
    captured as a CUDA graph (``reduce-overhead``).
    """

    def __init__(self, f: Callable[..., Any]):
        self.f = f
        self.made: dict[tuple, Callable[..., Any]] = {}

    def __call__(self, *args: Tensor):
        key = tuple((a.shape, a.dtype, a.device) for a in args)
        if key not in self.made:
            self.made[key] = self._make(args)
        return self.made[key](*args)

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
            reason = (str(error) or type(error).__name__).splitlines()[0]
            logger.warning("torch.compile cannot be used here, steps run uncompiled: %s", reason)
            return self.f
        if mode is None:
            return compiled
        return lambda *args: tree_map(Tensor.clone, compiled(*args))  # a captured graph reuses its memory


def channels_last(x_NCHW: Tensor) -> Tensor:
    """The same images with their channels next to each other in memory, as convolutions and pooling like it best."""
    return x_NCHW.contiguous(memory_format=torch.channels_last)
