"""What things cost: of the stages, by arm and scale, and of the book's chapters; all from committed tables."""

from pathlib import Path

import pandas as pd

from tadbook.tables import OURS, by_definition, read_results
from tadlib.pipeline import TIMED
from tadlib.store import load_table

# how often each chapter runs each stage for one arm that learns; a warm-up counts as a part of a diversion
RUNS: dict[str, dict[str, float]] = {
    "02-trust": {"divert": 3.7},
    "03-recalibration": {"divert": 1},
    "04-experts-and-distillation": {"divert": 1, "experts": 2, "distill": 1},
    "05-benchmark": {"divert": 2, "experts": 4, "distill": 4, "evaluate": 4},
}


def read_chapters(results_dir: Path | str) -> pd.DataFrame:
    """One row a chapter: seconds and processor seconds of its default run from nothing, and where it ran."""
    path = Path(results_dir) / "chapters.parquet"
    columns = ["chapter", "seconds", "processor_seconds", "hardware", "threads", "torch_version", "tadlib_version"]
    return load_table(path) if path.exists() else pd.DataFrame(columns=columns)


def duration(seconds: float) -> str:
    """About so long, in the unit that reads best."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def stage_costs(results: pd.DataFrame) -> pd.DataFrame:
    """One row for each scale, data set and arm: mean seconds of each stage, their sum, the largest peak of memory."""
    rows, stages = [], [stage for stage in TIMED if f"seconds_{stage}" in results]
    keys = ["preset", "dataset", "method", "ipc", "arm"]
    for key, runs in results.groupby(keys, sort=False):
        row: dict[str, object] = dict(zip(keys, key))
        means = {stage: runs[f"seconds_{stage}"].astype(float).mean() for stage in stages}
        row |= {stage: "–" if pd.isna(mean) else duration(mean) for stage, mean in means.items()}
        row["all stages"] = duration(float(pd.Series(means).sum()))
        row["peak memory"] = f"{runs['peak_memory_bytes'].astype(float).max() / 1e9:.1f} GB"
        row["runs"] = len(runs)
        rows.append(row)
    table = pd.DataFrame(rows, columns=[*keys, *stages, "all stages", "peak memory", "runs"])
    return table.sort_values(keys, key=by_definition)


def chapter_costs(chapters: pd.DataFrame) -> pd.DataFrame:
    """The chapters with what a run of each takes, in processor time and on the clock."""
    return pd.DataFrame(
        {
            "chapter": chapters["chapter"],
            "processor time": [duration(value) for value in chapters["processor_seconds"]],
            "on the clock": [duration(value) for value in chapters["seconds"]],
        }
    )


def chapter_note(results_dir: Path | str, chapter: str) -> str:
    """The box under a chapter's title: what it takes to run as it stands, and on CIFAR-10; empty if neither is known.

    The second figure is an estimate: measured stages of ``OURS`` at scale lite, times how often the chapter runs each.
    """
    parts = []
    chapters = read_chapters(results_dir)
    own = chapters[chapters["chapter"] == chapter]
    if len(own):
        row = own.iloc[0]
        parts.append(
            f"On the digits this chapter **takes** {duration(row.processor_seconds)} of one processor core "
            f"({row.hardware}), with nothing computed beforehand."
        )
    results = read_results(results_dir)
    if len(results) and chapter in RUNS:
        lite = results[(results["preset"] == "lite") & (results["dataset"] == "cifar10") & results["arm"].isin(OURS)]
        if len(lite):
            each = {stage: lite[f"seconds_{stage}"].astype(float).mean() for stage in RUNS[chapter]}
            total = sum(times * each[stage] for stage, times in RUNS[chapter].items())
            parts.append(f"On CIFAR-10 at scale lite: about {duration(total)}; the end of the chapter says how.")
    return f":::{{admonition}} To run it\n:class: note\n\n{' '.join(parts)}\n:::" if parts else ""
