"""Tables of results: from rows, one for each run, to tables that are read."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from tadlib.arms import ARMS
from tadlib.config import METHODS
from tadlib.evaluate import mean_ci95
from tadlib.presets import PRESETS
from tadlib.store import load_table

# what the arms of one cell share
CELL = ["dataset", "n_train", "noise", "rate_nominal", "method", "ipc", "preset", "evaluate_network"]
SETTING = ["preset", "dataset", "n_train", "noise", "rate_nominal"]  # what the rows of one trust setting share
SETS = ("given", "trusted", "trust", "alone", "refined", "true")  # what benchmarks/refined.py trains on
JUDGED = {"flagged": "flagged", "precision": "trust_precision", "recall": "trust_recall"}
MENDED = {
    "relabelled": "relabelled",
    "of these right": "relabel_accuracy",
    "wrong labels mended": "relabel_recall",
    "labels in use right": "label_accuracy",
    "all that is learned right": "mass_accuracy",
}
NEEDED = {*CELL[:-1], "arm", "seed", "rate_realised", "accuracy_mean", "accuracy_ci95", "n_networks", "config_hash"}


def read_results(folder: Path | str) -> pd.DataFrame:
    """All rows of the tables directly in ``folder`` that hold results; of one cell, arm and seed the last counts.

    A table without the columns of results is something else and left out. Empty when there is none.
    """
    tables = [load_table(path) for path in sorted(Path(folder).glob("*.parquet"))]
    tables = [table.astype(object) for table in tables if {*table.columns} >= NEEDED and len(table)]
    if not tables:
        return pd.DataFrame(columns=sorted({*NEEDED, *CELL}))
    rows = pd.concat(tables, ignore_index=True)
    network = rows.get("evaluate_network", pd.Series(index=rows.index, dtype=object))
    rows["evaluate_network"] = network.fillna("convnet")  # rows from before there was a choice
    rows = rows.drop_duplicates([*CELL, "arm", "seed"], keep="last")
    return rows.sort_values([*CELL, "arm", "seed"], key=_order, ignore_index=True).infer_objects()


def _order(column: pd.Series) -> pd.Series:
    """Arms and presets in the order in which they are defined, all else as it is."""
    order = {"arm": tuple(ARMS), "preset": PRESETS}.get(str(column.name))
    return column if order is None else column.map({name: i for i, name in enumerate(order)})


def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """One row for each cell and arm: mean accuracy, half-width of its 95 % interval (fractions), and over what it is.

    Over seeds (Student's t over the seeds' means) where there are three or more, over the networks of the one seed
    where there is one, none where there are two.
    The row of arm tad also tells the gap closed: seed by seed, then mean and interval over seeds. It is undefined
    where for some seed the oracle is no better than vanilla.
    """
    rows = []
    for cell, runs in results.groupby(CELL, sort=False):
        for arm, own in runs.groupby("arm", sort=False):
            means = own["accuracy_mean"].astype(float).tolist()
            mean, half = _interval(means)
            if len(means) == 1:
                half = own["accuracy_ci95"].astype(float).iloc[0]
            row = dict(zip(CELL, cell)) | {"arm": arm, "accuracy": mean, "half": half, "n_seeds": len(means)}
            row["interval"] = "networks" if len(means) == 1 else "seeds" if len(means) > 2 else "–"
            gaps = _gaps(runs) if arm == "tad" else []
            row["gap"], row["gap_half"] = _interval(gaps) if gaps else (None, None)
            rows.append(row)
    return pd.DataFrame(rows)


def _interval(values: list[float]) -> tuple[float, float | None]:
    """Mean, and half of the 95 % interval from three values on: of two it is twelve times their deviation."""
    mean, half = mean_ci95(values)
    return mean, half if len(values) > 2 else None


def _gaps(runs: pd.DataFrame) -> list[float]:
    """Gap closed of every seed that has all three arms; empty where it is undefined for one of them."""
    wide = runs.pivot(index="seed", columns="arm", values="accuracy_mean").astype(float)
    if not {"vanilla", "tad", "oracle"} <= {*wide.columns}:
        return []
    wide = wide.dropna(subset=["vanilla", "tad", "oracle"])
    room = wide["oracle"] - wide["vanilla"]
    return [] if (room <= 0).any() else ((wide["tad"] - wide["vanilla"]) / room).tolist()


def setting_names(of: dict) -> dict[str, object]:
    """Names and values of a cell (``CELL``) as columns of a table that is read; the scale stands in its caption."""
    names = {"n_train": "images", "rate_nominal": "rate"}
    shown = of | {"rate_nominal": f"{100 * float(of['rate_nominal']):.0f} %"}
    if of["evaluate_network"] != "convnet":
        shown["method"] = f"{of['method']}, tested on {of['evaluate_network']}"
    return {names.get(name, name): shown[name] for name in CELL if name not in ("preset", "evaluate_network")}


def results_table(results: pd.DataFrame) -> pd.DataFrame:
    """One row a cell, to be read: accuracy of each arm in %, mean ± half of the 95 % interval, and the gap closed.

    Cells of clean labels where nothing but those labels was tried are :func:`methods_table`'s.
    """
    results = noisy_cells(results)
    if results.empty:
        return pd.DataFrame()
    rows, shown = [], {*results["arm"]}
    for cell, arms in summarise(results).groupby(CELL, sort=False):
        of = dict(zip(CELL, cell))
        row = setting_names(of) | {"preset": of["preset"]}
        for name in (arm for arm in ARMS if arm in shown):
            found = arms[arms["arm"] == name]
            row[name] = with_interval(found["accuracy"].iloc[0], found["half"].iloc[0]) if len(found) else "–"
        gap = arms["gap"].astype(float).dropna()
        row["gap closed"] = with_interval(gap.iloc[0], arms["gap_half"].astype(float).max(), 1, 2) if len(gap) else "–"
        seeds = sorted({*arms["n_seeds"]})
        row["seeds"] = " to ".join(str(n) for n in {seeds[0]: 0, seeds[-1]: 0})
        row["interval over"] = " or ".join(dict.fromkeys(arms["interval"]))
        rows.append(row)
    return pd.DataFrame(rows)


def noisy_cells(results: pd.DataFrame) -> pd.DataFrame:
    """The rows of cells in which something was done about labels; the others are :func:`methods_table`'s."""
    return results[~_clean_only(results)]


def _clean_only(results: pd.DataFrame) -> pd.Series:
    """Mask of the rows of cells without noise in which no arm does anything about labels."""
    idle = results["arm"].isin(["vanilla", "oracle"])
    busy = (~idle).groupby([results[name] for name in CELL]).transform("any")
    return (results["noise"] == "none") & ~busy.astype(bool)


def methods_table(results: pd.DataFrame) -> pd.DataFrame:
    """Distillation methods on clean labels: accuracy in %, mean ± half of the 95 % interval; a column for each IPC.

    Rows without noise and of arm oracle, or vanilla, which is the same there. Intervals are over seeds, or over the
    networks of the only seed. Empty where nothing was run on clean labels.
    """
    clean = results[(results["noise"] == "none") & results["arm"].isin(["vanilla", "oracle"])]
    if clean.empty:
        return pd.DataFrame()
    clean = clean.assign(arm="clean").drop_duplicates([*CELL, "seed"], keep="last")
    summary, rows = summarise(clean), []
    for (preset, dataset, images, method), own in summary.groupby(["preset", "dataset", "n_train", "method"]):
        row = {"preset": preset, "data set": dataset, "images": images, "method": method}
        cells = {f"{cell.ipc} a class": with_interval(cell.accuracy, cell.half) for cell in own.itertuples()}
        row["seeds"] = " to ".join(str(n) for n in {own["n_seeds"].min(): 0, own["n_seeds"].max(): 0})
        rows.append(row | cells)
    columns = [f"{ipc} a class" for ipc in sorted({*summary["ipc"]})]
    order = {"method": tuple(reversed(METHODS)), "preset": PRESETS}
    table = pd.DataFrame(rows).sort_values(
        ["preset", "data set", "images", "method"],
        key=lambda c: c.map({name: i for i, name in enumerate(order[c.name])}) if c.name in order else c,
    )
    return table[["preset", "data set", "images", "method", *columns, "seeds"]].fillna("–").reset_index(drop=True)


def with_interval(mean: float, half: float | None, scale: float = 100, digits: int = 1) -> str:
    """``mean ± half`` as text, or the mean alone where there is no interval."""
    text = f"{scale * mean:.{digits}f}"
    return text if half is None or pd.isna(half) else f"{text} ± {scale * half:.{digits}f}"


def stage_table(results: pd.DataFrame) -> pd.DataFrame:
    """Seconds by stage and peak memory of every arm, averaged over cells and seeds."""
    stages = ["divert", "experts", "distill", "evaluate"]
    seconds = results[["arm", *(f"seconds_{stage}" for stage in stages)]].set_index("arm").astype(float)
    table = seconds.groupby(level=0, sort=False).mean().set_axis([f"{stage} (s)" for stage in stages], axis=1)
    table["total (s)"] = table.sum(axis=1)
    peak = results["peak_memory_bytes"].astype(float).groupby(results["arm"], sort=False).max()
    table["peak memory (GB)"] = peak / 1e9
    return table.round(2)


# Trust ---------------------------------------------------------------------------------------------------------------


def read_trust(path: Path | str) -> pd.DataFrame:
    """Rows of ``benchmarks/trust.py``, settings in the order of the table, arms in that of ``ARMS``; empty if none."""
    if not Path(path).exists():
        return pd.DataFrame(columns=[*SETTING, "arm", "seed"])
    rows = load_table(path).drop_duplicates([*SETTING, "arm", "seed"], keep="last")
    return rows.sort_values([*SETTING, "arm", "seed"], key=_order, ignore_index=True)


def trust_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a setting: AUROC of every arm that judges labels, mean ± half of the 95 % interval over seeds.

    Without wrong labels there is no AUROC; such a row tells the percentage of samples flagged instead, with a % sign.
    """
    found = []
    for setting, runs in rows.groupby(SETTING, sort=False):
        noisy = (runs["rate_realised"].astype(float) > 0).any()
        shown = _by_arm(runs, rows, *(("trust_auroc", 1, 3) if noisy else ("flagged", 100, 1)))
        shown = shown if noisy else {arm: text if text == "–" else f"{text} %" for arm, text in shown.items()}
        found.append(_setting(setting, runs) | shown)
    return pd.DataFrame(found).fillna("–")


def spaces_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each setting and arm, in %, mean ± half of the 95 % interval: samples not trusted as given, right
    labels among the trusted, trusted among the right ones; and seconds."""
    found = []
    for (*setting, arm), runs in rows.groupby([*SETTING, "arm"], sort=False):
        row = _setting(setting, runs) | {"arm": arm}
        found.append(row | {name: _over_seeds(runs[column], 100, 1) for name, column in JUDGED.items()})
        seconds = runs["seconds_divert"].astype(float).mean()
        found[-1]["seconds"] = "–" if math.isnan(seconds) else f"{seconds:.0f}"
    return pd.DataFrame(found)


def labels_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a setting of the arm tad, the one that gives new labels, in %, mean ± half of the 95 % interval.

    Columns: AUROC of trust (– on clean labels); samples that got a new label, how many of these are right, and how many
    wrong labels that mends; right labels among those in use, by weight; the same of all that networks learn, soft
    labels of what has no label in use among it.
    """
    rows = rows[rows["arm"] == "tad"].sort_values([*SETTING, "seed"], key=_order, ignore_index=True)
    rows = rows.assign(relabelled=rows["relabel_count"].astype(float) / rows["n_train"].astype(float))
    found = []
    for setting, runs in rows.groupby(SETTING, sort=False):
        row = _setting(setting, runs) | {"AUROC": _over_seeds(runs["trust_auroc"], 1, 3)}
        shown = {name: _over_seeds(runs[column], 100, 1) for name, column in MENDED.items() if column in runs}
        found.append(row | shown)
    return pd.DataFrame(found)


def ablation_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a variant of the dual loop, the unchanged one first, then by AUROC: AUROC of trust under each noise, mean
    ± half of the 95 % interval over seeds."""
    auroc = rows["trust_auroc"].astype(float).groupby(rows["variant"]).mean().sort_values(ascending=False)
    order = sorted(auroc.index, key=lambda name: (name != "as it is", -auroc[name]))
    return _by_variant(rows, order, {"": ("trust_auroc", 1, 3)})


def inner_loop_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a variant with the paper's mixtures: under each noise new labels that are right and wrong ones that they
    mend (%), mean ± half of the 95 % interval over seeds. Empty where there is no such variant."""
    order = [name for name in dict.fromkeys(rows["variant"]) if "mixture" in name]
    shown = {": right": ("relabel_accuracy", 100, 1), ": mended": ("relabel_recall", 100, 1)}
    return _by_variant(rows, order, shown)


def _by_variant(rows: pd.DataFrame, order: list[str], shown: Mapping[str, tuple[str, float, int]]) -> pd.DataFrame:
    """Rows in ``order``; for each noise a column for each of ``shown``: what its name ends with, and what it holds."""
    table = []
    for variant in order:
        own = rows[rows["variant"] == variant]
        row: dict[str, object] = {"dual loop": variant}
        for noise in dict.fromkeys(rows["noise"]):
            runs = own[own["noise"] == noise]
            row |= {f"{noise}{end}": _over_seeds(runs[column], scale, n) for end, (column, scale, n) in shown.items()}
        table.append(row | {"seeds": own["seed"].nunique()})
    return pd.DataFrame(table)


def refined_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a setting of ``benchmarks/refined.py``: test accuracy (%) after training on each set of labels."""
    table = []
    for setting, runs in rows.sort_values(SETTING, key=_order).groupby(SETTING, sort=False):
        shown = {name: _over_seeds(runs[f"accuracy_{name}"], 100, 1) for name in SETS if f"accuracy_{name}" in runs}
        table.append(_setting(setting, runs) | shown)
    return pd.DataFrame(table)


def informed_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a setting of ``benchmarks/informed.py``: AUROC of trust, and wrong labels mended (%), of tad and of an
    auditor that is told the truth about all other samples."""
    table = []
    shown = {"AUROC": ("trust_auroc", "informed_auroc", 1, 3), "mended": ("mended", "informed_mended", 100, 1)}
    for setting, runs in rows.sort_values(SETTING, key=_order).groupby(SETTING, sort=False):
        row = _setting(setting, runs)
        for name, (own, informed, scale, digits) in shown.items():
            row[f"{name}: tad"] = _over_seeds(runs[own], scale, digits)
            row[f"{name}: informed"] = _over_seeds(runs[informed], scale, digits)
        table.append(row | {"informed network right": _over_seeds(runs["informed_accuracy"], 100, 1)})
    return pd.DataFrame(table)


def _setting(setting: Iterable, runs: pd.DataFrame) -> dict[str, object]:
    of = dict(zip(SETTING, setting))
    each = runs.groupby("arm")["seed"].nunique()  # of every arm
    seeds = each.max() if each.min() == each.max() else f"{each.min()} to {each.max()}"
    rate = runs["rate_realised"].astype(float).mean()
    noise = f"{of['noise']}, {100 * rate:.0f} %" if rate else of["noise"]
    return {"data set": of["dataset"], "images": of["n_train"], "noise": noise, "seeds": seeds}


def _by_arm(runs: pd.DataFrame, rows: pd.DataFrame, column: str, scale: float, digits: int) -> dict[str, str]:
    present = [arm for arm in ARMS if arm not in ("vanilla", "oracle") and (rows["arm"] == arm).any()]
    shown = sorted(present, key=lambda arm: arm != "tad")  # what it is about comes first, then its rivals
    return {arm: _over_seeds(runs.loc[runs["arm"] == arm, column], scale, digits) for arm in shown}


def _over_seeds(values: pd.Series, scale: float, digits: int) -> str:
    known = values.astype(float).dropna().tolist()
    return with_interval(*_interval(known), scale, digits) if known else "–"
