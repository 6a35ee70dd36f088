"""Networks as functions of one flat vector."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tadlib.errors import InputError
from tadlib.matching import Step, match
from tadlib.nn.networks import NORMS, Network, NetworkSpec

SMALL = NetworkSpec((2, 8, 8), 3, width=4, depth=2)


def convnet_by_hand(spec: NetworkSpec) -> nn.Sequential:
    """The ConvNet of the protocols, written out layer by layer; its parameters come in the same order."""
    channels, height, side = spec.image_shape
    layers: list[nn.Module] = []
    for _ in range(spec.depth):
        layers.append(nn.Conv2d(channels, spec.width, kernel_size=3, padding=1))
        if spec.norm == "instance":
            layers.append(nn.GroupNorm(spec.width, spec.width, affine=True))
        layers += [nn.ReLU(), nn.AvgPool2d(kernel_size=2, stride=2)]
        channels, height, side = spec.width, height // 2, side // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * side, spec.n_classes))


@pytest.mark.parametrize(
    "shape, n_classes, settings, expected",
    [
        ((3, 32, 32), 10, {"width": 128, "depth": 3}, 320_010),
        ((3, 32, 32), 100, {"width": 128, "depth": 3}, 504_420),
        ((3, 64, 64), 200, {"width": 128, "depth": 4}, 857_160),
        # the layouts of the DC code base for CIFAR-10
        ((3, 32, 32), 10, {"name": "resnet18"}, 11_173_962),
        ((3, 32, 32), 10, {"name": "vgg11"}, 9_231_114),
        ((3, 32, 32), 10, {"name": "alexnet"}, 1_872_202),
    ],
)
def test_networks_have_the_published_number_of_parameters(shape, n_classes, settings, expected):
    assert Network(NetworkSpec(shape, n_classes, **settings)).n_parameters == expected


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "alexnet"])
@pytest.mark.parametrize("side", [32, 64])
def test_other_networks_give_logits_from_features_and_gradients(name, side):
    net = Network(NetworkSpec((3, side, side), 10, name=name))
    theta_P = net.init(0)
    x_NCHW = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    features_ND = net.features(theta_P, x_NCHW)
    assert features_ND.ndim == 2
    torch.testing.assert_close(net.head(theta_P, features_ND), net(theta_P, x_NCHW))
    g_P = torch.func.grad(lambda theta: net(theta, x_NCHW).square().sum())(theta_P)
    assert g_P.isfinite().all()
    assert all(part.abs().max() > 0 for name, part in net.unflatten(g_P).items() if "weight" in name and part.ndim > 1)


@pytest.mark.parametrize("name, side", [("resnet18", 15), ("vgg11", 31), ("alexnet", 7)])
def test_a_network_refuses_images_that_are_too_small(name, side):
    with pytest.raises(InputError, match=f"{name} needs images of at least {side + 1}x{side + 1} pixels, got"):
        Network(NetworkSpec((3, side, side), 10, name=name))
    with pytest.raises(InputError, match="8x8 image, got depth 4"):
        Network(NetworkSpec((1, 8, 8), 2, depth=4))


def test_norms_are_taken_over_what_their_names_say():
    x_NCHW = 3 + 2 * torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = {"instance": (2, 8), "group": (2, 4), "layer": (2,)}
    for norm, sizes in expected.items():
        parts = x_NCHW.reshape(*sizes, -1)
        standardised = (parts - parts.mean(-1, keepdim=True)) / (
            parts.var(-1, correction=0, keepdim=True) + 1e-5
        ).sqrt()
        found = NORMS[norm]((8, 6, 6)).double()(x_NCHW)
        torch.testing.assert_close(found, standardised.view_as(x_NCHW), rtol=1e-10, atol=1e-10)
    assert torch.equal(NORMS["none"]((8, 6, 6))(x_NCHW), x_NCHW)
    assert set(NORMS) == {*expected, "none", "batch"}  # batch: tests/test_rded.py


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_other_norms_can_be_matched(norm):
    net = Network(NetworkSpec((1, 8, 8), 3, width=4, depth=2, norm=norm))
    theta_P, rng = net.init(0), torch.Generator().manual_seed(0)
    x, y = torch.randn(4, 1, 8, 8, generator=rng), torch.eye(3)[[0, 1, 2, 0]]
    steps = [Step(torch.arange(4))] * 2
    exact, unrolled = (
        match(net, theta_P, net.init(1), x, y, torch.tensor(0.1), steps, gradient=g) for g in ("exact", "unrolled")
    )
    torch.testing.assert_close(exact.grad_x, unrolled.grad_x, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("norm", ["instance", "none"])
def test_network_is_the_module_with_the_parameters_of_the_flat_vector(norm):
    spec = NetworkSpec((2, 9, 8), 3, width=4, depth=2, norm=norm)
    net, module = Network(spec), convnet_by_hand(spec)
    theta_P = net.init(0)
    nn.utils.vector_to_parameters(theta_P, module.parameters())
    x_NCHW = torch.randn(5, 2, 9, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(net(theta_P, x_NCHW), module(x_NCHW))
        torch.testing.assert_close(net.features(theta_P, x_NCHW), module[:-1](x_NCHW))
        torch.testing.assert_close(net.head(theta_P, net.features(theta_P, x_NCHW)), module(x_NCHW))


@pytest.mark.parametrize("norm", ["instance", "group", "none"])
def test_bfloat16_rounds_what_layers_multiply_and_nothing_else(norm):
    net = Network(NetworkSpec((3, 16, 16), 10, width=16, depth=2, norm=norm))
    rounded = replace(net, bfloat16=True)
    x, theta = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)), net.init(0)
    assert torch.equal(rounded.init(0), theta)
    assert rounded != net
    plain, logits = net(theta, x), rounded(theta, x)
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, plain)
    torch.testing.assert_close(logits, plain, rtol=0.05, atol=0.03)

    def slope(of):
        return torch.func.grad(lambda t: torch.nn.functional.cross_entropy(of(t, x), torch.arange(8)))(theta)

    assert slope(rounded).dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(slope(net), slope(rounded), dim=0) > 0.98


def test_unflatten_gives_views_of_the_vector_that_cover_it():
    net = Network(SMALL)
    theta_P = torch.arange(net.n_parameters, dtype=torch.float32)
    parts = net.unflatten(theta_P)
    assert torch.equal(torch.cat([p.flatten() for p in parts.values()]), theta_P)
    assert all(p.untyped_storage().data_ptr() == theta_P.untyped_storage().data_ptr() for p in parts.values())
    assert set(net.unflatten(theta_P, "head.")) == {"weight", "bias"}


def test_init_depends_on_seed_and_names_alone():
    net, before = Network(SMALL), torch.get_rng_state()
    theta_P = net.init(3, "expert", 1)
    assert torch.equal(theta_P, net.init(3, "expert", 1))
    for other in (net.init(4, "expert", 1), net.init(3, "expert", 2), net.init(3, "auditor", 1)):
        assert not torch.equal(theta_P, other)
    assert not theta_P.requires_grad
    assert torch.equal(torch.get_rng_state(), before)


def test_init_draws_pytorchs_default_initialisation():
    theta_P = Network(SMALL).init(0)
    parts = Network(SMALL).unflatten(theta_P)
    assert torch.equal(parts["body.1.weight"], torch.ones(4))
    assert torch.equal(parts["body.1.bias"], torch.zeros(4))
    bound = 1 / (2 * 3 * 3) ** 0.5  # kaiming_uniform with a = sqrt(5): uniform within 1 / sqrt(fan in)
    assert 0.8 * bound < parts["body.0.weight"].abs().max() <= bound


@pytest.mark.parametrize(
    "change, message",
    [
        ({"name": "resnet"}, "unknown network 'resnet'"),
        ({"norm": "local"}, "unknown norm 'local'"),
        ({"norm": "group", "width": 6}, "width must be a multiple of 4 for group norm, .* got 6"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
    ],
)
def test_bad_specs_are_named(change, message):
    with pytest.raises(InputError, match=message):
        NetworkSpec(**{"image_shape": (1, 8, 8), "n_classes": 2} | change)
