"""How far trust is from what the same network could say if it were told the truth about all other samples.

    python benchmarks/informed.py --root DATA
    python benchmarks/informed.py --root DATA --settings cifar10:human:worse --arms tad --seeds 0

The informed auditor is trained on the *true* labels, for the epochs and with the settings of the auditors, on four
fifths of the samples at a time, and judges the fifth that it has not seen; it is given the true transition matrix, and
its predictions have the inverse temperature that serves it best. No method can have any of that. It is no upper bound
(the trust posterior pools two predictors), but where it fails, a network of this size can hardly correct labels of this
rate on images of this size.

A row has AUROC and the share of wrong labels that can be corrected with at least 85 % of pseudo-labels right, most
certain first, both for the informed auditor and for an arm. Runs found in ``--results`` are left alone; the stages are
kept under ``--out``, where ``benchmarks/trust.py`` puts them too. ``--time-limit MINUTES`` starts no run after that.
"""

import sys
from pathlib import Path

import pandas as pd
import torch
from refined import trained
from torch import Tensor
from trust import SETTINGS, common, in_time, parser, runs

from tadbook.tables import OURS, replace_rows
from tadlib import pipeline, trust
from tadlib.config import Config
from tadlib.errors import InputError, require
from tadlib.nn import speed
from tadlib.nn.training import one_hot, predict
from tadlib.noise import transition
from tadlib.rng import generator
from tadlib.store import load_table
from tadlib.trust.pooling import posterior

FOLDS = 5
RIGHT = 0.85  # of pseudo-labels
INVERSE_TEMPERATURES = [0.5 * 1.05**i for i in range(43)]  # up to 3.9


def held_out(config: Config, true_N: Tensor) -> Tensor:
    """p(y | x) (N, K) of networks trained on the true labels of the other folds."""
    data, net = pipeline.dataset(config), pipeline.network(config)
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


def corrected(certainty_N: Tensor, label_N: Tensor, noisy_N: Tensor, true_N: Tensor) -> float:
    """Largest share of wrong labels that pseudo-labels correct, most certain first, while :data:`RIGHT` of these are
    right."""
    new_n = (label_N != noisy_N).nonzero()[:, 0]
    new_n = new_n[certainty_N[new_n].argsort(descending=True, stable=True)]
    right_n = (label_N[new_n] == true_N[new_n]).double().cumsum(0)
    count_n = torch.arange(1, len(new_n) + 1, device=right_n.device)
    enough_n = right_n[right_n >= RIGHT * count_n]
    wrong = int((noisy_N != true_N).sum())
    return float(enough_n[-1]) / wrong if len(enough_n) and wrong else 0.0


def judged(p_NK: Tensor, noisy_N: Tensor, true_N: Tensor) -> dict[str, float | None]:
    """AUROC and corrected share of predictions joined with the true transition matrix, each at its best inverse
    temperature."""
    transition_KK = transition(true_N, noisy_N, p_NK.shape[1]).to(p_NK.device).double()
    found = []
    for b in INVERSE_TEMPERATURES:
        q_NK = posterior(b * p_NK.double().log(), noisy_N, transition_KK)
        certainty_N, label_N = q_NK.max(1)
        auroc = trust.auroc(q_NK.gather(1, noisy_N[:, None])[:, 0], noisy_N == true_N)
        found.append((auroc, corrected(certainty_N, label_N, noisy_N, true_N)))
    return {
        "informed_auroc": max((auroc for auroc, _ in found if auroc is not None), default=None),
        "informed_mended": max(share for _, share in found),
    }


def main(arguments: list[str] | None = None) -> int:
    made = parser(__doc__, "results/informed.parquet")
    made.add_argument("--arms", nargs="+", default=OURS, choices=OURS, help=f"default: {' '.join(OURS)}")
    options = made.parse_args(arguments)
    results = options.results or Path("results/informed.parquet")
    settings = options.settings or [setting for setting in SETTINGS if not setting.endswith(":none")]
    try:
        todo = runs(settings, options.arms, options.seeds, **common(options))
        require(all(c.noise != "none" for _, c in todo), "settings must be noisy ones, got noise none")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    known = set(load_table(results)["key"]) if results.exists() else set()
    speed.prepare(1)
    predictions: dict[tuple, Tensor] = {}  # true labels are the same under every noise
    for heading, _, config in in_time(todo, options.time_limit):
        refined_at = pipeline.divert(config)
        row = pipeline.trust_row(config, refined_at)
        if row["key"] in known:
            continue
        labels, refined = pipeline.load_labels(pipeline.inject_noise(config)), pipeline.load_refined(refined_at)
        assert labels.true_N is not None
        device = config.torch_device
        noisy_N, true_N, refined = labels.noisy_N.to(device), labels.true_N.to(device), refined.to(device)
        of = config.dataset, config.seed
        if of not in predictions:
            predictions[of] = held_out(config, true_N)
        p_NK = predictions[of]
        row |= {"informed_accuracy": (p_NK.argmax(1) == true_N).double().mean().item(), **judged(p_NK, noisy_N, true_N)}
        row["mended"] = corrected(refined.reliability, refined.label, noisy_N, true_N)
        replace_rows(results, pd.DataFrame([row]))
        print(
            f"{heading}: AUROC {row['trust_auroc']:.3f}, informed {row['informed_auroc']:.3f}; corrected "
            f"{row['mended']:.3f}, informed {row['informed_mended']:.3f}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
