"""A grid that is killed, resumed, and in part fails: finished jobs stay, failures are reported, the rest is done."""

import errno
import fcntl
import os
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import pandas as pd
import pytest
from scripts import script

from tadlib import pipeline
from tadlib.store import load_json
from workflow import job, run
from workflow.job import FAILED
from workflow.jobs import NOTEBOOK, grid_jobs
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
    return script("tests/kill_grid.py")


@pytest.mark.slow
def test_a_grid_that_is_killed_loses_nothing_and_reports_what_fails(tmp_path, killing, capfd):
    path, out = tmp_path / "some.yml", tmp_path / "runs {dataset}"  # braces, which papermill and Snakemake fill in
    path.write_text(TINY)

    def in_the_second_run() -> bool:
        return any(out.glob("some/*/*/run.ipynb")) and any(out.glob("some/*/*/running.ipynb"))

    assert killing.interrupted(killing.start(path, out), in_the_second_run)
    assert killing.runs_done(out, "some") == 1
    before = killing.finished(out, "some")
    # two jobs at a time, on GPUs that are not there but are given out all the same
    assert run.main([str(path), "--out", str(out), "--device", "cpu", "--gpus", "2"]) == run.INCOMPLETE

    runs = load_grid(path, out=str(tmp_path / "by-hand"), device="cpu").runs
    expected = pipeline.result_table([pd.DataFrame([pipeline.run(r.config) for r in runs[:2]])])
    table = killing.table(out, "some")
    pd.testing.assert_frame_equal(table, expected.drop(columns=killing.MEASURED), check_dtype=False)
    after = killing.finished(out, "some")
    assert before.items() < after.items()  # none was run again

    failed = runs[2].name
    (notebook,) = out.glob(f"some/{failed}/*/{FAILED}")
    shown = capfd.readouterr().err
    assert f"failed: {failed}: InputError: " in shown
    assert f"notebook: {notebook}" in shown
    errors = [o for c in nbformat.read(notebook, 4).cells for o in c.get("outputs", []) if o.output_type == "error"]
    assert len(errors) >= 1

    # a finished run holds its figures, and its row beside it
    (done,) = out.glob(f"some/{runs[0].name}/*/run.ipynb")
    outputs = [o for cell in nbformat.read(done, 4).cells for o in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert load_json(done.with_name("row.json"))["ipc"] == 1


@pytest.mark.slow
def test_a_misspelt_parameter_of_the_notebook_is_an_error(tmp_path):
    import papermill

    with pytest.raises(
        papermill.PapermillExecutionError, match="unknown parameter 'raet'; did you mean 'rate'"
    ) as caught:
        papermill.execute_notebook(NOTEBOOK, tmp_path / "run.ipynb", {"raet": 0.1}, progress_bar=False)
    assert "".join(caught.value.traceback).splitlines() == [f"InputError: {caught.value.evalue}"]  # no stack


def test_a_full_disk_stops_a_grid_with_one_line_and_the_next_command_goes_on(tmp_path, monkeypatch, capsys):
    path, out, started = tmp_path / "some.yml", tmp_path / "runs", []
    path.write_text(TINY)

    def full(planned, machine):
        started.append(planned["stage"])
        raise OSError(f"cannot write labels.safetensors: {os.strerror(errno.ENOSPC)}")

    def snakemake(command, lock):
        plan = out / "some" / "plan.json"
        for target in [planned["target"] for planned in load_json(plan)["jobs"]]:
            assert job.main([str(plan), target]) == 1

    monkeypatch.setattr(job, "run_stage", full)
    monkeypatch.setattr(run, "_snakemake", snakemake)
    for _ in range(2):
        started.clear()
        assert run.main([str(path), "--out", str(out), "--device", "cpu"]) == run.INCOMPLETE
        said = capsys.readouterr().err.splitlines()
        assert started == ["noise"]
        assert said[-4:-1] == ["error: not tried, for the disk was full"] * 3
        counts = "done: 0 of 1 noise, 0 of 3 run"
        assert said[-1] == f"error: no space left for {out}, {counts}: the same command goes on when there is room"


def test_snakemake_gets_a_piece_of_a_grid_at_a_time_and_no_more_after_an_interruption(tmp_path, monkeypatch):
    path, out, given = tmp_path / "some.yml", tmp_path / "runs", []
    path.write_text(TINY)

    def snakemake(command, lock):
        given.append([word for word in command if word.endswith("run.ipynb")])
        return len(given) == 4

    monkeypatch.setattr(run, "_snakemake", snakemake)
    monkeypatch.setattr(run, "PIECE", 2)
    monkeypatch.setattr(run, "LONG", 1)
    runs = [planned.target for planned in grid_jobs(load_grid(path, out=str(out), device="cpu"))][1:]
    for _ in range(2):
        assert run.main([str(path), "--out", str(out), "--device", "cpu"]) == run.INCOMPLETE
    assert [len(piece) for piece in given] == [2, 1, 2, 1]
    given[:] = [[], [], []]
    assert run.main([str(path), "--out", str(out), "--device", "cpu"]) == run.INCOMPLETE
    assert given[3:] == [runs[:2]]


def test_two_commands_on_one_grid_at_a_time_are_refused(tmp_path, capsys):
    path, out = tmp_path / "some.yml", tmp_path / "runs"
    path.write_text(TINY)
    (out / "some").mkdir(parents=True)
    (out / ".tadlib-output").touch()
    with open(out / "some" / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run.main([str(path), "--out", str(out)]) == run.BAD_INPUT
    assert "grid some is being run" in capsys.readouterr().err


def test_a_plan_shows_runs_and_what_would_be_run_and_writes_nothing(tmp_path, capsys):
    path, out = tmp_path / "some.yml", tmp_path / "runs"
    path.write_text(TINY)
    assert run.main([str(path), "--out", str(out), "--plan"]) == run.OK
    shown = capsys.readouterr().out
    assert "to run  digits-pairflip-30-vanilla-random-ipc1-seed0" in shown
    assert "to run: 1 noise, 3 run" in shown
    assert " h, one job at a time, on " in shown
    assert not out.exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nothing"], "there is no such grid; grids beside it: clean, native, paper, paper-lite, rates, smoke"),
        (["smoke", "--profile", "nowhere"], "there is no profile nowhere"),
        (["smoke", "--threads", "100000"], "threads must not exceed the"),
        (["smoke", "--threads", "0"], "expected a whole number, 1 or more, got '0'"),
        (["smoke", "--cores", "0"], "expected a whole number, 1 or more, got '0'"),
        (["smoke", "--cores", "two"], "expected a whole number, 1 or more, got 'two'"),
        (["smoke", "--gpus", "-1"], "expected a whole number, 0 or more, got '-1'"),
        (["some{}.yml"], "must not contain braces"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        sys.exit(run.main([*arguments, "--plan"]))
    assert end.value.code == run.BAD_INPUT
    assert message in capsys.readouterr().err
