"""DATM: difficulty-aligned trajectory matching (Guo et al., ICLR 2024).

Legend: N samples, S synthetic images, K classes, C H W image.

MTT's loop with three changes. Segments are drawn from a window of epochs that suits the number of images: early ones
teach easy patterns, late ones hard patterns. Labels are learned: logits z, matched with the cross entropy against
softmax(z). A step whose matching loss exceeds a threshold is skipped.
"""

import torch
from torch import Tensor

from tadlib.config import DatmConfig
from tadlib.distill import mtt
from tadlib.distill.loop import Loop, driver
from tadlib.distill.mtt import LabelSgd
from tadlib.distill.synthetic import Real, Synthetic
from tadlib.experts import Trajectories
from tadlib.matching import soft_cross_entropy
from tadlib.nn.networks import Network
from tadlib.nn.training import predict

INITIALISATIONS = ("correct", "real")


def window(config: DatmConfig, iteration: int) -> range:
    """Start epochs that ``iteration`` may draw (DATM, section 3.3; its code rounds down)."""
    upper = config.max_start
    if iteration < config.expansion_end:
        grown = (config.max_start - config.max_start_initial) * iteration // config.expansion_end
        upper = config.max_start_initial + grown
    return range(config.min_start, upper)


def loss(logits_BK: Tensor, z_BK: Tensor) -> Tensor:
    """Cross entropy against softmax(z)."""
    return soft_cross_entropy(logits_BK, z_BK.softmax(1))


def right_images(net: Network, real: Real, experts: Trajectories, epoch: int, ipc: int) -> Real:
    """The refined set without what the experts get wrong, by the label in use.

    As in DATM's code one expert decides; a further one is asked only while a class has fewer than ``ipc`` right
    images. A class that no expert gets right so often keeps all its images (our choice: weak experts or many
    classes must not stop the run).
    """
    right_N = torch.zeros_like(real.label, dtype=torch.bool)
    usable_N = real.chance > 0
    for expert in range(len(experts)):
        theta_P = experts.read(expert, epoch).to(real.x.device)
        right_N |= (predict(net, theta_P, real.x)[0].argmax(1) == real.label) & usable_N
        counts_K = torch.bincount(real.label[right_N], minlength=real.n_classes)
        if int(counts_K.min()) >= ipc:
            break
    short_N = (counts_K < ipc)[real.label]
    return Real(real.x, real.label, torch.where(right_N | short_N, real.chance, 0.0), real.n_classes)


def mean_right_logits(net: Network, x_SCHW: Tensor, label_S: Tensor, experts: Trajectories, epoch: int) -> Tensor:
    """Logits (S, K), averaged over the experts that get the image right.

    Where none does, the mean of all with the entry of the label raised to the largest (our choice).
    """
    every_ESK = torch.stack(
        [predict(net, experts.read(e, epoch).to(x_SCHW.device), x_SCHW)[0] for e in range(len(experts))]
    )
    right_ES1 = (every_ESK.argmax(2) == label_S)[:, :, None].to(every_ESK.dtype)
    count_S1 = right_ES1.sum(0)
    mean_SK = every_ESK.mean(0)
    raised_SK = mean_SK.scatter(1, label_S[:, None], mean_SK.max(1, keepdim=True).values)
    return torch.where(count_S1 > 0, (every_ESK * right_ES1).sum(0) / count_S1.clamp_min(1), raised_SK)


def start(
    net: Network,
    x_NCHW: Tensor,
    y_NK: Tensor,
    w_N: Tensor,
    experts: Trajectories | None,
    config: DatmConfig,
    *,
    ipc: int,
    seed: int,
) -> Loop:
    """Check the input; choose images, and logits for them, by what the experts know after the last epoch read.

    Raises:
        InputError: when a class has fewer than ``ipc`` usable images, or the trajectories are too short.
    """
    random = mtt.family_generator(seed, x_NCHW.device)
    experts = mtt.require_experts(net, experts, config)
    real = Real.of(x_NCHW, y_NK, w_N, config.draw_power)
    if config.init == "correct":
        real = right_images(net, real, experts, config.last_epoch, ipc)
    x_SCHW, y_SK = real.choose(ipc, random)
    z_SK = mean_right_logits(net, x_SCHW, y_SK.argmax(1), experts, config.last_epoch)
    loop = mtt.begin(net, experts, config, random, x_SCHW, z_SK)
    loop.tensors["velocity_y"] = torch.zeros_like(z_SK)
    return loop


def advance(loop: Loop) -> None:
    """One iteration within the window."""
    c = loop.config
    labels = LabelSgd(c.lr_y, c.momentum_y)
    mtt.iterate(loop, window(c, loop.iteration), loss_fn=loss, labels=labels, threshold=c.threshold)


def softened(loop: Loop) -> Synthetic:
    """The set with its logits as distributions."""
    return Synthetic(loop.tensors["x"], loop.tensors["y"].softmax(1), loop.tensors["lr"].item())


distill = driver(start, advance, softened)
