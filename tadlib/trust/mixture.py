"""Two-component Gaussian mixtures of losses, for all classes at once.

Legend: N samples, K classes, G groups, M columns of a padded table (samples of a group).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tadlib.errors import require

VARIANCE_FLOOR = 1e-4  # of values in [0, 1]; keeps a component from collapsing onto one sample
CLEAN_ODDS = 20.0  # log-odds of samples in a group that does not separate


def by_group(group_N: Tensor, n_groups: int) -> tuple[Tensor, Tensor]:
    """Places (G, M) of the samples of each group, padded with 0, and the mask (G, M) of true entries."""
    counts_G = torch.bincount(group_N, minlength=n_groups)
    order_N = group_N.argsort(stable=True)
    starts_G = counts_G.cumsum(0) - counts_G
    column_M = torch.arange(int(counts_G.max()), device=group_N.device)
    mask_GM = column_M < counts_G[:, None]
    places_GM = order_N[(starts_G[:, None] + column_M).clamp_max(len(group_N) - 1)]
    return places_GM.masked_fill(~mask_GM, 0), mask_GM


@dataclass(frozen=True)
class Mixture:
    """Two Gaussians for each of G groups; component 0 is the lower. All (G, 2), float64.

    ``separated`` (G,) tells whether ``m₁ − m₀ ≥ δ(σ₀ + σ₁)``.
    """

    mean: Tensor
    variance: Tensor
    weight: Tensor
    separated: Tensor

    def log_odds(self, u_GM: Tensor) -> Tensor:
        """log p(lower | u) − log p(upper | u), made monotone: never rising with u (G, M).

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
        u = torch.minimum(torch.maximum(u_GM.double(), bottom), top)[..., None]
        log_p = (self.weight.log() - 0.5 * self.variance.log())[:, None] + a[:, None] * (u - self.mean[:, None]) ** 2
        return log_p[..., 0] - log_p[..., 1]


def fit_mixture(u_GM: Tensor, mask_GM: Tensor, iterations: int = 100, tol: float = 1e-6, delta: float = 0.5) -> Mixture:
    """Fit a two-component 1-D Gaussian mixture to each row by EM, all rows at once, in float64.

    Starts from the halves below and above the row's mid-range. Agrees with scikit-learn's ``GaussianMixture`` from
    the same start (tests). Rows with fewer than four samples, or constant ones, come back as not separated.
    """
    u = torch.where(mask_GM, u_GM.double(), 0.0)
    mask = mask_GM.double()
    count_G = mask.sum(1)
    low = torch.where(mask_GM, u, torch.inf).amin(1)
    high = torch.where(mask_GM, u, -torch.inf).amax(1)
    upper = (u > ((low + high) / 2)[:, None]).double()
    resp = torch.stack([(1 - upper) * mask, upper * mask], 2)
    bound = torch.full_like(count_G, -torch.inf)
    for _ in range(iterations):
        n = resp.sum(1).clamp_min(1e-9)
        mean = (resp * u[..., None]).sum(1) / n
        variance = (resp * (u[..., None] - mean[:, None]) ** 2).sum(1) / n + VARIANCE_FLOOR
        weight = n / n.sum(1, keepdim=True)
        log_top = weight.log() - 0.5 * (2 * torch.pi * variance).log()
        log_p = log_top[:, None] - 0.5 * (u[..., None] - mean[:, None]) ** 2 / variance[:, None]
        total = log_p.logsumexp(2)
        resp = (log_p - total[..., None]).exp() * mask[..., None]
        new_bound = (total * mask).sum(1) / count_G.clamp_min(1)
        done = (new_bound - bound).abs() < tol
        bound = new_bound
        if bool(done.all()):
            break
    order = mean.argsort(1)
    mean, variance, weight = (t.gather(1, order) for t in (mean, variance, weight))
    gap = mean[:, 1] - mean[:, 0]
    separated = (gap >= delta * variance.sqrt().sum(1)) & (count_G >= 4) & (high > low)
    return Mixture(mean, variance, weight, separated)


@dataclass(frozen=True)
class Split:
    """``log_odds`` (N,) float64 of the lower component, ``u`` (N,) the losses scaled to [0, 1], and the ``mixture`` of
    every group."""

    log_odds: Tensor
    u: Tensor
    mixture: Mixture

    @property
    def w(self) -> Tensor:
        """Posterior of the lower component (N,)."""
        return self.log_odds.sigmoid()

    def above(self, tau: float) -> Tensor:
        """Mask (N,) of the samples with w > ``tau``."""
        return self.log_odds > torch.tensor(tau, dtype=torch.float64).logit()


def split(loss_N: Tensor, group_N: Tensor, n_groups: int, *, delta: float) -> Split:
    """Scale losses to [0, 1] in every group, and fit a two-component mixture to each.

    A group whose components do not separate, ``m₁ − m₀ < δ(σ₀ + σ₁)``, is clean: all of it has the most favourable
    odds, still ordered by the loss (our choice). Classes as groups are TAD's mixtures, one group DivideMix's.
    """
    require(bool(loss_N.isfinite().all()), "losses must be finite, got NaN or infinite values (did training diverge?)")
    places_GM, mask_GM = by_group(group_N, n_groups)
    loss_GM = loss_N.double()[places_GM]
    low = torch.where(mask_GM, loss_GM, torch.inf).amin(1, keepdim=True)
    high = torch.where(mask_GM, loss_GM, -torch.inf).amax(1, keepdim=True)
    u_GM = (loss_GM - low) / (high - low).clamp_min(1e-12)
    mixture = fit_mixture(u_GM, mask_GM, delta=delta)
    odds_GM = torch.where(mixture.separated[:, None], mixture.log_odds(u_GM), CLEAN_ODDS - u_GM)
    u_N, log_odds_N = torch.empty_like(loss_N, dtype=torch.float64), loss_N.double().clone()
    u_N[places_GM[mask_GM]] = u_GM[mask_GM]
    log_odds_N[places_GM[mask_GM]] = odds_GM[mask_GM]
    return Split(log_odds_N, u_N, mixture)


def smallest(value_N: Tensor, label_N: Tensor, n_classes: int, count: int) -> Tensor:
    """Mask (N,) of the ``count`` samples of every class with the smallest values."""
    places_KM, mask_KM = by_group(label_N, n_classes)
    order_KM = torch.where(mask_KM, value_N[places_KM].double(), torch.inf).argsort(1)[:, :count]
    result = torch.zeros(len(label_N), dtype=torch.bool, device=label_N.device)
    result[places_KM.gather(1, order_KM)[mask_KM.gather(1, order_KM)]] = True
    return result
