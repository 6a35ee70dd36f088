"""Evaluation protocols: train fresh networks on the synthetic set alone, report accuracy on the true test set.

Legend: S synthetic images, K classes, C H W image, R networks, P flat parameters.

The accuracy reported is that of the last epoch; nothing is selected on the test set.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.special import stdtrit  # Student's t; scipy.stats takes half a second to import
from torch import Tensor

from tadlib.config import Protocol
from tadlib.distill.synthetic import Synthetic
from tadlib.nn.networks import Network
from tadlib.nn.training import Sgd, State, accuracy, train_epoch_together
from tadlib.rng import generator

# How the authors' codes train; ours reports the last epoch, where theirs keep the best evaluation on the test set.
# They count epochs from 0 to 1000 inclusive. DC, DSA and DM share one protocol (20 networks for each of 5 sets).
PROTOCOLS: dict[str, Protocol] = {
    "mtt": Protocol(networks=5, epochs=1001, batch=256),
    "datm": Protocol(networks=5, epochs=1001, batch=128),
    "dm": Protocol(networks=20, epochs=1001, batch=256, lr=0.01),
}


@dataclass
class Loop:
    """Networks in training, all at the same epoch; ``states`` and ``generators`` are all of it that changes."""

    states: list[State]
    generators: list[torch.Generator]
    epoch: int = 0

    def checkpoint(self) -> tuple[dict[str, Tensor], dict]:
        """All that changes, as tensors and JSON."""
        tensors = {f"theta/{r}": s.theta for r, s in enumerate(self.states)}
        tensors |= {f"velocity/{r}": s.velocity for r, s in enumerate(self.states) if s.velocity is not None}
        tensors |= {f"generator/{r}": g.get_state() for r, g in enumerate(self.generators)}
        return tensors, {"epoch": self.epoch}

    def restore(self, tensors: dict[str, Tensor], meta: dict) -> None:
        """The inverse of :meth:`checkpoint`; the next epoch gives the same bits as without interruption."""
        device = self.states[0].theta.device
        for r, g in enumerate(self.generators):
            velocity_P = tensors.get(f"velocity/{r}")
            velocity_P = None if velocity_P is None else velocity_P.to(device)
            self.states[r] = State(tensors[f"theta/{r}"].to(device), velocity_P)
            g.set_state(tensors[f"generator/{r}"].cpu())
        self.epoch = meta["epoch"]


def start(net: Network, protocol: Protocol, *, seed: int, device: torch.device | str = "cpu") -> Loop:
    """Networks before their first epoch; what each draws depends on ``seed`` and its number alone."""
    numbers = range(protocol.networks)
    return Loop(
        [State(net.init(seed, "evaluate", r)) for r in numbers],
        [generator(seed, "evaluate", r, "train", device=device) for r in numbers],
    )


def advance(loop: Loop, net: Network, synthetic: Synthetic, protocol: Protocol, *, workers: int = 1) -> None:
    """One epoch of every network, each with its own order of batches and its own augmentation.

    On a GPU they take one step together, stacked. On a CPU that gains nothing, since their convolutions fill a core
    anyway; there ``workers`` threads take a network each, with the same bits as one after the other.
    """
    late = protocol.late(loop.epoch)
    if late and not protocol.late(loop.epoch - 1):
        loop.states = [State(s.theta) for s in loop.states]
    lr = (synthetic.lr if protocol.lr is None else protocol.lr) * (0.1 if late else 1.0)
    loop.states = train_epoch_together(
        net,
        loop.states,
        synthetic.x,
        synthetic.y,
        synthetic.x.new_ones(len(synthetic.x)),
        sgd=Sgd(lr, protocol.momentum, protocol.weight_decay),
        batch=protocol.batch,
        strategy=protocol.augmentation,
        generators=loop.generators,
        compile=protocol.compile,
        stacked=synthetic.x.is_cuda,
        workers=workers,
    )
    loop.epoch += 1


def train_networks(
    net: Network,
    synthetic: Synthetic,
    protocol: Protocol,
    *,
    seed: int,
    workers: int = 1,
    resume: tuple[dict[str, Tensor], dict] | None = None,
    on_epoch: Callable[[Loop], None] = lambda loop: None,
) -> Tensor:
    """Parameters (R, P) of all networks of ``protocol`` after training on the synthetic set.

    ``on_epoch`` is called after every epoch of all of them, ``resume`` is what :meth:`Loop.checkpoint` gave then.
    """
    loop = start(net, protocol, seed=seed, device=synthetic.x.device)
    if resume is not None:
        loop.restore(*resume)
    while loop.epoch < protocol.epochs:
        advance(loop, net, synthetic, protocol, workers=workers)
        on_epoch(loop)
    return torch.stack([s.theta for s in loop.states])


def evaluate(
    net: Network,
    synthetic: Synthetic,
    x_test_NCHW: Tensor,
    y_test_N: Tensor,
    protocol: Protocol,
    **options,
) -> list[float]:
    """Last-epoch test accuracy (fraction) of every network (R); ``options`` as in :func:`train_networks`."""
    theta_RP = train_networks(net, synthetic, protocol, **options)
    return [accuracy(net, theta_P, x_test_NCHW, y_test_N) for theta_P in theta_RP]


def mean_ci95(values: list[float]) -> tuple[float, float | None]:
    """Mean and half-width of the 95 % confidence interval (Student's t); None for a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    half = float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / len(values) ** 0.5
    return mean, float(half)
