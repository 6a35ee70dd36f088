"""NCFM: neural characteristic function matching (Wang et al., CVPR 2025).

Legend: B batch, S synthetic images, D features, F frequencies, C H W image, P parameters of ψ.

The iteration is that of :mod:`tadlib.distill.distributions`. The distance of a class compares the characteristic
functions of its L2-normalised features at frequencies t ~ N(0, I); real images count by their trust w, synthetic ones
alike. With A the modulus of Φ:

    Φ(t) = Σ w exp(j tᵀf) / Σ w
    L = 300 · mean_t √( ½ (A_r − A_s)² + (A_r A_s − Re Φ_r Re Φ_s − Im Φ_r Im Φ_s) )

The first term compares amplitudes, the second phases; it is kept ≥ 1e-12. Images move by AdamW.

With ``sampling`` the frequencies are t = ψ(ε), ε ~ N(0, I), of a network ψ that ascends L by SGD while images descend
it. It is off, as in the code's main configurations (``sampling_net: False``). The code repeats each frequency 16 times,
which changes no mean, and ψ ascends after every class; here after all (our choice).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import batch_norm, leaky_relu, normalize

from tadlib.distill import distributions, loop
from tadlib.distill.loop import Problem, State
from tadlib.nn.training import AdamW

SCALE, LEAST = 300.0, 1e-12  # as in the authors' code
LAYERS, SLOPE, MOMENTUM = 3, 0.2, 0.5  # of ψ: its layers, the slope of its leaky ReLU, and SGD's momentum


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


def sampled(psi_P: Tensor, noise_FD: Tensor) -> Tensor:
    """Frequencies ψ(ε) (F, D): thrice linear, batch norm, leaky ReLU, the last time tanh."""
    d = noise_FD.shape[1]
    for i, layer in enumerate(psi_P.view(LAYERS, -1)):
        matrix, bias, scale, shift = layer.split([d * d, d, d, d])
        z_FD = batch_norm(noise_FD @ matrix.view(d, d).T + bias, None, None, scale, shift, training=True)
        noise_FD = z_FD.tanh() if i == LAYERS - 1 else leaky_relu(z_FD, SLOPE)
    return noise_FD


def initial_psi(d: int, random: torch.Generator) -> Tensor:
    """Parameters and velocity (2, P) of a new ψ, initialised as PyTorch does."""
    linear = (2 * torch.rand(LAYERS, d * (d + 1), generator=random, device=random.device) - 1) / d**0.5
    psi_P = torch.cat([linear, torch.ones_like(linear[:, :d]), torch.zeros_like(linear[:, :d])], 1).flatten()
    return torch.stack([psi_P, torch.zeros_like(psi_P)])


@dataclass
class Adversarial(State):
    """The state with ``psi``, parameters and velocity (2, P) of ψ where it samples."""

    psi: Tensor | None = None


def start(problem: Problem) -> Adversarial:
    """As DANCE, with AdamW's averages, and ψ where it samples."""
    state = Adversarial(**vars(distributions.start(problem)))
    state.velocity_x = AdamW(0.0).zeros(state.x.flatten())
    if problem.config.sampling:
        state.psi = initial_psi(problem.net.shapes["head.weight"][1], state.generator).to(state.x)
    return state


def advance(problem: Problem, state: Adversarial) -> None:
    """One network of the bank."""
    config = problem.config
    rule = AdamW(config.lr_img, config.momentum, config.weight_decay)
    slope_P = None if state.psi is None else torch.zeros_like(state.psi[0])  # of L, summed over classes

    def distance(real_BD: Tensor, w_B: Tensor, x_SD: Tensor, random: torch.Generator) -> Tensor:
        """L at random frequencies."""
        t_FD = torch.randn(config.frequencies, x_SD.shape[1], generator=random, device=random.device, dtype=x_SD.dtype)
        if state.psi is not None and slope_P is not None:
            psi_P = state.psi[0].detach().requires_grad_()
            t_FD = sampled(psi_P, t_FD)
            slope_P.add_(torch.autograd.grad(cf_distance(real_BD, w_B, x_SD.detach(), t_FD), psi_P)[0])
            t_FD = t_FD.detach()
        return cf_distance(real_BD, w_B, x_SD, t_FD)

    def move(x, velocity, grad_x):
        moved_P, velocity = rule.step(x.flatten(), grad_x.flatten(), velocity)
        return moved_P.view_as(x), velocity

    distributions.advance(problem, state, distance, move)
    if state.psi is not None and slope_P is not None and state.rows[-1]["finite"]:
        psi_P, velocity_P = state.psi
        state.psi = torch.stack(loop.momentum_step(psi_P, velocity_P, -slope_P, config.lr_sampling, MOMENTUM))


distill = loop.driver(start, advance)
