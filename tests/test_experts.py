"""Expert trajectories and their store."""

from dataclasses import replace

import pytest
import torch

from tadlib.diversion import DiversionConfig
from tadlib.errors import InputError
from tadlib.experts import (
    ExpertConfig,
    InMemory,
    TrajectoryStore,
    train_diverting_expert,
    train_expert,
    train_experts,
)
from tadlib.networks import Network, NetworkSpec
from tadlib.rng import generator
from tadlib.training import Sgd, State, train_epoch

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
    changed[:6] = torch.nan
    assert torch.equal(train_expert(NET, x, y, w, CONFIG, seed=0), train_expert(NET, changed, y, w, CONFIG, seed=0))


def test_a_diverting_expert_records_its_own_dual_loop():
    x, y, _ = data(60)
    given = torch.arange(60) % 3
    loops = DiversionConfig(epochs=9, warmup=2, auditors=2)
    trajectory_EP = train_diverting_expert(NET, x, given, 3, CONFIG, loops, seed=0, expert=1)
    assert trajectory_EP.shape == (4, NET.n_parameters)
    assert torch.equal(trajectory_EP, train_diverting_expert(NET, x, given, 3, CONFIG, loops, seed=0, expert=1))
    other = train_diverting_expert(NET, x, given, 3, CONFIG, loops, seed=0, expert=0)
    assert not torch.equal(trajectory_EP[0], other[0])
    # the loops have a say once warm-up is over
    never = train_diverting_expert(NET, x, given, 3, CONFIG, replace(loops, warmup=3), seed=0, expert=1)
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


def test_a_truncated_file_is_an_input_error(tmp_path):
    store = TrajectoryStore(tmp_path)
    store.save(0, torch.zeros(4, 5))
    store.path(0).write_bytes(store.path(0).read_bytes()[:-10])
    with pytest.raises(InputError, match="expert 0"):
        store.read(0, 0)


def test_a_diverged_expert_is_not_stored(tmp_path):
    store = TrajectoryStore(tmp_path)
    with pytest.raises(InputError, match="expert 3 diverged"):
        store.save(3, torch.full((2, 5), torch.nan))
    assert len(store) == 0


@pytest.mark.parametrize("name", ["count", "epochs"])
def test_bad_settings_are_named(name):
    with pytest.raises(InputError, match=f"{name} must be at least 1.*got 0"):
        ExpertConfig(**{name: 0})
