"""The transition matrix from leave-one-out predictions: formulas against loops, and matrices that are known."""

import math

import pytest
import torch
from noisy_digits import digits

from tadlib.trust import ascent, predictors, transition
from tadlib.trust.predictors import lda_statistics
from tadlib.trust.transition import alike, best_uniform, estimate, free, penalties, uniform

K = 5


def pairflip(rate, k=K, to=1):
    """Labels flip to the class ``to`` places on."""
    eye = torch.eye(k, dtype=torch.float64)
    return (1 - rate) * eye + rate * eye.roll(to, 1)


def swapped(rate, k=6):
    """Labels of classes 0 and 1 are exchanged, all others are right."""
    T = torch.eye(k, dtype=torch.float64)
    T[0, 0] = T[1, 1] = 1 - rate
    T[0, 1] = T[1, 0] = rate
    return T


def problem(T, n=4000, clear=4.0, seed=0, shares=None):
    """r, leave-one-out predictions of a good regression (p T and some error); true and noisy labels."""
    rng, k = torch.Generator().manual_seed(seed), len(T)
    prior = torch.zeros(k, dtype=torch.float64) if shares is None else torch.tensor(shares).double().log()
    p = (prior + clear * torch.randn(n, k, generator=rng, dtype=torch.float64)).softmax(1)
    true = torch.multinomial(p, 1, generator=rng)[:, 0]
    noisy = torch.multinomial(T[true], 1, generator=rng)[:, 0]
    r = 0.6 * p @ T + 0.4 / k + 0.08 * torch.randn(n, k, generator=rng, dtype=torch.float64)
    return r.float(), true, noisy


def lda_of(T, **more):
    """LDA statistics of such predictions."""
    r, _, noisy = problem(T, **more)
    return lda_statistics(r, noisy)


def paid(lda, found):
    """By how much the score of a fit lies below the likelihood of its labels."""
    p = lda.probabilities(found.transition, found.scale).double()
    return transition.log_likelihood(p, lda.noisy, found.transition).item() - found.score


def of_patches(problem):
    """LDA statistics of leave-one-out predictions on patches of a data set's images."""
    use, random = torch.ones(len(problem), dtype=torch.bool), torch.Generator().manual_seed(0)
    r = predictors.leave_one_out_of_patches(problem.x, problem.noisy_NK, use, count=64, mirror=False, generator=random)
    return lda_statistics(r, problem.noisy)


def related(k=6):
    """The other of each pair of alike classes, the unit matrix, and centres of the classes."""
    other, eye = torch.arange(k) ^ 1, torch.eye(k, dtype=torch.float64)
    return other, eye, eye + 0.6 * eye[other]


def drawn(T, centre, n, spread=0.35, seed=1):
    """LDA statistics of images around the centre of their true class, whose labels flip by T."""
    rng, true = torch.Generator().manual_seed(seed), torch.arange(n) % len(T)
    noisy = torch.multinomial(T[true], 1, generator=rng)[:, 0]
    r = (centre[true] + spread * torch.randn(n, len(T), generator=rng, dtype=torch.float64)) @ T
    return lda_statistics(r, noisy)


def error(a, b):
    return (a - b).abs().sum(1).mean().item()


def test_likelihood_and_penalties_equal_loops():
    rng = torch.Generator().manual_seed(0)
    p = torch.rand(40, K, generator=rng, dtype=torch.float64).softmax(1)
    noisy, T = torch.arange(40) % (K - 1), pairflip(0.4)  # no sample has the last class as its label
    likelihood = sum(math.log(sum(p[i, y].item() * T[y, noisy[i]].item() for y in range(K))) for i in range(40)) / 40
    assert transition.log_likelihood(p, noisy, T).item() == pytest.approx(likelihood, rel=1e-10)
    parameter, choice = penalties(40, K)
    assert parameter == pytest.approx((0.5 * math.log(40) + math.log(20)) / 40 + transition.REQUIRED_GAIN)
    assert choice == pytest.approx(K * math.log(K) / 40)
    # predictions are wrong by more than chance, however many there are
    assert penalties(10**6, K)[1] == penalties(10**4, K)[1] == pytest.approx(K * math.log(K) / 10**4)
    assert penalties(10**9, K)[0] == pytest.approx(transition.REQUIRED_GAIN, rel=1e-3)


def test_ascent_is_adams_with_a_step_of_its_own_for_single_numbers_and_bounds():
    start = [torch.tensor([0.5, -1.0]).double(), torch.tensor(0.3).double(), torch.tensor(-0.2).double()]

    def value(a, b, c):
        return -(a - 2).square().sum() - (b * c - 0.7).square() - (c + 1).square() + a[0] * b

    asked = [v.clone().requires_grad_() for v in start]
    groups = [{"params": [v], "lr": ascent.STEP if v.ndim else ascent.STEP_OF_FEW} for v in asked]
    adam = torch.optim.Adam(groups, maximize=True)
    for _ in range(40):
        adam.zero_grad()
        value(*asked).backward()
        adam.step()
        with torch.no_grad():
            asked[1].clamp_(max=0)
            asked[2].clamp_(min=0)
    found = ascent.ascend(value, start, 40, below_0=slice(1, 2), above_0=slice(2, 3))
    for got, wanted in zip(found, asked, strict=True):
        torch.testing.assert_close(got, wanted.detach(), rtol=1e-9, atol=1e-9)
        assert not got.requires_grad
    assert found[1] <= 0 <= found[2]
    assert start[0].tolist() == [0.5, -1.0]  # what is handed over stays as it is


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4, 0.6])
def test_a_rate_without_direction_is_found_and_no_direction_is_made_up(rate):
    found = estimate(lda_of(uniform(rate, K))).transition
    assert error(found, uniform(rate, K)) < 0.12
    # directions, if any, are no part of the answer: entries beside the diagonal are alike
    off = found[~torch.eye(K, dtype=torch.bool)]
    assert off.max() - off.min() < 0.03


def test_much_noise_is_not_reported_as_none():
    """At a rate of .8 a fifth of the labels being right explains them hardly better than all of them being right."""
    fit = estimate(of_patches(digits(None, "symmetric", 0.8)))
    assert fit.transition.diagonal().mean() < 0.6


@pytest.mark.parametrize("seed", [0, 1])
def test_flips_of_nearly_half_the_labels_are_not_reported_as_their_mirror_image(seed):
    """Images of a label look most like the class that it comes from: flips that way explain labels nearly as well."""
    found = estimate(of_patches(digits(None, "pairflip", 0.45, seed=seed))).transition
    assert error(found, pairflip(0.45, 10)) < 0.2


@pytest.mark.parametrize("truth", [pairflip(0.4), pairflip(0.2), 0.5 * pairflip(0.3) + 0.5 * uniform(0.3, K)], ids=str)
def test_directions_are_found(truth):
    lda = lda_of(truth)
    found = estimate(lda)
    assert error(found.transition, truth) < 0.12
    assert found.score > best_uniform(lda).score + penalties(4000, K)[0]
    torch.testing.assert_close(found.transition.sum(1), torch.ones(K).double(), atol=1e-5, rtol=0)


def test_the_best_directions_of_exchanged_classes_are_right_though_their_gain_is_small():
    """Two classes that are exchanged and two that are hard to tell apart explain labels nearly alike."""
    truth = swapped(0.4)
    lda = lda_of(truth)
    found = max(free(lda, 1.0), key=lambda e: e.score)
    assert error(found.transition, truth) < 0.12
    assert found.score > estimate(lda).score - 5 * penalties(4000, 6)[0]


def test_the_kind_of_matrix_with_the_best_score_is_taken():
    lda = lda_of(pairflip(0.4))
    start = best_uniform(lda)
    few = [start, transition.nearest(lda, start.scale), alike(lda, start.scale), *free(lda, start.scale)]
    best = transition.one_way(lda, few, start.scale)
    assert estimate(lda).score == best.score > max(fit.score for fit in few)
    assert [fit.kind for fit in (*few, best)] == ["uniform", "alike", "alike", *["free"] * (len(few) - 3), "one way"]
    assert estimate(lda).kind == "one way"


def test_only_flips_between_alike_classes_are_reported_as_such():
    eye = torch.eye(6, dtype=torch.float64)
    beside = eye.roll(1, 1) + eye.roll(-1, 1)  # every class is like two others
    T = 0.65 * eye + 0.35 * (0.9 * beside / 2 + 0.1 * (1 - eye) / 5)
    assert estimate(drawn(T, eye + 0.5 * beside, 6000)).kind == "alike"
    assert estimate(lda_of(pairflip(0.4))).kind != "alike" != estimate(lda_of(uniform(0.4, K))).kind


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.35])
def test_flips_between_alike_classes_are_found_with_five_numbers_each_of_which_has_its_penalty(rate):
    other, eye, centre = related()
    flips = 1 - eye + 11 * eye[other]  # wrong labels mostly fall on the other of the pair
    T = (1 - rate) * eye + rate * flips / flips.sum(1, keepdim=True)
    lda = drawn(T, centre, 8000)
    found = alike(lda, 1.0)
    torch.testing.assert_close(found.transition.sum(1), torch.ones(6).double(), atol=1e-5, rtol=0)
    assert paid(lda, found) == pytest.approx(5 * penalties(8000, 6)[0] + 6 * math.log(6) / 8000, abs=1e-4)
    assert 1 - found.transition.diagonal().mean().item() == pytest.approx(rate, abs=0.08)
    if rate == 0:
        assert error(estimate(lda).transition, eye) < 0.05
        return
    assert error(found.transition, T) < 0.5 * error(best_uniform(lda).transition, T)
    _, log_KK = transition._confusion(lda, eye, 1.0)
    assert torch.equal(log_KK.argmax(1), other)


def test_flips_to_the_most_alike_class_are_found_with_two_numbers():
    other, eye, centre = related()
    T = 0.75 * eye + 0.25 * (0.9 * eye[other] + 0.1 * (1 - eye) / 5)
    lda = drawn(T, centre, 8000)
    found = transition.nearest(lda, 1.0)
    assert error(found.transition, T) < 0.1
    assert paid(lda, found) == pytest.approx(2 * penalties(8000, 6)[0] + 0.1 * penalties(8000, 6)[1], abs=1e-4)
    assert found.score > alike(lda, 1.0).score


@pytest.mark.parametrize("flipping", [20, 7])
def test_of_many_classes_each_of_which_flips_one_way_most_are_found(flipping):
    """The penalty on one free entry a class is too large; that on K choices and one rate is not."""
    k = 20
    T = torch.eye(k, dtype=torch.float64)
    T[:flipping] = pairflip(0.4, k, to=3)[:flipping]
    lda = lda_of(T, n=4000, clear=6.0)
    start = best_uniform(lda)
    directions = list(free(lda, start.scale))
    found = transition.one_way(lda, directions, start.scale)
    assert error(found.transition, T) < 0.15
    assert found.score > max(e.score for e in [start, *directions])
    assert int(((found.transition - torch.eye(k)).fill_diagonal_(0) > 0.2).sum()) == flipping
    expected = 2 * penalties(4000, k)[0] + penalties(4000, k)[1] + transition.GAIN_OF_ONE_WAY * flipping
    assert paid(lda, found) == pytest.approx(expected, abs=1e-4)


def test_the_destination_of_wrong_labels_is_the_one_that_explains_labels_best():
    """Against a loop over every class, every choice and every sample."""
    lda, going, stray = lda_of(pairflip(0.3), n=200), 0.3, 0.1
    eye = torch.eye(K, dtype=torch.float64)

    def matrix(to):
        return (1 - stray) * ((1 - going) * eye + going * eye[to]) + stray * (1 - eye) / (K - 1)

    to = [2, 1, 0, 4, 3]  # mostly not where they go
    p = lda.probabilities(matrix(to), 1.0).double()
    best = []
    for y in range(K):
        found = []
        for choice in range(K):
            T = matrix([choice if k == y else to[k] for k in range(K)])
            found.append(sum(math.log((p[i] @ T[:, lda.noisy[i]]).item()) for i in range(200)))
        best.append(max(range(K), key=found.__getitem__))
    numbers = torch.tensor([going, stray]).logit()
    torch.testing.assert_close(transition._to(torch.eye(K)[to], *numbers).double(), matrix(to))
    turned = transition._turned(lda, torch.eye(K)[to], *numbers, torch.tensor(0.0))
    assert torch.equal(turned, torch.eye(K)[best])


def test_classes_that_are_confused_with_others_may_have_more_noise():
    """Of three pairs one is hard to tell apart, and has most of the noise; the method does not know the rates."""
    other, eye, _ = related()
    centre = eye + torch.tensor([0.8, 0.8, 0.4, 0.4, 0.0, 0.0]).double()[:, None] * eye[other]
    rate = torch.tensor([0.45, 0.45, 0.2, 0.2, 0.03, 0.03]).double()[:, None]
    T = (1 - rate) * eye + rate * (0.8 * eye[other] + 0.2 * (1 - eye) / 5)
    lda = drawn(T, centre, 9000)
    found = alike(lda, 1.0)
    torch.testing.assert_close(found.transition.sum(1), torch.ones(6).double(), atol=1e-5, rtol=0)
    assert error(found.transition, T) < 0.7 * error(best_uniform(lda).transition, T)
    assert found.transition.diagonal().argsort()[:2].sort().values.tolist() == [0, 1]
    assert found.transition.diagonal().argsort()[4:].sort().values.tolist() == [4, 5]


@pytest.mark.parametrize("T", [torch.eye(K), pairflip(0.3)], ids=["noisy class", "true class"])
def test_how_often_classes_are_confused_equals_loops(T):
    lda = lda_of(uniform(0.2, K), n=60)
    doubt_K, log_KK = transition._confusion(lda, T, 0.7)
    p, counts = lda.probabilities(T.double(), 0.7).tolist(), [[0.0] * K for _ in range(K)]
    for p_i, noisy in zip(p, lda.noisy.tolist(), strict=True):
        q = [p_i[y] * T[y, noisy].item() for y in range(K)]
        for y in range(K):
            for j in range(K):
                counts[y][j] += q[y] / sum(q) * p_i[j]
    doubt = [math.log((sum(row) - row[y]) / row[y]) for y, row in enumerate(counts)]
    assert doubt_K.tolist() == pytest.approx([value - sum(doubt) / K for value in doubt], abs=1e-4)
    for y, row in enumerate(counts):
        others = [0 if j == y else row[j] / (sum(row) - row[y]) for j in range(K)]
        assert log_KK[y].exp().tolist() == pytest.approx(others, rel=1e-3, abs=1e-5)


def test_a_matrix_between_alike_classes_equals_loops():
    rng = torch.Generator().manual_seed(0)
    S = torch.rand(K, K, generator=rng).fill_diagonal_(0)
    doubt, share = torch.randn(2, K, generator=rng)
    found = transition._alike(doubt, S.log(), share, *(torch.tensor(v) for v in (-0.5, 1.4, -1.0, 0.7, 0.3)))
    stray = 1 / (1 + math.exp(1.0))
    for y in range(K):
        e = 1 / (1 + math.exp(0.5 - 0.7 * doubt[y]))
        weight = [S[y, j].item() ** 1.4 * math.exp(0.3 * share[j]) * (j != y) for j in range(K)]
        for j in range(K):
            flips = (1 - stray) * weight[j] / sum(weight) + stray / (K - 1)
            assert found[y, j].item() == pytest.approx(1 - e if j == y else e * flips, rel=1e-4)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5])
def test_the_range_of_uniform_noise_is_where_a_grid_finds_labels_about_as_likely(rate):
    lda = lda_of(uniform(rate, K), n=150, clear=2.0)
    best = {}
    for tenth in range(9):
        T = uniform(tenth / 10, K)
        scales = [math.exp(0.04 * i) for i in range(-60, 61)]
        best[tenth / 10] = 150 * max(
            transition.log_likelihood(lda.probabilities(T, s).double(), lda.noisy, T).item() for s in scales
        )
    likeliest = max(best, key=best.__getitem__)
    inside = [tenth for tenth, value in best.items() if value > best[likeliest] - 2]
    rate_found = 1 - best_uniform(lda).transition[0, 0].item()
    less, more = transition.uniform_range(lda)
    assert less == pytest.approx(max(0.0, rate_found - min(inside)), abs=1e-6)
    assert more == pytest.approx(max(0.0, max(inside) - rate_found), abs=1e-6)
    assert min(inside) - 0.05 <= rate <= max(inside) + 0.05


def test_fewer_labels_leave_more_rates_possible():
    few, many = (sum(transition.uniform_range(lda_of(uniform(0.3, K), n=n, clear=2.0))) for n in (60, 4000))
    assert few > many
    assert many <= 0.1 + 1e-6


def test_few_entries_are_free_in_the_end_and_each_has_its_penalty():
    lda = lda_of(pairflip(0.4))
    matrices = list(free(lda, 1.0))
    distinct = [len(set(m.transition[~torch.eye(K, dtype=torch.bool)].mul(1e4).round().tolist())) for m in matrices]
    assert distinct[0] > 2 * max(distinct[1:]) - 2 > 2
    entries = int((matrices[-1].transition > 0.2).sum()) - K + 1
    assert paid(lda, matrices[-1]) == pytest.approx(entries * penalties(4000, K)[0], abs=1e-5)


def test_exchange_between_two_classes_that_are_hard_to_tell_apart_is_estimated_symmetric():
    """A matrix in which one class absorbs the other makes labels hardly less likely; it is not the answer."""
    found = estimate(lda_of(swapped(0.4), n=8000, clear=2.5, seed=3)).transition
    assert (found[0, 1] - found[1, 0]).abs() < 0.15


def test_classes_need_not_have_equal_sizes():
    found = estimate(lda_of(pairflip(0.3), n=12000, shares=[0.4, 0.3, 0.15, 0.1, 0.05]))
    assert error(found.transition, pairflip(0.3)) < 0.2


def test_unmixed_predictions_are_distributions_and_more_often_right_than_predictions_of_noisy_labels():
    r, true, noisy = problem(pairflip(0.4))
    lda = lda_statistics(r, noisy)
    found = estimate(lda)
    p = lda.probabilities(found.transition, found.scale)
    torch.testing.assert_close(p.sum(1), torch.ones(len(r)))
    assert (p.argmax(1) == true).double().mean() > (r.argmax(1) == true).double().mean() + 0.02


def test_a_part_of_many_labels_is_enough_for_matrices_with_few_numbers(monkeypatch):
    lda, likelihood, p = lda_of(pairflip(0.4), n=8000), transition.log_likelihood, []
    monkeypatch.setattr(transition, "SEARCHED", lda.b.numel() // 4)
    monkeypatch.setattr(transition, "log_likelihood", lambda *a: p.append(len(a[0])) or likelihood(*a))
    best_uniform(lda)
    assert set(p[:-1]) == {2000}
    assert p[-1] == 8000  # the score is that of all labels
    found = estimate(lda)
    assert error(found.transition, pairflip(0.4)) < 0.12
    assert paid(lda, found) > 0


def test_same_input_same_bits_and_one_class_or_two_are_enough():
    found, again = (estimate(lda_of(pairflip(0.4), n=500)) for _ in range(2))
    assert torch.equal(found.transition, again.transition)
    assert found.transition.dtype == torch.float64
    assert not found.transition.requires_grad
    assert found.score < 0 < found.scale
    one = estimate(lda_statistics(torch.ones(4, 1), torch.zeros(4, dtype=torch.long)))
    assert one.transition.tolist() == [[1.0]]
    assert error(estimate(lda_of(uniform(0.3, 2), n=4000)).transition, uniform(0.3, 2)) < 0.15
