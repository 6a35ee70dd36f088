"""What a network learns from each set of labels: given, trusted alone, in use, refined, true.

    python benchmarks/refined.py --root DATA
    python benchmarks/refined.py --root DATA --settings cifar10:pairflip:.4 --seeds 0

The sets are those of the arm tad: ``trusted`` are its samples trusted as given, at the weights of their labels in use,
``trust`` the same samples at their trust, ``alone`` has all labels in use and nothing else, and ``refined`` is the
refined set, with soft labels of what is not in use. The same network is trained on each for the epochs and with the
settings of the auditors, and tested on the true test labels after each of the last :data:`TESTED` epochs; the mean of
these accuracies swings less than the last one. Finished cells are found in ``--results`` and left alone; the stages
before are kept under ``--out``, where ``benchmarks/trust.py`` puts them too.
``--time-limit MINUTES`` starts no cell after that.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from trust import SETTINGS, cells

from tadlib import cell, diversion, pipeline
from tadlib.config import Config
from tadlib.errors import InputError
from tadlib.nn import speed
from tadlib.nn.training import State, accuracy, one_hot, train_epoch
from tadlib.rng import generator
from tadlib.store import load_table

TESTED = 5  # last epochs, whose accuracies are averaged


def trained(config: Config, x_NCHW: Tensor, y_NK: Tensor, w_N: Tensor, *name: Any) -> Iterator[Tensor]:
    """Parameters (P,) after every epoch of a network trained from scratch as auditors are, on these labels alone.

    ``name`` is that of its random numbers.
    """
    net, loop = cell.network(config), config.divert
    random = generator(config.seed, *name, device=config.torch_device)
    state = State(net.init(config.seed, *name))
    for epoch in range(loop.epochs):
        state = train_epoch(
            net,
            state,
            x_NCHW,
            y_NK,
            w_N,
            sgd=loop.sgd(epoch),
            batch=loop.batch,
            strategy=loop.augmentation,
            generator=random,
        )
        yield state.theta


def accuracies(config: Config) -> dict[str, float]:
    """Test accuracy after training on each set, as fractions, averaged over the last epochs."""
    refined = pipeline.load_refined(pipeline.divert(config)).to(config.torch_device)
    true_N = pipeline.load_labels(pipeline.inject_noise(config)).true_N
    assert true_N is not None
    data, net, epochs = cell.dataset(config), cell.network(config), config.divert.epochs
    ones = torch.ones_like(refined.weight)
    noisy_NK, trusted_N = one_hot(refined.given, data.n_classes), refined.space == diversion.TRUSTED
    sets = {
        "given": (noisy_NK, ones),
        "trusted": (noisy_NK, refined.in_use * trusted_N * (refined.label == refined.given)),
        "trust": (noisy_NK, refined.trust.float() * trusted_N),
        "alone": (one_hot(refined.label, data.n_classes), refined.in_use),
        "refined": (refined.y, refined.weight),
        "true": (one_hot(true_N.to(ones.device), data.n_classes), ones),
    }
    found = {}
    for name, (y_NK, w_N) in sets.items():
        tested = [
            accuracy(net, theta_P, data.x_test, data.y_test)
            for epoch, theta_P in enumerate(trained(config, data.x_train, y_NK, w_N, "refined"))
            if epoch >= epochs - TESTED
        ]
        found[name] = sum(tested) / len(tested)
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", default=SETTINGS, metavar="SETTING", help="default: all of the table")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--root", help="folder of the data sets' files")
    parser.add_argument("--preset", default="lite", help="default: lite")
    parser.add_argument("--device", default="auto", help="default: auto")
    parser.add_argument("--out", default="runs/trust", help="folder of the stages (default: runs/trust)")
    parser.add_argument("--results", type=Path, default=Path("results/refined.parquet"))
    parser.add_argument("--time-limit", type=float, metavar="MINUTES", help="start no cell after so long")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    common: dict[str, Any] = {"root": options.root, "preset": options.preset, "device": options.device}
    try:
        todo = list(cells(options.settings, ["tad"], options.seeds, out=options.out, **common))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    known = set(load_table(options.results)["key"]) if options.results.exists() else set()
    speed.prepare(1)
    for done, (_, config) in enumerate(todo):
        if options.time_limit is not None and time.monotonic() - started > 60 * options.time_limit:
            print(f"time is up: {len(todo) - done} of {len(todo)} cells are left; the same command goes on")
            break
        row = pipeline.trust_row(config, pipeline.divert(config))
        if row["key"] in known:
            continue
        found = accuracies(config)
        row |= {f"accuracy_{name}": value for name, value in found.items()}
        pipeline.merge_results(options.results, pd.DataFrame([row]))
        text = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
        print(
            f"[{done + 1}/{len(todo)}] {config.dataset} {config.noise} {config.rate:g} {config.seed}: {text}",
            flush=True,
        )
    (options.results.parent / ".results.lock").unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
