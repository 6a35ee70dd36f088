"""Tables of results: from rows, one for each run, to tables that are read."""

import fcntl
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pandas as pd

from tadlib import pipeline
from tadlib.config import ARMS, METHODS
from tadlib.evaluate import gap_closed, mean_ci95
from tadlib.pipeline import TIMED, result_table
from tadlib.presets import PRESETS
from tadlib.store import load_table, save_table

REFERENCES = ["vanilla", "loss-filter", "oracle"]
OURS = ("tad", "tad-posterior")  # the paper's method and our extension: tables show both, a dash before there are rows
# what the arms that are compared with each other share, and the same where only trust was measured
SETTING = list(pipeline.SETTING)
TRUST_SETTING = ["preset", "dataset", "n_train", "noise", "rate_nominal"]
# columns of tables and the columns of rows that they show
TRAINED_ON = {
    "noisy": "accuracy_given",
    "trusted": "accuracy_trusted",
    "trust": "accuracy_trust",
    "hard": "accuracy_alone",
    "refined": "accuracy_refined",
    "true": "accuracy_true",
}
SPLIT = {"flagged": "flagged", "precision": "trust_precision", "recall": "trust_recall"}
LABELS = {
    "pseudo-labels": "relabelled",
    "of these right": "relabel_accuracy",
    "wrong labels corrected": "relabel_recall",
    "hard labels right": "label_accuracy",
    "label mass right": "mass_accuracy",
}
DEFAULTS = {"evaluate_network": "convnet", "formation": 1, "draw_power": 8.0, "n_test": 0}  # 0: not told
NEEDED = {*SETTING[: -len(DEFAULTS)], "arm", "seed", "rate_realised"}
NEEDED |= {"accuracy_mean", "accuracy_ci95", "n_networks", "config_hash"}


def read_results(folder: Path | str) -> pd.DataFrame:
    """All rows of the tables directly in ``folder`` that hold results; of one setting, arm and seed the last counts.

    A table without the columns of results is something else and left out, as are ablations. Empty when there is none.
    """
    tables = [load_table(path) for path in sorted(Path(folder).glob("*.parquet"))]
    tables = [table.astype(object) for table in tables if {*table.columns} >= NEEDED and len(table)]
    if not tables:
        return pd.DataFrame(columns=sorted({*NEEDED, *SETTING}))
    rows = with_defaults(pd.concat(tables, ignore_index=True))
    rows = rows.drop_duplicates([*SETTING, "arm", "seed"], keep="last")
    return rows.sort_values([*SETTING, "arm", "seed"], key=by_definition, ignore_index=True).infer_objects()


def with_defaults(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the columns of ``DEFAULTS``, which stand in those from before there was a choice."""
    filled = {name: rows.get(name, pd.Series(value, rows.index)).fillna(value) for name, value in DEFAULTS.items()}
    return rows.assign(**{name: column.astype(type(DEFAULTS[name])) for name, column in filled.items()})


def replace_rows(path: Path, rows: pd.DataFrame) -> None:
    """Add rows to a table, in place of those of the same setting, arm, variant and seed.

    Several processes may do so at once.
    """
    same = [name for name in (*SETTING, "arm", "variant", "seed") if name in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        old = load_table(path) if path.exists() else rows[:0]
        old = with_defaults(old) if {*DEFAULTS} & {*rows} else old
        old_runs, new_runs = (pd.MultiIndex.from_frame(table[same].astype(object)) for table in (old, rows))
        tables = [old[~old_runs.isin(new_runs)], rows]
        save_table(path, result_table([table for table in tables if len(table)]))
    finally:
        os.close(folder)


def by_definition(column: pd.Series) -> pd.Series:
    """Key to sort by: arms, methods and presets in the order of their definition, all else as it is."""
    order: dict = {"arm": ARMS, "preset": PRESETS, "method": tuple(reversed(METHODS))}
    if column.name == "noise":  # clean labels first
        return column.astype(str).where(column != "none", "")
    names = order.get(str(column.name))
    return column if names is None else column.map({name: i for i, name in enumerate(names)})


def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """One row for each setting and arm: mean accuracy, half-width of its 95 % interval (fractions), and over what it
    is.

    Over seeds (Student's t over the seeds' means) where there are three or more, over the networks of the one seed
    where there is one, none where there are two seeds or a single network.
    Rows of ``OURS`` also tell the gap closed (:func:`tadlib.evaluate.gap_closed`), where the arm was run on clean
    labels too.
    """
    rows = []
    gaps = {key: gap_of(own) for key, own in comparisons(results).groupby([*SETTING, "arm"], sort=False)}
    for setting, runs in results.groupby(SETTING, sort=False):
        for arm, own in runs.groupby("arm", sort=False):
            n = len(own)
            mean, half = interval(own["accuracy_mean"].astype(float).tolist())
            half = own["accuracy_ci95"].astype(float).iloc[0] if n == 1 else half
            row = dict(zip(SETTING, setting)) | {"arm": arm, "accuracy": mean, "half": half, "n_seeds": n}
            row["interval"] = "–" if pd.isna(half) else "networks" if n == 1 else "seeds"
            row["gap"], row["gap_half"] = gaps.get((*setting, arm), (None, None))
            rows.append(row)
    return pd.DataFrame(rows)


def interval(values: list[float]) -> tuple[float | None, float | None]:
    """Mean, and half of the 95 % interval from three values on: of two it is twelve times their deviation."""
    if not values:
        return None, None
    mean, half = mean_ci95(values)
    return mean, half if len(values) > 2 else None


def comparisons(results: pd.DataFrame) -> pd.DataFrame:
    """One row for each arm of ``OURS``, noisy setting and seed that has it and vanilla: its ``accuracy``, those of
    ``REFERENCES``, and of the same arm on ``clean`` labels; NaN where that was not run."""
    of = [*SETTING, "seed"]
    wide = results.pivot(index=of, columns="arm", values="accuracy_mean").astype(float)
    wide = wide.reindex(columns=[*REFERENCES, *OURS]).reset_index()
    pairs = wide.melt([*of, *REFERENCES], OURS, "arm", "accuracy").dropna(subset=["accuracy"])
    same = [name for name in of if name not in ("noise", "rate_nominal")] + ["arm"]
    clean = pairs[pairs["noise"] == "none"].set_index(same)["accuracy"].rename("clean")
    noisy = pairs[pairs["noise"] != "none"].dropna(subset=["vanilla"])
    return noisy.join(clean, on=same).reset_index(drop=True)


def gap_of(pairs: pd.DataFrame) -> tuple[float | None, float | None]:
    """Gap closed, and half of its interval, over the rows of :func:`comparisons` of one setting and arm."""
    known = pairs.dropna(subset=["clean"])
    return gap_closed(*(known[name].tolist() for name in ("accuracy", "vanilla", "clean")))


def setting_names(of: dict) -> dict[str, object]:
    """Names and values of a setting as columns of a table that is read; the scale stands in its caption."""
    names = {"n_train": "images", "rate_nominal": "rate", "n_test": "test images"}
    shown = of | {"rate_nominal": f"{100 * float(of['rate_nominal']):.0f} %"}
    if of["evaluate_network"] != "convnet":
        shown["method"] = f"{of['method']}, tested on {of['evaluate_network']}"
    if of["formation"] != 1:
        shown["method"] += f", f = {of['formation']}"
    if of["draw_power"] != DEFAULTS["draw_power"]:
        shown["method"] += f", draw power {of['draw_power']:g}"
    hidden = ("preset", "evaluate_network", "formation", "draw_power")
    return {names.get(name, name): shown[name] for name in SETTING if name not in hidden}


def results_table(results: pd.DataFrame) -> pd.DataFrame:
    """One row a setting, to be read: accuracy of each arm in %, mean ± half of the 95 % interval, and the gaps closed.

    Settings of clean labels where nothing but those labels was tried are :func:`methods_table`'s.
    """
    results = noisy_settings(results)
    if results.empty:
        return pd.DataFrame()
    rows, shown = [], [arm for arm in ARMS if arm in {*OURS, *results["arm"]}]
    for setting, own in summarise(results).groupby(SETTING, sort=False):
        of, arms = dict(zip(SETTING, setting)), own.set_index("arm").reindex(shown)
        row = setting_names(of) | {"preset": of["preset"]}
        row |= {arm: with_interval(arms["accuracy"][arm], arms["half"][arm]) for arm in shown}
        row |= {f"gap closed {arm}": with_interval(arms["gap"][arm], arms["gap_half"][arm], 1, 2) for arm in OURS}
        row["seeds"] = _range(own["n_seeds"])
        row["interval over"] = " or ".join(dict.fromkeys(own["interval"]))
        rows.append(row)
    return pd.DataFrame(rows)


def noisy_settings(results: pd.DataFrame) -> pd.DataFrame:
    """The rows of settings in which something was done about labels; the others are :func:`methods_table`'s."""
    busy = (~results["arm"].isin(["vanilla", "oracle"])).groupby([results[name] for name in SETTING]).transform("any")
    return results[(results["noise"] != "none") | busy.astype(bool)]


def methods_table(results: pd.DataFrame) -> pd.DataFrame:
    """Distillation methods on clean labels: accuracy in %, mean ± half of the 95 % interval; a column for each IPC, and
    for the IPC that has most of them the controls: hard labels alone, and random real images.

    Rows without noise and of arm oracle, or vanilla, which is the same there. Intervals are over seeds, or over the
    networks of the only seed. Empty where nothing was run on clean labels.
    """
    clean = results[(results["noise"] == "none") & results["arm"].isin(["vanilla", "oracle"])]
    if clean.empty:
        return pd.DataFrame()
    clean = clean.assign(arm="clean").drop_duplicates([*SETTING, "seed"], keep="last")
    same = ["preset", "dataset", "n_train", "method", "formation", "n_test", "evaluate_network", "draw_power"]
    summary = summarise(clean).sort_values([*same, "ipc"], key=by_definition)
    columns = [f"{ipc} a class" for ipc in sorted({*summary["ipc"]})]
    words = {"accuracy_hard_labels": "hard labels", "accuracy_random_real": "random images"}
    controls = {name: word for name, word in words.items() if name in clean and clean[name].notna().any()}
    ipc = clean.dropna(subset=[*controls])["ipc"].mode().iloc[0] if controls else 0
    runs, rows = dict(list(clean[clean["ipc"] == ipc].groupby(same))), []
    for key, own in summary.groupby(same, sort=False):
        of = dict(zip(same, key))
        method = setting_names(of | {"noise": "none", "rate_nominal": 0, "ipc": 0, "formation": 1})["method"]
        row = {"preset": of["preset"], "data set": of["dataset"], "images": of["n_train"], "method": method}
        row |= {"f": of["formation"], "test images": of["n_test"]}
        row |= dict.fromkeys(columns, "–")
        row |= {f"{run.ipc} a class": with_interval(run.accuracy, run.half) for run in own.itertuples()}
        with_controls = runs.get(key, clean[:0])
        row |= {f"{ipc} a class, {word}": over_seeds(with_controls[name], 100, 1) for name, word in controls.items()}
        rows.append(row | {"seeds": _range(own["n_seeds"])})
    return pd.DataFrame(rows)


def _range(counts: pd.Series) -> str:
    return " to ".join(dict.fromkeys((str(counts.min()), str(counts.max()))))


def with_interval(mean: float | None, half: float | None, scale: float = 100, digits: int = 1) -> str:
    """``mean ± half`` as text; the mean alone where there is no interval, and a dash where there is no mean."""
    if mean is None or pd.isna(mean):
        return "–"
    text = f"{scale * mean:z.{digits}f}".replace("-", "−")
    return text if half is None or pd.isna(half) else f"{text} ± {scale * half:.{digits}f}"


def stage_table(results: pd.DataFrame) -> pd.DataFrame:
    """Seconds by stage and peak memory of every arm, averaged over settings and seeds."""
    columns = {f"seconds_{stage}": f"{stage} (s)" for stage in TIMED}
    seconds = results.reindex(columns=["arm", *columns]).set_index("arm").astype(float).dropna(axis=1, how="all")
    table = seconds.groupby(level=0, sort=False).mean().rename(columns=columns)
    table["total (s)"] = table.sum(axis=1)
    peak = results["peak_memory_bytes"].astype(float).groupby(results["arm"], sort=False).max()
    table["peak memory (GB)"] = peak / 1e9
    return table.round(2)


# Trust ---------------------------------------------------------------------------------------------------------------


def read_trust(path: Path | str) -> pd.DataFrame:
    """Rows of ``benchmarks/trust.py``, settings in the order of the table, arms in that of ``ARMS``; empty if none."""
    if not Path(path).exists():
        return pd.DataFrame(columns=[*TRUST_SETTING, "arm", "seed"])
    rows = load_table(path).drop_duplicates([*TRUST_SETTING, "arm", "seed"], keep="last")
    return rows.sort_values([*TRUST_SETTING, "arm", "seed"], key=by_definition, ignore_index=True)


def trust_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a setting: AUROC of every arm that judges labels, mean ± half of the 95 % interval over seeds.

    Without wrong labels there is no AUROC; such a row tells the percentage of samples flagged instead, with a % sign.
    """
    idle = ("vanilla", "oracle")  # they judge no label
    shown = [*OURS, *(arm for arm in ARMS if arm not in (*OURS, *idle) and (rows["arm"] == arm).any())]
    found = []
    for setting, runs in rows.groupby(TRUST_SETTING, sort=False):
        row, noisy = _setting(setting, runs), (runs["rate_realised"].astype(float) > 0).any()
        for arm in shown:
            own = runs[runs["arm"] == arm]
            flagged = over_seeds(own["flagged"], 100, 1)
            row[arm] = over_seeds(own["trust_auroc"], 1, 3) if noisy else f"{flagged} %" if len(own) else "–"
        found.append(row)
    return pd.DataFrame(found)


def spaces_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each setting and arm, in %, mean ± half of the 95 % interval: samples not trusted as given, right
    labels among the trusted, trusted among the right ones; and seconds."""
    found = []
    for (*setting, arm), runs in rows.groupby([*TRUST_SETTING, "arm"], sort=False):
        row = _setting(setting, runs) | {"arm": arm}
        row |= {name: over_seeds(runs[column], 100, 1) for name, column in SPLIT.items()}
        seconds = runs["seconds_divert"].astype(float).mean()
        found.append(row | {"seconds": "–" if math.isnan(seconds) else f"{seconds:.0f}"})
    return pd.DataFrame(found)


def labels_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each setting and each of ``OURS``, which give pseudo-labels; in %, mean ± half of the 95 % interval.

    Columns: AUROC of trust (– on clean labels); samples that got a pseudo-label, how many of these are right, and how
    many wrong labels that corrects; right labels among hard training labels, by weight; the same of all that networks
    learn, soft labels included.
    """
    rows = rows.assign(relabelled=rows["relabel_count"].astype(float) / rows["n_train"].astype(float))
    shown = {name: column for name, column in LABELS.items() if column in rows}
    return pd.DataFrame(
        row
        | {"AUROC": over_seeds(runs["trust_auroc"], 1, 3)}
        | {name: over_seeds(runs[column], 100, 1) for name, column in shown.items()}
        for row, runs in _by_method(rows)
    )


def refined_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each setting of ``benchmarks/refined.py`` and each of ``OURS``: test accuracy (%) after training on
    each set of labels."""
    shown = {name: column for name, column in TRAINED_ON.items() if column in rows}
    return pd.DataFrame(
        row | {name: over_seeds(runs[column], 100, 1) for name, column in shown.items()}
        for row, runs in _by_method(rows)
    )


def label_errors_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each set and predictors of ``benchmarks/label_errors.py``: F1 of the flagged labels and AUROC of each
    method, and the share of wrong labels (%), true and as the posterior estimates it."""
    methods = {"trust posterior": "posterior", "cleanlab": "cleanlab", "argmax differs": "disagreement"}
    found = []
    for (name, predictors), own in rows.groupby(["set", "predictors"], sort=False):
        of = {method: own[own["method"] == method] for method in methods}
        of_set = re.sub(r" \.(\d)$", r" \g<1>0 %", str(name).replace("published:", "").replace(":", " "))
        row = {"set": of_set, "predictors": predictors}
        row |= {f"F1: {word}": over_seeds(of[method]["f1"], 1, 3) for method, word in methods.items()}
        row |= {f"AUROC: {word}": over_seeds(of[method]["auroc"], 1, 3) for method, word in methods.items()}
        row["wrong"] = over_seeds(of["trust posterior"]["wrong"], 100, 1)
        row["estimated"] = over_seeds(of["trust posterior"]["noise_rate"], 100, 1)
        found.append(row)
    return pd.DataFrame(found)


def ablation_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a variant, the unchanged one first, then by AUROC: AUROC of trust under each noise, and test accuracy (%)
    where it was measured, mean ± half of the 95 % interval over seeds."""
    auroc = rows["trust_auroc"].astype(float).groupby(rows["variant"]).mean().sort_values(ascending=False)
    order = sorted(auroc.index, key=lambda name: (name != "as it is", -auroc[name]))
    shown = {"AUROC": ("trust_auroc", 1.0, 3), "accuracy": ("accuracy_mean", 100.0, 1)}
    shown = {name: of for name, of in shown.items() if of[0] in rows}
    return _by_variant(rows, order, shown)


def _by_variant(rows: pd.DataFrame, order: list[str], shown: Mapping[str, tuple[str, float, int]]) -> pd.DataFrame:
    """Rows in ``order``; for each noise, and rate where it has several, a column for each of ``shown``, whose name it
    bears if there are several."""
    table, noises = [], rows[["noise", "rate_nominal"]].drop_duplicates()
    several = noises["noise"].duplicated(keep=False)
    for variant in order:
        own = rows[rows["variant"] == variant]
        row: dict[str, object] = {"variant": variant}
        for noise, rate, with_rate in zip(noises["noise"], noises["rate_nominal"], several):
            runs = own[(own["noise"] == noise) & (own["rate_nominal"] == rate)]
            words = f"{noise} {100 * rate:.0f} %" if with_rate else noise
            for name, (column, scale, digits) in shown.items():
                title = f"{words}: {name}" if len(shown) > 1 else words
                row[title] = over_seeds(runs[column], scale, digits)
        table.append(row | {"seeds": own["seed"].nunique()})
    return pd.DataFrame(table)


def _by_method(rows: pd.DataFrame) -> Iterator[tuple[dict[str, object], pd.DataFrame]]:
    """For each setting and each of ``OURS``: how its row of a table begins, and its runs, of which there may be none
    yet."""
    rows = rows[rows["arm"].isin(OURS)].sort_values([*TRUST_SETTING, "seed"], key=by_definition)
    for setting, runs in rows.groupby(TRUST_SETTING, sort=False):
        for arm in OURS:
            yield _setting(setting, runs) | {"arm": arm}, runs[runs["arm"] == arm]


def _setting(setting: Iterable, runs: pd.DataFrame) -> dict[str, object]:
    of = dict(zip(TRUST_SETTING, setting))
    rate = runs["rate_realised"].astype(float).mean()
    noise = f"{of['noise']}, {100 * rate:.0f} %" if rate else of["noise"]
    seeds = _range(runs.groupby("arm")["seed"].nunique())
    return {"data set": of["dataset"], "images": of["n_train"], "noise": noise, "seeds": seeds}


def over_seeds(values: pd.Series, scale: float, digits: int) -> str:
    """Mean ± half of the 95 % interval over the values that are there, as text."""
    return with_interval(*interval(values.astype(float).dropna().tolist()), scale, digits)


def calibration_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each setting and arm of ``benchmarks/calibration.py``: Brier score and expected calibration error of
    trust; and of the posterior the share of wrong labels that it estimates (%), its interval (ends averaged over
    seeds), and in how many seeds that holds the true share."""
    found = []
    for (*setting, arm), runs in rows.groupby([*TRUST_SETTING, "arm"], sort=False):
        row = _setting(setting, runs) | {"arm": arm, "Brier": over_seeds(runs["brier"], 1, 3)}
        row["calibration error"] = over_seeds(runs["calibration_error"], 1, 3)
        true, rate, low, high = (
            runs[name].astype(float) for name in ("rate_realised", "noise_rate", "noise_rate_low", "noise_rate_high")
        )
        known = rate.notna().all()
        row["wrong"] = with_interval(true.mean(), None)
        row["estimated"] = with_interval(rate.mean(), None)
        row["interval"] = f"{100 * low.mean():.1f} to {100 * high.mean():.1f}" if known else "–"
        row["holds it"] = f"{((low <= true) & (true <= high)).sum()} of {len(runs)}" if known else "–"
        found.append(row)
    return pd.DataFrame(found)
