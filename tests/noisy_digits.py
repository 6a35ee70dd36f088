"""What the tests of trust methods share: a small problem, a network that audits it, and comparisons."""

import warnings
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from tadlib import data, noise, trust
from tadlib.config import AuditorConfig
from tadlib.nn.networks import Network, NetworkSpec
from tadlib.nn.training import Sgd, State, train_epoch
from tadlib.store import StageFolder
from tadlib.trust import RECALIBRATED, TRUSTED, UNTRUSTED, NoisyProblem, RefinedSet, TrustMethod, base

K = 10
SMALL = Network(NetworkSpec((1, 8, 8), K, width=4, depth=2))
WIDE = Network(NetworkSpec((1, 8, 8), K, width=16, depth=2))


@lru_cache
def digits(
    n: int | None = 300, kind: str = "pairflip", rate: float = 0.3, net: Network = SMALL, seed: int = 0
) -> NoisyProblem:
    """``n`` digits with label noise, and their true labels."""
    loaded = data.load_dataset("digits", n_train=n)
    labels = noise.inject(loaded.y_train, kind, rate, n_classes=K, seed=seed)
    return NoisyProblem(net, loaded.x_train, labels.noisy_N, K, seed, true=labels.true_N)


def same_bits(a: RefinedSet, b: RefinedSet) -> bool:
    """Whether two refined sets have the same tensors."""
    tensors = [name for name, value in vars(a).items() if isinstance(value, torch.Tensor)]
    assert {"noisy", "y", "weight", "trust", "space", "reliability"} <= set(tensors)
    assert tensors == [name for name, value in vars(b).items() if isinstance(value, torch.Tensor)]
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in tensors)


def assert_consistent(refined: RefinedSet, auditor: AuditorConfig) -> None:
    """What holds of every refined set with the three spaces, whatever the settings."""
    n = len(refined.noisy)
    trusted, new, untrusted = (refined.space == s for s in (TRUSTED, RECALIBRATED, UNTRUSTED))
    assert (trusted | new | untrusted).all()
    assert (refined.label[new] != refined.noisy[new]).all()
    assert ((refined.weight >= 0) & (refined.weight <= 1.0001)).all()
    assert ((refined.trust >= 0) & (refined.trust <= 1)).all()
    torch.testing.assert_close(refined.y.sum(1), torch.ones(n), rtol=1e-5, atol=1e-5)
    assert torch.bincount(refined.noisy[trusted], minlength=K).min() >= 1
    assert refined.space_history.shape == (auditor.epochs, n)
    assert torch.equal(refined.space_history[-1], refined.space)
    assert (refined.space_history[: auditor.warmup - 1] == TRUSTED).all()
    assert not any(value.requires_grad for value in vars(refined).values() if isinstance(value, torch.Tensor))


def plain_thetas(problem: NoisyProblem, config: AuditorConfig) -> list[torch.Tensor]:
    """Parameters after every epoch of plain training on the noisy labels."""
    start = base.Auditor.new(problem)
    state, ones, found = State(start.theta, None), torch.ones(len(problem)), []
    sgd = Sgd(config.lr, config.momentum, config.weight_decay)
    how = {"sgd": sgd, "batch": config.batch, "strategy": config.augmentation, "generator": start.generator}
    for _ in range(config.epochs):
        state = train_epoch(problem.net, state, problem.x, problem.noisy_NK, ones, **how)
        found.append(state.theta)
    return found


def resumed(method: TrustMethod, problem: NoisyProblem, at: int, folder: Path) -> RefinedSet:
    """The refined set of a run that is interrupted after ``at`` epochs and goes on from the files of a checkpoint."""
    folder.mkdir(exist_ok=True)
    stage = StageFolder(folder)

    class Killed(Exception):
        pass

    def save_then_die(state):
        if len(state.rows) == at:
            stage.save_checkpoint(*trust.checkpoint(state))
            raise Killed

    try:
        trust.refine(method, problem, on_epoch=save_then_die)
    except Killed:
        return trust.refine(method, problem, resume=stage.load_checkpoint())
    raise AssertionError(f"the method has fewer than {at} epochs")


def without_truth(problem: NoisyProblem) -> NoisyProblem:
    """The same problem, of which the true labels are unknown."""
    return replace(problem, true=None)


def sklearn_trust(u: np.ndarray, max_iter: int = 99, tol: float = 1e-6) -> tuple[np.ndarray, bool]:
    """Posterior of the lower component of :func:`sklearn_mixture`, held where it would rise with u, and whether the
    components separate at δ = .5.

    Log-odds of unequal variances are a parabola; beyond its vertex they keep the value of the vertex.
    """
    model, order = sklearn_mixture(u, max_iter, tol)
    mean, variance = model.means_[order, 0], model.covariances_[order, 0, 0]
    vertex = (mean[0] / variance[0] - mean[1] / variance[1]) / (1 / variance[0] - 1 / variance[1])
    held = np.maximum(u, vertex) if variance[0] < variance[1] else np.minimum(u, vertex)
    separated = mean[1] - mean[0] >= 0.5 * np.sqrt(variance).sum()
    return model.predict_proba(held[:, None])[:, order[0]], bool(separated)


def sklearn_mixture(u: np.ndarray, max_iter: int = 99, tol: float = 1e-6) -> tuple[GaussianMixture, np.ndarray]:
    """scikit-learn's EM from the halves below and above the mid-range, and the order of its components.

    Its initialisation is the first M-step of ours, which therefore has one iteration more.
    """
    upper = u > (u.min() + u.max()) / 2
    halves = u[~upper], u[upper]
    model = GaussianMixture(
        2,
        means_init=[[half.mean()] for half in halves],
        weights_init=[len(half) / len(u) for half in halves],
        precisions_init=[[[1 / (half.var() + 1e-4)]] for half in halves],
        reg_covar=1e-4,
        tol=tol,
        max_iter=max_iter,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(u[:, None])
    return model, model.means_[:, 0].argsort()
