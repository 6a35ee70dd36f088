"""The pipeline: noise → divert → experts → distill → evaluate, each stage an idempotent function of a configuration.

A stage writes ``<out>/<stage>/<key>/`` (:mod:`tadlib.store`), where the key is a hash of its settings, its inputs' keys
and the code that computes it. A finished folder is returned as it is; an interrupted stage resumes from its checkpoint
and ends with the same bits on a CPU.
"""

import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

import tadlib
from tadlib import evaluate as evaluation
from tadlib import experts, noise, store, trust
from tadlib.config import Config
from tadlib.data import Dataset, tiny_imagenet
from tadlib.distill import METHODS as DISTILL
from tadlib.distill.synthetic import Real
from tadlib.distilled import load_distilled, save_distilled
from tadlib.errors import require
from tadlib.evaluate import mean_ci95
from tadlib.materials import dataset, evaluated_network, network, plain_dataset
from tadlib.nn import speed
from tadlib.noise import NoisyLabels
from tadlib.state import checkpoint
from tadlib.store import StageFolder, claim_output

CHECKPOINT_SECONDS = 30.0  # at least so long between two checkpoints

# the module that carries out each stage; its code and all that it imports are part of the key
CODE = {"noise": "noise", "divert": "trust", "experts": "experts", "distill": "distill", "evaluate": "evaluate"}


# Running one stage ---------------------------------------------------------------------------------------------------


class Work:
    """What a stage has while it works: its folder, its checkpoint, a progress bar and a clock that survives a kill."""

    def __init__(self, folder: StageFolder, title: str):
        self.folder, self.title = folder, title
        tensors, meta = folder.load_checkpoint() or (None, {"state": None, "seconds": 0.0, "steps": 0})
        self.resume = None if tensors is None else (tensors, meta["state"])
        self.steps = meta["steps"]
        self.saved = time.monotonic()
        self.started = self.saved - meta["seconds"]

    @property
    def seconds(self) -> float:
        """Wall time spent on this stage, earlier attempts included."""
        return time.monotonic() - self.started

    def checkpoint(self, tensors: Mapping[str, torch.Tensor], state: Any, *, now: bool = False) -> None:
        """Keep the state, unless the last checkpoint is recent."""
        if now or time.monotonic() - self.saved > CHECKPOINT_SECONDS:
            self.folder.save_checkpoint(tensors, {"state": state, "seconds": self.seconds, "steps": self.steps})
            self.saved = time.monotonic()

    @contextmanager
    def progress(self, total: int) -> Iterator[Callable[..., None]]:
        """Yields what to call after every step: it moves a bar, on a terminal, and keeps the state, if there is one."""
        with tqdm(total=total, initial=self.steps, desc=self.title, disable=None, leave=False) as bar:

            def step(state: Any = None) -> None:
                bar.update()
                self.steps += 1
                if state is not None:
                    self.checkpoint(*checkpoint(state))

            yield step


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], int | None]]:
    """Yields a function that tells the peak memory since here: of the GPU, or of the process (bytes; None: unknown)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark

    def read() -> int | None:
        status = Path("/proc/self/status")
        found = re.search(r"^VmHWM:\s*(\d+)", status.read_text(), re.MULTILINE) if status.exists() else None
        return 1024 * (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

    yield read


def _stage(config: Config, planned: "Planned", work: Callable[[Work], dict]) -> Path:
    """The finished folder of a stage; the work is done if it is not there. ``work`` returns the manifest's extra.

    Raises:
        InputError: before any work, naming a file of its inputs that is damaged.
    """
    speed.prepare(config.threads)
    claim_output(config.out)
    folder = StageFolder(planned.path)
    if folder.is_complete():
        return folder.path
    with folder.lock():
        if folder.is_complete():
            return folder.path
        for stage, key in planned.inputs.items():
            StageFolder(Path(config.out) / stage / key).verify()
        with peak_memory(config.torch_device) as peak:
            w = Work(folder, planned.name)
            extra = work(w)
            folder.finish(
                stage=planned.name,
                key=planned.key,
                config={"settings": planned.settings, "params": config.portable()},
                inputs=planned.inputs,
                seed=config.seed,
                device=str(config.torch_device),
                seconds=w.seconds,
                peak_memory_bytes=peak(),
                extra=extra,
            )
    return folder.path


# The plan of a run ---------------------------------------------------------------------------------------------------


@lru_cache
def _code_versions() -> dict[str, str]:
    """Versions of every stage's code, read once: a file edited during a run does not change what is running."""
    return {stage: store.code_version(module) for stage, module in CODE.items()}


@dataclass(frozen=True)
class Planned:
    """Where a stage of a run writes, and what that follows from."""

    name: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]  # stage -> key
    out: str

    @cached_property
    def key(self) -> str:
        """A hash of settings, inputs and the code that computes the stage."""
        code = _code_versions()[self.name]
        return store.content_key({"stage": self.name, "settings": self.settings, "inputs": self.inputs, "code": code})

    @property
    def path(self) -> Path:
        """Its folder."""
        return Path(self.out) / self.name / self.key


def as_used(config: Config) -> Config:
    """The configuration that counts from diversion on. The oracle never sees a noisy label: its noise is none, so one
    oracle serves every noise."""
    return replace(config, noise="none", rate=0.0) if config.arm == "oracle" else config


def plan(config: Config) -> dict[str, Planned]:
    """The stages of :func:`as_used` in their order, by name, without doing any of their work.

    Raises InputError where files that belong to a key are missing.
    """
    config = as_used(config)
    own, judge = config.method_config, trust_method(config)
    network = {name: getattr(config, name) for name in ("width", "depth", "norm", "zca")}
    common = {"network": network, "seed": config.seed}
    stages = {"noise": _plan_noise(config)}

    def add(name: str, settings: Mapping[str, Any], *inputs: str) -> None:
        stages[name] = Planned(name, settings, {i: stages[i].key for i in inputs}, config.out)

    learned = {"method": asdict(judge)} | common if judge.epochs else {}
    add("divert", {"arm": config.arm} | learned, "noise")
    if own.needs_experts:
        loops, judged = (asdict(judge), ["noise"]) if config.own_loops else (None, [])
        add("experts", {"expert": asdict(config.expert), "loops": loops} | common, "divert", *judged)
    distilled = {"method": config.method, "ipc": config.ipc, config.method: asdict(own)} | common
    add("distill", distilled, *(["divert", "experts"] if own.needs_experts else ["divert"]))
    evaluated = {"protocol": asdict(config.evaluate), "n_test": config.n_test, "seed": config.seed}
    add("evaluate", evaluated | {"network": network | {"name": config.evaluate_network}}, "distill")
    return stages


def _plan_noise(config: Config) -> Planned:
    names = ("dataset", "n_train", "resolution", "noise", "rate", "seed")
    settings = {name: getattr(config, name) for name in names}
    if _noise_name(config) == "file":  # what counts is what the file says, not where it lies
        settings["noise"] = f"file:{noise.list_checksum(config.noise.partition(':')[2])}"
    files = _files(config.dataset, _noise_name(config), config.root)
    return Planned("noise", settings | ({"files": files} if files else {}), {}, config.out)


@lru_cache
def _files(dataset: str, noise_name: str, root: str | None) -> dict[str, str]:
    """Checksums of the data that no published md5 vouches for."""
    folder = None if root is None else Path(root).expanduser()
    files = {}
    if dataset == "tiny-imagenet":
        files[dataset] = tiny_imagenet.checksum(folder)
    if noise_name == "human":
        files["human"] = noise.human_checksum(dataset, folder)
    return files


def _noise_name(config: Config) -> str:
    return config.noise.partition(":")[0]


def trust_method(config: Config) -> Any:
    """The trust method of a configuration's arm, with its settings."""
    return trust.method(config.arm, config.auditor, config.tad, config.posterior)


# The stages ----------------------------------------------------------------------------------------------------------


def check(config: Config) -> NoisyLabels:
    """Everything that can be known to fail before work starts: files, sizes, noise, and IPC against class sizes."""
    data = plain_dataset(config)
    network(config), evaluated_network(config)
    labels = _labels(config, data)
    used_N, whose = labels.noisy_N, "noisy"
    if config.arm == "oracle":
        require(labels.true_N is not None, "arm oracle needs the true labels, which this data set does not have")
        used_N, whose = labels.true_N, "true"  # type: ignore[assignment]
    counts = torch.bincount(used_N, minlength=data.n_classes)
    require(
        int(counts.min()) >= config.ipc,
        f"ipc must not exceed the images of a class: class {int(counts.argmin())} has {int(counts.min())} under the "
        f"{whose} labels, got {config.ipc}",
    )
    claim_output(config.out)
    return labels


def _labels(config: Config, data: Dataset) -> NoisyLabels:
    rate = None if _noise_name(config) in noise.FIXED_RATE and config.rate == 0 else config.rate
    return noise.inject(
        data.y_train,
        config.noise,
        rate,
        n_classes=data.n_classes,
        seed=config.seed,
        dataset=config.dataset,
        root=config.root,
        index_N=data.index,
        n_full=data.n_full,
        x_NCHW=data.x_train,
    )


def inject_noise(config: Config) -> Path:
    """Stage ``noise``: noisy labels beside the true ones, in ``labels.safetensors``."""

    def work(w: Work) -> dict:
        data = plain_dataset(config)
        labels = _labels(config, data)
        labels.save(w.folder.path / "labels.safetensors")
        return {
            "n_train": len(data.y_train),
            "rate_realised": labels.rate_realised,
            "checksum_labels": labels.checksum,
            "class_names": list(data.class_names),
        }

    return _stage(config, _plan_noise(config), work)


def load_labels(path: Path) -> NoisyLabels:
    """The labels that stage ``noise`` wrote."""
    return NoisyLabels.load(path / "labels.safetensors")


def divert(config: Config) -> Path:
    """Stage ``divert``: carry out the arm; ``labels.parquet``, ``history.parquet``, ``refined.safetensors``."""
    config = as_used(config)
    source, method = inject_noise(config), trust_method(config)

    def work(w: Work) -> dict:
        data = dataset(config)
        problem = noisy_problem(config, data, load_labels(source))
        with w.progress(method.epochs) as step:
            refined = trust.refine(method, problem, resume=w.resume, on_epoch=step)
        tensors = {k: v for k, v in vars(refined).items() if isinstance(v, torch.Tensor)}
        store.save_tensors(w.folder.path / "refined.safetensors", tensors)
        store.save_table(w.folder.path / "labels.parquet", refined.table(problem.true, data.index))
        if refined.history:
            store.save_table(w.folder.path / "history.parquet", pd.DataFrame(refined.history))
        counts = torch.bincount(refined.space.long(), minlength=3).tolist()
        sizes = {f"n_{name}": count for name, count in zip(trust.SPACES, counts, strict=True)}
        if problem.true is None:
            return sizes
        metrics = refined.metrics(problem.true)
        if config.arm == "oracle":  # it judges no label, so its trust is no measure of anything
            of_labels = ("label_accuracy", "mass_accuracy")
            metrics = {name: value if name in of_labels else None for name, value in metrics.items()}
        return sizes | metrics

    return _stage(config, plan(config)["divert"], work)


def noisy_problem(config: Config, data: Dataset, labels: NoisyLabels) -> trust.NoisyProblem:
    """What a trust method is given."""
    device = config.torch_device
    true_N = None if labels.true_N is None else labels.true_N.to(device)
    noisy_N = labels.noisy_N.to(device)
    name = config.arm if config.arm in ("co-teaching", "confident-learning", "gce") else "auditor"
    return trust.NoisyProblem(network(config), data.x_train, noisy_N, data.n_classes, config.seed, true_N, name)


def load_refined(path: Path) -> trust.RefinedSet:
    """The refined set that stage ``divert`` wrote, on the CPU."""
    history = path / "history.parquet"
    rows = store.load_table(history).to_dict("records") if history.exists() else []
    return trust.RefinedSet(**store.load_tensors(path / "refined.safetensors"), history=tuple(rows))


def train_experts(config: Config) -> Path:
    """Stage ``experts``: one trajectory a file; those already there are kept."""
    config = as_used(config)
    source, expert = divert(config), config.expert

    def work(w: Work) -> dict:
        data, refined, net = dataset(config), load_refined(source).to(config.torch_device), network(config)
        trained_on = data.x_train, refined.y, refined.weight
        trajectories = experts.TrajectoryStore(w.folder.path)
        if sys.stderr.isatty():
            speed_now = experts.images_per_second(net, *trained_on, expert)
            size = experts.estimate(expert, net.n_parameters, int((refined.weight > 0).sum()), speed_now)
            tqdm.write(f"{w.title}: {size}", file=sys.stderr)
        with w.progress(expert.count * expert.epochs) as step:
            for i in range(int(w.resume[1]) if w.resume else 0, expert.count):
                more: dict[str, Any] = {"seed": config.seed, "expert": i, "on_epoch": step}
                if config.own_loops:
                    problem = noisy_problem(config, data, load_labels(inject_noise(config)))
                    trajectory = experts.train_own_loop(problem, trust_method(config), expert, **more)
                else:
                    trajectory = experts.train_expert(net, *trained_on, expert, **more)
                trajectories.save(i, trajectory, half=expert.half)
                w.checkpoint({}, i + 1, now=True)
        return {"n_parameters": net.n_parameters}

    return _stage(config, plan(config)["experts"], work)


def _enough(config: Config, diverted_at: Path) -> None:
    """InputError where the arm left a class too few images for ``ipc``: before hours go into experts, not after."""
    if not StageFolder(plan(config)["distill"].path).is_complete():
        StageFolder(diverted_at).verify()
        refined = load_refined(diverted_at)
        Real.of(refined.y, refined.y, refined.weight, config.method_config.draw_power).enough(config.ipc)


def distill(config: Config) -> Path:
    """Stage ``distill``: ``distilled.safetensors`` (:mod:`tadlib.distilled`) and ``history.parquet``, where one is."""
    config = as_used(config)
    own = config.method_config
    inputs = {"divert": divert(config)}
    _enough(config, inputs["divert"])
    if own.needs_experts:
        inputs["experts"] = train_experts(config)

    def work(w: Work) -> dict:
        data, refined = dataset(config), load_refined(inputs["divert"]).to(config.torch_device)
        trajectories = experts.TrajectoryStore(inputs["experts"]) if own.needs_experts else None
        if trajectories is not None:
            trajectories.verify(network(config).n_parameters)  # before hours of matching
        with w.progress(own.iterations) as step:
            synthetic, rows = DISTILL[config.method](
                network(config),
                data.x_train,
                refined.y,
                refined.weight,
                trajectories,
                own,
                ipc=config.ipc,
                seed=config.seed,
                resume=w.resume,
                on_iteration=step,
            )
        keys = {stage: path.name for stage, path in inputs.items()}
        provenance = {"inputs": keys, "versions": store.versions(), "commit": _commit()}
        save_distilled(w.folder.path / "distilled.safetensors", synthetic, data, config, provenance)
        if rows:
            store.save_table(w.folder.path / "history.parquet", pd.DataFrame(rows))
        return {"lr": synthetic.lr, "not_finite": sum(not row["finite"] for row in rows)}

    return _stage(config, plan(config)["distill"], work)


def evaluate(config: Config) -> Path:
    """Stage ``evaluate``: ``accuracies.json``, last-epoch test accuracy of every network, as fractions."""
    config = as_used(config)
    source = distill(config)

    def work(w: Work) -> dict:
        data = dataset(config)
        with w.progress(config.evaluate.epochs) as step:
            accuracies = evaluation.evaluate(
                evaluated_network(config),
                load_distilled(source).synthetic.to(config.torch_device),
                data.x_test,
                data.y_test,
                config.evaluate,
                seed=config.seed,
                workers=config.threads,
                resume=w.resume,
                on_epoch=step,
            )
        store.save_json(w.folder.path / "accuracies.json", accuracies)
        mean, half = mean_ci95(accuracies)
        return {"accuracy_mean": mean, "accuracy_ci95": half, "checksum_data": data.checksum}

    return _stage(config, plan(config)["evaluate"], work)


# Results -------------------------------------------------------------------------------------------------------------


def run(config: Config) -> dict[str, Any]:
    """All stages of one run; returns its row of ``results.parquet`` and merges it into the one under ``out``."""
    check(config)
    row = result_row(config, evaluate(config))
    merge_results(Path(config.out) / "results.parquet", pd.DataFrame([row]))
    return row


TRUST = ("trust_auroc", "trust_precision", "trust_recall")
RELABELLED = ("relabel_count", "relabel_accuracy", "relabel_recall")


def result_row(config: Config, evaluated_at: Path) -> dict[str, Any]:
    """The row of a finished run, read from the manifests of its stages."""
    m = {"evaluate": StageFolder(evaluated_at).manifest()}
    for stage in ("evaluate", "distill", "experts"):
        for name, key in m[stage]["inputs"].items() if stage in m else ():
            m[name] = StageFolder(Path(config.out) / name / key).manifest()
    found, accuracy = m["divert"]["extra"], m["evaluate"]["extra"]
    peaks = [manifest["peak_memory_bytes"] for manifest in m.values() if manifest["peak_memory_bytes"] is not None]
    return {
        **_setting(config, "arm", "method", "ipc", "seed", "preset", "evaluate_network"),
        "accuracy_mean": accuracy["accuracy_mean"],
        "accuracy_ci95": accuracy["accuracy_ci95"],
        "n_networks": len(store.load_json(evaluated_at / "accuracies.json")),
        **{name: found.get(name) for name in (*TRUST, "relabel_count", "relabel_accuracy", "label_accuracy")},
        **{f"seconds_{s}": m[s]["seconds"] if s in m else None for s in ("divert", "experts", "distill", "evaluate")},
        "peak_memory_bytes": max(peaks, default=None),
        **_provenance(config, m["distill"]),
        "key": evaluated_at.name,
    }


def trust_row(config: Config, diverted_at: Path) -> dict[str, Any]:
    """What a finished stage ``divert`` found, as a row: setting, arm, seed, trust, relabelling, cost, provenance.

    ``flagged`` is the fraction of samples that are not trusted as given.
    """
    m, setting = StageFolder(diverted_at).manifest(), _setting(config, "arm", "seed", "preset")
    found = m["extra"]
    return {
        **setting,
        **{name: found.get(name) for name in TRUST},
        "flagged": 1 - found["n_trusted"] / setting["n_train"],
        **{name: found.get(name) for name in (*RELABELLED, "label_accuracy", "mass_accuracy")},
        "seconds_divert": m["seconds"],
        "peak_memory_bytes": m["peak_memory_bytes"],
        **_provenance(config, m),
        "key": diverted_at.name,
    }


def _setting(config: Config, *names: str) -> dict[str, Any]:
    """Data and noise of a run (its own noise also where the arm is the oracle), and more of its settings."""
    noise_at = inject_noise(config)
    made = StageFolder(noise_at).manifest()["extra"]
    return {
        "dataset": config.dataset,
        "n_train": made["n_train"],
        "noise": config.noise,
        "rate_nominal": load_labels(noise_at).rate,
        "rate_realised": made["rate_realised"],
        **{name: getattr(config, name) for name in names},
    }


def _provenance(config: Config, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Where, and with which versions, the stage of ``manifest`` ran."""
    return {
        "device": manifest["device"],
        "hardware": store.processor(manifest["hardware"], manifest["device"]),
        "torch_version": manifest["versions"]["torch"],
        "tadlib_version": manifest["versions"]["tadlib"],
        "commit": _commit(),
        "config_hash": store.content_key(config.portable()),
    }


@lru_cache
def _commit() -> str | None:
    """The commit of this checkout of tadlib, and a + where its code is changed; None where it is no checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(tadlib.__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return commit + ("+" if git("status", "--porcelain", "--", ".") else "") if commit else None
    except OSError:  # no git here
        return None


ORDER = ("dataset", "n_train", "noise", "rate_nominal", "arm", "method", "ipc", "seed", "preset")


def merge_results(path: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """Add rows to a table of results; a row of the same configuration is replaced. Returns the table."""
    with store.locked(path.parent / ".results.lock"):
        table = result_table([store.load_table(path), rows] if path.exists() else [rows])
        store.save_table(path, table)
    return table


def result_table(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Rows of several tables as one, in a fixed order; of one configuration the last row counts."""
    table = pd.concat([t.astype(object) for t in tables], ignore_index=True)
    table = table.drop_duplicates("config_hash", keep="last").infer_objects()
    order = [name for name in ORDER if name in table]
    return table.sort_values([*order, "config_hash"], ignore_index=True)


def runs(config: Config, *, arm=(), seed=()) -> list[Config]:
    """One configuration for every arm and seed."""
    return [replace(config, arm=a, seed=s) for s in (seed or (config.seed,)) for a in (arm or (config.arm,))]
