"""Whether trust is a probability, and which label errors it finds: figures from the rows of
``benchmarks/calibration.py``.

Legend: K classes.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from tadbook.labels import FEWEST, image_grid
from tadbook.pages import MEAN, NAMES, captioned, provenance
from tadbook.style import MUTED, RIGHT, arm_style, figure
from tadbook.tables import TRUST_SETTING, calibration_table, read_trust
from tadlib.config import ARMS
from tadlib.store import load_table

NAMED = 3  # pairs of classes that are named in a panel of estimated entries
COLUMNS = 6  # of the gallery
KINDS = {"certain": "most certain", "needless": "label is right"}


def noise_title(noise: str, rate: float) -> str:
    """The name of a noise and its rate in per cent."""
    return f"{NAMES.get(noise, noise)}, {100 * rate:.0f} %"


def pooled(runs: pd.DataFrame) -> pd.DataFrame:
    """Bins of trust over all seeds: samples, mean trust, share of right labels, and whether they are enough to show."""
    count, trust, right = (np.array(runs[f"bin_{name}"].tolist(), float) for name in ("count", "trust", "right"))
    total = count.sum(0)
    means = {
        name: np.nansum(count * values, 0) / total.clip(1) for name, values in (("trust", trust), ("right", right))
    }
    bins = pd.DataFrame({"count": total, **means})
    return bins.assign(shown=total >= FEWEST)


def reliability(rows: pd.DataFrame) -> Figure:
    """Share of right labels against trust, above, and the samples in each bin of trust, below: a column a setting, a
    line an arm, all seeds together."""
    groups = list(rows.groupby(TRUST_SETTING, sort=False))
    made, axes = figure(3.7, 2, len(groups), sharex=True, sharey="row", height_ratios=[2.2, 1])
    for (upper, lower), (setting, own) in zip(axes.T, groups, strict=True):
        of = dict(zip(TRUST_SETTING, setting))
        upper.plot([0, 1], [0, 1], color=MUTED, linewidth=0.7)
        for arm in (arm for arm in ARMS if (own["arm"] == arm).any()):
            bins, (colour, marker, line) = pooled(own[own["arm"] == arm]), arm_style(arm)
            drawn = {"color": colour, "linestyle": line, "marker": marker, "markersize": 4, "label": arm}
            shown = bins[bins["shown"]]
            upper.plot(shown["trust"], shown["right"], **drawn)
            edges = np.linspace(0, 1, len(bins) + 1)
            lower.stairs(bins["count"] / bins["count"].sum(), edges, color=colour, linestyle=line, linewidth=1.2)
        upper.set_title(noise_title(of["noise"], own["rate_realised"].astype(float).mean()))
        upper.set(xlim=(0, 1), ylim=(-0.03, 1.03), xticks=(0, 0.5, 1))
        lower.set_xlabel("trust $w$")
    axes[1, 0].set_ylim(0, None)  # of all panels: they share it
    for ax, text in ((axes[0, 0], "labels that are\nright (%)"), (axes[1, 0], "samples (%)")):
        ax.set_ylabel(text)
        ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    handles = axes[0, 0].get_legend_handles_labels()
    made.legend(*handles, loc="outside upper center", ncols=len(handles[0]), handlelength=3)
    return made


def matrices(runs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """True and estimated transition matrix (K, K), means over seeds."""
    K = len(runs["class_names"].iloc[0])
    true, estimated = (
        np.array(runs[name].tolist(), float).mean(0).reshape(K, K) for name in ("transition_true", "transition")
    )
    return true, estimated


def estimated_entries(rows: pd.DataFrame) -> Figure:
    """Estimated against true entries off the diagonal of the transition matrix, means over seeds: a panel a setting.

    Where people erred, the most frequent flips are named.
    """
    groups = list(rows.groupby(TRUST_SETTING, sort=False))
    made, axes = figure(2.75, 1, len(groups), sharex=True, sharey=True)
    most = 0.1
    for ax, (setting, own) in zip(axes[0], groups, strict=True):
        of, names = dict(zip(TRUST_SETTING, setting)), own["class_names"].iloc[0]
        true, estimated = matrices(own)
        apart = ~np.eye(len(names), dtype=bool)
        most = max(most, true[apart].max(), estimated[apart].max())
        ax.plot([0, 1], [0, 1], color=MUTED, linewidth=0.7)
        ax.plot(true[apart], estimated[apart], "o", color=RIGHT, markersize=4, alpha=0.6, markeredgewidth=0)
        error = np.abs(true - estimated)[apart].mean()
        ax.text(0.04, 0.96, f"mean error {error:.3f}", transform=ax.transAxes, va="top", fontsize=7.5)
        largest = np.argsort(-true * apart, axis=None)[: NAMED if of["noise"].startswith("human") else 0]
        for i, j in zip(*np.unravel_index(largest, true.shape)):
            where, left = (true[i, j], estimated[i, j]), {"textcoords": "offset points", "ha": "right", "va": "center"}
            ax.annotate(f"{names[i]} → {names[j]}", where, (-4, 0), fontsize=7, **left)
        ax.set_title(noise_title(of["noise"], own["rate_realised"].astype(float).mean()))
        ax.set(xlabel="true share", aspect="equal")
    axes[0, 0].set(xlim=(-0.02, 1.08 * most), ylim=(-0.02, 1.08 * most), ylabel="estimated share")
    return made


def found_errors(table: pd.DataFrame) -> Figure:
    """Flagged images under noisy label → suggestion and true class, a row or more for each kind."""
    captions = [f"{row.noisy} → {row.suggested}\ntrue: {row.true}" for row in table.itertuples()]
    from torchvision.io import decode_png  # here: torchvision takes seconds to import

    pixels = [decode_png(torch.frombuffer(bytearray(png), dtype=torch.uint8)) / 255 for png in table["png"]]
    made = image_grid(torch.stack(pixels), captions, columns=COLUMNS)
    for start, kind in table["kind"].drop_duplicates().items():
        made.axes[start].set_ylabel(KINDS[kind], fontsize=7.5)
    return made


def fragments(results_dir: Path | str) -> dict[str, tuple[Figure | None, str]]:
    """What pages show of calibration, by name: a figure, and the text that includes it; nothing where rows are
    missing."""
    folder, found = Path(results_dir), dict[str, tuple[Figure | None, str]]()
    rows = read_trust(folder / "calibration.parquet")
    found |= dict.fromkeys(("reliability", "transitions", "found_errors"), (None, ""))
    if len(rows):  # injected noise first
        rows = rows.sort_values("noise", key=lambda names: names.str.startswith("human"), kind="stable")
        found["reliability"] = reliability(rows), _reliability(rows)
    if len(own := rows[rows["arm"] == "tad-posterior"]):
        found["transitions"] = estimated_entries(own), _transitions(own)
    if (path := folder / "found_errors.parquet").exists():
        table = load_table(path)
        found["found_errors"] = found_errors(table), _found_errors(table)
    return found


def figure_text(name: str, alt: str, caption: str) -> str:
    """A figure of the folder ``generated`` as Markdown."""
    return f":::{{figure}} generated/{name}.png\n:name: fig-{name.replace('_', '-')}\n:alt: {alt}\n\n{caption}\n:::"


def _scale(rows: pd.DataFrame) -> str:
    seeds = ", ".join(str(seed) for seed in sorted({*rows["seed"]}))
    of = rows.iloc[0]
    return f"{NAMES.get(of['dataset'], of['dataset'])}, {of['n_train']:,} images, scale {of['preset']}, seeds {seeds}"


def _reliability(rows: pd.DataFrame) -> str:
    alt = (
        "Reliability diagrams, one for each noise, above histograms. The curve of the posterior follows the diagonal; "
        "those of TAD and of the loss filter are flatter, above the diagonal where trust is low."
    )
    caption = (
        "The posterior's trust is close to the share of labels that are right (above), on which it lies where it is a "
        "probability: the thin diagonal. Below, the samples in each bin of trust. "
        f"{_scale(rows)}, all seeds together; a share of fewer than {FEWEST} samples is not drawn."
    )
    table = captioned(
        calibration_table(rows),
        "calibration",
        f"Brier score and expected calibration error of trust (ten bins), and wrong labels (%): the true share, the "
        f"posterior's estimate, its interval, and the seeds whose true share the interval holds. {MEAN}",
    )
    again = "```console\n$ python benchmarks/calibration.py --root DATA\n```"
    return "\n\n".join([figure_text("reliability", alt, caption), table, provenance(rows), again])


def _transitions(rows: pd.DataFrame) -> str:
    alt = (
        "Scatter plots of estimated against true shares, one for each noise. Under injected noise the points lie on "
        "the diagonal or close to it; under human noise the most frequent flips lie below it."
    )
    caption = (
        "Entries of the transition matrix off its diagonal: estimated without a true label, against the true shares. "
        f"{_scale(rows)}; means over seeds. The most frequent human mistakes are named, as true class → noisy label."
    )
    return figure_text("transitions", alt, caption)


def _found_errors(table: pd.DataFrame) -> str:
    of = table.iloc[0]
    alt = (
        "Photographs, each under its noisy label, the suggested class and the true one. Above, clear images of the "
        "suggested class; below, images whose noisy label is right, among them animals before an unusual ground."
    )
    caption = (
        "Noisy label → suggested class. Above, the flagged labels with the most certain suggestions; below, those "
        f"whose noisy label is right. {NAMES[of.noise]}, scale {of.preset}, seed {of.seed}: of {of.n_train:,} labels "
        f"the posterior flags {of.flagged:,}, of which {of.flagged_wrong:,} are wrong "
        f"({100 * of.flagged_wrong / of.flagged:.0f} %). It saw the images at {of.resolution}×{of.resolution} pixels."
    )
    return figure_text("found_errors", alt, caption)
