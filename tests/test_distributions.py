"""DANCE, NCFM and multi-formation against obvious versions in float64."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_distill import CONFIGS, IPC, LEARNING, as_problem, run
from test_mtt import NET, K, small_problem

from tadlib.config import DanceConfig, NcfmConfig
from tadlib.distill import dance, distributions, mtt, ncfm
from tadlib.distill.loop import Problem, decoded
from tadlib.distill.synthetic import Real, Synthetic
from tadlib.errors import InputError
from tadlib.experts import InMemory
from tadlib.matching import match
from tadlib.nn import augment
from tadlib.nn.crops import decode, mosaic
from tadlib.state import checkpoint

F64 = torch.float64


@pytest.fixture(scope="module")
def problem():
    return small_problem(least_weight=0.1)


def images(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


# Multi-formation


def enlarged_by_loop(x_SCHW, f):
    """The parts of every image, row by row, each enlarged on its own."""
    n, _, height, width = x_SCHW.shape
    h, w, parts = height // f, width // f, []
    for s in range(n):
        for i in range(f):
            for j in range(f):
                part = x_SCHW[s : s + 1, :, i * h : (i + 1) * h, j * w : (j + 1) * w]
                parts.append(F.interpolate(part, size=(height, width), mode="bilinear", align_corners=False))
    return torch.cat(parts)


@pytest.mark.parametrize("f, shape", [(2, (3, 3, 8, 8)), (3, (2, 1, 6, 9)), (1, (2, 1, 4, 4))])
def test_decoding_enlarges_every_part_and_its_pull_back_is_that_of_the_enlargement(f, shape):
    x = images(*shape).requires_grad_()
    expected = enlarged_by_loop(x, f)
    torch.testing.assert_close(decode(x, f), expected, rtol=1e-12, atol=1e-12)
    problem = Problem(NET, None, None, DanceConfig(formation=f), 1, 0)
    seen, pull_back = decoded(problem, x.detach())
    g = images(*seen.shape, seed=1)
    torch.testing.assert_close(pull_back(g), torch.autograd.grad(expected, x, g)[0], rtol=1e-12, atol=1e-12)


def test_images_to_start_from_are_made_smaller_and_decoded_in_the_order_in_which_they_were_drawn():
    x = images(8, 3, 6, 4)
    real = Real.of(x, torch.ones(8, 1, dtype=F64), torch.ones(8, dtype=F64), 1.0)
    made, _ = real.choose(2, torch.Generator().manual_seed(0), 2)
    order = real.draw(0, 8, torch.Generator().manual_seed(0))
    assert made.shape == (2, 3, 6, 4)
    for n, image in enumerate(x[order]):
        s, i, j = n // 4, n % 4 // 2, n % 2
        part = made[s, :, 3 * i : 3 * i + 3, 2 * j : 2 * j + 2]
        for row in range(3):
            for column in range(2):
                four = image[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                torch.testing.assert_close(part[:, row, column], four.mean((1, 2)))
    flat = images(8, 3, 1, 1).expand(8, 3, 3, 2)
    torch.testing.assert_close(decode(mosaic(flat, 2), 2)[:, :, :1, :1], flat[:, :, :1, :1])


def test_parts_share_the_label_of_their_image():
    y = torch.eye(3, dtype=F64)
    seen = Synthetic(images(3, 1, 4, 4), y, 0.1, 2).decoded()
    assert seen.y.argmax(1).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert (seen.x.shape, seen.formation, seen.lr) == ((12, 1, 4, 4), 1, 0.1)


@pytest.mark.parametrize("method", LEARNING)
def test_every_method_that_learns_images_learns_mosaics(problem, method):
    points = []
    config = replace(CONFIGS[method], formation=2, **({"init": "real"} if method == "datm" else {}))
    synthetic, rows = run(problem, method, config, on_iteration=lambda state: points.append(state.x.clone()))
    assert synthetic.formation == 2
    assert synthetic.x.shape == (K * IPC, 1, 8, 8)
    assert synthetic.y.shape == (K * IPC, K)
    assert synthetic.decoded().x.shape == (4 * K * IPC, 1, 8, 8)
    assert all(row["finite"] for row in rows)
    assert not torch.equal(points[0], points[-1])
    first = Real.of(*problem[:3], config.draw_power)
    name = {"dm": "dm", "dsa": "dsa", "dance": "dance", "ncfm": "dance"}.get(method, "mtt")
    start, _ = first.choose(IPC, as_problem(problem, config).generator(name), 2)
    assert (points[0] - start).norm() < 0.5 * start.norm()  # it starts from mosaics of real images


def test_trajectory_matching_of_mosaics_has_the_gradient_of_the_enlarged_images(problem):
    config = replace(CONFIGS["datm"], iterations=1, formation=2, threshold=1e9, max_start=1)
    from tadlib.distill import datm

    state = datm.start(as_problem(problem, config))
    x, y = state.x.clone().requires_grad_(), state.y.clone().requires_grad_()
    torch.randint(2**31, (2,), generator=state.generator)
    steps = mtt.steps(config, 4 * K * IPC, state.generator)
    found = []
    run(problem, "datm", config, on_iteration=lambda s: found.append((s.velocity_x.clone(), s.velocity_y.clone())))
    pick = torch.randint(2**31, (2,), generator=datm.start(as_problem(problem, config)).generator).tolist()[0] % 2
    segment = problem[3].trajectories[pick][:2]
    seen, labels = enlarged_by_loop(x, 2), torch.stack([row for row in y for _ in range(4)])
    m = match(NET, *segment, seen.detach(), labels.detach(), state.lr, steps, gradient="unrolled", loss_fn=datm.loss)
    torch.testing.assert_close(found[0][0], torch.autograd.grad(seen, x, m.grad_x)[0])
    torch.testing.assert_close(found[0][1], torch.autograd.grad(labels, y, m.grad_y)[0])
    assert m.grad_x.abs().max() > 0


def test_classes_with_fewer_images_than_parts_repeat_some_and_a_formation_that_does_not_fit_is_refused(problem):
    x, y, w, experts = problem
    w = w.clone()
    w[(y.argmax(1) == 1).nonzero()[2:, 0]] = 0  # two images of class 1 for eight parts
    synthetic, _ = run((x, y, w, experts), "dm", replace(CONFIGS["dm"], formation=2, iterations=1, lr_img=1e-9))
    parts = synthetic.x[IPC : 2 * IPC].unflatten(3, (2, 4)).unflatten(2, (2, 4)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    assert len({tuple(part.flatten().tolist()) for part in parts.mul(1e4).round()}) == 2
    with pytest.raises(InputError, match="formation must divide the sides of 8x8 images, got 3"):
        run(problem, "dm", replace(CONFIGS["dm"], formation=3))


# Distances


def characteristic_function(features, weights, t):
    """Φ(t) of weighted features, one frequency at a time, in complex numbers."""
    values = []
    for frequency in t:
        terms = [w * torch.exp(1j * (frequency @ f)) for f, w in zip(features, weights)]
        values.append(sum(terms) / weights.sum())
    return torch.stack(values)


def ncfm_by_loop(real, weights, synthetic, t):
    unit = [torch.stack([f / f.square().sum().sqrt() for f in features]) for features in (real, synthetic)]
    phi_r = characteristic_function(unit[0], weights, t)
    phi_s = characteristic_function(unit[1], torch.ones(len(synthetic), dtype=F64), t)
    total = 0.0
    for a, b in zip(phi_r, phi_s):
        phase = torch.clamp(a.abs() * b.abs() - (a * b.conj()).real, min=1e-12)
        total = total + torch.sqrt(0.5 * (a.abs() - b.abs()) ** 2 + phase)
    return 300 * total / len(t)


def test_ncfms_distance_is_that_of_characteristic_functions_in_complex_numbers():
    real, x, t = images(9, 6), images(4, 6, seed=1).requires_grad_(), images(11, 6, seed=2)
    w = torch.linspace(0.05, 1, 9, dtype=F64)
    found, expected = ncfm.cf_distance(real, w, x, t), ncfm_by_loop(real, w, x, t)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    gradients = [torch.autograd.grad(value, x)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)
    assert gradients[0].abs().max() > 0


def test_the_phase_term_keeps_the_gradient_finite_where_both_sides_are_the_same():
    x = images(4, 6).requires_grad_()
    value = ncfm.cf_distance(x.detach(), torch.ones(4, dtype=F64), x, images(11, 6, seed=2))
    assert value.item() == pytest.approx(300e-6)
    assert torch.autograd.grad(value, x)[0].isfinite().all()


@pytest.mark.parametrize("scale", [0.1, 1, 7])
def test_weights_count_in_proportion_and_samples_without_any_not_at_all(scale):
    real, x, t = images(6, 5), images(3, 5, seed=1), images(8, 5, seed=2)
    w = torch.tensor([1.0, 0.5, 0.25, 0, 0, 1], dtype=F64)
    repeated = real[[0, 0, 0, 0, 1, 1, 2, 5, 5, 5, 5]]  # in quarters
    for distance in (lambda f, w: dance.distance(f, w, x, None), lambda f, w: ncfm.cf_distance(f, w, x, t)):
        plain = distance(repeated, torch.ones(11, dtype=F64))
        torch.testing.assert_close(distance(real, scale * w), plain, rtol=1e-10, atol=1e-12)


# The iteration


def problem64(problem, config) -> Problem:
    """The small problem in float64, as a method's ``advance`` takes it."""
    x, y, w, experts = problem
    doubled = InMemory(tuple(trajectory.double() for trajectory in experts.trajectories))
    return Problem(NET, Real.of(x.double(), y.double(), w.double(), 1.0), doubled, config, IPC, 0)


MATCHING = {"iterations": 1, "batch_real": 5, "final_epoch": 3, "draw_power": 1.0, "augmentation": "color_crop_scale"}


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("f", [1, 2])
@pytest.mark.parametrize("module", [dance, ncfm])
def test_an_iteration_is_a_step_on_the_distance_and_one_on_the_calibration(problem, module, f, weighted):
    settings = MATCHING | {"formation": f, "weighted": weighted, "calibration": 0.7}
    config = DanceConfig(**settings, lr_img=0.3) if module is dance else NcfmConfig(**settings, frequencies=7)
    small = problem64(problem, config)
    state = distributions.start(small) if module is dance else ncfm.start(small)
    x, random = state.x.clone().requires_grad_(), torch.Generator()
    random.set_state(state.generator.get_state())
    module.advance(small, state)

    if module is dance:
        rule = torch.optim.SGD([x], config.lr_img, config.momentum)
    else:
        rule = torch.optim.AdamW([x], config.lr_img, (config.momentum, 0.999), weight_decay=config.weight_decay)
    expert = int(torch.randint(2**31, (), generator=random)) % 2
    u = torch.rand((), generator=random, dtype=F64)
    start, final = small.experts.read(expert, 0), small.experts.read(expert, 3)
    theta = u * start + (1 - u) * final
    total, n = 0.0, IPC * f * f
    for k in range(K):
        index = small.real.draw(k, 5, random)
        draws = augment.draw(config.augmentation, 1, random)
        real = NET.features(theta, augment.apply(draws, small.real.x[index]))
        seen = NET.features(theta, augment.apply(draws, enlarged_by_loop(x, f)[k * n : (k + 1) * n]))
        w = small.real.weight[index] if weighted else torch.ones(5, dtype=F64)
        if module is dance:
            mean = sum(w_i * f_i for w_i, f_i in zip(w, real)) / sum(w)
            total = total + sum((mean - sum(seen) / n) ** 2)
        else:
            t = torch.randn(7, real.shape[1], generator=random, dtype=F64)
            total = total + ncfm_by_loop(real, w, seen, t)
    (x.grad,) = torch.autograd.grad(total, x)
    assert state.rows[0]["loss"] == pytest.approx(total.item(), rel=1e-10)
    assert state.rows[0]["grad_norm"] == pytest.approx(x.grad.norm().item(), rel=1e-10)
    assert state.rows[0]["expert"] == expert
    rule.step()
    total = 0.0
    for k in range(K):
        draws = augment.draw(config.augmentation, 1, random)
        logits = NET(final, augment.apply(draws, enlarged_by_loop(x, f)[k * n : (k + 1) * n]))
        total = total + 0.7 * F.cross_entropy(logits, torch.full((n,), k))
    (x.grad,) = torch.autograd.grad(total, x)
    rule.step()
    torch.testing.assert_close(state.x, x.detach(), rtol=1e-10, atol=1e-12)


def test_without_calibration_there_is_one_step(problem):
    config = DanceConfig(**MATCHING, lr_img=0.3, momentum=0.0, calibration=0.0)
    small = problem64(problem, config)
    state = distributions.start(small)
    before = state.x.clone()
    dance.advance(small, state)
    assert (state.x - before).norm().item() == pytest.approx(0.3 * state.rows[0]["grad_norm"])


def test_networks_of_the_bank_lie_between_initial_and_final_ones(problem):
    small = problem64(problem, DanceConfig(**MATCHING))
    random, seen = torch.Generator().manual_seed(0), set()
    for _ in range(30):
        theta, final, expert = distributions.blended(small, random)
        first = small.experts.read(expert, 0)
        along = (final - theta) @ (final - first) / (final - first).square().sum()
        torch.testing.assert_close(theta, along * first + (1 - along) * final)
        assert 0 <= along <= 1
        assert torch.equal(final, small.experts.read(expert, 3))
        seen.add((expert, round(along.item() * 3)))
    assert len(seen) == 8  # both experts, all parts of the way


@pytest.mark.parametrize("method", ["dance", "ncfm"])
def test_matching_brings_distributions_closer(problem, method):
    more = {"iterations": 40, "lr_img": {"dance": 2.0, "ncfm": 0.1}[method], "augmentation": "none", "batch_real": 10}
    _, rows = run(problem, method, replace(CONFIGS[method], **more, calibration=0.0))
    losses = [row["loss"] for row in rows]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_calibration_makes_images_likelier_under_final_networks(problem):
    def cross_entropy(calibration):
        config = replace(CONFIGS["dance"], iterations=30, calibration=calibration, lr_img=2.0)
        synthetic = run(problem, "dance", config)[0].decoded()
        return sum(F.cross_entropy(NET(problem[3].read(e, 3), synthetic.x), synthetic.y) for e in range(2)).item()

    assert cross_entropy(10.0) < cross_entropy(0.0) - 0.02


# ψ, which samples frequencies


def psi_by_modules(psi_P, d):
    """The same network as torch's modules, which hold parameters in the order of the flat vector."""
    parts = []
    for last in (False, False, True):
        parts += [torch.nn.Linear(d, d), torch.nn.BatchNorm1d(d), torch.nn.Tanh() if last else torch.nn.LeakyReLU(0.2)]
    net = torch.nn.Sequential(*parts).double()
    torch.nn.utils.vector_to_parameters(psi_P, net.parameters())
    return net


def test_psi_ascends_the_distance_that_images_descend(problem):
    config = NcfmConfig(**MATCHING, frequencies=7, sampling=True, lr_sampling=0.05, calibration=0.0, lr_img=0.01)
    small = problem64(problem, config)
    state = ncfm.start(small)
    random, x = torch.Generator(), state.x.clone()
    random.set_state(state.generator.get_state())
    assert state.psi.shape == (2, 3 * (16**2 + 3 * 16))
    net = psi_by_modules(state.psi[0], 16)
    rule = torch.optim.SGD(net.parameters(), 0.05, momentum=0.5, maximize=True)
    for i in range(2):
        before = state.x.clone()
        ncfm.advance(small, state)
        expert = int(torch.randint(2**31, (), generator=random)) % 2
        theta = small.experts.read(expert, 3).lerp(
            small.experts.read(expert, 0), torch.rand((), generator=random, dtype=F64)
        )
        total = 0.0
        for k in range(K):
            index = small.real.draw(k, 5, random)
            draws = augment.draw(config.augmentation, 1, random)
            real = NET.features(theta, augment.apply(draws, small.real.x[index]))
            seen = NET.features(
                theta, augment.apply(draws, enlarged_by_loop(before, 2)[k * 4 * IPC : (k + 1) * 4 * IPC])
            )
            t = net(torch.randn(7, 16, generator=random, dtype=F64))
            total = total + ncfm_by_loop(real, small.real.weight[index], seen, t)
        assert state.rows[i]["loss"] == pytest.approx(total.item(), rel=1e-10)
        rule.zero_grad()
        total.backward()
        rule.step()
        found = torch.nn.utils.parameters_to_vector(net.parameters())
        torch.testing.assert_close(state.psi[0], found.detach(), rtol=1e-10, atol=1e-12)
    assert not torch.equal(state.x, x)


def test_with_psi_a_resumed_run_ends_with_the_same_bits_and_one_frequency_is_refused(problem):
    config, kept = replace(CONFIGS["ncfm"], sampling=True), []
    whole, rows = run(problem, "ncfm", config, on_iteration=lambda state: kept.append(checkpoint(state)))
    resumed, again = run(problem, "ncfm", config, resume=kept[1])
    assert torch.equal(resumed.x, whole.x)
    assert rows == again
    plain, _ = run(problem, "ncfm")
    assert not torch.equal(plain.x, whole.x)
    with pytest.raises(InputError, match="frequencies must be at least 2 where ψ samples them .*, got 1"):
        NcfmConfig(sampling=True, frequencies=1)
