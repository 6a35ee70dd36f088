"""The posterior of the true label against loops in plain Python, and on problems with a known answer."""

import math

import pytest
import torch

from tadlib.errors import InputError
from tadlib.posterior import (
    SHARPENED,
    SHARPNESS,
    best_log_likelihood,
    certain_agreement,
    estimate_transition,
    likeliest_transition,
    log_likelihood,
    pool,
    posterior,
    sharpest,
    shrink,
    symmetric,
    transition_of_rate,
)

K = 5


def probabilities(n=40, k=K, seed=0):
    return torch.rand(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(1)


def matrix(rate, k=K, to=1):
    """Labels flip to the class ``to`` places on."""
    eye = torch.eye(k, dtype=torch.float64)
    return (1 - rate) * eye + rate * eye.roll(to, 1)


def problem(transition, n=6000, blur=0.0, seed=0):
    """An image's log p(y | x), nearly certain and right as often as it says; true labels; given labels.

    ``blur`` mixes the truth's T into p, as a network does that was trained on given labels.
    """
    rng, k = torch.Generator().manual_seed(seed), len(transition)
    p = (4 * torch.randn(n, k, generator=rng, dtype=torch.float64)).softmax(1)
    true = torch.multinomial(p, 1, generator=rng)[:, 0]
    given = torch.multinomial(transition[true], 1, generator=rng)[:, 0]
    return ((1 - blur) * p + blur * p @ transition).log(), true, given


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


def test_likelihood_equals_a_slow_sum_and_the_sharpest_exponent_maximises_it():
    p, T = probabilities(), probabilities(K, K, seed=1)
    given = torch.arange(len(p)) % K
    for b in (0.5, 2.0):
        total = 0.0
        for i in range(len(p)):
            powers = [p[i, y].item() ** b for y in range(K)]
            total += math.log(sum(powers[y] / sum(powers) * T[y, given[i]].item() for y in range(K)))
        assert log_likelihood(p.log(), given, T, b) == pytest.approx(total / len(p), rel=1e-10)
    values = {b: log_likelihood(p.log(), given, T, b) for b in SHARPNESS}
    assert values[sharpest(p.log(), given, T)] == max(values.values())


def test_one_step_of_the_estimate_equals_loops():
    p = probabilities(60)
    given = torch.arange(60) % K
    T = estimate_transition(p.log(), given, sharpness=2.0, iterations=1, diagonal=0.7)
    start = [[0.7 if y == k else 0.3 / (K - 1) for k in range(K)] for y in range(K)]
    counts = [[1e-2 / K] * K for _ in range(K)]
    for i in range(60):
        r = [p[i, y].item() ** 2 * start[y][given[i]] for y in range(K)]
        for y in range(K):
            counts[y][given[i]] += r[y] / sum(r)
    for y in range(K):
        assert T[y].tolist() == pytest.approx([c / sum(counts[y]) for c in counts[y]], rel=1e-8)


@pytest.mark.parametrize("transition", [matrix(0.4), 0.5 * matrix(0.2) + 0.5 * matrix(0.2, to=2)], ids=["pair", "two"])
def test_the_transition_matrix_is_recovered(transition):
    log_p, true, given = problem(transition)
    T = estimate_transition(log_p, given, sharpness=1.0)
    assert (T - transition).abs().max() < 0.05
    torch.testing.assert_close(T.sum(1), torch.ones(K).double())
    q = posterior(log_p, given, T)
    assert (q.argmax(1) == true).double().mean() > (log_p.argmax(1) == true).double().mean() + 0.02
    trust = q.gather(1, given[:, None])[:, 0]
    assert (trust.mean() - (given == true).double().mean()).abs() < 0.03  # a probability


def test_sharpness_undoes_the_blur_of_predictions_trained_on_given_labels():
    transition = matrix(0.4)
    log_p, _, given = problem(transition, blur=1.0)
    plain, sharp = (estimate_transition(log_p, given, sharpness=s) for s in (1.0, 3.0))
    assert plain.diagonal().mean() > 0.9  # takes the blur for the truth
    assert (sharp - transition).abs().sum(1).mean() < 0.6 * (plain - transition).abs().sum(1).mean()


def test_clean_labels_give_the_identity():
    log_p, true, _ = problem(matrix(0.0))
    assert (estimate_transition(log_p, true, sharpness=1.0) - torch.eye(K)).abs().max() < 0.05


def test_the_rate_is_kept_by_the_choice_of_sharpness():
    log_p, _, given = problem(matrix(0.4))
    blurred, _, _ = problem(matrix(0.4), blur=1.0)
    for predictions in (log_p, blurred):
        T = transition_of_rate(predictions, given, 0.6)
        assert T.diagonal().mean() == pytest.approx(0.6, abs=0.02)
        assert (T - matrix(0.4)).abs().sum(1).mean() < 0.2


def test_certain_agreement_equals_loops():
    log_p, _, given = problem(matrix(0.3), n=200)
    agree = []
    for k in range(K):
        surest = sorted(range(200), key=lambda i: -log_p[i, k].item())[:4]  # a tenth of 200 / 5
        agree += [given[i].item() == k for i in surest]
    mean = sum(agree) / len(agree)
    expected = mean - math.sqrt(mean * (1 - mean) / len(agree))
    assert certain_agreement(log_p, given) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4])
def test_surely_so_many_labels_are_right_though_images_are_ambiguous(rate):
    transition = matrix(rate)
    rng = torch.Generator().manual_seed(1)
    p = (1.5 * torch.randn(8000, K, generator=rng, dtype=torch.float64)).softmax(1)  # most images are not clear
    true = torch.multinomial(p, 1, generator=rng)[:, 0]
    given = torch.multinomial(transition[true], 1, generator=rng)[:, 0]
    assert 1 - rate - 0.12 < certain_agreement(p.log(), given) < 1 - rate + 0.02
    estimated = estimate_transition(p.log(), given)
    assert rate > 0 or estimated.diagonal().mean() < 0.9  # ambiguity taken for noise, which the bound forbids


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4])
def test_held_out_labels_tell_the_rate_though_images_are_ambiguous(rate):
    transition = matrix(rate)
    rng = torch.Generator().manual_seed(2)
    p = (2.5 * torch.randn(12000, K, generator=rng, dtype=torch.float64)).softmax(1)
    true = torch.multinomial(p, 1, generator=rng)[:, 0]
    given = torch.multinomial(transition[true], 1, generator=rng)[:, 0]
    held_out = torch.arange(12000) % 4 == 0
    T = likeliest_transition((p.log()[~held_out], given[~held_out]), (p.log()[held_out], given[held_out]))
    assert T.diagonal().mean().item() == pytest.approx(1 - rate, abs=0.07)
    values = [
        max(log_likelihood(p.log()[held_out], given[held_out], candidate, b) for b in SHARPNESS)
        for candidate in (estimate_transition(p.log()[~held_out], given[~held_out], sharpness=s) for s in SHARPENED)
    ]
    assert best_log_likelihood(p.log()[held_out], given[held_out], T) == pytest.approx(max(values))


def test_directions_are_believed_where_labels_bear_them_out():
    for truth, weight in ((matrix(0.4), 0.0), (symmetric(matrix(0.4)), 1.0)):
        log_p, _, given = problem(truth)
        T, shrunk = shrink(matrix(0.4), log_p, given)  # a direction, true in the first case alone
        assert shrunk == weight
        torch.testing.assert_close(T, truth)
    _, between = shrink(matrix(0.4), *problem(0.5 * matrix(0.4) + 0.5 * symmetric(matrix(0.4)))[::2])
    assert between == 0.5


def test_symmetric_keeps_the_rate_and_no_direction():
    T = symmetric(matrix(0.4))
    assert T.diagonal().tolist() == pytest.approx([0.6] * K)
    assert torch.equal(T, T.T)
    torch.testing.assert_close(T.sum(1), torch.ones(K).double())


def test_bad_views_are_named():
    with pytest.raises(InputError, match="at least one view, got 0"):
        pool([])
    with pytest.raises(InputError, match="evidence must be finite"):
        pool([torch.tensor([[0.5, torch.nan]])])
