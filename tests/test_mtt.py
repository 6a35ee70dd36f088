"""Distillation by trajectory matching: the loop around the meta-gradient."""

import math
from dataclasses import replace

import pytest
import torch

from tadlib.config import ExpertConfig, MttConfig
from tadlib.distill import mtt
from tadlib.distill.loop import Problem
from tadlib.distill.mtt import distill
from tadlib.distill.synthetic import Real
from tadlib.errors import InputError
from tadlib.experts import InMemory, train_experts
from tadlib.matching import Matched, match
from tadlib.nn.networks import Network, NetworkSpec

K, N = 3, 30
NET = Network(NetworkSpec((1, 8, 8), K, width=4, depth=2))
CONFIG = MttConfig(
    iterations=6, syn_steps=4, expert_epochs=1, max_start=3, lr_img=1.0, lr_lr=1e-6, lr_teacher=0.05, batch_syn=4
)


def small_problem(least_weight=1.0):
    """Images, label distributions, weights that rise to 1, and experts."""
    rng = torch.Generator().manual_seed(0)
    label = torch.arange(N) % K
    x = torch.randn(N, 1, 8, 8, generator=rng) + torch.randn(K, 1, 8, 8, generator=rng)[label]
    y, w = torch.nn.functional.one_hot(label, K).float(), torch.linspace(least_weight, 1, N)
    experts = train_experts(NET, x, y, w, ExpertConfig(count=2, epochs=3, lr=0.05, batch=10), seed=0)
    return x, y, w, experts


@pytest.fixture(scope="module")
def problem():
    return small_problem()


def run(problem, config=CONFIG, ipc=2, **more):
    return distill(NET, *problem, config, **{"ipc": ipc, "seed": 0} | more)


def kept(state) -> dict[str, torch.Tensor]:
    """Copies of the tensors of a state."""
    return {name: value.clone() for name, value in vars(state).items() if isinstance(value, torch.Tensor)}


def test_one_iteration_is_one_step_of_sgd_with_momentum(problem):
    config = replace(CONFIG, iterations=2, momentum=0.5)
    points = []
    synthetic, rows = run(problem, config, on_iteration=lambda state: points.append(kept(state)))
    images, y, w, experts = problem
    loop = mtt.start(Problem(NET, Real.of(images, y, w, config.draw_power), experts, config, 2, 0))
    x, lr = loop.x, loop.lr
    velocity_x, velocity_lr = torch.zeros_like(x), torch.zeros(())
    for row, point in zip(rows, points, strict=True):
        pick = torch.randint(2**31, (2,), generator=loop.generator).tolist()
        expert, epoch = pick[0] % 2, pick[1] % 3
        assert (row["expert"], row["start_epoch"]) == (expert, epoch)
        steps = mtt.steps(config, 6, loop.generator)
        m = match(NET, *experts.trajectories[expert][epoch : epoch + 2], x, loop.y, lr, steps)
        velocity_x, velocity_lr = 0.5 * velocity_x + m.grad_x, 0.5 * velocity_lr + m.grad_lr
        x, lr = x - 1.0 * velocity_x, lr * math.exp(-1e-6 * velocity_lr / lr)
        assert row["loss"] == m.loss.item()
        torch.testing.assert_close(point["x"], x)
        torch.testing.assert_close(point["lr"], lr)
    assert torch.equal(synthetic.x, points[-1]["x"])
    assert synthetic.lr == points[-1]["lr"].item() == rows[-1]["lr"]


def test_distillation_lowers_the_matching_loss(problem):
    config = replace(CONFIG, iterations=30, batch_syn=0, augmentation="none", max_start=1, lr_img=20.0)
    _, rows = run(problem, config)
    losses = [row["loss"] for row in rows]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


@pytest.mark.parametrize("sign", [1, -1])
def test_learning_rate_stays_positive_under_absurd_gradients(problem, monkeypatch, sign):
    absurd = torch.tensor(sign * 1e30)
    monkeypatch.setattr(mtt, "match", lambda *a, **more: replace(match(*a, **more), grad_lr=absurd))
    _, rows = run(problem, replace(CONFIG, iterations=20))
    rates = [CONFIG.lr_teacher, *(row["lr"] for row in rows)]
    for before, after in zip(rates, rates[1:]):
        assert after > 0
        assert after == pytest.approx(before * math.exp(-sign * mtt.MAX_LOG_STEP), rel=1e-5)


@pytest.mark.parametrize("name", ["loss", "grad_x", "grad_lr"])
def test_an_iteration_that_is_not_finite_changes_nothing_and_is_counted(problem, monkeypatch, name):
    calls, points = [], []

    def sometimes_broken(*args, **kwargs) -> Matched:
        m = match(*args, **kwargs)
        calls.append(1)
        return replace(m, **{name: torch.full_like(getattr(m, name), torch.nan)}) if len(calls) == 3 else m

    monkeypatch.setattr(mtt, "match", sometimes_broken)
    synthetic, rows = run(problem, on_iteration=lambda state: points.append(kept(state)))
    assert [row["finite"] for row in rows] == [True, True, False, True, True, True]
    assert rows[2]["loss"] is None
    assert rows[2]["lr"] == rows[1]["lr"]
    assert all(torch.equal(points[1][k], points[2][k]) for k in points[1])
    assert not torch.equal(points[2]["x"], points[3]["x"])
    assert synthetic.x.isfinite().all()


def test_every_student_passes_over_the_set_in_full_batches():
    steps = mtt.steps(replace(CONFIG, syn_steps=5, batch_syn=3), 7, torch.Generator().manual_seed(0))
    assert [len(s.index_B) for s in steps] == [3] * 5
    for first, second in [(0, 1), (2, 3)]:
        assert len(set(steps[first].index_B.tolist() + steps[second].index_B.tolist())) == 6
    assert len({tuple(s.index_B.tolist()) for s in steps}) == 5
    whole = mtt.steps(replace(CONFIG, batch_syn=0), 7, torch.Generator())
    assert [sorted(s.index_B.tolist()) for s in whole] == [list(range(7))] * CONFIG.syn_steps
    assert [len(s.index_B) for s in mtt.steps(replace(CONFIG, batch_syn=50), 7, torch.Generator())] == [7] * 4


def test_images_to_start_from_are_drawn_in_proportion_to_a_power_of_their_weight():
    n = 40
    x, label = torch.arange(n).view(n, 1, 1, 1).float(), torch.arange(n) % 2
    y, w, picks = torch.nn.functional.one_hot(label, 2).float(), torch.zeros(n), torch.zeros(n)
    w[:8], w[:2] = 0.3, 0.9  # per class one sample of weight 0.9 and three of 0.3
    for seed in range(200):
        images, labels = Real.of(x, y, w, 2.0).choose(1, torch.Generator().manual_seed(seed))
        assert labels.tolist() == [[1, 0], [0, 1]]
        picks[images.flatten().long()] += 1
    assert picks[8:].sum() == 0
    assert 130 < picks[:2].min() <= picks[:2].max() < 170  # expected 150, standard deviation 6
    assert Real.of(x, y, w, 0.0).chance.tolist() == [1.0] * 8 + [0.0] * 32
    unlikely = Real.of(x, y, torch.full((n,), 1e-12), 4.0)  # its fourth power is no float32
    assert len(unlikely.draw(0, n, torch.Generator())) == n // 2
    images, _ = Real.of(x, y, w, 2.0).choose(4, torch.Generator())
    assert sorted(images.flatten().tolist()) == list(range(8))
    images += 1
    assert x[0] == 0


def test_soft_labels_count_for_the_class_they_favour():
    x, w = torch.arange(4).view(4, 1, 1, 1).float(), torch.ones(4)
    y = torch.tensor([[0.4, 0.6], [0.9, 0.1], [0.7, 0.3], [0.2, 0.8]])
    images, labels = Real.of(x, y, w, 4.0).choose(2, torch.Generator())
    assert sorted(images.flatten().tolist()[:2]) == [1, 2]
    assert labels.tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]
    # those of a likely label and a large weight more often
    chances = Real.of(x, y, torch.tensor([1.0, 1.0, 0.5, 0.0]), 2.0).chance
    torch.testing.assert_close(chances, torch.tensor([0.6**2, 0.9**2, 0.35**2, 0.0]))


def test_experts_and_sizes_that_do_not_fit_are_refused(problem):
    x, y, w, experts = problem
    with pytest.raises(InputError, match="no epoch 4 of expert 0"):
        run(problem, replace(CONFIG, expert_epochs=2))
    with pytest.raises(InputError, match=f"experts have 7 parameters, the network {NET.n_parameters}"):
        run((x, y, w, InMemory((torch.zeros(5, 7),))))
    with pytest.raises(InputError, match="ipc must be a whole number, at least 1, got 0"):
        run(problem, ipc=0)
