"""TESLA: trajectory matching with an approximate gradient (Cui et al., ICML 2023).

MTT's loop; each step's gradient is taken as if the parameters at which it is evaluated did not depend on the images
(:mod:`tadlib.matching`, ``tesla``). ``gradient="exact"`` gives the true one under the same settings. Its soft labels
assigned by an expert, meant for ImageNet-1K, are left out: DATM learns soft labels.
"""

from dataclasses import dataclass

from tadlib.distill.loop import driver
from tadlib.distill.mtt import MttConfig, advance, start


@dataclass(frozen=True)
class TeslaConfig(MttConfig):
    """Settings of TESLA, those of MTT with its own defaults (its code)."""

    iterations: int = 10000
    gradient: str = "tesla"


distill = driver(start, advance)
