"""For pytest in every folder: how nbval starts kernels, and what it leaves out when it compares outputs."""

import pytest

ATTEMPTS = 3


def pytest_configure(config: pytest.Config) -> None:
    """Let nbval start a kernel again that never answers.

    Kernels pick a free port and open it later; of two that start at once, one can find its port taken.
    """
    try:
        from nbval import kernel
    except ImportError:
        return
    start = kernel.start_new_kernel

    def start_again(*arguments, **options):
        for _ in range(ATTEMPTS - 1):
            try:
                return start(*arguments, **options)
            except RuntimeError:
                continue
        return start(*arguments, **options)

    kernel.start_new_kernel = start_again


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Warnings and HTML renderings differ between machines; the plain text of the same output is compared."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr", "text/html", "image/svg+xml")
