"""The synthetic set, multi-formation, and the real images that methods draw.

Legend: N samples, S synthetic images, K classes, C H W image, B batch.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from tadlib.errors import require


def divisible(shape: tuple[int, ...], formation: int) -> None:
    """InputError unless ``formation`` divides both sides of images of ``shape`` (…, H, W)."""
    height, width = shape[-2:]
    divides = height % formation == 0 == width % formation
    require(divides, f"formation must divide the sides of {height}x{width} images, got {formation}")


def decode(x_SCHW: Tensor, formation: int) -> Tensor:
    """Images (S f², C, H, W) that a network sees: the f x f parts of every stored one, row by row, enlarged bilinearly
    (IDC; Kim et al., ICML 2022, multi-formation); linear in the pixels."""
    if formation == 1:
        return x_SCHW
    height, width = x_SCHW.shape[2:]
    parts = x_SCHW.unflatten(3, (formation, -1)).unflatten(2, (formation, -1))  # S C f h f w
    parts_SCHW = parts.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    return interpolate(parts_SCHW, (height, width), mode="bilinear", align_corners=False)


def mosaic(x_NCHW: Tensor, formation: int) -> Tensor:
    """Stored images (N / f², C, H, W), each of f² images, made smaller by averaging f x f pixels (our choice; IDC drops
    pixels)."""
    if formation == 1:
        return x_NCHW
    parts = avg_pool2d(x_NCHW, formation).unflatten(0, (-1, formation, formation))  # S f f C h w
    return parts.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


@dataclass(frozen=True)
class Synthetic:
    """Images ``x`` (S, C, H, W), normalised as the data set; label distributions ``y`` (S, K); learning rate ``lr``.

    Images of a ``formation`` f above 1 are stored: each holds f² (:func:`decode`), which share its label.
    """

    x: Tensor
    y: Tensor
    lr: float
    formation: int = 1

    def to(self, device: torch.device | str) -> "Synthetic":
        """The same set on ``device``."""
        return replace(self, x=self.x.to(device), y=self.y.to(device))

    def decoded(self) -> "Synthetic":
        """The set that networks are trained on, of formation 1."""
        x_SCHW, y_SK = decode(self.x, self.formation), self.y.repeat_interleave(self.formation**2, 0)
        return replace(self, x=x_SCHW, y=y_SK, formation=1)


@dataclass(frozen=True)
class Real:
    """The refined set as methods draw from it, by the hard training labels.

    ``x`` (N, C, H, W); ``label`` (N,); ``weight`` (N,) of a sample as one of its class: its trust; ``chance`` (N,)
    among those of its class, up to a factor; ``counts`` of samples with a chance, class by class (counted once, because
    a count at every draw would wait for the GPU).
    """

    x: Tensor
    label: Tensor
    weight: Tensor
    chance: Tensor
    n_classes: int
    counts: tuple[int, ...] = field(init=False)

    def __post_init__(self):
        counts_K = torch.bincount(self.label[self.chance > 0], minlength=self.n_classes)
        object.__setattr__(self, "counts", tuple(counts_K.tolist()))

    @staticmethod
    def of(x_NCHW: Tensor, y_NK: Tensor, w_N: Tensor, power: float) -> "Real":
        """From images, label distributions and weights; the hard training label is the most likely one."""
        mass_N, label_N = (w_N[:, None] * y_NK).max(1)
        chance_N = torch.where(w_N > 0, (mass_N**power).clamp_min(1e-30), 0.0)  # any of positive weight can be drawn
        return Real(x_NCHW, label_N, mass_N, chance_N, y_NK.shape[1])

    def draw(self, k: int, n: int, generator: torch.Generator) -> Tensor:
        """Indices (B,) of ``n`` samples of class ``k``, or of all where there are fewer, without replacement."""
        chance_N = torch.where(self.label == k, self.chance, 0.0)
        return torch.multinomial(chance_N, min(n, self.counts[k]), generator=generator)

    def enough(self, ipc: int) -> None:
        """Raises InputError when a class has fewer than ``ipc`` images of positive weight."""
        require(ipc >= 1, f"ipc must be at least 1, got {ipc}")
        least = min(range(self.n_classes), key=self.counts.__getitem__)
        require(
            self.counts[least] >= ipc,
            f"ipc must not exceed the images of a class: class {least} has {self.counts[least]}, got {ipc}",
        )

    def choose(self, ipc: int, generator: torch.Generator, formation: int = 1) -> tuple[Tensor, Tensor]:
        """``ipc`` images of every class (S, C, H, W), ordered by class, and one-hot labels (S, K).

        With a ``formation`` f, each is a mosaic of f² images; a class that has too few for that repeats some.

        Raises:
            InputError: as :meth:`enough`, and unless f divides the sides.
        """
        self.enough(ipc)
        divisible(self.x.shape, formation)
        n = ipc * formation**2
        drawn = (self.draw(k, n, generator).repeat(formation**2)[:n] for k in range(self.n_classes))
        y_SK = torch.eye(self.n_classes, dtype=self.x.dtype, device=self.x.device).repeat_interleave(ipc, 0)
        return mosaic(self.x[torch.cat(list(drawn))], formation).clone(), y_SK
