"""The dual loop and the arms."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from test_trust import sklearn_mixture

from tadlib import data, diversion, noise, posterior
from tadlib.arms import ARMS, loss_filter, refine
from tadlib.diversion import RECALIBRATED, TRUSTED, UNTRUSTED, DiversionConfig, RefinedSet, divert
from tadlib.errors import InputError
from tadlib.nn.networks import Network, NetworkSpec
from tadlib.nn.training import Sgd, State, one_hot, predict, train_epoch
from tadlib.store import StageFolder

K = 10
SMALL = Network(NetworkSpec((1, 8, 8), K, width=4, depth=2))
TINY = DiversionConfig(epochs=3, warmup=2, lr=0.05, batch=32)


def digits(n, kind, rate, seed=0):
    """Images, noisy labels and true labels of ``n`` digits with noise."""
    loaded = data.load_dataset("digits", n_train=n)
    labels = noise.inject(loaded.y_train, kind, rate, n_classes=K, seed=seed)
    return loaded.x_train, labels.noisy_N, loaded.y_train


@pytest.fixture(scope="module")
def tiny():
    return digits(300, "pairflip", 0.3)


def run(tiny, config=TINY, **more) -> RefinedSet:
    x, given, true = tiny
    return divert(SMALL, x, given, K, config, **{"seed": 0, "true_N": true} | more)


def same_bits(a: RefinedSet, b: RefinedSet) -> bool:
    tensors = [name for name, value in vars(a).items() if isinstance(value, torch.Tensor)]
    assert {"y", "weight", "trust", "space", "reliability", "space_history"} <= set(tensors)
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in tensors)


def assert_consistent(refined: RefinedSet, config: DiversionConfig):
    """What holds of every refined set of the dual loop."""
    n = len(refined.given)
    trusted, new = refined.space == TRUSTED, refined.space == RECALIBRATED
    untrusted = refined.space == UNTRUSTED
    assert (trusted | new | untrusted).all()
    assert (refined.in_use[untrusted] == 0).all()
    if config.evidence == "posterior":
        # what is no label in use has the share ``rest`` of what is left of a sample
        torch.testing.assert_close(
            refined.weight, refined.in_use + config.rest * (1 - refined.in_use), atol=1e-5, rtol=0
        )
        of_given = (refined.weight * refined.y.gather(1, refined.given[:, None])[:, 0]).double()
        of_given -= refined.in_use * (refined.label == refined.given)
        torch.testing.assert_close(
            of_given, config.rest * (1 - refined.in_use.double()) * refined.trust, atol=1e-5, rtol=0
        )
    if config.evidence == "posterior":
        assert ((refined.weight[trusted] > 0) & (refined.weight[trusted] <= 1.0001)).all()
    else:
        assert (refined.weight[trusted] == 1).all()
    assert ((refined.weight[new] > 0) & (refined.weight[new] <= 1.0001)).all()
    if config.evidence != "posterior":
        assert torch.equal(refined.label[trusted], refined.given[trusted])
        assert torch.equal(refined.y[trusted], one_hot(refined.given[trusted], refined.n_classes))
    assert (refined.label[new] != refined.given[new]).all()
    torch.testing.assert_close(refined.y.sum(1), torch.ones(n), rtol=1e-5, atol=1e-5)
    assert ((refined.trust >= 0) & (refined.trust <= 1)).all()
    for k in range(refined.n_classes):
        assert trusted[refined.given == k].any(), k
    assert refined.space_history.shape == (config.epochs, n)
    assert torch.equal(refined.space_history[-1], refined.space)
    assert (refined.space_history[: config.warmup - 1] == TRUSTED).all()
    assert len(refined.history) == config.epochs
    for row, spaces in zip(refined.history, refined.space_history):
        assert [row[f"n_{name}"] for name in diversion.SPACES] == torch.bincount(spaces.long(), minlength=3).tolist()


FUSED = replace(TINY, evidence="fused")
SWITCHES = [
    (TINY, {"warmup": 1}),
    (TINY, {"warmup": 3}),
    (TINY, {"cooldown": 1.0}),
    (TINY, {"auditors": 2}),
    (TINY, {"evidence": "loss"}),
    (TINY, {"evidence": "fused"}),
    (TINY, {"views": "network"}),
    (TINY, {"views": "network+training+anchors+patches"}),
    (TINY, {"views": "training+anchors"}),
    (TINY, {"views": "patches"}),
    (TINY, {"views": "network+training+anchors"}),
    (TINY, {"average": 0.0}),
    (TINY, {"transition": "symmetric"}),
    (TINY, {"transition": "nearest+alike"}),
    (TINY, {"begin": "given"}),
    (TINY, {"patches_weight": 0.5}),
    (TINY, {"patches_filters": 8}),
    (TINY, {"targets": "refined"}),
    (TINY, {"bootstrap": 0.3}),
    (TINY, {"power": 3.0}),
    (TINY, {"purity": 1.0}),
    (TINY, {"rest": 0.0}),
    (TINY, {"rest": 1.0}),
    (TINY, {"look_every": 2, "warmup": 1}),
    (TINY, {"ema": 0.5}),
    (TINY, {"tau_start": 0.99, "tau_end": 0.99}),
    (TINY, {"consistency": 0.5, "warmup": 1}),
    (TINY, {"confidence_penalty": 0.5}),
    (TINY, {"recalibrate_every": 0}),
    (TINY, {"holdout": 0.0}),
    (TINY, {"augmentation": "none"}),
    (TINY, {"momentum": 0.0}),
    (FUSED, {"scope": "global"}),
    (FUSED, {"delta": 1e9}),
    (FUSED, {"minimum": 0.9}),
    (FUSED, {"recalibrate_every": 0}),
    (FUSED, {"recalibrate_every": 2, "warmup": 1}),
    (FUSED, {"criterion": "mahalanobis"}),
    (FUSED, {"criterion": "cosine", "belief": "quantile", "alpha": 0.0}),
    (FUSED, {"belief": "quantile"}),
    (FUSED, {"belief": "fixed", "reliability": 0.0}),
    (FUSED, {"error": 0.9}),
    (FUSED, {"error": 0.9, "holdout": 0.0}),
    (FUSED, {"error": 0.9, "drop": 1.0}),
]


@pytest.fixture(scope="module")
def baselines(tiny) -> dict[str, RefinedSet]:
    refined = {config.evidence: run(tiny, config) for config in (TINY, FUSED)}
    for config in (TINY, FUSED):
        assert_consistent(refined[config.evidence], config)
    return refined


@pytest.mark.parametrize(
    "base, change", SWITCHES, ids=lambda c: c.evidence if isinstance(c, DiversionConfig) else str(c)
)
def test_every_switch_runs_changes_something_and_leaves_a_consistent_set(tiny, baselines, base, change):
    config = replace(base, **change)
    refined = run(tiny, config)
    assert_consistent(refined, config)
    compared = ("trust", "weight", "y", "reliability", "space")
    pairs = [(getattr(refined, n), getattr(baselines[base.evidence], n)) for n in compared]
    assert not all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("change", [{}, {"minimum": 0.0}, {"evidence": "loss"}, {"recalibrate_every": 0}], ids=str)
def test_a_single_round_is_enough(tiny, change):
    config = replace(TINY, epochs=1, warmup=1, **change)
    assert_consistent(run(tiny, config), config)


def test_a_class_that_separates_by_too_little_is_wholly_trusted(tiny):
    refined = run(tiny, replace(FUSED, delta=1e9))
    assert (refined.space == TRUSTED).all()
    assert refined.history[-1]["n_clean_classes"] == K


def test_without_recalibration_nothing_is_relabelled(tiny):
    refined = run(tiny, replace(FUSED, recalibrate_every=0))
    assert torch.equal(refined.label, refined.given)
    assert not (refined.space_history == RECALIBRATED).any()
    assert (refined.space == UNTRUSTED).any()


def test_drop_zero_keeps_only_relabels_of_the_smallest_loss(tiny):
    config = replace(FUSED, error=0.9)
    without, with_drop = (run(tiny, replace(config, drop=d)) for d in (1.0, 0.0))
    counts = [int((r.space_history[config.warmup - 1] == RECALIBRATED).sum()) for r in (without, with_drop)]
    assert counts[0] > counts[1]


def test_same_seed_same_bits_and_the_global_generator_untouched(tiny):
    before = torch.get_rng_state()
    a, b, c = run(tiny), run(tiny), run(tiny, seed=1)
    assert same_bits(a, b)
    assert a.history == b.history
    assert not torch.equal(a.trust, c.trust)
    assert not torch.equal(a.trust, run(tiny, name="another").trust)
    assert torch.equal(before, torch.get_rng_state())
    assert not any(v.requires_grad for v in vars(a).values() if isinstance(v, torch.Tensor))


def test_the_truth_is_used_for_metrics_only(tiny):
    x, given, true = tiny
    wrong = (true + 1) % K
    results = [run(tiny, true_N=t) for t in (None, true, wrong)]
    assert same_bits(results[0], results[1])
    assert same_bits(results[0], results[2])
    without, with_truth, with_lie = (r.history[-1] for r in results)
    assert "trust_auroc" not in without
    assert with_truth["trust_precision"] != with_lie["trust_precision"]
    assert without == {k: v for k, v in with_truth.items() if k in without}


@pytest.mark.parametrize(
    "change",
    [{}, {"auditors": 2, "look_every": 2}, {"recalibrate_every": 2, "ema": 0.0}],
    ids=str,
)
@pytest.mark.parametrize("at", [1, 2, 4])
def test_a_restored_checkpoint_ends_with_the_same_bits(tiny, tmp_path, change, at):
    config = replace(TINY, epochs=5, **change)
    (tmp_path / "stage").mkdir()
    folder = StageFolder(tmp_path / "stage")

    class Killed(Exception):
        pass

    def save_then_die(loop):
        if loop.epoch == at:
            folder.save_checkpoint(*loop.checkpoint())
            raise Killed

    with pytest.raises(Killed):
        run(tiny, config, on_round=save_then_die)
    whole, resumed = run(tiny, config), run(tiny, config, resume=folder.load_checkpoint())
    assert same_bits(whole, resumed)
    assert whole.history == resumed.history


def test_held_out_labels_are_never_trained_on(tiny):
    x, given, _ = tiny
    config = replace(TINY, warmup=3, holdout=0.2)  # in warm-up labels have no other use
    loops = []
    run(tiny, config, on_round=loops.append)
    held_out = ~loops[0].tensors["labelled"]
    for k in range(K):
        assert held_out[given == k].sum() == int(0.2 * (given == k).sum())
    other = given.clone()
    # labels change places among held-out samples, which keeps the counts of classes and thus the draw
    places = held_out.nonzero()[:, 0]
    theta = loops[-1].tensors["theta/0"]
    loop = diversion.start(SMALL, x, given, K, config, seed=0)
    other[places] = given[places.flip(0)]
    assert not torch.equal(other, given)
    loop.given, loop.tensors["y"] = other, one_hot(other, K)
    while loop.epoch < config.epochs:
        diversion.advance(loop)
    assert torch.equal(loop.tensors["theta/0"], theta)


@pytest.mark.parametrize("change", [{"begin": "given"}, {"views": "network"}, {"evidence": "loss"}], ids=str)
def test_warm_up_is_plain_training_on_the_given_labels_where_patches_have_no_say(tiny, change):
    x, given, _ = tiny
    config = replace(TINY, warmup=3, **change)
    loop = diversion.start(SMALL, x, given, K, config, seed=0)
    assert torch.equal(loop.tensors["target"], one_hot(given, K))
    theta, velocity, random = loop.tensors["theta/0"], None, loop.generators[0].clone_state()
    labelled = loop.tensors["labelled"].float()
    for _ in range(2):
        diversion.advance(loop)
        assert (loop.tensors["space"] == TRUSTED).all()
        assert torch.equal(loop.tensors["y"], one_hot(given, K))
        state = train_epoch(
            SMALL,
            State(theta, velocity),
            x,
            one_hot(given, K),
            labelled,
            sgd=Sgd(config.lr, config.momentum, config.weight_decay),
            batch=config.batch,
            strategy=config.augmentation,
            generator=random,
            on_step=lambda *_: None,  # all samples are seen, held-out ones without their labels
        )
        theta, velocity = state.theta, state.velocity
    assert torch.equal(loop.tensors["theta/0"], theta)


def test_warm_up_begins_with_what_patches_say(tiny):
    x, given, true = tiny
    loop = diversion.start(SMALL, x, given, K, TINY, seed=0)
    t = loop.tensors
    q = posterior.posterior(t["patches"].double().log(), given, t["transition"]).float()
    assert torch.equal(t["target"], q)
    assert (q.argmax(1) == true).double().mean() > (given == true).double().mean() + 0.05
    half = diversion.start(SMALL, x, given, K, replace(TINY, bootstrap=0.5), seed=0).tensors["target"]
    torch.testing.assert_close(half, (q + one_hot(given, K)) / 2)


def test_predictions_on_the_way_are_those_before_each_step(tiny):
    x, given, _ = tiny
    config = replace(TINY, warmup=3, batch=len(x), augmentation="none")
    loop = diversion.start(SMALL, x, given, K, config, seed=0)
    before, _ = predict(SMALL, loop.tensors["theta/0"], x)
    diversion.advance(loop)
    torch.testing.assert_close(loop.tensors["seen"], before.softmax(1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "augmentation, mirror, sides", [("crop_flip", True, 2), ("crop_flip", False, 1), ("crop", True, 1)]
)
def test_a_look_is_at_the_mirror_image_too_where_augmentation_flips(tiny, augmentation, mirror, sides):
    x, given, _ = tiny
    config = replace(TINY, epochs=1, warmup=1, augmentation=augmentation, mirror=mirror)
    loop = diversion.start(SMALL, x, given, K, config, seed=0)
    diversion.advance(loop)
    looks = [predict(SMALL, loop.tensors["mean/0"], side)[0].softmax(1) for side in (x, x.flip(3))[:sides]]
    torch.testing.assert_close(loop.tensors["p"], sum(looks) / sides)


def test_between_looks_the_network_says_what_it_said_while_training(tiny):
    x, given, _ = tiny
    loop = diversion.start(SMALL, x, given, K, TINY, seed=0)
    for last in (False, False, True):
        diversion.advance(loop)
        assert ("p" in loop.tensors) == (loop.epoch >= TINY.warmup)
        if "p" in loop.tensors:
            assert torch.equal(loop.tensors["p"], loop.tensors["seen"]) != last


def test_metrics_by_hand():
    given = torch.tensor([0, 1, 0, 1, 0, 1])
    true = torch.tensor([0, 0, 0, 1, 1, 0])  # wrong: 1, 4, 5
    space = torch.tensor([TRUSTED, TRUSTED, TRUSTED, UNTRUSTED, RECALIBRATED, RECALIBRATED], dtype=torch.int8)
    label = torch.tensor([0, 1, 0, 1, 1, 0])
    refined = RefinedSet(
        given=given,
        y=one_hot(label, 2),
        weight=torch.tensor([1, 1, 1, 0, 0.5, 0.5]),
        trust=torch.tensor([0.9, 0.8, 0.7, 0.6, 0.1, 0.2]).double(),
        space=space,
        reliability=torch.zeros(6),
    )
    assert refined.metrics(true) == pytest.approx(
        {
            "trust_auroc": 7 / 9,  # of nine pairs of right and wrong, .8 beats .7 and .6
            "trust_precision": 2 / 3,
            "trust_recall": 2 / 3,
            "relabel_count": 2,
            "relabel_accuracy": 1.0,
            "relabel_recall": 2 / 3,
            "label_accuracy": 3 / 4,
            "mass_accuracy": 3 / 4,
        }
    )
    clean = refined.metrics(given)
    assert clean["trust_auroc"] is None
    assert clean["relabel_recall"] is None
    table = refined.table(true)
    assert isinstance(table, pd.DataFrame)
    assert list(table.space) == ["trusted"] * 3 + ["untrusted", "recalibrated", "recalibrated"]
    assert list(table.label) == label.tolist()
    assert list(table.true_label) == true.tolist()
    assert "true_label" not in refined.table()


@pytest.mark.parametrize("kind, rate", [("pairflip", 0.4)])
def test_digits_with_pairflips_are_sorted_out(kind, rate):
    x, given, true = digits(None, kind, rate)
    net = Network(NetworkSpec((1, 8, 8), K, width=16, depth=2))
    refined = divert(net, x, given, K, DiversionConfig(epochs=20), seed=0)
    figures = refined.metrics(true)
    assert figures["trust_precision"] > 0.95, figures
    assert figures["trust_recall"] > 0.97, figures
    assert figures["label_accuracy"] > 0.96, figures
    assert figures["trust_auroc"] > 0.98, figures
    assert_consistent(refined, DiversionConfig(epochs=20))


def test_clean_digits_are_left_nearly_alone():
    x, given, true = digits(None, "none", 0)
    net = Network(NetworkSpec((1, 8, 8), K, width=16, depth=2))
    refined = divert(net, x, given, K, DiversionConfig(epochs=20), seed=0)
    flagged = (refined.space != TRUSTED).double().mean().item()
    relabelled = (refined.label != given).double().mean().item()
    print(f"flagged {flagged:.4f}, relabelled {relabelled:.4f}")
    assert flagged < 0.1
    assert relabelled < 0.02


# Arms ---------------------------------------------------------------------------------------------------------------


def test_vanilla_and_oracle_keep_every_sample(tiny):
    x, given, true = tiny
    for arm, expected in (("vanilla", given), ("oracle", true)):
        refined = refine(arm, SMALL, x, given, K, TINY, seed=0, true_N=true)
        assert torch.equal(refined.label, expected)
        assert torch.equal(refined.y, one_hot(expected, K))
        assert (refined.weight == 1).all()
        assert (refined.space == TRUSTED).all()
        assert torch.equal(refined.given, given)


def test_vanilla_does_not_look_at_the_truth(tiny):
    x, given, true = tiny
    a = refine("vanilla", SMALL, x, given, K, TINY, seed=0, true_N=true)
    b = refine("vanilla", SMALL, x, given, K, TINY, seed=0)
    assert torch.equal(a.y, b.y)
    assert torch.equal(a.trust, b.trust)


def test_tad_is_the_dual_loop(tiny):
    x, given, true = tiny
    assert same_bits(refine("tad", SMALL, x, given, K, TINY, seed=0, true_N=true), run(tiny))


def test_clean_then_distill_is_the_loss_filter_after_plain_training(tiny):
    """Cross entropy after the last epoch, scaled over all classes, two Gaussians, posterior of the lower above 1/2."""
    x, given, true = tiny
    config = replace(TINY, epochs=4)
    loops = []
    refined = refine("clean-then-distill", SMALL, x, given, K, config, seed=0, on_round=loops.append)
    assert same_bits(refined, run(tiny, loss_filter(config), true_N=None))
    assert loops[-1].tensors.get("labelled", torch.ones(1)).all()  # a plain filter trains on every label
    assert (refined.space_history[:-1] == TRUSTED).all()
    logits, _ = predict(SMALL, loops[-1].tensors["theta/0"], x)
    loss = torch.nn.functional.cross_entropy(logits, given, reduction="none").double()
    loss = ((loss - loss.min()) / (loss.max() - loss.min())).numpy()
    mixture, order = sklearn_mixture(loss, 99, 1e-6)  # the same start, rounds and tolerance
    clean = mixture.predict_proba(loss[:, None])[:, order[0]] > 0.5
    passed = (refined.space == TRUSTED).numpy()
    assert 0.1 < passed.mean() < 0.95
    assert (clean == passed).all()
    assert torch.equal(refined.label, given)


def test_unknown_arms_and_missing_truth_are_named(tiny):
    x, given, _ = tiny
    with pytest.raises(InputError, match="unknown arm 'tda'.*" + ", ".join(ARMS)):
        refine("tda", SMALL, x, given, K, TINY, seed=0)
    with pytest.raises(InputError, match="oracle needs the true labels"):
        refine("oracle", SMALL, x, given, K, TINY, seed=0)


# Bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x, y: (x, y[:-1]), "got 300 images and 299 labels"),
        (lambda x, y: (x, torch.where(torch.arange(300) == 7, K, y)), r"labels must be in \[0, 10\), got 0 to 10"),
        (lambda x, y: (x, torch.where(torch.arange(300) == 7, -1, y)), r"labels must be in \[0, 10\), got -1 to 9"),
        (lambda x, y: (x, torch.where(y == 4, 5, y)), r"classes without: \[4\]"),
    ],
)
def test_bad_labels_are_named_before_any_work(tiny, change, message):
    x, given = change(tiny[0], tiny[1])
    rounds = []
    with pytest.raises(InputError, match=message):
        divert(SMALL, x, given, K, TINY, seed=0, on_round=rounds.append)
    assert rounds == []


def test_images_that_are_not_numbers_are_refused(tiny):
    x = tiny[0].clone()
    x[3] = torch.nan
    with pytest.raises(InputError, match="finite"):
        divert(SMALL, x, tiny[1], K, TINY, seed=0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"evidence": "los"}, "unknown evidence 'los'"),
        ({"scope": "row"}, "unknown scope 'row'"),
        ({"criterion": "angle"}, "unknown criterion 'angle'"),
        ({"evidence": "rumour"}, "unknown evidence 'rumour'"),
        ({"views": "network+rumour"}, "unknown view 'rumour'"),
        ({"transition": "maybe"}, "unknown transition 'maybe'"),
        ({"begin": "middle"}, "unknown begin 'middle'"),
        ({"patches_weight": 0.0}, "patches_weight must be positive, got 0.0"),
        ({"patches_filters": 1}, "patches_filters must be at least 2, got 1"),
        ({"auditors": 0}, "auditors must be at least 1, got 0"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"warmup": 0}, r"warmup must be in \[1, epochs=3\], got 0"),
        ({"warmup": 4}, r"warmup must be in \[1, epochs=3\], got 4"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\), got 1.0"),
        ({"tau_end": 1.4}, r"tau_end must be in \[0, 1\), got 1.4"),
        ({"alpha": -0.1}, r"alpha must be in \[0, 1\], got -0.1"),
        ({"power": 0.5}, "power must be at least 1, got 0.5"),
        ({"purity": 1.1}, r"purity must be in \[0, 1\], got 1.1"),
        ({"bootstrap": 2.0}, r"bootstrap must be in \[0, 1\], got 2.0"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(InputError, match=message):
        replace(TINY, **change)


def test_where_noise_follows_likeness_labels_in_use_have_to_be_purer(tiny):
    x, given, _ = tiny
    powers = []
    for alike in (False, True):
        loop = diversion.start(SMALL, x, given, K, replace(TINY, purity=0.5), seed=0)
        assert not loop.tensors["alike"]  # digits flip from each class to the next
        loop.tensors["alike"] = torch.tensor(alike)
        while loop.epoch < TINY.epochs:
            diversion.advance(loop)
        powers.append(loop.rows[-1]["power"])
    assert powers[0] == 1 < powers[1]


@pytest.mark.parametrize("auditors, augmentation, sides", [(1, "none", 1), (2, "none", 1), (2, "crop_flip", 2)])
def test_a_look_gives_one_set_of_features_for_every_auditor(tiny, auditors, augmentation, sides):
    x, given, _ = tiny
    config = replace(TINY, evidence="loss", auditors=auditors, augmentation=augmentation, average=0.0)
    loop = diversion.start(SMALL, x, given, K, config, seed=0)
    features = diversion._look(loop)
    assert len(features) == auditors
    for a in range(auditors):
        looks = [predict(SMALL, loop.tensors[f"theta/{a}"], x)[1]]
        looks += [predict(SMALL, loop.tensors[f"theta/{a}"], x.flip(3))[1]] * (sides == 2)
        torch.testing.assert_close(features[a], sum(looks) / sides)


def test_a_look_keeps_no_features_that_nothing_asks_for(tiny):
    x, given, _ = tiny
    assert diversion._look(diversion.start(SMALL, x, given, K, TINY, seed=0)) == []
