"""What the true label is, all evidence together: p(y | x, ỹ) under an estimated transition matrix (our extension).

Legend: N samples, K classes, V views.

Loss and distance ask how unlikely the given label is. Where labels flip one way that is the wrong question: half of a
class's neighbours carry its label, and the network learns the flip. The right one is which *true* class explains both
the image and the given label,

    q_i(y) ∝ p(y | x_i)^b · T[y, ỹ_i],      T[y, ỹ] = p(ỹ | y).

p(y | x) is pooled from several views of the auditors (predictions, predictions while training, anchors), T is
estimated from the same predictions, b from the likelihood of labels on which no auditor was trained. Then
w_i = q_i(ỹ_i) is the trust, and argmax q_i the label that recalibration would give. One number a sample, the same
rule for every noise: where T is symmetric it follows the odds of the given label, where T has a direction it knows
which of two likely classes is the source of the other.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tadlib.errors import require

SHARPNESS = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)  # exponents b to choose from
SHARPENED = (0.7, 1.0, 1.4, 2.0, 2.8, 4.0)  # of the predictions that T is estimated from
SHRUNK = (1.0, 0.5)  # how far T may be drawn towards flips without a direction
SIGNIFICANT = 1.92  # gain in log-likelihood by one more parameter, at 95 % (Wilks)
FLOOR = 1e-6  # of a probability: no view rules a class out alone


def pool(views_VNK: Sequence[Tensor]) -> Tensor:
    """log p(y | x) (N, K), float64: the normalised geometric mean of several views' class probabilities.

    Raises:
        InputError: without a view, or where one is not finite.
    """
    require(len(views_VNK) > 0, "pool needs at least one view, got 0")
    for p_NK in views_VNK:
        require(bool(p_NK.isfinite().all()), "evidence must be finite, got NaN or infinite values")
    return torch.stack([p_NK.double().clamp_min(FLOOR).log() for p_NK in views_VNK]).mean(0).log_softmax(1)


def estimate_transition(
    log_p_NK: Tensor, given_N: Tensor, *, sharpness: float = 3.0, iterations: int = 20, diagonal: float = 0.6
) -> Tensor:
    """T (K, K) float64 by expectation maximisation over the unknown true labels.

    E-step: r_i(y) ∝ p(y | x_i)^s T[y, ỹ_i]. M-step: T[y, k] = Σ_{ỹ_i = k} r_i(y) / Σ_i r_i(y).
    A network trained on given labels predicts *them*: its p is the true posterior blurred by T, which T = I explains
    as well as the truth does. What tells them apart is that the true label of an image is nearly certain: hence the
    ``sharpness`` s > 1, and a start away from the identity, with ``diagonal`` on T's diagonal.
    """
    k = log_p_NK.shape[1]
    eye = torch.eye(k, dtype=torch.float64, device=log_p_NK.device)
    transition_KK = diagonal * eye + (1 - diagonal) / max(1, k - 1) * (1 - eye)
    given_NK = torch.nn.functional.one_hot(given_N, k).double()
    p_NK = (log_p_NK.double() * sharpness).softmax(1)
    for _ in range(iterations):
        joint_KK = _normalised(p_NK * transition_KK[:, given_N].T).T @ given_NK
        # a class that no sample is thought to belong to keeps a uniform row
        joint_KK = joint_KK + 1e-2 / k
        transition_KK = joint_KK / joint_KK.sum(1, keepdim=True)
    return transition_KK


def transition_of_rate(
    log_p_NK: Tensor, given_N: Tensor, keep: float, *, low: float = 0.7, high: float = 6.0, halvings: int = 5
) -> Tensor:
    """The estimate of T whose mean diagonal is ``keep``, by bisection on the sharpness in [low, high].

    Once auditors are trained on posteriors their predictions are less and less blurred, and no fixed sharpness is
    right: too small a one drifts to T = I, too large a one finds more noise every round, which the next posteriors
    confirm. So the share of right labels is estimated from auditors trained on given labels, and what is learned in
    the rounds after that is the directions of flips (the dual loop lowers the share only where mild sharpness already
    says so, and has held-out labels correct it in the end).
    """
    for _ in range(halvings):
        middle = (low * high) ** 0.5
        transition_KK = estimate_transition(log_p_NK, given_N, sharpness=middle)
        if transition_KK.diagonal().mean().item() > keep:  # the sharper, the more noise is seen
            low = middle
        else:
            high = middle
    return transition_KK


def likeliest_transition(learned: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor]) -> Tensor:
    """The estimate of T, of those from a grid of sharpnesses, :func:`shrink`-ed, under which held-out labels are most
    likely.

    Auditors that have learned posteriors for some rounds no longer predict given labels, and T = I does not explain the
    labels they were not trained on any more. Both arguments are log p(y | x) (N, K) and given labels (N,).
    """
    candidates = [shrink(estimate_transition(*learned, sharpness=s), *held_out)[0] for s in SHARPENED]
    return max(candidates, key=lambda transition_KK: best_log_likelihood(*held_out, transition_KK))


def certain_agreement(log_p_NK: Tensor, given_N: Tensor, *, share: float = 0.1) -> float:
    """At least so many labels are right: how often they agree with the predictions that are surest, less its error.

    Of every class the ``share`` N / K samples with the largest p(y | x) count, whose labels no auditor may have
    learned. An ambiguous image looks like a wrong label to :func:`estimate_transition`; the surest images of a class
    are not ambiguous, and where they carry their label, noise cannot be the reason why others do not. It is a bound
    and no estimate: the surest predictions are wrong at times.
    """
    k = log_p_NK.shape[1]
    places_MK = log_p_NK.topk(max(1, int(share * len(given_N) / k)), dim=0).indices
    agree = (given_N[places_MK] == torch.arange(k, device=given_N.device)).double()
    mean = agree.mean().item()
    return mean - (mean * (1 - mean) / agree.numel()) ** 0.5


def symmetric(transition_KK: Tensor) -> Tensor:
    """The matrix of noise without direction at the same overall rate: for an ablation."""
    k = len(transition_KK)
    keep = transition_KK.diagonal().mean()
    eye = torch.eye(k, dtype=transition_KK.dtype, device=transition_KK.device)
    return keep * eye + (1 - keep) / max(1, k - 1) * (1 - eye)


def shrink(transition_KK: Tensor, log_p_NK: Tensor, given_N: Tensor) -> tuple[Tensor, float]:
    """(1 − λ) T + λ :func:`symmetric` (T) and λ: the largest under which held-out labels are as likely as under T.

    K² directions cannot be told from a few hundred wrong labels of a hundred classes: there an estimated direction is
    mostly chance, and a simpler matrix that explains new labels as well is to be preferred.
    """
    level_KK = symmetric(transition_KK)
    own = best_log_likelihood(log_p_NK, given_N, transition_KK)
    for weight in SHRUNK:
        drawn_KK = torch.lerp(transition_KK, level_KK, weight)
        if best_log_likelihood(log_p_NK, given_N, drawn_KK) >= own:
            return drawn_KK, weight
    return transition_KK, 0.0


def log_likelihood(log_p_NK: Tensor, given_N: Tensor, transition_KK: Tensor, b: float) -> float:
    """Mean log p(ỹ | x) = log Σ_y p(y | x)^b T[y, ỹ] (normalised over y)."""
    p_NK = (log_p_NK.double() * b).softmax(1) @ transition_KK
    return p_NK.gather(1, given_N[:, None]).clamp_min(1e-12).log().mean().item()


def sharpest(log_p_NK: Tensor, given_N: Tensor, transition_KK: Tensor) -> float:
    """The exponent b of a grid under which given labels (of samples not trained on) are most likely."""
    return max(SHARPNESS, key=lambda b: log_likelihood(log_p_NK, given_N, transition_KK, b))


def best_log_likelihood(log_p_NK: Tensor, given_N: Tensor, transition_KK: Tensor) -> float:
    """:func:`log_likelihood` under the exponent that suits it best."""
    return log_likelihood(log_p_NK, given_N, transition_KK, sharpest(log_p_NK, given_N, transition_KK))


def posterior(log_p_NK: Tensor, given_N: Tensor, transition_KK: Tensor, b: float = 1.0) -> Tensor:
    """q (N, K) float64: q_i(y) ∝ p(y | x_i)^b T[y, ỹ_i]."""
    log_q_NK = (log_p_NK.double() * b).log_softmax(1) + transition_KK[:, given_N].T.clamp_min(1e-12).log()
    return log_q_NK.softmax(1)


def _normalised(p_NK: Tensor) -> Tensor:
    return p_NK / p_NK.sum(1, keepdim=True).clamp_min(1e-300)
