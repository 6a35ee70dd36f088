"""Arms: what the labels go through before distillation. Each is one function of the same form.

Legend: N samples, K classes.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from tadlib import diversion, rivals
from tadlib.diversion import TRUSTED, DiversionConfig, RefinedSet
from tadlib.errors import known, require
from tadlib.nn.networks import Network
from tadlib.nn.training import one_hot


def _as_they_are(given_N: Tensor, label_N: Tensor, n_classes: int) -> RefinedSet:
    n, device = len(given_N), given_N.device
    return RefinedSet(
        given=given_N,
        y=one_hot(label_N, n_classes),
        weight=torch.ones(n, device=device),
        trust=(label_N == given_N).double(),
        space=torch.full((n,), TRUSTED, dtype=torch.int8, device=device),
        reliability=torch.zeros(n, device=device),
    )


def vanilla(net, x_NCHW, given_N, n_classes, config, *, seed, true_N=None, **hooks) -> RefinedSet:
    """The given labels, all trusted: what every distillation method does."""
    return _as_they_are(given_N, given_N, n_classes)


def oracle(net, x_NCHW, given_N, n_classes, config, *, seed, true_N=None, **hooks) -> RefinedSet:
    """The true labels of all samples: as good as labels can be. InputError where they are unknown."""
    require(true_N is not None, "arm oracle needs the true labels, which this data set does not have")
    return _as_they_are(given_N, true_N, n_classes)


def clean_then_distill(net, x_NCHW, given_N, n_classes, config, **rest) -> RefinedSet:
    """DivideMix's filter (Li et al. 2020) after the same number of epochs, then distil what passes.

    Per-sample loss of the last epoch, scaled over all classes together, one two-component mixture, posterior
    above one half. It is the dual loop with everything else switched off.
    """
    return diversion.divert(net, x_NCHW, given_N, n_classes, loss_filter(config), **rest)


def loss_filter(config: DiversionConfig) -> DiversionConfig:
    """The settings under which the dual loop is DivideMix's filter, at the training budget of ``config``."""
    training = ("epochs", "lr", "cooldown", "momentum", "weight_decay", "batch", "augmentation")
    return DiversionConfig(
        **{name: getattr(config, name) for name in training},
        warmup=config.epochs,
        auditors=1,
        evidence="loss",
        scope="global",
        ema=0.0,
        tau_start=0.5,
        tau_end=0.5,
        delta=0.0,
        minimum=0.0,
        consistency=0.0,
        confidence_penalty=0.0,
        look_every=1,
        recalibrate_every=0,
        holdout=0.0,
        average=0.0,
        mirror=False,
        targets="refined",
    )


ARMS: dict[str, Callable[..., RefinedSet]] = {
    "vanilla": vanilla,
    "clean-then-distill": clean_then_distill,
    "co-teaching": rivals.co_teaching,
    "confident-learning": rivals.confident_learning,
    "gce": rivals.gce,
    "tad": diversion.divert,
    "oracle": oracle,
}
LEARNED = ("clean-then-distill", "co-teaching", "confident-learning", "gce", "tad")  # arms that train a network


def settings_used(arm: str, config: DiversionConfig) -> DiversionConfig:
    """``config`` with everything that ``arm`` makes no use of at a fixed value: what its result depends on."""
    if arm == "tad":
        return config
    return replace(loss_filter(config), warmup=config.warmup) if arm == "co-teaching" else loss_filter(config)


def refine(arm: str, net: Network, x_NCHW: Tensor, given_N: Tensor, n_classes: int, config, **rest) -> RefinedSet:
    """Carry out ``arm``; arguments as in :func:`tadlib.diversion.divert`."""
    known("arm", arm, ARMS)
    return ARMS[arm](net, x_NCHW, given_N, n_classes, config, **rest)
