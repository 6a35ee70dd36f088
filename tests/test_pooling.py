"""Pooling: weights against a grid search, the posterior against Bayes' rule, and predictions that are chosen."""

import itertools
import math

import pytest
import torch

from tadlib.errors import InputError
from tadlib.trust import base, confident, decisions, pooling, predictors, transition
from tadlib.trust.pooling import Prediction, pool, posterior, weights
from tadlib.trust.transition import uniform

K = 5


def probabilities(n=40, k=K, seed=0, clear=1.0):
    return (clear * torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).softmax(1)


def labelled(p, T, seed=2):
    """True and noisy labels of images with class probabilities ``p``."""
    rng = torch.Generator().manual_seed(seed)
    true = torch.multinomial(p, 1, generator=rng)[:, 0]
    return true, torch.multinomial(T[true], 1, generator=rng)[:, 0]


def prediction(likelihood=-1.0, exponent=1.0, T=None, range_=(0.0, 0.0)):
    return Prediction(probabilities().float(), uniform(0.2, K) if T is None else T, exponent, likelihood, range_)


# The pool


def test_pool_is_the_weighted_geometric_mean_in_which_no_predictor_rules_a_class_out_alone():
    a, b, c = (probabilities(seed=s) for s in range(3))
    w = torch.tensor([0.2, 1.5, 0.4], dtype=torch.float64)
    means = a**0.2 * b**1.5 * c**0.4
    torch.testing.assert_close(pool([a, b, c], w).exp(), means / means.sum(1, keepdim=True), rtol=1e-10, atol=0)
    torch.testing.assert_close(pool([a], torch.ones(1)).exp(), a)
    certain = torch.tensor([[1.0, 0.0]])
    assert pool([certain, certain.flip(1)], torch.tensor([0.5, 0.5])).exp()[0].tolist() == pytest.approx([0.5, 0.5])
    assert pool([certain], torch.ones(1)).exp()[0, 1].item() == pytest.approx(pooling.FLOOR, rel=1e-4)


def slow_likelihood(p_V, w, noisy, T):
    total = 0.0
    for i in range(len(noisy)):
        terms = [math.prod(p[i, y].item() ** v for p, v in zip(p_V, w, strict=True)) for y in range(K)]
        total += math.log(sum(term / sum(terms) * T[y, noisy[i]].item() for y, term in enumerate(terms)))
    return total / len(noisy)


def test_weights_are_those_that_a_grid_search_finds():
    T, truth = uniform(0.2, K), probabilities(300, clear=3.0)
    _, noisy = labelled(truth, T)
    flat = truth.sqrt() / truth.sqrt().sum(1, keepdim=True)  # too little confidence
    blurred = 0.5 * flat + 0.5 * probabilities(300, seed=5)
    found = weights([flat, blurred], noisy, T)
    grid = [0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0]
    best = max(slow_likelihood([flat, blurred], w, noisy, T) for w in itertools.product(grid, grid))
    assert slow_likelihood([flat, blurred], found.tolist(), noisy, T) > best - 1e-3
    assert found[0] > found[1]
    assert found.dtype == torch.float32


@pytest.mark.parametrize("power", [0.5, 1.0, 2.5])
def test_the_weight_of_a_single_predictor_mends_its_confidence(power):
    T, truth = uniform(0.2, K), probabilities(20_000, clear=2.0)
    _, noisy = labelled(truth, T)
    p = truth ** (1 / power)
    assert weights([p / p.sum(1, keepdim=True)], noisy, T).item() == pytest.approx(power, rel=0.15)


def test_a_predictor_of_nothing_gets_little_weight_and_two_that_are_the_same_share_theirs():
    T, truth = uniform(0.2, K), probabilities(5000, clear=2.0)
    _, noisy = labelled(truth, T)
    good, chance = weights([truth, probabilities(5000, seed=7)], noisy, T).tolist()
    assert chance < 0.1 * good
    both = weights([truth, truth], noisy, T)
    assert both.sum().item() == pytest.approx(weights([truth], noisy, T).item(), rel=0.05)
    assert both[0].item() == pytest.approx(both[1].item(), rel=1e-4)


def test_only_labels_in_use_determine_the_weights():
    T, p = uniform(0.2, K), [probabilities(seed=s) for s in range(2)]
    _, noisy = labelled(p[0], T)
    use = torch.arange(40) % 3 == 0
    other = torch.where(use, noisy, (noisy + 1) % K)
    assert torch.equal(weights(p, noisy, T, use), weights(p, other, T, use))
    assert torch.equal(weights(p, noisy, T, use), weights([p_[use] for p_ in p], noisy[use], T))
    assert not torch.equal(weights(p, noisy, T), weights(p, other, T))


def test_bad_predictions_are_named():
    noisy = torch.zeros(1, dtype=torch.long)
    with pytest.raises(InputError, match="at least one predictor, got 0"):
        weights([], noisy, torch.eye(2))
    with pytest.raises(InputError, match="predictions must be finite"):
        weights([torch.tensor([[0.5, torch.nan]])], noisy, torch.eye(2))
    with pytest.raises(InputError, match="at least one predictor is needed, got 0"):
        pooling.best([])


# The posterior


@pytest.mark.parametrize("a", [0.45, 1.0])
def test_posterior_equals_bayes_rule_spelled_out(a):
    p, T = probabilities(), probabilities(K, seed=1)
    noisy = torch.arange(len(p)) % K
    q = posterior(p.log(), noisy, T, a)
    for i in range(len(p)):
        terms = [p[i, y].item() * T[y, noisy[i]].item() ** a for y in range(K)]
        assert q[i].tolist() == pytest.approx([term / sum(terms) for term in terms], rel=1e-10)
    certain = posterior(p.log(), noisy, torch.eye(K, dtype=torch.float64))  # flips that cannot happen
    assert torch.equal(certain.argmax(1), noisy)
    assert certain.amax(1).min() > 1 - 1e-8
    assert q.dtype == torch.float64


def test_the_exponent_is_that_of_a_label_that_the_image_explains_in_part():
    """q ∝ p(y | x) T[y, ỹ]^a p(ỹ | x)^(1 − a), normalised over y: the last factor does not depend on it."""
    p, T, of_image = probabilities(), probabilities(K, seed=1), probabilities(seed=3)
    noisy = torch.arange(len(p)) % K
    joint = p * T[:, noisy].T ** 0.7 * of_image.gather(1, noisy[:, None]) ** 0.3
    torch.testing.assert_close(posterior(p.log(), noisy, T, 0.7), joint / joint.sum(1, keepdim=True))


# Predictions


def test_the_prediction_that_explains_the_labels_best_is_chosen():
    few = [prediction(-2.0), prediction(-0.5), prediction(-1.0)]
    assert pooling.best(few) is few[1]


def test_a_regression_gives_p_under_the_best_matrix_and_the_exponent_of_its_kind(monkeypatch):
    truth = probabilities(200, clear=3.0)
    _, noisy = labelled(truth, uniform(0.3, K))
    found = pooling.regressed((truth @ uniform(0.3, K)).float(), noisy)
    lda = predictors.lda_statistics((truth @ uniform(0.3, K)).float(), noisy)
    fit = transition.estimate(lda)
    assert torch.equal(found.transition, fit.transition)
    assert torch.equal(found.p, lda.probabilities(fit.transition, fit.scale))
    assert found.log_likelihood == pytest.approx(
        transition.log_likelihood(found.p.double(), noisy, found.transition).item(), rel=1e-5
    )
    assert found.range == transition.uniform_range(lda)
    assert found.exponent == 1.0
    monkeypatch.setattr(
        transition, "estimate", lambda lda: transition.TransitionFit(fit.transition, fit.scale, 0.0, "alike")
    )
    assert pooling.regressed((truth @ uniform(0.3, K)).float(), noisy).exponent == decisions.LIKENESS


def test_probabilities_of_a_classifier_are_unmixed():
    T, truth = uniform(0.3, K), probabilities(20_000, clear=10.0)
    _, noisy = labelled(truth, T)
    found = pooling.unmixed((truth @ T).float(), noisy)
    assert (found.p.dtype, found.transition.dtype, found.range) == (torch.float32, torch.float64, (0.0, 0.0))
    assert found.exponent == 1
    assert (found.transition - T).abs().max() < 0.1
    assert (found.p - truth).abs().mean() < 0.05


def test_the_noise_rate_is_that_of_the_posterior_under_three_exponents_and_checked_labels_are_right():
    p, T = probabilities(), uniform(0.3, K)
    noisy, checked = torch.arange(len(p)) % K, torch.arange(len(p)) < 10
    chosen = prediction(exponent=0.7, T=T, range_=(0.05, 0.1))

    def rate(log_p, exponent, right):
        q = posterior(log_p, noisy, T, exponent)
        return sum(0.0 if right[i] else 1 - q[i, noisy[i]].item() for i in range(len(p))) / len(p)

    for right in (torch.zeros_like(checked), checked):
        made = pooling.combined([chosen], noisy, p, checked_N=right if right.any() else None)
        log_p = pooling.pool([chosen.p, p], made.weights)
        found, a = made.noise_rate, made.exponent
        rates = [rate(log_p, at, right) for at in (a, a + decisions.UNCERTAIN, a - decisions.UNCERTAIN)]
        error = 2 * (rates[0] * (1 - rates[0]) / len(p)) ** 0.5
        assert found.estimate == pytest.approx(rates[0])
        assert found.low == pytest.approx(max(0, min(rates) - error - 0.05))
        assert found.high == pytest.approx(min(1, max(rates) + error + 0.1))


def test_a_probability_of_zero_in_the_matrix_is_tiny():
    p = torch.tensor([[0.5, 0.5]]).double()
    q = posterior(p.log(), torch.tensor([1]), torch.eye(2).double())
    assert q[0, 0].item() == pytest.approx(base.TINY, rel=1e-6)


def test_wrong_labels_that_nobody_checked_are_still_counted_after_suspects_were_corrected():
    """The labels that are left agree with their images, as if none were wrong; the first ones tell how many are."""
    T, rng = uniform(0.2, K), torch.Generator().manual_seed(0)
    true = torch.arange(1000) % K
    given = torch.multinomial(T[true], 1, generator=rng)[:, 0]
    r_NK = (T[true] + 0.3 * torch.randn(1000, K, generator=rng)).float()
    prediction = pooling.regressed(r_NK, given)
    before = pooling.combined([prediction], given)
    checked = before.q.gather(1, given[:, None])[:, 0].argsort().argsort() < 100
    corrected = torch.where(checked, true, given)
    wrong = (corrected != true).double().mean().item()

    after = pooling.combined([prediction], corrected, checked_N=checked, original_N=given)
    assert after.noise_rate.low < wrong < after.noise_rate.high
    assert after.noise_rate.estimate > 0.7 * wrong
    assert torch.equal(after.q[checked], base.one_hot(true[checked], K).double())
    assert torch.equal(after.q[~checked], before.q[~checked])
    alone = pooling.combined([pooling.regressed(r_NK, corrected)], corrected, checked_N=checked)
    assert alone.noise_rate.high < wrong


def test_what_a_weak_classifier_confuses_is_not_counted_as_wrong_labels():
    random = torch.Generator().manual_seed(0)
    n, k = 4000, 10
    true = torch.arange(n) % k
    flipped = torch.rand(n, generator=random) < 0.4
    noisy = torch.where(flipped, (true + torch.randint(1, k, (n,), generator=random)) % k, true)
    logits = torch.randn(n, k, generator=random)
    logits[torch.arange(n), true] += 1.5
    clean = logits.mul(1.5).softmax(1)  # right about half of the time
    p = (0.6 - 0.4 / 9) * clean + 0.4 / 9  # of the noisy labels, as it would learn them
    assert (p.argmax(1) == true).float().mean() < 0.6
    counted = confident.confident_transition(p, noisy)
    assert 1 - counted.diagonal().mean() > 0.55
    rate = pooling.combined([pooling.unmixed(p, noisy)], noisy).noise_rate
    assert rate.low < 0.4 < rate.high
