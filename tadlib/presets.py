"""Presets: flat settings that fill in what the user leaves out. The values, with their sources, are in presets.toml.

smoke: seconds on one thread. lite: minutes on one thread, small-scale, not comparable with published figures.
native: lite with all images at their own size and a wider network, an hour or more on one thread.
paper: the published settings of the method.
"""

import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tadlib.errors import InputError, known

Settings = dict[str, Any]

PRESETS = ("smoke", "lite", "native", "paper")
BASES = {"native": "lite"}  # presets that say only what they have different from another
ALL = "all"  # as many as the data set has
TABLES = tomllib.loads((Path(__file__).parent / "presets.toml").read_text(encoding="utf-8"))
TRAJECTORIES = ("mtt", "tesla", "ftd", "datm")
GROUPS = {"trajectories": TRAJECTORIES, "bank": ("dance", "ncfm"), "observed": ("rded", "cim")}
GREY = "crop_scale_rotate"  # augmentation of digits and garments: no flip, no colour
COLOUR = "color_crop_cutout_flip_scale_rotate"  # DSA's


def settings(
    preset: str, dataset: str, ipc: int, method: str, root: str | None = None, evaluation: Mapping[str, Any] = {}
) -> Settings:
    """Flat settings of ``preset`` (see :class:`tadlib.config.Config`) for a data set, images per class and a method.

    ``evaluation`` replaces those of evaluation before they are fitted to the data set. Where the folder ``root`` holds
    a part of Tiny ImageNet, n_train and n_test do not exceed what it has. InputError for an unknown preset, and where
    preset paper has no published settings.
    """
    known("preset", preset, PRESETS)
    values: Settings = {}
    group = [name for name, methods in GROUPS.items() if method in methods]
    is_own = dataset.startswith(("folder:", "table:"))
    tables = ("all", *group, method, f"{method}-ipc-{ipc}", "own" if is_own else dataset)
    for name in (BASES[preset], preset) if preset in BASES else (preset,):
        for table in tables:
            values |= TABLES[name].get(table, {})
    values = {name: value for name, value in values.items() if value != ALL}
    if preset == "paper":
        del values["published"]
        values |= _published(method, dataset, ipc)
    values = {method + name if name.startswith("_") else name: value for name, value in values.items()}
    values |= evaluation
    if preset == "paper" and method in TRAJECTORIES:  # experts are trained as long as they are read
        values["expert_epochs"] = values[f"{method}_max_start"] - 1 + values[f"{method}_expert_epochs"]
    parts = ("auditor", "expert", "observer", "evaluate", *(() if method in ("random", "rded") else (method,)))
    if is_own:
        values = _of_own(dataset, values, parts)
    if dataset in ("digits", "fashion-mnist"):
        values |= {f"{part}_augmentation": GREY for part in parts}
    if dataset == "digits":  # a small set of small images, used as it is
        values = {k: v for k, v in values.items() if k not in ("n_train", "n_test", "resolution")}
        values |= {"width": 32, "depth": 2}
    if dataset == "tiny-imagenet" and root is not None:
        from tadlib.data import tiny_imagenet  # torch

        with suppress(InputError):  # missing files are named when the data set is loaded
            sizes = tiny_imagenet.sizes(Path(root).expanduser())
            values |= {name: min(values[name], size) for name, size in sizes.items() if name in values}
    return values


def _of_own(source: str, values: Settings, parts: tuple[str, ...]) -> Settings:
    """Settings for the user's own images: no more images than there are, no more pixels than they have, no mirror
    images, and grey ones as the digits."""
    from tadlib.data import own  # torch

    found = own.listing(source)
    seen = own.look(found)
    most = found.n_train - (0 if found.has_test else found.n_train // own.HELD_OUT)
    values = {k: v for k, v in values.items() if k != "n_test" and (k != "n_train" or v < most)}
    if "resolution" in values:
        values["resolution"] = min(values["resolution"], seen.side)
        if values["resolution"] < 16:
            values |= {"width": 32, "depth": 2}
    for name in (f"{part}_augmentation" for part in parts):
        operations = values.get(name, COLOUR).split("_")
        values[name] = "_".join(op for op in operations if op != "flip") if seen.colour else GREY
    return values


def published(method: str) -> list[Settings]:
    """The published settings of a method beside its defaults: for each data set and, mostly, images per class."""
    names, *rows = TABLES["paper"][method]["published"]
    return [dict(zip(names, row)) for row in rows]


def _published(method: str, dataset: str, ipc: int) -> Settings:
    for row in published(method):
        if row.pop("dataset") == dataset and row.pop("ipc", ipc) == ipc:
            return row
    where = [f"{row['dataset']} ipc {row.get('ipc', '1, 10 and 50')}" for row in published(method)]
    raise InputError(f"preset paper has published settings of {method} for {', '.join(where)}; got {dataset} ipc {ipc}")
