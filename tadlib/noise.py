"""Noise models: given labels made from true ones.

Legend: N samples, K classes.

A noise model is one function in ``NOISE_MODELS``. Papers mean different things by the same name; what is meant here:

- ``symmetric``: to any class but the true one, all equally likely. (Where the true class is included, as in DivideMix
  and ELR, a nominal rate r is a realised r (K-1)/K.)
- ``asymmetric``: from each class of the data set's map to its look-alike, at rate r per mapped class, all at once: no
  label moves twice. On CIFAR-10 that makes r/2 overall.
- ``pairflip``: from class i to i + 1, the last to the first.
- ``human:SET``: what people answered (CIFAR-N; Wei et al. 2022).
- ``none``: given labels are the true ones.

At rate r exactly round(r n_k) of the n_k samples of a class flip, so the realised rate is the nominal one up to
rounding (our choice), and for one seed the samples that flip at a rate also flip at every higher one.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct
from torch import Tensor

from tadlib.artifacts import load_metadata, load_tensors, save_tensors
from tadlib.data import require_labels
from tadlib.errors import InputError, known, require
from tadlib.rng import generator

# Truck to automobile, bird to airplane, cat to dog and back, deer to horse (Patrini et al. 2017).
ASYMMETRIC_MAPS = {"cifar10": {9: 1, 2: 0, 3: 5, 5: 3, 4: 7}}

# CIFAR-N: file, and its sets of labels by the names used here.
HUMAN_LABELS = {
    "cifar10": (
        "CIFAR-10_human.pt",
        {
            "aggre": "aggre_label",
            "worse": "worse_label",
            "random1": "random_label1",
            "random2": "random_label2",
            "random3": "random_label3",
        },
    ),
    "cifar100": ("CIFAR-100_human.pt", {"fine": "noisy_label"}),
}


@dataclass(frozen=True, eq=False)
class NoisyLabels:
    """Given labels beside the true ones; on the CPU. Raises InputError where they do not fit together."""

    given_N: Tensor
    """(N,) int64"""
    true_N: Tensor | None
    """(N,) int64; None where the truth is unknown."""
    n_classes: int
    kind: str
    rate: float
    """Nominal: what was asked for (per mapped class where noise is asymmetric), or that of a whole file of labels."""
    seed: int
    transition_nominal: Tensor | None
    """(K, K) float64, row = true class, column = given class; None where unknown."""

    def __post_init__(self) -> None:
        require(self.n_classes >= 2, f"n_classes must be at least 2, got {self.n_classes}")
        _require_rate(self.rate)
        require_labels("given labels", self.given_N, self.n_classes)
        if self.true_N is not None:
            require_labels("true labels", self.true_N, self.n_classes)
            n, expected = len(self.given_N), len(self.true_N)
            require(n == expected, f"given labels must be as many as the true ones, {expected}, got {n}")
        if self.transition_nominal is not None:
            T, shape = self.transition_nominal, (self.n_classes, self.n_classes)
            fits = tuple(T.shape) == shape and T.dtype == torch.float64
            require(fits, f"transition_nominal must be {shape} float64, got {tuple(T.shape)} {T.dtype}")
            stochastic = bool((T >= 0).all()) and torch.allclose(T.sum(1), T.new_ones(self.n_classes))
            require(stochastic, f"rows of transition_nominal must be distributions, got sums {T.sum(1).tolist()}")

    @property
    def rate_realised(self) -> float | None:
        """Fraction of given labels that are wrong; None where the truth is unknown."""
        return None if self.true_N is None else (self.given_N != self.true_N).double().mean().item()

    @property
    def transition_realised(self) -> Tensor | None:
        """(K, K) float64, fraction of each true class (row) given each label; None where the truth is unknown.

        A class without samples has a one on the diagonal, so that every row sums to 1.
        """
        return None if self.true_N is None else transition(self.true_N, self.given_N, self.n_classes)

    @cached_property
    def checksum(self) -> str:
        """SHA-256, in hex, of the given labels, the true labels and the kind."""
        digest = hashlib.sha256(f"{self.kind}\0{len(self.given_N)}\0".encode())
        for labels in (self.given_N, self.true_N):
            digest.update(b"" if labels is None else labels.contiguous().numpy().data)
        return digest.hexdigest()

    def save(self, path: Path | str) -> None:
        """Write everything to a safetensors file, from which :meth:`load` restores the same bits."""
        optional = {"true": self.true_N, "transition_nominal": self.transition_nominal}
        tensors = {"given": self.given_N} | {name: t for name, t in optional.items() if t is not None}
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
    """What a noise model is asked for; the arguments of :func:`inject`, checked."""

    true_N: Tensor
    variant: str
    """What follows the colon of the kind; empty for most models."""
    rate: float | None
    n_classes: int
    rng: torch.Generator
    dataset: str | None
    root: Path | None
    index_N: Tensor | None


# Given labels (N,), nominal rate, nominal transition matrix (K, K).
Answer = tuple[Tensor, float, Tensor]


def inject(
    true_N: Tensor,
    kind: str,
    rate: float | None,
    *,
    n_classes: int,
    seed: int,
    dataset: str | None = None,
    root: Path | str | None = None,
    index_N: Tensor | None = None,
) -> NoisyLabels:
    """Labels with noise of ``kind``, a name in ``NOISE_MODELS`` and for some models a variant after a colon.

    rate: in [0, 1); 0 or None where the kind has no rate (none, human). dataset: needed where noise depends on it.
    root: folder with the files of human labels. index_N: (N,) place of each sample in the full training set, which
    those files cover; None for all of it. The same arguments give the same bits on every device.

    Raises InputError for an unknown kind, labels or a rate out of range, and human labels that are missing, damaged
    or in another order than ``true_N``.
    """
    require(n_classes >= 2, f"n_classes must be at least 2, got {n_classes}")
    true_N = true_N.detach().cpu()
    require_labels("true labels", true_N, n_classes)
    name, _, variant = kind.partition(":")
    known("noise", name, NOISE_MODELS)
    require(kind == name or name in WITH_VARIANT, f"noise {name} has no variants, got {kind!r}")
    if rate is not None:
        _require_rate(rate)
    if index_N is not None:
        index_N = index_N.detach().cpu()
        fits = index_N.shape == true_N.shape and index_N.dtype == torch.int64
        require(fits, f"index_N must be ({len(true_N)},) int64, got {tuple(index_N.shape)} {index_N.dtype}")
    root = None if root is None else Path(root).expanduser()
    request = Request(true_N, variant, rate, n_classes, generator(seed, "noise", kind), dataset, root, index_N)
    given_N, nominal, transition_nominal = NOISE_MODELS[name](request)
    return NoisyLabels(given_N, true_N.clone(), n_classes, kind, nominal, seed, transition_nominal)


def transition(true_N: Tensor, given_N: Tensor, n_classes: int) -> Tensor:
    """(K, K) float64, fraction of each true class (row) given each label (column); identity rows for absent classes."""
    counts_KK = torch.bincount(true_N * n_classes + given_N, minlength=n_classes**2).view(n_classes, n_classes).double()
    absent_K = counts_KK.sum(1) == 0
    counts_KK[absent_K, absent_K] = 1
    return counts_KK / counts_KK.sum(1, keepdim=True)


def _none(request: Request) -> Answer:
    require(not request.rate, f"noise none takes no rate (0 or None), got {request.rate}")
    return request.true_N.clone(), 0.0, torch.eye(request.n_classes, dtype=torch.float64)


def _symmetric(request: Request) -> Answer:
    K = request.n_classes
    shift_N = torch.randint(1, K, request.true_N.shape, generator=request.rng)  # never 0: the true class is excluded
    target_KK = (1 - torch.eye(K, dtype=torch.float64)) / (K - 1)
    return _flip(request, (request.true_N + shift_N) % K, target_KK, range(K))


def _asymmetric(request: Request) -> Answer:
    named = ", ".join(ASYMMETRIC_MAPS)
    require(
        request.dataset in ASYMMETRIC_MAPS,
        f"asymmetric noise follows a map between the classes of a data set; it must be one of: {named}, "
        f"got {request.dataset} (pairflip is defined for every data set)",
    )
    return _mapped(request, ASYMMETRIC_MAPS[str(request.dataset)])


def _pairflip(request: Request) -> Answer:
    return _mapped(request, {k: (k + 1) % request.n_classes for k in range(request.n_classes)})


def _mapped(request: Request, to: dict[int, int]) -> Answer:
    """Classes in ``to`` flip to the class it names, the others stay."""
    K = request.n_classes
    highest = max(*to, *to.values())
    require(highest < K, f"the map of {request.dataset} needs {highest + 1} classes, got n_classes {K}")
    to_K = torch.tensor([to.get(k, k) for k in range(K)])
    return _flip(request, to_K[request.true_N], torch.eye(K, dtype=torch.float64)[to_K], to)


def _flip(request: Request, target_N: Tensor, target_KK: Tensor, classes: Iterable[int]) -> Answer:
    """Give round(rate n_k) samples of each of ``classes`` their label in ``target_N``.

    target_KK: distribution of the target (column) in each true class (row). Samples are chosen by their true labels
    alone, so that no label moves twice.
    """
    require(request.rate is not None, "rate must be in [0, 1), got None")
    assert request.rate is not None
    given_N = request.true_N.clone()
    for k in classes:
        of_class = (request.true_N == k).nonzero().squeeze(1)
        order = torch.randperm(len(of_class), generator=request.rng)
        chosen = of_class[order[: round(request.rate * len(of_class))]]
        given_N[chosen] = target_N[chosen]
    stay_KK = torch.eye(request.n_classes, dtype=torch.float64)
    return given_N, float(request.rate), (1 - request.rate) * stay_KK + request.rate * target_KK


def _human(request: Request) -> Answer:
    """CIFAR-N. Rate and transition matrix of the whole file are the nominal ones, those of ``true_N`` the realised."""
    named = ", ".join(HUMAN_LABELS)
    require(request.dataset in HUMAN_LABELS, f"human labels exist for: {named}, got {request.dataset}")
    require(not request.rate, f"human labels have the rate they have: rate must be 0 or None, got {request.rate}")
    file, sets = HUMAN_LABELS[str(request.dataset)]
    require(
        request.variant != "coarse",
        "human:coarse labels the 20 superclasses of cifar100, another task than its 100 classes; expected fine",
    )
    known(f"set of human labels of {request.dataset}", request.variant, sets)
    path = _find(file, request.root)
    clean_M, given_M = _read_labels(path, ("clean_label", sets[request.variant]), request.n_classes)

    index_N = torch.arange(len(request.true_N)) if request.index_N is None else request.index_N
    n, m = len(index_N), len(clean_M)
    require(request.index_N is not None or n == m, f"index_N must say which of the {m} labels in {path} belong to {n}")
    outside_N = (index_N < 0) | (index_N >= m)
    require(not outside_N.any(), f"index_N must be in [0, {m}), got {index_N[outside_N][:1].tolist()}")
    differs_N = clean_M[index_N] != request.true_N
    require(
        not differs_N.any(),
        f"{path} is in another order than the images: its true labels differ for {int(differs_N.sum())} of {n}, "
        f"first at {differs_N.nonzero()[:1].flatten().tolist()}",
    )
    rate = (clean_M != given_M).double().mean().item()
    return given_M[index_N], rate, transition(clean_M, given_M, request.n_classes)


NOISE_MODELS: dict[str, Callable[[Request], Answer]] = {
    "none": _none,
    "symmetric": _symmetric,
    "asymmetric": _asymmetric,
    "pairflip": _pairflip,
    "human": _human,
}
WITH_VARIANT = ("human",)


def _find(file: str, root: Path | None) -> Path:
    """``file`` in ``root``/cifar-n or in ``root``."""
    require(root is not None, f"human labels are read from {file}: give its folder, --root DIR (in Python root=DIR)")
    assert root is not None
    places = [root / "cifar-n" / file, root / file]
    for path in places:
        if path.is_file():
            return path
    raise InputError(f"human labels missing: put {file} (from github.com/UCSC-REAL/cifar-10-100n) at {places[0]}")


def _read_labels(path: Path, names: tuple[str, str], n_classes: int) -> tuple[Tensor, Tensor]:
    """Two label arrays of a CIFAR-N file. It pickles numpy arrays; only their constructors are let in."""
    # The published files name the function as numpy 1 did; files saved since then as numpy 2 does.
    old_name = (_reconstruct, "numpy.core.multiarray._reconstruct")
    constructors: list[Any] = [old_name, _reconstruct, np.ndarray, np.dtype, np.dtypes.Int64DType]
    try:
        with torch.serialization.safe_globals(constructors):
            content = torch.load(path, map_location="cpu", weights_only=True)
        first_M, second_M = (torch.from_numpy(np.asarray(content[name])) for name in names)
    except Exception as error:  # a damaged file raises whatever its reader trips over
        raise InputError(f"{path} is damaged or no file of CIFAR-N's labels ({type(error).__name__})") from error
    for name, labels in zip(names, (first_M, second_M)):
        require_labels(f"{name} in {path}", labels, n_classes)
    n, m = len(first_M), len(second_M)
    require(n == m, f"{path}: {names[1]} must be as long as {names[0]}, {n}, got {m}")
    return first_M, second_M


def _require_rate(rate: float) -> None:
    fits = isinstance(rate, int | float) and not isinstance(rate, bool) and 0 <= rate < 1
    require(fits, f"rate must be in [0, 1), got {rate!r}")
