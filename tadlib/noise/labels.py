"""Noisy labels beside the true ones, and what a noise model is asked for.

Legend: N samples, K classes, C H W image.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tadlib.checks import require_labels, require_tensor
from tadlib.errors import InputError, require
from tadlib.store import load_metadata, load_tensors, save_tensors

# What a file of noisy labels holds: fields, under the names of their tensors, and of the others
TENSORS = {"noisy_N": "given", "true_N": "true", "transition_nominal": "transition_nominal"}
TENSORS |= {"checked_N": "checked", "original_N": "original"}
SCALARS = ("n_classes", "kind", "rate", "seed")


@dataclass(frozen=True, eq=False)
class NoisyLabels:
    """Noisy labels beside the true ones; on the CPU. Raises InputError where they do not fit together."""

    noisy_N: Tensor
    """(N,) int64"""
    true_N: Tensor | None
    """(N,) int64; None where the truth is unknown."""
    n_classes: int
    kind: str
    rate: float | None
    """Nominal: what was asked for (per mapped class where noise is asymmetric), that of a whole file of human labels,
    or that of labels read from a list; None where the truth is unknown."""
    seed: int
    transition_nominal: Tensor | None
    """(K, K) float64, row = true class, column = noisy label; None where unknown."""
    checked_N: Tensor | None = None
    """(N,) bool, labels that a person checked (:mod:`tadlib.noise.corrections`); None: none."""
    original_N: Tensor | None = None
    """(N,) int64, labels before some were checked; None: as ``noisy_N``."""

    def __post_init__(self) -> None:
        K = self.n_classes
        require(K >= 2, f"n_classes must be at least 2, got {K}")
        require_rate(0 if self.rate is None else self.rate)
        require_labels("noisy labels", self.noisy_N, K)
        if self.true_N is not None:
            require_labels("true labels", self.true_N, K, len(self.noisy_N))
        if self.checked_N is not None:
            require_tensor("checked labels", self.checked_N, (len(self.noisy_N),), torch.bool)
        if self.original_N is not None:
            require_labels("original labels", self.original_N, K, len(self.noisy_N))
        if self.transition_nominal is not None:
            T_KK = self.transition_nominal
            require_tensor("transition_nominal", T_KK, (K, K), torch.float64)
            stochastic = bool((T_KK >= 0).all()) and torch.allclose(T_KK.sum(1), T_KK.new_ones(K))
            require(stochastic, f"rows of transition_nominal must be distributions, got sums {T_KK.sum(1).tolist()}")

    @staticmethod
    def as_given(noisy_N: Tensor, true_N: Tensor | None, n_classes: int, seed: int) -> "NoisyLabels":
        """Labels that came with their noise, and the true ones where these are known."""
        noisy_N = noisy_N.cpu()
        rate = None if true_N is None else realised_rate(true_N, noisy_N)
        T_KK = None if true_N is None else transition(true_N, noisy_N, n_classes)
        return NoisyLabels(noisy_N, true_N, n_classes, "none", rate, seed, T_KK)

    @property
    def rate_realised(self) -> float | None:
        """Fraction of noisy labels that are wrong; None where the truth is unknown."""
        return None if self.true_N is None else realised_rate(self.true_N, self.noisy_N)

    @property
    def transition_realised(self) -> Tensor | None:
        """(K, K) float64, fraction of each true class (row) with each noisy label; None where the truth is unknown.

        A class without samples has a one on the diagonal, so that every row sums to 1.
        """
        return None if self.true_N is None else transition(self.true_N, self.noisy_N, self.n_classes)

    @cached_property
    def checksum(self) -> str:
        """SHA-256, in hex, of the noisy labels, the true labels and the kind, and of what was checked and before."""
        digest = hashlib.sha256(f"{self.kind}\0{len(self.noisy_N)}\0".encode())
        for labels in (self.noisy_N, self.true_N, self.checked_N, self.original_N):
            digest.update(b"" if labels is None else labels.contiguous().numpy().data)
        return digest.hexdigest()

    def save(self, path: Path | str) -> None:
        """Write everything to a safetensors file, from which :meth:`load` restores the same bits."""
        tensors = {name: getattr(self, field) for field, name in TENSORS.items()}
        present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        save_tensors(path, present, {"noise": json.dumps({name: getattr(self, name) for name in SCALARS})})

    @staticmethod
    def load(path: Path | str) -> "NoisyLabels":
        """Read a file of :meth:`save`; InputError when it is missing, damaged or holds something else."""
        tensors, metadata = load_tensors(path), load_metadata(path)
        require("noise" in metadata and "given" in tensors, f"{path} does not hold noisy labels")
        held: dict[str, Any] = {field: tensors.get(name) for field, name in TENSORS.items()}
        try:
            return NoisyLabels(**held, **{name: json.loads(metadata["noise"])[name] for name in SCALARS})
        except (KeyError, TypeError, ValueError, RecursionError) as error:  # InputError among them
            raise InputError(f"{path} does not hold noisy labels: {error}") from error


@dataclass(frozen=True)
class Request:
    """What a noise model is asked for; the arguments of :func:`tadlib.noise.models.inject`, checked."""

    true_N: Tensor
    variant: str
    """What follows the colon of the kind; empty for most models."""
    rate: float
    """In [0, 1); 0 for a model that has a rate of its own."""
    n_classes: int
    rng: torch.Generator
    dataset: str | None
    root: Path | None
    index_N: Tensor | None
    n_full: int | None = None
    x_NCHW: Tensor | None = None
    paths: Sequence[str] | None = None


# Noisy labels (N,), nominal rate, nominal transition matrix (K, K).
Answer = tuple[Tensor, float, Tensor]


def transition(true_N: Tensor, noisy_N: Tensor, n_classes: int) -> Tensor:
    """(K, K) float64, fraction of each true class (row) with each noisy label (column); identity rows for absent
    classes."""
    counts_KK = torch.bincount(true_N * n_classes + noisy_N, minlength=n_classes**2).view(n_classes, n_classes).double()
    absent_K = counts_KK.sum(1) == 0
    counts_KK[absent_K, absent_K] = 1
    return counts_KK / counts_KK.sum(1, keepdim=True)


def realised_rate(true_N: Tensor, noisy_N: Tensor) -> float:
    """Fraction of noisy labels that are wrong."""
    return (noisy_N != true_N).double().mean().item()


def require_rate(rate: object) -> None:
    """InputError unless ``rate`` is a number in [0, 1)."""
    fits = isinstance(rate, int | float) and not isinstance(rate, bool) and 0 <= rate < 1
    require(fits, f"rate must be in [0, 1), got {rate!r}")
