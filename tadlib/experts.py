"""Expert trajectories: parameters of networks after every epoch of training on refined data, and their store.

Legend: N samples, K classes, C H W image, P flat parameters, E epochs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tadlib import diversion
from tadlib.artifacts import save_tensors
from tadlib.errors import InputError, require
from tadlib.networks import Network
from tadlib.rng import generator
from tadlib.training import Sgd, State, train_epoch


@dataclass(frozen=True)
class ExpertConfig:
    """How experts are trained. MTT (FACTS of its code): SGD, lr .01, no momentum, batch 256, DSA, 50 epochs."""

    count: int = 100  # experts
    epochs: int = 50
    lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch: int = 256
    rho: float = 0.0
    alpha: float = 0.0
    augmentation: str = "color_crop_cutout_flip_scale_rotate"

    def __post_init__(self):
        require(self.count >= 1, f"count must be at least 1 expert, got {self.count}")
        require(self.epochs >= 1, f"epochs must be at least 1, got {self.epochs}")


def train_expert(
    net: Network,
    x_NCHW: Tensor,
    y_NK: Tensor,
    w_N: Tensor,
    config: ExpertConfig,
    *,
    seed: int,
    expert: int = 0,
    on_epoch: Callable[[], None] = lambda: None,
) -> Tensor:
    """The trajectory (E + 1, P) of one expert: its initialisation, then its parameters after every epoch.

    Args:
        y_NK, w_N: label distributions and weights, as a refined set has them; samples of weight 0 are not used.
        expert: number of the expert; its random numbers depend on ``seed`` and this number alone.
    """
    theta_P = net.init(seed, "expert", expert)
    trajectory_EP = theta_P.new_empty(config.epochs + 1, net.n_parameters)
    trajectory_EP[0] = theta_P
    state = State(theta_P)
    random = generator(seed, "expert", expert, "train", device=x_NCHW.device)
    for epoch in range(config.epochs):
        state = train_epoch(
            net,
            state,
            x_NCHW,
            y_NK,
            w_N,
            sgd=Sgd(config.lr, config.momentum, config.weight_decay),
            batch=config.batch,
            strategy=config.augmentation,
            generator=random,
        )
        trajectory_EP[epoch + 1] = state.theta
        on_epoch()
    return trajectory_EP


def train_diverting_expert(
    net: Network,
    x_NCHW: Tensor,
    given_N: Tensor,
    n_classes: int,
    config: ExpertConfig,
    loops: diversion.DiversionConfig,
    *,
    seed: int,
    expert: int = 0,
    on_epoch: Callable[[], None] = lambda: None,
) -> Tensor:
    """The trajectory (E + 1, P) of an expert that carries a dual loop of its own, as TAD's experts do.

    The expert is the only auditor; optimiser, batch and augmentation are the expert's, the rest is that of ``loops``.
    """
    own = replace(
        loops,
        epochs=config.epochs,
        warmup=min(loops.warmup, config.epochs),
        auditors=1,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        batch=config.batch,
        augmentation=config.augmentation,
    )
    name = f"expert {expert}"
    points = [net.init(seed, name, 0)]

    def record(loop: diversion.Loop) -> None:
        points.append(loop.tensors["theta/0"])
        on_epoch()

    diversion.divert(net, x_NCHW, given_N, n_classes, own, seed=seed, name=name, on_round=record)
    return torch.stack(points)


class Trajectories(Protocol):
    """Where a method reads expert trajectories from: a store on disk or tensors in memory."""

    def __len__(self) -> int: ...

    def read(self, expert: int, epoch: int) -> Tensor:
        """Parameters (P,) of ``expert`` after ``epoch`` epochs."""
        ...


@dataclass(frozen=True)
class TrajectoryStore:
    """A folder with one safetensors file an expert; reads map one (expert, epoch) from the file, nothing more."""

    folder: Path

    def path(self, expert: int) -> Path:
        """The file of one expert."""
        return Path(self.folder) / f"expert_{expert:03d}.safetensors"

    def save(self, expert: int, trajectory_EP: Tensor) -> None:
        """Write a trajectory atomically."""
        require(
            bool(trajectory_EP.isfinite().all()), f"expert {expert} diverged: its parameters are not finite; lower lr"
        )
        save_tensors(self.path(expert), {"trajectory": trajectory_EP.cpu()})

    def __len__(self) -> int:
        return len(list(Path(self.folder).glob("expert_*.safetensors")))

    def read(self, expert: int, epoch: int) -> Tensor:
        """Parameters (P,) of ``expert`` after ``epoch`` epochs, on the CPU."""
        try:
            with safe_open(self.path(expert), framework="pt") as file:
                return file.get_slice("trajectory")[epoch]
        except (OSError, IndexError, SafetensorError) as error:
            raise InputError(f"no epoch {epoch} of expert {expert} in {self.folder}: {error}") from error


@dataclass(frozen=True)
class InMemory:
    """Trajectories held as tensors, with the interface of :class:`TrajectoryStore`."""

    trajectories: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.trajectories)

    def read(self, expert: int, epoch: int) -> Tensor:
        """Parameters (P,) of ``expert`` after ``epoch`` epochs."""
        known = expert < len(self) and epoch < len(self.trajectories[expert])
        require(known, f"no epoch {epoch} of expert {expert} in memory")
        return self.trajectories[expert][epoch]


def train_experts(
    net: Network, x_NCHW: Tensor, y_NK: Tensor, w_N: Tensor, config: ExpertConfig, *, seed: int
) -> InMemory:
    """All experts of ``config``, in memory; arguments as in :func:`train_expert`."""
    one = (train_expert(net, x_NCHW, y_NK, w_N, config, seed=seed, expert=i) for i in range(config.count))
    return InMemory(tuple(one))
