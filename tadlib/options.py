"""Options of the command line, one dataclass a command; :mod:`tadlib.cli` has tyro read them.

What is left out comes from the preset. Nothing here imports torch.
"""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True, kw_only=True)
class Output:
    json: bool = False
    """Print one JSON document on stdout instead of a table."""


@dataclass(frozen=True, kw_only=True)
class RunOptions(Output):
    """Options that define one run, or one for every arm and seed."""

    dataset: str = "digits"
    """Data set: digits, fashion-mnist, cifar10, cifar100, cifar100-coarse (its 20 superclasses) or tiny-imagenet."""
    root: str | None = None
    """Folder of the data set's files (torchvision's layout) and of human labels; digits needs none."""
    download: bool = False
    """Fetch missing files of the data set into --root."""
    n_train: int | None = None
    """Training images, a class-balanced subset; default: the preset's, else all."""
    n_test: int | None = None
    """Test images; default: the preset's, else all."""
    resolution: int | None = None
    """Side of the images, in pixels; default: the preset's, else as published."""
    noise: str = "none"
    """Label noise: none, symmetric, symmetric:included, asymmetric, pairflip, superclass, instance,
    human:NAME (CIFAR-N: worse, aggre, random1, random2, random3; fine, coarse), or
    file:PATH (one label an image: .safetensors, .npy, .csv or .parquet)."""
    rate: float = 0.0
    """Fraction of labels (of every class that the noise touches) that are flipped, in [0, 1)."""
    arm: tuple[str, ...] = ("tad",)
    """What the labels go through: vanilla, loss-filter, co-teaching, confident-learning, gce, tad, tad-posterior,
    oracle; one or several."""
    method: str = "mtt"
    """Distillation method: mtt, tesla, ftd, datm (trajectories), dsa (gradients), dm (distributions), or random."""
    ipc: int = 10
    """Synthetic images per class."""
    seed: tuple[int, ...] = (0,)
    """Seed of all randomness, noise included; one or several."""
    preset: str = "smoke"
    """Scale: smoke (seconds; to try commands out), lite (minutes on two cores; a part of the data, small images), paper
    (published hyper-parameters)."""
    loops: str = "shared"
    """Where labels are judged: shared (by one auditor, before all experts) or per-expert (by every expert itself)."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, cuda:1, ..."""
    threads: int = 1
    """CPU threads; small networks are fastest on one."""
    out: str = "runs"
    """Output folder: a new or empty one, or one that tad made. Finished stages in it are not computed again."""
    set: tuple[str, ...] = ()
    """Any other setting, as NAME=VALUE, in place of the preset's: auditor_epochs=30 mtt_lr_img=50 width=64 ..."""


@dataclass(frozen=True, kw_only=True)
class Run(RunOptions):
    """Carry out whole runs, noise to evaluation, and add a row for each to OUT/results.parquet."""


@dataclass(frozen=True, kw_only=True)
class Divert(RunOptions):
    """Carry out one run (one arm, one seed) up to diversion; write the refined set to OUT/labels.parquet, metrics.json
    beside it."""


@dataclass(frozen=True, kw_only=True)
class Distill(RunOptions):
    """Carry out runs up to distillation; tell where the distilled sets lie."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(RunOptions):
    """Test accuracies: of a distilled set (PATH), or of runs, whose missing stages are carried out."""

    path: Positional[Path | None] = None
    """A distilled set: distilled.safetensors or its folder; the options that define a run then come from it."""


@dataclass(frozen=True, kw_only=True)
class Export(Output):
    """Write a distilled set as tensors (images.safetensors) with the recipe to train on them, and in other formats."""

    path: Positional[Path]
    """A distilled set: distilled.safetensors or its folder."""
    out: Path = Path("export")
    """Output folder: a new or empty one, or one that tad made."""
    format: tuple[str, ...] = ("png",)
    """Formats: png (pictures), ddranking (its three tensors), huggingface (a datasets folder); one or several."""


@dataclass(frozen=True, kw_only=True)
class Info(Output):
    """Say what a finished stage folder, or the file of a distilled set, holds; compare its checksums."""

    path: Positional[Path]
    """A folder OUT/STAGE/KEY, or a distilled set's file."""
