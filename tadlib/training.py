"""The one training loop: auditors, experts and evaluated networks all take these steps.

Legend: N samples, B batch, K classes, C H W image, D features, P flat parameters.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import grad_and_value

from tadlib import augment
from tadlib.errors import require
from tadlib.networks import Network

EVAL_BATCH = 1000  # images per forward pass when nothing is learned


@dataclass(frozen=True)
class Sgd:
    """SGD with momentum and weight decay, in PyTorch's convention (v ← mv + g + wd·θ; θ ← θ − lr·v)."""

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0

    def step(self, theta_P: Tensor, g_P: Tensor, velocity_P: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The next parameters and velocity; ``velocity_P`` None stands for zeros."""
        if self.weight_decay:
            g_P = g_P.add(theta_P, alpha=self.weight_decay)
        if self.momentum:
            g_P = velocity_P = g_P if velocity_P is None else velocity_P.mul(self.momentum).add_(g_P)
        return theta_P.sub(g_P, alpha=self.lr), velocity_P


def weighted_loss(logits_BK: Tensor, y_BK: Tensor, w_B: Tensor) -> Tensor:
    """Cross entropy against label distributions, averaged with weights."""
    return -(w_B * (y_BK * logits_BK.log_softmax(1)).sum(1)).sum() / w_B.sum().clamp_min(1e-12)


def batches(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """A random permutation of range(n) cut into batches of nearly equal size, none above ``size``."""
    order = torch.randperm(n, generator=generator, device=generator.device)
    yield from order.tensor_split(-(-n // size))


@dataclass(frozen=True)
class State:
    """A network in training: parameters (P,) and velocity (P,) or None."""

    theta: Tensor
    velocity: Tensor | None = None


def train_epoch(
    net: Network,
    state: State,
    x_NCHW: Tensor,
    y_NK: Tensor,
    w_N: Tensor,
    *,
    sgd: Sgd,
    batch: int,
    strategy: str,
    generator: torch.Generator,
    extra: Callable[[Tensor, Tensor], Tensor] | None = None,
    loss_fn: Callable[[Tensor, Tensor, Tensor], Tensor] = weighted_loss,
    on_step: Callable[[Tensor, Tensor, Tensor], None] | None = None,
) -> State:
    """One pass over the samples; those of weight 0 are left out unless ``extra`` or ``on_step`` needs them.

    Args:
        y_NK, w_N: label distributions and weights.
        strategy: DSA strategy string; one draw per batch.
        generator: draws the order and the augmentation, on the data's device.
        extra: ``extra(logits_BK, index_B)``, a further loss added to the weighted cross entropy.
        loss_fn: ``loss_fn(logits_BK, y_BK, w_B)``, a loss in place of the weighted cross entropy.
        on_step: called after every step as ``on_step(index_B, logits_BK, theta_P)``, with the logits before the step
            and the parameters after it.

    Raises:
        InputError: when no sample has a positive weight.
    """
    everyone = extra is not None or on_step is not None
    places = None if everyone or bool((w_N > 0).all()) else w_N.nonzero()[:, 0]

    def loss(theta, x_B, y_B, w_B, index_B):
        logits_BK = net(theta, x_B)
        value = loss_fn(logits_BK, y_B, w_B)
        return (value if extra is None else value + extra(logits_BK, index_B)), logits_BK

    step = grad_and_value(loss, has_aux=True)
    n = len(x_NCHW) if places is None else len(places)
    require(n >= 1, "training needs a sample of positive weight, got none")
    for index_B in batches(n, batch, generator):
        if places is not None:
            index_B = places[index_B]
        x_B = augment.apply(augment.draw(strategy, len(index_B), generator), x_NCHW[index_B])
        g_P, (_, logits_BK) = step(state.theta, x_B, y_NK[index_B], w_N[index_B], index_B)
        theta_P, velocity_P = sgd.step(state.theta, g_P, state.velocity)
        state = replace(state, theta=theta_P, velocity=velocity_P)
        if on_step is not None:
            on_step(index_B, logits_BK, theta_P)
    return state


@torch.no_grad()
def predict(net: Network, theta_P: Tensor, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, K) and penultimate features (N, D), in batches, without augmentation."""
    features = [net.features(theta_P, x_B) for x_B in x_NCHW.split(EVAL_BATCH)]
    features_ND = torch.cat(features)
    return net.head(theta_P, features_ND), features_ND


@torch.no_grad()
def accuracy(net: Network, theta_P: Tensor, x_NCHW: Tensor, y_N: Tensor) -> float:
    """Fraction of images whose largest logit is that of their label."""
    right = [
        (net(theta_P, x_B).argmax(1) == y_B).sum()
        for x_B, y_B in zip(x_NCHW.split(EVAL_BATCH), y_N.split(EVAL_BATCH), strict=True)
    ]
    return torch.stack(right).sum().item() / len(y_N)


def one_hot(y_N: Tensor, n_classes: int) -> Tensor:
    """Labels (N,) as float32 distributions (N, K)."""
    return torch.nn.functional.one_hot(y_N, n_classes).to(torch.float32)
