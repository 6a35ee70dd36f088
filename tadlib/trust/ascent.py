"""Gradient ascent for the few numbers that trust methods fit."""

from collections.abc import Callable

import torch
from torch import Tensor

STEP, STEP_OF_FEW = 0.1, 0.2  # learning rates, in log odds: of tensors with many entries, and of single numbers

Function = Callable[..., Tensor]


def ascend(value: Function, numbers: list[Tensor], steps: int, below_0=slice(0), above_0=slice(0)) -> list[Tensor]:
    """Where Adam (Kingma & Ba 2015) on ``value`` ends; numbers of some places stay below or above 0.

    Importing torch's takes longer than all steps. Where every entry is free a quasi-Newton method fits chance sooner.
    """
    values, means, squares = list(numbers), *([torch.zeros_like(v) for v in numbers] for _ in range(2))
    for step in range(1, steps + 1):
        asked = [v.detach().requires_grad_() for v in values]
        for i, gradient in enumerate(torch.autograd.grad(value(*asked), asked)):
            means[i].lerp_(gradient, 1 - 0.9)
            squares[i].lerp_(gradient.square(), 1 - 0.999)
            ahead = means[i] / (1 - 0.9**step) / ((squares[i] / (1 - 0.999**step)).sqrt() + 1e-8)
            values[i] = values[i] + (STEP if values[i].ndim else STEP_OF_FEW) * ahead
        values[below_0] = [v.clamp_max(0) for v in values[below_0]]
        values[above_0] = [v.clamp_min(0) for v in values[above_0]]
    return values
