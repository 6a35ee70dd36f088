"""A device without hardware, so that what would fail on a GPU fails on any machine: run as a script, it carries out the
stage divert there and prints what came out as JSON.

    python tests/pretend.py ARM [NAME=VALUE ...]

Tensors of the device ``pretend`` hold a CPU tensor and compute with it, but an operation on tensors of both devices is
refused, as are NumPy's view of one and numbers drawn by a generator of the other device. What PyTorch does on a GPU
alone, CUDA graphs among it, cannot be pretended: there steps are launched one by one.
"""

import json
import sys
import tempfile
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("pretend")
DEVICE = torch.device("pretend:0")
MIX = ("aten._to_copy", "aten.copy_", "aten.index.", "aten.index_put", "aten._index_put")  # as on a GPU


class Pretend(torch.Tensor):
    """A tensor of the device; ``raw`` is the CPU tensor that it stands for."""

    raw: torch.Tensor
    is_cuda = True

    @staticmethod
    def __new__(cls, raw: torch.Tensor):
        layout = {"strides": raw.stride(), "storage_offset": raw.storage_offset(), "dtype": raw.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, raw.shape, device=DEVICE, **layout)
        made.raw = raw
        return made

    def tolist(self):
        return self.raw.tolist()

    def __format__(self, form):
        return format(self.raw, form)

    def __repr__(self, **_):
        return f"Pretend({self.raw})"

    def numpy(self, *_, **__):
        raise TypeError("can't convert a tensor of device pretend to NumPy: copy it to the CPU first")

    __array__ = numpy

    def new_tensor(self, values, dtype=None):
        return torch.tensor(values, dtype=dtype or self.dtype, device=DEVICE)

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return carried_out(operation, args, kwargs or {})


def carried_out(operation, args, kwargs):
    """The operation on the CPU tensors; a result is of the device where an argument is, unless it is asked for one."""
    given = [a for a in tree_flatten((args, kwargs))[0] if isinstance(a, torch.Tensor)]
    ours = {id(a.raw): a for a in given if isinstance(a, Pretend)}
    theirs = [a for a in given if not isinstance(a, Pretend) and a.ndim]
    if ours and theirs and not str(operation).startswith(MIX):
        raise RuntimeError(f"{operation}: expected all tensors on the same device, got pretend:0 and cpu")
    asked = kwargs.get("device")
    if asked is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    args, kwargs = tree_map(lambda a: a.raw if isinstance(a, Pretend) else a, (args, kwargs))
    made = operation(*args, **kwargs)
    if str(operation).startswith("aten.copy_"):
        return ours.get(id(args[0]), args[0])
    here = bool(ours) if asked is None else torch.device(asked).type == "pretend"

    def wrapped(result):
        if not here or not isinstance(result, torch.Tensor) or isinstance(result, Pretend):
            return result
        return ours[id(result)] if id(result) in ours else Pretend(result)

    return tree_map(wrapped, made)


class Generator:
    """A generator of the device, in place of :class:`torch.Generator`."""

    real = torch.Generator

    def __new__(cls, device="cpu"):
        return super().__new__(cls) if torch.device(device).type == "pretend" else cls.real(device=device)

    def __init__(self, device="cpu"):
        self.device, self.raw, self.drawn = torch.device(device), self.real(), 0

    def manual_seed(self, seed):
        self.raw.manual_seed(seed)
        return self

    def initial_seed(self):
        return self.raw.initial_seed()

    def get_offset(self):
        return self.drawn

    def get_state(self):
        return self.raw.get_state()


def drawing(draw):
    """``draw`` with generators of the device; a generator and what it draws are of the same one."""

    def drawn(*args, generator=None, device=None, **kwargs):
        kwargs |= {} if device is None else {"device": device}
        if not isinstance(generator, Generator):
            assert generator is None or torch.device(device or "cpu").type == "cpu", "a CPU generator for pretend"
            return draw(*args, generator=generator, **kwargs)
        assert kwargs.pop("device", None) == generator.device, "a generator of pretend for another device"
        generator.drawn += 1
        return draw(*args, generator=generator.raw, **kwargs).to(DEVICE)

    return drawn


def moving(create: Any):
    """``create`` on the CPU, moved where it was asked for: these kernels cannot be pretended."""

    def created(*args, device=None, **kwargs):
        made = create(*args, **kwargs)
        return made if device is None else made.to(device)

    return created


def pretend() -> torch.library.Library:
    """Have this process compute on the device, as long as what is returned is kept."""
    library = torch.library.Library("_", "IMPL")
    library.fallback(lambda operation, *args, **kwargs: carried_out(operation, args, kwargs), "PrivateUse1")
    torch.Generator = Generator  # type: ignore[misc,assignment]
    for name in ("rand", "randn", "randint", "randperm"):
        setattr(torch, name, drawing(getattr(torch, name)))
    for name in ("eye", "tensor", "arange"):
        setattr(torch, name, moving(getattr(torch, name)))
    return library


def main(arm: str, *settings: str) -> None:
    library = pretend()
    x = torch.ones(2, device=DEVICE)
    try:
        x + torch.ones(2)
        refused = False
    except RuntimeError:
        refused = True
    from tadlib import pipeline
    from tadlib.config import Config

    more = {name: value if value.isalpha() else float(value) for name, value in (s.split("=") for s in settings)}
    with tempfile.TemporaryDirectory() as out:
        params = {"dataset": "digits", "noise": "pairflip", "rate": 0.4, "preset": "smoke", "threads": 1, "out": out}
        config = Config.from_params(**params | {"arm": arm, "device": str(DEVICE)} | more)
        refined = pipeline.load_refined(pipeline.divert(config))
        right_N = refined.noisy == pipeline.load_labels(pipeline.inject_noise(config)).true_N
    from tadlib.trust import auroc

    found = {"refused": refused, "device": str(x.device), "auroc": auroc(refined.trust, right_N)}
    print(json.dumps(found | {"finite": bool(refined.y.isfinite().all() and refined.weight.isfinite().all())}))
    del library


if __name__ == "__main__":
    main(*sys.argv[1:])
