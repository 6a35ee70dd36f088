"""The benchmark of the informed auditor: what it counts."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def informed():
    before = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("informed", FOLDER / "informed.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path[:] = before
        for name in ("trust", "refined"):
            sys.modules.pop(name, None)


def test_mended_is_the_largest_share_that_is_right_often_enough(informed):
    rng = torch.Generator().manual_seed(0)
    n, k = 400, 5
    true = torch.randint(k, (n,), generator=rng)
    given = torch.where(torch.rand(n, generator=rng) < 0.4, torch.randint(k, (n,), generator=rng), true)
    sureness = torch.rand(n, generator=rng)
    # the surer, the more often right
    label = torch.where(torch.rand(n, generator=rng) < sureness, true, torch.randint(k, (n,), generator=rng))
    best = 0
    for bar in sureness:
        chosen = [i for i in range(n) if sureness[i] >= bar and label[i] != given[i]]
        right = sum(int(label[i] == true[i]) for i in chosen)
        if right >= informed.RIGHT * len(chosen):
            best = max(best, right)
    found = informed.mended(sureness, label, given, true)
    assert 0 < found < 1
    assert found == pytest.approx(best / int((given != true).sum()))


def test_the_truth_mends_everything_and_the_given_labels_nothing(informed):
    true = torch.arange(20) % 4
    given = (true + (torch.arange(20) < 8)) % 4
    sure = torch.ones(20)
    assert informed.mended(sure, true, given, true) == 1
    assert informed.mended(sure, given, given, true) == 0
    assert informed.mended(sure, true, true, true) == 0  # nothing to mend
    p = torch.full((20, 4), 0.01).scatter(1, true[:, None], 0.97)
    assert informed.judged(p, given, true) == {"informed_auroc": 1.0, "informed_mended": 1.0}


def test_a_setting_without_noise_is_refused_before_any_work(informed, tmp_path, capsys):
    out = tmp_path / "runs"
    assert informed.main(["--settings", "digits:none", "--out", str(out), "--preset", "smoke"]) == 2
    assert "noisy" in capsys.readouterr().err
    assert not out.exists()
