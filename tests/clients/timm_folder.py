"""Read exported pictures with timm, and take a training step of one of its networks; run in an environment that has it.

python tests/clients/timm_folder.py EXPORT/png
"""

import sys
from pathlib import Path

import timm
import torch
from timm.data import create_dataset, create_loader

folder = Path(sys.argv[1])
data = create_dataset("", root=str(folder), split="train")
assert len(data) == len(list(folder.rglob("*.png"))), len(data)
classes = sorted(path.name for path in folder.iterdir())
assert [classes[label] for _, label in data.reader.samples] == [
    Path(file).parent.name for file, _ in data.reader.samples
]
options = {"input_size": (3, 32, 32), "batch_size": 20, "is_training": True, "num_workers": 0, "use_prefetcher": False}
x, y = next(iter(create_loader(data, **options, persistent_workers=False)))
net = timm.create_model("resnet18", num_classes=len(classes))
loss = torch.nn.functional.cross_entropy(net(x), y)
loss.backward()
assert loss.isfinite()
print(f"timm {timm.__version__}: {len(data)} pictures of {len(classes)} classes")
