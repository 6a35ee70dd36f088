"""What cleaning a real folder is worth: a person finds errors in order, and the book shows what was measured."""

import argparse
from pathlib import Path

import pandas as pd
import pytest
import torch
from scripts import script

import tadbook
from tadbook.own_images import accuracy_table, review_table
from tadlib.store import save_table

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def numerals(tmp_path):
    """A folder like the Roman numerals: two classes, of which two files are in the wrong place."""
    from torchvision.io import write_png

    folder, rows = tmp_path / "data" / "roman-numerals", []
    random = torch.Generator().manual_seed(0)
    for split, n in (("train", 24), ("test", 12)):
        for i in range(n):
            bright = i % 2
            wrong = split == "train" and i in (4, 9)
            label = ("i", "ii")[bright ^ wrong]
            place = folder / split / label / f"{i}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            pixels = 60 + 120 * bright + torch.randint(0, 40, (1, 32, 32), generator=random)
            write_png(pixels.to(torch.uint8), str(place))
            if split == "train":
                rows.append({"path": f"{split}/{label}/{i}.png", "label_is_wrong": int(wrong)})
    pd.DataFrame(rows).to_csv(folder / "verified.csv", index=False)
    return tmp_path / "data"


def test_images_that_were_looked_at_are_cleaned_and_no_others(numerals, tmp_path, monkeypatch):
    benchmark = script("benchmarks/own_images.py")
    about = {"root": str(numerals), "out": str(tmp_path / "runs"), "preset": "smoke", "device": "cpu"}
    options = argparse.Namespace(**about, parts=["review"], seeds=[1], points=[])
    monkeypatch.setattr(benchmark, "ORDERS", {"random": "random"})
    rows = {looked: work() for _, _, looked, _, work in benchmark.todo(options)}
    assert rows[0] == {"images_left": 24, "errors_left": 2}
    assert rows[1000] == {"images_left": 22, "errors_left": 0}
    reviewed = benchmark.configuration(options, benchmark.REVIEWED, 1)
    assert len(benchmark.pipeline.dataset(reviewed).y_train) == 22
    assert len(benchmark.pipeline.dataset(reviewed).y_test) == 12


def test_as_many_files_as_asked_for_lie_in_the_wrong_subfolder(tmp_path):
    benchmark = script("benchmarks/audited_folder.py")
    images = tmp_path / "train"
    for label in "abc":
        (images / label / "images").mkdir(parents=True)
        for i in range(10):
            (images / label / "images" / f"{label}_{i}.JPEG").write_text(label)
    wrong = benchmark.lay_out(images, tmp_path / "files", 2, 0.3, seed=1)
    assert len(wrong) == 20  # of two classes
    assert sum(wrong.values()) == 6
    for path, is_wrong in wrong.items():
        assert ((tmp_path / "files" / path).read_text() != Path(path).parent.name) == is_wrong
    assert benchmark.lay_out(images, tmp_path / "files", 2, 0.3, seed=1) == wrong
    assert benchmark.lay_out(images, tmp_path / "files", 2, 0.3, seed=2) != wrong


def test_the_book_shows_the_rows(tmp_path):
    common = {"preset": "lite", "device": "cpu", "hardware": "a", "torch_version": "2", "tadlib_version": "0"}
    common |= {"commit": "0" * 40, "n_networks": None, "images_left": 9}
    rows = [
        {"part": part, "labels": labels, "looked": looked, "seed": seed, "accuracy": 0.8, "errors_left": left} | common
        for seed in (1, 2, 3)
        for part, labels, looked, left in (
            ("network", "vanilla", 0, None),
            ("distilled", "reviewed", 0, None),
            ("curve", "random", 400, 300.0),
            ("review", "random", 0, 372.0),
            ("review", "random", 400, 300.0),
        )
    ]
    table = pd.DataFrame(rows)
    assert accuracy_table(table)["labels"].tolist() == ["vanilla", "without the reviewed errors"]
    assert review_table(table).values.tolist() == [[400, "random", "300 ± 0", "80.0 ± 0.0"]]
    save_table(tmp_path / "own_images.parquet", table)
    text = tadbook.write_own_images(tmp_path, tmp_path / "generated").read_text()
    assert "tab-own-accuracy" in text
    assert "Of the 372 wrong labels" in text
    assert (tmp_path / "generated" / "own_images.png").exists()
    assert "Right: test accuracy" in text
    assert "No results yet" in tadbook.write_own_images(tmp_path / "none", tmp_path / "generated").read_text()


@pytest.mark.parametrize("parts", [("review",), ("review", "curve"), ("network",), ("distilled", "curve", "review")])
def test_parts_that_are_missing_are_left_out(tmp_path, parts):
    common = {"preset": "lite", "device": "cpu", "hardware": "a", "torch_version": "2", "tadlib_version": "0"}
    common |= {"commit": "0" * 40, "n_networks": None, "seed": 1, "errors_left": 300.0, "accuracy": 0.8}
    rows = [common | {"part": part, "labels": "random", "looked": 400 * ("n" not in part)} for part in parts]
    save_table(tmp_path / "own_images.parquet", pd.DataFrame(rows))
    text = tadbook.write_own_images(tmp_path, tmp_path / "generated").read_text()
    assert ("tab-own-accuracy" in text) == bool({"network", "distilled"} & set(parts))
    assert ("tab-own-review" in text) == ("curve" in parts)
    assert (tmp_path / "generated" / "own_images.png").exists() == ("fig-own-errors" in text) == ("review" in parts)


def test_the_book_shows_a_second_folder(tmp_path):
    common = {"device": "cpu", "hardware": "a", "torch_version": "2", "tadlib_version": "0", "commit": "0" * 40}
    row = {"classes": 10, "share": 0.2, "images": 5000, "noise_rate": 0.19, "auroc": 0.9, "f1": 0.7, "first_100": 0.95}
    save_table(tmp_path / "audited_folder.parquet", pd.DataFrame([common | row | {"seed": 1}]))
    tadbook.write_own_images(tmp_path, tmp_path / "generated")
    text = (tmp_path / "generated" / "audited_folder.md").read_text()
    assert "| 10 | 5,000 | 20 | 19.0 | 0.900 | 0.700 | 95 |" in text
