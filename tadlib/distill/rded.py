"""RDED: realistic, diverse and efficient distillation (Sun et al., CVPR 2024).

Legend: M candidates, J crops, S synthetic images, K classes, C H W image.

Nothing is learned. Of every class some real images are drawn, each is cropped at random several times, and an observer
(:mod:`tadlib.observer`) scores the crops (eq. 5)

    s = ℓ(φ(crop), y),    ℓ the cross entropy against the label of the image.

The best crop of every image remains, and of these the best of the class; factor² of them make an image of the set.

Trust enters three times (our choice): the observer is trained on the refined set, candidates are drawn by their weight
(:class:`tadlib.config.Drawing`), and y is the refined label. Images may have any size and lie on a disk
(:class:`tadlib.nn.images.Images`): a few are held at a time, however many a class has and however many are wanted.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tadlib.distill import loop
from tadlib.distill.loop import Problem, Rows
from tadlib.distill.synthetic import Synthetic, divisible
from tadlib.errors import require
from tadlib.nn.crops import mosaic, padded, random_crops
from tadlib.nn.images import whole
from tadlib.observer import Observer

TOGETHER = 16  # candidates held and scored at a time: 80 images in a forward pass at five crops each


@dataclass
class State:
    """Images ``x`` (S, C, H, W), of which those of a class are made in an iteration, labels ``y`` (S, K), and ``lr`` of
    networks that are trained on them."""

    x: Tensor
    y: Tensor
    lr: float
    rows: Rows = field(default_factory=list)

    def synthetic(self) -> Synthetic:
        """The synthetic set as it stands."""
        return Synthetic(self.x, self.y, self.lr)


def factor(problem: Problem) -> int:
    """Patches along a side of an image."""
    return problem.config.formation * problem.config.mosaic(problem.real.x.shape[-1])


def candidates(problem: Problem, k: int, random: torch.Generator) -> Tensor:
    """Indices (M,) of the real images of class ``k`` that are looked at, one for each patch at least."""
    config, real = problem.config, problem.real
    most = max(config.candidates, problem.ipc * factor(problem) ** 2) if config.candidates else real.counts[k]
    return real.draw(k, most, random)


@torch.no_grad()
def score(observer: Observer, x_NCHW: Tensor, y_NK: Tensor) -> Tensor:
    """Cross entropy (N,) of the observer's predictions against label distributions; the lower, the more typical."""
    return -(y_NK * observer(x_NCHW).log_softmax(1)).sum(1)


def best_crops(problem: Problem, k: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """The ipc · factor² best crops of class ``k`` (P, C, side / factor, side / factor), best first, and scores (P,).

    One crop of an image, unless the class has fewer images than are wanted: then as many of each as it takes.
    """
    x, y_NK, side, f = problem.real.x, problem.real.y, problem.real.x.shape[-1], factor(problem)
    index_M, wanted = candidates(problem, k, random), problem.ipc * f**2
    each = -(-wanted // len(index_M))
    crops = max(problem.config.crops, each)
    best_P, scores_P = y_NK.new_empty(0, x.shape[1], side // f, side // f), y_NK.new_empty(0)
    for index_B in index_M.split(TOGETHER):
        parts = [random_crops(whole(x, i), crops, side // f, random) for i in index_B.tolist()]
        crops_JCHW, y_JK = padded(torch.cat(parts), side), y_NK[index_B].repeat_interleave(crops, 0)
        scores_BJ, place_BJ = score(problem.experts, crops_JCHW, y_JK).view(-1, crops).sort(1)
        best_P = torch.cat([best_P, *(part[place_J[:each]] for part, place_J in zip(parts, place_BJ))])
        scores_P, order_P = torch.cat([scores_P, scores_BJ[:, :each].flatten()]).sort(stable=True)
        best_P, scores_P = best_P[order_P[:wanted]], scores_P[:wanted]
    return best_P, scores_P


def spread(best_P: Tensor, ipc: int) -> Tensor:
    """Patches, best first, in the order of :func:`mosaic`: image n gets number n, n + ipc, …, as in RDED's code."""
    return best_P.unflatten(0, (-1, ipc)).transpose(0, 1).flatten(0, 1)


def of_class(problem: Problem, k: int, random: torch.Generator) -> tuple[Tensor, float]:
    """Images (ipc, C, H, W) of class ``k``, and the mean score of their patches."""
    patches, scores_P = best_crops(problem, k, random)
    return mosaic(spread(patches, problem.ipc), factor(problem)), scores_P.mean().item()


def driver(name: str, of_class: Callable[[Problem, int, torch.Generator], tuple[Tensor, float]]) -> Callable:
    """The function ``distill`` of a method that makes the images of one class after the other, by an observer.

    Random numbers of a class depend on the seed and the class alone.
    """

    def start(problem: Problem) -> State:
        """Room for the images, and their labels."""
        real, config = problem.real, problem.config
        require(problem.experts is not None, f"{name} needs an observer, got none")
        height, width = real.x.shape[-2:]
        require(height == width, f"{name} makes square images, got {height}x{width}")
        divisible(real.x.shape, factor(problem), f"{name}_factor" if config.formation == 1 else "formation")
        real.enough(problem.ipc)
        y_SK = torch.eye(real.n_classes, device=real.x.device).repeat_interleave(problem.ipc, 0)
        return State(torch.zeros(len(y_SK), *real.x.shape[1:], device=real.x.device), y_SK, config.lr_net)

    def advance(problem: Problem, state: State) -> None:
        """One class."""
        k, ipc = len(state.rows), problem.ipc
        x_SCHW, loss = of_class(problem, k, problem.generator(name, k))
        state.x[k * ipc : (k + 1) * ipc] = x_SCHW
        state.rows.append({"class": k, "finite": bool(x_SCHW.isfinite().all()), "loss": loss, "lr": state.lr})

    return loop.driver(start, advance, State.synthetic)


distill = driver("rded", of_class)
