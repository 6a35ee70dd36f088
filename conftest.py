"""For pytest in every folder: what nbval leaves out when it compares a notebook's outputs."""

import pytest


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Warnings and HTML renderings differ between machines; the plain text of the same output is compared."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr", "text/html", "image/svg+xml")
