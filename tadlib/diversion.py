"""The dual loop: an outer loop that diverts samples by trust, an inner loop that recalibrates the untrusted.

Legend: N samples, K classes, C H W image, D features, P flat parameters, A auditors, E epochs.

One round is one epoch of the auditors: train on the labels in use, look at every sample once, divert
(:mod:`tadlib.trust`, :mod:`tadlib.posterior`), recalibrate (:mod:`tadlib.recalibrate`). ``start``, ``advance`` and
``finish`` expose the rounds, so that a run can be checkpointed between any two; ``divert`` carries out all of them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pandas as pd
import torch
from torch import Tensor

from tadlib import discriminant, patches, posterior, recalibrate, transition, trust
from tadlib.errors import known, require
from tadlib.nn.networks import Network
from tadlib.nn.training import Sgd, State, one_hot, predict, train_epoch
from tadlib.rng import generator

UNTRUSTED, RECALIBRATED, TRUSTED = 0, 1, 2
SPACES = ("untrusted", "recalibrated", "trusted")
VIEWS = ("network", "training", "anchors", "patches")  # what the posterior is pooled from


@dataclass(frozen=True)
class DiversionConfig:
    """Settings of the dual loop. Each can be switched off on its own; what the paper does not fix is our choice."""

    epochs: int = 20  # E, rounds in all
    warmup: int = 5  # rounds before the first diversion
    auditors: int = 1  # A, networks whose evidence is averaged
    lr: float = 0.02
    cooldown: float = 0.0  # share of the last rounds over which lr falls to 0 in a line; 0 = it stays
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch: int = 128
    augmentation: str = "crop_scale_rotate"
    average: float = 0.99  # per step, of an auditor's parameters, which look at the samples; 0 = the last ones do
    mirror: bool = True  # a look is at the mirror image as well, where augmentation flips images
    evidence: str = "posterior"  # of the true label; or "fused" ranks of two margins, or the paper's "loss"
    views: str = "network+patches"  # posterior: class probabilities that are pooled
    patches_weight: float = 1.0  # posterior: the view from patches counts as that many others
    patches_filters: int = 128  # posterior: M, most filters of the auditor in closed form
    transition: str = "estimated"  # posterior: T from the data; "symmetric" or some "+KINDS" leave out kinds of T
    begin: str = "patches"  # posterior: in warm-up auditors learn the posterior from "patches", or "given" labels
    targets: str = "posterior"  # auditors train on "posterior" labels of all samples, or on the "refined" set
    bootstrap: float = 1.0  # posterior: its share in what auditors train on, the rest is the given label
    purity: float = 0.93  # posterior: share of labels in use that should be right; doubtful ones count less until so
    purity_alike: float = 0.986  # posterior: the same where T follows likeness, and q takes wrong labels for sure ones
    power: float = 1.0  # posterior: a label in use weighs (its probability)^power, at least; purity may raise it
    rest: float = 0.5  # posterior: how much of what a sample has no label in use for is learnt, with q as soft label
    scope: str = "class"  # loss, fused: mixtures per given "class" (TAD) or one "global" (DivideMix)
    ema: float = 0.0  # μ of the moving averages over rounds; 0 = the last round only; they brought nothing
    tau_start: float = 0.3  # τ(e) after warm-up ...
    tau_end: float = 0.3  # ... and in the last round; low, as weights tell likely from unlikely labels
    delta: float = 0.5  # a class whose mixture separates by less than δ(σ₀ + σ₁) is clean
    minimum: float = 0.05  # of N/K samples, so many stay trusted in every class
    consistency: float = 0.0  # weight of KL(p̄ ‖ p(augmented x)) at full strength; it brought nothing, so it is off
    confidence_penalty: float = 0.0  # weight of negative entropy in warm-up; 0 = off
    look_every: int = 50  # rounds between two passes over all samples after warm-up; the last round always has one
    recalibrate_every: int = 1  # diversions between inner loops; 0 = never
    criterion: str = "both"  # loss, fused: candidates by "both", "mahalanobis" or "cosine"
    belief: str = "calibrated"  # relabel by calibrated probability, by "quantile" of ρ, or by "fixed" ρ
    error: float = 0.39  # calibrated: largest probability of error of a label that is believed
    alpha: float = 0.3  # quantile: believed above this quantile of ρ over trusted samples
    reliability: float = 0.9  # fixed: believed above this ρ
    holdout: float = 0.1  # share of samples whose labels no network trains on (T counts them); calibration is on them
    drop: float = 0.98  # recalibrated samples with a loss above this quantile of trusted ones are dropped; 1 = never

    def __post_init__(self):
        known("evidence", self.evidence, ("posterior", "fused", "loss"))
        for view in self.views.split("+"):
            known("view", view, VIEWS)
        for kind in self.transition_kinds:
            known("transition", kind, ("estimated", "symmetric", *transition.KINDS))
        known("targets", self.targets, ("posterior", "refined"))
        known("scope", self.scope, ("class", "global"))
        known("criterion", self.criterion, ("both", "mahalanobis", "cosine"))
        known("belief", self.belief, ("calibrated", "quantile", "fixed"))
        require(self.auditors >= 1, f"auditors must be at least 1, got {self.auditors}")
        require(self.epochs >= 1, f"epochs must be at least 1, got {self.epochs}")
        require(1 <= self.warmup <= self.epochs, f"warmup must be in [1, epochs={self.epochs}], got {self.warmup}")
        require(self.look_every >= 1, f"look_every must be at least 1, got {self.look_every}")
        known("begin", self.begin, ("patches", "given"))
        require(self.patches_weight > 0, f"patches_weight must be positive, got {self.patches_weight}")
        require(self.patches_filters >= 2, f"patches_filters must be at least 2, got {self.patches_filters}")
        require(self.power >= 1, f"power must be at least 1, got {self.power}")
        for name in ("ema", "average", "tau_start", "tau_end", "minimum", "holdout"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{name} must be in [0, 1), got {value}")
        shares = ("alpha", "reliability", "error", "drop", "bootstrap", "purity", "purity_alike", "rest", "cooldown")
        for name in shares:
            value = getattr(self, name)
            require(0 <= value <= 1, f"{name} must be in [0, 1], got {value}")

    @property
    def transition_kinds(self) -> tuple[str, ...]:
        """Kinds of transition matrices that are tried besides those without a direction."""
        named = {"estimated": transition.KINDS, "symmetric": ()}
        return named[self.transition] if self.transition in named else tuple(self.transition.split("+"))

    def sgd(self, epoch: int, epochs: int | None = None) -> Sgd:
        """The optimiser of round ``epoch`` (from 0) out of ``epochs``, those of the settings unless given."""
        left = (epochs or self.epochs) - epoch
        falling = self.cooldown * (epochs or self.epochs)
        lr = self.lr * left / falling if left < falling else self.lr
        return Sgd(lr, self.momentum, self.weight_decay)

    @property
    def look_ema(self) -> float:
        """The share that a moving average keeps of itself from one look to the next."""
        return self.ema**self.look_every


@dataclass(frozen=True)
class RefinedSet:
    """What leaves the dual loop.

    ``given`` (N,) labels as given; ``y`` (N, K) label distributions and ``weight`` (N,) in [0, 1], what networks
    learn; ``trust`` (N,) float64, probability that the given label is right; ``space`` (N,) index into :data:`SPACES`;
    ``reliability`` (N,) ρ of the candidate label; ``sure`` (N,) in [0, 1], the part of the weight with which the
    likeliest label of ``y`` is in use, 0 for the untrusted; None where that is all of ``weight``; ``transition`` (K, K)
    the estimated T or None; ``history`` one row a round; ``space_history`` (E, N) int8.
    """

    given: Tensor
    y: Tensor
    weight: Tensor
    trust: Tensor
    space: Tensor
    reliability: Tensor
    sure: Tensor | None = None
    transition: Tensor | None = None
    history: tuple[dict, ...] = ()
    space_history: Tensor | None = None

    @property
    def label(self) -> Tensor:
        """Most likely label in use (N,)."""
        return self.y.argmax(1)

    @property
    def in_use(self) -> Tensor:
        """Weight (N,) of that label: its part of ``weight``."""
        return self.weight if self.sure is None else self.sure

    @property
    def n_classes(self) -> int:
        """K."""
        return self.y.shape[1]

    def to(self, device: torch.device | str) -> "RefinedSet":
        """The same set with its tensors on ``device``."""
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)  # type: ignore[arg-type]

    def table(self, true_N: Tensor | None = None, index_N: Tensor | None = None) -> pd.DataFrame:
        """One row per sample: index, given_label, trust, space, label, weight, reliability, true_label if known.

        ``index`` is the sample's place in the whole training set, ``index_N`` where that is not its place here.
        ``label`` is the label in use and ``weight`` the weight of it.
        """
        columns = {
            "index": range(len(self.given)) if index_N is None else index_N.cpu().numpy(),
            "given_label": self.given.cpu().numpy(),
            "trust": self.trust.cpu().numpy(),
            "space": pd.Categorical.from_codes(self.space.cpu().numpy(), SPACES),
            "label": self.label.cpu().numpy(),
            "weight": self.in_use.cpu().numpy(),
            "reliability": self.reliability.cpu().numpy(),
        }
        if true_N is not None:
            columns["true_label"] = true_N.cpu().numpy()
        return pd.DataFrame(columns)

    def metrics(self, true_N: Tensor) -> dict[str, float | int | None]:
        """How good trust and labels are where the truth (N,) is known; fractions, None where undefined."""
        return _metrics(self, true_N)


def _ratio(part: Tensor, whole: Tensor) -> float | None:
    total = float(whole.sum())
    return float(part.sum()) / total if total else None


def _metrics(refined: RefinedSet, true_N: Tensor) -> dict[str, float | int | None]:
    true_N = true_N.to(refined.given.device)
    right = refined.given == true_N
    trusted, relabelled = refined.space == TRUSTED, refined.space == RECALIBRATED
    label_right = refined.label == true_N
    of_true_N = refined.weight * refined.y.gather(1, true_N[:, None])[:, 0]
    return {
        "trust_auroc": trust.auroc(refined.trust, right),
        "trust_precision": _ratio(trusted & right, trusted),
        "trust_recall": _ratio(trusted & right, right),
        "relabel_count": int(relabelled.sum()),
        "relabel_accuracy": _ratio(relabelled & label_right, relabelled),
        "relabel_recall": _ratio(relabelled & label_right & ~right, ~right),
        "label_accuracy": _ratio(refined.in_use * label_right, refined.in_use),
        "mass_accuracy": _ratio(of_true_N, refined.weight),
    }


@dataclass
class Loop:
    """State between two rounds. ``tensors`` and ``rows`` are all of it that changes."""

    net: Network
    config: DiversionConfig
    x: Tensor
    given: Tensor
    n_classes: int
    true: Tensor | None
    generators: list[torch.Generator]
    tensors: dict[str, Tensor]
    rows: list[dict] = field(default_factory=list)

    @property
    def epoch(self) -> int:
        """Rounds done."""
        return len(self.rows)

    def checkpoint(self) -> tuple[dict[str, Tensor], dict]:
        """All that changes, as tensors and JSON."""
        random = {f"generator/{a}": g.get_state() for a, g in enumerate(self.generators)}
        return {**self.tensors, **random}, {"rows": self.rows}

    def restore(self, tensors: dict[str, Tensor], meta: dict) -> None:
        """The inverse of :meth:`checkpoint`; the next round gives the same bits as without interruption."""
        for a, g in enumerate(self.generators):
            g.set_state(tensors[f"generator/{a}"].cpu())
        device = self.x.device
        self.tensors = {k: v.to(device) for k, v in tensors.items() if not k.startswith("generator/")}
        self.rows = list(meta["rows"])


def start(
    net: Network,
    x_NCHW: Tensor,
    given_N: Tensor,
    n_classes: int,
    config: DiversionConfig,
    *,
    seed: int,
    true_N: Tensor | None = None,
    name: str = "auditor",
) -> Loop:
    """Check the input and set up the loop before its first round.

    ``true_N`` is used for the history's metrics alone. ``name`` separates the random numbers of several loops.

    Raises:
        InputError: on images that are not float32 (N, C, H, W), labels that are not int64 (N,), of the wrong length or
            out of range, or a class without any sample.
    """
    for what, value, dtype, ndim in (("images", x_NCHW, torch.float32, 4), ("labels", given_N, torch.int64, 1)):
        fits = isinstance(value, Tensor) and value.dtype == dtype and value.ndim == ndim
        got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        require(fits, f"{what} must be a {str(dtype).removeprefix('torch.')} tensor of {ndim} dimensions, got {got}")
    require(len(given_N) > 0, "the dual loop needs at least one sample, got 0")
    require(len(x_NCHW) == len(given_N), f"got {len(x_NCHW)} images and {len(given_N)} labels; expected as many")
    require(
        int(given_N.min()) >= 0 and int(given_N.max()) < n_classes,
        f"labels must be in [0, {n_classes}), got {int(given_N.min())} to {int(given_N.max())}",
    )
    require(
        true_N is None or len(true_N) == len(given_N),
        f"true labels must be as many as the given ones, {len(given_N)}, got {0 if true_N is None else len(true_N)}",
    )
    bad = int((~x_NCHW.flatten(1).sum(1).isfinite()).sum())
    require(bad == 0, f"images must be finite, got NaN or infinity in {bad} of {len(x_NCHW)}")
    counts_K = torch.bincount(given_N, minlength=n_classes)
    empty = (counts_K == 0).nonzero()[:, 0].tolist()
    require(not empty, f"every class needs a sample with its label; classes without: {empty}")
    device, n = x_NCHW.device, len(x_NCHW)
    tensors = {
        "y": one_hot(given_N, n_classes),
        "weight": torch.ones(n, device=device),
        "trust": torch.ones(n, dtype=torch.float64, device=device),
        "space": torch.full((n,), TRUSTED, dtype=torch.int8, device=device),
        "reliability": torch.zeros(n, device=device),
        "labelled": _labelled(given_N, n_classes, config.holdout, generator(seed, name, "holdout")),
        "space_history": torch.empty(0, n, dtype=torch.int8, device=device),
    }
    tensors["target"] = tensors["y"]  # what auditors learn
    tensors["learn"] = tensors["labelled"].float()  # with which weight
    if config.evidence == "posterior":
        tensors |= _in_closed_form(
            x_NCHW, tensors["y"], given_N, tensors["labelled"], config, generator(seed, name, "patches")
        )
    for a in range(config.auditors):
        tensors[f"theta/{a}"] = net.init(seed, name, a)
    generators = [generator(seed, name, a, "train", device=device) for a in range(config.auditors)]
    return Loop(net, config, x_NCHW, given_N, n_classes, true_N, generators, tensors)


def _in_closed_form(x_NCHW, given_NK, given_N, labelled_N, config: DiversionConfig, random) -> dict[str, Tensor]:
    """What the auditor in closed form says before any network is trained: how labels flip, and p(y | x)."""
    r_NK = patches.left_out(
        x_NCHW,
        given_NK,
        labelled_N,
        count=config.patches_filters,
        mirror="flip" in config.augmentation.split("_"),
        generator=random,
    )
    seen = discriminant.evidence(r_NK, given_N)
    best = transition.explain(seen, config.transition_kinds)
    p_NK = seen.view(best.transition, best.scale)
    found = {"transition": best.transition, "alike": torch.tensor(best.alike), "patches": p_NK}
    if config.targets == "posterior" and config.begin == "patches" and "patches" in config.views.split("+"):
        q_NK = posterior.posterior(p_NK.double().log(), given_N, best.transition)
        found["target"] = torch.lerp(given_NK, q_NK.float(), config.bootstrap)
    return found


def _labelled(given_N: Tensor, n_classes: int, holdout: float, random: torch.Generator) -> Tensor:
    """Mask (N,) of the samples whose labels auditors may train on: all but a share ``holdout`` of every class."""
    order_N = torch.randperm(len(given_N), generator=random).to(given_N.device)
    labelled_N = torch.ones(len(given_N), dtype=torch.bool, device=given_N.device)
    for k in range(n_classes):
        of_class = order_N[given_N[order_N] == k]
        labelled_N[of_class[: int(holdout * len(of_class))]] = False
    return labelled_N


def advance(loop: Loop) -> None:
    """One round: train every auditor for an epoch; after warm-up look at every sample, divert, recalibrate."""
    config, t, epoch = loop.config, loop.tensors, loop.epoch
    seen_NK = torch.stack([_train(loop, a, epoch) for a in range(config.auditors)]).mean(0)
    t["seen"] = trust.ema(t.get("seen"), seen_NK, config.ema)
    row: dict = {"epoch": epoch}
    rounds_left = config.epochs - 1 - epoch
    if epoch >= config.warmup - 1:
        # the posterior has new evidence from training every round; anchors and mixtures have it only from a look
        by_posterior = config.evidence == "posterior"
        by_anchors = "anchors" in config.views.split("+")
        lacking = by_anchors and "anchored" not in t if by_posterior else "p" not in t
        due = lacking or rounds_left % config.look_every == 0
        if by_posterior and not due:
            t["p"] = t["seen"]
        if due or by_posterior:
            row |= _divert(loop, _look(loop) if due else None, epoch)
    counts = torch.bincount(t["space"].long(), minlength=3).tolist()
    row |= {f"n_{name}": count for name, count in zip(SPACES, counts, strict=True)}
    if len(t["space_history"]):
        row["n_moved"] = int((t["space_history"][-1] != t["space"]).sum())
    if loop.true is not None:
        row |= finish(loop).metrics(loop.true)
    t["space_history"] = torch.cat([t["space_history"], t["space"][None]])
    loop.rows.append(row)


def _look(loop: Loop) -> list[Tensor]:
    """Predictions of every auditor, into the moving averages; returns the penultimate features (N, D) of each.

    Probabilities and features are means over the image and, if asked, its mirror image. The posterior has no use for
    features unless anchors are one of its views; then there are none.
    """
    config, t = loop.config, loop.tensors
    sides = [loop.x, loop.x.flip(3)] if config.mirror and "flip" in config.augmentation.split("_") else [loop.x]
    p_NK, features = torch.zeros_like(t["y"]), []
    asked = config.evidence != "posterior" or "anchors" in config.views.split("+")
    for a in range(config.auditors):
        looks = [predict(loop.net, t.get(f"mean/{a}", t[f"theta/{a}"]), x_NCHW) for x_NCHW in sides]
        p_NK += sum(logits.softmax(1) for logits, _ in looks) / (len(sides) * config.auditors)
        if asked:
            features.append(torch.stack([features_ND for _, features_ND in looks]).mean(0))
    t["p"] = trust.ema(t.get("p"), p_NK, config.look_ema)
    loss_N = -p_NK.clamp_min(1e-12).log().gather(1, loop.given[:, None])[:, 0]
    t["loss"] = trust.ema(t.get("loss"), loss_N, config.look_ema)
    return features


def finish(loop: Loop) -> RefinedSet:
    """The refined set after the rounds done so far."""
    t = loop.tensors
    return RefinedSet(
        given=loop.given,
        y=t["y"],
        weight=t["weight"],
        trust=t["trust"],
        space=t["space"],
        reliability=t["reliability"],
        sure=t.get("sure"),
        transition=t.get("transition"),
        history=tuple(loop.rows),
        space_history=t["space_history"],
    )


def divert(
    net: Network,
    x_NCHW: Tensor,
    given_N: Tensor,
    n_classes: int,
    config: DiversionConfig,
    *,
    seed: int,
    true_N: Tensor | None = None,
    name: str = "auditor",
    resume: tuple[dict[str, Tensor], dict] | None = None,
    on_round: Callable[[Loop], None] = lambda loop: None,
) -> RefinedSet:
    """Run the whole dual loop (TAD, arXiv 2502.05027; equations are ours where the book says so).

    Args as in :func:`start`; ``on_round`` is called after every round (progress, checkpoints, recording a
    trajectory), ``resume`` is what :meth:`Loop.checkpoint` gave then.
    """
    loop = start(net, x_NCHW, given_N, n_classes, config, seed=seed, true_N=true_N, name=name)
    if resume is not None:
        loop.restore(*resume)
    while loop.epoch < config.epochs:
        advance(loop)
        on_round(loop)
    return finish(loop)


def _train(loop: Loop, a: int, epoch: int) -> Tensor:
    """Auditor ``a`` takes one epoch; returns its predictions on the way (N, K), each made before its step.

    They cost nothing, come from as many points of the trajectory as there are steps, and none has been trained on
    the sample since the last epoch (our choice).
    """
    config, t = loop.config, loop.tensors
    warm = epoch < config.warmup or "p" not in t
    ramp = min(1.0, (epoch - config.warmup + 1) / max(1, config.warmup))
    strength = config.confidence_penalty if warm else config.consistency * ramp

    def penalty(logits_BK, index_B):
        # negative entropy: keeps an auditor from growing certain of one-way flips before diversion begins
        return strength * (logits_BK.softmax(1) * logits_BK.log_softmax(1)).sum(1).mean()

    def consistency(logits_BK, index_B):
        # towards what auditors last said of the sample: a teacher that costs no further pass
        return strength * -(t["p"][index_B] * logits_BK.log_softmax(1)).sum(1).mean()

    seen_NK = torch.full_like(t["y"], 1 / loop.n_classes)
    mean_P = t.get(f"mean/{a}", t[f"theta/{a}"]).clone()
    steps = epoch * math.ceil(len(loop.x) / config.batch)

    def on_step(index_B: Tensor, logits_BK: Tensor, theta_P: Tensor) -> None:
        nonlocal steps
        seen_NK[index_B] = logits_BK.softmax(1)
        if config.average:
            mean_P.lerp_(theta_P, max(1 - config.average, 10 / (steps + 10)))  # soon forgets where it began
        steps += 1

    state = train_epoch(
        loop.net,
        State(t[f"theta/{a}"], t.get(f"velocity/{a}")),
        loop.x,
        t["target"],
        t["learn"],
        sgd=config.sgd(epoch),
        batch=config.batch,
        strategy=config.augmentation,
        generator=loop.generators[a],
        extra=None if strength == 0 else penalty if warm else consistency,
        on_step=on_step,
    )
    t[f"theta/{a}"] = state.theta
    if state.velocity is not None:
        t[f"velocity/{a}"] = state.velocity
    if config.average:
        t[f"mean/{a}"] = mean_P
    return seen_NK


def _divert(loop: Loop, features: list[Tensor] | None, epoch: int) -> dict:
    """Outer and, when due, inner loop; writes the labels in use and returns what the history keeps.

    ``features`` of every auditor come with a look; the posterior does without, from what it saw before.
    """
    config, t, k = loop.config, loop.tensors, loop.n_classes
    tau = trust.threshold(epoch, config.warmup - 1, config.epochs, config.tau_start, config.tau_end)
    minimum = max(1, int(config.minimum * len(loop.given) / k))
    looks = sum("tau" in row for row in loop.rows)
    row: dict = {"tau": tau}
    q_NK = None
    if config.evidence == "posterior":
        q_NK = _posterior(loop, features, row)
        t["trust"] = q_NK.gather(1, loop.given[:, None])[:, 0]
        trusted_N = (t["trust"] > tau) | trust.best(-t["trust"], loop.given, k, minimum)
    else:
        assert features is not None
        trusted_N = _mixtures(loop, features, tau, minimum, row)

    given_NK = one_hot(loop.given, k)
    if config.recalibrate_every and looks % config.recalibrate_every == 0:
        found = _candidates(loop, features, given_NK, trusted_N, q_NK)
        t["y"], t["weight"], t["space"], t["reliability"], more = _recalibrate(
            loop, found, given_NK, trusted_N, posterior=q_NK is not None
        )
        row |= more
    else:
        # labels found earlier stay in use unless the sample is now trusted as given
        kept = (t["space"] == RECALIBRATED) & ~trusted_N
        t["y"] = torch.where(kept[:, None], t["y"], given_NK)
        t["weight"] = torch.where(kept, t["weight"], trusted_N.float())
        t["space"] = torch.where(kept, RECALIBRATED, trusted_N * TRUSTED).to(torch.int8)
    if q_NK is not None:
        right_N = q_NK.max(1).values
        asked = config.purity_alike if t["alike"] else config.purity
        row["power"] = recalibrate.power_for(right_N, asked, config.power)
        sure_N = torch.where(t["space"] == UNTRUSTED, 0.0, right_N ** row["power"])
        y_NK, weight_N = recalibrate.refined(q_NK, sure_N, config.rest)
        t["y"], t["weight"], t["sure"] = y_NK.float(), weight_N.float(), sure_N.float()
    if q_NK is not None and config.targets == "posterior":
        t["target"] = torch.lerp(given_NK, q_NK.float(), config.bootstrap)  # soft bootstrapping (Reed et al. 2015)
        t["learn"] = t["labelled"].float()
    else:
        t["target"], t["learn"] = t["y"], t["weight"] * t["labelled"]
    return row


def _posterior(loop: Loop, features: list[Tensor] | None, row: dict) -> Tensor:
    """q (N, K): the posterior of the true label (:mod:`tadlib.posterior`); notes what was estimated."""
    config, t = loop.config, loop.tensors
    if features and "anchors" in config.views.split("+"):
        # the responsibilities of the round before say which samples stand for a class
        d_NK, _ = _distances(features, t["target"], t["labelled"].float())
        fitted_N = t["labelled"]
        row["temperature"] = recalibrate.temperature(d_NK[fitted_N], t["target"][fitted_N].argmax(1))
        t["anchored"] = trust.ema(t.get("anchored"), (-d_NK / (2 * row["temperature"])).softmax(1), config.look_ema)
    views = {"network": t["p"], "training": t["seen"], "patches": t["patches"]}
    views |= {"anchors": t["anchored"]} if "anchored" in t else {}
    pooled = config.views.split("+")
    weights = [config.patches_weight if view == "patches" else 1.0 for view in pooled]
    log_p_NK = posterior.pool([views[view] for view in pooled], weights)
    reference_N = _reference(loop)
    held_out = log_p_NK[reference_N], loop.given[reference_N]
    b = posterior.sharpness(*held_out, t["transition"])
    row["exponent"] = b
    row["kept"] = t["transition"].diagonal().mean().item()
    row["held_out_log_likelihood"] = posterior.log_likelihoods(*held_out, t["transition"], b).mean().item()
    return posterior.posterior(log_p_NK, loop.given, t["transition"], b)


def _mixtures(loop: Loop, features: list[Tensor], tau: float, minimum: int, row: dict) -> Tensor:
    """Trusted samples (N,) by the class-wise mixtures of the evidence against given labels; keeps their trust."""
    config, t, k = loop.config, loop.tensors, loop.n_classes
    evidence_N = t["loss"]
    if config.evidence == "fused":
        # anchors come from what was trusted so far
        trusted_w = t["weight"] * (t["space"] == TRUSTED)
        d_NK, _ = _distances(features, one_hot(loop.given, k), trusted_w)
        margin_N = trust.margin(-d_NK / 2, loop.given)
        t["margin"] = trust.ema(t.get("margin"), margin_N, config.look_ema)
        own_margin_N = trust.margin(t["p"].clamp_min(1e-12).log(), loop.given)
        evidence_N = trust.fuse(-own_margin_N, -t["margin"])
    split = trust.partition(evidence_N, loop.given, k, tau=tau, scope=config.scope, delta=config.delta, minimum=minimum)
    row["n_clean_classes"] = int((~split.mixture.separated).sum())
    # the class-wise mixture decides; one mixture over all classes makes the number comparable between them
    t["trust"] = trust.partition(evidence_N, loop.given, k, tau=tau, scope="global", delta=config.delta).trust
    return split.trusted


def _reference(loop: Loop) -> Tensor:
    """Mask (N,) of the samples whose labels no auditor is trained on; of all where none is held out."""
    held_out_N = ~loop.tensors["labelled"]
    return held_out_N if held_out_N.any() else ~held_out_N


def _distances(features: list[Tensor], y_NK: Tensor, w_N: Tensor) -> tuple[Tensor, Tensor]:
    """Mahalanobis distances and cosines (N, K), averaged over auditors."""
    sets = [recalibrate.anchors(f, y_NK, w_N) for f in features]
    d = [recalibrate.distances(a, f) for a, f in zip(sets, features, strict=True)]
    s = [recalibrate.cosines(a, f) for a, f in zip(sets, features, strict=True)]
    return torch.stack(d).mean(0), torch.stack(s).mean(0)


def _candidates(loop, features, given_NK, trusted_N, q_NK) -> recalibrate.Candidates:
    """Candidate labels from the posterior where that is the evidence, else from the anchors of trusted samples."""
    if q_NK is not None:
        rho_N, label_N = q_NK.max(1)
        return recalibrate.Candidates(label_N, rho_N.float(), q_NK.float())
    w_N = (loop.tensors["trust"].float() * trusted_N).clamp_min(1e-6) * trusted_N
    d_NK, s_NK = _distances(features, given_NK, w_N)
    temperature = recalibrate.temperature(d_NK[trusted_N], loop.given[trusted_N])
    return recalibrate.candidates(d_NK, s_NK, temperature, loop.config.criterion)


def _recalibrate(loop, found, given_NK, trusted_N, *, posterior: bool):
    """Recall, recalibrate or leave every untrusted sample; returns the labels in use.

    ``posterior``: the candidates' reliability is a probability already.
    """
    config, given = loop.config, loop.given
    rho_N, row = found.reliability, {}
    if config.belief == "quantile":
        believed_N, row["bar"] = recalibrate.believed(rho_N, trusted_N, config.alpha)
    else:
        if config.belief == "calibrated" and not posterior:
            rho_N, row["noise_rate"] = recalibrate.calibrate(
                rho_N, found.label == given, _reference(loop), loop.n_classes
            )
        row["bar"] = 1 - config.error if config.belief == "calibrated" else config.reliability
        believed_N = rho_N > row["bar"]
    recalled_N = ~trusted_N & believed_N & (found.label == given)
    new_N = ~trusted_N & believed_N & (found.label != given)
    trusted_N = trusted_N | recalled_N

    loss_N = -loop.tensors["p"].clamp_min(1e-12).log()
    new_loss_N = loss_N.gather(1, found.label[:, None])[:, 0]
    own_loss_N = loss_N.gather(1, given[:, None])[:, 0]
    dropped_N = torch.zeros_like(new_N)
    if config.drop < 1:
        dropped_N = new_N & (new_loss_N > recalibrate.quantile(own_loss_N[trusted_N], config.drop))
    new_N = new_N & ~dropped_N
    y = torch.where(new_N[:, None], found.q, given_NK)
    weight = torch.where(new_N, rho_N, trusted_N.float())
    space = torch.where(new_N, RECALIBRATED, trusted_N * TRUSTED).to(torch.int8)
    row |= {"n_recalled": int(recalled_N.sum()), "n_dropped": int(dropped_N.sum())}
    return y, weight, space, rho_N, row
