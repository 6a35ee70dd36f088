"""Weights of training labels, from the probabilities that they are right.

Legend: N samples, K classes.
"""

import torch
from torch import Tensor

from tadlib.trust.base import TINY

MOST_EXPONENT = 64.0  # of weights, however uncertain all samples are
BISECTIONS = 17


def purity(right_N: Tensor, exponent: float) -> float:
    """Share of hard labels that are right, by weight, if each is so with the probability ``right`` and has that to the
    ``exponent`` as its weight: Σ r^(exponent + 1) / Σ r^exponent."""
    log_right_N = right_N.clamp_min(TINY).log()

    def total(exponent: float) -> Tensor:
        return (exponent * log_right_N).clamp_min(-80).exp().sum()  # below, numbers are denormal: ten times the time

    return (total(exponent + 1) / total(exponent)).item()


def weight_exponent(right_N: Tensor, target: float) -> float:
    """The least exponent, from 1 to :data:`MOST_EXPONENT`, at which :func:`purity` reaches ``target``.

    :func:`purity` rises with the exponent, so bisection finds it (our choice).
    """
    low, high = 1.0, MOST_EXPONENT
    if purity(right_N, low) >= target:
        return low
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if purity(right_N, middle) >= target else (middle, high)
    return high


def training_targets(q_NK: Tensor, hard_N: Tensor, soft_weight: float) -> tuple[Tensor, Tensor]:
    """Label distributions (N, K) and weights (N,) of training samples, from p(y | x, ỹ) and hard-label weights.

    The most likely label of a sample has the weight u of ``hard``. What remains of the sample, 1 − u, is learned at
    ``soft_weight`` with the posterior as soft label, for uncertain samples help when they carry soft labels: the mass
    u·e + soft_weight·(1 − u)·q in all (our choice).
    """
    mass_NK = q_NK * (soft_weight * (1 - hard_N))[:, None]
    mass_NK = mass_NK.scatter_add(1, q_NK.argmax(1, keepdim=True), hard_N[:, None])
    weight_N = mass_NK.sum(1)
    # without any mass a distribution is still asked for
    return torch.where(weight_N[:, None] > 0, mass_NK / weight_N.clamp_min(1e-30)[:, None], q_NK), weight_N
