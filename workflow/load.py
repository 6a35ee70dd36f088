"""A grid's file: settings whose combinations are runs.

::

    shared:                      # of every block
      dataset: digits
      arm: [vanilla, tad, oracle]
    blocks:                      # each stands for all combinations of its values and the shared ones
      - noise: pairflip
        rate: [0.2, 0.4]
      - noise: human:worse
    without:                     # combinations to leave out (optional)
      - {arm: tad, rate: 0.2}

A name is a parameter of :class:`tadlib.config.Config`, a value a scalar or a list of them. A block's value takes the
place of the shared one. Blocks are run in their order; within a block what is written first varies slowest, its own
names before the shared ones.
"""

import itertools
import json
import re
import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tadlib.config import MACHINE, OLD_NAMES, TABLES, Config, converted, known_param, split
from tadlib.errors import InputError, known, require, usable

SECTIONS = ("shared", "blocks", "without")
Block = dict[str, list[Any]]  # name -> values
# parameters that name files, and after which words
FILES = {"noise": ["file"], "dataset": ["folder", "table"], "corrections": [""]}
FILES |= {"posterior_predictors": ["embeddings", "probabilities"]}


@dataclass(frozen=True)
class Run:
    """One run of a grid."""

    name: str
    """Its setting in words, different for every run of a grid and fit for a file's name."""
    config: Config
    given: Mapping[str, Any]
    """What the file says of it, preset not filled in."""


@dataclass(frozen=True)
class Grid:
    """A grid's name, which is that of its file, and its runs in the order of the file."""

    name: str
    runs: tuple[Run, ...]


def load_grid(path: Path | str, **machine: Any) -> Grid:
    """Read and check a grid's file; ``machine`` are the parameters that belong to this machine (root, out, ...).

    Raises:
        InputError: with the file and the block, for what is no YAML, a name that does not exist or is there twice, a
            value of the wrong type or out of range, a combination that no run can have, and a run that is there twice.
    """
    path = usable(path)
    with _within(str(path)):
        sections = _read(path)
        with _within("shared"):
            shared = _block(sections.get("shared", {}), path.parent)
        require("blocks" in sections, "a grid needs blocks, a list of settings")
        blocks = _blocks(sections, "blocks", path.parent)
        without = _blocks(sections, "without", path.parent) if "without" in sections else []
        found: dict[str, int] = {}  # settings -> number of the block
        configs: list[Config] = []
        givens: list[dict[str, Any]] = []
        for i, block in enumerate(blocks, 1):
            with _within(f"blocks, entry {i}"):
                for given in _combinations(block, shared):
                    if any(_matches(given, entry) for entry in without):
                        continue
                    config = Config.from_params(**given, **machine)
                    settings = json.dumps(config.portable(), sort_keys=True)
                    before = found.setdefault(settings, i)
                    require(len(found) > len(configs), f"{_base_name(config)} is a run of entry {before} already")
                    configs.append(config)
                    givens.append(given)
        for i, entry in enumerate(without, 1):  # one that leaves out nothing is a mistake
            used = any(_matches(given, entry) for block in blocks for given in _combinations(block, shared))
            require(used, f"without, entry {i}: no run is like that, so this leaves out nothing")
    return Grid(path.stem, tuple(map(Run, _names(configs), configs, givens)))


@contextmanager
def _within(where: str) -> Iterator[None]:
    """Begin the message of an InputError with the place of the mistake."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


class _Loader(yaml.BaseLoader):
    """YAML whose scalars are those of JSON, all else text (YAML takes 1e-5 for text and 1:30 for a number), and which
    refuses a name that is there twice."""

    def construct_scalar(self, node: yaml.ScalarNode) -> Any:
        if node.style is None:  # not in quotes
            try:
                return json.loads(node.value)
            except ValueError:
                pass
        return node.value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is there twice", key.start_mark)
            seen.add(str(key.value))
        return {str(name): value for name, value in super().construct_mapping(node, deep).items()}


def _read(path: Path) -> dict[str, Any]:
    """The sections of a grid's file."""
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.load(file, Loader=_Loader)
    except FileNotFoundError as error:
        others = ", ".join(sorted(other.stem for other in path.parent.glob("*.yml"))) or "none"
        raise InputError(f"there is no such grid; grids beside it: {others}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # brackets without end, a zero byte
        raise InputError(f"no valid YAML: {' '.join(str(error).split())}") from error
    require(isinstance(content, dict), f"a grid is made of the entries {', '.join(SECTIONS)}")
    for name in content:
        known("entry", name, SECTIONS)
    return content


def _blocks(sections: Mapping[str, Any], name: str, folder: Path) -> list[Block]:
    """The entries of a section that is a list."""
    entries = sections[name]
    require(isinstance(entries, list) and len(entries) > 0, f"{name} must be a list with at least one entry")
    blocks = []
    for i, entry in enumerate(entries, 1):
        with _within(f"{name}, entry {i}"):
            blocks.append(_block(entry, folder))
    return blocks


def _block(entries: Any, folder: Path) -> Block:
    """Names with their values, each checked by itself."""
    require(isinstance(entries, dict), f"must be NAME: VALUE entries, got {entries!r}")
    block: Block = {}
    for name, values in entries.items():
        name = OLD_NAMES.get(name, name)
        known_param(name)
        require(name not in MACHINE, f"{name} belongs to a machine, not to a grid: it is an option")
        require(name not in block, f"{name} is there twice, once under its old name")
        values = values if isinstance(values, list) else [values]
        block[name] = [_value(name, value, folder) for value in values]
        require(len(values) > 0, f"{name} needs at least one value")
        require(len({repr(value) for value in block[name]}) == len(values), f"{name} has a value twice")
    return block


def _value(name: str, value: Any, folder: Path) -> Any:
    """A value of the type of parameter ``name``; files lie beside the grid, wherever its jobs run."""
    value = converted(name, value)
    if not isinstance(value, str) or name not in FILES:
        return value

    def beside(text: str) -> str:
        kind, colon, path = ("", "", text) if name == "corrections" else text.partition(":")
        is_file = kind in FILES[name] and path and (name != "posterior_predictors" or path.lower().endswith(TABLES))
        return f"{kind}{colon}{(folder / usable(path)).resolve()}" if is_file else text

    return shlex.join(map(beside, split(value))) if name == "posterior_predictors" else beside(value)


def _combinations(block: Block, shared: Block) -> Iterator[dict[str, Any]]:
    merged = block | {name: values for name, values in shared.items() if name not in block}
    for values in itertools.product(*merged.values()):
        yield dict(zip(merged, values))


def _matches(given: Mapping[str, Any], entry: Block) -> bool:
    return all(name in given and given[name] in values for name, values in entry.items())


# Names ---------------------------------------------------------------------------------------------------------------


def _base_name(config: Config) -> str:
    """Data set, noise, arm, method, images a class and seed, in a form fit for a file."""
    kind, _, variant = config.noise.partition(":")
    noise = f"{kind}-{Path(variant).stem}" if variant else kind
    rate = f"-{100 * config.rate:g}" if config.rate else ""
    kind, _, path = config.dataset.partition(":")
    dataset = f"{kind}-{Path(path).stem}" if path else kind
    return _fit(f"{dataset}-{noise}{rate}-{config.arm}-{config.method}-ipc{config.ipc}-seed{config.seed}")


def _fit(text: str) -> str:
    return re.sub(r"[^\w.+-]", "-", text)


def _names(configs: list[Config]) -> list[str]:
    """A name for every run; where two would have the same, all settings in which those runs differ are added."""
    alike: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for config in configs:
        alike[_base_name(config)].append(config.portable())
    names = []
    for config in configs:
        base, own = _base_name(config), config.portable()
        different = [name for name in own if any(other.get(name) != own[name] for other in alike[base])]
        names.append(base + _fit("".join(f"-{name}-{own[name]}" for name in different)))
    return names
