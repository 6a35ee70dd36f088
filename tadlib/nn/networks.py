"""Networks as pure functions of one flat parameter vector.

Legend: N samples, K classes, C H W image, D features, P flat parameters.

Trajectories, students and meta-gradients live in parameter space, so a network is used as a function
``net(theta_P, x_NCHW) -> logits_NK``. The modules only describe the architecture; they hold no state. The running
statistics of batch norm are the last entries of the vector; :meth:`Network.learn` brings them up to date.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import conv2d

from tadlib.errors import known, require
from tadlib.nn.speed import channels_last
from tadlib.rng import derive_seed


class ContiguousGroupNorm(nn.GroupNorm):
    """GroupNorm in one memory layout, whatever the preceding convolution chose: other layouts round differently."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous())


class HalvingPool(nn.AvgPool2d):
    """2x2 average pooling, faster than PyTorch's in two cases.

    On a GPU its gradient is slow, and a mean over two axes takes its place. On a CPU it is slow in the plain memory
    layout, where a convolution gives the same bits (``benchmarks/evaluation.py``).
    """

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if x.is_cuda and height % 2 == 0 and width % 2 == 0:
            return halved(x)
        plain = x.device.type == "cpu" and x.dtype == torch.float32 and x.is_contiguous()
        if plain and width >= 8 and not torch.is_autocast_enabled("cpu"):
            return conv2d(x, x.new_full((x.shape[1], 1, 2, 2), 0.25), stride=2, groups=x.shape[1])
        return super().forward(x)


def halved(x_NCHW: Tensor) -> Tensor:
    """Means of 2x2 pixels; the sides are even."""
    return x_NCHW.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5))


Shape = tuple[int, int, int]  # C H W


class BatchNorm(nn.BatchNorm2d):
    """Batch norm whose only state is the running mean and variance."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.num_batches_tracked = None


# What the DC code base calls instance, group and layer norm; batch norm is for networks trained by tadlib.students.
NORMS: dict[str, Callable[[Shape], nn.Module]] = {
    "instance": lambda shape: ContiguousGroupNorm(shape[0], shape[0]),
    "group": lambda shape: ContiguousGroupNorm(4, shape[0]),
    "layer": lambda shape: nn.LayerNorm(list(shape)),  # scale and shift of every pixel
    "none": lambda shape: nn.Identity(),
    "batch": lambda shape: BatchNorm(shape[0]),
}
IMAGENET_SIDE = 128  # pixels from which on a ResNet starts as for ImageNet
MOST_FEATURES = 16384  # of a ConvNet: of all images they are held at once, and TAD's covariance is their square


class Stack:
    """Layers in a row, with the shape of their output."""

    def __init__(self, spec: "NetworkSpec"):
        self.spec, self.shape = spec, spec.image_shape
        self.layers: list[nn.Module] = []

    def conv(self, channels: int, kernel: int = 3, *, norm: bool = True, bias: bool = True) -> None:
        """Convolution that keeps the side, norm, ReLU."""
        c, height, width = self.shape
        self.shape = (channels, height, width)
        self.layers.append(nn.Conv2d(c, channels, kernel, padding=kernel // 2, bias=bias))
        self.layers += [NORMS[self.spec.norm](self.shape)] if norm else []
        self.layers.append(nn.ReLU())

    def pool(self, layer: type[nn.Module]) -> None:
        """Halve the sides; an odd one loses its last row."""
        c, height, width = self.shape
        self.shape = (c, height // 2, width // 2)
        self.layers.append(layer(2))

    def classifier(self) -> "Classifier":
        """These layers and a linear one."""
        return Classifier(nn.Sequential(*self.layers, nn.Flatten()), math.prod(self.shape), self.spec.n_classes)


class Classifier(nn.Module):
    """A body whose output is the features (N, D), and one linear layer, the head."""

    def __init__(self, body: nn.Module, n_features: int, n_classes: int):
        super().__init__()
        self.body = body
        self.head = nn.Linear(n_features, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def convnet(spec: "NetworkSpec") -> Classifier:
    """``depth`` blocks of conv 3x3, norm, ReLU, average pool 2x2, then one linear layer (Gidaris & Komodakis 2018).

    The network of the DC/DSA/DM/MTT protocols: width 128, depth 3 for 32x32 images, depth 4 for 64x64.
    """
    height, width = spec.image_shape[1:]
    left = f"depth must leave at least one pixel of a {height}x{width} image"
    require(min(height, width) >= 2**spec.depth, f"{left}, got depth {spec.depth}")
    features = spec.width * (height >> spec.depth) * (width >> spec.depth)
    left = f"depth must leave at most {MOST_FEATURES} features of a {height}x{width} image (a block leaves a quarter)"
    require(features <= MOST_FEATURES, f"{left}, got depth {spec.depth}, which leaves {features} at width {spec.width}")
    stack = Stack(spec)
    for _ in range(spec.depth):
        stack.conv(spec.width)
        stack.pool(HalvingPool)
    return stack.classifier()


def alexnet(spec: "NetworkSpec") -> Classifier:
    """AlexNet as in the DC code base: no norm, one linear layer, fixed width."""
    _require_side(spec, 8)
    stack = Stack(spec)
    for channels, kernel, pooled in ((128, 5, True), (192, 5, True), (256, 3, False), (192, 3, False), (192, 3, True)):
        stack.conv(channels, kernel, norm=False)
        if pooled:
            stack.pool(nn.MaxPool2d)
    return stack.classifier()


def vgg11(spec: "NetworkSpec") -> Classifier:
    """VGG-11 (Simonyan & Zisserman 2015) as in the DC code base: a norm after every convolution."""
    _require_side(spec, 32)
    stack = Stack(spec)
    for channels in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
        for c in channels:
            stack.conv(c)
        stack.pool(nn.MaxPool2d)
    return stack.classifier()


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2016, basic block)."""

    def __init__(self, shape: Shape, channels: int, stride: int, norm: str):
        super().__init__()
        c, height, width = shape
        self.shape: Shape = (channels, -(-height // stride), -(-width // stride))
        self.inside = nn.Sequential(
            nn.Conv2d(c, channels, 3, stride, padding=1, bias=False),
            NORMS[norm](self.shape),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            NORMS[norm](self.shape),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or c != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(c, channels, 1, stride, bias=False), NORMS[norm](self.shape))

    def forward(self, x: Tensor) -> Tensor:
        return (self.inside(x) + self.shortcut(x)).relu()


def resnet18(spec: "NetworkSpec") -> Classifier:
    """ResNet-18 (He et al. 2016) as in the DC code base: 3x3 stem without pooling, mean over the last map.

    From 128 pixels on it has the stem for ImageNet: 7x7 at stride 2, then max pooling 3x3 at stride 2.
    """
    _require_side(spec, 16)  # below, the last map is one pixel, whose instance norm is zero
    stack = Stack(spec)
    if min(spec.image_shape[1:]) < IMAGENET_SIDE:
        stack.conv(64, bias=False)
    else:
        c, height, width = spec.image_shape
        half, stack.shape = (64, -(-height // 2), -(-width // 2)), (64, -(-height // 4), -(-width // 4))
        stack.layers += [nn.Conv2d(c, 64, 7, 2, padding=3, bias=False), NORMS[spec.norm](half), nn.ReLU()]
        stack.layers.append(nn.MaxPool2d(3, 2, padding=1))
    for channels, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        for s in (stride, 1):
            block = ResidualBlock(stack.shape, channels, s, spec.norm)
            stack.layers.append(block)
            stack.shape = block.shape
    stack.layers.append(nn.AdaptiveAvgPool2d(1))
    stack.shape = (512, 1, 1)
    return stack.classifier()


def _require_side(spec: "NetworkSpec", least: int) -> None:
    height, width = spec.image_shape[1:]
    needs = f"{spec.name} needs images of at least {least}x{least} pixels"
    require(min(height, width) >= least, f"{needs}, got {height}x{width}")


@dataclass(frozen=True)
class NetworkSpec:
    """The architecture of a network; part of the key of every artefact made with it."""

    image_shape: Shape
    n_classes: int
    name: str = "convnet"
    width: int = 128  # of a ConvNet; those of the others are fixed
    depth: int = 3  # of a ConvNet
    norm: str = "instance"  # AlexNet has none

    def __post_init__(self):
        known("network", self.name, NETWORKS)
        known("norm", self.norm, NORMS)
        require(self.n_classes >= 1, f"n_classes must be at least 1, got {self.n_classes}")
        require(self.width >= 1, f"width must be at least 1, got {self.width}")
        require(self.depth >= 1, f"depth must be at least 1, got {self.depth}")
        fits = self.norm != "group" or self.name != "convnet" or self.width % 4 == 0
        require(fits, f"width must be a multiple of 4 for group norm, which has 4 groups, got {self.width}")


NETWORKS = {"convnet": convnet, "resnet18": resnet18, "vgg11": vgg11, "alexnet": alexnet}


@dataclass(frozen=True)
class Network:
    """A network as a function: ``net(theta_P, x_NCHW) -> logits_NK``.

    ``init`` draws PyTorch's default initialisation from a seed of its own. With ``bfloat16`` convolutions and linear
    layers multiply in bfloat16 (:class:`torch.autocast`); parameters and logits keep their precision.
    """

    spec: NetworkSpec
    device: torch.device = torch.device("cpu")
    bfloat16: bool = False
    module: nn.Module = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        with torch.device("meta"):
            module = NETWORKS[self.spec.name](self.spec).eval()
        object.__setattr__(self, "device", torch.device(self.device))
        object.__setattr__(self, "module", module)

    @cached_property
    def shapes(self) -> dict[str, torch.Size]:
        """Shapes of the parameters by name, then of running statistics, in the order of the flat vector."""
        return {name: p.shape for name, p in (*self.module.named_parameters(), *self.module.named_buffers())}

    @property
    def n_parameters(self) -> int:
        """P, running statistics included."""
        return sum(shape.numel() for shape in self.shapes.values())

    @cached_property
    def n_statistics(self) -> int:
        """How many of the last entries of the flat vector are running statistics; 0 without batch norm."""
        return sum(b.numel() for b in self.module.buffers())

    def init(self, seed: int, *names: str | int) -> Tensor:
        """Initial parameters (P,), a function of ``seed`` and ``names`` alone."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(seed, "network", *names))  # leaves those of GPUs alone
            module = NETWORKS[self.spec.name](self.spec)
        return nn.utils.parameters_to_vector([*module.parameters(), *module.buffers()]).detach().to(self.device)

    def unflatten(self, theta_P: Tensor, prefix: str = "") -> dict[str, Tensor]:
        """Views of ``theta_P`` under the names of the parameters that start with ``prefix``, without it."""
        sizes = [shape.numel() for shape in self.shapes.values()]
        parts = zip(self.shapes.items(), theta_P.split(sizes), strict=True)
        return {name[len(prefix) :]: part.view(shape) for (name, shape), part in parts if name.startswith(prefix)}

    def _laid_out(self, x_NCHW: Tensor) -> Tensor:
        """The images as batch norm on a CPU is fastest (``benchmarks/large_images.py --step``)."""
        return channels_last(x_NCHW) if self.n_statistics and x_NCHW.device.type == "cpu" else x_NCHW

    def __call__(self, theta_P: Tensor, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self._laid_out(x_NCHW)
        if not self.bfloat16:
            return functional_call(self.module, self.unflatten(theta_P), (x_NCHW,))
        with torch.autocast(x_NCHW.device.type, torch.bfloat16):
            return functional_call(self.module, self.unflatten(theta_P), (x_NCHW,)).to(theta_P.dtype)

    def learn(self, theta_P: Tensor, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, K) by the statistics of the batch itself, and the running statistics after it (Q,)."""
        x_NCHW, named = self._laid_out(x_NCHW), self.unflatten(theta_P)
        statistics = {name: named[name].detach().clone() for name, _ in self.module.named_buffers()}
        self.module.train()
        try:
            logits_NK = functional_call(self.module, named | statistics, (x_NCHW,))  # updates the statistics
        finally:
            self.module.eval()
        return logits_NK, torch.cat([theta_P.new_empty(0), *(part.flatten() for part in statistics.values())])

    def inner(self, theta_P: Tensor, x_NCHW: Tensor, share: float) -> Tensor:
        """The output of the first ``share`` of the layers before the head, one at least."""
        body = self.module.get_submodule("body")
        assert isinstance(body, nn.Sequential)
        layers = body[: max(1, round(share * len(body)))]
        named = self.unflatten(theta_P, "body.")
        own = {name for name, _ in (*layers.named_parameters(), *layers.named_buffers())}
        return functional_call(layers, {name: named[name] for name in own}, (x_NCHW,))

    def features(self, theta_P: Tensor, x_NCHW: Tensor) -> Tensor:
        """Penultimate features (N, D)."""
        return functional_call(self.module.get_submodule("body"), self.unflatten(theta_P, "body."), (x_NCHW,))

    def head(self, theta_P: Tensor, features_ND: Tensor) -> Tensor:
        """Logits (N, K) from penultimate features."""
        return functional_call(self.module.get_submodule("head"), self.unflatten(theta_P, "head."), (features_ND,))
