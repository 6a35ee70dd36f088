"""Merge finished runs into results/, and bring the README's table and picture up to date.

    python results/collect.py RUNS [RUNS ...]     merge OUT folders of `tad run`, then refresh the README
    python results/collect.py                     only refresh the README
    python results/collect.py --check             exit status 1 if the README's table is out of date

Rows go to ``results/<preset>.parquet``, one row a configuration; the distilled sets of seed 0 are copied to
``results/distilled/``, so that they can be evaluated without distilling.
"""

import argparse
import sys
from pathlib import Path

from tadlib import report
from tadlib.artifacts import StageFolder, load_table, replacing, write_atomic
from tadlib.errors import InputError
from tadlib.stages import load_distilled, merge_results

ROOT = Path(__file__).resolve().parents[1]
RESULTS, README = ROOT / "results", ROOT / "README.md"
PICTURE = ROOT / "book" / "figures" / "overview.png"
SHOWN = ("vanilla", "tad", "oracle")


def distilled_path(row) -> Path:
    """Where the distilled set of a row is kept."""
    rate = f"{100 * row.rate_nominal:.0f}"
    noise = str(row.noise).replace(":", "-")
    name = f"{row.dataset}-{noise}-{rate}-{row.arm}-{row.method}-ipc{row.ipc}-{row.preset}.safetensors"
    return RESULTS / "distilled" / name


def merge(runs: Path) -> None:
    """Merge one OUT folder of ``tad run``."""
    rows = load_table(runs / "results.parquet")
    for preset, of_preset in rows.groupby("preset"):
        merge_results(RESULTS / f"{preset}.parquet", of_preset)
    (RESULTS / ".results.lock").unlink(missing_ok=True)
    for row in rows[rows.seed == 0].itertuples():
        key = StageFolder(runs / "evaluate" / row.key).manifest()["inputs"]["distill"]
        write_atomic(distilled_path(row), (runs / "distill" / key / "distilled.safetensors").read_bytes())


def overview() -> None:
    """The README's picture: the digits' distilled images by arm."""
    results = report.read_results(RESULTS)
    rows = results[(results.dataset == "digits") & (results.seed == 0) & results.arm.isin(SHOWN)]
    sets = {row.arm: load_distilled(distilled_path(row)) for row in rows.itertuples()}
    if set(SHOWN) - set(sets):
        return
    titles = {
        "vanilla": "vanilla: given labels",
        "tad": "tad: labels that deserve trust",
        "oracle": "oracle: true labels",
    }
    report.style()
    figure = report.synthetic_images({titles[a]: sets[a].pixels for a in SHOWN}, sets["tad"].class_names)
    with replacing(PICTURE) as path:
        figure.savefig(path, dpi=150, metadata={"Software": None})


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUNS", help="an OUT folder of tad run")
    parser.add_argument("--check", action="store_true", help="only tell whether the README's table is up to date")
    options = parser.parse_args(arguments)
    try:
        for runs in options.runs:
            merge(runs)
        changed = report.write_readme_table(RESULTS, README, check=options.check)
        if not options.check:
            overview()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"README: {'updated' if changed else 'up to date'}; {len(report.read_results(RESULTS))} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
