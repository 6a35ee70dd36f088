"""Images of any size that are held as bytes, or on disk, and become floats where they are used.

Legend: N samples, B batch, C H W image, h w image before resizing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tadlib.nn.crops import resized


@dataclass(frozen=True, eq=False)
class Images:
    """Indexed like the float tensor (N, C, side, side) that they stand for: ``images[index_B]`` makes a batch.

    ``source`` gives image i as uint8 (C, h, w): a tensor, a list, or anything with ``source[i]`` and ``len(source)``
    that reads it from a disk. Batches are resized without aliasing, their longer side cut at both ends, and normalised
    by ``mean`` and ``std``; :meth:`whole` gives an image at its own size.
    """

    source: Sequence[Tensor] | Tensor
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device = torch.device("cpu")

    def whole(self, i: int) -> Tensor:
        """Image ``i`` normalised, (C, h, w)."""
        image_Chw = self.source[i].to(self.device).float() / 255
        mean, std = (image_Chw.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (image_Chw - mean) / std

    def __getitem__(self, index_B: Tensor) -> Tensor:
        return torch.stack([self._square(i) for i in index_B.tolist()])

    def _square(self, i: int) -> Tensor:
        image_Chw = self.whole(i)
        height, width = image_Chw.shape[1:]
        short = min(height, width)
        top, left = (height - short) // 2, (width - short) // 2
        return resized(image_Chw[None, :, top : top + short, left : left + short], self.side)[0]

    def __len__(self) -> int:
        return len(self.source)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, side, side)"""
        return len(self), len(self.mean), self.side, self.side

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def split(self, size: int) -> Iterator[Tensor]:
        """All images in batches of ``size``, one after the other, as a tensor's ``split``."""
        return (self[index_B] for index_B in torch.arange(len(self)).split(size))


def whole(x: Tensor | Images, i: int) -> Tensor:
    """Image ``i`` of a tensor or of :class:`Images`, normalised, at its own size (C, h, w)."""
    return x.whole(i) if isinstance(x, Images) else x[i]
