"""Evaluation protocols: train fresh networks on the synthetic set alone, report accuracy on the true test set.

Legend: S synthetic images, K classes, C H W image, R networks, P flat parameters.

The accuracy reported is that of the last epoch; nothing is selected on the test set. Two controls tell what the images
themselves contribute: the set with hard labels only, and random real images with its labels and its recipe.
"""

import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from scipy.special import stdtrit  # Student's t; scipy.stats takes half a second to import
from torch import Tensor

from tadlib import students
from tadlib.checks import require_distributions, require_fit, require_labels
from tadlib.config import PUBLISHED, Protocol
from tadlib.distill.synthetic import Real, Synthetic
from tadlib.errors import require
from tadlib.nn.networks import Network
from tadlib.nn.training import OPTIMISERS, State, accuracy, train_epoch_together
from tadlib.observer import Observer
from tadlib.rng import generator
from tadlib.state import Checkpoint, restored

PROTOCOLS = {name: Protocol(**settings) for name, settings in PUBLISHED.items()}


@dataclass
class Loop:
    """Networks in training, all at the same epoch, the generators of their batches, and the accuracies (fractions) of
    networks trained on the sets before."""

    states: list[State]
    generators: list[torch.Generator]
    epoch: int = 0
    done: list[list[float]] = field(default_factory=list)


def start(net: Network, protocol: Protocol, *, seed: int, device: torch.device | str = "cpu") -> Loop:
    """Networks before their first epoch; the random numbers of each depend on ``seed`` and its number alone."""
    states = [State(net.init(seed, "evaluate", r)) for r in range(protocol.networks)]
    return Loop(states, [generator(seed, "evaluate", r, "train", device=device) for r in range(protocol.networks)])


def advance(
    loop: Loop,
    net: Network,
    synthetic: Synthetic,
    protocol: Protocol,
    *,
    workers: int = 1,
    teacher: Observer | None = None,
    factor: int = 1,
) -> None:
    """One epoch of every network, each with its own order of batches and its own augmentation.

    On a GPU they take one step together, stacked. On a CPU that gains nothing, since the convolutions of one fill a
    core; there ``workers`` threads train a network each, with the same bits as one after the other. Students
    (:mod:`tadlib.students`) are trained one after the other.
    """
    decay = protocol.decay(loop.epoch)
    if protocol.schedule == "half" and decay != protocol.decay(max(loop.epoch - 1, 0)):
        loop.states = [State(s.theta) for s in loop.states]
    lr = (synthetic.lr if protocol.lr is None else protocol.lr) * decay
    x_SCHW, w_S = synthetic.x, synthetic.x.new_ones(len(synthetic.x))
    if protocol.recipe != "dsa":
        one = partial(students.train_epoch, net, lr=lr, teacher=teacher, factor=factor)
        each = zip(loop.states, loop.generators, strict=True)
        loop.states = [one(state, synthetic, protocol, generator=random) for state, random in each]
    else:
        rule = OPTIMISERS[protocol.optimiser](lr, protocol.momentum, protocol.weight_decay)
        how: dict[str, Any] = {"batch": protocol.batch, "strategy": protocol.augmentation, "compile": protocol.compile}
        how |= {"generators": loop.generators, "stacked": x_SCHW.is_cuda, "workers": workers, "cutmix": protocol.cutmix}
        loop.states = train_epoch_together(net, loop.states, x_SCHW, synthetic.y, w_S, sgd=rule, **how)
    loop.epoch += 1


def train_networks(
    net: Network,
    synthetic: Synthetic,
    protocol: Protocol,
    *,
    seed: int,
    loop: Loop | None = None,
    on_epoch: Callable[[Loop], None] = lambda loop: None,
    **options: Any,
) -> Tensor:
    """Parameters (R, P) of all networks of ``protocol`` after training on the synthetic set, its parts enlarged.

    ``on_epoch`` is called after every epoch of all; ``loop`` is where training goes on, by default at its start.
    ``options``: ``workers``, and for the recipes of RDED and CIM ``teacher`` and ``factor``, patches along the side of
    an image.
    """
    require_fit(net, "images", synthetic.x)
    require_distributions("labels", synthetic.y, net.spec.n_classes, len(synthetic.x))
    loop, synthetic = loop or start(net, protocol, seed=seed, device=synthetic.x.device), synthetic.decoded()
    while loop.epoch < protocol.epochs:
        advance(loop, net, synthetic, protocol, **options)
        on_epoch(loop)
    return torch.stack([s.theta for s in loop.states])


def evaluate(
    net: Network, synthetic: Synthetic, x_test_NCHW: Tensor, y_test_N: Tensor, protocol: Protocol, **options: Any
) -> list[float]:
    """Last-epoch test accuracy (fraction) of every network (R); ``options`` as in :func:`evaluate_each`."""
    return evaluate_each(net, [(synthetic, protocol)], x_test_NCHW, y_test_N, **options)[0]


def evaluate_each(
    net: Network,
    sets: Sequence[tuple[Synthetic, Protocol]],
    x_test_NCHW: Tensor,
    y_test_N: Tensor,
    *,
    seed: int,
    resume: Checkpoint | None = None,
    **options: Any,
) -> list[list[float]]:
    """Last-epoch test accuracies (fractions) of the networks (R) of every set under its protocol, one after the other.

    Networks of all sets start alike. ``options`` as in :func:`train_networks`; ``resume`` is what
    :func:`tadlib.state.checkpoint` gave for the loop after an epoch.
    """
    require_fit(net, "test images", x_test_NCHW)
    require_labels("test labels", y_test_N, net.spec.n_classes, len(x_test_NCHW))

    def fresh() -> Loop:
        return start(net, sets[0][1], seed=seed, device=x_test_NCHW.device)

    loop = restored(fresh(), resume, x_test_NCHW.device)
    for synthetic, protocol in sets[len(loop.done) :]:
        theta_RP = train_networks(net, synthetic, protocol, seed=seed, loop=loop, **options)
        _warn_of_divergence(theta_RP, protocol)
        done = [*loop.done, [accuracy(net, theta_P, x_test_NCHW, y_test_N) for theta_P in theta_RP]]
        loop = replace(fresh(), done=done)
    return loop.done


def _warn_of_divergence(theta_RP: Tensor, protocol: Protocol) -> None:
    lost = int((~theta_RP.isfinite().all(1)).sum())
    if lost:
        which = f"{lost} of {len(theta_RP)} networks diverged"
        rate = "that of the distilled set" if protocol.lr is None else f"{protocol.lr:g}"
        warnings.warn(
            f"{which} in evaluation and count with the accuracy of one class; their learning rate was {rate}",
            stacklevel=3,
        )


def hard_labels(synthetic: Synthetic) -> Synthetic:
    """The set with the most probable class of every image as its label."""
    label_S = synthetic.y.argmax(1, keepdim=True)
    return replace(synthetic, y=torch.zeros_like(synthetic.y).scatter(1, label_S, 1.0))


def random_real(synthetic: Synthetic, real: Real, seed: int, factor: int = 1) -> Synthetic:
    """As many random real images of each class, of the same formation and in mosaics of ``factor`` squared patches,
    with the labels and learning rate of the set."""
    random = generator(seed, "evaluate", "random real", device=real.x.device)
    ipc = len(synthetic.y) // real.n_classes
    return replace(synthetic, x=real.choose(ipc, random, synthetic.formation * factor)[0])


def gap_closed(
    arm: Sequence[float], vanilla: Sequence[float], clean: Sequence[float]
) -> tuple[float | None, float | None]:
    """What an arm makes good of what wrong labels cost, and half of its 95 % interval.

    Accuracies by seed, in the same order: of the arm and of vanilla under noise, and of the same arm on ``clean``
    labels. The gap closed is mean(arm − vanilla) / mean(clean − vanilla): 1 is as good as if no label had been wrong.
    Its interval is Student's t of the residuals of this ratio (delta method). Both are None where clean labels bring
    nothing or there is no seed; the half-width alone for fewer than three seeds.
    """
    gains = [a - v for a, v in zip(arm, vanilla, strict=True)]
    rooms = [c - v for c, v in zip(clean, vanilla, strict=True)]
    if not rooms or (room := statistics.fmean(rooms)) <= 0:
        return None, None
    ratio = statistics.fmean(gains) / room
    _, half = mean_ci95([(gain - ratio * r) / room for gain, r in zip(gains, rooms)])
    return ratio, half if len(rooms) > 2 else None


def mean_ci95(values: list[float]) -> tuple[float, float | None]:
    """Mean and half-width of the 95 % confidence interval (Student's t); None for a single value."""
    require(len(values) > 0, "a mean needs one value or more, got none")
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    return mean, float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / len(values) ** 0.5
