"""Expert trajectories and their store."""

from dataclasses import replace

import pytest
import torch

from tadlib import trust
from tadlib.config import OWN_LOOPS, AuditorConfig, ExpertConfig
from tadlib.data import load_dataset
from tadlib.errors import InputError
from tadlib.experts import InMemory, TrajectoryStore, stored_bytes, train_expert, train_experts, train_own_loop
from tadlib.nn.networks import Network, NetworkSpec
from tadlib.nn.training import Sgd, State, one_hot, train_epoch, weighted_loss
from tadlib.rng import generator
from tadlib.trust import NoisyProblem

NET = Network(NetworkSpec((1, 8, 8), 3, width=4, depth=2))
CONFIG = ExpertConfig(count=2, epochs=3, lr=0.05, momentum=0.9, batch=8, augmentation="crop_scale")


def data(n=24):
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 1, 8, 8, generator=rng), torch.randn(n, 3, generator=rng).softmax(1)
    return x, y, torch.rand(n, generator=rng)


def test_trajectory_has_a_row_for_the_initialisation_and_for_every_epoch():
    x, y, w = data()
    epochs = []
    trajectory_EP = train_expert(NET, x, y, w, CONFIG, seed=0, expert=1, on_epoch=lambda: epochs.append(1))
    assert trajectory_EP.shape == (4, NET.n_parameters)
    assert len(epochs) == 3
    assert torch.equal(trajectory_EP[0], NET.init(0, "expert", 1))
    state, rng = State(trajectory_EP[0]), generator(0, "expert", 1, "train")
    for row in trajectory_EP[1:]:
        sgd = Sgd(CONFIG.lr, CONFIG.momentum, CONFIG.weight_decay)
        state = train_epoch(NET, state, x, y, w, sgd=sgd, batch=8, strategy="crop_scale", generator=rng)
        assert torch.equal(row, state.theta)


def test_rows_are_copies_not_views_of_the_parameters_in_training():
    x, y, w = data()
    trajectory_EP = train_expert(NET, x, y, w, CONFIG, seed=0)
    assert len({tuple(row[:20].tolist()) for row in trajectory_EP}) == 4
    before = trajectory_EP.clone()
    trajectory_EP[0] += 1
    assert torch.equal(trajectory_EP[1:], before[1:])
    assert not trajectory_EP.requires_grad


def test_an_expert_depends_on_seed_and_number_alone():
    x, y, w = data()
    many = train_experts(NET, x, y, w, CONFIG, seed=0)
    assert len(many) == 2
    alone = train_expert(NET, x, y, w, CONFIG, seed=0, expert=1)
    assert torch.equal(many.trajectories[1], alone)
    assert not torch.equal(many.trajectories[0], alone)
    assert not torch.equal(train_expert(NET, x, y, w, CONFIG, seed=1, expert=1), alone)


def test_samples_of_weight_zero_are_not_used():
    x, y, w = data()
    w[:6] = 0
    changed = x.clone()
    changed[:6] = 1e3
    assert torch.equal(train_expert(NET, x, y, w, CONFIG, seed=0), train_expert(NET, changed, y, w, CONFIG, seed=0))


@pytest.mark.parametrize("arm", OWN_LOOPS)
def test_an_expert_with_its_own_loop_records_its_trajectory(arm):
    x, _, _ = data(60)
    problem = NoisyProblem(NET, x, torch.arange(60) % 3, 3, seed=7)

    def trained(warmup=2, expert=1):
        method = trust.method(arm, AuditorConfig(epochs=9, warmup=warmup, augmentation="none"))
        return train_own_loop(problem, method, CONFIG, seed=0, expert=expert)

    trajectory_EP = trained()
    assert trajectory_EP.shape == (4, NET.n_parameters)
    assert torch.equal(trajectory_EP[0], NET.init(0, "expert 1", 0))
    assert torch.equal(trajectory_EP, trained())
    assert not torch.equal(trajectory_EP[0], trained(expert=0)[0])
    # judging the labels changes the training once warm-up is over
    never = trained(warmup=3)
    assert torch.equal(never[:3], trajectory_EP[:3])
    assert not torch.equal(never[3], trajectory_EP[3])


def test_store_gives_back_the_same_bits_in_any_order(tmp_path):
    trajectories = [torch.randn(4, 50, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    store = TrajectoryStore(tmp_path)
    assert len(store) == 0
    for expert, trajectory_EP in enumerate(trajectories):
        store.save(expert, trajectory_EP)
    assert len(TrajectoryStore(tmp_path)) == 3
    memory = InMemory(tuple(trajectories))
    for expert, epoch in [(2, 3), (0, 0), (1, 2), (2, 0)]:
        assert torch.equal(store.read(expert, epoch), trajectories[expert][epoch])
        assert torch.equal(memory.read(expert, epoch), trajectories[expert][epoch])


def test_what_is_not_there_is_named(tmp_path):
    store = TrajectoryStore(tmp_path)
    store.save(0, torch.zeros(4, 5))
    for source in (store, InMemory((torch.zeros(4, 5),))):
        with pytest.raises(InputError, match="no epoch 4 of expert 0"):
            source.read(0, 4)
        with pytest.raises(InputError, match="no epoch 0 of expert 1"):
            source.read(1, 0)


def test_a_diverged_expert_is_not_stored(tmp_path):
    store = TrajectoryStore(tmp_path)
    with pytest.raises(InputError, match="expert 3 diverged"):
        store.save(3, torch.full((2, 5), torch.nan))
    assert len(store) == 0


@pytest.mark.parametrize("name", ["count", "epochs"])
def test_bad_settings_are_named(name):
    with pytest.raises(InputError, match=f"{name} must be at least 1.*got 0"):
        ExpertConfig(**{name: 0})


def test_experts_trained_by_gsam_take_gsam_steps():
    x, y, w = data()
    config = replace(CONFIG, rho=0.05, epochs=1)
    state = State(NET.init(0, "expert", 0))
    sgd = Sgd(0.05, 0.9, rho=0.05, alpha=0.3)
    state = train_epoch(
        NET, state, x, y, w, sgd=sgd, batch=8, strategy="crop_scale", generator=generator(0, "expert", 0, "train")
    )
    found = train_expert(NET, x, y, w, config, seed=0)
    assert torch.equal(found[1], state.theta)
    assert not torch.equal(found[1], train_expert(NET, x, y, w, replace(config, rho=0.0), seed=0)[1])
    with pytest.raises(InputError, match="rho must be 0, got 0.05"):
        train_own_loop(NoisyProblem(NET, x, torch.arange(24) % 3, 3, 0), trust.method("tad"), config, seed=0)


def trajectory(seed=0, n_parameters=2000):
    """As training leaves them: changes small beside the parameters."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n_parameters, generator=rng) + 1e-2 * torch.randn(4, n_parameters, generator=rng).cumsum(0)


def test_half_precision_keeps_the_start_and_what_training_changed(tmp_path):
    full, half = TrajectoryStore(tmp_path / "full"), TrajectoryStore(tmp_path / "half")
    theta_EP = trajectory()
    full.save(0, theta_EP)
    half.save(0, theta_EP, half=True)
    assert half.path(0).stat().st_size < 0.65 * full.path(0).stat().st_size
    assert torch.equal(half.read(0, 0), theta_EP[0])
    for epoch in (1, 2, 3):
        change = theta_EP[epoch] - theta_EP[0]
        assert ((half.read(0, epoch) - theta_EP[epoch]).norm() / change.norm()) < 5e-4
    same = torch.ones(2, 5)
    half.save(1, same, half=True)
    assert torch.equal(half.read(1, 1), same[1])
    with pytest.raises(InputError, match="no epoch 4 of expert 0"):
        half.read(0, 4)


def test_experts_in_bfloat16_follow_the_others_with_parameters_in_full_precision():
    loaded = load_dataset("digits", n_train=300)
    net = Network(NetworkSpec((1, 8, 8), 10, width=16, depth=2))
    y, w = one_hot(loaded.y_train, 10), torch.ones(300)
    config = ExpertConfig(count=1, epochs=4, lr=0.05, momentum=0.9, batch=32, augmentation="none")
    losses = {}
    for bfloat16 in (False, True):
        trajectory_EP = train_expert(net, loaded.x_train, y, w, replace(config, bfloat16=bfloat16), seed=0)
        assert trajectory_EP.dtype == torch.float32
        losses[bfloat16] = [weighted_loss(net(row, loaded.x_train), y, w).item() for row in trajectory_EP]
    assert losses[True] != losses[False]
    assert losses[True] == pytest.approx(losses[False], rel=0.05)
    assert losses[True][-1] < 0.5 * losses[True][0]


def test_verify_names_the_file_and_what_is_wrong(tmp_path):
    store = TrajectoryStore(tmp_path)
    store.save(0, trajectory(0))
    store.save(1, trajectory(1))
    store.verify(2000)
    with pytest.raises(InputError, match="has 2000 parameters an epoch, expected 7"):
        store.verify(7)
    store.save(1, trajectory(1)[:3])
    with pytest.raises(InputError, match="expert_001.* differs in shape"):
        store.verify()
    store.path(0).write_bytes(store.path(0).read_bytes()[:-10])
    with pytest.raises(InputError, match="expert_000.* is damaged"):
        store.verify()
    with pytest.raises(InputError, match="expert 0"):
        store.read(0, 0)
    store.path(0).unlink()
    with pytest.raises(InputError, match="expert_000.* is missing"):
        store.verify()


@pytest.mark.parametrize("half", [False, True])
def test_the_size_of_trajectories_is_known_before_the_run(tmp_path, half):
    store = TrajectoryStore(tmp_path)
    store.save(0, trajectory(), half=half)
    config = replace(CONFIG, half=half)
    assert 0 < store.path(0).stat().st_size - stored_bytes(config, 2000) / config.count < 500  # the header
    # of the reference code: 100 experts of 50 epochs on CIFAR-10 take 6.5 GB
    assert stored_bytes(ExpertConfig(), 320010) == pytest.approx(6.53e9, rel=1e-3)
