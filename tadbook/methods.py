"""Accuracy of distillation methods and of arms, against the size of the distilled set and against what they cost.

Each figure is drawn from what was run, and is None where that is too little to compare.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from tadbook.calibration import figure_text
from tadbook.style import INK, METHODS, NAMES, arm_style, figure, percent
from tadbook.tables import DEFAULTS, OURS, SETTING, by_definition, read_results, setting_names, summarise
from tadlib.config import ARMS

COST = ["seconds_divert", "seconds_experts", "seconds_distill"]  # evaluation is no part of what a method costs
WHERE = ["preset", "dataset", "n_train", "n_test"]
MAIN = ("vanilla", "loss-filter", "tad", "tad-posterior", "oracle")  # arms of the figure by noise
PANEL = ["dataset", "n_train", "method", "evaluate_network", "formation", "n_test"]
LEAST_METHODS = 3  # of a figure of methods
MOST_PANELS = 4
SECONDS = (
    "Seconds are those of diversion, experts and distillation together, on the clock and beside whatever else ran; "
    "evaluation is left out."
)
NOISE_ALT = (
    "Points with intervals, a panel for each data set and method: accuracy of every arm on clean labels and by noise."
)
NOISE_CAPTION = "Test accuracy of every arm on clean labels and under each noise."
METHODS_ALT = (
    "Two line charts of test accuracy on clean labels, a line a distillation method: against images per class, and "
    "against the seconds of a run."
)
METHODS_CAPTION = (
    f"Test accuracy on clean labels by size and by cost; in the right panel a line joins the sizes of a method. "
    f"{SECONDS}"
)
SIZE_ALT = "Line charts of test accuracy against images per class, a panel a method and noise, a line an arm."
SIZE_CAPTION = "Test accuracy of each arm against the size of the distilled set, under wrong labels."
COST_ALT = (
    "Scatter plots of test accuracy against the seconds of a run, a panel a noise. From vanilla of each method thin "
    "lines lead to its other arms."
)
COST_CAPTION = (
    "What an arm costs beyond vanilla, and what it gains: thin lines lead from vanilla, beside which the distillation "
    f"method is named, to the other arms of that method. {SECONDS}"
)


def with_cost(results: pd.DataFrame) -> pd.DataFrame:
    """:func:`~tadbook.tables.summarise`, with the mean seconds of diversion, experts and distillation as ``cost``."""
    found = summarise(results)
    seconds = results.reindex(columns=COST).astype(float).fillna(0).sum(axis=1)
    cost = seconds.groupby([results[name] for name in (*SETTING, "arm")], sort=False).mean()
    return found.assign(cost=[cost[key] for key in found[[*SETTING, "arm"]].itertuples(index=False, name=None)])


def clean_methods(results: pd.DataFrame) -> pd.DataFrame:
    """Summaries on clean labels of the scale and data set on which most methods were run; empty where these are few."""
    clean = results[(results["noise"] == "none") & results["arm"].isin(["vanilla", "oracle"])]
    if clean.empty:
        return clean
    found = with_cost(clean.assign(arm="clean").drop_duplicates([*SETTING, "seed"], keep="last"))
    found = max((own for _, own in found.groupby(WHERE)), key=lambda own: own["method"].nunique())
    return found if found["method"].nunique() >= LEAST_METHODS else found[:0]


def methods_by_size_and_cost(found: pd.DataFrame) -> Figure:
    """Accuracy on clean labels against images per class, and against cost, of :func:`clean_methods`; a line a
    method."""
    made, axes = figure(3.2, 1, 2, sharey=True)
    same = [name for name in SETTING if name != "ipc"]
    for key, own in found.sort_values([*same, "ipc"], key=by_definition).groupby(same, sort=False):
        of = dict(zip(same, key)) | {"ipc": 0}
        for ax, column in zip(axes[0], ("ipc", "cost"), strict=True):
            _points(ax, own, column, METHODS[of["method"]], _method(of))
    sized(axes[0, 0], found["ipc"])
    axes[0, 0].set_ylabel("test accuracy (%)")
    timed(axes[0, 1])
    made.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
    return made


def by_noise(results: pd.DataFrame) -> pd.DataFrame:
    """Summaries at scale lite and ten images per class, with the default drawing, of the data sets and methods with
    which an arm of ``OURS`` was run under some noise."""
    rows = results[(results["preset"] == "lite") & (results["ipc"] == 10) & results["arm"].isin(MAIN)]
    rows = rows[rows["draw_power"] == DEFAULTS["draw_power"]]
    if rows.empty:
        return rows
    noisy = rows["arm"].isin(OURS) & (rows["noise"] != "none")
    ours = noisy.groupby([rows[name] for name in PANEL]).transform("any")
    return summarise(rows[ours]) if ours.any() else rows[:0]


def arms_by_noise(found: pd.DataFrame) -> Figure:
    """Accuracy of every arm with its interval, of :func:`by_noise`: a panel for each data set and method."""
    panels = list(found.groupby(PANEL, sort=False))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    # a panel is as wide as it has noises, so that their names do not run into each other, nor do titles
    counts = [len({*zip(own["noise"], own["rate_nominal"])}) for _, own in panels]
    widths = [max(4, *counts[i::columns]) for i in range(columns)]
    made, axes = figure(0.5 + 2.6 * rows, rows, columns, width_ratios=widths)
    for ax, (_, own) in zip(axes.flat, panels):
        noises = list(dict.fromkeys(zip(own["noise"], own["rate_nominal"])))
        for i, arm in enumerate(MAIN):
            of_arm = own[own["arm"] == arm].set_index(["noise", "rate_nominal"]).reindex(noises)
            _points(ax, of_arm.assign(place=np.arange(len(noises)) + 0.16 * (i - 2)), "place", _apart(arm), arm)
        words = [
            "clean labels" if noise == "none" else _title({"noise": noise, "rate_nominal": r}) for noise, r in noises
        ]
        ax.set_xticks(range(len(noises)), words, rotation=35, ha="right", rotation_mode="anchor")
        of = {name: own[name].iloc[0] for name in SETTING}
        ax.set_title(
            f"{NAMES.get(of['dataset'], of['dataset'])}, {_method(of)}\n{of['n_test']:,} test images", fontsize=8.5
        )
    for ax in axes.flat[len(panels) :]:
        ax.axis("off")
    return _finished(made, axes)


def _apart(arm: str) -> tuple:
    """How an arm is drawn, without a line."""
    colour, marker, _ = arm_style(arm)
    return colour, marker, "none"


def sized(ax: Axes, ipc: Iterable[int]) -> None:
    """A logarithmic axis of images per class, with a tick at each of ``ipc``."""
    sizes = sorted({*ipc})
    ax.set(xscale="log", xlabel="images per class")
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.xaxis.set_minor_locator(NullLocator())


def timed(ax: Axes) -> None:
    """A logarithmic axis of seconds, in plain numbers."""
    ax.set(xscale="log", xlabel="seconds of a run (logarithmic)")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.xaxis.set_minor_locator(NullLocator())


def noisy_by_size(results: pd.DataFrame) -> pd.DataFrame:
    """Summaries of the noisy settings, without IPC, and arms that were run at several sizes."""
    noisy = results[results["noise"] != "none"]
    if noisy.empty:
        return noisy
    found = with_cost(noisy)
    sizes = found.groupby([name for name in (*SETTING, "arm") if name != "ipc"])["ipc"].transform("nunique")
    return found[sizes > 1]


def arms_by_size(found: pd.DataFrame) -> Figure:
    """Accuracy of arms against images per class, of :func:`noisy_by_size`: a panel a setting, those with the most arms
    first."""
    same = [name for name in SETTING if name != "ipc"]
    panels = sorted(found.groupby(same, sort=False), key=lambda item: -len(item[1]))[:MOST_PANELS]
    made, axes = figure(2.9, 1, len(panels), sharey=True)
    for ax, (key, own) in zip(axes[0], panels, strict=True):
        for arm in (arm for arm in ARMS if (own["arm"] == arm).any()):
            _points(ax, own[own["arm"] == arm].sort_values("ipc"), "ipc", arm_style(arm), arm)
        sized(ax, own["ipc"])
        of = dict(zip(same, key))
        ax.set_title(f"{_method(of)}\n{_title(of)}", fontsize=8.5)
    return _finished(made, axes)


def noisy_by_cost(results: pd.DataFrame) -> pd.DataFrame:
    """Summaries of noisy settings, at the scale, data set and size at which most were run, in which several methods
    were run with several arms; at most ``MOST_PANELS`` noises."""
    noisy = results[results["noise"] != "none"]
    if noisy.empty:
        return noisy
    found = with_cost(noisy)
    arms = found.groupby(SETTING)["arm"].transform("nunique")
    found = found[arms > 1]
    noise = [*WHERE, "ipc", "noise", "rate_nominal"]
    found = found[found.groupby(noise)["method"].transform("nunique") > 1]
    if found.empty:
        return found
    return max((own for _, own in found.groupby([*WHERE, "ipc"])), key=len)


def arms_by_cost(found: pd.DataFrame) -> Figure:
    """Accuracy of every arm and method against cost, of :func:`noisy_by_cost`: a panel a noise. Lines lead from vanilla
    to the other arms of a method, which is named there."""
    panels = sorted(found.groupby(["noise", "rate_nominal"], sort=False), key=lambda item: -len(item[1]))[:MOST_PANELS]
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    made, axes = figure(2.3 * rows + 0.5, rows, columns, sharex=True, sharey=True)
    for ax, (_, own) in zip(axes.flat, panels):
        for key, of_method in own.groupby(SETTING, sort=False):
            arms = {arm: of_method[of_method["arm"] == arm] for arm in ARMS if (of_method["arm"] == arm).any()}
            x, y = of_method["cost"], percent(of_method["accuracy"])
            start = of_method["arm"].tolist().index("vanilla") if "vanilla" in arms else int(y.argmin())
            for end, arm in zip(zip(x, y), of_method["arm"]):
                ax.plot(*zip((x.iloc[start], y[start]), end), color=arm_style(arm)[0], linewidth=0.6)
            for arm, points in arms.items():
                _points(ax, points, "cost", arm_style(arm), arm)
            placed = {"textcoords": "offset points", "ha": "right", "va": "top", "fontsize": 7.5, "color": INK}
            ax.annotate(_method(dict(zip(SETTING, key))), (x.iloc[start], y[start]), (-5, -2), **placed)
        ax.set_title(_title({name: own[name].iloc[0] for name in SETTING}), fontsize=8.5)
        ax.margins(0.12)
        timed(ax)
        ax.label_outer()
    for ax in axes.flat[len(panels) :]:
        ax.axis("off")
    return _finished(made, axes)


def _points(ax: Axes, own: pd.DataFrame, column: str, drawn: tuple, label: str) -> None:
    """Accuracies with their intervals, against a column."""
    options = dict(zip(("color", "marker", "linestyle"), drawn, strict=True)) | {"markersize": 5, "linewidth": 1.1}
    half = percent(own["half"].astype(float).fillna(0))
    ax.errorbar(own[column], percent(own["accuracy"]), half, capsize=2, elinewidth=0.8, label=label, **options)


def _method(of: dict) -> str:
    """The name of a setting's method, with what is unusual about it."""
    name = str(setting_names(of | {"ipc": 0})["method"])
    code, comma, rest = name.partition(",")
    return f"{NAMES.get(code, code.upper())}{comma}{rest}" if code != "random" else name


def _title(of: dict) -> str:
    """The noise of a setting, and its rate where one was asked for."""
    noise = str(of["noise"])
    return NAMES.get(noise, noise) if noise.startswith("human") else f"{noise}, {100 * float(of['rate_nominal']):.0f} %"


def _finished(made: Figure, axes: np.ndarray) -> Figure:
    for ax in axes[:, 0]:
        ax.set_ylabel("test accuracy (%)")
        ax.yaxis.set_major_locator(MaxNLocator(6))
    handles = {name: line for ax in axes.flat for line, name in zip(*ax.get_legend_handles_labels())}
    order = [arm for arm in ARMS if arm in handles]
    made.legend([handles[arm] for arm in order], order, loc="outside upper center", ncols=len(order))
    return made


def fragments(results_dir: Path | str) -> dict[str, tuple[Figure | None, str]]:
    """What pages show of methods and arms, by name: a figure, and the text that includes it; nothing where rows are
    missing."""
    results, found = read_results(results_dir), dict[str, tuple[Figure | None, str]]()
    made = {
        "by_noise": (by_noise, arms_by_noise, NOISE_ALT, NOISE_CAPTION),
        "methods_by_size": (clean_methods, methods_by_size_and_cost, METHODS_ALT, METHODS_CAPTION),
        "arms_by_size": (noisy_by_size, arms_by_size, SIZE_ALT, SIZE_CAPTION),
        "arms_by_cost": (noisy_by_cost, arms_by_cost, COST_ALT, COST_CAPTION),
    }
    for name, (choose, draw, alt, caption) in made.items():
        rows = choose(results)
        found[name] = (draw(rows), figure_text(name, alt, f"{caption} {_scale(rows)}")) if len(rows) else (None, "")
    return found


def _scale(found: pd.DataFrame) -> str:
    """Data, scale and seeds of summaries, as a sentence."""
    least, most = found["n_seeds"].min(), found["n_seeds"].max()
    data = dict.fromkeys(zip(found["dataset"], found["n_train"]))
    images = ", ".join(f"{NAMES.get(name, name)}, {n:,} images" for name, n in data)
    seeds = (
        f"means over {least} to {most} seeds"
        if least < most
        else f"means over {most} seeds"
        if most > 1
        else "one seed"
    )
    intervals = "bars: 95 % intervals, over seeds where there are three or more, over networks where there is one"
    sizes = ", ".join(str(size) for size in sorted({*found["ipc"]}))
    return f"{images}; {sizes} images per class, scale {' and '.join(found['preset'].unique())}; {seeds}; {intervals}."
