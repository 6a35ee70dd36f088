"""The transition matrix T[y, ỹ] = p(ỹ | y) under which noisy labels are most likely (our extension).

Legend: N samples, K classes.

Leave-one-out predictions p(y | x) (:mod:`tadlib.trust.predictors`) measure the fit of a matrix on every label:

    L(T) = max_s 1/N Σ_i log Σ_y p_i(y; T, s) T[y, ỹ_i].

Labels that are wrong at random cannot be predicted from any image: a T with too little noise calls them impossible, a
T with too much fails to predict the others. Matrices of four kinds compete:

1. uniform (:func:`best_uniform`): wrong labels are spread over all other classes;
2. free (:func:`free`): every entry, then only those above a rising cut-off, while the others share one value;
3. one way (:func:`one_way`): wrong labels of a class go to one other class, or to none, at a rate that all classes
   share (among many classes no single direction is significant, one rate can be), and a few go anywhere;
4. alike (:func:`alike`, :func:`nearest`): the more alike two classes are, the more often labels flip between them.

The matrix with the best score is taken: L(T) less :func:`penalties` of its parameters, as in an extended Bayesian
information criterion (Chen & Chen 2008), and of one choice for every class. Both ask for a gain per sample, however
large N is: p_i is wrong by more than chance. All of this is our choice.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from tadlib.trust.ascent import STEP, Function, ascend
from tadlib.trust.predictors import LdaStatistics

REQUIRED_GAIN = 1e-3  # ν, log-likelihood per sample
GAIN_OF_CHOICE = 1e-4  # required gain of one choice for every class, as a part of K log K, however many the samples
GAIN_OF_NEAREST = 0.1  # the same for flips to the most confused class, as a part of such a choice
GAIN_OF_ONE_WAY = 1.5e-4  # of a class whose wrong labels go one way, besides: it shares its rate with others
UNIFORM = (-4.0, -1.0, 0.5)  # log odds of wrong labels that kind 1 starts from
STEPS = 50  # of ascent; a fifth of them between two choices
SEARCHED = 400_000  # probabilities, samples times classes, on which few numbers are fitted
START = 0.1  # rate of wrong labels that searches for directions start from
CUTS = (0.02, 0.05, 0.1, 0.2)  # below which an entry has no parameter of its own
ONE_WAY = (-0.8, -3.0)  # log odds that labels flip and stray, which kind 3 starts from
TURNS = 4  # of finding where labels go, given how often, and how often, given where
ALIKE = (-1.5, 1.5, -2.0, 0.0, 0.0)  # numbers that kind 4 starts from: see alike


@dataclass(frozen=True)
class TransitionFit:
    """A matrix T (K, K) float64, the scale s under which it explains noisy labels best, its score, and its kind."""

    transition: Tensor
    scale: float
    score: float
    kind: str


def estimate(lda: LdaStatistics) -> TransitionFit:
    """The matrix with the best score among all kinds."""
    found = [best_uniform(lda)]
    scale = found[0].scale
    found += free(lda, scale)
    if len(lda.share) > 2:  # with two classes there is one other to go to
        found += [nearest(lda, scale), alike(lda, scale)]
        found.append(one_way(lda, found, scale))
    return max(found, key=lambda fit: fit.score)


def log_likelihood(p_NK: Tensor, noisy_N: Tensor, transition_KK: Tensor) -> Tensor:
    """Mean log Σ_y p(y | x) T[y, ỹ] of p(y | x) (N, K), a number."""
    at_noisy_N = (p_NK * transition_KK.T.to(p_NK.dtype)[noisy_N]).sum(1)  # columns that are not asked for cost time
    return at_noisy_N.clamp_min(1e-9).log().mean()


def penalties(n: int, n_classes: int) -> tuple[float, float]:
    """Per sample: of a parameter (½ log N + log K(K−1)) / N + ν, of a choice for every class K log K / N or more."""
    parameter = (0.5 * math.log(n) + math.log(max(2, n_classes * (n_classes - 1)))) / n + REQUIRED_GAIN
    return parameter, n_classes * math.log(n_classes) * max(1 / n, GAIN_OF_CHOICE)


def _value(lda: LdaStatistics, family: Function, searched: float = math.inf) -> Function:
    """L as a function of the numbers of which ``family`` makes T (K, K), and log s, on evenly spaced samples."""
    step = max(1, math.ceil(lda.b.numel() / searched))
    part = replace(lda, b=lda.b[::step], noisy=lda.noisy[::step])

    def value(*numbers: Tensor) -> Tensor:
        transition_KK = family(*numbers[:-1])
        return log_likelihood(part.probabilities(transition_KK, numbers[-1].exp()), part.noisy, transition_KK)

    return value


def _fit(lda: LdaStatistics, family: Function, numbers: list[Tensor], kind: str, free: int, choices=0.0, more=0.0):
    """The matrix of a family with these numbers, and its score on all labels: L less its penalties, and ``more``."""
    parameter, choice = penalties(*lda.b.shape)
    score = _value(lda, family)(*numbers).item() - free * parameter - choices * choice - more
    return TransitionFit(family(*numbers[:-1]).double(), numbers[-1].exp().item(), score, kind)


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

    value = _value(lda, family, SEARCHED)
    tried = [ascend(value, _start(lda, 1.0, odds), STEPS) for odds in UNIFORM]
    return _fit(lda, family, max(tried, key=lambda numbers: value(*numbers).item()), "uniform", free=1)


def uniform_range(lda: LdaStatistics) -> tuple[float, float]:
    """By how much less and more uniform noise than the best explains labels within 2 units of log-likelihood (95 %)."""
    found, best = [], best_uniform(lda)
    for rate in torch.linspace(0, 0.8, 9).tolist():
        value = _value(lda, partial(uniform, rate, len(lda.share), lda.b.device), SEARCHED)
        found.append((value(*ascend(value, _start(lda, 1.0), STEPS // 5)).item() * len(lda.b), rate))
    rates = [rate for value, rate in found if value > max(found)[0] - 2]
    likeliest = 1 - best.transition[0, 0].item()
    return max(likeliest - min(rates), 0.0), max(max(rates) - likeliest, 0.0)


def free(lda: LdaStatistics, scale: float) -> Iterator[TransitionFit]:
    """Matrices with fewer and fewer free entries, from :data:`START` and a ``scale``."""
    off_KK = ~torch.eye(len(lda.share), dtype=torch.bool, device=lda.b.device)
    # log odds against the diagonal; entries that are not free share one value
    odds_KK = lda.b.new_full(off_KK.shape, math.log(START / max(1, len(off_KK) - 1) / (1 - START)))
    numbers = [odds_KK, odds_KK[0, 0], lda.b.new_tensor(scale).log()]
    free_KK, transition_KK = off_KK, (~off_KK).to(lda.b)

    def matrix(odds_KK: Tensor, shared: Tensor) -> Tensor:
        return (torch.where(free_KK, odds_KK, shared) * off_KK).softmax(1)

    for cut in (0.0, *CUTS):
        if cut:
            free_KK = (transition_KK > cut) & off_KK
            if not len(rest := transition_KK[~free_KK & off_KK]):
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

    That class is first what the best of ``fits`` says; then, between searches, what explains the labels best.
    """
    numbers, eye_KK = _start(lda, scale, *ONE_WAY), torch.eye(len(lda.share)).to(lda.b)
    tried = []
    for found in fits:
        most_K, to_K = (found.transition.to(eye_KK) * (1 - eye_KK)).max(1)
        flips_K = most_K > max(START, most_K.median().item() / 2)
        tried.append(partial(_to, torch.where(flips_K[:, None], eye_KK[to_K], eye_KK)))
    family = max(tried, key=lambda family: _value(lda, family, SEARCHED)(*numbers).item())
    for _ in range(TURNS):
        numbers = ascend(_value(lda, family, SEARCHED), numbers, STEPS // 5, below_0=slice(1))
        family = partial(_to, _turned(lda, *family.args, *numbers))
    numbers = ascend(_value(lda, family, SEARCHED), numbers, STEPS, below_0=slice(1))
    flips = int((family.args[0].diagonal() == 0).sum())
    return _fit(lda, family, numbers, "one way", free=2, choices=1, more=GAIN_OF_ONE_WAY * flips)


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
    _, log_KK = _confusion(lda, torch.eye(len(lda.share)), scale)
    family = partial(_to, torch.eye(len(log_KK)).to(log_KK)[log_KK.argmax(1)])
    numbers = ascend(_value(lda, family, SEARCHED), _start(lda, scale, *ONE_WAY), STEPS, below_0=slice(1))
    at_half = math.inf if numbers[0] >= -STEP else 0.0
    return _fit(lda, family, numbers, "alike", free=2, choices=GAIN_OF_NEAREST, more=at_half)


def alike(lda: LdaStatistics, scale: float) -> TransitionFit:
    """The best matrix whose flips are the more frequent, the more alike two classes are, from a ``scale``.

    T = I + diag(e) (F − I), F = (1 − u) softmax(γ log S + η log π) + u / (K − 1) off the diagonal, logit e = ε + δ c,
    of the numbers ε, γ, logit u, δ ≥ 0 and η ≥ 0; π is the share of each noisy label. S, how alike classes are, and c,
    how often they are confused, are counted under T = I first, then once more under the T that was found.
    """
    numbers, share_K = _start(lda, scale, *ALIKE), (lda.share * len(lda.share)).clamp_min(1 / len(lda.share)).log()
    confusion = _confusion(lda, torch.eye(len(share_K)), scale)
    for _ in range(2):
        family = partial(_alike, *confusion, share_K.to(lda.b) - share_K.to(lda.b).mean())
        numbers = ascend(_value(lda, family, SEARCHED), numbers, STEPS, above_0=slice(3, 5))
        found = _fit(lda, family, numbers, "alike", free=5, choices=1)
        confusion = _confusion(lda, found.transition, found.scale)
    return found


def _alike(doubt_K: Tensor, log_KK: Tensor, share_K: Tensor, *numbers: Tensor) -> Tensor:
    (rate, power, spread, row, column), eye_KK = numbers, torch.eye(len(log_KK)).to(log_KK)
    flips_KK = power * log_KK.masked_fill(eye_KK.bool(), 0) + column * share_K
    flips_KK = flips_KK.masked_fill(eye_KK.bool(), -torch.inf).softmax(1)
    flips_KK = torch.lerp(flips_KK, (1 - eye_KK) / (len(eye_KK) - 1), spread.sigmoid())
    return eye_KK + (rate + row * doubt_K).sigmoid()[:, None] * (flips_KK - eye_KK)


def _confusion(lda: LdaStatistics, transition_KK: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """What images of a class, the true one or, if T = I, the noisy one, are taken for: log odds (K,) that it is another
    class, less their mean, and log S (K, K) float32, which one that is; −∞ on the diagonal, rows of S sum to 1."""
    transition_KK = transition_KK.to(lda.share)
    p_NK = lda.probabilities(transition_KK, scale)
    q_NK = p_NK * transition_KK[:, lda.noisy].T.to(p_NK)
    counts_KK = (q_NK / q_NK.sum(1, keepdim=True).clamp_min(1e-9)).T @ p_NK
    part_KK = counts_KK / counts_KK.sum(1, keepdim=True).clamp_min(1e-9)
    doubt_K = -part_KK.diagonal().clamp(1e-3, 1 - 1e-3).logit()
    own_KK = torch.eye(len(part_KK), dtype=torch.bool, device=part_KK.device)
    return doubt_K - doubt_K.mean(), part_KK.clamp_min(1e-5).log().masked_fill(own_KK, -torch.inf).log_softmax(1)
