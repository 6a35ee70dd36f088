"""DATM: difficulty-aligned trajectory matching (Guo et al., ICLR 2024).

Legend: N samples, S synthetic images, K classes, C H W image.

MTT's loop with three changes. Segments are drawn from a window of epochs that suits the number of images: early ones
teach easy patterns, late ones hard patterns. Labels are learned: logits z, matched with the cross entropy against
softmax(z). A step whose matching loss exceeds a threshold is skipped.
"""

from dataclasses import replace

import torch
from torch import Tensor

from tadlib.config import DatmConfig
from tadlib.distill import mtt
from tadlib.distill.loop import Problem, State, driver
from tadlib.distill.synthetic import Real, Synthetic
from tadlib.experts import Trajectories
from tadlib.matching import soft_cross_entropy
from tadlib.nn.training import predict


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


def right_images(problem: Problem, experts: Trajectories) -> Real:
    """The refined set without the images that the experts classify wrongly, by the hard training label.

    As in DATM's code one expert decides; a further one is asked only while a class has fewer than ``ipc`` right
    images. A class that stays below keeps all its images (our choice: weak experts or many classes must not stop the
    run).
    """
    real = problem.real
    right_N = torch.zeros_like(real.label, dtype=torch.bool)
    for expert in range(len(experts)):
        logits_NK = predicted(problem, experts, expert, real.x)
        right_N |= (logits_NK.argmax(1) == real.label) & (real.chance > 0)
        counts_K = torch.bincount(real.label[right_N], minlength=real.n_classes)
        if int(counts_K.min()) >= problem.ipc:
            break
    short_N = (counts_K < problem.ipc)[real.label]
    return replace(real, chance=torch.where(right_N | short_N, real.chance, 0.0))


def mean_right_logits(problem: Problem, experts: Trajectories, x_SCHW: Tensor, label_S: Tensor) -> Tensor:
    """Logits (S, K), averaged over the experts that classify the image rightly.

    Where none does, the mean of all with the entry of the label raised to the largest (our choice).
    """
    logits_ESK = torch.stack([predicted(problem, experts, e, x_SCHW) for e in range(len(experts))])
    right_ES1 = (logits_ESK.argmax(2) == label_S)[:, :, None].to(logits_ESK.dtype)
    count_S1 = right_ES1.sum(0)
    mean_SK = logits_ESK.mean(0)
    raised_SK = mean_SK.scatter(1, label_S[:, None], mean_SK.max(1, keepdim=True).values)
    return torch.where(count_S1 > 0, (logits_ESK * right_ES1).sum(0) / count_S1.clamp_min(1), raised_SK)


def predicted(problem: Problem, experts: Trajectories, expert: int, x_NCHW: Tensor) -> Tensor:
    """Logits (N, K) of an expert after the last epoch that is read."""
    theta_P = experts.read(expert, problem.config.last_epoch).to(x_NCHW.device)
    return predict(problem.net, theta_P, x_NCHW)[0]


def start(problem: Problem) -> State:
    """Choose images, and logits for them, by the predictions of the experts."""
    experts = mtt.checked_experts(problem)
    if problem.config.init == "correct":
        problem = replace(problem, real=right_images(problem, experts))
    state = mtt.start(problem)
    seen = replace(state.synthetic(), formation=problem.config.formation).decoded()
    z_SK = mean_right_logits(problem, experts, seen.x, seen.y.argmax(1))
    state.y = z_SK.unflatten(0, (len(state.y), -1)).mean(1)  # of all parts of a stored image
    return state


def advance(problem: Problem, state: State) -> None:
    """One iteration within the window."""
    c = problem.config
    labels = c.lr_y, c.momentum_y
    mtt.iterate(problem, state, window(c, state.iteration), loss_fn=loss, labels=labels, threshold=c.threshold)


def softened(state: State) -> Synthetic:
    """The set with its logits as distributions."""
    return Synthetic(state.x, state.y.softmax(1), state.lr.item())


distill = driver(start, advance, softened)
