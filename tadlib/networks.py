"""Networks as pure functions of one flat parameter vector.

Legend: N samples, K classes, C H W image, D features, P flat parameters.

A trajectory, a student and a meta-gradient are all statements about points in parameter space, so a network is used
here as ``net(theta_P, x_NCHW) -> logits_NK``. The modules only describe the architecture; they hold no state.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tadlib.errors import known, require
from tadlib.rng import derive_seed


class InstanceNorm(nn.GroupNorm):
    """What the field calls "instance norm": GroupNorm with one channel per group and an affine map (MTT, DC)."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous())  # its forward-mode derivative asks for contiguous tangents


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "instance": InstanceNorm,
    "none": lambda channels: nn.Identity(),
}


class ConvNet(nn.Module):
    """``depth`` blocks of conv 3x3, norm, ReLU, average pool 2x2, then one linear layer (Gidaris & Komodakis 2018).

    The network of the DC/DSA/DM/MTT protocols: width 128, depth 3 for 32x32 images, depth 4 for 64x64.
    """

    def __init__(self, image_shape: tuple[int, int, int], n_classes: int, width: int, depth: int, norm: str):
        super().__init__()
        channels, height, side = image_shape
        require(
            min(height, side) >= 2**depth,
            f"depth must leave at least one pixel of a {height}x{side} image, got depth {depth}",
        )
        blocks: list[nn.Module] = []
        for _ in range(depth):
            blocks += [nn.Conv2d(channels, width, 3, padding=1), NORMS[norm](width), nn.ReLU(), nn.AvgPool2d(2)]
            channels, height, side = width, height // 2, side // 2
        self.body = nn.Sequential(*blocks, nn.Flatten())
        self.head = nn.Linear(channels * height * side, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@dataclass(frozen=True)
class NetworkSpec:
    """What a network is, without its parameters; part of the key of every artefact made with it."""

    image_shape: tuple[int, int, int]
    n_classes: int
    name: str = "convnet"
    width: int = 128
    depth: int = 3
    norm: str = "instance"

    def __post_init__(self):
        known("network", self.name, NETWORKS)
        known("norm", self.norm, NORMS)
        require(self.width >= 1, f"width must be at least 1, got {self.width}")
        require(self.depth >= 1, f"depth must be at least 1, got {self.depth}")


NETWORKS: dict[str, Callable[[NetworkSpec], nn.Module]] = {
    "convnet": lambda s: ConvNet(s.image_shape, s.n_classes, s.width, s.depth, s.norm),
}


@dataclass(frozen=True)
class Network:
    """A network as a function: ``net(theta_P, x_NCHW) -> logits_NK``.

    The body before the last linear layer gives the penultimate features. ``init`` draws PyTorch's default
    initialisation from a seed of its own.
    """

    spec: NetworkSpec
    device: torch.device = torch.device("cpu")
    module: nn.Module = field(init=False, repr=False, compare=False)
    names: tuple[str, ...] = field(init=False, repr=False)
    shapes: tuple[torch.Size, ...] = field(init=False, repr=False)
    sizes: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self):
        with torch.device("meta"):
            module = NETWORKS[self.spec.name](self.spec)
        require(
            not list(module.buffers()), f"network {self.spec.name!r} has buffers; its state must be parameters only"
        )
        parameters = dict(module.named_parameters())
        object.__setattr__(self, "device", torch.device(self.device))
        object.__setattr__(self, "module", module)
        object.__setattr__(self, "names", tuple(parameters))
        object.__setattr__(self, "shapes", tuple(p.shape for p in parameters.values()))
        object.__setattr__(self, "sizes", tuple(p.numel() for p in parameters.values()))

    @property
    def n_parameters(self) -> int:
        """P."""
        return sum(self.sizes)

    def init(self, seed: int, *names: str | int) -> Tensor:
        """Initial parameters (P,), a function of ``seed`` and ``names`` alone."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(seed, "network", *names))  # leaves those of GPUs alone
            module = NETWORKS[self.spec.name](self.spec)
        return torch.cat([p.detach().flatten() for p in module.parameters()]).to(self.device)

    def unflatten(self, theta_P: Tensor, prefix: str = "") -> dict[str, Tensor]:
        """Views of ``theta_P`` under the module's parameter names that start with ``prefix``."""
        parts = theta_P.split(self.sizes)
        return {
            name[len(prefix) :]: part.view(shape)
            for name, part, shape in zip(self.names, parts, self.shapes, strict=True)
            if name.startswith(prefix)
        }

    def __call__(self, theta_P: Tensor, x_NCHW: Tensor) -> Tensor:
        return functional_call(self.module, self.unflatten(theta_P), (x_NCHW,))

    def features(self, theta_P: Tensor, x_NCHW: Tensor) -> Tensor:
        """Penultimate features (N, D)."""
        return functional_call(self.module.get_submodule("body"), self.unflatten(theta_P, "body."), (x_NCHW,))

    def head(self, theta_P: Tensor, features_ND: Tensor) -> Tensor:
        """Logits (N, K) from penultimate features."""
        return functional_call(self.module.get_submodule("head"), self.unflatten(theta_P, "head."), (features_ND,))
