"""MTT: dataset distillation by matching training trajectories (Cazenavette et al., CVPR 2022).

Legend: S synthetic images, K classes, C H W image, P flat parameters, N student steps, M expert epochs.

Each iteration draws an expert and a start epoch, lets a student take N steps on the synthetic images from there, and
moves images and learning rate so that it lands where the expert is M epochs later (:mod:`tadlib.matching`). TESLA,
FTD and DATM change one thing each; the iteration they share is :func:`iterate`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tadlib.config import MttConfig
from tadlib.distill.loop import Loop, driver, momentum_step
from tadlib.distill.synthetic import Real
from tadlib.errors import require
from tadlib.experts import Trajectories
from tadlib.matching import Step, match, soft_cross_entropy
from tadlib.nn import augment
from tadlib.nn.networks import Network
from tadlib.rng import generator

MAX_LOG_STEP = 0.1  # the learning rate changes by at most this factor's log in one iteration


def family_generator(seed: int, device: torch.device) -> torch.Generator:
    """Random numbers of all trajectory methods: under one seed they start alike and see the same segments."""
    return generator(seed, "mtt", device=device)


def require_experts(net: Network, experts: Trajectories | None, config: MttConfig) -> Trajectories:
    """The experts, when there is one at least and it is long enough and fits the network; else InputError."""
    require(experts is not None and len(experts) >= 1, "matching needs at least one expert, got 0")
    assert experts is not None
    end_P = experts.read(0, config.last_epoch)  # raises where the trajectory is too short
    require(end_P.shape == (net.n_parameters,), f"experts have {len(end_P)} parameters, the network {net.n_parameters}")
    return experts


def begin(
    net: Network, experts: Trajectories, config: MttConfig, random: torch.Generator, x_SCHW: Tensor, y_SK: Tensor
) -> Loop:
    """A loop at its first iteration, with these images and labels."""
    tensors = {
        "x": x_SCHW,
        "y": y_SK,
        "lr": torch.tensor(config.lr_teacher, device=x_SCHW.device),
        "velocity_x": torch.zeros_like(x_SCHW),
        "velocity_lr": torch.zeros((), device=x_SCHW.device),
    }
    return Loop(net, config, random, tensors, experts=experts)


def start(
    net: Network,
    x_NCHW: Tensor,
    y_NK: Tensor,
    w_N: Tensor,
    experts: Trajectories | None,
    config: MttConfig,
    *,
    ipc: int,
    seed: int,
) -> Loop:
    """Check the input and choose the real images to start from.

    ``experts`` has ``len`` and ``read(expert, epoch) -> (P,)`` (:mod:`tadlib.experts`).

    Raises:
        InputError: when a class has fewer than ``ipc`` usable images, or the trajectories are too short.
    """
    random = family_generator(seed, x_NCHW.device)
    first = Real.of(x_NCHW, y_NK, w_N, config.draw_power).choose(ipc, random)
    return begin(net, require_experts(net, experts, config), config, random, *first)


def steps(config: MttConfig, n_images: int, random: torch.Generator) -> list[Step]:
    """Batches and augmentations of one student: passes over the synthetic set in a new order each time."""
    size = min(config.batch_syn or n_images, n_images)
    places: list[Tensor] = []
    while len(places) < config.syn_steps:
        order = torch.randperm(n_images, generator=random, device=random.device)
        places += [b for b in order.split(size) if len(b) == size]
    return [Step(index, augment.draw(config.augmentation, size, random)) for index in places[: config.syn_steps]]


@dataclass(frozen=True)
class LabelSgd:
    """How labels are learned: SGD with momentum."""

    lr: float
    momentum: float


def iterate(
    loop: Loop,
    epochs: range,
    *,
    loss_fn: Callable[[Tensor, Tensor], Tensor] = soft_cross_entropy,
    labels: LabelSgd | None = None,
    threshold: float | None = None,
) -> bool:
    """One iteration with a start epoch out of ``epochs``; tells whether anything moved.

    A step whose loss or gradient is not finite changes nothing and is counted (``finite`` of its row). With
    ``threshold`` a loss above it changes nothing either (``skipped``). With ``labels`` the labels are learned as
    well; ``loss_fn`` then takes them as they are learned.
    """
    config, t, random, experts = loop.config, loop.tensors, loop.generator, loop.experts
    assert experts is not None
    pick = torch.randint(2**31, (2,), generator=random, device=random.device).tolist()
    expert, epoch = pick[0] % len(experts), epochs[pick[1] % len(epochs)]
    start_P, target_P = (experts.read(expert, e).to(t["x"].device) for e in (epoch, epoch + config.expert_epochs))
    m = match(
        loop.net,
        start_P,
        target_P,
        t["x"],
        t["y"],
        t["lr"],
        steps(config, len(t["x"]), random),
        gradient=config.gradient,
        loss_fn=loss_fn,
        compile=config.compile,
    )
    new = {}
    new["x"], new["velocity_x"] = momentum_step(t["x"], t["velocity_x"], m.grad_x, config.lr_img, config.momentum)
    if labels is not None:
        new["y"], new["velocity_y"] = momentum_step(t["y"], t["velocity_y"], m.grad_y, labels.lr, labels.momentum)
    new["velocity_lr"] = config.momentum * t["velocity_lr"] + m.grad_lr
    # the step lr_lr·v taken in log lr: equal to first order, and the rate stays positive
    log_step = (config.lr_lr * new["velocity_lr"] / t["lr"]).clamp(-MAX_LOG_STEP, MAX_LOG_STEP)
    new["lr"] = t["lr"] * (-log_step).exp()
    finite = bool(torch.stack([m.loss.isfinite(), *(value.isfinite().all() for value in new.values())]).all())
    skipped = threshold is not None and finite and m.loss.item() > threshold
    if finite and not skipped:
        t |= new
    row = {
        "expert": expert,
        "start_epoch": epoch,
        "finite": finite,
        "loss": m.loss.item() if finite else None,
        "grad_norm": m.grad_x.norm().item() if finite else None,
        "lr": t["lr"].item(),
    }
    loop.rows.append(row if threshold is None else row | {"skipped": skipped})
    return finite and not skipped


def advance(loop: Loop) -> None:
    """One iteration of MTT."""
    iterate(loop, range(loop.config.max_start))


distill = driver(start, advance)
