"""Labels that a person checked, from a file."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from tadlib.data.matrices import NAMES
from tadlib.errors import known, parsing, readable, require, some
from tadlib.noise.labels import NoisyLabels
from tadlib.store import load_table

CHECKED = "checked"  # the column that a person fills in a list of suspects


def corrected(
    labels: NoisyLabels, file: Path | str, class_names: Sequence[str], index_N: Tensor, paths: Sequence[str] | None
) -> NoisyLabels:
    """``labels`` with those of ``file`` in place of the noisy ones, which are kept as ``original``, and the mask
    ``checked`` of their images.

    The file is as :func:`read_corrections` reads it. Its column ``path`` holds ``paths`` (N); where the data set has
    none, its column ``index`` holds places in the full training set, ``index_N``. InputError names what it lacks, and
    images and classes that are unknown.
    """
    table = read_corrections(file)
    by = "path" if paths is not None and "path" in table else "index"
    known_columns = "index" if paths is None else "path or index"
    require(by in table, f"{file} must say which images were checked in a column {known_columns}, got {list(table)}")
    require(len(table) > 0, f"{file} holds no label that was checked: its column of labels is empty")
    twice = table[by][table[by].duplicated()]
    require(twice.empty, f"{file} must name each image once, got {by} {twice.iloc[:1].tolist()} more than once")

    def numbered(what: str, column: str, names: Iterable[str]) -> Tensor:
        number = {name: i for i, name in enumerate(names)}
        unknown = [value for value in table[column] if value not in number]
        require(not unknown, f"{file}: {what}; {len(unknown)} are others, such as {unknown[:1]}")
        return torch.tensor([number[value] for value in table[column]])

    places = map(str, index_N.tolist()) if by == "index" or paths is None else paths
    images = numbered(f"column {by} must name training images in use", by, places)
    noisy_N, checked_N = labels.noisy_N.clone(), torch.zeros(len(labels.noisy_N), dtype=torch.bool)
    noisy_N[images] = numbered(f"labels must be among {some(class_names)}", "label", class_names)
    checked_N[images] = True
    return replace(labels, noisy_N=noisy_N, checked_N=checked_N, original_N=labels.noisy_N)


def read_corrections(file: Path | str) -> pd.DataFrame:
    """What was checked according to a .csv or .parquet file: ``path`` or ``index`` or both, and ``label``, as text.

    Labels are the names of classes in a column ``checked`` or, where there is none, ``label``. Rows without one are
    left out. InputError where the file cannot be read or has no such column.
    """
    path = Path(file)
    known("type of file of corrections", path.suffix.lower(), (".csv", ".parquet"))
    path = readable("corrections", path)
    if path.suffix.lower() == ".parquet":
        table = load_table(path).astype(object).fillna("").astype(str)
    else:
        with parsing(path, "no table", ValueError):
            table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding_errors="surrogateescape")
    column = CHECKED if CHECKED in table else "label"
    require(column in table, f"{path} must have a column {CHECKED} or label with names of classes, got {list(table)}")
    table = table[[*(place for place in NAMES if place in table), column]].rename(columns={column: "label"})
    return table[table["label"] != ""]


def corrections_checksum(file: Path | str) -> str:
    """SHA-256, in hex, of what :func:`read_corrections` finds, whatever its order and format."""
    rows = sorted(read_corrections(file).to_csv(index=False, lineterminator="\n").splitlines())
    return hashlib.sha256("\n".join(rows).encode("utf-8", "surrogateescape")).hexdigest()
