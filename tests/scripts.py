"""Python files that are commands and no part of a package, as modules."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]


def script(path: str) -> ModuleType:
    """The file at ``path``, from the root of the repository, run as a module of its own."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    beside = str((ROOT / path).parent)
    sys.path.insert(0, beside)  # a command finds the files beside it
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(beside)
    return module
