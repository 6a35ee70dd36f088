"""The synthetic set: how it starts, and what it is when it is done.

Legend: N samples, S synthetic images, K classes, C H W image.
"""

from dataclasses import dataclass

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


def real_images(
    x_NCHW: Tensor, y_NK: Tensor, w_N: Tensor, ipc: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """``ipc`` real images of every class, by their label in use, drawn in proportion to weight without replacement.

    Returns images (S, C, H, W) ordered by class, and one-hot labels (S, K).

    Raises:
        InputError: when a class has fewer than ``ipc`` images of positive weight.
    """
    label_N, n_classes = y_NK.argmax(1), y_NK.shape[1]
    require(ipc >= 1, f"ipc must be at least 1, got {ipc}")
    chosen = []
    for k in range(n_classes):
        weight_N = torch.where(label_N == k, w_N, 0.0)
        available = int((weight_N > 0).sum())
        require(available >= ipc, f"ipc must not exceed the images of a class: class {k} has {available}, got {ipc}")
        chosen.append(torch.multinomial(weight_N, ipc, generator=generator))
    index_S = torch.cat(chosen)
    y_SK = torch.eye(n_classes, dtype=y_NK.dtype, device=y_NK.device).repeat_interleave(ipc, 0)
    return x_NCHW[index_S].clone(), y_SK
