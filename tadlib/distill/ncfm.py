"""NCFM: neural characteristic function matching (Wang et al., CVPR 2025), without its sampling network.

Legend: B batch, S synthetic images, D features, F frequencies, C H W image.

The iteration is that of :mod:`tadlib.distill.distributions`. The distance of a class compares the characteristic
functions of its L2-normalised features at frequencies t ~ N(0, I); real images count by their trust w, synthetic ones
alike. With A the modulus of Φ:

    Φ(t) = Σ w exp(j tᵀf) / Σ w
    L = 300 · mean_t √( ½ (A_r − A_s)² + (A_r A_s − Re Φ_r Re Φ_s − Im Φ_r Im Φ_s) )

The first term compares amplitudes, the second phases; it is kept ≥ 1e-12. The code's main configurations draw t at
random as well (``sampling_net: False``); the network that can learn to draw it, ψ, is left out. Images move by AdamW.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tadlib.distill import distributions, loop
from tadlib.distill.loop import Problem, State
from tadlib.nn.training import AdamW

SCALE, LEAST = 300.0, 1e-12  # as in the authors' code


def characteristic(f_BD: Tensor, w_B: Tensor, t_FD: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of Φ (F,)."""
    angle_BF, w_B = f_BD @ t_FD.T, w_B / w_B.sum()
    return w_B @ angle_BF.cos(), w_B @ angle_BF.sin()


def cf_distance(real_BD: Tensor, w_B: Tensor, x_SD: Tensor, t_FD: Tensor) -> Tensor:
    """L of one class."""
    real_r, imag_r = characteristic(normalize(real_BD), w_B, t_FD)
    real_s, imag_s = characteristic(normalize(x_SD), torch.ones_like(x_SD[:, 0]), t_FD)
    a_r, a_s = torch.hypot(real_r, imag_r), torch.hypot(real_s, imag_s)
    phase = (a_r * a_s - real_r * real_s - imag_r * imag_s).clamp_min(LEAST)
    return SCALE * ((a_r - a_s).square() / 2 + phase).sqrt().mean()


def distance(real_BD: Tensor, w_B: Tensor, x_SD: Tensor, random: torch.Generator, *, frequencies: int) -> Tensor:
    """L at random frequencies."""
    t_FD = torch.randn(frequencies, x_SD.shape[1], generator=random, device=random.device, dtype=x_SD.dtype)
    return cf_distance(real_BD, w_B, x_SD, t_FD)


def start(problem: Problem) -> State:
    """As DANCE, with AdamW's averages."""
    state = distributions.start(problem)
    state.velocity_x = AdamW(0.0).zeros(state.x.flatten())
    return state


def advance(problem: Problem, state: State) -> None:
    """One network of the bank."""
    config = problem.config
    rule = AdamW(config.lr_img, config.momentum, config.weight_decay)

    def move(x, velocity, grad_x):
        moved_P, velocity = rule.step(x.flatten(), grad_x.flatten(), velocity)
        return moved_P.view_as(x), velocity

    distributions.advance(problem, state, partial(distance, frequencies=config.frequencies), move)


distill = loop.driver(start, advance)
