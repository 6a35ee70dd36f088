"""The transition matrix and the true classes from out-of-fold probabilities of any classifier.

Legend: N samples, K classes.

A network that was trained on noisy labels estimates p(ỹ | x) = Σ_y p(y | x) T[y, ỹ]. T comes from the confident joint
(Northcutt et al. 2021): a sample counts for class y if p(ỹ = y | x) is at least the mean of that over samples labelled
y. p(y | x) is then what explains p(ỹ | x) best under T, found by expectation maximisation. Few confident mistakes say
little about directions and about single classes, so counts are joined by pseudo-counts (our choice).
"""

import torch
from torch import Tensor

DIRECTIONS = 100.0  # pseudo-counts of wrong labels of a class, spread over all others
SAMPLES = 300.0  # pseudo-counts of samples of a class, wrong as often as the mean
STEPS = 100  # of expectation maximisation


def confident_transition(p_NK: Tensor, noisy_N: Tensor) -> Tensor:
    """T (K, K) float64 from out-of-fold p(ỹ | x) (N, K) and noisy labels (N,)."""
    n, k = p_NK.shape
    p_NK = p_NK.double()
    share_K = torch.bincount(noisy_N, minlength=k).double()
    own_N = p_NK.gather(1, noisy_N[:, None])[:, 0]
    threshold_K = torch.zeros_like(share_K).index_add_(0, noisy_N, own_N) / share_K.clamp_min(1)
    threshold_K[share_K == 0] = torch.inf
    above_NK = p_NK >= threshold_K
    counted_N = above_NK.any(1)
    class_N = torch.where(above_NK, p_NK, -1).argmax(1)
    joint_KK = torch.zeros_like(p_NK[:1].T @ p_NK[:1])
    one_N = torch.ones_like(own_N[counted_N])
    joint_KK.index_put_((class_N[counted_N], noisy_N[counted_N]), one_N, accumulate=True)
    joint_KK = joint_KK.clamp_min(1e-9)
    joint_KK = joint_KK / joint_KK.sum(0) * share_K  # as many of every noisy label as there are
    # pseudo-counts: the mean rate of wrong labels, and no direction
    off_KK = 1 - torch.eye(k).to(joint_KK)
    wrong_KK, all_K = joint_KK * off_KK, joint_KK.sum(1)
    rate_K = (wrong_KK.sum(1) + SAMPLES * wrong_KK.sum() / n) / (all_K + SAMPLES)
    direction_KK = wrong_KK + DIRECTIONS * off_KK / max(1, k - 1)
    direction_KK = direction_KK / direction_KK.sum(1, keepdim=True).clamp_min(1e-12)
    return torch.diag(1 - rate_K) + rate_K[:, None] * direction_KK


def unmixed(p_NK: Tensor, transition_KK: Tensor) -> Tensor:
    """p(y | x) (N, K) float64 with Σ_y p(y | x) T[y, ỹ] as close to p(ỹ | x) in likelihood as it can be."""
    p_NK, transition_KK = p_NK.double(), transition_KK.double()
    result_NK = torch.full_like(p_NK, 1 / p_NK.shape[1])
    for _ in range(STEPS):
        result_NK = result_NK * ((p_NK / (result_NK @ transition_KK).clamp_min(1e-12)) @ transition_KK.T)
        result_NK = result_NK / result_NK.sum(1, keepdim=True).clamp_min(1e-12)
    return result_NK
