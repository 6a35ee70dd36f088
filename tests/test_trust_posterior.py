"""The trust posterior: its formulas against loops in plain Python, and the run from patches to the refined set."""

from dataclasses import replace

import pytest
import torch
from noisy_digits import SMALL, WIDE, K, assert_consistent, digits, same_bits

from tadlib import trust
from tadlib.config import AuditorConfig, PosteriorConfig
from tadlib.errors import InputError
from tadlib.nn.training import predict
from tadlib.trust import RECALIBRATED, TRUSTED, UNTRUSTED, RefinedSet, TrustPosterior, base, predictors, transition
from tadlib.trust.posterior import pool, posterior

AUDITOR = AuditorConfig(epochs=3, warmup=2, lr=0.05, batch=32)


@pytest.fixture(scope="module")
def problem():
    return digits(300, "pairflip", 0.3)


@pytest.fixture(scope="module", autouse=True)
def _estimated_once():
    """Most runs here start from the same statistics; their transition matrix takes longer than the run itself."""
    made, estimate = {}, transition.estimate

    def known(lda):
        key = lda.b.numpy().tobytes(), lda.noisy.numpy().tobytes()
        if key not in made:
            made[key] = estimate(lda)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transition, "estimate", known)
        yield


def run(problem, auditor=AUDITOR, **settings) -> RefinedSet:
    return trust.refine(TrustPosterior(auditor, PosteriorConfig(**settings)), problem)


def started(problem, auditor=AUDITOR, **settings):
    """A method and its state before the first epoch."""
    method = TrustPosterior(auditor, PosteriorConfig(**settings))
    return method, method.init(problem)


# Formulas


def probabilities(n=40, k=5, seed=0):
    return torch.rand(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(1)


def test_pool_is_the_normalised_geometric_mean_in_which_no_predictor_rules_a_class_out_alone():
    a, b, c = (probabilities(seed=s) for s in range(3))
    means = (a * b * c) ** (1 / 3)
    torch.testing.assert_close(pool([a, b, c]).exp(), means / means.sum(1, keepdim=True), rtol=1e-12, atol=0)
    certain = torch.tensor([[1.0, 0.0]])
    assert pool([certain, certain.flip(1)]).exp()[0].tolist() == pytest.approx([0.5, 0.5])


def test_posterior_equals_bayes_rule_spelled_out():
    p, T, b = probabilities(), probabilities(5, 5, seed=1), 1.7
    noisy = torch.arange(len(p)) % 5
    q = posterior(p.log(), noisy, T, b)
    for i in range(len(p)):
        terms = [p[i, y].item() ** b * T[y, noisy[i]].item() for y in range(5)]
        assert q[i].tolist() == pytest.approx([term / sum(terms) for term in terms], rel=1e-10)
    certain = posterior(p.log(), noisy, torch.eye(5, dtype=torch.float64))  # flips that cannot happen
    assert torch.equal(certain.argmax(1), noisy)
    assert certain.amax(1).min() > 1 - 1e-9


def test_bad_predictions_are_named():
    with pytest.raises(InputError, match="at least one predictor, got 0"):
        pool([])
    with pytest.raises(InputError, match="predictions must be finite"):
        pool([torch.tensor([[0.5, torch.nan]])])


# The refined set


def assert_consistent_weights(refined: RefinedSet, auditor=AUDITOR, **settings):
    """What holds of every refined set of the trust posterior: besides its hard label a sample has a soft one."""
    assert_consistent(refined, auditor)
    config, hard = PosteriorConfig(**settings), refined.hard_weight
    assert hard is not None
    assert (hard[refined.space == UNTRUSTED] == 0).all()
    soft = config.soft_weight * (1 - hard.double())
    torch.testing.assert_close(refined.weight.double(), hard + soft, atol=1e-5, rtol=0)
    of_noisy = (refined.weight * refined.y.gather(1, refined.noisy[:, None])[:, 0]).double()
    of_noisy -= hard * (refined.label == refined.noisy)
    torch.testing.assert_close(of_noisy, soft * refined.trust, atol=1e-5, rtol=0)
    sizes = torch.bincount(refined.noisy, minlength=K)
    least = sizes.clamp_max(max(1, int(config.minimum * len(refined.noisy) / K)))
    assert (torch.bincount(refined.noisy[refined.space == TRUSTED], minlength=K) >= least).all()
    torch.testing.assert_close(refined.transition.sum(1), torch.ones(K).double(), atol=1e-5, rtol=0)


SETTINGS: list[dict] = [{"filters": 8}, {"ema": 0.0}, {"holdout": 0.0}, {"threshold": 0.9}, {"minimum": 0.9}]
SETTINGS += [{"error": 0.9, "threshold": 0.9}, {"error": 0.0}, {"drop": 0.0}, {"purity": 1.0}]
SETTINGS += [{"soft_weight": 0.0}, {"soft_weight": 1.0}]


@pytest.fixture(scope="module")
def baseline(problem) -> RefinedSet:
    return run(problem)


@pytest.mark.parametrize("change", SETTINGS, ids=str)
def test_every_setting_changes_something_and_leaves_a_consistent_set(problem, baseline, change):
    refined = run(problem, **change)
    assert_consistent_weights(refined, **change)
    assert not same_bits(refined, baseline)


def test_no_setting_is_left_out():
    tested_below = {"mirror", "purity_alike"}
    assert {name for change in SETTINGS for name in change} | tested_below == set(vars(PosteriorConfig()))


@pytest.mark.parametrize("change", [{"minimum": 0.0}, {"error": 0.0, "holdout": 0.0}], ids=str)
def test_a_single_epoch_is_enough(problem, change):
    auditor = replace(AUDITOR, epochs=1, warmup=1)
    assert_consistent_weights(run(problem, auditor, **change), auditor, **change)


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
    predicted, of_posterior = method.predicted, method.posterior
    monkeypatch.setattr(TrustPosterior, "predicted", lambda _, *a: passes.append(len(state.rows)) or predicted(*a))
    monkeypatch.setattr(TrustPosterior, "posterior", lambda _, *a: used.append(a[2]) or of_posterior(*a))
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
    problem, auditor = digits(None, "pairflip", 0.4, WIDE), AuditorConfig(epochs=14)
    refined = run(problem, auditor)
    figures = refined.metrics(problem.true)
    bounds = {"trust_precision": 0.95, "trust_recall": 0.97, "label_accuracy": 0.96, "trust_auroc": 0.98}
    assert all(figures[name] > bound for name, bound in bounds.items()), figures
    assert_consistent_weights(refined, auditor)


def test_of_clean_digits_few_labels_are_flagged_or_replaced():
    problem = digits(None, "none", 0.0, WIDE)
    refined = run(problem, AuditorConfig(epochs=14))
    assert (refined.space != TRUSTED).double().mean() < 0.1
    assert (refined.label != problem.noisy).double().mean() < 0.02
