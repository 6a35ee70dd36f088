"""Data sets as tensors on a device, and how their images are prepared."""

from tadlib.data.datasets import DATASET_NAMES, DATASETS, Dataset, balanced_subset, load_dataset, require_labels

__all__ = ["DATASETS", "DATASET_NAMES", "Dataset", "balanced_subset", "load_dataset", "require_labels"]
