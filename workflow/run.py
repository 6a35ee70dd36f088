"""The one command of a grid: check it, plan it, have Snakemake run it, report what came of it.

Runs, resumes after whatever ended the last run, and runs again what depends on a change of grid, notebook, data or
library. See :mod:`workflow.jobs` for why that needs no help.
"""

import argparse
import fcntl
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import torch
import yaml

from tadlib.errors import InputError, require, usable
from tadlib.store import claim_output, save_json
from workflow.cost import STAGES, cost_text, measured
from workflow.job import FAILED
from workflow.jobs import NOTEBOOK, ROOT, Job, collect, grid_jobs, to_do
from workflow.load import load_grid

OK, INCOMPLETE, BAD_INPUT = 0, 1, 2  # exit statuses
# Runs that Snakemake gets at once: it looks at the files of all of them again whenever one ends, and from then on once
# a second more often. The more run at a time, the longer a piece, for workers are idle at its end.
PIECE, LONG = 64, 16


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status: 0 when all runs are done, 1 when not, 2 for bad input."""
    options, more = _parser().parse_known_args(arguments)
    try:
        return _run(options, more)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:  # a folder that cannot be written, a full disk
        print(f"error: {error}", file=sys.stderr)
        return INCOMPLETE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m workflow",
        allow_abbrev=False,
        description="Run a grid, or go on with it. Further options are Snakemake's.",
    )
    number, threads = _at_least(1), "CPU threads of a job, on this machine at most as many as it has (default: 1)"
    parser.add_argument("grid", help="name of a file in grids/, or the path of one")
    parser.add_argument("--plan", action="store_true", help="only show what is done and what would be run")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="output folder (default: runs)")
    parser.add_argument("--root", default=os.environ.get("TADLIB_DATA_ROOT"), help="folder of the data sets' files")
    parser.add_argument("--profile", default="local", help="local, slurm, or the path of a Snakemake profile")
    parser.add_argument("--cores", type=number, default=1, help="jobs at a time on a machine without GPU (default: 1)")
    parser.add_argument("--gpus", type=_at_least(0), help="GPUs, one job each (default: all; slurm: 0, else 1 a job)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=number, default=1, help=threads)
    return parser


def _at_least(least: int) -> Callable[[str], int]:
    """For argparse: whole numbers from ``least`` on."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"expected a whole number, {least} or more, got {text!r}")
        return number

    return parse


def _run(options: argparse.Namespace, more: list[str]) -> int:
    path = usable(options.grid) if options.grid.endswith((".yml", ".yaml")) else ROOT / "grids" / f"{options.grid}.yml"
    require(path.stem not in ("noise", *STAGES), f"grid {path.stem} must not be called like a stage")
    require(not set("{}") & set(path.stem), f"the name of a grid must not contain braces, got {path.stem}")
    profile, local = _profile(options.profile)
    cores = os.cpu_count() or 1
    enough = not local or options.threads <= cores
    require(enough, f"threads must not exceed the {cores} cores of this machine, got {options.threads}")
    out, root = usable(options.out).resolve(), options.root and str(usable(options.root).resolve())
    machine = {"out": str(out), "root": root, "device": options.device, "threads": options.threads}
    grid = load_grid(path, **machine)
    jobs = grid_jobs(grid)
    if options.plan:
        print(plan_text(jobs, out))
        print(cost_text(to_do(jobs, out), {r.name: r.config for r in grid.runs}, measured(out, ROOT / "results")))
        return OK

    require(find_spec("snakemake") is not None, "a grid is run by Snakemake: install tadlib with its extra grid")
    gpus = _gpus(options.gpus, options.device, local)
    folder = claim_output(out) / grid.name
    folder.mkdir(exist_ok=True)
    with open(folder / ".lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"grid {grid.name} is being run in {out} by another process") from error
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
        snakemake = [sys.executable, "-m", "snakemake"]
        command = [
            *("--snakefile", str(ROOT / "workflow" / "Snakefile")),
            *("--profile", str(profile), "--directory", str(out), "--config", f"plan={folder / 'plan.json'}"),
        ]
        targets = [job.target for job in to_do(jobs, out) if job.stage == "run"]
        size = max(1, len(targets))
        if local:
            at_a_time = gpus or options.cores
            command += ["--cores", str(at_a_time * options.threads), "--resources", f"gpu={gpus}"]
            size = max(PIECE, LONG * at_a_time)
        for start in range(0, len(targets), size):
            stopped = _snakemake([*snakemake, *targets[start : start + size], *command, *more], lock.fileno())
            if stopped or not (folder / "plan.json").exists():
                break
        left = to_do(jobs, out)
        if left and not (folder / "plan.json").exists():  # see workflow.job.main
            raise OSError(f"no space left for {out}, {counts(jobs, out)}: the same command goes on when there is room")
        table = collect(jobs, out, grid.name)
    print(counts(jobs, out))
    for line in failures(left, out, grid.name):
        print(line, file=sys.stderr)
    if table is not None:
        print(f"results: {table}")
    return INCOMPLETE if left else OK


def _profile(name: str) -> tuple[Path, bool]:
    """The folder of a Snakemake profile, and whether its jobs run on this machine."""
    ours = ROOT / "profiles" / name
    settings = (ours if ours.is_dir() else usable(name).resolve()) / "config.yaml"
    require(settings.is_file(), f"there is no profile {name}: expected local, slurm, or the folder of one")
    return settings.parent, yaml.safe_load(settings.read_text(encoding="utf-8")).get("executor", "local") == "local"


def _gpus(asked: int | None, device: str, local: bool) -> int:
    """How many GPUs to use; those of this machine where jobs run here. With ``device`` cpu they are only counted."""
    if not local or device == "cpu":
        return asked or 0
    there = torch.cuda.device_count()
    require(asked is None or asked <= there, f"gpus must not exceed the {there} of this machine, got {asked}")
    return there if asked is None else asked


def _snakemake(command: list[str], lock: int) -> bool:
    """Run Snakemake, which keeps the lock should it outlive this process; its jobs run this very clone.

    After Ctrl-C, which it gets as well, wait for it to end its jobs. Returns whether there was one.
    """
    interrupted = False
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen(command, env=environment, pass_fds=(lock,))
    while process.poll() is None:
        try:
            process.wait()
        except KeyboardInterrupt:
            interrupted = True
    return interrupted


def log_of(job: Job, grid: str) -> str:
    """Where the Snakefile has a job write what it prints."""
    return f"{grid}/logs/{'-'.join(Path(job.target).parts[-3:-1])}.log"


def counts(jobs: list[Job], out: Path) -> str:
    """One line: how many jobs of each kind are done."""
    done = Counter(job.stage for job in jobs if (out / job.target).exists())
    total = Counter(job.stage for job in jobs)
    return "done: " + ", ".join(f"{done[stage]} of {n} {stage}" for stage, n in total.items())


def plan_text(jobs: list[Job], out: Path) -> str:
    """Every run and whether it is done, then the jobs that would be run."""
    todo = to_do(jobs, out)
    runs = [job for job in jobs if job.stage == "run"]
    lines = [f"{'done  ' if (out / job.target).exists() else 'to run'}  {job.run}" for job in runs]
    by_stage = Counter(job.stage for job in todo)
    lines += [counts(jobs, out), "to run: " + (", ".join(f"{n} {stage}" for stage, n in by_stage.items()) or "nothing")]
    return "\n".join(lines)


def failures(left: list[Job], out: Path, grid: str) -> list[str]:
    """What went wrong, from the notebooks and logs of the jobs that are not done."""
    lines = []
    for job in left:
        notebook, log = (out / job.target).with_name(FAILED), out / log_of(job, grid)
        text = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        why = text[-1].removeprefix("error: ") if text else ""
        if job.stage == "run" and notebook.exists():
            lines.append(f"failed: {job.run}: {why}\n  notebook: {notebook}")
        elif text:
            shared = "" if job.stage == "run" else f"{job.stage}, and with it every run that shares it: "
            lines.append(f"failed: {job.run}: {shared}{why}\n  log: {log}")
    return lines
