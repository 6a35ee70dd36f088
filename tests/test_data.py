"""Promises of tadlib.data: the same tensors at every call, balanced subsets, and clear errors before work starts."""

import gzip
import hashlib
import io
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST

from tadlib.data import DATASETS, Dataset, balanced_subset, load_dataset
from tadlib.data.class_maps import CIFAR100_SUPERCLASSES, superclass_of
from tadlib.errors import InputError


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def bytes_of(dataset: Dataset, x_NCHW: torch.Tensor) -> torch.Tensor:
    return dataset.pixels(x_NCHW).mul(255).round().to(torch.uint8)


def spoilt(tensor: torch.Tensor, place: int | tuple[int, ...], value: float | torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[place] = value
    return tensor


# Digits and what is common to all data sets


def test_digits_are_split_without_loss_or_overlap(digits):
    assert digits.x_train.shape == (1297, 1, 8, 8)
    assert digits.x_test.shape == (500, 1, 8, 8)
    assert digits.y_test.bincount().tolist() == [50] * 10
    assert (digits.n_classes, digits.image_shape) == (10, (1, 8, 8))
    # every digit of scikit-learn's comes back once, with its label
    source = load_digits()
    expected = sorted((*image.ravel().tolist(), label) for image, label in zip(source.images, source.target))
    x_NCHW = digits.pixels(torch.cat([digits.x_train, digits.x_test])).mul(16)
    y_N = torch.cat([digits.y_train, digits.y_test])
    assert torch.allclose(x_NCHW, x_NCHW.round(), atol=1e-4)
    got = sorted((*image.round().flatten().tolist(), label) for image, label in zip(x_NCHW, y_N.tolist()))
    assert got == expected


def test_training_images_are_normalised_per_channel_and_pixels_undoes_it_and_clamps(digits):
    assert digits.x_train.dtype == torch.float32
    assert digits.x_train.double().mean().item() == pytest.approx(0, abs=1e-5)
    assert digits.x_train.double().std(correction=0).item() == pytest.approx(1, abs=1e-5)
    dataset = replace(digits, mean=(0.5,), std=(0.25,))
    x_NCHW = torch.tensor([-9.0, -2.0, 0.0, 1.0, 2.0, 9.0]).view(6, 1, 1, 1)
    assert dataset.pixels(x_NCHW).flatten().tolist() == [0, 0, 0.5, 0.75, 1, 1]


def test_a_load_repeats_bit_for_bit_and_leaves_the_global_generator_alone(digits):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    again = load_dataset("digits")
    assert torch.equal(torch.get_rng_state(), before)
    assert again.checksum == digits.checksum
    assert load_dataset("digits", n_train=100).checksum == load_dataset("digits", n_train=100).checksum
    # golden: a change of the split or the normalisation makes every stored result of digits stale
    assert digits.checksum.startswith("63454d7d")


@pytest.mark.parametrize("field", ["x_train", "y_train", "x_test", "y_test"])
def test_checksum_covers_images_and_labels_of_both_splits(digits, field):
    values = getattr(digits, field)
    other = (values[0] + 1) % 10 if field.startswith("y") else -values[0]
    assert replace(digits, **{field: spoilt(values, 0, other)}).checksum != digits.checksum


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_device_holds_every_tensor_with_the_same_bits(digits):
    for moved in (digits.to("cuda"), load_dataset("digits", device="cuda")):
        for name in ("x_train", "y_train", "x_test", "y_test", "index"):
            assert getattr(moved, name).device.type == "cuda"
        assert moved.checksum == digits.checksum


def test_subsets_are_balanced_nested_and_indexed(digits):
    small, large = load_dataset("digits", n_train=55, n_test=20), load_dataset("digits", n_train=700)
    assert sorted(small.y_train.bincount().tolist()) == [5] * 5 + [6] * 5
    assert small.y_test.bincount().tolist() == [2] * 10
    assert set(small.index.tolist()) < set(large.index.tolist())
    assert torch.equal(small.x_train, digits.x_train[small.index])
    assert torch.equal(small.y_train, digits.y_train[small.index])
    assert (small.mean, small.std) == (digits.mean, digits.std)
    assert load_dataset("digits", n_train=1297, n_test=500).checksum == digits.checksum


def test_a_channel_of_one_brightness_is_not_divided_by_zero(monkeypatch):
    raw = DATASETS["digits"](None, False)
    grey = replace(raw, **{name: torch.full_like(getattr(raw, name), 7) for name in ("x_train", "x_test")})
    monkeypatch.setitem(DATASETS, "digits", lambda *_: grey)
    data = load_dataset("digits")
    assert data.x_train.abs().max() < 0.01
    torch.testing.assert_close(data.pixels(data.x_test), torch.full_like(data.x_test, 7 / 16))


def test_balanced_subset_takes_what_small_classes_have():
    y_N = torch.tensor([0] * 3 + [1] * 50 + [2] * 20)
    chosen = balanced_subset(y_N, 40, 3, "test")
    assert y_N[chosen].bincount().tolist() == [3, 19, 18]
    assert torch.equal(chosen, chosen.unique())  # ascending, each once
    assert not torch.equal(chosen, balanced_subset(y_N, 40, 3, "another purpose"))


@pytest.mark.parametrize("side", [4, 3, 1])
def test_resolution_averages_over_windows(digits, side):
    dataset = load_dataset("digits", resolution=side)
    x_NHW = (digits.pixels(digits.x_train)[:, 0] * 16).round().double() / 16
    windows = [slice(i * 8 // side, -(-(i + 1) * 8 // side)) for i in range(side)]
    rows = [torch.stack([x_NHW[:, row, column].mean((1, 2)) for column in windows], 1) for row in windows]
    averaged_NHW = torch.stack(rows, 1)
    assert dataset.mean == pytest.approx([averaged_NHW.mean().item()], abs=1e-6)
    assert dataset.std == pytest.approx([averaged_NHW.std(correction=0).item()], abs=1e-6)
    assert torch.allclose(dataset.pixels(dataset.x_train)[:, 0].double(), averaged_NHW, atol=1e-6)


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"n_train": 9}, r"n_train must be an integer in \[10, 1297\] for digits, got 9"),
        ({"n_train": 1298}, r"n_train .* got 1298"),
        ({"n_train": 100.0}, r"n_train .* got 100\.0"),
        ({"n_test": 0}, r"n_test must be an integer in \[10, 500\] for digits, got 0"),
        ({"resolution": 9}, r"resolution must be an integer in \[1, 8\] for digits, got 9"),
        ({"resolution": 0}, r"resolution .* got 0"),
    ],
)
def test_sizes_that_the_data_set_lacks_are_refused(bad, message):
    with pytest.raises(InputError, match=message):
        load_dataset("digits", **bad)


@pytest.mark.parametrize(
    "field, change, message",
    [
        ("x_train", lambda x: spoilt(x, (3, 0, 1, 2), torch.nan), "be finite.* in 1 of 1297, first at 3"),
        ("x_test", lambda x: spoilt(x, (7, 0, 1, 2), -torch.inf), "be finite.* first at 7"),
        ("x_train", lambda x: x[:, 0], r"be \(N, C, H, W\) float32, got \(1297, 8, 8\) float32"),
        ("x_train", lambda x: x.double(), r"be .* got \(1297, 1, 8, 8\) float64"),
        ("x_test", lambda x: x[..., :7], r"be \(N, 1, 8, 8\) float32, got \(500, 1, 8, 7\) float32"),
        ("x_test", lambda x: x[:0], r"be \(N, 1, 8, 8\) float32, got \(0, 1, 8, 8\) float32, which is empty"),
        ("y_train", lambda y: spoilt(y, 2, 10), r"be in \[0, 10\), got 10 at 2"),
        ("y_test", lambda y: spoilt(y, 4, -1), r"be in \[0, 10\), got -1 at 4"),
        ("y_train", lambda y: y[:-1], r"be \(1297,\) int64, got \(1296,\)"),
        ("y_train", lambda y: y.float(), r"be \(1297,\) int64, got \(1297,\) float32"),
        ("std", lambda std: (0.0,), r"be positive in every channel, got \(0\.0,\)"),
        ("mean", lambda mean: (0.5,) * 3, r"have 1 values \(one a channel\), got 3"),
        ("index", lambda index: index[1:], r"be \(1297,\) int64, got \(1296,\)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(digits, field, change, message):
    with pytest.raises(InputError, match=f"{field} must {message}"):
        replace(digits, **{field: change(getattr(digits, field))})


def test_a_class_without_training_images_is_refused(digits):
    with pytest.raises(InputError, match="every class needs a training image, got none of: 6"):
        replace(digits, y_train=digits.y_train.where(digits.y_train != 6, 0))


# CIFAR from files


def write_cifar(reader, root: Path, monkeypatch, n: int = 100) -> dict[str, np.ndarray]:
    """Files like CIFAR's with ``n`` random images each, their md5s known to torchvision; the pixels of each file."""
    folder = root / reader.base_folder
    folder.mkdir(parents=True)
    draw, pixels = np.random.default_rng(0), {}
    k, label_key = (10, "labels") if reader is CIFAR10 else (100, "fine_labels")
    for table in ("train_list", "test_list"):
        files = [file for file, _ in getattr(reader, table)]
        for file in files:
            pixels[file] = draw.integers(0, 256, (n, 3 * 32 * 32), dtype=np.uint8)
            content = {"data": pixels[file], label_key: [i % k for i in range(n)]}
            (folder / file).write_bytes(pickle.dumps(content))
        monkeypatch.setattr(reader, table, [[file, md5(folder / file)] for file in files])
    meta = folder / reader.meta["filename"]
    meta.write_bytes(pickle.dumps({reader.meta["key"]: [f"class {i}" for i in range(k)]}))
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": md5(meta)})
    return pixels


@pytest.mark.parametrize("name, reader, n_files", [("cifar10", CIFAR10, 5), ("cifar100", CIFAR100, 1)])
def test_cifar_files_become_images_in_order(tmp_path, monkeypatch, name, reader, n_files):
    pixels = write_cifar(reader, tmp_path, monkeypatch)
    dataset = load_dataset(name, root=tmp_path)
    assert dataset.x_train.shape == (100 * n_files, 3, 32, 32)
    assert dataset.x_train.is_contiguous()
    assert dataset.n_classes == len(dataset.class_names)
    assert dataset.class_names[-1] == f"class {dataset.n_classes - 1}"
    *train, test = (torch.from_numpy(values).view(-1, 3, 32, 32) for values in pixels.values())
    assert torch.equal(bytes_of(dataset, dataset.x_train), torch.cat(train))
    assert torch.equal(bytes_of(dataset, dataset.x_test), test)
    assert dataset.y_train[:3].tolist() == [0, 1, 2]
    channels = torch.cat(train).double().div(255).transpose(0, 1).flatten(1)
    assert dataset.mean == pytest.approx(channels.mean(1).tolist(), abs=1e-6)
    assert dataset.std == pytest.approx(channels.std(1, correction=0).tolist(), abs=1e-6)


def test_missing_files_are_all_named_with_the_way_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR10, "download", lambda self: pytest.fail("downloaded without being asked"))
    write_cifar(CIFAR10, tmp_path, monkeypatch)
    gone = [f"cifar-10-batches-py/{file}" for file in ("data_batch_2", "test_batch", "batches.meta")]
    for file in gone:
        (tmp_path / file).unlink()
    with pytest.raises(InputError) as error:
        load_dataset("cifar10", root=tmp_path)
    assert all(words in str(error.value) for words in (str(tmp_path), "--download", *gone))
    assert "data_batch_1" not in str(error.value)


def test_data_sets_of_files_need_a_root_and_unknown_ones_are_answered_with_the_known_names():
    for name in ("fashion-mnist", "cifar10", "cifar100"):
        with pytest.raises(InputError, match=f"{name} is read from files: give their folder, --root"):
            load_dataset(name)
    with pytest.raises(InputError, match="unknown data set 'mnits'; expected one of: digits, fashion-mnist, cifar10"):
        load_dataset("mnits")


class Trap:
    """Creates a folder when unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("file", ["data_batch_3", "test_batch", "batches.meta"])
def test_wrong_md5_names_the_file_and_nothing_is_unpickled(tmp_path, monkeypatch, file):
    write_cifar(CIFAR10, tmp_path, monkeypatch)
    path = tmp_path / "cifar-10-batches-py" / file
    expected = md5(path)
    path.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(InputError) as error:
        load_dataset("cifar10", root=tmp_path)
    assert str(path) in str(error.value)
    assert f"must be {expected}, got {md5(path)}" in str(error.value)
    assert not (tmp_path / "sprung").exists()


def test_download_fetches_a_damaged_file_anew(tmp_path, monkeypatch):
    write_cifar(CIFAR10, tmp_path, monkeypatch)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(InputError, match="data_batch_3 is damaged: .*--download"):
        load_dataset("cifar10", root=tmp_path)
    monkeypatch.setattr(CIFAR10, "download", lambda self: path.write_bytes(whole))
    assert len(load_dataset("cifar10", root=tmp_path, download=True).x_train) == 500
    path.write_bytes(b"")
    monkeypatch.setattr(CIFAR10, "download", lambda self: None)
    with pytest.raises((InputError, RuntimeError), match="damaged|corrupted"):
        load_dataset("cifar10", root=tmp_path, download=True)


def test_download_fetches_missing_files_keeps_stdout_clean_and_may_fail(tmp_path, monkeypatch, capsys):
    write_cifar(CIFAR10, tmp_path / "there", monkeypatch)

    def fetch(self):
        print("a message of torchvision's")
        (tmp_path / "there" / "cifar-10-batches-py").rename(Path(self.root) / "cifar-10-batches-py")

    def fail(self):
        raise OSError("no route to host")

    monkeypatch.setattr(CIFAR10, "download", fail)
    (tmp_path / "here").mkdir()
    with pytest.raises(InputError, match="cifar10 could not be downloaded to .*: no route to host"):
        load_dataset("cifar10", root=tmp_path / "here", download=True)
    monkeypatch.setattr(CIFAR10, "download", fetch)
    assert load_dataset("cifar10", root=tmp_path / "here", download=True).x_train.shape == (500, 3, 32, 32)
    assert capsys.readouterr().out == ""


def test_cifar100_coarse_has_the_superclasses_as_its_classes(tmp_path, monkeypatch):
    write_cifar(CIFAR100, tmp_path, monkeypatch)
    fine, coarse = (load_dataset(name, root=tmp_path) for name in ("cifar100", "cifar100-coarse"))
    assert torch.equal(fine.x_train, coarse.x_train)
    assert coarse.n_classes == 20
    assert coarse.class_names[:2] == ("aquatic_mammals", "fish")
    names = sorted(sum(CIFAR100_SUPERCLASSES.values(), ()))
    for y, of in zip(fine.y_train.tolist(), coarse.y_train.tolist()):
        assert names[y] in CIFAR100_SUPERCLASSES[coarse.class_names[of]]


class ArraysOnly(pickle.Unpickler):
    """Reads CIFAR's files, numpy arrays in plain containers; refuses to call anything else that they may name."""

    def find_class(self, module, name):
        if module.split(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype"):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"{module}.{name} is not part of an array")


def test_real_superclasses_are_the_official_ones(data_root):
    if not (data_root / CIFAR100.base_folder).is_dir():
        pytest.skip("cifar100 is not under TADLIB_DATA_ROOT")
    DATASETS["cifar100"](data_root, False)  # checks the md5 of the files, which are pickles
    folder = data_root / CIFAR100.base_folder

    def read(name: str) -> dict:
        return ArraysOnly(io.BytesIO((folder / name).read_bytes()), encoding="latin1").load()

    meta = read("meta")
    assert meta["fine_label_names"] == sorted(sum(CIFAR100_SUPERCLASSES.values(), ()))
    assert meta["coarse_label_names"] == list(CIFAR100_SUPERCLASSES)
    of_K = superclass_of()
    for split in ("train", "test"):
        content = read(split)
        assert [of_K[y] for y in content["fine_labels"]] == content["coarse_labels"]


# Fashion-MNIST from files


def write_fashion_mnist(root: Path, monkeypatch, n: int = 20) -> list[np.ndarray]:
    """Files like Fashion-MNIST's with ``n`` random images in each split, their md5s known to torchvision."""
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    arrays, resources = [], []
    for file, _ in FashionMNIST.resources:
        images = "images" in file
        values = draw.integers(0, 256, (n, 28, 28), dtype=np.uint8) if images else np.arange(n, dtype=np.uint8) % 10
        header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
        (folder / file).write_bytes(gzip.compress(header + values.tobytes()))
        arrays.append(values)
        resources.append((file, md5(folder / file)))
    monkeypatch.setattr(FashionMNIST, "resources", resources)
    return arrays


def test_fashion_mnist_files_become_images_in_order(tmp_path, monkeypatch):
    x_train, y_train, x_test, y_test = map(torch.from_numpy, write_fashion_mnist(tmp_path, monkeypatch))
    dataset = load_dataset("fashion-mnist", root=str(tmp_path))
    assert dataset.image_shape == (1, 28, 28)
    assert dataset.class_names[9] == "Ankle boot"
    assert torch.equal(bytes_of(dataset, dataset.x_train)[:, 0], x_train)
    assert torch.equal(bytes_of(dataset, dataset.x_test)[:, 0], x_test)
    assert torch.equal(dataset.y_train, y_train.long())
    assert torch.equal(dataset.y_test, y_test.long())


def test_fashion_mnist_is_checked_and_fetched_by_its_compressed_files(tmp_path, monkeypatch):
    write_fashion_mnist(tmp_path, monkeypatch)
    path = tmp_path / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte.gz"
    content, fetched = path.read_bytes(), []
    path.write_bytes(content[:-1])
    with pytest.raises(InputError, match=f"{path.name} is damaged: its md5 must be"):
        load_dataset("fashion-mnist", root=tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=f"files missing .*{path.name}"):
        load_dataset("fashion-mnist", root=tmp_path)

    def fetch(url, root, md5):  # as torchvision's, which leaves a file alone that is there and undamaged
        target = Path(root) / url.rsplit("/")[-1]
        if not target.exists():
            fetched.append(target)
            target.write_bytes(content)

    monkeypatch.setattr("torchvision.datasets.utils.download_url", fetch)
    assert len(load_dataset("fashion-mnist", root=tmp_path, download=True).y_test) == 20
    assert fetched == [path]


# Real data


@pytest.mark.parametrize(
    "name, first_labels, mean, std",
    [
        ("cifar10", [6, 9, 9, 4, 1], (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ("cifar100", [19, 29, 0, 11, 1], (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    ],
)
def test_real_cifar_has_its_published_statistics_and_order(data_root, name, first_labels, mean, std):
    reader = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    if not (data_root / reader.base_folder).is_dir():
        pytest.skip(f"{name} is not under TADLIB_DATA_ROOT")
    raw = DATASETS[name](data_root, False)
    assert raw.y_train[:5].tolist() == first_labels
    dataset = load_dataset(name, root=data_root, n_train=1000, n_test=1000)
    assert dataset.mean == pytest.approx(mean, abs=6e-5)
    assert dataset.std == pytest.approx(std, abs=6e-5)
    assert dataset.y_train.bincount().tolist() == [1000 // dataset.n_classes] * dataset.n_classes
    torch.testing.assert_close(dataset.pixels(dataset.x_train), raw.x_train[dataset.index] / 255)
