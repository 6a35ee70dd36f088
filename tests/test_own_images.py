"""Promises to users with images of their own: odd files are read or named, labels are not taken for true, nothing is
chosen silently, and corrected labels can be taken back to other tools."""

import io
import json
import os
import shutil
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.datasets import ImageFolder

from tadlib import cli, pipeline
from tadlib.config import Config
from tadlib.data import load_dataset, own
from tadlib.errors import InputError
from tadlib.store import load_table

TINY = {"ipc": 1, "device": "cpu", "method": "random", "width": 4, "depth": 1, "auditor_epochs": 2}
TINY |= {"auditor_warmup": 1, "evaluate_networks": 2, "evaluate_epochs": 2}


def picture(i: int, mode: str = "RGB", size: tuple[int, int] = (20, 16)) -> Image.Image:
    """Coloured noise with a seed."""
    pixels = np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def folder(tmp_path):
    """Three classes of eight images, no test split."""
    for k, name in enumerate(("cat", "dog with space", "ölé")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(8):
            picture(8 * k + i).save(tmp_path / "data" / name / f"{i}.png")
    return tmp_path / "data"


@pytest.fixture
def table(folder):
    """The same images as a table with true labels; the first label is wrong."""
    rows = [{"path": f"{c.name}/{i}.png", "label": c.name} for c in sorted(folder.iterdir()) for i in range(8)]
    made = pd.DataFrame(rows).assign(true_label=[row["label"] for row in rows])
    made.loc[0, "label"] = "ölé"
    made.to_csv(folder / "labels.csv", index=False)
    return folder / "labels.csv"


def load(path, **options):
    kind = "table" if path.suffix else "folder"
    return load_dataset(f"{kind}:{path}", **options)


def config(path, out, **more) -> Config:
    kind = "table" if path.suffix else "folder"
    return Config.from_params(dataset=f"{kind}:{path}", out=str(out), **{**TINY, **more})


# Decoding


def test_images_of_every_kind_are_read_upright_and_in_eight_bits(folder):
    cat = folder / "cat"
    red = Image.new("RGB", (40, 20), "red")
    red.convert("CMYK").save(cat / "cmyk.jpg", quality=100)
    red.quantize(4).save(cat / "palette.gif")
    Image.new("RGBA", (30, 30), (255, 0, 0, 0)).save(cat / "transparent.png")
    Image.fromarray(np.linspace(1000, 3000, 400).reshape(20, 20).astype(np.uint16)).save(cat / "sixteen.png")
    Image.fromarray(np.full((9, 9), 7, np.uint16)).save(cat / "constant.tif")
    values = np.linspace(-1, 1, 400).reshape(20, 20).astype(np.float32)
    values[0, 0] = np.nan
    Image.fromarray(values).save(cat / "float.tiff")
    Image.new("1", (12, 12), 1).save(cat / "bits.bmp")
    Image.new("LA", (12, 12), (0, 255)).save(cat / "grey alpha.PNG")
    turned = Image.new("RGB", (40, 20), "black")
    turned.paste("white", (0, 0, 20, 20))  # the left half; orientation 6 makes it the upper one
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(cat / "turned.jpg", exif=exif, quality=100)
    data = load(folder, resolution=8, n_test=0)
    assert data.unreadable == ()
    assert data.image_shape == (3, 8, 8)
    pixels = dict(zip(data.paths, data.pixels(data.x_train)))
    for name in ("cmyk.jpg", "palette.gif"):
        torch.testing.assert_close(pixels[f"cat/{name}"][:, 4, 4], torch.tensor([1.0, 0, 0]), atol=0.03, rtol=0)
    assert pixels["cat/transparent.png"].min() > 0.99  # white
    sixteen = pixels["cat/sixteen.png"][0]
    assert sixteen[0, 0] < 0.1
    assert sixteen[-1, -1] > 0.9
    assert pixels["cat/constant.tif"].max() < 1e-5
    assert pixels["cat/float.tiff"].mean() == pytest.approx(0.5, abs=0.03)
    assert pixels["cat/bits.bmp"].min() > 0.99
    assert pixels["cat/grey alpha.PNG"].max() < 1e-5
    assert pixels["cat/turned.jpg"][:, :3].min() > 0.9
    assert pixels["cat/turned.jpg"][:, 5:].max() < 0.1
    assert data.files.open("cat/turned.jpg").size == (20, 40)


@pytest.mark.parametrize("side", [48, 64, 96, 128])
def test_a_photograph_decoded_at_a_part_of_its_size_is_closer_to_the_whole_than_filters_are_to_one_another(side):
    for pixels in load_sample_images().images:
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "JPEG", quality=90)
        whole = Image.open(io.BytesIO(content.getvalue())).convert("RGB")
        bilinear, box = (
            np.asarray(whole.resize((side, side), how)).astype(float)
            for how in (Image.Resampling.BILINEAR, Image.Resampling.BOX)
        )
        got = np.asarray(own.opened(content.getvalue(), side, "RGB")).astype(float)
        assert np.square(got - bilinear).mean() < np.square(box - bilinear).mean()


def test_a_jpeg_is_shrunk_to_what_averaging_its_pixels_gives():
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 12, 3), np.uint8)).resize((500, 400))
    content = io.BytesIO()
    smooth.save(content, "JPEG", quality=95)
    got = np.asarray(own.opened(content.getvalue(), 16, "RGB")).astype(float)
    slow = np.asarray(smooth.resize((16, 16), Image.Resampling.BILINEAR)).astype(float)
    assert np.abs(got - slow).mean() < 4


def test_hidden_files_and_other_types_are_passed_over(folder):
    plain = own.listing(f"folder:{folder}")
    for name in (".DS_Store", "._0.png", "Thumbs.db", "notes.txt"):
        (folder / "cat" / name).write_bytes(b"x")
    for name in (".ipynb_checkpoints", "__MACOSX"):
        (folder / name).mkdir()
        shutil.copy(folder / "cat" / "0.png", folder / name / "0.png")
    (folder / "cat" / ".hidden").mkdir()
    shutil.copy(folder / "cat" / "0.png", folder / "cat" / ".hidden" / "0.png")
    found = own.listing(f"folder:{folder}")
    assert (found.paths, found.class_names, found.stamp) == (plain.paths, plain.class_names, plain.stamp)
    assert found.passed_over == {".txt": 1}


def test_pipes_and_loops_of_links_do_not_count(folder):
    """To read a pipe would never end, and a link to a folder above would list its images again and again."""
    before = own.listing(f"folder:{folder}")
    os.mkfifo(folder / "cat" / "pipe.png")
    (folder / "cat" / "above").symlink_to(folder / "cat")
    (folder / "ölé" / "a").mkdir()
    (folder / "ölé" / "a" / "again").symlink_to(folder / "ölé")
    after = own.listing(f"folder:{folder}")
    assert after.paths == before.paths
    assert after.passed_over == before.passed_over + Counter({"pipes and devices": 1})


def test_what_cannot_be_decoded_is_listed_and_left_out(folder):
    whole = (folder / "cat" / "0.png").read_bytes()
    (folder / "cat" / "cut off.png").write_bytes(whole[: len(whole) // 2])
    (folder / "cat" / "empty.jpg").write_bytes(b"")
    (folder / "cat" / "text.jpg").write_text("no image")
    (folder / "cat" / "nowhere.png").symlink_to(folder / "absent.png")
    data = load(folder, n_test=0)
    assert len(data.y_train) == 24
    assert not set(data.paths) & {path for path, _ in data.unreadable}
    reasons = dict(data.unreadable)
    assert reasons["cat/empty.jpg"] == "empty file"
    assert reasons["cat/text.jpg"] == "not an image that can be identified"
    assert reasons["cat/nowhere.png"] == "No such file or directory"
    assert "truncated" in reasons["cat/cut off.png"]
    # places count the files that could not be read, so that they stay when these are repaired
    assert [own.listing(f"folder:{folder}").paths[i] for i in data.index] == list(data.paths)


def test_a_class_without_a_readable_image_is_named(folder):
    for file in (folder / "cat").iterdir():
        file.write_bytes(b"damaged")
    with pytest.raises(InputError, match="class 'cat' has no readable image, first .*cat/0.png: not an image"):
        load(folder)


def test_grey_images_and_their_size_are_recognised(tmp_path):
    for k in range(2):
        (tmp_path / str(k)).mkdir()
        for i in range(4):  # grey, stored in colour
            picture(i, "L", (50, 70)).convert("RGB").save(tmp_path / str(k) / f"{i}.png")
    assert load(tmp_path).image_shape == (1, 32, 32)
    Image.new("RGB", (50, 70), "red").save(tmp_path / "0" / "red.png")
    assert load(tmp_path).image_shape == (3, 32, 32)


def test_images_of_one_brightness_are_not_divided_by_zero(tmp_path):
    for k in range(2):
        (tmp_path / str(k)).mkdir()
        for i in range(4):
            Image.new("RGB", (8, 8), (9, 9 * i, 200)).save(tmp_path / str(k) / f"{i}.png")
    data = load(tmp_path)
    assert data.x_train.isfinite().all()
    assert data.x_train[:, 2].abs().max() < 1e-2


# Sources


def test_splits_are_folders_train_and_test(folder, tmp_path):
    both = tmp_path / "both"
    shutil.copytree(folder, both / "train")
    shutil.copytree(folder / "cat", both / "test" / "cat")
    data = load(both)
    assert (len(data.y_train), len(data.y_test)) == (24, 8)
    assert data.files.evaluated_on == own.TEST
    shutil.copytree(folder / "cat", both / "test" / "bird")
    with pytest.raises(InputError, match="has classes that .*train lacks: bird"):
        load(both)
    shutil.rmtree(both / "test")
    with pytest.raises(InputError, match="has a folder train alone"):
        load(both)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_tells_labels_true_labels_and_splits(folder, table, suffix):
    rows = pd.read_csv(table).assign(split=["test" if i % 8 == 7 else "train" for i in range(24)])
    rows.loc[7, "label"] = "dog with space"  # of the test split, where true labels count
    path = folder / f"splits{suffix}"
    rows.to_csv(path, index=False) if suffix == ".csv" else rows.to_parquet(path)
    data = load(path)
    assert data.class_names == ("cat", "dog with space", "ölé")
    assert (len(data.y_train), data.y_test.tolist()) == (21, [0, 1, 2])
    assert (data.y_train != data.files.true).nonzero().flatten().tolist() == [0]
    assert data.paths[0] == "cat/0.png"


def test_numbers_are_labels_in_their_order(folder):
    paths = sorted(str(p) for p in folder.rglob("*.png"))
    rows = pd.DataFrame({"path": paths, "label": [2.0, 10.0, 9.0] * 8})
    rows.to_parquet(folder / "numbers.parquet")
    assert load(folder / "numbers.parquet").class_names == ("2", "9", "10")


def changed(table, change) -> str:
    rows = pd.read_csv(table).astype(object)
    path = table.with_name("changed.parquet" if "parquet" in change.__name__ else "changed.csv")
    rows = change(rows)
    rows.to_parquet(path) if path.suffix == ".parquet" else rows.to_csv(path, index=False)
    return f"table:{path}"


def no_label(rows):
    return rows.drop(columns="label")


def empty_label(rows):
    return rows.assign(label=rows["label"].where(rows.index != 4))


def list_label_parquet(rows):
    return rows.assign(label=[["a"]] * len(rows))


def bool_label_parquet(rows):
    return rows.assign(label=rows.index > 3)


def twice(rows):
    return rows.assign(path=rows["path"].where(rows.index != 5, "./cat/2.png"))


def absent(rows):
    return rows.assign(path=rows["path"].where(rows.index != 5, "cat/none.png"))


def validation(rows):
    return rows.assign(split=["train"] * 20 + ["val"] * 4)


def single(rows):
    return rows.assign(label="one", true_label="one")


def untaught(rows):
    return rows.assign(label=[f"c{i:d}" for i in range(24)], split=["train"] + ["test"] * 19 + ["train"] * 4)


def many_digits(rows):
    return rows.assign(label="9" * 5000, true_label="9" * 5000)


def some_truth(rows):
    return rows.assign(true_label=rows["true_label"].where(rows.index != 5))


@pytest.mark.parametrize(
    "change, message",
    [
        (no_label, r"must have columns path and label, got \['path', 'true_label'\]"),
        (empty_label, "row 5: label must be text or a number, got ''"),
        (list_label_parquet, r"row 1: label must be text or a number, got"),
        (bool_label_parquet, "row 1: label must be text or a number, got False"),
        (twice, r"names ./cat/2.png twice, in rows 3 and 6"),
        (absent, "names files that do not exist: cat/none.png"),
        (validation, "row 21: split must be train or test, got 'val'"),
        (untaught, r"has no training image with the label 'c1', 'c10', 'c11', 'c12', 'c13' and 17 more"),
        (many_digits, "must have at least 2 classes, got '999"),
        (single, "must have at least 2 classes, got 'one'"),
        (some_truth, "row 6: true_label must be text or a number, got ''"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused_by_name(table, change, message):
    with pytest.raises(InputError, match=message):
        own.listing(changed(table, change))


def test_a_folder_that_cannot_be_meant_is_refused_by_name(folder):
    (folder / "bird").mkdir()
    with pytest.raises(InputError, match="class 'bird' has no image in .*/bird"):
        own.listing(f"folder:{folder}")
    with pytest.raises(InputError, match="folder of images .*absent does not exist"):
        own.listing(f"folder:{folder / 'absent'}")
    with pytest.raises(InputError, match="expected one of: digits, .*folder:PATH, table:FILE"):
        Config.from_params(dataset="photos:x")


# Runs


def test_a_run_follows_what_files_hold_not_where_they_lie(folder, tmp_path):
    here = pipeline.plan(config(folder, tmp_path / "a"))["noise"].key
    shutil.copytree(folder, tmp_path / "copied", copy_function=shutil.copy)  # other times of change
    assert pipeline.plan(config(tmp_path / "copied", tmp_path / "b"))["noise"].key == here
    picture(99).save(tmp_path / "copied" / "cat" / "0.png")
    assert pipeline.plan(config(tmp_path / "copied", tmp_path / "b"))["noise"].key != here


def test_images_are_decoded_once_and_again_when_they_change(folder, tmp_path, monkeypatch):
    c = config(folder, tmp_path / "out")
    before = pipeline.dataset(c)
    (cached,) = (tmp_path / "out" / "images").iterdir()
    monkeypatch.setattr(own, "decoded", None)  # not called
    assert load(folder, resolution=c.resolution, cache=cached.parent).checksum == before.checksum
    monkeypatch.undo()
    assert (folder / "cat" / "0.png").exists()
    picture(99).save(folder / "cat" / "0.png")
    assert pipeline.dataset(c).checksum != before.checksum


def test_labels_of_folders_are_noisy_and_the_truth_unknown(folder, tmp_path):
    row = pipeline.run(config(folder, tmp_path / "out", arm="tad-posterior"))
    assert row["evaluated_on"] == "held-out images, noisy labels"
    for name in ("rate_nominal", "rate_realised", "trust_auroc", "label_accuracy"):
        assert row[name] is None
    with pytest.raises(InputError, match="arm oracle needs the true labels, which this data set does not have"):
        pipeline.check(config(folder, tmp_path / "out", arm="oracle"))
    labels = load_table(pipeline.divert(config(folder, tmp_path / "out", arm="tad-posterior")) / "labels.parquet")
    assert labels["path"].tolist() == list(load(folder).paths)


def test_true_labels_of_a_table_judge_trust_and_serve_the_oracle(table, tmp_path):
    c = config(table, tmp_path / "out", arm="oracle", n_test=3)
    row = pipeline.run(c)
    assert row["evaluated_on"] == "held-out images, true labels"
    assert row["label_accuracy"] == 1
    assert 0 < row["rate_realised"] < 0.06
    noisy = pipeline.run(config(table, tmp_path / "out", arm="tad", n_test=3))
    assert noisy["label_accuracy"] is not None


def test_noise_can_be_added_to_labels_that_are_right(folder, tmp_path):
    for arm in ("vanilla", "oracle"):
        row = pipeline.run(config(folder, tmp_path / "out", arm=arm, noise="pairflip", rate=0.25))
        assert row["rate_realised"] == pytest.approx(0.25, abs=0.1)
        assert row["label_accuracy"] is not None


def test_labels_of_a_file_are_matched_by_path(folder, tmp_path):
    """Labels that a run wrote come back, whatever the order of their rows."""
    first = pipeline.divert(config(folder, tmp_path / "out", arm="vanilla", noise="pairflip", rate=0.25))
    table = load_table(first / "labels.parquet")
    table.sort_values("trust", kind="stable")[["path", "given_label"]][::-1].to_csv(tmp_path / "a.csv", index=False)
    c = config(folder, tmp_path / "out", arm="vanilla", noise=f"file:{tmp_path / 'a.csv'}")
    assert pipeline.check(c).noisy_N.tolist() == table["given_label"].tolist()


def test_held_out_images_are_a_share_of_every_class():
    y_N = torch.tensor([0] * 50 + [1] * 10 + [2] * 2)
    held_N = own.held_out(y_N, 12)
    assert torch.bincount(y_N[held_N], minlength=3).tolist() == [10, 2, 0]


def test_nothing_is_held_out_where_nothing_is_evaluated(folder, tmp_path):
    c = config(folder, tmp_path / "out", n_test=0)
    assert len(load_table(pipeline.divert(c) / "labels.parquet")) == 24
    with pytest.raises(InputError, match="evaluation needs test images, got n_test 0"):
        pipeline.run(c)


def test_a_class_smaller_than_ipc_is_named(folder, tmp_path):
    for i in range(5):
        (folder / "ölé" / f"{i}.png").unlink()
    with pytest.raises(InputError, match="class 'ölé' has 3 under the noisy labels, got 4"):
        pipeline.check(config(folder, tmp_path / "out", ipc=4, n_test=0))


def test_images_are_not_mirrored_unless_asked_for(folder, tmp_path):
    for preset in ("smoke", "lite"):
        c = config(folder, tmp_path / "out", preset=preset, method="mtt", auditor_epochs=5)
        assert not any("flip" in part.augmentation for part in (c.auditor, c.expert, c.mtt, c.evaluate))
    assert "color" in c.evaluate.augmentation
    assert config(folder, tmp_path / "out", auditor_augmentation="flip").auditor.augmentation == "flip"


def test_the_command_says_what_it_read_and_what_accuracy_is_of(folder, tmp_path, capsys):
    (folder / "cat" / "text.jpg").write_text("no image")
    assignments = [
        f"{k}={v}"
        for k, v in TINY.items()
        if k not in ("ipc", "device", "method") and not k.startswith(("auditor_", "expert_"))
    ]
    args = ["run", "--dataset", f"folder:{folder}", "--ipc", "1", "--method", "random", "--arm", "vanilla"]
    args += ["--device", "cpu", "--out", str(tmp_path / "out"), "--set", *assignments]
    assert cli.main(args) == 0
    told = capsys.readouterr()
    assert "agreement with held-out noisy labels %" in told.out
    assert "20 of 25 training images, 3 classes, 4 held-out images, noisy labels" in told.err
    assert "read in colour at 16 x 16 pixels (median 20 x 16)" in told.err
    assert "images are not mirrored" in told.err
    assert "1 images cannot be read and are left out: cat/text.jpg (not an image that can be identified)" in told.err
    held = pipeline.load_distilled(next((tmp_path / "out" / "distill").iterdir()))
    rows = load_table(tmp_path / "out" / "results.parquet")
    assert np.mean(held.evaluate(device="cpu")) == rows["accuracy_mean"][0]


# The way back


def test_a_corrected_folder_is_read_by_imagefolder(table, tmp_path, monkeypatch):
    c = config(table, tmp_path / "out", arm="oracle", n_test=0)
    stage = pipeline.divert(c)
    for copy in (False, True):
        more = ["--copy"] if copy else []
        assert (
            cli.main(["export", str(stage), "--format", "folder", "table", "--out", str(tmp_path / "new"), *more]) == 0
        )
        read = ImageFolder(str(tmp_path / "new" / "folder"))
        assert read.classes == ["cat", "dog with space", "ölé"]
        assert len(read) == 24
        assert sum(label == 0 for _, label in read.samples) == 8  # the wrong label is right again
        assert (tmp_path / "new/folder/cat").is_dir()
        told = pd.read_csv(tmp_path / "new" / "folder.csv")
        assert {str(tmp_path / "new" / path) for path in told["path"]} == {path for path, _ in read.samples}
        assert told["trust"].between(0, 1).all()
        assert load(tmp_path / "new" / "folder.csv", n_test=0).y_train.bincount().tolist() == [8, 8, 8]
        again = load(tmp_path / "new" / "corrected.csv", n_test=0)
        assert torch.bincount(again.y_train).tolist() == [8, 8, 8]
        rows = pd.read_csv(tmp_path / "new" / "corrected.csv")
        assert {"path", "label", "given_label", "trust", "space"} <= set(rows.columns)
    monkeypatch.setenv("HOME", str(tmp_path))
    for place, path in ((stage, "."), (stage.parent, stage.name), (tmp_path, "~/out")):
        monkeypatch.chdir(place)
        assert cli.main(["export", path, "--format", "table", "--out", str(tmp_path / "again")]) == 0
    shutil.rmtree(table.parent)  # copies stand on their own
    assert len(load(tmp_path / "new" / "folder", n_test=0).y_train) == 24


def test_images_left_out_are_told_apart(folder, tmp_path, capsys):
    c = config(folder, tmp_path / "out", arm="loss-filter", n_test=0, auditor_epochs=3)
    stage = pipeline.divert(c)
    labels = load_table(stage / "labels.parquet")
    assert (
        cli.main(["export", str(tmp_path / "out"), "--format", "table", "--out", str(tmp_path / "new"), "--json"]) == 0
    )
    told = json.loads(capsys.readouterr().out)
    out = pd.read_csv(tmp_path / "new" / "left_out.csv")
    assert told["left_out"] == len(out) == (labels["space"] == "untrusted").sum()


def test_corrected_labels_of_other_images_are_refused(folder, tmp_path, capsys):
    stage = pipeline.divert(config(folder, tmp_path / "out", arm="vanilla", n_test=0))
    picture(99).save(folder / "cat" / "0.png")
    assert cli.main(["export", str(stage), "--format", "folder", "--out", str(tmp_path / "new")]) == 2
    assert "were changed since" in capsys.readouterr().err
    assert cli.main(["export", str(stage), "--format", "folder", "png"]) == 2
    digits = pipeline.divert(Config.from_params(**TINY, dataset="digits", arm="vanilla", out=str(tmp_path / "digits")))
    assert cli.main(["export", str(digits), "--format", "table", "--out", str(tmp_path / "new")]) == 2
    assert "folder:PATH or table:FILE, got digits" in capsys.readouterr().err
