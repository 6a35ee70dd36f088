"""Networks as functions of one flat vector."""

import pytest
import torch
from torch import nn

from tadlib.errors import InputError
from tadlib.networks import Network, NetworkSpec

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
    "shape, n_classes, depth, expected",
    [((3, 32, 32), 10, 3, 320_010), ((3, 32, 32), 100, 3, 504_420), ((3, 64, 64), 200, 4, 857_160)],
    ids=["cifar10", "cifar100", "tiny-imagenet"],
)
def test_convnet_has_the_published_number_of_parameters(shape, n_classes, depth, expected):
    assert Network(NetworkSpec(shape, n_classes, width=128, depth=depth)).n_parameters == expected


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


def test_unflatten_gives_views_of_the_vector_that_cover_it():
    net = Network(SMALL)
    theta_P = torch.arange(net.n_parameters, dtype=torch.float32)
    parts = net.unflatten(theta_P)
    assert torch.equal(torch.cat([p.flatten() for p in parts.values()]), theta_P)
    assert all(p.untyped_storage().data_ptr() == theta_P.untyped_storage().data_ptr() for p in parts.values())
    assert set(net.unflatten(theta_P, "head.")) == {"weight", "bias"}


def test_init_depends_on_seed_and_names_alone():
    net = Network(SMALL)
    theta_P = net.init(3, "expert", 1)
    assert torch.equal(theta_P, net.init(3, "expert", 1))
    for other in (net.init(4, "expert", 1), net.init(3, "expert", 2), net.init(3, "auditor", 1)):
        assert not torch.equal(theta_P, other)
    assert not theta_P.requires_grad


def test_init_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    Network(SMALL).init(0)
    assert torch.equal(torch.rand(3), expected)


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
        ({"norm": "batch"}, "unknown norm 'batch'"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
    ],
)
def test_bad_specs_are_named(change, message):
    with pytest.raises(InputError, match=message):
        NetworkSpec(**{"image_shape": (1, 8, 8), "n_classes": 2} | change)


def test_a_network_too_deep_for_its_images_is_refused():
    with pytest.raises(InputError, match="8x8 image, got depth 4"):
        Network(NetworkSpec((1, 8, 8), 2, depth=4))
