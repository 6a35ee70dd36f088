"""Differentiable Siamese augmentation (DSA; Zhao & Bilen 2021), as pure functions of sampled parameters, and CutMix.

Legend: N samples, K classes, C H W image.

``draw`` samples one operation for the whole batch and its parameters for every sample; ``apply`` carries it out.
Every operation is affine in the image once its parameters are fixed, so its pull-back is a plain vjp and a stored
draw replays the same transformation (see :mod:`tadlib.matching`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tadlib.errors import known, require
from tadlib.rng import derive_seed

# strengths as in DSA's published strategy color_crop_cutout_flip_scale_rotate
SCALE, ROTATE_DEGREES, CROP_RATIO, CUTOUT_RATIO = 1.2, 15.0, 0.125, 0.5
BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5


@dataclass(frozen=True)
class Draw:
    """One sampled operation for a batch: its name and one row of parameters per sample (N, ·)."""

    op: str
    params: Tensor


def _warp(x_NCHW: Tensor, matrix_N22: Tensor) -> Tensor:
    """Resample with zero padding through 2x2 matrices about the image centre."""
    affine_N23 = F.pad(matrix_N22, (0, 1))
    grid = F.affine_grid(affine_N23, list(x_NCHW.shape), align_corners=False)
    return F.grid_sample(x_NCHW, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _rotate(x: Tensor, p: Tensor) -> Tensor:
    angle_N = torch.deg2rad(p[:, 0].to(x.dtype))
    cos, sin = angle_N.cos(), angle_N.sin()
    ratio = x.shape[2] / x.shape[3]  # grid coordinates are relative to each side
    row = [torch.stack([cos, -sin * ratio], 1), torch.stack([sin / ratio, cos], 1)]
    return _warp(x, torch.stack(row, 1))


def _crop(x: Tensor, p: Tensor) -> Tensor:
    """Shift by whole pixels, zeros moving in: what padding and cropping back amounts to."""
    n, _, height, width = x.shape
    reach_h, reach_w = int(height * CROP_RATIO + 0.5), int(width * CROP_RATIO + 0.5)
    shift = torch.stack([p[:, 0] * (2 * reach_h + 1), p[:, 1] * (2 * reach_w + 1)], 1).floor().long()
    padded = F.pad(x, (reach_w, reach_w, reach_h, reach_h))
    rows = shift[:, :1] + torch.arange(height, device=x.device)
    columns = shift[:, 1:] + torch.arange(width, device=x.device)
    image = torch.arange(n, device=x.device)[:, None, None]
    return padded[image, :, rows[:, :, None], columns[:, None, :]].movedim(3, 1)


def _cutout(x: Tensor, p: Tensor) -> Tensor:
    """Zero a square of half the side whose centre is anywhere in the image."""
    height, width = x.shape[2:]

    def covered(side: int, u_N1: Tensor) -> Tensor:
        size = int(side * CUTOUT_RATIO + 0.5)
        start = (u_N1 * (side + (1 - size % 2))).floor() - size // 2
        place = torch.arange(side, device=x.device)
        return (place >= start) & (place < start + size)

    hole = covered(height, p[:, :1])[:, :, None] & covered(width, p[:, 1:])[:, None, :]
    return x * ~hole[:, None]


def _mix(x: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    return (x - mean) * factor[:, :, None, None].to(x.dtype) + mean


# name -> (number of parameters, low, high, operation)
OPERATIONS: dict[str, tuple[int, float, float, Callable[[Tensor, Tensor], Tensor]]] = {
    "flip": (1, 0.0, 1.0, lambda x, p: torch.where((p < 0.5)[:, :, None, None], x.flip(3), x)),
    "scale": (2, 1 / SCALE, SCALE, lambda x, p: _warp(x, torch.diag_embed(p.to(x.dtype)))),
    "rotate": (1, -ROTATE_DEGREES, ROTATE_DEGREES, _rotate),
    "crop": (2, 0.0, 1.0, _crop),
    "cutout": (2, 0.0, 1.0, _cutout),
    "brightness": (1, -0.5, 0.5, lambda x, p: x + (p[:, :, None, None] * BRIGHTNESS).to(x.dtype)),
    "saturation": (1, 0.0, 1.0, lambda x, p: _mix(x, x.mean(1, keepdim=True), p * SATURATION)),
    "contrast": (1, 0.0, 1.0, lambda x, p: _mix(x, x.mean((1, 2, 3), keepdim=True), p + CONTRAST)),
}
COLOR = ("brightness", "saturation", "contrast")


def operations(strategy: str) -> tuple[tuple[str, ...], ...]:
    """The choices of a DSA strategy string such as ``color_crop_flip``; ``none`` or an empty string is no choice.

    "color" is one choice that carries out brightness, saturation and contrast one after the other, as DSA does.
    """
    names = [] if strategy in ("", "none") else strategy.split("_")
    for name in names:
        known("augmentation", name, [*OPERATIONS, "color"])
    return tuple(COLOR if name == "color" else (name,) for name in names)


def draw(strategy: str, n: int, generator: torch.Generator) -> tuple[Draw, ...]:
    """Sample one choice of ``strategy`` for a batch of ``n`` images, parameters per sample (DSA's mode S).

    Parameters live on the generator's device. Without a choice the draw is empty and ``apply`` is the identity.
    """
    require(n >= 1, f"a batch needs at least one image, got {n}")
    if not (choices := operations(strategy)):
        return ()

    def drawn(op: str) -> Draw:
        m, low, high, _ = OPERATIONS[op]
        return Draw(op, low + (high - low) * torch.rand(n, m, generator=generator, device=generator.device))

    return tuple(map(drawn, choices[_below(len(choices), generator)]))


def _below(n: int, generator: torch.Generator) -> int:
    """A random integer in [0, n). On a GPU it is a hash of the generator's state: drawing a number there would make the
    host wait for the device, and then the device for the host."""
    if generator.device.type == "cpu":
        return int(torch.randint(n, (), generator=generator))
    return derive_seed(generator.initial_seed(), generator.get_offset()) % n


def apply(draws: tuple[Draw, ...], x_NCHW: Tensor) -> Tensor:
    """Carry out ``draws`` on images (N, C, H, W): drawn for N images, or for one, whose parameters all then share."""
    for d in draws:
        x_NCHW = OPERATIONS[d.op][3](x_NCHW, d.params.expand(len(x_NCHW), -1))
    return x_NCHW


def cutmix(
    x_NCHW: Tensor, y_NK: Tensor, w_N: Tensor, chance: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Images, label distributions and weights of a batch mixed by CutMix (Yun et al., ICCV 2019) with probability
    ``chance``: a box of every image comes from another one, and the two labels are mixed by area.

    The box, the same for all, has the share 1 − λ of the image, λ uniform, and its centre anywhere in it. Labels count
    by their weights.
    """
    height, width = x_NCHW.shape[2:]
    share, mixed, *centre = torch.rand(4, generator=generator, device=generator.device).unbind()
    other = torch.randperm(len(x_NCHW), generator=generator, device=generator.device)
    ratio = share.sqrt() * (mixed < chance)  # of the sides; nothing here waits for a GPU

    def covered(side: int, u: Tensor) -> Tensor:
        size = (ratio * side).floor()
        place = torch.arange(side, device=x_NCHW.device) - (u * side).floor() + (size / 2).floor()
        return (place >= 0) & (place < size)

    box_HW = covered(height, centre[0])[:, None] & covered(width, centre[1])
    cut = box_HW.to(y_NK.dtype).mean()
    mass_NK = w_N[:, None] * y_NK
    mass_NK = torch.lerp(mass_NK, mass_NK[other], cut)
    total_N = mass_NK.sum(1)
    return torch.where(box_HW, x_NCHW[other], x_NCHW), mass_NK / total_N.clamp_min(1e-12)[:, None], total_N
