"""Every committed notebook keeps to the rules in CONTRIBUTING.md."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
MOST_LINES = 15
# The ways in which a path of one machine begins, where no longer word or address ends in them.
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/<])(?:/(?:home|Users|root|tmp|work|mnt|opt|var|usr|content|data)/|[A-Z]:\\|~/)")

pytestmark = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def parameters(path: Path) -> dict:
    """The names and values that the ``parameters`` cell assigns."""
    cells = [cell for cell in code_cells(path) if "parameters" in cell.metadata.get("tags", [])]
    assert len(cells) == 1, f"{len(cells)} cells tagged parameters, expected 1"
    values = {}
    for statement in ast.parse(cells[0].source).body:
        assert isinstance(statement, ast.Assign), f"line {statement.lineno}: only `name = value` belongs here"
        (target,) = statement.targets
        assert isinstance(target, ast.Name)
        values[target.id] = ast.literal_eval(statement.value)
    return values


def test_is_valid_and_of_the_current_format(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.nbformat == 4
    assert notebook.nbformat_minor >= 5, "cells need ids (nbformat 4.5)"


def test_runs_on_the_kernel_that_everyone_has(path):
    kernel = read(path).metadata.kernelspec
    assert kernel.name == "python3"
    assert kernel.language == "python"


def test_has_one_parameters_cell_of_flat_scalars(path):
    values = parameters(path)
    assert values
    for name, value in values.items():
        assert value is None or isinstance(value, bool | int | float | str), f"{name} = {value!r} is no JSON scalar"


def test_parameters_are_all_known_to_the_library(path):
    from tadlib.pipeline import Config

    Config.from_params(**parameters(path))


def test_is_committed_as_executed_in_order(path):
    counts = [cell.execution_count for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1))


def test_shows_no_error_and_nothing_on_stderr(path):
    for number, cell in enumerate(code_cells(path), 1):
        for output in cell.outputs:
            assert output.output_type != "error", f"code cell {number} failed"
            assert output.get("name") != "stderr", f"code cell {number} wrote to stderr: {output.text}"


def test_cells_are_short(path):
    for number, cell in enumerate(code_cells(path), 1):
        lines = len(cell.source.splitlines())
        assert lines <= MOST_LINES, f"code cell {number} has {lines} lines; what is longer belongs to tadlib"


def test_names_no_absolute_path(path):
    for number, cell in enumerate(read(path).cells, 1):
        texts = [cell.source]
        for output in cell.get("outputs", []):
            texts.append(output.get("text", ""))
            texts.append(str(output.get("data", {}).get("text/plain", "")))
        for text in texts:
            assert not (match := ABSOLUTE_PATH.search(text)), f"cell {number}: {text[match.start() :][:60]!r}"


def test_holds_no_widget_state(path):
    assert "widgets" not in read(path).metadata
