"""What holds for every distillation method: a golden run, resume, rollback, the same bits for the same seed."""

from dataclasses import replace

import pytest
import torch
from test_mtt import NET, K, kept, small_problem

from tadlib import config
from tadlib.distill import METHODS as EVERY
from tadlib.distill import datm, distributions, dm, dsa, mtt
from tadlib.distill.loop import Problem
from tadlib.distill.synthetic import Real
from tadlib.errors import InputError
from tadlib.experts import InMemory
from tadlib.nn.networks import Network, NetworkSpec
from tadlib.state import checkpoint
from tadlib.store import StageFolder

METHODS = {name: function for name, function in EVERY.items() if name not in ("rded", "cim")}  # tests/test_rded.py
IPC = 2
SEGMENTS = {"iterations": 4, "syn_steps": 3, "expert_epochs": 1, "max_start": 3, "batch_syn": 4, "draw_power": 1.0}
SEGMENTS |= {"lr_img": 1.0, "lr_lr": 1e-6, "lr_teacher": 0.05}
DSA = {"outer_steps": 2, "inner_epochs": 1, "batch_real": 5, "batch_train": 4, "lr_net": 0.05}
BANK = {"iterations": 4, "batch_real": 5, "final_epoch": 3, "draw_power": 1.0, "weighted": False}
CONFIGS = {
    "mtt": config.MttConfig(**SEGMENTS),
    "tesla": config.TeslaConfig(**SEGMENTS),
    "ftd": config.FtdConfig(**SEGMENTS, ema=0.5),
    "datm": config.DatmConfig(**SEGMENTS, max_start_initial=1, expansion_end=3, lr_y=5.0, threshold=2.0),
    "dsa": config.DsaConfig(iterations=4, draw_power=1.0, **DSA),
    "dm": config.DmConfig(iterations=4, batch_real=5, draw_power=1.0),
    "dance": config.DanceConfig(lr_img=0.1, **BANK),
    "ncfm": config.NcfmConfig(lr_img=0.01, frequencies=16, **BANK),
    "random": config.RandomConfig(draw_power=1.0),
}
LEARNING = [name for name in METHODS if name != "random"]


@pytest.fixture(scope="module")
def problem():
    return small_problem(least_weight=0.1)


def run(problem, method: str, config=None, **more):
    x, y, w, experts = problem
    config = config or CONFIGS[method]
    experts = experts if config.needs_experts else None
    return METHODS[method](NET, x, y, w, experts, config, **{"ipc": IPC, "seed": 0} | more)


def as_problem(problem, config) -> Problem:
    """What a method's ``start`` takes."""
    x, y, w, experts = problem
    return Problem(NET, Real.of(x, y, w, config.draw_power), experts, config, IPC, 0)


@pytest.fixture(scope="module")
def finished(problem):
    """Synthetic set and rows of every method."""
    return {method: run(problem, method) for method in METHODS}


def test_every_method_has_a_configuration_of_its_class():
    assert {name: type(settings) for name, settings in CONFIGS.items()}.items() <= config.METHODS.items()
    assert EVERY.keys() == config.METHODS.keys()


# method -> norm of images, a pixel, sum of squared labels, learning rate, last loss
GOLDEN: dict[str, tuple] = {
    "mtt": (27.2806, 1.14171, 6, 0.0497103, 1.58522),
    "tesla": (27.2838, 1.13511, 6, 0.0496907, 1.58489),
    "ftd": (27.2709, 1.15128, 6, 0.0497103, 1.58522),
    "datm": (26.8934, 1.16798, 4.07174, 0.0499218, 1.62422),
    "dsa": (25.7734, -0.261861, 6, 0.05, 9.80388),
    "dm": (27.0766, -0.00645028, 6, 0.01, 1.46652),
    "dance": (13.0013, -1.43603, 6, 0.01, 1.310646),
    "ncfm": (13.0225, -1.45165, 6, 0.001, 165.287),
    "random": (27.6859, 1.31917, 6, 0.01, 0),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_golden_run(finished, method):
    synthetic, rows = finished[method]
    images = (synthetic.x.norm().item(), synthetic.x[3, 0, 4, 4].item())
    got = (*images, synthetic.y.square().sum().item(), synthetic.lr, rows[-1]["loss"] if rows else 0)
    assert got == pytest.approx(GOLDEN[method], rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_the_set_is_in_the_order_of_classes_and_its_labels_are_distributions(finished, method):
    synthetic, rows = finished[method]
    assert synthetic.x.shape == (K * IPC, 1, 8, 8)
    if method != "datm":  # whose labels are learned
        assert synthetic.y.tolist() == torch.eye(K).repeat_interleave(IPC, 0).tolist()
    torch.testing.assert_close(synthetic.y.sum(1), torch.ones(K * IPC))
    assert synthetic.lr > 0
    assert not synthetic.x.requires_grad
    assert len(rows) == CONFIGS[method].iterations
    assert all({"finite", "loss", "grad_norm", "lr"} <= row.keys() for row in rows)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_draws_real_images_by_an_exponent_of_their_weight(problem, finished, method):
    x, y, w, experts = problem
    squared = run((x, y, w**0.5, experts), method, replace(CONFIGS[method], draw_power=2.0))
    torch.testing.assert_close(squared[0].x, finished[method][0].x)
    assert not torch.equal(run(problem, method, replace(CONFIGS[method], draw_power=20.0))[0].x, finished[method][0].x)


def test_random_images_are_real_ones(problem, finished):
    assert all(any(torch.equal(image, x) for x in problem[0]) for image in finished["random"][0].x)


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_bits_and_the_global_generator_untouched(problem, finished, method):
    before = torch.get_rng_state()
    (a, rows), (b, again), (c, _) = finished[method], run(problem, method), run(problem, method, seed=1)
    assert torch.equal(a.x, b.x)
    assert torch.equal(a.y, b.y)
    assert rows == again
    assert not torch.equal(a.x, c.x)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("method", LEARNING)
def test_a_resumed_run_ends_with_the_same_bits(problem, finished, method, tmp_path):
    folder = StageFolder(tmp_path / "stage")
    (tmp_path / "stage").mkdir()

    class Killed(Exception):
        pass

    def save_then_die(loop):
        if loop.iteration == 2:
            folder.save_checkpoint(*checkpoint(loop))
        if loop.iteration == 3:
            raise Killed

    with pytest.raises(Killed):
        run(problem, method, on_iteration=save_then_die)
    resumed, rows = run(problem, method, resume=folder.load_checkpoint())
    whole, whole_rows = finished[method]
    assert torch.equal(resumed.x, whole.x)
    assert torch.equal(resumed.y, whole.y)
    assert resumed.lr == whole.lr
    assert rows == whole_rows


@pytest.mark.parametrize("method, module", [("dm", distributions), ("dsa", dsa)])
def test_an_iteration_that_is_not_finite_changes_nothing_and_is_counted(problem, monkeypatch, method, module):
    calls, points, sound = [], [], module.class_gradient

    def sometimes_broken(*args):
        grad_x, value = sound(*args)
        calls.append(1)
        broken = len(calls) == K * getattr(CONFIGS[method], "outer_steps", 1) + 1  # the first of the second iteration
        return (grad_x * torch.nan, value) if broken else (grad_x, value)

    monkeypatch.setattr(module, "class_gradient", sometimes_broken)
    run(problem, method, on_iteration=lambda state: points.append(kept(state)))
    assert len(points) == 4
    assert all(torch.equal(points[0][k], points[1][k]) for k in points[0])
    assert not torch.equal(points[1]["x"], points[2]["x"])
    assert all(p["x"].isfinite().all() for p in points)


@pytest.mark.parametrize("method", METHODS)
def test_samples_of_weight_zero_are_never_used(problem, method):
    x, y, w, experts = problem
    w = w.clone()
    w[::2] = 0
    spoilt = x.clone()
    spoilt[::2] = 1e3
    synthetic, rows = run((spoilt, y, w, experts), method)
    assert synthetic.x.isfinite().all()
    assert synthetic.x.abs().max() < 100
    assert all(row["finite"] for row in rows)


@pytest.mark.parametrize("method", METHODS)
def test_ipc_larger_than_a_class_is_refused(problem, method):
    x, y, w, experts = problem
    w = w.clone()
    w[y.argmax(1) == 1] = 0
    w[1] = 0.5
    with pytest.raises(InputError, match="class 1 has 1, got 2"):
        run((x, y, w, experts), method)


@pytest.mark.parametrize("method", [name for name in METHODS if CONFIGS[name].needs_experts])
def test_trajectory_methods_ask_for_experts(problem, method):
    with pytest.raises(InputError, match="at least one expert, got 0"):
        run((*problem[:3], InMemory(())), method)
    with pytest.raises(InputError, match="at least one expert, got 0"):
        METHODS[method](NET, *problem[:3], None, CONFIGS[method], ipc=IPC, seed=0)


# TESLA and FTD


def test_tesla_is_mtt_with_another_gradient(problem):
    exact, _ = run(problem, "tesla", replace(CONFIGS["tesla"], gradient="exact"))
    theirs, _ = run(problem, "mtt")
    assert torch.equal(exact.x, theirs.x)
    assert not torch.equal(run(problem, "tesla")[0].x, theirs.x)


def test_ftd_returns_the_moving_average_of_mtts_images(problem):
    points = []
    synthetic, _ = run(problem, "ftd", on_iteration=lambda loop: points.append(loop.x.clone()))
    average = mtt.start(as_problem(problem, CONFIGS["mtt"])).x
    for x in points:
        average = 0.5 * average + 0.5 * x
    torch.testing.assert_close(synthetic.x, average)
    assert torch.equal(points[-1], run(problem, "mtt")[0].x)


# DATM


def test_datms_window_grows_from_its_first_to_its_last_end():
    settings = config.DatmConfig(min_start=2, max_start_initial=10, max_start=20, expansion_end=100)
    ends = [datm.window(settings, i) for i in (0, 9, 10, 50, 99, 100, 5000)]
    assert [w.start for w in ends] == [2] * 7
    assert [w.stop for w in ends] == [10, 10, 11, 15, 19, 20, 20]
    assert datm.window(replace(settings, expansion_end=0), 0).stop == 20


def test_datms_start_epochs_stay_in_the_window(problem):
    config = replace(CONFIGS["datm"], iterations=15, max_start_initial=1, expansion_end=6, lr_img=1e-6, lr_y=1e-6)
    _, rows = run(problem, "datm", config)
    assert all(row["start_epoch"] in datm.window(config, i) for i, row in enumerate(rows))
    assert max(row["start_epoch"] for row in rows) == 2


def test_datm_learns_labels_by_sgd_with_momentum(problem):
    config = replace(CONFIGS["datm"], iterations=2, threshold=1e9)
    points = []
    synthetic, _ = run(problem, "datm", config, on_iteration=lambda state: points.append(kept(state)))
    loop = datm.start(as_problem(problem, config))
    expert = torch.randint(2**31, (2,), generator=loop.generator).tolist()[0] % 2
    steps = mtt.steps(config, K * IPC, loop.generator)

    def soft(logits, z):
        return -(z.softmax(1) * logits.log_softmax(1)).sum(1).mean()

    segment = problem[3].trajectories[expert][:2]  # the window is [0, 1)
    m = mtt.match(NET, *segment, loop.x, loop.y, loop.lr, steps, gradient="unrolled", loss_fn=soft)
    torch.testing.assert_close(points[0]["y"], loop.y - 5.0 * m.grad_y)
    assert m.grad_y.abs().max() > 0
    torch.testing.assert_close(synthetic.y, points[-1]["y"].softmax(1))


def test_datm_skips_steps_above_the_threshold(problem):
    config = replace(CONFIGS["datm"], threshold=1e-6)
    start = kept(datm.start(as_problem(problem, config)))
    states = []
    _, rows = run(problem, "datm", config, on_iteration=states.append)
    assert all(row["skipped"] and row["finite"] for row in rows)
    assert all(torch.equal(kept(states[-1])[k], start[k]) for k in start)
    assert not any(row["skipped"] for row in run(problem, "datm", replace(config, threshold=1e6))[1])


def test_datm_starts_from_images_and_logits_that_experts_get_right(problem):
    loop = datm.start(as_problem(problem, CONFIGS["datm"]))
    logits = torch.stack([NET(problem[3].read(e, 3), loop.x) for e in range(2)])
    for s, k in enumerate([0, 0, 1, 1, 2, 2]):
        right = [logits[e, s] for e in range(2) if logits[e, s].argmax() == k]
        assert right
        torch.testing.assert_close(loop.y[s], torch.stack(right).mean(0))


def test_datm_works_where_no_expert_is_right(problem):
    x, y, w, _ = problem
    always_0 = torch.zeros(4, NET.n_parameters) + torch.arange(4)[:, None]
    NET.unflatten(always_0[3], "head.")["bias"].add_(torch.tensor([5.0, 0.0, 0.0]))
    z = datm.start(as_problem((x, y, w, InMemory((always_0, always_0))), CONFIGS["datm"])).y
    for k in (1, 2):
        of_class = z[2 * k : 2 * k + 2]
        assert (of_class[:, k] == of_class.max(1).values).all()


# DM and DSA against obvious versions in float64


def float64_problem():
    rng = torch.Generator().manual_seed(1)
    images = (torch.randn(n, 1, 8, 8, dtype=torch.float64, generator=rng) for n in (7, 2))
    return NET.init(5).double(), *images


def assert_gradient(x, found, expected):
    """``found`` is the gradient of ``expected`` with respect to x, and its value."""
    grad_x, value = found
    torch.testing.assert_close(value, expected.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grad_x, torch.autograd.grad(expected, x)[0], rtol=1e-8, atol=1e-12)
    assert grad_x.abs().max() > 0


def test_dms_gradient_is_that_of_the_distance_of_mean_features():
    theta, real, x = float64_problem()
    found = distributions.class_gradient(NET, theta, (), real, x, dm.distance)
    x = x.clone().requires_grad_()

    def mean_feature(images):
        return sum(NET.features(theta, image[None])[0] for image in images) / len(images)

    assert_gradient(x, found, sum((a - b) ** 2 for a, b in zip(mean_feature(real), mean_feature(x))))


def gradient_distance_by_hand(real: dict, synthetic: dict) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for name, g in real.items():
        for a, b in zip(g, synthetic[name]) if g.ndim > 1 else ():
            dot, aa, bb = (sum(p * q for p, q in zip(u.flatten(), v.flatten())) for u, v in ((a, b), (a, a), (b, b)))
            total = total + 1 - dot / (aa.sqrt() * bb.sqrt() + 1e-6)
    return total


def test_dsas_distance_is_one_minus_cosine_over_rows():
    net = Network(NetworkSpec((1, 4, 4), 2, width=2, depth=1))
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randn(net.n_parameters, dtype=torch.float64, generator=rng) for _ in range(2))
    expected = gradient_distance_by_hand(net.unflatten(a), net.unflatten(b))
    torch.testing.assert_close(dsa.distance(net, a, b), expected, rtol=1e-12, atol=1e-12)
    assert dsa.distance(net, a, 3 * a) < 1e-4
    assert dsa.distance(net, a, torch.zeros_like(a)).isfinite()


def test_dsas_gradient_is_that_of_the_matched_gradients():
    theta, real, x = float64_problem()
    found = dsa.class_gradient(NET, theta, (), real, x, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    x, theta = x.clone().requires_grad_(), theta.clone().requires_grad_()

    def parameter_gradient(images):
        loss = torch.nn.functional.cross_entropy(NET(theta, images), torch.ones(len(images), dtype=torch.long))
        return NET.unflatten(torch.autograd.grad(loss, theta, create_graph=True)[0])

    real_gradient = {name: g.detach() for name, g in parameter_gradient(real).items()}
    assert_gradient(x, found, gradient_distance_by_hand(real_gradient, parameter_gradient(x)))


@pytest.mark.parametrize("method, module", [("dm", distributions), ("dsa", dsa)])
def test_real_and_synthetic_images_share_one_augmentation(problem, monkeypatch, method, module):
    seen, sound = [], module.class_gradient
    monkeypatch.setattr(module, "class_gradient", lambda *a: seen.append(a) or sound(*a))
    run(problem, method)
    draws = [d for _, _, draws, *_ in seen for d in draws]
    assert all(d.params.shape[0] == 1 for d in draws)
    assert {(len(real), len(x)) for _, _, _, real, x, *_ in seen} == {(5, IPC)}
    assert len({d.op for d in draws}) > 1


@pytest.mark.parametrize(
    "method, share, settings",
    [("dm", 0.7, {"iterations": 40, "lr_img": 2.0}), ("dsa", 0.9, {"iterations": 25, "outer_steps": 1, "lr_img": 1.0})],
)
def test_matching_brings_mean_features_or_gradients_closer(problem, method, share, settings):
    _, rows = run(problem, method, replace(CONFIGS[method], batch_real=10, augmentation="none", **settings))
    losses = [row["loss"] for row in rows]
    assert sum(losses[-5:]) < share * sum(losses[:5])
