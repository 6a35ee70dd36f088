"""The confident joint and unmixing against loops in plain Python, and matrices that are known."""

import math

import pytest
import torch

from tadlib.trust import confident
from tadlib.trust.confident import confident_transition, unmixed

K = 4


def pairflip(rate, k=K):
    eye = torch.eye(k, dtype=torch.float64)
    return (1 - rate) * eye + rate * eye.roll(1, 1)


def problem(T, n=200, clear=3.0, seed=0):
    """p(y | x), p(ỹ | x) = p T of a perfect classifier of noisy labels; true and noisy labels."""
    rng = torch.Generator().manual_seed(seed)
    p = (clear * torch.randn(n, len(T), generator=rng, dtype=torch.float64)).softmax(1)
    true = torch.multinomial(p, 1, generator=rng)[:, 0]
    return p, p @ T, true, torch.multinomial(T[true], 1, generator=rng)[:, 0]


def slow_transition(p, noisy):
    """T from counts: the confident joint, scaled to the noisy labels, with pseudo-counts."""
    n, k = len(p), len(p[0])
    size = [noisy.count(j) for j in range(k)]
    own = [[p[i][j] for i in range(n) if noisy[i] == j] for j in range(k)]
    threshold = [sum(values) / len(values) if values else math.inf for values in own]
    joint = [[1e-9] * k for _ in range(k)]
    for i in range(n):
        above = [y for y in range(k) if p[i][y] >= threshold[y]]
        if above:
            joint[max(above, key=lambda y: p[i][y])][noisy[i]] += 1
    total = [sum(joint[y][j] for y in range(k)) for j in range(k)]
    joint = [[joint[y][j] / total[j] * size[j] for j in range(k)] for y in range(k)]
    wrong = [sum(row) - row[y] for y, row in enumerate(joint)]
    T = [[0.0] * k for _ in range(k)]
    for y, row in enumerate(joint):
        rate = (wrong[y] + confident.SAMPLES * sum(wrong) / n) / (sum(row) + confident.SAMPLES)
        for j in range(k):
            direction = (row[j] + confident.DIRECTIONS / (k - 1)) / (wrong[y] + confident.DIRECTIONS)
            T[y][j] = 1 - rate if j == y else rate * direction
    return torch.tensor(T, dtype=torch.float64)


@pytest.mark.parametrize("T", [pairflip(0.3), torch.eye(K).double(), torch.full((K, K), 1 / K).double()], ids=str)
def test_the_confident_joint_equals_loops(T):
    _, p, _, noisy = problem(T)
    found = confident_transition(p, noisy)
    torch.testing.assert_close(found, slow_transition(p.tolist(), noisy.tolist()), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found.sum(1), torch.ones(K).double())
    assert found.dtype == confident_transition(p.float(), noisy).dtype == torch.float64


def test_a_class_without_a_label_is_no_obstacle():
    _, p, _, noisy = problem(pairflip(0.3))
    noisy = noisy.where(noisy != 2, 0)
    found = confident_transition(p, noisy)
    torch.testing.assert_close(found, slow_transition(p.tolist(), noisy.tolist()), rtol=1e-6, atol=1e-8)
    assert confident_transition(torch.ones(5, 1), torch.zeros(5, dtype=torch.long)).tolist() == [[1.0]]


def test_many_labels_say_more_than_pseudo_counts():
    """With few samples T has no direction, with many it is the true one."""
    T = pairflip(0.3)
    few, many = (
        confident_transition(p, noisy) for _, p, _, noisy in (problem(T, n=n, clear=8.0) for n in (40, 40_000))
    )
    off = ~torch.eye(K, dtype=torch.bool)
    assert few[off].max() - few[off].min() < 0.04
    assert (many - T).abs().max() < 0.1


def test_unmixing_equals_loops_of_expectation_maximisation(monkeypatch):
    monkeypatch.setattr(confident, "STEPS", 7)
    T = 0.8 * pairflip(0.3) + 0.05
    _, p, *_ = problem(T, n=12)
    found = unmixed(p.float(), T)
    for i in range(12):
        q = [1 / K] * K
        for _ in range(7):
            mixed = [sum(q[y] * T[y, j].item() for y in range(K)) for j in range(K)]
            q = [q[y] * sum(p[i, j].item() / mixed[j] * T[y, j].item() for j in range(K)) for y in range(K)]
            q = [value / sum(q) for value in q]
        assert found[i].tolist() == pytest.approx(q, rel=1e-5)


def test_unmixed_probabilities_are_those_that_were_mixed():
    T = pairflip(0.3)
    true, p, *_ = problem(T, n=50, clear=1.0)
    found = unmixed(p, T)
    torch.testing.assert_close(found.sum(1), torch.ones(50).double())
    torch.testing.assert_close(found, true, atol=2e-2, rtol=0)
    assert (found @ T - p).abs().max() < 1e-2
    torch.testing.assert_close(unmixed(p, torch.eye(K)), p)  # nothing to unmix


def test_a_step_never_makes_the_probabilities_less_likely(monkeypatch):
    T = pairflip(0.4)
    _, p, *_ = problem(T, n=30)
    p = 0.9 * p + 0.1 / K  # which no q explains exactly
    likelihoods = []
    for steps in (1, 2, 5, 20, 100):
        monkeypatch.setattr(confident, "STEPS", steps)
        likelihoods.append((p * (unmixed(p, T) @ T).clamp_min(1e-12).log()).sum().item())
    assert likelihoods == sorted(likelihoods)


def test_impossible_and_degenerate_probabilities_give_distributions():
    certain = torch.eye(K)[torch.arange(8) % K]
    for T in (torch.eye(K), pairflip(1.0), torch.full((K, K), 1 / K), pairflip(0.5)):
        found = unmixed(certain, T)
        assert found.isfinite().all()
        torch.testing.assert_close(found.sum(1), torch.ones(8).double())
    assert confident_transition(certain, torch.arange(8) % K).isfinite().all()
