"""Noisy labels: given ones beside the true ones, and what a noise model is asked for.

Legend: N samples, K classes, C H W image.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from tadlib.data import require_labels
from tadlib.errors import require
from tadlib.store import load_metadata, load_tensors, save_tensors


@dataclass(frozen=True, eq=False)
class NoisyLabels:
    """Noisy labels beside the true ones; on the CPU. Raises InputError where they do not fit together."""

    noisy_N: Tensor
    """(N,) int64"""
    true_N: Tensor | None
    """(N,) int64; None where the truth is unknown."""
    n_classes: int
    kind: str
    rate: float
    """Nominal: what was asked for (per mapped class where noise is asymmetric), that of a whole file of human labels,
    or that of labels read from a list."""
    seed: int
    transition_nominal: Tensor | None
    """(K, K) float64, row = true class, column = given class; None where unknown."""

    def __post_init__(self) -> None:
        require(self.n_classes >= 2, f"n_classes must be at least 2, got {self.n_classes}")
        require_rate(self.rate)
        require_labels("noisy labels", self.noisy_N, self.n_classes)
        if self.true_N is not None:
            require_labels("true labels", self.true_N, self.n_classes)
            n, expected = len(self.noisy_N), len(self.true_N)
            require(n == expected, f"noisy labels must be as many as the true ones, {expected}, got {n}")
        if self.transition_nominal is not None:
            T, shape = self.transition_nominal, (self.n_classes, self.n_classes)
            fits = tuple(T.shape) == shape and T.dtype == torch.float64
            require(fits, f"transition_nominal must be {shape} float64, got {tuple(T.shape)} {T.dtype}")
            stochastic = bool((T >= 0).all()) and torch.allclose(T.sum(1), T.new_ones(self.n_classes))
            require(stochastic, f"rows of transition_nominal must be distributions, got sums {T.sum(1).tolist()}")

    @property
    def rate_realised(self) -> float | None:
        """Fraction of noisy labels that are wrong; None where the truth is unknown."""
        return None if self.true_N is None else (self.noisy_N != self.true_N).double().mean().item()

    @property
    def transition_realised(self) -> Tensor | None:
        """(K, K) float64, fraction of each true class (row) given each label; None where the truth is unknown.

        A class without samples has a one on the diagonal, so that every row sums to 1.
        """
        return None if self.true_N is None else transition(self.true_N, self.noisy_N, self.n_classes)

    @cached_property
    def checksum(self) -> str:
        """SHA-256, in hex, of the noisy labels, the true labels and the kind."""
        digest = hashlib.sha256(f"{self.kind}\0{len(self.noisy_N)}\0".encode())
        for labels in (self.noisy_N, self.true_N):
            digest.update(b"" if labels is None else labels.contiguous().numpy().data)
        return digest.hexdigest()

    def save(self, path: Path | str) -> None:
        """Write everything to a safetensors file, from which :meth:`load` restores the same bits."""
        optional = {"true": self.true_N, "transition_nominal": self.transition_nominal}
        tensors = {"given": self.noisy_N} | {name: t for name, t in optional.items() if t is not None}
        scalars = {"n_classes": self.n_classes, "kind": self.kind, "rate": self.rate, "seed": self.seed}
        save_tensors(path, tensors, {"noise": json.dumps(scalars)})

    @staticmethod
    def load(path: Path | str) -> "NoisyLabels":
        """Read a file of :meth:`save`; InputError when it is missing, damaged or holds something else."""
        tensors, metadata = load_tensors(path), load_metadata(path)
        require("noise" in metadata and "given" in tensors, f"{path} does not hold noisy labels")
        scalars = json.loads(metadata["noise"])
        return NoisyLabels(
            tensors["given"], tensors.get("true"), **scalars, transition_nominal=tensors.get("transition_nominal")
        )


@dataclass(frozen=True)
class Request:
    """What a noise model is asked for; the arguments of :func:`tadlib.noise.models.inject`, checked."""

    true_N: Tensor
    variant: str
    """What follows the colon of the kind; empty for most models."""
    rate: float | None
    n_classes: int
    rng: torch.Generator
    dataset: str | None
    root: Path | None
    index_N: Tensor | None
    n_full: int | None = None
    x_NCHW: Tensor | None = None

    @property
    def asked_rate(self) -> float:
        """The rate, where a model needs one; InputError where none was given."""
        require(self.rate is not None, "rate must be in [0, 1), got None")
        assert self.rate is not None
        return float(self.rate)


# Noisy labels (N,), nominal rate, nominal transition matrix (K, K).
Answer = tuple[Tensor, float, Tensor]


def transition(true_N: Tensor, noisy_N: Tensor, n_classes: int) -> Tensor:
    """(K, K) float64, fraction of each true class (row) given each label (column); identity rows for absent classes."""
    counts_KK = torch.bincount(true_N * n_classes + noisy_N, minlength=n_classes**2).view(n_classes, n_classes).double()
    absent_K = counts_KK.sum(1) == 0
    counts_KK[absent_K, absent_K] = 1
    return counts_KK / counts_KK.sum(1, keepdim=True)


def require_rate(rate: float) -> None:
    fits = isinstance(rate, int | float) and not isinstance(rate, bool) and 0 <= rate < 1
    require(fits, f"rate must be in [0, 1), got {rate!r}")
