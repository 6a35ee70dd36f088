"""DM: dataset condensation by distribution matching (Zhao & Bilen, WACV 2023).

Legend: B batch, S synthetic images, K classes, C H W image, D features, P flat parameters.

In each iteration, a fresh random network ψ embeds real and synthetic images under one augmentation A_ω; the images of a
class k move so that the two mean embeddings meet (eq. 4):

    L = Σ_k ‖ mean_B ψ(A_ω(x)) − mean_S ψ(A_ω(s)) ‖²
"""

from torch import Tensor

from tadlib.distill import distributions, loop
from tadlib.distill.loop import Problem, State


def distance(real_BD: Tensor, synthetic_BD: Tensor) -> Tensor:
    """Squared distance between the means of two batches of embeddings."""
    return (real_BD.mean(0) - synthetic_BD.mean(0)).square().sum()


def start(problem: Problem) -> State:
    """Choose the real images to start from."""
    return loop.start_from_real(problem, "dm", problem.config.lr_net)


def advance(problem: Problem, state: State) -> None:
    """One fresh network."""
    config, theta_P = problem.config, loop.fresh_network(problem, state, "dm")

    def gradient(k: int, x_SCHW: Tensor) -> tuple[Tensor, Tensor]:
        index_B, draws = loop.drawn(problem, k, state.generator)
        real_BCHW = problem.real.x[index_B]
        return distributions.class_gradient(problem.net, theta_P, draws, real_BCHW, x_SCHW, distance)

    grad_x, loss = loop.class_by_class(problem, state.x, gradient)
    x, velocity_x = loop.momentum_step(state.x, state.velocity_x, grad_x, config.lr_img, config.momentum)
    loop.end_iteration(state, {"x": x, "velocity_x": velocity_x}, loss, grad_x.norm())


distill = loop.driver(start, advance)
