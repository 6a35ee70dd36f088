"""DANCE: dual-view distribution alignment for dataset condensation (Zhang et al., IJCAI 2024).

Legend: B batch, S synthetic images, D features.

The iteration is that of :mod:`tadlib.distill.distributions`. The distance of a class is that of its mean features, in
which real images count by their trust w:

    L = ‖ Σ_B w f / Σ_B w − mean_S f ‖²

Images move by SGD with momentum.
"""

from functools import partial

import torch
from torch import Tensor

from tadlib.config import DanceConfig
from tadlib.distill import distributions, loop
from tadlib.distill.loop import Problem, State


def distance(real_BD: Tensor, w_B: Tensor, x_SD: Tensor, random: torch.Generator) -> Tensor:
    """Squared distance of the weighted mean of real features and the mean of synthetic ones."""
    return (w_B @ real_BD / w_B.sum() - x_SD.mean(0)).square().sum()


def mover(config: DanceConfig) -> distributions.Move:
    """The step of the images."""
    return partial(loop.momentum_step, lr=config.lr_img, momentum=config.momentum)


def advance(problem: Problem, state: State) -> None:
    """One network of the bank."""
    distributions.advance(problem, state, distance, mover(problem.config))


distill = loop.driver(distributions.start, advance)
