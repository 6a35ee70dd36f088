"""The one command of a grid: check it, plan it, have Snakemake run it, tell what came of it.

Runs, resumes after whatever ended the last run, and runs again what depends on a change of grid, notebook, data or
library. See :mod:`workflow.jobs` for why that needs no help.
"""

import argparse
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from tadlib.errors import InputError, require
from workflow.job import FAILED, locked

if TYPE_CHECKING:
    from workflow.jobs import Job

ROOT = Path(__file__).resolve().parents[1]
OK, INCOMPLETE, BAD_INPUT = 0, 1, 2  # exit statuses


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status: 0 when all cells are done, 1 when not, 2 for bad input."""
    options, more = _parser().parse_known_args(arguments)
    try:
        return _run(options, more)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m workflow",
        allow_abbrev=False,
        description="Run a grid of cells, or go on with it. Further options are Snakemake's.",
    )
    parser.add_argument("grid", help="name of a file in grids/, or the path of one")
    parser.add_argument("--plan", action="store_true", help="only tell what is done and what would be run")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="output folder (default: runs)")
    parser.add_argument("--root", default=os.environ.get("TADLIB_DATA_ROOT"), help="folder of the data sets' files")
    parser.add_argument("--profile", default="local", help="local, slurm, or the path of a Snakemake profile")
    parser.add_argument("--cores", type=int, default=1, help="jobs at a time on a machine without GPU (default: 1)")
    parser.add_argument("--gpus", type=int, help="GPUs to use, one job each (default: all; slurm: 0, else 1 a job)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of a job (default: 1)")
    return parser


def _run(options: argparse.Namespace, more: list[str]) -> int:
    from tadlib.store import claim_output, save_json
    from workflow.cost import cost_text, measured
    from workflow.jobs import NOTEBOOK, SHARED, collect, grid_jobs, to_do
    from workflow.load import load_grid

    path = Path(options.grid) if options.grid.endswith((".yml", ".yaml")) else ROOT / "grids" / f"{options.grid}.yml"
    profile, local = _profile(options.profile)
    require(path.stem not in (*SHARED, "distill", "evaluate"), f"grid {path.stem} must not be called like a stage")
    out, root = options.out.resolve(), options.root and str(Path(options.root).expanduser().resolve())
    machine = {"out": str(out), "root": root, "device": options.device, "threads": options.threads}
    grid = load_grid(path, **machine)
    jobs = grid_jobs(grid)
    if options.plan:
        print(plan_text(jobs, out))
        configs = {cell.name: cell.config for cell in grid.cells}
        print(cost_text(to_do(jobs, out), configs, measured(out, ROOT / "results")))
        return OK

    require(find_spec("snakemake") is not None, "a grid is run by Snakemake: install tadlib with its extra grid")
    folder = claim_output(out) / grid.name
    with locked(folder / ".lock", wait=False) as descriptor:
        require(descriptor is not None, f"grid {grid.name} is being run in {out} by another process")
        gpus = _gpus(options.device) if options.gpus is None and local else options.gpus or 0
        plan = {
            "grid": grid.name,
            "notebook": str(NOTEBOOK),
            "machine": machine,
            "gpus": gpus if local else 0,  # of this machine, for jobs to choose from; a cluster gives each job its own
            "gpus_a_job": min(gpus, 1),
            "jobs": [asdict(job) | {"priority": len(jobs) - i} for i, job in enumerate(jobs)],
        }
        save_json(folder / "plan.json", plan)
        for job in to_do(jobs, out):  # what they left behind in an earlier run is no news
            (out / log_of(job, grid.name)).unlink(missing_ok=True)
            (out / job.target).with_name(FAILED).unlink(missing_ok=True)
        print(counts(jobs, out), flush=True)
        command = [
            *(sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow" / "Snakefile")),
            *("--profile", str(profile), "--directory", str(out), "--config", f"plan={folder / 'plan.json'}"),
            *("--forcerun", "results"),  # cheap, and right when a cell has left the grid
        ]
        if local:
            command += ["--cores", str(max(options.cores, gpus * options.threads)), "--resources", f"gpu={gpus}"]
        _snakemake(command + more, descriptor)
        left = to_do(jobs, out)
        table = collect([asdict(job) for job in jobs], out, grid.name)
    print(counts(jobs, out))
    for line in failures(left, out, grid.name):
        print(line, file=sys.stderr)
    if table is not None:
        print(f"results: {table}")
    return INCOMPLETE if left else OK


def _profile(name: str) -> tuple[Path, bool]:
    """The folder of a Snakemake profile, and whether its jobs run on this machine."""
    ours = ROOT / "profiles" / name
    settings = (ours if ours.is_dir() else Path(name).resolve()) / "config.yaml"
    require(settings.is_file(), f"there is no profile {name}: expected local, slurm, or the folder of one")
    return settings.parent, yaml.safe_load(settings.read_text(encoding="utf-8")).get("executor", "local") == "local"


def _snakemake(command: list[str], lock: int | None) -> None:
    """Run Snakemake, which keeps the lock should it outlive this process; its jobs run this very tadlib.

    After Ctrl-C, which it gets as well, wait for it to end its jobs.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen(command, env=environment, pass_fds=() if lock is None else (lock,))
    while process.poll() is None:
        try:
            process.wait()
        except KeyboardInterrupt:
            continue


def _gpus(device: str) -> int:
    """GPUs that this machine has and ``device`` lets us use."""
    import torch

    return 0 if device == "cpu" else torch.cuda.device_count()


def log_of(job: "Job", grid: str) -> str:
    """Where the Snakefile has a job write what it prints."""
    name = f"{job.cell}-{Path(job.target).parent.name}" if job.stage == "cell" else job.key
    return f"{grid}/logs/{job.stage}-{name}.log"


def counts(jobs: "Iterable[Job]", out: Path) -> str:
    """One line: how many jobs of each kind are done."""
    jobs = list(jobs)
    total = Counter(job.stage for job in jobs)
    done = Counter(job.stage for job in jobs if (out / job.target).exists())
    return "done: " + ", ".join(f"{done[stage]} of {n} {stage}" for stage, n in total.items())


def plan_text(jobs: "list[Job]", out: Path) -> str:
    """Every cell and whether it is done, then the jobs that would be run."""
    from workflow.jobs import to_do

    todo = to_do(jobs, out)
    missing = {job.target for job in todo}
    lines = [f"{'to run' if j.target in missing else 'done  '}  {j.cell}" for j in jobs if j.stage == "cell"]
    run = Counter(job.stage for job in todo)
    lines += [counts(jobs, out), "to run: " + (", ".join(f"{n} {stage}" for stage, n in run.items()) or "nothing")]
    return "\n".join(lines)


def failures(left: "Iterable[Job]", out: Path, grid: str) -> list[str]:
    """What went wrong, from the notebooks and logs of the jobs that are not done."""
    lines = []
    for job in left:
        notebook, log = (out / job.target).with_name(FAILED), out / log_of(job, grid)
        text = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        why = text[-1].removeprefix("error: ") if text else ""
        if job.stage == "cell" and notebook.exists():
            lines.append(f"failed: {job.cell}: {why}\n  notebook: {notebook}")
        elif text:
            shared = "" if job.stage == "cell" else f"{job.stage}, and with it every cell that shares it: "
            lines.append(f"failed: {job.cell}: {shared}{why}\n  log: {log}")
    return lines
