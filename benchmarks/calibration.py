"""Whether trust is a probability: bins of trust, Brier score, noise rate and transition matrix, beside the truth.

    python benchmarks/calibration.py --root DATA
    python benchmarks/calibration.py --root DATA --settings cifar10:human:worse --arms tad-posterior --seeds 1

A run is a setting (data set, noise, rate), an arm and a seed. It carries out the stages noise and divert under
``--out``, which keep what is finished, and puts one row into ``--results``. Of one seed of the posterior on human
labels it also keeps the images of ``found_errors.parquet`` beside it: those flagged with the highest certainty, and
needless flags. ``--time-limit MINUTES`` starts no run after that time; a later call goes on.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torchvision.io import encode_png
from trust import common, in_time, parser, runs

from tadbook.tables import replace_rows
from tadlib import pipeline, store
from tadlib.config import ARMS, Config
from tadlib.errors import InputError
from tadlib.materials import dataset
from tadlib.trust import RefinedSet

SETTINGS = ("cifar10:symmetric:.4", "cifar10:pairflip:.4", "cifar10:human:worse")
COMPARED = ("loss-filter", "tad", "tad-posterior")
BINS = 10
SHOWN = 1  # the seed whose found errors are kept
MOST_CERTAIN, NEEDLESS = 12, 6  # images that are kept of the flagged, and of those whose label is right


def binned(trust_N: np.ndarray, right_N: np.ndarray) -> dict[str, Any]:
    """Samples, mean trust and share of right labels of ``BINS`` equal bins of trust (None where a bin is empty), the
    Brier score, and the expected calibration error: |trust − share|, averaged over samples."""
    bin_N = np.minimum((trust_N * BINS).astype(int), BINS - 1)
    count_B = np.bincount(bin_N, minlength=BINS)
    trust_B, right_B = (np.bincount(bin_N, values, BINS) / count_B.clip(1) for values in (trust_N, right_N))
    return {
        "bin_count": count_B.tolist(),
        "bin_trust": [float(value) if n else None for n, value in zip(count_B, trust_B)],
        "bin_right": [float(value) if n else None for n, value in zip(count_B, right_B)],
        "brier": float(np.square(trust_N - right_N).mean()),
        "calibration_error": float((count_B * np.abs(trust_B - right_B)).sum() / len(trust_N)),
    }


def shares(true_N: Tensor, noisy_N: Tensor, n_classes: int) -> Tensor:
    """The true transition matrix (K, K): of the samples of each true class the share with each noisy label."""
    counts_KK = torch.bincount(true_N * n_classes + noisy_N, minlength=n_classes**2).reshape(n_classes, n_classes)
    return counts_KK / counts_KK.sum(1, keepdim=True)


def measured(config: Config, refined: RefinedSet, true_N: Tensor) -> dict[str, Any]:
    """What a row tells beside the setting. Arms other than the posterior estimate no noise rate and no matrix."""
    found = binned(refined.trust.double().numpy(), (refined.noisy == true_N).double().numpy())
    rate = [None] * 3 if refined.noise_rate is None else refined.noise_rate.tolist()
    found |= dict(zip(("noise_rate", "noise_rate_low", "noise_rate_high"), rate, strict=True))
    estimated = refined.transition if refined.posterior is not None else None
    return found | {
        "transition": None if estimated is None else estimated.double().flatten().tolist(),
        "transition_true": shares(true_N, refined.noisy, refined.n_classes).double().flatten().tolist(),
        "class_names": list(dataset(config).class_names),
    }


def gallery(config: Config, refined: RefinedSet, true_N: Tensor) -> pd.DataFrame:
    """Flagged images, the most certain suggestion first, and flagged images whose label is right, likewise.

    Columns: kind, index in the training set, the three classes by name, probability of the suggested one, the image as
    PNG at its own resolution; and how many images were flagged, how many of these wrong, of how many.
    """
    assert refined.posterior is not None
    assert refined.flagged is not None
    data = dataset(replace(config, resolution=None, zca=False, device="cpu"))
    probability_N, suggested_N = refined.posterior.max(1)
    wrong_N = refined.noisy != true_N
    flagged_N = refined.flagged & (suggested_N != refined.noisy)
    about: dict[str, Any] = {
        "flagged": int(refined.flagged.sum()),
        "flagged_wrong": int((refined.flagged & wrong_N).sum()),
    }
    about |= {"n_train": len(true_N), "resolution": config.resolution}
    order_N, rows = probability_N.argsort(descending=True, stable=True).tolist(), []
    for kind, mask_N, most in (("certain", flagged_N, MOST_CERTAIN), ("needless", flagged_N & ~wrong_N, NEEDLESS)):
        for i in [i for i in order_N if mask_N[i]][:most]:
            pixels = (255 * data.pixels(data.x_train[i : i + 1])[0].clamp(0, 1)).round().byte()
            names = [data.class_names[int(label[i])] for label in (refined.noisy, suggested_N, true_N)]
            row: dict[str, Any] = dict(zip(("noisy", "suggested", "true"), names, strict=True)) | {"kind": kind}
            row |= {"index": int(data.index[i]), "probability": float(probability_N[i])}
            rows.append(row | {"png": encode_png(pixels).numpy().tobytes()} | about)
    return pd.DataFrame(rows)


def main(arguments: list[str] | None = None) -> int:
    made = parser(__doc__, "results/calibration.parquet")
    made.set_defaults(seeds=[1, 2, 3], out="runs/calibration", results=Path("results", "calibration.parquet"))
    made.add_argument("--arms", nargs="+", default=COMPARED, choices=ARMS, help=f"default: {' '.join(COMPARED)}")
    options: argparse.Namespace = made.parse_args(arguments)
    failed = 0
    try:
        todo = runs(options.settings or SETTINGS, options.arms, options.seeds, **common(options))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for heading, _, config in in_time(todo, options.time_limit):
        try:
            path = pipeline.divert(config)
            refined, true_N = pipeline.load_refined(path), pipeline.load_labels(pipeline.inject_noise(config)).true_N
            assert true_N is not None
            row = pipeline.trust_row(config, path) | measured(config, refined, true_N)
            if config.noise.startswith("human") and refined.flagged is not None and config.seed == SHOWN:
                of = {name: row[name] for name in ("dataset", "noise", "seed", "preset", "commit", "config_hash")}
                store.save_table(
                    options.results.parent / "found_errors.parquet", gallery(config, refined, true_N).assign(**of)
                )
        except Exception as error:  # one failing run must not stop a table that takes an hour
            failed += 1
            print(f"{heading}: failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            continue
        replace_rows(options.results, pd.DataFrame([row]))
        text = f"Brier {row['brier']:.3f}, calibration error {row['calibration_error']:.3f}"
        print(f"{heading}: {text}, {row['seconds_divert']:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
