"""How arms compare: run by run, against the noise rate, and where our methods fall short."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tadbook.style import NAMES, arm_style, figure, percent
from tadbook.tables import (
    DEFAULTS,
    OURS,
    REFERENCES,
    SETTING,
    comparisons,
    gap_of,
    interval,
    over_seeds,
    setting_names,
    summarise,
    with_interval,
)
from tadlib.config import ARMS
from tadlib.errors import require

RIVALS = ("vanilla", "loss-filter")
ENOUGH = 0.85  # of the gap: less counts as falling short
SERIES = [name for name in SETTING if name not in ("noise", "rate_nominal")]  # what one curve over rates shares
MOST_PANELS = 4
# columns of the table of controls and the columns of rows that they show
CONTROLS = {
    "distilled": "accuracy_mean",
    "random images": "accuracy_random_real",
    "hard labels": "accuracy_hard_labels",
}


def verdict(pairs: pd.DataFrame) -> str:
    """What :func:`tadbook.tables.comparisons` say of each arm in all, a line an arm; there must be at least one.

    Runs of a seed share images, networks and runs on clean labels, so that a seed counts once: differences are averaged
    over the settings that all seeds have, then Student's t over seeds tells their interval. A setting that was tested
    on several numbers of images counts once: the number that most seeds have, and of these the largest.
    """
    require(len(pairs) > 0, "there is no setting and seed with all arms to compare")
    alike = [name for name in (*SETTING, "arm") if name != "n_test"]
    seeds = pairs.groupby([*alike, "n_test"])["seed"].transform("nunique")
    ranked = pairs.assign(seeds=seeds).sort_values(["seeds", "n_test"]).groupby(alike)["n_test"]
    pairs = pairs[pairs["n_test"] == ranked.transform("last").reindex(pairs.index)]
    return "\n".join(_verdict(str(arm), own) for arm, own in pairs.groupby("arm", sort=False))


def _verdict(arm: str, pairs: pd.DataFrame) -> str:
    against = []
    for rival in RIVALS:
        known = pairs.dropna(subset=[rival])
        won = known["accuracy"] > known[rival]
        if len(won):
            of_seed, n = by_seed(known.assign(difference=known["accuracy"] - known[rival]))
            mean = with_interval(*interval(of_seed["difference"].tolist()))
            share = f"{won.sum()} of {len(won)} runs ({100 * won.mean():.0f} %)"
            against.append(f"above {rival} in {share}, by {mean} points on average over {_count(n, 'setting')}")
    text = f"{arm} is {'; '.join(against)}."
    known = pairs.dropna(subset=["clean"])
    if len(known):
        of_seed, n = by_seed(known)
        gap, half = gap_of(of_seed)
        if gap is not None:
            text += f" It closes {with_interval(gap, half, 1, 2)} of the gap, over {_count(n, 'setting')}."
    return text


def by_seed(pairs: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Means over settings, a row for each seed, and of how many settings: those alone that all seeds have, if any."""
    seeds = pairs.groupby(SETTING)["seed"].transform("nunique")
    whole = pairs[seeds == pairs["seed"].nunique()]
    counted = whole if len(whole) else pairs
    return counted.groupby("seed").mean(numeric_only=True), len(counted.groupby(SETTING))


def differences_table(results: pd.DataFrame) -> pd.DataFrame:
    """One row for each noisy setting and arm of ``OURS``: how far it is above vanilla, the loss filter and the oracle,
    in points, mean ± half of the 95 % interval of the paired differences over seeds."""
    rows = []
    for (*setting, arm), own in comparisons(results).groupby([*SETTING, "arm"], sort=False):
        row = setting_names(dict(zip(SETTING, setting))) | {"arm": arm}
        for other in REFERENCES:
            differences = (own["accuracy"] - own[other]).dropna().tolist()
            row[f"above {other}"] = with_interval(*interval(differences))
        rows.append(row | {"seeds": own["seed"].nunique()})
    return pd.DataFrame(rows)


def controls_table(results: pd.DataFrame) -> pd.DataFrame:
    """One row for each setting, clean labels included, and arm of ``OURS`` with controls, in %: accuracy of its set, of
    random real images with the labels and the recipe of the set, of the set with hard labels only, and of the set made
    with uniform drawing (``draw_power`` 0)."""
    with_controls = results.reindex(columns=list(dict.fromkeys([*results, *CONTROLS.values()])))
    is_default = with_controls["draw_power"] == DEFAULTS["draw_power"]
    default, uniform = with_controls[is_default], with_controls[with_controls["draw_power"] == 0]
    same = [name for name in SETTING if name != "draw_power"]
    rows = []
    for (*setting, arm), own in default[default["arm"].isin(OURS)].groupby([*SETTING, "arm"], sort=False):
        of = dict(zip(SETTING, setting))
        drawn = uniform[(uniform[same] == pd.Series(of)[same]).all(axis=1) & (uniform["arm"] == arm)]
        if own["accuracy_random_real"].notna().any() or len(drawn):
            row = setting_names(of) | {"arm": arm}
            row |= {title: over_seeds(own[column], 100, 1) for title, column in CONTROLS.items()}
            rows.append(row | {"uniform drawing": over_seeds(drawn["accuracy_mean"], 100, 1)})
    return pd.DataFrame(rows)


def selection_table(results: pd.DataFrame) -> pd.DataFrame:
    """What selection and soft labels bring where no label is wrong: one row for each data set, method and way to draw,
    the arms of ``OURS`` on clean labels less the oracle there, in points, mean ± half of the 95 % interval of the
    paired differences over seeds. Drawing makes no difference to the oracle."""
    clean = results[results["noise"] == "none"]
    same = [name for name in SETTING if name not in ("noise", "rate_nominal", "draw_power")]
    plain = clean[clean["arm"].isin(["vanilla", "oracle"]) & (clean["draw_power"] == DEFAULTS["draw_power"])]
    plain = plain.drop_duplicates([*same, "seed"]).set_index([*same, "seed"])["accuracy_mean"].astype(float)
    rows = []
    for setting, own in clean[clean["arm"].isin(OURS)].groupby(SETTING, sort=False):
        row, pairs = setting_names(dict(zip(SETTING, setting))), own.join(plain.rename("plain"), on=[*same, "seed"])
        pairs = pairs.assign(gain=pairs["accuracy_mean"].astype(float) - pairs["plain"]).dropna(subset=["gain"])
        if len(pairs):
            row = {name: value for name, value in row.items() if name not in ("noise", "rate")}
            row |= {arm: with_interval(*interval(pairs[pairs["arm"] == arm]["gain"].tolist())) for arm in OURS}
            rows.append(row | {"seeds": pairs["seed"].nunique()})
    return pd.DataFrame(rows)


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
        of, mean = dict(zip(SETTING, setting)), own[[*REFERENCES, "accuracy"]].mean()
        reasons = [f"no better than {rival}" for rival in RIVALS if mean["accuracy"] <= mean[rival]]
        gap, _ = gap_of(own)
        if gap is not None and gap < ENOUGH:
            reasons.append("gap")
        if not reasons:
            continue
        same = results[(results[SETTING] == pd.Series(of)).all(axis=1) & results["seed"].isin(own["seed"])]
        right = same.groupby("arm")["label_accuracy"].agg(lambda values: values.astype(float).mean())
        row = setting_names(of) | {"arm": arm, "falls short by": ", ".join(reasons)}
        row |= {name: with_interval(mean[name], None) for name in (*RIVALS, "accuracy", "oracle")}
        row["gap closed"] = with_interval(gap, None, 1, 2)
        row["right labels: loss-filter"] = with_interval(right.get("loss-filter"), None)
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
    noisy, clean = results[results["noise"] != "none"], results[results["noise"] == "none"]
    kinds = noisy["noise"].astype(str).str.replace("^human:.*", "human", regex=True)
    found = []
    for key, own in noisy.groupby([*SERIES, kinds], sort=False):
        rates = own.groupby(SETTING)["rate_realised"].mean().astype(float)
        summary = summarise(pd.concat([own, clean]))
        summary = summary[summary["noise"] != "none"].reset_index(drop=True)
        summary["rate"] = [rates[tuple(row)] for row in summary[SETTING].itertuples(index=False)]
        arms = summary.groupby("rate")["arm"].agg(set)
        complete = arms.map(lambda names: {"vanilla", "oracle"} <= names and bool(names & {*OURS}))
        if complete.sum() > 1:
            found.append((dict(zip([*SERIES, "noise"], key)), summary[summary["rate"].map(complete)]))
    yield from sorted(found, key=lambda item: (-item[1]["rate"].nunique(), -item[0]["n_test"]))


def against_rate(results: pd.DataFrame) -> Figure | None:
    """Accuracy of every arm, and the gap that our methods close, against the noise rate; a column for each kind of
    noise.

    At most ``MOST_PANELS`` series, those with the most rates; of series that differ in test images alone only the first
    in that order. None where nothing was run at several rates.
    """
    found: dict[tuple, tuple[dict, pd.DataFrame]] = {}
    for of, summary in rate_series(results):
        found.setdefault(tuple(value for name, value in of.items() if name != "n_test"), (of, summary))
    series = list(found.values())[:MOST_PANELS]
    if not series:
        return None
    made, axes = figure(4.2, 2, len(series), sharex="col", height_ratios=[1.6, 1])
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
        code, comma, more = str(setting_names(of | {"rate_nominal": 0})["method"]).partition(",")
        data, method = NAMES.get(of["dataset"], of["dataset"]), NAMES.get(code, code)
        upper.set_title(f"{of['noise']}{comma}{more}\n{data}, {method}, IPC {of['ipc']}", loc="left")
    axes[0, 0].set_ylabel("test accuracy (%)")
    axes[1, 0].set_ylabel("gap closed")
    axes[0, 0].legend(loc="best")
    return made
