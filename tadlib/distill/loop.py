"""What all distillation methods share: the problem, the state between two iterations, and the loop.

Legend: N samples, B batch, S synthetic images, K classes, C H W image.

A method has a function ``start(problem)``, which makes its state, and a function ``advance(problem, state)``, which
takes one iteration and appends a row to ``state.rows``. :func:`driver` makes its function ``distill`` of them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp

from tadlib.checks import require_refined
from tadlib.distill.synthetic import Real, Synthetic
from tadlib.nn import augment
from tadlib.nn.crops import decode
from tadlib.nn.networks import Network
from tadlib.rng import generator
from tadlib.state import Checkpoint, restored

Rows = list[dict[str, Any]]
# (class, its synthetic images (S, C, H, W)) -> gradient with respect to them, and the loss ()
ClassGradient = Callable[[int, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Problem:
    """A refined set to be distilled into ``ipc`` images per class; ``experts`` are expert trajectories, an observer
    (:mod:`tadlib.observer`), or None where neither is needed."""

    net: Network
    real: Real
    experts: Any
    config: Any
    ipc: int
    seed: int

    def generator(self, *names: str | int) -> torch.Generator:
        """Random numbers of a method, on the device of the images."""
        return generator(self.seed, *names, device=self.real.x.device)


@dataclass
class State:
    """All that changes from one iteration to the next.

    ``x`` (S, C, H, W) images, ``y`` (S, K) labels as they are learned, ``lr`` () learning rate of networks that are
    trained on them, and the velocities of the three. ``ema``: FTD's moving average of the images.
    """

    generator: torch.Generator
    x: Tensor
    y: Tensor
    lr: Tensor
    velocity_x: Tensor
    velocity_y: Tensor
    velocity_lr: Tensor
    ema: Tensor | None = None
    rows: Rows = field(default_factory=list)

    @property
    def iteration(self) -> int:
        """Iterations done."""
        return len(self.rows)

    def synthetic(self) -> Synthetic:
        """The synthetic set as it stands."""
        return Synthetic(self.x, self.y, self.lr.item())


def start_from_real(problem: Problem, name: str, lr: float) -> State:
    """The state before the first iteration: real images, chosen by the random numbers of ``name``. InputError as of
    :meth:`~tadlib.distill.synthetic.Real.choose`."""
    random = problem.generator(name)
    x_SCHW, y_SK = problem.real.choose(problem.ipc, random, problem.config.formation)
    rate = torch.tensor(lr, device=x_SCHW.device)
    zeros = torch.zeros_like
    return State(random, x_SCHW, y_SK, rate, zeros(x_SCHW), zeros(y_SK), zeros(rate))


def momentum_step(
    value: Tensor, velocity: Tensor, gradient: Tensor, lr: float, momentum: float
) -> tuple[Tensor, Tensor]:
    """SGD with momentum in PyTorch's convention: v ← m v + g, value ← value − lr v. Returns both, new."""
    velocity = momentum * velocity + gradient
    return value - lr * velocity, velocity


def fresh_network(problem: Problem, state: State, name: str) -> Tensor:
    """Parameters (P,) of a new random network."""
    seed = int(torch.randint(2**31, (), generator=state.generator, device=state.generator.device))
    return problem.net.init(seed, name)


def decoded(problem: Problem, x_SCHW: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The images that a network sees, and the function that takes a gradient with respect to them back to the stored
    images (S, C, H, W)."""
    seen_SCHW, pull_back = vjp(partial(decode, factor=problem.config.formation), x_SCHW)  # type: ignore[misc]
    return seen_SCHW, lambda grad_x: pull_back(grad_x)[0]


def class_by_class(problem: Problem, x_SCHW: Tensor, gradient: ClassGradient) -> tuple[Tensor, Tensor]:
    """Gradient with respect to the stored images (S, C, H, W), and the loss (), summed over classes.

    ``gradient(k, x_SCHW)`` gives both for class ``k`` and its synthetic images as networks see them.
    """
    seen_SCHW, pull_back = decoded(problem, x_SCHW)
    parts = [gradient(k, x_of_class) for k, x_of_class in enumerate(seen_SCHW.chunk(problem.real.n_classes))]
    return pull_back(torch.cat([g for g, _ in parts])), torch.stack([value for _, value in parts]).sum()


def drawn(problem: Problem, k: int, random: torch.Generator) -> tuple[Tensor, tuple[augment.Draw, ...]]:
    """Indices (B,) of a batch of real images of class ``k``, and one augmentation for them and the synthetic ones."""
    config = problem.config
    return problem.real.draw(k, config.batch_real, random), augment.draw(config.augmentation, 1, random)


def end_iteration(
    state: State,
    new: dict[str, Tensor],
    loss: Tensor,
    grad_norm: Tensor,
    *,
    threshold: float | None = None,
    **drawn: int,
) -> bool:
    """Put the ``new`` values into the state, unless one is not finite, and append a row; tells whether it did.

    A row holds what was ``drawn``, whether all was ``finite``, loss, norm of the images' gradient, and learning rate.
    With a ``threshold``, values whose loss exceeds it are not put in either (``skipped``).
    """
    finite = bool(torch.stack([loss.isfinite(), *(value.isfinite().all() for value in new.values())]).all())
    skipped = threshold is not None and finite and loss.item() > threshold
    if finite and not skipped:
        vars(state).update(new)
    row: dict[str, Any] = {
        **drawn,
        "finite": finite,
        "loss": loss.item() if finite else None,
        "grad_norm": grad_norm.item() if finite else None,
        "lr": state.lr.item(),
    }
    state.rows.append(row if threshold is None else row | {"skipped": skipped})
    return finite and not skipped


def driver(
    start: Callable[[Problem], Any],
    advance: Callable[[Problem, Any], None],
    result: Callable[[Any], Synthetic] = State.synthetic,
) -> Callable[..., tuple[Synthetic, Rows]]:
    """The function ``distill`` of a method; ``result`` reads the synthetic set off the last state. A method that learns
    nothing (``iterations`` None) takes one iteration for each class."""

    def distill(
        net: Network,
        x_NCHW: Tensor,
        y_NK: Tensor,
        w_N: Tensor,
        experts: Any,
        config: Any,
        *,
        ipc: int,
        seed: int,
        resume: Checkpoint | None = None,
        on_iteration: Callable[[Any], None] = lambda state: None,
    ) -> tuple[Synthetic, Rows]:
        """Distil a refined set (images, label distributions, weights) into ``ipc`` images per class.

        ``experts`` as in :class:`Problem`. ``on_iteration`` is called with the state after each iteration; ``resume``
        is what :func:`tadlib.state.checkpoint` gave then, from which the run ends with the same bits. Returns the
        synthetic set and one row an iteration (:func:`end_iteration`). InputError where images, labels, weights and
        network do not belong together.
        """
        require_refined(net, x_NCHW, y_NK, w_N)
        problem = Problem(net, Real.of(x_NCHW, y_NK, w_N, config.draw_power), experts, config, ipc, seed)
        state = restored(start(problem), resume, x_NCHW.device)
        iterations = problem.real.n_classes if config.iterations is None else config.iterations
        while len(state.rows) < iterations:
            advance(problem, state)
            on_iteration(state)
        return replace(result(state), formation=config.formation), state.rows

    return distill
