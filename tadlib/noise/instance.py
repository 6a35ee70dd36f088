"""Instance-dependent noise: the probability that a label is wrong, and the class it turns into, depend on the image.

Legend: N samples, K classes, C H W image, D = C H W pixels.
"""

import math

import torch
from torch import Tensor

from tadlib.checks import require_images
from tadlib.errors import required
from tadlib.noise.labels import Answer, Request

DEVIATION = 0.1  # of the rates of single samples


def instance_dependent(request: Request) -> Answer:
    """The generator of Xia et al. (2020), "Part-dependent label noise", algorithm 2.

    Each sample has a flip rate q_i of its own, from a normal distribution around the rate r with deviation .1, cut to
    [0, 1]. Each true class y has a random projection W_y (D, K) with standard normal entries; a label that flips goes
    to class j ≠ y with probability softmax_j(x_i W_y). Pixels are used as the data set normalises them.

    Nominal transition: the mean over each class of what its samples were drawn from. The realised rate is near the
    mean of q, which lies a little above r where r is near 0 (at r = .1 by .03). At rate 0 nothing flips. All in
    float64 on the CPU, with a loop over classes and none over samples.
    """
    rate, true_N, K = request.rate, request.true_N, request.n_classes
    x_NCHW = required(request.x_NCHW, "instance noise depends on the images: give x_NCHW")
    require_images("x_NCHW, an image for each label,", x_NCHW, n=len(true_N))
    u_N, v_N, w_N = torch.rand(3, len(true_N), dtype=torch.float64, generator=request.rng)
    q_N = truncated_normal(w_N, rate) if rate else torch.zeros_like(w_N)
    noisy_N = true_N.clone()
    transition_KK = torch.eye(K, dtype=torch.float64)
    for k in range(K):
        W_DK = torch.randn(math.prod(x_NCHW.shape[1:]), K, dtype=torch.float64, generator=request.rng)
        of_class = (true_N == k).nonzero().squeeze(1)
        if len(of_class) == 0:
            continue
        logits_nK = x_NCHW[of_class.to(x_NCHW.device)].cpu().flatten(1).double() @ W_DK
        logits_nK[:, k] = -torch.inf
        p_nK = logits_nK.softmax(1)
        # inverse of the distribution function: the first class whose cumulated probability exceeds v
        target_n = (p_nK.cumsum(1) <= v_N[of_class, None]).sum(1).clamp_max(K - 1)
        target_n = torch.where(target_n == k, p_nK.argmax(1), target_n)  # rounding may leave the sum short of v
        noisy_N[of_class] = torch.where(u_N[of_class] < q_N[of_class], target_n, k)
        transition_KK[k] = (q_N[of_class, None] * p_nK).mean(0)
        transition_KK[k, k] = 1 - q_N[of_class].mean()
    return noisy_N, rate, transition_KK


def truncated_normal(u_N: Tensor, mean: float, deviation: float = DEVIATION) -> Tensor:
    """Values in [0, 1] of a normal distribution cut to that interval, from uniform ones (N,), by the inverse of its
    distribution function; float64."""
    low, high = (torch.special.ndtr(torch.tensor((end - mean) / deviation, dtype=torch.float64)) for end in (0, 1))
    return (mean + deviation * torch.special.ndtri(low + u_N * (high - low))).clamp(0, 1)
