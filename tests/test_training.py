"""The training loop against PyTorch's own optimiser and modules."""

from dataclasses import replace

import pytest
import torch
from test_networks import convnet_by_hand
from torch import nn

from tadlib.errors import InputError
from tadlib.nn import augment, training
from tadlib.nn.networks import Network, NetworkSpec
from tadlib.nn.training import (
    AdamW,
    Sgd,
    State,
    accuracy,
    batches,
    predict,
    train_epoch,
    train_epoch_together,
    weighted_loss,
)

SPEC = NetworkSpec((1, 8, 8), 3, width=4, depth=2)
NET = Network(SPEC)


def data(n: int = 23, seed: int = 0, dtype=torch.float32):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 1, 8, 8, generator=rng, dtype=dtype)
    return x, torch.randn(n, 3, generator=rng, dtype=dtype).softmax(1), torch.rand(n, generator=rng, dtype=dtype)


SGD = Sgd(0.1)


def epoch(x, y, w, *, net=NET, state=None, seed=0, sgd=SGD, batch=8, strategy="none", **more):
    state = State(net.init(0).to(x.dtype)) if state is None else state
    rng = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    return train_epoch(net, state, x, y, w, sgd=sgd, batch=batch, strategy=strategy, generator=rng, **more)


def by_hand(spec=SPEC):
    """The network as a module, and a function that returns its parameters as one vector."""
    module = convnet_by_hand(spec).double()
    nn.utils.vector_to_parameters(NET.init(0).double(), module.parameters())
    return module, lambda: nn.utils.parameters_to_vector(module.parameters()).detach()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 5e-2])
def test_step_is_that_of_torch_sgd_bit_for_bit(momentum, weight_decay):
    rng = torch.Generator().manual_seed(0)
    theta, velocity = torch.randn(50, generator=rng), None
    parameter = nn.Parameter(theta.clone())
    optimiser = torch.optim.SGD([parameter], lr=0.1, momentum=momentum, weight_decay=weight_decay)
    for _ in range(5):
        g = torch.randn(50, generator=rng)
        theta, velocity = Sgd(0.1, momentum, weight_decay).step(theta, g, velocity)
        parameter.grad = g.clone()
        optimiser.step()
        assert torch.equal(theta, parameter)
    assert (velocity is None) == (momentum == 0)


@pytest.mark.parametrize("weight_decay", [0.0, 5e-2])
def test_adamw_is_that_of_torch(weight_decay):
    rng = torch.Generator().manual_seed(0)
    theta, velocity = torch.randn(50, dtype=torch.float64, generator=rng), None
    parameter = nn.Parameter(theta.clone())
    optimiser = torch.optim.AdamW([parameter], lr=0.1, betas=(0.8, 0.999), weight_decay=weight_decay)
    for _ in range(7):
        g = torch.randn(50, dtype=torch.float64, generator=rng) * torch.logspace(-6, 2, 50, dtype=torch.float64)
        theta, velocity = AdamW(0.1, 0.8, weight_decay).step(theta, g, velocity)
        parameter.grad = g.clone()
        optimiser.step()
        torch.testing.assert_close(theta, parameter.detach(), rtol=1e-10, atol=1e-12)


def test_an_epoch_equals_a_plain_loop_with_a_module_and_an_optimiser():
    x, y, w = data(dtype=torch.float64)
    state = epoch(x, y, w, sgd=Sgd(0.05, 0.9, 1e-2), strategy="color_crop_flip")
    module, vector = by_hand()
    optimiser = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)
    rng = torch.Generator().manual_seed(0)
    for index in torch.randperm(len(x), generator=rng).tensor_split(3):
        x_B = augment.apply(augment.draw("color_crop_flip", len(index), rng), x[index])
        each = nn.functional.cross_entropy(module(x_B), y[index], reduction="none")
        optimiser.zero_grad()
        ((w[index] * each).sum() / w[index].sum()).backward()
        optimiser.step()
    torch.testing.assert_close(state.theta, vector(), rtol=1e-12, atol=1e-12)
    assert not torch.equal(state.theta, NET.init(0).double())


def test_same_seed_same_bits_without_a_graph_and_the_global_generator_untouched():
    x, y, w = data()
    before = torch.get_rng_state()
    runs = [epoch(x, y, w, strategy="crop_scale_color", sgd=Sgd(0.1, 0.9), seed=s) for s in (1, 1, 2)]
    assert torch.equal(runs[0].theta, runs[1].theta)
    assert not torch.equal(runs[0].theta, runs[2].theta)
    assert torch.equal(before, torch.get_rng_state())
    assert not any(part.requires_grad for part in (runs[0].theta, runs[0].velocity))


def test_samples_of_weight_zero_change_nothing_and_training_on_them_alone_is_refused():
    x, y, w = data()
    w[::3] = 0
    changed = x.clone()
    changed[::3] = torch.nan
    assert torch.equal(epoch(x, y, w).theta, epoch(changed, y, w).theta)
    with pytest.raises(InputError, match="positive weight"):
        epoch(x, y, torch.zeros_like(w))


def test_a_further_loss_sees_samples_of_weight_zero_too():
    x, y, w = data()
    w[::3] = 0
    seen = []

    def extra(logits_BK, index_B):
        seen.append(index_B)
        return 0.5 * logits_BK.square().mean()

    with_extra = epoch(x, y, w, extra=extra)
    assert torch.cat(seen).sort().values.tolist() == list(range(len(x)))
    assert not torch.equal(with_extra.theta, epoch(x, y, w, extra=lambda logits, index: 0 * logits.sum()).theta)
    nothing = torch.zeros_like(w)
    assert not torch.equal(epoch(x, y, nothing, extra=extra).theta, NET.init(0))


def test_weighted_loss_is_the_weighted_mean_of_cross_entropies():
    _, y, w = data(dtype=torch.float64)
    logits = torch.randn(len(y), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    each = nn.functional.cross_entropy(logits, y, reduction="none")
    torch.testing.assert_close(weighted_loss(logits, y, w), (w * each).sum() / w.sum(), rtol=1e-13, atol=0)
    torch.testing.assert_close(weighted_loss(logits, y, 7 * w), weighted_loss(logits, y, w), rtol=1e-13, atol=0)
    assert weighted_loss(logits, y, torch.zeros_like(w)) == 0


@pytest.mark.parametrize("n, size", [(10, 3), (12, 4), (5, 8), (1, 1), (7, 7)])
def test_batches_cover_everything_once_in_nearly_equal_parts(n, size):
    parts = list(batches(n, size, torch.Generator().manual_seed(0)))
    assert sorted(torch.cat(parts).tolist()) == list(range(n))
    lengths = [len(p) for p in parts]
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1
    assert len(parts) == -(-n // size)


def test_predict_and_accuracy_in_batches_equal_one_pass(monkeypatch):
    x, y, _ = data()
    theta, label = NET.init(0), y.argmax(1)
    logits, features = NET(theta, x), NET.features(theta, x)
    right = (logits.argmax(1) == label).double().mean().item()
    monkeypatch.setattr(training, "EVAL_BATCH", 5)
    got_logits, got_features = predict(NET, theta, x)
    torch.testing.assert_close(got_logits, logits)
    torch.testing.assert_close(got_features, features)
    assert not got_logits.requires_grad
    assert accuracy(NET, theta, x, label) == pytest.approx(right)
    assert accuracy(NET, theta, x, logits.argmax(1)) == 1.0


class GsamByHand:
    """Adaptive GSAM over a module's parameters, one at a time, as its authors state it."""

    def __init__(self, parameters, lr, rho, alpha):
        self.parameters, self.lr, self.rho, self.alpha = list(parameters), lr, rho, alpha

    def step(self, loss):
        clean = torch.autograd.grad(loss(), self.parameters)
        norm = torch.stack([(p.abs() * g).norm() for p, g in zip(self.parameters, clean)]).norm()
        before = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            for p, g in zip(self.parameters, clean):
                p += self.rho * p**2 * g / norm
        there = torch.autograd.grad(loss(), self.parameters)
        inner = sum((a * b).sum() for a, b in zip(clean, there))
        clean_norm, there_norm = (torch.stack([g.norm() for g in gs]).norm() for gs in (clean, there))
        cosine = inner / (clean_norm * there_norm)
        with torch.no_grad():
            for p, old, a, b in zip(self.parameters, before, clean, there):
                across = a - cosine * clean_norm * b / there_norm
                p.copy_(old - self.lr * (b - self.alpha * across))


@pytest.mark.parametrize("rho, alpha", [(0.01, 0.3), (0.5, 0.0), (0.5, 1.0)])
def test_gsam_step_equals_one_by_hand(rho, alpha):
    x, y, w = data(8, dtype=torch.float64)
    module, vector = by_hand()
    twin, state, rng = GsamByHand(module.parameters(), 0.05, rho, alpha), None, torch.Generator().manual_seed(0)
    for _ in range(3):
        state = epoch(x, y, w, state=state, sgd=Sgd(0.05, rho=rho, alpha=alpha), seed=rng)
        twin.step(lambda: weighted_loss(module(x), y, w))
    torch.testing.assert_close(state.theta, vector(), rtol=1e-10, atol=1e-12)
    assert not torch.equal(state.theta, epoch(x, y, w, sgd=Sgd(0.05)).theta)


@pytest.mark.parametrize("rule", [Sgd(0.05, 0.0, 1e-2), Sgd(0.05, 0.9, 1e-2), AdamW(0.01, 0.9, 1e-2), AdamW(0.01, 0.0)])
@pytest.mark.parametrize("cutmix", [0.0, 0.7])
def test_networks_stacked_or_on_threads_are_those_trained_alone(rule, cutmix):
    x, y, w = data(dtype=torch.float64)
    w[::4] = 0
    how = {"sgd": rule, "batch": 8, "strategy": "color_crop_flip_scale", "cutmix": cutmix}
    starts = [State(NET.init(r).double()) for r in range(3)]

    def generators():
        return [torch.Generator().manual_seed(r) for r in range(3)]

    def together(**more):
        states, rngs = starts, generators()
        for _ in range(2):
            states = train_epoch_together(NET, states, x, y, w, generators=rngs, **how, **more)
        return torch.stack([s.theta for s in states])

    alone = []
    for state, rng in zip(starts, generators()):
        for _ in range(2):
            state = train_epoch(NET, state, x, y, w, generator=rng, **how)
        alone.append(state.theta)
    assert torch.equal(together(), torch.stack(alone))
    assert torch.equal(together(workers=3), torch.stack(alone))
    # AdamW divides the rounding errors of gradients that are 0, of biases before a norm, by 1e-8
    close = {"rtol": 1e-11, "atol": 1e-12} if type(rule) is Sgd else {"rtol": 1e-7, "atol": 1e-9}
    torch.testing.assert_close(together(stacked=True), torch.stack(alone), **close)


def test_a_step_with_a_further_loss_is_not_compiled():
    with pytest.raises(InputError, match="further loss or an observer cannot be compiled"):
        epoch(*data(), extra=lambda logits, index: logits.sum(), compile=True)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_compiled_step_is_the_plain_one():
    x, y, w = data(16, dtype=torch.float64)
    sgd = Sgd(0.05, 0.9, 1e-2, rho=0.05, alpha=0.3)
    plain, compiled, again = (epoch(x, y, w, sgd=sgd, strategy="crop_flip", compile=c) for c in (False, True, True))
    torch.testing.assert_close(compiled.theta, plain.theta, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(compiled.velocity, plain.velocity, rtol=1e-9, atol=1e-12)
    assert torch.equal(compiled.theta, again.theta)
    (step,) = (f for f in training._compiled(NET, replace(sgd, lr=0.0), weighted_loss).made.values())
    assert step is not training._compiled(NET, replace(sgd, lr=0.0), weighted_loss).f


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_compiled_step_takes_grey_images_in_any_memory_layout():
    x, y, w = data(8)
    turned = x[:, 0].contiguous()[..., None].movedim(3, 1)  # the same images, with the strides of channels last
    assert turned.stride() != x.stride()
    first, second = (epoch(images, y, w, sgd=Sgd(0.05), compile=True).theta for images in (x, turned))
    assert torch.equal(first, second)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_compiled_step_in_bfloat16_goes_where_the_plain_one_goes():
    x, y, w = data(16)
    net = Network(NetworkSpec((1, 8, 8), 3, width=16, depth=2), bfloat16=True)

    def moved(net, compile):
        return epoch(x, y, w, net=net, sgd=Sgd(0.05, 0.9), compile=compile).theta - net.init(0)

    exact, plain, compiled = moved(replace(net, bfloat16=False), False), moved(net, False), moved(net, True)
    assert compiled.dtype == torch.float32
    for found in (plain, compiled):
        assert not torch.equal(found, exact)
        assert torch.nn.functional.cosine_similarity(found, exact, dim=0) > 0.98
