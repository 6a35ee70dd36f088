"""Promises of tiny_imagenet: the official layout or a part of it, decoded once, and errors that name files."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tadlib import presets
from tadlib.cli import main
from tadlib.data import load_dataset, tiny_imagenet
from tadlib.errors import InputError
from tadlib.store import load_table

IDS = ("n01443537", "n01629819", "n07749582")


def write_image(path: Path, seed: int, size: int = 64, mode: str = "RGB") -> None:
    """A smooth random JPEG, which survives compression nearly unchanged."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((size, size)).convert(mode).save(path, quality=95)


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """Three classes with four training images each, one of them grey, and two validation images each."""
    folder = tmp_path / "data" / "tiny-imagenet-200"
    annotations = []
    for k, wnid in enumerate(IDS):
        for i in range(4):
            write_image(folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", 10 * k + i, mode="RGB" if i else "L")
        for i in range(2):
            write_image(folder / "val" / "images" / f"val_{2 * k + i}.JPEG", 100 + 2 * k + i)
            annotations.append(f"val_{2 * k + i}.JPEG\t{wnid}\t0\t0\t63\t63\n")
    annotations.append("val_99.JPEG\tn09999999\t0\t0\t63\t63\n")  # of a class that is not in this part
    (folder / "val" / "val_annotations.txt").write_text("".join(annotations))
    (folder / "words.txt").write_text("n01443537\tgoldfish, Carassius auratus\nn07749582\tlemon\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "data"


def test_folders_become_images_in_the_order_of_ids_and_names(root):
    data = load_dataset("tiny-imagenet", root=root)
    assert data.x_train.shape == (12, 3, 64, 64)
    assert data.x_test.shape == (6, 3, 64, 64)
    assert data.class_names == ("goldfish", "n01629819", "lemon")  # the first name, or the id where there is none
    assert data.y_train.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert data.y_test.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.n_full == 12
    folder = root / "tiny-imagenet-200"
    with Image.open(folder / "train" / IDS[1] / "images" / f"{IDS[1]}_2.JPEG") as image:
        expected = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert torch.equal((data.pixels(data.x_train)[6] * 255).round().to(torch.uint8), expected)
    grey = data.pixels(data.x_train)[4]
    torch.testing.assert_close(grey[0], grey[1], atol=1e-5, rtol=0)
    with Image.open(folder / "val" / "images" / "val_3.JPEG") as image:
        expected = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert torch.equal((data.pixels(data.x_test)[3] * 255).round().to(torch.uint8), expected)


def test_images_are_decoded_once_and_again_when_a_file_changes(root, tmp_path, monkeypatch):
    first = load_dataset("tiny-imagenet", root=root)
    (path,) = (tmp_path / "cache" / "tadlib").iterdir()
    assert path.name.startswith("tiny-imagenet-")
    with monkeypatch.context() as patch:
        patch.setattr(tiny_imagenet, "_decoded", lambda *_: pytest.fail("decoded again"))
        assert load_dataset("tiny-imagenet", root=root).checksum == first.checksum
    write_image(root / "tiny-imagenet-200" / "train" / IDS[0] / "images" / f"{IDS[0]}_1.JPEG", 999)
    changed = load_dataset("tiny-imagenet", root=root)
    assert changed.checksum != first.checksum
    path.write_bytes(path.read_bytes()[:-50])  # damaged: decoded anew, no error
    assert load_dataset("tiny-imagenet", root=root).checksum == changed.checksum


def test_a_cache_that_cannot_be_written_is_no_error(root, tmp_path, monkeypatch):
    first = load_dataset("tiny-imagenet", root=root)
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert load_dataset("tiny-imagenet", root=root).checksum == first.checksum
    assert tiny_imagenet.checksum(root) == tiny_imagenet.checksum(root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ("too long a name" * 20)))
    assert load_dataset("tiny-imagenet", root=root).checksum == first.checksum


def test_what_other_systems_leave_in_the_folders_does_no_harm(root):
    folder = root / "tiny-imagenet-200"
    first = load_dataset("tiny-imagenet", root=root)
    (folder / "train" / IDS[0] / "images" / f"._{IDS[0]}_0.JPEG").write_bytes(b"AppleDouble")
    (folder / "train" / ".hidden").mkdir()
    annotations = folder / "val" / "val_annotations.txt"
    annotations.write_text(annotations.read_text(), encoding="utf-8-sig")
    (folder / "words.txt").write_text(f"{IDS[0]}\tchâteau, castle\n", encoding="latin-1")
    again = load_dataset("tiny-imagenet", root=root)
    assert again.checksum == first.checksum
    assert again.class_names[0] == "château"


@pytest.mark.parametrize("gone", ["train", "val/val_annotations.txt", "val/images"])
def test_missing_parts_are_named_with_the_way_to_get_them(root, gone):
    path = root / "tiny-imagenet-200" / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(InputError, match=f"missing {path}; download and unpack http"):
        load_dataset("tiny-imagenet", root=root)


def test_missing_and_damaged_images_are_named(root):
    folder = root / "tiny-imagenet-200"
    (folder / "val" / "images" / "val_3.JPEG").unlink()
    with pytest.raises(InputError, match=r"missing .*val_3\.JPEG; download"):
        load_dataset("tiny-imagenet", root=root)
    write_image(folder / "val" / "images" / "val_3.JPEG", 0, size=32)
    with pytest.raises(InputError, match=r"val_3\.JPEG must be 64 x 64 pixels, got 32 x 32"):
        load_dataset("tiny-imagenet", root=root)
    (folder / "val" / "images" / "val_3.JPEG").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"val_3\.JPEG is damaged or no image"):
        load_dataset("tiny-imagenet", root=root)
    for file in (folder / "train" / IDS[2] / "images").iterdir():
        file.unlink()
    with pytest.raises(InputError, match=rf"no \*\.JPEG in .*{IDS[2]}"):
        load_dataset("tiny-imagenet", root=root)


def test_damaged_annotations_are_named_by_line(root):
    (root / "tiny-imagenet-200" / "val" / "val_annotations.txt").write_text("val_0.JPEG n01443537\n")
    with pytest.raises(InputError, match=r"val_annotations\.txt line 1 must hold a file name, a tab and an id"):
        load_dataset("tiny-imagenet", root=root)
    (root / "tiny-imagenet-200" / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn00000000\n")
    with pytest.raises(InputError, match="names no image of the 3 classes"):
        load_dataset("tiny-imagenet", root=root)


def test_it_needs_a_root():
    with pytest.raises(InputError, match="tiny-imagenet is read from files: give their folder, --root"):
        load_dataset("tiny-imagenet")


def test_a_preset_takes_no_more_than_a_part_has(root):
    part = presets.settings("lite", "tiny-imagenet", 1, "mtt", str(root))
    assert (part["n_train"], part.get("n_test"), part["resolution"]) == (12, None, 32)  # all test images
    for without in (None, str(root / "nowhere")):
        assert presets.settings("lite", "tiny-imagenet", 1, "mtt", without)["n_train"] == 10000


def test_preset_lite_works_for_a_part_and_refuses_sizes_that_it_lacks(root, tmp_path, capsys):
    options = ["divert", "--dataset", "tiny-imagenet", "--root", str(root), "--preset", "lite", "--arm", "vanilla"]
    options += ["--noise", "asymmetric", "--rate", "0.25", "--ipc", "1", "--out", str(tmp_path / "out")]
    assert main([*options, "--n-train", "10000"]) == 2
    assert "n_train must be an integer in [3, 12] for tiny-imagenet, got 10000" in capsys.readouterr().err
    assert main([*options, "--n-train", "12", "--n-test", "6"]) == 0
    assert load_table(tmp_path / "out" / "labels.parquet").given_label.tolist().count(0) == 4


def test_its_checksum_follows_the_images_and_not_the_times_of_their_files(root):
    first = tiny_imagenet.checksum(root)
    image = root / "tiny-imagenet-200" / "val" / "images" / "val_3.JPEG"
    os.utime(image, (0, 0))
    assert tiny_imagenet.checksum(root) == first
    assert tiny_imagenet.checksum(root) == first  # now from the header of the cache
    write_image(image, 77)
    assert tiny_imagenet.checksum(root) != first


def test_real_part_of_tiny_imagenet(data_root):
    folder = data_root / "tiny-imagenet-200"
    if not folder.is_dir():
        pytest.skip("tiny-imagenet-200 is not under TADLIB_DATA_ROOT")
    ids = sorted(os.listdir(folder / "train"))
    data = load_dataset("tiny-imagenet", root=data_root, n_train=20 * len(ids), n_test=5 * len(ids), resolution=16)
    assert data.y_train.bincount().tolist() == [20] * len(ids)
    assert data.n_full == 500 * len(ids)
    assert len(set(data.class_names)) == len(ids)
    assert 0.4 < sum(data.mean) / 3 < 0.5
