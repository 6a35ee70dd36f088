"""A distilled set stands on its own, and other people's tools can read what is exported from it."""

import io
import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from torchvision.io import decode_image

from tadlib import cli, export, pipeline
from tadlib.config import Config, stored_params
from tadlib.distilled import load_distilled
from tadlib.errors import InputError
from tadlib.store import load_json, load_tensors

TINY = {"dataset": "digits", "n_train": 200, "n_test": 100, "ipc": 2, "device": "cpu", "width": 4, "depth": 2}
TINY |= {"arm": "vanilla", "evaluate_networks": 2, "evaluate_epochs": 4, "zca": True}
METHOD = {"expert_count": 2, "expert_epochs": 3, "datm_iterations": 3, "datm_syn_steps": 2, "datm_max_start": 2}
METHOD |= {"datm_max_start_initial": 1, "datm_lr_y": 1.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with whitened images and soft labels: its configuration and its row."""
    out = str(tmp_path_factory.mktemp("run") / "runs")
    config = Config.from_params(**TINY, **METHOD, method="datm", out=out)
    return config, pipeline.run(config)


@pytest.fixture(scope="module")
def distilled(run):
    return load_distilled(pipeline.distill(run[0]))


def test_evaluating_the_file_gives_the_figure_of_the_run(run, distilled, capsys):
    config, row = run
    accuracies = load_json(pipeline.evaluate(config) / "accuracies.json")
    assert distilled.evaluate(device="cpu") == accuracies
    path = pipeline.distill(config) / "distilled.safetensors"
    assert cli.main(["evaluate", str(path), "--device", "cpu", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["runs"]
    assert told["accuracies"] == accuracies
    assert told["accuracy_mean"] == row["accuracy_mean"]


def test_a_file_is_evaluated_under_a_protocol_by_its_name(distilled):
    found = distilled.evaluate(device="cpu", evaluate_protocol="dm", evaluate_networks=2, evaluate_epochs=2)
    spelled = {"evaluate_lr": 0.01, "evaluate_batch": 256, "evaluate_networks": 2, "evaluate_epochs": 2}
    assert found == distilled.evaluate(device="cpu", **spelled)


def test_the_file_holds_whitened_images_and_their_pixels(run, distilled):
    data = pipeline.dataset(run[0])
    assert data.whitening is not None
    torch.testing.assert_close(data.whitening.apply(distilled.pixels), distilled.synthetic.x, rtol=1e-4, atol=1e-4)
    assert distilled.params["zca"] is True
    assert distilled.synthetic.y.max() < 1  # soft labels


def test_the_file_says_what_made_it(distilled):
    assert distilled.provenance["inputs"].keys() == {"divert", "experts"}
    assert {"tadlib", "torch"} <= distilled.provenance["versions"].keys()
    assert distilled.params["method"] == "datm"
    assert not {"root", "out", "device", "download", "threads"} & distilled.params.keys()


def test_pictures_are_the_pixels_in_8_bits(distilled, tmp_path):
    export.png(distilled, tmp_path)
    files = sorted(tmp_path.rglob("*.png"))
    assert len(files) == len(distilled.pixels)
    expected = export.bytes_of(distilled)
    found = torch.stack([decode_image(str(file)) for file in files])
    order = distilled.synthetic.y.argmax(1).argsort(stable=True)
    assert torch.equal(found, expected[order])


def test_dd_ranking_reads_plain_tensors_whose_softmax_is_the_label(distilled, tmp_path):
    export.ddranking(distilled, tmp_path)
    images, labels, lr = (
        torch.load(io.BytesIO((tmp_path / "ddranking" / f"{name}.pt").read_bytes()), weights_only=True)
        for name in ("images", "labels", "lr")
    )
    assert torch.equal(images, distilled.synthetic.x)  # whitened, as DD-Ranking whitens
    torch.testing.assert_close(labels.softmax(1), distilled.synthetic.y)
    assert lr.item() == pytest.approx(distilled.synthetic.lr)
    assert images.dtype == labels.dtype == torch.float32


def test_a_file_of_an_earlier_version_can_be_evaluated_and_an_unknown_setting_is_named(distilled):
    params = stored_params(distilled.params | {"divert_sharpness": 3.0, "divert_epochs": 20})  # as load_distilled does
    old = replace(distilled, params=params)
    assert old.params["auditor_epochs"] == 20
    assert old.evaluate(device="cpu") == distilled.evaluate(device="cpu")
    with pytest.raises(InputError, match="unknown parameter 'evaluate_rumour'"):
        replace(distilled, params=distilled.params | {"evaluate_rumour": 3.0}).evaluate(device="cpu")


def test_dd_ranking_gets_images_normalised_by_its_own_statistics(distilled, tmp_path):
    hard = replace(distilled.synthetic, y=torch.eye(10).repeat_interleave(2, 0))
    colour = torch.rand(20, 3, 4, 4)
    other = replace(
        distilled, synthetic=hard, pixels=colour, params=distilled.params | {"zca": False, "dataset": "cifar10"}
    )
    export.ddranking(other, tmp_path)
    images = torch.load(tmp_path / "ddranking" / "images.pt", weights_only=True)
    torch.testing.assert_close(images[:, 1], (colour[:, 1] - 0.4822) / 0.1994)
    labels = torch.load(tmp_path / "ddranking" / "labels.pt", weights_only=True)
    torch.testing.assert_close(labels.softmax(1), hard.y, rtol=0, atol=1e-11)
    assert labels.isfinite().all()


def test_a_hugging_face_folder_holds_the_images_without_loss_and_says_what_its_columns_are(distilled, tmp_path):
    export.huggingface(distilled, tmp_path)
    folder = tmp_path / "huggingface"
    table = pq.read_table(folder / "data" / "train-00000-of-00001.parquet")
    assert table.column_names == ["image", "label", "soft_label", "x"]
    shape = distilled.synthetic.x.shape
    x = torch.tensor(table["x"].to_pylist()).view(shape)
    assert torch.equal(x, distilled.synthetic.x)
    assert torch.equal(torch.tensor(table["soft_label"].to_pylist()), distilled.synthetic.y)
    first = table["image"][0].as_py()
    picture = decode_image(torch.frombuffer(bytearray(first["bytes"]), dtype=torch.uint8))
    assert torch.equal(picture, export.bytes_of(distilled)[0])
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["label"] == {"names": list(distilled.class_names), "_type": "ClassLabel"}
    assert features.keys() == set(table.column_names)

    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(front)
    assert card["configs"][0]["data_files"][0]["path"] == "data/train-*.parquet"
    assert "dataset_info" not in card  # told twice, features or sizes could contradict those of the Parquet file
    assert "datm" in text
    assert load_json(folder / "recipe.json")["learning_rate"] == distilled.synthetic.lr


def test_the_command_writes_every_format_asked_for(run, distilled, tmp_path, capsys):
    path = str(pipeline.distill(run[0]))
    out = tmp_path / "all"
    assert cli.main(["export", path, "--out", str(out), "--format", *export.FORMATS, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["formats"] == list(export.FORMATS)
    assert {p.name for p in out.iterdir() if p.is_dir()} == set(export.FORMATS)
    held = load_tensors(out / "images.safetensors")
    assert torch.equal(held["x"], distilled.synthetic.x)
    assert torch.equal(held["pixels"], distilled.pixels)
    assert cli.main(["export", path, "--out", str(tmp_path / "none"), "--format", "webp"]) == 2
    assert "unknown format 'webp'; expected one of: png, ddranking, huggingface" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
