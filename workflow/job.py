"""One job of a grid, in a process of its own: ``python -m workflow.job PLAN TARGET``.

Snakemake calls it with the plan that :mod:`workflow.run` wrote and the target to make. Nothing here imports torch
before a GPU has been chosen, and the process that runs a notebook never does.
"""

import fcntl
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tadlib.errors import InputError, require

RUNNING, FAILED, ROW, JOURNAL = "running.ipynb", "failed.ipynb", "row.json", "journal.jsonl"


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[int | None]:
    """Hold the lock file ``path``; yields its descriptor, or None where another process holds it and we do not wait.

    The system lets go of the lock when every process that has the descriptor has ended, however it ended.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file.fileno()


@contextmanager
def one_gpu(count: int) -> Iterator[str | None]:
    """Keep one of ``count`` GPUs of this machine for this process and its children; yields its name.

    The GPUs are those of CUDA_VISIBLE_DEVICES where it is set, else 0, 1, ...; waits while all are taken, by whichever
    grid of this user. Does nothing for no GPU.
    """
    if count == 0:
        yield None
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = (visible.split(",") if visible else [str(i) for i in range(count)])[:count]
    folder = Path(tempfile.gettempdir()) / f"tadlib-gpus-{os.getuid()}"
    while True:
        for name in names:
            with locked(folder / f"{name}.lock", wait=False) as held:
                if held is not None:
                    os.environ["CUDA_VISIBLE_DEVICES"] = name
                    yield name
                    return
        time.sleep(0.2)


@contextmanager
def noted(journal: Path, job: Mapping[str, Any], gpu: str | None) -> Iterator[None]:
    """Add a line to the journal when a job starts and one when it ends: a grid's history, which nothing depends on."""

    def note(what: str) -> None:
        line = {"time": round(time.time(), 2), "event": what, "stage": job["stage"], "cell": job["cell"]}
        with open(journal, "a", encoding="utf-8") as file:
            file.write(json.dumps(line | {"target": job["target"], "gpu": gpu, "host": platform.node()}) + "\n")

    note("start")
    try:
        yield
    except BaseException:
        note("failed")
        raise
    note("done")


def run_stage(job: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
    """Carry out a stage; its folder must be the planned one."""
    from tadlib import pipeline
    from tadlib.config import Config

    functions = {"noise": pipeline.inject_noise, "divert": pipeline.divert, "experts": pipeline.train_experts}
    path = functions[job["stage"]](Config.from_params(**job["params"], **machine))
    _require_key(path.name, job)


def run_cell(job: Mapping[str, Any], notebook: Path, machine: Mapping[str, Any], target: Path) -> None:
    """Run the notebook of a cell. ``target`` appears when all of it ran; else ``failed.ipynb`` lies beside it."""
    import papermill

    started = time.monotonic()
    target.parent.mkdir(parents=True, exist_ok=True)
    running, failed = target.with_name(RUNNING), target.with_name(FAILED)
    with locked(target.with_name(".lock")):
        if target.exists():  # made by a process that outlived its workflow
            return
        failed.unlink(missing_ok=True)
        try:
            done = papermill.execute_notebook(
                notebook, running, {**job["params"], **machine}, kernel_name="python3", progress_bar=False
            )
            row = _row(done)
            _require_key(row["key"], job)
        except Exception:
            if running.exists():
                running.replace(failed)
            raise
        text = json.dumps({"row": row, "seconds": time.monotonic() - started}, indent=2)
        _write(target.with_name(ROW), text)
        _sync(running)
        running.replace(target)


def _row(notebook: Any) -> dict[str, Any]:
    """The row of results that an executed notebook shows as JSON, in its cell tagged ``row``."""
    for cell in notebook.cells:
        if "row" in cell.metadata.get("tags", []):
            for output in cell.outputs:
                if "application/json" in output.get("data", {}):
                    return dict(output["data"]["application/json"])
    raise InputError("the notebook has no cell tagged row that shows its row of results as JSON")


def _require_key(key: str, job: Mapping[str, Any]) -> None:
    require(key == job["key"], "tadlib or its data changed after this run was planned: run the same command again")


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_text(text)
    _sync(temporary)
    temporary.replace(path)


def _sync(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def main(arguments: list[str]) -> int:
    """Make one target of a plan, or ``results``; returns the exit status."""
    plan_path, target = arguments
    plan = json.loads(Path(plan_path).read_text(encoding="utf-8"))
    machine, out = plan["machine"], Path(plan["machine"]["out"])
    try:
        if target == "results":
            from workflow.jobs import collect

            collect(plan["jobs"], out, plan["grid"])
            return 0
        job = next(job for job in plan["jobs"] if job["target"] == target)
        with one_gpu(plan["gpus"]) as gpu, noted(out / plan["grid"] / JOURNAL, job, gpu):
            if job["stage"] == "cell":
                run_cell(job, Path(plan["notebook"]), machine, out / target)
            else:
                run_stage(job, machine)
    except Exception as error:
        if not isinstance(error, InputError):
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
