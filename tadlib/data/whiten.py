"""ZCA whitening, as MTT, TESLA and DATM prepare images, and its inverse, so that what is distilled can be seen.

Legend: N samples, C H W image, D = C·H·W pixels.

Fitted on training pixels in [0, 1], not normalised by mean or standard deviation:

    Σ = 1/(N − 1) Σ_i (x_i − x̄)(x_i − x̄)ᵀ = U S Uᵀ,   T = U (S + ε)^(−½) Uᵀ,   T⁻¹ = U (S + ε)^(½) Uᵀ

An image whitens to T (x − x̄). ε = .1 dampens directions with little variance (the value of those codes).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tadlib.errors import require

EPSILON = 0.1
MOST = 2**14  # D; the covariance of three channels of 64x64 pixels takes 1.2 GB
CHUNK = 5000  # images turned into float64 at a time


@dataclass(frozen=True, eq=False)
class Whitening:
    """A fitted whitening: ``mean`` (D,), ``matrix`` T (D, D) and ``inverse`` T⁻¹ (D, D), in float32."""

    mean: Tensor
    matrix: Tensor
    inverse: Tensor

    def apply(self, pixels_NCHW: Tensor) -> Tensor:
        """Whitened images of pixels in [0, 1]."""
        flat_ND = pixels_NCHW.flatten(1) - self.mean.to(pixels_NCHW)
        return (flat_ND @ self.matrix.to(pixels_NCHW)).view_as(pixels_NCHW)  # T is symmetric

    def undo(self, x_NCHW: Tensor) -> Tensor:
        """Pixels of whitened images, unclamped."""
        return (x_NCHW.flatten(1) @ self.inverse.to(x_NCHW) + self.mean.to(x_NCHW)).view_as(x_NCHW)


def fit(pixels_NCHW: Tensor, epsilon: float = EPSILON) -> Whitening:
    """Fit the whitening to pixels in [0, 1], in float64 on their device.

    The cost is that of a D × D covariance and its eigenvectors: about a minute on one core for CIFAR's D = 3072.
    InputError for fewer than two images, an ``epsilon`` that is not positive, and D above :data:`MOST`.
    """
    require(len(pixels_NCHW) >= 2, f"whitening needs at least 2 images, got {len(pixels_NCHW)}")
    require(epsilon > 0, f"epsilon must be positive, got {epsilon}")
    flat_ND = pixels_NCHW.flatten(1)
    most = f"whitening (zca) takes the square of an image's size; it must have at most {MOST} values"
    require(flat_ND.shape[1] <= MOST, f"{most}, got {tuple(pixels_NCHW.shape[1:])}")
    mean_D = flat_ND.mean(0, dtype=torch.float64)
    covariance_DD = torch.zeros(len(mean_D), len(mean_D), dtype=torch.float64, device=flat_ND.device)
    for chunk_ND in flat_ND.split(CHUNK):
        centred_ND = chunk_ND.double() - mean_D
        covariance_DD.addmm_(centred_ND.T, centred_ND)
    variance_D, u_DD = torch.linalg.eigh(covariance_DD / (len(flat_ND) - 1))
    root_D = (variance_D.clamp_min(0) + epsilon).sqrt()
    matrix_DD, inverse_DD = ((u_DD * scale_D) @ u_DD.T for scale_D in (1 / root_D, root_D))
    return Whitening(mean_D.float(), matrix_DD.float(), inverse_DD.float())
