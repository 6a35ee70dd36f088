"""How arms compare: run by run, against the noise rate, and where our methods fall short."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tadbook.style import arm_style, figure, percent
from tadbook.tables import OURS, SETTING, setting_names, summarise, with_interval
from tadlib.config import ARMS
from tadlib.errors import require
from tadlib.evaluate import mean_ci95

RIVALS = ("vanilla", "loss-filter")
REFERENCES = [*RIVALS, "oracle"]
ENOUGH = 0.8  # of the gap: less counts as falling short
SERIES = ["preset", "dataset", "n_train", "method", "ipc"]  # what one curve over rates shares, besides the noise
MOST_PANELS = 4


def comparisons(results: pd.DataFrame) -> pd.DataFrame:
    """One row for each arm of ``OURS``, noisy setting and seed that has it and all of ``REFERENCES``: their accuracies,
    that of the arm as ``accuracy``, and the gap that it closes.

    ``gap`` is (arm − vanilla) / (oracle − vanilla), NaN where the oracle is no better than vanilla.
    """
    noisy = results[results["noise"] != "none"]
    wide = noisy.pivot(index=[*SETTING, "seed"], columns="arm", values="accuracy_mean").astype(float)
    wide = wide.reindex(columns=[*REFERENCES, *OURS]).reset_index()
    pairs = wide.melt([*SETTING, "seed", *REFERENCES], OURS, "arm", "accuracy").dropna(ignore_index=True)
    room = (pairs["oracle"] - pairs["vanilla"]).where(lambda value: value > 0)
    return pairs.assign(gap=(pairs["accuracy"] - pairs["vanilla"]) / room)


def verdict(pairs: pd.DataFrame) -> str:
    """What :func:`comparisons` say of each arm, in all and by seed, in a few sentences; there must be at least one."""
    require(len(pairs) > 0, "there is no setting and seed with all arms to compare")
    return " ".join(_verdict(str(arm), own) for arm, own in pairs.groupby("arm", sort=False))


def _verdict(arm: str, pairs: pd.DataFrame) -> str:
    against = []
    for rival in RIVALS:
        won = pairs["accuracy"] > pairs[rival]
        text = f"above {rival} in {won.sum()} of {len(won)} runs ({100 * won.mean():.0f} %)"
        by_seed = won.groupby(pairs["seed"]).agg(["sum", "count"])
        if 0 < won.sum() < len(won) and len(by_seed) > 1:
            text += ": " + ", ".join(f"{n} of {all_} of seed {seed}" for seed, n, all_ in by_seed.itertuples())
        against.append(text)
    text = f"{arm} is {'; '.join(against)}."
    gaps = pairs.groupby(SETTING)["gap"].mean().dropna().tolist()  # settings count alike, however many seeds they have
    if gaps:
        mean = with_interval(*mean_ci95(gaps), 1, 2)
        text += f" It closes {mean} of the gap, averaged over {_count(len(gaps), 'setting')}."
    if undefined := int(pairs["gap"].isna().sum()):
        text += f" In {_count(undefined, 'run')} there is no gap: the oracle is no better than vanilla."
    return text


def _count(n: int, what: str) -> str:
    return f"{n} {what}s" if n > 1 else f"one {what}"


def shortfalls(results: pd.DataFrame, leftover: pd.DataFrame | None = None) -> pd.DataFrame:
    """The settings where an arm of ``OURS`` falls short: no better than a rival, or less than ``ENOUGH`` of the gap
    closed.

    Means over the seeds that have all arms: accuracy of each in %, gap closed, and right labels among hard training
    labels, by weight (%), of the loss filter and of the arm. ``leftover``, the table of ``results/collect.py``, adds
    which wrong labels the arm still trains on. Empty when none falls short.
    """
    rows = []
    for (*setting, arm), own in comparisons(results).groupby([*SETTING, "arm"], sort=False):
        of, mean = dict(zip(SETTING, setting)), own[[*REFERENCES, "accuracy", "gap"]].mean()
        reasons = [f"no better than {rival}" for rival in RIVALS if mean["accuracy"] <= mean[rival]]
        if pd.isna(mean["gap"]):
            reasons.append("no gap")
        elif mean["gap"] < ENOUGH:
            reasons.append("gap")
        if not reasons:
            continue
        same = results[(results[SETTING] == pd.Series(of)).all(axis=1) & results["seed"].isin(own["seed"])]
        right = same.groupby("arm")["label_accuracy"].agg(lambda values: values.astype(float).mean())
        row = setting_names(of) | {"arm": arm, "falls short by": ", ".join(reasons)}
        row |= {name: f"{100 * mean[name]:.1f}" for name in (*RIVALS, "accuracy", "oracle")}
        row["gap closed"] = with_interval(mean["gap"], None, 1, 2)
        row["right labels: loss-filter"] = with_interval(right["loss-filter"], None)
        row["right labels"] = with_interval(right[arm], None)
        if leftover is not None:
            row["wrong labels left"] = _left(leftover, of | {"arm": arm})
        rows.append(row | {"seeds": own["seed"].nunique()})
    return pd.DataFrame(rows)


def _left(leftover: pd.DataFrame, of: dict) -> str:
    """The two largest shares of wrong labels that are trained on, over the seeds, as true class → label."""
    same = [name for name in (*SETTING, "arm") if name in leftover]
    own = leftover[(leftover[same] == pd.Series(of)[same]).all(axis=1)]
    if own.empty:
        return "–"
    share = (own.groupby(["true_label", "label"])["share"].sum() / own["seed"].nunique()).nlargest(2)
    return ", ".join(f"{true} → {label} {100 * value:.1f} %" for (true, label), value in share.items())


def rate_series(results: pd.DataFrame) -> Iterator[tuple[dict, pd.DataFrame]]:
    """Settings and summaries (with ``rate``) of what was run at several noise rates; the longest series first.

    Human labels of one data set are one kind of noise, whose sets differ in their rate.
    """
    noisy = results[results["noise"] != "none"]
    kinds = noisy["noise"].astype(str).str.replace("^human:.*", "human", regex=True)
    found = []
    for key, own in noisy.groupby([*SERIES, kinds], sort=False):
        rates = own.groupby(SETTING)["rate_realised"].mean().astype(float)
        summary = summarise(own)
        summary["rate"] = [rates[tuple(row)] for row in summary[SETTING].itertuples(index=False)]
        arms = summary.groupby("rate")["arm"].agg(set)
        complete = arms.map(lambda names: {"vanilla", "oracle"} <= names and bool(names & {*OURS}))
        if complete.sum() > 1:
            found.append((dict(zip([*SERIES, "noise"], key)), summary[summary["rate"].map(complete)]))
    yield from sorted(found, key=lambda item: -item[1]["rate"].nunique())


def against_rate(results: pd.DataFrame) -> Figure | None:
    """Accuracy of every arm, and the gap that our methods close, against the noise rate; a column for each kind of
    noise.

    At most ``MOST_PANELS`` series, those with the most rates; None where nothing was run at several rates.
    """
    series = list(rate_series(results))[:MOST_PANELS]
    if not series:
        return None
    made, axes = figure(4.2, 2, len(series), sharex="col", sharey="row", height_ratios=[1.6, 1])
    for (upper, lower), (of, summary) in zip(axes.T, series, strict=True):
        for name in (arm for arm in ARMS if (summary["arm"] == arm).any()):
            own = summary[summary["arm"] == name].sort_values("rate")
            colour, marker, line = arm_style(name)
            drawn = {"color": colour, "marker": marker, "linestyle": line, "markersize": 4, "capsize": 2, "label": name}
            rate, half = percent(own["rate"]), percent(own["half"].astype(float).fillna(0))
            upper.errorbar(rate, percent(own["accuracy"]), yerr=half, elinewidth=0.8, **drawn)
            if name in OURS:
                gap, half = (own[column].to_numpy(float) for column in ("gap", "gap_half"))
                lower.errorbar(rate, gap, yerr=np.nan_to_num(half), elinewidth=0.8, **drawn)
        lower.axhline(1, color=arm_style("oracle")[0], linewidth=0.7, linestyle=(0, (6, 1.5, 1, 1.5)))
        lower.set(xlabel="wrong labels (%)", xlim=(0, None))
        gaps = summary["gap"].dropna().astype(float)  # undefined where the oracle is no better than vanilla
        lower.set_ylim(min([0.0, *gaps]), max([1.15, *(gaps + 0.1)]))
        upper.set_title(f"{of['noise']}\n{of['dataset']}, {of['method']}, {of['ipc']} a class", loc="left")
    axes[0, 0].set_ylabel("test accuracy (%)")
    axes[1, 0].set_ylabel("gap closed")
    axes[0, 0].legend(loc="best")
    return made
