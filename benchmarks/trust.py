"""How well every arm tells right labels from wrong ones: the whole table, resumed where it was interrupted.

    python benchmarks/trust.py --root DATA
    python benchmarks/trust.py --root DATA --settings cifar10:pairflip:.4 cifar10:human:worse --arms tad --seeds 0
    python benchmarks/trust.py --root DATA --ablation tad
    python benchmarks/trust.py --root DATA --ablation tad-posterior

A run is a setting (data set, noise, rate), an arm and a seed. It carries out the stages noise and divert under
``--out``, which keep what is finished, and puts one row into ``--results``. With ``--ablation`` the runs are those of
one arm with one of its settings changed at a time; those of tad are distilled by DM and evaluated too. A run that fails
is reported and the next one starts; exit status 1 then. ``--time-limit MINUTES`` starts no run after that time; a later
call goes on.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tadbook.tables import replace_rows
from tadlib import pipeline
from tadlib.config import ARMS, Config, TadConfig
from tadlib.errors import InputError, require

SETTINGS = (
    "cifar10:symmetric:.2",
    "cifar10:symmetric:.4",
    "cifar10:asymmetric:.4",
    "cifar10:pairflip:.4",
    "cifar10:human:worse",
    "cifar10:human:random1",
    "cifar10:none",
    "cifar100:symmetric:.4",
    "cifar100:asymmetric:.4",
    "cifar100:pairflip:.4",
    "cifar100:human:fine",
    "tiny-imagenet:symmetric:.4",
    "tiny-imagenet:asymmetric:.4",
)
ABLATED = ("cifar10:symmetric:.4", "cifar10:pairflip:.4", "cifar10:human:worse")
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "tad": {
        "as it is": {},
        "one mixture for all classes": {"tad_class_wise": False},
        "losses of the last epoch only": {"tad_mu": 0.0},
        "threshold fixed at the end value": {"tad_tau_start": TadConfig().tau_end},
        "without consistency": {"tad_consistency": 0.0},
        "Mahalanobis distance only": {"tad_criterion": "mahalanobis"},
        "cosine similarity only": {"tad_criterion": "cosine"},
        "no recalibration": {"tad_alpha": 1.0},
        "every candidate believed": {"tad_alpha": 0.0},
    },
    "tad-posterior": {
        "as it is": {},
        "the last parameters, not their average": {"posterior_ema": 0.0},
        "without mirror images": {"posterior_mirror": False},
        "half as many filters": {"posterior_filters": 64},
        "no held-out labels": {"posterior_holdout": 0.0},
    },
}
RESULTS = {None: "trust", "tad": "ablation_tad", "tad-posterior": "ablation"}
COMPARED = tuple(arm for arm in ARMS if arm not in ("vanilla", "oracle"))  # these two judge no label

Runs = list[tuple[str, Config]]  # each with the name of its arm or variant


def parse(setting: str) -> dict[str, Any]:
    """``DATASET:NOISE[:VARIANT][:RATE]`` as parameters; InputError when it has no such form."""
    dataset, _, rest = setting.partition(":")
    require(bool(dataset and rest), f"a setting is DATASET:NOISE[:VARIANT][:RATE], got {setting!r}")
    noise, _, rate = rest.rpartition(":")
    try:
        return {"dataset": dataset, "noise": noise, "rate": float(rate)}
    except ValueError:  # no rate: a kind that has none, or a variant
        return {"dataset": dataset, "noise": rest}


def runs(settings: Sequence[str], arms: Sequence[str], seeds: Sequence[int], **common: Any) -> Runs:
    """Runs of which labels are judged and nothing is distilled, seed by seed, so that an interrupted table covers all
    settings and arms before it gains a second seed.

    At scale paper methods of trajectories, which that preset is of by default, would ask for whitened images.
    """
    common = ({"method": "random"} if common.get("preset") == "paper" else {}) | common
    return [
        (arm, Config.from_params(**parse(setting), arm=arm, seed=seed, **common))
        for seed in seeds
        for setting in settings
        for arm in arms
    ]


def ablation(arm: str, settings: Sequence[str], seeds: Sequence[int], **common: Any) -> Runs:
    """The same for the variants of an arm, of which tad's are to be distilled by DM."""
    common = ({"method": "dm"} if arm == "tad" else {}) | common
    return [
        (variant, runs([setting], [arm], [seed], **common, **changed)[0][1])
        for seed in seeds
        for setting in settings
        for variant, changed in VARIANTS[arm].items()
    ]


def measured(config: Config, ablated: str | None) -> dict[str, Any]:
    """The row of a run, with the accuracy of its distilled set where tad is ablated."""
    accuracy: dict[str, Any] = {}
    if ablated == "tad":
        found = pipeline.run(config)
        accuracy = {name: found[name] for name in ("accuracy_mean", "accuracy_ci95")}
    return pipeline.trust_row(config, pipeline.divert(config)) | accuracy


def parser(text: str | None, results: str) -> argparse.ArgumentParser:
    """A parser with the options that benchmarks of settings and seeds share."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--settings", nargs="+", metavar="SETTING", help="default: all of the table")
    made.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    made.add_argument("--root", help="folder of the data sets' files")
    made.add_argument("--preset", default="lite", help="default: lite")
    made.add_argument("--device", default="auto", help="default: auto")
    made.add_argument("--out", default="runs/trust", help="folder of the stages (default: runs/trust)")
    made.add_argument("--results", type=Path, help=f"default: {results}")
    made.add_argument("--time-limit", type=float, metavar="MINUTES", help="start no run after so long")
    return made


def common(options: argparse.Namespace) -> dict[str, Any]:
    """Those of these options that are settings of every run."""
    return {name: getattr(options, name) for name in ("root", "preset", "device", "out")}


def in_time(todo: Runs, minutes: float | None) -> Iterator[tuple[str, str, Config]]:
    """A heading, the name and the configuration of every run, until so many minutes are over."""
    started = time.monotonic()
    for done, (name, config) in enumerate(todo):
        if minutes is not None and time.monotonic() - started > 60 * minutes:
            print(f"time is up: {len(todo) - done} of {len(todo)} runs are left; the same command goes on")
            return
        run = f"{config.dataset} {config.noise} {config.rate:g} {name} {config.seed}"
        yield f"[{done + 1}/{len(todo)}] {run}", name, config


def main(arguments: list[str] | None = None) -> int:
    made = parser(__doc__, "trust.parquet, ablation.parquet or ablation_tad.parquet in results/")
    made.add_argument("--arms", nargs="+", default=COMPARED, choices=ARMS, help="default: all that judge labels")
    made.add_argument("--ablation", choices=tuple(VARIANTS), help="this arm with one of its settings changed at a time")
    made.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="other integer or float settings")
    options, failed = made.parse_args(arguments), 0
    try:
        more = {name: float(value) for name, _, value in (text.partition("=") for text in options.set)} | common(
            options
        )
        if options.ablation:
            todo = ablation(options.ablation, options.settings or ABLATED, options.seeds, **more)
        else:
            todo = runs(options.settings or SETTINGS, options.arms, options.seeds, **more)
    except (InputError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    results = options.results or Path("results", f"{RESULTS[options.ablation]}.parquet")
    for heading, name, config in in_time(todo, options.time_limit):
        try:
            row = measured(config, options.ablation)
        except Exception as error:  # one failing run must not stop a table that takes hours
            failed += 1
            print(f"{heading}: failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            continue
        replace_rows(results, pd.DataFrame([row | ({"variant": name} if options.ablation else {})]))
        auroc = "–" if row["trust_auroc"] is None else f"{row['trust_auroc']:.3f}"
        accuracy = f", accuracy {row['accuracy_mean']:.3f}" if "accuracy_mean" in row else ""
        print(
            f"{heading}: AUROC {auroc}, flagged {row['flagged']:.3f}{accuracy}, {row['seconds_divert']:.0f} s",
            flush=True,
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
