"""Baselines and rivals: the published losses and selections, and equal budgets."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from noisy_digits import WIDE, K, digits, plain_thetas, sklearn_trust

from tadlib import trust
from tadlib.config import AuditorConfig, PosteriorConfig, TadConfig
from tadlib.errors import InputError
from tadlib.nn.images import Images
from tadlib.nn.networks import Network
from tadlib.nn.training import weighted_loss
from tadlib.trust import TRUSTED, Tad, TrustPosterior, base, baselines
from tadlib.trust.baselines import ConfidentLearning, CoTeaching, LossFilter, generalised_cross_entropy

AUDITOR = AuditorConfig(epochs=4, warmup=2, batch=64, augmentation="none", lr=0.05)
ARMS = ("loss-filter", "gce", "co-teaching", "confident-learning")


@pytest.fixture(scope="module")
def problem():
    return digits(600, "symmetric", 0.3, WIDE)


def refine(arm, problem, auditor=AUDITOR, **more):
    if arm == "confident-learning":
        pytest.importorskip("cleanlab")
    return trust.refine(trust.method(arm, auditor), problem, **more)


@pytest.mark.parametrize("arm", ARMS)
def test_every_rival_finds_wrong_labels_and_relabels_none(problem, arm):
    found = refine(arm, problem)
    assert (found.trust.shape, found.trust.dtype) == (problem.noisy.shape, torch.float64)
    assert 0 <= float(found.trust.min()) <= float(found.trust.max()) <= 1
    assert torch.equal(found.label, problem.noisy)
    assert torch.equal(found.weight, (found.space == TRUSTED).float())
    assert torch.bincount(problem.noisy[found.space == TRUSTED], minlength=K).min() >= 1
    figures = found.metrics(problem.true)
    assert figures["trust_auroc"] > (0.7 if arm == "co-teaching" else 0.8)  # two epochs; four
    assert figures["trust_precision"] > 0.77  # of all labels .7 are right


def test_the_budget_is_what_the_docstring_says(problem, monkeypatch):
    """In passes of one network over the samples that it is trained on; those of TAD and the posterior are E as well."""
    pytest.importorskip("cleanlab")
    passes = []
    train, exchange = base.train_epoch, CoTeaching.exchange

    def counting(net, state, x, y, w, **more):
        passes.append(float((w > 0).double().mean()))
        return train(net, state, x, y, w, **more)

    def counting_two(*arguments):
        passes.append(2)
        exchange(*arguments)

    monkeypatch.setattr(base, "train_epoch", counting)
    monkeypatch.setattr(CoTeaching, "exchange", counting_two)
    for arm, budget in {"loss-filter": 4, "gce": 4, "co-teaching": 4, "confident-learning": 12}.items():
        passes.clear()
        refine(arm, problem)
        assert sum(passes) == pytest.approx(budget, abs=1e-9), arm
    for method in (Tad(AUDITOR), TrustPosterior(AUDITOR)):
        passes.clear()
        trust.refine(method, problem)
        assert len(passes) == 4
    assert CoTeaching(replace(AUDITOR, epochs=5)).epochs == 3


@pytest.mark.parametrize("arm", ARMS)
def test_a_method_holds_the_settings_that_it_uses_and_no_others(arm):
    """Stages are found by the settings of their method: what has no effect must not count."""
    base = trust.method(arm, AUDITOR)
    assert trust.method(arm, AUDITOR, TadConfig(alpha=0.9), PosteriorConfig(error=0.1)) == base
    changes = {"epochs": 5, "lr": 0.1, "momentum": 0.5, "weight_decay": 0.1, "batch": 7, "augmentation": "flip"}
    for name, value in changes.items():
        assert trust.method(arm, replace(AUDITOR, **{name: value})) != base, name
    assert (trust.method(arm, replace(AUDITOR, warmup=3)) != base) == (arm == "co-teaching")


# The loss filter


@pytest.mark.parametrize("gce", [False, True])
def test_the_loss_filter_is_one_mixture_of_the_last_losses_of_all_classes(problem, gce):
    """Cross entropy after the last epoch, scaled over all classes, two Gaussians, posterior of the lower above 1/2."""
    states = []
    refined = trust.refine(LossFilter(AUDITOR, gce), problem, on_epoch=states.append)
    theta = states[-1].auditors[0].theta
    assert torch.equal(theta, plain_thetas(problem, AUDITOR)[-1]) != gce  # of all noisy labels
    loss = torch.nn.functional.cross_entropy(WIDE(theta, problem.x), problem.noisy, reduction="none").double().detach()
    u = ((loss - loss.min()) / (loss.max() - loss.min())).numpy()
    w, _ = sklearn_trust(u)
    passed = (refined.space == TRUSTED).numpy()
    assert 0.1 < passed.mean() < 0.95
    least = [np.where(problem.noisy.numpy() == k, u, np.inf).argmin() for k in range(K)]  # stays trusted in any case
    assert (np.isin(np.arange(len(u)), least) | (w > 0.5)).tolist() == passed.tolist()
    np.testing.assert_allclose(refined.trust.numpy(), w, atol=1e-3)


@pytest.mark.parametrize("arm, what", [("loss-filter", "losses"), ("confident-learning", "predictions")])
def test_losses_and_predictions_that_diverge_are_named(problem, arm, what):
    with pytest.raises(InputError, match=f"{what} must be finite.*did training diverge"):
        refine(arm, problem, replace(AUDITOR, lr=1e30))


# Generalised cross entropy


@pytest.mark.parametrize("q", [0.3, 0.7, 1.0])
def test_generalised_cross_entropy_is_its_formula(q):
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 4, generator=rng, dtype=torch.float64).requires_grad_()
    y, w = torch.randint(0, 4, (7,), generator=rng), torch.rand(7, generator=rng, dtype=torch.float64)
    y_BK = torch.nn.functional.one_hot(y, 4).double()
    value = generalised_cross_entropy(logits, y_BK, w, q)
    p = logits.detach().softmax(1)[range(7), y]
    assert value.item() == pytest.approx(sum(w * (1 - p**q) / q).item() / w.sum().item(), abs=1e-12)
    (g,) = torch.autograd.grad(value, logits)
    (h,) = torch.autograd.grad(weighted_loss(logits, y_BK, w * p**q), logits)
    torch.testing.assert_close(g, h * (w * p**q).sum() / w.sum())  # its gradient is cross entropy's, weighted by p^q
    logits = torch.tensor([[200.0, -200.0]]).requires_grad_()  # the label is impossible
    value = generalised_cross_entropy(logits, torch.tensor([[0.0, 1.0]]), torch.ones(1), q)
    assert value.item() == pytest.approx(1 / q)
    assert torch.autograd.grad(value, logits)[0].isfinite().all()


def test_gce_trains_with_its_loss_and_the_loss_filter_with_cross_entropy(problem, monkeypatch):
    losses = []
    train = base.train_epoch
    monkeypatch.setattr(base, "train_epoch", lambda *a, **more: losses.append(more.get("loss_fn")) or train(*a, **more))
    refine("loss-filter", problem)
    assert losses == [None] * 4
    losses.clear()
    refine("gce", problem)
    logits, y, w = torch.randn(5, K), torch.eye(K)[:5], torch.ones(5)
    for loss in losses:
        assert loss(logits, y, w) == generalised_cross_entropy(logits, y, w, 0.7)


# Co-teaching


def test_co_teaching_exchanges_the_easiest_samples_batch_by_batch(problem):
    method = CoTeaching(replace(AUDITOR, batch=50, lr=0.1, momentum=0.9, weight_decay=1e-2))
    few = replace(problem, x=problem.x[:100], noisy=problem.noisy[:100], true=None)
    auditors = method.init(few).auditors
    modules = [
        {k: v.clone().requires_grad_() for k, v in WIDE.unflatten(auditor.theta).items()} for auditor in auditors
    ]
    optimisers = [torch.optim.SGD(m.values(), lr=0.1, momentum=0.9, weight_decay=1e-2) for m in modules]
    order = torch.randperm(100, generator=torch.Generator().set_state(auditors[0].generator.get_state()))
    method.exchange(few, auditors, 0.4)
    for index in order.split(50):  # without augmentation only the order is drawn
        logits = [torch.func.functional_call(WIDE.module, m, (few.x[index],)) for m in modules]
        losses = [torch.nn.functional.cross_entropy(z, few.noisy[index], reduction="none") for z in logits]
        easiest = [l.argsort()[:30] for l in losses]
        for a, optimiser in enumerate(optimisers):
            optimiser.zero_grad()
            losses[a][easiest[1 - a]].mean().backward()
            optimiser.step()
    for auditor, module in zip(auditors, modules):
        expected = torch.cat([p.detach().flatten() for p in module.values()])
        torch.testing.assert_close(auditor.theta, expected, atol=1e-6, rtol=1e-5)


def test_co_teaching_forgets_up_to_the_rate_that_it_estimates_or_is_given(problem):
    config = replace(AUDITOR, epochs=12, warmup=4)
    rows = refine("co-teaching", problem, config).history
    assert rows[0]["forgotten"] == 0.0
    assert rows[1]["forgotten"] == pytest.approx(rows[0]["forget_rate"] / 2)  # T = 2 epochs
    assert rows[-1]["forgotten"] == rows[-2]["forget_rate"]
    assert 0.15 < rows[-1]["forget_rate"] < 0.5  # the noise rate is .3
    told = trust.refine(CoTeaching(config, 0.3), problem)
    assert [row["forgotten"] for row in told.history] == pytest.approx([0, 0.15, 0.3, 0.3, 0.3, 0.3])
    trusted = told.space == TRUSTED
    assert trusted[told.trust.argsort(descending=True, stable=True)[:420]].all()  # .7 of 600, and one of every class
    assert trusted.sum() < 420 + K


def test_the_trust_of_co_teaching_is_the_mean_rank_of_losses_over_the_second_half(problem):
    states: list[list[torch.Tensor]] = []
    method = CoTeaching(replace(AUDITOR, epochs=6))
    refined = trust.refine(method, problem, on_epoch=lambda s: states.append([a.theta for a in s.auditors]))
    ranks = torch.zeros(len(problem), dtype=torch.float64)
    for thetas in states[1:]:  # of three epochs
        logits = [WIDE(theta, problem.x).detach() for theta in thetas]
        loss = sum(torch.nn.functional.cross_entropy(z, problem.noisy, reduction="none") / 2 for z in logits)
        ranks += (loss.argsort().argsort() + 0.5) / len(problem) / 2
    assert (refined.trust - (1 - ranks)).abs().max() < 0.01  # ties and rounding exchange neighbours


# Confident learning


def test_folds_hold_equal_shares_of_every_class(problem):
    pytest.importorskip("cleanlab")
    fold = ConfidentLearning(AUDITOR).init(problem).fold
    counts = torch.stack([torch.bincount(problem.noisy[fold == f], minlength=K) for f in range(4)])
    assert (counts.amax(0) - counts.amin(0)).max() <= 1


def test_no_network_judges_a_label_that_it_was_trained_on(problem, monkeypatch):
    pytest.importorskip("cleanlab")
    trained: dict[float, torch.Tensor] = {}
    train, predict = base.train_epoch, baselines.predict

    def training(net, state, x, y, w, **more):
        after = train(net, state, x, y, w, **more)
        trained[float(after.theta.sum())] = w > 0
        return after

    def predicting(net, theta, images):
        used = {tuple(image) for image in problem.x[trained[float(theta.sum())]].flatten(1).tolist()}
        assert not any(tuple(image) in used for image in images.flatten(1).tolist())
        return predict(net, theta, images)

    monkeypatch.setattr(base, "train_epoch", training)
    monkeypatch.setattr(baselines, "predict", predicting)
    refine("confident-learning", problem, replace(AUDITOR, epochs=1, warmup=1))
    assert len(trained) == 4


def test_confident_learning_takes_images_that_are_read_one_by_one(problem):
    bytes_NCHW = torch.randint(256, (40, *problem.x.shape[1:]), dtype=torch.uint8)
    found = []
    for source in (bytes_NCHW, list(bytes_NCHW)):
        images = Images(source, problem.x.shape[-1], (0.5,), (0.5,))
        few = replace(problem, x=images, noisy=torch.arange(40) % K, true=None)
        state = ConfidentLearning(AUDITOR).init(few)
        found.append(ConfidentLearning(AUDITOR).out_of_fold(few, state))
    assert torch.equal(*found)


def test_without_cleanlab_the_arm_says_how_to_get_it(problem, monkeypatch):
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    with pytest.raises(InputError, match="needs the package cleanlab: pip install cleanlab"):
        trust.refine(trust.method("confident-learning", AUDITOR), problem)


def test_settings_out_of_range_are_refused(problem):
    with pytest.raises(InputError, match=r"forget_rate must be in \[0, 1\), got 1.0"):
        CoTeaching(AUDITOR, 1.0)
    pytest.importorskip("cleanlab")
    net = Network(replace(problem.net.spec, n_classes=3))
    few = replace(problem, net=net, x=problem.x[:3], noisy=torch.arange(3), n_classes=3, true=None)
    with pytest.raises(InputError, match="confident learning needs at least 4 samples, got 3"):
        trust.refine(ConfidentLearning(AUDITOR), few)
