"""Promises of tadlib.rivals: the published losses and selections, equal budgets, and resume to the same bits."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from tadlib import arms, data, noise, rivals
from tadlib.diversion import TRUSTED, DiversionConfig
from tadlib.errors import InputError
from tadlib.nn.networks import Network, NetworkSpec
from tadlib.nn.training import weighted_loss

K = 10
NET = Network(NetworkSpec((1, 8, 8), K, width=16, depth=2))
CONFIG = DiversionConfig(epochs=4, warmup=2, batch=64, augmentation="none", lr=0.05)
ARMS = ("co-teaching", "confident-learning", "gce")


@pytest.fixture(scope="module")
def digits():
    """Images, noisy labels and true labels: symmetric noise, 30 %."""
    loaded = data.load_dataset("digits", n_train=600)
    labels = noise.inject(loaded.y_train, "symmetric", 0.3, n_classes=K, seed=0)
    return loaded.x_train, labels.noisy_N, labels.true_N


def refine(arm, digits, config=CONFIG, **more):
    x, given, true = digits
    return arms.refine(arm, NET, x, given, K, config, **{"seed": 0, "true_N": true} | more)


@pytest.fixture(scope="module")
def refined(digits):
    pytest.importorskip("cleanlab")
    return {arm: refine(arm, digits) for arm in ARMS}


@pytest.mark.parametrize("arm", ARMS)
def test_every_rival_finds_wrong_labels_and_relabels_none(arm, digits, refined):
    found, (_, given, true) = refined[arm], digits
    assert found.trust.shape == given.shape
    assert found.trust.dtype == torch.float64
    assert 0 <= float(found.trust.min()) <= float(found.trust.max()) <= 1
    assert torch.equal(found.label, given)
    assert torch.equal(found.weight, (found.space == TRUSTED).float())
    assert torch.bincount(given[found.space == TRUSTED], minlength=K).min() >= 1
    assert found.metrics(true)["trust_auroc"] > (0.7 if arm == "co-teaching" else 0.85)  # two rounds; four
    assert found.metrics(true)["trust_precision"] > 0.77  # of all labels .7 are right


@pytest.mark.parametrize(
    ("arm", "rates"),
    [
        ("tad", [0.1, 0.1, 0.1, 0.05]),
        ("clean-then-distill", [0.1, 0.1, 0.1, 0.05]),
        ("gce", [0.1, 0.1, 0.1, 0.05]),
        ("co-teaching", [0.1, 0.1]),  # of its two rounds the last half is one
        ("confident-learning", 4 * [0.1, 0.1, 0.1, 0.05]),
    ],
)
def test_the_learning_rate_falls_over_the_last_rounds_of_every_network(arm, rates, digits, monkeypatch):
    if arm == "confident-learning":
        pytest.importorskip("cleanlab")
    found, sgd = [], DiversionConfig.sgd
    monkeypatch.setattr(DiversionConfig, "sgd", lambda *a: found.append(sgd(*a)) or found[-1])
    refine(arm, digits, replace(CONFIG, lr=0.1, cooldown=0.5))
    assert [one.lr for one in found] == pytest.approx(rates)
    assert {(one.momentum, one.weight_decay) for one in found} == {(CONFIG.momentum, CONFIG.weight_decay)}


@pytest.mark.parametrize("arm", ARMS)
def test_an_interrupted_rival_ends_with_the_same_bits(arm, digits, refined):
    class Stop(Exception):
        pass

    kept = []

    def stop_at_third(loop):
        tensors, meta = loop.checkpoint()
        kept.append(({k: v.clone() for k, v in tensors.items()}, {"rows": list(meta["rows"])}))
        if len(kept) == (2 if arm == "co-teaching" else 3) - 1:
            raise Stop

    with pytest.raises(Stop):
        refine(arm, digits, on_round=stop_at_third)
    again = refine(arm, digits, resume=kept[-1])
    for name in ("trust", "weight", "space", "y"):
        assert torch.equal(getattr(again, name), getattr(refined[arm], name)), name
    assert again.history == refined[arm].history


def test_the_budget_is_what_the_docstring_says(digits, monkeypatch):
    pytest.importorskip("cleanlab")
    seen: dict[str, float] = {}
    train, exchange = rivals.train_epoch, rivals._exchange_epoch

    def counting(net, state, x, y, w, **more):
        seen["epochs"] += float((w > 0).double().mean())
        return train(net, state, x, y, w, **more)

    def counting_two(loop, forget):
        seen["epochs"] += 2
        exchange(loop, forget)

    monkeypatch.setattr(rivals, "train_epoch", counting)
    monkeypatch.setattr(rivals, "_exchange_epoch", counting_two)
    for arm, budget in {"gce": 4, "co-teaching": 4, "confident-learning": 12}.items():
        seen.update(epochs=0.0)
        rounds: list[int] = []
        refine(arm, digits, on_round=lambda loop, rounds=rounds: rounds.append(loop.epoch))
        assert seen["epochs"] == pytest.approx(budget, abs=1e-9)
        assert rounds == list(range(1, rivals.rounds(arm, CONFIG) + 1))


@pytest.mark.parametrize("arm", ARMS)
def test_settings_that_a_rival_ignores_do_not_count(arm):
    base = arms.settings_used(arm, CONFIG)
    assert arms.settings_used(arm, DiversionConfig(**vars(CONFIG) | {"ema": 0.1, "tau_start": 0.9})) == base
    for used in (
        {"epochs": CONFIG.epochs + 1},
        {"lr": 0.1},
        {"cooldown": 0.5},
        {"momentum": 0.5},
        {"weight_decay": 0.1},
        {"batch": 7},
        {"augmentation": "flip"},
    ):
        assert arms.settings_used(arm, DiversionConfig(**vars(CONFIG) | used)) != base, used
    changed = arms.settings_used(arm, DiversionConfig(**vars(CONFIG) | {"warmup": 3})) != base
    assert changed == (arm == "co-teaching")


# Generalised cross entropy


@pytest.mark.parametrize("q", [0.3, 0.7, 1.0])
def test_generalised_cross_entropy_is_its_formula(q):
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 4, generator=rng, dtype=torch.float64).requires_grad_()
    y, w = torch.randint(0, 4, (7,), generator=rng), torch.rand(7, generator=rng, dtype=torch.float64)
    y_BK = torch.nn.functional.one_hot(y, 4).double()
    value = rivals.generalised_cross_entropy(logits, y_BK, w, q)
    p = np.exp(logits.detach().numpy())
    p /= p.sum(1, keepdims=True)
    expected = [(1 - p[i, k] ** q) / q for i, k in enumerate(y.tolist())]
    assert value.item() == pytest.approx(np.average(expected, weights=w.numpy()), abs=1e-12)
    (g,) = torch.autograd.grad(value, logits)
    (h,) = torch.autograd.grad(weighted_loss(logits, y_BK, w * torch.from_numpy(p)[range(7), y] ** q), logits)
    scale = (w * torch.from_numpy(p)[range(7), y] ** q).sum() / w.sum()
    torch.testing.assert_close(g, h * scale)  # its gradient is cross entropy's, weighted by p^q


def test_generalised_cross_entropy_has_a_finite_gradient_where_the_label_is_impossible():
    logits = torch.tensor([[200.0, -200.0]]).requires_grad_()
    value = rivals.generalised_cross_entropy(logits, torch.tensor([[0.0, 1.0]]), torch.ones(1), 0.7)
    (g,) = torch.autograd.grad(value, logits)
    assert value.item() == pytest.approx(1 / 0.7)
    assert g.isfinite().all()


# Co-teaching


def test_co_teaching_exchanges_the_easiest_samples_batch_by_batch(digits):
    x, given, _ = digits
    config = DiversionConfig(epochs=2, warmup=1, batch=50, augmentation="none", lr=0.1, momentum=0.9, weight_decay=1e-2)
    loop = rivals._start(NET, x[:100], given[:100], K, config, 2, None, seed=0, name="co-teaching")
    modules = []
    for a in range(2):
        parameters = NET.unflatten(loop.tensors[f"theta/{a}"].clone())
        modules.append({k: v.clone().requires_grad_() for k, v in parameters.items()})
    optimisers = [torch.optim.SGD(m.values(), lr=0.1, momentum=0.9, weight_decay=1e-2) for m in modules]
    order = torch.randperm(100, generator=torch.Generator().set_state(loop.generators[0].get_state()))
    rivals._exchange_epoch(loop, 0.4)
    for index in order.split(50):  # (no augmentation: only the order is drawn)
        logits = [torch.func.functional_call(NET.module, m, (x[index],)) for m in modules]
        losses = [torch.nn.functional.cross_entropy(z, given[index], reduction="none") for z in logits]
        easiest = [l.argsort()[:30] for l in losses]
        for a in range(2):
            optimisers[a].zero_grad()
            losses[a][easiest[1 - a]].mean().backward()
        for optimiser in optimisers:
            optimiser.step()
    for a in range(2):
        expected = torch.cat([p.detach().flatten() for p in modules[a].values()])
        torch.testing.assert_close(loop.tensors[f"theta/{a}"], expected, atol=1e-6, rtol=1e-5)


def test_co_teaching_forgets_up_to_the_rate_that_it_estimates_or_is_given(digits):
    config = DiversionConfig(epochs=12, warmup=4, batch=64, augmentation="none", lr=0.05)
    given_rate = refine("co-teaching", digits, config)
    rows = given_rate.history
    assert [row["forgotten"] for row in rows[:1]] == [0.0]
    assert rows[1]["forgotten"] == pytest.approx(rows[0]["forget_rate"] / 2)  # T = 2 rounds
    assert rows[-1]["forgotten"] == rows[-2]["forget_rate"]
    assert 0.15 < rows[-1]["forget_rate"] < 0.5  # the noise rate is .3
    x, given, _ = digits
    told = rivals.co_teaching(NET, x, given, K, config, seed=0, forget_rate=0.3)
    assert [row["forgotten"] for row in told.history] == pytest.approx([0, 0.15, 0.3, 0.3, 0.3, 0.3])
    assert int((told.space == TRUSTED).sum()) == 420


# Confident learning


def test_folds_hold_equal_shares_of_every_class(digits):
    x, given, _ = digits
    loop = rivals._start(NET, x, given, K, CONFIG, 4, None, seed=0, name="confident-learning")
    folds = rivals._folds(loop, 4, None)
    counts = torch.stack([torch.bincount(given[folds == f], minlength=K) for f in range(4)])
    assert (counts.amax(0) - counts.amin(0)).max() <= 1


def test_no_network_judges_a_label_that_it_was_trained_on(digits, monkeypatch):
    pytest.importorskip("cleanlab")
    x, given, _ = digits
    trained: dict[float, torch.Tensor] = {}
    train, predict = rivals.train_epoch, rivals.predict

    def training(net, state, x, y, w, **more):
        after = train(net, state, x, y, w, **more)
        trained[float(after.theta.sum())] = w > 0
        return after

    def predicting(net, theta, images):
        used = {tuple(image) for image in x[trained[float(theta.sum())]].flatten(1).tolist()}
        assert not any(tuple(image) in used for image in images.flatten(1).tolist())
        return predict(net, theta, images)

    monkeypatch.setattr(rivals, "train_epoch", training)
    monkeypatch.setattr(rivals, "predict", predicting)
    refine("confident-learning", digits, DiversionConfig(epochs=1, warmup=1, augmentation="none"))


def test_without_cleanlab_the_arm_says_how_to_get_it(digits, monkeypatch):
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    with pytest.raises(InputError, match="needs the package cleanlab: pip install cleanlab"):
        refine("confident-learning", digits)


@pytest.mark.parametrize(
    "run, options, message",
    [
        (rivals.gce, {"q": 0.0}, r"q must be in \(0, 1\], got 0.0"),
        (rivals.co_teaching, {"forget_rate": 1.0}, r"forget_rate must be in \[0, 1\), got 1.0"),
        (rivals.confident_learning, {"folds": 1}, r"folds must be in \[2, 600\], got 1"),
        (rivals.confident_learning, {"quality": "best"}, "unknown label quality 'best'; expected one of: self_conf"),
    ],
)
def test_settings_out_of_range_are_refused(digits, run, options, message):
    pytest.importorskip("cleanlab")
    x, given, _ = digits
    with pytest.raises(InputError, match=message):
        run(NET, x, given, K, CONFIG, seed=0, **options)
