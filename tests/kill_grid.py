"""Kill a grid's run with SIGKILL at random moments, resume it, and compare with a run that nobody disturbed.

    python tests/kill_grid.py [KILLS] [SEED]     ten kills of tests/grids/tiny.yml; exit status 0 when nothing was lost

Takes some minutes. ``tests/test_grid_runs.py`` does the same with one kill of a smaller grid.
"""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
GRID = ROOT / "tests" / "grids" / "tiny.yml"
# what may differ when the same run is repeated: what is measured, and a commit in between
MEASURED = [f"seconds_{s}" for s in ("divert", "experts", "distill", "evaluate")] + ["peak_memory_bytes", "commit"]


def command(grid: Path, out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "workflow", str(grid), "--out", str(out), "--device", "cpu", *options]


def start(grid: Path, out: Path, *options: str) -> subprocess.Popen:
    """The command, in a process group of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command(grid, out, *options), cwd=ROOT, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def descendants(pid: int) -> list[int]:
    """All processes below ``pid``, kernels of notebooks included, which have sessions of their own."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, open_ = [], [pid]
    while open_:
        below = children.get(open_.pop(), [])
        found += below
        open_ += below
    return found


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to the whole workflow at once, as a power cut would end it."""
    stopped: list[int] = []
    while new := [pid for pid in [process.pid, *descendants(process.pid)] if pid not in stopped]:
        for pid in new:  # stopped first, so that none starts another one while we look for them
            _send(pid, signal.SIGSTOP)
        stopped += new
    for pid in stopped:
        _send(pid, signal.SIGKILL)
    process.wait()


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def interrupted(process: subprocess.Popen, moment: Callable[[], bool]) -> bool:
    """Kill the command when ``moment`` says so; whether that was before its end."""
    while process.poll() is None:
        if moment():
            kill(process)
            return True
        time.sleep(0.02)
    return False


def finished(out: Path, grid: str) -> dict[str, int]:
    """Every job that is done by its target, and when its log was last written: a job that starts empties its log."""
    path = out / grid / "plan.json"
    jobs = json.loads(path.read_text())["jobs"] if path.exists() else []
    done = [job["target"] for job in jobs if (out / job["target"]).exists()]
    logs = {target: out / grid / "logs" / f"{'-'.join(Path(target).parts[-3:-1])}.log" for target in done}
    return {target: log.stat().st_mtime_ns for target, log in logs.items() if log.exists()}


def runs_done(out: Path, grid: str) -> int:
    return sum(Path(target).name == "run.ipynb" for target in finished(out, grid))


def table(out: Path, grid: str) -> pd.DataFrame:
    """The results of a grid without what is measured."""
    return pd.read_parquet(out / grid / "results.parquet").drop(columns=MEASURED)


def disturb(out: Path, kills: int, draw: random.Random, longest: float) -> tuple[int, list[str]]:
    """Run the grid with so many kills, or fewer where it ends before; kills, and what was run again after its end."""
    before: dict[str, int] = {}
    for kill_ in range(1, kills + 1):
        wait, begun = draw.uniform(1, longest), time.monotonic()
        if not interrupted(start(GRID, out), lambda: time.monotonic() - begun > wait):  # noqa: B023
            kills = kill_ - 1
            break
        before = finished(out, GRID.stem) | before
        print(f"kill after {wait:.1f} s: {runs_done(out, GRID.stem)} runs done", flush=True)
    assert start(GRID, out).wait() == 0, "the last run failed"
    after = finished(out, GRID.stem)
    again = [target for target, written in before.items() if after.get(target) != written]
    print(f"after {kills} kills: {len(after)} jobs done; run again after their end: {again or 'none'}", flush=True)
    return kills, again


def main(kills: int = 10, seed: int | None = None) -> int:
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    draw, left, again = random.Random(seed), kills, []
    print(f"{kills} kills, seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        begun, quiet = time.monotonic(), Path(folder) / "quiet"
        assert start(GRID, quiet).wait() == 0, "the undisturbed run failed"
        seconds, cpu = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
        longest = seconds / 4  # so that the kills are spread over the work
        work = sum(json.loads(path.read_text())["seconds"] for path in quiet.glob("*/*/manifest.json"))
        runs = runs_done(quiet, GRID.stem)
        overhead = [(spent - work) / runs for spent in (seconds, cpu.ru_utime + cpu.ru_stime)]
        print(f"undisturbed run: {seconds:.0f} s for {runs} runs, {work:.0f} s of work in stages; overhead a run:")
        print(f"{overhead[0]:.1f} s, {overhead[1]:.1f} s of CPU time; load {os.getloadavg()[0]:.1f}", flush=True)
        while left:  # a grid that ends before all kills is run anew in another folder
            out = Path(folder) / f"disturbed-{left}"
            done, rerun = disturb(out, left, draw, longest)
            pd.testing.assert_frame_equal(table(quiet, GRID.stem), table(out, GRID.stem))
            left, again = left - done, again + rerun
    print("the tables are equal")
    return 1 if again else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
