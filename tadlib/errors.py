"""The one error that bad input raises."""


class InputError(ValueError):
    """Bad input: an unknown name, a value out of range, a missing or damaged file.

    The message names the value and what was expected. It is raised before any work starts; the command line
    turns it into exit status 2.
    """


def require(condition: bool, message: str) -> None:
    """Raise :class:`InputError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise InputError(message)


def known(what: str, name: str, names) -> None:
    """Raise :class:`InputError` unless ``name`` is one of ``names``; the message lists them."""
    names = list(names)
    require(name in names, f"unknown {what} {name!r}; expected one of: {', '.join(map(str, names))}")
