"""What every chapter begins with: the configuration that its parameters ask for."""

from collections.abc import Mapping
from typing import Any

from tadbook.style import style
from tadlib.config import Config

PARAMETERS = ("dataset", "root", "noise", "rate", "ipc", "seed", "preset", "device", "out")


def configure(namespace: Mapping[str, Any]) -> Config:
    """The configuration of the variables ``PARAMETERS`` in a notebook's ``globals()``; sets the style of figures."""
    style()
    return Config.from_params(**{name: namespace[name] for name in PARAMETERS})
