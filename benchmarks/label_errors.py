"""Label errors by the same predictors: the trust posterior beside cleanlab's filter, disagreement and the loss.

    python benchmarks/label_errors.py --root DATA
    python benchmarks/label_errors.py --root DATA --sets cifar10:human:worse roman-numerals --predictors patches

A set is a data set with injected or human noise (``cifar10:human:worse``, ``cifar100:symmetric:.4``), the folder
``roman-numerals`` with its review, or a file of published out-of-fold probabilities under ``DATA/label-errors``. For
sets of images each of ``--predictors`` is a list joined by ``+``: ``patches``, ``embeddings:efficientnet-lite0``,
``patches+embeddings:efficientnet-lite0``; ``network`` is a network trained on four folds in turn, whose out-of-fold
probabilities are taken as those of a file are. For the others nothing is trained. ``cifar10:unseen:KIND`` has noise
of a kind that nothing was tuned on (:data:`UNSEEN`). Rows are kept as they come; those that are there are not made
again. Rivals get the probabilities of the noisy labels that the same predictor gives; of several predictors their
geometric mean.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from torch import Tensor
from trust import SETTINGS, parse

from tadlib import pipeline, store
from tadlib.config import Config, PosteriorConfig
from tadlib.errors import known
from tadlib.materials import dataset
from tadlib.rng import generator
from tadlib.trust import NoisyProblem, decisions, pooling, predictors, transition

PUBLISHED = ("cifar10-sparse20", "cifar10n-aggre", "cifar10n-worse", "roman-numerals")
NETWORK = "network"  # trained on four folds in turn, which takes longer than all else
LITE = "embeddings:efficientnet-lite0"
PREDICTORS = ("patches", LITE, f"patches+{LITE}", NETWORK)
UNSEEN = {
    "mixture": "each label to the next class at .2, and to any other at .2",
    "permutation": "half of the classes, chosen at random, in a circle at .4",
    "class-rates": "to any other class, at a rate of every class between 0 and .6",
    "dirichlet": "a share of .3 of every class, divided among the others at random",
}
SETS = (*SETTINGS, "cifar10:human:aggre", "roman-numerals", *(f"cifar10:unseen:{kind}" for kind in UNSEEN))


@dataclass(frozen=True)
class Judged:
    """``p`` (N, K) of the noisy labels, for rivals; trust (N,) and the noise rate of the posterior."""

    noisy: Tensor
    wrong: np.ndarray
    p: Tensor
    trust: Tensor
    rate: decisions.NoiseRate


def published(root: Path, name: str) -> Judged:
    """A set of published probabilities."""
    with np.load(root / "label-errors" / f"{name}.npz", allow_pickle=False) as file:
        p_NK, noisy_N, wrong_N = (file[part] for part in ("pred_probs", "labels", "wrong"))
    p_NK, noisy_N = torch.from_numpy(p_NK), torch.from_numpy(noisy_N).long()
    p_NK = p_NK / p_NK.sum(1, keepdim=True)
    found = pooling.unmixed(p_NK, noisy_N)
    return _judged(noisy_N, wrong_N, p_NK, [found])


def flips(kind: str, n_classes: int, random: torch.Generator) -> Tensor:
    """The transition matrix (K, K) of a noise of :data:`UNSEEN`."""
    known("unseen noise", kind, UNSEEN)
    eye, K = torch.eye(n_classes), n_classes
    others = (1 - eye) / (K - 1)
    if kind == "mixture":
        return 0.6 * eye + 0.2 * eye.roll(1, 1) + 0.2 * others
    if kind == "permutation":
        chosen, T_KK = torch.randperm(K, generator=random)[: K // 2], eye.clone()
        T_KK[chosen] = 0.6 * eye[chosen] + 0.4 * eye[chosen.roll(1)]
        return T_KK
    if kind == "class-rates":
        rate_K1 = 0.6 * torch.rand(K, 1, generator=random)
        return (1 - rate_K1) * eye + rate_K1 * others
    share_KK = -torch.rand(K, K, generator=random).log() * (1 - eye)  # Dirichlet(1, …, 1)
    return 0.7 * eye + 0.3 * share_KK / share_KK.sum(1, keepdim=True)


def unseen(what: dict[str, Any], seed: int, common: dict[str, Any]) -> str:
    """A file of labels with the noise ``unseen:KIND``, as the name of a noise."""
    kind = what["noise"].partition(":")[2]
    data = dataset(Config.from_params(**common, **what | {"noise": "none", "rate": 0.0}, seed=seed))
    random = generator(seed, "noise", f"unseen:{kind}")
    label_N = torch.multinomial(flips(kind, data.n_classes, random)[data.y_train.cpu()], 1, generator=random)[:, 0]
    path = Path(f"{common['out']}-unseen", f"{what['dataset']}-{kind}-{seed}.csv").resolve()  # beside the stages
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"index": data.index.cpu(), "label": label_N}).to_csv(path, index=False)
    return f"file:{path}"


def of_images(name: str, names: str, seed: int, common: dict[str, Any]) -> Judged:
    """A set of images, by leave-one-out regressions on patches and embeddings."""
    what = {} if name == "roman-numerals" else parse(name)
    if name == "roman-numerals":
        what = {"dataset": f"folder:{common['root']}/roman-numerals", "n_train": None}
    elif what["noise"].startswith("unseen:"):
        what["noise"] = unseen(what, seed, common)
    words = names.split("+")
    regressions = " ".join(word for word in words if word != NETWORK)
    config = Config.from_params(
        **common, **what, arm="tad-posterior", seed=seed, posterior_predictors=regressions or "patches"
    )
    data = dataset(config)
    problem = pipeline.noisy_problem(config, data, pipeline.load_labels(pipeline.inject_noise(config)))
    p_VNK, found = _regressed(config, problem) if regressions else ([], [])
    if NETWORK in words:
        p_VNK.append(_out_of_fold(config, problem, name))
        found.append(pooling.unmixed(p_VNK[-1], problem.noisy))
    logs = [p_NK.clamp_min(1e-6).log() / len(p_VNK) for p_NK in p_VNK]
    return _judged(problem.noisy, _wrong(name, problem, data, common), torch.stack(logs).sum(0).softmax(1), found)


def _out_of_fold(config: Config, problem: NoisyProblem, name: str) -> Tensor:
    """Probabilities of the noisy labels (N, K) by the networks of confident learning, kept in the folder of stages."""
    path = Path(config.out, "out_of_fold", f"{name}-{config.preset}-{config.seed}.safetensors".replace(":", "-"))
    if path.exists():
        return store.load_tensors(path)["p"]
    method = pipeline.trust_method(config.with_params(arm="confident-learning"))
    state = method.init(problem)
    for _ in range(method.epochs):
        method.step(problem, state)
    p_NK = method.out_of_fold(problem, state)
    path.parent.mkdir(parents=True, exist_ok=True)
    store.save_tensors(path, {"p": p_NK})
    return p_NK


def _regressed(config: Config, problem: NoisyProblem) -> tuple[list[Tensor], list[pooling.Prediction]]:
    """Of every regression the probabilities of the noisy labels (N, K), and the predictions of the posterior."""
    method = pipeline.trust_method(config)
    found = method.init(problem).predictions
    group_N, use_N = predictors.copies(problem.x), torch.ones(len(problem), dtype=torch.bool)
    regressions = [predictors.leave_one_out(z, problem.noisy_NK, use_N, group_N) for z in problem.embeddings]
    if "patches" in method.names:
        random = generator(problem.seed, problem.name, "patches")
        more = {"count": PosteriorConfig.filters, "mirror": method.flips, "generator": random}
        labels = problem.noisy_NK, use_N, group_N
        regressions.append(predictors.leave_one_out_of_patches(problem.x, *labels, **more))
    # LDA under T = I models the noisy labels
    statistics = [predictors.lda_statistics(r_NK, problem.noisy, group_N) for r_NK in regressions]
    return [_of_noisy(each) for each in statistics], found


def _of_noisy(statistics: predictors.LdaStatistics) -> Tensor:
    """p(ỹ | x) (N, K) at the likeliest scale."""
    eye_KK = torch.eye(len(statistics.share))

    def value(log_scale: Tensor) -> Tensor:
        p_NK = statistics.probabilities(eye_KK, log_scale.exp())
        return transition.log_likelihood(p_NK, statistics.noisy, eye_KK)

    [log_scale] = transition.ascend(value, [torch.tensor(0.0)], transition.STEPS)
    return statistics.probabilities(eye_KK, log_scale.exp())


def _wrong(name: str, problem: NoisyProblem, data: Any, common: dict[str, Any]) -> np.ndarray:
    if name != "roman-numerals":
        assert problem.true is not None
        return torch.ne(problem.noisy, problem.true).numpy()
    review = pd.read_csv(Path(common["root"], "roman-numerals", "verified.csv"))
    wrong = dict(zip((Path(path).name for path in review["path"]), review["label_is_wrong"], strict=True))
    return np.array([wrong[Path(path).name] for path in data.paths], dtype=bool)


def _judged(noisy_N: Tensor, wrong_N: np.ndarray, p_NK: Tensor, found: list[pooling.Prediction]) -> Judged:
    posterior = pooling.combined(found, noisy_N)
    trust_N = posterior.q.gather(1, noisy_N[:, None])[:, 0]
    return Judged(noisy_N, wrong_N, p_NK, trust_N, posterior.noise_rate)


def scores(judged: Judged) -> Iterator[tuple[str, np.ndarray, np.ndarray, float | None]]:
    """Method, doubt in each label (N,), flagged (N,), and the estimated share of wrong labels."""
    trust_N, noisy_N, p_NK = judged.trust.numpy(), judged.noisy, judged.p.double()
    flagged_N = decisions.flagged(judged.trust, PosteriorConfig.cost).numpy()
    yield "trust posterior", 1 - trust_N, flagged_N, judged.rate.estimate
    own_N = p_NK.gather(1, noisy_N[:, None])[:, 0].numpy()
    yield "argmax differs", 1 - own_N, torch.ne(p_NK.argmax(1), noisy_N).numpy(), None
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        print("cleanlab is not installed: its rows are left out", file=sys.stderr)
        return
    labels, p = noisy_N.numpy(), p_NK.numpy()
    quality_N = get_label_quality_scores(labels, p, method="normalized_margin")
    flagged_N = find_label_issues(labels, p, n_jobs=1)
    yield "cleanlab", 1 - quality_N, flagged_N, float(flagged_N.mean())


def rows(name: str, words: str, seed: int, judged: Judged) -> Iterator[dict[str, Any]]:
    """A row for each method."""
    wrong_N = judged.wrong.astype(bool)
    some_wrong = 0 < wrong_N.sum() < len(wrong_N)
    for method, doubt_N, flagged_N, rate in scores(judged):
        yield {
            "set": name,
            "predictors": words,
            "method": method,
            "seed": seed,
            "n": len(wrong_N),
            "n_classes": judged.p.shape[1],
            "wrong": wrong_N.mean(),
            "auroc": roc_auc_score(wrong_N, doubt_N) if some_wrong else None,
            "average_precision": average_precision_score(wrong_N, doubt_N) if some_wrong else None,
            "f1": f1_score(wrong_N, flagged_N) if some_wrong else None,
            "flagged": flagged_N.mean(),
            "brier": np.square(np.clip(doubt_N, 0, 1) - wrong_N).mean() if method != "cleanlab" else None,
            "noise_rate": rate,
            "noise_rate_low": judged.rate.low if method == "trust posterior" else None,
            "noise_rate_high": judged.rate.high if method == "trust posterior" else None,
        }


def main(arguments: list[str] | None = None) -> int:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--root", required=True, help="folder of the data sets' files")
    made.add_argument("--sets", nargs="+", metavar="SET", help="default: all")
    made.add_argument("--predictors", nargs="+", default=PREDICTORS, help="of sets of images")
    made.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    made.add_argument("--preset", default="lite")
    made.add_argument("--device", default="auto")
    made.add_argument("--out", default="runs/label_errors", help="folder of the stages")
    made.add_argument("--results", type=Path, default=Path("results", "label_errors.parquet"))
    options, failed = made.parse_args(arguments), 0
    common = {name: getattr(options, name) for name in ("root", "preset", "device", "out")} | {"method": "random"}
    todo: list[tuple[str, str, int]] = []
    for name in options.sets or [f"published:{name}" for name in PUBLISHED] + list(SETS):
        if name.startswith("published:"):
            todo.append((name, "probabilities", 0))
        else:
            todo += [(name, words, seed) for words in options.predictors for seed in options.seeds]
    there = pd.read_parquet(options.results) if options.results.exists() else None
    for name, words, seed in todo:
        if there is not None and len(there.query("set == @name and predictors == @words and seed == @seed")):
            continue
        started = time.monotonic()
        try:
            judged = (
                published(Path(options.root), name.partition(":")[2])
                if words == "probabilities"
                else of_images(name, words, seed, common)
            )
            table = pd.DataFrame(list(rows(name, words, seed, judged)))
        except Exception as error:  # one failing set must not stop the others
            failed += 1
            print(f"{name} {words} {seed}: failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            continue
        there = table if there is None else pd.concat([there, table], ignore_index=True)
        store.save_table(options.results, there)
        f1 = ", ".join(f"{m} {v:.3f}" for m, v in zip(table["method"], table["f1"], strict=True) if v is not None)
        print(f"{name} {words} {seed}: F1 {f1}; {time.monotonic() - started:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
