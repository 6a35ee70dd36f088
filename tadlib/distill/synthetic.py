"""The synthetic set, multi-formation, and the real images that methods draw.

Legend: N samples, S synthetic images, K classes, C H W image, B batch.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from tadlib.errors import require
from tadlib.nn.crops import decode, mosaic


def divisible(shape: tuple[int, ...], factor: int, name: str = "formation") -> None:
    """InputError, which gives ``factor`` its name, unless it divides both sides of images of ``shape`` (…, H, W)."""
    height, width = shape[-2:]
    divides = height % factor == 0 == width % factor
    require(divides, f"{name} must divide the sides of {height}x{width} images, got {factor}")


@dataclass(frozen=True)
class Synthetic:
    """Images ``x`` (S, C, H, W), normalised as the data set; label distributions ``y`` (S, K); learning rate ``lr``.

    Images of a ``formation`` f above 1 are stored: each holds f² (:func:`tadlib.nn.crops.decode`), which share its
    label.
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

    ``x`` (N, C, H, W); ``y`` (N, K) label distributions; ``label`` (N,), the most likely one; ``weight`` (N,) of a
    sample as one of its class: its trust; ``chance`` (N,) among those of its class, up to a factor; ``counts`` of
    samples with a chance, class by class (counted once, because a count at every draw would wait for the GPU).
    """

    x: Tensor
    y: Tensor
    label: Tensor
    weight: Tensor
    chance: Tensor
    counts: tuple[int, ...] = field(init=False)

    def __post_init__(self):
        counts_K = torch.bincount(self.label[self.chance > 0], minlength=self.n_classes)
        object.__setattr__(self, "counts", tuple(counts_K.tolist()))

    @property
    def n_classes(self) -> int:
        """K."""
        return self.y.shape[1]

    @staticmethod
    def of(x_NCHW: Tensor, y_NK: Tensor, w_N: Tensor, power: float) -> "Real":
        """From images, label distributions and weights."""
        mass_N, label_N = (w_N[:, None] * y_NK).max(1)
        chance_N = torch.where(w_N > 0, (mass_N**power).clamp_min(1e-30), 0.0)  # any of positive weight can be drawn
        return Real(x_NCHW, y_NK, label_N, mass_N, chance_N)

    def draw(self, k: int, n: int, generator: torch.Generator) -> Tensor:
        """Indices (B,) of ``n`` samples of class ``k``, or of all where there are fewer, without replacement."""
        chance_N = torch.where(self.label == k, self.chance, 0.0)
        return torch.multinomial(chance_N, min(n, self.counts[k]), generator=generator)

    def enough(self, ipc: int) -> None:
        """Raises InputError when a class has fewer than ``ipc`` images of positive weight."""
        require(isinstance(ipc, int) and ipc >= 1, f"ipc must be a whole number, at least 1, got {ipc!r}")
        least = min(range(self.n_classes), key=self.counts.__getitem__)
        require(
            self.counts[least] >= ipc,
            f"ipc must not exceed the images of a class: class {least} has {self.counts[least]}, got {ipc}",
        )

    def choose(self, ipc: int, generator: torch.Generator, formation: int = 1) -> tuple[Tensor, Tensor]:
        """``ipc`` images of every class (S, C, H, W), ordered by class, and one-hot labels (S, K).

        With a ``formation`` f, each is a mosaic of f² images, made smaller by averaging f x f pixels (our choice; IDC
        drops pixels); a class that has too few for that repeats some. InputError as of :meth:`enough`, and unless f
        divides the sides.
        """
        self.enough(ipc)
        divisible(self.x.shape, formation)
        n = ipc * formation**2
        drawn = (self.draw(k, n, generator).repeat(formation**2)[:n] for k in range(self.n_classes))
        y_SK = torch.eye(self.n_classes, dtype=self.x.dtype, device=self.x.device).repeat_interleave(ipc, 0)
        small = avg_pool2d(self.x[torch.cat(list(drawn))], formation)
        return mosaic(small, formation).contiguous(), y_SK
