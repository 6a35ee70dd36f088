"""The one training loop, for auditors, experts and evaluated networks.

Legend: N samples, B batch, K classes, C H W image, D features, P flat parameters.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from tadlib.errors import require
from tadlib.nn import augment
from tadlib.nn.networks import Network
from tadlib.nn.speed import Compiled, Recorded, channels_last

EVAL_BATCH = 1000  # images of at most 64x64 pixels per forward pass when nothing is learned

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # (logits_BK, y_BK, w_B) -> ()


def gradient(loss: Callable[..., Tensor], theta_P: Tensor, *rest: Tensor) -> Tensor:
    """``∇_θ loss(θ, *rest)`` by plain autograd.

    :func:`torch.func.grad` would also record the backward pass, in case it is differentiated again, and split group
    norm into elementary operations: up to twice the time of a small network's step.
    """
    with torch.enable_grad():
        leaf_P = theta_P.detach().requires_grad_()
        return torch.autograd.grad(loss(leaf_P, *rest), leaf_P)[0]


@dataclass(frozen=True)
class Sgd:
    """SGD with momentum and weight decay, in PyTorch's convention (v ← mv + g + wd·θ; θ ← θ − lr·v).

    With ``rho`` > 0 the gradient g is that of adaptive GSAM (Zhuang et al. 2022), with which FTD and DATM train their
    experts: ascend to ``θ̂ = θ + ρ θ² g / ‖ |θ| g ‖``, take ĝ = ∇ℓ(θ̂) there, and go along ĝ − α g_⊥, where g_⊥ is the
    part of g at right angles to ĝ.
    """

    lr: float | Tensor
    momentum: float = 0.0
    weight_decay: float = 0.0
    rho: float = 0.0
    alpha: float = 0.0

    def direction(self, slope: Callable[[Tensor], Tensor], theta_P: Tensor) -> Tensor:
        """g (P,) from ``slope(theta_P)``, the gradient of the batch's loss."""
        g_P = slope(theta_P)
        if not self.rho:
            return g_P
        tiny = 1e-12  # as in the authors' code
        ascent_P = theta_P.square() * g_P * (self.rho / ((theta_P * g_P).norm() + tiny))
        there_P = slope(theta_P + ascent_P)
        across_P = g_P - there_P * ((g_P @ there_P) / (there_P.square().sum() + tiny))
        return there_P - self.alpha * across_P

    def step(self, theta_P: Tensor, g_P: Tensor, velocity_P: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The next parameters and velocity; ``velocity_P`` None stands for zeros."""
        if self.weight_decay:
            g_P = g_P.add(theta_P, alpha=self.weight_decay)
        if self.momentum:
            g_P = velocity_P = g_P if velocity_P is None else velocity_P.mul(self.momentum).add_(g_P)
        if isinstance(self.lr, Tensor):  # in a compiled step
            return theta_P - self.lr * g_P, velocity_P
        return theta_P.sub(g_P, alpha=self.lr), velocity_P

    def zeros(self, theta_P: Tensor) -> Tensor:
        """The velocity before the first step."""
        return torch.zeros_like(theta_P)


@dataclass(frozen=True)
class AdamW(Sgd):
    """AdamW (Loshchilov & Hutter 2019) with β₁ = ``momentum``, β₂ = .999, ε = 1e-8, as in PyTorch; ``rho`` must be 0.

    The velocity (2, P + 1) holds the averages of g and g². Each ends with the average of ones, which is 1 − βᵗ: the
    correction of the averages' bias needs no count of steps.
    """

    momentum: float = 0.9
    weight_decay: float | Tensor = 0.0  # type: ignore[assignment]  # of all parameters, or (P,) of each

    def step(self, theta_P: Tensor, g_P: Tensor, velocity_P: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The next parameters and velocity; ``velocity_P`` None stands for zeros."""
        g_P = torch.nn.functional.pad(g_P, (0, 1), value=1.0)
        first_P, second_P = (self.zeros(theta_P) if velocity_P is None else velocity_P).unbind(-2)
        first_P = first_P.lerp(g_P, 1 - self.momentum)
        second_P = second_P.lerp(g_P.square(), 1 - 0.999)
        mean_P, square_P = (m[..., :-1] / m[..., -1:] for m in (first_P, second_P))
        moved_P = theta_P * (1 - self.lr * self.weight_decay) - self.lr * mean_P / (square_P.sqrt() + 1e-8)
        return moved_P, torch.stack([first_P, second_P], -2)

    def zeros(self, theta_P: Tensor) -> Tensor:
        return theta_P.new_zeros(*theta_P.shape[:-1], 2, theta_P.shape[-1] + 1)


OPTIMISERS: dict[str, type[Sgd]] = {"sgd": Sgd, "adamw": AdamW}


def weighted_loss(logits_BK: Tensor, y_BK: Tensor, w_B: Tensor) -> Tensor:
    """Cross entropy against label distributions, averaged with weights."""
    return -(w_B * (y_BK * logits_BK.log_softmax(1)).sum(1)).sum() / w_B.sum().clamp_min(1e-12)


def batches(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """A random permutation of range(n) cut into batches of nearly equal size, none above ``size``."""
    order = torch.randperm(n, generator=generator, device=generator.device)
    yield from order.tensor_split(-(-n // size))


@dataclass(frozen=True)
class State:
    """A network in training: parameters (P,) and velocity (P,) or None."""

    theta: Tensor
    velocity: Tensor | None = None


def _step(net: Network, sgd: Sgd, loss_fn: Loss, extra: Callable | None = None) -> Callable[..., tuple[Tensor, ...]]:
    """A training step ``(θ, v, x, y, w, lr[, index]) -> (θ[, v], logits before it)``; ``index`` is for ``extra``."""

    def step(theta_P, velocity_P, x_B, y_B, w_B, lr, *index_B):
        logits: list[Tensor] = []

        def loss(theta_P: Tensor) -> Tensor:
            logits.append(net(theta_P, x_B))
            value = loss_fn(logits[-1], y_B, w_B)
            return value if extra is None else value + extra(logits[-1], *index_B)

        rule = replace(sgd, lr=lr)
        moved = rule.step(theta_P, rule.direction(partial(gradient, loss), theta_P), velocity_P)
        return *(moved if sgd.momentum or isinstance(sgd, AdamW) else moved[:1]), logits[0].detach()

    return step


@lru_cache(maxsize=16)
def _compiled(net: Network, sgd: Sgd, loss_fn: Loss) -> Compiled:
    """A compiled step, kept for the next epoch and the next network."""
    return Compiled(_step(net, sgd, loss_fn))


@lru_cache(maxsize=4)  # each keeps the memory of a step
def _recorded(net: Network, sgd: Sgd, loss_fn: Loss) -> Recorded:
    """A step recorded on a GPU, kept likewise."""
    return Recorded(_step(net, sgd, loss_fn))


def train_epoch(
    net: Network,
    state: State,
    x_NCHW: Tensor,
    y_NK: Tensor,
    w_N: Tensor,
    *,
    sgd: Sgd,
    batch: int,
    strategy: str,
    generator: torch.Generator,
    extra: Callable[[Tensor, Tensor], Tensor] | None = None,
    loss_fn: Loss = weighted_loss,
    on_step: Callable[[Tensor, Tensor, Tensor], None] | None = None,
    compile: bool = False,
    cutmix: float = 0.0,
) -> State:
    """One pass over the samples; those of weight 0 are left out unless ``extra`` or ``on_step`` is given.

    Args:
        y_NK, w_N: label distributions and weights.
        strategy: of augmentation, drawn for each batch by ``generator`` (on the data's device), as is the order.
        extra: ``extra(logits_BK, index_B)``, a further loss added to ``loss_fn``.
        on_step: called after every step as ``on_step(index_B, logits_BK, theta_P)``, with the logits before the step
            and the parameters after it.
        compile: compile the step (:class:`tadlib.nn.speed.Compiled`), once for each size of batch, of which an epoch
            has at most two; not with ``extra`` or ``on_step``, which may be any Python code.
        cutmix: probability that a batch is mixed (:func:`tadlib.nn.augment.cutmix`).
    """
    everyone = extra is not None or on_step is not None
    require(not everyone or not compile, "a step with a further loss or an observer cannot be compiled")
    used = None if everyone or bool((w_N > 0).all()) else w_N.nonzero()[:, 0]
    n = len(x_NCHW) if used is None else len(used)
    require(n >= 1, "training needs a sample of positive weight, got none")

    plain = not compile and (extra is not None or not x_NCHW.is_cuda)
    step: Callable[..., tuple[Tensor, ...]] = _step(net, sgd, loss_fn, extra)
    lr = sgd.lr
    if not plain:
        step = (_compiled if compile else _recorded)(net, replace(sgd, lr=0.0), loss_fn)
        lr = state.theta.new_tensor(lr)
    for index_B in batches(n, batch, generator):
        index_B = index_B if used is None else used[index_B]
        x_B, y_B, w_B = augmented(index_B, x_NCHW, y_NK, w_N, strategy, cutmix, generator)
        x_B = channels_last(x_B) if compile else x_B
        velocity_P = state.velocity if plain or state.velocity is not None else sgd.zeros(state.theta)
        more = (index_B,) if plain else ()
        *moved, logits_BK = step(state.theta, velocity_P, x_B, y_B, w_B, lr, *more)
        state = State(*moved)
        if on_step is not None:
            on_step(index_B, logits_BK, state.theta)
    return state


def augmented(index_B, x_NCHW, y_NK, w_N, strategy, cutmix, generator) -> tuple[Tensor, Tensor, Tensor]:
    """Images as they are trained on, label distributions and weights."""
    x_B = augment.apply(augment.draw(strategy, len(index_B), generator), x_NCHW[index_B])
    y_B, w_B = y_NK[index_B], w_N[index_B]
    return augment.cutmix(x_B, y_B, w_B, cutmix, generator) if cutmix else (x_B, y_B, w_B)


def train_epoch_together(
    net: Network,
    states: Sequence[State],
    x_NCHW: Tensor,
    y_NK: Tensor,
    w_N: Tensor,
    *,
    generators: Sequence[torch.Generator],
    sgd: Sgd,
    batch: int,
    strategy: str,
    compile: bool = False,
    cutmix: float = 0.0,
    stacked: bool = False,
    workers: int = 1,
) -> list[State]:
    """One pass of several networks over the same samples, each with its own generator (see :func:`train_epoch`).

    With ``stacked`` all take a step at once, which fills a GPU; it equals one after the other up to rounding. Otherwise
    ``workers`` threads train a network each, with the same bits as one after the other.
    """
    how: dict[str, Any] = {"sgd": sgd, "batch": batch, "strategy": strategy, "cutmix": cutmix}
    if stacked and not sgd.rho:
        return _train_stacked(net, states, x_NCHW, y_NK, w_N, generators=generators, **how)

    def one(net: Network, state: State, generator: torch.Generator) -> State:
        return train_epoch(net, state, x_NCHW, y_NK, w_N, generator=generator, compile=compile, **how)

    if workers == 1 or compile:  # tracing changes settings of the whole process
        return [one(net, *each) for each in zip(states, generators, strict=True)]
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(one, _copies(net, len(states)), states, generators))


@lru_cache(maxsize=8)
def _copies(net: Network, n: int) -> tuple[Network, ...]:
    """One network for each thread: a call puts its parameters into the module while it runs."""
    return tuple(replace(net) for _ in range(n))


@lru_cache(maxsize=4)
def _stacked_gradient(net: Network) -> Recorded:
    """Gradients (R, P) of R networks at once, of ``(θ (R, P), x (R, B, C, H, W), y (R, B, K), w (R, B))``."""

    def losses(theta_RP, x_RB, y_RB, w_RB):
        def loss(theta_P, x_B, y_B, w_B):
            return weighted_loss(net(theta_P, x_B), y_B, w_B)

        return vmap(loss)(theta_RP, x_RB, y_RB, w_RB).sum()  # networks share nothing: each gets its own gradient

    return Recorded(partial(gradient, losses))


def _train_stacked(net, states, x_NCHW, y_NK, w_N, *, generators, sgd, batch, strategy, cutmix) -> list[State]:
    used = w_N.nonzero()[:, 0]
    require(len(used) >= 1, "training needs a sample of positive weight, got none")
    slope: Callable[..., Tensor] = _stacked_gradient(net) if x_NCHW.is_cuda else _stacked_gradient(net).f

    theta_RP = torch.stack([s.theta for s in states])
    velocities = [s.velocity for s in states if s.velocity is not None]
    velocity_RP = torch.stack(velocities) if velocities else None
    for indices in zip(*(batches(len(used), batch, g) for g in generators), strict=True):
        index_RB = used[torch.stack(indices)]
        parts = (
            augmented(i, x_NCHW, y_NK, w_N, strategy, cutmix, g) for i, g in zip(index_RB, generators, strict=True)
        )
        g_RP = slope(theta_RP, *map(torch.stack, zip(*parts, strict=True)))
        theta_RP, velocity_RP = sgd.step(theta_RP, g_RP, velocity_RP)
    return [State(theta_RP[r], None if velocity_RP is None else velocity_RP[r]) for r in range(len(states))]


def unlearned(x_NCHW: Tensor) -> Iterator[Tensor]:
    """All images in batches for forward passes alone; of large images as many as take the memory of 1000 small ones."""
    pixels = x_NCHW.shape[-2] * x_NCHW.shape[-1]
    yield from x_NCHW.split(EVAL_BATCH if pixels <= 64**2 else max(1, EVAL_BATCH * 32**2 // pixels))


@torch.no_grad()
def predict(net: Network, theta_P: Tensor, x_NCHW: Tensor, *, mirror: bool = False) -> tuple[Tensor, Tensor]:
    """Logits (N, K) and penultimate features (N, D), in batches, without augmentation, or of mirror images."""
    seen = (x_B.flip(3) if mirror else x_B for x_B in unlearned(x_NCHW))
    features_ND = torch.cat([net.features(theta_P, x_B) for x_B in seen])
    return net.head(theta_P, features_ND), features_ND


@torch.no_grad()
def accuracy(net: Network, theta_P: Tensor, x_NCHW: Tensor, y_N: Tensor) -> float:
    """Fraction of images whose largest logit is that of their label."""
    label_N = torch.cat([net(theta_P, x_B).argmax(1) for x_B in unlearned(x_NCHW)])
    return (label_N == y_N).sum().item() / len(y_N)


def one_hot(y_N: Tensor, n_classes: int) -> Tensor:
    """Labels (N,) as float32 distributions (N, K)."""
    return torch.nn.functional.one_hot(y_N, n_classes).to(torch.float32)
