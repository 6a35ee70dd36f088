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
from typing import Any

import torch
from torch import Tensor

from tadlib.distill.loop import Rows
from tadlib.distill.synthetic import Real, Synthetic, divisible
from tadlib.errors import require, required
from tadlib.nn.crops import mosaic, padded, random_crops
from tadlib.nn.images import Images, whole
from tadlib.observer import Observer
from tadlib.rng import generator
from tadlib.state import Checkpoint, restored

TOGETHER = 16  # candidates held and scored at a time: 80 images in a forward pass at five crops each


@dataclass(frozen=True)
class Problem:
    """A refined set, of which a class at a time is distilled, and its observer; ``y`` (N, K) are its labels."""

    real: Real
    y: Tensor
    observer: Observer
    config: Any
    ipc: int
    seed: int

    @property
    def x(self) -> Tensor | Images:
        """The real images."""
        return self.real.x

    @property
    def side(self) -> int:
        """Pixels of a side of the images of the set."""
        return int(self.x.shape[-1])

    @property
    def factor(self) -> int:
        """Patches along a side."""
        return self.config.formation * self.config.mosaic(self.side)

    def candidates(self, k: int, random: torch.Generator) -> Tensor:
        """Indices (M,) of the real images of class ``k`` that are looked at, one for each patch at least."""
        most = max(self.config.candidates, self.ipc * self.factor**2) if self.config.candidates else self.real.counts[k]
        return self.real.draw(k, most, random)


@dataclass
class State:
    """All that changes from one class to the next: images ``x`` (S, C, H, W), and a row for each class done."""

    x: Tensor
    rows: Rows = field(default_factory=list)


@torch.no_grad()
def score(observer: Observer, x_NCHW: Tensor, y_NK: Tensor) -> Tensor:
    """Cross entropy (N,) of the observer's predictions against label distributions; the lower, the more typical."""
    return -(y_NK * observer(x_NCHW).log_softmax(1)).sum(1)


def best_crops(problem: Problem, k: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """The ipc · factor² best crops of class ``k`` (P, C, side / factor, side / factor), best first, and scores (P,).

    One crop of an image, unless the class has fewer images than are wanted: then as many of each as it takes.
    """
    wanted, side = problem.ipc * problem.factor**2, problem.side
    index_M = problem.candidates(k, random)
    each = -(-wanted // len(index_M))
    crops = max(problem.config.crops, each)
    best_P = problem.y.new_empty(0, *problem.x.shape[1:2], *[side // problem.factor] * 2)
    scores_P = problem.y.new_empty(0)
    for index_B in index_M.split(TOGETHER):
        parts = [random_crops(whole(problem.x, i), crops, side // problem.factor, random) for i in index_B.tolist()]
        y_NK = problem.y[index_B].repeat_interleave(crops, 0)
        scores_BJ, place_BJ = score(problem.observer, padded(torch.cat(parts), side), y_NK).view(-1, crops).sort(1)
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
    return mosaic(spread(patches, problem.ipc), problem.factor), scores_P.mean().item()


def driver(name: str, of_class: Callable[[Problem, int, torch.Generator], tuple[Tensor, float]]) -> Callable:
    """The function ``distill`` of a method that makes the images of one class after the other."""

    def distill(
        net: Any,
        x_NCHW: Tensor | Images,
        y_NK: Tensor,
        w_N: Tensor,
        observer: Observer | None,
        config: Any,
        *,
        ipc: int,
        seed: int,
        resume: Checkpoint | None = None,
        on_iteration: Callable[[State], None] = lambda state: None,
    ) -> tuple[Synthetic, Rows]:
        """Distil a refined set as all methods do (:func:`tadlib.distill.loop.driver`), with an observer for experts.

        Random numbers of a class depend on ``seed`` and the class alone.
        """
        observer = required(observer, f"{name} needs an observer, got none")
        real = Real.of(x_NCHW, y_NK, w_N, config.draw_power)  # type: ignore[arg-type]
        real.enough(ipc)
        problem = Problem(real, y_NK, observer, config, ipc, seed)
        square = x_NCHW.shape[-2] == problem.side
        require(square, f"{name} makes square images, got {x_NCHW.shape[-2]}x{problem.side}")
        divisible(x_NCHW.shape, problem.factor, f"{name}_factor" if config.formation == 1 else "formation")
        state = State(torch.zeros(real.n_classes * ipc, *x_NCHW.shape[1:], device=w_N.device))
        if resume is not None:
            state = restored(state, *resume, w_N.device)
        for k in range(len(state.rows), real.n_classes):
            x_SCHW, loss = of_class(problem, k, generator(seed, name, k, device=w_N.device))
            state.x[k * ipc : (k + 1) * ipc] = x_SCHW
            state.rows.append({"class": k, "finite": bool(x_SCHW.isfinite().all()), "loss": loss, "lr": config.lr_net})
            on_iteration(state)
        y_SK = torch.eye(real.n_classes, device=w_N.device).repeat_interleave(ipc, 0)
        return Synthetic(state.x, y_SK, config.lr_net, config.formation), state.rows

    return distill


distill = driver("rded", of_class)
