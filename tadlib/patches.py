"""An auditor in closed form: ridge regression on features of random patches; every label is judged without itself.

Legend: N samples, K classes, B batch, C H W image, M filters, D features.

A network trained on wrong labels learns some of them by heart, so that what it says of a sample depends on that
sample's own label. For ridge regression the prediction for a sample, had that sample been left out, is known for all
samples at once from one factorisation (Allen 1974):

    r_i = ỹ_i − (ỹ_i − ŷ_i) / (1 − h_i),    ŷ = Hỹ,    H = 1/N + Z (ZᵀZ + λI)⁻¹ Zᵀ,    h = diag H.

The features Z need no labels: the filters are patches of the images themselves, whitened (Coates, Ng & Lee 2011), and
their rectified responses are averaged over the cells of a grid. That the method uses such an auditor is our choice, and
so are responses of one sign (both signs of half as many filters say less).
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, conv2d, unfold

from tadlib.errors import require

LARGEST = 32  # pixels; larger images are averaged down first
GRID = 3  # cells a side, over each of which responses are averaged
BIAS = 0.5  # responses below it count as none
CONTRAST = 0.1  # added to a patch's variance, so that flat patches are not blown up
WHITENING = 1e-2  # added to the eigenvalues of the patches' covariance
PATCHES = 100_000  # that the covariance is estimated from
SAMPLES_A_FILTER = 4  # of few samples fewer filters are made: D stays of the order of N
SHRINKAGE = (0.1, 0.3, 1.0)  # λ / N to choose from, for features of unit variance
PROBED = 8  # λ is chosen on every eighth sample
BATCH = 32  # images whose responses are held at a time: they stay in the processor's cache


@dataclass(frozen=True)
class Filters:
    """``kernel`` (M, C, p, p), ``shift`` (M,): a patch u of standard deviation σ gives ``kernel · u / σ − shift``."""

    kernel: Tensor
    shift: Tensor


def filters(x_NCHW: Tensor, count: int, generator: torch.Generator) -> Filters:
    """At most ``count`` whitened patches of the images; patches have a fifth of an image's side, at least 3 pixels.

    ``generator`` is one of the CPU.
    """
    n, c, h, w = x_NCHW.shape
    side = max(3, min(h, w) // 5)
    require(min(h, w) >= side, f"images must be at least {side} pixels wide and high, got {h} by {w}")
    positions = (h - side + 1) * (w - side + 1)
    some = torch.randperm(n, generator=generator)[: -(-PATCHES // positions)].to(x_NCHW.device)
    u_RD = unfold(x_NCHW[some], side).transpose(1, 2).flatten(0, 1)
    u_RD = u_RD[torch.randperm(len(u_RD), generator=generator)[:PATCHES].to(u_RD.device)]
    u_RD = u_RD - u_RD.mean(1, keepdim=True)
    u_RD = u_RD / (u_RD.square().mean(1, keepdim=True) + CONTRAST).sqrt()
    mean_D = u_RD.mean(0)
    about_RD = u_RD - mean_D
    values_D, vectors_DD = torch.linalg.eigh(about_RD.T @ about_RD / len(u_RD))
    whiten_DD = vectors_DD * (values_D.clamp_min(0) + WHITENING).rsqrt() @ vectors_DD.T
    f_MD = torch.nn.functional.normalize(about_RD[:count] @ whiten_DD, dim=1) @ whiten_DD
    # the patch's own mean is taken off by the kernel
    kernel_MD = f_MD - f_MD.mean(1, keepdim=True)
    return Filters(kernel_MD.reshape(-1, c, side, side), f_MD @ mean_D)


def responses(made: Filters, x_NCHW: Tensor, *, mirror: bool) -> Tensor:
    """Features (N, D) with D = M GRID²: rectified responses, averaged over cells.

    ``mirror`` adds those of the mirror image: for images that flips do not change in kind.
    """
    _, c, side, _ = made.kernel.shape
    box = torch.full((1, c, side, side), 1 / (c * side**2), device=x_NCHW.device)
    threshold_M11 = (made.shift + BIAS)[:, None, None]

    def of(x_BCHW: Tensor) -> Tensor:
        variance = conv2d(x_BCHW.square(), box) - conv2d(x_BCHW, box).square()
        z = conv2d(x_BCHW, made.kernel).mul_((variance.clamp_min(0) + CONTRAST).rsqrt())
        z = z.sub_(threshold_M11).relu_()
        means = _cells(*z.shape[2:]).to(z) @ z.flatten(2).flatten(0, 1).T
        return means.T.reshape(len(z), -1)

    return torch.cat([of(x_B) + of(x_B.flip(3)) if mirror else of(x_B) for x_B in x_NCHW.split(BATCH)])


@lru_cache
def _cells(height: int, width: int) -> Tensor:
    """Matrix (GRID², H W) whose product with images averages them over the cells of the grid.

    :func:`adaptive_avg_pool2d` does the same, a few times more slowly; its cells overlap where sides do not divide.
    """
    pixels = torch.eye(height * width, dtype=torch.float64).view(-1, 1, height, width)
    return adaptive_avg_pool2d(pixels, GRID).flatten(1).T.contiguous()


def leave_one_out(z_ND: Tensor, y_NK: Tensor, use_N: Tensor, shrinkage: tuple[float, ...] = SHRINKAGE) -> Tensor:
    """r (N, K): ridge regression of ``y`` on ``z`` over the samples in ``use_N`` (bool), each predicted without itself.

    Samples not in use are predicted from all that are. λ is the one of a grid, N times ``shrinkage``, with the least
    squared error of the predictions r on every :data:`PROBED`-th sample in use (Allen's PRESS of a part).

    Raises:
        InputError: where fewer than 2 samples are in use.
    """
    n = int(use_N.sum())
    require(n >= 2, f"leave-one-out predictions need at least 2 samples, got {n}")
    z_ND = z_ND - z_ND[use_N].mean(0)
    z_ND = z_ND / z_ND[use_N].square().mean(0).sqrt().clamp_min(1e-6)
    used_nD, y_nK = z_ND[use_N], y_NK[use_N]
    mean_K = y_nK.mean(0)
    gram_DD, cross_DK = used_nD.T @ used_nD, used_nD.T @ (y_nK - mean_K)

    def without_itself(factor_DD: Tensor, predicted_nK: Tensor, part: slice) -> Tensor:
        h_n = torch.linalg.solve_triangular(factor_DD, used_nD[part].T, upper=False).square().sum(0) + 1 / n
        return y_nK[part] - (y_nK[part] - predicted_nK[part]) / (1 - h_n)[:, None]

    best, least, probed = (gram_DD, y_NK), torch.inf, slice(None, None, PROBED)
    for share in shrinkage:
        factor_DD = gram_DD.clone()
        factor_DD.diagonal().add_(share * n)
        factor_DD = torch.linalg.cholesky(factor_DD)
        predicted_NK = z_ND @ torch.cholesky_solve(cross_DK, factor_DD) + mean_K
        error = (y_nK[probed] - without_itself(factor_DD, predicted_NK[use_N], probed)).square().sum().item()
        if error >= least:  # PRESS has one valley
            break
        best, least = (factor_DD, predicted_NK), error
    factor_DD, r_NK = best
    r_NK[use_N] = without_itself(factor_DD, r_NK[use_N], slice(None))
    return r_NK


def left_out(
    x_NCHW: Tensor, y_NK: Tensor, use_N: Tensor, *, count: int, mirror: bool, generator: torch.Generator
) -> Tensor:
    """r (N, K), linear estimates of p(ỹ | x) by :func:`leave_one_out` on patch features; may leave [0, 1].

    Args:
        y_NK, use_N: given labels as distributions, and which of them may be learned.
        count: most filters M.
        mirror: whether an image and its mirror image are alike.

    Raises:
        InputError: on images smaller than a patch, or fewer than two labels to learn.
    """
    side = min(LARGEST / max(x_NCHW.shape[2:]), 1)
    if side < 1:
        height, width = (max(1, round(side * s)) for s in x_NCHW.shape[2:])
        x_NCHW = adaptive_avg_pool2d(x_NCHW, (height, width))
    made = filters(x_NCHW, max(2, min(count, len(x_NCHW) // SAMPLES_A_FILTER)), generator)
    return leave_one_out(responses(made, x_NCHW, mirror=mirror), y_NK, use_N)
