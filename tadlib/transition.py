"""How labels flip: the transition matrix T[y, ỹ] = p(ỹ | y) that explains left-out labels best (our extension).

Legend: N samples, K classes.

Predictions r_i of given labels, each made without the sample's own label (:mod:`tadlib.patches`), are the truth blurred
by T: r = p T. So p is r unmixed, and how well a matrix explains the labels can be *seen*, on every label:

    L(T) = max_s 1/N Σ_i log Σ_y p_i(y) T[y, ỹ_i],    p_i = softmax(s · r_i Tᵀ (T Tᵀ + ε I)⁻¹).

Labels that are wrong at random cannot be predicted from any image: too clean a T is caught by labels that it calls
impossible, too noisy a one by labels that it fails to foresee. T comes in three steps:

1. the best matrix without a direction, of a grid of rates (:func:`without_direction`);
2. gradient ascent on L over all entries, then over those above a cut-off, which rises; the others share one value;
3. the matrix with the best score

       L(T) − α Σ_k π_k log(π_k / p̄_k) − f · ((½ log N + log K(K−1)) / N + ν),

   f the number of free entries, π_k the share of given labels k, p̄ the mean of p_i. The last term is an extended
   Bayesian information criterion (Chen & Chen 2008): a direction has to prove itself among K(K−1) that could have been
   found. However many the samples, it also has to bring ν, as p_i is wrong by more than chance. The term before it
   decides between two classes hard to tell apart, either of which could pass for both.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

RATES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8)  # without a direction
SCALES = (2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 14.0, 20.0, 28.0, 40.0, 56.0)  # s to choose from, without a direction
EPSILON = 0.1  # ε: keeps unmixing from blowing up the noise of r where T is nearly singular
BALANCE = 0.3  # α
WORTH = 1e-3  # ν, log-likelihood per sample
CUTS = (0.02, 0.05, 0.1, 0.2)  # below which an entry has no parameter of its own
START = 0.1  # rate that the ascent starts from
STEPS, STEPS_AFTER_A_CUT = 50, 10
STEP = 0.1  # learning rate of Adam, in log odds


@dataclass(frozen=True)
class Explanation:
    """A matrix T (K, K) float64, the scale s under which it explains left-out labels best, and its score."""

    transition: Tensor
    scale: float
    score: float

    def view(self, r_NK: Tensor) -> Tensor:
        """p(y | x) (N, K): r unmixed and scaled, as a distribution."""
        return (self.scale * unmix(r_NK, self.transition.to(r_NK.dtype))).softmax(1)


def level(rate: float, n_classes: int, device: torch.device | str = "cpu") -> Tensor:
    """T (K, K) float64 of noise without direction: a share ``rate`` of labels is spread over all other classes."""
    eye = torch.eye(n_classes, dtype=torch.float64, device=device)
    return (1 - rate) * eye + rate / max(1, n_classes - 1) * (1 - eye)


def unmix(r_NK: Tensor, transition_KK: Tensor) -> Tensor:
    """r Tᵀ (T Tᵀ + ε I)⁻¹ (N, K): the p of least squares with r = p T, not yet a distribution."""
    eye = torch.eye(len(transition_KK), dtype=r_NK.dtype, device=r_NK.device)
    return r_NK @ torch.linalg.solve(transition_KK @ transition_KK.T + EPSILON * eye, transition_KK).T


def objective(p_NK: Tensor, given_N: Tensor, transition_KK: Tensor) -> Tensor:
    """L(T) − α Σ_k π_k log(π_k / p̄_k) of p(y | x) (N, K), a number; classes that no sample is given do not count."""
    share_K = torch.bincount(given_N, minlength=p_NK.shape[1]).to(p_NK.dtype) / len(given_N)
    at_given_N = (p_NK @ transition_KK).gather(1, given_N[:, None])[:, 0]
    off = (share_K * p_NK.mean(0).clamp_min(1e-9).log()).sum() - torch.xlogy(share_K, share_K).sum()
    return at_given_N.clamp_min(1e-9).log().mean() + BALANCE * off


def price(n: int, n_classes: int) -> float:
    """What one free entry of T has to bring, per sample: (½ log N + log K(K−1)) / N + ν."""
    return (0.5 * math.log(n) + math.log(max(2, n_classes * (n_classes - 1)))) / n + WORTH


def without_direction(r_NK: Tensor, given_N: Tensor) -> Explanation:
    """The best matrix among those without a direction, :func:`level` of :data:`RATES`; each has one parameter.

    No noise is one of the rates and costs as much: where noise drowns nearly everything, as 0 explains labels nearly as
    well as the truth does, any price on the others would decide for it.
    """
    best: Explanation | None = None
    near = SCALES[len(SCALES) // 2]
    for rate in RATES:
        found = _scaled(r_NK, given_N, level(rate, r_NK.shape[1], r_NK.device), near)
        near = found.scale
        if best is None or found.score > best.score:
            best = found
    assert best is not None
    return best


def _scaled(r_NK: Tensor, given_N: Tensor, level_KK: Tensor, near: float) -> Explanation:
    """The scale with the best score, uphill on the grid from the one ``near``."""
    transition_KK = level_KK.to(r_NK.dtype)
    p_NK, place = unmix(r_NK, transition_KK), SCALES.index(near)

    def value(place: int) -> float:
        return objective((SCALES[place] * p_NK).softmax(1), given_N, transition_KK).item()

    best = value(place)
    for step in (1, -1):
        start = place
        while 0 <= place + step < len(SCALES) and (further := value(place + step)) > best:
            best, place = further, place + step
        if place != start:
            break
    return Explanation(level_KK, SCALES[place], best - price(*r_NK.shape))


def with_directions(r_NK: Tensor, given_N: Tensor, scale: float) -> list[Explanation]:
    """Matrices with fewer and fewer free entries, by gradient ascent from :data:`START` and a ``scale``."""
    n, k = r_NK.shape
    eye = torch.eye(k, dtype=torch.bool, device=r_NK.device)
    # log odds against the diagonal; entries that are not free share one value
    odds_KK = r_NK.new_full((k, k), math.log(START / max(1, k - 1) / (1 - START)))
    shared, log_scale = odds_KK[0, 0], torch.tensor(scale, device=r_NK.device, dtype=r_NK.dtype).log()
    free_KK, found = ~eye, list[Explanation]()
    for cut in (0.0, *CUTS):
        if cut:
            transition_KK = found[-1].transition.to(r_NK.dtype)
            free_KK = (transition_KK > cut) & ~eye
            rest = transition_KK[~free_KK & ~eye]
            if not len(rest):
                continue
            shared = (rest.mean().clamp_min(1e-4) / transition_KK.diagonal().mean()).log()
        steps = STEPS_AFTER_A_CUT if cut else STEPS
        ascended = _ascend(r_NK, given_N, odds_KK, shared, log_scale, free_KK, steps)
        odds_KK, shared, log_scale, transition_KK, value = ascended
        score = value - price(n, k) * (int(free_KK.sum()) + 1)
        found.append(Explanation(transition_KK.double(), log_scale.exp().item(), score))
    return found


def _ascend(r_NK, given_N, odds_KK, shared, log_scale, free_KK, steps):
    """Adam (Kingma & Ba 2015) on :func:`objective`; returns the parameters, T and the value at its end.

    Written out: importing torch's takes longer than all steps do.
    """
    values = [odds_KK, shared, log_scale]
    means, squares = ([torch.zeros_like(v) for v in values] for _ in range(2))
    off_diagonal_KK = 1 - torch.eye(len(odds_KK), dtype=r_NK.dtype, device=r_NK.device)
    for step in range(1, steps + 2):
        odds_KK, shared, log_scale = (v.detach().requires_grad_() for v in values)
        transition_KK = (torch.where(free_KK, odds_KK, shared) * off_diagonal_KK).softmax(1)
        value = objective((log_scale.exp() * unmix(r_NK, transition_KK)).softmax(1), given_N, transition_KK)
        if step > steps:
            break
        for i, gradient in enumerate(torch.autograd.grad(value, (odds_KK, shared, log_scale))):
            means[i].lerp_(gradient, 1 - 0.9)
            squares[i].lerp_(gradient.square(), 1 - 0.999)
            ahead = means[i] / (1 - 0.9**step) / ((squares[i] / (1 - 0.999**step)).sqrt() + 1e-8)
            values[i] = values[i] + STEP * ahead
        # a class keeps its label more often than it gets any other: log odds stay below 0
        values[0], values[1] = values[0].clamp_max(0), values[1].clamp_max(0)
    return odds_KK.detach(), shared.detach(), log_scale.detach(), transition_KK.detach(), value.item()


def explain(r_NK: Tensor, given_N: Tensor, *, directions: bool = True) -> Explanation:
    """The matrix with the best score, of those without a direction and, if asked, those with.

    Args:
        r_NK: float32 or float64 predictions of given labels, each made without the sample's own.
        given_N: given labels in [0, K).
    """
    best = without_direction(r_NK, given_N)
    if directions and r_NK.shape[1] > 1:
        best = max([best, *with_directions(r_NK, given_N, best.scale)], key=lambda e: e.score)
    return best
