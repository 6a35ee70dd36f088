"""Random: real images of the refined set as they are, the baseline of every table.

They are chosen as the other methods choose the images they start from: by label in use, the surest more often
(:class:`tadlib.distill.synthetic.Drawing`).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tadlib.distill.loop import Loop, driver, start_from_real
from tadlib.distill.synthetic import Drawing, Real
from tadlib.errors import require
from tadlib.nn.networks import Network
from tadlib.rng import generator


@dataclass(frozen=True)
class RandomConfig(Drawing):
    """Settings of the baseline."""

    iterations: ClassVar[int] = 0
    lr_net: float = 0.01  # for networks that are trained on the images (DC's evaluation)

    def __post_init__(self):
        require(self.lr_net > 0, f"lr_net must be positive, got {self.lr_net}")


def start(net: Network, x_NCHW: Tensor, y_NK: Tensor, w_N: Tensor, experts, config: RandomConfig, *, ipc, seed) -> Loop:
    """Choose the images; ``experts`` are not used.

    Raises:
        InputError: when a class has fewer than ``ipc`` usable images.
    """
    random = generator(seed, "random", device=x_NCHW.device)
    return start_from_real(net, Real.of(x_NCHW, y_NK, w_N, config.draw_power), config, random, ipc=ipc)


def advance(loop: Loop) -> None:
    """Nothing is learned."""


distill = driver(start, advance)
