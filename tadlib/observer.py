"""The observer of RDED and CIM: a network with batch norm, trained on the refined set by AdamW.

Legend: N samples, B batch, K classes, C H W image, P flat parameters.

It scores images while a set is made, and labels every augmented batch while students train on that set
(:mod:`tadlib.students`): soft labels that are as good, or as wrong, as the labels that it was trained on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tadlib.config import ObserverConfig
from tadlib.errors import require
from tadlib.nn.networks import Network
from tadlib.nn.training import AdamW, State, augmented, batches, gradient, weighted_loss
from tadlib.rng import generator
from tadlib.state import Checkpoint, restored


def decayed(net: Network) -> Tensor:
    """1 (P,) where weight decay applies: on matrices and kernels, not on biases, norms or running statistics."""
    parts = [torch.full((shape.numel(),), float(len(shape) > 1)) for shape in net.shapes.values()]
    return torch.cat(parts).to(net.device)


def step(net: Network, state: State, x_BCHW: Tensor, loss: Callable[[Tensor], Tensor], rule: AdamW) -> State:
    """One step on ``loss(logits_BK)``, by the statistics of the batch; running statistics are brought up to date."""
    statistics: list[Tensor] = []

    def of_batch(theta_P: Tensor) -> Tensor:
        logits_BK, statistics_Q = net.learn(theta_P, x_BCHW)
        statistics.append(statistics_Q)
        return loss(logits_BK)

    theta_P, velocity = rule.step(state.theta, gradient(of_batch, state.theta), state.velocity)
    theta_P[len(theta_P) - net.n_statistics :] = statistics[0]
    return State(theta_P, velocity)


@dataclass(frozen=True)
class Observer:
    """A trained network: ``observer(x_NCHW) -> logits_NK``, by its running statistics."""

    net: Network
    theta: Tensor

    def __call__(self, x_NCHW: Tensor) -> Tensor:
        return self.net(self.theta, x_NCHW)


@dataclass
class Loop:
    """An observer in training."""

    state: State
    generator: torch.Generator
    epoch: int = 0


def train_observer(
    net: Network,
    x_NCHW: Tensor,
    y_NK: Tensor,
    w_N: Tensor,
    config: ObserverConfig,
    *,
    seed: int,
    resume: Checkpoint | None = None,
    on_epoch: Callable[[Loop], None] = lambda loop: None,
) -> Observer:
    """An observer of a refined set (images, label distributions, weights); samples of weight 0 are not used.

    ``on_epoch`` is called after every epoch; ``resume`` is what :func:`tadlib.state.checkpoint` gave then.
    """
    random = generator(seed, "observer", "train", device=w_N.device)
    loop = restored(Loop(State(net.init(seed, "observer")), random), resume, w_N.device)
    used, decay_P = w_N.nonzero()[:, 0], config.weight_decay * decayed(net)
    while loop.epoch < config.epochs:
        rule = AdamW(config.lr * config.decay(loop.epoch), config.momentum, decay_P)
        for index_B in batches(len(used), config.batch, random):
            how = config.augmentation, config.cutmix, random
            x_B, y_B, w_B = augmented(used[index_B], x_NCHW, y_NK, w_N, *how)
            loop.state = step(net, loop.state, x_B, partial(weighted_loss, y_BK=y_B, w_B=w_B), rule)
        loop.epoch += 1
        on_epoch(loop)
    finite = bool(loop.state.theta.isfinite().all())
    require(finite, "the observer diverged: its parameters are not finite; lower lr")
    return Observer(net, loop.state.theta)
