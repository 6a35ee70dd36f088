"""Networks of torchvision and timm as predictors, with weights that lie on the disk."""

from pathlib import Path

import pytest
import torch
from torchvision import models

from tadlib.data import load_dataset
from tadlib.nn import pretrained


@pytest.fixture
def weights(tmp_path, monkeypatch) -> Path:
    """Weights of a ResNet-18 where torchvision looks for those that it has fetched."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = models.ResNet18_Weights.DEFAULT.url
    path = tmp_path / "hub" / "checkpoints" / Path(url).name
    path.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(models.resnet18().state_dict(), path)
    return path


def test_weights_that_are_there_are_loaded_without_a_download(weights):
    z_ND = _embedded(load_dataset("digits", n_train=20), "torchvision:resnet18", False)
    assert z_ND.shape == (20, 512)
    assert z_ND.isfinite().all()
    assert z_ND.std(0).max() > 0


def test_timm_gives_embeddings(monkeypatch):
    timm = pytest.importorskip("timm", reason="timm is not installed: the extra timm has it")
    create = timm.create_model

    def without_download(name: str, pretrained: bool, num_classes: int) -> torch.nn.Module:
        assert pretrained
        return create(name, pretrained=False, num_classes=num_classes)

    monkeypatch.setattr(timm, "create_model", without_download)
    data = load_dataset("digits", n_train=20)
    assert _embedded(data, "timm:resnet18", True).shape == (20, 512)


def _embedded(data, name: str, download: bool) -> torch.Tensor:
    return pretrained.load(name, download).embed(data.pixels(data.x_train))
