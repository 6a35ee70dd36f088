"""A grid that is killed, resumed, and in part fails: what is finished stays, what fails is told, the rest is done."""

import importlib.util
from pathlib import Path
from types import ModuleType

import nbformat
import pandas as pd
import pytest

from tadlib import pipeline
from tadlib.store import load_json
from workflow import run
from workflow.job import FAILED
from workflow.load import load_grid

pytest.importorskip("snakemake")
ROOT = Path(__file__).resolve().parents[1]

TINY = """\
shared:
  dataset: digits
  n_train: 200
  n_test: 100
  method: random
  width: 4
  evaluate_networks: 2
  evaluate_epochs: 5
  arm: vanilla
  noise: pairflip
  rate: 0.3
blocks:
  - ipc: [1, 2]
  - ipc: 60 # more images a class than there are: fails
"""


@pytest.fixture(scope="module")
def killing() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kill_grid", ROOT / "tests" / "kill_grid.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_grid_that_is_killed_loses_nothing_and_tells_what_fails(tmp_path, killing, capfd):
    path, out = tmp_path / "some.yml", tmp_path / "runs"
    path.write_text(TINY)

    def in_the_second_cell() -> bool:
        return any(out.glob("some/*/*/cell.ipynb")) and any(out.glob("some/*/*/running.ipynb"))

    assert killing.interrupted(killing.start(path, out), in_the_second_cell)
    assert killing.cells_done(out, "some") == 1
    # two jobs at a time, on GPUs that are not there but are given out all the same
    assert run.main([str(path), "--out", str(out), "--device", "cpu", "--gpus", "2"]) == run.INCOMPLETE

    cells = load_grid(path, out=str(tmp_path / "by-hand"), device="cpu").cells
    expected = pipeline.result_table([pd.DataFrame([pipeline.run(cell.config) for cell in cells[:2]])])
    table = killing.table(out, "some")
    pd.testing.assert_frame_equal(table, expected.drop(columns=killing.MEASURED), check_dtype=False)
    events = killing.journal(out, "some")
    assert killing.run_again_after_their_end(events) == []
    assert {event["gpu"] for event in events[-4:]} <= {"0", "1"}

    failed = cells[2].name
    (notebook,) = out.glob(f"some/{failed}/*/{FAILED}")
    told = capfd.readouterr().err
    assert f"failed: {failed}: InputError: " in told
    assert f"notebook: {notebook}" in told
    errors = [o for c in nbformat.read(notebook, 4).cells for o in c.get("outputs", []) if o.output_type == "error"]
    assert len(errors) >= 1

    # a finished cell holds its figures, and its row beside it
    (done,) = out.glob(f"some/{cells[0].name}/*/cell.ipynb")
    outputs = [o for cell in nbformat.read(done, 4).cells for o in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert load_json(done.with_name("row.json"))["row"]["ipc"] == 1


def test_two_runs_of_one_grid_at_a_time_are_refused(tmp_path, capsys):
    path, out = tmp_path / "some.yml", tmp_path / "runs"
    path.write_text(TINY)
    with run.locked(out / "some" / ".lock"):
        (out / ".tadlib-output").touch()
        assert run.main([str(path), "--out", str(out)]) == run.BAD_INPUT
    assert "grid some is being run" in capsys.readouterr().err


def test_a_plan_shows_cells_and_what_would_be_run_and_writes_nothing(tmp_path, capsys):
    path, out = tmp_path / "some.yml", tmp_path / "runs"
    path.write_text(TINY)
    assert run.main([str(path), "--out", str(out), "--plan"]) == run.OK
    shown = capsys.readouterr().out
    assert "to run  digits-pairflip-30-vanilla-random-ipc1-seed0" in shown
    assert "to run: 1 noise, 3 cell" in shown
    assert " h, one job at a time, on " in shown
    assert not out.exists()


@pytest.mark.parametrize("arguments", [["nothing"], ["smoke", "--profile", "nowhere"]])
def test_what_does_not_exist_is_bad_input(arguments, capsys):
    assert run.main([*arguments, "--plan"]) == run.BAD_INPUT
    assert "error: " in capsys.readouterr().err
