"""Distillation methods, one file each. All have the same face:

``distill(net, x, y, w, experts, config, *, ipc, seed, resume, on_iteration) -> (Synthetic, rows)``

(:func:`tadlib.distill.loop.driver`). ``METHODS`` lists them by name, with the class of their settings and whether
they read expert trajectories.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tadlib.distill import datm, dm, dsa, ftd, mtt, random, tesla


@dataclass(frozen=True)
class Method:
    """A method: the class of its settings, its function ``distill``, and whether it needs experts."""

    config: type
    distill: Callable
    needs_experts: bool


METHODS: dict[str, Method] = {
    "mtt": Method(mtt.MttConfig, mtt.distill, True),
    "tesla": Method(tesla.TeslaConfig, tesla.distill, True),
    "ftd": Method(ftd.FtdConfig, ftd.distill, True),
    "datm": Method(datm.DatmConfig, datm.distill, True),
    "dsa": Method(dsa.DsaConfig, dsa.distill, False),
    "dm": Method(dm.DmConfig, dm.distill, False),
    "random": Method(random.RandomConfig, random.distill, False),
}
