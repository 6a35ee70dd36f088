"""What a configuration stands for: its data set and its networks."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from tadlib.config import Config
from tadlib.data import Dataset, is_own, load_dataset, own
from tadlib.nn.networks import Network, NetworkSpec


@lru_cache(maxsize=4)
def _loaded(whitened: bool, name: str, stamp: str | None, **source: Any) -> Dataset:
    return _loaded(False, name, stamp, **source).whitened() if whitened else load_dataset(name, **source)


def dataset(config: Config) -> Dataset:
    """The data set of a configuration, on its device, whitened where ``zca`` says so; kept between stages."""
    source = {name: getattr(config, name) for name in ("root", "download", "n_train", "n_test", "resolution")}
    stamp = None
    if is_own(config.dataset):  # files may change between two calls
        stamp, source["cache"] = own.listing(config.dataset).stamp, Path(config.out) / "images"
    return _loaded(config.zca, config.dataset, stamp, **source, device=str(config.torch_device))


def plain_dataset(config: Config) -> Dataset:
    """The data set of a configuration before whitening: for noise, which must not depend on it, and for shapes."""
    return dataset(replace(config, zca=False) if config.zca else config)


def network(config: Config, name: str = "convnet", norm: str | None = None) -> Network:
    """The ConvNet of a configuration: auditors, experts and students."""
    data = plain_dataset(config)
    spec = NetworkSpec(data.image_shape, data.n_classes, name, config.width, config.depth, norm or config.norm)
    return Network(spec, config.torch_device)


def evaluated_network(config: Config) -> Network:
    """The network that is trained on the distilled set, ``evaluate_network``; students of RDED have batch norm."""
    return network(config, config.evaluate_network, None if config.evaluate.recipe == "dsa" else "batch")


def observer_network(config: Config) -> Network:
    """The network of the observer."""
    return network(config, config.observer.network, "batch")
