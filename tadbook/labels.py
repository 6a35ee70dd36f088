"""Figures about labels: noise, trust and recalibration.

Legend: N samples, K classes, E epochs, C H W image.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from tadbook.style import (
    CYCLE,
    INK,
    MUTED,
    RIGHT,
    SPACES,
    WIDTH,
    WRONG,
    WRONG_HATCH,
    array,
    figure,
    heat,
    percent,
    show_image,
)
from tadlib.errors import require
from tadlib.trust import auroc
from tadlib.trust.anchors import anchors
from tadlib.trust.mixture import Split

FEWEST = 10  # samples of a bin whose share is drawn
MOST_TICKS = 20  # class names beside a matrix; with more classes only the axes are named


def transition_maps(matrices: Mapping[str, Tensor], class_names: Sequence[str], *, values: bool = True) -> Figure:
    """Transition matrices (K, K) side by side, row = true class, column = noisy label, on one scale from 0 to 1.

    ``values`` writes entries of .05 and more into the matrix where classes are few.
    """
    n = len(matrices)
    made, axes = figure(WIDTH / n * (1.02 if n > 1 else 0.8), 1, n, sharey=True)
    few = len(class_names) <= MOST_TICKS
    for ax, (title, matrix) in zip(axes[0], matrices.items(), strict=True):
        T = array(matrix)
        picture = ax.imshow(T, cmap=heat(), vmin=0, vmax=1)
        ax.set(title=title, xlabel="noisy label")
        ax.spines[:].set_visible(True)
        if few:
            places = range(len(class_names))
            ax.set_xticks(places, class_names, rotation=0 if max(map(len, class_names)) < 3 else 90)
            ax.set_yticks(places, class_names)
            ax.tick_params(length=0)
        for (i, j), value in np.ndenumerate(T) if values and few and n < 3 else ():
            if value >= 0.05:
                colour = "white" if value > 0.45 else INK
                ax.text(j, i, f"{value:.2f}".lstrip("0"), ha="center", va="center", fontsize=7, color=colour)
    axes[0, 0].set_ylabel("true class")
    bar = made.colorbar(picture, ax=axes[0].tolist(), shrink=0.8, pad=0.02, aspect=25)
    bar.set_label("fraction of the true class")
    bar.outline.set_linewidth(0.4)
    return made


def image_grid(pixels_NCHW: Tensor, captions: Sequence[str], *, columns: int = 8, empty: str = "no image") -> Figure:
    """Images in [0, 1] with a caption (of any number of lines) above each; the text ``empty`` where there is none."""
    n = len(pixels_NCHW)
    require(n == len(captions), f"got {n} images and {len(captions)} captions; expected as many")
    if n == 0:
        made, axes = figure(0.6)
        axes[0, 0].axis("off")
        axes[0, 0].text(0.5, 0.5, empty, ha="center", va="center")
        return made
    rows, lines = -(-n // columns), max(caption.count("\n") + 1 for caption in captions)
    made, axes = figure(rows * (WIDTH / columns + 0.13 * lines), rows, columns)
    for ax in axes.flat[n:]:
        ax.axis("off")
    for ax, pixels, caption in zip(axes.flat, pixels_NCHW, captions):
        show_image(ax, pixels)
        ax.set_title(caption, fontsize=7, loc="center", pad=3)
    return made


def _right_and_wrong(ax: Axes, u_N: np.ndarray, right_N: np.ndarray, edges: np.ndarray, density: bool = False) -> None:
    """Overlaid histograms: right labels filled, wrong ones hatched."""
    scale = len(u_N) * (edges[1] - edges[0]) if density else 1.0
    for mask, kind in ((right_N, "right"), (~right_N, "wrong")):
        counts = np.histogram(u_N[mask], edges)[0] / scale
        fill = {"color": RIGHT, "alpha": 0.75} if kind == "right" else {"facecolor": "none", "hatch": WRONG_HATCH}
        ax.stairs(
            counts, edges, fill=True, label=f"{kind} labels", edgecolor=RIGHT if kind == "right" else WRONG, **fill
        )
        if kind == "wrong":
            ax.stairs(counts, edges, color=WRONG, linewidth=1.1)


def loss_histograms(cases: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """One panel a case: histograms of the loss (N,) of samples whose label is right (N,), or wrong, with the AUROC."""
    made, axes = figure(2.6, 1, len(cases), sharey=True)
    most = max(float(np.quantile(array(loss), 0.995)) for loss, _ in cases.values())
    for ax, (title, (loss_N, right_N)) in zip(axes[0], cases.items(), strict=True):
        _right_and_wrong(ax, array(loss_N).clip(0, most), array(right_N), np.linspace(0, most, 31))
        area = auroc(-loss_N, right_N)
        ax.set(title=title if area is None else f"{title}: AUROC {area:.2f}", xlim=(0, most))
        ax.set_xlabel(r"loss of the noisy label, $\ell_i$ (nats)")
    axes[0, 0].set_ylabel("samples")
    axes[0, -1].legend(loc="upper right")
    return made


def score_histograms(cases: Mapping[str, tuple[Tensor, Tensor]], *, columns: int = 2) -> Figure:
    """One panel a case: histograms of a probability (N,) of samples whose label is right (N,), or wrong; the AUROC."""
    rows = -(-len(cases) // columns)
    made, axes = figure(1.75 * rows + 0.4, rows, columns, sharex=True)
    for ax, (title, (score_N, right_N)) in zip(axes.flat, cases.items()):
        _right_and_wrong(ax, array(score_N), array(right_N), np.linspace(0, 1, 26))
        area = auroc(score_N, right_N)
        ax.set(title=title if area is None else f"{title}: AUROC {area:.3f}", xlim=(0, 1))
        ax.set_yscale("function", functions=(np.sqrt, np.square))  # most samples stand at the ends
        ax.yaxis.set_major_locator(MaxNLocator(4))
    for ax in axes.flat[len(cases) :]:
        ax.axis("off")
    made.supxlabel("probability of the noisy label", fontsize=8.5)
    made.supylabel("samples (square root scale)", fontsize=8.5)
    made.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return made


def weighed_labels(
    pixels_NCHW: Tensor, factors: Mapping[str, Tensor], captions: Sequence[str], class_names: Sequence[str]
) -> Figure:
    """A row an image: the image, then a bar chart over classes for each of ``factors`` (N, K), the last in colour."""
    if not len(pixels_NCHW):
        return image_grid(pixels_NCHW, [], empty="no sample to show")
    ratios = [0.55, *(1 for _ in factors)]
    made, axes = figure(
        1.15 * len(captions) + 0.3, len(captions), len(factors) + 1, gridspec_kw={"width_ratios": ratios}
    )
    few = len(class_names) <= MOST_TICKS
    short = few and max(map(len, class_names)) < 3
    for i, (row, caption) in enumerate(zip(axes, captions, strict=True)):
        show_image(row[0], pixels_NCHW[i])
        row[0].set_title(caption, fontsize=7, loc="center", pad=3)
        for j, (ax, (title, values_NK)) in enumerate(zip(row[1:], factors.items())):
            last = j == len(factors) - 1
            ax.bar(range(len(class_names)), array(values_NK[i]), color=RIGHT if last else MUTED, width=0.75)
            ax.set(ylim=(0, 1.02), yticks=(0, 0.5, 1), yticklabels=("0", ".5", "1") if j == 0 else ())
            if i == 0:
                ax.set_title(title)
            if few:
                shown = class_names if i == len(captions) - 1 else ()
                ax.set_xticks(range(len(class_names)) if len(shown) else (), shown, rotation=0 if short else 90)
    made.supxlabel("true class $y$", fontsize=8.5, x=0.6)
    return made


def mixtures(
    split: Split, label_N: Tensor, trusted_N: Tensor, right_N: Tensor, class_names: Sequence[str], *, columns: int = 5
) -> Figure:
    """Per class of ``label`` (N,): the scaled losses of right and wrong labels, the two Gaussians of ``split``, and the
    largest loss of a trusted sample.

    ``trusted`` and ``right`` are masks (N,). Shows at most ten classes.
    """
    shown = range(min(10, len(class_names)))
    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    made, axes = figure(1.45 * rows + 0.5, rows, columns, sharex=True, sharey=True)
    u, label, trusted, right = (array(t) for t in (split.u, label_N, trusted_N, right_N))
    fitted = split.mixture
    parameters = np.stack([array(t) for t in (fitted.mean, fitted.variance.sqrt(), fitted.weight)], 2)  # (G, 2, 3)
    grid, edges = np.linspace(0, 1, 200), np.linspace(0, 1, 21)
    for k, ax in zip(shown, axes.flat):
        own = label == k
        _right_and_wrong(ax, u[own], right[own], edges, density=True)
        components = parameters[k if len(parameters) > 1 else 0]
        for (mean, sigma, weight), name, line in zip(components, ("lower", "upper"), ("-", (0, (4, 1.5)))):
            density = weight * _normal(grid, mean, sigma)
            ax.plot(grid, density, color=INK, linewidth=1, linestyle=line, label=f"{name} Gaussian")
        cut = u[own & trusted].max(initial=0)
        ax.axvline(cut, color=INK, linewidth=1, linestyle=(0, (1, 1.2)), label="trusted up to here")
        ax.set(xlim=(0, 1), xticks=(0, 0.5, 1), yticks=())
        ax.set_title(f"noisy label {class_names[k]}", pad=2, fontsize=8)
    for ax in axes.flat[len(shown) :]:
        ax.axis("off")
    made.supxlabel(r"loss of the noisy label, scaled to [0, 1] within the class, $u_i$", fontsize=8.5)
    made.supylabel("density", fontsize=8.5)
    options = {"ncols": 5, "handlelength": 1.8, "columnspacing": 1.2}
    made.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", **options)
    return made


def roc_curves(scores: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """ROC curves of scores (N,) for "the noisy label is right" (N,), with their areas, ties counted half."""
    from sklearn.metrics import roc_curve  # here: it takes a second to import

    made, axes = figure(3.3, 1, 2, gridspec_kw={"width_ratios": [1, 0.9]})
    ax = axes[0, 0]
    for (colour, line), (name, (score_N, right_N)) in zip(CYCLE, scores.items()):
        area = auroc(score_N, right_N)
        if area is None:  # one kind of label is missing
            continue
        false, true, _ = roc_curve(array(right_N), array(score_N).astype(float))
        ax.plot(false, true, color=colour, linestyle=line, label=f"{name}\nAUROC {area:.3f}")
    ax.plot([0, 1], [0, 1], color=MUTED, linewidth=0.6)
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    ax.set(xlabel="wrong labels trusted (false positive rate)", ylabel="right labels trusted (true positive rate)")
    axes[0, 1].axis("off")
    axes[0, 1].legend(*ax.get_legend_handles_labels(), loc="center left", labelspacing=1.1, handlelength=2.6)
    return made


def space_flow(space_history_EN: Tensor, *, n_right: int | None = None, warmup: int | None = None) -> Figure:
    """How many samples are in each space after every epoch, stacked; a line at the number of right noisy labels."""
    history = array(space_history_EN)
    epochs = np.arange(1, len(history) + 1)
    counts = [(history == code).sum(1) for code in (2, 1, 0)]
    made, axes = figure(2.9)
    ax = axes[0, 0]
    for area, (name, (colour, hatch)) in zip(ax.stackplot(epochs, counts), SPACES.items(), strict=True):
        area.set(
            facecolor=colour, hatch=hatch, edgecolor="white" if name == "trusted" else MUTED, linewidth=0.4, label=name
        )
    if n_right is not None:
        ax.axhline(n_right, color=INK, linewidth=1.2, linestyle=(0, (5, 1.5)), label="noisy labels that are right")
    if warmup is not None:
        ax.axvline(warmup, color=INK, linewidth=0.9, linestyle=(0, (1, 1.2)), label="end of warm-up")
    ax.set(xlim=(1, len(history)), ylim=(0, history.shape[1]), xlabel="epoch", ylabel="samples")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), reverse=True)
    return made


def trust_over_rounds(history: pd.DataFrame) -> Figure:
    """Precision and recall of the trusted space, AUROC of trust, accuracy of hard labels: after every epoch."""
    made, axes = figure(2.7)
    ax = axes[0, 0]
    names = {
        "trust_precision": "precision: trusted labels that are right",
        "trust_recall": "recall: right labels that are trusted",
        "trust_auroc": "AUROC of trust",
        "label_accuracy": "hard training labels that are right (by weight)",
    }
    for (colour, line), (column, name), marker in zip(CYCLE, names.items(), "os^D", strict=True):
        y = history[column].astype(float)
        ax.plot(history["epoch"] + 1, y, color=colour, linestyle=line, marker=marker, markersize=3.5, label=name)
    ax.set(xlabel="epoch", ylabel="per cent", xlim=(1, len(history)))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), labelspacing=0.9)
    return made


def discriminants(features_ND: Tensor, label_N: Tensor, n_classes: int, w_N: Tensor | None = None) -> Tensor:
    """Features in the K − 1 linear discriminants of ``label``, whitened within classes (N, K − 1).

    Distances between anchors are Mahalanobis distances there. ``w`` are weights of the samples by which discriminants
    are found.
    """
    y_NK = torch.nn.functional.one_hot(label_N, n_classes)
    a = anchors(features_ND, y_NK, torch.ones_like(features_ND[:, 0]) if w_N is None else w_N)
    _, _, directions = torch.linalg.svd((a.mean - a.origin) @ a.whiten, full_matrices=False)
    return (features_ND - a.origin) @ a.whiten @ directions[: min(n_classes - 1, features_ND.shape[1])].T


def anchor_picture(
    z_N2: Tensor, noisy_N: Tensor, labels: Mapping[str, Tensor], classes: Sequence[int], class_names: Sequence[str]
) -> Figure:
    """Features in two whitened discriminants; one panel for each labelling (N,), with the anchors it gives.

    A circle of radius 2 about an anchor holds the points at Mahalanobis distance 2; the ray from the origin to the
    anchor is the direction against which cosines are taken. Marker = noisy label.
    """
    z, noisy = array(z_N2), array(noisy_N)
    made, axes = figure(3.7, 1, len(labels), sharex=True, sharey=True)
    colours = ("#0b5c8f", "#e0a13a", "#8d8d8d")
    for ax, (title, label_N) in zip(axes[0], labels.items(), strict=True):
        label = array(label_N)
        for k, marker, colour in zip(classes, "osv", colours):
            own = noisy == k
            ax.scatter(
                *z[own].T,
                s=9,
                marker=marker,
                color=colour,
                alpha=0.55,
                linewidths=0,
                label=f"noisy label {class_names[k]}",
            )
        for k in classes:
            mean = z[label == k].mean(0)
            ax.plot([0, mean[0]], [0, mean[1]], color=INK, linewidth=0.9)
            ax.add_patch(Circle(mean, 2, fill=False, edgecolor=INK, linewidth=1.1, linestyle=(0, (4, 1.5))))
            ax.annotate(
                rf"$a_{{{class_names[k]}}}$",
                mean,
                ha="center",
                va="center",
                fontsize=9,
                bbox={"boxstyle": "circle,pad=0.25", "fc": "white", "ec": INK, "lw": 0.9},
            )
        ax.set(title=title, xlabel=r"discriminant 1 ($\sigma$)", aspect="equal")
        ax.plot(0, 0, marker="+", color=INK, markersize=7)
    axes[0, 0].set_ylabel(r"discriminant 2 ($\sigma$)")
    made.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, markerscale=1.8)
    return made


def calibration_curve(cases: Mapping[str, tuple[Tensor, Tensor]], *, bins: int = 10) -> Figure:
    """Share of right candidate labels (N, bool) against reliability (N,), above; below, the samples in each bin.

    A bin of fewer than :data:`FEWEST` samples has no share: it would be chance.
    """
    made, axes = figure(3.6, 2, 1, sharex=True, gridspec_kw={"height_ratios": [2.4, 1]})
    edges = np.linspace(0, 1, bins + 1)
    width = 0.8 / bins / len(cases)
    axes[0, 0].plot([0, 1], [0, 1], color=MUTED, linewidth=0.7, label="reliability = share")
    for i, ((colour, line), (name, (rho_N, correct_N))) in enumerate(zip(CYCLE, cases.items())):
        rho = pd.Series(array(rho_N).astype(float))
        of_bin = pd.DataFrame({"rho": rho, "share": array(correct_N)}).groupby(
            pd.cut(rho, edges, right=False, labels=False).fillna(bins - 1).astype(int)  # 1 is in the last bin
        )
        counts = of_bin.size().reindex(range(bins), fill_value=0)
        means = of_bin.mean()[of_bin.size() >= FEWEST]
        drawn = {"color": colour, "linestyle": line, "marker": "os^D"[i], "markersize": 4.5, "label": name}
        axes[0, 0].plot(means["rho"], means["share"], **drawn)
        centre = (edges[:-1] + edges[1:]) / 2 + (i - (len(cases) - 1) / 2) * width
        hatch = {"hatch": WRONG_HATCH, "facecolor": "white"} if i else {"facecolor": colour}
        axes[1, 0].bar(centre, counts, width, edgecolor=colour, linewidth=0.8, **hatch)
    axes[0, 0].set(ylabel="candidate labels\nthat are right", ylim=(-0.03, 1.05))
    axes[0, 0].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes[1, 0].set(xlabel=r"reliability $\rho$", ylabel="samples", xlim=(0, 1.01))
    return made


def label_bars(noisy_N: Tensor, label_N: Tensor, space_N: Tensor, true_N: Tensor) -> Figure:
    """How many noisy labels are right, and how many labels of a refined set are right, wrong or left out: two bars of N
    samples."""
    noisy, label, space, true = (array(t) for t in (noisy_N, label_N, space_N, true_N))
    right = noisy == true
    parts: dict[str, dict[str, int]] = {
        "noisy labels": {"right": int(right.sum()), "wrong": int((~right).sum())},
        "refined set": {
            "right": int(((space > 0) & (label == true)).sum()),
            "wrong": int(((space > 0) & (label != true)).sum()),
            "left out": int((space == 0).sum()),
        },
    }
    styles = {
        "right": (RIGHT, "", "white"),
        "wrong": ("white", WRONG_HATCH, INK),
        "left out": (SPACES["untrusted"][0], "", INK),
    }
    made, axes = figure(1.7)
    ax = axes[0, 0]
    for row, counts in enumerate(parts.values()):
        start = 0
        for kind, count in counts.items():
            colour, hatch, ink = styles[kind]
            edge = WRONG if kind == "wrong" else colour
            name = None if row == 0 else {"left out": "untrusted"}.get(kind, f"{kind} label")
            ax.barh(row, count, 0.62, left=start, facecolor=colour, hatch=hatch, edgecolor=edge, label=name)
            if count > 0.05 * len(noisy):
                box = {"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none"} if hatch else None
                ax.text(start + count / 2, row, f"{count:,}", ha="center", va="center", color=ink, fontsize=8, bbox=box)
            start += count
    ax.set_yticks(range(len(parts)), list(parts))
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    ax.set(xlabel="samples", xlim=(0, len(noisy)))
    made.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return made


def review_curve(orders: Mapping[str, Tensor]) -> Figure:
    """Share of the wrong labels that a person has found against images looked at, a curve for each order of looking:
    ``orders`` are masks (N,) of wrong labels in that order."""
    made, axes = figure(2.3)
    ax = axes[0, 0]
    for (name, wrong_N), (colour, line) in zip(orders.items(), CYCLE):
        found_N = array(wrong_N).astype(float).cumsum()
        looked = np.arange(len(found_N) + 1)
        ax.plot(looked, percent(np.append(0, found_N / max(found_N[-1], 1))), color=colour, linestyle=line, label=name)
    ax.set(xlabel="images looked at", ylabel="wrong labels found (%)", xlim=(0, looked[-1]), ylim=(0, 102))
    ax.legend(loc="lower right")
    return made


def mixtures_over_epochs(
    splits: Mapping[int, Split], label_N: Tensor, right_N: Tensor, classes: Sequence[int], class_names: Sequence[str]
) -> Figure:
    """The losses of single classes, and the two Gaussians fitted to them, at several epochs: a row a class, a column
    an epoch."""
    made, axes = figure(1.3 * len(classes) + 0.6, len(classes), len(splits), sharex=True, sharey="row")
    label, right = array(label_N), array(right_N)
    grid, edges = np.linspace(0, 1, 200), np.linspace(0, 1, 21)
    for column, (epoch, split) in zip(axes.T, splits.items(), strict=True):
        column[0].set_title(f"epoch {epoch}")
        for ax, k in zip(column, classes, strict=True):
            own = label == k
            _right_and_wrong(ax, array(split.u)[own], right[own], edges, density=True)
            fitted = (array(t[k]) for t in (split.mixture.mean, split.mixture.variance.sqrt(), split.mixture.weight))
            for mean, sigma, weight in zip(*fitted):
                ax.plot(grid, weight * _normal(grid, mean, sigma), color=INK, linewidth=1.1)
            ax.set(xlim=(0, 1), xticks=(0, 0.5, 1), yticks=(), ylim=(0, None))
    for ax, k in zip(axes[:, 0], classes):
        ax.set_ylabel(f"noisy label\n{class_names[k]}")
    made.supxlabel(r"average loss of the noisy label, scaled to [0, 1] within the class, $u_i$", fontsize=8.5)
    made.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return made


def space_moves(space_history_EN: Tensor, right_N: Tensor, epochs: Sequence[int]) -> Figure:
    """How samples move between the spaces from one of ``epochs`` (counted from 1) to the next: those whose noisy label
    is right (N,) on the left, the others on the right. A band is as wide as the samples in it are many."""
    made, axes = figure(3.1, 1, 2, sharey=True)
    history, names = array(space_history_EN), list(SPACES)  # trusted, recalibrated, untrusted: codes 2, 1, 0
    cases = {"noisy label right": array(right_N), "noisy label wrong": ~array(right_N)}
    for ax, (title, mask) in zip(axes[0], cases.items(), strict=True):
        codes = 2 - history[[epoch - 1 for epoch in epochs]][:, mask].astype(int)
        n = codes.shape[1]
        for x, own in enumerate(codes):
            counts = np.bincount(own, minlength=3)
            starts = np.concatenate([[0], counts.cumsum()[:-1]])
            for code, (name, (colour, hatch)) in enumerate(SPACES.items()):
                box = {"facecolor": colour, "hatch": hatch, "edgecolor": "white" if code == 0 else MUTED}
                ax.bar(x, counts[code], 0.24, starts[code], linewidth=0.4, label=name if x == 0 else None, **box)
            if x == len(codes) - 1:
                break
            following = np.bincount(codes[x + 1], minlength=3)
            left, right = starts.astype(float), np.concatenate([[0], following.cumsum()[:-1]]).astype(float)
            for i, j in np.ndindex(3, 3):
                if moved := int(((own == i) & (codes[x + 1] == j)).sum()):
                    ends = float(left[i]), float(right[j])
                    _band(ax, (x + 0.12, x + 0.88), ends, moved, SPACES[names[i]][0])
                left[i], right[j] = left[i] + moved, right[j] + moved
        ax.set(xlim=(-0.2, len(codes) - 0.8), ylim=(0, None), title=f"{title}: {n:,} samples")
        ax.set_xticks(range(len(codes)), [f"{epoch}" for epoch in epochs])
        ax.set_xlabel("epoch")
    axes[0, 0].set_ylabel("samples")
    made.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return made


def _band(ax: Axes, x: tuple[float, float], y: tuple[float, float], height: float, colour: str) -> None:
    """A band of ``height`` from the left end, above ``y[0]`` at ``x[0]``, to the right one."""
    s = np.linspace(0, 1, 30)
    rise = (y[1] - y[0]) * (3 * s**2 - 2 * s**3)
    ax.fill_between(x[0] + (x[1] - x[0]) * s, y[0] + rise, y[0] + height + rise, color=colour, alpha=0.45, linewidth=0)


def _normal(x: np.ndarray, mean: float, sigma: float) -> np.ndarray:
    """The density of a Gaussian; scipy.stats, which has it too, takes a second to import."""
    return np.exp(-0.5 * ((x - mean) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
