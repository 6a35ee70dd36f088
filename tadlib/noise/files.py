"""Labels from files: human ones (CIFAR-N), and any list of noisy labels.

Legend: N samples, M labels in a file, K classes.
"""

import csv
import hashlib
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tadlib.checks import require_labels
from tadlib.data.class_maps import superclass_of
from tadlib.data.matrices import places_of
from tadlib.errors import InputError, known, parsing, readable, require, required_root, some
from tadlib.noise.labels import Answer, NoisyLabels, Request, realised_rate, transition
from tadlib.store import HEADER, file_digest, load_table

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
COLUMN, INDEX, PATH = "given_label", "index", "path"  # as in the labels.parquet of a refined set
INTEGER = re.compile(r"[+-]?[0-9]{1,20}")
ENOUGH = 100  # least number of images at which agreement with the true labels is compared with chance


# Human labels --------------------------------------------------------------------------------------------------------


def human_set(dataset: str | None, variant: str) -> tuple[str, str]:
    """File of a set of human labels of ``dataset``, and the set's name there; InputError where there is none."""
    file, sets = _human_file(dataset)
    of = [name for name, (_, others) in HUMAN_LABELS.items() if variant in others and name != dataset]
    require(not of, f"human:{variant} labels the classes of data set {', '.join(of)}, got {dataset}")
    known(f"set of human labels of {dataset}", variant, sets)
    return file, sets[variant]


def human(request: Request) -> Answer:
    """CIFAR-N. Rate and transition matrix of the whole file are the nominal ones, those of ``true_N`` the realised."""
    file, name = human_set(request.dataset, request.variant)
    path = _find(file, request.root)
    true_M, noisy_M = _read_human(path, "clean_label", name)
    if request.dataset == "cifar100-coarse":  # the file has the true classes, not their superclasses
        require_labels(f"clean_label in {path}", true_M, 100)
        true_M = torch.tensor(superclass_of())[true_M]
    require_labels(f"clean_label in {path}", true_M, request.n_classes)
    require_labels(f"{name} in {path}", noisy_M, request.n_classes, len(true_M))

    n, m = len(request.true_N), len(true_M)
    require(request.index_N is not None or n == m, f"index_N must say which of the {m} labels in {path} belong to {n}")
    index_N = torch.arange(n) if request.index_N is None else request.index_N
    outside_N = (index_N < 0) | (index_N >= m)
    require(not outside_N.any(), f"index_N must be in [0, {m}), got {index_N[outside_N][:1].tolist()}")
    _require_same(true_M[index_N], request.true_N, f"{path} is in another order than the images")
    return noisy_M[index_N], realised_rate(true_M, noisy_M), transition(true_M, noisy_M, request.n_classes)


def human_checksum(dataset: str, root: Path | None) -> str:
    """SHA-256, in hex, of the file with the human labels of ``dataset``; InputError where there are none."""
    return file_digest(_find(_human_file(dataset)[0], root))


def _human_file(dataset: str | None) -> tuple[str, dict[str, str]]:
    require(dataset in HUMAN_LABELS, f"human labels exist for: {', '.join(HUMAN_LABELS)}, got {dataset}")
    return HUMAN_LABELS[str(dataset)]


def _find(file: str, root: Path | None) -> Path:
    """``file`` in ``root``/cifar-n or in ``root``."""
    root = required_root(f"the set of human labels in {file}", root)
    places = [root / "cifar-n" / file, root / file]
    for path in places:
        if path.is_file():
            return path
    raise InputError(f"human labels missing: put {file} (from github.com/UCSC-REAL/cifar-10-100n) at {places[0]}")


def _read_human(path: Path, *names: str) -> list[Tensor]:
    """Label arrays of a CIFAR-N file. It pickles numpy arrays; only their constructors are let in."""
    # The published files name the function as numpy 1 did; files saved since then as numpy 2 does.
    old_name = (_reconstruct, "numpy.core.multiarray._reconstruct")
    integers = {type(np.dtype(f"{sign}int{bits}")) for sign in ("", "u") for bits in (8, 16, 32, 64)}
    constructors: list[Any] = [old_name, _reconstruct, np.ndarray, np.dtype, *integers]
    try:
        with torch.serialization.safe_globals(constructors):
            content = torch.load(path, map_location="cpu", weights_only=True)
        arrays = [np.asarray(content[name]) for name in names]
        return [torch.from_numpy(a.astype(np.int64) if a.dtype.kind in "iu" else a) for a in arrays]
    except Exception as error:  # a damaged pickle raises whatever its reader trips over
        raise InputError(f"{path} is damaged or no file of CIFAR-N's labels ({type(error).__name__})") from error


# Lists of labels -----------------------------------------------------------------------------------------------------


class Listed(NamedTuple):
    """What a file of labels holds."""

    noisy_M: Tensor
    """(M,) int64"""
    true_M: Tensor | None = None
    """(M,) int64, where the file has them."""
    index_M: Tensor | None = None
    """(M,) int64, ascending: place of each label's image in the full training set, where the file says so."""
    path_M: tuple[str, ...] | None = None
    """Path of each label's image, where the file says so; ascending unless ``index_M`` is."""


def listed(request: Request) -> Answer:
    """Labels of a file (``file:PATH``): one for every image of the full training set, or of those in use, in order.

    A safetensors file of :meth:`~tadlib.noise.labels.NoisyLabels.save` or with one tensor, a .npy array, or a .csv or
    .parquet table with one column of labels or with one named ``given_label``; integers all. A column ``path``, of own
    images, or ``index``, their place in the full training set, says which image a row belongs to; then the order does
    not matter. Rate and transition matrix are the realised ones. Labels that agree with the true ones no more often
    than by chance bring a warning.
    """
    require(bool(request.variant), "labels of a file need its path, file:PATH, got 'file:'")
    path, true_N = Path(request.variant), request.true_N
    found = read_list(path)
    require_labels(f"labels in {path}", found.noisy_M, request.n_classes)
    rows_N = _rows(path, found, request)
    if found.true_M is not None:
        _require_same(found.true_M[rows_N], true_N, f"{path} belongs to other images")
    noisy_N = found.noisy_M[rows_N]
    rate = realised_rate(true_N, noisy_N)
    require(rate < 1, f"{path}: every label differs from the true one; are they numbered or ordered in another way?")
    _warn_of_chance(path, true_N, noisy_N, request.n_classes)
    return noisy_N, rate, transition(true_N, noisy_N, request.n_classes)


def list_checksum(path: Path | str) -> str:
    """SHA-256, in hex, of the noisy labels that :func:`read_list` finds in a file, whatever its format and order, of
    their paths, and of their indices unless these are 0 to M - 1."""
    found = read_list(Path(path))
    digest = hashlib.sha256(found.noisy_M.numpy().data)
    if found.index_M is not None and not torch.equal(found.index_M, torch.arange(len(found.index_M))):
        digest.update(found.index_M.numpy().data)
    digest.update("\0".join(found.path_M or ()).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def read_list(path: Path) -> Listed:
    """The labels in a file (see :func:`listed`), which is never unpickled; InputError where it holds something else."""
    suffix = path.suffix.lower()
    known("type of file of labels", suffix, READERS)
    path = readable("file of labels", path)
    return READERS[suffix](path)


def _rows(path: Path, found: Listed, request: Request) -> Tensor:
    """(N,) the row of the file that holds the label of each image."""
    n, columns = len(request.true_N), dict[str, Sequence]()
    if found.path_M is not None:
        columns[PATH] = found.path_M
    if found.index_M is not None:
        columns[INDEX] = found.index_M.tolist()
    where = (torch.arange(n), n) if request.index_N is None else (request.index_N, request.n_full)
    return places_of(len(found.noisy_M), columns, *where, request.paths, path)


def _require_same(found_N: Tensor, true_N: Tensor, problem: str) -> None:
    """InputError unless the true labels in a file are those of the images."""
    differs = (found_N != true_N).nonzero().flatten().tolist()
    require(
        not differs, f"{problem}: its true labels differ for {len(differs)} of {len(true_N)}, first at {differs[:1]}"
    )


def _warn_of_chance(path: Path, true_N: Tensor, noisy_N: Tensor, n_classes: int) -> None:
    """Warn where labels in a random order would agree with the true ones as often, up to three standard deviations."""
    n, agree = len(true_N), 1 - realised_rate(true_N, noisy_N)
    share_true_K, share_noisy_K = (torch.bincount(y_N, minlength=n_classes).double() / n for y_N in (true_N, noisy_N))
    chance = (share_true_K @ share_noisy_K).item()
    if n >= ENOUGH and chance < 1 and agree <= chance + 3 * (chance * (1 - chance) / n) ** 0.5:
        warnings.warn(
            f"{path}: {100 * agree:.1f} % of {n} labels agree with the true ones, no more than by chance "
            f"({100 * chance:.1f} %); the order of the images or the numbering of the classes may be wrong",
            stacklevel=2,
        )


def _read_safetensors(path: Path) -> Listed:
    # numpy has no bfloat16, and older versions no float8: TypeError, AttributeError
    with (
        parsing(path, "no file of a tensor of integers", SafetensorError, TypeError, AttributeError, KeyError),
        safe_open(path, framework="np") as file,
    ):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        ours = HEADER in (file.metadata() or {})
    if ours:
        labels = NoisyLabels.load(path)
        return Listed(labels.noisy_N, labels.true_N)
    require(len(tensors) == 1, f"{path} must hold one tensor of labels, got {len(tensors)}: {some([*tensors])}")
    return Listed(_integers(path, *tensors.values()))


def _read_npy(path: Path) -> Listed:
    with parsing(path, "no array of integers", Exception), path.open("rb") as file:  # a damaged header raises anything
        values = np.lib.format.read_array(file, allow_pickle=False)
    return Listed(_integers(path, values))


def _read_csv(path: Path) -> Listed:
    """A CSV file; it may lack a line of names. Errors name the line of a value that is missing or no integer."""
    with parsing(path, "no table", ValueError, csv.Error), path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        lines = [(reader.line_num, [value.strip() for value in row]) for row in reader]
    for end in (0, -1):
        while lines and not any(lines[end][1]):
            lines.pop(end)
    require(bool(lines), f"{path} is damaged or no table: it has no lines")
    first = lines[0][1]
    names: list = list(range(len(first)))
    if not INTEGER.fullmatch(first[0] if first else ""):
        names, lines = first, lines[1:]

    damaged = f"{path} is damaged or no table of integers: line"
    for line, row in lines:
        require(len(row) == len(names), f"{damaged} {line} has {','.join(row)!r}")

    def texts(name: Any) -> list[str]:
        place = names.index(name)
        return [row[place] for _, row in lines]

    def integers(name: Any) -> Tensor:
        values = texts(name)
        for (line, _), value in zip(lines, values):
            fits = INTEGER.fullmatch(value) and abs(int(value)) < 2**63
            require(bool(fits), f"{damaged} {line} has {value!r}")
        return torch.tensor(list(map(int, values)), dtype=torch.int64)

    return _from_table(path, names, integers, texts)


def _read_parquet(path: Path) -> Listed:
    table = load_table(path)
    if table.index.name in (INDEX, PATH) and table.index.name not in table:  # pandas reads the column as its index
        table = table.reset_index()

    def integers(name: Any) -> Tensor:
        return _integers(path, table[name].to_numpy(), name)

    def texts(name: Any) -> list[str]:
        return table[name].astype(object).fillna("").astype(str).tolist()

    return _from_table(path, list(table.columns), integers, texts)


def _from_table(
    path: Path, names: list, integers: Callable[[Any], Tensor], texts: Callable[[Any], list[str]]
) -> Listed:
    """The labels of a table in the order of its column ``index``, else ``path``, where it has one; ``integers`` and
    ``texts`` read a column."""
    by_name = {str(name).strip().lower(): name for name in names}
    others = [name for name in by_name if name not in (INDEX, PATH)]
    fits = (COLUMN in others or len(others) == 1) and len(by_name) == len(names)
    require(fits, f"{path} must have one column of labels or one named {COLUMN}, got {some(names) or 'none'}")
    noisy_M = integers(by_name[COLUMN if COLUMN in others else others[0]])
    paths, index_M = texts(by_name[PATH]) if PATH in by_name else None, None
    order_M = torch.arange(len(noisy_M)) if paths is None else torch.tensor(np.argsort(paths, kind="stable"))
    if INDEX in by_name:
        index_M, order_M = integers(by_name[INDEX]).sort(stable=True)
        once = len(index_M) == 0 or bool(index_M[0] >= 0 and (index_M.diff() > 0).all())
        require(once, f"column {INDEX} of {path} must name each image once, by numbers from 0 on")
    path_M = None if paths is None else tuple(paths[i] for i in order_M.tolist())
    return Listed(noisy_M[order_M], index_M=index_M, path_M=path_M)


def _integers(path: Path, values: np.ndarray, name: str = "") -> Tensor:
    fits = values.ndim == 1 and values.dtype.kind in "iu"
    where = f"{name} in {path}" if name else f"{path}"
    require(fits, f"{where} must hold one column of integers, got shape {values.shape} of {values.dtype}")
    return torch.from_numpy(values.astype(np.int64))


READERS: dict[str, Callable[[Path], Listed]] = {
    ".safetensors": _read_safetensors,
    ".npy": _read_npy,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
