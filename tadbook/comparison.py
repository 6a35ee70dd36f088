"""How arms do beside each other: cell by cell, against the noise rate, and where trust does not pay."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tadbook.style import arm_look, figure, percent
from tadbook.tables import CELL, setting_names, summarise, with_interval
from tadlib.arms import ARMS
from tadlib.errors import require
from tadlib.evaluate import mean_ci95

RIVAL = "clean-then-distill"
COMPARED = ("vanilla", RIVAL, "tad", "oracle")
ENOUGH = 0.8  # of the gap: less counts as falling short
SERIES = ["preset", "dataset", "n_train", "method", "ipc"]  # what one curve over rates shares, besides the noise
MOST_PANELS = 4


def comparisons(results: pd.DataFrame) -> pd.DataFrame:
    """One row for each noisy cell and seed that has all of ``COMPARED``: accuracy of each, and the gap tad closes.

    ``gap`` is (tad − vanilla) / (oracle − vanilla), NaN where the oracle is no better than vanilla.
    """
    noisy = results[results["noise"] != "none"]
    if noisy.empty:
        return pd.DataFrame(columns=[*CELL, "seed", *COMPARED, "gap"])
    wide = noisy.pivot(index=[*CELL, "seed"], columns="arm", values="accuracy_mean").astype(float)
    wide = wide.reindex(columns=list(COMPARED)).dropna().reset_index()
    room = (wide["oracle"] - wide["vanilla"]).where(lambda value: value > 0)
    return wide.assign(gap=(wide["tad"] - wide["vanilla"]) / room)


def verdict(pairs: pd.DataFrame) -> str:
    """What :func:`comparisons` say, in all and by seed, in two sentences; there must be at least one."""
    require(len(pairs) > 0, "there is no cell and seed with all arms to compare")
    won = pairs["tad"] > pairs[RIVAL]
    wins, runs = int(won.sum()), len(pairs)
    gaps = pairs.groupby(CELL)["gap"].mean().dropna().tolist()  # cells count alike, however many seeds they have
    text = f"tad is above {RIVAL} in {wins} of {runs} runs ({100 * wins / runs:.0f} %)"
    by_seed = won.groupby(pairs["seed"]).agg(["sum", "count"])
    if len(by_seed) > 1:
        text += ": " + ", ".join(f"{won} of {all_} of seed {seed}" for seed, won, all_ in by_seed.itertuples())
    text += "."
    if gaps:
        text += (
            f" It closes {with_interval(*mean_ci95(gaps), 1, 2)} of the gap, averaged over {_count(len(gaps), 'cell')}."
        )
    if undefined := int(pairs["gap"].isna().sum()):
        text += f" In {_count(undefined, 'run')} there is no gap: the oracle is no better than vanilla."
    return text


def _count(n: int, what: str) -> str:
    return f"{n} {what}s" if n > 1 else f"one {what}"


def shortfalls(results: pd.DataFrame, leftover: pd.DataFrame | None = None) -> pd.DataFrame:
    """The cells where tad falls short: no better than clean-then-distill, or less than ``ENOUGH`` of the gap closed.

    Means over the seeds that have all arms: accuracy of each in %, gap closed, and what the labels were like: right
    ones among those in use by weight (%), for both arms. ``leftover``, the table of ``results/collect.py``, adds which
    wrong labels tad leaves in use. Empty when tad falls short nowhere.
    """
    rows = []
    for cell, own in comparisons(results).groupby(CELL, sort=False):
        of, mean = dict(zip(CELL, cell)), own[[*COMPARED, "gap"]].mean()
        reasons = [f"no better than {RIVAL}"] if mean["tad"] <= mean[RIVAL] else []
        if pd.isna(mean["gap"]) or mean["gap"] < ENOUGH:
            reasons.append("gap" if not pd.isna(mean["gap"]) else "no gap")
        if not reasons:
            continue
        same = (results[CELL] == pd.Series(of)).all(axis=1) & results["seed"].isin(own["seed"])
        row = setting_names(of) | {"falls short by": ", ".join(reasons)}
        row |= {arm: f"{100 * mean[arm]:.1f}" for arm in COMPARED}
        row["gap closed"] = "–" if pd.isna(mean["gap"]) else f"{mean['gap']:.2f}"
        for arm in (RIVAL, "tad"):
            right = results.loc[same & (results["arm"] == arm), "label_accuracy"].astype(float).mean()
            row[f"{arm}: right in use"] = "–" if pd.isna(right) else f"{100 * right:.1f}"
        if leftover is not None:
            row["left wrong"] = _left(leftover, of)
        rows.append(row | {"seeds": own["seed"].nunique()})
    return pd.DataFrame(rows)


def _left(leftover: pd.DataFrame, of: dict) -> str:
    """The two largest shares of wrong labels in use, over the seeds of a cell, as true class → label."""
    same = [name for name in CELL if name not in ("method", "ipc", "evaluate_network")]
    own = leftover[(leftover[same] == pd.Series(of)[same]).all(axis=1)]
    if own.empty:
        return "–"
    share = own.groupby(["true_label", "label"])["share"].sum() / own["seed"].nunique()
    top = share.sort_values(ascending=False).head(2)
    return ", ".join(f"{true} → {label} {100 * value:.1f} %" for (true, label), value in top.items())


def rate_series(results: pd.DataFrame) -> Iterator[tuple[dict, pd.DataFrame]]:
    """Settings and summaries (with ``rate``) of what was run at several noise rates; the longest series first.

    Human labels of one data set are one kind of noise, whose sets differ in their rate.
    """
    noisy = results[results["noise"] != "none"]
    kinds = noisy["noise"].astype(str).str.replace("^human:.*", "human", regex=True)
    found = []
    for key, own in noisy.groupby([*SERIES, kinds], sort=False):
        rates = own.groupby(CELL)["rate_realised"].mean().astype(float)
        summary = summarise(own)
        summary["rate"] = [rates[tuple(row)] for row in summary[CELL].itertuples(index=False)]
        complete = summary.groupby("rate")["arm"].agg(lambda arms: {"vanilla", "tad", "oracle"} <= {*arms})
        if complete.sum() > 1:
            found.append((dict(zip([*SERIES, "noise"], key)), summary[summary["rate"].map(complete)]))
    yield from sorted(found, key=lambda item: -item[1]["rate"].nunique())


def against_rate(results: pd.DataFrame) -> Figure | None:
    """Accuracy of every arm, and the gap that tad closes, against the noise rate; a column for each kind of noise.

    At most ``MOST_PANELS`` series, those with the most rates; None where nothing was run at several rates.
    """
    series = list(rate_series(results))[:MOST_PANELS]
    if not series:
        return None
    made, axes = figure(4.2, 2, len(series), sharex="col", sharey="row", height_ratios=[1.6, 1])
    for (upper, lower), (of, summary) in zip(axes.T, series, strict=True):
        for name in (arm for arm in ARMS if (summary["arm"] == arm).any()):
            own = summary[summary["arm"] == name].sort_values("rate")
            colour, marker, line = arm_look(name)
            look = {"color": colour, "marker": marker, "linestyle": line, "markersize": 4, "capsize": 2, "label": name}
            rate, half = percent(own["rate"]), percent(own["half"].astype(float).fillna(0))
            upper.errorbar(rate, percent(own["accuracy"]), yerr=half, elinewidth=0.8, **look)
            if name == "tad":
                gap, half = (own[column].to_numpy(float) for column in ("gap", "gap_half"))
                lower.errorbar(rate, gap, yerr=np.nan_to_num(half), elinewidth=0.8, **look)
        lower.axhline(1, color=arm_look("oracle")[0], linewidth=0.7, linestyle=(0, (6, 1.5, 1, 1.5)))
        lower.set(xlabel="wrong labels (%)", xlim=(0, None))
        known = gap[np.isfinite(gap)]  # undefined where the oracle is no better than vanilla
        lower.set_ylim(min([0.0, *known]), max([1.15, *(known + 0.1)]))
        upper.set_title(f"{of['noise']}\n{of['dataset']}, {of['method']}, {of['ipc']} a class", loc="left")
    axes[0, 0].set_ylabel("test accuracy (%)")
    axes[1, 0].set_ylabel("gap closed by tad")
    axes[0, 0].legend(loc="best")
    return made
