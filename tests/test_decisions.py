"""Decisions: the exponent, what is flagged, and the noise rate with its interval, each against a slow version."""

import pytest
import torch

from tadlib.trust import decisions
from tadlib.trust.decisions import NoiseRate, expected, exponent, flagged, noise_rate, overdispersion


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def area(doubt, weight):
    """AUROC of doubt for what happens with these probabilities, pair by pair."""
    won = total = 0.0
    for a, x in zip(doubt, weight, strict=True):
        for b, y in zip(doubt, weight, strict=True):
            won += x * (1 - y) * ((a > b) + 0.5 * (a == b))
            total += x * (1 - y)
    return won / total


def test_overdispersion_is_the_difference_of_two_areas_over_pairs():
    p = (2 * torch.randn(60, 3, generator=random(), dtype=torch.float64)).softmax(1)
    noisy = torch.randint(3, (60,), generator=random(1))
    T = 0.7 * torch.eye(3, dtype=torch.float64) + 0.1
    doubt, differs = (1 - p.amax(1)).tolist(), (p.argmax(1) != noisy).double().tolist()
    expected = [1 - sum(p[i, y] * T[y, p[i].argmax()] for y in range(3)).item() for i in range(60)]
    # of labels that follow T a sample pairs with itself too, which the sum over ranks counts by half
    assert overdispersion(p, noisy, T) == pytest.approx(area(doubt, differs) - area(doubt, expected), abs=0.02)


def test_flips_at_random_are_not_overdispersed_and_those_of_doubtful_images_are():
    p = (3 * torch.randn(4000, 5, generator=random(), dtype=torch.float64)).softmax(1)
    true = torch.multinomial(p, 1, generator=random(2))[:, 0]
    rate = torch.rand(4000, generator=random(1))
    blind = torch.where(rate < 0.3, (true + 1) % 5, true)
    doubtful = torch.where(rate < 2 * (1 - p.amax(1)), (p.argmax(1) + 1) % 5, p.argmax(1))
    eye = torch.eye(5, dtype=torch.float64)
    T = 0.7 * eye + 0.3 * eye.roll(1, 1)
    assert exponent(1.0, overdispersion(p, blind, T)) == 1
    assert exponent(1.0, overdispersion(p, doubtful, T)) == pytest.approx(decisions.DOUBT)


def test_the_exponent_falls_on_a_straight_line_and_never_rises():
    low, high = decisions.OVERDISPERSED
    for start in (1.0, decisions.LIKENESS):
        ends = [exponent(start, v) for v in (-1.0, low, high, 1.0)]
        assert ends == pytest.approx([start, start, decisions.DOUBT, decisions.DOUBT])
        assert exponent(start, (low + high) / 2) == pytest.approx((start + decisions.DOUBT) / 2)


@pytest.mark.parametrize("cost", [0.5, 1.0, 2.0, 9.0])
def test_flags_have_the_least_expected_cost(cost):
    """Against the cost of checking and of not checking each label."""
    trust = torch.rand(500, generator=random(), dtype=torch.float64)
    found = flagged(trust, cost)
    for t, flag in zip(trust.tolist(), found.tolist(), strict=True):
        needless, missed = t, cost * (1 - t)
        assert flag == (needless < missed)
    assert found.dtype == torch.bool


def test_a_certain_label_is_never_flagged():
    assert not flagged(torch.ones(3, dtype=torch.float64), 1e9).any()
    assert flagged(torch.zeros(3, dtype=torch.float64), 1e-9).all()


@pytest.mark.parametrize("n", [4, 60, 5000])
def test_the_noise_rate_is_the_mean_and_its_interval_holds_all_that_is_uncertain(n):
    trust, more, less = (torch.rand(n, generator=random(s), dtype=torch.float64) for s in range(3))
    found = noise_rate(trust, (more, less), (0.1, 0.2))
    rate, *ends = (sum(1 - t for t in of.tolist()) / n for of in (trust, more, less))
    error = 2 * (max(rate * (1 - rate), 1 / n) / n) ** 0.5
    assert found.estimate == pytest.approx(rate)
    assert found.low == pytest.approx(max(0.0, min(rate, *ends) - error - 0.1))
    assert found.high == pytest.approx(min(1.0, max(rate, *ends) + error + 0.2))
    assert 0 <= found.low <= found.estimate <= found.high <= 1


def test_without_any_wrong_label_the_interval_is_not_empty_and_shrinks_with_n():
    few, many = (noise_rate(torch.ones(n), (torch.ones(n), torch.ones(n)), (0.0, 0.0)) for n in (50, 5000))
    assert few.estimate == few.low == many.low == 0
    assert few.high > 10 * many.high > 0


def test_a_wide_interval_says_that_few_wrong_labels_cannot_be_told_from_many():
    assert NoiseRate(0.4, 0.1, 0.6).uncertain
    assert not NoiseRate(0.4, 0.3, 0.5).uncertain


def test_expected_precision_and_recall_equal_loops_and_are_undefined_without_a_flag_or_a_wrong_label():
    trust = torch.rand(40, generator=random(), dtype=torch.float64)
    mask = flagged(trust, 2.0)
    wrong = [1 - t for t in trust.tolist()]
    caught = sum(w for w, flag in zip(wrong, mask.tolist(), strict=True) if flag)
    assert expected(trust, mask) == pytest.approx((caught / int(mask.sum()), caught / sum(wrong)))
    none = torch.zeros(40, dtype=torch.bool)
    assert expected(trust, none) == (None, 0.0)
    assert expected(torch.ones(40), none) == (None, None)
