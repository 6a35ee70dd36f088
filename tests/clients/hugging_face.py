"""Read an exported folder with Hugging Face ``datasets``, as its card says; run in an environment that has it.

python tests/clients/hugging_face.py EXPORT/huggingface
"""

import json
import sys
import tempfile
from pathlib import Path

import datasets
import numpy as np

folder = Path(sys.argv[1])
recipe = json.loads((folder / "recipe.json").read_text())
n, *shape = recipe["shape"]
with tempfile.TemporaryDirectory() as cache:
    builder = datasets.load_dataset_builder(str(folder), cache_dir=cache)
    assert builder.config.name == "default", builder.config.name
    rows = datasets.load_dataset(str(folder), split="train", cache_dir=cache)
    assert len(rows) == n, len(rows)
    assert rows.features["label"].names == recipe["class_names"]
    assert isinstance(rows.features["image"], datasets.Image)
    arrays = rows.with_format("numpy")
    x = np.stack(arrays["x"][:]).reshape(n, *shape)
    y = np.stack(arrays["soft_label"][:])
    assert x.dtype == y.dtype == np.float32
    assert np.allclose(y.sum(1), 1, atol=1e-3)
    assert (y.argmax(1) == np.array(arrays["label"][:])).all()
    picture = np.asarray(rows[0]["image"].convert("RGB")).transpose(2, 0, 1) / 255
    if not recipe["zca"]:
        mean, std = (np.array(recipe[name])[:, None, None] for name in ("mean", "std"))
        assert np.abs((x[0] * std + mean).clip(0, 1) - picture).max() < 0.5 / 255 + 1e-4
print(f"datasets {datasets.__version__}: {n} rows of {rows.column_names}")
