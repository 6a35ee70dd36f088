"""How well every arm tells right labels from wrong ones: the whole table, resumed where it was interrupted.

    python benchmarks/trust.py --root DATA
    python benchmarks/trust.py --root DATA --settings cifar10:pairflip:.4 cifar10:human:worse --arms tad --seeds 0
    python benchmarks/trust.py --root DATA --ablation

With ``--ablation`` the cells are those of the arm tad with one setting of the dual loop changed at a time.

A cell is a setting (data set, noise, rate), an arm and a seed. It runs the stages noise and divert under ``--out``,
which keep what is finished, and puts one row into ``--results``. A cell that fails is reported and the next one
starts; exit status 1 then. ``--time-limit MINUTES`` starts no cell after that time; a later call goes on.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tadlib import pipeline
from tadlib.arms import ARMS
from tadlib.config import Config
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
# the paper's outer loop, with what it needs and the posterior does not: averages over rounds, a falling threshold
MIXTURES: dict[str, Any] = {
    "divert_evidence": "loss",
    "divert_ema": 0.5,
    "divert_tau_start": 0.5,
    "divert_look_every": 10,
    "divert_error": 0.3,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "the network alone": {"divert_views": "network"},
    "patches alone": {"divert_views": "patches"},
    "with anchors": {"divert_views": "network+anchors+patches"},
    "with predictions while training": {"divert_views": "network+training+patches"},
    "anchors alone": {"divert_views": "anchors"},
    "patches count as two views": {"divert_patches_weight": 2.0},
    "without mirror images": {"divert_mirror": False},
    "the last parameters, not their average": {"divert_average": 0.0},
    "half as many filters": {"divert_patches_filters": 64},
    "warm-up on noisy labels": {"divert_begin": "given"},
    "flips without a direction": {"divert_transition": "symmetric"},
    "single directions only": {"divert_transition": "directions"},
    "no flips one way": {"divert_transition": "directions+nearest+alike"},
    "no flips to the nearest class": {"divert_transition": "directions+one_way+alike"},
    "no flips between alike classes": {"divert_transition": "directions+one_way+nearest"},
    "averages over rounds": {"divert_ema": 0.5},
    "auditors learn noisy labels": {"divert_bootstrap": 0.0},
    "auditors learn the refined set": {"divert_targets": "refined"},
    "no held-out labels": {"divert_holdout": 0.0},
    "a look every round": {"divert_look_every": 1},
    "a falling threshold": {"divert_tau_start": 0.5},
    "with consistency": {"divert_consistency": 0.5},
    "with a confidence penalty": {"divert_confidence_penalty": 0.1},
    "two auditors": {"divert_auditors": 2},
    "mixtures of fused margins": MIXTURES | {"divert_evidence": "fused"},
    "class-wise mixtures of losses": MIXTURES,
    "one mixture of losses": MIXTURES | {"divert_scope": "global"},
    "class-wise mixtures, Mahalanobis only": MIXTURES | {"divert_criterion": "mahalanobis"},
    "class-wise mixtures, cosine only": MIXTURES | {"divert_criterion": "cosine"},
    "class-wise mixtures, belief by quantile": MIXTURES | {"divert_belief": "quantile"},
    "class-wise mixtures, fixed belief": MIXTURES | {"divert_belief": "fixed"},
}
COMPARED = tuple(arm for arm in ARMS if arm not in ("vanilla", "oracle"))  # these two judge no label


def parse(setting: str) -> dict[str, Any]:
    """``DATASET:NOISE[:VARIANT][:RATE]`` as parameters; InputError when it has no such form."""
    dataset, _, rest = setting.partition(":")
    require(bool(dataset and rest), f"a setting is DATASET:NOISE[:VARIANT][:RATE], got {setting!r}")
    noise, _, rate = rest.rpartition(":")
    try:
        return {"dataset": dataset, "noise": noise, "rate": float(rate)}
    except ValueError:  # no rate: a kind that has none, or a variant
        return {"dataset": dataset, "noise": rest}


def judged(**params: Any) -> Config:
    """A cell of which labels are judged and nothing is distilled: at scale paper methods of trajectories, which that
    preset is of by default, would ask for whitened images in some cells."""
    return Config.from_params(**({"method": "random"} if params.get("preset") == "paper" else {}) | params)


def cells(
    settings: Sequence[str], arms: Sequence[str], seeds: Sequence[int], **common: Any
) -> Iterator[tuple[str, Config]]:
    """Names and configurations, seed by seed, so that an interrupted table covers all settings and arms before it gains
    a second seed."""
    for seed in seeds:
        for setting in settings:
            for arm in arms:
                yield arm, judged(**parse(setting), arm=arm, seed=seed, **common)


def ablation(settings: Sequence[str], seeds: Sequence[int], **common: Any) -> Iterator[tuple[str, Config]]:
    """The same for the variants of the dual loop."""
    for seed in seeds:
        for setting in settings:
            for variant, changed in VARIANTS.items():
                yield variant, judged(**parse(setting), arm="tad", seed=seed, **common, **changed)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", metavar="SETTING", help="default: all of the table")
    parser.add_argument("--arms", nargs="+", default=COMPARED, choices=ARMS, help="default: all that judge labels")
    parser.add_argument("--ablation", action="store_true", help="the dual loop with one setting changed at a time")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--root", help="folder of the data sets' files")
    parser.add_argument("--preset", default="lite", help="default: lite")
    parser.add_argument("--device", default="auto", help="default: auto")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="other integer or float settings")
    parser.add_argument("--out", default="runs/trust", help="folder of the stages (default: runs/trust)")
    parser.add_argument("--results", type=Path, help="default: results/trust.parquet, or results/ablation.parquet")
    parser.add_argument("--time-limit", type=float, metavar="MINUTES", help="start no cell after so long")
    options = parser.parse_args(arguments)
    started, failed = time.monotonic(), 0
    try:
        more = {name: float(value) for name, _, value in (text.partition("=") for text in options.set)}
        common = {"root": options.root, "preset": options.preset, "device": options.device, "out": options.out}
        if options.ablation:
            todo = list(ablation(options.settings or ABLATED, options.seeds, **common, **more))
        else:
            todo = list(cells(options.settings or SETTINGS, options.arms, options.seeds, **common, **more))
    except (InputError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    results = options.results or Path("results", "ablation.parquet" if options.ablation else "trust.parquet")
    for done, (name, config) in enumerate(todo):
        cell = f"[{done + 1}/{len(todo)}] {config.dataset} {config.noise} {config.rate:g} {name} {config.seed}"
        if options.time_limit is not None and time.monotonic() - started > 60 * options.time_limit:
            print(f"time is up: {len(todo) - done} of {len(todo)} cells are left; the same command goes on")
            break
        try:
            row = pipeline.trust_row(config, pipeline.divert(config))
        except Exception as error:  # one failing cell must not stop a table that takes hours
            failed += 1
            print(f"{cell}: failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            continue
        row |= {"variant": name} if options.ablation else {}
        pipeline.merge_results(results, pd.DataFrame([row]))
        auroc = "–" if row["trust_auroc"] is None else f"{row['trust_auroc']:.3f}"
        print(f"{cell}: AUROC {auroc}, flagged {row['flagged']:.3f}, {row['seconds_divert']:.0f} s", flush=True)
    (results.parent / ".results.lock").unlink(missing_ok=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
