"""Predictors of the true class that need no network: ridge regression on patches, each label predicted without itself.

Legend: N samples, K classes, B batch, C H W image, M filters, D features.

A network trained on wrong labels memorises some of them, so that its prediction for a sample depends on that sample's
own label. For ridge regression the leave-one-out predictions of all samples follow from one factorisation (Allen 1974):

    r_i = ỹ_i − (ỹ_i − ŷ_i) / (1 − h_i),    ŷ = Hỹ,    H = 1/N + Z (ZᵀZ + λI)⁻¹ Zᵀ,    h = diag H.

The features Z need no labels: the filters are patches of the images themselves, whitened (Coates, Ng & Lee 2011), and
their rectified responses are averaged over the cells of a grid (that only one sign is kept is our choice).

In r classes that look alike are blurred into each other, whether or not any label is wrong. Optimal scoring (Hastie,
Tibshirani & Buja 1994), that is linear discriminant analysis (LDA) of r, undoes that. Means of *true* classes are those
of noisy ones, unmixed by a transition matrix T:

    r̃ = (r − r̄) (Σ + δ I)^(−½),    m_k = a_k + F (mean of r̃ over ỹ = k − a_k),    a_k = (Σ_k / π_k) (Σ + δ I)^(−½),
    b_ik = r̃_iᵀ m_k  with a mean over all but sample i,
    μ = U m,    U = (RᵀR + ε I)⁻¹ Rᵀ (1 + ε),    R[ỹ, y] = p(y | ỹ) ∝ p(y) T[y, ỹ],
    log p(y | x_i) ∝ s · (b_iᵀ Uᵀ C − ½ diag(Cᵀ A) + log p)_y,    A = μ μᵀ,    C = Σ_j (diag(p) A)^j.

If r were right on average, p(ỹ | x) itself, the mean of a class would be a_k, from row k of the covariance Σ and the
share π_k of its labels: no label is needed to know it. What the means of labels say beyond that counts as far as it is
more than chance: F shrinks every direction in which they differ by CHANCE · K / N (James & Stein). C stands for
(I − diag(p) A)⁻¹, which turns the covariance of all samples into the one within classes; of its series four terms are
taken, so that no T can make it singular. All of this is our choice.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, conv2d, normalize, unfold

from tadlib.errors import require
from tadlib.nn.images import averaged

# Patches
LARGEST = 32  # pixels; larger images are averaged down first
GRID = 3  # cells a side, over each of which responses are averaged
BIAS = 0.5  # responses below it count as none
CONTRAST = 0.1  # added to a patch's variance, so that flat patches are not blown up
WHITENING = 1e-2  # added to the eigenvalues of the patches' covariance
PATCHES = 100_000  # that the covariance is estimated from
SAMPLES_A_FILTER = 4  # of few samples fewer filters are made: D stays of the order of N
RIDGE = (0.1, 0.3, 1.0)  # λ / N to choose from, for features of unit variance
PROBED = 8  # λ is chosen on every eighth sample
BATCH = 32  # images whose responses are held at a time: they stay in the processor's cache
# Near copies
NEAR = 0.99  # correlation; of 50,000 images of CIFAR-10 about a dozen have as much with another one
SIDE = 16  # pixels to which images are averaged
DIRECTIONS, NEIGHBOURS = 24, 9  # in which, and among how many, each itself included, they are looked for
CROWD = 10  # one in so many images alike: what they share is no sign of a copy
# LDA
DELTA = 0.1  # δ, in units of the mean variance of r
EPSILON = 0.06  # ε: keeps unmixing from blowing up the noise of means where T is nearly singular
CHANCE = 4.0  # times K / N: differences of means in one direction that are put down to chance
TERMS = 4  # of the series C
LEAST_PRIOR = 0.2  # a class is taken to be no rarer than this part of 1 / K


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


def leave_one_out(
    z_ND: Tensor, y_NK: Tensor, use_N: Tensor, group_N: Tensor | None = None, ridge: tuple[float, ...] = RIDGE
) -> Tensor:
    """r (N, K): ridge regression of ``y`` on ``z`` over the samples in ``use_N`` (bool), each predicted without itself.

    Copies of an image, samples of the same ``group`` (N,), are left out together, e_G = (I − H_GG)⁻¹ (ỹ − ŷ)_G: a
    copy's label would tell the own. (λ is chosen as if their rows of Z were equal.)

    Samples not in use are predicted from all that are. λ is the one of a grid, N times ``ridge``, with the least
    squared error of the predictions r on every :data:`PROBED`-th sample in use (Allen's PRESS of a part).
    """
    n = int(use_N.sum())
    require(n >= 2, f"leave-one-out predictions need at least 2 samples, got {n}")
    _, group_n, size_G = torch.unique(
        torch.arange(n).to(use_N.device) if group_N is None else group_N[use_N], return_inverse=True, return_counts=True
    )
    z_ND = z_ND - z_ND[use_N].mean(0)
    z_ND = z_ND / z_ND[use_N].square().mean(0).sqrt().clamp_min(1e-6)
    used_nD, y_nK = z_ND[use_N], y_NK[use_N]
    mean_K = y_nK.mean(0)
    gram_DD, cross_DK = used_nD.T @ used_nD, used_nD.T @ (y_nK - mean_K)

    def without_itself(factor_DD: Tensor, predicted_nK: Tensor, part: slice) -> Tensor:
        h_n = torch.linalg.solve_triangular(factor_DD, used_nD[part].T, upper=False).square().sum(0) + 1 / n
        error_GK = y_nK.new_zeros(len(size_G), y_nK.shape[1]).index_add_(0, group_n, y_nK - predicted_nK)
        # equal rows of Z have equal h: (I − h 1 1ᵀ)⁻¹ = I + h 1 1ᵀ / (1 − m h)
        pull_n = h_n / (1 - size_G[group_n[part]] * h_n).clamp_min(1e-3)
        return predicted_nK[part] - pull_n[:, None] * error_GK[group_n[part]]

    best, least, probed = (gram_DD, y_NK), torch.inf, slice(None, None, PROBED)
    for share in ridge:
        factor_DD = gram_DD.clone()
        factor_DD.diagonal().add_(share * n)
        factor_DD = torch.linalg.cholesky(factor_DD)
        predicted_NK = z_ND @ torch.cholesky_solve(cross_DK, factor_DD) + mean_K
        error = (y_nK[probed] - without_itself(factor_DD, predicted_NK[use_N], probed)).square().sum().item()
        if error >= least:  # PRESS has one valley
            break
        best, least = (factor_DD, predicted_NK), error
    factor_DD, r_NK = best
    error_nK = y_nK - r_NK[use_N]
    r_nK = without_itself(factor_DD, r_NK[use_N], slice(None))
    order_n = group_n.argsort(stable=True)
    for m in size_G.unique().tolist():
        if 1 < m <= n // 2:  # of more copies the rest says too little
            of_gm = order_n[size_G[group_n[order_n]] == m].view(-1, m)
            v_gmD = torch.linalg.solve_triangular(factor_DD, used_nD[of_gm.flatten()].T, upper=False).T.unflatten(
                0, of_gm.shape
            )
            kept_gmm = torch.eye(m).to(v_gmD) - v_gmD @ v_gmD.mT - 1 / n
            r_nK[of_gm] = y_nK[of_gm] - torch.linalg.solve(kept_gmm, error_nK[of_gm])
    r_NK[use_N] = r_nK
    return r_NK


def leave_one_out_of_patches(
    x_NCHW: Tensor,
    y_NK: Tensor,
    use_N: Tensor,
    group_N: Tensor | None = None,
    *,
    count: int,
    mirror: bool,
    generator: torch.Generator,
) -> Tensor:
    """r (N, K), linear estimates of p(ỹ | x) by :func:`leave_one_out` on patch features; may leave [0, 1].

    ``y`` are noisy labels as distributions, of which those of ``use`` may be learned; ``count`` is the largest M.
    """
    side = min(LARGEST / max(x_NCHW.shape[2:]), 1)
    if side < 1:
        height, width = (max(1, round(side * s)) for s in x_NCHW.shape[2:])
        x_NCHW = averaged(x_NCHW, (height, width))
    made = filters(x_NCHW, max(2, min(count, len(x_NCHW) // SAMPLES_A_FILTER)), generator)
    return leave_one_out(responses(made, x_NCHW, mirror=mirror), y_NK, use_N, group_N)


@dataclass(frozen=True)
class LdaStatistics:
    """``b`` (N, K) float32, ``gram`` m mᵀ (K, K) and ``share`` of noisy labels (K,) float64, ``noisy`` (N,)."""

    b: Tensor
    gram: Tensor
    share: Tensor
    noisy: Tensor

    def probabilities(self, transition_KK: Tensor, scale: Tensor | float) -> Tensor:
        """p(y | x) (N, K) float32 under a transition matrix (K, K); gradients reach both arguments."""
        return (scale * self.scores(transition_KK)).softmax(1)

    def scores(self, transition_KK: Tensor) -> Tensor:
        """log p(y | x) (N, K) float32 at scale 1, up to a number for every sample."""
        transition_KK, eye_KK = transition_KK.double(), torch.eye(len(self.share)).to(self.share)

        def unmixed(mixed_KK: Tensor, right: Tensor) -> Tensor:
            """(MᵀM + ε I)⁻¹ Mᵀ (1 + ε) times ``right``: the damped least squares solution of M x = ``right``."""
            return torch.linalg.solve(mixed_KK.T @ mixed_KK + EPSILON * eye_KK, mixed_KK.T @ right) * (1 + EPSILON)

        p_K = unmixed(transition_KK.T, self.share).clamp_min(LEAST_PRIOR / len(self.share))
        p_K = p_K / p_K.sum()
        reverse_KK = transition_KK.T * p_K
        reverse_KK = reverse_KK / reverse_KK.sum(1, keepdim=True).clamp_min(1e-9)
        u_KK = unmixed(reverse_KK, eye_KK)
        between_KK = u_KK @ self.gram @ u_KK.T
        series_KK = eye_KK
        for _ in range(TERMS - 1):
            series_KK = eye_KK + p_K[:, None] * between_KK @ series_KK
        offset_K = p_K.log() - 0.5 * (series_KK * between_KK).sum(0)
        return self.b @ (u_KK.T @ series_KK).to(self.b) + offset_K.to(self.b)


def lda_statistics(r_NK: Tensor, noisy_N: Tensor, group_N: Tensor | None = None) -> LdaStatistics:
    """What :meth:`LdaStatistics.probabilities` needs for any T, from ``r``, predictions of the noisy labels.

    The mean of a class leaves out the copies of a sample, those of the same ``group`` (N,).
    """
    n, k = r_NK.shape
    r_NK = (r_NK - r_NK.mean(0)).double()
    count_K = torch.bincount(noisy_N, minlength=k).double()
    sigma_KK = r_NK.T @ r_NK / n
    values_K, vectors_KK = torch.linalg.eigh(sigma_KK)
    spread_K = (values_K + DELTA * values_K.mean()).clamp_min(1e-12)
    whiten_KK = vectors_KK * spread_K.rsqrt() @ vectors_KK.T
    share_K = count_K / n
    at_its_word_KK = sigma_KK / share_K.clamp_min(1 / n)[:, None] @ whiten_KK
    r_NK = r_NK @ whiten_KK
    mean_KK = torch.zeros_like(sigma_KK).index_add_(0, noisy_N, r_NK) / count_K.clamp_min(1)[:, None]
    beyond_KK = torch.where(count_K[:, None] > 0, mean_KK - at_its_word_KK, 0)
    values_K, vectors_KK = torch.linalg.eigh((beyond_KK.T * share_K) @ beyond_KK)
    kept_K = (1 - CHANCE * k / n / values_K.clamp_min(1e-12)).clamp_min(0)
    keep_KK = vectors_KK * kept_K @ vectors_KK.T
    m_KK = at_its_word_KK + beyond_KK @ keep_KK
    b_NK = r_NK @ m_KK.T
    if group_N is None:  # the mean of a sample's own class, without the sample
        others_N = (r_NK @ keep_KK * (mean_KK[noisy_N] - r_NK)).sum(1) / (count_K[noisy_N] - 1).clamp_min(1)
        b_NK.scatter_add_(1, noisy_N[:, None], others_N[:, None])
    else:  # the means of the classes of all its copies, without them
        _, place_N = torch.unique(group_N, return_inverse=True)
        own_GK = r_NK.new_zeros(int(place_N.max()) + 1, k).index_put_(
            (place_N, noisy_N), torch.ones_like(r_NK[:, 0]), accumulate=True
        )
        own_NK = own_GK[place_N]
        along_NK = r_NK @ keep_KK @ mean_KK.T - (r_NK @ keep_KK * r_NK).sum(1, keepdim=True)
        b_NK += along_NK * own_NK / (count_K - own_NK).clamp_min(1)
    return LdaStatistics(b_NK.float(), m_KK @ m_KK.T, share_K, noisy_N)


def first_copies(x_NCHW: Tensor) -> Tensor:
    """For every image or row of numbers the place (N,) of the first one with the same values."""
    places: dict[bytes, int] = {}
    rows = (row for rows in x_NCHW.split(BATCH) for row in rows.cpu().contiguous())
    return torch.tensor([places.setdefault(hashlib.sha256(row.numpy()).digest(), i) for i, row in enumerate(rows)])


def copies(x_NCHW: Tensor) -> Tensor | None:
    """Group (N,) of every image: copies and near copies (:func:`near_copies`) share one; None where all images differ.

    A crowd of near copies, more than one in :data:`CROWD` of all images, shows what the images have in common: in it
    only those with the same pixels share a group. Rows of numbers (N, D) do so only where they are equal.
    """
    from scipy.sparse import coo_array  # here: it takes a moment to import
    from scipy.sparse.csgraph import connected_components

    first_N = first_copies(x_NCHW)
    n, pairs = len(first_N), torch.stack([torch.arange(len(first_N)), first_N])
    if len(x_NCHW.shape) == 4:
        pairs = torch.cat([pairs, near_copies(x_NCHW, first_N.unique())], 1)
    graph = coo_array((torch.ones(pairs.shape[1]), (pairs[0], pairs[1])), shape=(n, n))
    group_N = torch.from_numpy(connected_components(graph, directed=False)[1]).long()
    group_N = torch.where(torch.bincount(group_N)[group_N] > max(n // CROWD, CROWD), n + first_N, group_N)
    return group_N.to(x_NCHW.device) if len(group_N.unique()) < n else None


def near_copies(x_NCHW: Tensor, of_M: Tensor) -> Tensor:
    """Pairs (2, P) among the images ``of`` (M,) whose pixels correlate by more than :data:`NEAR`, apart from what all
    images have in common: those of one picture that was compressed, resized or brightened (our choice).

    Compared are each image and the nearest ones along the directions in which images differ most; those of one
    brightness are left out.
    """
    from scipy.spatial import cKDTree

    height, width = (min(SIDE, side) for side in x_NCHW.shape[2:])
    z_MD = averaged(x_NCHW, (height, width)).flatten(1).cpu()[of_M]
    z_MD = z_MD - z_MD.mean(1, keepdim=True)
    of_M, z_MD = (t[z_MD.norm(dim=1) > 1e-3] for t in (of_M, z_MD))
    if len(of_M) < 2:
        return torch.empty(2, 0, dtype=torch.long)
    z_MD = normalize(z_MD)
    z_MD = normalize(z_MD - z_MD.mean(0))
    most = torch.linalg.eigh(z_MD.T @ z_MD)[1][:, -DIRECTIONS:]
    places = (z_MD @ most).numpy()
    radius = (2 - 2 * NEAR) ** 0.5
    near_ME = torch.from_numpy(cKDTree(places).query(places, NEIGHBOURS, distance_upper_bound=radius)[1])
    a_P, e_P = (near_ME < len(of_M)).nonzero().T
    b_P = near_ME[a_P, e_P]
    near_P = (z_MD[a_P] * z_MD[b_P]).sum(1) > NEAR
    return of_M[torch.stack([a_P, b_P])[:, near_P]]
