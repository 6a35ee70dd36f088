"""FTD: trajectory matching on flat experts (Du et al., CVPR 2023).

MTT's loop. The experts are trained to lie in flat regions (sharpness-aware, ``expert_rho`` and ``expert_alpha``), so
that the student's error at the end of one segment matters less at the start of the next; the distilled images are a
moving average of the learned ones.
"""

from tadlib.distill import mtt
from tadlib.distill.loop import Loop, driver
from tadlib.distill.synthetic import Synthetic


def start(*args, **options) -> Loop:
    """As MTT's; the average starts at the real images, as in FTD's code."""
    loop = mtt.start(*args, **options)
    loop.tensors["ema"] = loop.tensors["x"].clone()
    return loop


def advance(loop: Loop) -> None:
    """One iteration of MTT, then x̄ ← d x̄ + (1 − d) x."""
    if mtt.iterate(loop, range(loop.config.max_start)):
        t, decay = loop.tensors, loop.config.ema
        t["ema"] = decay * t["ema"] + (1 - decay) * t["x"]


def averaged(loop: Loop) -> Synthetic:
    """The averaged images."""
    return Synthetic(loop.tensors["ema"], loop.tensors["y"], loop.tensors["lr"].item())


distill = driver(start, advance, averaged)
