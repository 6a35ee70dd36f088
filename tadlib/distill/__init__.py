"""Distillation methods, one file each. All have the same interface:

``distill(net, x, y, w, experts, config, *, ipc, seed, resume, on_iteration) -> (Synthetic, rows)``

(:func:`tadlib.distill.loop.driver`). ``METHODS`` lists them by name; :data:`tadlib.config.METHODS` has their settings.
"""

from collections.abc import Callable

from tadlib.distill import cim, dance, datm, dm, dsa, ftd, mtt, ncfm, random, rded, tesla

METHODS: dict[str, Callable] = {
    "mtt": mtt.distill,
    "tesla": tesla.distill,
    "ftd": ftd.distill,
    "datm": datm.distill,
    "dsa": dsa.distill,
    "dm": dm.distill,
    "dance": dance.distill,
    "ncfm": ncfm.distill,
    "rded": rded.distill,
    "cim": cim.distill,
    "random": random.distill,
}
