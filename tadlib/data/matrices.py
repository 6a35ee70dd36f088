"""Tables of numbers about images, one row an image: embeddings and predicted probabilities, from arrays and files."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tadlib.errors import InputError, parsing, readable, require, some
from tadlib.store import load_table, load_tensors

NAMES = ("path", "index")  # columns that say which image a row is of; the first one counts
ROUNDING = 1e-3  # by which probabilities of a row may miss 1; then they are divided by their sum
IN_SAMPLE = 0.999  # share of labels that are the most probable class, from which on probabilities seem in-sample


class Rows(NamedTuple):
    """A table of numbers (M, D) float32, and the images of its rows where it names them: by ``index``, their place in
    the full training set, by ``path``, or both."""

    values: Tensor
    names: dict[str, list] = {}


def read_matrix(path: Path | str) -> Rows:
    """The table of a file .npy, .safetensors (one tensor) or .parquet (its numeric columns but for ``index`` and
    ``path``). InputError where the file is missing, damaged or of another form."""
    path, names = readable("table of numbers", path), dict[str, list]()
    suffix = path.suffix.lower()
    if suffix == ".npy":
        # a damaged header raises anything
        with parsing(path, "no array of numbers", Exception), path.open("rb") as file:
            found = torch.from_numpy(np.array(np.load(file, allow_pickle=False), dtype=np.float32))
    elif suffix == ".safetensors":
        tensors = load_tensors(path)
        require(len(tensors) == 1, f"{path} must hold one tensor, got {some([*tensors]) or 'none'}")
        found = next(iter(tensors.values())).float()
    elif suffix == ".parquet":
        table = load_table(path)
        table = table.reset_index() if table.index.name in NAMES else table
        names = {name: table.pop(name).tolist() for name in NAMES if name in table}
        names = {by: [v if isinstance(v, int | float) else str(v) for v in names[by]] for by in names}
        with parsing(path, "no table of numbers", ValueError, TypeError):
            found = torch.from_numpy(np.array(table, dtype=np.float32))
    else:
        raise InputError(f"expected a table of numbers in .npy, .safetensors or .parquet: {path}")
    require(found.ndim == 2 and found.numel() > 0, f"{path} must hold a table (N, D), got shape {tuple(found.shape)}")
    return Rows(found, names)


def places_of(
    n_rows: int,
    names: Mapping[str, Sequence],
    index_N: Tensor,
    n_full: int | None,
    paths: Sequence[str] | None,
    name: str | Path,
) -> Tensor:
    """Places (N,) in a table of the rows of the images at ``index`` (N,), or with ``paths`` (N): by what its columns
    ``names`` say of each row; else it is of just these images, or of the full training set, of ``n_full`` images where
    that is known. InputError where it is not."""
    by = next((by for by in NAMES if by in names and (by == "index" or paths is not None)), None)
    if by is not None:
        row = {place: i for i, place in enumerate(names[by])}
        require(len(row) == n_rows, f"column {by} of {name} must name each image once")
        wanted = index_N.tolist() if by == "index" or paths is None else paths
        absent = [place for place in wanted if place not in row]
        lacks = f"its column {by} lacks {absent[:1]} and others, {len(absent)} of {len(wanted)}"
        require(not absent, f"{name} must have a row for every image in use: {lacks}")
        return torch.tensor([row[place] for place in wanted])
    require(not names, f"{name} must name images by index: the data set has no paths")
    used, full = len(index_N), n_full or max(n_rows, int(index_N.max()) + 1)
    expected = f"{used}" + (f" (images used) or {full} (full training set)" if full != used else "")
    require(n_rows in (used, full), f"{name} has {n_rows} rows, expected {expected}")
    return torch.arange(used) if n_rows == used else index_N.cpu()


def require_embeddings(z_ND: Tensor, n: int, name: str, place_N: Tensor | None = None) -> Tensor:
    """Embeddings (N, D) as float32. InputError where their form is wrong, a value is not finite, or all are alike.

    ``place`` (N,) tells the rows of the table that they come from, which errors name."""
    require(z_ND.ndim == 2, f"{name} must be (N, D), got shape {tuple(z_ND.shape)}")
    require(len(z_ND) == n, f"{name} has {len(z_ND)} rows, expected {n}, one for each label")
    z_ND = z_ND.float()
    _require_finite(z_ND, name, place_N)
    _require_varied(z_ND, name)
    return z_ND


def require_probabilities(
    p_NK: Tensor, n: int, n_classes: int | None, name: str, place_N: Tensor | None = None
) -> Tensor:
    """Probabilities (N, K) as float32, rows summing to 1. InputError where they cannot be such; within rounding they
    are divided by their sum. ``place`` as in :func:`require_embeddings`."""
    require(p_NK.ndim == 2, f"{name} must be (N, K), got shape {tuple(p_NK.shape)}")
    require(len(p_NK) == n, f"{name} has {len(p_NK)} rows, expected {n}, one for each label")
    columns = p_NK.shape[1]
    require(n_classes in (None, columns), f"{name} has {columns} columns, expected {n_classes}, one for each class")
    p_NK = p_NK.float()
    _require_finite(p_NK, name, place_N)
    row = int(p_NK.min(1).values.argmin())
    least = p_NK[row].min().item()
    require(least >= 0, f"{name} must not be negative, got {least:.4g} in row {_place(row, place_N)}")
    off_N = (p_NK.double().sum(1) - 1).abs()
    row = int(off_N.argmax())
    total = f"{p_NK[row].double().sum().item():.6g} in row {_place(row, place_N)}"
    require(off_N[row].item() <= ROUNDING, f"{name} must sum to 1 in every row, got {total}")
    if n > 1:
        _require_varied(p_NK, name)
    return p_NK / p_NK.sum(1, keepdim=True)


def warn_of_in_sample(p_NK: Tensor, label_N: Tensor, name: str) -> None:
    """A warning where a model agrees with nearly every label: it was probably trained on them."""
    agree = (p_NK.argmax(1) == label_N).double().mean().item()
    if agree >= IN_SAMPLE and p_NK.gather(1, label_N[:, None]).mean() > 0.98:
        warnings.warn(
            f"{name} agree with {agree:.1%} of the labels and are certain of them: they seem to be in-sample; a model "
            "that was trained on a label cannot judge it, so use out-of-fold (cross-validated) predictions",
            stacklevel=3,
        )


def _place(row: int, place_N: Tensor | None) -> int:
    return row if place_N is None else int(place_N[row])


def _require_finite(matrix: Tensor, name: str, place_N: Tensor | None) -> None:
    bad = (~matrix.isfinite()).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        where = f"{matrix[row, column].item()} in row {_place(row, place_N)}, column {column}"
        raise InputError(f"{name} must be finite, got {where}")


def _require_varied(matrix: Tensor, name: str) -> None:
    first = [round(value, 6) for value in matrix[0, :3].tolist()]
    all_same = f"{name}: all rows are the same, {first}" + (" and so on" if matrix.shape[1] > 3 else "")
    require(bool((matrix != matrix[0]).any()), all_same)  # a standard deviation is not exactly 0 after rounding
