"""Tables of results, for notebooks (DataFrames) and for the book and the README (generated Markdown)."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from tadlib.arms import ARMS
from tadlib.artifacts import load_table, write_atomic
from tadlib.errors import require
from tadlib.evaluate import mean_ci95
from tadlib.presets import PRESETS

CELL = ["dataset", "n_train", "noise", "rate_nominal", "method", "ipc", "preset"]  # what the arms of one cell share
SETTING = ["preset", "dataset", "n_train", "noise", "rate_nominal"]  # what the rows of one trust setting share
RECALIBRATION = {
    "flagged": "flagged",
    "precision": "trust_precision",
    "recall": "trust_recall",
    "relabelled": "relabelled",
    "of these right": "relabel_accuracy",
    "wrong labels mended": "relabel_recall",
    "labels in use right": "label_accuracy",
}
NEEDED = {*CELL, "arm", "seed", "accuracy_mean", "accuracy_ci95", "n_networks", "config_hash"}
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
NONE_YET = "*No results yet: they appear here once a run has been committed to* `results/`*.*"
SCALES = {
    "smoke": "seconds to a minute an arm on one thread; a small network, few iterations",
    "lite": "minutes on two cores; fewer, smaller images and a narrow network: not comparable with published figures",
    "paper": "the published hyper-parameters of the method",
}


def read_results(folder: Path | str) -> pd.DataFrame:
    """All rows of the tables directly in ``folder`` that hold results; of one cell, arm and seed the last counts.

    A table without the columns of results is something else and left out. Empty when there is none.
    """
    tables = [load_table(path) for path in sorted(Path(folder).glob("*.parquet"))]
    tables = [table.astype(object) for table in tables if {*table.columns} >= NEEDED and len(table)]
    if not tables:
        return pd.DataFrame(columns=sorted(NEEDED))
    rows = pd.concat(tables, ignore_index=True).drop_duplicates([*CELL, "arm", "seed"], keep="last")
    return rows.sort_values([*CELL, "arm", "seed"], key=_order, ignore_index=True).infer_objects()


def _order(column: pd.Series) -> pd.Series:
    """Arms and presets in the order in which they are defined, all else as it is."""
    order = {"arm": tuple(ARMS), "preset": PRESETS}.get(str(column.name))
    return column if order is None else column.map({name: i for i, name in enumerate(order)})


def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """One row for each cell and arm: mean accuracy, half-width of its 95 % interval (fractions), and over what it is.

    Over seeds (Student's t over the seeds' means) where there are several, else over the networks of the one seed.
    The row of arm tad also tells the gap closed: seed by seed, then mean and interval over seeds. It is undefined
    where for some seed the oracle is no better than vanilla.
    """
    rows = []
    for cell, runs in results.groupby(CELL, sort=False):
        for arm, own in runs.groupby("arm", sort=False):
            means = own["accuracy_mean"].astype(float).tolist()
            mean, half = mean_ci95(means)
            if len(means) == 1:
                half = own["accuracy_ci95"].astype(float).iloc[0]
            row = dict(zip(CELL, cell)) | {"arm": arm, "accuracy": mean, "half": half, "n_seeds": len(means)}
            row["interval"] = "seeds" if len(means) > 1 else "networks"
            gaps = _gaps(runs) if arm == "tad" else []
            row["gap"], row["gap_half"] = mean_ci95(gaps) if gaps else (None, None)
            rows.append(row)
    return pd.DataFrame(rows)


def _gaps(runs: pd.DataFrame) -> list[float]:
    """Gap closed of every seed that has all three arms; empty where it is undefined for one of them."""
    wide = runs.pivot(index="seed", columns="arm", values="accuracy_mean").astype(float)
    if not {"vanilla", "tad", "oracle"} <= {*wide.columns}:
        return []
    wide = wide.dropna(subset=["vanilla", "tad", "oracle"])
    room = wide["oracle"] - wide["vanilla"]
    return [] if (room <= 0).any() else ((wide["tad"] - wide["vanilla"]) / room).tolist()


def results_table(results: pd.DataFrame) -> pd.DataFrame:
    """One row a cell, to be read: accuracy of each arm in %, mean ± half of the 95 % interval, and the gap closed."""
    if results.empty:
        return pd.DataFrame()
    rows, shown = [], {*results["arm"]}
    for cell, arms in summarise(results).groupby(CELL, sort=False):
        row: dict[str, object] = dict(zip(CELL, cell))
        row["rate_nominal"] = f"{100 * float(row['rate_nominal']):.0f} %"  # type: ignore[arg-type]
        for name in (arm for arm in ARMS if arm in shown):
            found = arms[arms["arm"] == name]
            row[name] = _with_interval(found["accuracy"].iloc[0], found["half"].iloc[0]) if len(found) else "–"
        gap = arms["gap"].astype(float).dropna()
        row["gap closed"] = _with_interval(gap.iloc[0], arms["gap_half"].astype(float).max(), 1, 2) if len(gap) else "–"
        seeds = sorted({*arms["n_seeds"]})
        row["seeds"] = " to ".join(str(n) for n in {seeds[0]: 0, seeds[-1]: 0})
        row["interval over"] = " or ".join(dict.fromkeys(arms["interval"]))
        rows.append(row)
    names = {"n_train": "images", "rate_nominal": "rate"}
    return pd.DataFrame(rows).rename(columns=names)


def _with_interval(mean: float, half: float | None, scale: float = 100, digits: int = 1) -> str:
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

    Without wrong labels there is no AUROC; such a row tells the percentage of samples flagged instead.
    """
    found = []
    for setting, runs in rows.groupby(SETTING, sort=False):
        measure = "AUROC" if (runs["rate_realised"].astype(float) > 0).any() else "flagged, %"
        column, scale, digits = ("trust_auroc", 1, 3) if measure == "AUROC" else ("flagged", 100, 1)
        row = _setting(setting, runs) | {"measure": measure}
        found.append(row | _by_arm(runs, rows, column, scale, digits))
    return pd.DataFrame(found).fillna("–")


def recalibration_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each setting and arm: what is flagged, relabelled and right, in %, mean ± half of the 95 % interval.

    Columns: samples not trusted as given; right labels among the trusted; trusted among the right ones; samples that
    got a new label, how many of these are right, and how many wrong labels that mends; right labels among all in use,
    by weight; seconds.
    """
    found = []
    for (*setting, arm), runs in rows.groupby([*SETTING, "arm"], sort=False):
        relabelled = runs["relabel_count"].astype(float) / runs["n_train"].astype(float)
        runs = runs.assign(relabelled=relabelled)
        row = _setting(setting, runs) | {"arm": arm}
        found.append(row | {name: _over_seeds(runs[column], 100, 1) for name, column in RECALIBRATION.items()})
        found[-1]["seconds"] = _over_seeds(runs["seconds_divert"], 1, 0)
    return pd.DataFrame(found)


def _setting(setting: Iterable, runs: pd.DataFrame) -> dict[str, object]:
    of = dict(zip(SETTING, setting))
    seeds = runs["seed"].nunique()
    rate = f"{100 * runs['rate_realised'].astype(float).mean():.0f} %"
    return {"data set": of["dataset"], "images": of["n_train"], "noise": of["noise"], "wrong": rate, "seeds": seeds}


def _by_arm(runs: pd.DataFrame, rows: pd.DataFrame, column: str, scale: float, digits: int) -> dict[str, str]:
    shown = [arm for arm in ARMS if arm not in ("vanilla", "oracle") and (rows["arm"] == arm).any()]
    return {arm: _over_seeds(runs.loc[runs["arm"] == arm, column], scale, digits) for arm in shown}


def _over_seeds(values: pd.Series, scale: float, digits: int) -> str:
    known = values.astype(float).dropna().tolist()
    return _with_interval(*mean_ci95(known), scale, digits) if known else "–"


# Generated Markdown --------------------------------------------------------------------------------------------------


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown, cells as they print."""
    lines = [[str(column) for column in table.columns], ["---"] * table.shape[1]]
    lines += [[str(value).replace("|", r"\|") for value in row] for row in table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_book_tables(results_dir: Path | str, target_dir: Path | str) -> list[Path]:
    """Write ``results.md`` (all scales), ``results_<preset>.md`` and ``trust.md``: MyST fragments to include.

    Each table comes with its scale, seeds, hardware, versions and commit, the command that makes it again, and the
    hash of every run. Without results a fragment says so. Returns what was written.
    """
    results, target = read_results(results_dir), Path(target_dir)
    target.mkdir(parents=True, exist_ok=True)
    present = [name for name in PRESETS if (results["preset"] == name).any()]
    texts = {f"results_{name}.md": _fragment(results[results["preset"] == name], name) for name in PRESETS}
    parts = [f"**Scale {name}**: {SCALES[name]}.\n\n{_body(results[results['preset'] == name])}" for name in present]
    texts["results.md"] = "\n\n".join(parts) or NONE_YET
    texts["trust.md"] = _trust_fragment(read_trust(Path(results_dir) / "trust.parquet"))
    for name, text in texts.items():
        write_atomic(target / name, (text + "\n").encode())
    return [target / name for name in texts]


def _fragment(results: pd.DataFrame, preset: str) -> str:
    if results.empty:
        return NONE_YET
    caption = f"Test accuracy (%) by arm at scale {preset}: {SCALES[preset]}. Mean ± half of the 95 % interval."
    head, _, rest = _body(results).partition("\n\n")
    return f":::{{table}} {caption}\n:name: tab-results-{preset}\n\n{head}\n\n:::\n\n{rest}"


def _trust_fragment(rows: pd.DataFrame) -> str:
    if rows.empty:
        return NONE_YET
    parts = []
    for preset, own in rows.groupby("preset", sort=False):
        relabelling = recalibration_table(own)
        parts.append(
            f"**Scale {preset}**: {SCALES[str(preset)]}. Area under the ROC curve of trust as a score of right "
            f"labels, mean ± half of the 95 % interval over seeds.\n\n{markdown(trust_table(own))}\n\n"
            f"Spaces and labels that leave each arm (%), and its cost:\n\n{markdown(relabelling)}\n\n"
            f"{provenance(own)}\n\nTo make these rows again:\n\n"
            f"```console\n$ python benchmarks/trust.py --root DATA --preset {preset}\n```"
        )
    return "\n\n".join(parts)


def _body(results: pd.DataFrame) -> str:
    runs = results[["dataset", "noise", "rate_nominal", "ipc", "arm", "seed", "config_hash"]].copy()
    runs["config_hash"] = [f"`{value}`" for value in runs["config_hash"]]
    runs["rate_nominal"] = [f"{float(value):g}" for value in runs["rate_nominal"]]
    commands = "\n".join(_commands(results))
    return (
        f"{markdown(results_table(results).drop(columns='preset'))}\n\n{provenance(results)}\n\n"
        f"To make these rows again:\n\n```console\n{commands}\n```\n\n"
        f":::{{dropdown}} Every run, with the hash of its configuration\n{markdown(runs)}\n:::"
    )


def _commands(results: pd.DataFrame) -> Iterable[str]:
    """One command for each cell of a table; data sets other than digits need the folder of their files."""
    for cell, runs in results.groupby(CELL, sort=False):
        of = dict(zip(CELL, cell))
        root = "" if of["dataset"] == "digits" else " --root DATA"
        rate = "" if str(of["noise"]).startswith(("none", "human")) else f" --rate {float(of['rate_nominal']):g}"
        arms = " ".join(name for name in ARMS if name in {*runs["arm"]})
        seeds = " ".join(str(seed) for seed in sorted({*runs["seed"]}))
        yield (
            f"$ tad run --dataset {of['dataset']}{root} --noise {of['noise']}{rate} --arm {arms} "
            f"--method {of['method']} --ipc {of['ipc']} --seed {seeds} --preset {of['preset']}"
        )


def provenance(results: pd.DataFrame) -> str:
    """One sentence: seeds, networks, hardware, versions and commits of the rows of a table."""

    def values(column: str, shorten: int | None = None) -> str:
        if column not in results:
            return "unknown"
        found = dict.fromkeys(str(value)[:shorten] for value in results[column].dropna())
        return ", ".join(found) or "unknown"

    networks = f"{values('n_networks')} networks a run; " if "n_networks" in results else ""
    return (
        f"Seeds {values('seed')}; {networks}{values('device')} on {values('hardware')}; "
        f"torch {values('torch_version')}, tadlib {values('tadlib_version')}, commit {values('commit', 12)}."
    )


def write_readme_table(results_dir: Path | str, readme_path: Path | str, check: bool = False) -> bool:
    """Put the table of results between the two markers in a README; return whether that changed it.

    Raises:
        InputError: where a marker is missing, or (``check``) where the README is not up to date, which is then left
            as it is.
    """
    path = Path(readme_path)
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    require(bool(begin and end), f"{path.name} must hold {BEGIN} and, after it, {END}")
    results = read_results(results_dir)
    table = NONE_YET if results.empty else f"{markdown(results_table(results))}\n\n{provenance(results)}"
    new = f"{before}{BEGIN}\n{table}\n{END}{after}"
    if new == text:
        return False
    require(not check, f"the table of results in {path.name} is out of date: make tables")
    write_atomic(path, new.encode())
    return True
