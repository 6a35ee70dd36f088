"""What left-out predictions say of the true class, if labels flip by T: linear discriminant analysis on them.

Legend: N samples, K classes.

Regressions on given labels (:mod:`tadlib.patches`) answer with r_i (K,), in which classes that look alike are blurred
into each other, whether or not any label is wrong. Optimal scoring (Hastie, Tibshirani & Buja 1994) undoes that: r is
whitened, and a sample belongs to the class whose mean is near. Means of *true* classes are those of given ones, unmixed
by T:

    r̃ = (r − r̄) (Σ + δ I)^(−½),    m_k = a_k + F (mean of r̃ over ỹ = k − a_k),    a_k = (Σ_k / π_k) (Σ + δ I)^(−½),
    b_ik = r̃_iᵀ m_k  with a mean over all but sample i,
    μ = U m,    U = (RᵀR + ε I)⁻¹ Rᵀ (1 + ε),    R[ỹ, y] = p(y | ỹ) ∝ p(y) T[y, ỹ],
    log p(y | x_i) ∝ s · (b_iᵀ Uᵀ C − ½ diag(Cᵀ A) + log p)_y,    A = μ μᵀ,    C = Σ_j (diag(p) A)^j.

Were r right on average, p(ỹ | x) itself, the mean of a class would be a_k, from row k of the covariance Σ and the share
π_k of its labels: no label is needed to know it. What the means of labels say otherwise is believed as far as it is
more than chance: F takes from every direction in which they differ CHANCE · K / N (in the manner of James & Stein's
estimate). C stands for (I − diag(p) A)⁻¹, which turns the covariance of all samples into the one within classes; of its
series four terms are taken, so that no T, however wrong, can make it singular. All this is our choice.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SHRINKAGE = 0.1  # δ, in units of the mean variance of r
EPSILON = 0.06  # ε: keeps unmixing from blowing up the noise of means where T is nearly singular
CHANCE = 4.0  # times K / N: differences of means in one direction that are put down to chance
TERMS = 4  # of the series C
LEAST = 0.2  # a class is taken to be no rarer than this part of 1 / K


@dataclass(frozen=True)
class Evidence:
    """``b`` (N, K) float32, ``gram`` m mᵀ (K, K) and ``share`` of given labels (K,) float64, ``given`` (N,)."""

    b: Tensor
    gram: Tensor
    share: Tensor
    given: Tensor

    def view(self, transition_KK: Tensor, scale: Tensor | float) -> Tensor:
        """p(y | x) (N, K) float32 under a transition matrix (K, K); gradients reach both arguments."""
        return (scale * self.scores(transition_KK)).softmax(1)

    def scores(self, transition_KK: Tensor) -> Tensor:
        """log p(y | x) (N, K) float32 at scale 1, up to a number for every sample."""
        map_KK, offset_K = self._rule(transition_KK.double())
        return self.b @ map_KK.to(self.b) + offset_K.to(self.b)

    def _rule(self, transition_KK: Tensor) -> tuple[Tensor, Tensor]:
        """Uᵀ C (K, K) and the offset (K,) of every class."""
        eye_KK = torch.eye(len(self.share), dtype=torch.float64, device=self.share.device)

        def unmixed(mixed_KK: Tensor, right: Tensor) -> Tensor:
            """(MᵀM + ε I)⁻¹ Mᵀ (1 + ε) times ``right``: the damped least squares solution of M x = ``right``."""
            return torch.linalg.solve(mixed_KK.T @ mixed_KK + EPSILON * eye_KK, mixed_KK.T @ right) * (1 + EPSILON)

        p_K = unmixed(transition_KK.T, self.share).clamp_min(LEAST / len(self.share))
        p_K = p_K / p_K.sum()
        reverse_KK = transition_KK.T * p_K
        reverse_KK = reverse_KK / reverse_KK.sum(1, keepdim=True).clamp_min(1e-9)
        u_KK = unmixed(reverse_KK, eye_KK)
        between_KK = u_KK @ self.gram @ u_KK.T
        series_KK = eye_KK
        for _ in range(TERMS - 1):
            series_KK = eye_KK + p_K[:, None] * between_KK @ series_KK
        return u_KK.T @ series_KK, p_K.log() - 0.5 * (series_KK * between_KK).sum(0)


def evidence(r_NK: Tensor, given_N: Tensor) -> Evidence:
    """Collect what :meth:`Evidence.view` needs, for any T.

    Args:
        r_NK: predictions of given labels, each made without the sample's own.
        given_N: given labels in [0, K).
    """
    n, k = r_NK.shape
    r_NK = (r_NK - r_NK.mean(0)).double()
    count_K = torch.bincount(given_N, minlength=k).double()
    sigma_KK = r_NK.T @ r_NK / n
    values_K, vectors_KK = torch.linalg.eigh(sigma_KK)
    spread_K = (values_K + SHRINKAGE * values_K.mean()).clamp_min(1e-12)
    whiten_KK = vectors_KK * spread_K.rsqrt() @ vectors_KK.T
    share_K = count_K / n
    at_its_word_KK = sigma_KK / share_K.clamp_min(1 / n)[:, None] @ whiten_KK
    r_NK = r_NK @ whiten_KK
    mean_KK = torch.zeros_like(sigma_KK).index_add_(0, given_N, r_NK) / count_K.clamp_min(1)[:, None]
    beyond_KK = torch.where(count_K[:, None] > 0, mean_KK - at_its_word_KK, 0)
    values_K, vectors_KK = torch.linalg.eigh((beyond_KK.T * share_K) @ beyond_KK)
    kept_K = (1 - CHANCE * k / n / values_K.clamp_min(1e-12)).clamp_min(0)
    keep_KK = vectors_KK * kept_K @ vectors_KK.T
    m_KK = at_its_word_KK + beyond_KK @ keep_KK
    b_NK = r_NK @ m_KK.T
    # the mean of a sample's given class, without the sample
    others_N = (r_NK @ keep_KK * (mean_KK[given_N] - r_NK)).sum(1) / (count_K[given_N] - 1).clamp_min(1)
    b_NK.scatter_add_(1, given_N[:, None], others_N[:, None])
    return Evidence(b_NK.float(), m_KK @ m_KK.T, share_K, given_N)
