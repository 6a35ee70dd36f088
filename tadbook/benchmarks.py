"""Figures of the benchmarks, made from the tables in ``results/benchmarks``."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tadbook.style import CYCLE, figure, style
from tadlib.errors import known
from tadlib.store import load_table


def meta_gradient(table: pd.DataFrame) -> Figure:
    """Seconds and peak memory of one meta-gradient over the number of student steps, a column a width."""
    widths = sorted(table.width.unique())
    made, axes = figure(4.6, 2, len(widths))
    names = sorted(table.method.unique())
    styles = {name: (*line, marker) for name, line, marker in zip(names, CYCLE, "os^D", strict=False)}
    for column, width in zip(axes.T, widths, strict=True):
        of_width = table[table.width == width]
        for method, rows in of_width.sort_values("steps").groupby("method"):
            colour, dashes, marker = styles[method]
            whole = rows[~rows.out_of_memory]
            for ax, values in ((column[0], whole.cpu_seconds), (column[1], whole.peak_bytes / 1e9)):
                drawn = {"color": colour, "linestyle": dashes, "marker": marker, "markersize": 4.5, "label": method}
                ax.plot(whole.steps, values, **drawn)
            for steps, limit in rows[rows.out_of_memory][["steps", "memory_limit_gb"]].itertuples(index=False):
                column[1].plot(steps, limit, "x", color=colour)
                column[1].annotate("out of memory", (steps, limit), ha="right", va="bottom", fontsize=7)
        column[0].set(title=f"width {width}, batch {of_width.batch.iloc[0]}", ylabel="processor seconds")
        column[1].set(xlabel="student steps J", ylabel="peak memory (GB)")
        for ax in column:
            ax.set_ylim(0, 1.1 * ax.get_ylim()[1])
            ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    handles = {name: line for ax in axes.flat for line, name in zip(*ax.get_legend_handles_labels())}
    made.legend(handles.values(), handles, loc="outside upper center", ncols=len(handles))
    return made


def _bars(table: pd.DataFrame, column: str, label: str, scale: str = "linear") -> Figure:
    """A bar for each method, or, on a logarithmic scale, a point."""
    made, axes = figure(0.6 + 0.35 * len(table))
    ax = axes[0, 0]
    placed = {"va": "bottom" if scale == "log" else "center"}
    if scale == "log":  # no bars: their length would tell nothing
        ax.plot(table[column], table.method, "o", color=CYCLE[0][0])
        ax.grid(axis="y", linewidth=0.4)
    else:
        ax.barh(table.method, table[column], color=CYCLE[0][0], height=0.6)
    for i, value in enumerate(table[column]):
        ax.annotate(f"{value:.3g}", (value, i), (6, 1), textcoords="offset points", fontsize=7.5, **placed)
    ax.invert_yaxis()
    ax.set(xlabel=label, xscale=scale)
    if scale == "log":  # room for the numbers
        ax.set_xlim(10 ** np.floor(np.log10(table[column].min())), 3 * table[column].max())
        ax.set_ylim(len(table) - 0.5, -0.5)
    return made


def expert_training(table: pd.DataFrame) -> Figure:
    """Images a second of each way to train an expert."""
    return _bars(table.drop_duplicates("method"), "images_per_cpu_second", "images per processor second")


def trajectory_store(table: pd.DataFrame) -> Figure:
    """Milliseconds of one random read of each way to keep trajectories."""
    timed = table.dropna(subset="read_milliseconds")
    return _bars(timed, "read_milliseconds", "one random read, warm (ms, logarithmic)", "log")


def evaluation(table: pd.DataFrame) -> Figure:
    """Seconds that each way takes to evaluate the same networks."""
    return _bars(table, "cpu_seconds", "processor seconds")


def diversion(table: pd.DataFrame) -> Figure:
    """What trust methods cost in units of plain training for the same epochs."""
    table = table[table.method != "mixtures"]
    named = table.method + ", " + table.classes.astype(str) + " classes"
    return _bars(table.assign(method=named), "ratio", "processor seconds, plain training = 1")


FIGURES = {
    "diversion": diversion,
    "meta_gradient": meta_gradient,
    "expert_training": expert_training,
    "trajectory_store": trajectory_store,
    "evaluation": evaluation,
}


def draw(folder: Path, name: str) -> Path:
    """Write ``NAME.png`` beside ``NAME.parquet``; returns its path."""
    known("benchmark", name, FIGURES)
    style()
    FIGURES[name](load_table(Path(folder) / f"{name}.parquet")).savefig(path := Path(folder) / f"{name}.png")
    return path
