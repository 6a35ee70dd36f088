"""Rivals of the dual loop from the literature, behind the same interface and with the same network.

Legend: N samples, B batch, K classes, P flat parameters.

Budget, in epochs seen (passes of one network over the training set), where E is ``epochs`` of the settings:

- ``gce``: E.
- ``co_teaching``: E, shared by its two networks (E/2 rounds, rounded up).
- ``confident_learning``: (folds − 1)·E, that is 3 E with four folds: cross-validation trains a network a fold, each for
  E epochs on the other folds. With fewer epochs a network would be compared with a half-trained one.

Of the settings they use ``epochs``, ``warmup`` (co-teaching), ``lr``, ``cooldown``, ``momentum``, ``weight_decay``,
``batch`` and ``augmentation``. No rival is told the noise. All of them relabel nothing: weight 1 for trusted samples,
else 0. A :class:`tadlib.diversion.Loop` holds their state; ``on_round`` and ``resume`` work as in the dual loop.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.func import grad
from torch.nn.functional import cross_entropy

from tadlib import trust
from tadlib.diversion import TRUSTED, DiversionConfig, Loop, RefinedSet, start
from tadlib.errors import InputError, known, require
from tadlib.nn import augment
from tadlib.nn.networks import Network
from tadlib.nn.training import Loss, State, batches, one_hot, predict, train_epoch

QUALITIES = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")  # of cleanlab's labels

OnRound = Callable[[Loop], None]
Resume = tuple[dict[str, Tensor], dict] | None


def _start(net, x_NCHW, given_N, n_classes, config: DiversionConfig, networks: int, resume: Resume, **more) -> Loop:
    """Checked input and ``networks`` fresh networks ``theta/0``, ``theta/1``, ...; all labels are trained on."""
    config = replace(config, auditors=networks, holdout=0.0, evidence="loss")  # of the dual loop they use nothing
    loop = start(net, x_NCHW, given_N, n_classes, config, **more)
    if resume is not None:
        loop.restore(*resume)
    return loop


def _train(loop: Loop, a: int, y_NK: Tensor, w_N: Tensor, **more) -> None:
    """Network ``a`` takes one epoch of its E."""
    config, t = loop.config, loop.tensors
    state = train_epoch(
        loop.net,
        State(t[f"theta/{a}"], t.get(f"velocity/{a}")),
        loop.x,
        y_NK,
        w_N,
        sgd=config.sgd(loop.epoch % config.epochs),
        batch=config.batch,
        strategy=config.augmentation,
        generator=loop.generators[a],
        **more,
    )
    t[f"theta/{a}"] = state.theta
    if state.velocity is not None:
        t[f"velocity/{a}"] = state.velocity


def _losses(loop: Loop, a: int) -> Tensor:
    """Cross entropy of every given label under network ``a`` (N,)."""
    logits_NK, _ = predict(loop.net, loop.tensors[f"theta/{a}"], loop.x)
    return -logits_NK.log_softmax(1).gather(1, loop.given[:, None])[:, 0]


def _refined(loop: Loop, trust_N: Tensor, trusted_N: Tensor) -> RefinedSet:
    """Given labels, of which the trusted ones have weight 1; of every class at least its most trusted sample."""
    trusted_N = trusted_N | trust.best(-trust_N, loop.given, loop.n_classes, 1)
    return RefinedSet(
        given=loop.given,
        y=one_hot(loop.given, loop.n_classes),
        weight=trusted_N.float(),
        trust=trust_N.double(),
        space=(trusted_N * TRUSTED).to(torch.int8),
        reliability=torch.zeros(len(trusted_N), device=trusted_N.device),
        history=tuple(loop.rows),
    )


def _keep_auroc(loop: Loop, row: dict, trust_N: Tensor) -> None:
    if loop.true is not None:
        row["trust_auroc"] = trust.auroc(trust_N, loop.given == loop.true.to(loop.given.device))


# Generalised cross entropy -------------------------------------------------------------------------------------------


def gce(
    net: Network,
    x_NCHW: Tensor,
    given_N: Tensor,
    n_classes: int,
    config: DiversionConfig,
    *,
    seed: int,
    true_N: Tensor | None = None,
    resume: Resume = None,
    on_round: OnRound = lambda loop: None,
    q: float = 0.7,
) -> RefinedSet:
    """An auditor trained with generalised cross entropy (Zhang & Sabuncu 2018, eq. 6), then DivideMix's filter.

    The loss is (1 − p_y^q)/q: cross entropy as q → 0, mean absolute error at q = 1; .7 as published. Its authors train
    the final network with it; that the mixture of the last epoch's cross entropies sorts the samples is our choice,
    the same as in ``clean-then-distill``.
    """
    require(0 < q <= 1, f"q must be in (0, 1], got {q}")
    loop = _start(
        net, x_NCHW, given_N, n_classes, config, 1, resume, seed=seed, true_N=true_N, name="gce"
    )  # fmt: skip
    y_NK, w_N = one_hot(given_N, n_classes), torch.ones(len(given_N), device=given_N.device)

    while loop.epoch < config.epochs:
        _train(loop, 0, y_NK, w_N, loss_fn=_generalised(q))
        loop.rows.append({"epoch": loop.epoch})
        on_round(loop)
    split = trust.partition(_losses(loop, 0), given_N, n_classes, tau=0.5, scope="global", delta=0.0)
    return _refined(loop, split.trust, split.trusted)


@lru_cache
def _generalised(q: float) -> Loss:
    """One function for each q: steps on a GPU are kept by the function that is their loss."""

    def loss(logits_BK: Tensor, y_BK: Tensor, w_B: Tensor) -> Tensor:
        return generalised_cross_entropy(logits_BK, y_BK, w_B, q)

    return loss


def generalised_cross_entropy(logits_BK: Tensor, y_BK: Tensor, w_B: Tensor, q: float) -> Tensor:
    """Σ_k y_k (1 − p_k^q)/q, averaged with weights (Zhang & Sabuncu 2018, eq. 6)."""
    # the power by way of the logarithm: p^q has no finite slope at 0
    values_B = (y_BK * (1 - (q * logits_BK.log_softmax(1)).exp())).sum(1) / q
    return (w_B * values_B).sum() / w_B.sum().clamp_min(1e-12)


# Co-teaching ---------------------------------------------------------------------------------------------------------


def co_teaching(
    net: Network,
    x_NCHW: Tensor,
    given_N: Tensor,
    n_classes: int,
    config: DiversionConfig,
    *,
    seed: int,
    true_N: Tensor | None = None,
    resume: Resume = None,
    on_round: OnRound = lambda loop: None,
    forget_rate: float | None = None,
) -> RefinedSet:
    """Co-teaching (Han et al. 2018): of every batch each network learns the samples that its peer finds easiest.

    The share that a batch leaves out grows, round by round, from 0 to the forget rate τ: 1 − R(t) = τ·min(t/T, 1), with
    T = ``warmup``/2 rounds (theirs: 10 of 200 epochs). They are told the noise rate and use it as τ. Here, unless
    ``forget_rate`` is given, τ is the share of samples that a global mixture of both networks' mean loss finds wrong,
    estimated anew each round (our choice). Trust is 1 minus the mean rank of that loss over the second half of the
    rounds; a sample is trusted unless it is among the share τ of the least trusted (our choice).
    """
    require(forget_rate is None or 0 <= forget_rate < 1, f"forget_rate must be in [0, 1), got {forget_rate}")
    loop = _start(
        net, x_NCHW, given_N, n_classes, config, 2, resume, seed=seed, true_N=true_N, name="co-teaching"
    )  # fmt: skip
    t = loop.tensors
    full, total = max(1, config.warmup // 2), rounds("co-teaching", config)  # T, and rounds in all
    judged_from = total // 2
    if resume is None:
        t["suspicion"] = torch.zeros(len(given_N), dtype=torch.float64, device=given_N.device)
    while loop.epoch < total:
        tau = loop.rows[-1]["forget_rate"] if loop.rows else forget_rate or 0.0
        forget = tau * min(loop.epoch / full, 1.0)
        _exchange_epoch(loop, forget)
        loss_N = (_losses(loop, 0) + _losses(loop, 1)) / 2
        if forget_rate is None:
            split = trust.partition(loss_N, given_N, n_classes, tau=0.5, scope="global", delta=0.0)
            tau = 1 - split.trusted.double().mean().item()
        row = {"epoch": loop.epoch, "forgotten": forget, "forget_rate": tau}
        if loop.epoch >= judged_from:
            t["suspicion"] = t["suspicion"] + trust.ranks(loss_N)
            _keep_auroc(loop, row, -t["suspicion"])
        loop.rows.append(row)
        on_round(loop)
    trust_N = 1 - t["suspicion"] / (total - judged_from)
    kept = round((1 - loop.rows[-1]["forget_rate"]) * len(trust_N))
    trusted_N = torch.zeros(len(trust_N), dtype=torch.bool, device=trust_N.device)
    trusted_N[trust_N.argsort(descending=True, stable=True)[:kept]] = True
    return _refined(loop, trust_N, trusted_N)


def _exchange_epoch(loop: Loop, forget: float) -> None:
    """Both networks see the same batches; each learns the (1 − forget) share with the smallest losses of the other."""
    config, t = loop.config, loop.tensors
    sgd = config.sgd(loop.epoch, rounds("co-teaching", config))
    random = loop.generators[0]

    def loss(theta_2P, x_B, given_B, kept):
        l_2B = [cross_entropy(loop.net(theta_P, x_B), given_B, reduction="none") for theta_P in theta_2P]
        first, second = (l_B.detach().topk(kept, largest=False).indices for l_B in l_2B)
        return l_2B[0][second].mean() + l_2B[1][first].mean()

    step = grad(loss)
    for index_B in batches(len(loop.x), config.batch, random):
        x_B = augment.apply(augment.draw(config.augmentation, len(index_B), random), loop.x[index_B])
        theta_2P = (t["theta/0"], t["theta/1"])
        kept = max(1, round((1 - forget) * len(index_B)))
        for a, g_P in enumerate(step(theta_2P, x_B, loop.given[index_B], kept)):
            t[f"theta/{a}"], velocity_P = sgd.step(theta_2P[a], g_P, t.get(f"velocity/{a}"))
            if velocity_P is not None:
                t[f"velocity/{a}"] = velocity_P


# Confident learning --------------------------------------------------------------------------------------------------


def confident_learning(
    net: Network,
    x_NCHW: Tensor,
    given_N: Tensor,
    n_classes: int,
    config: DiversionConfig,
    *,
    seed: int,
    true_N: Tensor | None = None,
    resume: Resume = None,
    on_round: OnRound = lambda loop: None,
    folds: int = 4,
    quality: str = "self_confidence",
) -> RefinedSet:
    """Confident learning (Northcutt et al. 2021), as the package cleanlab does it, from out-of-fold predictions.

    Folds hold equal shares of every given class. Trust is cleanlab's label quality (``quality`` one of
    ``QUALITIES``), a sample is trusted unless ``find_label_issues`` finds it mislabelled; all with cleanlab's defaults.

    Raises:
        InputError: also where cleanlab is not installed.
    """
    find_label_issues, label_quality = _cleanlab()
    known("label quality", quality, QUALITIES)
    require(2 <= folds <= len(given_N), f"folds must be in [2, {len(given_N)}], got {folds}")
    loop = _start(
        net, x_NCHW, given_N, n_classes, config, folds, resume, seed=seed, true_N=true_N, name="confident-learning"
    )
    fold_N = _folds(loop, folds, resume)
    y_NK = one_hot(given_N, n_classes)
    while loop.epoch < folds * config.epochs:
        fold = loop.epoch // config.epochs
        _train(loop, fold, y_NK, (fold_N != fold).float())
        loop.rows.append({"epoch": loop.epoch, "fold": fold})
        on_round(loop)
    p_NK = torch.empty_like(y_NK, dtype=torch.float64)
    for fold in range(folds):
        held_out = fold_N == fold
        logits_nK, _ = predict(net, loop.tensors[f"theta/{fold}"], x_NCHW[held_out])
        p_NK[held_out] = logits_nK.double().softmax(1)
    labels, p = given_N.cpu().numpy(), p_NK.cpu().numpy()
    issue_N = torch.from_numpy(find_label_issues(labels, p, n_jobs=1)).to(given_N.device)
    trust_N = torch.from_numpy(label_quality(labels, p, method=quality)).to(given_N.device)
    return _refined(loop, trust_N.double(), ~issue_N)


def _folds(loop: Loop, folds: int, resume: Resume) -> Tensor:
    """Fold of every sample (N,): within each given class the folds take turns, in a random order (kept in the loop)."""
    if resume is None:
        order_N = torch.randperm(len(loop.given), generator=loop.generators[0], device=loop.given.device)
        sorted_N = order_N[loop.given[order_N].argsort(stable=True)]
        fold_N = torch.empty_like(sorted_N)
        fold_N[sorted_N] = torch.arange(len(sorted_N), device=sorted_N.device) % folds
        loop.tensors["fold"] = fold_N
    return loop.tensors["fold"]


def _cleanlab() -> tuple[Any, Any]:
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError as error:
        raise InputError(
            "arm confident-learning needs the package cleanlab: pip install cleanlab, or tadlib with its extra rivals"
        ) from error
    return find_label_issues, get_label_quality_scores


def rounds(arm: str, config: DiversionConfig) -> int:
    """How often ``on_round`` is called under an arm that trains a network."""
    return {"co-teaching": -(-config.epochs // 2), "confident-learning": 4 * config.epochs}.get(arm, config.epochs)
