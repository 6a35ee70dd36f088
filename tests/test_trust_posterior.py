"""The trust posterior: its formulas against loops in plain Python, and the run from patches to the refined set."""

from dataclasses import replace

import pytest
import torch
from noisy_digits import SMALL, WIDE, K, digits, same_bits, without_truth

from tadlib import trust
from tadlib.config import AuditorConfig, PosteriorConfig
from tadlib.errors import InputError
from tadlib.nn.training import predict
from tadlib.trust import RECALIBRATED, SPACES, TRUSTED, UNTRUSTED, RefinedSet, TrustPosterior, base, predictors
from tadlib.trust.posterior import pool, posterior

AUDITOR = AuditorConfig(epochs=3, warmup=2, lr=0.05, batch=32)


@pytest.fixture(scope="module")
def problem():
    return digits(300, "pairflip", 0.3)


def run(problem, auditor=AUDITOR, **settings) -> RefinedSet:
    return trust.refine(TrustPosterior(auditor, PosteriorConfig(**settings)), problem)


def started(problem, auditor=AUDITOR, **settings):
    """A method and its state before the first epoch."""
    method = TrustPosterior(auditor, PosteriorConfig(**settings))
    return method, method.init(problem)


# Formulas


def probabilities(n=40, k=5, seed=0):
    return torch.rand(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(1)


def test_pool_is_the_normalised_geometric_mean_in_every_row():
    a, b, c = (probabilities(seed=s) for s in range(3))
    pooled = pool([a, b, c]).exp()
    for i in range(len(a)):
        means = [(a[i, k] * b[i, k] * c[i, k]) ** (1 / 3) for k in range(5)]
        for k in range(5):
            assert pooled[i, k].item() == pytest.approx((means[k] / sum(means)).item(), rel=1e-12)


def test_no_predictor_rules_a_class_out_alone():
    certain = torch.tensor([[1.0, 0.0]])
    assert pool([certain, torch.tensor([[0.0, 1.0]])]).exp()[0].tolist() == pytest.approx([0.5, 0.5])


def test_posterior_equals_bayes_rule_spelled_out():
    p, T, b = probabilities(), probabilities(5, 5, seed=1), 1.7
    noisy = torch.arange(len(p)) % 5
    q = posterior(p.log(), noisy, T, b)
    for i in range(len(p)):
        terms = [p[i, y].item() ** b * T[y, noisy[i]].item() for y in range(5)]
        assert q[i].tolist() == pytest.approx([term / sum(terms) for term in terms], rel=1e-10)


def test_a_flip_that_cannot_happen_leaves_the_noisy_label():
    q = posterior(probabilities().log(), torch.arange(40) % 5, torch.eye(5, dtype=torch.float64))
    assert torch.equal(q.argmax(1), torch.arange(40) % 5)
    assert q.amax(1).min() > 1 - 1e-9


def test_bad_predictions_are_named():
    with pytest.raises(InputError, match="at least one predictor, got 0"):
        pool([])
    with pytest.raises(InputError, match="predictions must be finite"):
        pool([torch.tensor([[0.5, torch.nan]])])


# The refined set


def assert_consistent(refined: RefinedSet, auditor: AuditorConfig, settings: PosteriorConfig):
    """What holds of every refined set of the trust posterior."""
    n = len(refined.noisy)
    trusted, new, untrusted = (refined.space == s for s in (TRUSTED, RECALIBRATED, UNTRUSTED))
    hard = refined.hard_weight
    assert hard is not None
    assert (trusted | new | untrusted).all()
    assert (hard[untrusted] == 0).all()
    # besides its hard label a sample is learned with the posterior as soft label
    soft = settings.soft_weight * (1 - hard.double())
    torch.testing.assert_close(refined.weight.double(), hard + soft, atol=1e-5, rtol=0)
    of_noisy = (refined.weight * refined.y.gather(1, refined.noisy[:, None])[:, 0]).double()
    of_noisy -= hard * (refined.label == refined.noisy)
    torch.testing.assert_close(of_noisy, soft * refined.trust, atol=1e-5, rtol=0)
    assert ((refined.weight >= 0) & (refined.weight <= 1.0001)).all()
    assert (refined.label[new] != refined.noisy[new]).all()
    torch.testing.assert_close(refined.y.sum(1), torch.ones(n), rtol=1e-5, atol=1e-5)
    assert ((refined.trust >= 0) & (refined.trust <= 1)).all()
    least = max(1, int(settings.minimum * n / K))
    sizes = torch.bincount(refined.noisy, minlength=K)
    assert (torch.bincount(refined.noisy[trusted], minlength=K) >= sizes.clamp_max(least)).all()
    assert refined.space_history.shape == (auditor.epochs, n)
    assert torch.equal(refined.space_history[-1], refined.space)
    assert (refined.space_history[: auditor.warmup - 1] == TRUSTED).all()
    assert len(refined.history) == auditor.epochs
    for row, spaces in zip(refined.history, refined.space_history):
        assert [row[f"n_{name}"] for name in SPACES] == torch.bincount(spaces.long(), minlength=3).tolist()
    torch.testing.assert_close(refined.transition.sum(1), torch.ones(K).double(), atol=1e-5, rtol=0)


SETTINGS = [
    {"filters": 8},
    {"ema": 0.0},
    {"holdout": 0.0},
    {"threshold": 0.9},
    {"minimum": 0.9},
    {"error": 0.9, "threshold": 0.9},
    {"error": 0.0},
    {"drop": 0.0},
    {"purity": 1.0},
    {"soft_weight": 0.0},
    {"soft_weight": 1.0},
]
OF_AUDITOR = [{"warmup": 1}, {"warmup": 3}, {"augmentation": "none"}, {"momentum": 0.0}]


@pytest.fixture(scope="module")
def baseline(problem) -> RefinedSet:
    refined = run(problem)
    assert_consistent(refined, AUDITOR, PosteriorConfig())
    return refined


@pytest.mark.parametrize("change", SETTINGS, ids=str)
def test_every_setting_changes_something_and_leaves_a_consistent_set(problem, baseline, change):
    refined = run(problem, **change)
    assert_consistent(refined, AUDITOR, PosteriorConfig(**change))
    assert not same_bits(refined, baseline)


@pytest.mark.parametrize("change", OF_AUDITOR, ids=str)
def test_settings_of_the_auditor_reach_its_training(problem, baseline, change):
    auditor = replace(AUDITOR, **change)
    refined = run(problem, auditor)
    assert_consistent(refined, auditor, PosteriorConfig())
    assert not same_bits(refined, baseline)


def test_no_setting_is_left_out():
    tested_below = {"mirror", "purity_alike"}
    assert {name for change in SETTINGS for name in change} | tested_below == set(vars(PosteriorConfig()))


@pytest.mark.parametrize("change", [{}, {"minimum": 0.0}, {"error": 0.0, "holdout": 0.0}], ids=str)
def test_a_single_epoch_is_enough(problem, change):
    auditor = replace(AUDITOR, epochs=1, warmup=1)
    assert_consistent(run(problem, auditor, **change), auditor, PosteriorConfig(**change))


def test_a_pseudo_label_is_used_only_if_its_probability_of_error_is_small(problem):
    auditor = replace(AUDITOR, epochs=1, warmup=1)  # one division: the posterior is the same
    wide, narrow, none = (run(problem, auditor, threshold=0.9, drop=1.0, error=e) for e in (0.5, 0.1, 0.0))
    assert torch.equal(wide.trust, narrow.trust)
    for refined, error in ((wide, 0.5), (narrow, 0.1)):
        new = refined.space == RECALIBRATED
        assert refined.reliability[new].min() > 1 - error
        assert new.any()
    assert (narrow.space == RECALIBRATED).sum() < (wide.space == RECALIBRATED).sum()
    assert not (none.space == RECALIBRATED).any()


def test_same_seed_same_bits_and_the_global_generator_untouched(problem, baseline):
    before = torch.get_rng_state()
    a, b = baseline, run(problem)
    assert same_bits(a, b)
    assert a.history == b.history
    assert not torch.equal(a.trust, run(replace(problem, seed=1)).trust)
    assert not torch.equal(a.trust, run(replace(problem, name="another")).trust)
    assert torch.equal(before, torch.get_rng_state())
    assert not any(v.requires_grad for v in vars(a).values() if isinstance(v, torch.Tensor))


def test_the_truth_is_used_for_metrics_only(problem, baseline):
    wrong = replace(problem, true=(problem.true + 1) % K)
    results = [run(without_truth(problem)), baseline, run(wrong)]
    assert same_bits(results[0], results[1])
    assert same_bits(results[0], results[2])
    without, with_truth, with_lie = (r.history[-1] for r in results)
    assert "trust_auroc" not in without
    assert with_truth["trust_precision"] != with_lie["trust_precision"]
    assert without == {k: v for k, v in with_truth.items() if k in without}


# From patches to the last epoch


def test_held_out_labels_are_never_trained_on(problem):
    auditor = replace(AUDITOR, warmup=3)  # in warm-up labels have no other use
    method, state = started(problem, auditor, holdout=0.2)
    held_out = ~state.trained_on
    for k in range(K):
        assert held_out[problem.noisy == k].sum() == int(0.2 * (problem.noisy == k).sum())
    places, noisy = held_out.nonzero()[:, 0], problem.noisy.clone()
    noisy[places] = problem.noisy[places.flip(0)]
    other = replace(problem, noisy=noisy)
    assert not torch.equal(noisy, problem.noisy)
    exchanged = method.init(problem)
    exchanged.target = torch.where(held_out[:, None], exchanged.target.roll(1, 0), exchanged.target)
    for _ in range(3):
        method.step(problem, state)
        method.step(other, exchanged)
    assert torch.equal(exchanged.auditor.theta, state.auditor.theta)
    assert not torch.equal(exchanged.refined.trust, state.refined.trust)


def test_the_regression_on_patches_does_not_learn_held_out_labels(problem, monkeypatch):
    used, leave_one_out = [], predictors.leave_one_out
    monkeypatch.setattr(predictors, "leave_one_out", lambda z, y, use: used.append(use) or leave_one_out(z, y, use))
    _, state = started(problem, holdout=0.2)
    assert torch.equal(used[0], state.trained_on)
    assert 0.75 < used[0].double().mean() < 0.85


def test_warm_up_begins_with_the_posterior_of_predictions_on_patches(problem):
    _, state = started(problem)
    q = posterior(state.patches.double().log(), problem.noisy, state.transition).float()
    assert torch.equal(state.target, q)
    right, noisy_right = ((labels == problem.true).double().mean() for labels in (q.argmax(1), problem.noisy))
    assert right > noisy_right + 0.05


def test_warm_up_leaves_targets_and_refined_set_as_they_are(problem):
    method, state = started(problem, replace(AUDITOR, warmup=3))
    target = state.target
    for _ in range(2):
        method.step(problem, state)
        assert torch.equal(state.target, target)
        assert (state.refined.space == TRUSTED).all()
        assert torch.equal(state.refined.y, problem.noisy_NK)
    method.step(problem, state)
    assert not torch.equal(state.target, target)


def test_predictions_on_the_way_are_those_before_each_step(problem):
    auditor = replace(AUDITOR, warmup=3, batch=len(problem), augmentation="none")
    method, state = started(problem, auditor)
    before, _ = predict(SMALL, state.auditor.theta, problem.x)
    p = method.train(problem, state)
    torch.testing.assert_close(p, before.softmax(1), atol=1e-5, rtol=1e-4)
    after, _ = predict(SMALL, state.auditor.theta, problem.x)
    assert (p - after.softmax(1)).abs().max() > 1e-3


def test_only_in_the_last_epoch_the_averaged_parameters_predict(problem, monkeypatch):
    method, state = started(problem, replace(AUDITOR, epochs=4, warmup=2))
    passes, used = [], []
    predicted, of_posterior = TrustPosterior.predicted, TrustPosterior.posterior

    def counted(self, *a):
        passes.append(len(state.rows))
        return predicted(self, *a)

    def given(self, problem, state, p):
        used.append(p)
        return of_posterior(self, problem, state, p)

    monkeypatch.setattr(TrustPosterior, "predicted", counted)
    monkeypatch.setattr(TrustPosterior, "posterior", given)
    for _ in range(4):
        method.step(problem, state)
    assert passes == [3]
    assert len(used) == 3
    torch.testing.assert_close(used[-1], predict(SMALL, state.average, problem.x)[0].softmax(1))


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_average_of_parameters_is_what_a_loop_over_steps_gives(problem, monkeypatch, ema):
    method, state = started(problem, ema=ema)
    average, thetas, train = state.average.double(), [], base.train_epoch

    def watched(*a, on_step, **more):
        def both(index, logits, theta):
            thetas.append(theta.double())
            on_step(index, logits, theta)

        return train(*a, on_step=both, **more)

    monkeypatch.setattr(base, "train_epoch", watched)
    for _ in range(2):
        method.step(problem, state)
    assert len(thetas) == 2 * 10  # 300 images in batches of 32
    for step, theta in enumerate(thetas):
        new = max(1 - ema, 10 / (step + 10)) if ema else 1.0
        average = (1 - new) * average + new * theta
    torch.testing.assert_close(state.average.double(), average, atol=1e-5, rtol=1e-5)
    assert torch.equal(state.average, state.auditor.theta) == (ema == 0)


@pytest.mark.parametrize(
    "augmentation, mirror, sides", [("crop_flip", True, 2), ("crop_flip", False, 1), ("crop", True, 1)]
)
def test_the_mirror_image_is_predicted_too_where_augmentation_flips(problem, augmentation, mirror, sides):
    auditor = replace(AUDITOR, epochs=1, warmup=1, augmentation=augmentation)
    method, state = started(problem, auditor, mirror=mirror)
    method.train(problem, state)
    both = (problem.x, problem.x.flip(3))[:sides]
    expected = sum(predict(SMALL, state.average, side)[0].softmax(1) for side in both) / sides
    torch.testing.assert_close(method.predicted(problem, state), expected)


def test_where_labels_flip_between_alike_classes_hard_labels_have_to_be_purer(problem):
    exponents = []
    for alike in (False, True):
        method, state = started(problem, purity=0.5)
        assert not state.alike  # digits flip from each class to the next
        state.alike = alike
        for _ in range(AUDITOR.epochs):
            method.step(problem, state)
        exponents.append(state.rows[-1]["weight_exponent"])
    assert exponents[0] == 1 < exponents[1]


def test_digits_with_pairflips_are_sorted_out():
    problem, auditor = digits(None, "pairflip", 0.4, WIDE), AuditorConfig(epochs=20)
    refined = run(problem, auditor)
    figures = refined.metrics(problem.true)
    assert figures["trust_precision"] > 0.95, figures
    assert figures["trust_recall"] > 0.97, figures
    assert figures["label_accuracy"] > 0.96, figures
    assert figures["trust_auroc"] > 0.98, figures
    assert_consistent(refined, auditor, PosteriorConfig())


def test_of_clean_digits_few_labels_are_flagged_or_replaced():
    problem = digits(None, "none", 0.0, WIDE)
    refined = run(problem, AuditorConfig(epochs=20))
    assert (refined.space != TRUSTED).double().mean() < 0.1
    assert (refined.label != problem.noisy).double().mean() < 0.02
