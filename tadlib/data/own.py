"""The user's own images: a folder with one subfolder for each class, or a table that lists files with their labels.

Legend: N images, C H W image.

``folder:PATH`` has torchvision's layout ImageFolder, images at any depth below the folder of their class; where PATH
holds folders ``train`` and ``test``, these are the splits. ``table:FILE`` is a CSV or Parquet file with columns
``path`` (relative to the table's folder, or absolute), ``label`` and, if there are any, ``true_label`` and ``split``
(train or test). Their labels are taken as noisy; only ``true_label`` tells the true ones. Those of a test split count
as right.

Images are decoded once, in parallel, to squares of one size (their aspect ratio changes, nothing is cut off), in grey
where a sample of them is grey: EXIF orientation is applied, transparent parts become white, images of 16 bits or of
floats are scaled by their own range, animations give their first frame. Hidden files and those of other types are
passed over; images that cannot be decoded are listed and left out.
"""

import hashlib
import io
import json
import os
import statistics
import struct
import warnings
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from tadlib.errors import InputError, known, parsing, readable, readable_files, require, some
from tadlib.rng import generator
from tadlib.store import claim_output, cores, file_digest, load_metadata, load_table, load_tensors, save_tensors

SOURCES = ("folder", "table")
TYPES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif", ".pbm", ".pgm", ".ppm")
NO_CLASS = ("__MACOSX", "@eaDir")  # folders that archives and file servers leave behind; hidden ones start with a dot
SAMPLE = 200  # images, evenly spaced, from which size and colour are chosen
SIDES = (8, 16, 32, 64)  # sides that are chosen; others are read when asked for
ALIKE = 2  # largest difference of the channels of a grey image that is stored in colour
TASK = 32  # images that a thread decodes at a time
HELD_OUT = 5  # without a test split, one image in so many is held out

TEST, HELD_OUT_TRUE, HELD_OUT_NOISY = "test images", "held-out images, true labels", "held-out images, noisy labels"


def is_own(name: object) -> bool:
    """Whether a data set's name is a source of this module."""
    return isinstance(name, str) and name.partition(":")[0] in SOURCES and ":" in name


# Listing -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Listing:
    """The files of a source with their labels, training images first."""

    folder: Path
    paths: tuple[str, ...]
    """Relative to ``folder``, or absolute where a table has them so."""
    labels: tuple[int, ...]
    true: tuple[int, ...] | None
    n_train: int
    class_names: tuple[str, ...]
    passed_over: Counter = field(default_factory=Counter)
    """Files of other types, by the end of their names."""

    @property
    def has_test(self) -> bool:
        return self.n_train < len(self.paths)

    def file(self, i: int) -> str:
        """The place of image ``i``."""
        return os.path.join(self.folder, self.paths[i])

    @cached_property
    def _said(self) -> list[str]:
        """What the source says about every image: path, label, true label."""
        true = self.true or ("",) * len(self.paths)
        return [f"{path}\0{label}\0{t}" for path, label, t in zip(self.paths, self.labels, true)]

    @cached_property
    def stamp(self) -> str:
        """A hash of names, labels, sizes and times of change of all files: enough to notice that one was replaced, and
        far faster than reading them. It does not depend on where they lie."""

        def change(i: int) -> str:
            with suppress(OSError):  # a link that leads nowhere
                status = os.stat(self.file(i))
                return f"{status.st_size}\0{status.st_mtime_ns}"
            return ""

        return self._digest(f"{said}\0{change(i)}" for i, said in enumerate(self._said))[:16]

    def checksum(self, contents: Iterable[str]) -> str:
        """SHA-256, in hex, of names, labels and ``contents``, the checksums of all files."""
        return self._digest(f"{said}\0{content}" for said, content in zip(self._said, contents))

    def _digest(self, lines: Iterable[str]) -> str:
        head = json.dumps([self.class_names, self.n_train])
        return hashlib.sha256("\n".join([head, *lines]).encode()).hexdigest()


@readable_files()
def listing(source: str) -> Listing:
    """The files of ``folder:PATH`` or ``table:FILE``; no image is opened.

    Raises InputError that names what is wrong: a missing folder or file, a single class, a class without an image, and
    in tables a column that lacks, a label that is neither text nor number, and a path that occurs twice.
    """
    kind, _, where = source.partition(":")
    known("source of images", kind, SOURCES)
    require(bool(where), f"{source!r} lacks its {'PATH' if kind == 'folder' else 'FILE'}")
    path = Path(where).expanduser().absolute()
    found = _folder(path) if kind == "folder" else _table(path)
    names = found.class_names
    require(len(names) >= 2, f"{source} must have at least 2 classes, got {', '.join(map(repr, names)) or 'none'}")
    return found


def _folder(path: Path) -> Listing:
    require(path.is_dir(), f"folder of images {path} does not exist" if not path.exists() else f"{path} is no folder")
    train, test = path / "train", path / "test"
    splits = [train, test] if train.is_dir() and test.is_dir() else [path]
    names = _classes(splits[0])
    if len(names) == 1 and names[0] in ("train", "test"):
        raise InputError(
            f"{path} has a folder {names[0]} alone: expected both train and test; or give {path / names[0]}"
        )
    require(bool(names), f"{path} must hold a folder for each class, got none in {splits[0]}")
    if len(splits) == 2:
        more = [name for name in _classes(test) if name not in names]
        require(not more, f"{test} has classes that {train} lacks: {some(more)}")
    paths: list[str] = []
    labels: list[int] = []
    n_train, passed_over = 0, Counter[str]()
    for split in splits:
        for k, name in enumerate(names):
            files = _images(split / name, passed_over) if (split / name).is_dir() else []
            require(bool(files) or split == test, f"class {name!r} has no image in {split / name}")
            paths += [os.path.relpath(file, path) for file in files]
            labels += [k] * len(files)
        n_train = n_train or len(paths)
    require(len(splits) == 1 or len(paths) > n_train, f"{test} holds no image; remove it to have images held out")
    bad = next((p for p in paths if any("\ud800" <= c <= "\udfff" for c in p)), None)
    require(bad is None, f"the name of {bad!r} in {path} is not UTF-8: rename it")
    return Listing(path, tuple(paths), tuple(labels), None, n_train, tuple(names), passed_over)


def _classes(folder: Path) -> list[str]:
    """Names of the classes in torchvision's order."""
    return sorted(e.name for e in os.scandir(folder) if e.is_dir() and not is_hidden(e.name))


def _images(folder: Path, passed_over: Counter) -> list[str]:
    def refuse(error: OSError) -> None:
        raise error  # os.walk would pass over a folder that cannot be read

    found, seen = [], set[str]()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(place)
        if real in seen:  # a link to a folder above, or a second one to the same folder
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for name in files:
            end, file = os.path.splitext(name)[1].lower(), os.path.join(place, name)
            if os.path.exists(file) and not os.path.isfile(file):
                passed_over["pipes and devices"] += 1  # to read one may never end
            elif end in TYPES and not is_hidden(name):
                found.append(file)
            elif not is_hidden(name) and name != "Thumbs.db":
                passed_over[end or name] += 1
    return sorted(found)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is passed over by its name."""
    return name.startswith(".") or name in NO_CLASS


def _table(path: Path) -> Listing:
    import pandas as pd

    known("type of table of images", path.suffix.lower(), (".csv", ".parquet"))
    readable("table of images", path)
    if path.suffix.lower() == ".parquet":
        table = load_table(path)
    else:
        how = {"keep_default_na": False, "skipinitialspace": True, "index_col": False}
        with parsing(path, "no table in UTF-8", ValueError):  # every value is text: a class may be called NA
            table = pd.read_csv(path, dtype=str, encoding="utf-8-sig", **how)
    absent = [name for name in ("path", "label") if name not in table.columns]
    require(not absent, f"{path} must have columns path and label, got {[str(name) for name in table.columns]}")
    require(len(table) > 0, f"{path} has no row")
    rows = table.to_dict("list")
    splits = [_text(path, "split", row, value) for row, value in enumerate(rows.get("split", ["train"] * len(table)))]
    for row, split in enumerate(splits):
        require(split in ("train", "test"), f"{path} row {row + 1}: split must be train or test, got {split!r}")
    order = sorted(range(len(splits)), key=lambda row: splits[row] != "train")  # keeps the order of each split
    texts = {
        name: [_text(path, name, row, rows[name][row]) for row in order]
        for name in ("path", "label", "true_label")
        if name in rows
    }
    n_train = splits.count("train")
    require(n_train > 0, f"{path} has no row of split train")
    seen: dict[str, int] = {}
    for row, name in zip(order, texts["path"]):
        first = seen.setdefault(os.path.normpath(path.parent / name), row)
        require(first == row, f"{path} names {name} twice, in rows {first + 1} and {row + 1}")
    missing = [name for name in texts["path"] if not (path.parent / name).is_file()]
    require(not missing, f"{path} names files that do not exist: {some(missing, 3)}")
    used = {*texts["label"], *texts.get("true_label", ())}
    whole = all(name.removeprefix("-").isdecimal() and len(name) < 20 for name in used)  # Python reads no longer ones
    names = sorted(used, key=lambda name: (int(name) if whole else 0, name))
    number = {name: k for k, name in enumerate(names)}
    labels = tuple(number[name] for name in texts["label"])
    taught = set(labels[:n_train])
    untaught = [name for k, name in enumerate(names) if k not in taught]
    require(not untaught, f"{path} has no training image with the label {some([*map(repr, untaught)])}")
    true = tuple(number[name] for name in texts["true_label"]) if "true_label" in texts else None
    return Listing(path.parent, tuple(texts["path"]), labels, true, n_train, tuple(names))


def _text(table: Path, column: str, row: int, value: Any) -> str:
    """A cell as text; whole floats read as integers, which is how tables store these beside empty cells."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    fits = isinstance(value, str) or (number and column != "path" and bool(np.isfinite(value)))
    text = str(value).strip()
    kind = "text" if column == "path" else "text or a number"
    require(fits and bool(text), f"{table} row {row + 1}: {column} must be {kind}, got {value!r}")
    return text


# Decoding ------------------------------------------------------------------------------------------------------------


def opened(content: bytes, side: int | None = None, mode: str | None = None) -> Image.Image:
    """The image in the content of a file, upright, 8 bits, transparent parts white; RGB, or grey where ``mode`` is L.

    side: of the square to which it is resized. JPEG images are then decoded at a half, a quarter or an eighth of their
    size where that is at least 1.5 times ``side``, which takes a fraction of the time; common filters for resizing
    differ more from one another than the result from that of the whole image.
    """
    with Image.open(io.BytesIO(content)) as file:
        if side is not None:
            file.draft(mode, (3 * side // 2, 3 * side // 2))
        file.load()
        image: Image.Image = file
        with suppress(ValueError, OSError, SyntaxError, KeyError, TypeError, struct.error):  # damaged EXIF data
            ImageOps.exif_transpose(image, in_place=True)
        if image.mode[0] in "IF":
            image = _eight_bits(image)
        elif image.has_transparency_data:
            image = image.convert("RGBA")
        elif image.mode not in ("L", "RGB"):
            image = image.convert("L" if image.mode == "1" else "RGB")
        if side is not None:
            image = image.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
        if image.mode == "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert(mode or "RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Integers of more bits, or floats, from least to largest value as black to white; NaN and infinity are black."""
    values_HW = np.asarray(image).astype(np.float64)
    finite_HW = np.isfinite(values_HW)
    require(bool(finite_HW.any()), "no pixel is a number")
    low, high = values_HW[finite_HW].min(), values_HW[finite_HW].max()
    values_HW = np.where(finite_HW, values_HW - low, 0) / (high - low or 1)
    return Image.fromarray((values_HW * 255).round().astype(np.uint8))


def _reason(error: Exception) -> str:
    """Why an image cannot be read, in words that do not change from run to run."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image that can be identified"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def decoded(files: list[str], side: int, colour: bool) -> tuple[Tensor, list[str], dict[int, str]]:
    """uint8 images (N, C, side, side), the SHA-256 of every file, and the reasons why files cannot be read, by their
    place; these are black. A thread for each core, with a progress bar on a terminal."""
    x_NCHW = np.zeros((len(files), 3 if colour else 1, side, side), dtype=np.uint8)
    contents, unreadable = [""] * len(files), {}

    def work(start: int) -> int:
        numbers = range(start, min(start + TASK, len(files)))
        for i in numbers:
            try:
                content = Path(files[i]).read_bytes()
                contents[i] = hashlib.sha256(content).hexdigest()
                require(bool(content), "empty file")
                pixels = np.asarray(opened(content, side, "RGB" if colour else "L"))
                x_NCHW[i] = pixels.transpose(2, 0, 1) if colour else pixels
            except Exception as error:  # a damaged file makes its reader raise whatever it trips over
                unreadable[i] = _reason(error)
        return len(numbers)

    bar = tqdm(total=len(files), desc="images", unit="", disable=None, leave=False)
    with warnings.catch_warnings(), ThreadPoolExecutor(cores()) as pool, bar:
        warnings.simplefilter("ignore")  # of damaged metadata: an image is decoded or listed
        for count in pool.map(work, range(0, len(files), TASK)):
            bar.update(count)
    return torch.from_numpy(x_NCHW), contents, dict(sorted(unreadable.items()))


class Look(NamedTuple):
    """What a sample of the training images looks like."""

    size: tuple[int, int]
    """Median width and height."""
    side: int
    """The largest of ``SIDES`` that is not above the median of the shorter sides, 8 at least."""
    colour: bool


_looks: dict[str, Look] = {}  # by the stamp of a listing


def look(found: Listing) -> Look:
    """Size and colour, from ``SAMPLE`` training images; InputError where none of them can be read."""
    if found.stamp not in _looks:
        sizes, colour, error = [], False, ""
        for i in range(0, found.n_train, -(-found.n_train // SAMPLE)):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    content = Path(found.file(i)).read_bytes()
                    with Image.open(io.BytesIO(content)) as image:
                        size, grey = image.size, image.mode in ("1", "L", "LA") or image.mode[0] in "IF"
                    if not (grey or colour):
                        pixels_HW3 = np.asarray(opened(content, 64, "RGB")).astype(int)
                        colour = int(np.ptp(pixels_HW3, axis=2).max()) > ALIKE
                    sizes.append(size)
            except Exception as e:  # as in decoded()
                error = error or f"{found.file(i)}: {_reason(e)}"
        require(bool(sizes), f"no image of {found.folder} can be read, first {error}")
        width, height = (int(statistics.median(values)) for values in zip(*sizes))
        shorter = statistics.median(map(min, sizes))
        _looks[found.stamp] = Look((width, height), max(s for s in SIDES if s <= max(shorter, SIDES[0])), colour)
    return _looks[found.stamp]


# The data set --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Files:
    """Where the images of a data set come from."""

    folder: Path
    paths: tuple[str, ...]
    """Path of each training image, relative to ``folder`` (absolute where a table has it so)."""
    true: Tensor | None
    """(N,) int64, true labels of the training images; None where they are unknown."""
    unreadable: tuple[tuple[str, str], ...]
    """Path and reason of each file, of both splits, that could not be decoded and is left out."""
    passed_over: dict[str, int]
    """Number of files of other types, by the end of their names."""
    evaluated_on: str
    """What accuracy is measured on: ``TEST``, ``HELD_OUT_TRUE`` or ``HELD_OUT_NOISY``."""
    size: tuple[int, int]
    """Median width and height of the images as they lie there."""

    def open(self, path: str) -> Image.Image:
        """The original of a path in full size, as RGB and upright."""
        return opened((self.folder / path).read_bytes())


class Loaded(NamedTuple):
    """The images of a source: all of them, and which are used."""

    x: Tensor
    """(N, C, H, W) uint8, training images first."""
    y: Tensor
    """(N,) int64"""
    train: Tensor
    """Ascending places in ``x`` of the training images in use."""
    test: Tensor
    unreadable: dict[int, str]
    """Why images cannot be read, by their place in ``x``."""
    listing: Listing

    def files(self, index_N: Tensor) -> Files:
        """Where the training images at these places come from."""
        of, places = self.listing, index_N.tolist()
        paths = tuple(of.paths[i] for i in places)
        true_N = None if of.true is None else torch.tensor([of.true[i] for i in places])
        unreadable = tuple((of.paths[i], reason) for i, reason in self.unreadable.items())
        about = evaluated_on(of), look(of).size
        return Files(of.folder, paths, true_N, unreadable, dict(of.passed_over), *about)


def load(source: str, *, resolution: int | None, n_test: int | None, cache: Path | None) -> Loaded:
    """Decode a source, or take its images from the folder ``cache``; ``resolution`` None: chosen from the images.

    Without a test split, ``n_test`` of the readable training images, by default a fifth, are held out: of each class
    as large a share. 0 holds out none. Raises InputError as :func:`listing` does, and where no image of a class can be
    read.
    """
    found = listing(source)
    seen = look(found)
    x_NCHW, unreadable = _cached(found, resolution or seen.side, seen.colour, cache)
    y_N, n_train = torch.tensor(found.labels), found.n_train
    usable_N = torch.ones(len(y_N), dtype=torch.bool)
    usable_N[list(unreadable)] = False
    train, test = usable_N[:n_train].nonzero()[:, 0], usable_N[n_train:].nonzero()[:, 0] + n_train
    for k, count in enumerate(torch.bincount(y_N[train], minlength=len(found.class_names)).tolist()):
        if count == 0:
            first = found.labels.index(k)
            why = f"first {found.file(first)}: {unreadable[first]}"
            raise InputError(f"class {found.class_names[k]!r} has no readable image, {why}")
    if not found.has_test:
        most = len(train) // 2
        n = len(train) // HELD_OUT if n_test is None else n_test
        fits = isinstance(n, int) and 0 <= n <= most
        require(fits, f"n_test, held out of the training images, must be an integer in [0, {most}], got {n_test!r}")
        held_N = held_out(y_N[train], n)
        train, test = train[~held_N], train[held_N]
    if found.true is not None:
        y_N[test] = torch.tensor(found.true)[test]
    return Loaded(x_NCHW, y_N, train, test, unreadable, found)


def evaluated_on(found: Listing) -> str:
    """What accuracy is measured on."""
    return TEST if found.has_test else HELD_OUT_NOISY if found.true is None else HELD_OUT_TRUE


def held_out(y_N: Tensor, n: int) -> Tensor:
    """(N,) bool: ``n`` images, of each class as large a share as can be, always the same ones (our choice)."""
    order_N = torch.randperm(len(y_N), generator=generator(0, "subset", "own", "held out"))
    rank_N = torch.empty(len(y_N), dtype=torch.float64)
    for k in y_N.unique().tolist():
        of_class = order_N[y_N[order_N] == k]
        rank_N[of_class] = (torch.arange(len(of_class), dtype=torch.float64) + 0.5) / len(of_class)
    held_N = torch.zeros(len(y_N), dtype=torch.bool)
    held_N[rank_N.argsort(stable=True)[:n]] = True
    return held_N


_contents: dict[str, str] = {}  # checksums by the stamp of a listing


def checksum(source: str) -> str:
    """SHA-256, in hex, of paths, labels and the contents of all files, wherever they lie."""
    found = listing(source)
    if found.stamp not in _contents:

        def digest(i: int) -> str:
            with suppress(OSError):
                return file_digest(Path(found.file(i)))
            return ""

        with ThreadPoolExecutor(cores()) as pool:
            _contents[found.stamp] = found.checksum(pool.map(digest, range(len(found.paths))))
    return _contents[found.stamp]


def _cached(found: Listing, side: int, colour: bool, cache: Path | None) -> tuple[Tensor, dict[int, str]]:
    """All images, and the reasons of those that cannot be read by their place."""
    path = None if cache is None else cache / f"{found.stamp}-{side}-{'rgb' if colour else 'grey'}.safetensors"
    if path is not None:
        with suppress(InputError, KeyError):  # a missing or damaged file counts as none
            metadata = load_metadata(path)
            _contents[found.stamp] = metadata["checksum"]
            return load_tensors(path)["x"], {int(i): reason for i, reason in json.loads(metadata["unreadable"]).items()}
    x_NCHW, contents, unreadable = decoded([found.file(i) for i in range(len(found.paths))], side, colour)
    _contents[found.stamp] = found.checksum(contents)
    if path is not None:
        with suppress(InputError, OSError):  # where it cannot be written, images are decoded again next time
            claim_output(path.parent.parent)
            about = {"checksum": _contents[found.stamp], "unreadable": json.dumps(unreadable)}
            save_tensors(path, {"x": x_NCHW}, about)
    return x_NCHW, unreadable
