"""Trust-Aware Diversion: every part against a slow version, and how its settings work together."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from noisy_digits import SMALL, WIDE, K, assert_consistent, digits, plain_thetas, same_bits, sklearn_trust

from tadlib import trust
from tadlib.config import AuditorConfig, TadConfig
from tadlib.nn import training
from tadlib.nn.training import one_hot, predict
from tadlib.trust import RECALIBRATED, TRUSTED, UNTRUSTED, RefinedSet, Tad, base, mixture, tad

AUDITOR = AuditorConfig(epochs=4, warmup=2, lr=0.05, batch=32)
CRITERIA = ("both", "mahalanobis", "cosine")


@pytest.fixture(scope="module")
def problem():
    return digits(300, "symmetric", 0.3)


def run(problem, auditor=AUDITOR, **settings) -> RefinedSet:
    return trust.refine(Tad(auditor, TadConfig(**settings)), problem)


def epochs(problem, auditor=AUDITOR, **settings) -> list[dict]:
    """What the state holds after every epoch."""
    seen: list[dict] = []

    def keep(state):
        seen.append({"theta": state.auditor.theta, "loss": state.loss, "p": state.p, "refined": state.refined})

    trust.refine(Tad(auditor, TadConfig(**settings)), problem, on_epoch=keep)
    return seen


def slow_loss(problem, theta):
    """Cross entropy of every noisy label in evaluation mode (N,), float64."""
    logits = SMALL(theta, problem.x).double()
    return torch.stack([logits[i].exp().sum().log() - logits[i, y] for i, y in enumerate(problem.noisy)])


def assert_consistent_weights(refined: RefinedSet, auditor=AUDITOR):
    """What holds of every refined set of TAD: a trusted label counts fully, a new one as far as it is reliable."""
    assert_consistent(refined, auditor)
    new = refined.space == RECALIBRATED
    assert (refined.weight[refined.space == TRUSTED] == 1).all()
    assert (refined.weight[new] > 0).all()
    assert (refined.weight[refined.space == UNTRUSTED] == 0).all()
    assert torch.equal(refined.y[~new], one_hot(refined.noisy[~new], K))


# When losses are averaged and mixtures are fitted


@pytest.mark.parametrize("n, warmup", [(4, 2), (5, 1), (3, 3)])
def test_mixtures_are_fitted_once_an_epoch_from_the_end_of_warm_up_to_the_last_epoch(problem, monkeypatch, n, warmup):
    fits, passes = [], []
    split, predict = mixture.split, tad.predict
    monkeypatch.setattr(mixture, "split", lambda *a, **more: fits.append(a) or split(*a, **more))
    monkeypatch.setattr(tad, "predict", lambda *a: passes.append(a) or predict(*a))
    auditor = replace(AUDITOR, epochs=n, warmup=warmup)
    seen = epochs(problem, auditor)
    assert len(fits) == len(passes) == n - warmup + 1
    for (loss, group, n_groups), (_, theta, x), state in zip(fits, passes, seen[warmup - 1 :], strict=True):
        assert torch.equal(loss, state["loss"])
        assert torch.equal(group, problem.noisy)
        assert n_groups == K
        assert torch.equal(theta, state["theta"])  # after the epoch's last step,
        assert x is problem.x  # on images as they are
    assert all(state["loss"] is None and state["p"] is None for state in seen[: warmup - 1])


@pytest.mark.parametrize("mu", [0.0, 0.5, 0.9])
def test_the_loss_is_averaged_over_evaluation_passes_with_the_weight_mu_on_the_old_value(problem, mu):
    average = None
    for state in epochs(problem, mu=mu)[AUDITOR.warmup - 1 :]:
        loss = slow_loss(problem, state["theta"])
        average = loss if average is None else mu * average + (1 - mu) * loss
        torch.testing.assert_close(state["loss"].double(), average, rtol=1e-5, atol=1e-5)
        # predictions of the pass, not averaged, are for the next epoch
        assert torch.equal(state["p"], predict(SMALL, state["theta"], problem.x)[0].softmax(1))
    assert ((average - loss).abs().max() > 0.1) == (mu > 0)  # the case must tell the average from the last loss


# The threshold


@pytest.mark.parametrize("start, end", [(0.9, 0.1), (0.2, 0.8), (0.5, 0.5), (0.0, 0.999)])
@pytest.mark.parametrize("n, warmup", [(6, 2), (5, 1), (4, 3)])
def test_tau_is_a_line_from_the_first_division_to_the_last_epoch(n, warmup, start, end):
    method = Tad(replace(AUDITOR, epochs=n, warmup=warmup), TadConfig(tau_start=start, tau_end=end))
    found = [method.tau(epoch) for epoch in range(warmup - 1, n)]
    assert found == pytest.approx(np.linspace(start, end, n - warmup + 1).tolist())
    assert (found[0], found[-1]) == pytest.approx((start, end))


def test_the_history_holds_tau_of_every_division_and_a_single_one_takes_tau_start(problem):
    for warmup, expected in ((1, [0.9, 0.5, 0.1]), (3, [None, None, 0.9])):
        rows = run(problem, replace(AUDITOR, epochs=3, warmup=warmup), tau_start=0.9, tau_end=0.1).history
        assert [row.get("tau") for row in rows] == pytest.approx(expected)


@pytest.mark.parametrize("tau", [0.1, 0.5, 0.999])
def test_trusted_is_what_exceeds_tau_and_the_minimum_of_smallest_losses_of_every_class(problem, tau):
    method = Tad(AUDITOR, TadConfig(tau_start=tau, tau_end=tau, minimum=0.5))
    loss = slow_loss(problem, epochs(problem)[-1]["theta"])
    w, trusted, _ = method.outer(problem, loss, 3)
    least = 15  # half of 300 / 10
    expected = w > tau
    for k in range(K):
        of_class = [i for i in range(300) if problem.noisy[i] == k]
        expected[sorted(of_class, key=lambda i: loss[i].item())[:least]] = True
    assert torch.equal(trusted, expected)
    assert torch.bincount(problem.noisy[trusted], minlength=K).min() >= least
    assert torch.bincount(problem.noisy[w > tau], minlength=K).min() < least  # the case must need the minimum


# Groups


def bumps(problem, shifted=0.0):
    """Losses that are low for right labels and high for wrong ones; those of class 0 are all ``shifted``."""
    rng = torch.Generator().manual_seed(0)
    loss = torch.where(problem.noisy == problem.true, 0.2, 1.0) + 0.05 * torch.randn(len(problem), generator=rng)
    return loss + shifted * (problem.noisy == 0)


def test_classes_divide_themselves_whatever_the_level_of_their_losses(problem):
    """With one mixture for all, a class of large losses is untrusted as a whole, but for the minimum."""
    by_class, together = (Tad(AUDITOR, TadConfig(class_wise=c, minimum=0.1)) for c in (True, False))
    right, first = problem.noisy == problem.true, problem.noisy == 0
    for method, shifted in ((by_class, 0.0), (by_class, 5.0), (together, 0.0)):
        _, trusted, counts = method.outer(problem, bumps(problem, shifted), 3)
        assert torch.equal(trusted, right)
        assert counts["n_clean_classes"] == 0
    _, trusted, _ = together.outer(problem, bumps(problem, 5.0), 3)
    assert trusted[~first].all()
    assert trusted[first].sum() == 3 < right[first].sum()


# Clean classes


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("settings", [{"alpha": 0.0}, {"alpha": 0.3, "drop": 0.0}], ids=str)
def test_where_every_class_is_clean_nothing_is_untrusted_or_recalibrated(problem, criterion, settings):
    refined = run(problem, criterion=criterion, tau_start=0.999, tau_end=0.999, delta=1e9, **settings)
    assert (refined.space_history == TRUSTED).all()
    assert refined.trust.min() > 0.999
    assert torch.equal(refined.y, problem.noisy_NK)
    for row in refined.history[AUDITOR.warmup - 1 :]:
        assert row["n_clean_classes"] == K
        assert row["n_recalled"] == row["n_dropped"] == 0


@pytest.mark.parametrize("off, plain_epochs", [({}, 2), ({"delta": 1e9, "consistency": 0.0}, 4)])
def test_warm_up_and_epochs_without_noisy_classes_and_consistency_are_plain_training(problem, off, plain_epochs):
    thetas = plain_thetas(problem, AUDITOR)
    same = [torch.equal(s["theta"], theta) for s, theta in zip(epochs(problem, **off), thetas, strict=True)]
    assert same == [epoch < plain_epochs for epoch in range(4)]


# Recalibration


@pytest.fixture(scope="module")
def unbelieved(problem):
    return run(problem, alpha=1.0, drop=1.0)


@pytest.mark.parametrize("criterion, drop", [("both", 0.0), ("mahalanobis", 0.98), ("cosine", 1.0)])
def test_alpha_1_recalls_and_recalibrates_nothing_whatever_the_criterion(problem, unbelieved, criterion, drop):
    refined = run(problem, alpha=1.0, criterion=criterion, drop=drop)
    assert not (refined.space_history == RECALIBRATED).any()
    assert (refined.space == UNTRUSTED).any()
    assert torch.equal(refined.y, problem.noisy_NK)
    assert all(row["n_recalled"] == row["n_dropped"] == 0 for row in refined.history[AUDITOR.warmup - 1 :])
    assert torch.equal(refined.trust, unbelieved.trust)  # what nobody believes changes nothing


def test_a_smaller_alpha_believes_more_candidates(problem):
    auditor = replace(AUDITOR, epochs=2)  # one division: the losses are the same
    counts = []
    for alpha in (0.0, 0.3, 0.7, 1.0):
        refined = run(problem, auditor, alpha=alpha, drop=1.0)
        counts.append(refined.history[-1]["n_recalled"] + refined.history[-1]["n_recalibrated"])
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[1] > counts[3] == 0


@pytest.mark.parametrize("drop", [0.0, 0.5, 1.0])
def test_recalibrated_samples_have_no_larger_loss_than_the_quantile_of_trusted_ones(problem, drop):
    auditor = replace(AUDITOR, epochs=2)
    state, undropped = (epochs(problem, auditor, alpha=0.0, drop=d)[-1] for d in (drop, 1.0))
    refined, loss = state["refined"], -state["p"].double().log()
    own = sorted(loss[i, y].item() for i, y in enumerate(problem.noisy) if refined.space[i] == TRUSTED)
    limit = math.inf if drop == 1 else own[int(drop * (len(own) - 1))]
    candidates = (undropped["refined"].space == RECALIBRATED).nonzero()[:, 0].tolist()
    assert len(candidates) > 5
    for i in candidates:
        kept = loss[i, undropped["refined"].label[i]].item() <= limit + 1e-6
        assert (refined.space[i] == RECALIBRATED) == kept
    kept = int((refined.space == RECALIBRATED).sum())
    assert (kept < len(candidates)) == (drop < 1)


def test_a_recalibrated_sample_has_its_posterior_as_soft_label_and_its_reliability_as_weight(problem):
    refined = run(problem, alpha=0.0)
    new = refined.space == RECALIBRATED
    assert new.sum() > 5
    torch.testing.assert_close(refined.weight[new], refined.reliability[new])
    assert (refined.y[new].amax(1) < 1).any()
    hard = run(problem, alpha=0.0, criterion="cosine")  # cosines are no distribution
    assert torch.equal(hard.y, one_hot(hard.label, K))


# What the auditor learns


def intercepted(monkeypatch) -> list[tuple]:
    """Labels, weights and further loss of every epoch of training from now on."""
    learned: list[tuple] = []

    def train_epoch(net, state, x, y, w, **more):
        learned.append((y, w, more["extra"]))
        return training.train_epoch(net, state, x, y, w, **more)

    monkeypatch.setattr(base, "train_epoch", train_epoch)
    return learned


def test_the_auditor_of_the_next_epoch_learns_exactly_the_refined_set_of_this_one(problem, monkeypatch):
    learned = intercepted(monkeypatch)
    seen = epochs(problem, consistency=0.0)
    before = [RefinedSet.of_labels(problem, problem.noisy)] + [state["refined"] for state in seen[:-1]]
    for (y, w, extra), refined in zip(learned, before, strict=True):
        assert torch.equal(y, refined.y)
        assert torch.equal(w, refined.weight)
        assert extra is None
    for y, w, _ in learned[: AUDITOR.warmup]:
        assert torch.equal(y, problem.noisy_NK)
        assert (w == 1).all()
    assert (learned[-1][1] == 0).any()


def test_the_consistency_loss_is_zero_in_warm_up_and_ramps_to_its_weight():
    auditor = replace(AUDITOR, epochs=9, warmup=3)
    method = Tad(auditor, TadConfig(consistency=0.8))
    rng = torch.Generator().manual_seed(0)
    p = torch.randn(50, K, generator=rng).mul(3).softmax(1)
    p[0] = one_hot(torch.tensor([4]), K)[0]  # a certain prediction is no obstacle
    logits, index = torch.randn(8, K, generator=rng), torch.tensor([0, 7, 7, 30, 2, 49, 11, 12])
    assert all(method.regularizer(None, epoch) is None for epoch in range(3))  # no pass over the images yet
    kl = 0.0
    for row, i in zip(logits.double(), index.tolist()):
        q = [v.exp().item() / row.exp().sum().item() for v in row]
        kl += sum(v * (math.log(v) - math.log(w)) for v, w in zip(p[i].double().tolist(), q) if v > 0) / len(index)
    found = [method.regularizer(p, epoch)(logits, index).item() / kl for epoch in range(3, 9)]
    assert found == pytest.approx([0.8 / 3, 1.6 / 3, 0.8, 0.8, 0.8, 0.8], rel=1e-4)
    same = p[index].clamp_min(1e-12).log()
    assert method.regularizer(p, 5)(same, index).item() == pytest.approx(0, abs=1e-6)
    assert Tad(auditor, TadConfig(consistency=0.0)).regularizer(p, 5) is None


def test_the_teacher_of_consistency_is_the_last_evaluation_pass(problem, monkeypatch):
    learned = intercepted(monkeypatch)
    seen = epochs(problem, consistency=0.5)
    extras = [extra for _, _, extra in learned]
    assert extras[:2] == [None, None]
    for extra, before, eta in zip(extras[2:], seen[1:], (0.25, 0.5)):
        p = before["p"][:10].double()
        expected = eta * (p * (p.log() + math.log(K))).sum(1).mean()
        assert extra(torch.zeros(10, K), torch.arange(10)).item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_confidence_penalty_is_the_negative_entropy_in_warm_up_and_nothing_after():
    method = Tad(AUDITOR, TadConfig(confidence_penalty=0.3, consistency=0.0))
    logits = torch.randn(6, K, generator=torch.Generator().manual_seed(0))
    p = logits.double().softmax(1)
    for epoch in range(2):
        found = method.regularizer(None, epoch)(logits, torch.arange(6)).item()
        assert found == pytest.approx(0.3 * (p * p.log()).sum().item() / 6, rel=1e-5)
    assert method.regularizer(p.float(), 2) is None
    assert Tad(AUDITOR, TadConfig()).regularizer(None, 0) is None


# Everything switched off


def test_without_all_other_parts_the_last_division_is_a_mixture_of_the_last_losses_for_every_class(problem):
    off = {"consistency": 0.0, "alpha": 1.0, "mu": 0.0, "minimum": 0.0, "tau_start": 0.5, "tau_end": 0.5}
    state = epochs(problem, replace(AUDITOR, epochs=5), **off)[-1]
    loss, separated = slow_loss(problem, state["theta"]), 0
    for k in range(K):
        of_class = problem.noisy == k
        u = loss[of_class].numpy()
        w, separates = sklearn_trust((u - u.min()) / (u.max() - u.min()), 99, 0.0)
        w = w if separates else np.ones_like(w)
        separated += separates
        clear = np.abs(w - 0.5) > 0.02
        assert clear.mean() > 0.8
        trusted = (state["refined"].space[of_class] == TRUSTED).numpy()
        assert (trusted == (w > 0.5))[clear].all()
        np.testing.assert_allclose(state["refined"].trust[of_class], w, atol=0.02)
    assert separated > K / 2


# The run as a whole


SETTINGS: list[dict] = [{"mu": 0.0}, {"class_wise": False}, {"delta": 3.0}, {"tau_start": 0.99, "tau_end": 0.99}]
SETTINGS += [{"tau_end": 0.9}, {"minimum": 0.9}, {"consistency": 0.0}, {"confidence_penalty": 0.5}]
SETTINGS += [{"criterion": "mahalanobis"}, {"criterion": "cosine"}]
SETTINGS += [{"alpha": 0.0}, {"alpha": 1.0}, {"drop": 0.0}, {"drop": 1.0}]
BASE = {"alpha": 0.3, "drop": 0.5}  # under which every setting matters for so few samples


@pytest.fixture(scope="module")
def baseline(problem):
    return run(problem, **BASE)


@pytest.mark.parametrize("change", SETTINGS, ids=str)
def test_every_setting_changes_something_and_leaves_a_consistent_set(problem, baseline, change):
    refined = run(problem, **BASE | change)
    assert_consistent_weights(refined)
    assert not same_bits(refined, baseline)


def test_no_setting_is_left_out_above():
    assert {name for change in SETTINGS for name in change} == set(vars(TadConfig()))


def test_digits_with_symmetric_noise_are_sorted_out():
    problem, auditor = digits(None, "symmetric", 0.4, WIDE), AuditorConfig(epochs=14, warmup=4, batch=64)
    refined = run(problem, auditor)
    figures = refined.metrics(problem.true)
    assert_consistent_weights(refined, auditor)
    bounds = {"trust_auroc": 0.95, "trust_precision": 0.93, "trust_recall": 0.9, "relabel_accuracy": 0.7}
    assert all(figures[name] > bound for name, bound in (bounds | {"label_accuracy": 0.9}).items()), figures


def test_of_clean_digits_few_labels_are_replaced():
    problem = digits(None, "none", 0.0, WIDE)
    refined = run(problem, AuditorConfig(epochs=10, warmup=4, batch=64))
    assert (refined.space == UNTRUSTED).double().mean() < 0.2
    assert (refined.label != problem.noisy).double().mean() < 0.03
