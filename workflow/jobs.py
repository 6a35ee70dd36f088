"""From runs to jobs: what has to be done, in which order, and what shows that it is done.

Jobs of four kinds are stages that several runs share: ``noise``, ``divert``, ``experts`` and ``observer``. A job of the
fifth kind, ``run``, executes the notebook of one run, which distils, evaluates and shows the results. Every job has a
target, a file under the output folder that appears when the job is done, and whose path holds a key of all that the
result depends on. So a job has to be done exactly when its target is missing; modification times do not matter.
"""

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tadlib import pipeline
from tadlib.config import Config
from tadlib.store import MANIFEST, content_key, load_json, save_table
from workflow.job import ROW
from workflow.load import Grid

ROOT = Path(__file__).resolve().parents[1]
SHARED = ("noise", "divert", "experts", "observer")
NOTEBOOK = ROOT / "notebooks" / "run.ipynb"
DEFINING = ("dataset", "noise", "rate", "arm", "method", "ipc", "seed", "preset")  # a run, its settings apart
# What the notebook calls besides the stages, whose keys cover the rest: without this a changed figure would never be
# drawn again, and with all that these modules import, a change of any stage would repeat every notebook.
SHOWN_WITH = [ROOT / "tadlib" / f"{name}.py" for name in ("pipeline", "distilled")]
SHOWN_WITH += [ROOT / "tadbook" / f"{name}.py" for name in ("labels", "networks", "style")]


@dataclass(frozen=True)
class Job:
    """One thing to do."""

    stage: str
    """noise, divert, experts, observer or run."""
    target: str
    """Path under the output folder of the file that shows that it is done."""
    needs: tuple[str, ...]
    """Targets of the jobs that come before it."""
    params: dict[str, Any]
    """What the grid says of the run, or of one of the runs that share the stage, and what defines a run besides: the
    notebook has examples for these, which must not stand in for what a grid leaves out."""
    run: str
    """Name of that run."""
    key: str
    """Key of the stage; of a run, key of its stage ``evaluate``."""


def grid_jobs(grid: Grid, notebook: Path = NOTEBOOK) -> list[Job]:
    """Jobs of a grid, each once, in the order in which one worker should do them: run by run, as the file has them.

    Raises:
        InputError: where files that belong to a key are missing.
    """
    jobs: dict[str, Job] = {}
    first_with: dict[str, str] = {}  # key of stage distill -> target of the first run that has it
    shown = {"notebook": notebook_code(notebook), "code": [ast.dump(ast.parse(p.read_text())) for p in SHOWN_WITH]}
    for run in grid.runs:
        planned = pipeline.plan(run.config)
        params = {**{name: getattr(run.config, name) for name in DEFINING}, **run.given}
        needs: tuple[str, ...] = ()
        for stage in _shared(run.config, planned):
            target = f"{stage}/{planned[stage].key}/{MANIFEST}"
            jobs.setdefault(target, Job(stage, target, needs, params, run.name, planned[stage].key))
            needs = (target,)
        evaluated = planned["evaluate"].key
        key = content_key({"params": run.config.portable(), "evaluate": evaluated, **shown})
        target = f"{grid.name}/{run.name}/{key}/run.ipynb"
        # runs with the same distilled set, such as oracles under two noises: one after the other, not both at once
        leader = first_with.setdefault(planned["distill"].key, target)
        needs += () if leader == target else (leader,)
        jobs[target] = Job("run", target, needs, params, run.name, evaluated)
    return list(jobs.values())


def _shared(config: Config, planned: dict[str, pipeline.Planned]) -> list[str]:
    """Stages of a run that are jobs of their own. What takes no time, to inject no noise or to divert without training
    a network, is left to the job that follows: a process of its own would cost more."""
    idle = [] if pipeline.trust_method(config).epochs else ["divert"]
    idle += ["noise"] if pipeline.as_used(config).noise == "none" else []
    return [name for name in SHARED if name in planned and name not in idle]


def notebook_code(path: Path) -> list[list[str]]:
    """What a notebook says and does; its outputs do not count."""
    return [[cell["cell_type"], "".join(cell["source"])] for cell in load_json(path)["cells"]]


def to_do(jobs: Iterable[Job], out: Path) -> list[Job]:
    """The jobs that have to be done: runs whose target is missing, and what those need and do not find."""
    by_target = {job.target: job for job in jobs}
    missing: set[str] = set()

    def visit(target: str) -> None:
        if target not in missing and not (out / target).exists():
            missing.add(target)
            for needed in by_target[target].needs:
                visit(needed)

    for job in by_target.values():
        if job.stage == "run":
            visit(job.target)
    return [job for job in by_target.values() if job.target in missing]


def collect(jobs: Iterable[Job], out: Path, grid: str) -> Path | None:
    """Write the rows of all finished runs to ``<out>/<grid>/results.parquet``; None where there are none yet."""
    targets = [out / job.target for job in jobs if job.stage == "run"]
    rows = [load_json(target.with_name(ROW)) for target in targets if target.exists()]
    if not rows:
        return None
    path = out / grid / "results.parquet"
    save_table(path, pipeline.result_table([pd.DataFrame(rows)]))
    return path
