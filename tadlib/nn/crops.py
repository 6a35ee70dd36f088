"""Crops of any size, mosaics of patches, and CutMix: what distillers for large images do to images.

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
    """Images of factor² patches each: quadrant q of image n, row by row, is patch q·N + n, as in RDED's code."""
    n = len(patches_MCHW) // factor**2
    rows = [torch.cat(tuple(patches_MCHW[q * n : (q + factor) * n].split(n)), 3) for q in range(0, factor**2, factor)]
    return torch.cat(rows, 2)


def patches(x_NCHW: Tensor, factor: int) -> Tensor:
    """The inverse of :func:`mosaic`: patches (factor²·N, C, H / factor, W / factor)."""
    return torch.cat([part for row in x_NCHW.chunk(factor, 2) for part in row.chunk(factor, 3)])


def decode(x_NCHW: Tensor, factor: int) -> Tensor:
    """The patches of mosaics in the order of :func:`patches`, enlarged bilinearly to full size (factor²·N, C, H, W)."""
    return F.interpolate(patches(x_NCHW, factor), x_NCHW.shape[2:], mode="bilinear", align_corners=False)


def shuffled(x_NCHW: Tensor, factor: int, generator: torch.Generator) -> Tensor:
    """Images whose factor² patches change places, in each image in an order of its own."""
    if factor == 1:
        return x_NCHW
    n, count = len(x_NCHW), factor**2
    order_NQ = torch.rand(n, count, generator=generator, device=generator.device).argsort(1)
    parts = patches(x_NCHW, factor).unflatten(0, (count, n))
    moved = parts[order_NQ.T, torch.arange(n, device=parts.device)]
    return mosaic(moved.flatten(0, 1), factor)


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


def cutmix(x_NCHW: Tensor, y_NK: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """CutMix (Yun et al. 2019) with one box for the batch, of an area uniform in [0, 1] before it is cut at the border.

    Returns images, and labels mixed by area.
    """
    n, height, width = len(x_NCHW), *x_NCHW.shape[2:]
    order_N = torch.randperm(n, generator=generator, device=generator.device)
    side, row, column = torch.rand(3, generator=generator, device=generator.device).tolist()
    side = side**0.5
    top, bottom = (int(min(max(row + s * side / 2, 0), 1) * height) for s in (-1, 1))
    left, right = (int(min(max(column + s * side / 2, 0), 1) * width) for s in (-1, 1))
    mixed = x_NCHW.clone()
    mixed[:, :, top:bottom, left:right] = x_NCHW[order_N, :, top:bottom, left:right]
    share = (bottom - top) * (right - left) / (height * width)
    return mixed, (1 - share) * y_NK + share * y_NK[order_N]
