"""The command line: ``tad run``, one command a stage, and two that look at what a finished stage holds.

A command is a dataclass of its options, for tyro, with a method ``answer``. What is left out comes from the preset.
torch is imported only after the arguments have been read, so that ``--help`` is quick.
"""

import json
import os
import shlex
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import FrameType
from typing import Any

import tyro
from tyro.conf import Positional, Suppress

from tadlib import __version__
from tadlib.config import MACHINE, METHODS, OLD_NAMES, SECTIONS, Config, Essentials, converted, known_param, meanings
from tadlib.errors import InputError, known, require, told, usable

Json = dict[str, Any]
OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130  # exit statuses; 130 is the shell's for Ctrl-C


@dataclass(frozen=True, kw_only=True)
class Output:
    json: bool = False
    """Print one JSON document on stdout instead of a table."""


@dataclass(frozen=True, kw_only=True)
class RunOptions(Essentials, Output):
    """Options that define one run, or one for every arm and seed."""

    arm: tuple[str, ...] | None = None  # type: ignore[assignment]
    seed: tuple[int, ...] = (Essentials.seed,)  # type: ignore[assignment]
    predictors: tuple[str, ...] = ()
    """Of arm tad-posterior: what predicts the true class, one or several of network, patches, embeddings:FILE,
    embeddings:NAME and probabilities:FILE (setting posterior_predictors; default: network patches)."""
    set: tuple[str, ...] = ()
    """Any other setting, as NAME=VALUE, in place of the preset's: auditor_epochs=30 mtt_lr_img=50 width=64 ...
    (tad info lists them all). One of an arm or a method that is not chosen brings a warning and changes nothing."""

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms asked for, each once."""
        default = "tad-posterior" if self.predictors else Essentials.arm
        return tuple(dict.fromkeys((default,) if self.arm is None else self.arm))


def configurations(options: RunOptions, *, distilled: bool = True) -> list[Config]:
    """One configuration for every arm and seed, each checked as far as can be before work starts; ``distilled`` as in
    :func:`tadlib.pipeline.check`."""
    from tadlib import pipeline

    require(bool(options.arms and options.seed), "--arm and --seed need at least one value each")
    base = configuration(options)
    arms, seeds = options.arms, tuple(dict.fromkeys(options.seed))
    configs = pipeline.runs(base, arm=arms, seed=seeds)
    for config in configs:
        pipeline.check(config, distilled=distilled)
    given = [*settings(options.set), *(["posterior_predictors"] if options.predictors else [])]
    if idle := [name for name in given if not has_effect(name, base, arms)]:
        chosen = f"{' '.join(arms)} with method {base.method}"
        print(f"tad: warning: no effect on {chosen}: {', '.join(idle)}", file=sys.stderr)
    asked = options.n_train is not None or options.resolution is not None
    said = of_own_images(base) if base.dataset.startswith(("folder:", "table:")) else None
    if said or (not asked and (said := share_of_data(base))):
        print(f"tad: {said}", file=sys.stderr)
    return configs


def configuration(options: RunOptions) -> Config:
    """The configuration that the options define, but for arm and seed; settings of other methods are left out."""
    names = [f.name for f in fields(RunOptions) if f.name not in ("json", "arm", "seed", "set", "predictors")]
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.predictors:
        given["posterior_predictors"] = shlex.join(options.predictors)
    given |= set_besides(options)
    for name in [n for n in given if (owner := n.partition("_")[0]) in METHODS and owner != given["method"]]:
        known_param(name)
        converted(name, given.pop(name))
    return Config.from_params(**given)


def of_own_images(config: Config) -> str:
    """What was read of the user's own images, and what was chosen for them."""
    from tadlib.data import own
    from tadlib.materials import plain_dataset

    data = plain_dataset(config)
    files, (channels, side, _) = data.files, data.image_shape
    assert files is not None
    n, width, height = len(data.y_train), *files.size
    lines = [
        f"{config.dataset}: {n} of {data.n_full} training images, {data.n_classes} classes, {len(data.y_test)} "
        f"{files.evaluated_on}; read in {'grey' if channels == 1 else 'colour'} at {side} x {side} pixels (median "
        f"{width} x {height}); --n-train, --n-test and --resolution change that"
    ]
    parts = [getattr(config, name) for name in ("auditor", "expert", "evaluate", config.method)]
    if not any("flip" in getattr(part, "augmentation", "") for part in parts):
        lines.append(
            f"images are not mirrored; for that, --set auditor_augmentation={config.auditor.augmentation}_flip"
        )
    if files.evaluated_on == own.HELD_OUT_NOISY and len(data.y_test):
        lines.append("there is no test split: networks are tested on noisy labels, which measures agreement with these")
    if files.unreadable:
        few = "; ".join(f"{path} ({reason})" for path, reason in files.unreadable[:3])
        more = f"; and {len(files.unreadable) - 3} more" if len(files.unreadable) > 3 else ""
        lines.append(f"{len(files.unreadable)} images cannot be read and are left out: {few}{more}")
    if files.passed_over:
        ends = ", ".join(sorted(files.passed_over))
        lines.append(f"{sum(files.passed_over.values())} files of other types are passed over ({ends})")
    return "\n     ".join(lines)


def has_effect(name: str, config: Config, arms: tuple[str, ...]) -> bool:
    """Whether a setting reaches the method or one of the arms."""
    section = OLD_NAMES.get(name, name).partition("_")[0]
    if section in METHODS:
        return section == config.method
    if section in ("expert", "observer"):
        return config.method_config.needs_experts if section == "expert" else config.needs_observer
    owner = {"tad": "tad", "posterior": "tad-posterior"}.get(section)
    trained = set(arms) - {"vanilla", "oracle"}
    return owner in trained if owner else bool(trained) or section != "auditor"


def share_of_data(config: Config) -> str | None:
    """How much of its data set a preset takes, where that is not all of it."""
    from tadlib.materials import plain_dataset

    data = plain_dataset(config)
    n, side = len(data.y_train), data.image_shape[1]
    if n == data.n_full and config.resolution is None:
        return None
    part = f"{n} of the {data.n_full} training images of {config.dataset}, {side} x {side} pixels"
    return f"{part} (preset {config.preset}); --n-train and --resolution ask for more"


def evaluated_on(dataset: str) -> str:
    """What accuracy is measured on, as in the rows of results."""
    from tadlib.data import is_own, own

    return own.evaluated_on(own.listing(dataset)) if is_own(dataset) else own.TEST


def settings(assignments: tuple[str, ...]) -> Json:
    """NAME=VALUE pairs as parameters; a value is read as JSON and otherwise as text."""
    params = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        require(bool(name and equals), f"--set takes NAME=VALUE, got {assignment!r}")
        require(name not in ("arm", "seed"), f"{name} has an option of its own, --{name}")
        require(name not in params, f"--set gives {name} twice")
        try:
            params[name] = json.loads(text)
        except ValueError:
            params[name] = text
    return params


def set_besides(options: RunOptions) -> Json:
    """:func:`settings` of ``--set``, of which none may have been given by an option of its own as well."""
    params = settings(options.set)
    for f in fields(options):
        name = "posterior_predictors" if f.name == "predictors" else f.name
        twice = name in params and getattr(options, f.name) != f.default
        require(not twice, f"{name} is given twice, by --{f.name.replace('_', '-')} and by --set")
    return params


def warn_of_doubt(config: Config) -> None:
    """Say where the arm of a finished diversion could not tell how many labels are wrong."""
    from tadlib import pipeline, store
    from tadlib.trust.decisions import NoiseRate

    found = store.StageFolder(pipeline.plan(config)["divert"].path).manifest()["extra"]
    three = [found.get(f"noise_rate_{name}") for name in ("estimate", "low", "high")]
    if None not in three and (rate := NoiseRate(*three)).uncertain:
        print(f"tad: warning: {rate.doubt}", file=sys.stderr)


@contextmanager
def interruptible() -> Iterator[None]:
    """After Ctrl-C the block ends with KeyboardInterrupt, also where compiled code of a library has made another error
    of it (safetensors: ValueError) or has gone on."""
    before, came = signal.getsignal(signal.SIGINT), []
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield  # ignored, or never told to this thread
        return

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    except Exception as error:
        if came:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings look like all that the command says, without the place in the code."""

    def show(message: Warning | str, *about: object, **more: object) -> None:
        print(f"tad: warning: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def over_runs(options: RunOptions, work: Callable[[Config], Json]) -> tuple[int, list[Json], list[Json]]:
    """Status, results and failures of ``work`` on every run; a run that fails does not stop the others, but a disk that
    cannot be written does.

    Arm and seed are added to each.
    """
    status, done, failed = OK, [], []
    configs = configurations(options)
    for i, config in enumerate(configs):
        of_run = {"arm": config.arm, "seed": config.seed}
        try:
            with interruptible():
                done.append(of_run | work(config))
                warn_of_doubt(config)
        except Exception as error:
            left = configs[i + 1 :] if isinstance(error, OSError) else []
            more = f"; {len(left)} more not tried" if left else ""
            status = max(status, complain(error, f"arm {config.arm}, seed {config.seed}: ", more))
            failed.append(of_run | {"error": _line(error)})
            failed += [{"arm": c.arm, "seed": c.seed, "error": "not tried"} for c in left]
            if left:
                break
    return status, done, failed


# Commands: ``answer`` is (exit status, the JSON document, the text in its place) -------------------------------------

Answer = tuple[int, Json, str]


@dataclass(frozen=True, kw_only=True)
class Run(RunOptions):
    """Carry out whole runs, noise to evaluation, and add a row for each to OUT/results.parquet."""

    def answer(self) -> Answer:
        from tadlib import pipeline, store

        status, rows, failed = over_runs(self, pipeline.run)
        path = str(usable(self.out) / "results.parquet")
        known = store.load_table(Path(path)).to_dict("records") if rows else []
        gaps = {arm: gap_closed(rows, arm, known) for arm in ("tad", "tad-posterior")}
        closed = {arm: gap for arm, gap in gaps.items() if gap is not None}
        fractions = {"trust precision": "trust_precision", "recall %": "trust_recall", "labels right": "label_accuracy"}
        shown = [
            head(row)
            | {title: number(row[name], 100) for title, name in fractions.items()}
            | {f"{stage} s": number(row[f"seconds_{stage}"]) for stage in pipeline.TIMED}
            for row in rows
        ]
        lines = [table(shown)] if rows else []
        lines += [f"gap closed by {arm}: {gap:.2f}" for arm, gap in closed.items()]
        lines += [f"± is a 95 % confidence interval over the networks of one run. Rows are in {path}"] if rows else []
        return status, {"rows": rows, "gap_closed": closed, "failed": failed, "results": path}, "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Divert(RunOptions):
    """Carry out one run (one arm, one seed) up to diversion; write the refined set to OUT/labels.parquet, metrics.json
    beside it."""

    def answer(self) -> Answer:
        from tadlib import pipeline, store

        expected = f"expected one arm and one seed, got {self.arms} and {self.seed}"
        require(len(self.arms) == len(self.seed) == 1, f"tad divert writes one refined set: {expected}")
        (config,) = configurations(self, distilled=False)
        folder = store.StageFolder(pipeline.divert(config))
        manifest = folder.manifest()
        noise = store.StageFolder(pipeline.inject_noise(config)).manifest()
        metrics = {**noise["extra"], **manifest["extra"], "seconds": manifest["seconds"]}
        out = Path(config.out)
        folder.verify()
        warn_of_doubt(config)
        if "history.parquet" not in manifest["files"]:  # of an arm that learned, from an earlier call
            (out / "history.parquet").unlink(missing_ok=True)
        contents = {name: (folder.path / name).read_bytes() for name in manifest["files"]}
        for name, content in contents.items():  # what is there already may be read-only
            if not (out / name).is_file() or (out / name).read_bytes() != content:
                store.write_atomic(out / name, content)
        if not (out / "metrics.json").is_file() or store.load_json(out / "metrics.json") != metrics:
            store.save_json(out / "metrics.json", metrics)
        files = sorted([*manifest["files"], "metrics.json"])
        document = {"stage": str(folder.path), "out": str(out), "files": files, "metrics": metrics}
        units = "rate, trust, relabel and accuracy figures are fractions; seconds are of diversion"
        return OK, document, f"{listing(metrics)}\n({units})\n{', '.join(files)} in {out}"


@dataclass(frozen=True, kw_only=True)
class Distill(RunOptions):
    """Carry out runs up to distillation; tell where the distilled sets lie."""

    def answer(self) -> Answer:
        from tadlib import pipeline, store

        def work(config: Config) -> Json:
            path = pipeline.distill(config)
            manifest = store.StageFolder(path).manifest()
            return {"path": str(path / "distilled.safetensors"), "seconds": manifest["seconds"], **manifest["extra"]}

        status, done, failed = over_runs(self, work)
        return status, {"runs": done, "failed": failed}, "\n\n".join(map(listing, done))


@dataclass(frozen=True, kw_only=True)
class Evaluate(RunOptions):
    """Test accuracies: of a distilled set (PATH), or of runs, whose missing stages are carried out."""

    path: Positional[Path | None] = None
    """A distilled set: distilled.safetensors or its folder; the options that define a run then come from it."""

    def answer(self) -> Answer:
        from tadlib import pipeline

        def summary(accuracies: list[float], evaluated_on: str | None) -> Json:
            mean, half = pipeline.mean_ci95(accuracies)
            found = {"accuracies": accuracies, "accuracy_mean": mean, "accuracy_ci95": half}
            return found | {"evaluated_on": evaluated_on}

        def work(config: Config) -> Json:
            path = pipeline.evaluate(config)
            about = pipeline.StageFolder(path).manifest()["extra"]
            return summary(pipeline.load_accuracies(path), about["evaluated_on"])

        if self.path is None:
            status, done, failed = over_runs(self, work)
        else:
            machine = {name: getattr(self, name) for name in MACHINE if name != "out"}
            given = {f.name: getattr(self, f.name) for f in fields(RunOptions) if getattr(self, f.name) != f.default}
            for name in given.keys() - {*machine, "json", "set", "n_test", "seed"}:
                require(False, f"--{name.replace('_', '-')} is not for a distilled set, which was made with its own")
            require(len(self.seed) == 1, f"a distilled set is evaluated with one seed, got {self.seed}")
            held = pipeline.load_distilled(self.path)
            own = {"n_test": self.n_test, "seed": self.seed[0]}
            changed = machine | {name: value for name, value in own.items() if name in given} | set_besides(self)
            accuracies = held.evaluate(**changed)
            status, failed = OK, []
            on = evaluated_on(str(changed.get("dataset", held.params["dataset"])))
            done = [{"arm": held.params["arm"], "seed": held.params["seed"], **summary(accuracies, on)}]
        shown = [head(row) | {"networks": len(row["accuracies"])} for row in done]
        return status, {"runs": done, "failed": failed}, table(shown) if done else ""


@dataclass(frozen=True, kw_only=True)
class Audit(RunOptions):
    """Judge the labels of a data set; write OUT/report.html, and lists of suspects to check beside it.

    All images are judged, at no less than the data set's own resolution up to 32 pixels, unless --n-train and
    --resolution ask for less. The labels that a person checked come back with --corrections.
    """

    arm: Suppress[tuple[str, ...]] = ("tad-posterior",)  # type: ignore[assignment]
    method: Suppress[str] = Essentials.method
    loops: Suppress[str] = Essentials.loops
    ipc: Suppress[int] = 1
    preset: str = "lite"
    """Scale: how the judging network is trained, smoke (seconds; for the digits), lite, or paper (for a GPU)."""
    out: str = "audit"
    """Output folder: a new or empty one, or one that tad made. Finished stages in it are not computed again."""

    def answer(self) -> Answer:
        from tadlib import audit, pipeline
        from tadlib.data import is_own

        require(len(self.seed) == 1, f"tad audit takes one seed, got {self.seed}")
        asked = vars(self) | set_besides(self)
        config = audit.whole(configuration(self), *(asked[name] for name in ("n_train", "n_test", "resolution")))
        config = replace(config, arm=self.arms[0], seed=self.seed[0])
        pipeline.check(config)
        if is_own(config.dataset):
            print(f"tad: {of_own_images(config)}", file=sys.stderr)
        found = audit.audit(config)
        warn_of_doubt(config)
        return OK, found, f"{listing(found)}\n(noise_rate, precision and recall are fractions, as estimated)"


@dataclass(frozen=True, kw_only=True)
class Export(Output):
    """Write a distilled set as tensors (images.safetensors) with the recipe to train on them, the observer that labels
    them if there is one, and in other formats; or your own images with corrected labels."""

    path: Positional[Path]
    """A distilled set: distilled.safetensors or its folder. For the formats folder and table: a finished stage divert,
    OUT/divert/KEY, or the folder OUT that holds one."""
    out: Path = Path("export")
    """Output folder: a new or empty one, or one that tad made."""
    format: tuple[str, ...] = ("png",)
    """Formats of a distilled set: png (pictures), ddranking (its three tensors), huggingface (a datasets folder); of
    corrected labels: folder (of links to the images, a class a folder; their trust is in folder.csv), table (CSV, with
    trust); one or several."""
    copy: bool = False
    """Copy images instead of linking to them (folder) or naming where they lie (table)."""

    def answer(self) -> Answer:
        from tadlib import distilled, store
        from tadlib import export as formats

        names = [*formats.FORMATS, *formats.CORRECTED]
        require(bool(self.format), f"--format needs at least one of: {', '.join(names)}")
        for name in self.format:
            known("format", name, names)
        of_labels = [name for name in self.format if name in formats.CORRECTED]
        if of_labels:
            alone = len(of_labels) == len(self.format)
            require(
                alone, f"{', '.join(of_labels)} is of corrected labels, others are of a distilled set: export apart"
            )
            return self.corrected()
        require(not self.copy, f"--copy is for the formats {', '.join(formats.CORRECTED)}")
        held = distilled.load_distilled(self.path)
        out = store.claim_output(self.out)
        taught = formats.observer(held, self.path, out)
        formats.tensors(held, out)
        for name in self.format:
            formats.FORMATS[name](held, out)
        n_images = len(held.pixels)
        document = {"out": str(out), "images": n_images, "formats": self.format, "clamped": formats.clamped(held)}
        files = ["images.safetensors", *(["observer.safetensors"] if taught else []), "recipe.json"]
        return OK, document, f"{n_images} images, {', '.join(files)} and {', '.join(self.format)} in {out}"

    def corrected(self) -> Answer:
        """Write the user's own images with the labels that a finished diversion left them."""
        from tadlib import export as formats
        from tadlib import store

        data = formats.corrected(self.path)
        out = store.claim_output(self.out)
        for name in self.format:
            formats.CORRECTED[name](data, out, self.copy)
        text = "{kept} labels kept, {corrected} corrected, {left_out} images left out".format(**data.counts)
        document: Json = {"out": str(out), "formats": self.format, **data.counts}
        return OK, document, f"{text}; {', '.join(self.format)} in {out}"


@dataclass(frozen=True, kw_only=True)
class Info(Output):
    """Say what a finished stage folder, or the file of a distilled set, holds, and compare its checksums; without a
    PATH, list the names that --set takes."""

    path: Positional[Path | None] = None
    """A folder OUT/STAGE/KEY, or a distilled set's file."""

    def answer(self) -> Answer:
        if self.path is None:
            return names_of_settings()
        from tadlib import distilled, store

        path = usable(self.path)
        if path.is_dir():
            folder = store.StageFolder(path)
            folder.verify()
            manifest = folder.manifest()
            shown = {k: v for k, v in manifest.items() if k != "config"}
            shown |= {"settings": manifest.get("config", {}).get("settings", {})}
            return OK, {"path": str(path), "verified": True, **manifest}, listing({**shown, "checksums": "all match"})
        held = distilled.load_distilled(path)
        document: Json = {
            "path": str(path),
            "verified": store.StageFolder(path.parent).is_complete(),  # a file elsewhere has no checksum
            "images": list(held.synthetic.x.shape),
            "learning_rate": held.synthetic.lr,
            **{name: getattr(held, name) for name in ("mean", "std", "class_names", "params", "provenance")},
        }
        return OK, document, listing(document)


def names_of_settings() -> Answer:
    """Every setting without an option of its own: its name, default (before the preset) and meaning."""
    texts, options = meanings(), {f.name for f in fields(RunOptions)}
    sections = {name: getattr(Config(), name) for name in SECTIONS}
    held = vars(Config()) | {f"{s}_{name}": v for s, part in sections.items() for name, v in vars(part).items()}
    found = {name: {"default": held[name], "meaning": texts[name]} for name in texts if name not in options}
    lines = [f"{name}={json.dumps(about['default'])}: {about['meaning']}" for name, about in found.items()]
    head = "Settings that --set takes, with the defaults that hold where a preset says nothing else:"
    return OK, {"settings": found}, "\n".join([head, *lines])


# What is printed -----------------------------------------------------------------------------------------------------


def gap_closed(rows: list[Json], arm: str, known: list[Json]) -> float | None:
    """The gap that an arm closes (:func:`tadlib.evaluate.gap_closed`) over the seeds of ``rows`` that have it and
    vanilla, and whose run on clean labels is among the ``known`` rows of the folder; None without any."""
    from tadlib import evaluate, pipeline

    same = [name for name in pipeline.SETTING if name not in ("noise", "rate_nominal")]
    noisy = {(row["seed"], row["arm"]): row["accuracy_mean"] for row in rows if row["noise"] != "none"}
    clean = {}
    for row in known:
        if row["noise"] == "none" and row["arm"] == arm and all(row.get(name) == rows[0].get(name) for name in same):
            clean[row["seed"]] = row["accuracy_mean"]
    seeds = [s for s in sorted(clean) if (s, arm) in noisy and (s, "vanilla") in noisy]
    three = [noisy[s, arm] for s in seeds], [noisy[s, "vanilla"] for s in seeds], [clean[s] for s in seeds]
    return evaluate.gap_closed(*three)[0]


def number(value: float | None, factor: int = 1) -> str:
    """``factor`` times ``value`` to one decimal; a dash for what there is none of."""
    return "-" if value is None else f"{factor * value:.1f}"


def head(row: Json) -> Json:
    """What the table of every command begins with."""
    mean, half = row["accuracy_mean"], row["accuracy_ci95"]
    accuracy = number(mean, 100) + ("" if half is None else f" ± {number(half, 100)}")
    held_out = {
        "held-out images, true labels": "accuracy on held-out images %",
        "held-out images, noisy labels": "agreement with held-out noisy labels %",
    }
    return {"arm": row["arm"], "seed": row["seed"], held_out.get(row["evaluated_on"], "accuracy %"): accuracy}


def table(rows: list[Json]) -> str:
    """Rows as aligned text under their names."""
    import pandas as pd

    return pd.DataFrame(rows).to_string(index=False)


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


def complain(error: Exception, where: str = "", after: str = "") -> int:
    """Say on stderr what went wrong, after a traceback where it is a bug, not the input or a full disk; returns the
    exit status."""
    if not isinstance(error, InputError | OSError):
        traceback.print_exception(error)
    print(f"tad: error: {where}{_line(error)}{after}", file=sys.stderr)
    return BAD_INPUT if isinstance(error, InputError) else FAILED


def _line(error: Exception) -> str:
    text = told(error) if isinstance(error, OSError) else str(error)
    text = text if isinstance(error, InputError | OSError) else f"{type(error).__name__}: {text}"
    return " ".join(text.split())  # one line, whatever a file's name or a library's message has in it


def main(args: list[str] | None = None) -> int:
    """The command ``tad``; returns its exit status."""
    args = sys.argv[1:] if args is None else args
    if args == ["--version"]:
        print(f"tad {__version__}")
        return OK
    try:
        options: Any = tyro.cli(
            Run | Divert | Distill | Evaluate | Audit | Export | Info,  # type: ignore[arg-type]
            prog="tad",
            description="Dataset distillation from noisy labels. tad --version tells the version.",
            args=args,
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone),
        )
    except BrokenPipeError:  # from its help
        return closed(OK)
    try:
        with interruptible(), plain_warnings():
            status, document, text = options.answer()
    except KeyboardInterrupt:
        print("tad: error: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        return complain(error)
    shown = json.dumps(document, indent=2, allow_nan=False) if options.json else text
    try:
        print(shown, end="\n" if shown else "", flush=True)
    except BrokenPipeError:
        return closed(status)
    return status


def closed(status: int) -> int:
    """``status``, after a reader such as head has seen enough: Python would complain of stdout when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status
