"""MTT: dataset distillation by matching training trajectories (Cazenavette et al., CVPR 2022).

Legend: S synthetic images, K classes, C H W image, P flat parameters, N student steps, M expert epochs.

Each iteration draws an expert and a start epoch, lets a student take N steps on the synthetic images from there, and
moves images and learning rate so that it lands where the expert is M epochs later (:mod:`tadlib.matching`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tadlib import augment
from tadlib.distill.synthetic import Synthetic, real_images
from tadlib.errors import known, require
from tadlib.experts import Trajectories
from tadlib.matching import GRADIENTS, Step, match
from tadlib.networks import Network
from tadlib.rng import generator

MAX_LOG_STEP = 0.1  # the learning rate changes by at most this factor's log in one iteration


@dataclass(frozen=True)
class MttConfig:
    """Settings of MTT; names follow its paper. Learning rates are per iteration of plain SGD with momentum."""

    iterations: int = 5000
    syn_steps: int = 30  # N
    expert_epochs: int = 2  # M
    max_start: int = 20  # start epochs are drawn from [0, max_start)
    lr_img: float = 100.0
    lr_lr: float = 1e-5
    lr_teacher: float = 0.01  # the student's learning rate to start with
    momentum: float = 0.5
    batch_syn: int = 0  # synthetic images in a student step; 0 = all of them
    augmentation: str = "color_crop_cutout_flip_scale_rotate"
    gradient: str = "exact"

    def __post_init__(self):
        for name in ("iterations", "syn_steps", "expert_epochs", "max_start"):
            value = getattr(self, name)
            require(value >= 1, f"{name} must be at least 1, got {value}")
        for name in ("lr_img", "lr_lr", "lr_teacher"):
            value = getattr(self, name)
            require(value > 0, f"{name} must be positive, got {value}")
        require(self.batch_syn >= 0, f"batch_syn must not be negative, got {self.batch_syn}")
        known("gradient", self.gradient, GRADIENTS)


@dataclass
class Loop:
    """State between two iterations. ``tensors`` and ``rows`` are all of it that changes."""

    net: Network
    config: MttConfig
    experts: Trajectories
    generator: torch.Generator
    tensors: dict[str, Tensor]
    rows: list[dict] = field(default_factory=list)

    @property
    def iteration(self) -> int:
        """Iterations done."""
        return len(self.rows)

    def checkpoint(self) -> tuple[dict[str, Tensor], dict]:
        """All that changes, as tensors and JSON."""
        return {**self.tensors, "generator": self.generator.get_state()}, {"rows": self.rows}

    def restore(self, tensors: dict[str, Tensor], meta: dict) -> None:
        """The inverse of :meth:`checkpoint`; the next iteration gives the same bits as without interruption."""
        self.generator.set_state(tensors["generator"].cpu())
        device = self.tensors["x"].device
        self.tensors = {k: v.to(device) for k, v in tensors.items() if k != "generator"}
        self.rows = list(meta["rows"])

    def synthetic(self) -> Synthetic:
        """The synthetic set as it stands."""
        return Synthetic(self.tensors["x"], self.tensors["y"], self.tensors["lr"].item())


def start(
    net: Network,
    x_NCHW: Tensor,
    y_NK: Tensor,
    w_N: Tensor,
    experts: Trajectories,
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
    random = generator(seed, "mtt", device=x_NCHW.device)
    x_SCHW, y_SK = real_images(x_NCHW, y_NK, w_N, ipc, random)
    last = config.max_start - 1 + config.expert_epochs
    require(len(experts) >= 1, "matching needs at least one expert, got 0")
    end_P = experts.read(0, last)  # raises where the trajectory is too short
    require(end_P.shape == (net.n_parameters,), f"experts have {len(end_P)} parameters, the network {net.n_parameters}")
    tensors = {
        "x": x_SCHW,
        "y": y_SK,
        "lr": torch.tensor(config.lr_teacher, device=x_SCHW.device),
        "velocity_x": torch.zeros_like(x_SCHW),
        "velocity_lr": torch.zeros((), device=x_SCHW.device),
    }
    return Loop(net, config, experts, random, tensors)


def steps(config: MttConfig, n_images: int, random: torch.Generator) -> list[Step]:
    """Batches and augmentations of one student: passes over the synthetic set in a new order each time."""
    size = min(config.batch_syn or n_images, n_images)
    places: list[Tensor] = []
    while len(places) < config.syn_steps:
        order = torch.randperm(n_images, generator=random, device=random.device)
        places += [b for b in order.split(size) if len(b) == size]
    return [Step(index, augment.draw(config.augmentation, size, random)) for index in places[: config.syn_steps]]


def advance(loop: Loop) -> None:
    """One iteration. A step whose loss or gradient is not finite changes nothing and is counted."""
    config, t, random = loop.config, loop.tensors, loop.generator
    pick = torch.randint(2**31, (2,), generator=random, device=random.device).tolist()
    expert, epoch = pick[0] % len(loop.experts), pick[1] % config.max_start
    start_P, target_P = (loop.experts.read(expert, e).to(t["x"].device) for e in (epoch, epoch + config.expert_epochs))
    m = match(
        loop.net,
        start_P,
        target_P,
        t["x"],
        t["y"],
        t["lr"],
        steps(config, len(t["x"]), random),
        gradient=config.gradient,
    )
    velocity_x = config.momentum * t["velocity_x"] + m.grad_x
    velocity_lr = config.momentum * t["velocity_lr"] + m.grad_lr
    x = t["x"] - config.lr_img * velocity_x
    # the step lr_lr·v taken in log lr: equal to first order, and the rate stays positive
    log_step = (config.lr_lr * velocity_lr / t["lr"]).clamp(-MAX_LOG_STEP, MAX_LOG_STEP)
    lr = t["lr"] * (-log_step).exp()
    finite = bool(m.loss.isfinite() & x.isfinite().all() & velocity_x.isfinite().all() & velocity_lr.isfinite())
    if finite:
        t |= {"x": x, "lr": lr, "velocity_x": velocity_x, "velocity_lr": velocity_lr}
    row = {
        "expert": expert,
        "start_epoch": epoch,
        "finite": finite,
        "loss": m.loss.item() if finite else None,
        "grad_norm": m.grad_x.norm().item() if finite else None,
        "lr": t["lr"].item(),
    }
    loop.rows.append(row)


def distill(
    net: Network,
    x_NCHW: Tensor,
    y_NK: Tensor,
    w_N: Tensor,
    experts: Trajectories,
    config: MttConfig,
    *,
    ipc: int,
    seed: int,
    resume: tuple[dict[str, Tensor], dict] | None = None,
    on_iteration: Callable[[Loop], None] = lambda loop: None,
) -> tuple[Synthetic, list[dict]]:
    """Distil a refined set (images, label distributions, weights) into ``ipc`` images per class.

    Returns the synthetic set and one row an iteration: expert, start epoch, loss, gradient norm, learning rate.
    """
    loop = start(net, x_NCHW, y_NK, w_N, experts, config, ipc=ipc, seed=seed)
    if resume is not None:
        loop.restore(*resume)
    while loop.iteration < config.iterations:
        advance(loop)
        on_iteration(loop)
    return loop.synthetic(), loop.rows
