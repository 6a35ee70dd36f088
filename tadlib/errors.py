"""The one error that bad input raises, and short ways to raise it."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class InputError(ValueError):
    """Bad input: an unknown name, a value out of range, a missing or damaged file.

    The message names the value and what was expected. It is raised before any work starts; the command line
    turns it into exit status 2, and IPython, papermill too, shows it without the stack.
    """

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


def require(condition: bool, message: str) -> None:
    """Raise :class:`InputError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise InputError(message)


def required(value: Any, message: str) -> Any:
    """``value``, or :class:`InputError` with ``message`` where it is None."""
    require(value is not None, message)
    return value


def required_root(what: str, root: Path | None) -> Path:
    """``root``, or :class:`InputError` that says how to give it where it is None."""
    return usable(required(root, f"{what} is read from files: give their folder, --root DIR (in Python root=DIR)"))


def known(what: str, name: object, names: Iterable) -> None:
    """Raise :class:`InputError` unless ``name`` is one of ``names``; the message lists them."""
    names = list(names)
    require(name in names, f"unknown {what} {name!r}; expected one of: {', '.join(map(str, names))}")


def usable(path: Path | str) -> Path:
    """The one way in for paths that people give: ``path`` with ~ expanded.

    InputError where the system cannot tell what is there (no permission, too long a name, a zero byte, a loop of
    links); that nothing is there is no error.
    """
    text = str(path)
    shown = text if len(text) <= 100 else f"{text[:50]}...{text[-47:]}"
    require(text != "", "a path must not be empty")
    try:
        path = Path(path).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise InputError(f"cannot use the path {shown!r}: {getattr(error, 'strerror', None) or error}") from error
    return Path(path)


def readable(what: str, path: Path | str) -> Path:
    """``path`` of a file, ~ expanded; InputError where there is none, it is something else, or may not be read."""
    path = usable(path)
    require(path.exists(), f"{what} {path} does not exist".strip())
    require(path.is_file(), f"{what} {path} cannot be read: it is no file".strip())  # others may never end
    require(os.access(path, os.R_OK), f"{what} {path} cannot be read: permission denied".strip())
    return path


@contextmanager
def readable_files() -> Iterator[None]:
    """Turn what the system refuses into an InputError that names the file or folder; also a decorator."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {told(error)}") from error


@contextmanager
def parsing(path: Path, otherwise: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn the ``errors`` that a parser raises, and the system's, into an InputError: the file is damaged, or what
    ``otherwise`` says."""
    damage: tuple[type[Exception], ...] = (OSError, *errors)
    try:
        yield
    except damage as error:
        raise InputError(f"{path} is damaged or {otherwise}: {str(error) or repr(error)}") from error


def told(error: OSError) -> str:
    """The path that the system refused, the second one where a file is copied or moved, and why, without its number."""
    path = error.filename2 or error.filename
    return f"{path}: {error.strerror}" if path and error.strerror else str(error)


def some(items: Sequence[object], most: int = 5) -> str:
    """``items`` in one short line: the first ones, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more
