"""Expert trajectories: the parameters of networks after every epoch of training on a refined set, and their store.

Legend: N samples, K classes, C H W image, P flat parameters, E epochs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tadlib.checks import require_refined
from tadlib.config import AuditorConfig, ExpertConfig
from tadlib.errors import InputError, require
from tadlib.nn.networks import Network
from tadlib.nn.training import Sgd, State, train_epoch
from tadlib.rng import generator
from tadlib.store import load_tensors, save_tensors
from tadlib.trust import NoisyProblem, refine


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
    """The trajectory (E + 1, P) of one expert on a refined set: its initial parameters, and those after every epoch.

    Samples of weight 0 are not used. The random numbers of an expert depend on ``seed`` and its number alone.
    """
    require_refined(net, x_NCHW, y_NK, w_N)
    state = State(net.init(seed, "expert", expert))
    trajectory_EP = state.theta.new_empty(config.epochs + 1, net.n_parameters)
    trajectory_EP[0] = state.theta
    how: dict[str, Any] = {"batch": config.batch, "strategy": config.augmentation, "compile": config.compile}
    how["cutmix"] = config.cutmix
    how["generator"] = generator(seed, "expert", expert, "train", device=x_NCHW.device)
    net = replace(net, bfloat16=config.bfloat16)
    for epoch in range(config.epochs):
        lr = config.lr * config.decay(epoch)
        sgd = Sgd(lr, config.momentum, config.weight_decay, config.rho, config.alpha)
        state = train_epoch(net, state, x_NCHW, y_NK, w_N, sgd=sgd, **how)
        trajectory_EP[epoch + 1] = state.theta
        on_epoch()
    return trajectory_EP


def train_own_loop(
    problem: NoisyProblem, method: Any, config: ExpertConfig, *, seed: int, expert: int = 0, on_epoch=lambda: None
) -> Tensor:
    """The trajectory (E + 1, P) of an expert that judges the labels itself, as TAD's experts do.

    It is the auditor of ``method``, a trust method with one; optimiser, batch and augmentation are the expert's.
    """
    require(config.rho == 0, f"experts that judge labels are trained by plain SGD: rho must be 0, got {config.rho}")
    names = ("epochs", "lr", "momentum", "weight_decay", "batch", "augmentation")
    own = {name: getattr(config, name) for name in names}
    auditor = AuditorConfig(**own, warmup=min(method.auditor.warmup, config.epochs))
    problem = replace(problem, seed=seed, true=None, name=f"expert {expert}")
    points = [problem.net.init(seed, problem.name, 0)]

    def record(state: Any) -> None:
        points.append(state.auditor.theta)
        on_epoch()

    refine(replace(method, auditor=auditor), problem, on_epoch=record)
    return torch.stack(points)


class Trajectories(Protocol):
    """Where a method reads expert trajectories: a store on disk, or tensors in memory."""

    def __len__(self) -> int: ...

    def read(self, expert: int, epoch: int) -> Tensor:
        """Parameters (P,) of ``expert`` after ``epoch`` epochs, on the device where they lie."""
        ...


@dataclass(frozen=True)
class TrajectoryStore:
    """A folder with one safetensors file for each expert; a read maps one epoch from the file, nothing more.

    In half precision a file holds θ_0 as float32 and the differences θ_e − θ_0, scaled, as float16: they are small
    beside θ, and rounding θ itself changes a segment more (our choice; benchmarks/trajectory_store.py measures the
    error of both ways in the matching loss and its gradient).
    """

    folder: Path

    def path(self, expert: int) -> Path:
        """The file of one expert."""
        return Path(self.folder) / f"expert_{expert:03d}.safetensors"

    def save(self, expert: int, trajectory_EP: Tensor, *, half: bool = False) -> None:
        """Write a trajectory (E + 1, P); InputError where a parameter is not finite."""
        finite = bool(trajectory_EP.isfinite().all())
        require(finite, f"expert {expert} diverged: its parameters are not finite; lower lr")
        trajectory_EP = trajectory_EP.cpu()
        if not half:
            save_tensors(self.path(expert), {"trajectory": trajectory_EP})
            return
        start_P = trajectory_EP[0]
        change_EP = trajectory_EP[1:] - start_P
        largest = change_EP.abs().max().item()
        # a power of two, so that scaling rounds nothing; float16 ends at 65504
        scale = 2.0 ** (14 - math.ceil(math.log2(largest))) if largest > 0 else 1.0
        tensors = {"start": start_P, "change": (change_EP * scale).half(), "scale": torch.tensor([scale])}
        save_tensors(self.path(expert), tensors)

    def __len__(self) -> int:
        return len(list(Path(self.folder).glob("expert_*.safetensors")))

    def read(self, expert: int, epoch: int) -> Tensor:
        try:
            with safe_open(self.path(expert), framework="pt") as file:
                if "trajectory" in file.keys():  # noqa: SIM118 (not a dict)
                    return file.get_slice("trajectory")[epoch]
                start_P = file.get_tensor("start")
                if epoch == 0:
                    return start_P
                scale = file.get_tensor("scale").item()
                return start_P.add(file.get_slice("change")[epoch - 1].float(), alpha=1 / scale)
        except (OSError, IndexError, SafetensorError) as error:
            raise InputError(f"no epoch {epoch} of expert {expert} in {self.folder}: {error}") from error

    def verify(self, n_parameters: int | None = None) -> None:
        """InputError unless experts are numbered without gaps, readable, finite, of one shape and ``n_parameters``."""
        first: tuple[torch.Size, ...] = ()
        for expert in range(len(self)):
            path = self.path(expert)
            require(path.is_file(), f"{path} is missing: experts are numbered from 0 without gaps")
            tensors = load_tensors(path)
            holds = "trajectory" in tensors or {"start", "change", "scale"} <= tensors.keys()
            require(holds, f"{path} holds no expert")
            finite = all(bool(tensor.isfinite().all()) for tensor in tensors.values())
            require(finite, f"{path} has parameters that are not finite")
            shapes = tuple(tensors[name].shape for name in sorted(tensors))
            first = first or shapes
            require(shapes == first, f"{path} differs in shape from expert 0: {shapes}, expected {first}")
            size = max(tensors.values(), key=Tensor.numel).shape[-1]
            require(n_parameters in (None, size), f"{path} has {size} parameters an epoch, expected {n_parameters}")


def stored_bytes(config: ExpertConfig, n_parameters: int) -> int:
    """What the trajectories of ``config`` take on disk."""
    return config.count * n_parameters * (4 + config.epochs * (2 if config.half else 4))


@dataclass(frozen=True)
class InMemory:
    """Trajectories held as tensors, with the interface of :class:`TrajectoryStore`."""

    trajectories: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.trajectories)

    def read(self, expert: int, epoch: int) -> Tensor:
        known = expert < len(self) and epoch < len(self.trajectories[expert])
        require(known, f"no epoch {epoch} of expert {expert} in memory")
        return self.trajectories[expert][epoch]


def train_experts(
    net: Network, x_NCHW: Tensor, y_NK: Tensor, w_N: Tensor, config: ExpertConfig, *, seed: int
) -> InMemory:
    """All experts of ``config``, in memory; arguments as in :func:`train_expert`."""
    one = (train_expert(net, x_NCHW, y_NK, w_N, config, seed=seed, expert=i) for i in range(config.count))
    return InMemory(tuple(one))
