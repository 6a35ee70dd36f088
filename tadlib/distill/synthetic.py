"""The synthetic set, and the real images that methods draw.

Legend: N samples, S synthetic images, K classes, C H W image, B batch.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tadlib.errors import require


@dataclass(frozen=True)
class Synthetic:
    """Images ``x`` (S, C, H, W), normalised as the data set; label distributions ``y`` (S, K); learning rate ``lr``."""

    x: Tensor
    y: Tensor
    lr: float

    def to(self, device: torch.device | str) -> "Synthetic":
        """The same set on ``device``."""
        return Synthetic(self.x.to(device), self.y.to(device), self.lr)


@dataclass(frozen=True)
class Real:
    """The refined set as methods draw from it, by the hard training labels.

    ``x`` (N, C, H, W); ``label`` (N,); ``chance`` (N,) of a sample among those of its class, up to a factor;
    ``counts`` of samples with a chance, class by class (counted once, because a count at every draw would wait for the
    GPU).
    """

    x: Tensor
    label: Tensor
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
        return Real(x_NCHW, label_N, chance_N, y_NK.shape[1])

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

    def choose(self, ipc: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``ipc`` images of every class (S, C, H, W), ordered by class, and one-hot labels (S, K).

        Raises:
            InputError: as :meth:`enough`.
        """
        self.enough(ipc)
        index_S = torch.cat([self.draw(k, ipc, generator) for k in range(self.n_classes)])
        y_SK = torch.eye(self.n_classes, dtype=self.x.dtype, device=self.x.device).repeat_interleave(ipc, 0)
        return self.x[index_S].clone(), y_SK
