"""What the benchmarks left in results/ is complete, and their figures can be made from it."""

from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from tadbook import benchmarks
from tadlib.errors import InputError
from tadlib.store import load_table

FOLDER = Path(__file__).resolve().parents[1] / "results" / "benchmarks"


@pytest.mark.parametrize("name", benchmarks.FIGURES)
def test_a_benchmark_tells_hardware_versions_and_threads_and_has_its_figure(name):
    table = load_table(FOLDER / f"{name}.parquet")
    for column in ("threads", "hardware", "cores", "torch_version", "tadlib_version"):
        assert table[column].notna().all(), column
    assert (FOLDER / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    figure = benchmarks.FIGURES[name](table)
    assert all(ax.has_data() for ax in figure.axes)
    assert not plt.get_fignums()


def test_an_unknown_benchmark_is_named():
    with pytest.raises(InputError, match="unknown benchmark 'speed'"):
        benchmarks.draw(FOLDER, "speed")
