"""DANCE: dual-view distribution alignment for dataset condensation (Zhang et al., IJCAI 2024).

Legend: B batch, S synthetic images, D features.

The iteration is that of :mod:`tadlib.distill.distributions`. The distance of a class is that of its mean features, in
which real images count by their trust w:

    L = ‖ Σ_B w f / Σ_B w − mean_S f ‖²

Images move by SGD with momentum.
"""

import torch
from torch import Tensor

from tadlib.distill import distributions, loop
from tadlib.distill.loop import Problem, State


def distance(real_BD: Tensor, w_B: Tensor, x_SD: Tensor, random: torch.Generator) -> Tensor:
    """Squared distance of the weighted mean of real features and the mean of synthetic ones."""
    return (w_B @ real_BD / w_B.sum() - x_SD.mean(0)).square().sum()


def advance(problem: Problem, state: State) -> None:
    """One network of the bank."""
    config = problem.config

    def move(x, velocity, grad_x):
        return loop.momentum_step(x, velocity, grad_x, config.lr_img, config.momentum)

    distributions.advance(problem, state, distance, move)


distill = loop.driver(distributions.start, advance)
