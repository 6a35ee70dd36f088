"""From cells to jobs: what has to be done, in which order, and what says that it is done.

Three kinds of jobs are stages that several cells share: ``noise``, ``divert`` and ``experts``. The fourth, ``cell``,
runs the notebook of one cell, which distils, evaluates and shows. Every job has a target, a file under the output
folder that appears when the job is done, whole, and whose path holds a key of all that the result depends on. So a job
has to be done exactly when its target is missing; times of files count for nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tadlib import pipeline
from tadlib.arms import LEARNED
from tadlib.cell import portable
from tadlib.config import Config
from tadlib.store import MANIFEST, code_version, content_key, load_json, save_table
from workflow.job import ROW
from workflow.load import Grid

SHARED = ("noise", "divert", "experts")
NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "cell.ipynb"
DEFINING = ("dataset", "noise", "rate", "arm", "method", "ipc", "seed", "preset")  # a cell, its settings apart
SHOWN_WITH = ("pipeline", "cell", "distilled", "report")  # code of the notebook beside that of the stages


@dataclass(frozen=True)
class Job:
    """One thing to do."""

    stage: str
    """noise, divert, experts or cell."""
    target: str
    """Path under the output folder of the file that says that it is done."""
    needs: tuple[str, ...]
    """Targets of the jobs that come before it."""
    params: Mapping[str, Any]
    """What the grid says of the cell, or of one of the cells that share the stage, and what defines a cell besides: the
    notebook has examples for these, which must not stand in for what a grid leaves out."""
    cell: str
    """Name of that cell."""
    key: str
    """Key of the stage; of a cell, key of its stage ``evaluate``."""


def grid_jobs(grid: Grid, notebook: Path = NOTEBOOK) -> list[Job]:
    """Jobs of a grid, each once, in the order in which one worker should do them: cell by cell, as the file has them.

    Raises InputError where files that belong to a key are missing.
    """
    jobs: dict[str, Job] = {}
    first_with: dict[str, str] = {}  # key of stage distill -> target of the first cell that has it
    shown = {"notebook": notebook_code(notebook), "code": code_version(*SHOWN_WITH)}
    for cell in grid.cells:
        planned = pipeline.plan(cell.config)
        params = {**{name: getattr(cell.config, name) for name in DEFINING}, **cell.given}
        needs: tuple[str, ...] = ()
        for stage in _shared(cell.config, planned):
            target = f"{stage}/{planned[stage].key}/{MANIFEST}"
            jobs.setdefault(target, Job(stage, target, needs, params, cell.name, planned[stage].key))
            needs = (target,)
        evaluated = planned["evaluate"].key
        key = content_key({"params": portable(cell.config), "evaluate": evaluated, **shown})
        target = f"{grid.name}/{cell.name}/{key}/cell.ipynb"
        # cells with the same distilled set, such as oracles under two noises: one after the other, not both at once
        leader = first_with.setdefault(planned["distill"].key, target)
        needs += () if leader == target else (leader,)
        jobs[target] = Job("cell", target, needs, params, cell.name, evaluated)
    return list(jobs.values())


def _shared(config: Config, planned: Mapping[str, Any]) -> list[str]:
    """Stages of a cell that are jobs of their own. What takes no time, to inject no noise, to divert with an arm that
    learns nothing, is left to the job that follows: a process of its own would cost more."""
    idle = [] if config.arm in LEARNED else ["divert"]
    idle += ["noise"] if pipeline.as_used(config).noise == "none" else []
    return [name for name in SHARED if name in planned and name not in idle]


def notebook_code(path: Path) -> str:
    """Key of what a notebook says and does; its outputs do not count."""
    cells = load_json(path)["cells"]
    return content_key({"cells": [[cell["cell_type"], "".join(cell["source"])] for cell in cells]})


def to_do(jobs: Iterable[Job], out: Path) -> list[Job]:
    """The jobs that have to be done: cells whose target is missing, and what those need and do not find."""
    by_target = {job.target: job for job in jobs}
    missing: dict[str, None] = {}

    def visit(target: str) -> None:
        if target not in missing and not (out / target).exists():
            missing[target] = None
            for needed in by_target[target].needs:
                visit(needed)

    for job in by_target.values():
        if job.stage == "cell":
            visit(job.target)
    return [job for job in by_target.values() if job.target in missing]


def collect(jobs: Iterable[Mapping[str, Any]], out: Path, grid: str) -> Path | None:
    """Write the rows of all cells that are done to ``<out>/<grid>/results.parquet``; None where there are none yet."""
    targets = [out / job["target"] for job in jobs if job["stage"] == "cell"]
    rows = [load_json(target.with_name(ROW))["row"] for target in targets if target.exists()]
    if not rows:
        return None
    path = out / grid / "results.parquet"
    save_table(path, pipeline.result_table([pd.DataFrame(rows)]))
    return path
