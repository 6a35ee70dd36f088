"""Outer loop: how far each given label is to be trusted, and which samples enter the trusted space.

Legend: N samples, K classes, M columns of a padded table (samples of a class).

Per class k, the evidence against the given label, u_i (the paper's loss ℓ_i, or ranks fused from two margins), is
scaled to [0, 1] and modelled by two Gaussians; the sample is trusted iff the posterior of the lower one exceeds τ(e).
By default trust comes from :mod:`tadlib.posterior` instead, of which τ(e) is the only part here.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tadlib.errors import known, require

VARIANCE_FLOOR = 1e-4  # of values in [0, 1]; keeps a component from collapsing onto one sample


def ema(previous: Tensor | None, new: Tensor, mu: float) -> Tensor:
    """μ·previous + (1 − μ)·new; ``new`` at the first call. ``mu`` 0 switches it off."""
    return new if previous is None else torch.lerp(new, previous, mu)


def margin(log_p_NK: Tensor, label_N: Tensor) -> Tensor:
    """log p(label) minus the best other log p (N,): positive where the label leads."""
    at_label = log_p_NK.gather(1, label_N[:, None])[:, 0]
    others = log_p_NK.scatter(1, label_N[:, None], -torch.inf)
    return at_label - others.amax(1)


def ranks(u_N: Tensor) -> Tensor:
    """Ranks in (0, 1), float64; equal values share the mean of their ranks (N,)."""
    _, inverse_N, counts = u_N.unique(return_inverse=True, return_counts=True)
    middle = counts.cumsum(0) - counts.double() / 2
    return middle[inverse_N] / len(u_N)


def fuse(*signals_N: Tensor) -> Tensor:
    """Mean of ranks of several signals (N,), larger = more suspect, in (0, 1) (our choice).

    Ranks make signals of unlike units comparable, and bounded: no sample dominates by an extreme loss.

    Raises:
        InputError: without a signal, or where one is not finite.
    """
    require(len(signals_N) > 0, "fuse needs at least one signal, got 0")
    for u_N in signals_N:  # ranks would hide it
        require(bool(u_N.isfinite().all()), "evidence must be finite, got NaN or infinite values")
    return torch.stack([ranks(u_N) for u_N in signals_N]).mean(0)


def by_class(label_N: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
    """Places (K, M) of the samples of each class, padded with 0, and the mask (K, M) of true entries."""
    counts_K = torch.bincount(label_N, minlength=n_classes)
    order_N = label_N.argsort(stable=True)
    starts_K = counts_K.cumsum(0) - counts_K
    column_M = torch.arange(int(counts_K.max()), device=label_N.device)
    mask_KM = column_M < counts_K[:, None]
    places_KM = order_N[(starts_K[:, None] + column_M).clamp_max(len(label_N) - 1)]
    return places_KM.masked_fill(~mask_KM, 0), mask_KM


@dataclass(frozen=True)
class Mixture:
    """Two Gaussians for each of K rows; component 0 is the lower. All (K, 2), float64.

    ``separated`` (K,) tells whether ``|μ₁ − μ₀| ≥ δ(σ₀ + σ₁)``.
    """

    mean: Tensor
    variance: Tensor
    weight: Tensor
    separated: Tensor

    def log_odds(self, u_KM: Tensor) -> Tensor:
        """log p(lower | u) − log p(upper | u), made monotone: never rising with u (K, M).

        With unequal variances the raw log-odds are a parabola in u and bend back beyond its vertex; there they are
        held at the value of the vertex.
        """
        a = -0.5 / self.variance
        quadratic = a[:, 0] - a[:, 1]
        linear = -2 * (a[:, 0] * self.mean[:, 0] - a[:, 1] * self.mean[:, 1])
        vertex = -linear / (2 * quadratic)
        # an upward parabola (lower component wider) falls left of its vertex, a downward one right of it
        top = torch.where(quadratic > 0, vertex, torch.inf)[:, None]
        bottom = torch.where(quadratic < 0, vertex, -torch.inf)[:, None]
        u = torch.minimum(torch.maximum(u_KM.double(), bottom), top)[..., None]
        log_p = (self.weight.log() - 0.5 * self.variance.log())[:, None] + a[:, None] * (u - self.mean[:, None]) ** 2
        return log_p[..., 0] - log_p[..., 1]


def fit_mixture(
    u_KM: Tensor, mask_KM: Tensor, *, iterations: int = 100, tol: float = 1e-6, delta: float = 0.5
) -> Mixture:
    """Fit a two-component 1-D Gaussian mixture to each row by EM, all rows at once, in float64.

    Starts from the halves below and above the row's mid-range. Agrees with scikit-learn's ``GaussianMixture`` from
    the same start (tests). Rows with fewer than four samples, or constant ones, come back as not separated.
    """
    u = torch.where(mask_KM, u_KM.double(), 0.0)
    mask = mask_KM.double()
    count_K = mask.sum(1)
    low = torch.where(mask_KM, u, torch.inf).amin(1)
    high = torch.where(mask_KM, u, -torch.inf).amax(1)
    upper = (u > ((low + high) / 2)[:, None]).double()
    resp = torch.stack([(1 - upper) * mask, upper * mask], 2)
    bound = torch.full_like(count_K, -torch.inf)
    for _ in range(iterations):
        n = resp.sum(1).clamp_min(1e-9)
        mean = (resp * u[..., None]).sum(1) / n
        variance = (resp * (u[..., None] - mean[:, None]) ** 2).sum(1) / n + VARIANCE_FLOOR
        weight = n / n.sum(1, keepdim=True)
        log_p = (weight.log() - 0.5 * (2 * torch.pi * variance).log())[:, None] - 0.5 * (
            u[..., None] - mean[:, None]
        ) ** 2 / variance[:, None]
        total = log_p.logsumexp(2)
        resp = (log_p - total[..., None]).exp() * mask[..., None]
        new_bound = (total * mask).sum(1) / count_K.clamp_min(1)
        done = (new_bound - bound).abs() < tol
        bound = new_bound
        if bool(done.all()):
            break
    order = mean.argsort(1)
    mean, variance, weight = (t.gather(1, order) for t in (mean, variance, weight))
    gap = mean[:, 1] - mean[:, 0]
    separated = (gap >= delta * variance.sqrt().sum(1)) & (count_K >= 4) & (high > low)
    return Mixture(mean, variance, weight, separated)


@dataclass(frozen=True)
class Partition:
    """Result of one outer round.

    ``trust`` (N,) float64 in [0, 1]; ``log_odds`` (N,); ``trusted`` (N,) bool; ``threshold`` () τ(e) on the
    posterior; ``cut`` (K,) the evidence above which a sample of class k is not trusted; ``mixture`` of the rows
    (K of them, or one when ``scope`` is global); ``u`` (N,) the scaled evidence.
    """

    trust: Tensor
    log_odds: Tensor
    trusted: Tensor
    threshold: float
    cut: Tensor
    mixture: Mixture
    u: Tensor


def threshold(epoch: int, warmup: int, epochs: int, start: float, end: float) -> float:
    """τ(e): a linear ramp from ``start`` after warm-up to ``end`` in the last epoch (our choice of shape)."""
    progress = (epoch - warmup) / max(1, epochs - 1 - warmup)
    return start + (end - start) * min(max(progress, 0.0), 1.0)


def partition(
    evidence_N: Tensor,
    label_N: Tensor,
    n_classes: int,
    *,
    tau: float,
    scope: str = "class",
    delta: float = 0.5,
    minimum: int = 1,
) -> Partition:
    """Split samples by a two-component mixture of the evidence against their given labels.

    Args:
        evidence_N: larger = more suspect (a loss, or :func:`fuse` of several signals).
        tau: a sample is trusted iff the posterior of the lower component exceeds it.
        scope: ``class`` fits one mixture per given class (TAD), ``global`` one for all (DivideMix's filter).
        delta: rows whose components do not separate, ``|μ₁ − μ₀| < δ(σ₀ + σ₁)``, count as clean: all trusted.
        minimum: of every class, at least so many of its least suspect samples stay trusted.

    Raises:
        InputError: when a class has no samples, the evidence is not finite, or a setting is out of range.
    """
    known("scope", scope, ("class", "global"))
    require(0 <= tau < 1, f"threshold must be in [0, 1), got {tau}")
    require(minimum >= 1, f"minimum must be at least 1, got {minimum}")
    require(bool(evidence_N.isfinite().all()), "evidence must be finite, got NaN or infinite values")
    counts_K = torch.bincount(label_N, minlength=n_classes)
    empty = (counts_K == 0).nonzero()[:, 0].tolist()
    require(not empty, f"every class needs a sample with its label; classes without: {empty}")
    places_KM, mask_KM = by_class(label_N, n_classes)
    group_N = label_N if scope == "class" else torch.zeros_like(label_N)
    rows_RM, row_mask_RM = (places_KM, mask_KM) if scope == "class" else by_class(group_N, 1)

    u_RM = evidence_N.double()[rows_RM]
    low = torch.where(row_mask_RM, u_RM, torch.inf).amin(1, keepdim=True)
    high = torch.where(row_mask_RM, u_RM, -torch.inf).amax(1, keepdim=True)
    u_RM = (u_RM - low) / (high - low).clamp_min(1e-12)
    mixture = fit_mixture(u_RM, row_mask_RM, delta=delta)
    # a class that does not separate is clean: the most favourable odds, still ordered by the evidence
    odds_RM = torch.where(mixture.separated[:, None], mixture.log_odds(u_RM), 20.0 - u_RM)

    u_N, log_odds_N = torch.empty_like(evidence_N, dtype=torch.float64), evidence_N.double().clone()
    u_N[rows_RM[row_mask_RM]] = u_RM[row_mask_RM]
    log_odds_N[rows_RM[row_mask_RM]] = odds_RM[row_mask_RM]
    trust_N = log_odds_N.sigmoid()
    trusted_N = log_odds_N > torch.tensor(tau, dtype=torch.float64).logit()
    trusted_N |= best(evidence_N, label_N, n_classes, minimum)
    cut_K = torch.stack([u_N[(label_N == k) & trusted_N].amax() for k in range(n_classes)])
    return Partition(trust_N, log_odds_N, trusted_N, tau, cut_K, mixture, u_N)


def best(evidence_N: Tensor, label_N: Tensor, n_classes: int, minimum: int) -> Tensor:
    """Mask (N,) of the ``minimum`` least suspect samples of every class."""
    places_KM, mask_KM = by_class(label_N, n_classes)
    order_KM = torch.where(mask_KM, evidence_N[places_KM].double(), torch.inf).argsort(1)[:, :minimum]
    chosen = places_KM.gather(1, order_KM)[mask_KM.gather(1, order_KM)]
    result = torch.zeros(len(label_N), dtype=torch.bool, device=label_N.device)
    result[chosen] = True
    return result


def auroc(score_N: Tensor, positive_N: Tensor) -> float | None:
    """Area under the ROC curve of ``score`` for ``positive``, ties counted half; None when one kind is missing."""
    n_positive = int(positive_N.sum())
    if n_positive in (0, len(positive_N)):
        return None
    rank_sum = ranks(score_N)[positive_N].sum().item() * len(score_N)  # of ranks 0.5, 1.5, ...
    return (rank_sum - n_positive**2 / 2) / (n_positive * (len(positive_N) - n_positive))
