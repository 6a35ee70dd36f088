"""What all trust methods share: the problem, the refined set, training an auditor, and the driver.

Legend: N samples, K classes, C H W image, D features, P flat parameters, E epochs.

A trust method is a dataclass of settings with three functions: ``init(problem)`` makes its state, ``step(problem,
state)`` takes one epoch and appends a row to ``state.rows``, ``result(problem, state)`` reads off the refined set.
:func:`refine` drives it. A state is a dataclass of tensors, generators and rows, so that it can be checkpointed between
any two epochs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pandas as pd
import torch
from torch import Tensor

from tadlib.checks import require_fit, require_labels
from tadlib.config import AuditorConfig
from tadlib.errors import require, some
from tadlib.nn.networks import Network
from tadlib.nn.training import Sgd, State, one_hot, train_epoch
from tadlib.rng import generator
from tadlib.state import Checkpoint, restored
from tadlib.state import checkpoint as checkpoint

UNTRUSTED, RECALIBRATED, TRUSTED = 0, 1, 2
SPACES = ("untrusted", "recalibrated", "trusted")
TINY = 1e-12  # stands for a probability of zero in a logarithm


@dataclass(frozen=True)
class NoisyProblem:
    """Images with noisy labels, checked at construction, and the network that audits them.

    ``x`` (N, C, H, W) float32; ``noisy`` (N,) int64 in [0, K); ``true`` (N,) or None serves the metrics of the history
    and the oracle alone. ``name`` separates the random numbers of several runs under one ``seed``. ``checked`` (N,)
    bool marks labels that a person checked, which are certain; None: none is. ``original`` (N,) are labels as they were
    before some were checked, which tell how labels flip; None: as ``noisy``. ``embeddings``, each (N, D) float, and
    ``probabilities``, each (N, K) of the noisy labels and out of fold, are further predictors of the trust posterior.
    InputError on images or labels of the wrong type, length or range, images that are not finite, or a class without
    any label.
    """

    net: Network
    x: Tensor
    noisy: Tensor
    n_classes: int
    seed: int
    true: Tensor | None = None
    name: str = "auditor"
    checked: Tensor | None = None
    original: Tensor | None = None
    embeddings: tuple[Tensor, ...] = ()
    probabilities: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        k = self.n_classes
        require_labels("labels", self.noisy, k)
        n = len(self.noisy)
        require_fit(self.net, "images", self.x, k, n)
        for name, labels in (("true labels", self.true), ("original labels", self.original)):
            if labels is not None:
                require_labels(name, labels, k, n)
        for labels in (self.noisy, self.original_N):
            empty = (torch.bincount(labels, minlength=k) == 0).nonzero()[:, 0].tolist()
            require(not empty, f"every class needs a sample with its label; classes without: {some(empty)}")

    def __len__(self) -> int:
        return len(self.noisy)

    @property
    def original_N(self) -> Tensor:
        """Labels (N,) as they were before any was checked."""
        return self.noisy if self.original is None else self.original

    @property
    def noisy_NK(self) -> Tensor:
        """Noisy labels as distributions (N, K) float32."""
        return one_hot(self.noisy, self.n_classes)

    def minimum(self, share: float) -> int:
        """``share`` of N / K samples, one at least."""
        return max(1, int(share * len(self) / self.n_classes))


@dataclass(frozen=True)
class RefinedSet:
    """What leaves a trust method.

    ``noisy`` (N,) labels of the data set; ``y`` (N, K) label distributions and ``weight`` (N,) in [0, 1], from which
    networks learn; ``trust`` (N,) float64, how far the noisy label is trusted; ``space`` (N,) int8, index into
    :data:`SPACES`; ``reliability`` (N,) of the candidate label; ``hard_weight`` (N,), the part of ``weight`` with which
    the most likely label is a hard training label, None where that is all of it; ``transition`` (K, K) estimated, or
    None; ``history`` one row an epoch; ``space_history`` (E, N) int8 or None. Of the trust posterior also:
    ``posterior`` (N, K) float32, ``flagged`` (N,) bool, labels that a person should check, and ``noise_rate`` (3,)
    float64, the share of wrong labels with the ends of its interval.
    """

    noisy: Tensor
    y: Tensor
    weight: Tensor
    trust: Tensor
    space: Tensor
    reliability: Tensor
    hard_weight: Tensor | None = None
    transition: Tensor | None = None
    history: tuple[dict, ...] = ()
    space_history: Tensor | None = None
    posterior: Tensor | None = None
    flagged: Tensor | None = None
    noise_rate: Tensor | None = None

    @staticmethod
    def of_labels(problem: NoisyProblem, label_N: Tensor) -> "RefinedSet":
        """All samples at weight 1 with these labels; noisy labels that equal them are trusted."""
        n, device = len(problem), problem.x.device
        return RefinedSet(
            noisy=problem.noisy,
            y=one_hot(label_N, problem.n_classes),
            weight=torch.ones(n, device=device),
            trust=(label_N == problem.noisy).double(),
            space=torch.full((n,), TRUSTED, dtype=torch.int8, device=device),
            reliability=torch.zeros(n, device=device),
        )

    @staticmethod
    def of_trusted(problem: NoisyProblem, trust_N: Tensor, trusted_N: Tensor, rows: list[dict]) -> "RefinedSet":
        """The noisy labels, of which trusted ones have weight 1 and the others 0."""
        return replace(
            RefinedSet.of_labels(problem, problem.noisy),
            weight=trusted_N.float(),
            trust=trust_N.double(),
            space=(trusted_N * TRUSTED).to(torch.int8),
            history=tuple(rows),
        )

    @property
    def label(self) -> Tensor:
        """Most likely training label (N,)."""
        return self.y.argmax(1)

    @property
    def label_weight(self) -> Tensor:
        """Weight (N,) of that label as a hard training label."""
        return self.weight if self.hard_weight is None else self.hard_weight

    @property
    def n_classes(self) -> int:
        """K."""
        return self.y.shape[1]

    def to(self, device: torch.device | str) -> "RefinedSet":
        """The same set with its tensors on ``device``."""
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)  # type: ignore[arg-type]

    def table(self, true_N: Tensor | None = None, index_N: Tensor | None = None) -> pd.DataFrame:
        """One row per sample: index, given_label, trust, space, label, weight, reliability, true_label if known; of the
        trust posterior also flagged, suggested, the most probable class, and probability, that class's.

        ``index`` is the sample's place in the whole training set, ``index_N`` where that is not its place here.
        ``label`` is the most likely training label and ``weight`` its weight.
        """
        columns = {
            "index": torch.arange(len(self.noisy)) if index_N is None else index_N,
            "given_label": self.noisy,
            "trust": self.trust,
            "space": self.space,
            "label": self.label,
            "weight": self.label_weight,
            "reliability": self.reliability,
        } | ({} if true_N is None else {"true_label": true_N})
        if self.posterior is not None and self.flagged is not None:
            probability_N, suggested_N = self.posterior.max(1)
            columns |= {"flagged": self.flagged, "suggested": suggested_N, "probability": probability_N}
        table = pd.DataFrame({name: value.cpu().numpy() for name, value in columns.items()})
        return table.assign(space=pd.Categorical.from_codes(table["space"], SPACES))

    def metrics(self, true_N: Tensor) -> dict[str, float | int | None]:
        """How good trust and labels are where the true labels (N,) are known; fractions, None where undefined."""
        true_N = true_N.to(self.noisy.device)
        right = self.noisy == true_N
        trusted, relabelled = self.space == TRUSTED, self.space == RECALIBRATED
        label_right = self.label == true_N
        of_true_N = self.weight * self.y.gather(1, true_N[:, None])[:, 0]
        return {
            "trust_auroc": auroc(self.trust, right),
            "trust_precision": _ratio(trusted & right, trusted),
            "trust_recall": _ratio(trusted & right, right),
            "relabel_count": int(relabelled.sum()),
            "relabel_accuracy": _ratio(relabelled & label_right, relabelled),
            "relabel_recall": _ratio(relabelled & label_right & ~right, ~right),
            "label_accuracy": _ratio(self.label_weight * label_right, self.label_weight),
            "mass_accuracy": _ratio(of_true_N, self.weight),
        } | ({} if self.flagged is None else self.decisions(right))

    def decisions(self, right_N: Tensor) -> dict[str, float | None]:
        """How good the flags, the probabilities and the noise rate are, where it is known which labels are right."""
        assert self.flagged is not None
        assert self.noise_rate is not None
        caught = (self.flagged & ~right_N).sum()
        return {
            "flag_share": self.flagged.double().mean().item(),
            "flag_f1": _ratio(2 * caught, self.flagged.sum() + (~right_N).sum()),
            "brier": (self.trust - right_N.double()).square().mean().item(),
            "noise_rate_estimate": self.noise_rate[0].item(),
            "noise_rate_low": self.noise_rate[1].item(),
            "noise_rate_high": self.noise_rate[2].item(),
        }


def _ratio(part: Tensor, whole: Tensor) -> float | None:
    return float(part.sum()) / float(whole.sum()) if whole.sum() else None


def auroc(score_N: Tensor, positive_N: Tensor) -> float | None:
    """Area under the ROC curve of ``score`` for ``positive``, ties counted half; None when one kind is missing."""
    from sklearn.metrics import roc_auc_score  # here: it takes a second to import

    if int(positive_N.sum()) in (0, len(positive_N)):
        return None
    return float(roc_auc_score(positive_N.cpu().numpy(), score_N.double().cpu().numpy()))


# Division ------------------------------------------------------------------------------------------------------------


def recalibrated(
    refined: RefinedSet,
    trusted_N: Tensor,
    *,
    label_N: Tensor,
    q_NK: Tensor,
    rho_N: Tensor,
    believed_N: Tensor,
    p_NK: Tensor,
    drop: float,
) -> tuple[RefinedSet, dict[str, int]]:
    """Recall, recalibrate or leave every sample that is not trusted; returns the new set, and counts for the history.

    A believed candidate ``label`` that equals the noisy label recalls the sample; another one replaces it, with soft
    label ``q`` and weight ``rho``, unless its loss under the predictions ``p`` exceeds the ``drop``-quantile of the
    losses of trusted samples. What is left is untrusted, at weight 0.
    """
    noisy_N = refined.noisy
    recalled_N = ~trusted_N & believed_N & (label_N == noisy_N)
    new_N = ~trusted_N & believed_N & (label_N != noisy_N)
    trusted_N = trusted_N | recalled_N
    loss_NK = -p_NK.clamp_min(TINY).log()
    noisy_loss_N, loss_N = (loss_NK.gather(1, of_N[:, None])[:, 0] for of_N in (noisy_N, label_N))
    dropped_N = new_N & (loss_N > (quantile(noisy_loss_N[trusted_N], drop) if drop < 1 else torch.inf))
    new_N = new_N & ~dropped_N
    refined = replace(
        refined,
        y=torch.where(new_N[:, None], q_NK, one_hot(noisy_N, refined.n_classes)),
        weight=torch.where(new_N, rho_N, trusted_N.float()),
        space=torch.where(new_N, RECALIBRATED, trusted_N * TRUSTED).to(torch.int8),
        reliability=rho_N,
    )
    return refined, {"n_recalled": int(recalled_N.sum()), "n_dropped": int(dropped_N.sum())}


def quantile(values_N: Tensor, alpha: float) -> float:
    """The α-quantile by rank (lower neighbour); unlike ``torch.quantile`` it takes any number of values; of none, ∞."""
    if not len(values_N):
        return float("inf")
    return values_N.sort().values[int(alpha * (len(values_N) - 1))].item()


def note(problem: NoisyProblem, state: Any, row: dict) -> None:
    """End an epoch: count the spaces, and the metrics where the truth is known, into the history of ``state``."""
    refined, before_EN = state.refined, state.space_history
    counts = torch.bincount(refined.space.long(), minlength=3).tolist()
    row |= {f"n_{name}": count for name, count in zip(SPACES, counts, strict=True)}
    if len(before_EN):
        row["n_moved"] = int((before_EN[-1] != refined.space).sum())
    if problem.true is not None:
        row |= refined.metrics(problem.true)
    state.space_history = torch.cat([before_EN, refined.space[None]])
    state.rows.append(row)


def with_history(state: Any) -> RefinedSet:
    """The refined set of a state with the history of all epochs."""
    return replace(state.refined, history=tuple(state.rows), space_history=state.space_history)


def no_history(problem: NoisyProblem) -> Tensor:
    """An empty ``space_history`` (0, N)."""
    return torch.empty(0, len(problem), dtype=torch.int8, device=problem.x.device)


# Auditors ------------------------------------------------------------------------------------------------------------


@dataclass
class Auditor:
    """A network in training: parameters (P,), velocity (P,) or None, and the generator of its batches."""

    theta: Tensor
    velocity: Tensor | None
    generator: torch.Generator

    @staticmethod
    def new(problem: NoisyProblem, number: int = 0) -> "Auditor":
        """A fresh network; its random numbers depend on the problem's seed and name and on ``number``."""
        names = problem.seed, problem.name, number
        return Auditor(problem.net.init(*names), None, generator(*names, "train", device=problem.x.device))

    def train(self, problem: NoisyProblem, config: AuditorConfig, y_NK: Tensor, w_N: Tensor, **more: Any) -> None:
        """One epoch on these label distributions and weights; ``more`` as in :func:`tadlib.nn.training.train_epoch`."""
        more |= {"batch": config.batch, "strategy": config.augmentation, "generator": self.generator}
        more |= {"sgd": Sgd(config.lr, config.momentum, config.weight_decay)}
        state = train_epoch(problem.net, State(self.theta, self.velocity), problem.x, y_NK, w_N, **more)
        self.theta, self.velocity = state.theta, state.velocity


# The driver ----------------------------------------------------------------------------------------------------------


class TrustMethod(Protocol):
    """A trust method (see the module); ``epochs`` is how often ``step`` is called."""

    @property
    def epochs(self) -> int: ...
    def init(self, problem: NoisyProblem) -> Any: ...
    def step(self, problem: NoisyProblem, state: Any) -> None: ...
    def result(self, problem: NoisyProblem, state: Any) -> RefinedSet: ...


def refine(
    method: TrustMethod,
    problem: NoisyProblem,
    *,
    resume: Checkpoint | None = None,
    on_epoch: Callable[[Any], None] = lambda state: None,
) -> RefinedSet:
    """Carry a method through its epochs.

    ``on_epoch`` is called with the state after each (progress, checkpoints); ``resume`` is what :func:`checkpoint` gave
    then, from which the run ends with the same bits as without interruption.
    """
    made = hasattr(method, "init") and not isinstance(method, type)
    require(made, f"a trust method must be made first, as in Tad(), got {method!r}")
    state = restored(method.init(problem), resume, problem.x.device)
    while len(state.rows) < method.epochs:
        method.step(problem, state)
        on_epoch(state)
    return method.result(problem, state)
