"""Evaluation protocols."""

import statistics
from dataclasses import replace

import pytest
import torch
from scipy import stats

from tadlib.config import Protocol
from tadlib.distill.synthetic import Real, Synthetic
from tadlib.errors import InputError
from tadlib.evaluate import (
    PROTOCOLS,
    evaluate,
    evaluate_each,
    hard_labels,
    mean_ci95,
    random_real,
    start,
    train_networks,
)
from tadlib.nn.networks import Network, NetworkSpec
from tadlib.nn.training import AdamW, Sgd, State, train_epoch
from tadlib.rng import generator
from tadlib.state import checkpoint, restored

K = 3
NET = Network(NetworkSpec((1, 8, 8), K, width=4, depth=2))
PROTOCOL = Protocol(networks=3, epochs=6, batch=4)
RNG = torch.Generator().manual_seed(0)
CENTRES = torch.randn(K, 1, 8, 8, generator=RNG)


def images(n, noise):
    label = torch.arange(n) % K
    return CENTRES[label] + noise * torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(n)), label


def synthetic():
    x, label = images(9, 0.3)
    return Synthetic(x, torch.nn.functional.one_hot(label, K).float(), 0.05)


def run(**more):
    return evaluate(NET, synthetic(), *images(60, 1.0), PROTOCOL, **{"seed": 0} | more)


def train(seed=0, protocol=PROTOCOL, **more):
    return train_networks(NET, synthetic(), protocol, seed=seed, **more)


def test_same_seed_same_bits_and_networks_differ():
    before = torch.get_rng_state()
    theta_RP = train()
    assert torch.equal(theta_RP, train())
    assert not torch.equal(theta_RP[0], theta_RP[1])
    assert not torch.equal(theta_RP[0], train(seed=1)[0])
    assert run() == run()
    assert torch.equal(before, torch.get_rng_state())


def test_each_network_is_the_same_alone_beside_others_and_on_a_thread_of_its_own():
    together = train()
    assert torch.equal(train(protocol=replace(PROTOCOL, networks=1)), together[:1])
    assert torch.equal(train(workers=2), together)


def test_training_is_sgd_whose_rate_falls_once_and_whose_momentum_then_starts_anew():
    s, rng = synthetic(), generator(0, "evaluate", 1, "train")
    state = State(NET.init(0, "evaluate", 1))
    for epoch in range(6):
        if epoch == 4:  # 6 // 2 + 1 epochs at the full rate
            state = State(state.theta)
        sgd = Sgd(0.05 if epoch < 4 else 0.05 * 0.1, 0.9, 5e-4)
        state = train_epoch(
            NET, state, s.x, s.y, torch.ones(9), sgd=sgd, batch=4, strategy=PROTOCOL.augmentation, generator=rng
        )
    assert torch.equal(train()[1], state.theta)


def test_accuracy_is_that_of_the_last_epoch_on_the_test_set():
    x, label = images(60, 1.0)
    theta_P = train()[2]
    expected = (NET(theta_P, x).argmax(1) == label).double().mean().item()
    accuracies = run()
    assert accuracies[2] == pytest.approx(expected)
    assert len(accuracies) == 3
    assert all(0 <= a <= 1 for a in accuracies)


def test_training_on_the_synthetic_set_teaches_the_classes():
    protocol = Protocol(networks=1, epochs=30, batch=9, augmentation="none")
    assert evaluate(NET, synthetic(), *images(60, 0.3), protocol, seed=0)[0] > 0.9


@pytest.mark.parametrize("stop", [2, 4, 5])  # before, at and after the cut of the learning rate
def test_resumed_in_the_middle_gives_the_same_bits(stop):
    kept = []

    def keep(loop):
        if loop.epoch == stop:
            tensors, meta = checkpoint(loop)
            kept.append(({k: v.clone() for k, v in tensors.items()}, meta))

    whole = train(on_epoch=keep)
    seen = []
    loop = restored(start(NET, PROTOCOL, seed=0), kept[0], torch.device("cpu"))
    assert torch.equal(train(loop=loop, on_epoch=lambda loop: seen.append(loop.epoch)), whole)
    assert seen == list(range(stop + 1, 7))


@pytest.mark.parametrize("protocol", [PROTOCOL, replace(PROTOCOLS["ncfm"], networks=2, epochs=6, batch=4)])
@pytest.mark.parametrize("stop", [3, 6, 7, 11])  # in the first set, at its end, and in the second
def test_several_sets_are_evaluated_as_one_alone_also_after_an_interruption(stop, protocol):
    second = replace(synthetic(), lr=0.01, x=synthetic().x.flip(3), formation=2)
    sets, kept = [(synthetic(), protocol), (second, replace(protocol, weight_decay=0.1))], []

    def keep(loop):
        if loop.epoch + 6 * len(loop.done) == stop:
            tensors, meta = checkpoint(loop)
            kept.append(({k: v.clone() for k, v in tensors.items()}, meta))

    def all_of_them(**more):
        return evaluate_each(NET, sets, *images(60, 1.0), seed=0, **more)

    whole = all_of_them(on_epoch=keep)
    assert whole == [evaluate(NET, each, *images(60, 1.0), how, seed=0) for each, how in sets]
    assert whole == all_of_them(resume=kept[0])


def test_mosaics_are_evaluated_by_their_parts():
    stored = replace(synthetic(), formation=2)
    assert torch.equal(
        train_networks(NET, stored, PROTOCOL, seed=0), train_networks(NET, stored.decoded(), PROTOCOL, seed=0)
    )
    assert not torch.equal(train(), train_networks(NET, stored, PROTOCOL, seed=0))


def test_controls_take_the_labels_away_or_the_images():
    soft = replace(synthetic(), y=torch.tensor([[0.6, 0.4, 0.0], [0.1, 0.2, 0.7], [0.3, 0.4, 0.3]]))
    assert hard_labels(soft).y.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert torch.equal(hard_labels(soft).x, soft.x)
    x, label = images(60, 1.0)
    w = torch.ones(60)
    w[:30] = 0
    real = Real.of(x, torch.nn.functional.one_hot(label, K).float(), w, 1.0)
    s = synthetic()
    s = replace(s, y=s.y.sort(0, descending=True).values)
    control = random_real(s, real, 3)
    assert torch.equal(control.y, s.y)
    assert (control.lr, control.formation) == (s.lr, s.formation)
    places = [(x == image).flatten(1).all(1).nonzero().item() for image in control.x]
    assert [place % K for place in places] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len(set(places)) == 9
    assert min(places) >= 30
    assert torch.equal(random_real(s, real, 3).x, control.x)
    assert random_real(replace(s, formation=2), real, 3).x.shape == s.x.shape
    parts = random_real(s, real, 3, 2)
    assert torch.equal(parts.x, random_real(replace(s, formation=2), real, 3).x)
    assert parts.formation == 1


def test_networks_that_diverge_are_counted_and_named():
    x, y = images(9, 0.1)
    with pytest.warns(UserWarning, match="3 of 3 networks diverged in evaluation .* learning rate was 1e"):
        evaluate(NET, synthetic(), x, y, replace(PROTOCOL, lr=1e30), seed=0)


def test_training_with_adamw_and_cutmix_is_that_of_the_training_loop():
    protocol = replace(PROTOCOLS["ncfm"], networks=1, epochs=5, batch=4)
    s, rng = synthetic(), generator(0, "evaluate", 0, "train")
    state = State(NET.init(0, "evaluate", 0))
    for epoch in range(5):
        how = {"batch": 4, "strategy": protocol.augmentation, "generator": rng, "cutmix": 0.5}
        rule = AdamW(0.001 * 0.5**epoch, 0.9, 5e-4)
        state = train_epoch(NET, state, s.x, s.y, torch.ones(9), sgd=rule, **how)
    assert torch.equal(train(protocol=protocol)[0], state.theta)


def test_published_protocols_count_as_their_codes_do():
    def rates(name):
        return [PROTOCOLS[name].decay(epoch) for epoch in range(PROTOCOLS[name].epochs)]

    for name in ("mtt", "datm", "dm"):
        # epochs 0 to 1000; the rate falls once epoch 501 is done
        assert rates(name) == [1.0] * 502 + [0.1] * 499
    assert rates("dance") == pytest.approx([1.0] * 1000 + [0.2] * 250 + [0.04] * 250)
    assert rates("ncfm") == [0.5**fifth for fifth in range(5) for _ in range(400)]
    assert (PROTOCOLS["mtt"].batch, PROTOCOLS["datm"].batch, PROTOCOLS["dm"].batch) == (256, 128, 256)
    assert PROTOCOLS["dm"].lr == 0.01


def test_a_protocol_may_bring_its_own_learning_rate():
    s = synthetic()
    own = train_networks(NET, replace(s, lr=0.05), replace(PROTOCOL, lr=0.01), seed=0)
    assert torch.equal(own, train_networks(NET, replace(s, lr=0.01), PROTOCOL, seed=0))


def test_mean_and_confidence_interval_by_hand():
    values = [0.61, 0.64, 0.60, 0.66, 0.62]
    mean, half = mean_ci95(values)
    assert mean == pytest.approx(sum(values) / 5)
    spread = (sum((v - mean) ** 2 for v in values) / 4) ** 0.5
    assert half == pytest.approx(2.7764451 * spread / 5**0.5)  # Student's t, 4 degrees of freedom
    low, high = stats.t.interval(0.95, 4, loc=statistics.fmean(values), scale=stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high))


def test_a_single_value_has_no_interval():
    assert mean_ci95([0.5]) == (0.5, None)
    assert mean_ci95([0.5, 0.5]) == (0.5, 0.0)


@pytest.mark.parametrize("change", [{"networks": 0}, {"epochs": 1}])
def test_bad_settings_are_named(change):
    ((name, value),) = change.items()
    with pytest.raises(InputError, match=f"{name} must be at least .*, got {value}"):
        Protocol(**change)
