"""Trajectory matching: the loss of Cazenavette et al. (MTT, 2022) and its exact gradient in constant memory.

Legend: J steps (M = J + 1 points), B batch, S synthetic images, K classes, C H W image, P flat parameters.

A student starts at the expert's θ_0 and takes J steps on synthetic data::

    θ_{j+1} = θ_j − β g_j,   g_j = ∇_θ ℓ(f(θ_j; A_j(X_{B_j})), Y_{B_j}),

and should end where the expert is M epochs later:  L = ‖θ_J − θ*‖² / ‖θ_0 − θ*‖².

The reverse sweep carries one vector λ_j = ∂L/∂θ_j and needs, per step, only Hessian-vector products of one step's
loss, which need no graph over the unroll (``exact``)::

    λ_J = 2(θ_J − θ*) / ‖θ_0 − θ*‖²
    (h, m_X, m_Y) = ∇_{θ,x,y} ⟨∇_θ ℓ(θ_j; x, y), λ_{j+1}⟩
    ∂L/∂X_{B_j} −= β A_jᵀ(m_X),  ∂L/∂Y_{B_j} −= β m_Y,  ∂L/∂β −= ⟨g_j, λ_{j+1}⟩,  λ_j = λ_{j+1} − β h

Memory: J + 1 parameter vectors and one step's graph. By symmetry the products are also the derivative of ∇_{θ,x,y} ℓ
along λ_{j+1} (a jvp), but differentiating twice in reverse by plain autograd takes less time, above all for small
networks. ``unrolled`` (autograd through all J steps, as MTT's authors do) and ``tesla`` (without the Hessian products,
λ_j = λ_J; Cui et al. 2023) are there for comparison.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.func import vjp

from tadlib.errors import known, require
from tadlib.nn import augment
from tadlib.nn.speed import Compiled, channels_last
from tadlib.nn.training import gradient

Apply = Callable[[Tensor, Tensor], Tensor]  # (theta_P, x_NCHW) -> logits_NK


@dataclass(frozen=True)
class Step:
    """The batch of one student step, as indices into the synthetic set (B,), and its augmentation."""

    index_B: Tensor
    draws: tuple[augment.Draw, ...] = ()


@dataclass(frozen=True)
class Matched:
    """Matching loss (), and its gradients by images, labels and learning rate ()."""

    loss: Tensor
    grad_x: Tensor
    grad_y: Tensor
    grad_lr: Tensor


def soft_cross_entropy(logits_BK: Tensor, y_BK: Tensor) -> Tensor:
    """Mean cross entropy against label distributions (B, K)."""
    return -(y_BK * logits_BK.log_softmax(1)).sum(1).mean()


def distance(theta_P: Tensor, start_P: Tensor, target_P: Tensor) -> Tensor:
    """‖θ − θ*‖² / ‖θ_0 − θ*‖² (MTT, eq. 2)."""
    return (theta_P - target_P).square().sum() / (start_P - target_P).square().sum()


def _sweeps(net: Apply, loss_fn: Callable) -> tuple[Callable[..., Tensor], Callable[..., tuple[Tensor, ...]]]:
    """A step forward, (θ_i, x, y, β) -> θ_{i+1}, and back, (θ_i, λ_{i+1}, x, y) -> (h, m_X, m_Y, ⟨g_i, λ_{i+1}⟩), on
    augmented images."""

    def loss(theta_P, x_B, y_B):
        return loss_fn(net(theta_P, x_B), y_B)

    def forward(theta_P, x_B, y_B, lr):
        return theta_P - lr * gradient(loss, theta_P, x_B, y_B)

    def reverse(theta_P, adjoint_P, x_B, y_B):
        leaves = [t.detach().requires_grad_() for t in (theta_P, x_B, y_B)]
        with torch.enable_grad():
            (g_P,) = torch.autograd.grad(loss(*leaves), leaves[0], create_graph=True)
            along = g_P @ adjoint_P
        return *torch.autograd.grad(along, leaves), along.detach()

    return forward, reverse


@lru_cache(maxsize=8)
def _compiled_sweeps(net: Apply, loss_fn: Callable) -> tuple[Compiled, Compiled]:
    """The same compiled, kept for the next segment."""
    forward, reverse = _sweeps(net, loss_fn)
    return Compiled(forward), Compiled(reverse)


@torch.no_grad()  # what is differentiated turns gradients on for itself
def _exact(
    net: Apply, start_P, target_P, x, y, lr, steps, loss_fn, *, compile: bool = False, hessian: bool = True
) -> Matched:
    forward, reverse = _compiled_sweeps(net, loss_fn) if compile else _sweeps(net, loss_fn)

    def augmented(x_B: Tensor, draws: tuple[augment.Draw, ...]) -> Tensor:
        x_B = augment.apply(draws, x_B)
        return channels_last(x_B) if compile else x_B

    # one block: allocated one by one between the steps, they would fragment the memory that the next step needs
    thetas_MP = start_P.new_empty(len(steps) + 1, len(start_P))
    thetas_MP[0] = start_P
    for i, step in enumerate(steps):
        thetas_MP[i + 1] = forward(thetas_MP[i], augmented(x[step.index_B], step.draws), y[step.index_B], lr)

    adjoint_P = 2 * (thetas_MP[-1] - target_P) / (start_P - target_P).square().sum()
    grad_x, grad_y, grad_lr = torch.zeros_like(x), torch.zeros_like(y), torch.zeros_like(lr)
    for i, step in reversed(list(enumerate(steps))):
        x_B, pull_back = vjp(partial(augmented, draws=step.draws), x[step.index_B])  # type: ignore[misc]
        h_P, m_x, m_y, along = reverse(thetas_MP[i], adjoint_P, x_B, y[step.index_B])
        grad_x.index_add_(0, step.index_B, pull_back(m_x)[0], alpha=-1)
        grad_y.index_add_(0, step.index_B, m_y, alpha=-1)
        grad_lr -= along
        if hessian:
            adjoint_P = adjoint_P - lr * h_P
    loss = distance(thetas_MP[-1], start_P, target_P)
    return Matched(loss, grad_x * lr, grad_y * lr, grad_lr)


def _unrolled(net: Apply, start_P, target_P, x, y, lr, steps, loss_fn, *, compile: bool = False) -> Matched:
    require(not compile, "gradient unrolled is not compiled: its graph is as long as the segment")
    x, y, lr = (t.detach().requires_grad_() for t in (x, y, lr))
    theta = start_P.detach().requires_grad_()
    for step in steps:
        batch_loss = loss_fn(net(theta, augment.apply(step.draws, x[step.index_B])), y[step.index_B])
        (g,) = torch.autograd.grad(batch_loss, theta, create_graph=True)
        theta = theta - lr * g
    loss = distance(theta, start_P, target_P)
    return Matched(loss.detach(), *torch.autograd.grad(loss, (x, y, lr)))


_tesla = partial(_exact, hessian=False)
GRADIENTS: dict[str, Callable[..., Matched]] = {"exact": _exact, "unrolled": _unrolled, "tesla": _tesla}


def match(
    net: Apply,
    start_P: Tensor,
    target_P: Tensor,
    x_SCHW: Tensor,
    y_SK: Tensor,
    lr: Tensor,
    steps: Sequence[Step],
    *,
    gradient: str = "exact",
    loss_fn: Callable[[Tensor, Tensor], Tensor] = soft_cross_entropy,
    compile: bool = False,
) -> Matched:
    """The matching loss of one segment and its gradient with respect to images, labels and learning rate.

    Args:
        net: twice differentiable almost everywhere.
        start_P, target_P: the expert's parameters θ_0 where the student starts, and θ* where it should end.
        y_SK: labels as ``loss_fn`` takes them (distributions, by default).
        lr: the student's learning rate β, a scalar tensor.
        gradient: ``exact`` (constant memory), ``unrolled`` (the same by autograd) or ``tesla`` (approximate).
        loss_fn: the student's loss of logits and labels; compiled code is cached by ``net`` and this function, so pass
            a named one rather than a new lambda at every call.
        compile: compile the steps of both sweeps (not for ``unrolled``). It takes a minute at the first segment and
            pays over some hundreds of segments of wide networks. Without a C++ compiler the steps run uncompiled, and
            a warning is logged.
    """
    known("gradient", gradient, GRADIENTS)
    require(len(steps) >= 1, "a segment needs at least one student step, got 0")
    require(start_P.shape == target_P.shape, f"start {tuple(start_P.shape)} and target {tuple(target_P.shape)} differ")
    require(not torch.equal(start_P, target_P), "start and target of a segment are the same point")
    return GRADIENTS[gradient](net, start_P, target_P, x_SCHW, y_SK, lr, steps, loss_fn, compile=compile)
