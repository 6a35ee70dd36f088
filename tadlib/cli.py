"""The command line: ``tad run``, one command a stage, and two that look at what a finished stage holds.

torch is imported only after the arguments (:mod:`tadlib.options`) have been read, so that ``--help`` is quick.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from tadlib.errors import InputError, known, require
from tadlib.options import Distill, Divert, Evaluate, Export, Info, Run, RunOptions

if TYPE_CHECKING:
    from tadlib.config import Config

Json = dict[str, Any]
OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130  # exit statuses; 130 is the shell's for Ctrl-C
MACHINE = ("root", "download", "device", "threads")  # options that say where a run takes place, not what it is


def configurations(options: RunOptions) -> "list[Config]":
    """One configuration for every arm and seed, each checked as far as can be before work starts."""
    from tadlib import pipeline

    require(bool(options.arm and options.seed), "--arm and --seed need at least one value each")
    given = {
        f.name: getattr(options, f.name) for f in fields(RunOptions) if f.name not in ("json", "arm", "seed", "set")
    }
    params = {name: value for name, value in given.items() if value is not None} | settings(options.set)
    base = pipeline.Config.from_params(**params)
    arms, seeds = (tuple(dict.fromkeys(values)) for values in (options.arm, options.seed))
    configs = pipeline.runs(base, arm=arms, seed=seeds)
    for config in configs:
        pipeline.check(config)
    asked = options.n_train is not None or options.resolution is not None
    if not asked and (part := share_of_data(base)):
        print(f"tad: {part}", file=sys.stderr)
    return configs


def share_of_data(config: "Config") -> str | None:
    """How much of its data set a preset takes, where that is not all of it."""
    from tadlib.materials import plain_dataset

    data = plain_dataset(config)
    n, side = len(data.y_train), data.image_shape[1]
    if n == data.n_full and config.resolution is None:
        return None
    return (
        f"{n} of the {data.n_full} training images of {config.dataset}, {side} x {side} pixels (preset "
        f"{config.preset}); --n-train and --resolution ask for more"
    )


def settings(assignments: tuple[str, ...]) -> Json:
    """NAME=VALUE pairs as parameters; a value is read as JSON and otherwise as text."""
    params = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        require(bool(name and equals), f"--set takes NAME=VALUE, got {assignment!r}")
        require(name not in ("arm", "seed"), f"{name} has an option of its own, --{name}")
        try:
            params[name] = json.loads(text)
        except ValueError:
            params[name] = text
    return params


# Commands: each takes its options and returns (exit status, the JSON document, the text in its place) ----------------

Answer = tuple[int, Json, str]


def over_runs(options: RunOptions, work: "Callable[[Config], Json]") -> tuple[int, list[Json], list[Json]]:
    """Status, results and failures of ``work`` on every run; a run that fails does not stop the others."""
    status, done, failed = OK, [], []
    for config in configurations(options):
        try:
            done.append(work(config))
        except Exception as error:
            bad_input = isinstance(error, InputError)
            status = max(status, BAD_INPUT if bad_input else FAILED)
            failed.append({"arm": config.arm, "seed": config.seed, "error": _line(error)})
            complain(f"arm {config.arm}, seed {config.seed}: {_line(error)}", None if bad_input else error)
    return status, done, failed


def run(options: Run) -> Answer:
    from tadlib import pipeline

    status, rows, failed = over_runs(options, pipeline.run)
    closed = {arm: gap for arm in ("tad", "tad-posterior") if (gap := gap_closed(rows, arm)) is not None}
    path = str(Path(options.out) / "results.parquet")
    columns: dict[str, Callable[[Json], str]] = {
        "arm": lambda r: r["arm"],
        "seed": lambda r: str(r["seed"]),
        "accuracy %": lambda r: percent(r["accuracy_mean"], r["accuracy_ci95"]),
        "trust precision": lambda r: percent(r["trust_precision"]),
        "recall %": lambda r: percent(r["trust_recall"]),
        "labels right": lambda r: percent(r["label_accuracy"]),
    }
    for stage in ("divert", "experts", "distill", "evaluate"):
        columns[f"{stage} s"] = lambda r, name=f"seconds_{stage}": seconds(r[name])  # type: ignore[misc]
    lines = [table(columns, rows)] if rows else []
    lines += [f"gap closed by {arm}: {gap:.2f}" for arm, gap in closed.items()]
    lines += [f"± is a 95 % confidence interval over the networks of one run. Rows are in {path}"] if rows else []
    return status, {"rows": rows, "gap_closed": closed, "failed": failed, "results": path}, "\n".join(lines)


def divert(options: Divert) -> Answer:
    from tadlib import pipeline, store

    require(
        len(options.arm) == len(options.seed) == 1,
        f"tad divert writes one refined set: expected one arm and one seed, got {options.arm} and {options.seed}",
    )
    (config,) = configurations(options)
    folder = store.StageFolder(pipeline.divert(config))
    manifest = folder.manifest()
    noise = store.StageFolder(pipeline.inject_noise(config)).manifest()
    metrics = {**noise["extra"], **manifest["extra"], "seconds": manifest["seconds"]}
    out = Path(options.out)
    (out / "history.parquet").unlink(missing_ok=True)  # of an arm that learned, from an earlier call
    for name in manifest["files"]:
        store.write_atomic(out / name, (folder.path / name).read_bytes())
    store.save_json(out / "metrics.json", metrics)
    files = sorted([*manifest["files"], "metrics.json"])
    document = {"stage": str(folder.path), "out": str(out), "files": files, "metrics": metrics}
    units = "rate, trust, relabel and accuracy figures are fractions; seconds are of diversion"
    return OK, document, f"{listing(metrics)}\n({units})\n{', '.join(files)} in {out}"


def distill(options: Distill) -> Answer:
    from tadlib import pipeline

    def work(config: "Config") -> Json:
        path = pipeline.distill(config)
        manifest = pipeline.StageFolder(path).manifest()
        return {
            "arm": config.arm,
            "seed": config.seed,
            "path": str(path / "distilled.safetensors"),
            "seconds": manifest["seconds"],
            **manifest["extra"],
        }

    status, done, failed = over_runs(options, work)
    return status, {"runs": done, "failed": failed}, "\n\n".join(map(listing, done))


def evaluate(options: Evaluate) -> Answer:
    from tadlib import pipeline

    def work(config: "Config") -> Json:
        accuracies = pipeline.load_json(pipeline.evaluate(config) / "accuracies.json")
        return {"arm": config.arm, "seed": config.seed, **summary(accuracies)}

    if options.path is None:
        status, done, failed = over_runs(options, work)
    else:
        for f in fields(RunOptions):
            theirs = f.name in (*MACHINE, "json", "set") or getattr(options, f.name) == f.default
            require(theirs, f"--{f.name.replace('_', '-')} is not for a distilled set, which was made with its own")
        held = pipeline.load_distilled(options.path)
        machine = {name: getattr(options, name) for name in MACHINE}
        accuracies = held.evaluate(**(machine | settings(options.set)))
        status, failed = OK, []
        done = [{"arm": held.params["arm"], "seed": held.params["seed"], **summary(accuracies)}]
    columns: dict[str, Callable[[Json], str]] = {
        "arm": lambda r: r["arm"],
        "seed": lambda r: str(r["seed"]),
        "accuracy %": lambda r: percent(r["accuracy_mean"], r["accuracy_ci95"]),
        "networks": lambda r: str(len(r["accuracies"])),
    }
    return status, {"runs": done, "failed": failed}, table(columns, done) if done else ""


def export(options: Export) -> Answer:
    from tadlib import distilled, store
    from tadlib import export as formats

    require(bool(options.format), f"--format needs at least one of: {', '.join(formats.FORMATS)}")
    for name in options.format:
        known("format", name, formats.FORMATS)
    held = distilled.load_distilled(options.path)
    out = store.claim_output(options.out)
    formats.tensors(held, out)
    for name in options.format:
        formats.FORMATS[name](held, out)
    n_images = len(held.pixels)
    document = {"out": str(out), "images": n_images, "formats": options.format, "clamped": formats.clamped(held)}
    return OK, document, f"{n_images} images, images.safetensors, recipe.json and {', '.join(options.format)} in {out}"


def info(options: Info) -> Answer:
    from tadlib import pipeline, store

    path = options.path
    if path.is_dir():
        folder = store.StageFolder(path)
        folder.verify()
        manifest = folder.manifest()
        shown = {k: v for k, v in manifest.items() if k != "config"} | {"settings": manifest["config"]["settings"]}
        return OK, {"path": str(path), "verified": True, **manifest}, listing({**shown, "checksums": "all match"})
    d = pipeline.load_distilled(path)  # compares its checksum
    document: Json = {
        "path": str(path),
        "verified": True,
        "images": list(d.synthetic.x.shape),
        "learning_rate": d.synthetic.lr,
        "mean": d.mean,
        "std": d.std,
        "class_names": d.class_names,
        "params": d.params,
        "provenance": d.provenance,
    }
    return OK, document, listing(document)


# What is printed -----------------------------------------------------------------------------------------------------


def summary(accuracies: list[float]) -> Json:
    """Accuracies with their mean and the half-width of its 95 % interval, as fractions."""
    from tadlib.evaluate import mean_ci95

    mean, half = mean_ci95(accuracies)
    return {"accuracies": accuracies, "accuracy_mean": mean, "accuracy_ci95": half}


def gap_closed(rows: list[Json], arm: str) -> float | None:
    """(arm - vanilla) / (oracle - vanilla), from mean accuracies over the seeds that have all three; None without."""
    accuracy = {(r["seed"], r["arm"]): r["accuracy_mean"] for r in rows}
    arms = ("vanilla", arm, "oracle")
    seeds = sorted({seed for seed, _ in accuracy})
    complete = [seed for seed in seeds if all((seed, name) in accuracy for name in arms)]
    vanilla, own, oracle = (sum(accuracy[seed, name] for seed in complete) for name in arms)
    return (own - vanilla) / (oracle - vanilla) if oracle != vanilla else None


def percent(mean: float | None, half: float | None = None) -> str:
    """A fraction in percent, with its interval; a dash where there is none."""
    if mean is None:
        return "-"
    return f"{100 * mean:.1f}" + (f" ± {100 * half:.1f}" if half is not None else "")


def seconds(value: float | None) -> str:
    """Seconds; a dash for a stage that a method does without."""
    return "-" if value is None else f"{value:.1f}"


def table(columns: dict[str, Callable[[Json], str]], rows: list[Json]) -> str:
    """Rows as aligned text under the names of ``columns``."""
    cells = [list(columns), *([show(row) for show in columns.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def listing(values: Json, indent: str = "") -> str:
    """Nested values, one on a line."""
    width = max(map(len, values), default=0)
    lines = []
    for name, value in values.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{name}", listing(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name.ljust(width)}  {f'{value:.4g}' if isinstance(value, float) else value}")
    return "\n".join(lines)


def complain(message: str, error: BaseException | None = None) -> None:
    """A message on stderr, after the traceback where ``error`` is not the user's."""
    if error is not None:
        traceback.print_exception(error)
    print(f"tad: error: {message}", file=sys.stderr)


def _line(error: BaseException) -> str:
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


COMMANDS: dict[type, Callable[[Any], Answer]] = {
    Run: run,
    Divert: divert,
    Distill: distill,
    Evaluate: evaluate,
    Export: export,
    Info: info,
}


def main(args: list[str] | None = None) -> int:
    """The command ``tad``; returns its exit status."""
    options: Any = tyro.cli(
        Run | Divert | Distill | Evaluate | Export | Info,  # type: ignore[arg-type]
        prog="tad",
        description="Dataset distillation from noisy labels.",
        args=args,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone),
    )
    try:
        status, document, text = COMMANDS[type(options)](options)
    except InputError as error:
        complain(str(error))
        return BAD_INPUT
    except KeyboardInterrupt:
        complain("interrupted; the same command goes on from the last checkpoint")
        return INTERRUPTED
    except Exception as error:
        complain(_line(error), error)
        return FAILED
    shown = json.dumps(document, indent=2, allow_nan=False) if options.json else text
    try:
        print(shown, end="\n" if shown else "", flush=True)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status
