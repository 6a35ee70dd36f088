"""Figures about networks: expert trajectories, trajectory matching, distilled images and the accuracy they give.

Legend: S synthetic images, K classes, C H W image, E epochs.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from tadbook.style import CYCLE, INK, MUTED, WIDTH, arm_style, array, figure, percent
from tadlib.errors import require
from tadlib.evaluate import mean_ci95


def trajectories(accuracy: Mapping[str, np.ndarray], travelled: Mapping[str, np.ndarray]) -> Figure:
    """Per arm, experts × (E + 1) arrays: test accuracy, and distance from the initialisation, after every epoch.

    Thin lines are single experts, the thick one is their mean.
    """
    made, axes = figure(2.8, 1, 2)
    for ax, curves in zip(axes[0], (accuracy, travelled), strict=True):
        for name, runs in curves.items():
            colour, marker, line = arm_style(name)
            epochs = np.arange(runs.shape[1])
            ax.plot(epochs, runs.T, color=colour, linewidth=0.5, alpha=0.7)
            ax.plot(epochs, runs.mean(0), color=colour, linestyle=line, marker=marker, markersize=4, label=name)
        ax.set(xlabel="epoch", xlim=(0, None))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0, 0].set(ylabel="test accuracy (%)", title="what experts know")
    axes[0, 0].yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    axes[0, 1].set(ylabel=r"$\|\theta_e - \theta_0\|$", title="how far they have travelled", ylim=(0, None))
    axes[0, 0].legend(title="trained on the labels of", title_fontsize=8, loc="lower right")
    return made


def matching_loss(history: pd.DataFrame, *, window: int = 10) -> Figure:
    """Matching loss by iteration (a point each, its running mean a line), and the student's learning rate."""
    made, axes = figure(2.6, 1, 2)
    iteration, ax = np.arange(1, len(history) + 1), axes[0, 0]
    ax.plot(iteration, history["loss"], ".", color=MUTED, markersize=3, alpha=0.7, label="one segment")
    running = history["loss"].astype(float).rolling(window, min_periods=1, center=True).mean()
    ax.plot(iteration, running, color=INK, label=f"mean of {window} iterations")
    ax.set(xlabel="iteration", ylabel=r"matching loss $L$", ylim=(0, None))
    ax.set_ylim(0, 1.25 * history["loss"].max())  # room for the legend
    ax.legend(loc="upper right", ncols=2)
    axes[0, 1].plot(iteration, history["lr"], color=INK)
    axes[0, 1].set(xlabel="iteration", ylabel=r"student's learning rate $\beta$")
    for ax in axes[0]:
        ax.set_xlim(1, len(history))
    return made


def gradient_agreement(table: pd.DataFrame) -> Figure:
    """Against the unrolled gradient, by number of student steps: relative error and angle.

    Columns: ``gradient``, ``steps``, ``relative error``, ``cosine``.
    """
    made, axes = figure(2.7, 1, 2)
    for (colour, line), marker, (name, rows) in zip(CYCLE, "os^D", table.groupby("gradient", sort=False)):
        drawn = {"color": colour, "linestyle": line, "marker": marker, "markersize": 4.5, "label": name}
        axes[0, 0].plot(rows["steps"], rows["relative error"].clip(lower=1e-17), **drawn)
        axes[0, 1].plot(rows["steps"], np.degrees(np.arccos(rows["cosine"].clip(-1, 1))), **drawn)
    axes[0, 0].set(yscale="log", ylabel="relative error")
    axes[0, 0].axhline(np.finfo(float).eps, color=MUTED, linewidth=0.8, linestyle=(0, (1, 1.2)))
    axes[0, 0].annotate(
        "rounding unit of float64",
        (table["steps"].max(), np.finfo(float).eps),
        (0, -3),
        textcoords="offset points",
        fontsize=7,
        color=MUTED,
        ha="right",
        va="top",
    )
    axes[0, 0].set_ylim(1e-18, None)
    axes[0, 1].set(ylabel="angle (degrees)", ylim=(0, None))
    for ax in axes[0]:
        ax.set_xlabel("student steps $J$")
        ax.set_xscale("log", base=2)
        ax.set_xticks(sorted(table["steps"].unique()), sorted(table["steps"].unique()))
        ax.minorticks_off()
    axes[0, 1].legend(loc="upper left")
    return made


def synthetic_images(blocks: Mapping[str, Tensor], class_names: Sequence[str], *, most: int = 10) -> Figure:
    """Blocks of images in [0, 1] (S, C, H, W), ordered by class: a row is a class and the blocks stand side by side, or
    with one image a class, a column is a class and the blocks are the rows.

    Shows at most ``most`` images a class and ``most`` classes.
    """
    K = len(class_names)
    shown = range(min(K, most))
    counts = {title: len(x) for title, x in blocks.items()}
    require(len({*counts.values()}) == 1, f"blocks must hold as many images each, got {counts}")
    ipc = next(iter(counts.values())) // K
    tile, single = min(ipc, most), ipc == 1
    if single:
        made, axes = figure(0.85 * len(blocks) + 0.3, len(blocks))
    else:
        side = min((WIDTH - 0.9) / (len(blocks) * tile), 0.42)
        made, axes = figure(side * len(shown) + 0.35, 1, len(blocks))
    for ax, (title, x_SCHW) in zip(axes.flat, blocks.items(), strict=True):
        x = array(x_SCHW).clip(0, 1).reshape(K, ipc, *x_SCHW.shape[1:])[list(shown), :tile]
        framed = np.pad(x, ((0, 0), (0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan)
        height, width = framed.shape[3:]
        # (rows, columns, C, H, W) -> rows of images
        grid = framed.transpose(1, 0, 2, 3, 4) if single else framed
        picture = grid.transpose(0, 3, 1, 4, 2).reshape(grid.shape[0] * height, -1, x.shape[2])
        if picture.shape[2] == 1:
            ax.imshow(picture[..., 0], cmap="gray_r", vmin=0, vmax=1)
        else:
            ax.imshow(np.nan_to_num(picture, nan=1.0))
        names = [class_names[k] for k in shown]
        ax.set(title=title, xticks=(), yticks=())
        if single:
            last = ax is axes[-1, 0]
            ax.set_xticks([(i + 0.5) * width - 1 for i in shown], names if last else [""] * len(names))
        else:
            ax.set_yticks([(i + 0.5) * height - 1 for i in shown], names)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    if single:
        axes[-1, 0].set_xlabel("class")
    else:
        axes[0, 0].set_ylabel("class")
    return made


def accuracy_bars(accuracies: Mapping[str, Sequence[float]], *, what: str = "networks") -> Figure:
    """Per arm: every accuracy as a dot, their mean as a bar with its 95 % interval (Student's t)."""
    made, axes = figure(0.42 * len(accuracies) + 0.75)
    ax = axes[0, 0]
    for row, (name, values) in enumerate(accuracies.items()):
        colour, marker, _ = arm_style(name)
        mean, half = mean_ci95(list(values))
        ax.barh(row, 100 * mean, 0.56, color=colour, alpha=0.9)
        ax.errorbar(100 * mean, row, xerr=100 * (half or 0), color=INK, capsize=3, linewidth=1.1)
        offsets = row + np.linspace(-0.17, 0.17, len(values)) if len(values) > 1 else [row]
        ax.scatter(
            percent(values), offsets, s=13, marker=marker, facecolor="white", edgecolor=INK, linewidth=0.7, zorder=3
        )
        text = f"{100 * mean:.1f}" if half is None else f"{100 * mean:.1f} ± {100 * half:.1f}"
        ax.annotate(text, (1.01, row), xycoords=("axes fraction", "data"), va="center")
    ax.set_yticks(range(len(accuracies)), list(accuracies))
    ax.tick_params(axis="y", length=0)
    ax.invert_yaxis()
    ax.set(xlim=(0, 100), xlabel=f"test accuracy (%), mean and 95 % interval over {what}")
    return made
