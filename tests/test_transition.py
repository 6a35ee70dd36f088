"""The transition matrix from left-out predictions: formulas against loops, and matrices that are known."""

import math

import pytest
import torch

from tadlib import data, noise, patches, transition
from tadlib.discriminant import evidence
from tadlib.errors import InputError
from tadlib.nn.training import one_hot
from tadlib.transition import (
    Explanation,
    alike,
    between_alike,
    class_by_class,
    explain,
    level,
    nearest,
    objective,
    price,
    price_of_choice,
    taken_for,
    with_directions,
    without_direction,
)

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
    """r, what a good regression says of labels that it has not seen, p T and some error; true and noisy labels."""
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


def test_objective_and_price_equal_loops():
    rng = torch.Generator().manual_seed(0)
    p = torch.rand(40, K, generator=rng, dtype=torch.float64).softmax(1)
    given, T = torch.arange(40) % (K - 1), one_way(0.4)  # nobody is given the last class
    likelihood = sum(math.log(sum(p[i, y].item() * T[y, given[i]].item() for y in range(K))) for i in range(40)) / 40
    assert objective(p, given, T).item() == pytest.approx(likelihood, rel=1e-10)
    assert price(40, K) == pytest.approx((0.5 * math.log(40) + math.log(20)) / 40 + transition.WORTH)
    assert price_of_choice(500, K) == pytest.approx(K * math.log(K) / 500)
    # what images say is wrong however many there are
    assert price_of_choice(10**6, K) == price_of_choice(10**4, K) == pytest.approx(K * math.log(K) / 10**4)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4, 0.6])
def test_a_rate_without_direction_is_found_and_no_direction_is_made_up(rate):
    r, _, given = problem(level(rate, K))
    found = explain(evidence(r, given))
    assert error(found.transition, level(rate, K)) < 0.12
    # directions, if any, are no part of the answer: entries beside the diagonal are alike
    off = found.transition[~torch.eye(K, dtype=torch.bool)]
    assert off.max() - off.min() < 0.03


def test_much_noise_is_not_taken_for_none():
    """At .8 a label says little: that a fifth of them is right and that all are explains them nearly as well."""
    loaded = data.load_dataset("digits")
    labels = noise.inject(loaded.y_train, "symmetric", 0.8, n_classes=10, seed=0)
    y, use = one_hot(labels.noisy_N, 10), torch.ones(len(labels.noisy_N), dtype=torch.bool)
    random = torch.Generator().manual_seed(0)
    r = patches.left_out(loaded.x_train, y, use, count=64, mirror=False, generator=random)
    assert explain(evidence(r, labels.noisy_N)).transition.diagonal().mean() < 0.6


@pytest.mark.parametrize("seed", [0, 1])
def test_flips_of_nearly_half_the_labels_are_not_taken_for_their_mirror_image(seed):
    """A class looks most like the one it gets labels from: sending its own there explains labels nearly as well."""
    loaded = data.load_dataset("digits")
    labels = noise.inject(loaded.y_train, "pairflip", 0.45, n_classes=10, seed=seed)
    y, use = one_hot(labels.noisy_N, 10), torch.ones(len(labels.noisy_N), dtype=torch.bool)
    random = torch.Generator().manual_seed(0)
    r = patches.left_out(loaded.x_train, y, use, count=64, mirror=False, generator=random)
    found = explain(evidence(r, labels.noisy_N)).transition
    assert error(found, one_way(0.45, 10)) < 0.2


@pytest.mark.parametrize("truth", [one_way(0.4), one_way(0.2), 0.5 * one_way(0.3) + 0.5 * level(0.3, K)], ids=str)
def test_directions_are_found(truth):
    r, _, given = problem(truth)
    found = explain(evidence(r, given))
    assert error(found.transition, truth) < 0.12
    assert found.score > without_direction(evidence(r, given)).score + price(*r.shape)
    torch.testing.assert_close(found.transition.sum(1), torch.ones(len(truth)).double(), atol=1e-5, rtol=0)


def test_the_best_directions_of_exchanged_classes_are_right_though_their_gain_is_small():
    """Two classes that are exchanged and two that are hard to tell apart explain labels nearly alike."""
    truth = swapped(0.4)
    r, _, given = problem(truth)
    found = max(with_directions(evidence(r, given), 1.0), key=lambda e: e.score)
    assert error(found.transition, truth) < 0.12
    assert found.score > explain(evidence(r, given)).score - 5 * price(*r.shape)


def test_directions_can_be_left_out():
    r, _, given = problem(one_way(0.4))
    found = explain(evidence(r, given), kinds=())
    off = found.transition[~torch.eye(K, dtype=torch.bool)]
    assert off.max() == off.min()


def test_kinds_of_matrices_can_be_left_out_and_an_unknown_one_is_refused():
    r, _, given = problem(one_way(0.4))
    seen = evidence(r, given)
    scores = {kind: explain(seen, kinds=(kind,)).score for kind in transition.KINDS}
    assert max(scores, key=scores.__getitem__) == "one_way"
    assert explain(seen).score == scores["one_way"]
    assert scores["directions"] > scores["alike"]
    with pytest.raises(InputError, match="unknown kind of transition 'two_way'"):
        explain(seen, kinds=("two_way",))


def related(rate, k=6, level=0.0):
    """Three pairs of classes that look alike; wrong labels mostly fall on the other of the pair. T, and centres."""
    other = torch.arange(k) ^ 1
    flips = torch.full((k, k), 1.0, dtype=torch.float64)
    flips[torch.arange(k), other] = 12.0
    flips.fill_diagonal_(0)
    centre = torch.eye(k, dtype=torch.float64)
    centre = centre + 0.6 * centre[other]
    return (1 - rate) * torch.eye(k, dtype=torch.float64) + rate * flips / flips.sum(1, keepdim=True), centre


@pytest.mark.parametrize("rate", [0.1, 0.35])
def test_flips_between_alike_classes_are_found_with_three_numbers(rate):
    T, centre = related(rate)
    rng = torch.Generator().manual_seed(1)
    true = torch.randint(6, (8000,), generator=rng)
    given = torch.multinomial(T[true], 1, generator=rng)[:, 0]
    seen = evidence((centre[true] + 0.35 * torch.randn(8000, 6, generator=rng, dtype=torch.float64)) @ T, given)
    found = between_alike(seen, 1.0)
    torch.testing.assert_close(found.transition.sum(1), torch.ones(6).double(), atol=1e-5, rtol=0)
    assert error(found.transition, T) < 0.5 * error(without_direction(seen).transition, T)
    assert 1 - found.transition.diagonal().mean().item() == pytest.approx(rate, abs=0.08)
    rows = alike(taken_for(seen, 1.0)).exp()
    torch.testing.assert_close(rows.sum(1), torch.ones(6))
    assert torch.equal(rows.argmax(1), torch.arange(6) ^ 1)
    assert not rows.diagonal().any()


def test_flips_between_alike_classes_have_a_price():
    T, centre = related(0.0)
    rng = torch.Generator().manual_seed(2)
    true = torch.randint(6, (4000,), generator=rng)
    seen = evidence(centre[true] + 0.35 * torch.randn(4000, 6, generator=rng, dtype=torch.float64), true)
    found = between_alike(seen, 1.0)
    value = objective(seen.view(found.transition, found.scale), true, found.transition).item()
    assert found.score == pytest.approx(value - 3 * price(4000, 6) - 6 * math.log(6) / 4000, abs=1e-4)
    assert error(explain(seen).transition, level(0.0, 6)) < 0.05


def drawn(T, centre, true, spread=0.35, seed=1):
    """Evidence of labels that flip by T, of images around the centre of their true class."""
    rng = torch.Generator().manual_seed(seed)
    given = torch.multinomial(T[true], 1, generator=rng)[:, 0]
    r = (centre[true] + spread * torch.randn(*centre[true].shape, generator=rng, dtype=torch.float64)) @ T
    return evidence(r, given)


def test_flips_to_the_most_alike_class_are_found_with_two_numbers():
    _, centre = related(0.0)
    eye = torch.eye(6, dtype=torch.float64)
    T = 0.75 * eye + 0.25 * (0.9 * eye[torch.arange(6) ^ 1] + 0.1 * (1 - eye) / 5)
    seen = drawn(T, centre, torch.arange(8000) % 6)
    found = nearest(seen, 1.0)
    assert error(found.transition, T) < 0.1
    value = objective(seen.view(found.transition, found.scale), seen.given, found.transition).item()
    assert found.score == pytest.approx(value - 2 * price(8000, 6) - 0.1 * 6 * math.log(6) / 8000, abs=1e-4)
    assert found.score > between_alike(seen, 1.0).score


@pytest.mark.parametrize("flipping", [20, 7])
def test_of_many_classes_each_of_which_flips_one_way_most_are_found(flipping):
    """As many free entries as there are classes would be too dear: K choices and one rate are not."""
    k = 20
    T = torch.eye(k, dtype=torch.float64)
    T[:flipping] = one_way(0.4, k, to=3)[:flipping]
    r, _, given = problem(T, n=4000, clear=6.0)
    seen = evidence(r, given)
    start = without_direction(seen)
    directions = list(with_directions(seen, start.scale))
    found = transition.one_way(seen, directions, start.scale)
    assert error(found.transition, T) < 0.15
    assert found.score > max(e.score for e in [start, *directions])
    value = objective(seen.view(found.transition, found.scale), given, found.transition).item()
    flips = int(((found.transition - torch.eye(k)).fill_diagonal_(0) > 0.2).sum())
    assert flips == flipping
    paid = 2 * price(4000, k) + k * math.log(k) / 4000 + transition.WORTH_ONE_WAY * flips
    assert found.score == pytest.approx(value - paid, abs=1e-4)


def test_where_wrong_labels_of_a_class_go_is_what_explains_labels_best():
    """Against a loop over every class, every choice and every sample."""
    r, _, given = problem(one_way(0.3), n=200)
    seen, going, stray = evidence(r, given), 0.3, 0.1
    eye = torch.eye(K, dtype=torch.float64)

    def matrix(to):
        return (1 - stray) * ((1 - going) * eye + going * eye[to]) + stray * (1 - eye) / (K - 1)

    to = [2, 1, 0, 4, 3]  # mostly not where they go
    p = seen.view(matrix(to), 1.0).double()
    best = []
    for y in range(K):
        found = []
        for choice in range(K):
            T = matrix(to)
            T[y] = matrix([choice] * K)[y]
            found.append(sum(math.log((p[i] @ T[:, given[i]]).item()) for i in range(200)))
        best.append(max(range(K), key=found.__getitem__))
    numbers = torch.tensor([going, stray]).logit()
    torch.testing.assert_close(transition._to(torch.eye(K)[to], *numbers).double(), matrix(to))
    turned = transition._turned(seen, torch.eye(K)[to], *numbers, torch.tensor(0.0))
    assert torch.equal(turned, torch.eye(K)[best])


def test_classes_that_are_taken_for_others_may_have_more_noise():
    """Of three pairs one is hard to tell apart, and has most of the noise; no class is told how much it has."""
    k = 6
    other = torch.arange(k) ^ 1
    centre = torch.eye(k, dtype=torch.float64)
    centre = centre + torch.tensor([0.8, 0.8, 0.4, 0.4, 0.0, 0.0]).double()[:, None] * centre[other]
    eye = torch.eye(k, dtype=torch.float64)
    rate = torch.tensor([0.45, 0.45, 0.2, 0.2, 0.03, 0.03]).double()[:, None]
    T = (1 - rate) * eye + rate * (0.8 * eye[other] + 0.2 * (1 - eye) / (k - 1))
    seen = drawn(T, centre, torch.arange(9000) % k)
    same = between_alike(seen, 1.0)
    found = class_by_class(seen, same)
    torch.testing.assert_close(found.transition.sum(1), torch.ones(k).double(), atol=1e-5, rtol=0)
    assert found.score > same.score
    assert error(found.transition, T) < 0.7 * error(same.transition, T)
    assert found.transition.diagonal().argsort()[:2].sort().values.tolist() == [0, 1]
    value = objective(seen.view(found.transition, found.scale), seen.given, found.transition).item()
    paid = 5 * price(9000, k) + k * math.log(k) / 9000
    assert found.score == pytest.approx(value - paid, abs=1e-4)


def test_a_matrix_between_alike_classes_equals_loops():
    rng = torch.Generator().manual_seed(0)
    counts = torch.rand(K, K, generator=rng) + 3 * torch.eye(K)
    r, _, given = problem(level(0.2, K), n=50, shares=[1, 2, 3, 4, 5])
    seen = evidence(r, given)
    ε, γ, u, δ, η = (torch.tensor(v) for v in (-0.5, 1.4, -1.0, 0.7, 0.3))
    found = transition._Alike(seen, counts).matrix(ε, γ, u, δ, η)
    doubt = [math.log((sum(row) - row[y]) / row[y]) for y, row in enumerate(counts.tolist())]
    share = [math.log(K * s) for s in seen.share.tolist()]
    for y, row in enumerate(counts.tolist()):
        e = 1 / (1 + math.exp(0.5 - 0.7 * (doubt[y] - sum(doubt) / K)))
        weight = [row[j] ** 1.4 * math.exp(0.3 * share[j]) * (j != y) for j in range(K)]
        stray = 1 / (1 + math.exp(1.0))
        for j in range(K):
            flips = (1 - stray) * weight[j] / sum(weight) + stray / (K - 1)
            assert found[y, j].item() == pytest.approx(1 - e if j == y else e * flips, rel=1e-4)


def test_few_entries_are_free_in_the_end_and_each_has_its_price():
    r, _, given = problem(one_way(0.4))
    seen = evidence(r, given)
    matrices = list(with_directions(seen, 1.0))
    distinct = [len(set(m.transition[~torch.eye(K, dtype=torch.bool)].mul(1e4).round().tolist())) for m in matrices]
    assert distinct[0] > 2 * max(distinct[1:]) - 2 > 2
    last = matrices[-1]
    p = seen.view(last.transition, last.scale).double()
    free = int((last.transition > 0.2).sum()) - K + 1
    value = objective(p, given, last.transition).item()
    assert last.score == pytest.approx(value - free * price(*r.shape), abs=1e-5)


def test_two_classes_hard_to_tell_apart_share_what_they_have():
    """Either could pass for nearly all of both, with hardly less likely labels: neither takes all of the other."""
    T = swapped(0.4)
    r, _, given = problem(T, n=8000, clear=2.5, seed=3)
    found = explain(evidence(r, given)).transition
    assert (found[0, 1] - found[1, 0]).abs() < 0.15


def test_classes_need_not_be_alike_in_size():
    truth = one_way(0.3)
    r, _, given = problem(truth, n=12000, shares=[0.4, 0.3, 0.15, 0.1, 0.05])
    assert error(explain(evidence(r, given)).transition, truth) < 0.2


def test_the_view_is_a_distribution_and_less_blurred_than_the_labels():
    r, true, given = problem(one_way(0.4))
    found = explain(evidence(r, given))
    p = evidence(r, given).view(found.transition, found.scale)
    torch.testing.assert_close(p.sum(1), torch.ones(len(r)))
    assert (p.argmax(1) == true).double().mean() > (r.argmax(1) == true).double().mean() + 0.02


def test_same_input_same_bits_and_one_class_or_two_are_enough():
    r, _, given = problem(one_way(0.4), n=500)
    assert torch.equal(explain(evidence(r, given)).transition, explain(evidence(r, given)).transition)
    one = explain(evidence(torch.ones(4, 1), torch.zeros(4, dtype=torch.long)))
    assert one.transition.tolist() == [[1.0]]
    r, _, given = problem(level(0.3, 2), n=4000)
    assert error(explain(evidence(r, given)).transition, level(0.3, 2)) < 0.15


def test_an_explanation_holds_what_was_found():
    r, _, given = problem(one_way(0.4), n=500)
    found = explain(evidence(r, given))
    assert isinstance(found, Explanation)
    assert found.transition.dtype == torch.float64
    assert not found.transition.requires_grad
    assert found.score < 0 < found.scale
