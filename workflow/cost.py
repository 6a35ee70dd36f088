"""What a grid will take: hours and memory by kind of machine, from what was measured, and disk.

The work of a stage is counted in multiply-adds of forward passes (our choice: images seen, times those of the network
for one image). Finished stages tell how many seconds a unit of it took on their machine, stage by stage, and diversion
by arm, distillation by method. What no run of the same preset and data set tells is taken from others, by analogy: a
guess, and a high one where small networks stand for wide ones.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

from tadlib.arms import LEARNED
from tadlib.config import METHODS, Config
from tadlib.errors import InputError
from tadlib.nn.networks import Network, NetworkSpec
from tadlib.noise import FIXED_RATE
from tadlib.store import MANIFEST, StageFolder, load_table, processor
from workflow.jobs import Job

STAGES = ("divert", "experts", "distill", "evaluate")
# channels, side, classes, training images as published
SHAPES = {
    "digits": (1, 8, 10, 1297),
    "fashion-mnist": (1, 28, 10, 60000),
    "cifar10": (3, 32, 10, 50000),
    "cifar100": (3, 32, 100, 50000),
    "cifar100-coarse": (3, 32, 20, 50000),
    "tiny-imagenet": (3, 64, 200, 100000),
}
Kind = tuple[str, str, str]  # stage, the arm or the method that it depends on most, preset and data set


@dataclass
class Machine:
    """What was measured on one kind of machine."""

    rates: dict[Kind, list[float]] = field(default_factory=dict)
    """Seconds a unit of work."""
    memory: dict[str, int] = field(default_factory=dict)
    """Peak bytes by preset and data set."""

    def note(self, stage: str, config: Config, seconds: float, peak: float | None) -> None:
        """Add a finished stage."""
        if units := work(stage, config):
            self.rates.setdefault(kind(stage, config), []).append(seconds / units)
        where = _scale(config)
        self.memory[where] = max(self.memory.get(where, 0), int(peak or 0))

    def seconds(self, stage: str, config: Config) -> tuple[float | None, bool]:
        """Seconds of a stage, and whether a like one was measured; None where not even its kind was."""
        if not (units := work(stage, config)):
            return 0.0, True
        own = kind(stage, config)
        for same in (3, 2, 1):  # the like of it; another data set or scale; another arm or method as well
            rates = [rate for other, found in self.rates.items() if other[:same] == own[:same] for rate in found]
            if rates:
                return median(rates) * units, same == 3
        return None, False


def _scale(config: Config) -> str:
    return f"{config.preset} {config.dataset}"


def kind(stage: str, config: Config) -> Kind:
    """What a rate belongs to."""
    return stage, {"divert": config.arm, "distill": config.method}.get(stage, ""), _scale(config)


def work(stage: str, config: Config) -> float:
    """Multiply-adds of the forward passes of a stage; 0 for those that take no time worth counting."""
    _, _, n_classes, n_full = SHAPES[config.dataset]
    n_train, n_syn = config.n_train or n_full, config.ipc * n_classes
    own: Any = config.method_config
    if stage == "divert":
        images = config.divert.auditors * config.divert.epochs * n_train if config.arm in LEARNED else 0
    elif stage == "experts":
        images = config.expert.count * config.expert.epochs * n_train
    elif stage == "evaluate":
        images = config.evaluate.networks * config.evaluate.epochs * n_syn
    elif stage != "distill" or config.method == "random":
        images = 0
    elif METHODS[config.method].needs_experts:
        images = own.iterations * own.syn_steps * min(own.batch_syn or n_syn, n_syn)
    else:
        images = own.iterations * (n_classes * own.batch_real + n_syn)
        if config.method == "dsa":
            images = own.outer_steps * (images + own.iterations * own.inner_epochs * n_syn)
    return float(images) * _multiply_adds(config)


def _multiply_adds(config: Config) -> int:
    """Of the ConvNet's convolutions, for one image."""
    channels, side, _, _ = SHAPES[config.dataset]
    side, total = config.resolution or side, 0
    for _ in range(config.depth):
        total += 9 * channels * config.width * side * side
        channels, side = config.width, side // 2
    return total


@lru_cache
def _parameters(shape: tuple[int, int, int], n_classes: int, width: int, depth: int, norm: str) -> int:
    return Network(NetworkSpec(shape, n_classes, "convnet", width, depth, norm)).n_parameters


def disk(config: Config) -> int:
    """Bytes of the trajectories of a cell's experts, beside which all else is small."""
    if not METHODS[config.method].needs_experts:
        return 0
    channels, side, n_classes, _ = SHAPES[config.dataset]
    side = config.resolution or side
    n_parameters = _parameters((channels, side, side), n_classes, config.width, config.depth, config.norm)
    return config.expert.count * (config.expert.epochs + 1) * n_parameters * (2 if config.expert.half else 4)


def measured(out: Path, results: Path) -> dict[str, Machine]:
    """Kinds of machines by name, from the finished stages in ``out`` and the committed rows in ``results``."""
    machines: dict[str, Machine] = {}
    for path in sorted(out.glob(f"*/*/{MANIFEST}")):
        try:
            m = StageFolder(path.parent).manifest()
            config = Config.from_params(**m["config"]["params"])
        except (InputError, KeyError):  # damaged, or of a version with other parameters
            continue
        if m["stage"] in STAGES:
            name = _machine(m["device"], processor(m["hardware"], m["device"]))
            machines.setdefault(name, Machine()).note(m["stage"], config, m["seconds"], m["peak_memory_bytes"])
    for path in sorted(results.glob("*.parquet")):
        for row in load_table(path).to_dict("records"):
            names = ("dataset", "noise", "arm", "method", "ipc", "preset", "n_train")
            try:
                fixed = row["noise"].partition(":")[0] in FIXED_RATE
                config = Config.from_params(
                    **{name: row[name] for name in names}, rate=0.0 if fixed else row["rate_nominal"]
                )
            except (InputError, KeyError):
                continue
            machine = machines.setdefault(_machine(row["device"], row["hardware"]), Machine())
            for stage in STAGES:
                if row[f"seconds_{stage}"] == row[f"seconds_{stage}"] and row[f"seconds_{stage}"] is not None:
                    machine.note(stage, config, row[f"seconds_{stage}"], row["peak_memory_bytes"])
    return machines


def _machine(device: str, hardware: str | None) -> str:
    return f"{hardware or 'unknown'}{', one thread' if device == 'cpu' else ''}"


def cost_text(todo: Iterable[Job], configs: Mapping[str, Config], machines: Mapping[str, Machine]) -> str:
    """Hours, memory and disk of the jobs to do; ``configs`` by name of cell."""
    todo = list(todo)
    stages_of = {"cell": ("distill", "evaluate"), "divert": ("divert",), "experts": ("experts",), "noise": ()}
    done_with: set[str] = set()  # keys of the results of cells: two oracles of one key are one's work
    work_left = []
    for job in todo:
        if job.stage != "cell" or job.key not in done_with:
            work_left += [(stage, configs[job.cell]) for stage in stages_of[job.stage]]
        done_with.add(job.key)
    experts = [configs[job.cell] for job in todo if job.stage == "experts"]
    served = sum(job.stage == "cell" and METHODS[configs[job.cell].method].needs_experts for job in todo)
    lines = [
        f"{len(experts)} sets of experts to train for {served} cells: {sum(map(disk, experts)) / 1e9:.2f} GB of disk"
    ]
    for name, machine in sorted(machines.items()):
        times = [machine.seconds(stage, config) for stage, config in work_left]
        unknown = sum(seconds is None for seconds, _ in times)
        guessed = sum(not like for _, like in times) - unknown
        hours = sum(seconds or 0 for seconds, _ in times) / 3600
        scales = {_scale(configs[job.cell]) for job in todo}
        memory = max((machine.memory.get(scale, 0) for scale in scales), default=0)
        notes = [f"{guessed} of {len(times)} stages by analogy"] if guessed else []
        notes += [f"{unknown} stages unknown"] if unknown else []
        notes += [f"{memory / 1e9:.1f} GB of memory at the most"] if memory else ["memory unknown"]
        lines.append(f"{hours:.1f} h, one job at a time, on {name} ({'; '.join(notes)})")
    return "\n".join(lines)
