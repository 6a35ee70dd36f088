"""Load a data set as tensors on a device.

Legend: N samples, K classes, C H W image.

A data set is one function in ``DATASETS`` that returns integer images and labels. Everything after that (subsets,
resolution, normalisation, checks) is the same for all.
"""

import gzip
import hashlib
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tadlib.checks import require_device, require_images, require_labels, require_tensor
from tadlib.data import own, tiny_imagenet
from tadlib.data.class_maps import CIFAR100_SUPERCLASSES, superclass_of
from tadlib.data.whiten import Whitening, fit
from tadlib.errors import InputError, known, readable_files, require, required_root, some, usable
from tadlib.nn.images import BATCH, Images
from tadlib.rng import generator

DIGITS_TEST = 500
MOST_SIDE = 1024  # of own images
FLOATS = 64  # pixels a side up to which own images are held as floats, larger ones as bytes
LEAST_STD = 1e-3  # of a channel, in pixels of [0, 1]: images of one brightness are not divided by 0


@dataclass(frozen=True, eq=False)
class Dataset:
    """Normalised images with labels, checked at construction.

    Raises InputError where shapes disagree, an image holds NaN or infinity, a label is out of range, or a class has
    no training image.
    """

    name: str
    x_train: Tensor
    """(N, C, H, W) float32, normalised by mean and std; of own images of more than :data:`FLOATS` pixels a side,
    :class:`tadlib.nn.images.Images`, which hold bytes and make such floats a batch at a time."""
    y_train: Tensor
    """(N,) int64, labels as the data set has them."""
    x_test: Tensor
    y_test: Tensor
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    """Per channel, of pixels in [0, 1], over the full training set at this resolution."""
    std: tuple[float, ...]
    index: Tensor
    """(N,) int64, place of each training image in the full training set."""
    n_full: int | None = None
    """Images of the full training set; None where it is unknown."""
    whitening: Whitening | None = None
    """Where set, images are whitened instead of normalised (:meth:`whitened`)."""
    files: own.Files | None = None
    """Of the user's own images: where they come from. ``y_train`` are then noisy labels."""

    def __post_init__(self) -> None:
        K, shape = self.n_classes, tuple(self.x_train.shape[1:])
        require_images("x_train", self.x_train)
        require_labels("y_train", self.y_train, K, len(self.x_train))
        if self.files is None or len(self.x_test):  # of own images none need be set aside
            require_images("x_test", self.x_test, shape)
            require_labels("y_test", self.y_test, K, len(self.x_test))
        count_K = torch.bincount(self.y_train, minlength=K).tolist()
        absent = [name for name, count in zip(self.class_names, count_K) if count == 0]
        require(not absent, f"every class needs a training image, got none of: {some(absent)}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            require(len(values) == shape[0], f"{name} must have {shape[0]} values (one a channel), got {len(values)}")
        require(all(s > 0 for s in self.std), f"std must be positive in every channel, got {self.std}")
        require_tensor("index", self.index, (len(self.y_train),), torch.int64)

    @property
    def n_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        C, H, W = self.x_train.shape[1:]
        return C, H, W

    @property
    def paths(self) -> tuple[str, ...] | None:
        """Path of each training image where the images are the user's own."""
        return None if self.files is None else self.files.paths

    @property
    def unreadable(self) -> tuple[tuple[str, str], ...]:
        """Path and reason of each image that could not be decoded and is left out."""
        return () if self.files is None else self.files.unreadable

    @cached_property
    def checksum(self) -> str:
        """SHA-256, in hex, of the images and labels of both splits."""
        digest = hashlib.sha256()
        for tensor in (self.x_train, self.y_train, self.x_test, self.y_test):
            digest.update(str(tuple(tensor.shape)).encode())
            for part in tensor.split(BATCH) if len(tensor) else ():
                digest.update(part.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def pixels(self, x_NCHW: Tensor, *, clamp: bool = True) -> Tensor:
        """Images for display: normalisation or whitening undone, clamped to [0, 1] unless ``clamp`` is false."""
        if self.whitening is not None:
            raw_NCHW = self.whitening.undo(x_NCHW)
        else:
            mean, std = (x_NCHW.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
            raw_NCHW = x_NCHW * std + mean
        return raw_NCHW.clamp(0, 1) if clamp else raw_NCHW

    def whitened(self) -> "Dataset":
        """The same data set with ZCA-whitened images; the whitening is fitted on its training images."""
        require(self.whitening is None, "the images of this data set are whitened already")
        train, test = (self.pixels(x[:], clamp=False) for x in (self.x_train, self.x_test))
        whitening = fit(train)
        return replace(self, x_train=whitening.apply(train), x_test=whitening.apply(test), whitening=whitening)


@dataclass(frozen=True)
class Raw:
    """A data set as its files have it: uint8 images (N, C, H, W) whose white is ``white``, int64 labels (N,)."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    class_names: tuple[str, ...]
    white: int = 255


@readable_files()
def load_dataset(
    name: str,
    *,
    root: Path | str | None = None,
    download: bool = False,
    n_train: int | None = None,
    n_test: int | None = None,
    resolution: int | None = None,
    device: torch.device | str = "cpu",
    cache: Path | str | None = None,
) -> Dataset:
    """Load ``name`` (one of ``DATASETS``, or the user's own images, ``folder:PATH`` or ``table:FILE``:
    :mod:`tadlib.data.own`) onto ``device``; its bits do not depend on the device.

    root: folder with the files in torchvision's layout (digits and own images need none). download: fetch them there if
    they are missing. n_train, n_test: size of a class-balanced subset, the same one at every call; a smaller one is
    part of every larger one. resolution: side in pixels to which images are averaged down. cache: folder that keeps
    decoded own images.

    Raises InputError for an unknown name, missing or damaged files, and sizes that the data set does not have.
    """
    require_known(name)
    require_device(device)
    if own.is_own(name):
        _require_integer("resolution", resolution, 1, MOST_SIDE, name)
        loaded = own.load(name, resolution=resolution, n_test=n_test, cache=None if cache is None else usable(cache))
        raw = Raw(loaded.x, loaded.y, loaded.x, loaded.y, loaded.listing.class_names)
        all_train, all_test, n_full = loaded.train, loaded.test, loaded.listing.n_train
        n_test = n_test if loaded.listing.has_test else None  # others are held out already
        least, resolution, purpose = 0, None, "own"  # of that size already
    else:
        loaded, raw = None, DATASETS[name](None if root is None else usable(root), download)
        _require_integer("resolution", resolution, 1, raw.x_train.shape[-1], name)
        all_train, all_test = torch.arange(len(raw.y_train)), torch.arange(len(raw.y_test))
        least, n_full, purpose = len(raw.class_names), len(raw.y_train), name
    K = len(raw.class_names)
    _require_integer("n_train", n_train, K, len(all_train), name)
    _require_integer("n_test", n_test, least, len(all_test), name)
    for split, y_N in (("y_train", raw.y_train), ("y_test", raw.y_test)):
        require_labels(f"{split} of {name}", y_N, K)

    train = all_train[balanced_subset(raw.y_train[all_train], n_train, K, purpose, "train")]
    test = all_test[balanced_subset(raw.y_test[all_test], n_test, K, purpose, "test")]
    mean, std = _statistics(raw.x_train, all_train, resolution, raw.white)
    large = loaded is not None and raw.x_train.shape[-1] > FLOATS
    x_train, x_test = (
        cast(Tensor, Images(x_NCHW, x_NCHW.shape[-1], mean, std, places=index))
        if large
        else _normalised(x_NCHW, index, resolution, raw.white, mean, std)
        for x_NCHW, index in ((raw.x_train, train), (raw.x_test, test))
    )
    x_train, y_train, x_test, y_test, index = (
        tensor.to(device) for tensor in (x_train, raw.y_train[train], x_test, raw.y_test[test], train)
    )
    files = None if loaded is None else loaded.files(train)
    return Dataset(name, x_train, y_train, x_test, y_test, raw.class_names, mean, std, index, n_full, files=files)


def require_known(name: str) -> None:
    """InputError unless ``name`` is a data set's, or a source of own images."""
    if not own.is_own(name):
        known("data set", name, (*DATASETS, "folder:PATH", "table:FILE"))


def _require_integer(what: str, value: object, least: int, most: int, name: str) -> None:
    fits = value is None or (isinstance(value, int) and least <= value <= most)
    require(fits, f"{what} must be an integer in [{least}, {most}] for {name}, got {value!r}")


def balanced_subset(y_N: Tensor, n: int | None, n_classes: int, *purpose: str) -> Tensor:
    """Ascending indices of ``n`` samples, as even over the classes as their sizes allow; all for None (our choice).

    The classes take turns, each in a fixed random order of its own, so that subsets of different sizes are nested.
    ``purpose`` names the random order.
    """
    if n is None:
        return torch.arange(len(y_N))
    order_N = torch.randperm(len(y_N), generator=generator(0, "subset", *purpose))
    turn_N = torch.empty_like(order_N)
    for k in range(n_classes):
        of_class = order_N[y_N[order_N] == k]
        turn_N[of_class] = torch.arange(len(of_class)) * n_classes + k
    return turn_N.argsort(stable=True)[:n].sort().values


def _digits(root: Path | None, download: bool) -> Raw:
    """The 8 × 8 digits inside scikit-learn, 0 to 16; 50 of each class are set aside for testing (our choice)."""
    from sklearn.datasets import load_digits  # here, as torchvision below: each takes a second to import

    bunch = load_digits()
    x_NCHW, y_N = torch.from_numpy(bunch.images).to(torch.uint8)[:, None], torch.from_numpy(bunch.target).long()
    test = torch.zeros(len(y_N), dtype=torch.bool)
    test[balanced_subset(y_N, DIGITS_TEST, 10, "digits", "split")] = True
    names = tuple(str(k) for k in range(10))
    return Raw(x_NCHW[~test], y_N[~test], x_NCHW[test], y_N[test], names, white=16)


def _cifar(name: str, root: Path | None, download: bool) -> Raw:
    """CIFAR (Krizhevsky 2009) from its python files, which are pickles: torchvision reads them after our md5 check."""
    from torchvision.datasets import CIFAR10, CIFAR100

    reader = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    meta = (str(reader.meta["filename"]), str(reader.meta["md5"]))
    md5s = {f"{reader.base_folder}/{file}": md5 for file, md5 in (*reader.train_list, *reader.test_list, meta)}
    folder = _require_files(name, root, md5s, lambda folder: reader(folder, download=True), download)
    train, test = (reader(folder, train=flag) for flag in (True, False))
    x_train, x_test = (torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in (train, test))
    y_train, y_test = (torch.tensor(part.targets, dtype=torch.int64) for part in (train, test))
    return Raw(x_train, y_train, x_test, y_test, tuple(train.classes))


def _cifar100_coarse(root: Path | None, download: bool) -> Raw:
    """CIFAR-100 with its 20 superclasses as the classes: the task of the coarse human labels."""
    raw, of_K = _cifar("cifar100", root, download), torch.tensor(superclass_of())
    names = tuple(CIFAR100_SUPERCLASSES)
    return replace(raw, y_train=of_K[raw.y_train], y_test=of_K[raw.y_test], class_names=names)


def _tiny_imagenet(root: Path | None, download: bool) -> Raw:
    """Tiny ImageNet (Le & Yang 2015), all of it or the classes that are there; it is never downloaded."""
    tensors, class_names = tiny_imagenet.load(root)
    x_train, y_train, x_test, y_test = (tensors[name] for name in tiny_imagenet.NAMES)
    return Raw(x_train, y_train, x_test, y_test, class_names)


def _fashion_mnist(root: Path | None, download: bool) -> Raw:
    """Fashion-MNIST (Xiao et al. 2017) from the compressed files that torchvision keeps: only they have known md5s."""
    from torchvision.datasets import FashionMNIST
    from torchvision.datasets.utils import download_url

    def fetch(folder: Path) -> None:  # FashionMNIST's own leaves out the compressed files where it finds the others
        for file, md5 in FashionMNIST.resources:
            download_url(f"{FashionMNIST.mirrors[0]}{file}", folder / "FashionMNIST" / "raw", md5=md5)

    md5s = {f"FashionMNIST/raw/{file}": md5 for file, md5 in FashionMNIST.resources}
    folder = _require_files("fashion-mnist", root, md5s, fetch, download)
    x_train, y_train, x_test, y_test = (_read_idx(folder / file) for file in md5s)
    return Raw(x_train[:, None], y_train.long(), x_test[:, None], y_test.long(), tuple(FashionMNIST.classes))


DATASETS: dict[str, Callable[[Path | None, bool], Raw]] = {
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    "cifar10": partial(_cifar, "cifar10"),
    "cifar100": partial(_cifar, "cifar100"),
    "cifar100-coarse": _cifar100_coarse,
    "tiny-imagenet": _tiny_imagenet,
}


def _require_files(
    name: str, root: Path | None, md5s: dict[str, str], fetch: Callable[[Path], object], download: bool
) -> Path:
    """``root`` when every file of ``md5s`` (path below root → md5) lies there undamaged; where ``download`` says so,
    they are fetched first if any is not."""
    root = required_root(name, root)

    def damage() -> tuple[list[str], list[str]]:
        """What is missing, and what is damaged and why."""
        missing, damaged = [], []
        for file, expected in md5s.items():
            if not (root / file).is_file():
                missing.append(file)
            elif (got := _md5(root / file)) != expected:
                damaged.append(f"{root / file} is damaged: its md5 must be {expected}, got {got}")
        return missing, damaged

    missing, damaged = damage()
    if download and (missing or damaged):
        try:
            with redirect_stdout(sys.stderr):  # torchvision's messages must not end up in the output of --json
                fetch(root)
        except (OSError, RuntimeError) as error:
            raise InputError(f"{name} could not be downloaded to {root}: {error}") from error
        missing, damaged = damage()
    advice = "or let them be downloaded with --download (in Python download=True)"
    require(not missing, f"{name}: files missing under {root}: {', '.join(missing)}; put them there, {advice}")
    require(not damaged, f"{'; '.join(damaged)}; put whole files there, {advice}")
    return root


def _md5(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _read_idx(path: Path) -> Tensor:
    """The uint8 tensor in a gzipped IDX file: two zero bytes, type 8, number of axes, each size as 4 bytes, values."""
    content = gzip.decompress(path.read_bytes())
    axes = content[3]
    shape = np.frombuffer(content, ">i4", count=axes, offset=4)
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape).copy())


def _scaled(x_NCHW: Tensor, resolution: int | None, white: int) -> Tensor:
    """uint8 images as float32 in [0, 1], averaged down to ``resolution`` × ``resolution``.

    Where the side is not a multiple of the resolution, the windows of the average overlap by a pixel.
    """
    x_NCHW = x_NCHW.float()
    if resolution is not None:
        x_NCHW = F.adaptive_avg_pool2d(x_NCHW, resolution)
    return x_NCHW.div_(white)


def _statistics(
    x_NCHW: Tensor, index: Tensor, resolution: int | None, white: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel over the images at ``index``, summed in float64.

    Rounded to 6 decimals (our choice), so that the order of summation, which varies between machines, leaves no trace.
    """
    sum_C, squares_C = torch.zeros(2, x_NCHW.shape[1], dtype=torch.float64)
    count = 0
    for chunk in index.split(BATCH):
        part_NCHW = _scaled(x_NCHW[chunk], resolution, white)
        sum_C += part_NCHW.sum((0, 2, 3), dtype=torch.float64)
        squares_C += part_NCHW.square().sum((0, 2, 3), dtype=torch.float64)
        count += part_NCHW[:, 0].numel()
    mean_C = sum_C / count
    std_C = (squares_C / count - mean_C.square()).clamp(min=0).sqrt().clamp(min=LEAST_STD)
    mean, std = (tuple(round(value, 6) for value in values_C.tolist()) for values_C in (mean_C, std_C))
    return mean, std


def _normalised(
    x_NCHW: Tensor, index: Tensor, resolution: int | None, white: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> Tensor:
    """The images at ``index``, prepared for networks."""
    mean_C11, std_C11 = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    side = resolution or x_NCHW.shape[-1]
    out_NCHW = torch.empty(len(index), x_NCHW.shape[1], side, side)
    for out, chunk in zip(out_NCHW.split(BATCH), index.split(BATCH)):
        torch.sub(_scaled(x_NCHW[chunk], resolution, white), mean_C11, out=out).div_(std_C11)
    return out_NCHW
