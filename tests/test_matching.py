"""The meta-gradient of trajectory matching against a plain unrolled twin, in float64."""

import weakref
from dataclasses import fields, replace

import pytest
import torch
from test_networks import convnet_by_hand
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tadlib.config import MttConfig, TeslaConfig
from tadlib.errors import InputError
from tadlib.matching import GRADIENTS, Step, _compiled_sweeps, match, soft_cross_entropy
from tadlib.nn import augment
from tadlib.nn.networks import Network, NetworkSpec

S, K, SHAPE = 6, 3, (2, 8, 8)
SPEC = NetworkSpec(SHAPE, K, width=4, depth=2)
STRATEGIES = ["none", *augment.OPERATIONS, "color"]


def twin_loss(problem, x, y, lr):
    """The matching loss, every student step kept in one autograd graph, parameters as a list of tensors."""
    module = convnet_by_hand(SPEC).double()
    nn.utils.vector_to_parameters(problem["start"], module.parameters())
    names = [name for name, _ in module.named_parameters()]
    theta = [p.detach().clone().requires_grad_() for p in module.parameters()]
    for step in problem["steps"]:
        x_B = x[step.index_B]
        for d in step.draws:
            x_B = augment.OPERATIONS[d.op][3](x_B, d.params)
        logits = functional_call(module, dict(zip(names, theta)), (x_B,))
        # cross_entropy with probabilities as targets
        loss = nn.functional.cross_entropy(logits, y[step.index_B])
        gradients = torch.autograd.grad(loss, theta, create_graph=True)
        theta = [p - lr * g for p, g in zip(theta, gradients)]
    theta_N = torch.cat([p.flatten() for p in theta])
    start, target = problem["start"], problem["target"]
    return ((theta_N - target) ** 2).sum() / ((start - target) ** 2).sum()


def twin(problem):
    """Loss and gradients of images, labels and learning rate by plain autograd."""
    leaves = [problem[name].clone().requires_grad_() for name in ("x", "y", "lr")]
    loss = twin_loss(problem, *leaves)
    return loss.detach(), *torch.autograd.grad(loss, leaves)


def problem(strategy: str = "none", n_steps: int = 5, batch: int = 4, seed: int = 0, lr: float = 0.05):
    """Arguments of a match: soft labels, batches smaller than the set unless ``batch`` is S."""
    rng = torch.Generator().manual_seed(seed)
    start_P = Network(SPEC).init(seed).double()
    return {
        "start": start_P,
        "target": start_P + 0.05 * torch.randn(len(start_P), dtype=torch.float64, generator=rng),
        "x": torch.randn(S, *SHAPE, dtype=torch.float64, generator=rng),
        "y": torch.randn(S, K, dtype=torch.float64, generator=rng).softmax(1),
        "lr": torch.tensor(lr, dtype=torch.float64),
        "steps": [
            Step(torch.randperm(S, generator=rng)[:batch], augment.draw(strategy, batch, rng)) for _ in range(n_steps)
        ],
    }


def solve(p, gradient="exact", net=None, **more):
    arguments = (p[name] for name in ("start", "target", "x", "y", "lr", "steps"))
    return match(net or Network(SPEC), *arguments, gradient=gradient, **more)


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def assert_equal_to_twin(p, gradient, **more):
    loss, grad_x, grad_y, grad_lr = twin(p)
    m = solve(p, gradient, **more)
    assert relative(m.loss, loss) < 1e-12
    for name, got, expected in [("x", m.grad_x, grad_x), ("y", m.grad_y, grad_y), ("lr", m.grad_lr, grad_lr)]:
        assert got.shape == expected.shape
        assert relative(got, expected) < 1e-10, name


@pytest.mark.parametrize("config", [MttConfig, TeslaConfig])
def test_settings_allow_the_gradients_that_there_are(config):
    (setting,) = (f for f in fields(config) if f.name == "gradient")
    assert set(setting.metadata["of"]) == set(GRADIENTS)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_exact_gradient_equals_plain_unrolled_autograd(strategy):
    assert_equal_to_twin(problem(strategy), "exact")


def test_exact_gradient_holds_over_many_large_steps_with_mixed_augmentation():
    everything = "color_crop_cutout_flip_scale_rotate"
    p = problem(everything, n_steps=20, seed=1, lr=0.5)
    assert len({s.draws[0].op for s in p["steps"]}) > 3
    assert_equal_to_twin(p, "exact")


def test_unrolled_is_the_same_gradient():
    assert_equal_to_twin(problem("scale", batch=S), "unrolled")


def test_exact_gradient_agrees_with_finite_differences():
    p, h = problem("rotate"), 1e-5
    m = solve(p)
    checks = [("x", place, m.grad_x[place]) for place in [(0, 0, 1, 1), (2, 1, 3, 4), (5, 0, 6, 2), (3, 1, 7, 7)]]
    checks += [("y", place, m.grad_y[place]) for place in [(0, 0), (2, 1), (5, 2)]]
    for name, place, expected in [*checks, ("lr", (), m.grad_lr)]:
        values = []
        for sign in (1, -1):
            moved = p[name].clone()
            moved[place] += sign * h
            values.append(solve(p | {name: moved}).loss.item())
        assert (values[0] - values[1]) / (2 * h) == pytest.approx(expected.item(), rel=2e-4, abs=1e-9), (name, place)


def test_tesla_drops_terms_and_is_exact_only_for_one_step():
    one = problem("color", n_steps=1)
    many = problem("color", n_steps=10, lr=0.3)
    assert relative(solve(one, "tesla").grad_x, solve(one).grad_x) < 1e-14
    assert relative(solve(one, "tesla").grad_lr, solve(one).grad_lr) < 1e-14
    assert relative(solve(many, "tesla").grad_x, solve(many).grad_x) > 0.01
    assert relative(solve(many, "tesla").grad_lr, solve(many).grad_lr) > 0.001
    assert torch.equal(solve(many, "tesla").loss, solve(many).loss)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_no_graph_survives_even_when_the_inputs_ask_for_one_and_they_stay_as_they_were(gradient):
    p = problem("crop")
    names = ("x", "y", "lr", "start", "target")
    before = {name: p[name].requires_grad_().detach().clone() for name in names}
    for name, value in vars(solve(p, gradient)).items():
        assert not value.requires_grad, name
        assert value.grad_fn is None, name
    assert all(torch.equal(p[name], value) for name, value in before.items())


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of storages made inside it that are alive; ``peak`` is the most at any time."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak, self.known = 0, 0, weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and not t._is_zerotensor():  # those have no storage
                self.add(t.untyped_storage())
        return out

    def add(self, storage):
        if storage not in self.known:
            self.known.add(storage)
            self.alive += storage.nbytes()
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self.remove, storage.nbytes())

    def remove(self, n_bytes):
        self.alive -= n_bytes


def peak_memory(gradient, n_steps):
    p = problem(n_steps=n_steps)
    with PeakMemory() as memory:
        solve(p, gradient)
    return memory.peak


def test_each_further_step_costs_one_parameter_vector_of_memory():
    n_bytes = 8 * Network(SPEC).n_parameters
    growth = (peak_memory("exact", 16) - peak_memory("exact", 4)) / 12
    assert 0.9 * n_bytes < growth < 1.1 * n_bytes
    unrolled = (peak_memory("unrolled", 16) - peak_memory("unrolled", 4)) / 12
    assert unrolled > 20 * growth


def test_samples_outside_every_batch_have_no_gradient():
    p = problem("flip")
    p["steps"] = [Step(torch.tensor([0, 2])), Step(torch.tensor([2, 3]))]
    m = solve(p)
    used = torch.tensor([True, False, True, True, False, False])
    assert (m.grad_x[~used] == 0).all()
    assert (m.grad_y[~used] == 0).all()
    assert (m.grad_x[used].flatten(1).norm(dim=1) > 0).all()


def test_bad_input_is_named():
    p = problem()
    for message, change, more in [
        ("unknown gradient 'exakt'", {}, {"gradient": "exakt"}),
        ("unrolled is not compiled", {}, {"gradient": "unrolled", "compile": True}),
        ("at least one student step, got 0", {"steps": []}, {}),
        ("start and target of a segment are the same point", {"target": p["start"].clone()}, {}),
        ("start .* and target .* differ", {"target": p["start"][:-1]}, {}),
    ]:
        with pytest.raises(InputError, match=message):
            solve(p | change, **more)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_compiled_steps_are_the_same_gradient():
    p = problem("color_crop_cutout_flip_scale_rotate", n_steps=4, lr=0.3)
    assert_equal_to_twin(p, "exact", compile=True)
    net = Network(SPEC)
    assert all(f.made and f.f not in f.made.values() for f in _compiled_sweeps(net, soft_cross_entropy))
    assert torch.equal(solve(p, compile=True).grad_x, solve(p, compile=True).grad_x)


def test_without_a_compiler_steps_run_plainly_and_say_so_once(monkeypatch, caplog):
    def broken(*args, **kwargs):
        raise RuntimeError("no C++ compiler here\nwith details")

    monkeypatch.setattr(torch, "compile", broken)
    net = Network(replace(SPEC, width=3))  # nothing compiled for it yet
    p = problem("crop") | {"start": net.init(0).double(), "target": net.init(1).double()}
    expected = solve(p, net=net)
    with caplog.at_level("WARNING"):
        found = solve(p, net=net, compile=True)
        solve(p, net=net, compile=True)
    assert relative(found.grad_x, expected.grad_x) < 1e-12
    assert relative(found.grad_lr, expected.grad_lr) < 1e-12
    messages = [r.getMessage() for r in caplog.records]
    reason = "no C++ compiler here with details"  # two lines, as the cause is often on the second
    assert messages == [f"torch.compile cannot be used here, steps run uncompiled: {reason}"] * 2
