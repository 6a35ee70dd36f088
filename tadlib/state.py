"""Checkpoints of states: dataclasses of tensors, generators, values, and lists and dataclasses of such.

What runs for long (trust methods, distillation, evaluation) keeps all that changes between two rounds in one dataclass,
so that a checkpoint between any two rounds is complete.
"""

from dataclasses import is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

Checkpoint = tuple[dict[str, Tensor], dict[str, Any]]


def checkpoint(state: Any) -> Checkpoint:
    """All of a state, as tensors and JSON by the paths of its fields."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, Tensor | torch.Generator):
            tensors[path] = value if isinstance(value, Tensor) else value.get_state()
        elif parts := _parts(value):
            for name, part in parts.items():
                walk(part, f"{path}/{name}")
        else:
            values[path] = list(value) if isinstance(value, list | tuple) else value  # later epochs append to rows

    walk(state, "")
    return tensors, values


def restored(state: Any, kept: Checkpoint | None, device: torch.device) -> Any:
    """The inverse of :func:`checkpoint`, given a fresh state, whose generators it sets; that state where None is
    ``kept``."""
    if kept is None:
        return state
    tensors, values = kept

    def walk(value: Any, path: str) -> Any:
        if isinstance(value, torch.Generator):
            return value.set_state(tensors[path].cpu())
        if parts := _parts(value):
            parts = {name: walk(part, f"{path}/{name}") for name, part in parts.items()}
            return list(parts.values()) if isinstance(value, list) else replace(value, **parts)
        if path in tensors:
            return tensors[path].to(device)
        stored = values[path]
        return type(value)(stored) if isinstance(value, list | tuple) else stored

    return walk(state, "")


def _parts(value: Any) -> dict[str, Any]:
    """The fields of a dataclass, or the elements of a list of dataclasses or generators; nothing of any other value."""
    if is_dataclass(value):
        return vars(value)
    if isinstance(value, list) and value and (is_dataclass(value[0]) or isinstance(value[0], torch.Generator)):
        return {str(i): part for i, part in enumerate(value)}
    return {}
