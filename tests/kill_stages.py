"""Kill a run with SIGKILL at random moments of its stages, go on, and compare with a run that nobody disturbed.

    python tests/kill_stages.py [KILLS] [SEED]     exit status 0 when every file ends with the same bits

Processes are forked from one that has imported everything, so that a kill costs no start. ``tests/test_pipeline.py``
does the same with a few kills.
"""

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tadlib import pipeline
from tadlib.config import Config
from tadlib.store import load_json

STAGES = ("noise", "divert", "experts", "distill", "evaluate")
PARAMS = {"noise": "pairflip", "rate": 0.3, "n_train": 200, "n_test": 100, "ipc": 1, "device": "cpu", "width": 4}
PARAMS |= {"arm": "tad", "auditor_epochs": 8, "auditor_warmup": 2, "expert_count": 3, "expert_epochs": 6}
PARAMS |= {"mtt_iterations": 8, "mtt_syn_steps": 3, "mtt_expert_epochs": 2, "mtt_max_start": 2}
PARAMS |= {"evaluate_networks": 2, "evaluate_epochs": 8}


def config(out: Path) -> Config:
    """The run in a folder."""
    return Config.from_params(**PARAMS, out=str(out))


def start(out: Path) -> int:
    """A child that carries out the run, with a checkpoint after every step; its id."""
    child = os.fork()
    if child == 0:
        pipeline.CHECKPOINT_SECONDS = -1.0
        status = 1
        try:
            pipeline.run(config(out))
            status = 0
        finally:
            os._exit(status)
    return child


def digests(out: Path) -> dict[str, dict]:
    """Name, size and SHA-256 of every file of every stage."""
    paths = [path for stage in STAGES for path in out.glob(f"{stage}/*/manifest.json")]
    return {path.relative_to(out).as_posix(): load_json(path)["files"] for path in paths}


def underway(out: Path) -> str:
    """The stage that is not finished yet."""
    return next((stage for stage in STAGES if not list(out.glob(f"{stage}/*/manifest.json"))), "end")


def main(kills: int = 50, seed: int = 0) -> int:
    draw, killed = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        quiet = Path(folder) / "quiet"
        pipeline.divert(config(Path(folder) / "warm"))  # imports and reads what every child would have to otherwise
        assert os.waitpid(start(quiet), 0)[1] == 0, "the undisturbed run failed"
        expected = digests(quiet)
        begun = time.monotonic()
        assert os.waitpid(start(quiet), 0)[1] == 0, "a finished run failed"
        idle = time.monotonic() - begun  # until a child gets to work
        seconds = {path.parent.parent.name: load_json(path)["seconds"] for path in quiet.glob("*/*/manifest.json")}
        rounds = 0
        while killed.total() < kills:
            rounds += 1
            out, first = Path(folder) / f"disturbed-{rounds}", rounds % len(STAGES)
            shutil.copytree(quiet, out)
            for stage in STAGES[first:]:
                shutil.rmtree(out / stage)
            for _ in range(min(4, kills - killed.total())):
                child = start(out)
                time.sleep(idle * draw.uniform(0.5, 1) + draw.uniform(0, 1.5 * seconds.get(underway(out), 0)))
                os.kill(child, signal.SIGKILL)  # one that has ended keeps its id until it is asked for
                if os.WIFSIGNALED(os.waitpid(child, 0)[1]):
                    killed[underway(out)] += 1
            assert os.waitpid(start(out), 0)[1] == 0, "a run that went on failed"
            if digests(out) != expected:
                print(f"round {rounds}: other bits in {out}", file=sys.stderr)
                return 1
            shutil.rmtree(out)
    print(f"{killed.total()} kills of {rounds} runs, in the stages {dict(killed)}: all bits equal")
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
