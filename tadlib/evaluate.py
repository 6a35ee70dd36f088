"""Evaluation protocols: train fresh networks on the synthetic set alone, report accuracy on the true test set.

Legend: S synthetic images, K classes, C H W image, R networks.

The accuracy reported is that of the last epoch; nothing is selected on the test set.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from scipy import stats
from torch import Tensor

from tadlib.distill.synthetic import Synthetic
from tadlib.errors import require
from tadlib.networks import Network
from tadlib.rng import generator
from tadlib.training import Sgd, State, accuracy, train_epoch


@dataclass(frozen=True)
class Protocol:
    """How networks are trained for evaluation. Defaults: MTT's (and FTD's, TESLA's), five networks.

    The learning rate is the learned one, times .1 after half the epochs, where momentum starts anew, as in MTT's
    code.
    """

    networks: int = 5
    epochs: int = 1000
    batch: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augmentation: str = "color_crop_cutout_flip_scale_rotate"

    def __post_init__(self):
        require(self.networks >= 1, f"networks must be at least 1, got {self.networks}")
        require(self.epochs >= 2, f"epochs must be at least 2, got {self.epochs}")


def train_network(net: Network, synthetic: Synthetic, protocol: Protocol, *, seed: int, network: int) -> Tensor:
    """Parameters (P,) of network number ``network`` after training on the synthetic set."""
    random = generator(seed, "evaluate", network, "train", device=synthetic.x.device)
    weights = synthetic.x.new_ones(len(synthetic.x))
    state = State(net.init(seed, "evaluate", network))
    for epoch in range(protocol.epochs):
        late = epoch > protocol.epochs // 2
        if epoch == protocol.epochs // 2 + 1:
            state = State(state.theta)
        state = train_epoch(
            net,
            state,
            synthetic.x,
            synthetic.y,
            weights,
            sgd=Sgd(synthetic.lr * (0.1 if late else 1.0), protocol.momentum, protocol.weight_decay),
            batch=protocol.batch,
            strategy=protocol.augmentation,
            generator=random,
        )
    return state.theta


def evaluate(
    net: Network,
    synthetic: Synthetic,
    x_test_NCHW: Tensor,
    y_test_N: Tensor,
    protocol: Protocol,
    *,
    seed: int,
    done: tuple[float, ...] = (),
    on_network: Callable[[list[float]], None] = lambda accuracies: None,
) -> list[float]:
    """Last-epoch test accuracy (fraction) of every network (R).

    ``done`` are accuracies of the first networks, known from an interrupted run.
    """
    accuracies = list(done)
    while len(accuracies) < protocol.networks:
        theta_P = train_network(net, synthetic, protocol, seed=seed, network=len(accuracies))
        accuracies.append(accuracy(net, theta_P, x_test_NCHW, y_test_N))
        on_network(accuracies)
    return accuracies


def mean_ci95(values: list[float]) -> tuple[float, float | None]:
    """Mean and half-width of the 95 % confidence interval (Student's t); None for a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return mean, float(half)
