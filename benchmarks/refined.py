"""What a network learns from each set of labels: noisy, trusted alone, hard, refined, true.

    python benchmarks/refined.py --root DATA
    python benchmarks/refined.py --root DATA --settings cifar10:pairflip:.4 --arms tad --seeds 0

The sets are those of the refined set of an arm: ``trusted`` are its trusted samples at their hard-label weights,
``trust`` the same samples at their trust, ``alone`` has all hard labels and nothing else, and ``refined`` is the
refined set, with the soft labels of what is left; ``given`` are all noisy labels. The same network is trained on each
for the epochs and with the settings of the auditors, and tested on the true test labels after each of the last
:data:`TESTED` epochs; the mean of these accuracies varies less than the last one. Finished runs are found in
``--results`` and left alone; the stages before are kept under ``--out``, where ``benchmarks/trust.py`` puts them too.
``--time-limit MINUTES`` starts no run after that.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from trust import SETTINGS, common, in_time, parser, runs

from tadbook.tables import OURS, replace_rows
from tadlib import pipeline, trust
from tadlib.config import Config
from tadlib.errors import InputError
from tadlib.nn import speed
from tadlib.nn.training import Sgd, State, accuracy, one_hot, train_epoch
from tadlib.rng import generator
from tadlib.store import load_table

TESTED = 5  # last epochs, whose accuracies are averaged


def trained(config: Config, x_NCHW: Tensor, y_NK: Tensor, w_N: Tensor, *name: Any) -> Iterator[Tensor]:
    """Parameters (P,) after every epoch of a network trained from scratch as auditors are, on these labels alone.

    ``name`` is that of its random numbers.
    """
    net, auditor = pipeline.network(config), config.auditor
    sgd = Sgd(auditor.lr, auditor.momentum, auditor.weight_decay)
    random = generator(config.seed, *name, device=config.torch_device)
    how: dict[str, Any] = {"batch": auditor.batch, "strategy": auditor.augmentation, "generator": random}
    state = State(net.init(config.seed, *name))
    for _ in range(auditor.epochs):
        state = train_epoch(net, state, x_NCHW, y_NK, w_N, sgd=sgd, **how)
        yield state.theta


def accuracies(config: Config) -> dict[str, float]:
    """Test accuracy after training on each set, as fractions, averaged over the last epochs."""
    refined = pipeline.load_refined(pipeline.divert(config)).to(config.torch_device)
    true_N = pipeline.load_labels(pipeline.inject_noise(config)).true_N
    assert true_N is not None
    data, net = pipeline.dataset(config), pipeline.network(config)
    ones, weight_N = torch.ones_like(refined.weight), refined.label_weight
    noisy_NK, trusted_N = one_hot(refined.noisy, data.n_classes), refined.space == trust.TRUSTED
    sets = {
        "given": (noisy_NK, ones),
        "trusted": (noisy_NK, weight_N * trusted_N * (refined.label == refined.noisy)),
        "trust": (noisy_NK, refined.trust.float() * trusted_N),
        "alone": (one_hot(refined.label, data.n_classes), weight_N),
        "refined": (refined.y, refined.weight),
        "true": (one_hot(true_N.to(ones.device), data.n_classes), ones),
    }
    found = {}
    for name, (y_NK, w_N) in sets.items():
        tested = [
            accuracy(net, theta_P, data.x_test, data.y_test)
            for epoch, theta_P in enumerate(trained(config, data.x_train, y_NK, w_N, "refined"))
            if epoch >= config.auditor.epochs - TESTED
        ]
        found[name] = sum(tested) / len(tested)
    return found


def main(arguments: list[str] | None = None) -> int:
    made = parser(__doc__, "results/refined.parquet")
    made.add_argument("--arms", nargs="+", default=OURS, choices=OURS, help=f"default: {' '.join(OURS)}")
    options = made.parse_args(arguments)
    results = options.results or Path("results/refined.parquet")
    try:
        todo = runs(options.settings or SETTINGS, options.arms, options.seeds, **common(options))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    known = set(load_table(results)["key"]) if results.exists() else set()
    speed.prepare(1)
    for heading, _, config in in_time(todo, options.time_limit):
        row = pipeline.trust_row(config, pipeline.divert(config))
        if row["key"] in known:
            continue
        found = accuracies(config)
        row |= {f"accuracy_{name}": value for name, value in found.items()}
        replace_rows(results, pd.DataFrame([row]))
        print(f"{heading}: {', '.join(f'{name} {value:.3f}' for name, value in found.items())}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
