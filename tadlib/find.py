"""Label errors from arrays alone: probabilities, embeddings or images, without a data set, a network or a folder."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tadlib.config import PosteriorConfig
from tadlib.data.matrices import require_embeddings, require_probabilities, warn_of_in_sample
from tadlib.errors import require
from tadlib.nn.training import one_hot
from tadlib.rng import generator
from tadlib.trust import decisions, pooling, predictors


def find_label_errors(
    labels: Any,
    probabilities: Any = None,
    embeddings: Any = None,
    images: Any = None,
    seed: int = 0,
    *,
    cost: float = PosteriorConfig.cost,
) -> pd.DataFrame:
    """Which labels are probably wrong, by the trust posterior of one or several predictors; nothing is trained.

    Args:
        labels: (N,) integers in [0, K), as a list, NumPy array or tensor.
        probabilities: (N, K) of the labels by any classifier, each row by a model that was not trained on it.
        embeddings: (N, D) of any frozen network.
        images: (N, H, W), (N, C, H, W) or (N, H, W, C), of which patches are taken; not mirrored.
        seed: of the choice of patches.
        cost: what a missed wrong label costs, in needless checks; decides ``flagged``.

    Returns:
        One row for each label: ``index, label, trust`` (probability that the label is right), ``flagged, suggested``
        (most probable class), ``probability`` (of that class). In ``attrs``: ``noise_rate`` (estimated share of wrong
        labels), ``interval`` (low, high), ``transition`` (K, K; row: true class), and ``expected_precision`` and
        ``expected_recall`` of ``flagged``.

    Raises:
        InputError: where an array has the wrong form or length, or none is given.
    """
    require(isinstance(cost, int | float | np.number) and cost > 0, f"cost must be a positive number, got {cost!r}")
    given = {"probabilities": probabilities, "embeddings": embeddings, "images": images}
    require(any(v is not None for v in given.values()), f"give at least one of {', '.join(given)}")
    label_N = _labels(labels)
    n, k = len(label_N), int(label_N.max()) + 1
    found = []
    if probabilities is not None:
        p_NK = require_probabilities(_array("probabilities", probabilities), n, None, "probabilities")
        require(p_NK.shape[1] >= k, f"probabilities have {p_NK.shape[1]} columns, and labels go to {k - 1}")
        k = p_NK.shape[1]
        warn_of_in_sample(p_NK, label_N, "probabilities")
        found.append(pooling.unmixed(p_NK, label_N))
    z_ND = None if embeddings is None else require_embeddings(_array("embeddings", embeddings), n, "embeddings")
    x_NCHW = None if images is None else _images(images, n)
    seen = z_ND if x_NCHW is None else x_NCHW
    if seen is not None:
        there = label_N.unique().tolist()
        absent = next((i for i, label in enumerate(there) if label != i), len(there))
        require(absent == k, f"class {absent} has no label; number classes from 0 without gaps")
        group_N = predictors.copies(seen)
        labels_N = one_hot(label_N, k), torch.ones(n, dtype=torch.bool), group_N
        regressions = []
        if z_ND is not None:
            regressions.append(predictors.leave_one_out(z_ND, *labels_N))
        if x_NCHW is not None:
            how: dict[str, Any] = {"count": PosteriorConfig.filters, "mirror": False}
            how["generator"] = generator(seed, "find", "patches")
            regressions.append(predictors.leave_one_out_of_patches(x_NCHW, *labels_N, **how))
        found += [pooling.regressed(r_NK, label_N, group_N) for r_NK in regressions]
    return _table(label_N, found, cost)


def _table(label_N: Tensor, found: list[pooling.Prediction], cost: float) -> pd.DataFrame:
    posterior = pooling.combined(found, label_N)
    q_NK, rate = posterior.q, posterior.noise_rate
    trust_N, (probability_N, suggested_N) = q_NK.gather(1, label_N[:, None])[:, 0], q_NK.max(1)
    flagged_N = decisions.flagged(trust_N, cost)
    precision, recall = decisions.expected(trust_N, flagged_N)
    if rate.uncertain:
        warnings.warn(rate.doubt, stacklevel=3)
    columns = {"index": torch.arange(len(label_N)), "label": label_N, "trust": trust_N, "flagged": flagged_N}
    columns |= {"suggested": suggested_N, "probability": probability_N}
    table = pd.DataFrame({name: value.numpy() for name, value in columns.items()})
    table.attrs = {
        "noise_rate": rate.estimate,
        "interval": (rate.low, rate.high),
        "transition": posterior.transition.numpy(),
        "expected_precision": precision,
        "expected_recall": recall,
    }
    return table


def _array(name: str, values: Any) -> Tensor:
    try:
        found = values.detach().cpu() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    except (TypeError, ValueError) as error:
        require(False, f"{name} must be an array of numbers, got {type(values).__name__}: {error}")
        raise
    real = found.layout == torch.strided and not found.is_complex()
    require(real, f"{name} must be a dense array of real numbers, got {found.layout} of {found.dtype}")
    return found


def _labels(labels: Any) -> Tensor:
    label_N = _array("labels", labels)
    whole = label_N.ndim == 1 and not label_N.is_floating_point() and label_N.dtype != torch.bool and len(label_N) > 1
    require(whole, f"labels must be two or more integers (N,), got {label_N.dtype} of shape {tuple(label_N.shape)}")
    require(int(label_N.min()) >= 0, f"labels must not be negative, got {int(label_N.min())}")
    require(int(label_N.max()) > 0, "labels must have two classes or more, got one")
    return label_N.long()


def _images(images: Any, n: int) -> Tensor:
    x = _array("images", images)
    require(x.ndim in (3, 4), f"images must be (N, H, W), (N, C, H, W) or (N, H, W, C), got shape {tuple(x.shape)}")
    require(len(x) == n, f"got {len(x)} images and {n} labels; expected as many")
    x_NCHW = x[:, None] if x.ndim == 3 else x
    if x_NCHW.shape[1] not in (1, 3) and x_NCHW.shape[3] in (1, 3):
        x_NCHW = x_NCHW.permute(0, 3, 1, 2)
    x_NCHW = x_NCHW.float()
    bad = int((~x_NCHW.flatten(1).sum(1).isfinite()).sum())
    require(bad == 0, f"images must be finite, got NaN or infinity in {bad} of {n}")
    mean, std = x_NCHW.mean((0, 2, 3), keepdim=True), x_NCHW.std((0, 2, 3), keepdim=True)
    return ((x_NCHW - mean) / std.clamp_min(1e-3 * std.max().clamp_min(1e-12))).contiguous()
