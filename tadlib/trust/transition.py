"""The transition matrix T[y, ỹ] = p(ỹ | y) under which noisy labels are most likely (our extension).

Legend: N samples, K classes.

Leave-one-out predictions (:mod:`tadlib.trust.predictors`) give p(y | x) under any T, so that the fit of a matrix can be
measured on every label:

    L(T) = max_s 1/N Σ_i log Σ_y p_i(y; T, s) T[y, ỹ_i].

Labels that are wrong at random cannot be predicted from any image: a T with too little noise meets labels that it calls
impossible, a T with too much fails to predict those that can be predicted. Matrices of four kinds compete:

1. uniform (:func:`best_uniform`): wrong labels are spread over all other classes;
2. free (:func:`free`): every entry, then only those above a rising cut-off, while the others share one value;
3. one way (:func:`one_way`): wrong labels of a class go to one other class, or to none, at a rate that all classes
   share, and a few go anywhere. That class is found from the labels, or it is the one that images of the class are
   most confused with. Among many classes no single direction is significant; one shared rate can be;
4. alike (:func:`alike`): the more alike two classes are, the more often labels flip between them.

The matrix with the best score is taken,

    L(T) − f · ((½ log N + log K(K−1)) / N + ν) − w,

where f is the number of free parameters. That is an extended Bayesian information criterion (Chen & Chen 2008): a
direction is one of K(K−1) that could have been found. Whatever N is, it also has to gain ν per sample, because p_i is
wrong by more than chance. One of K choices for every class costs w = K log K / N, but no less than with N = 10,000, for
the same reason, and .15 ν for every class that flips (kind 3). Kind 4 costs as much, and flips to the most confused
class cost a tenth: which classes are alike is read from the p_i, and is wrong where they are. All of this is our
choice.
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
GAIN_OF_NEAREST = 0.1  # part of such a choice that flips to the most alike class have to gain
GAIN_OF_ONE_WAY = 1.5e-4  # of a class whose wrong labels go one way: it shares its rate with others
SCORE = attrgetter("score")
# Searches
UNIFORM = (-4.0, -1.0, 0.5)  # log odds of wrong labels that kind 1 starts from
STEPS = 50  # of Adam; a fifth of them between two choices
STEP, STEP_OF_FEW = 0.1, 0.2  # its learning rates, in log odds: of all entries, and of few numbers
SEARCHED = 400_000  # probabilities, samples times classes, on which few numbers are fitted
START = 0.1  # rate of wrong labels that searches for directions start from
CUTS = (0.02, 0.05, 0.1, 0.2)  # below which an entry has no parameter of its own
ONE_WAY = (-0.8, -3.0)  # log odds that labels flip and stray, which kind 3 starts from
TURNS = 4  # of finding where labels go, given how often, and how often, given where
ALIKE = (-1.5, 1.5, -2.0, 0.0, 0.0)  # numbers that kind 4 starts from: see alike

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class TransitionFit:
    """A matrix T (K, K) float64, the scale s under which it explains noisy labels best, its score, and its kind."""

    transition: Tensor
    scale: float
    score: float
    kind: str


def estimate(lda: LdaStatistics) -> TransitionFit:
    """The matrix with the best score among all kinds."""
    k, first = len(lda.share), best_uniform(lda)
    found = [first]
    if k > 2:  # with two classes there is one other to go to
        found += [nearest(lda, first.scale), alike(lda, first.scale)]
    if k > 1:
        found += free(lda, first.scale)
    if k > 2:
        found.append(one_way(lda, found, first.scale))
    return max(found, key=SCORE)


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


def _fit(lda: LdaStatistics, family: Function, numbers: list[Tensor], kind: str, free: int, choices=0.0):
    """The matrix of a family with these numbers, and its score on all labels."""
    best = _value(lda, family)(*numbers).item()
    score = best - free * penalty(*lda.b.shape) - choices * penalty_of_choice(*lda.b.shape)
    return TransitionFit(family(*numbers[:-1]).double(), numbers[-1].exp().item(), score, kind)


def ascend(value: Function, numbers: list[Tensor], steps: int, below_0=slice(0), above_0=slice(0)) -> list[Tensor]:
    """Where Adam (Kingma & Ba 2015) on ``value`` ends; numbers of some places stay below or above 0.

    Written out: importing torch's takes longer than all steps do. A quasi-Newton method does worse where every entry is
    free: it fits chance before Adam, whose steps are alike for all entries, does.
    """
    values, means, squares = list(numbers), *([torch.zeros_like(v) for v in numbers] for _ in range(2))
    for step in range(1, steps + 1):
        asked = [v.detach().requires_grad_() for v in values]
        for i, gradient in enumerate(torch.autograd.grad(value(*asked), asked)):
            means[i].lerp_(gradient, 1 - 0.9)
            squares[i].lerp_(gradient.square(), 1 - 0.999)
            ahead = means[i] / (1 - 0.9**step) / ((squares[i] / (1 - 0.999**step)).sqrt() + 1e-8)
            values[i] = values[i] + (STEP if values[i].ndim else STEP_OF_FEW) * ahead
        values[below_0] = [v.clamp_max(0) for v in values[below_0]]
        values[above_0] = [v.clamp_min(0) for v in values[above_0]]
    return values


def _part(lda: LdaStatistics) -> LdaStatistics:
    """Evenly spaced samples, :data:`SEARCHED` probabilities at most: enough to fit a few parameters."""
    step = math.ceil(lda.b.numel() / SEARCHED)
    return lda if step == 1 else replace(lda, b=lda.b[::step], noisy=lda.noisy[::step])


def _start(lda: LdaStatistics, scale: float, *numbers: float) -> list[Tensor]:
    return [lda.b.new_tensor(v) for v in (*numbers, math.log(scale))]


def uniform(rate: float | Tensor, n_classes: int, device: torch.device | str = "cpu") -> Tensor:
    """T (K, K) float64 of noise without direction: a share ``rate`` of labels is spread over all other classes."""
    eye_KK = torch.eye(n_classes, dtype=torch.float64, device=device)
    return (1 - rate) * eye_KK + rate / max(1, n_classes - 1) * (1 - eye_KK)


def best_uniform(lda: LdaStatistics) -> TransitionFit:
    """The best matrix without a direction, searched from each of :data:`UNIFORM`."""

    def family(odds: Tensor) -> Tensor:
        return uniform(odds.sigmoid(), len(lda.share), odds.device)

    value = _value(_part(lda), family)
    tried = [ascend(value, _start(lda, 1.0, odds), STEPS) for odds in UNIFORM]
    return _fit(lda, family, max(tried, key=lambda numbers: value(*numbers).item()), "uniform", free=1)


def uniform_range(lda: LdaStatistics) -> tuple[float, float]:
    """By how much less and how much more uniform noise than the likeliest explains the labels about as well: within two
    units of log-likelihood, a 95 % interval of one parameter."""
    part, found = _part(lda), []
    for rate in torch.linspace(0, 0.8, 9).tolist():
        value = _value(part, partial(uniform, rate, len(lda.share), lda.b.device))
        found.append((value(*ascend(value, _start(part, 1.0), STEPS // 5)).item() * len(lda.b), rate))
    most, likeliest = max(found)
    rates = [rate for value, rate in found if value > most - 2]
    return likeliest - min(rates), max(rates) - likeliest


def free(lda: LdaStatistics, scale: float) -> Iterator[TransitionFit]:
    """Matrices with fewer and fewer free entries, from :data:`START` and a ``scale``."""
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
        numbers = ascend(_value(lda, matrix), numbers, STEPS // 5 if cut else STEPS, below_0=slice(2))
        found = _fit(lda, matrix, numbers, "free", int(free_KK.sum()) + 1)
        transition_KK = found.transition.to(lda.b)
        yield found


def _to(to_KK: Tensor, odds: Tensor, stray: Tensor) -> Tensor:
    """T (K, K): labels stay or, with log ``odds``, go where ``to_KK`` says; ``stray`` ones (log odds) go anywhere."""
    eye_KK = torch.eye(len(to_KK)).to(to_KK)
    anywhere_KK = (1 - eye_KK) / (len(to_KK) - 1)
    return torch.lerp(torch.lerp(eye_KK, to_KK, odds.sigmoid()), anywhere_KK, stray.sigmoid())


def one_way(lda: LdaStatistics, fits: list[TransitionFit], scale: float) -> TransitionFit:
    """The best matrix whose flips fall on one class for every class, or else on any, from a ``scale``.

    Which class that is, if any, is first what the best of ``fits`` says; then, between searches, what explains the
    labels best for every class by itself.
    """
    part, numbers = _part(lda), _start(lda, scale, *ONE_WAY)
    eye_KK = torch.eye(len(lda.share)).to(lda.b)
    tried = []
    for found in fits:
        most_K, to_K = (found.transition.to(eye_KK) * (1 - eye_KK)).max(1)
        flips_K = most_K > max(START, most_K.median().item() / 2)
        tried.append(partial(_to, torch.where(flips_K[:, None], eye_KK[to_K], eye_KK)))
    family = max(tried, key=lambda family: _value(part, family)(*numbers).item())
    for _ in range(TURNS):
        numbers = ascend(_value(part, family), numbers, STEPS // 5, below_0=slice(1))
        family = partial(_to, _turned(lda, *family.args, *numbers))
    numbers = ascend(_value(part, family), numbers, STEPS, below_0=slice(1))
    best = _fit(lda, family, numbers, "one way", free=2, choices=1)
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
    gain_KK = gain_KK + p_NK.new_zeros(k, 1).index_add_(0, lda.noisy, stay_NK.gather(1, lda.noisy[:, None]))
    return torch.eye(k).to(p_NK)[gain_KK.fill_diagonal_(0).argmax(1)]


def nearest(lda: LdaStatistics, scale: float) -> TransitionFit:
    """The best matrix whose flips fall on the most confused class, or else on any, from a ``scale``.

    Where all classes flip one way, half of the images with a label look like the class that it comes *from*. Flips the
    other way, of half of the labels, explain that hardly worse; so where rates end at a half, there is no score.
    """
    family = partial(_to, torch.eye(len(lda.share)).to(lda.b)[_likeness(_confusion(lda, None, scale)).argmax(1)])
    numbers = ascend(_value(_part(lda), family), _start(lda, scale, *ONE_WAY), STEPS, below_0=slice(1))
    found = _fit(lda, family, numbers, "alike", free=2, choices=GAIN_OF_NEAREST)
    return found if numbers[0] < -STEP else replace(found, score=-math.inf)


def alike(lda: LdaStatistics, scale: float) -> TransitionFit:
    """The best matrix whose flips are the more frequent, the more alike two classes are, from a ``scale``.

    T = I + diag(e) (F − I), F = (1 − u) softmax(γ log S + η log π) + u / (K − 1) off the diagonal, log odds of e = ε +
    δ (log odds that images of the class are taken for others), of the numbers ε, γ, log odds of u, δ ≥ 0 and η ≥ 0. The
    likeness S is counted under T = I first, then once more under the T that was found.
    """
    numbers, confusion_KK = _start(lda, scale, *ALIKE), _confusion(lda, None, scale)
    for _ in range(2):
        family = _alike(lda, confusion_KK)
        numbers = ascend(_value(_part(lda), family), numbers, STEPS, above_0=slice(3, 5))
        found = _fit(lda, family, numbers, "alike", free=5, choices=1)
        confusion_KK = _confusion(lda, found, scale)
    return found


def _alike(lda: LdaStatistics, confusion_KK: Tensor) -> Function:
    k, eye_KK = len(confusion_KK), torch.eye(len(confusion_KK)).to(lda.b)
    log_KK = _likeness(confusion_KK).masked_fill(eye_KK.bool(), 0)
    own_K = confusion_KK.diagonal() / confusion_KK.sum(1).clamp_min(1e-9)
    doubt_K = -own_K.clamp(1e-3, 1 - 1e-3).logit()
    share_K = (lda.share * k).clamp_min(1 / k).log().to(lda.b)
    doubt_K, share_K = doubt_K - doubt_K.mean(), share_K - share_K.mean()

    def matrix(rate: Tensor, power: Tensor, spread: Tensor, row: Tensor, column: Tensor) -> Tensor:
        flips_KK = (power * log_KK + column * share_K).masked_fill(eye_KK.bool(), -torch.inf).softmax(1)
        flips_KK = torch.lerp(flips_KK, (1 - eye_KK) / (k - 1), spread.sigmoid())
        return eye_KK + (rate + row * doubt_K).sigmoid()[:, None] * (flips_KK - eye_KK)

    return matrix


def _likeness(confusion_KK: Tensor) -> Tensor:
    """log S (K, K) float32, rows sum to 1: what images of a class are taken for besides; −∞ on the diagonal."""
    log_KK = (confusion_KK / confusion_KK.sum(1, keepdim=True).clamp_min(1e-9)).clamp_min(1e-5).log()
    return log_KK.masked_fill(torch.eye(len(log_KK), dtype=torch.bool, device=log_KK.device), -torch.inf).log_softmax(1)


def _confusion(lda: LdaStatistics, found: TransitionFit | None, scale: float) -> Tensor:
    """Predicted class probabilities (K, K), summed over images of a class: the true one under what was found, the noisy
    one under T = I before anything is."""
    transition_KK = torch.eye(len(lda.share)).to(lda.share) if found is None else found.transition
    p_NK = lda.probabilities(transition_KK, scale if found is None else found.scale)
    q_NK = p_NK * transition_KK[:, lda.noisy].T.to(p_NK)
    return (q_NK / q_NK.sum(1, keepdim=True).clamp_min(1e-9)).T @ p_NK
