"""Data sets as tensors on a device, and how their images are prepared."""

from tadlib.checks import require_labels
from tadlib.data.datasets import DATASETS, Dataset, balanced_subset, load_dataset, require_known
from tadlib.data.own import is_own

__all__ = [
    "DATASETS",
    "Dataset",
    "balanced_subset",
    "is_own",
    "load_dataset",
    "require_known",
    "require_labels",
]
