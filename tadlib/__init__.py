"""Dataset distillation from noisy labels by Trust-Aware Diversion, its extension the trust posterior, and rivals."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("tadlib")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"

# name -> (module, attribute); loaded when first used, so that `tad --help` does not wait for torch
_PUBLIC = {
    "load_dataset": ("tadlib.data", "load_dataset"),
    "trust": ("tadlib.trust", None),
    "train_experts": ("tadlib.experts", "train_experts"),
    "distill": ("tadlib.distill", None),
    "evaluate": ("tadlib.evaluate", "evaluate"),
    "load_distilled": ("tadlib.distilled", "load_distilled"),
    "Config": ("tadlib.config", "Config"),
    "find_label_errors": ("tadlib.find", "find_label_errors"),
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tadlib' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    loaded = import_module(module)
    return loaded if attribute is None else getattr(loaded, attribute)
