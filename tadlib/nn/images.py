"""Images of any size that are held as bytes, or on disk, and become floats where they are used.

Legend: N samples, B batch, C H W image, h w image before resizing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from tadlib.nn.crops import resized

BATCH = 256  # images that become floats at a time where all are read


@dataclass(frozen=True, eq=False)
class Images:
    """Indexed like the float tensor (N, C, side, side) that they stand for: ``images[index_B]`` makes a batch.

    ``source`` gives image i as uint8 (C, h, w): a tensor, a list, or anything with ``source[i]`` and ``len(source)``
    that reads it from a disk. With ``places`` (N,), image i is ``source[places[i]]``, so that splits share one source.
    Batches are resized without aliasing, their longer side cut at both ends, and normalised by ``mean`` and ``std``;
    :meth:`whole` gives an image at its own size.
    """

    source: Sequence[Tensor] | Tensor
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device = torch.device("cpu")
    places: Tensor | None = None
    dtype: ClassVar[torch.dtype] = torch.float32

    def whole(self, i: int) -> Tensor:
        """Image ``i`` normalised, (C, h, w)."""
        return self._normalised(self.source[i if self.places is None else int(self.places[i])])

    def __getitem__(self, index_B: Tensor | slice) -> Tensor:
        if isinstance(self.source, Tensor):
            index_B = index_B if self.places is None else self.places[index_B]
            return self._squares(self._normalised(self.source[index_B]))
        places = range(len(self))[index_B] if isinstance(index_B, slice) else index_B.tolist()
        return torch.cat([self._squares(self.whole(i)[None]) for i in places])

    @cached_property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        """``mean`` and ``std`` (C, 1, 1), moved to the device once, for that makes a GPU wait."""
        mean, std = (torch.tensor(values, device=self.device)[:, None, None] for values in (self.mean, self.std))
        return mean, std

    def _normalised(self, x_Chw: Tensor) -> Tensor:
        mean, std = self._statistics
        return (x_Chw.to(self.device).float() / 255).sub_(mean).div_(std)

    def _squares(self, x_NChw: Tensor) -> Tensor:
        height, width = x_NChw.shape[2:]
        short = min(height, width)
        top, left = (height - short) // 2, (width - short) // 2
        return resized(x_NChw[:, :, top : top + short, left : left + short], self.side)

    def __len__(self) -> int:
        return len(self.source if self.places is None else self.places)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, side, side)"""
        return len(self), len(self.mean), self.side, self.side

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def to(self, device: torch.device | str) -> "Images":
        """The same images, whose batches are made on ``device``, with the bytes there where they are one tensor."""
        target = torch.device(device)
        if not isinstance(self.source, Tensor) or target == self.device:
            return replace(self, device=target)
        source = self.source if self.places is None else self.source[self.places]
        return replace(self, source=source.to(target), device=target, places=None)

    def split(self, size: int) -> Iterator[Tensor]:
        """All images in batches of ``size``, one after the other, as a tensor's ``split``."""
        return (self[i : i + size] for i in range(0, len(self), size))


def averaged(x: Tensor | Images, size: tuple[int, int]) -> Tensor:
    """All images averaged down to ``size``, (N, C, height, width), of which a batch at a time is held as floats."""
    return torch.cat([adaptive_avg_pool2d(x_BCHW, size) for x_BCHW in x.split(BATCH)])


def whole(x: Tensor | Images, i: int) -> Tensor:
    """Image ``i`` of a tensor or of :class:`Images`, normalised, at its own size (C, h, w)."""
    return x.whole(i) if isinstance(x, Images) else x[i]
