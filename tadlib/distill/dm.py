"""DM: dataset condensation by distribution matching (Zhao & Bilen, WACV 2023).

Legend: B batch, S synthetic images, K classes, C H W image, D features, P flat parameters.

A fresh random network ψ each iteration embeds real and synthetic images under one augmentation A_ω; the images of a
class k move so that the two mean embeddings meet (eq. 4):

    L = Σ_k ‖ mean_B ψ(A_ω(x)) − mean_S ψ(A_ω(s)) ‖²
"""

import torch
from torch import Tensor

from tadlib.config import DmConfig
from tadlib.distill.loop import Loop, driver, momentum_step, start_from_real
from tadlib.distill.synthetic import Real
from tadlib.nn import augment
from tadlib.nn.networks import Network
from tadlib.rng import generator


def distance(real_BD: Tensor, synthetic_BD: Tensor) -> Tensor:
    """Squared distance between the means of two batches of embeddings."""
    return (real_BD.mean(0) - synthetic_BD.mean(0)).square().sum()


def start(net: Network, x_NCHW: Tensor, y_NK: Tensor, w_N: Tensor, experts, config: DmConfig, *, ipc, seed) -> Loop:
    """Choose the real images to start from; ``experts`` are not used.

    Raises:
        InputError: when a class has fewer than ``ipc`` usable images.
    """
    random = generator(seed, "dm", device=x_NCHW.device)
    return start_from_real(net, Real.of(x_NCHW, y_NK, w_N, config.draw_power), config, random, ipc=ipc)


def class_gradient(
    net: Network, theta_P: Tensor, draws: tuple[augment.Draw, ...], real_BCHW: Tensor, x_SCHW: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradient with respect to one class's synthetic images (S, C, H, W), and its distance ()."""
    with torch.no_grad():
        real_BD = net.features(theta_P, augment.apply(draws, real_BCHW))
    x_SCHW = x_SCHW.detach().requires_grad_()
    value = distance(real_BD, net.features(theta_P, augment.apply(draws, x_SCHW)))
    return torch.autograd.grad(value, x_SCHW)[0], value.detach()


def advance(loop: Loop) -> None:
    """One fresh network. An iteration that is not finite changes nothing and is counted."""
    config, t, random, real = loop.config, loop.tensors, loop.generator, loop.real
    assert real is not None
    fresh = int(torch.randint(2**31, (), generator=random, device=random.device))
    theta_P = loop.net.init(fresh, "dm")
    parts = []
    for k, x_SCHW in enumerate(t["x"].chunk(real.n_classes)):
        index_B = real.draw(k, config.batch_real, random)
        draws = augment.draw(config.augmentation, 1, random)
        parts.append(class_gradient(loop.net, theta_P, draws, real.x[index_B], x_SCHW))
    grad_x, loss = torch.cat([g for g, _ in parts]), torch.stack([value for _, value in parts]).sum()
    x, velocity_x = momentum_step(t["x"], t["velocity_x"], grad_x, config.lr_img, config.momentum)
    finite = bool(loss.isfinite() & x.isfinite().all())
    if finite:
        t |= {"x": x, "velocity_x": velocity_x}
    loop.rows.append(
        {
            "finite": finite,
            "loss": loss.item() if finite else None,
            "grad_norm": grad_x.norm().item() if finite else None,
            "lr": config.lr_net,
        }
    )


distill = driver(start, advance)
