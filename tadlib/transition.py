"""How labels flip: the transition matrix T[y, ỹ] = p(ỹ | y) that explains left-out labels best (our extension).

Legend: N samples, K classes.

Predictions of given labels, each made without the sample's own label (:mod:`tadlib.patches`), say p(y | x) under any T
(:mod:`tadlib.discriminant`). So how well a matrix explains the labels can be *seen*, on every label:

    L(T) = max_s 1/N Σ_i log Σ_y p_i(y; T, s) T[y, ỹ_i].

Labels that are wrong at random cannot be predicted from any image: too clean a T is caught by labels that it calls
impossible, too noisy a one by labels that it fails to foresee. Three kinds of T compete:

1. without a direction, of a grid of rates (:func:`without_direction`): wrong labels fall on all other classes alike;
2. between alike classes (:func:`between_alike`): wrong labels fall on a class the more often, the more it looks like
   the true one, T = (1 − e) I + e ((1 − u) S^γ + u / (K − 1)), S from what images of a class are taken for;
3. with directions (:func:`with_directions`): gradient ascent on L over all entries, then over those above a cut-off,
   which rises; the others share one value.

The one with the best score wins,

    L(T) − f · ((½ log N + log K(K−1)) / N + ν),

f the number of free numbers: an extended Bayesian information criterion (Chen & Chen 2008), as a direction has to prove
itself among K(K−1) that could have been found. However many the samples, it also has to bring ν, as p_i is wrong by
more than chance. What is wrong with p_i grows with the classes whose means it needs, K numbers each: the second kind
has to bring K² / 20 N besides.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tadlib.discriminant import Evidence

RATES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8)  # without a direction
SCALES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0)  # s to choose from, without a direction
WORTH = 1e-3  # ν, log-likelihood per sample
WORTH_ALIKE = 0.05  # of K² / N, likewise
ALIKE = ((0.05, 1.0), (0.4, 3.0))  # rates e and exponents γ that the ascent starts from
ALIKE_STEPS, ALIKE_STEPS_AFTER = 10, 30  # from every start, and on from the best
CUTS = (0.02, 0.05, 0.1, 0.2)  # below which an entry has no parameter of its own
START = 0.1  # rate that the ascent over all entries starts from
STEPS, STEPS_AFTER_A_CUT = 50, 10
STEP, STEP_ALIKE = 0.1, 0.2  # learning rates of Adam, in log odds


@dataclass(frozen=True)
class Explanation:
    """A matrix T (K, K) float64, the scale s under which it explains left-out labels best, and its score."""

    transition: Tensor
    scale: float
    score: float


def level(rate: float, n_classes: int, device: torch.device | str = "cpu") -> Tensor:
    """T (K, K) float64 of noise without direction: a share ``rate`` of labels is spread over all other classes."""
    eye = torch.eye(n_classes, dtype=torch.float64, device=device)
    return (1 - rate) * eye + rate / max(1, n_classes - 1) * (1 - eye)


def objective(p_NK: Tensor, given_N: Tensor, transition_KK: Tensor) -> Tensor:
    """Mean log Σ_y p(y | x) T[y, ỹ] of p(y | x) (N, K), a number."""
    at_given_N = (p_NK @ transition_KK.to(p_NK.dtype)).gather(1, given_N[:, None])[:, 0]
    return at_given_N.clamp_min(1e-9).log().mean()


def price(n: int, n_classes: int) -> float:
    """What one free number of T has to bring, per sample: (½ log N + log K(K−1)) / N + ν."""
    return (0.5 * math.log(n) + math.log(max(2, n_classes * (n_classes - 1)))) / n + WORTH


def without_direction(seen: Evidence) -> Explanation:
    """The best matrix among those without a direction, :func:`level` of :data:`RATES`; each has one parameter.

    No noise is one of the rates and costs as much: where noise drowns nearly everything, as 0 explains labels nearly as
    well as the truth does, any price on the others would decide for it.
    """
    best: Explanation | None = None
    near = SCALES[len(SCALES) // 2]
    for rate in RATES:
        found = _scaled(seen, level(rate, len(seen.share), seen.b.device), near)
        near = found.scale
        if best is None or found.score > best.score:
            best = found
    assert best is not None
    return best


def _scaled(seen: Evidence, level_KK: Tensor, near: float) -> Explanation:
    """The scale with the best score, uphill on the grid from the one ``near``."""
    score_NK, place = seen.scores(level_KK), SCALES.index(near)

    def value(place: int) -> float:
        return objective((SCALES[place] * score_NK).softmax(1), seen.given, level_KK).item()

    best = value(place)
    for step in (1, -1):
        start = place
        while 0 <= place + step < len(SCALES) and (further := value(place + step)) > best:
            best, place = further, place + step
        if place != start:
            break
    return Explanation(level_KK, SCALES[place], best - price(*seen.b.shape))


def alike(seen: Evidence, scale: float) -> Tensor:
    """log S (K, K) float32, rows sum to 1: what images given a label are taken for besides, if no label were wrong.

    −∞ on the diagonal.
    """
    k = len(seen.share)
    eye_KK = torch.eye(k, dtype=torch.float64, device=seen.share.device)
    p_NK = seen.view(eye_KK, scale)
    mean_KK = torch.zeros(k, k, device=p_NK.device).index_add_(0, seen.given, p_NK).clamp_min(1e-9)
    log_KK = (mean_KK / mean_KK.sum(1, keepdim=True)).clamp_min(1e-5).log()
    return log_KK.masked_fill(eye_KK.bool(), -torch.inf).log_softmax(1)


def between_alike(seen: Evidence, scale: float) -> Explanation:
    """The best matrix whose flips are the more frequent, the more alike two classes are, by ascent from a ``scale``."""
    n, k = seen.b.shape
    eye_KK = torch.eye(k, dtype=seen.b.dtype, device=seen.b.device)
    log_KK = alike(seen, scale)

    def matrix(rate: Tensor, power: Tensor, level: Tensor) -> Tensor:
        flips_KK = (power * log_KK.masked_fill(eye_KK.bool(), 0)).masked_fill(eye_KK.bool(), -torch.inf).softmax(1)
        flips_KK = torch.lerp(flips_KK, (1 - eye_KK) / (k - 1), level.sigmoid())
        return torch.lerp(eye_KK, flips_KK, rate.sigmoid())

    def value(rate: Tensor, power: Tensor, level: Tensor, log_scale: Tensor) -> Tensor:
        transition_KK = matrix(rate, power, level)
        return objective(seen.view(transition_KK, log_scale.exp()), seen.given, transition_KK)

    def start(rate: float, power: float) -> list[Tensor]:
        numbers = (math.log(rate / (1 - rate)), power, 0.0, math.log(scale))
        return [torch.tensor(v, dtype=seen.b.dtype, device=seen.b.device) for v in numbers]

    tried = [_ascend(value, start(*at), ALIKE_STEPS, STEP_ALIKE) for at in ALIKE]
    found, best = _ascend(value, max(tried, key=lambda t: t[1])[0], ALIKE_STEPS_AFTER, STEP_ALIKE)
    score = best - 3 * price(n, k) - WORTH_ALIKE * k**2 / n
    return Explanation(matrix(*found[:3]).double(), found[3].exp().item(), score)


def with_directions(seen: Evidence, scale: float) -> list[Explanation]:
    """Matrices with fewer and fewer free entries, by gradient ascent from :data:`START` and a ``scale``."""
    n, k = seen.b.shape
    eye_KK = torch.eye(k, dtype=torch.bool, device=seen.b.device)
    # log odds against the diagonal; entries that are not free share one value
    odds_KK = seen.b.new_full((k, k), math.log(START / max(1, k - 1) / (1 - START)))
    numbers = [odds_KK, odds_KK[0, 0], torch.tensor(scale, device=seen.b.device, dtype=seen.b.dtype).log()]
    free_KK, found = ~eye_KK, list[Explanation]()

    def matrix(odds_KK: Tensor, shared: Tensor) -> Tensor:
        return (torch.where(free_KK, odds_KK, shared) * ~eye_KK).softmax(1)

    def value(odds_KK: Tensor, shared: Tensor, log_scale: Tensor) -> Tensor:
        transition_KK = matrix(odds_KK, shared)
        return objective(seen.view(transition_KK, log_scale.exp()), seen.given, transition_KK)

    for cut in (0.0, *CUTS):
        if cut:
            transition_KK = found[-1].transition.to(seen.b.dtype)
            free_KK = (transition_KK > cut) & ~eye_KK
            rest = transition_KK[~free_KK & ~eye_KK]
            if not len(rest):
                continue
            numbers[1] = (rest.mean().clamp_min(1e-4) / transition_KK.diagonal().mean()).log()
        # a class keeps its label more often than it gets any other: log odds stay below 0
        numbers, best = _ascend(value, numbers, STEPS_AFTER_A_CUT if cut else STEPS, STEP, below_0=2)
        score = best - price(n, k) * (int(free_KK.sum()) + 1)
        found.append(Explanation(matrix(*numbers[:2]).double(), numbers[2].exp().item(), score))
    return found


def _ascend(value, numbers: list[Tensor], steps: int, rate: float, below_0: int = 0) -> tuple[list[Tensor], float]:
    """Adam (Kingma & Ba 2015) on ``value``; the first ``below_0`` numbers stay below 0. Returns where it ends.

    Written out: importing torch's takes longer than all steps do.
    """
    values, means, squares = list(numbers), *([torch.zeros_like(v) for v in numbers] for _ in range(2))
    for step in range(1, steps + 1):
        asked = [v.detach().requires_grad_() for v in values]
        for i, gradient in enumerate(torch.autograd.grad(value(*asked), asked)):
            means[i].lerp_(gradient, 1 - 0.9)
            squares[i].lerp_(gradient.square(), 1 - 0.999)
            ahead = means[i] / (1 - 0.9**step) / ((squares[i] / (1 - 0.999**step)).sqrt() + 1e-8)
            values[i] = values[i] + rate * ahead
        values[:below_0] = [v.clamp_max(0) for v in values[:below_0]]
    with torch.no_grad():
        return values, value(*values).item()


def explain(seen: Evidence, *, directions: bool = True) -> Explanation:
    """The matrix with the best score, of those without a direction and, if asked, all others."""
    best = without_direction(seen)
    found = [best]
    if directions and len(seen.share) > 1:
        found += with_directions(seen, best.scale)
    if directions and len(seen.share) > 2:  # with two classes there is one other to fall on
        found.append(between_alike(seen, best.scale))
    return max(found, key=lambda e: e.score)
