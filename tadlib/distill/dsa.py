"""DSA: dataset condensation by gradient matching under Siamese augmentation (Zhao et al., ICLR 2021; ICML 2021).

Legend: B batch, S synthetic images, K classes, C H W image, P flat parameters.

Along the training of fresh networks on the synthetic set, the gradient that a class's synthetic images give is drawn
to the one its real images give, both under the same augmentation A_ω (DSA, eq. 7):

    L = Σ_k D( ∇_θ ℓ(θ; A_ω(S_k), k), ∇_θ ℓ(θ; A_ω(B_k), k) )

D adds 1 − cos over the rows of every weight matrix: one output filter or unit each (DC, eq. 10).
"""

import torch
from torch import Tensor

from tadlib.config import DsaConfig
from tadlib.distill.loop import Loop, driver, momentum_step, start_from_real
from tadlib.distill.synthetic import Real
from tadlib.matching import soft_cross_entropy
from tadlib.nn import augment
from tadlib.nn.networks import Network
from tadlib.nn.training import Sgd, State, train_epoch
from tadlib.rng import generator

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


def start(net: Network, x_NCHW: Tensor, y_NK: Tensor, w_N: Tensor, experts, config: DsaConfig, *, ipc, seed) -> Loop:
    """Choose the real images to start from; ``experts`` are not used.

    Raises:
        InputError: when a class has fewer than ``ipc`` usable images.
    """
    random = generator(seed, "dsa", device=x_NCHW.device)
    return start_from_real(net, Real.of(x_NCHW, y_NK, w_N, config.draw_power), config, random, ipc=ipc)


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


def advance(loop: Loop) -> None:
    """One fresh network, trained on the images as they change. What is not finite changes nothing and is counted."""
    config, t, random, real = loop.config, dict(loop.tensors), loop.generator, loop.real
    assert real is not None
    fresh = int(torch.randint(2**31, (), generator=random, device=random.device))
    state = State(loop.net.init(fresh, "dsa"))
    weight_S = torch.ones(len(t["x"]), device=t["x"].device)
    losses, norms = [], []
    for step in range(config.outer_steps):
        parts = []
        for k, x_SCHW in enumerate(t["x"].chunk(real.n_classes)):
            index_B = real.draw(k, config.batch_real, random)
            draws = augment.draw(config.augmentation, 1, random)
            y_K = t["y"][k * len(x_SCHW)]
            parts.append(class_gradient(loop.net, state.theta, draws, real.x[index_B], x_SCHW, y_K))
        grad_x = torch.cat([g for g, _ in parts])
        losses.append(torch.stack([value for _, value in parts]).sum())
        norms.append(grad_x.norm())
        t["x"], t["velocity_x"] = momentum_step(t["x"], t["velocity_x"], grad_x, config.lr_img, config.momentum)
        if step < config.outer_steps - 1:
            for _ in range(config.inner_epochs):
                state = train_epoch(
                    loop.net,
                    state,
                    t["x"],
                    t["y"],
                    weight_S,
                    sgd=Sgd(config.lr_net),
                    batch=config.batch_train,
                    strategy=config.augmentation,
                    generator=random,
                )
    loss, norm = torch.stack(losses).mean(), torch.stack(norms).mean()
    finite = bool(loss.isfinite() & t["x"].isfinite().all())
    if finite:
        loop.tensors |= t
    loop.rows.append(
        {
            "finite": finite,
            "loss": loss.item() if finite else None,
            "grad_norm": norm.item() if finite else None,
            "lr": config.lr_net,
        }
    )


distill = driver(start, advance)
