"""Distilled sets in other people's formats: pictures, DD-Ranking's three tensors, a Hugging Face ``datasets`` folder.

Legend: S synthetic images, K classes, C H W image.

``FORMATS`` lists by name the functions that write one into a folder.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torchvision.io import encode_png

from tadlib.distilled import Distilled
from tadlib.store import replacing, save_json, save_tensors, write_atomic

# Mean and standard deviation by which DD-Ranking normalises a data set (ddranking/utils/data.py)
DD_RANKING = dict.fromkeys(("cifar10", "cifar100"), ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)))
DD_RANKING["tiny-imagenet"] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LEAST = 1e-12  # replaces a probability of 0, whose logarithm is infinite


def bytes_of(distilled: Distilled) -> Tensor:
    """Images (S, C, H, W) as uint8: pixels outside [0, 1] cut off, the rest rounded."""
    return (distilled.pixels.clamp(0, 1) * 255).round().to(torch.uint8)


def pngs_of(distilled: Distilled) -> list[bytes]:
    """Every image as the content of a PNG file, 8 bits."""
    return [encode_png(image_CHW).numpy().tobytes() for image_CHW in bytes_of(distilled)]


def clamped(distilled: Distilled) -> float:
    """The fraction of pixels that 8 bits cut off: those outside [0, 1] even when rounded."""
    level = (distilled.pixels * 255).round()
    return ((level < 0) | (level > 255)).double().mean().item()


def recipe(distilled: Distilled) -> dict[str, Any]:
    """What training on the set needs besides the tensors."""
    names = ("mean", "std", "class_names", "params", "provenance")
    return {
        "learning_rate": distilled.synthetic.lr,
        "zca": distilled.params["zca"],
        **{name: getattr(distilled, name) for name in names},
        "shape": list(distilled.synthetic.x.shape),
        "clamped": clamped(distilled),
        "notes": "images.safetensors holds x (as networks take it: normalised by mean and std, or ZCA-whitened where "
        "zca is true), the same images as pixels, and label distributions y: train on x and y, with learning_rate "
        "and the settings evaluate_* of params. Pictures have 8 bits and are for viewing: pixels outside [0, 1] (the "
        "fraction clamped) are cut off, the rest rounded.",
    }


def tensors(distilled: Distilled, out: Path) -> None:
    """``images.safetensors`` and ``recipe.json``: the set without loss, for any program."""
    synthetic = distilled.synthetic
    save_tensors(out / "images.safetensors", {"x": synthetic.x, "pixels": distilled.pixels, "y": synthetic.y})
    save_json(out / "recipe.json", recipe(distilled))


def png(distilled: Distilled, out: Path) -> None:
    """``png/<class>/<number>.png``, one picture for each image."""
    contents, label_S = pngs_of(distilled), distilled.synthetic.y.argmax(1).tolist()
    for k, name in enumerate(distilled.class_names):
        safe = "".join(c if c.isalnum() else "_" for c in name)
        of_class = [content for content, label in zip(contents, label_S) if label == k]
        for i, content in enumerate(of_class):
            write_atomic(out / "png" / f"{k:03d}_{safe}" / f"{i:03d}.png", content)


def ddranking(distilled: Distilled, out: Path) -> None:
    """``ddranking/images.pt``, ``labels.pt``, ``lr.pt``: plain tensors that ``torch.load(…, weights_only=True)`` reads.

    DD-Ranking takes images as its own loader prepares real ones: whitened (``use_zca=True``), or normalised by its own
    mean and standard deviation. Its soft-label losses take a softmax of the labels, so these are log-probabilities.
    """
    x_SCHW = distilled.synthetic.x
    dataset = distilled.params["dataset"]
    if not distilled.params["zca"] and dataset in DD_RANKING:
        mean, std = (distilled.pixels.new_tensor(values)[:, None, None] for values in DD_RANKING[dataset])
        x_SCHW = (distilled.pixels - mean) / std
    log_y_SK, lr = distilled.synthetic.y.clamp_min(LEAST).log(), torch.tensor(distilled.synthetic.lr)
    parts = {"images": x_SCHW.contiguous(), "labels": log_y_SK, "lr": lr}
    for name, tensor in parts.items():
        content = io.BytesIO()
        torch.save(tensor.cpu(), content)
        write_atomic(out / "ddranking" / f"{name}.pt", content.getvalue())


def huggingface(distilled: Distilled, out: Path) -> None:
    """``huggingface/``: a folder that ``datasets.load_dataset(path)`` reads, with a card.

    Columns: ``image`` (PNG, 8 bits), ``label`` (the most probable class), ``soft_label`` (K), and ``x``, the image as
    networks take it (float32, flat, its shape in the card), without the loss of 8 bits.
    """
    synthetic, folder = distilled.synthetic, out / "huggingface"
    pictures = [{"bytes": content, "path": f"{s:05d}.png"} for s, content in enumerate(pngs_of(distilled))]
    rows = {
        "image": pa.array(pictures, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        "label": pa.array(synthetic.y.argmax(1).tolist(), pa.int64()),
        "soft_label": pa.array(synthetic.y.tolist(), pa.list_(pa.float32())),
        "x": pa.array(list(synthetic.x.flatten(1).numpy()), pa.list_(pa.float32())),
    }
    floats = {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"}
    label = {"names": list(distilled.class_names), "_type": "ClassLabel"}
    features = {"image": {"_type": "Image"}, "label": label, "soft_label": floats, "x": floats}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    data = folder / "data" / "train-00000-of-00001.parquet"
    data.parent.mkdir(parents=True, exist_ok=True)
    with replacing(data) as path:
        pq.write_table(pa.table(rows).replace_schema_metadata(metadata), path)
    write_atomic(folder / "README.md", _card(distilled).encode())
    save_json(folder / "recipe.json", recipe(distilled))


def _card(distilled: Distilled) -> str:
    """A data set card: what the set is and how to train on it. The Parquet file itself tells the features."""
    p, (n_images, *shape) = distilled.params, distilled.synthetic.x.shape
    size = "n<1K" if n_images < 1000 else "1K<n<10K" if n_images < 10000 else "10K<n<100K"
    prepared = "ZCA-whitened" if p["zca"] else f"normalised by mean {list(distilled.mean)}, std {list(distilled.std)}"
    return f"""---
pretty_name: {json.dumps(f"{p['dataset']} distilled by {p['method']}, {p['ipc']} images per class")}
task_categories: [image-classification]
tags: [dataset-distillation, tadlib]
size_categories: [{size}]
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
---

# {p["dataset"]}, distilled to {p["ipc"]} images per class

{n_images} synthetic images that replace the training set of {p["dataset"]} (label noise {p["noise"]}, rate
{p["rate"]}; arm {p["arm"]}), made by the method {p["method"]} of tadlib with seed {p["seed"]}.

| column | holds |
|---|---|
| `image` | the picture, 8 bits; {100 * clamped(distilled):.1f} % of its pixels were outside [0, 1] and are cut off |
| `label` | the most probable class |
| `soft_label` | the label to train with, a distribution over the classes |
| `x` | the image to train with, float32 of shape {shape}, {prepared} |

Train on `x` and `soft_label` with SGD, learning rate {distilled.synthetic.lr:.6g} (the rest of the recipe is in
`recipe.json`):

```python
import torch
from datasets import load_dataset

rows = load_dataset("PATH", split="train").with_format("torch")
x, y = rows["x"][:].view(-1, {", ".join(map(str, shape))}), rows["soft_label"][:]
```
"""


FORMATS: dict[str, Callable[[Distilled, Path], None]] = {"png": png, "ddranking": ddranking, "huggingface": huggingface}
