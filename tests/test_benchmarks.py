"""What the benchmarks left in results/ is complete, and their figures can be made from it."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest

import tadbook
from tadbook import benchmarks
from tadlib.errors import InputError
from tadlib.store import load_table, save_table

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


def test_the_page_on_speed_has_the_tables_that_are_there(tmp_path):
    common = {"hardware": "a", "torch_version": "2", "tadlib_version": "0", "threads": 1, "cores": 2}
    row = {"images": 20000, "side": 64, "speed": 1.2, "cpu_speed": 1.1, "memory": 1.3}
    save_table(tmp_path / "benchmarks" / "decoding.parquet", pd.DataFrame([common | row]))
    seeds = [
        {"variant": "drawn", "cpu_seconds_before": 0.0, "cpu_ms_iteration": ms, "accuracy": 0.4, "seed": seed}
        | {"iterations": 300, "ipc": 10}
        for seed, ms in ((1, 90.0), (2, 110.0))
    ]
    save_table(tmp_path / "benchmarks" / "real_side.parquet", pd.DataFrame([common | row for row in seeds]))
    stages = ("noise", "divert", "observer", "distill")
    row = {f"{kind}_{name}": 60.0 * (i + 1) for i, name in enumerate(stages) for kind in ("seconds", "cpu_seconds")}
    row |= {"images": 5000, "side": 224, "resolution": 128, "arm": "tad", "epochs": 10, "peak_memory_bytes": 2.5e9}
    save_table(tmp_path / "benchmarks" / "large_images.parquet", pd.DataFrame([common | row]))
    decoding, large, step, real_side = (
        path.read_text() for path in tadbook.write_speed(tmp_path, tmp_path / "generated")
    )
    assert "| 20,000 | 64 | 1.20 | 1.10 | 1.30 |" in decoding
    assert "| the observer | 3.0 | 3.0 |" in large
    assert "| together | 10.0 | 10.0 |" in large
    assert "2.5 GB" in large
    assert "No results yet" in step
    assert "| drawn | 0.0 | 100 | 40.0 |" in real_side
