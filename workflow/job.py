"""One job of a grid, in a process of its own: ``python -m workflow.job PLAN TARGET``.

Snakemake starts it with the plan that :mod:`workflow.run` wrote and the target to make. Nothing here imports torch
before a GPU has been chosen, and the process that executes a notebook never does.
"""

import errno
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tadlib.errors import InputError, require

RUNNING, FAILED, ROW = "running.ipynb", "failed.ipynb", "row.json"


@contextmanager
def one_gpu(count: int) -> Iterator[str | None]:
    """Keep one of ``count`` GPUs of this machine for this process and its children; yields its name.

    The GPUs are those of CUDA_VISIBLE_DEVICES where it is set, else 0, 1, ...; waits while all are taken, by whichever
    grid of this user. The system frees a GPU when its process ends, however it ends. Does nothing for no GPU.
    """
    if count == 0:
        yield None
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = (visible.split(",") if visible else [str(i) for i in range(count)])[:count]
    folder = Path(tempfile.gettempdir()) / f"tadlib-gpus-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    while True:
        for name in names:
            lock = FileLock(folder / f"{name}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            os.environ["CUDA_VISIBLE_DEVICES"] = name
            try:
                yield name
            finally:
                lock.release()
            return
        time.sleep(0.2)


def run_stage(job: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
    """Carry out a stage; its folder must be the planned one."""
    from tadlib import pipeline
    from tadlib.config import Config

    functions = {"noise": pipeline.inject_noise, "divert": pipeline.divert}
    functions |= {"experts": pipeline.train_experts, "observer": pipeline.train_observer}
    path = functions[job["stage"]](Config.from_params(**job["params"], **machine))
    _require_key(path.name, job)


def run_notebook(job: Mapping[str, Any], notebook: str, machine: Mapping[str, Any], target: Path) -> None:
    """Execute the notebook of a run. ``target`` appears when all of it ran, with its row of results beside it; if not,
    ``failed.ipynb`` does."""
    import papermill

    target.parent.mkdir(parents=True, exist_ok=True)
    running, failed = target.with_name(RUNNING), target.with_name(FAILED)
    with FileLock(target.with_name(".lock")):
        if target.exists():  # made by a process that outlived its workflow
            return
        failed.unlink(missing_ok=True)
        # papermill fills parameters into braces of these paths
        paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (notebook, running)]
        parameters = {**job["params"], **machine}
        try:
            done = papermill.execute_notebook(*paths, parameters, kernel_name="python3", progress_bar=False)
            row = _row(done)
            _require_key(row["key"], job)
        except Exception:
            if running.exists():
                running.replace(failed)
            raise
        target.with_name(ROW).write_text(json.dumps(row, indent=2))  # a notebook's file would sort the columns
        for path in (target.with_name(ROW), running):
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
        running.replace(target)


def _row(notebook: Mapping[str, Any]) -> dict[str, Any]:
    """The row of results that an executed notebook shows as JSON, in its cell tagged ``row``."""
    for cell in notebook["cells"]:
        if "row" in cell["metadata"].get("tags", []):
            for output in cell["outputs"]:
                if "application/json" in output.get("data", {}):
                    return dict(output["data"]["application/json"])
    raise InputError("the notebook has no cell tagged row that shows its row of results as JSON")


def _require_key(key: str, job: Mapping[str, Any]) -> None:
    require(key == job["key"], "tadlib or its data changed after this grid was planned: give the same command again")


def main(arguments: list[str]) -> int:
    """Make one target of a plan; returns the exit status.

    Where the disk is full the plan is removed: without it no other job starts.
    """
    plan_path, target = Path(arguments[0]), arguments[1]
    if not plan_path.exists():
        print("error: not tried, for the disk was full", file=sys.stderr)
        return 1
    plan = json.loads(plan_path.read_text(encoding="utf-8"))
    machine = plan["machine"]
    job = next(job for job in plan["jobs"] if job["target"] == target)
    try:
        with one_gpu(plan["gpus"]):
            if job["stage"] == "run":
                run_notebook(job, plan["notebook"], machine, Path(machine["out"]) / target)
            else:
                run_stage(job, machine)
    except Exception as error:
        if any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT)):
            plan_path.unlink(missing_ok=True)  # no other job needs to try
        with suppress(OSError):  # the log lies on the same disk
            if not isinstance(error, InputError):
                traceback.print_exc()
            print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
