"""Class anchors in feature space, and how near a sample lies to each.

Legend: N samples, K classes, D features.

Anchors a_k are weighted class means of penultimate features z, with one shared, shrunk covariance Σ.
d_k = (z − a_k)ᵀ Σ⁻¹ (z − a_k); q_k ∝ exp(−d_k / 2t); s_k = cos(z − z̄, a_k − z̄); candidate k* = argmin d; reliability
ρ = q_{k*} (1 + s_{k*}) / 2 where distance and cosine agree on ``k*``, else 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tadlib.errors import known, require

TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 30.0)


@dataclass(frozen=True)
class Anchors:
    """Class centres ``mean`` (K, D), precision factor ``whiten`` (D, D) with Σ⁻¹ = W Wᵀ, and the mean of the
    features ``origin`` (D,), about which cosines are taken."""

    mean: Tensor
    whiten: Tensor
    origin: Tensor


def ledoit_wolf(residual_ND: Tensor) -> Tensor:
    """Covariance of centred rows, shrunk towards a multiple of the identity (Ledoit & Wolf 2004) (D, D)."""
    n, d = residual_ND.shape
    covariance_DD = residual_ND.T @ residual_ND / n
    mu = covariance_DD.diagonal().mean()
    spread = covariance_DD.square().sum() / d - mu**2
    noise = (residual_ND.square().sum(1).square().sum() / n - covariance_DD.square().sum()) / (n * d)
    shrink = (noise.clamp_min(0) / spread.clamp_min(1e-30)).clamp_max(1.0)
    return (1 - shrink) * covariance_DD + shrink * mu * torch.eye(d, dtype=residual_ND.dtype, device=residual_ND.device)


def whitening(covariance_DD: Tensor) -> Tensor:
    """W (D, D) with W Wᵀ = Σ⁻¹, from a Cholesky factor; a jitter keeps dead features from making Σ singular."""
    d = len(covariance_DD)
    eye = torch.eye(d, dtype=covariance_DD.dtype, device=covariance_DD.device)
    jitter = 1e-6 * covariance_DD.diagonal().mean().clamp_min(1e-12)
    factor = torch.linalg.cholesky(covariance_DD + jitter * eye)
    return torch.linalg.solve_triangular(factor, eye, upper=False).T


def anchors(features_ND: Tensor, y_NK: Tensor, w_N: Tensor) -> Anchors:
    """Anchors and shared covariance of the samples of positive weight ``w``, under label distributions ``y``.

    InputError when a class has no weight at all, for it would have no anchor, or when features are not finite.
    """
    use = w_N > 0
    z, y_w = features_ND[use], y_NK[use].to(features_ND.dtype) * w_N[use, None].to(features_ND.dtype)
    require(bool(z.isfinite().all()), "features must be finite, got NaN or infinite values (did training diverge?)")
    mass_K = y_w.sum(0)
    empty = (mass_K <= 0).nonzero()[:, 0].tolist()
    require(not empty, f"every class needs a trusted sample for its anchor; classes without: {empty}")
    mean_KD = (y_w.T @ z) / mass_K[:, None]
    residual_ND = z - mean_KD[y_w.argmax(1)]
    return Anchors(mean_KD, whitening(ledoit_wolf(residual_ND)), z.mean(0))


def distances(a: Anchors, features_ND: Tensor) -> Tensor:
    """Squared Mahalanobis distances d_k (N, K) to every anchor."""
    # about the origin of the features, else most digits cancel in the difference below
    z, m = (features_ND - a.origin) @ a.whiten, (a.mean - a.origin) @ a.whiten
    return (z.square().sum(1, keepdim=True) - 2 * z @ m.T + m.square().sum(1)).clamp_min(0)


def cosines(a: Anchors, features_ND: Tensor) -> Tensor:
    """Cosine similarities s_k (N, K) to every anchor, both taken about the mean of the trusted features.

    Features after a ReLU all point into one orthant: without centring every cosine is near 1 (our choice).
    """
    z, m = features_ND - a.origin, a.mean - a.origin
    return torch.nn.functional.normalize(z, dim=1) @ torch.nn.functional.normalize(m, dim=1).T


def temperature(d_NK: Tensor, label_N: Tensor) -> float:
    """The t of a grid under which softmax(−d / 2t) gives ``label`` the highest likelihood (our choice: Gaussian
    posteriors are overconfident in many dimensions)."""
    nll = [torch.nn.functional.cross_entropy(-d_NK / (2 * t), label_N) for t in TEMPERATURES]
    return TEMPERATURES[int(torch.stack(nll).argmin())]


@dataclass(frozen=True)
class Candidates:
    """Candidate ``label`` (N,) of every sample, its ``reliability`` ρ (N,), and the soft label ``q`` (N, K)."""

    label: Tensor
    reliability: Tensor
    q: Tensor


def candidates(d_NK: Tensor, s_NK: Tensor, t: float, criterion: str = "both") -> Candidates:
    """Candidate labels with their reliability ρ = q_{k*} (1 + s_{k*}) / 2, 0 where distance and cosine disagree.

    ``criterion`` ``mahalanobis`` leaves the cosine out (ρ = q_{k*}), ``cosine`` the distance (ρ = (1 + s_{k*}) / 2;
    the soft label is then one-hot, for cosines are no distribution).
    """
    known("criterion", criterion, ("both", "mahalanobis", "cosine"))
    q_NK = (-d_NK / (2 * t)).softmax(1)
    similarity_NK = (1 + s_NK) / 2
    if criterion == "cosine":
        rho_N, label_N = similarity_NK.max(1)
        return Candidates(label_N, rho_N, torch.nn.functional.one_hot(label_N, d_NK.shape[1]).to(d_NK.dtype))
    label_N = d_NK.argmin(1)
    rho_N = q_NK.gather(1, label_N[:, None])[:, 0]
    if criterion == "both":
        agrees_N = s_NK.argmax(1) == label_N
        rho_N = rho_N * similarity_NK.gather(1, label_N[:, None])[:, 0] * agrees_N
    return Candidates(label_N, rho_N, q_NK)
