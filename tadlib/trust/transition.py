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
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tadlib.trust.predictors import LdaStatistics

RATES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8)  # of uniform matrices
SCALES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0)  # s to choose from, of uniform matrices
REQUIRED_GAIN = 1e-3  # ν, log-likelihood per sample
GAIN_OF_CHOICE = 1e-4  # part of K log K that one choice for every class has to bring, however many the samples
GAIN_OF_NEAREST = 0.1  # part of such a choice that flips to the most alike class have to bring
GAIN_OF_ONE_WAY = 1.5e-4  # of a class whose wrong labels go one way: it shares its rate with others
ALIKE = ((0.05, 1.0), (0.4, 3.0))  # rates e and exponents γ that the ascent starts from
ALIKE_STEPS, ALIKE_STEPS_AFTER = 10, 30  # from every start, and on from the best
ALIKE_ANEW, ALIKE_STEPS_ANEW = (1.5, -2.0), 30  # γ and log odds of u that class_by_class starts from
PROMISING = 0.04  # log-likelihood per sample that one way from a part of the labels may lack
SEARCHED = 400_000  # probabilities, samples times classes, on which kinds with few numbers are ascended
NEAREST_STEPS, EDGE = 30, -0.1  # log odds above which rates are at a half
ONE_WAY, ONE_WAY_FROM = (-0.8, -3.0), 0.1  # the same of one_way; rate from which a direction is one to start with
ONE_WAY_TURNS, ONE_WAY_STEPS, ONE_WAY_STEPS_AFTER = 4, 8, 20
LEAST_SHARE = 0.02  # a class is taken to be given no more rarely than this part of 1 / K
CUTS = (0.02, 0.05, 0.1, 0.2)  # below which an entry has no parameter of its own
START = 0.1  # rate that the ascent over all entries starts from
STEPS, STEPS_AFTER_A_CUT = 50, 10
STEP, STEP_ALIKE = 0.1, 0.2  # learning rates of Adam, in log odds


@dataclass(frozen=True)
class TransitionFit:
    """A matrix T (K, K) float64, the scale s under which it explains noisy labels best, its score, and whether it
    follows the likeness of classes."""

    transition: Tensor
    scale: float
    score: float
    alike: bool = False


def uniform(rate: float, n_classes: int, device: torch.device | str = "cpu") -> Tensor:
    """T (K, K) float64 of noise without direction: a share ``rate`` of labels is spread over all other classes."""
    eye = torch.eye(n_classes, dtype=torch.float64, device=device)
    return (1 - rate) * eye + rate / max(1, n_classes - 1) * (1 - eye)


def log_likelihood(p_NK: Tensor, noisy_N: Tensor, transition_KK: Tensor) -> Tensor:
    """Mean log Σ_y p(y | x) T[y, ỹ] of p(y | x) (N, K), a number."""
    at_noisy_N = (p_NK * transition_KK.T.to(p_NK.dtype)[noisy_N]).sum(1)  # columns that are not asked for cost time
    return at_noisy_N.clamp_min(1e-9).log().mean()


def penalty(n: int, n_classes: int) -> float:
    """What one free number of T has to bring, per sample: (½ log N + log K(K−1)) / N + ν."""
    return (0.5 * math.log(n) + math.log(max(2, n_classes * (n_classes - 1)))) / n + REQUIRED_GAIN


def penalty_of_choice(n: int, n_classes: int) -> float:
    """What one choice among K for every class has to bring, per sample: K log K / N, or :data:`GAIN_OF_CHOICE`."""
    return n_classes * math.log(n_classes) * max(1 / n, GAIN_OF_CHOICE)


def best_uniform(lda: LdaStatistics) -> TransitionFit:
    """The best matrix among those without a direction, :func:`uniform` of :data:`RATES`; each has one parameter.

    No noise is one of the rates and costs as much: where noise drowns nearly everything, as 0 explains labels nearly as
    well as the truth does, any price on the others would decide for it.
    """
    best: TransitionFit | None = None
    near = SCALES[len(SCALES) // 2]
    for rate in RATES:
        found = _scaled(lda, uniform(rate, len(lda.share), lda.b.device), near)
        near = found.scale
        if best is None or found.score > best.score:
            best = found
    assert best is not None
    return best


def _scaled(lda: LdaStatistics, uniform_KK: Tensor, near: float) -> TransitionFit:
    """The scale with the best score, uphill on the grid from the one ``near``."""
    score_NK, place = lda.scores(uniform_KK), SCALES.index(near)

    def value(place: int) -> float:
        return log_likelihood((SCALES[place] * score_NK).softmax(1), lda.noisy, uniform_KK).item()

    best = value(place)
    for step in (1, -1):
        start = place
        while 0 <= place + step < len(SCALES) and (further := value(place + step)) > best:
            best, place = further, place + step
        if place != start:
            break
    return TransitionFit(uniform_KK, SCALES[place], best - penalty(*lda.b.shape))


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


def nearest(lda: LdaStatistics, scale: float) -> TransitionFit:
    """The best matrix whose flips fall on the most alike class, or else on any, by ascent from a ``scale``.

    Where all classes flip one way, half of the images with a label look like the class that it comes *from*. Flips the
    other way, of half of the labels, explain that hardly worse; so where rates end at a half, there is no score.
    """
    n, k = lda.b.shape
    to_KK = torch.eye(k).to(lda.b)[alike(confusion(lda, scale)).argmax(1)]
    numbers = [lda.b.new_tensor(v) for v in (*ONE_WAY, math.log(scale))]
    found = _ascend(_where_to(_part(lda), to_KK), numbers, NEAREST_STEPS, STEP_ALIKE, below_0=1)
    best = _where_to(lda, to_KK)(*found).item()
    score = best - 2 * penalty(n, k) - GAIN_OF_NEAREST * penalty_of_choice(n, k) if found[0] < EDGE else -math.inf
    return TransitionFit(_to(to_KK, *found[:2]).double(), found[2].exp().item(), score)


def _part(lda: LdaStatistics) -> LdaStatistics:
    """Every so-manieth label, where there are many for few numbers to be found: :data:`SEARCHED` probabilities."""
    step = math.ceil(lda.b.numel() / SEARCHED)
    return lda if step == 1 else replace(lda, b=lda.b[::step], noisy=lda.noisy[::step])


def _to(to_KK: Tensor, odds: Tensor, stray: Tensor) -> Tensor:
    """T (K, K): labels stay or, with log ``odds``, go where ``to_KK`` says; ``stray`` ones (log odds) go anywhere."""
    eye_KK = torch.eye(len(to_KK)).to(to_KK)
    anywhere_KK = (1 - eye_KK) / (len(to_KK) - 1)
    return torch.lerp(torch.lerp(eye_KK, to_KK, odds.sigmoid()), anywhere_KK, stray.sigmoid())


def _where_to(lda: LdaStatistics, to_KK: Tensor):
    def value(odds: Tensor, stray: Tensor, log_scale: Tensor) -> Tensor:
        transition_KK = _to(to_KK, odds, stray)
        return log_likelihood(lda.probabilities(transition_KK, log_scale.exp()), lda.noisy, transition_KK)

    return value


def between_alike(lda: LdaStatistics, scale: float) -> TransitionFit:
    """The best matrix whose flips are the more frequent, the more alike two classes are, by ascent from a ``scale``."""
    n, k = lda.b.shape
    part, confusion_KK = _part(lda), confusion(lda, scale)
    family = _Alike(part, confusion_KK)
    starts = [family.numbers(rate, power, 0.0, scale) for rate, power in ALIKE]
    tried = [_ascend(family.alone, start, ALIKE_STEPS, STEP_ALIKE) for start in starts]
    best_of = max(tried, key=lambda numbers: family.alone(*numbers).item())
    found = _ascend(family.alone, best_of, ALIKE_STEPS_AFTER, STEP_ALIKE)
    best = _Alike(lda, confusion_KK).alone(*found).item()
    score = best - 3 * penalty(n, k) - penalty_of_choice(n, k)
    return TransitionFit(family.matrix(*found[:-1]).double(), found[-1].exp().item(), score, alike=True)


def class_by_class(lda: LdaStatistics, found: TransitionFit) -> TransitionFit:
    """The best matrix between alike classes, as found by :func:`between_alike`, if some classes are less sure.

    S is counted anew, over images of a true class, and noise is the more frequent, the more often images of a class are
    taken for others (δ ≥ 0) and the more often the wrong label is given (η ≥ 0).
    """
    n, k = lda.b.shape
    p_NK = lda.probabilities(found.transition, found.scale)
    q_NK = p_NK * found.transition[:, lda.noisy].T.to(p_NK)
    confusion_KK = (q_NK / q_NK.sum(1, keepdim=True).clamp_min(1e-9)).T @ p_NK
    family = _Alike(_part(lda), confusion_KK)
    rate = 1 - found.transition.diagonal().mean().clamp(1e-3, 1 - 1e-3).item()
    own = [lda.b.new_zeros(()), lda.b.new_zeros(()), *family.numbers(rate, *ALIKE_ANEW, found.scale)]
    own = _ascend(family.value, own, ALIKE_STEPS_ANEW, STEP_ALIKE, above_0=2)
    best = _Alike(lda, confusion_KK).value(*own).item()
    score = best - 5 * penalty(n, k) - penalty_of_choice(n, k)
    row, column, odds, power, stray, log_scale = own
    transition_KK = family.matrix(odds, power, stray, row, column)
    return TransitionFit(transition_KK.double(), log_scale.exp().item(), score, alike=True)


class _Alike:
    """T = I + diag(e) (F − I), F = (1 − u) softmax(γ log S + η log π) + u / (K − 1) off the diagonal, and
    log odds of e = ε + δ (log odds that images of the class are taken for others), of the numbers ε, γ, u, δ, η."""

    def __init__(self, lda: LdaStatistics, confusion_KK: Tensor):
        k = len(lda.share)
        self.lda = lda
        self.eye = torch.eye(k, dtype=lda.b.dtype, device=lda.b.device)
        self.log = alike(confusion_KK).masked_fill(self.eye.bool(), 0)
        own_K = confusion_KK.diagonal() / confusion_KK.sum(1).clamp_min(1e-9)
        self.doubt = _centred(-own_K.clamp(1e-3, 1 - 1e-3).logit())
        self.share = _centred((lda.share * k).clamp_min(LEAST_SHARE).log().to(lda.b))

    def numbers(self, rate: float, power: float, spread: float, scale: float) -> list[Tensor]:
        return [self.lda.b.new_tensor(v) for v in (math.log(rate / (1 - rate)), power, spread, math.log(scale))]

    def matrix(
        self, rate: Tensor, power: Tensor, spread: Tensor, row: Tensor | float = 0.0, column: Tensor | float = 0.0
    ) -> Tensor:
        flips_KK = (power * self.log + column * self.share).masked_fill(self.eye.bool(), -torch.inf).softmax(1)
        flips_KK = torch.lerp(flips_KK, (1 - self.eye) / (len(self.eye) - 1), spread.sigmoid())
        return self.eye + (rate + row * self.doubt).sigmoid()[:, None] * (flips_KK - self.eye)

    def value(
        self,
        row: Tensor | float,
        column: Tensor | float,
        rate: Tensor,
        power: Tensor,
        spread: Tensor,
        log_scale: Tensor,
    ) -> Tensor:
        transition_KK = self.matrix(rate, power, spread, row, column)
        return log_likelihood(self.lda.probabilities(transition_KK, log_scale.exp()), self.lda.noisy, transition_KK)

    def alone(self, *numbers: Tensor) -> Tensor:
        """The value where all classes have the same rate."""
        return self.value(0.0, 0.0, *numbers)


def _centred(values_K: Tensor) -> Tensor:
    return values_K - values_K.mean()


def with_directions(lda: LdaStatistics, scale: float) -> Iterator[TransitionFit]:
    """Matrices with fewer and fewer free entries, by gradient ascent from :data:`START` and a ``scale``."""
    n, k = lda.b.shape
    eye_KK = torch.eye(k, dtype=torch.bool, device=lda.b.device)
    # log odds against the diagonal; entries that are not free share one value
    odds_KK = lda.b.new_full((k, k), math.log(START / max(1, k - 1) / (1 - START)))
    numbers = [odds_KK, odds_KK[0, 0], torch.tensor(scale, device=lda.b.device, dtype=lda.b.dtype).log()]
    free_KK, transition_KK = ~eye_KK, eye_KK.to(lda.b.dtype)

    def matrix(odds_KK: Tensor, shared: Tensor) -> Tensor:
        return (torch.where(free_KK, odds_KK, shared) * ~eye_KK).softmax(1)

    def value(odds_KK: Tensor, shared: Tensor, log_scale: Tensor) -> Tensor:
        transition_KK = matrix(odds_KK, shared)
        return log_likelihood(lda.probabilities(transition_KK, log_scale.exp()), lda.noisy, transition_KK)

    for cut in (0.0, *CUTS):
        if cut:
            free_KK = (transition_KK > cut) & ~eye_KK
            rest = transition_KK[~free_KK & ~eye_KK]
            if not len(rest):
                continue
            numbers[1] = (rest.mean().clamp_min(1e-4) / transition_KK.diagonal().mean()).log()
        # a class keeps its label more often than it gets any other: log odds stay below 0
        numbers = _ascend(value, numbers, STEPS_AFTER_A_CUT if cut else STEPS, STEP, below_0=2)
        score = value(*numbers).item() - penalty(n, k) * (int(free_KK.sum()) + 1)
        transition_KK = matrix(*numbers[:2])
        yield TransitionFit(transition_KK.double(), numbers[2].exp().item(), score)


def one_way(lda: LdaStatistics, directions: list[TransitionFit], scale: float) -> TransitionFit:
    """The best matrix whose flips fall on one class for every class, or else on any, by ascent from a ``scale``.

    Which class that is, if any, is first what the best of ``directions`` says; then, between ascents, what explains the
    labels best for every class by itself.
    """
    n, k = lda.b.shape
    part, eye_KK = _part(lda), torch.eye(k).to(lda.b)
    numbers = [lda.b.new_tensor(v) for v in (*ONE_WAY, math.log(scale))]
    tried = []
    for found in directions:
        most_K, to_K = (found.transition.to(eye_KK) * (1 - eye_KK)).max(1)
        flips_K = most_K > max(ONE_WAY_FROM, most_K.median().item() / 2)
        tried.append(torch.where(flips_K[:, None], eye_KK[to_K], eye_KK))
    to_KK = max(tried, key=lambda to_KK: _where_to(part, to_KK)(*numbers).item())
    for _ in range(ONE_WAY_TURNS):
        numbers = _ascend(_where_to(part, to_KK), numbers, ONE_WAY_STEPS, STEP_ALIKE, below_0=1)
        to_KK = _turned(lda, to_KK, *numbers)
    numbers = _ascend(_where_to(part, to_KK), numbers, ONE_WAY_STEPS_AFTER, STEP_ALIKE, below_0=1)
    best = _where_to(lda, to_KK)(*numbers).item()
    flips = k - int(to_KK.diagonal().sum())
    score = best - 2 * penalty(n, k) - penalty_of_choice(n, k) - GAIN_OF_ONE_WAY * flips
    return TransitionFit(_to(to_KK, *numbers[:2]).double(), numbers[2].exp().item(), score)


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


def _ascend(value, numbers: list[Tensor], steps: int, rate: float, below_0: int = 0, above_0: int = 0) -> list[Tensor]:
    """Where Adam (Kingma & Ba 2015) on ``value`` ends; the first so many numbers stay below or above 0.

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
        values[:above_0] = [v.clamp_min(0) for v in values[:above_0]]
    return values


def estimate(lda: LdaStatistics) -> TransitionFit:
    """The matrix with the best score among all kinds."""
    k, first = len(lda.share), best_uniform(lda)
    found = [first]
    if k > 2:  # with two classes there is one other to go to
        found += [nearest(lda, first.scale), between_alike(lda, first.scale)]
        if found[-1] is _best(found):
            found.append(class_by_class(lda, found[-1]))
    if k > 1:
        found += _directed(lda, first.scale, _best(found).score)
    return _best(found)


def _directed(lda: LdaStatistics, scale: float, best: float) -> list[TransitionFit]:
    """Matrices with directions, and one way. ``best`` is the best score of all other kinds.

    Entry by entry is slow: with many samples and classes it is done only where a part of the samples is promising.
    """
    if len(lda.share) > 2 and lda.b.numel() > SEARCHED:
        hint = next(with_directions(_part(lda), scale))
        found = one_way(lda, [hint], scale)
        if found.score < best - PROMISING:
            return [found]
    directions = list(with_directions(lda, scale))
    return ([one_way(lda, directions, scale)] if len(lda.share) > 2 else []) + directions


def _best(found: list[TransitionFit]) -> TransitionFit:
    return max(found, key=lambda fit: fit.score)
