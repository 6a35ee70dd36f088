"""What every distillation method shares: its state between two iterations, and the loop that carries it on.

Legend: N samples, S synthetic images, K classes, C H W image.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tadlib.distill.synthetic import Real, Synthetic
from tadlib.experts import Trajectories
from tadlib.nn.networks import Network

Rows = list[dict[str, Any]]


@dataclass
class Loop:
    """State between two iterations. ``tensors`` and ``rows`` are all of it that changes."""

    net: Network
    config: Any
    generator: torch.Generator
    tensors: dict[str, Tensor]
    experts: Trajectories | None = None
    real: Real | None = None
    rows: Rows = field(default_factory=list)

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
        """Images, labels and learning rate as they stand."""
        return Synthetic(self.tensors["x"], self.tensors["y"], self.tensors["lr"].item())


def start_from_real(net: Network, real: Real, config: Any, random: torch.Generator, *, ipc: int) -> Loop:
    """A loop that starts from real images and keeps drawing real ones; its learning rate is the setting ``lr_net``.

    Raises:
        InputError: when a class has fewer than ``ipc`` usable images.
    """
    x_SCHW, y_SK = real.choose(ipc, random)
    tensors = {
        "x": x_SCHW,
        "y": y_SK,
        "lr": torch.tensor(config.lr_net, device=x_SCHW.device),
        "velocity_x": torch.zeros_like(x_SCHW),
    }
    return Loop(net, config, random, tensors, real=real)


def momentum_step(
    value: Tensor, velocity: Tensor, gradient: Tensor, lr: float, momentum: float
) -> tuple[Tensor, Tensor]:
    """SGD with momentum in PyTorch's convention: v ← m v + g, value ← value − lr v. Returns both, new."""
    velocity = momentum * velocity + gradient
    return value - lr * velocity, velocity


def driver(
    start: Callable[..., Loop], advance: Callable[[Loop], None], result: Callable[[Loop], Synthetic] = Loop.synthetic
) -> Callable[..., tuple[Synthetic, Rows]]:
    """The function ``distill`` of a method, made from how it starts, goes on and reads off its result."""

    def distill(
        net: Network,
        x_NCHW: Tensor,
        y_NK: Tensor,
        w_N: Tensor,
        experts: Trajectories | None,
        config: Any,
        *,
        ipc: int,
        seed: int,
        resume: tuple[dict[str, Tensor], dict] | None = None,
        on_iteration: Callable[[Loop], None] = lambda loop: None,
    ) -> tuple[Synthetic, Rows]:
        """Distil a refined set (images, label distributions, weights) into ``ipc`` images per class.

        ``experts`` is None for methods that match no trajectories. Returns the synthetic set and one row an
        iteration: whether it was finite, loss, norm of the images' gradient, learning rate, and what it drew.
        """
        loop = start(net, x_NCHW, y_NK, w_N, experts, config, ipc=ipc, seed=seed)
        if resume is not None:
            loop.restore(*resume)
        while loop.iteration < config.iterations:
            advance(loop)
            on_iteration(loop)
        return result(loop), loop.rows

    return distill
