"""Random: real images of the refined set as they are, the baseline of every table.

They are chosen as the other methods choose the images they start from: by label in use, the surest more often
(:class:`tadlib.distill.synthetic.Drawing`).
"""

from torch import Tensor

from tadlib.config import RandomConfig
from tadlib.distill.loop import Loop, driver, start_from_real
from tadlib.distill.synthetic import Real
from tadlib.nn.networks import Network
from tadlib.rng import generator


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
