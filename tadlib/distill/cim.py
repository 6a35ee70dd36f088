"""CIM, which continues RDED (ECCV 2026): mosaics whose patches are moved towards the features of whole images.

Legend: M candidates, A anchors, B mosaics, C H W image.

The anchors of a class are the whole images with the lowest score (:func:`tadlib.distill.rded.score`), one for each
patch of a mosaic. The mosaics start as the anchors in small. A residual δ is learned so that every patch, enlarged to
full size, looks to an inner layer h of the observer like its anchor a, under one augmentation A_ω of both:

    min_δ  mean | h(A_ω(decode(mosaic + δ))) − h(A_ω(a)) |

by AdamW. Which layer, and all that the published description leaves open, is our choice.
"""

import torch
from torch import Tensor

from tadlib.distill import rded
from tadlib.distill.loop import Problem
from tadlib.distill.rded import factor
from tadlib.nn import augment
from tadlib.nn.crops import decode, mosaic, resized

TOGETHER = 8  # mosaics whose residuals are learned at a time; the observer sees each alone, so that it changes nothing


def anchors(problem: Problem, k: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices (A,) of the ipc · factor² whole images of class ``k`` with the lowest scores, and these (A,).

    A class that has fewer images repeats them.
    """
    index_M, real = rded.candidates(problem, k, random), problem.real
    parts = index_M.split(rded.TOGETHER)
    scores_M = torch.cat([rded.score(problem.experts, real.x[part], real.y[part]) for part in parts])
    scores_A, order_A = scores_M.sort(stable=True)
    wanted = problem.ipc * factor(problem) ** 2
    place_A = torch.arange(wanted, device=index_M.device) % len(index_M)
    return index_M[order_A][place_A], scores_A[place_A]


def matched(problem: Problem, anchors_ACHW: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mosaics (B, C, H, W) of anchors after their residual is learned, and the distance before the last step ()."""
    config, net, theta_P, f = problem.config, problem.experts.net, problem.experts.theta, factor(problem)
    start_BCHW = mosaic(resized(anchors_ACHW, anchors_ACHW.shape[-1] // f), f)
    residual_BCHW = torch.zeros_like(start_BCHW, requires_grad=True)
    optimiser = torch.optim.AdamW([residual_BCHW], lr=config.lr_img)
    distance = start_BCHW.new_zeros(())
    for _ in range(config.steps):
        draws = augment.draw(config.augmentation, len(anchors_ACHW), random)
        with torch.no_grad():
            target = net.inner(theta_P, augment.apply(draws, anchors_ACHW), config.layer)
        with torch.enable_grad():
            seen_ACHW = decode(start_BCHW + residual_BCHW, f)
            distance = (net.inner(theta_P, augment.apply(draws, seen_ACHW), config.layer) - target).abs().mean()
            (residual_BCHW.grad,) = torch.autograd.grad(distance, residual_BCHW)
        optimiser.step()
    return (start_BCHW + residual_BCHW).detach(), distance.detach()


def of_class(problem: Problem, k: int, random: torch.Generator) -> tuple[Tensor, float]:
    """Images (ipc, C, H, W) of class ``k``, and the mean distance of their patches from the anchors."""
    index_A, _ = anchors(problem, k, random)
    made, distances = [], []
    for index_B in rded.spread(index_A, problem.ipc).split(TOGETHER * factor(problem) ** 2):
        x_BCHW, distance = matched(problem, problem.real.x[index_B], random)
        made.append(x_BCHW)
        distances.append(distance * len(x_BCHW))
    return torch.cat(made), torch.stack(distances).sum().item() / problem.ipc


distill = rded.driver("cim", of_class)
