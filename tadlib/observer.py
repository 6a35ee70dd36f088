"""The observer of RDED and CIM: a network with batch norm, trained on the refined set by AdamW.

Legend: N samples, B batch, K classes, C H W image, P flat parameters, Q running statistics.

It scores images while a set is made, and labels every augmented batch while students train on that set
(:mod:`tadlib.students`): soft labels that are as good, or as wrong, as the labels that it was trained on.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tadlib.config import ObserverConfig, Protocol
from tadlib.nn import augment
from tadlib.nn.networks import Network
from tadlib.nn.training import batches, weighted_loss
from tadlib.rng import generator
from tadlib.state import Checkpoint, restored

SQUARE_DECAY, EPSILON = 0.999, 1e-8  # of AdamW, PyTorch's defaults


@dataclass
class State:
    """A network in training by AdamW: parameters (P,), moving averages of its gradient and of its square, random
    numbers, and counts."""

    theta: Tensor
    gradient: Tensor
    square: Tensor
    generator: torch.Generator
    step: int = 0
    epoch: int = 0


def fresh(theta_P: Tensor, random: torch.Generator) -> State:
    """The state before the first step."""
    return State(theta_P, torch.zeros_like(theta_P), torch.zeros_like(theta_P), random)


def decayed(net: Network) -> Tensor:
    """1 (P,) where weight decay applies: on matrices and kernels, not on biases, norms or running statistics."""
    parts = [torch.full((shape.numel(),), float(len(shape) > 1)) for shape in net.shapes.values()]
    return torch.cat(parts).to(net.device)


def step(
    net: Network,
    state: State,
    x_BCHW: Tensor,
    loss: Callable[[Tensor], Tensor],
    lr: float,
    config: ObserverConfig | Protocol,
    decayed_P: Tensor,
) -> None:
    """One step of AdamW (Loshchilov & Hutter 2019) on ``loss(logits_BK)``; its β₁ is ``config.momentum``."""
    with torch.enable_grad():
        leaf_P = state.theta.detach().requires_grad_()
        logits_BK, statistics_Q = net.learn(leaf_P, x_BCHW)
        (g_P,) = torch.autograd.grad(loss(logits_BK), leaf_P)
    state.step += 1
    state.gradient = torch.lerp(g_P, state.gradient, config.momentum)
    state.square = torch.lerp(g_P.square(), state.square, SQUARE_DECAY)
    mean_P = state.gradient / (1 - config.momentum**state.step)
    scale_P = (state.square / (1 - SQUARE_DECAY**state.step)).sqrt() + EPSILON
    theta_P = state.theta * (1 - lr * config.weight_decay * decayed_P) - lr * mean_P / scale_P
    theta_P[len(theta_P) - len(statistics_Q) :] = statistics_Q
    state.theta = theta_P


@dataclass(frozen=True)
class Observer:
    """A trained network: ``observer(x_NCHW) -> logits_NK``, by its running statistics."""

    net: Network
    theta: Tensor

    def __call__(self, x_NCHW: Tensor) -> Tensor:
        return self.net(self.theta, x_NCHW)


def train_observer(
    net: Network,
    x_NCHW: Tensor,
    y_NK: Tensor,
    w_N: Tensor,
    config: ObserverConfig,
    *,
    seed: int,
    resume: Checkpoint | None = None,
    on_epoch: Callable[[State], None] = lambda state: None,
) -> Observer:
    """An observer of a refined set (images, label distributions, weights); samples of weight 0 are not used.

    The learning rate falls to zero along a cosine (our choice: the authors load trained networks). ``on_epoch`` and
    ``resume`` as in :func:`tadlib.evaluate.train_networks`.
    """
    device = w_N.device
    state = fresh(net.init(seed, "observer"), generator(seed, "observer", "train", device=device))
    if resume is not None:
        state = restored(state, *resume, device)
    used, decayed_P = w_N.nonzero()[:, 0], decayed(net)
    while state.epoch < config.epochs:
        lr = config.lr * (1 + math.cos(math.pi * state.epoch / config.epochs)) / 2
        for index_B in batches(len(used), config.batch, state.generator):
            index_B = used[index_B]
            y_BK, w_B = y_NK[index_B], w_N[index_B]
            x_BCHW = augment.apply(augment.draw(config.augmentation, len(index_B), state.generator), x_NCHW[index_B])
            step(net, state, x_BCHW, partial(weighted_loss, y_BK=y_BK, w_B=w_B), lr, config, decayed_P)
        state.epoch += 1
        on_epoch(state)
    return Observer(net, state.theta)
