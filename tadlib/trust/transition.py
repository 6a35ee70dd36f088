"""The transition matrix T[y, ỹ] = p(ỹ | y) under which noisy labels are most likely (our extension).

Legend: N samples, K classes.

Leave-one-out predictions (:mod:`tadlib.trust.predictors`) give p(y | x) under any T, so that the fit of a matrix can be
measured on every label:

    L(T) = max_s 1/N Σ_i log Σ_y p_i(y; T, s) T[y, ỹ_i].

Labels that are wrong at random cannot be predicted from any image: a T with too little noise meets labels that it calls
impossible, a T with too much fails to predict those that can be predicted. Matrices of these kinds compete:

1. uniform, of a grid of rates (:func:`best_uniform`): wrong labels are spread over all other classes;
2. with directions (:func:`with_directions`): gradient ascent on L over all entries, then over those above a rising
   cut-off, while the others share one value;
3. one way (:func:`one_way`): wrong labels of a class go to one other class, or to none, at a rate that all classes
   share, and a few go anywhere. Among many classes no single direction is significant; one shared rate can be;
4. to the nearest class (:func:`nearest`): the same, but that class is the one that its images are most confused with;
5. between alike classes (:func:`between_alike`): the more alike two classes are, the more often labels flip between
   them. Where this kind is the best, classes may also differ in their rates (:func:`class_by_class`).

The matrix with the best score is taken,

    L(T) − f · ((½ log N + log K(K−1)) / N + ν) − w,

where f is the number of free parameters. That is an extended Bayesian information criterion (Chen & Chen 2008): a
direction is one of K(K−1) that could have been found. Whatever N is, it also has to gain ν per sample, because p_i is
wrong by more than chance. One of K choices for every class costs w = K log K / N, but no less than with N = 10,000, for
the same reason, and .15 ν for every class that flips (kind 3). Kind 5 costs as much and kind 4 a tenth: which classes
are alike is read from the p_i, and is wrong where they are. All of this is our choice.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter

import torch
from torch import Tensor

from tadlib.trust.predictors import LdaStatistics

# Scores
REQUIRED_GAIN = 1e-3  # ν, log-likelihood per sample
GAIN_OF_CHOICE = 1e-4  # required gain of one choice for every class, as a part of K log K, however many the samples
GAIN_OF_NEAREST = 0.1  # part of such a choice that flips to the most alike class have to bring
GAIN_OF_ONE_WAY = 1.5e-4  # of a class whose wrong labels go one way: it shares its rate with others
SCORE = attrgetter("score")
# Uniform
RATES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8)
SCALES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0)  # s to choose from
# Kinds with few numbers
SEARCHED = 400_000  # probabilities, samples times classes, on which they are ascended
STEP_OF_FEW = 0.2  # learning rate of Adam, in log odds
ONE_WAY = (-0.8, -3.0)  # log odds that labels flip and stray, which the ascent of kinds 3 and 4 starts from
ONE_WAY_FROM = 0.1  # rate from which a direction is one to start with
ONE_WAY_TURNS, ONE_WAY_STEPS, ONE_WAY_STEPS_AFTER = 4, 8, 20
NEAREST_STEPS, EDGE = 30, -0.1  # log odds above which rates are at a half
ALIKE = ((0.05, 1.0), (0.4, 3.0))  # rates e and exponents γ that the ascent starts from
ALIKE_STEPS, ALIKE_STEPS_AFTER = 10, 30  # from every start, and on from the best
ALIKE_ANEW, ALIKE_STEPS_ANEW = (1.5, -2.0), 30  # γ and log odds of u that class_by_class starts from
LEAST_SHARE = 0.02  # a class is taken to be given no more rarely than this part of 1 / K
# All entries
START, STEP = 0.1, 0.1  # rate that the ascent starts from, and its learning rate
CUTS = (0.02, 0.05, 0.1, 0.2)  # below which an entry has no parameter of its own
STEPS, STEPS_AFTER_A_CUT = 50, 10
PROMISING = 0.04  # log-likelihood per sample that one way from a part of the labels may lack

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class TransitionFit:
    """A matrix T (K, K) float64, the scale s under which it explains noisy labels best, its score, and whether it
    follows the likeness of classes."""

    transition: Tensor
    scale: float
    score: float
    alike: bool = False


def estimate(lda: LdaStatistics) -> TransitionFit:
    """The matrix with the best score among all kinds."""
    k, first = len(lda.share), best_uniform(lda)
    found = [first]
    if k > 2:  # with two classes there is one other to go to
        found += [nearest(lda, first.scale), between_alike(lda, first.scale)]
        if found[-1] is max(found, key=SCORE):
            found.append(class_by_class(lda, found[-1]))
    if k > 1:
        found += _directed(lda, first.scale, max(found, key=SCORE).score)
    return max(found, key=SCORE)


def _directed(lda: LdaStatistics, scale: float, best: float) -> list[TransitionFit]:
    """Matrices with directions, and one way. ``best`` is the best score of all other kinds.

    Entry by entry is slow: with many samples and classes it is done only where a part of the samples is promising.
    """
    if len(lda.share) > 2 and lda.b.numel() > SEARCHED:
        found = one_way(lda, [next(with_directions(_part(lda), scale))], scale)
        if found.score < best - PROMISING:
            return [found]
    directions = list(with_directions(lda, scale))
    return ([one_way(lda, directions, scale)] if len(lda.share) > 2 else []) + directions


def log_likelihood(p_NK: Tensor, noisy_N: Tensor, transition_KK: Tensor) -> Tensor:
    """Mean log Σ_y p(y | x) T[y, ỹ] of p(y | x) (N, K), a number."""
    at_noisy_N = (p_NK * transition_KK.T.to(p_NK.dtype)[noisy_N]).sum(1)  # columns that are not asked for cost time
    return at_noisy_N.clamp_min(1e-9).log().mean()


def penalty(n: int, n_classes: int) -> float:
    """Penalty of one free parameter of T, per sample: (½ log N + log K(K−1)) / N + ν."""
    return (0.5 * math.log(n) + math.log(max(2, n_classes * (n_classes - 1)))) / n + REQUIRED_GAIN


def penalty_of_choice(n: int, n_classes: int) -> float:
    """Penalty of one choice among K for every class, per sample: K log K / N, or :data:`GAIN_OF_CHOICE`."""
    return n_classes * math.log(n_classes) * max(1 / n, GAIN_OF_CHOICE)


def _value(lda: LdaStatistics, family: Function) -> Function:
    """L as a function of the numbers of which ``family`` makes T (K, K), and log s."""

    def value(*numbers: Tensor) -> Tensor:
        transition_KK = family(*numbers[:-1])
        return log_likelihood(lda.probabilities(transition_KK, numbers[-1].exp()), lda.noisy, transition_KK)

    return value


def _fit(lda: LdaStatistics, family: Function, numbers: list[Tensor], free: int, choices: float) -> TransitionFit:
    """The matrix of a family with these numbers, and its score on all labels."""
    best = _value(lda, family)(*numbers).item()
    score = best - free * penalty(*lda.b.shape) - choices * penalty_of_choice(*lda.b.shape)
    return TransitionFit(family(*numbers[:-1]).double(), numbers[-1].exp().item(), score)


def _ascend(
    value: Function, numbers: list[Tensor], steps: int, rate: float = STEP_OF_FEW, below_0=slice(0), above_0=slice(0)
) -> list[Tensor]:
    """Where Adam (Kingma & Ba 2015) on ``value`` ends; numbers of some places stay below or above 0.

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
        values[below_0] = [v.clamp_max(0) for v in values[below_0]]
        values[above_0] = [v.clamp_min(0) for v in values[above_0]]
    return values


def _part(lda: LdaStatistics) -> LdaStatistics:
    """Evenly spaced samples, :data:`SEARCHED` probabilities at most: enough to fit a few parameters."""
    step = math.ceil(lda.b.numel() / SEARCHED)
    return lda if step == 1 else replace(lda, b=lda.b[::step], noisy=lda.noisy[::step])


def _start(lda: LdaStatistics, scale: float, *numbers: float) -> list[Tensor]:
    return [lda.b.new_tensor(v) for v in (*numbers, math.log(scale))]


def uniform(rate: float, n_classes: int, device: torch.device | str = "cpu") -> Tensor:
    """T (K, K) float64 of noise without direction: a share ``rate`` of labels is spread over all other classes."""
    eye = torch.eye(n_classes, dtype=torch.float64, device=device)
    return (1 - rate) * eye + rate / max(1, n_classes - 1) * (1 - eye)


def best_uniform(lda: LdaStatistics) -> TransitionFit:
    """The best matrix among those without a direction, :func:`uniform` of :data:`RATES`; each has one parameter.

    No noise is one of the rates and costs as much: where noise drowns nearly everything, as 0 explains labels nearly as
    well as the truth does, any price on the others would decide for it.
    """
    found: list[TransitionFit] = []
    place = len(SCALES) // 2
    for rate in RATES:
        transition_KK = uniform(rate, len(lda.share), lda.b.device)
        place, best = _scaled(lda, transition_KK, place)
        found.append(TransitionFit(transition_KK, SCALES[place], best - penalty(*lda.b.shape)))
    return max(found, key=SCORE)


def _scaled(lda: LdaStatistics, uniform_KK: Tensor, start: int) -> tuple[int, float]:
    """The place of the scale with the largest L, uphill on the grid from ``start``, and that L."""
    score_NK = lda.scores(uniform_KK)

    def value(place: int) -> float:
        return log_likelihood((SCALES[place] * score_NK).softmax(1), lda.noisy, uniform_KK).item()

    place, best = start, value(start)
    for step in (1, -1):
        while 0 <= place + step < len(SCALES) and (further := value(place + step)) > best:
            best, place = further, place + step
        if place != start:
            break
    return place, best


def with_directions(lda: LdaStatistics, scale: float) -> Iterator[TransitionFit]:
    """Matrices with fewer and fewer free entries, by gradient ascent from :data:`START` and a ``scale``."""
    k = len(lda.share)
    off_KK = ~torch.eye(k, dtype=torch.bool, device=lda.b.device)
    # log odds against the diagonal; entries that are not free share one value
    odds_KK = lda.b.new_full((k, k), math.log(START / max(1, k - 1) / (1 - START)))
    numbers = [odds_KK, odds_KK[0, 0], lda.b.new_tensor(scale).log()]
    free_KK, transition_KK = off_KK, (~off_KK).to(lda.b)

    def matrix(odds_KK: Tensor, shared: Tensor) -> Tensor:
        return (torch.where(free_KK, odds_KK, shared) * off_KK).softmax(1)

    for cut in (0.0, *CUTS):
        if cut:
            free_KK = (transition_KK > cut) & off_KK
            rest = transition_KK[~free_KK & off_KK]
            if not len(rest):
                continue
            numbers[1] = (rest.mean().clamp_min(1e-4) / transition_KK.diagonal().mean()).log()
        # a class keeps its label more often than it gets any other: log odds stay below 0
        numbers = _ascend(_value(lda, matrix), numbers, STEPS_AFTER_A_CUT if cut else STEPS, STEP, below_0=slice(2))
        found = _fit(lda, matrix, numbers, free=int(free_KK.sum()) + 1, choices=0)
        transition_KK = found.transition.to(lda.b)
        yield found


def _to(to_KK: Tensor, odds: Tensor, stray: Tensor) -> Tensor:
    """T (K, K): labels stay or, with log ``odds``, go where ``to_KK`` says; ``stray`` ones (log odds) go anywhere."""
    eye_KK = torch.eye(len(to_KK)).to(to_KK)
    anywhere_KK = (1 - eye_KK) / (len(to_KK) - 1)
    return torch.lerp(torch.lerp(eye_KK, to_KK, odds.sigmoid()), anywhere_KK, stray.sigmoid())


def one_way(lda: LdaStatistics, directions: list[TransitionFit], scale: float) -> TransitionFit:
    """The best matrix whose flips fall on one class for every class, or else on any, by ascent from a ``scale``.

    Which class that is, if any, is first what the best of ``directions`` says; then, between ascents, what explains the
    labels best for every class by itself.
    """
    part, numbers = _part(lda), _start(lda, scale, *ONE_WAY)
    eye_KK = torch.eye(len(lda.share)).to(lda.b)
    tried = []
    for found in directions:
        most_K, to_K = (found.transition.to(eye_KK) * (1 - eye_KK)).max(1)
        flips_K = most_K > max(ONE_WAY_FROM, most_K.median().item() / 2)
        tried.append(partial(_to, torch.where(flips_K[:, None], eye_KK[to_K], eye_KK)))
    family = max(tried, key=lambda family: _value(part, family)(*numbers).item())
    for _ in range(ONE_WAY_TURNS):
        numbers = _ascend(_value(part, family), numbers, ONE_WAY_STEPS, below_0=slice(1))
        family = partial(_to, _turned(lda, *family.args, *numbers))
    numbers = _ascend(_value(part, family), numbers, ONE_WAY_STEPS_AFTER, below_0=slice(1))
    best = _fit(lda, family, numbers, free=2, choices=1)
    flips = int((family.args[0].diagonal() == 0).sum())
    return replace(best, score=best.score - GAIN_OF_ONE_WAY * flips)


def _turned(lda: LdaStatistics, to_KK: Tensor, odds: Tensor, stray: Tensor, log_scale: Tensor) -> Tensor:
    """For every class, all others as they are, where its labels best go: rows of I (K, K), its own if nowhere."""
    k = len(to_KK)
    transition_KK, anywhere, going = _to(to_KK, odds, stray), stray.sigmoid() / (k - 1), odds.sigmoid()
    p_NK = lda.probabilities(transition_KK, log_scale.exp())
    from_others_NK = p_NK * transition_KK[:, lda.noisy].T
    from_others_NK = (from_others_NK.sum(1, keepdim=True) - from_others_NK).clamp_min(1e-9)

    def gained(now: Tensor, before: Tensor) -> Tensor:
        return ((from_others_NK + p_NK * now) / (from_others_NK + p_NK * before)).log()

    # labels that go there become likelier, those that stay less likely
    there_NK = gained(anywhere + (1 - stray.sigmoid()) * going, anywhere)
    gain_KK = p_NK.new_zeros(k, k).index_add_(0, lda.noisy, there_NK).T
    stay_NK = gained((1 - stray.sigmoid()) * (1 - going), 1 - stray.sigmoid())
    stay_N1 = stay_NK.gather(1, lda.noisy[:, None])
    gain_KK = gain_KK + p_NK.new_zeros(k, 1).index_add_(0, lda.noisy, stay_N1)
    return torch.eye(k).to(p_NK)[gain_KK.fill_diagonal_(0).argmax(1)]


def nearest(lda: LdaStatistics, scale: float) -> TransitionFit:
    """The best matrix whose flips fall on the most alike class, or else on any, by ascent from a ``scale``.

    Where all classes flip one way, half of the images with a label look like the class that it comes *from*. Flips the
    other way, of half of the labels, explain that hardly worse; so where rates end at a half, there is no score.
    """
    family = partial(_to, torch.eye(len(lda.share)).to(lda.b)[alike(confusion(lda, scale)).argmax(1)])
    numbers = _ascend(_value(_part(lda), family), _start(lda, scale, *ONE_WAY), NEAREST_STEPS, below_0=slice(1))
    found = _fit(lda, family, numbers, free=2, choices=GAIN_OF_NEAREST)
    return found if numbers[0] < EDGE else replace(found, score=-math.inf)


def alike(confusion_KK: Tensor) -> Tensor:
    """log S (K, K) float32, rows sum to 1: what images of a class are taken for besides; −∞ on the diagonal.

    ``confusion_KK``: probabilities of classes, added over images of every class.
    """
    mean_KK = confusion_KK.clamp_min(1e-9)
    log_KK = (mean_KK / mean_KK.sum(1, keepdim=True)).clamp_min(1e-5).log()
    diagonal_KK = torch.eye(len(log_KK), dtype=torch.bool, device=log_KK.device)
    return log_KK.masked_fill(diagonal_KK, -torch.inf).log_softmax(1)


def confusion(lda: LdaStatistics, scale: float) -> Tensor:
    """Predicted class probabilities, summed over images of the same noisy label (K, K), under T = I."""
    k = len(lda.share)
    p_NK = lda.probabilities(torch.eye(k, dtype=torch.float64, device=lda.share.device), scale)
    return torch.zeros(k, k, device=p_NK.device).index_add_(0, lda.noisy, p_NK)


class _Alike:
    """T = I + diag(e) (F − I), F = (1 − u) softmax(γ log S + η log π) + u / (K − 1) off the diagonal, and
    log odds of e = ε + δ (log odds that images of the class are taken for others), of the numbers ε, γ, u, δ, η."""

    def __init__(self, lda: LdaStatistics, confusion_KK: Tensor):
        self.eye = torch.eye(len(confusion_KK)).to(lda.b)
        self.log = alike(confusion_KK).masked_fill(self.eye.bool(), 0)
        own_K = confusion_KK.diagonal() / confusion_KK.sum(1).clamp_min(1e-9)
        doubt_K = -own_K.clamp(1e-3, 1 - 1e-3).logit()
        share_K = (lda.share * len(confusion_KK)).clamp_min(LEAST_SHARE).log().to(lda.b)
        self.doubt, self.share = doubt_K - doubt_K.mean(), share_K - share_K.mean()

    def matrix(
        self, rate: Tensor, power: Tensor, spread: Tensor, row: Tensor | float = 0.0, column: Tensor | float = 0.0
    ) -> Tensor:
        flips_KK = (power * self.log + column * self.share).masked_fill(self.eye.bool(), -torch.inf).softmax(1)
        flips_KK = torch.lerp(flips_KK, (1 - self.eye) / (len(self.eye) - 1), spread.sigmoid())
        return self.eye + (rate + row * self.doubt).sigmoid()[:, None] * (flips_KK - self.eye)


def between_alike(lda: LdaStatistics, scale: float) -> TransitionFit:
    """The best matrix whose flips are the more frequent, the more alike two classes are, by ascent from a ``scale``."""
    family = _Alike(lda, confusion(lda, scale)).matrix
    value = _value(_part(lda), family)
    starts = [_start(lda, scale, math.log(rate / (1 - rate)), power, 0.0) for rate, power in ALIKE]
    tried = [_ascend(value, start, ALIKE_STEPS) for start in starts]
    best = max(tried, key=lambda numbers: value(*numbers).item())
    return replace(_fit(lda, family, _ascend(value, best, ALIKE_STEPS_AFTER), free=3, choices=1), alike=True)


def class_by_class(lda: LdaStatistics, found: TransitionFit) -> TransitionFit:
    """The best matrix between alike classes, as found by :func:`between_alike`, if some classes are less sure.

    S is counted anew, over images of a true class, and noise is the more frequent, the more often images of a class are
    taken for others (δ ≥ 0) and the more often the wrong label is given (η ≥ 0).
    """
    p_NK = lda.probabilities(found.transition, found.scale)
    q_NK = p_NK * found.transition[:, lda.noisy].T.to(p_NK)
    family = _Alike(lda, (q_NK / q_NK.sum(1, keepdim=True).clamp_min(1e-9)).T @ p_NK).matrix
    rate = 1 - found.transition.diagonal().mean().clamp(1e-3, 1 - 1e-3).item()
    start = _start(lda, found.scale, math.log(rate / (1 - rate)), *ALIKE_ANEW, 0.0, 0.0)
    numbers = _ascend(_value(_part(lda), family), start, ALIKE_STEPS_ANEW, above_0=slice(3, 5))
    return replace(_fit(lda, family, numbers, free=5, choices=1), alike=True)
