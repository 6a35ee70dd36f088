"""How far probabilities may be believed: the inverse temperature of predictions, and the weights of training labels.

Legend: N samples, K classes.
"""

from functools import cache

import torch
from torch import Tensor

from tadlib.trust.base import TINY

INVERSE_TEMPERATURES = tuple(0.5 * 1.05**i for i in range(43))  # b to choose from, up to 3.9
STANDARD_ERRORS = 2.0  # by which a b may be less likely than the best one ...
LEAST_SHARE = 2 / 3  # ... as long as it is not below that part of it
MOST_EXPONENT = 64.0  # of weights, however uncertain all samples are
BISECTIONS = 17


def log_likelihoods(log_p_NK: Tensor, noisy_N: Tensor, transition_KK: Tensor, b: float) -> Tensor:
    """log p(ỹ | x) = log Σ_y p(y | x)^b T[y, ỹ] (normalised over y) of every sample (N,), float64."""
    return _log_likelihoods(log_p_NK.double(), transition_KK[:, noisy_N].T, b)


def _log_likelihoods(log_p_NK: Tensor, of_noisy_NK: Tensor, b: float) -> Tensor:
    """The same; of T only the column of the noisy label is asked for."""
    return ((log_p_NK * b).softmax(1) * of_noisy_NK).sum(1).clamp_min(TINY).log()


def inverse_temperature(log_p_NK: Tensor, noisy_N: Tensor, transition_KK: Tensor) -> float:
    """The least b of a grid that explains noisy labels (of samples not trained on) about as well as the best one.

    That is, whose mean log-likelihood is below the largest by no more than :data:`STANDARD_ERRORS` standard errors of
    the difference. Errors that T does not describe, those of labels that depend on the image, make the likeliest b too
    large; the samples cannot tell it from the smaller one, which is the safer claim. Few samples could not tell
    anything from it, so it is no smaller than :data:`LEAST_SHARE` of the likeliest (our choice).

    The likelihood is taken to have one peak, so that a part of the grid is enough to find it.
    """
    log_p_NK, of_noisy_NK = log_p_NK.double(), transition_KK[:, noisy_N].T.contiguous()

    @cache
    def likelihoods(place: int) -> Tensor:
        return _log_likelihoods(log_p_NK, of_noisy_NK, INVERSE_TEMPERATURES[place])

    low, high = 0, len(INVERSE_TEMPERATURES) - 1
    while low < high:
        middle = (low + high) // 2
        rises = likelihoods(middle).mean() < likelihoods(middle + 1).mean()
        low, high = (middle + 1, high) if rises else (low, middle)
    best, n = low, max(2, len(noisy_N))
    for place in range(best):
        if INVERSE_TEMPERATURES[place] >= LEAST_SHARE * INVERSE_TEMPERATURES[best]:
            behind_N = likelihoods(best) - likelihoods(place)
            if behind_N.mean() <= STANDARD_ERRORS * (behind_N.var(correction=0) / (n - 1)).sqrt():
                return INVERSE_TEMPERATURES[place]
    return INVERSE_TEMPERATURES[best]


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
