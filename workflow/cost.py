"""What a grid will take: hours and memory by kind of machine, from what was measured, and disk.

The work of a stage is counted in multiply-adds of forward passes (our choice: images seen, times those of the network
for one image). Finished stages show how many seconds a unit of it took on their machine: by stage, and diversion by
arm, distillation by method. Where no run of the same preset and data set was measured, others stand for it: a guess,
and a high one where small networks stand for wide ones.
"""

from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

from tadlib import pipeline
from tadlib.config import METHODS, Config, MttConfig, stored_params
from tadlib.data import is_own, own
from tadlib.errors import InputError
from tadlib.nn.networks import Network, NetworkSpec
from tadlib.noise import FIXED_RATE
from tadlib.store import MANIFEST, StageFolder, load_table, processor
from workflow.jobs import Job

STAGES = pipeline.TIMED
STAGES_OF_JOB = {"noise": (), "run": ("distill", "evaluate")} | {stage: (stage,) for stage in STAGES[:3]}
# channels, side, classes, training images as published
SHAPES = {
    "digits": (1, 8, 10, 1297),
    "fashion-mnist": (1, 28, 10, 60000),
    "cifar10": (3, 32, 10, 50000),
    "cifar100": (3, 32, 100, 50000),
    "cifar100-coarse": (3, 32, 20, 50000),
    "tiny-imagenet": (3, 64, 200, 100000),
}


def shape(dataset: str) -> tuple[int, int, int, int]:
    """Channels, side, classes and training images of a data set, as published or as the user's own images are."""
    if is_own(dataset):
        found = own.listing(dataset)
        seen = own.look(found)
        return (3 if seen.colour else 1), seen.side, len(found.class_names), found.n_train
    return SHAPES[dataset]


class Machine:
    """What was measured on one kind of machine: ``rates``, seconds a unit of work by :func:`kind`, and ``memory``, peak
    bytes by preset and data set."""

    def __init__(self) -> None:
        self.rates: dict[tuple[str, str, str], list[float]] = defaultdict(list)
        self.memory: dict[str, int] = defaultdict(int)

    def note(self, stage: str, config: Config, seconds: float, peak: float | None) -> None:
        """Add a finished stage."""
        if units := work(stage, config):
            self.rates[kind(stage, config)].append(seconds / units)
        self.memory[_scale(config)] = max(self.memory[_scale(config)], int(peak or 0))

    def seconds(self, stage: str, config: Config) -> tuple[float | None, bool]:
        """Seconds of a stage, and whether a like one was measured; None where not even its stage was."""
        if not (units := work(stage, config)):
            return 0.0, True
        own = kind(stage, config)
        for same in (3, 2, 1):  # a like one; another data set or preset; another arm or method as well
            rates = [rate for other, found in self.rates.items() if other[:same] == own[:same] for rate in found]
            if rates:
                return median(rates) * units, same == 3
        return None, False


def _scale(config: Config) -> str:
    return f"{config.preset} {config.dataset}"


def kind(stage: str, config: Config) -> tuple[str, str, str]:
    """What a rate belongs to: the stage, the arm or method that it depends on most, preset and data set."""
    return stage, {"divert": config.arm, "distill": config.method}.get(stage, ""), _scale(config)


def work(stage: str, config: Config) -> float:
    """Multiply-adds of the forward passes of a stage; 0 for those that take no time worth counting."""
    channels, side, n_classes, n_full = shape(config.dataset)
    own: Any = config.method_config
    n_train, n_syn = config.n_train or n_full, config.ipc * n_classes * own.formation**2  # as networks see them
    if stage == "divert":
        images = pipeline.trust_method(config).epochs * n_train
    elif stage == "experts":
        images = config.expert.count * config.expert.epochs * n_train
    elif stage == "observer":
        images = config.observer.epochs * n_train
    elif stage == "evaluate":
        images = config.evaluate.networks * config.evaluate.epochs * n_syn * (3 if config.evaluate.controls else 1)
        images *= 2 if config.evaluate.teacher else 1
    elif stage != "distill" or config.method == "random":
        images = 0
    elif config.method == "cim":
        images = 2 * own.steps * n_syn
    elif config.method == "rded":
        images = n_classes * min(own.candidates or n_train, n_train // n_classes) * own.crops
    elif isinstance(own, MttConfig):
        images = own.iterations * own.syn_steps * min(own.batch_syn or n_syn, n_syn)
    else:
        images = own.iterations * (n_classes * own.batch_real + n_syn)
        if config.method == "dsa":
            images = own.outer_steps * (images + own.iterations * own.inner_epochs * n_syn)
    side, multiply_adds = config.resolution or side, 0  # of the ConvNet's convolutions, for one image
    for _ in range(config.depth):
        multiply_adds += 9 * channels * config.width * side * side
        channels, side = config.width, side // 2
    return float(images) * multiply_adds


@lru_cache
def _parameters(spec: NetworkSpec) -> int:
    return Network(spec).n_parameters


def disk(config: Config) -> int:
    """Bytes of the trajectories of a run's experts, beside which all else is small."""
    if not METHODS[config.method].needs_experts:
        return 0
    channels, side, n_classes, _ = shape(config.dataset)
    size = (channels, config.resolution or side, config.resolution or side)
    spec = NetworkSpec(size, n_classes, "convnet", config.width, config.depth, config.norm)
    return config.expert.count * (config.expert.epochs + 1) * _parameters(spec) * (2 if config.expert.half else 4)


def measured(out: Path, results: Path) -> dict[str, Machine]:
    """Kinds of machines by name, from the finished stages in ``out`` and the committed rows in ``results``."""
    machines: dict[str, Machine] = defaultdict(Machine)
    for path in sorted(out.glob(f"*/*/{MANIFEST}")):
        try:
            m = StageFolder(path.parent).manifest()
            config = Config.from_params(**stored_params(m["config"]["params"]))
        except (InputError, KeyError):  # damaged, or of a version with other parameters
            continue
        if m["stage"] in STAGES:
            machine = machines[_machine(m["device"], processor(m["hardware"], m["device"]))]
            machine.note(m["stage"], config, m["seconds"], m["peak_memory_bytes"])
    for path in sorted(results.glob("*.parquet")):
        for row in load_table(path).to_dict("records"):
            try:
                names = ("dataset", "noise", "arm", "method", "ipc", "preset", "n_train")
                params = {name: row[name] for name in names}
                if row["noise"].partition(":")[0] not in FIXED_RATE:
                    params["rate"] = row["rate_nominal"]
                config = Config.from_params(**params)
            except (InputError, KeyError):  # a table of something else
                continue
            for stage in STAGES:
                seconds = row.get(f"seconds_{stage}")  # tables from before there were observers
                if seconds is not None and seconds == seconds:
                    machine = machines[_machine(row["device"], row["hardware"])]
                    machine.note(stage, config, seconds, row["peak_memory_bytes"])
    return machines


def _machine(device: str, hardware: str | None) -> str:
    return f"{hardware or 'unknown'}{', one thread' if device == 'cpu' else ''}"


def cost_text(todo: list[Job], configs: Mapping[str, Config], machines: Mapping[str, Machine]) -> str:
    """Hours, memory and disk of the jobs to do; ``configs`` by name of run."""
    runs = {job.key: job for job in todo if job.stage == "run"}  # two oracles of one key are one's work
    counted = [job for job in todo if job.stage != "run"] + list(runs.values())
    stages = [(stage, configs[job.run]) for job in counted for stage in STAGES_OF_JOB[job.stage]]
    experts = [configs[job.run] for job in todo if job.stage == "experts"]
    served = sum(job.stage == "run" and METHODS[configs[job.run].method].needs_experts for job in todo)
    gigabytes = sum(map(disk, experts)) / 1e9
    lines = [f"{len(experts)} sets of experts to train for {served} runs: {gigabytes:.2f} GB of disk"]
    for name, machine in sorted(machines.items()):
        times = [machine.seconds(stage, config) for stage, config in stages]
        unknown = sum(seconds is None for seconds, _ in times)
        guessed = sum(not like for _, like in times) - unknown
        hours = sum(seconds or 0 for seconds, _ in times) / 3600
        memory = max((machine.memory.get(_scale(configs[job.run]), 0) for job in todo), default=0)
        notes = [f"{guessed} of {len(times)} stages by analogy"] if guessed else []
        notes += [f"{unknown} stages unknown"] if unknown else []
        notes += [f"{memory / 1e9:.1f} GB of memory at the most"] if memory else ["memory unknown"]
        lines.append(f"{hours:.1f} h, one job at a time, on {name} ({'; '.join(notes)})")
    return "\n".join(lines)
