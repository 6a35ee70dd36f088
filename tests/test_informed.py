"""The benchmark of the informed auditor: what it counts."""

import sys
from pathlib import Path

import pytest
import torch
from scripts import script

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def informed():
    before = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    try:
        module = script("benchmarks/informed.py")
        yield module
    finally:
        sys.path[:] = before
        for name in ("trust", "refined"):
            sys.modules.pop(name, None)


def test_corrected_is_the_largest_share_that_is_right_often_enough(informed):
    rng = torch.Generator().manual_seed(0)
    n, k = 400, 5
    true = torch.randint(k, (n,), generator=rng)
    noisy = torch.where(torch.rand(n, generator=rng) < 0.4, torch.randint(k, (n,), generator=rng), true)
    certainty = torch.rand(n, generator=rng)
    # the more certain, the more often right
    label = torch.where(torch.rand(n, generator=rng) < certainty, true, torch.randint(k, (n,), generator=rng))
    best = 0
    for bar in certainty:
        chosen = [i for i in range(n) if certainty[i] >= bar and label[i] != noisy[i]]
        right = sum(int(label[i] == true[i]) for i in chosen)
        if right >= informed.RIGHT * len(chosen):
            best = max(best, right)
    found = informed.corrected(certainty, label, noisy, true)
    assert 0 < found < 1
    assert found == pytest.approx(best / int((noisy != true).sum()))


def test_the_truth_corrects_everything_and_the_noisy_labels_nothing(informed):
    true = torch.arange(20) % 4
    noisy = (true + (torch.arange(20) < 8)) % 4
    certain = torch.ones(20)
    assert informed.corrected(certain, true, noisy, true) == 1
    assert informed.corrected(certain, noisy, noisy, true) == 0
    assert informed.corrected(certain, true, true, true) == 0  # nothing to correct
    p = torch.full((20, 4), 0.01).scatter(1, true[:, None], 0.97)
    assert informed.judged(p, noisy, true) == {"informed_auroc": 1.0, "informed_mended": 1.0}


def test_a_setting_without_noise_is_refused_before_any_work(informed, tmp_path, capsys):
    out = tmp_path / "runs"
    assert informed.main(["--settings", "digits:none", "--out", str(out), "--preset", "smoke"]) == 2
    assert "noisy" in capsys.readouterr().err
    assert not out.exists()
