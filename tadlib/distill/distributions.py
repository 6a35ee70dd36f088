"""Distribution matching: what DM, DANCE and NCFM share.

Legend: B batch, S synthetic images, C H W image, D features, P flat parameters.

A network embeds real and synthetic images of a class under one augmentation A_ω, and the synthetic images move so that
the two distributions of features come closer. DM takes fresh networks. DANCE (Zhang et al., IJCAI 2024) and NCFM (Wang
et al., CVPR 2025) share an iteration, :func:`advance`, and differ in the distance and in the optimiser of the images:

1. A bank of networks, trained on the refined set, gives θ = u θ_init + (1 − u) θ_final, u ~ U(0, 1).
2. One step on the distance, summed over classes.
3. One step on the cross entropy under θ_final (calibration): images stay recognisable as their class.

The authors' codes take both steps class by class; here one step moves all classes (our choice).
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from tadlib.distill import loop
from tadlib.distill.loop import Problem, State
from tadlib.distill.mtt import checked_experts
from tadlib.matching import soft_cross_entropy
from tadlib.nn import augment
from tadlib.nn.networks import Network

Distance = Callable[[Tensor, Tensor], Tensor]  # (real features (B, D), synthetic (S, D)) -> ()
Move = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # (images, velocity, gradient) -> images, velocity


def class_gradient(
    net: Network,
    theta_P: Tensor,
    draws: tuple[augment.Draw, ...],
    real_BCHW: Tensor,
    x_SCHW: Tensor,
    distance: Distance,
) -> tuple[Tensor, Tensor]:
    """Gradient with respect to one class's synthetic images (S, C, H, W), and its distance ()."""
    with torch.no_grad():
        real_BD = net.features(theta_P, augment.apply(draws, real_BCHW))
    return gradient_to(net, theta_P, draws, x_SCHW, partial(distance, real_BD))


def gradient_to(
    net: Network, theta_P: Tensor, draws: tuple[augment.Draw, ...], x_SCHW: Tensor, distance: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The same, with the distance of synthetic features (S, D) to real ones that are known."""
    x_SCHW = x_SCHW.detach().requires_grad_()
    value = distance(net.features(theta_P, augment.apply(draws, x_SCHW)))
    return torch.autograd.grad(value, x_SCHW)[0], value.detach()


def start(problem: Problem) -> State:
    """Choose the real images to start from; DANCE and NCFM draw the same random numbers."""
    checked_experts(problem)
    return loop.start_from_real(problem, "dance", problem.config.lr_net)


def blended(problem: Problem, random: torch.Generator) -> tuple[Tensor, Tensor, int]:
    """θ (P,) between the initial and the final parameters of an expert, θ_final (P,), and which expert it is."""
    experts = problem.experts
    expert = int(torch.randint(2**31, (), generator=random, device=random.device)) % len(experts)
    first_P, final_P = (experts.read(expert, e).to(random.device) for e in (0, problem.config.final_epoch))
    u = torch.rand((), generator=random, device=random.device, dtype=final_P.dtype)
    return final_P.lerp(first_P, u), final_P, expert


def advance(
    problem: Problem, state: State, distance: Callable[[Tensor, Tensor, Tensor, torch.Generator], Tensor], move: Move
) -> None:
    """One iteration; ``distance`` takes real features, their weights (B,), synthetic features and random numbers."""
    config, net, real, random = problem.config, problem.net, problem.real, state.generator
    theta_P, final_P, expert = blended(problem, random)

    def matched(k: int, x_SCHW: Tensor) -> tuple[Tensor, Tensor]:
        index_B, draws = loop.drawn(problem, k, random)
        w_B = real.weight[index_B] if config.weighted else torch.ones_like(real.weight[index_B])
        distance_k = lambda real_BD, x_SD: distance(real_BD, w_B, x_SD, random)  # noqa: E731
        return class_gradient(net, theta_P, draws, real.x[index_B], x_SCHW, distance_k)

    take_steps(problem, state, final_P, matched, move, expert=expert)


def take_steps(
    problem: Problem, state: State, final_P: Tensor, matched: loop.ClassGradient, move: Move, *, expert: int
) -> None:
    """Both steps of an iteration: on the distance, whose gradient by class ``matched`` gives, and the calibration."""
    config, random = problem.config, state.generator

    def calibrated(k: int, x_SCHW: Tensor) -> tuple[Tensor, Tensor]:
        draws = augment.draw(config.augmentation, 1, random)
        x_SCHW = x_SCHW.detach().requires_grad_()
        y_SK = state.y[k * problem.ipc].expand(len(x_SCHW), -1)
        value = config.calibration * soft_cross_entropy(problem.net(final_P, augment.apply(draws, x_SCHW)), y_SK)
        return torch.autograd.grad(value, x_SCHW)[0], value.detach()

    grad_x, loss = loop.class_by_class(problem, state.x, matched)
    x, velocity_x = move(state.x, state.velocity_x, grad_x)
    if config.calibration:
        x, velocity_x = move(x, velocity_x, loop.class_by_class(problem, x, calibrated)[0])
    loop.end_iteration(state, {"x": x, "velocity_x": velocity_x}, loss, grad_x.norm(), expert=expert)
