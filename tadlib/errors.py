"""The one error that bad input raises, and short ways to raise it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any


class InputError(ValueError):
    """Bad input: an unknown name, a value out of range, a missing or damaged file.

    The message names the value and what was expected. It is raised before any work starts; the command line
    turns it into exit status 2.
    """


def require(condition: bool, message: str) -> None:
    """Raise :class:`InputError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise InputError(message)


def required(value: Any, message: str) -> Any:
    """``value``, or :class:`InputError` with ``message`` where it is None."""
    if value is None:
        raise InputError(message)
    return value


def required_root(what: str, root: Path | None) -> Path:
    """``root``, or :class:`InputError` that says how to give it where it is None."""
    return Path(required(root, f"{what} is read from files: give their folder, --root DIR (in Python root=DIR)"))


def known(what: str, name: object, names: Iterable) -> None:
    """Raise :class:`InputError` unless ``name`` is one of ``names``; the message lists them."""
    names = list(names)
    require(name in names, f"unknown {what} {name!r}; expected one of: {', '.join(map(str, names))}")
