"""The configuration of a cell: every setting of every stage, with the preset filled in."""

import difflib
import math
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import lru_cache
from typing import Any

import torch

from tadlib import arms, diversion, experts, noise, presets
from tadlib.data import DATASETS
from tadlib.distill import METHODS as METHODS
from tadlib.distill.datm import DatmConfig
from tadlib.distill.dm import DmConfig
from tadlib.distill.dsa import DsaConfig
from tadlib.distill.ftd import FtdConfig
from tadlib.distill.mtt import MttConfig
from tadlib.distill.random import RandomConfig
from tadlib.distill.tesla import TeslaConfig
from tadlib.errors import InputError, known, require
from tadlib.evaluate import Protocol
from tadlib.nn import augment
from tadlib.nn.networks import NETWORKS


@dataclass(frozen=True)
class Config:
    """Everything that defines a cell. Build it with :meth:`from_params`, which fills in the preset.

    The nested settings appear in flat form as ``divert_*``, ``expert_*``, ``evaluate_*`` and, for the method chosen,
    under the method's name: ``mtt_*``, ``datm_*`` and so on.
    """

    dataset: str = "digits"
    root: str | None = None  # folder of the data set's files
    download: bool = False  # fetch them there when missing
    n_train: int | None = None  # class-balanced subset; None = all
    n_test: int | None = None
    resolution: int | None = None  # side in pixels; None = as published
    zca: bool = False  # ZCA-whitened images instead of normalised ones
    noise: str = "none"
    rate: float = 0.0
    arm: str = "tad"
    method: str = "mtt"
    ipc: int = 10  # synthetic images per class
    seed: int = 0
    preset: str = "smoke"
    loops: str = "shared"  # where the dual loop runs: "shared" auditor, or "per-expert"
    width: int = 128
    depth: int = 3
    norm: str = "instance"
    evaluate_network: str = "convnet"  # what is trained on the distilled set
    device: str = "auto"
    threads: int = 1  # CPU threads; small networks are faster on one
    out: str = "runs"
    divert: diversion.DiversionConfig = field(default_factory=diversion.DiversionConfig)
    expert: experts.ExpertConfig = field(default_factory=experts.ExpertConfig)
    mtt: MttConfig = field(default_factory=MttConfig)
    tesla: TeslaConfig = field(default_factory=TeslaConfig)
    ftd: FtdConfig = field(default_factory=FtdConfig)
    datm: DatmConfig = field(default_factory=DatmConfig)
    dsa: DsaConfig = field(default_factory=DsaConfig)
    dm: DmConfig = field(default_factory=DmConfig)
    random: RandomConfig = field(default_factory=RandomConfig)
    evaluate: Protocol = field(default_factory=Protocol)

    def __post_init__(self):
        known("data set", self.dataset, DATASETS)
        known("arm", self.arm, arms.ARMS)
        known("method", self.method, METHODS)
        known("preset", self.preset, presets.PRESETS)
        known("loops", self.loops, ("shared", "per-expert"))
        noise.check(self.noise, self.rate, self.dataset)
        require(self.ipc >= 1, f"ipc must be at least 1, got {self.ipc}")
        require(self.threads >= 1, f"threads must be at least 1, got {self.threads}")
        for section in (f.name for f in fields(self) if _nested(f)):
            for name, value in vars(getattr(self, section)).items():
                _check_range(f"{section}_{name}", name, value)
        known("network", self.evaluate_network, NETWORKS)
        m = self.method
        if METHODS[m].needs_experts:
            last = self.method_config.last_epoch
            require(
                last <= self.expert.epochs,
                f"experts must be trained for {m}_max_start - 1 + {m}_expert_epochs = {last} epochs or more, "
                f"got expert_epochs {self.expert.epochs}",
            )
            if self.loops == "per-expert" and self.arm == "tad":
                name = next((name for name in ("rho", "compile", "bfloat16") if getattr(self.expert, name)), None)
                require(name is None, f"expert_{name} is not for experts that carry a dual loop (loops 'per-expert')")
        else:
            require(self.loops == "shared", f"loops {self.loops!r} needs experts, which method {m} does not have")
        if self.device not in ("auto", "cpu"):
            try:
                torch.empty(0, device=self.device)
            except (RuntimeError, AssertionError) as error:
                raise InputError(f"device {self.device!r} cannot be used: {str(error).splitlines()[0]}") from error

    @staticmethod
    def from_params(**params: Any) -> "Config":
        """A configuration from flat JSON scalars, the preset filled in.

        Raises:
            InputError: on an unknown or misspelt name (with the nearest known one), a value that is out of range, or
                a setting of a method that is not the one chosen.
        """
        for name in params:
            known_param(name)
        given = {name: converted(name, value) for name, value in params.items()}
        chosen: dict[str, Any] = {f.name: f.default for f in fields(Config) if not _nested(f)} | given
        known("data set", chosen["dataset"], DATASETS)
        known("method", chosen["method"], METHODS)
        for name in given:
            owner = name.partition("_")[0]
            require(
                owner not in METHODS or owner == chosen["method"],
                f"{name} is a setting of method {owner}; the method chosen is {chosen['method']}",
            )
        values = presets.settings(chosen["preset"], chosen["dataset"], chosen["ipc"], chosen["method"]) | given
        nested = {
            f.name: _section(f.name)(**{g: values.pop(k) for k, g in _flat_names(f.name).items() if k in values})
            for f in fields(Config)
            if _nested(f)
        }
        return Config(**(values | nested))  # type: ignore[arg-type]

    def to_params(self) -> dict[str, Any]:
        """The inverse of :meth:`from_params`: flat JSON scalars, every one explicit, without those of other methods."""
        flat = {f.name: getattr(self, f.name) for f in fields(Config) if not _nested(f)}
        for f in fields(Config):
            if _nested(f) and (f.name == self.method or f.name not in METHODS):
                flat |= {f"{f.name}_{k}": v for k, v in asdict(getattr(self, f.name)).items()}
        return flat

    def with_params(self, **params: Any) -> "Config":
        """A copy with some flat parameters changed; the preset is not applied again."""
        return Config.from_params(**{**self.to_params(), **params})

    @property
    def method_config(self) -> Any:
        """The settings of the method chosen."""
        return getattr(self, self.method)

    @property
    def torch_device(self) -> torch.device:
        """The device that ``auto`` stands for."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)


def _check_range(full: str, name: str, value: Any) -> None:
    """Bounds of what several stages have in common; each section checks what is its own."""
    if name == "augmentation":
        augment.operations(value)  # raises on an unknown one
    elif name == "batch":
        require(value >= 1, f"{full} must be at least 1, got {value}")
    elif name == "lr":
        require(value is None or value > 0, f"{full} must be positive, got {value}")
    elif name == "momentum":
        require(0 <= value < 1, f"{full} must be in [0, 1), got {value}")
    elif name in ("weight_decay", "draw_power", "delta", "consistency", "confidence_penalty", "recalibrate_every"):
        require(value >= 0, f"{full} must not be negative, got {value}")


def _nested(f) -> bool:
    return is_dataclass(f.type) if isinstance(f.type, type) else False


def _section(name: str) -> type:
    return next(f.type for f in fields(Config) if f.name == name)  # type: ignore[return-value]


@lru_cache
def _flat_names(name: str) -> dict[str, str]:
    return {f"{name}_{f.name}": f.name for f in fields(_section(name))}


@lru_cache
def param_types() -> dict[str, Any]:
    """Name and type of every flat parameter."""
    types: dict[str, Any] = {}
    for f in fields(Config):
        if _nested(f):
            types |= {f"{f.name}_{g.name}": g.type for g in fields(f.type)}  # type: ignore[arg-type]
        else:
            types[f.name] = f.type
    return types


def known_param(name: str) -> None:
    """InputError, with the nearest known name, unless a parameter is called ``name``."""
    names = param_types()
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        raise InputError(f"unknown parameter {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def converted(name: str, value: Any) -> Any:
    """``value`` as the type of parameter ``name``; whole floats pass for integers, nothing else is guessed."""
    kind = param_types()[name]
    optional = kind not in (int, float, str, bool)
    base = next(t for t in (bool, int, float, str) if t is kind or (optional and t in kind.__args__))
    if value is None and optional:
        return None
    if base is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if base is int and isinstance(value, float) and value.is_integer():
        return int(value)
    fits = isinstance(value, base) and not (base is int and isinstance(value, bool))
    require(fits, f"{name} must be {base.__name__}{' or null' if optional else ''}, got {value!r}")
    require(base is not float or math.isfinite(value), f"{name} must be finite, got {value!r}")
    return value
