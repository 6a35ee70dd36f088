"""What a configuration stands for: its data set and its networks."""

from functools import lru_cache

from tadlib.config import Config
from tadlib.data import Dataset, load_dataset
from tadlib.nn.networks import Network, NetworkSpec


@lru_cache(maxsize=2)
def _dataset(name, root, download, n_train, n_test, resolution, device) -> Dataset:
    return load_dataset(
        name, root=root, download=download, n_train=n_train, n_test=n_test, resolution=resolution, device=device
    )


@lru_cache(maxsize=2)
def _whitened(*source) -> Dataset:
    return _dataset(*source).whitened()


def _source(c: Config) -> tuple:
    return c.dataset, c.root, c.download, c.n_train, c.n_test, c.resolution, str(c.torch_device)


def plain_dataset(config: Config) -> Dataset:
    """The data set of a configuration before whitening: for noise, which must not depend on it, and for shapes."""
    return _dataset(*_source(config))


def dataset(config: Config) -> Dataset:
    """The data set of a configuration, on its device, whitened where ``zca`` says so; kept between stages."""
    return _whitened(*_source(config)) if config.zca else plain_dataset(config)


def _network(config: Config, name: str) -> Network:
    data = plain_dataset(config)
    spec = NetworkSpec(data.image_shape, data.n_classes, name, config.width, config.depth, config.norm)
    return Network(spec, config.torch_device)


def network(config: Config) -> Network:
    """The ConvNet of a configuration: auditors, experts and students."""
    return _network(config, "convnet")


def evaluated_network(config: Config) -> Network:
    """The network that is trained on the distilled set, ``evaluate_network``."""
    return _network(config, config.evaluate_network)
