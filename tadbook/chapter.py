"""What every chapter begins with: the configuration that its parameters ask for."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from tadbook.style import style
from tadlib import pipeline
from tadlib.config import Config, Essentials
from tadlib.errors import InputError
from tadlib.noise import FIXED_RATE, human_checksum

FIXED = ("arm", "method", "loops")  # chapters set these themselves
DEFAULTS = {f.name: f.default for f in fields(Essentials)}


def configure(namespace: Mapping[str, Any]) -> Config:
    """The configuration of a notebook's parameters, from its ``globals()``. Sets the style of figures.

    A noise with a rate of its own (human labels, a file, none) puts ``rate`` aside and says so. Data are loaded here,
    so that InputError, which says what to write in the cell of parameters, comes before any other cell has run.
    """
    style()
    chosen = DEFAULTS | {name: namespace[name] for name in DEFAULTS if name in namespace}
    noise, rate = str(chosen["noise"]), chosen["rate"]
    kind = noise.partition(":")[0]
    if kind in FIXED_RATE and rate:
        print(f'rate = {rate} has no effect: noise = "{noise}" has a rate of its own')
        namespace = {**namespace, "rate": 0.0}
    try:
        config = Config.from_variables(namespace, fixed=FIXED)
        pipeline.dataset(config)
        if kind == "human":
            human_checksum(config.dataset, None if config.root is None else Path(config.root))
    except InputError as error:
        raise InputError(f"{error}\n{advice(str(error), chosen)}") from None
    return config


def advice(error: str, chosen: Mapping[str, Any]) -> str:
    """What to write in the cell of parameters after ``error``."""
    lines = []
    if "human labels exist for" in error:
        lines = ['dataset = "cifar10"', 'root = "FOLDER"  # which holds cifar-10-batches-py and cifar-n']
    elif "missing" in error or "read from files" in error:
        lines = [f'dataset = "{chosen["dataset"]}"', 'root = "FOLDER"  # which holds the files of the data set']
        fetched = chosen["dataset"] != "tiny-imagenet" and not error.startswith(("human", "the set of human"))
        lines += ["download = True  # fetches them, if they are not there"] * fetched
    elif error.startswith("rate must be above 0"):
        lines = ["rate = 0.4"]
    elif error.startswith("asymmetric noise"):
        lines = ['noise = "pairflip"']
    if not lines:
        return "Change it in the cell of parameters, the first one of this notebook."
    return "\n    ".join(["In the cell of parameters, the first one of this notebook, write", *lines])
