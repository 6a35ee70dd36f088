"""Distilled sets in other people's formats: pictures, DD-Ranking's three tensors, a Hugging Face ``datasets`` folder;
and the user's own images with corrected labels, as a folder or a table.

Legend: S synthetic images, K classes, C H W image.

Where stored images hold several smaller ones (multi-formation), what is exported are the decoded images, which networks
are trained on.

``FORMATS`` lists by name the functions that write a distilled set into a folder, ``CORRECTED`` those that write a
corrected data set.
"""

import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torchvision.io import encode_png

from tadlib.data import is_own, own
from tadlib.distilled import Distilled
from tadlib.errors import require, usable
from tadlib.store import StageFolder, load_table, replacing, save_json, save_tensors, write_atomic

# Mean and standard deviation by which DD-Ranking normalises a data set (ddranking/utils/data.py)
DD_RANKING = dict.fromkeys(("cifar10", "cifar100"), ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)))
DD_RANKING["tiny-imagenet"] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPTIMISERS = {"sgd": "SGD", "adamw": "AdamW"}
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
        "shape": list(distilled.pixels.shape),
        "formation": distilled.synthetic.formation,
        "clamped": clamped(distilled),
        "notes": "images.safetensors holds x (as networks take it: normalised by mean and std, or ZCA-whitened where "
        "zca is true), the same images as pixels, and label distributions y: train on x and y, with learning_rate "
        "and the settings evaluate_* of params. Where formation f is above 1, the set is stored as images of f x f "
        "parts (stored); x holds the parts enlarged. Where evaluate_teacher is true, networks learn the labels that an "
        "observer (provenance) gives to each augmented batch: observer.safetensors holds its parameters. Pictures have "
        "8 bits and are for viewing: pixels outside [0, 1] (the fraction clamped) are cut off, the rest rounded.",
    }


def tensors(distilled: Distilled, out: Path) -> None:
    """``images.safetensors`` and ``recipe.json``: the set without loss, for any program."""
    synthetic = distilled.synthetic.decoded()
    held = {"x": synthetic.x, "pixels": distilled.pixels, "y": synthetic.y}
    held |= {"stored": distilled.synthetic.x} if distilled.synthetic.formation > 1 else {}
    save_tensors(out / "images.safetensors", held)
    save_json(out / "recipe.json", recipe(distilled))


def observer(distilled: Distilled, path: Path, out: Path) -> bool:
    """Copy ``observer.safetensors`` of the set at ``path``, where it was made with one; tells whether there is one.

    Raises InputError where stage ``observer`` does not lie beside the set's, or is damaged.
    """
    if (key := distilled.provenance.get("inputs", {}).get("observer")) is None:
        return False
    path = usable(path).resolve()
    folder = path if path.is_dir() else path.parent
    stage = StageFolder(folder.parents[1] / "observer" / key)
    require(
        stage.is_complete(), f"{path} was made with an observer, which is not in {stage.path}: export it where it was"
    )
    stage.verify()
    write_atomic(out / "observer.safetensors", (stage.path / "observer.safetensors").read_bytes())
    return True


def png(distilled: Distilled, out: Path) -> None:
    """``png/<class>/<number>.png``, one picture for each image."""
    contents, label_S = pngs_of(distilled), distilled.synthetic.decoded().y.argmax(1).tolist()
    for k, name in enumerate(distilled.class_names):
        safe = "".join(c if c.isalnum() else "_" for c in name)[:50]  # a file's name has at most 255 bytes
        of_class = [content for content, label in zip(contents, label_S) if label == k]
        for i, content in enumerate(of_class):
            write_atomic(out / "png" / f"{k:03d}_{safe}" / f"{i:03d}.png", content)


def ddranking(distilled: Distilled, out: Path) -> None:
    """``ddranking/images.pt``, ``labels.pt``, ``lr.pt``: plain tensors that ``torch.load(…, weights_only=True)`` reads.

    DD-Ranking takes images as its own loader prepares real ones: whitened (``use_zca=True``), or normalised by its own
    mean and standard deviation. Its soft-label losses take a softmax of the labels, so these are log-probabilities.
    """
    synthetic = distilled.synthetic.decoded()
    x_SCHW, dataset = synthetic.x, distilled.params["dataset"]
    if not distilled.params["zca"] and dataset in DD_RANKING:
        mean, std = (distilled.pixels.new_tensor(values)[:, None, None] for values in DD_RANKING[dataset])
        x_SCHW = (distilled.pixels - mean) / std
    log_y_SK, lr = synthetic.y.clamp_min(LEAST).log(), torch.tensor(synthetic.lr)
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
    synthetic, folder = distilled.synthetic.decoded(), out / "huggingface"
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


def _counted(distilled: Distilled) -> str:
    synthetic, n = distilled.synthetic, len(distilled.pixels)
    stored = f", stored as {len(synthetic.x)} of {synthetic.formation} x {synthetic.formation} parts each,"
    return f"{n} synthetic images" + (stored if synthetic.formation > 1 else "")


def _card(distilled: Distilled) -> str:
    """A data set card: what the set is and how to train on it. The Parquet file itself tells the features."""
    p, (n_images, *shape) = distilled.params, distilled.pixels.shape
    size = "n<1K" if n_images < 1000 else "1K<n<10K" if n_images < 10000 else "10K<n<100K"
    labels = "`soft_label`" + (" or, as here, an observer's labels of each batch" if p.get("evaluate_teacher") else "")
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

{_counted(distilled)} that replace the training set of {p["dataset"]} (label noise {p["noise"]}, rate
{p["rate"]}; arm {p["arm"]}), made by the method {p["method"]} of tadlib with seed {p["seed"]}.

| column | holds |
|---|---|
| `image` | the picture, 8 bits; {100 * clamped(distilled):.1f} % of its pixels were outside [0, 1] and are cut off |
| `label` | the most probable class |
| `soft_label` | the label to train with, a distribution over the classes |
| `x` | the image to train with, float32 of shape {shape}, {prepared} |

Train on `x` and {labels} with {OPTIMISERS[p.get("evaluate_optimiser", "sgd")]}, learning rate
{distilled.synthetic.lr:.6g} (the rest of the recipe is in `recipe.json`):

```python
import torch
from datasets import load_dataset

rows = load_dataset("PATH", split="train").with_format("torch")
x, y = rows["x"][:].view(-1, {", ".join(map(str, shape))}), rows["soft_label"][:]
```
"""


FORMATS: dict[str, Callable[[Distilled, Path], None]] = {"png": png, "ddranking": ddranking, "huggingface": huggingface}


# Corrected data sets -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Corrected:
    """The user's own images with the labels that diversion left them.

    ``train`` has a row for each training image that was judged: file, path, label (a class name), given_label, trust,
    space; the label is the most likely training label, and empty where the image is untrusted and left out. ``test``:
    file, path and label of the test images, empty without a test split.
    """

    train: pd.DataFrame
    test: pd.DataFrame

    @property
    def counts(self) -> dict[str, int]:
        """How many labels are kept and corrected, and how many images are left out."""
        label, given = self.train["label"], self.train["given_label"]
        left_out, kept = int((label == "").sum()), int((label == given).sum())
        return {"kept": kept, "corrected": len(label) - kept - left_out, "left_out": left_out}


def corrected(path: Path) -> Corrected:
    """The corrected data set of a finished stage ``divert``, or of an output folder that holds one such stage.

    Raises InputError where there is none, where its images are not the user's own, and where these are not what they
    were then.
    """
    path = usable(path).resolve()
    stages = sorted(manifest.parent for manifest in path.glob("divert/*/manifest.json"))
    require(len(stages) < 2, f"{path} holds {len(stages)} stages divert: give one of {', '.join(map(str, stages))}")
    stage = StageFolder(stages[0] if stages else path)
    manifest = stage.manifest()
    require(manifest.get("stage") == "divert", f"{stage.path} is not a finished stage divert")
    stage.verify()
    source = manifest["config"]["params"]["dataset"]
    require(is_own(source), f"corrected labels are written for images of folder:PATH or table:FILE, got {source}")
    noise = StageFolder(stage.path.parents[1] / "noise" / manifest["inputs"]["noise"]).manifest()
    judged = noise["config"]["settings"]["files"]["images"]
    require(judged == own.checksum(source), f"the files or labels of {source} were changed since; judge them anew")
    table, found = load_table(stage.path / "labels.parquet"), own.listing(source)
    names, files = pd.Series(found.class_names), [found.file(i) for i in range(len(found.paths))]
    train = pd.DataFrame(
        {
            "file": [files[i] for i in table["index"]],
            "path": table["path"],
            "label": names[table["label"]].where((table["space"] != "untrusted").to_numpy(), "").to_numpy(),
            "given_label": names[table["given_label"]].to_numpy(),
            "trust": table["trust"],
            "space": table["space"].astype(str),
        }
    )
    true = found.labels if found.true is None else found.true
    rows = range(found.n_train, len(files))
    test = [{"file": files[i], "path": found.paths[i], "label": found.class_names[true[i]]} for i in rows]
    return Corrected(train, pd.DataFrame(test, columns=["file", "path", "label"]))


def corrected_folder(data: Corrected, out: Path, copy: bool) -> None:
    """``folder/``: a folder for each class, in ``train`` and ``test`` where there is a test split, of links to the
    images or of copies, and ``folder.csv``, which ``table:`` reads: their path, label, split, given_label, trust and
    space. An earlier one there is replaced."""
    train = data.train[data.train["label"] != ""]
    bad = next((name for name in train["label"] if "/" in name or own.is_hidden(name)), None)
    require(bad is None, f"class {bad!r} cannot be the name of a folder; export a table")
    folder, written = _emptied(data, out / "folder"), []
    splits = {"train": train, "test": data.test} if len(data.test) else {"": train}
    for split, rows in splits.items():
        names = rows["file"].map(os.path.basename)
        if pd.DataFrame({"label": rows["label"], "name": names}).duplicated().any():
            names = [f"{i:06d}_{name}" for i, name in enumerate(names)]
        places = [folder / split / label / name for label, name in zip(rows["label"], names)]
        for file, place in zip(rows["file"], places):
            place.parent.mkdir(parents=True, exist_ok=True)
            if copy:
                shutil.copy2(file, place)
            else:
                place.symlink_to(file)
        written.append(rows.assign(path=[os.path.relpath(place, out) for place in places], split=split or "train"))
    _write_table(pd.concat(written, ignore_index=True), out / "folder.csv")


def _write_table(rows: pd.DataFrame, path: Path) -> None:
    columns = ["path", "label", "split", "given_label", "trust", "space"]
    write_atomic(path, rows[columns].to_csv(index=False).encode())


def _emptied(data: Corrected, folder: Path) -> Path:
    """``folder`` without what an earlier export left there; InputError where images of the data set lie in it."""
    place = str(folder.resolve()) + os.sep
    inside = [file for file in [*data.train["file"], *data.test["file"]] if file.startswith(place)]
    require(not inside, f"{folder} holds images of the data set itself, such as {inside[:1]}: give another --out")
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def corrected_table(data: Corrected, out: Path, copy: bool) -> None:
    """``corrected.csv``, which ``table:`` reads: path (absolute, or with ``copy`` below ``copies/``), label, split,
    given_label, trust, space; and ``left_out.csv``, the images without a trusted or corrected label."""
    rows = pd.concat([data.train.assign(split="train"), data.test.assign(split="test")], ignore_index=True)
    rows["path"] = rows["file"]
    if copy:
        copies = _emptied(data, out / "copies")
        copies.mkdir(parents=True, exist_ok=True)
        rows["path"] = [f"copies/{i:06d}{Path(file).suffix}" for i, file in enumerate(rows["file"])]
        for file, path in zip(rows["file"], rows["path"]):
            shutil.copy2(file, out / path)
    _write_table(rows[rows["label"] != ""], out / "corrected.csv")
    _write_table(rows[rows["label"] == ""], out / "left_out.csv")


CORRECTED: dict[str, Callable[[Corrected, Path, bool], None]] = {"folder": corrected_folder, "table": corrected_table}
