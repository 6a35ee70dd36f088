"""The transition matrix from left-out predictions: formulas against loops, and matrices that are known."""

import math

import pytest
import torch

from tadlib import data, noise, patches, transition
from tadlib.training import one_hot
from tadlib.transition import Explanation, explain, level, objective, price, unmix, with_directions, without_direction

K = 5


def one_way(rate, k=K, to=1):
    """Labels flip to the class ``to`` places on."""
    eye = torch.eye(k, dtype=torch.float64)
    return (1 - rate) * eye + rate * eye.roll(to, 1)


def swapped(rate, k=6):
    """Labels of classes 0 and 1 are exchanged, all others are right."""
    T = torch.eye(k, dtype=torch.float64)
    T[0, 0] = T[1, 1] = 1 - rate
    T[0, 1] = T[1, 0] = rate
    return T


def problem(T, n=6000, clear=4.0, seed=0, shares=None):
    """r, what a good regression says of labels that it has not seen, p T and some error; true and given labels."""
    rng, k = torch.Generator().manual_seed(seed), len(T)
    prior = torch.zeros(k, dtype=torch.float64) if shares is None else torch.tensor(shares).double().log()
    p = (prior + clear * torch.randn(n, k, generator=rng, dtype=torch.float64)).softmax(1)
    true = torch.multinomial(p, 1, generator=rng)[:, 0]
    given = torch.multinomial(T[true], 1, generator=rng)[:, 0]
    r = 0.6 * p @ T + 0.4 / k + 0.08 * torch.randn(n, k, generator=rng, dtype=torch.float64)
    return r.float(), true, given


def error(a, b):
    return (a - b).abs().sum(1).mean().item()


def test_level_matrices_are_distributions_without_direction():
    for rate in (0.0, 0.3, 0.8):
        T = level(rate, K)
        assert T.dtype == torch.float64
        torch.testing.assert_close(T.sum(1), torch.ones(K).double())
        assert T.diagonal().tolist() == pytest.approx([1 - rate] * K)
        assert torch.equal(T, T.T)


def test_unmixing_solves_the_damped_least_squares_problem():
    T, r = one_way(0.3), torch.randn(4, K, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = unmix(r, T)
    for i in range(4):
        stacked = torch.cat([T.T, math.sqrt(transition.EPSILON) * torch.eye(K).double()])
        target = torch.cat([r[i], torch.zeros(K).double()])
        torch.testing.assert_close(p[i], torch.linalg.lstsq(stacked, target[:, None]).solution[:, 0])


def test_objective_and_price_equal_loops():
    rng = torch.Generator().manual_seed(0)
    p = torch.rand(40, K, generator=rng, dtype=torch.float64).softmax(1)
    given, T = torch.arange(40) % (K - 1), one_way(0.4)  # nobody is given the last class
    likelihood = sum(math.log(sum(p[i, y].item() * T[y, given[i]].item() for y in range(K))) for i in range(40)) / 40
    off = 0.0
    for k in range(K - 1):
        share = sum(int(g) == k for g in given) / 40
        off += share * math.log(share / (sum(p[i, k].item() for i in range(40)) / 40))
    assert objective(p, given, T).item() == pytest.approx(likelihood - transition.BALANCE * off, rel=1e-10)
    assert price(40, K) == pytest.approx((0.5 * math.log(40) + math.log(20)) / 40 + transition.WORTH)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4, 0.6])
def test_a_rate_without_direction_is_found_and_no_direction_is_made_up(rate):
    r, _, given = problem(level(rate, K))
    found = explain(r, given)
    assert error(found.transition, level(rate, K)) < 0.12
    # directions, if any, are no part of the answer: entries beside the diagonal are alike
    off = found.transition[~torch.eye(K, dtype=torch.bool)]
    assert off.max() - off.min() < 0.03


def test_much_noise_is_not_taken_for_none():
    """At .8 a label says little: that a fifth of them is right and that all are explains them nearly as well."""
    loaded = data.load_dataset("digits")
    labels = noise.inject(loaded.y_train, "symmetric", 0.8, n_classes=10, seed=0)
    y, use = one_hot(labels.given_N, 10), torch.ones(len(labels.given_N), dtype=torch.bool)
    random = torch.Generator().manual_seed(0)
    r = patches.left_out(loaded.x_train, y, use, count=64, mirror=False, generator=random)
    assert explain(r, labels.given_N).transition.diagonal().mean() < 0.5


@pytest.mark.parametrize(
    "truth", [one_way(0.4), one_way(0.2), swapped(0.4), 0.5 * one_way(0.3) + 0.5 * level(0.3, K)], ids=str
)
def test_directions_are_found(truth):
    r, _, given = problem(truth)
    found = explain(r, given)
    assert error(found.transition, truth) < 0.12
    assert found.score > without_direction(r, given).score + price(*r.shape)
    torch.testing.assert_close(found.transition.sum(1), torch.ones(len(truth)).double(), atol=1e-5, rtol=0)


def test_directions_can_be_left_out():
    r, _, given = problem(one_way(0.4))
    found = explain(r, given, directions=False)
    off = found.transition[~torch.eye(K, dtype=torch.bool)]
    assert off.max() == off.min()


def test_few_entries_are_free_in_the_end_and_each_has_its_price():
    r, _, given = problem(one_way(0.4))
    matrices = with_directions(r, given, 10.0)
    distinct = [len(set(m.transition[~torch.eye(K, dtype=torch.bool)].mul(1e4).round().tolist())) for m in matrices]
    assert distinct[0] > 2 * max(distinct[1:]) - 2 > 2
    last = matrices[-1]
    p = last.view(r).double()
    free = int((last.transition > 0.2).sum()) - K + 1
    value = objective(p, given, last.transition).item()
    assert last.score == pytest.approx(value - free * price(*r.shape), abs=1e-5)


def test_two_classes_hard_to_tell_apart_share_what_they_have():
    """Either could pass for nearly all of both, with hardly less likely labels; the balance decides for neither."""
    T = swapped(0.4)
    r, _, given = problem(T, n=8000, clear=2.5, seed=3)
    found = explain(r, given).transition
    assert (found[0, 1] - found[1, 0]).abs() < 0.15


def test_classes_need_not_be_alike_in_size():
    truth = one_way(0.3)
    r, _, given = problem(truth, n=12000, shares=[0.4, 0.3, 0.15, 0.1, 0.05])
    assert error(explain(r, given).transition, truth) < 0.2


def test_the_view_is_a_distribution_and_less_blurred_than_the_labels():
    r, true, given = problem(one_way(0.4))
    found = explain(r, given)
    p = found.view(r)
    torch.testing.assert_close(p.sum(1), torch.ones(len(r)))
    assert (p.argmax(1) == true).double().mean() > (r.argmax(1) == true).double().mean() + 0.02


def test_same_input_same_bits_and_one_class_or_two_are_enough():
    r, _, given = problem(one_way(0.4), n=500)
    assert torch.equal(explain(r, given).transition, explain(r, given).transition)
    one = explain(torch.ones(4, 1), torch.zeros(4, dtype=torch.long))
    assert one.transition.tolist() == [[1.0]]
    r, _, given = problem(level(0.3, 2), n=4000)
    assert error(explain(r, given).transition, level(0.3, 2)) < 0.15


def test_an_explanation_holds_what_was_found():
    r, _, given = problem(one_way(0.4), n=500)
    found = explain(r, given)
    assert isinstance(found, Explanation)
    assert found.transition.dtype == torch.float64
    assert not found.transition.requires_grad
    assert found.score < 0 < found.scale
