"""From the posterior to decisions: how far noisy labels count, which are flagged, and how many are wrong.

Legend: N samples, K classes.

Flips that depend on the class alone cannot be foreseen from the image, and T says all about them. People err where the
image is ambiguous, and there a predictor is in doubt as well: T is then estimated from the clear images, where labels
are right, and trusts the others too much. An exponent a on T corrects that, q ∝ p T^a: with p(ỹ | x, y) ∝
T[y, ỹ]^a p(ỹ | x)^(1 − a) the image itself explains part of the label, and that part does not depend on y. Which of the
two it is shows in two ways: flips follow the likeness of classes (the kind of T), or labels disagree with predictions
in cases of doubt more than T explains (overdispersion). All of this is our choice.
"""

from dataclasses import dataclass

from torch import Tensor

LIKENESS = 0.7  # a where flips follow the likeness of classes
DOUBT = 0.46  # a where labels disagree in cases of doubt
OVERDISPERSED = (0.02, 0.035)  # between these values of overdispersion a falls to DOUBT
UNCERTAIN = 0.2  # by which a may be wrong, for the interval of the noise rate


def overdispersion(p_NK: Tensor, noisy_N: Tensor, transition_KK: Tensor) -> float:
    """How much better doubt, 1 − max p, foresees that a label is not the most likely class than it would under T.

    The difference of two AUROCs: of the labels, and of labels drawn from p T, in expectation.
    """
    most_N, class_N = p_NK.double().max(1)
    disagree_N = class_N != noisy_N
    expected_N = 1 - (p_NK.double() * transition_KK.double()[:, class_N].T).sum(1)
    order_N = most_N.argsort(descending=True, stable=True)  # by rising doubt

    def area(positive_N: Tensor) -> Tensor:
        negative_N = 1 - positive_N
        below_N = negative_N.cumsum(0) - negative_N / 2
        return (below_N * positive_N).sum() / (positive_N.sum() * negative_N.sum()).clamp_min(1e-12)

    return (area(disagree_N.double()[order_N]) - area(expected_N[order_N])).item()


def exponent(of_kind: float, excess: float) -> float:
    """a, from that of the kind of T and from :func:`overdispersion`."""
    low, high = OVERDISPERSED
    return of_kind - max(0.0, of_kind - DOUBT) * min(max((excess - low) / (high - low), 0.0), 1.0)


def flagged(trust_N: Tensor, cost: float) -> Tensor:
    """Mask (N,) of the labels that a person should check: p(wrong) > 1 / (1 + cost).

    That has the least expected cost where a missed wrong label costs ``cost`` times what a needless check does.
    """
    return 1 - trust_N > 1 / (1 + cost)


@dataclass(frozen=True)
class NoiseRate:
    """The share of wrong labels: estimate, and an interval from ``low`` to ``high``."""

    estimate: float
    low: float
    high: float

    @property
    def uncertain(self) -> bool:
        """Whether the data cannot tell few wrong labels from many."""
        return self.high - self.low > 0.25

    @property
    def doubt(self) -> str:
        """What to say where it is ``uncertain``."""
        interval = f"{self.estimate:.0%} by estimate, {self.low:.0%} to {self.high:.0%} are as likely"
        return f"the data cannot tell how many labels are wrong: {interval}"


def noise_rate(trust_N: Tensor, trust_2N: tuple[Tensor, Tensor], range_: tuple[float, float]) -> NoiseRate:
    """The mean of 1 − trust, and an interval.

    It holds the means under a larger and a smaller exponent (``trust_2N``), is widened by two standard errors of N
    labels, and by ``range_``: by how much less and more uniform noise explains the labels about as well.
    """
    rate = (1 - trust_N).mean().item()
    ends = sorted((1 - t_N).mean().item() for t_N in trust_2N)
    error = 2 * (max(rate * (1 - rate), 1 / len(trust_N)) / len(trust_N)) ** 0.5
    low, high = min(rate, ends[0]) - error - range_[0], max(rate, ends[1]) + error + range_[1]
    return NoiseRate(rate, max(low, 0.0), min(high, 1.0))


def expected(trust_N: Tensor, flagged_N: Tensor) -> tuple[float | None, float | None]:
    """Precision and recall that the flagged labels should have if trust is right; None where undefined."""
    wrong_N = 1 - trust_N
    caught, total, count = wrong_N[flagged_N].sum().item(), wrong_N.sum().item(), int(flagged_N.sum())
    return caught / count if count else None, caught / total if total > 0 else None
