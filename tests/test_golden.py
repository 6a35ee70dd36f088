"""The refined set of every arm stays what it is, bit for bit, until a commit means to change it.

``python tests/test_golden.py`` writes ``tests/golden/refined.json`` anew; such a commit says why. Bits depend on
the processor: on another one than that of the file, counts and accuracies are compared instead.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from tadlib import pipeline
from tadlib.config import ARMS, Config

GOLDEN = Path(__file__).parent / "golden" / "refined.json"
NOISES = ("symmetric", "pairflip", "instance")
TENSORS = ("noisy", "y", "weight", "trust", "space", "reliability", "hard_weight", "transition", "space_history")
TENSORS += ("posterior", "flagged", "noise_rate")
SMALL = {"n_train": 500, "width": 8, "auditor_epochs": 8, "auditor_warmup": 3}


def processor() -> str:
    """The processor as far as it decides about bits, and torch's version."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = sorted(
        {line.replace("\t", "") for line in lines if line.startswith(("vendor_id", "cpu family", "model\t"))}
    )
    return "; ".join([*names, torch.backends.cpu.get_cpu_capability(), f"torch {torch.__version__.split('+')[0]}"])


def refined(arm: str, noise: str, out: Path) -> dict:
    """Digests of the tensors of a refined set of digits, and what can be compared between processors."""
    config = Config.from_params(arm=arm, noise=noise, rate=0.4, preset="smoke", out=str(out), device="cpu", **SMALL)
    found = pipeline.load_refined(pipeline.divert(config))
    digests = {}
    for name in TENSORS:
        value = getattr(found, name, None)
        if value is not None:
            content = f"{value.dtype} {tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes()
            digests[name] = hashlib.sha256(content).hexdigest()[:16]
    true_N = pipeline.load_labels(pipeline.inject_noise(config)).true_N
    return {"digests": digests, "metrics": found.metrics(true_N)}


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("arm", ARMS)
def test_refined_sets_keep_their_bits(arm, noise, tmp_path):
    if arm == "confident-learning":
        pytest.importorskip("cleanlab")
    golden = json.loads(GOLDEN.read_text())
    before, now = golden["sets"][arm][noise], refined(arm, noise, tmp_path)
    if golden["processor"] == processor():
        assert now["digests"] == before["digests"]
    for name, value in before["metrics"].items():
        assert now["metrics"][name] == (value if value is None else pytest.approx(value, abs=0.1, rel=0.2)), name


def write() -> None:
    with tempfile.TemporaryDirectory() as out:
        sets = {arm: {noise: refined(arm, noise, Path(out)) for noise in NOISES} for arm in ARMS}
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps({"processor": processor(), "sets": sets}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(write())
