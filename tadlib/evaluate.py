"""Evaluation protocols: train fresh networks on the synthetic set alone, report accuracy on the true test set.

Legend: S synthetic images, K classes, C H W image, R networks, P flat parameters.

The accuracy reported is that of the last epoch; nothing is selected on the test set.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from scipy.special import stdtrit  # Student's t; scipy.stats takes half a second to import
from torch import Tensor

from tadlib.checks import require_fit, require_labels, require_refined
from tadlib.config import Protocol
from tadlib.distill.synthetic import Synthetic
from tadlib.nn.networks import Network
from tadlib.nn.training import Sgd, State, accuracy, train_epoch_together
from tadlib.rng import generator
from tadlib.state import Checkpoint, restored

# As in the authors' codes, which count epochs from 0 to 1000 inclusive and report the best evaluation on the test set,
# where ours reports the last epoch. DC, DSA and DM share one protocol (20 networks for each of 5 sets).
PROTOCOLS = {
    "mtt": Protocol(networks=5, epochs=1001, batch=256),
    "datm": Protocol(networks=5, epochs=1001, batch=128),
    "dm": Protocol(networks=20, epochs=1001, batch=256, lr=0.01),
}


@dataclass
class Loop:
    """Networks in training, all at the same epoch, and the generators of their batches."""

    states: list[State]
    generators: list[torch.Generator]
    epoch: int = 0


def start(net: Network, protocol: Protocol, *, seed: int, device: torch.device | str = "cpu") -> Loop:
    """Networks before their first epoch; the random numbers of each depend on ``seed`` and its number alone."""
    states = [State(net.init(seed, "evaluate", r)) for r in range(protocol.networks)]
    return Loop(states, [generator(seed, "evaluate", r, "train", device=device) for r in range(protocol.networks)])


def advance(loop: Loop, net: Network, synthetic: Synthetic, protocol: Protocol, *, workers: int = 1) -> None:
    """One epoch of every network, each with its own order of batches and its own augmentation.

    On a GPU they take one step together, stacked. On a CPU that gains nothing, since the convolutions of one fill a
    core; there ``workers`` threads train a network each, with the same bits as one after the other.
    """
    late = protocol.late(loop.epoch)
    if late and not protocol.late(loop.epoch - 1):
        loop.states = [State(s.theta) for s in loop.states]
    lr = (synthetic.lr if protocol.lr is None else protocol.lr) * (0.1 if late else 1.0)
    x_SCHW, w_S = synthetic.x, synthetic.x.new_ones(len(synthetic.x))
    sgd = Sgd(lr, protocol.momentum, protocol.weight_decay)
    how: dict[str, Any] = {"batch": protocol.batch, "strategy": protocol.augmentation, "compile": protocol.compile}
    how |= {"generators": loop.generators, "stacked": x_SCHW.is_cuda, "workers": workers}
    loop.states = train_epoch_together(net, loop.states, x_SCHW, synthetic.y, w_S, sgd=sgd, **how)
    loop.epoch += 1


def train_networks(
    net: Network,
    synthetic: Synthetic,
    protocol: Protocol,
    *,
    seed: int,
    workers: int = 1,
    resume: Checkpoint | None = None,
    on_epoch: Callable[[Loop], None] = lambda loop: None,
) -> Tensor:
    """Parameters (R, P) of all networks of ``protocol`` after training on the synthetic set.

    ``on_epoch`` is called after every epoch of all; ``resume`` is what :func:`tadlib.state.checkpoint` gave then.
    """
    require_refined(net, synthetic.x, synthetic.y, synthetic.x.new_ones(len(synthetic.x)))
    loop = start(net, protocol, seed=seed, device=synthetic.x.device)
    if resume is not None:
        loop = restored(loop, *resume, synthetic.x.device)
    while loop.epoch < protocol.epochs:
        advance(loop, net, synthetic, protocol, workers=workers)
        on_epoch(loop)
    return torch.stack([s.theta for s in loop.states])


def evaluate(
    net: Network, synthetic: Synthetic, x_test_NCHW: Tensor, y_test_N: Tensor, protocol: Protocol, **options
) -> list[float]:
    """Last-epoch test accuracy (fraction) of every network (R); ``options`` as in :func:`train_networks`."""
    require_fit(net, "test images", x_test_NCHW)
    require_labels("test labels", y_test_N, net.spec.n_classes, len(x_test_NCHW))
    theta_RP = train_networks(net, synthetic, protocol, **options)
    return [accuracy(net, theta_P, x_test_NCHW, y_test_N) for theta_P in theta_RP]


def mean_ci95(values: list[float]) -> tuple[float, float | None]:
    """Mean and half-width of the 95 % confidence interval (Student's t); None for a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    return mean, float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / len(values) ** 0.5
