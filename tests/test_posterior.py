"""The posterior of the true label against loops in plain Python, and on problems with a known answer."""

import math

import pytest
import torch

from tadlib.errors import InputError
from tadlib.posterior import DOUBT, LEAST, SHARPNESS, log_likelihoods, pool, posterior, sharpness

K = 5


def probabilities(n=40, k=K, seed=0):
    return torch.rand(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(1)


def test_pool_is_the_geometric_mean_in_every_row():
    a, b, c = (probabilities(seed=s) for s in range(3))
    pooled = pool([a, b, c]).exp()
    for i in range(len(a)):
        means = [(a[i, k] * b[i, k] * c[i, k]) ** (1 / 3) for k in range(K)]
        for k in range(K):
            assert pooled[i, k].item() == pytest.approx((means[k] / sum(means)).item(), rel=1e-12)


def test_no_view_rules_a_class_out_alone():
    certain = torch.tensor([[1.0, 0.0]])
    assert pool([certain, torch.tensor([[0.0, 1.0]])]).exp()[0].tolist() == pytest.approx([0.5, 0.5])


def test_posterior_equals_bayes_rule_spelled_out():
    p, T, b = probabilities(), probabilities(K, K, seed=1), 1.7
    given = torch.arange(len(p)) % K
    q = posterior(p.log(), given, T, b)
    for i in range(len(p)):
        terms = [p[i, y].item() ** b * T[y, given[i]].item() for y in range(K)]
        assert q[i].tolist() == pytest.approx([term / sum(terms) for term in terms], rel=1e-10)


def slow_log_likelihoods(p, given, T, b):
    found = []
    for i in range(len(p)):
        powers = [p[i, y].item() ** b for y in range(K)]
        found.append(math.log(sum(powers[y] / sum(powers) * T[y, given[i]].item() for y in range(K))))
    return found


def test_likelihoods_equal_a_slow_sum():
    p, T = probabilities(), probabilities(K, K, seed=1)
    given = torch.arange(len(p)) % K
    for b in (0.5, 2.0):
        assert log_likelihoods(p.log(), given, T, b).tolist() == pytest.approx(
            slow_log_likelihoods(p, given, T, b), rel=1e-10
        )


@pytest.mark.parametrize("n, bound", [(30, True), (400, False)])
def test_sharpness_is_the_least_exponent_not_behind_the_best_by_more_than_two_standard_errors(n, bound):
    p, T = probabilities(n=n), 0.7 * torch.eye(K, dtype=torch.float64) + 0.06
    given = torch.multinomial((4 * p.log()).softmax(1) @ T, 1, generator=torch.Generator().manual_seed(2))[:, 0]
    values = {b: slow_log_likelihoods(p, given, T, b) for b in SHARPNESS}
    likeliest = max(values, key=lambda b: sum(values[b]) / n)
    best = values[likeliest]

    def allowed(b):
        behind = [x - y for x, y in zip(best, values[b], strict=True)]
        mean = sum(behind) / len(behind)
        variance = sum((x - mean) ** 2 for x in behind) / (len(behind) - 1)
        return mean <= DOUBT * math.sqrt(variance / len(behind))

    found, least = sharpness(p.log(), given, T), min(b for b in SHARPNESS if allowed(b))
    assert found == min(b for b in SHARPNESS if allowed(b) and b >= LEAST * likeliest)
    assert found < likeliest, "the case must tell it from the likeliest exponent"
    assert (found > least) == bound, "the case must be the one that it is said to be"


def test_sharpness_finds_the_exponent_that_made_the_labels():
    p, T = probabilities(n=50_000), torch.eye(K, dtype=torch.float64)
    given = torch.multinomial((2 * p.log()).softmax(1), 1, generator=torch.Generator().manual_seed(3))[:, 0]
    assert sharpness(p.log(), given, T) == pytest.approx(2.0, rel=0.1)


def test_weights_say_how_much_a_view_counts():
    a, b = (probabilities(seed=s) for s in range(2))
    torch.testing.assert_close(pool([a, b], [2.0, 1.0]), pool([a, a, b]))
    torch.testing.assert_close(pool([a, b], [0.5, 0.5]), pool([a, b]))


def test_bad_views_are_named():
    with pytest.raises(InputError, match="at least one view, got 0"):
        pool([])
    with pytest.raises(InputError, match="evidence must be finite"):
        pool([torch.tensor([[0.5, torch.nan]])])
