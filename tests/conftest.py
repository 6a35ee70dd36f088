"""Fixtures that several test modules share."""

import os
from pathlib import Path

import pytest
import torch
from torch._inductor import cpp_builder, exc

torch.set_flush_denormal(True)  # as the stages do: denormals make small networks many times slower

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with real data (torchvision's layout) that TADLIB_DATA_ROOT names; the test is skipped without it."""
    root = os.environ.get("TADLIB_DATA_ROOT")
    if not root:
        pytest.skip("TADLIB_DATA_ROOT names no folder with real data")
    return Path(root)


@pytest.fixture
def compiler() -> None:
    """Skips where torch.compile finds no C++ compiler."""
    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        pytest.skip("torch.compile needs a C++ compiler")
