"""Tiny ImageNet from its folders of JPEG files, decoded once into one file of tensors in the user's cache folder.

Legend: N samples, C H W image.

Official layout, under ``tiny-imagenet-200``: ``train/<WordNet id>/images/*.JPEG``; ``val/images/*.JPEG`` with
``val/val_annotations.txt`` (file name, tab, WordNet id, ...); ``words.txt`` (id, tab, names). The test images there
have no labels, so the validation images serve as test set, as everywhere in the field.
"""

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tadlib.errors import InputError, readable_files, require, required_root, some
from tadlib.store import load_metadata, load_tensors, save_tensors

FOLDER = "tiny-imagenet-200"
SIDE = 64
NAMES = ("x_train", "y_train", "x_test", "y_test")
GET = "download and unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip there"

Images = list[tuple[Path, int]]  # file and class


class Listing(NamedTuple):
    """The files of the data set in a fixed order."""

    folder: Path
    ids: list[str]
    """WordNet ids of the classes."""
    train: Images
    test: Images


def load(root: Path | None) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """uint8 images (N, 3, 64, 64) and int64 labels (N,) by the names in ``NAMES``, and the names of the classes.

    Classes are the folders of ``train`` in the order of their WordNet ids, be they all 200 or a part; annotations of
    other classes are passed over. Raises InputError naming what is missing or cannot be read.
    """
    files = _listing(root)
    with suppress(InputError):  # a missing, damaged or outdated file counts as none
        if _metadata(files):
            return load_tensors(_cache(files)), _class_names(files)
    tensors = _decoded(files.train, "train") | _decoded(files.test, "test")
    with suppress(OSError, InputError):  # where the cache cannot be written, images are decoded again next time
        save_tensors(_cache(files), tensors, {"key": _key(files), "content": _content(tensors)})
    return tensors, _class_names(files)


def checksum(root: Path | None) -> str:
    """SHA-256, in hex, over all decoded images and labels, whatever the names and times of their files.

    Read from the cache, which is filled first where it has nothing.
    """
    return _metadata(_listing(root)).get("content") or _content(load(root)[0])


def sizes(root: Path | None) -> dict[str, int]:
    """The numbers of training and test images, ``n_train`` and ``n_test``; InputError where files are missing."""
    files = _listing(root)
    return {"n_train": len(files.train), "n_test": len(files.test)}


@readable_files()
def _listing(root: Path | None) -> Listing:
    folder = required_root("tiny-imagenet", root) / FOLDER
    train_folder, images, annotations = folder / "train", folder / "val" / "images", folder / "val/val_annotations.txt"
    missing = [str(path) for path in (train_folder, annotations, images) if not path.exists()]
    require(not missing, f"tiny-imagenet: missing {', '.join(missing)}; {GET} (it is not downloaded by itself)")
    ids = sorted(path.name for path in train_folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    require(len(ids) >= 2, f"tiny-imagenet needs folders of at least 2 classes in {train_folder}, got {len(ids)}")
    train: Images = []
    for k, wnid in enumerate(ids):
        found = sorted((train_folder / wnid / "images").glob("*.JPEG"))
        found = [file for file in found if not file.name.startswith(".")]  # macOS puts ._NAME.JPEG beside NAME.JPEG
        require(bool(found), f"tiny-imagenet: no *.JPEG in {train_folder / wnid / 'images'}; {GET}")
        train += [(file, k) for file in found]
    number = {wnid: k for k, wnid in enumerate(ids)}
    test: Images = []
    for line, text in enumerate(_lines(annotations), start=1):
        fields = text.split("\t")
        require(len(fields) >= 2, f"{annotations} line {line} must hold a file name, a tab and an id, got {text!r}")
        inside = fields[0] == Path(fields[0]).name and "\0" not in fields[0] and len(fields[0].encode()) < 256
        require(inside, f"{annotations} line {line} must name a file in {images}, got {fields[0][:99]!r}")
        if fields[1] in number:
            test.append((images / fields[0], number[fields[1]]))
    require(bool(test), f"{annotations} names no image of the {len(ids)} classes in {train_folder}")
    absent = [str(file) for file, _ in test if not file.is_file()]
    require(not absent, f"tiny-imagenet: missing {some(absent, 3)}; {GET}")
    return Listing(folder, ids, train, test)


def _class_names(files: Listing) -> tuple[str, ...]:
    """The first name of every class in ``words.txt``; its id where there is none."""
    words = files.folder / "words.txt"
    lines = [line.partition("\t") for line in _lines(words)] if words.is_file() else []
    names = {wnid: text.split(",")[0].strip() for wnid, _, text in lines}
    return tuple(names.get(wnid) or wnid for wnid in files.ids)


def _lines(path: Path) -> list[str]:
    """The lines of a text in UTF-8, with or without a byte order mark, or else in Latin-1."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        return content.decode("latin-1").splitlines()


def _decoded(images: Images, split: str) -> dict[str, Tensor]:
    """Images and labels of a split; grey images become RGB."""
    from PIL import Image

    x_NHWC = np.empty((len(images), SIDE, SIDE, 3), dtype=np.uint8)
    for i, (file, _) in enumerate(images):
        try:
            with Image.open(file) as image:
                size, deep = image.size, image.mode.startswith(("I", "F"))
                fits = size == (SIDE, SIDE) and not deep  # another picture, which may be huge, is not decoded
                pixels = np.asarray(image.convert("RGB")) if fits else x_NHWC[i]
        except Exception as error:  # a damaged file makes a decoder raise whatever it trips over
            raise InputError(f"{file} is damaged or no image: {error}") from error
        require(not deep, f"{file} must have 8 bits a channel, got the mode {image.mode}")
        require(size == (SIDE, SIDE), f"{file} must be {SIDE} x {SIDE} pixels, got {size[0]} x {size[1]}")
        x_NHWC[i] = pixels
    x_NCHW = torch.from_numpy(x_NHWC).permute(0, 3, 1, 2).contiguous()
    return {f"x_{split}": x_NCHW, f"y_{split}": torch.tensor([k for _, k in images], dtype=torch.int64)}


# The cache -----------------------------------------------------------------------------------------------------------


def _cache(files: Listing) -> Path:
    """The file of decoded tensors: one for each folder of images, below XDG_CACHE_HOME or ~/.cache."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tadlib"
    name = hashlib.sha256(str(files.folder.resolve()).encode()).hexdigest()[:12]
    return folder / f"tiny-imagenet-{name}.safetensors"


def _metadata(files: Listing) -> dict[str, str]:
    """Metadata of the file of decoded tensors if it was made from exactly these files, else nothing."""
    with suppress(InputError):
        metadata = load_metadata(_cache(files))
        return metadata if metadata.get("key") == _key(files) else {}
    return {}


def _key(files: Listing) -> str:
    """SHA-256 of names, classes, sizes and times of change of all files: enough to notice that they were replaced, and
    far faster than reading them. A file changed in place with its size and time kept would not be noticed."""
    digest = hashlib.sha256()
    for split in (files.train, files.test):
        for file, k in split:
            status = file.stat()
            digest.update(f"{file.relative_to(files.folder)}\0{k}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _content(tensors: dict[str, Tensor]) -> str:
    """SHA-256, in hex, of images and labels."""
    digest = hashlib.sha256()
    for name in NAMES:
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().numpy().data)
    return digest.hexdigest()
