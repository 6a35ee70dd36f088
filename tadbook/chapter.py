"""What every chapter begins with: the configuration that its parameters ask for."""

from collections.abc import Mapping
from typing import Any

from tadbook.style import style
from tadlib.config import Config

FIXED = ("arm", "method", "loops")  # chapters set these themselves


def configure(namespace: Mapping[str, Any]) -> Config:
    """The configuration of a notebook's parameters, from its ``globals()``; an unknown name is an error. Sets the style
    of figures."""
    style()
    return Config.from_variables(namespace, fixed=FIXED)
