"""The trust posterior: the run from predictors to the refined set, and what it promises."""

from dataclasses import replace

import pytest
import torch
from noisy_digits import SMALL, WIDE, K, assert_consistent, digits, same_bits

from tadlib import noise, trust
from tadlib.config import AuditorConfig, PosteriorConfig
from tadlib.errors import InputError
from tadlib.nn.training import one_hot, predict
from tadlib.rng import generator
from tadlib.trust import (
    RECALIBRATED,
    TRUSTED,
    UNTRUSTED,
    RefinedSet,
    TrustPosterior,
    base,
    decisions,
    pooling,
    predictors,
    transition,
)

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
    # trusted: the most probable class, above the threshold or recalled
    enough = (refined.trust > config.threshold) | (refined.reliability > 1 - config.error)
    most = refined.posterior.argmax(1) == refined.noisy
    assert torch.equal(refined.space == TRUSTED, most & enough)
    torch.testing.assert_close(refined.transition.sum(1), torch.ones(K).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(refined.posterior.sum(1), torch.ones(len(refined.noisy)))
    of_noisy = refined.posterior.gather(1, refined.noisy[:, None])[:, 0].double()
    torch.testing.assert_close(of_noisy, refined.trust, atol=1e-6, rtol=0)
    assert torch.equal(refined.flagged, 1 - refined.trust > 1 / (1 + config.cost))
    estimate, low, high = refined.noise_rate.tolist()
    assert estimate == pytest.approx((1 - refined.trust).mean().item(), abs=1e-6)
    assert 0 <= low <= estimate <= high <= 1


SETTINGS: list[dict] = [{"filters": 8}, {"ema": 0.0}, {"holdout": 0.0}, {"threshold": 0.9}]
SETTINGS += [{"error": 0.9, "threshold": 0.9}, {"error": 0.0}, {"drop": 0.0}, {"purity": 1.0}]
SETTINGS += [{"soft_weight": 0.0}, {"soft_weight": 1.0}, {"cost": 9.0}]


@pytest.fixture(scope="module")
def baseline(problem) -> RefinedSet:
    return run(problem)


@pytest.mark.parametrize("change", SETTINGS, ids=str)
def test_every_setting_changes_something_and_leaves_a_consistent_set(problem, baseline, change):
    refined = run(problem, **change)
    assert_consistent_weights(refined, **change)
    assert not same_bits(refined, baseline)


def test_no_setting_is_left_out():
    tested_below = {"mirror", "predictors"}
    assert {name for change in SETTINGS for name in change} | tested_below == set(vars(PosteriorConfig()))


@pytest.mark.parametrize("change", [{"drop": 1.0}, {"error": 0.0, "holdout": 0.0}], ids=str)
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


def test_regressions_do_not_learn_held_out_labels(problem, monkeypatch):
    used, leave_one_out = [], predictors.leave_one_out
    monkeypatch.setattr(predictors, "leave_one_out", lambda *a: used.append(a[2]) or leave_one_out(*a))
    z_ND = problem.x.flatten(1)
    _, state = started(replace(problem, embeddings=(z_ND,)), holdout=0.2)
    assert len(used) == len(state.predictions) == 2
    assert all(torch.equal(use, state.trained_on) for use in used)
    assert 0.75 < used[0].double().mean() < 0.85


def test_copies_of_held_out_images_are_held_out_as_well(problem):
    method = TrustPosterior(AUDITOR, PosteriorConfig(holdout=0.2))
    group = torch.arange(300) // 3
    kept, alone = method.trained_on(problem, group), method.trained_on(problem)
    for of_three in range(100):
        assert kept[group == of_three].tolist() == [bool(alone[group == of_three].all())] * 3


def test_warm_up_begins_with_the_posterior_of_predictions_on_patches(problem):
    _, state = started(problem)
    (found,) = state.predictions
    log_p = pooling.pool([found.p], torch.ones(1))
    a = pooling.combined([found], problem.noisy).exponent
    q = pooling.posterior(log_p, problem.noisy, found.transition, a).float()
    assert torch.equal(state.target, q)
    right, noisy_right = ((labels == problem.true).double().mean() for labels in (q.argmax(1), problem.noisy))
    assert right > noisy_right + 0.05


@pytest.mark.parametrize("exponent", [0.45, 1.0])
def test_the_posterior_has_matrix_exponent_and_range_of_the_prediction_that_explains_labels_best(problem, exponent):
    method, state = started(problem, holdout=0.2)
    (of_patches,) = state.predictions
    best = replace(of_patches, transition=transition.uniform(0.3, K), exponent=exponent, range=(0.0, 0.3))
    state.predictions = [replace(of_patches, log_likelihood=-9.0), replace(best, log_likelihood=-0.1)]
    p_NK = torch.full((300, K), 1 / K)
    found = method.posterior(problem, state, p_NK)
    p_VNK = [of_patches.p, of_patches.p, p_NK]
    # weights are those of labels that no predictor was trained on
    w_V = pooling.weights(p_VNK, problem.noisy, best.transition, ~state.trained_on)
    log_p = pooling.pool(p_VNK, w_V)
    excess = decisions.overdispersion(log_p.exp(), problem.noisy, best.transition)
    assert found.exponent == decisions.exponent(exponent, excess)
    assert torch.equal(found.q, pooling.posterior(log_p, problem.noisy, best.transition, found.exponent))
    assert torch.equal(found.weights, w_V)
    trust = found.q.gather(1, problem.noisy[:, None])
    assert found.noise_rate.estimate == pytest.approx((1 - trust).mean().item())
    assert found.noise_rate.high >= found.noise_rate.estimate + 0.3 - 1e-9 or found.noise_rate.high == 1.0
    assert torch.equal(method.result(problem, state).transition, best.transition)


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


# Other predictors


def test_without_a_network_nothing_is_trained_and_one_epoch_is_enough(problem):
    settings = {"predictors": "patches"}
    method, state = started(problem, **settings)
    before = state.auditor.theta.clone()
    assert method.epochs == 1
    assert state.trained_on.all()
    refined = run(problem, **settings)
    assert_consistent_weights(refined, replace(AUDITOR, epochs=1, warmup=1), **settings)
    assert len(refined.history) == 1
    method.step(problem, state)
    assert torch.equal(state.auditor.theta, before)
    assert torch.equal(state.target, refined.posterior)


def test_a_file_whose_path_holds_the_name_of_a_predictor_is_that_file_alone():
    method = TrustPosterior(AUDITOR, PosteriorConfig(predictors="'embeddings:my network patches.npy'"))
    assert method.names == ["embeddings:my network patches.npy"]
    assert method.epochs == 1  # no network was asked for


def test_embeddings_and_probabilities_are_predictors(problem):
    """One-hot true classes as embeddings leave nothing to doubt; probabilities that are right neither."""
    true_NK, auditor = one_hot(problem.true, K), replace(AUDITOR, epochs=1, warmup=1)
    blurred = true_NK + 0.1 * torch.randn(300, K, generator=generator(0, "blur"))
    noisy_NK = (0.98 * true_NK + 0.002) @ (0.7 * torch.eye(K) + 0.3 * torch.eye(K).roll(1, 1))
    for more in ({"embeddings": (blurred,)}, {"probabilities": (noisy_NK,)}):
        given = replace(problem, **more)
        refined = run(given, auditor, predictors="embeddings:a.npy")  # files are read by the pipeline
        assert refined.metrics(problem.true)["trust_auroc"] > 0.99, more
        assert_consistent_weights(refined, auditor)
        both = run(given, auditor, predictors="patches embeddings:a.npy")
        assert not same_bits(refined, both)


def test_a_network_alone_is_refused(problem):
    with pytest.raises(InputError, match="predictors must name one besides the network, got 'network'"):
        started(problem, predictors="network")


# Promises


@pytest.mark.parametrize("settings", [{}, {"predictors": "patches"}], ids=str)
def test_a_checked_label_is_never_flagged_and_counts_as_right(problem, settings):
    alone = run(problem, cost=99.0, **settings)
    checked = alone.flagged & (torch.arange(300) % 2 == 0)
    assert checked.sum() > 20
    refined = run(replace(problem, checked=checked), cost=99.0, **settings)
    assert not (refined.flagged & checked).any()
    assert (refined.trust[checked] == 1).all()
    assert torch.equal(refined.posterior[checked], problem.noisy_NK[checked])
    assert refined.noise_rate[0] == pytest.approx((1 - refined.trust).mean().item(), abs=1e-6)
    assert refined.noise_rate[0] < alone.noise_rate[0]


@pytest.mark.parametrize("labels", ["drawn anew", "the same"])
def test_copies_of_all_images_change_neither_trust_nor_the_matrix(labels):
    single = digits(None, "symmetric", 0.4)
    x, true = single.x.repeat(2, 1, 1, 1), single.true.repeat(2)
    noisy = single.noisy.repeat(2)
    if labels == "drawn anew":
        noisy = noise.inject(true, "symmetric", 0.4, n_classes=K, seed=0).noisy_N
    copied = replace(single, x=x, noisy=noisy, true=true)
    alone, twice = (run(problem, predictors="patches") for problem in (single, copied))
    precision = [of.metrics(p.true)["trust_precision"] for of, p in ((alone, single), (twice, copied))]
    assert precision[0] == pytest.approx(precision[1], abs=0.05)
    assert (alone.transition - twice.transition).diagonal().abs().max() < 0.05


@pytest.mark.parametrize("n", [50, 100, 200])
@pytest.mark.parametrize("kind, rate", [("none", 0.0), ("symmetric", 0.4)])
def test_the_interval_of_few_labels_holds_the_true_rate(n, kind, rate):
    problem = digits(n, kind, rate)
    estimate, low, high = run(problem, predictors="patches").noise_rate.tolist()
    true_rate = (problem.noisy != problem.true).double().mean().item()
    assert low <= true_rate <= high
    assert low <= estimate <= high


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
