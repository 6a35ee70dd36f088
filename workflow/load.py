"""A grid's file: settings whose product are cells, every mistake told with its line.

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

import difflib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tadlib.cell import OF_A_MACHINE, portable
from tadlib.config import Config, converted, known_param
from tadlib.errors import InputError, require

SECTIONS = ("shared", "blocks", "without")


@dataclass(frozen=True)
class Value:
    """A value and the line it stands on."""

    value: Any
    line: int


Block = dict[str, list[Value]]


@dataclass(frozen=True)
class Cell:
    """One cell of a grid."""

    name: str
    """Its setting in words, different for every cell of a grid and fit for a file's name."""
    config: Config
    given: Mapping[str, Any]
    """What the file says of it, preset not filled in."""
    line: int
    """Line of its block."""


@dataclass(frozen=True)
class Grid:
    """A grid's name, which is that of its file, and its cells in the order of the file."""

    name: str
    cells: tuple[Cell, ...]


def load_grid(path: Path | str, **machine: Any) -> Grid:
    """Read and check a grid's file; ``machine`` are the parameters that belong to this machine (root, out, ...).

    Raises InputError that begins with file and line: for what is no YAML, a name that does not exist, a value of the
    wrong type or out of range, a combination that no cell can have, and a cell that is there twice.
    """
    path = Path(path)
    file = _File(path)
    cells: list[tuple[Config, Mapping[str, Any], int]] = []
    seen: dict[str, int] = {}
    for block, line in file.blocks:
        for entries in file.combinations(block):
            given = {name: entry.value for name, entry in entries.items()}
            config = file.configuration(entries, line, given | machine)
            settings = json.dumps(portable(config), sort_keys=True)
            if settings in seen:
                raise file.error(line, f"{_base_name(config)} is a cell of the block in line {seen[settings]} as well")
            seen[settings] = line
            cells.append((config, given, line))
    file.check_without()
    names = _names([config for config, _, _ in cells])
    return Grid(path.stem, tuple(Cell(name, *cell) for name, cell in zip(names, cells, strict=True)))


class _File:
    """The content of a grid's file, with lines."""

    def __init__(self, path: Path):
        self.path = path
        try:
            root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except FileNotFoundError as error:
            others = ", ".join(sorted(other.stem for other in path.parent.glob("*.yml"))) or "none"
            raise InputError(f"there is no grid {path}; grids beside it: {others}") from error
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read: {error}") from error
        except yaml.MarkedYAMLError as error:
            line = 0 if error.problem_mark is None else error.problem_mark.line + 1
            raise self.error(line, f"no valid YAML: {error.problem}") from error
        if root is None:
            raise self.error(1, "empty; a grid has blocks")
        sections = self._mapping(root, "a grid")
        for key, (_, line) in sections.items():
            if key not in SECTIONS:
                near = difflib.get_close_matches(key, SECTIONS, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"expected one of: {', '.join(SECTIONS)}"
                raise self.error(line, f"unknown entry {key!r}; {hint}")
        self.shared: Block = self._block(sections["shared"][0]) if "shared" in sections else {}
        if "blocks" not in sections:
            raise self.error(1, "a grid needs blocks, a list of settings")
        self.blocks = [(self._block(node), _line(node)) for node in self._list(*sections["blocks"], "blocks")]
        without = self._list(*sections["without"], "without") if "without" in sections else []
        self.without = [(self._block(node), _line(node)) for node in without]

    def error(self, line: int, message: str) -> InputError:
        return InputError(f"{self.path}:{line}: {message}")

    # Nodes

    def _mapping(self, node: yaml.Node, what: str) -> dict[str, tuple[yaml.Node, int]]:
        if not isinstance(node, yaml.MappingNode):
            raise self.error(_line(node), f"{what} must be NAME: VALUE entries")
        found: dict[str, tuple[yaml.Node, int]] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.error(_line(key), "a name must be a word")
            if key.value in found:
                raise self.error(_line(key), f"{key.value} stands in line {found[key.value][1]} already")
            found[key.value] = (value, _line(key))
        return found

    def _list(self, node: yaml.Node, line: int, what: str) -> list[yaml.Node]:
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            raise self.error(line, f"{what} must be a list with at least one entry")
        return node.value

    def _block(self, node: yaml.Node) -> Block:
        """Names with their values, each checked by itself."""
        block: Block = {}
        for name, (value, line) in self._mapping(node, "a block").items():
            try:
                known_param(name)
                require(name not in OF_A_MACHINE, f"{name} belongs to a machine, not to a grid: it is an option")
            except InputError as error:
                raise self.error(line, str(error)) from error
            nodes = self._list(value, line, name) if isinstance(value, yaml.SequenceNode) else [value]
            block[name] = [self._value(name, item) for item in nodes]
            if len({repr(v.value) for v in block[name]}) < len(nodes):
                raise self.error(line, f"{name} has a value twice")
        return block

    def _value(self, name: str, node: yaml.Node) -> Value:
        if not isinstance(node, yaml.ScalarNode):
            raise self.error(_line(node), f"{name} must be a number, a word, true, false, null, or a list of these")
        try:
            value = converted(name, _scalar(node))
            if name == "noise" and value.startswith("file:"):  # beside the grid, wherever the jobs run
                value = f"file:{(self.path.parent / value.removeprefix('file:')).resolve()}"
            return Value(value, _line(node))
        except InputError as error:
            raise self.error(_line(node), str(error)) from error

    # Cells

    def _all(self, block: Block) -> Iterator[dict[str, Value]]:
        """All combinations of a block's values with the shared ones."""
        merged = block | {name: values for name, values in self.shared.items() if name not in block}
        for values in itertools.product(*merged.values()):
            yield dict(zip(merged, values))

    def combinations(self, block: Block) -> Iterator[dict[str, Value]]:
        """Those combinations that are not to be left out."""
        for entries in self._all(block):
            if not any(_matches(entries, without) for without, _ in self.without):
                yield entries

    def check_without(self) -> None:
        """Every entry of ``without`` must leave out something: one that does not is misspelt."""
        for without, line in self.without:
            if not any(_matches(entries, without) for block, _ in self.blocks for entries in self._all(block)):
                raise self.error(line, "this leaves out nothing")

    def configuration(self, entries: dict[str, Value], line: int, params: dict[str, Any]) -> Config:
        try:
            return Config.from_params(**params)
        except InputError as error:
            raise self.error(_blame(str(error), entries) or line, str(error)) from error


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _scalar(node: yaml.ScalarNode) -> Any:
    """Numbers, true, false and null as JSON reads them, all else as text: YAML itself takes 1e-5 for a word."""
    if node.style is None:
        try:
            return json.loads(node.value)
        except ValueError:
            pass
    return node.value


def _matches(entries: dict[str, Value], without: Block) -> bool:
    return all(name in entries and entries[name].value in [v.value for v in vs] for name, vs in without.items())


def _blame(message: str, entries: dict[str, Value]) -> int | None:
    """Line of the entry that a message is about: the one whose value it quotes, or whose name it begins with."""
    for entry in entries.values():
        if isinstance(entry.value, str) and repr(entry.value) in message:
            return entry.line
    for name, entry in entries.items():
        if re.match(rf"{re.escape(name)}\b", message):
            return entry.line
    return None


# Names ---------------------------------------------------------------------------------------------------------------


def _base_name(config: Config) -> str:
    """Data set, noise, arm, method, images a class and seed, in a form fit for a file."""
    kind, _, variant = config.noise.partition(":")
    noise = f"{kind}-{Path(variant).stem}" if variant else kind
    rate = f"-{100 * config.rate:g}" if config.rate else ""
    name = f"{config.dataset}-{noise}{rate}-{config.arm}-{config.method}-ipc{config.ipc}-seed{config.seed}"
    return re.sub(r"[^\w.+-]", "-", name)


def _names(configs: list[Config]) -> list[str]:
    """A name for every cell; where two would have the same, all settings in which those cells differ are added."""
    of_name: dict[str, list[Config]] = {}
    for config in configs:
        of_name.setdefault(_base_name(config), []).append(config)
    return [_full_name(config, of_name[_base_name(config)]) for config in configs]


def _full_name(config: Config, alike: list[Config]) -> str:
    if len(alike) == 1:
        return _base_name(config)
    own, others = portable(config), [portable(other) for other in alike]
    different = [name for name in own if any(other.get(name) != own[name] for other in others)]
    return re.sub(r"[^\w.+-]", "-", _base_name(config) + "".join(f"-{name}-{own[name]}" for name in different))
