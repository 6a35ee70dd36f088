"""MTT: dataset distillation by matching training trajectories (Cazenavette et al., CVPR 2022).

Legend: S synthetic images, K classes, C H W image, P flat parameters, N student steps, M expert epochs.

Each iteration draws an expert and a start epoch, lets a student take N steps on the synthetic images from there, and
changes images and learning rate so that it ends closer to where the expert is M epochs later (:mod:`tadlib.matching`).
TESLA, FTD and DATM change one thing each; the iteration they share is :func:`iterate`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tadlib.config import MttConfig
from tadlib.distill.loop import Problem, State, decoded, driver, end_iteration, momentum_step, start_from_real
from tadlib.errors import require
from tadlib.experts import Trajectories
from tadlib.matching import Step, match, soft_cross_entropy
from tadlib.nn import augment

MAX_LOG_STEP = 0.1  # largest change of the logarithm of the learning rate in one iteration


def checked_experts(problem: Problem) -> Trajectories:
    """The experts; InputError if there is none, they are too short, or they do not fit the network."""
    experts, expected = problem.experts, problem.net.n_parameters
    require(experts is not None and len(experts) >= 1, "matching needs at least one expert, got 0")
    end_P = experts.read(0, problem.config.last_epoch)  # raises where the trajectory is too short
    require(end_P.shape == (expected,), f"experts have {len(end_P)} parameters, the network {expected}")
    return experts


def start(problem: Problem) -> State:
    """Choose the real images to start from.

    All trajectory methods draw the same random numbers: under one seed they start alike and see the same segments.
    """
    checked_experts(problem)
    return start_from_real(problem, "mtt", problem.config.lr_teacher)


def steps(config: MttConfig, n_images: int, random: torch.Generator) -> list[Step]:
    """Batches and augmentations of one student: passes over the synthetic set, each in a new order."""
    size = min(config.batch_syn or n_images, n_images)
    places: list[Tensor] = []
    while len(places) < config.syn_steps:
        order = torch.randperm(n_images, generator=random, device=random.device)
        places += [b for b in order.split(size) if len(b) == size]
    return [Step(index, augment.draw(config.augmentation, size, random)) for index in places[: config.syn_steps]]


def iterate(
    problem: Problem,
    state: State,
    epochs: range,
    *,
    loss_fn: Callable[[Tensor, Tensor], Tensor] = soft_cross_entropy,
    labels: tuple[float, float] | None = None,
    threshold: float | None = None,
) -> bool:
    """One iteration with a start epoch out of ``epochs``; tells whether anything changed.

    With ``labels``, a learning rate and a momentum, the labels are learned as well; ``loss_fn`` takes them as learned.
    ``threshold`` as in :func:`tadlib.distill.loop.end_iteration`.
    """
    config, random, experts = problem.config, state.generator, problem.experts
    pick = torch.randint(2**31, (2,), generator=random, device=random.device).tolist()
    expert, epoch = pick[0] % len(experts), epochs[pick[1] % len(epochs)]
    start_P, target_P = (experts.read(expert, e).to(state.x.device) for e in (epoch, epoch + config.expert_epochs))
    (seen_SCHW, pull_back), shared = decoded(problem, state.x), config.formation**2
    m = match(
        problem.net,
        start_P,
        target_P,
        seen_SCHW,
        state.y.repeat_interleave(shared, 0),
        state.lr,
        steps(config, len(seen_SCHW), random),
        gradient=config.gradient,
        loss_fn=loss_fn,
        compile=config.compile,
    )
    grad_x, new = pull_back(m.grad_x), {}
    new["x"], new["velocity_x"] = momentum_step(state.x, state.velocity_x, grad_x, config.lr_img, config.momentum)
    if labels is not None:
        grad_y = m.grad_y.unflatten(0, (-1, shared)).sum(1)
        new["y"], new["velocity_y"] = momentum_step(state.y, state.velocity_y, grad_y, *labels)
    new["velocity_lr"] = config.momentum * state.velocity_lr + m.grad_lr
    # the step lr_lr·v taken in log lr: equal to first order, and the rate stays positive
    log_step = (config.lr_lr * new["velocity_lr"] / state.lr).clamp(-MAX_LOG_STEP, MAX_LOG_STEP)
    new["lr"] = state.lr * (-log_step).exp()
    return end_iteration(state, new, m.loss, grad_x.norm(), threshold=threshold, expert=expert, start_epoch=epoch)


def advance(problem: Problem, state: State) -> None:
    """One iteration of MTT."""
    iterate(problem, state, range(problem.config.max_start))


distill = driver(start, advance)
