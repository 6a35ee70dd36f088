"""Weights of training labels against loops in plain Python."""

import pytest
import torch

from tadlib.trust import calibration
from tadlib.trust.calibration import purity, weight_exponent

K = 5


def test_purity_is_what_a_slow_loop_gives():
    right = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    good = sum(float(r) ** 2.5 * float(r) for r in right)
    assert purity(right, 2.5) == pytest.approx(good / sum(float(r) ** 2.5 for r in right), rel=1e-10)
    certain = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    assert purity(certain, 1.0) == pytest.approx(1.0)
    assert weight_exponent(certain, 0.99) == 1.0


def test_the_exponent_is_the_least_that_makes_labels_as_pure_as_asked():
    right = torch.rand(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = purity(right, 1.0)
    for target in (before + 0.05, before + 0.1):
        exponent = weight_exponent(right, target)
        assert purity(right, exponent) == pytest.approx(target, abs=1e-3)
        assert purity(right, exponent - 0.01) < target
    assert weight_exponent(right, before - 0.01) == 1.0
    assert weight_exponent(right, 1.0) == pytest.approx(calibration.MOST_EXPONENT, abs=1e-3)


def test_labels_are_as_pure_as_asked_where_the_posterior_is_right():
    rng = torch.Generator().manual_seed(0)
    q = torch.randn(20_000, K, generator=rng).mul(2).softmax(1)
    true = torch.multinomial(q, 1, generator=rng)[:, 0]
    right, label = q.max(1)
    weight = right ** weight_exponent(right, 0.9)
    share = (weight * (label == true)).sum() / weight.sum()
    assert share.item() == pytest.approx(0.9, abs=0.01)


def posteriors(n=50):
    rng = torch.Generator().manual_seed(0)
    q = torch.randn(n, K, generator=rng, dtype=torch.float64).mul(2).softmax(1)
    hard = torch.rand(n, generator=rng, dtype=torch.float64)
    hard[:3] = 0
    return q, hard


def test_training_targets_are_what_a_slow_loop_gives():
    (q, hard), soft_weight = posteriors(), 0.3
    y, weight = calibration.training_targets(q, hard, soft_weight)
    for i in range(len(q)):
        u, best = float(hard[i]), int(q[i].argmax())
        mass = [soft_weight * (1 - u) * float(q[i, k]) + (u if k == best else 0) for k in range(K)]
        assert float(weight[i]) == pytest.approx(sum(mass), rel=1e-12)
        assert y[i].tolist() == pytest.approx([m / sum(mass) for m in mass], rel=1e-12)


def test_without_soft_labels_every_sample_has_one_label():
    q, hard = posteriors()
    y, weight = calibration.training_targets(q, hard, 0.0)
    torch.testing.assert_close(weight, hard)
    assert torch.equal(y[3:], torch.nn.functional.one_hot(q.argmax(1)[3:], K).double())
    torch.testing.assert_close(y.sum(1), torch.ones(len(q)).double())
    assert calibration.training_targets(q, torch.ones(len(q)).double(), 0.5)[1].tolist() == pytest.approx([1] * len(q))
