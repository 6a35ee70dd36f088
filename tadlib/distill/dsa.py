"""DSA: dataset condensation by gradient matching under Siamese augmentation (Zhao et al., ICLR 2021; ICML 2021).

Legend: B batch, S synthetic images, K classes, C H W image, P flat parameters.

While fresh networks train on the synthetic set, the gradient of a class's synthetic images is matched to that of its
real images, both under the same augmentation A_ω (DSA, eq. 7):

    L = Σ_k D( ∇_θ ℓ(θ; A_ω(S_k), k), ∇_θ ℓ(θ; A_ω(B_k), k) )

D adds 1 − cos over the rows of every weight matrix: one output filter or unit each (DC, eq. 10).
"""

import torch
from torch import Tensor

from tadlib.distill import loop
from tadlib.distill.loop import Problem, State
from tadlib.distill.synthetic import Synthetic
from tadlib.matching import soft_cross_entropy
from tadlib.nn import augment
from tadlib.nn import training as train
from tadlib.nn.networks import Network

EPSILON = 1e-6  # keeps the cosine of a row of zeros finite, as in DC's code


def distance(net: Network, real_P: Tensor, synthetic_P: Tensor) -> Tensor:
    """D of two gradients: 1 − cos, summed over the rows of all weights; biases and norms are left out."""
    total = synthetic_P.new_zeros(())
    synthetic = net.unflatten(synthetic_P)
    for name, real in net.unflatten(real_P).items():
        if real.ndim > 1:
            a, b = real.flatten(1), synthetic[name].flatten(1)
            total = total + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + EPSILON)).sum()
    return total


def class_gradient(
    net: Network,
    theta_P: Tensor,
    draws: tuple[augment.Draw, ...],
    real_BCHW: Tensor,
    x_SCHW: Tensor,
    y_K: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradient with respect to the synthetic images of the class with one-hot label ``y_K``, and its distance ().

    By autograd rather than :mod:`torch.func`, which would record the backward pass over the real images as well.
    """
    theta_P = theta_P.detach().requires_grad_()

    def parameter_gradient(x_BCHW: Tensor, *, recorded: bool = False) -> Tensor:
        logits_BK = net(theta_P, augment.apply(draws, x_BCHW))
        loss = soft_cross_entropy(logits_BK, y_K.expand(len(x_BCHW), -1))
        return torch.autograd.grad(loss, theta_P, create_graph=recorded)[0]

    x_SCHW = x_SCHW.detach().requires_grad_()
    value = distance(net, parameter_gradient(real_BCHW), parameter_gradient(x_SCHW, recorded=True))
    return torch.autograd.grad(value, x_SCHW)[0], value.detach()


def start(problem: Problem) -> State:
    """Choose the real images to start from."""
    return loop.start_from_real(problem, "dsa", problem.config.lr_net)


def advance(problem: Problem, state: State) -> None:
    """One fresh network, trained on the images as they change."""
    config, net, random, y_SK = problem.config, problem.net, state.generator, state.y
    student = train.State(loop.fresh_network(problem, state, "dsa"))
    x, velocity_x = state.x, state.velocity_x
    losses, norms = [], []

    def gradient(k, x_SCHW):
        index_B, draws = loop.drawn(problem, k, random)
        return class_gradient(net, student.theta, draws, problem.real.x[index_B], x_SCHW, y_SK[k * problem.ipc])

    for step in range(config.outer_steps):
        grad_x, loss = loop.class_by_class(problem, x, gradient)
        losses.append(loss)
        norms.append(grad_x.norm())
        x, velocity_x = loop.momentum_step(x, velocity_x, grad_x, config.lr_img, config.momentum)
        seen = Synthetic(x, y_SK, config.lr_net, config.formation).decoded()
        for _ in range(config.inner_epochs if step < config.outer_steps - 1 else 0):
            student = train.train_epoch(
                net,
                student,
                seen.x,
                seen.y,
                seen.y.new_ones(len(seen.y)),
                sgd=train.Sgd(config.lr_net),
                batch=config.batch_train,
                strategy=config.augmentation,
                generator=random,
            )
    loop.end_iteration(state, {"x": x, "velocity_x": velocity_x}, torch.stack(losses).mean(), torch.stack(norms).mean())


distill = loop.driver(start, advance)
