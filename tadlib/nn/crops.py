"""Crops of any size, and mosaics of patches.

Legend: N samples, B batch, J crops, C H W image. Generators are on the device of the images.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

TRIES = 10  # of a crop that may not fit into the image, as in torchvision


def random_crops(image_CHW: Tensor, n: int, side: int, generator: torch.Generator) -> Tensor:
    """``n`` square crops (J, C, side, side) of one image, of a share of its area drawn from [.08, 1], resized.

    torchvision's RandomResizedCrop with ratio 1; a crop that exceeds the short side is cut to it (our choice).
    """
    height, width = image_CHW.shape[1:]
    share_J, top_J, left_J = torch.rand(3, n, generator=generator, device=generator.device).cpu()
    size_J = ((0.08 + 0.92 * share_J) * height * width).sqrt().round().long().clamp(1, min(height, width))
    crops = []
    for size, top, left in zip(size_J.tolist(), top_J.tolist(), left_J.tolist()):
        t, u = int(top * (height - size + 1)), int(left * (width - size + 1))
        crops.append(resized(image_CHW[None, :, t : t + size, u : u + size], side))
    return torch.cat(crops)


def resized(x_NCHW: Tensor, side: int) -> Tensor:
    """Images resized to ``side`` × ``side``, bilinearly, without aliasing."""
    if x_NCHW.shape[2:] == (side, side):
        return x_NCHW
    return F.interpolate(x_NCHW, (side, side), mode="bilinear", antialias=True, align_corners=False)


def padded(x_NCHW: Tensor, side: int) -> Tensor:
    """Images in the middle of ``side`` × ``side`` zeros, which is the mean of normalised images."""
    rows, columns = side - x_NCHW.shape[2], side - x_NCHW.shape[3]
    return F.pad(x_NCHW, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


def mosaic(patches_MCHW: Tensor, factor: int) -> Tensor:
    """Images (N, C, factor·H, factor·W) of factor² patches each: one image after the other, its patches row by row."""
    parts = patches_MCHW.unflatten(0, (-1, factor, factor))  # N f f C H W
    return parts.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def patches(x_NCHW: Tensor, factor: int) -> Tensor:
    """The inverse of :func:`mosaic`: patches (N·factor², C, H / factor, W / factor)."""
    parts = x_NCHW.unflatten(3, (factor, -1)).unflatten(2, (factor, -1))  # N C f H f W
    return parts.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def decode(x_NCHW: Tensor, factor: int) -> Tensor:
    """The patches of mosaics, enlarged bilinearly to full size (N·factor², C, H, W): what networks see of a set with
    multi-formation (IDC; Kim et al., ICML 2022). Linear in the pixels."""
    if factor == 1:
        return x_NCHW
    return F.interpolate(patches(x_NCHW, factor), x_NCHW.shape[2:], mode="bilinear", align_corners=False)


def shuffled(x_NCHW: Tensor, factor: int, generator: torch.Generator) -> Tensor:
    """Images whose factor² patches change places, in each image in an order of its own."""
    if factor == 1:
        return x_NCHW
    n, count = len(x_NCHW), factor**2
    order_NQ = torch.rand(n, count, generator=generator, device=generator.device).argsort(1)
    first_N1 = count * torch.arange(n, device=order_NQ.device)[:, None]
    return mosaic(patches(x_NCHW, factor)[(first_N1 + order_NQ).flatten()], factor)


def resized_crops(x_NCHW: Tensor, least: float, generator: torch.Generator) -> Tensor:
    """One random crop of every image at the size of the image: area from [least, 1], ratio from [3/4, 4/3].

    torchvision's RandomResizedCrop: the first of ten crops that fits; if none does, the whole image. At ``least`` 1
    that is nearly always the whole image. A crop is no larger than the image, so no aliasing can occur.
    """
    n = len(x_NCHW)
    share_NT, exponent_NT = torch.rand(2, n, TRIES, generator=generator, device=generator.device)
    area_NT, ratio_NT = least + (1 - least) * share_NT, (4 / 3) ** (2 * exponent_NT - 1)
    size_NT2 = torch.stack([(area_NT * ratio_NT).sqrt(), (area_NT / ratio_NT).sqrt()], 2)  # width, height
    fits_NT = (size_NT2 <= 1).all(2)
    first_N = fits_NT.int().argmax(1)
    size_N2 = torch.where(fits_NT.any(1)[:, None], size_NT2[torch.arange(n, device=first_N.device), first_N], 1.0)
    place_N2 = torch.rand(n, 2, generator=generator, device=generator.device)
    centre_N2 = (2 * place_N2 - 1) * (1 - size_N2)
    affine_N23 = torch.cat([torch.diag_embed(size_N2), centre_N2[:, :, None]], 2).to(x_NCHW.dtype)
    grid = F.affine_grid(affine_N23, list(x_NCHW.shape), align_corners=False)
    return F.grid_sample(x_NCHW, grid, mode="bilinear", padding_mode="border", align_corners=False)


def flipped(x_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Each image, or its mirror image with probability ½."""
    flip_N = torch.rand(len(x_NCHW), generator=generator, device=generator.device) < 0.5
    return torch.where(flip_N[:, None, None, None], x_NCHW.flip(3), x_NCHW)
