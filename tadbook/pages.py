"""Generated Markdown: the tables of the book's pages and of the README, each with where it comes from."""

import csv
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from tadbook.comparison import (
    ENOUGH,
    RIVALS,
    controls_table,
    differences_table,
    selection_table,
    shortfalls,
    verdict,
)
from tadbook.costs import chapter_costs, read_chapters, stage_costs
from tadbook.style import NAMES
from tadbook.tables import (
    DEFAULTS,
    OURS,
    SETTING,
    ablation_table,
    comparisons,
    label_errors_table,
    labels_table,
    methods_table,
    noisy_settings,
    read_results,
    read_trust,
    refined_table,
    results_table,
    spaces_table,
    trust_table,
)
from tadlib.config import ARMS, METHODS
from tadlib.errors import require
from tadlib.presets import PRESETS
from tadlib.store import load_table, write_atomic

PARAGRAPH = "\n\n"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
NONE_YET = "*No results yet: they appear here once a run has been committed to* `results/`*.*"
SCALES = {
    "smoke": "seconds to a minute an arm on one thread; a small network, few iterations",
    "lite": "minutes on a CPU; fewer, smaller images and a narrow network: not comparable with published figures",
    "native": "an hour or more on a CPU; all images at their own size, few iterations, a network half as wide as the "
    "published one",
    "paper": "the published hyper-parameters of the method",
}
UNTOUCHED = 3  # the seed of preset lite by which nothing was chosen
JUDGED = [arm for arm in ARMS if arm != "oracle"]
# what stands in cells alone, as people say it
WORDS = {
    "cifar10 human worse": "CIFAR-10N worst",
    "cifar10 human random1": "CIFAR-10N random 1",
    "cifar10 human aggre": "CIFAR-10N aggregate",
    "cifar100 human fine": "CIFAR-100N fine",
    "cifar10-sparse20": "CIFAR-10 class-dependent 20 %",
    "cifar10n-aggre": "CIFAR-10N aggregate",
    "cifar10n-worse": "CIFAR-10N worst",
    "roman-numerals": "Roman numerals",
    "cifar10 unseen mixture": "CIFAR-10: mixture",
    "cifar10 unseen permutation": "CIFAR-10: permutation",
    "cifar10 unseen class-rates": "CIFAR-10: rates by class",
    "cifar10 unseen dirichlet": "CIFAR-10: Dirichlet",
    "embeddings:efficientnet-lite0": "embeddings",
    "patches+embeddings:efficientnet-lite0": "patches, embeddings",
    "probabilities": "published probabilities",
    # variants of ablations
    "the last parameters, not their average": "the last parameters, no EMA",
    "every candidate believed": "every candidate accepted",
}
# told in the caption where all rows agree
FOLDED = ("dataset", "images", "rate", "method", "ipc", "test images", "seeds", "interval over")
# what a number of them is called there
COUNTS = {"test images": "test images", "images": "training images", "seeds": "seeds", "ipc": "images per class"}
# tables of others' figures, from files beside the book's pages: name of the file, then caption and sources
# (LaTeX takes no citation within a caption)
PUBLISHED = {
    "noisy": ("Published test accuracy (%) under wrong labels, CIFAR-10.", "kim2025rdc"),
    "clean": (
        "Published test accuracy (%) on clean labels, ConvNet, by images a class.",
        "zhao2021dsa,zhao2023dm,cazenavette2022mtt,cui2023tesla,du2023ftd,guo2024datm",
    ),
}
# of each benchmark: title, what its figure shows, what one sees in it, and the columns of its table
BENCHMARKS: dict[str, tuple[str, str, str, dict[str, str]]] = {
    "meta_gradient": (
        "Meta-gradient of trajectory matching",
        "Processor time and peak memory of one gradient through J student steps: *exact*, the same *compiled*, "
        "*unrolled*, and *unrolled-plain* in a process as Python and torch leave it, which is how reference codes run. "
        "A cross (a dash in the table): more memory than was allowed.",
        "Line charts over the number of student steps, a column for each width of network. Time grows alike for both; "
        "the memory of the unrolled gradient grows with the steps, that of the exact one hardly does.",
        {
            "method": "gradient",
            "width": "width",
            "batch": "batch",
            "steps": "steps J",
            "cpu_seconds": "processor seconds",
            "peak_gb": "peak memory (GB)",
        },
    ),
    "diversion": (
        "Trust methods",
        "Processor time of TAD and of the trust posterior, in units of plain training of the same network for as many "
        "epochs. The table adds *mixtures*, a part of TAD: Gaussian mixtures of 200 classes of 500 samples each.",
        "Horizontal bars, one for each method and number of classes, of time by that of plain training.",
        {"method": "work", "classes": "classes", "cpu_seconds": "processor seconds", "ratio": "plain training = 1"},
    ),
    "expert_training": (
        "Training of experts",
        "Images that one expert trains on in a second of processor time. *reference*: a plain PyTorch loop that goes "
        "about it as the code of MTT does; *eager*: ours; *compiled*: ours through `torch.compile`; *bfloat16*: with "
        "products in that precision.",
        "Horizontal bars, one for each way to train an expert, of images per processor second.",
        {
            "method": "implementation",
            "width": "width",
            "images_per_cpu_second": "images per processor second",
            "speed_up_cpu_seconds": "speed-up",
            "last_loss": "loss after the last epoch",
        },
    ),
    "trajectory_store": (
        "Trajectory store",
        "Time of one random read of an expert's parameters. *whole list*: a list of float32 vectors that is loaded "
        "whole, as reference codes keep theirs; the others read one vector of a file, as it is (*float32*) or as "
        "differences from the start in half the bits (*half*).",
        "A point for each way to keep trajectories, at the milliseconds of a read, on a logarithmic scale.",
        {
            "method": "implementation",
            "megabytes": "size (MB)",
            "read_milliseconds": "read (ms)",
            "loss_error": "error of the loss",
            "gradient_error": "error of the gradient",
        },
    ),
    "evaluation": (
        "Evaluation",
        "Processor time to train the same networks on one distilled set: *one by one* with steps differentiated by "
        "torch.func, *side by side* as the library does (*torch pooling*: with PyTorch's own), *stacked* into one "
        "step, or *compiled*.",
        "Horizontal bars, one for each way to train several networks, of processor seconds.",
        {
            "method": "implementation",
            "networks": "networks",
            "cpu_seconds": "processor seconds",
            "speed_up_cpu_seconds": "speed-up",
            "difference": "largest difference",
        },
    ),
}


NOTES = {
    "trajectory_store": "Trajectory store: size, time of a read, and errors relative to float32, also of rounding to "
    "float16 and bfloat16."
}
# of tables that are a file each: what makes the table, its caption and the command that makes its rows again
MEASURED: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], str, str]] = {
    "refined": (
        refined_table,
        "Test accuracy (%) of the same network after training on each set of labels",
        "refined.py",
    ),
    "ablation": (
        ablation_table,
        "The trust posterior with one setting changed at a time: AUROC of trust",
        "trust.py --ablation tad-posterior",
    ),
    "ablation_tad": (
        ablation_table,
        "TAD with one part changed at a time: AUROC of trust, and test accuracy (%) after distillation by DM",
        "trust.py --ablation tad",
    ),
}
MEAN = "Mean ± half of the 95 % interval over seeds; without an interval where there are fewer than three seeds."


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown, values as they print, numbers below 0 with a minus sign."""
    lines = [[str(column) for column in table.columns], ["---"] * table.shape[1]]
    for row in table.itertuples(index=False):
        values = (str(value).replace("|", r"\|") for value in row)
        lines.append([re.sub(r"^-(?=[\d.]+( ±|$))", "−", re.sub(r"^-(0\.0*)$", r"\1", value)) for value in values])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_book_tables(results_dir: Path | str, target_dir: Path | str) -> list[Path]:
    """Write the tables of ``results_dir``, one file for each of the book's inclusions.

    ``results.md`` (all scales), ``comparison``, ``controls``, ``trust``, those of ``MEASURED``, ``methods``,
    ``untouched``, ``benchmarks``, ``costs`` and ``label_errors``. They are MyST fragments (``.md``), to be included
    by a page beside the folder ``results``.

    Each table has a caption and a name to refer to, and comes with its scale, seeds, hardware, versions and commit,
    the command that makes it again, and the hash of every run. Without results a fragment says so. Returns what was
    written.
    """
    results, target = read_results(results_dir), Path(target_dir)
    target.mkdir(parents=True, exist_ok=True)
    present = [name for name in reversed(PRESETS) if (results["preset"] == name).any()]
    parts = [_results_fragment(results[results["preset"] == name], name) for name in present]
    texts = {"results.md": "\n\n".join(filter(None, parts)) or NONE_YET}
    left_at = Path(results_dir) / "leftover.parquet"
    left = load_table(left_at) if left_at.exists() else None
    parts = [_comparison_fragment(results[results["preset"] == name], name, left) for name in present]
    texts["comparison.md"] = "\n\n".join(filter(None, parts))
    texts["methods.md"] = _methods_fragment(results)
    texts["controls.md"] = _controls_fragment(results)
    texts["benchmarks.md"] = _benchmarks_fragment(Path(results_dir) / "benchmarks")
    texts["trust.md"] = _trust_fragment(read_trust(Path(results_dir) / "trust.parquet"))
    texts |= {f"{name}.md": _measured_fragment(Path(results_dir), name) for name in MEASURED}
    texts["untouched.md"] = _untouched_fragment(results)
    texts["costs.md"] = _costs_fragment(Path(results_dir), results)
    texts["label_errors.md"] = _label_errors_fragment(Path(results_dir) / "label_errors.parquet")
    for name, text in texts.items():
        write_atomic(target / name, (text + "\n").encode())
    return [target / name for name in texts]


def _label_errors_fragment(path: Path) -> str:
    """Labels that people gave, injected noise, and noise that served no choice: a table each."""
    if not path.exists():
        return NONE_YET
    rows = load_table(path)
    untuned, people = (rows["set"].str.contains(words) for words in (":unseen:", "human|cifar10n|roman"))
    captions = {
        "": "Label errors that people made, by the same predictions: F1 of the labels that each method flags, AUROC, "
        "and the share of wrong labels (%), true and estimated by the trust posterior. The AUROC of disagreement is "
        "that of the loss. Sets of images are those of scale lite, all 50,000 where probabilities are published ones, "
        "and all Roman numerals; *network* is one trained on four folds in turn. In bold the best F1 and AUROC. "
        f"{MEAN}",
        "-injected": "The same where labels were made wrong.",
        "-untuned": "The same under noises that played no part in any choice of the posterior.",
    }
    tables = []
    for (name, caption), chosen in zip(captions.items(), (people, ~people & ~untuned, untuned)):
        if not chosen.any():
            continue
        table = label_errors_table(rows[chosen]).map(lambda value: WORDS.get(value, value))
        table = table.sort_values(["set", "predictors"], key=lambda of: of.map([*dict.fromkeys(of)].index))
        for score in ("F1", "AUROC"):
            table = best_in_bold(table, [column for column in table if column.startswith(score)])
        tables.append(captioned(table, f"label-errors{name}", caption))
    return "\n\n".join([*tables, "Made by `python benchmarks/label_errors.py --root DATA`."])


def write_published(folder: Path | str, target_dir: Path | str) -> Path:
    """Write ``published.md``, figures of others as facts: a table with a caption and its sources for each CSV file."""
    parts = []
    for name, (caption, sources) in PUBLISHED.items():
        with (Path(folder) / f"{name}.csv").open(encoding="utf-8", newline="") as lines:
            header, *rows = csv.reader(lines)
        table = captioned(pd.DataFrame(rows, columns=header), f"published-{name}", caption)
        parts.append(f"{table}\n\nFrom {{cite:t}}`{sources}`.")
    target = Path(target_dir) / "published.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, ("\n\n".join(parts) + "\n").encode())
    return target


def captioned(table: pd.DataFrame, name: str, caption: str) -> str:
    """A table in Markdown with a number, to be referred to as ``tab-<name>``, with names as people say them."""
    for code, word in NAMES.items():
        caption = re.sub(rf"(?<![\w`:-]){re.escape(code)}(?![\w`:-])", word, caption)
    return f":::{{table}} {caption}\n:name: tab-{name}\n:class: measured\n\n{markdown(readable(table))}\n:::"


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """``table`` with ``NAMES`` for codes, thousands apart, and noise and rate in one column; without rows of an arm
    that was not run."""
    if "arm" in table:
        measured = table.iloc[:, list(table).index("arm") + 1 :]
        table = table[~(measured == "–").all(axis=1)] if measured.shape[1] else table
    table = table.rename(columns={"dataset": "data set", "ipc": "images per class"})
    if {"noise", "rate"} <= {*table}:
        whole = table["noise"].astype(str) + " " + table["rate"].where(~table["noise"].str.startswith("human"), "")
        table = table.assign(noise=whole.str.strip().replace("none 0 %", "clean labels")).drop(columns="rate")

    def word(value: Any) -> Any:
        if isinstance(value, int) and value >= 1000:
            return f"{value:,}"
        if not isinstance(value, str) or value in WORDS:
            return WORDS.get(value, value)
        code, comma, rest = value.partition(",")
        first, space, more = code.partition(" ")
        if code in NAMES:
            return f"{NAMES[code]}{comma}{rest}"
        return f"{NAMES[first]}{space}{more}{comma}{rest}" if first in NAMES else value

    return table.map(word).rename(
        columns=lambda name: re.sub(r"^[\w:-]+(?=: |$)", lambda of: NAMES.get(of[0], of[0]), name)
    )


def best_in_bold(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """``table`` with the largest of the values ``mean ± half`` in ``columns`` of every row in bold."""
    table = table.copy()
    for i, row in table.iterrows():
        means = {name: float(str(row[name]).split()[0]) for name in columns if str(row[name])[:1].isdigit()}
        for name in (name for name, value in means.items() if value == max(means.values())):
            table.loc[i, name] = f"**{row[name]}**"
    return table


def folded(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """``table`` without those columns of ``FOLDED`` that hold one value throughout, and a sentence that tells them."""
    same = [name for name in FOLDED if name in table and table[name].astype(str).nunique() == 1]
    told = ", ".join(f"{name.replace('dataset', 'data set')} {table[name].iloc[0]}" for name in same)
    for pattern, words in COUNTS.items():
        told = re.sub(rf"\b{pattern} (\d+)\b", partial(_counted, words), told)
    return table.drop(columns=same), f"In every row: {told}." if same else ""


def _folded_table(table: pd.DataFrame, name: str, caption: str) -> str:
    table, told = folded(table)
    return captioned(table, name, f"{caption} {told}".rstrip())


def _counted(words: str, of: re.Match[str]) -> str:
    n = int(of[1])
    return f"{n:,} {words.removesuffix('s') if n == 1 else words}"


def _trust_fragment(rows: pd.DataFrame) -> str:
    parts = []
    for preset, own in rows.groupby("preset", sort=False):
        auroc = (
            "Area under the ROC curve of trust as a score of right labels, "
            f"at scale {preset}: {SCALES[str(preset)]}. "
            "Behind each noise the share of wrong labels; without noise, marked %, the share of samples flagged. "
            f"{MEAN}"
        )
        spaces = f"What each arm trusts (%), and its cost in seconds, at scale {preset}."
        labels = (
            f"Labels as each method passes them on, at scale {preset}: AUROC of trust, and in % samples with a "
            "pseudo-label, how many of these are right, wrong labels that were corrected, and what is right by weight "
            "of hard training labels and of all, soft ones included."
        )
        parts.append(
            f"{_folded_table(trust_table(own), f'trust-{preset}', auroc)}\n\n"
            f"{_folded_table(labels_table(own), f'labels-{preset}', labels)}\n\n"
            f"::::{{dropdown}} What each arm trusts, and what it costs\n"
            f"{_folded_table(spaces_table(own), f'spaces-{preset}', spaces)}\n::::\n\n"
            f"{provenance(own)}\n\nTo make these rows again:\n\n{_again('trust.py', str(preset))}"
        )
    return "\n\n".join(parts) or NONE_YET


def _measured_fragment(results_dir: Path, name: str) -> str:
    """The rows of a table of ``MEASURED``, by scale, ablations by data set too, with provenance and command."""
    path, (table, caption, command) = results_dir / f"{name}.parquet", MEASURED[name]
    if not path.exists():
        return NONE_YET
    rows, ablation, parts = load_table(path), "--ablation" in command, []
    for of, own in rows.groupby(["preset", "dataset"] if ablation else ["preset"], sort=False):
        made = table(own)
        counted = "images" not in made and own["n_train"].nunique() == 1
        images = f"{own['n_train'].iloc[0]:,} images of " if counted else ""
        text = f"{caption}, on {images}{', '.join(own['dataset'].unique())} at scale {of[0]}. {MEAN}"
        shown = _folded_table(made, "-".join((name.replace("_", "-"), *of)), text)
        again = _again(command, of[0], _settings(own) if ablation else "")
        parts.append(f"{shown}\n\n{provenance(own)}\n\n{again}")
    return "\n\n".join(parts)


def _again(command: str, preset: str, more: str = "") -> str:
    return f"```console\n$ python benchmarks/{command} --root DATA --preset {preset}{more}\n```"


def _settings(rows: pd.DataFrame) -> str:
    """The option that asks a benchmark for the settings of ``rows``; human labels have the rate that they have."""
    own = rows[["dataset", "noise", "rate_nominal"]].drop_duplicates().itertuples(index=False)
    names = [f"{dataset}:{noise}" + ("" if noise.startswith("human") else f":{rate:g}") for dataset, noise, rate in own]
    return f" --settings {' '.join(names)}"


def _methods_fragment(results: pd.DataFrame) -> str:
    clean = results[(results["noise"] == "none") & results["arm"].isin(["vanilla", "oracle"])]
    table = methods_table(clean)
    if len(table) and (table["f"] == 1).all():
        table = table.drop(columns="f")
    if len(table) and table["test images"].nunique() == 1:
        table = table.drop(columns="test images")
    formed = " *f*: small images along a side of a stored one." if "f" in table else ""
    parts = []
    for preset in table["preset"].unique() if len(table) else ():
        own = clean[clean["preset"] == preset]
        caption = (
            f"Test accuracy (%) of each method by images a class, at scale {preset}: {SCALES[preset]}. Mean ± half of "
            f"the 95 % interval over seeds, or over networks where there is one seed; none where there are two.{formed}"
        )
        shown = captioned(table[table["preset"] == preset].drop(columns="preset"), f"methods-{preset}", caption)
        parts.append(
            f"{shown}\n\n{provenance(own)}\n\n"
            f":::{{dropdown}} To make these rows again\n```console\n{chr(10).join(_commands(own))}\n```\n:::"
        )
    return "\n\n".join(parts) or NONE_YET


def _benchmarks_fragment(folder: Path) -> str:
    """A section for each benchmark whose table and figure are there."""
    parts = []
    for name, (title, caption, alt, columns) in BENCHMARKS.items():
        if not all((folder / f"{name}.{suffix}").exists() for suffix in ("parquet", "png")):
            continue
        rows = load_table(folder / f"{name}.parquet")
        if "peak_bytes" in rows:
            rows["peak_gb"] = rows["peak_bytes"] / 1e9
        if "bytes" in rows:
            rows["megabytes"] = rows["bytes"] / 1e6
        columns = {column: label for column, label in columns.items() if column in rows}
        options = f":name: fig-benchmark-{name}\n:alt: {alt}"
        figure = f":::{{figure}} ../results/benchmarks/{name}.png\n{options}\n\n{caption}\n:::"
        shown = captioned(
            _rounded(rows[[*columns]].drop_duplicates()).rename(columns=columns),
            f"benchmark-{name}",
            NOTES.get(name, f"{title}: what was measured."),
        )
        again = f"```console\n$ python benchmarks/{name}.py\n```"
        parts.append(f"## {title}\n\n{figure}\n\n{shown}\n\n{machine(rows)}\n\n{again}")
    return "\n\n".join(parts) or NONE_YET


def _rounded(table: pd.DataFrame) -> pd.DataFrame:
    """Numbers to three figures, as text; what was not measured as a dash."""

    def text(value: object) -> str:
        if isinstance(value, float):
            return "–" if pd.isna(value) else f"{value:.3g}"
        return str(value)

    return table.map(text)


def _results_fragment(results: pd.DataFrame, preset: str) -> str:
    results = noisy_settings(results)
    if results.empty:
        return ""
    runs = results[["dataset", "noise", "rate_nominal", "method", "ipc", "arm", "seed", "config_hash"]].copy()
    runs["config_hash"] = [f"`{value}`" for value in runs["config_hash"]]
    runs["rate_nominal"] = [f"{float(value):g}" for value in runs["rate_nominal"]]
    runs = readable(runs.rename(columns={"rate_nominal": "nominal rate", "config_hash": "hash"}))
    commands = "\n".join(_commands(results))
    caption = (
        f"Test accuracy (%) by arm at scale {preset}: {SCALES[preset]}. Mean ± half of the 95 % interval, over seeds, "
        "or over networks where there is one seed; none where there are two. In bold the best of all but the oracle."
    )
    by_default = results["draw_power"] == DEFAULTS["draw_power"]  # others are controls, in a table of their own
    table = best_in_bold(
        results_table(results[by_default]).drop(columns=["preset", "interval over"]),
        [arm for arm in JUDGED if arm in {*results["arm"]}],
    )
    table = table.rename(columns={f"gap closed {arm}": f"gap closed: {arm}" for arm in OURS})
    tables = [  # rows of different test images are not compared
        _folded_table(own, f"results-{preset}" + (f"-{n}" if i else ""), caption)
        for i, (n, own) in enumerate(sorted(table.groupby("test images"), reverse=True))
    ]
    return (
        f"{PARAGRAPH.join(tables)}\n\n{provenance(results)}\n\n"
        f":::{{dropdown}} To make these rows again\n```console\n{commands}\n```\n:::\n\n"
        f":::{{dropdown}} Every run, with the hash of its configuration\n{markdown(runs)}\n:::"
    )


def _comparison_fragment(results: pd.DataFrame, preset: str, leftover: pd.DataFrame | None) -> str:
    """What the runs say of our methods as a whole, and the settings where one falls short."""
    pairs = comparisons(results)
    if pairs.empty:
        return ""
    caption = (
        f"How far an arm is above others, in points of test accuracy at scale {preset}: mean ± half of the 95 % "
        "interval of the paired differences over seeds; no interval where there are fewer than three."
    )
    verdicts = "".join(f"- {line}\n" for line in verdict(pairs).splitlines())
    text = (
        f"At scale {preset},\n\n{verdicts}\nA seed counts once in these intervals, for its runs share images and "
        f"networks.\n\n{_folded_table(differences_table(results), f'differences-{preset}', caption)}"
    )
    short = shortfalls(results, leftover)
    if short.empty:
        return f"{text}\n\nThere is no setting where a method falls short."
    caption = (
        f"Settings at scale {preset} where {' or '.join(OURS)} falls short: no better than {' or '.join(RIVALS)}, or "
        f"less than {ENOUGH:g} of the gap closed. Test accuracies, and right labels among hard training labels by "
        "weight (%), means over seeds; of the wrong labels that are left, the two most frequent kinds, as true class → "
        "label and share of all weight."
    )
    shown = _folded_table(short, f"short-{preset}", caption)
    return f"{text}\n\n:::{{dropdown}} Where an arm falls short\n{shown}\n:::"


def _controls_fragment(results: pd.DataFrame) -> str:
    """Controls of the arms at scale lite, and what they gain where no label is wrong."""
    rows = results[results["preset"] == "lite"]
    selection, controls = selection_table(rows), controls_table(rows)
    parts = []
    if len(selection):
        caption = (
            "What selection and soft labels bring where no label is wrong: arms on clean labels less the oracle, in "
            "points of test accuracy at scale lite. Mean ± half of the 95 % interval of the paired differences over "
            "seeds."
        )
        parts.append(_folded_table(selection, "selection", caption))
    if len(controls):
        caption = (
            "Controls (%) at scale lite: the distilled set; as many random real images with its labels and recipe; the "
            f"set with hard labels only; the set made with uniform drawing. {MEAN}"
        )
        parts.append(_folded_table(controls, "controls", caption))
    return "\n\n".join(parts) or NONE_YET


def _untouched_fragment(results: pd.DataFrame) -> str:
    """Test accuracy of every arm on the seed of preset lite that chose nothing."""
    shown = results_table(results[(results["preset"] == "lite") & (results["seed"] == UNTOUCHED)])
    if shown.empty:
        return NONE_YET
    caption = f"Test accuracy (%) by arm on seed {UNTOUCHED} alone, at scale lite. Mean ± half of the 95 % interval."
    return _folded_table(shown.drop(columns=["preset", "seeds"]), "untouched", caption)


def _costs_fragment(results_dir: Path, results: pd.DataFrame) -> str:
    parts = []
    if len(results):
        caption = (
            "What a run takes on the clock, stage by stage: means over the committed runs; and the largest peak memory."
        )
        parts += [captioned(stage_costs(results), "costs", caption), provenance(results)]
    chapters = read_chapters(results_dir)
    if len(chapters):
        caption = "What each chapter takes on the digits, with nothing computed beforehand."
        parts += [captioned(chapter_costs(chapters), "chapters", caption), machine(chapters)]
    return "\n\n".join(parts) or NONE_YET


def _commands(results: pd.DataFrame) -> Iterable[str]:
    """One command for each setting of a table; data sets other than digits need the folder of their files."""
    for setting, runs in results.groupby(SETTING, sort=False):
        of = dict(zip(SETTING, setting))
        root = "" if of["dataset"] == "digits" else " --root DATA"
        rate = "" if str(of["noise"]).startswith(("none", "human")) else f" --rate {float(of['rate_nominal']):g}"
        arms = " ".join(name for name in ARMS if name in {*runs["arm"]})
        seeds = " ".join(str(seed) for seed in sorted({*runs["seed"]}))
        f, method = of["formation"], str(of["method"])
        one = f == 1 == getattr(METHODS[method], "formation", 1)  # it is the default
        more = [] if one else [f"{method}_formation={f}"]
        more += [f"{method}_draw_power={of['draw_power']:g}"] if of["draw_power"] != DEFAULTS["draw_power"] else []
        network = of["evaluate_network"]
        more += [f"evaluate_network={network}"] if network != DEFAULTS["evaluate_network"] else []
        tested = f" --n-test {of['n_test']}" if root and of["n_test"] else ""
        yield (
            f"$ tad run --dataset {of['dataset']}{root} --noise {of['noise']}{rate} --arm {arms} \\\n"
            f"    --method {of['method']} --ipc {of['ipc']} --seed {seeds} --preset {of['preset']}{tested}"
            f"{' --set ' * bool(more)}{' '.join(more)}"
        )


def machine(rows: pd.DataFrame) -> str:
    """One sentence: hardware, threads and versions of the rows of a benchmark."""

    def values(column: str) -> str:
        return ", ".join(dict.fromkeys(str(value) for value in rows[column].dropna()))

    device = f"{values('device')} on " if "device" in rows else ""
    return (
        f"{device}{values('hardware')}, {values('cores')} cores, threads: {values('threads')}; "
        f"torch {values('torch_version')}, tadlib {values('tadlib_version')}."
    )


def provenance(results: pd.DataFrame) -> str:
    """One sentence: seeds, networks, hardware, versions and commits of the rows of a table."""

    def values(column: str) -> str:
        if column not in results:
            return "unknown"
        found = dict.fromkeys(str(value) for value in results[column].dropna().sort_values())
        if column == "commit":  # its + stands for changes that were not committed
            found = dict.fromkeys(value[:12] + "+" * value.endswith("+") for value in found)
        return ", ".join(found) or "unknown"

    changed = " (+: with changes not committed)" if "+" in values("commit") else ""
    networks = f"{values('n_networks')} networks a run; " if "n_networks" in results else ""
    seeds = "Seeds" if "," in values("seed") else "Seed"
    return (
        f"{seeds} {values('seed')}; {networks}{values('device')} on {values('hardware')}; "
        f"torch {values('torch_version')}, tadlib {values('tadlib_version')}, commit {values('commit')}{changed}."
    )


def _headline(results: pd.DataFrame) -> pd.DataFrame:
    results = results[results["n_test"] == results.groupby("preset")["n_test"].transform("max")]
    seeds = results.groupby([*SETTING, "arm"])["seed"].transform("nunique")
    return results[seeds.groupby([results[name] for name in SETTING]).transform("min") >= 3]


def write_readme_table(results_dir: Path | str, readme_path: Path | str, check: bool = False) -> bool:
    """Put a table of results, of each scale those of most test images, in settings of three seeds or more in every arm,
    between the two markers in a README; return whether that changed it.

    Raises:
        InputError: where a marker is missing, or (``check``) where the README is not up to date, which is then left
            as it is.
    """
    path = Path(readme_path)
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    require(bool(begin and end), f"{path.name} must hold {BEGIN} and, after it, {END}")
    results = _headline(read_results(results_dir))
    shown, told = folded(results_table(results))
    table = NONE_YET if shown.empty else f"{markdown(readable(shown))}\n\n{f'{told} {provenance(results)}'.lstrip()}"
    new = f"{before}{BEGIN}\n{table}\n{END}{after}"
    if new == text:
        return False
    require(not check, f"the table of results in {path.name} is out of date: make tables")
    write_atomic(path, new.encode())
    return True
