"""What the true label is, all evidence together: p(y | x, ỹ) under an estimated transition matrix (our extension).

Legend: N samples, K classes, V views.

Loss and distance ask how unlikely the given label is. Where labels flip one way that is the wrong question: half of a
class's neighbours carry its label, and the network learns the flip. The right one is which *true* class explains both
the image and the given label,

    q_i(y) ∝ p(y | x_i)^b · T[y, ỹ_i],      T[y, ỹ] = p(ỹ | y).

p(y | x) is pooled from several views (what the auditors and patches say, if asked also predictions while training and
anchors), T is the one that explains left-out labels best (:mod:`tadlib.transition`), b comes from the likelihood of
labels on which no auditor was trained. Then w_i = q_i(ỹ_i) is the trust, and argmax q_i the label that recalibration
would give. One number a sample, the same rule for every noise: where T is symmetric it follows the odds of the given
label, where T has a direction it knows which of two likely classes is the source of the other.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from tadlib.errors import require

SHARPNESS = tuple(0.5 * 1.05**i for i in range(43))  # exponents b to choose from, up to 3.9
DOUBT = 2.0  # standard errors by which an exponent may be less likely than the best one ...
LEAST = 2 / 3  # ... as long as it is not below that part of it
FLOOR = 1e-6  # of a probability: no view rules a class out alone


def pool(views_VNK: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """log p(y | x) (N, K), float64: the normalised geometric mean of several views' class probabilities.

    ``weights`` says how much each view counts; all alike without it.

    Raises:
        InputError: without a view, or where one is not finite.
    """
    require(len(views_VNK) > 0, "pool needs at least one view, got 0")
    for p_NK in views_VNK:
        require(bool(p_NK.isfinite().all()), "evidence must be finite, got NaN or infinite values")
    weights = [1.0] * len(views_VNK) if weights is None else weights
    terms = [w * p_NK.double().clamp_min(FLOOR).log() for w, p_NK in zip(weights, views_VNK, strict=True)]
    return (torch.stack(terms).sum(0) / sum(weights)).log_softmax(1)


def log_likelihoods(log_p_NK: Tensor, given_N: Tensor, transition_KK: Tensor, b: float) -> Tensor:
    """log p(ỹ | x) = log Σ_y p(y | x)^b T[y, ỹ] (normalised over y) of every sample (N,), float64."""
    return _log_likelihoods(log_p_NK.double(), transition_KK[:, given_N].T, b)


def _log_likelihoods(log_p_NK: Tensor, of_given_NK: Tensor, b: float) -> Tensor:
    """The same; of T only the column of the given label is asked for."""
    return ((log_p_NK * b).softmax(1) * of_given_NK).sum(1).clamp_min(1e-12).log()


def sharpness(log_p_NK: Tensor, given_N: Tensor, transition_KK: Tensor) -> float:
    """The least exponent b of a grid that explains given labels (of samples not trained on) about as well as the best.

    That is, whose mean log-likelihood is below the largest by no more than :data:`DOUBT` standard errors of the
    difference. Errors that T does not know of, those of labels that depend on the image, make the likeliest exponent
    too large; the samples cannot tell it from the smaller one, which is the safer claim. Few samples could not tell
    anything from it, so it is no smaller than :data:`LEAST` of the likeliest (our choice).

    The likelihood is taken to have one peak, so that a part of the grid is enough to find it.
    """
    log_p_NK, of_given_NK = log_p_NK.double(), transition_KK[:, given_N].T.contiguous()

    @cache
    def likelihoods(place: int) -> Tensor:
        return _log_likelihoods(log_p_NK, of_given_NK, SHARPNESS[place])

    low, high = 0, len(SHARPNESS) - 1
    while low < high:
        middle = (low + high) // 2
        rises = likelihoods(middle).mean() < likelihoods(middle + 1).mean()
        low, high = (middle + 1, high) if rises else (low, middle)
    best, n = low, max(2, len(given_N))
    for place in range(best):
        if SHARPNESS[place] >= LEAST * SHARPNESS[best]:
            behind_N = likelihoods(best) - likelihoods(place)
            if behind_N.mean() <= DOUBT * (behind_N.var(correction=0) / (n - 1)).sqrt():
                return SHARPNESS[place]
    return SHARPNESS[best]


def posterior(log_p_NK: Tensor, given_N: Tensor, transition_KK: Tensor, b: float = 1.0) -> Tensor:
    """q (N, K) float64: q_i(y) ∝ p(y | x_i)^b T[y, ỹ_i]."""
    return (log_p_NK.double() * b + transition_KK.clamp_min(1e-12).log()[:, given_N].T).softmax(1)
