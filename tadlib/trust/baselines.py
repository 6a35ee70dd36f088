"""Baselines and rivals: all labels as they are, the true ones, and noisy-label methods of the literature.

Legend: N samples, B batch, K classes, P flat parameters.

Cost in passes of one network over the training set, where E is ``epochs`` of the auditor's settings: the loss filter
and GCE take E; co-teaching E, shared by its two networks (E/2 epochs of both, rounded up); confident learning 3 E, for
each of its four networks is trained for E epochs on three quarters of the samples. No rival knows the noise, and none
relabels: trusted samples have weight 1, the others 0.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import grad
from torch.nn.functional import cross_entropy

from tadlib.config import AuditorConfig
from tadlib.errors import InputError, require
from tadlib.nn import augment
from tadlib.nn.training import Sgd, batches, predict
from tadlib.trust import mixture
from tadlib.trust.base import TINY, Auditor, NoisyProblem, RefinedSet

FOLDS = 4  # of confident learning
GCE_Q = 0.7  # q of generalised cross entropy, as published


@dataclass
class Networks:
    """State of the rivals: networks in training, and one row an epoch."""

    auditors: list[Auditor]
    rows: list[dict]


@dataclass(frozen=True)
class Labels:
    """No training: the noisy labels as they are (vanilla), or the true ones (oracle)."""

    true: bool = False
    epochs: int = 0

    def init(self, problem: NoisyProblem) -> Networks:
        """Nothing to train. InputError where true labels are asked for and unknown."""
        if self.true and problem.true is None:
            raise InputError("arm oracle needs the true labels, which this data set does not have")
        return Networks([], [])

    def step(self, problem: NoisyProblem, state: Networks) -> None:
        """Nothing to do."""

    def result(self, problem: NoisyProblem, state: Networks) -> RefinedSet:
        """All samples at weight 1."""
        label_N = problem.true.to(problem.x.device) if self.true and problem.true is not None else problem.noisy
        return RefinedSet.of_labels(problem, label_N)


@dataclass(frozen=True)
class LossFilter:
    """DivideMix's filter (Li et al. 2020) after E epochs of plain training on the noisy labels.

    One two-component mixture of the losses of all classes together; a sample is trusted iff the posterior of the lower
    component exceeds one half. With ``gce`` the network is trained with generalised cross entropy (Zhang & Sabuncu
    2018, eq. 6) instead: its authors train the final network with it; that a mixture then sorts the samples is our
    choice.
    """

    auditor: AuditorConfig
    gce: bool = False

    @property
    def epochs(self) -> int:
        """E."""
        return self.auditor.epochs

    def init(self, problem: NoisyProblem) -> Networks:
        """A fresh network."""
        return Networks([Auditor.new(problem)], [])

    def step(self, problem: NoisyProblem, state: Networks) -> None:
        """One epoch on all noisy labels."""
        more = {"loss_fn": generalised_cross_entropy} if self.gce else {}
        w_N = torch.ones(len(problem), device=problem.x.device)
        state.auditors[0].train(problem, self.auditor, problem.noisy_NK, w_N, **more)
        state.rows.append({"epoch": len(state.rows)})

    def result(self, problem: NoisyProblem, state: Networks) -> RefinedSet:
        """The samples that pass; of every class one at least."""
        return RefinedSet.of_trusted(problem, *_filtered(problem, losses(problem, state.auditors[0])), state.rows)


def _filtered(problem: NoisyProblem, loss_N: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior (N,) of the lower component of one mixture, and the mask (N,) of the samples that pass."""
    split = mixture.split(loss_N, torch.zeros_like(problem.noisy), 1, delta=0.0)
    return split.w, split.above(0.5) | mixture.smallest(loss_N, problem.noisy, problem.n_classes, 1)


def losses(problem: NoisyProblem, auditor: Auditor) -> Tensor:
    """Cross entropy of every noisy label (N,), in evaluation mode."""
    logits_NK, _ = predict(problem.net, auditor.theta, problem.x)
    return -logits_NK.log_softmax(1).gather(1, problem.noisy[:, None])[:, 0]


def generalised_cross_entropy(logits_BK: Tensor, y_BK: Tensor, w_B: Tensor, q: float = GCE_Q) -> Tensor:
    """Σ_k y_k (1 − p_k^q)/q, averaged with weights: cross entropy as q → 0, mean absolute error at q = 1."""
    # the power by way of the logarithm: p^q has no finite slope at 0
    values_B = (y_BK * (1 - (q * logits_BK.log_softmax(1)).exp())).sum(1) / q
    return (w_B * values_B).sum() / w_B.sum().clamp_min(TINY)


@dataclass
class CoTeachingState(Networks):
    """``suspicion`` (N,) float64: ranks of losses, added over the second half of the epochs."""

    suspicion: Tensor


@dataclass(frozen=True)
class CoTeaching:
    """Co-teaching (Han et al. 2018): of every batch each network learns the samples that its peer finds easiest.

    The share that a batch leaves out grows, epoch by epoch, from 0 to the forget rate τ: 1 − R(t) = τ·min(t/T, 1), with
    T = ``warmup``/2 epochs (theirs: 10 of 200). They are told the noise rate and use it as τ. Here, unless
    ``forget_rate`` is given, τ is the share of samples that one mixture of both networks' mean loss finds wrong,
    estimated anew in each epoch (our choice). Trust is 1 minus the mean rank of that loss over the second half of the
    epochs; a sample is trusted unless it is among the share τ of the least trusted (our choice).
    """

    auditor: AuditorConfig
    forget_rate: float | None = None

    def __post_init__(self) -> None:
        fits = self.forget_rate is None or 0 <= self.forget_rate < 1
        require(fits, f"forget_rate must be in [0, 1), got {self.forget_rate}")

    @property
    def epochs(self) -> int:
        """E/2, rounded up: two networks share the budget."""
        return -(-self.auditor.epochs // 2)

    def init(self, problem: NoisyProblem) -> CoTeachingState:
        """Two fresh networks."""
        suspicion_N = torch.zeros(len(problem), dtype=torch.float64, device=problem.x.device)
        return CoTeachingState([Auditor.new(problem, a) for a in range(2)], [], suspicion_N)

    def step(self, problem: NoisyProblem, state: CoTeachingState) -> None:
        """One epoch of both networks on the same batches."""
        from scipy.stats import rankdata  # here: it takes half a second to import

        epoch, full = len(state.rows), max(1, self.auditor.warmup // 2)
        tau = state.rows[-1]["forget_rate"] if state.rows else self.forget_rate or 0.0
        forget = tau * min(epoch / full, 1.0)
        self.exchange(problem, state.auditors, forget)
        loss_N = (losses(problem, state.auditors[0]) + losses(problem, state.auditors[1])) / 2
        if self.forget_rate is None:
            tau = 1 - _filtered(problem, loss_N)[1].double().mean().item()
        if epoch >= self.epochs // 2:
            rank_N = torch.from_numpy(rankdata(loss_N.cpu().numpy())).to(loss_N.device) - 0.5
            state.suspicion = state.suspicion + rank_N / len(rank_N)
        state.rows.append({"epoch": epoch, "forgotten": forget, "forget_rate": tau})

    def result(self, problem: NoisyProblem, state: CoTeachingState) -> RefinedSet:
        """The share 1 − τ of the most trusted samples; of every class one at least."""
        trust_N = 1 - state.suspicion / (self.epochs - self.epochs // 2)
        kept = round((1 - state.rows[-1]["forget_rate"]) * len(trust_N))
        trusted_N = mixture.smallest(-trust_N, problem.noisy, problem.n_classes, 1)
        trusted_N[trust_N.argsort(descending=True, stable=True)[:kept]] = True
        return RefinedSet.of_trusted(problem, trust_N, trusted_N, state.rows)

    def exchange(self, problem: NoisyProblem, auditors: list[Auditor], forget: float) -> None:
        """Each network learns the (1 − forget) share of a batch with the smallest losses of the other."""
        config, random = self.auditor, auditors[0].generator
        sgd = Sgd(config.lr, config.momentum, config.weight_decay)

        def loss(theta_2P, x_B, noisy_B, kept):
            l_2B = [cross_entropy(problem.net(theta_P, x_B), noisy_B, reduction="none") for theta_P in theta_2P]
            first, second = (l_B.detach().topk(kept, largest=False).indices for l_B in l_2B)
            return l_2B[0][second].mean() + l_2B[1][first].mean()

        step = grad(loss)
        for index_B in batches(len(problem), config.batch, random):
            draws = augment.draw(config.augmentation, len(index_B), random)
            x_B = augment.apply(draws, problem.x[index_B])
            kept = max(1, round((1 - forget) * len(index_B)))
            gradients = step(tuple(a.theta for a in auditors), x_B, problem.noisy[index_B], kept)
            for auditor, g_P in zip(auditors, gradients, strict=True):
                auditor.theta, auditor.velocity = sgd.step(auditor.theta, g_P, auditor.velocity)


@dataclass
class ConfidentState(Networks):
    """``fold`` (N,) of every sample."""

    fold: Tensor


@dataclass(frozen=True)
class ConfidentLearning:
    """Confident learning (Northcutt et al. 2021), by the package cleanlab, from out-of-fold predictions.

    Folds hold equal shares of every class. Trust is cleanlab's label quality (self-confidence), a sample is trusted
    unless ``find_label_issues`` finds it mislabelled; all with cleanlab's defaults.
    """

    auditor: AuditorConfig

    @property
    def epochs(self) -> int:
        """E for every fold."""
        return FOLDS * self.auditor.epochs

    def init(self, problem: NoisyProblem) -> ConfidentState:
        """A fresh network for every fold. InputError where cleanlab is not installed, or samples are too few."""
        _cleanlab()
        n = len(problem)
        require(n >= FOLDS, f"confident learning needs at least {FOLDS} samples, got {n}")
        auditors = [Auditor.new(problem, fold) for fold in range(FOLDS)]
        # within each class the folds take turns, in a random order
        order_N = torch.randperm(n, generator=auditors[0].generator, device=problem.x.device)
        sorted_N = order_N[problem.noisy[order_N].argsort(stable=True)]
        fold_N = torch.empty_like(sorted_N)
        fold_N[sorted_N] = torch.arange(n, device=sorted_N.device) % FOLDS
        return ConfidentState(auditors, [], fold_N)

    def step(self, problem: NoisyProblem, state: ConfidentState) -> None:
        """One epoch of the network of one fold, on the other folds."""
        fold = len(state.rows) // self.auditor.epochs
        state.auditors[fold].train(problem, self.auditor, problem.noisy_NK, (state.fold != fold).float())
        state.rows.append({"epoch": len(state.rows), "fold": fold})

    def result(self, problem: NoisyProblem, state: ConfidentState) -> RefinedSet:
        """The samples that cleanlab finds no issue with; of every class one at least."""
        find_label_issues, label_quality = _cleanlab()
        p_NK = self.out_of_fold(problem, state)
        labels, p = problem.noisy.cpu().numpy(), p_NK.cpu().numpy()
        issue_N = torch.from_numpy(find_label_issues(labels, p, n_jobs=1)).to(p_NK.device)
        trust_N = torch.from_numpy(label_quality(labels, p, method="self_confidence")).to(p_NK.device)
        trusted_N = ~issue_N | mixture.smallest(-trust_N, problem.noisy, problem.n_classes, 1)
        return RefinedSet.of_trusted(problem, trust_N, trusted_N, state.rows)

    def out_of_fold(self, problem: NoisyProblem, state: ConfidentState) -> Tensor:
        """Probabilities of the noisy labels (N, K) float64, each by the network that was not trained on the sample."""
        p_NK = torch.empty(len(problem), problem.n_classes, dtype=torch.float64, device=problem.x.device)
        for fold, auditor in enumerate(state.auditors):
            held_out_n = (state.fold == fold).nonzero()[:, 0]
            logits_nK, _ = predict(problem.net, auditor.theta, problem.x[held_out_n])
            p_NK[held_out_n] = logits_nK.double().softmax(1)
        finite = bool(p_NK.isfinite().all())
        require(finite, "predictions must be finite, got NaN or infinite values (did training diverge?)")
        return p_NK


def _cleanlab() -> tuple[Any, Any]:
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError as error:
        needed = "needs the package cleanlab: pip install cleanlab, or tadlib with its extra rivals"
        raise InputError(f"arm confident-learning {needed}") from error
    return find_label_issues, get_label_quality_scores


def plain(auditor: AuditorConfig) -> AuditorConfig:
    """Settings of a method that knows no warm-up: what it makes no use of is the same for all."""
    return replace(auditor, warmup=auditor.epochs)
