"""The pipeline: noise → divert → experts → distill → evaluate, each stage an idempotent function of a configuration.

RDED and CIM have an observer in place of experts (:mod:`tadlib.observer`).

A stage writes ``<out>/<stage>/<key>/`` (:mod:`tadlib.store`). A finished folder is returned as it is; an interrupted
stage resumes from its checkpoint and ends with the same bits on a CPU.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

import tadlib
from tadlib import evaluate as evaluation
from tadlib import experts, noise, observer, store, trust
from tadlib.config import Config, Protocol
from tadlib.data import Dataset, is_own, matrices, own, tiny_imagenet
from tadlib.distill import METHODS as DISTILL
from tadlib.distill.synthetic import Real, divisible
from tadlib.distilled import load_distilled, save_distilled
from tadlib.errors import readable, require, required, some
from tadlib.evaluate import mean_ci95
from tadlib.materials import dataset, evaluated_network, network, observer_network, plain_dataset
from tadlib.nn import pretrained, speed
from tadlib.nn.training import accuracy
from tadlib.noise import NoisyLabels
from tadlib.state import checkpoint
from tadlib.store import StageFolder, claim_output

CHECKPOINT_SECONDS = 30.0  # at least so long between two checkpoints

# the modules that carry out each stage; their code and all that they import are part of the key
CODE = {"noise": "noise data", "embed": "nn.pretrained data", "divert": "trust", "experts": "experts"}
CODE |= {"distill": "distill", "evaluate": "evaluate", "observer": "observer"}
MATRICES = ("embeddings", "probabilities")  # kinds of predictors that may come from files


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
def peak_memory(device: torch.device) -> Iterator[Callable[[], int]]:
    """Yields a function that tells the peak memory since here: of the GPU, or of the process (bytes)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark, on Linux
    unit = 1 if sys.platform == "darwin" else 1024
    yield lambda: unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _stage(config: Config, planned: "Planned", work: Callable[[Work], dict]) -> Path:
    """The finished folder of a stage; the work is done if it is not there. ``work`` returns the manifest's extra.

    Raises InputError, before any work, where a file of its inputs is damaged.
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
            spent = {"seconds": w.seconds, "peak_memory_bytes": peak(), "extra": extra}
            about = {"stage": planned.name, "key": planned.key, "inputs": planned.inputs, "seed": config.seed}
            stored = {"settings": planned.settings, "params": config.portable()}
            folder.finish(**about, config=stored, device=str(config.torch_device), **spent)
    return folder.path


@lru_cache
def _code_versions() -> dict[str, str]:
    """Versions of every stage's code, read once: a file edited during a run does not change what is running."""
    return {stage: store.code_version(*modules.split()) for stage, modules in CODE.items()}


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
    """The configuration that counts from diversion on: the oracle sees no noisy label, so one serves every noise.

    Of own images it keeps the noise: without it their labels are noisy.
    """
    shared = config.arm == "oracle" and not is_own(config.dataset)
    return replace(config, noise="none", rate=0.0, corrections=None) if shared else config


def plan(config: Config) -> dict[str, Planned]:
    """The stages of :func:`as_used` in their order, by name, without doing any of their work.

    Raises InputError where files that belong to a key are missing.
    """
    config = as_used(config)
    own, judge = config.method_config, trust_method(config)
    network = _values(config, "width", "depth", "norm", "zca")
    common = {"network": network, "seed": config.seed}
    stages = {"noise": _plan_noise(config)}

    def add(name: str, settings: Mapping[str, Any], *inputs: str) -> None:
        stages[name] = Planned(name, settings, {i: stages[i].key for i in inputs}, config.out)

    embedded = ["embed"] if config.arm == "tad-posterior" and config.posterior.pretrained else []
    if embedded:
        stages["embed"] = _plan_embed(config)
    learned = {"method": _portable(asdict(judge), config)} | common if judge.epochs else {}
    add("divert", {"arm": config.arm} | learned, "noise", *embedded)
    inputs = ["divert"]
    if own.needs_experts:
        loops, judged = (_portable(asdict(judge), config), ["noise", *embedded]) if config.own_loops else (None, [])
        add("experts", {"expert": asdict(config.expert), "loops": loops} | common, "divert", *judged)
        inputs.append("experts")
    if config.needs_observer:
        stages["observer"] = _plan_observer(config)
        inputs += ["observer"] if own.needs_observer else []
    add("distill", {"method": config.method, "ipc": config.ipc, config.method: asdict(own)} | common, *inputs)
    evaluated = {"protocol": asdict(config.evaluate), "n_test": config.n_test, "seed": config.seed}
    watched = ["observer"] if config.evaluate.teacher else []
    add("evaluate", evaluated | {"network": network | {"name": config.evaluate_network}}, "distill", *watched)
    return stages


def _teaching(config: Config) -> Config:
    """The configuration whose refined set the observer is trained on; it needs no observer itself."""
    arm = config.arm if config.observer.labels == "arm" else config.observer.labels
    return as_used(replace(config, arm=arm, method="random", loops="shared", evaluate=Protocol()))


def _plan_observer(config: Config) -> Planned:
    how = {name: value for name, value in asdict(config.observer).items() if name != "labels"}
    settings = how | _values(config, "width", "depth", "zca", "seed")
    return Planned("observer", settings, {"divert": plan(_teaching(config))["divert"].key}, config.out)


def _plan_noise(config: Config) -> Planned:
    settings = _values(config, "dataset", "n_train", "resolution", "noise", "rate", "seed")
    if _noise_name(config) == "file":  # what counts is what the file says, not where it lies
        settings["noise"] = f"file:{noise.list_checksum(config.noise.partition(':')[2])}"
    if config.corrections is not None:
        settings["corrections"] = noise.corrections_checksum(config.corrections)
    if is_own(config.dataset):  # what counts is what the files hold, and how many are held out where none are for tests
        settings["dataset"], files = "own", {"images": own.checksum(config.dataset)}
        if not own.listing(config.dataset).has_test:
            settings["n_test"] = config.n_test
    else:
        files = _files(config.dataset, _noise_name(config), config.root)
    return Planned("noise", settings | ({"files": files} if files else {}), {}, config.out)


def _plan_embed(config: Config) -> Planned:
    about = _plan_noise(replace(config, noise="none", rate=0.0, corrections=None)).settings
    about = {name: value for name, value in about.items() if name not in ("resolution", "noise", "rate", "seed")}
    return Planned("embed", about | {"networks": config.posterior.pretrained}, {}, config.out)


def _portable(method: dict[str, Any], config: Config) -> dict[str, Any]:
    """Settings of a trust method in which files are named by what they hold, not by where they lie."""
    if config.arm == "tad-posterior":
        settings = config.posterior
        paths = [path for kind in MATRICES for path in settings.files(kind)]
        held = {path: store.file_digest(readable("table of numbers", path)) for path in paths}
        parts = [name.partition(":") for name in settings.names]
        method["settings"]["predictors"] = [kind + colon + held.get(rest, rest) for kind, colon, rest in parts]
    return method


@lru_cache
def _files(dataset: str, noise_name: str, root: str | None) -> dict[str, str]:
    """Checksums of the data that no published md5 vouches for."""
    folder = None if root is None else Path(root).expanduser()
    images = {dataset: tiny_imagenet.checksum(folder)} if dataset == "tiny-imagenet" else {}
    return images | ({"human": noise.human_checksum(dataset, folder)} if noise_name == "human" else {})


def _values(config: Config, *names: str) -> dict[str, Any]:
    return {name: getattr(config, name) for name in names}


def _noise_name(config: Config) -> str:
    return config.noise.partition(":")[0]


def trust_method(config: Config) -> Any:
    """The trust method of a configuration's arm, with its settings."""
    return trust.method(config.arm, config.auditor, config.tad, config.posterior)


def check(config: Config, *, distilled: bool = True) -> NoisyLabels:
    """Everything that can be known to fail before work starts: files, sizes, noise, and, where the labels are to be
    ``distilled``, IPC against class sizes."""
    speed.prepare(config.threads)
    data = plain_dataset(config)
    network(config), evaluated_network(config)
    divisible(data.image_shape, config.method_config.formation * config.method_config.mosaic(data.image_shape[-1]))
    labels = _labels(config, data)
    used_N, whose = labels.noisy_N, "noisy"
    if config.needs_observer:
        observer_network(config)
        known = config.observer.labels != "oracle" or labels.true_N is not None
        require(known, "observer_labels oracle needs the true labels, which this data set does not have")
    if config.arm == "oracle":
        message = "arm oracle needs the true labels, which this data set does not have"
        message += " (a table may have a column true_label)" if data.files is not None else ""
        used_N, whose = required(labels.true_N, message), "true"
    counts = torch.bincount(used_N, minlength=data.n_classes)
    empty = [k if data.files is None else repr(data.class_names[k]) for k in (counts == 0).nonzero()[:, 0].tolist()]
    require(not empty, f"every class needs an image; under the {whose} labels none has class {some(empty)}")
    rarest = int(counts.argmin())
    name = rarest if data.files is None else repr(data.class_names[rarest])
    least = f"class {name} has {int(counts.min())} under the {whose} labels, got {config.ipc}"
    enough = not distilled or int(counts.min()) >= config.ipc
    require(enough, f"ipc must not exceed the images of a class: {least}")
    if config.arm == "tad-posterior":
        _tables(config, data, labels.noisy_N)
        for network_name in config.posterior.pretrained:
            pretrained.load(network_name, config.download)
    claim_output(config.out)
    return labels


def _labels(config: Config, data: Dataset) -> NoisyLabels:
    labels = _uncorrected(config, data)
    if config.corrections is None:
        return labels
    return noise.corrected(labels, config.corrections, data.class_names, data.index, data.paths)


def _uncorrected(config: Config, data: Dataset) -> NoisyLabels:
    clean_N = data.y_train
    if data.files is not None:  # of own images the labels are noisy, unless noise is added to them
        if config.noise == "none":
            return NoisyLabels.as_given(data.y_train, data.files.true, data.n_classes, config.seed)
        clean_N = clean_N if data.files.true is None else data.files.true
    rate = None if _noise_name(config) in noise.FIXED_RATE and config.rate == 0 else config.rate
    about: dict[str, Any] = {"n_classes": data.n_classes, "n_full": data.n_full, "index_N": data.index}
    about |= {"paths": data.paths} | _values(config, "seed", "dataset", "root")
    return noise.inject(clean_N, config.noise, rate, x_NCHW=data.x_train, **about)


def inject_noise(config: Config) -> Path:
    """Stage ``noise``: noisy labels beside the true ones, in ``labels.safetensors``."""

    def work(w: Work) -> dict:
        data = plain_dataset(config)
        labels = _labels(config, data)
        labels.save(w.folder.path / "labels.safetensors")
        found = {"rate_realised": labels.rate_realised, "checksum_labels": labels.checksum}
        return {"n_train": len(data.y_train), **found, "class_names": list(data.class_names)}

    return _stage(config, _plan_noise(config), work)


def load_labels(path: Path) -> NoisyLabels:
    """The labels that stage ``noise`` wrote."""
    _verify(path)
    return NoisyLabels.load(path / "labels.safetensors")


def embed(config: Config) -> Path:
    """Stage ``embed``: embeddings of the training images, at their own resolution, by pretrained networks."""
    names = config.posterior.pretrained

    def work(w: Work) -> dict:
        data = dataset(replace(config, resolution=None, zca=False))
        found = {}
        with w.progress(len(names) * pretrained.batches(len(data.x_train))) as step:
            for name in names:
                network = pretrained.load(name, config.download, config.torch_device)
                found[name] = network.embed(data.x_train, step, partial(data.pixels, clamp=False))
        store.save_tensors(w.folder.path / "embeddings.safetensors", found)
        return {}

    return _stage(config, _plan_embed(config), work)


def load_accuracies(path: Path) -> list[float]:
    """The accuracies that stage ``evaluate`` wrote."""
    _verify(path)
    return store.load_json(path / "accuracies.json")


def _verify(path: Path) -> None:
    """InputError where a file of a finished stage is damaged."""
    if StageFolder(path).is_complete():
        StageFolder(path).verify()


def divert(config: Config) -> Path:
    """Stage ``divert``: carry out the arm; ``labels.parquet``, ``history.parquet``, ``refined.safetensors``."""
    config = as_used(config)
    source, method = inject_noise(config), trust_method(config)
    if config.arm == "tad-posterior" and config.posterior.pretrained:
        embed(config)

    def work(w: Work) -> dict:
        data = dataset(config)
        problem = noisy_problem(config, data, load_labels(source))
        with w.progress(method.epochs) as step:
            refined = trust.refine(method, problem, resume=w.resume, on_epoch=step)
        tensors = {k: v for k, v in vars(refined).items() if isinstance(v, torch.Tensor)}
        store.save_tensors(w.folder.path / "refined.safetensors", tensors)
        table = refined.table(problem.true, data.index)
        if data.paths is not None:
            table.insert(0, "path", data.paths)
        store.save_table(w.folder.path / "labels.parquet", table)
        if refined.history:
            store.save_table(w.folder.path / "history.parquet", pd.DataFrame(refined.history))
        counts = torch.bincount(refined.space.long(), minlength=3).tolist()
        sizes = {f"n_{name}": count for name, count in zip(trust.SPACES, counts, strict=True)}
        metrics = {} if problem.true is None else refined.metrics(problem.true)
        if config.arm == "oracle":  # it judges no label, so its trust is no measure of anything
            metrics |= dict.fromkeys(metrics.keys() - {"label_accuracy", "mass_accuracy"})
        return sizes | metrics

    return _stage(config, plan(config)["divert"], work)


def noisy_problem(config: Config, data: Dataset, labels: NoisyLabels) -> trust.NoisyProblem:
    """What a trust method is given."""
    device, others = config.torch_device, (labels.true_N, labels.checked_N, labels.original_N)
    noisy_N = labels.noisy_N.to(device)
    true_N, checked_N, original_N = (None if y_N is None else y_N.to(device) for y_N in others)
    name = config.arm if config.arm in ("co-teaching", "confident-learning", "gce") else "auditor"
    about = config.seed, true_N, name, checked_N, original_N
    problem = trust.NoisyProblem(network(config), data.x_train, noisy_N, data.n_classes, *about)
    if config.arm != "tad-posterior":
        return problem
    tables, embedded = _tables(config, data, noisy_N), {}
    if config.posterior.pretrained:
        embedded = store.load_tensors(embed(config) / "embeddings.safetensors")
    z = tables["embeddings"] + tuple(z_ND.to(device) for z_ND in embedded.values())
    return replace(problem, embeddings=z, probabilities=tables["probabilities"])


def _tables(config: Config, data: Dataset, noisy_N: torch.Tensor) -> dict[str, tuple[torch.Tensor, ...]]:
    """Embeddings and probabilities of the images, from files. InputError where a file does not fit."""
    n, found = len(data.y_train), {}
    for kind in MATRICES:
        read = {}
        for path in config.posterior.files(kind):
            rows = matrices.read_matrix(path)
            place_N = matrices.places_of(len(rows.values), rows.names, data.index, data.n_full, data.paths, path)
            if kind == "embeddings":
                read[path] = matrices.require_embeddings(rows.values[place_N], n, path, place_N)
            else:
                p_NK = rows.values[place_N]
                read[path] = matrices.require_probabilities(p_NK, n, data.n_classes, path, place_N)
                matrices.warn_of_in_sample(read[path], noisy_N.cpu(), path)
        found[kind] = tuple(matrix.to(config.torch_device) for matrix in read.values())
    return found


def load_refined(path: Path) -> trust.RefinedSet:
    """The refined set that stage ``divert`` wrote, on the CPU."""
    _verify(path)
    history = path / "history.parquet"
    rows = store.load_table(history).to_dict("records") if history.exists() else []
    return trust.RefinedSet(**store.load_tensors(path / "refined.safetensors"), history=tuple(rows))


def train_experts(config: Config) -> Path:
    """Stage ``experts``: one trajectory a file; those already there are kept."""
    config = as_used(config)
    source, expert = divert(config), config.expert

    def work(w: Work) -> dict:
        data, refined, net = dataset(config), load_refined(source).to(config.torch_device), network(config)
        trajectories = experts.TrajectoryStore(w.folder.path)
        if sys.stderr.isatty():
            size = experts.stored_bytes(expert, net.n_parameters) / 1e6
            tqdm.write(f"{w.title}: {size:,.1f} MB of trajectories", file=sys.stderr)
        with w.progress(expert.count * expert.epochs) as step:
            for i in range(int(w.resume[1]) if w.resume else 0, expert.count):
                more: dict[str, Any] = {"seed": config.seed, "expert": i, "on_epoch": step}
                if config.own_loops:
                    problem = noisy_problem(config, data, load_labels(inject_noise(config)))
                    trajectory = experts.train_own_loop(problem, trust_method(config), expert, **more)
                else:
                    trajectory = experts.train_expert(net, data.x_train, refined.y, refined.weight, expert, **more)
                trajectories.save(i, trajectory, half=expert.half)
                w.checkpoint({}, i + 1, now=True)
        return {"n_parameters": net.n_parameters}

    return _stage(config, plan(config)["experts"], work)


def train_observer(config: Config) -> Path:
    """Stage ``observer``: ``observer.safetensors``, a network with batch norm trained on a refined set."""
    config = as_used(config)
    teaching, planned = _teaching(config), _plan_observer(config)
    source = divert(teaching)

    def work(w: Work) -> dict:
        data, refined, net = dataset(config), load_refined(source).to(config.torch_device), observer_network(config)
        with w.progress(config.observer.epochs) as step:
            how: dict[str, Any] = {"seed": config.seed, "resume": w.resume, "on_epoch": step}
            trained = observer.train_observer(net, data.x_train, refined.y, refined.weight, config.observer, **how)
        store.save_tensors(w.folder.path / "observer.safetensors", {"theta": trained.theta})
        found = accuracy(net, trained.theta, data.x_test, data.y_test) if len(data.y_test) else None
        return {"accuracy": found, "arm": teaching.arm, "network": config.observer.network}

    return _stage(config, planned, work)


def load_observer(config: Config, path: Path) -> tuple[observer.Observer, dict[str, Any]]:
    """The observer that stage ``observer`` wrote, and what a set or a row tells of it: accuracy, arm, network."""
    theta_P = store.load_tensors(path / "observer.safetensors")["theta"].to(config.torch_device)
    return observer.Observer(observer_network(config), theta_P), StageFolder(path).manifest()["extra"]


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
    if own.needs_observer:
        inputs["observer"] = train_observer(config)

    def work(w: Work) -> dict:
        data, refined = dataset(config), load_refined(inputs["divert"]).to(config.torch_device)
        net, about = network(config), dict[str, Any]()
        guide: experts.TrajectoryStore | observer.Observer | None = None
        if own.needs_experts:
            guide = trajectories = experts.TrajectoryStore(inputs["experts"])
            trajectories.verify(net.n_parameters)  # before hours of matching
        if own.needs_observer:
            guide, about["observer"] = load_observer(config, inputs["observer"])
        problem = net, data.x_train, refined.y, refined.weight, guide, own
        with w.progress(own.iterations) as step:
            how = {"ipc": config.ipc, "seed": config.seed, "resume": w.resume, "on_iteration": step}
            synthetic, rows = DISTILL[config.method](*problem, **how)
        keys = {stage: path.name for stage, path in inputs.items()}
        provenance = {"inputs": keys, "versions": store.versions(), "commit": _commit()} | about
        save_distilled(w.folder.path / "distilled.safetensors", synthetic, data, config, provenance)
        if rows:
            store.save_table(w.folder.path / "history.parquet", pd.DataFrame(rows))
        return {"lr": synthetic.lr, "not_finite": sum(not row["finite"] for row in rows)}

    return _stage(config, plan(config)["distill"], work)


def evaluate(config: Config) -> Path:
    """Stage ``evaluate``: ``accuracies.json``, last-epoch test accuracy of every network, as fractions.

    With controls, their mean accuracies are in the manifest beside the set's (:func:`tadlib.evaluate.hard_labels`,
    :func:`tadlib.evaluate.random_real`).
    """
    config = as_used(config)
    require(config.n_test != 0, "evaluation needs test images, got n_test 0")
    source, diverted_at = distill(config), divert(config)
    observed = train_observer(config) if config.evaluate.teacher else None

    def work(w: Work) -> dict:
        data, net, protocol = dataset(config), evaluated_network(config), config.evaluate
        held = load_distilled(source).synthetic.to(config.torch_device)
        factor = config.method_config.mosaic(data.image_shape[-1])
        sets = {"set": (held, protocol)}
        if protocol.controls:
            StageFolder(diverted_at).verify()
            refined = load_refined(diverted_at).to(config.torch_device)
            real = Real.of(data.x_train, refined.y, refined.weight, config.method_config.draw_power)
            sets["random_real"] = evaluation.random_real(held, real, config.seed, factor), protocol
            hard = evaluation.hard_labels(held)
            if protocol.teacher or not torch.equal(hard.y, held.y):
                sets["hard_labels"] = hard, replace(protocol, teacher=False)
        how: dict[str, Any] = {"seed": config.seed, "workers": config.threads, "factor": factor}
        about: dict[str, Any] = {"checksum_data": data.checksum, "n_test": len(data.y_test)}
        about["evaluated_on"] = own.TEST if data.files is None else data.files.evaluated_on
        if observed is not None:
            how["teacher"], found = load_observer(config, observed)
            about |= {"teacher_accuracy": found["accuracy"], "teacher_arm": found["arm"]}
        with w.progress(protocol.epochs * len(sets)) as step:
            how |= {"resume": w.resume, "on_epoch": step}
            accuracies = evaluation.evaluate_each(net, [*sets.values()], data.x_test, data.y_test, **how)
        store.save_json(w.folder.path / "accuracies.json", accuracies[0])
        mean, half = mean_ci95(accuracies[0])
        means = {f"accuracy_{name}": mean_ci95(each)[0] for name, each in zip(sets, accuracies)}
        controls = {name: means.get(name, mean) for name in CONTROLS if protocol.controls}  # labels may be hard already
        return {"accuracy_mean": mean, "accuracy_ci95": half} | about | controls

    return _stage(config, plan(config)["evaluate"], work)


def run(config: Config) -> dict[str, Any]:
    """All stages of one run; returns its row of ``results.parquet`` and merges it into the one under ``out``."""
    check(config)
    row = result_row(config, evaluate(config))
    merge_results(Path(config.out) / "results.parquet", pd.DataFrame([row]))
    return row


TRUST = ("trust_auroc", "trust_precision", "trust_recall")
TIMED = ("divert", "experts", "observer", "distill", "evaluate")  # stages, in columns seconds_…
CONTROLS = ("accuracy_hard_labels", "accuracy_random_real")  # where evaluate_controls asks for them


def result_row(config: Config, evaluated_at: Path) -> dict[str, Any]:
    """The row of a finished run, read from the manifests of its stages."""
    manifests = {name: StageFolder(planned.path).manifest() for name, planned in plan(config).items()}
    found = manifests["divert"]["extra"] | manifests["evaluate"]["extra"]
    found["n_networks"] = len(load_accuracies(evaluated_at))
    for name in TIMED:
        found[f"seconds_{name}"] = manifests[name]["seconds"] if name in manifests else None
    found["peak_memory_bytes"] = max(manifest["peak_memory_bytes"] for manifest in manifests.values())
    found |= {"formation": config.method_config.formation, "draw_power": config.method_config.draw_power}
    columns = ["formation", "draw_power", "n_test", "accuracy_mean", "accuracy_ci95", "n_networks", "evaluated_on"]
    columns += [*CONTROLS, *TRUST, "relabel_count", "relabel_accuracy", "label_accuracy"]
    columns += [name for name in found if "seconds" in name]
    columns += ["teacher_arm", "teacher_accuracy"]
    settings = ("arm", "method", "ipc", "seed", "preset", "evaluate_network")
    return _row(config, settings, found, columns, manifests["distill"], evaluated_at)


def trust_row(config: Config, diverted_at: Path) -> dict[str, Any]:
    """What a finished stage ``divert`` found, as a row: setting, arm, seed, trust, relabelling, cost, provenance.

    ``flagged`` is the fraction of samples that are not trusted as given.
    """
    manifest = StageFolder(diverted_at).manifest()
    found = manifest["extra"] | {"seconds_divert": manifest["seconds"]}
    found["peak_memory_bytes"] = manifest["peak_memory_bytes"]
    found["flagged"] = 1 - found["n_trusted"] / sum(found[f"n_{name}"] for name in trust.SPACES)
    columns = [*TRUST, "flagged", "relabel_count", "relabel_accuracy", "relabel_recall", "label_accuracy"]
    columns += ["mass_accuracy", "seconds_divert"]
    return _row(config, ("arm", "seed", "preset"), found, columns, manifest, diverted_at)


def _row(config: Config, settings: tuple, found: dict, columns: list, manifest: dict, path: Path) -> dict[str, Any]:
    """Data and noise of a run (its own noise also where the arm is the oracle), its ``settings``, the ``columns`` of
    what was ``found``, and where and with which versions the stage of ``manifest`` ran."""
    noise_at = inject_noise(config)
    made = StageFolder(noise_at).manifest()["extra"]
    return {
        "dataset": config.dataset,
        "n_train": made["n_train"],
        "noise": config.noise,
        "rate_nominal": load_labels(noise_at).rate,
        "rate_realised": made["rate_realised"],
        **_values(config, *settings),
        **{name: found.get(name) for name in [*columns, "peak_memory_bytes"]},
        "device": manifest["device"],
        "hardware": store.processor(manifest["hardware"], manifest["device"]),
        "torch_version": manifest["versions"]["torch"],
        "tadlib_version": manifest["versions"]["tadlib"],
        "commit": _commit(),
        "config_hash": store.content_key(config.portable()),
        "key": path.name,
    }


@lru_cache
def _commit() -> str | None:
    """The commit of this checkout of tadlib, and a + where its code is changed; None where it is no checkout."""
    command = ["git", "-C", str(Path(tadlib.__file__).parent), "status", "--porcelain=v2", "--branch", "--", "."]
    try:
        head, *more = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    except (OSError, ValueError):  # no git here, or no checkout
        return None
    return head.split()[-1] + ("+" if any(not line.startswith("#") for line in more) else "")


# what the runs of arms that are compared share
SETTING = (
    *("dataset", "n_train", "noise", "rate_nominal", "method", "ipc", "preset", "evaluate_network"),
    *("formation", "draw_power", "n_test"),
)
ORDER = ("dataset", "n_train", "noise", "rate_nominal", "arm", "method", "ipc", "seed", "preset")


def merge_results(path: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """Add rows to a table of results and return it; a row of the same configuration is replaced.

    Where the table has the rows already nothing is written, so that a finished folder may be read-only.
    """
    if path.exists() and _has(table := store.load_table(path), rows):
        return table
    with store.locked(path.parent / ".results.lock"):
        table = result_table([store.load_table(path), rows] if path.exists() else [rows])
        store.save_table(path, table)
    return table


def _has(table: pd.DataFrame, rows: pd.DataFrame) -> bool:
    """Whether every one of ``rows`` is in ``table`` with the same values, whatever the types of its columns."""
    if not rows.columns.isin(table.columns).all() or not rows["config_hash"].isin(table["config_hash"]).all():
        return False
    found = table.set_index("config_hash").loc[rows["config_hash"], rows.columns.drop("config_hash")]
    mine = rows.drop(columns="config_hash")
    same = [[(a == b) or (pd.isna(a) and pd.isna(b)) for a, b in zip(*pair)] for pair in zip(found.values, mine.values)]
    return all(map(all, same))


def result_table(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Rows of several tables as one, in a fixed order; of one configuration the last row counts."""
    table = pd.concat([t.astype(object) for t in tables], ignore_index=True)
    table = table.drop_duplicates("config_hash", keep="last").infer_objects()
    return table.sort_values([name for name in (*ORDER, "config_hash") if name in table], ignore_index=True)


def runs(config: Config, *, arm=(), seed=()) -> list[Config]:
    """One configuration for every arm and seed."""
    return [replace(config, arm=a, seed=s) for s in (seed or (config.seed,)) for a in (arm or (config.arm,))]
