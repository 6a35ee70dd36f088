"""Kill a run with SIGKILL at random moments of its stages, go on, and compare with a run that nobody disturbed.

    python tests/kill_stages.py [KILLS] [SEED]     exit status 0 when every file ends with the same bits

Processes are forked from one that has imported everything, so that a kill costs no start. ``tests/test_pipeline.py``
does the same with a few kills.
"""

import os
import random
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
PARAMS |= {"mtt_iterations": 20, "mtt_syn_steps": 3, "mtt_expert_epochs": 2, "mtt_max_start": 2}
PARAMS |= {"evaluate_networks": 2, "evaluate_epochs": 20}


def start(out: Path) -> int:
    """A child that carries out the run, with a checkpoint after every step; its id."""
    child = os.fork()
    if child == 0:
        pipeline.CHECKPOINT_SECONDS = -1.0
        status = 1
        try:
            pipeline.run(Config.from_params(**PARAMS, out=str(out)))
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
    draw, killed, rounds = random.Random(seed), Counter[str](), 0
    with tempfile.TemporaryDirectory() as folder:
        quiet, begun = Path(folder) / "quiet", time.monotonic()
        assert os.waitpid(start(quiet), 0)[1] == 0, "the undisturbed run failed"
        seconds, expected = time.monotonic() - begun, digests(quiet)
        assert len(expected) == len(STAGES)
        while killed.total() < kills:
            rounds += 1
            out, status = Path(folder) / f"disturbed-{rounds}", 1
            while status != 0:
                child = start(out)
                if killed.total() < kills:
                    time.sleep(draw.uniform(0, seconds / 3))
                    os.kill(child, signal.SIGKILL)  # one that has ended waits to be asked, so that the id is its own
                status = os.waitpid(child, 0)[1]
                if os.WIFSIGNALED(status):
                    killed[underway(out)] += 1
                else:
                    assert status == 0, "a run that went on failed"
            if digests(out) != expected:
                print(f"round {rounds}: other bits in {out}", file=sys.stderr)
                return 1
    print(f"{killed.total()} kills in {rounds} runs of {seconds:.1f} s, in the stages {dict(killed)}: all bits equal")
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
