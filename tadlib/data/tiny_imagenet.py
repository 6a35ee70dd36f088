"""Tiny ImageNet from its folders of JPEG files, decoded once into one file of tensors.

Legend: N samples, C H W image.

Official layout, under ``tiny-imagenet-200``: ``train/<WordNet id>/images/*.JPEG``; ``val/images/*.JPEG`` with
``val/val_annotations.txt`` (file name, tab, WordNet id, ...); ``words.txt`` (id, tab, names). The test images there
have no labels, so the validation images serve as test set, as everywhere in the field.
"""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tadlib.errors import InputError, require
from tadlib.store import load_metadata, load_tensors, save_tensors

FOLDER = "tiny-imagenet-200"
SIDE = 64
DECODED = "tadlib-decoded.safetensors"
NAMES = ("x_train", "y_train", "x_test", "y_test")
ROOT_NEEDED = "tiny-imagenet is read from files: give their folder, --root DIR (in Python root=DIR)"
GET = "download and unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip there"

Files = list[tuple[Path, int]]  # image and class


def load(root: Path | None) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """uint8 images (N, 3, 64, 64) and int64 labels (N,) by the names in ``NAMES``, and the names of the classes.

    Classes are the folders of ``train`` in the order of their WordNet ids, be they all 200 or a part; annotations of
    other classes are passed over. Raises InputError naming what is missing or cannot be read.
    """
    require(root is not None, ROOT_NEEDED)
    assert root is not None
    folder = root / FOLDER
    ids, train, test = _listing(folder)
    key = _key(folder, train, test)
    tensors = _cached(folder, key)
    if tensors is None:
        tensors = _decoded(train, "train") | _decoded(test, "test")
        _keep(folder, key, tensors)
    return tensors, _class_names(folder, ids)


def checksum(root: Path | None) -> str:
    """SHA-256, in hex, over all decoded images and labels, whatever the names and times of their files.

    Read from the decoded file, which is made first where there is none.
    """
    require(root is not None, ROOT_NEEDED)
    assert root is not None
    folder = root / FOLDER
    _, train, test = _listing(folder)
    if found := _decoded_metadata(folder, _key(folder, train, test)).get("content"):
        return found
    return _content(load(root)[0])


def _listing(folder: Path) -> tuple[list[str], Files, Files]:
    """WordNet ids of the classes, training and test files in a fixed order."""
    annotations = folder / "val" / "val_annotations.txt"
    missing = [str(p) for p in (folder / "train", annotations, folder / "val" / "images") if not p.exists()]
    require(not missing, f"tiny-imagenet: missing {', '.join(missing)}; {GET} (it is not downloaded by itself)")
    ids = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir())
    require(len(ids) >= 2, f"tiny-imagenet needs folders of at least 2 classes in {folder / 'train'}, got {len(ids)}")
    train: Files = []
    for k, wnid in enumerate(ids):
        files = sorted((folder / "train" / wnid / "images").glob("*.JPEG"))
        require(len(files) > 0, f"tiny-imagenet: no *.JPEG in {folder / 'train' / wnid / 'images'}; {GET}")
        train += [(file, k) for file in files]
    number = {wnid: k for k, wnid in enumerate(ids)}
    test: Files = []
    for line, text in enumerate(annotations.read_text(encoding="utf-8").splitlines(), start=1):
        fields = text.split("\t")
        require(len(fields) >= 2, f"{annotations} line {line} must hold a file name, a tab and an id, got {text!r}")
        if fields[1] in number:
            test.append((folder / "val" / "images" / fields[0], number[fields[1]]))
    require(len(test) > 0, f"{annotations} names no image of the {len(ids)} classes in {folder / 'train'}")
    absent = [str(file) for file, _ in test if not file.is_file()]
    more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
    require(not absent, f"tiny-imagenet: missing {', '.join(absent[:3])}{more}; {GET}")
    return ids, train, test


def _class_names(folder: Path, ids: list[str]) -> tuple[str, ...]:
    """The first name of every class in ``words.txt``; its id where there is none."""
    words = folder / "words.txt"
    lines = words.read_text(encoding="utf-8").splitlines() if words.is_file() else []
    names = {wnid: text.split(",")[0].strip() for wnid, _, text in (line.partition("\t") for line in lines)}
    return tuple(names.get(wnid) or wnid for wnid in ids)


def _decoded(files: Files, split: str) -> dict[str, Tensor]:
    """Images and labels of ``files``; grey images become RGB."""
    from PIL import Image

    x_NHWC = np.empty((len(files), SIDE, SIDE, 3), dtype=np.uint8)
    for i, (file, _) in enumerate(files):
        try:
            with Image.open(file) as image:
                size = image.size
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError) as error:
            raise InputError(f"{file} is damaged or no image: {error}") from error
        require(size == (SIDE, SIDE), f"{file} must be {SIDE} x {SIDE} pixels, got {size[0]} x {size[1]}")
        x_NHWC[i] = pixels
    x_NCHW = torch.from_numpy(x_NHWC).permute(0, 3, 1, 2).contiguous()
    return {f"x_{split}": x_NCHW, f"y_{split}": torch.tensor([k for _, k in files], dtype=torch.int64)}


# The decoded file ----------------------------------------------------------------------------------------------------


def _key(folder: Path, train: Files, test: Files) -> str:
    """SHA-256 of names, classes, sizes and times of change of all files: enough to notice that they were replaced, and
    far faster than reading them. A file changed in place with its size and time kept would not be noticed."""
    digest = hashlib.sha256()
    for split in (train, test):
        for file, k in split:
            status = file.stat()
            digest.update(f"{file.relative_to(folder)}\0{k}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _places(folder: Path) -> tuple[Path, Path]:
    """Where the decoded file may lie: beside the data, or in the user's cache folder where that cannot be written."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tadlib"
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    return folder / DECODED, cache / f"tiny-imagenet-{name}.safetensors"


def _cached(folder: Path, key: str) -> dict[str, Tensor] | None:
    """Decoded tensors of exactly these files, where there are any; a damaged or outdated file counts as none."""
    for path in _places(folder):
        try:
            if path.is_file() and load_metadata(path).get("key") == key:
                return load_tensors(path)
        except InputError:
            continue
    return None


def _decoded_metadata(folder: Path, key: str) -> dict[str, str]:
    """What the decoded file of exactly these files tells about itself; nothing where there is none."""
    for path in _places(folder):
        with suppress(InputError):
            if path.is_file() and (metadata := load_metadata(path)).get("key") == key:
                return metadata
    return {}


def _content(tensors: dict[str, Tensor]) -> str:
    """SHA-256, in hex, of images and labels."""
    digest = hashlib.sha256()
    for name in NAMES:
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().numpy().data)
    return digest.hexdigest()


def _keep(folder: Path, key: str, tensors: dict[str, Tensor]) -> None:
    """Write the decoded tensors, whole or not at all, in the first place that lets us; decoding again is no error."""
    for path in _places(folder):
        try:
            save_tensors(path, tensors, {"key": key, "content": _content(tensors)})
            return
        except OSError:
            continue
