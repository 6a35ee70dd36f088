"""Predictions of the true class, each made without the sample's own label, and the posterior of all together.

Legend: N samples, K classes, V predictors.

A regression gives linear estimates of the noisy labels, from which LDA makes p(y | x) under the likeliest transition
matrix (:mod:`tadlib.trust.predictors`, :mod:`tadlib.trust.transition`); a classifier's out-of-fold probabilities are
unmixed (:mod:`tadlib.trust.confident`). Predictors are pooled by a weighted geometric mean,

    log p(y | x) = Σ_v w_v log p_v(y | x) + const,

with the weights under which labels that no predictor was trained on are likeliest (a logarithmic opinion pool, Genest &
Zidek 1986): they say which predictor to believe, and, by their sum, how far. T is that of the predictor that explains
the labels best.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tadlib.errors import require
from tadlib.trust import base, confident, decisions, predictors, transition
from tadlib.trust.ascent import ascend

FLOOR = 1e-6  # of a probability: no predictor rules a class out alone
STEPS = 60  # of the search for weights
LEAST = 1e-4  # probability that a classifier gives; below, its logarithm says more about rounding than about the image
WEAK = 0.5  # mean probability of the likeliest class; a network too weak to count by has less (our choice)


@dataclass(frozen=True)
class Prediction:
    """``p`` (N, K) float32 of the true class, the matrix ``transition`` (K, K) float64 that it goes with, the exponent
    of that matrix, the mean log-likelihood of the noisy labels, and by how much less and more uniform noise explains
    them about as well."""

    p: Tensor
    transition: Tensor
    exponent: float
    log_likelihood: float
    range: tuple[float, float]


def regressed(r_NK: Tensor, noisy_N: Tensor, group_N: Tensor | None = None) -> Prediction:
    """From leave-one-out estimates ``r`` of the noisy labels; copies share a ``group`` (N,)."""
    statistics = predictors.lda_statistics(r_NK, noisy_N, group_N)
    fit = transition.estimate(statistics)
    p_NK = statistics.probabilities(fit.transition, fit.scale)
    exponent = decisions.LIKENESS if fit.kind == "alike" else 1.0
    likelihood = transition.log_likelihood(p_NK, noisy_N, fit.transition).item()
    # of few samples no noise is found, however much there is
    unsure = transition.uniform_range(statistics) if fit.kind == "uniform" else (0.0, 0.0)
    return Prediction(p_NK, fit.transition, exponent, likelihood, unsure)


def unmixed(p_NK: Tensor, noisy_N: Tensor) -> Prediction:
    """From out-of-fold probabilities ``p`` of the noisy labels.

    The confident joint counts what a weak classifier confuses as wrong labels. One whose log-probabilities, read by LDA
    as a regression's estimates are, leave the true class open (:data:`WEAK`) is read so, not unmixed (our choice).
    """
    logs_NK = p_NK.clamp_min(LEAST).log()
    read = regressed((logs_NK - logs_NK.mean(1, keepdim=True)).float(), noisy_N)
    if read.p.amax(1).mean() < WEAK:
        return read
    transition_KK = confident.confident_transition(p_NK, noisy_N)
    true_NK = confident.unmixed(p_NK, transition_KK)
    likelihood = transition.log_likelihood(true_NK, noisy_N, transition_KK).item()
    return Prediction(true_NK.float(), transition_KK, 1.0, likelihood, (0.0, 0.0))


def best(predictions: Sequence[Prediction]) -> Prediction:
    """The prediction that explains the noisy labels best."""
    require(len(predictions) > 0, "at least one predictor is needed, got 0")
    return max(predictions, key=lambda prediction: prediction.log_likelihood)


def weights(p_VNK: Sequence[Tensor], noisy_N: Tensor, transition_KK: Tensor, use_N: Tensor | None = None) -> Tensor:
    """w (V,) float32 under which the noisy labels of the samples in ``use`` are likeliest.

    InputError without a predictor, or where a probability is not finite.
    """
    require(len(p_VNK) > 0, "pooling needs at least one predictor, got 0")
    finite = all(bool(p_NK.isfinite().all()) for p_NK in p_VNK)
    require(finite, "predictions must be finite, got NaN or infinite values")
    use_N = torch.ones_like(noisy_N, dtype=torch.bool) if use_N is None else use_N
    logs_VnK = torch.stack([p_NK[use_N].float().clamp_min(FLOOR).log() for p_NK in p_VNK])
    noisy_n = noisy_N[use_N]

    def value(log_w_V: Tensor) -> Tensor:
        p_nK = torch.einsum("v,vnk->nk", log_w_V.exp(), logs_VnK).softmax(1)
        return transition.log_likelihood(p_nK, noisy_n, transition_KK)

    start_V = torch.full((len(p_VNK),), 1 / len(p_VNK), device=noisy_N.device).log()
    return ascend(value, [start_V], STEPS)[0].exp()


def pool(p_VNK: Sequence[Tensor], w_V: Tensor) -> Tensor:
    """log p(y | x) (N, K) float64: the geometric mean of class probabilities with weights ``w``."""
    logs_NK = (w * p_NK.double().clamp_min(FLOOR).log() for w, p_NK in zip(w_V.double(), p_VNK, strict=True))
    return sum(logs_NK).log_softmax(1)  # type: ignore[union-attr]


def posterior(log_p_NK: Tensor, noisy_N: Tensor, transition_KK: Tensor, exponent: float = 1.0) -> Tensor:
    """q (N, K) float64: q_i(y) ∝ p(y | x_i) T[y, ỹ_i]^a."""
    return (log_p_NK.double() + exponent * transition_KK.clamp_min(base.TINY).log()[:, noisy_N].T).softmax(1)


@dataclass(frozen=True)
class Posterior:
    """``q`` (N, K) float64, p(y | x, ỹ), and what it was made of: ``weights`` (V,), ``transition`` (K, K), its
    ``exponent``; and the share of wrong labels."""

    q: Tensor
    weights: Tensor
    transition: Tensor
    exponent: float
    noise_rate: decisions.NoiseRate


def combined(
    predictions: Sequence[Prediction],
    noisy_N: Tensor,
    network_NK: Tensor | None = None,
    held_out_N: Tensor | None = None,
    checked_N: Tensor | None = None,
    original_N: Tensor | None = None,
) -> Posterior:
    """The posterior of all predictions, and of a network's ``p`` (N, K), which was not trained on ``held_out`` (N,).

    ``checked`` labels (N,) are right. ``original`` (N,) are the labels before some were checked, by default the same
    ones; T belongs to these, for after suspects were corrected labels would seem hardly to flip. Out-of-fold
    probabilities alone are taken as they are; the weight that they would get serves to measure overdispersion.
    """
    chosen = best(predictions)
    original_N = noisy_N if original_N is None else original_N
    p_VNK = [prediction.p for prediction in predictions] + ([] if network_NK is None else [network_NK])
    w_V = weights(p_VNK, original_N, chosen.transition, held_out_N)
    log_p_NK = pool(p_VNK, w_V)
    excess = decisions.overdispersion(log_p_NK.exp(), original_N, chosen.transition)
    a = decisions.exponent(chosen.exponent, excess)
    if len(p_VNK) == 1:
        w_V = torch.ones_like(w_V)
        log_p_NK = pool(p_VNK, w_V)

    def q_NK(a: float) -> Tensor:
        q_NK = posterior(log_p_NK, original_N, chosen.transition, a)
        if checked_N is None:
            return q_NK
        return torch.where(checked_N[:, None], base.one_hot(noisy_N, q_NK.shape[1]).to(q_NK), q_NK)

    def trust_N(q_NK: Tensor) -> Tensor:
        return q_NK.gather(1, noisy_N[:, None])[:, 0]

    found = q_NK(a)
    ends = trust_N(q_NK(a + decisions.UNCERTAIN)), trust_N(q_NK(a - decisions.UNCERTAIN))
    rate = decisions.noise_rate(trust_N(found), ends, chosen.range)
    return Posterior(found, w_V, chosen.transition, a, rate)
