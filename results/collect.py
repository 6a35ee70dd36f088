"""Merge finished runs into results/, and bring the README's table and picture up to date.

    python results/collect.py RUNS [RUNS ...]     merge OUT folders of `tad run`, or of grids, then refresh the README
    python results/collect.py RUNS --sets QUERY   keep the distilled sets of these rows alone, as in: method == 'mtt'
    python results/collect.py                     only refresh the README
    python results/collect.py --check             exit status 1 if the README's table is out of date

RUNS is a folder with ``results.parquet``: ``runs`` itself after `tad run`, ``runs/GRID`` after `make grid` or while it
is at work. Rows go to ``results/<preset>.parquet``; a row takes the place of what was there of the same setting, arm
and seed, whatever else was set. The distilled sets of the first seed are copied to ``results/distilled/``, so that they
can be evaluated without distilling.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

import tadbook
from tadbook.tables import DEFAULTS, OURS, SETTING, replace_rows, with_defaults
from tadlib.errors import InputError, require
from tadlib.nn.training import one_hot
from tadlib.pipeline import load_distilled, load_refined, result_table
from tadlib.store import StageFolder, load_json, load_table, replacing, save_table, write_atomic

ROOT = Path(__file__).resolve().parents[1]
RESULTS, README = ROOT / "results", ROOT / "README.md"
PICTURE = ROOT / "book" / "figures" / "overview.png"
SHOWN = {
    "vanilla": "vanilla: noisy labels",
    "tad": "tad",
    "tad-posterior": "tad-posterior",
    "oracle": "oracle: true labels",
}
REFINED = ["dataset", "n_train", "noise", "rate_nominal", "arm", "preset", "seed"]  # what a refined set is of
LEFT = 8  # pairs of classes that are kept of a run


def distilled_path(row) -> Path:
    """Where the distilled set of a row is kept."""
    rate = f"{100 * row.rate_nominal:.0f}"
    noise = str(row.noise).replace(":", "-")
    f = getattr(row, "formation", 1)
    method = row.method if f == 1 else f"{row.method}-f{f}"
    name = f"{row.dataset}-{noise}-{rate}-{row.arm}-{method}-ipc{row.ipc}-{row.preset}.safetensors"
    return RESULTS / "distilled" / name


def merge(runs: Path, sets: str | None = None) -> None:
    """Merge one folder of results; ``sets`` is a query that narrows whose distilled sets are kept."""
    rows = with_defaults(rows_of(runs))
    stages = runs if (runs / "evaluate").is_dir() else runs.parent  # a grid's stages lie beside it
    first = rows[rows.seed == rows.groupby(SETTING).seed.transform("min")]
    first = first[first["draw_power"] == DEFAULTS["draw_power"]]  # controls would take the place of the arms' sets
    try:
        kept = first.query(sets) if sets else first
    except Exception as error:
        raise InputError(f"--sets {sets!r} is no query of rows: {error}") from error
    for preset, of_preset in rows.groupby("preset"):
        replace_rows(RESULTS / f"{preset}.parquet", of_preset)
    truth_known = rows["label_accuracy"].notna() & (rows["noise"] != "none")
    refined = rows[rows["arm"].isin(OURS) & truth_known].drop_duplicates(REFINED)
    if len(refined):
        keep_leftover(pd.concat([leftover(stages, row) for row in refined.itertuples()]))
    for row in kept.itertuples():
        write_atomic(distilled_path(row), (distilled_at(stages, row).path / "distilled.safetensors").read_bytes())


def rows_of(runs: Path) -> pd.DataFrame:
    """The rows of finished runs; of a grid, which may be at work, as its plan names them."""
    if not (plan := runs / "plan.json").exists():
        return load_table(runs / "results.parquet")
    notebooks = [runs.parent / job["target"] for job in load_json(plan)["jobs"] if job["stage"] == "run"]
    rows = [load_json(path.with_name("row.json")) for path in notebooks if path.exists()]
    require(len(rows) > 0, f"no run of {runs} is finished yet")
    return result_table([pd.DataFrame(rows)])


def distilled_at(stages: Path, row) -> StageFolder:
    """The finished stage that distilled the set of a row."""
    return StageFolder(stages / "distill" / StageFolder(stages / "evaluate" / row.key).manifest()["inputs"]["distill"])


def leftover(stages: Path, row) -> pd.DataFrame:
    """Which wrong labels are trained on as hard labels: share of all weight by true class and label, largest first."""
    distilled = distilled_at(stages, row)
    diverted = stages / "divert" / distilled.manifest()["inputs"]["divert"]
    refined, names = load_refined(diverted), load_distilled(distilled.path / "distilled.safetensors").class_names
    mass_NK = pd.DataFrame((one_hot(refined.label, len(names)) * refined.label_weight[:, None]).numpy(), columns=names)
    true_N = load_table(diverted / "labels.parquet")["true_label"].map(lambda k: names[k]).rename("true_label")
    share = (mass_NK.groupby(true_N).sum() / mass_NK.sum().sum()).rename_axis(columns="label").stack()
    table = share[share > 0].sort_values(ascending=False).rename("share").reset_index()
    table = table[table["true_label"] != table["label"]].head(LEFT)
    return table.assign(**{name: getattr(row, name) for name in (*REFINED, "commit", "config_hash")})


def keep_leftover(rows: pd.DataFrame) -> None:
    """Put what is left over into its table, in place of what was there of the same refined sets."""
    path = RESULTS / "leftover.parquet"
    if path.exists():
        old, new = load_table(path), pd.MultiIndex.from_frame(rows[REFINED])
        rows = pd.concat([old[~pd.MultiIndex.from_frame(old[REFINED]).isin(new)], rows])
    save_table(path, rows.sort_values([*REFINED, "share"], ascending=[True] * len(REFINED) + [False]))


def overview() -> None:
    """The README's picture: the digits' distilled images by arm."""
    results = tadbook.read_results(RESULTS)
    rows = results[(results.dataset == "digits") & (results.seed == 0) & results.arm.isin(SHOWN)]
    kept = (row for row in rows.itertuples() if distilled_path(row).exists())  # of one setting
    sets = {row.arm: load_distilled(distilled_path(row)) for row in kept}
    if not {"vanilla", "oracle"} <= sets.keys():
        return
    tadbook.style()
    shown = {title: sets[arm].pixels for arm, title in SHOWN.items() if arm in sets}
    figure = tadbook.synthetic_images(shown, sets["oracle"].class_names)
    with replacing(PICTURE) as path:
        figure.savefig(path, dpi=150, metadata={"Software": None})


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUNS", help="a folder with results.parquet")
    parser.add_argument("--sets", metavar="QUERY", help="pandas query of the rows whose distilled sets are kept")
    parser.add_argument("--check", action="store_true", help="only tell whether the README's table is up to date")
    options = parser.parse_args(arguments)
    try:
        for runs in options.runs:
            merge(runs, options.sets)
        changed = tadbook.write_readme_table(RESULTS, README, check=options.check)
        if not options.check:
            overview()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"README: {'updated' if changed else 'up to date'}; {len(tadbook.read_results(RESULTS))} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
