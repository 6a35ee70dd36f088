"""Labels that a person checked, from a file."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from tadlib.errors import InputError, known, require
from tadlib.noise.labels import NoisyLabels
from tadlib.store import load_table

CHECKED = "checked"  # the column that a person fills in a list of suspects


def corrected(
    labels: NoisyLabels, file: Path | str, class_names: Sequence[str], index_N: Tensor, paths: Sequence[str] | None
) -> NoisyLabels:
    """``labels`` with those of ``file`` in place of the noisy ones, and the mask ``checked`` of their images.

    The file is a .csv or .parquet table with a column ``path``, or ``index`` (place in the full training set,
    ``index_N`` of the images in use), and a column ``checked`` or ``label`` with names of classes. A row whose label is
    empty has not been checked. InputError names what the file lacks or has too much.
    """
    table = _read(Path(file).expanduser())
    by = "path" if paths is not None and "path" in table else "index"
    kinds = "index" if paths is None else "path or index"
    require(by in table, f"{file} must have a column {kinds} that says which images were checked, got {list(table)}")
    column = CHECKED if CHECKED in table else "label"
    require(column in table, f"{file} must have a column {CHECKED} or label with names of classes, got {list(table)}")
    table = table[table[column] != ""]
    require(len(table) > 0, f"{file}: column {column} is empty, so no label was checked")
    twice = table[by][table[by].duplicated()]
    require(twice.empty, f"{file} must name each image once, got {by} {twice.iloc[:1].tolist()} more than once")

    def numbered(what: str, column: str, names: Iterable[str]) -> Tensor:
        number = {name: i for i, name in enumerate(names)}
        unknown = [value for value in table[column] if value not in number]
        require(not unknown, f"{file}: {len(unknown)} unknown {what}, such as {unknown[:1]}")
        return torch.tensor([number[value] for value in table[column]])

    images = numbered(
        f"values of {by}", by, paths if by == "path" and paths is not None else map(str, index_N.tolist())
    )
    noisy_N, checked_N = labels.noisy_N.clone(), torch.zeros(len(labels.noisy_N), dtype=torch.bool)
    noisy_N[images] = numbered(f"classes (known: {', '.join(class_names)})", column, class_names)
    checked_N[images] = True
    return replace(labels, noisy_N=noisy_N, checked_N=checked_N)


def _read(path: Path) -> pd.DataFrame:
    """The table in ``path`` as text; what is missing is empty, and nothing else is taken for missing."""
    known("type of file of corrections", path.suffix, (".csv", ".parquet"))
    if path.suffix == ".parquet":
        return load_table(path).astype(object).fillna("").astype(str)
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False, encoding_errors="surrogateescape")
    except (OSError, ValueError) as error:
        raise InputError(f"corrections {path} cannot be read: {error}") from error
