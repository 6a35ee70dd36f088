"""Labels from files: human ones (CIFAR-N), and any list of noisy labels.

Legend: N samples, M labels in a file, K classes.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct
from torch import Tensor

from tadlib.data import require_labels
from tadlib.data.class_maps import superclass_of
from tadlib.errors import InputError, known, require
from tadlib.noise.labels import Answer, NoisyLabels, Request, transition
from tadlib.store import load_table

# CIFAR-N (Wei et al. 2022): file, and its sets of labels by the names used here.
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
    "cifar100-coarse": ("CIFAR-100_human.pt", {"coarse": "noisy_coarse_label"}),
}
OTHER_TASK = {
    ("cifar100", "coarse"): "human:coarse labels the 20 superclasses of cifar100: its data set is cifar100-coarse",
    ("cifar100-coarse", "fine"): "human:fine labels the 100 classes of cifar100: its data set is cifar100",
}
COLUMN = "given_label"  # as in the labels.parquet of a refined set


def human_set(dataset: str, variant: str) -> tuple[str, str]:
    """File of a set of human labels of ``dataset``, and the set's name there; InputError where there is none."""
    require(dataset in HUMAN_LABELS, f"human labels exist for: {', '.join(HUMAN_LABELS)}, got {dataset}")
    file, sets = HUMAN_LABELS[dataset]
    other = OTHER_TASK.get((dataset, variant))
    require(other is None, f"{other}, got {dataset}")
    known(f"set of human labels of {dataset}", variant, sets)
    return file, sets[variant]


def human(request: Request) -> Answer:
    """CIFAR-N. Rate and transition matrix of the whole file are the nominal ones, those of ``true_N`` the realised."""
    dataset = str(request.dataset)
    require(not request.rate, f"human labels have the rate they have: rate must be 0 or None, got {request.rate}")
    file, name = human_set(dataset, request.variant)
    path = _find(file, request.root)
    clean_M, given_M = _read_human(path, "clean_label", name)
    if dataset == "cifar100-coarse":  # the file has the true classes, not their superclasses
        require_labels(f"clean_label in {path}", clean_M, 100)
        clean_M = torch.tensor(superclass_of())[clean_M]
    require_labels(f"clean_label in {path}", clean_M, request.n_classes)
    require_labels(f"{name} in {path}", given_M, request.n_classes)

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


def listed(request: Request) -> Answer:
    """Labels of a file (``file:PATH``): one for every image of the full training set, or of those in use, in order.

    A safetensors file of :meth:`~tadlib.noise.labels.NoisyLabels.save`, a .npy array, or a .csv or .parquet table with
    one column or with one named ``given_label``; integers all. Rate and transition matrix are the realised ones.
    """
    require(not request.rate, f"labels of a file have the rate they have: rate must be 0 or None, got {request.rate}")
    require(bool(request.variant), "labels of a file need its path, file:PATH, got 'file:'")
    path, n = Path(request.variant).expanduser(), len(request.true_N)
    given_M, true_M = read_list(path)
    require_labels(f"labels in {path}", given_M, request.n_classes)
    m, index_N = len(given_M), request.index_N
    if m == n:
        chosen = torch.arange(n)
    else:
        full = n if index_N is None else request.n_full or int(index_N.max()) + 1
        exact = index_N is None or request.n_full is not None
        fits = m == full if exact else m >= full
        part = "" if full == n else f", or {n}, one for each image in use"
        require(fits, f"{path} must hold {full} labels, one for each training image{part}, got {m}")
        assert index_N is not None
        chosen = index_N
    if true_M is not None:
        differs_N = true_M[chosen] != request.true_N
        differ = int(differs_N.sum())
        require(differ == 0, f"{path} belongs to other images: its true labels differ for {differ} of {n}")
    noisy_N = given_M[chosen]
    rate = (noisy_N != request.true_N).double().mean().item()
    require(rate < 1, f"{path}: every label differs from the true one; are they numbered or ordered in another way?")
    return noisy_N, rate, transition(request.true_N, noisy_N, request.n_classes)


def read_list(path: Path) -> tuple[Tensor, Tensor | None]:
    """Noisy labels (M,) int64 in a file (see :func:`listed`), and the true ones where it has them; never unpickles."""
    known("type of file of labels", path.suffix, (".safetensors", ".npy", ".csv", ".parquet"))
    require(path.is_file(), f"file of labels {path} does not exist")
    if path.suffix == ".safetensors":
        labels = NoisyLabels.load(path)
        return labels.noisy_N, labels.true_N
    if path.suffix == ".npy":
        try:
            values = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is damaged or no array of integers: {error}") from error
    else:
        values = _column(path)
    fits = values.ndim == 1 and values.dtype.kind in "iu"
    require(fits, f"{path} must hold one column of integers, got shape {values.shape} of {values.dtype}")
    return torch.from_numpy(values.astype(np.int64)), None


def list_checksum(path: Path | str) -> str:
    """SHA-256, in hex, of the noisy labels that :func:`read_list` finds in a file, whatever its format."""
    given_M, _ = read_list(Path(path).expanduser())
    return hashlib.sha256(given_M.contiguous().numpy().data).hexdigest()


def _column(path: Path) -> np.ndarray:
    """The one column of a table, or its column ``given_label``. A CSV file may lack a line of names."""
    import pandas as pd

    if path.suffix == ".parquet":
        table = load_table(path)
    else:
        try:
            table = pd.read_csv(path, header=None, dtype=str, skip_blank_lines=True)
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is damaged or no table: {error}") from error
        if not str(table.iloc[0, 0]).strip().lstrip("+-").isdigit():
            table = table.iloc[1:].set_axis(table.iloc[0].tolist(), axis=1)
    name = COLUMN if COLUMN in table.columns else table.columns[0]
    require(
        name == COLUMN or table.shape[1] == 1,
        f"{path} must have one column or one named {COLUMN}, got {list(table.columns)}",
    )
    column = table[name]
    if path.suffix == ".csv":
        try:
            return np.array([int(value) for value in column], dtype=np.int64)
        except ValueError as error:
            raise InputError(f"{path} must hold one column of integers: {error}") from error
    return column.to_numpy()


def human_checksum(dataset: str, root: Path | None) -> str:
    """SHA-256, in hex, of the file with the human labels of ``dataset``; InputError where there are none."""
    require(dataset in HUMAN_LABELS, f"human labels exist for: {', '.join(HUMAN_LABELS)}, got {dataset}")
    return hashlib.sha256(_find(HUMAN_LABELS[dataset][0], root).read_bytes()).hexdigest()


def _find(file: str, root: Path | None) -> Path:
    """``file`` in ``root``/cifar-n or in ``root``."""
    require(root is not None, f"human labels are read from {file}: give its folder, --root DIR (in Python root=DIR)")
    assert root is not None
    places = [root / "cifar-n" / file, root / file]
    for path in places:
        if path.is_file():
            return path
    raise InputError(f"human labels missing: put {file} (from github.com/UCSC-REAL/cifar-10-100n) at {places[0]}")


def _read_human(path: Path, *names: str) -> list[Tensor]:
    """Label arrays of a CIFAR-N file. It pickles numpy arrays; only their constructors are let in."""
    # The published files name the function as numpy 1 did; files saved since then as numpy 2 does.
    old_name = (_reconstruct, "numpy.core.multiarray._reconstruct")
    constructors: list[Any] = [old_name, _reconstruct, np.ndarray, np.dtype, np.dtypes.Int64DType]
    try:
        with torch.serialization.safe_globals(constructors):
            content = torch.load(path, map_location="cpu", weights_only=True)
        arrays = [torch.from_numpy(np.asarray(content[name])) for name in names]
    except Exception as error:  # a damaged file raises whatever its reader trips over
        raise InputError(f"{path} is damaged or no file of CIFAR-N's labels ({type(error).__name__})") from error
    first, *others = arrays
    for name, labels in zip(names[1:], others):
        n, m = len(first), len(labels)
        require(n == m, f"{path}: {name} must be as long as {names[0]}, {n}, got {m}")
    return arrays
