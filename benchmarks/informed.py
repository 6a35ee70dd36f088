"""How far trust is from what the same network could say if it were told the truth about all other samples.

    python benchmarks/informed.py --root DATA
    python benchmarks/informed.py --root DATA --settings cifar10:human:worse --seeds 0

The informed auditor is trained on the *true* labels, for the epochs and with the settings of the auditors, on four
fifths of the samples at a time, and judges the fifth that it has not seen; it is told the true transition matrix, and
how much an image counts is the exponent that serves it best. No method can have any of that. It is no upper bound (the
dual loop pools several views), but where it fails, labels of this rate on images of this size are hardly to be mended
by a network of this size.

A row has AUROC and the share of wrong labels that can be mended with at least 85 % of new labels right, surest first,
both for the informed auditor and for the arm tad. Cells found in ``--results`` are left alone; the stages of tad are
kept under ``--out``, where ``benchmarks/trust.py`` puts them too.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from refined import trained
from torch import Tensor
from trust import SETTINGS, cells

from tadlib import cell, pipeline, posterior, trust
from tadlib.config import Config
from tadlib.errors import InputError, require
from tadlib.nn import speed
from tadlib.nn.training import one_hot, predict
from tadlib.noise import transition
from tadlib.rng import generator
from tadlib.store import load_table

FOLDS = 5
RIGHT = 0.85  # of new labels


def left_out(config: Config, true_N: Tensor) -> Tensor:
    """p(y | x) (N, K) of networks trained on the true labels of the other folds."""
    data, net = cell.dataset(config), cell.network(config)
    n = len(true_N)
    fold_N = torch.randperm(n, generator=generator(config.seed, "informed")) % FOLDS
    p_NK = torch.empty(n, data.n_classes, device=config.torch_device)
    for fold in range(FOLDS):
        others_n = (fold_N != fold).nonzero()[:, 0].to(p_NK.device)
        its_n = (fold_N == fold).nonzero()[:, 0].to(p_NK.device)
        y_nK, ones_n = one_hot(true_N[others_n], data.n_classes), torch.ones(len(others_n), device=p_NK.device)
        *_, theta_P = trained(config, data.x_train[others_n], y_nK, ones_n, "informed", fold)
        p_NK[its_n] = predict(net, theta_P, data.x_train[its_n])[0].softmax(1)
    return p_NK


def mended(sureness_N: Tensor, label_N: Tensor, noisy_N: Tensor, true_N: Tensor) -> float:
    """Largest share of wrong labels that new ones put right, surest first, while :data:`RIGHT` of these are right."""
    new_n = (label_N != noisy_N).nonzero()[:, 0]
    new_n = new_n[sureness_N[new_n].argsort(descending=True, stable=True)]
    right_n = (label_N[new_n] == true_N[new_n]).double().cumsum(0)
    count_n = torch.arange(1, len(new_n) + 1, device=right_n.device)
    enough_n = right_n[right_n >= RIGHT * count_n]
    wrong = int((noisy_N != true_N).sum())
    return float(enough_n[-1]) / wrong if len(enough_n) and wrong else 0.0


def judged(p_NK: Tensor, noisy_N: Tensor, true_N: Tensor) -> dict[str, float | None]:
    """AUROC and mended share of predictions joined with the true transition matrix, each at its best exponent."""
    transition_KK = transition(true_N, noisy_N, p_NK.shape[1]).to(p_NK.device).double()
    found = []
    for b in posterior.SHARPNESS:
        q_NK = posterior.posterior(p_NK.double().log(), noisy_N, transition_KK, b)
        sureness_N, label_N = q_NK.max(1)
        auroc = trust.auroc(q_NK.gather(1, noisy_N[:, None])[:, 0], noisy_N == true_N)
        found.append((auroc, mended(sureness_N, label_N, noisy_N, true_N)))
    return {
        "informed_auroc": max((auroc for auroc, _ in found if auroc is not None), default=None),
        "informed_mended": max(share for _, share in found),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    noisy = [setting for setting in SETTINGS if not setting.endswith(":none")]
    parser.add_argument("--settings", nargs="+", default=noisy, metavar="SETTING", help="default: all noisy ones")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--root", help="folder of the data sets' files")
    parser.add_argument("--preset", default="lite", help="default: lite")
    parser.add_argument("--device", default="auto", help="default: auto")
    parser.add_argument("--out", default="runs/trust", help="folder of the stages (default: runs/trust)")
    parser.add_argument("--results", type=Path, default=Path("results/informed.parquet"))
    options = parser.parse_args(arguments)
    common: dict[str, Any] = {"root": options.root, "preset": options.preset, "device": options.device}
    try:
        todo = [c for _, c in cells(options.settings, ["tad"], options.seeds, out=options.out, **common)]
        require(all(c.noise != "none" for c in todo), "settings must be noisy ones, got noise none")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    known = set(load_table(options.results)["key"]) if options.results.exists() else set()
    speed.prepare(1)
    predictions: dict[tuple, Tensor] = {}  # true labels are the same under every noise
    for config in todo:
        diverted_at = pipeline.divert(config)
        row = pipeline.trust_row(config, diverted_at)
        if row["key"] in known:
            continue
        labels, refined = pipeline.load_labels(pipeline.inject_noise(config)), pipeline.load_refined(diverted_at)
        device = config.torch_device
        noisy_N, true_N, refined = labels.noisy_N.to(device), labels.true_N.to(device), refined.to(device)
        of = config.dataset, config.seed
        if of not in predictions:
            predictions[of] = left_out(config, true_N)
        p_NK = predictions[of]
        row |= {"informed_accuracy": (p_NK.argmax(1) == true_N).double().mean().item(), **judged(p_NK, noisy_N, true_N)}
        row["mended"] = mended(refined.reliability, refined.label, noisy_N, true_N)
        pipeline.merge_results(options.results, pd.DataFrame([row]))
        print(
            f"{config.dataset} {config.noise} {config.rate:g} {config.seed}: AUROC {row['trust_auroc']:.3f}, informed "
            f"{row['informed_auroc']:.3f}; mended {row['mended']:.3f}, informed {row['informed_mended']:.3f}",
            flush=True,
        )
    (options.results.parent / ".results.lock").unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
