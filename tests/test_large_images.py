"""Promises about own images of more than 64 pixels: bytes in memory, the bits of floats, every stage in batches."""

import numpy as np
import pytest
import torch
from PIL import Image

from tadlib import audit, pipeline
from tadlib.config import Config
from tadlib.data import datasets, load_dataset
from tadlib.errors import InputError
from tadlib.nn.images import Images
from tadlib.store import load_json

SMALL = {"resolution": 80, "noise": "symmetric", "rate": 0.3, "ipc": 1, "width": 4, "device": "cpu"}
SMALL |= {"auditor_epochs": 2, "auditor_warmup": 1, "evaluate_networks": 1, "evaluate_epochs": 2, "observer_epochs": 2}


def write(folder, n, sizes=(70, 140)):
    """``n`` pictures of random sizes in each of three classes, one channel of which is bright."""
    rng = np.random.default_rng(0)
    for k, name in enumerate(("blue", "green", "red")):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(0, 120, (*rng.integers(*sizes, 2), 3), dtype=np.uint8)
            pixels[..., 2 - k] += 130
            Image.fromarray(pixels).save(folder / name / f"{i}.jpg")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("images") / "data", 16)


def config(folder, out, **changes):
    return Config.from_params(**SMALL | {"dataset": f"folder:{folder}", "out": str(out)} | changes)


def floats(monkeypatch):
    """Hold images of any size as floats, as small ones are."""
    monkeypatch.setattr(datasets, "FLOATS", 10**6)


RUNS = {
    "rded": {"method": "rded", "arm": "tad-posterior", "evaluate_controls": True},
    "cim": {"method": "cim", "arm": "loss-filter", "noise": "instance", "cim_steps": 2},
    "dm": {"method": "dm", "arm": "tad", "dm_iterations": 2, "auditor_augmentation": "flip"},
    "mtt": {"method": "mtt", "arm": "co-teaching", "expert_count": 1, "expert_epochs": 2, "mtt_iterations": 2}
    | {"mtt_syn_steps": 2, "mtt_max_start": 1, "mtt_expert_epochs": 1, "zca": False},
}


@pytest.mark.parametrize("name", RUNS)
def test_images_held_as_bytes_end_with_the_bits_of_images_held_as_floats(folder, tmp_path, monkeypatch, name):
    def files(out):
        pipeline.run(config(folder, out, **RUNS[name]))
        assert isinstance(pipeline.dataset(config(folder, out)).x_train, kind)
        return {path.parent.parent.name: load_json(path)["files"] for path in out.glob("*/*/manifest.json")}

    kind: type = Images
    held = files(tmp_path / "bytes")
    floats(monkeypatch)
    kind = torch.Tensor
    assert held == files(tmp_path / "floats")


def test_a_folder_of_mixed_sizes_becomes_a_set_that_has_the_colour_of_each_class(folder, tmp_path):
    c = config(folder, tmp_path / "out", resolution=128, method="rded", arm="vanilla", depth=5, noise="none", rate=0.0)
    row = pipeline.run(c)
    assert row["evaluated_on"] == "held-out images, noisy labels"
    made = pipeline.load_distilled(pipeline.distill(c))
    assert made.pixels.shape == (3, 3, 128, 128)
    for k, image in enumerate(made.pixels):
        assert all(part.mean((1, 2)).argmax() == 2 - k for row in image.chunk(2, 1) for part in row.chunk(2, 2))


def test_the_checksum_and_the_report_of_an_audit_are_those_of_floats(folder, tmp_path, monkeypatch):
    def found(out):
        audit.audit(config(folder, out, arm="tad-posterior", method="random"))
        return load_dataset(f"folder:{folder}", resolution=80).checksum, (out / "suspects.csv").read_text()

    held = found(tmp_path / "bytes")
    floats(monkeypatch)
    assert held == found(tmp_path / "floats")


def test_what_would_not_fit_into_memory_is_refused_before_it_starts(folder, tmp_path):
    with pytest.raises(InputError, match=r"zca.* must have at most 16384 values, got \(3, 80, 80\)"):
        pipeline.dataset(config(folder, tmp_path / "out", zca=True))


def test_a_network_that_is_too_shallow_for_large_images_is_refused_before_it_starts(folder, tmp_path):
    large = {"resolution": 224, "width": 128}
    message = (
        r"^depth must leave at most 16384 features of a 224x224 image .*, got depth 4, which leaves 25088 at width 128"
    )
    with pytest.raises(InputError, match=message):
        pipeline.run(config(folder, tmp_path / "out", **large, depth=4))
    assert not list((tmp_path / "out").glob("*/*/manifest.json"))
    pipeline.check(config(folder, tmp_path / "out", **large, depth=5))


def test_no_stage_makes_more_than_a_batch_of_floats_of_images_held_as_bytes(tmp_path, monkeypatch):
    made, normalised = [], Images._normalised
    monkeypatch.setattr(Images, "_normalised", lambda x, part: made.append(len(part)) or normalised(x, part))
    folder = write(tmp_path / "images", 120, (72, 73))
    same = {"resolution": 72, "auditor_batch": 32, "observer_batch": 32, "method": "rded", "rded_candidates": 4}
    for arm in ("tad", "tad-posterior"):
        pipeline.run(config(folder, tmp_path / "out", arm=arm, evaluate_controls=True, **same))
    audit.audit(config(folder, tmp_path / "out", arm="tad-posterior", **same))
    x = pipeline.dataset(config(folder, tmp_path / "out", **same)).x_train
    assert x.source.dtype == torch.uint8
    assert max(made) <= 256 < len(x)
