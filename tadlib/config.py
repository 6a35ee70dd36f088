"""Settings: a small dataclass for each part of a run, and the configuration of a whole run with the preset filled in.

Every field has its meaning under it and its bounds beside its default; they hold from Python as from the command line.
Importing this module does not import torch.
"""

import ast
import difflib
import math
import operator
import shlex
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from tadlib import presets
from tadlib.errors import InputError, known, require, usable

if TYPE_CHECKING:
    import torch

BOUNDS = {"least": operator.ge, "above": operator.gt, "most": operator.le, "below": operator.lt}


def setting(default: Any, **bounds: Any) -> Any:
    """A field with its bounds: ``least`` and ``most`` belong to the range, ``above`` and ``below`` do not; ``of`` lists
    the values that a string may have."""
    return field(default=default, metadata=bounds)


def _expected(bounds: Mapping[str, Any]) -> str:
    low, high = bounds.get("least", bounds.get("above")), bounds.get("most", bounds.get("below"))
    if high is not None:
        return f"be in {'[' if 'least' in bounds else '('}{low}, {high}{']' if 'most' in bounds else ')'}"
    if low == 0:
        return "be positive" if "above" in bounds else "not be negative"
    return f"be {'at least' if 'least' in bounds else 'above'} {low}"


@dataclass(frozen=True)
class Settings:
    """Base of the dataclasses below: a value outside its field's bounds raises InputError when the object is made.

    The head of a subclass may change defaults: ``class TeslaConfig(MttConfig, iterations=10000)``. Meaning, type and
    bounds stay those of the base.
    """

    def __init_subclass__(cls, **defaults: Any) -> None:
        for name, default in defaults.items():
            inherited = cls.__dataclass_fields__[name]
            cls.__annotations__[name] = inherited.type
            setattr(cls, name, field(default=default, metadata=inherited.metadata))

    def __post_init__(self) -> None:
        for f in fields(self):
            value, bounds = getattr(self, f.name), f.metadata
            if "of" in bounds:
                known(f.name, value, bounds["of"])
            elif f.name == "augmentation":
                from tadlib.nn import augment

                augment.operations(value)  # raises on an unknown one
            elif bounds and not (value is None and f.type not in (int, float)):
                fraction = f.type is int and isinstance(value, float) and math.isfinite(value)
                require(not fraction, f"{f.name} must be a whole number, got {value!r}")
                number = isinstance(value, int if f.type is int else int | float) and not isinstance(value, bool)
                inside = number and all(BOUNDS[name](value, bound) for name, bound in bounds.items())
                require(inside and math.isfinite(value), f"{f.name} must {_expected(bounds)}, got {value!r}")


@dataclass(frozen=True)
class Training(Settings):
    """What networks have in common that are trained by SGD, with the defaults of evaluation."""

    momentum: float = setting(0.9, least=0, below=1)
    """Momentum of SGD."""
    weight_decay: float = setting(5e-4, least=0)
    """Weight decay of SGD."""
    batch: int = setting(256, least=1)
    """Images in a training step."""
    augmentation: str = "color_crop_cutout_flip_scale_rotate"
    """Augmentation of training images, a DSA strategy: operations joined by underscores, or none. The default is the
    published strategy of DSA."""


SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": lambda epoch, epochs: 1.0,
    "half": lambda epoch, epochs: 0.1 if epoch > (epochs - 1) // 2 + 1 else 1.0,
    "steps": lambda epoch, epochs: 0.2 ** ((epoch >= 2 * epochs // 3) + (epoch >= 5 * epochs // 6)),
    "fifths": lambda epoch, epochs: 0.5 ** sum(epoch >= i * epochs // 5 for i in range(1, 5)),
    "cosine": lambda epoch, epochs: (1 + math.cos(math.pi * epoch / epochs)) / 2,
    "half-cosine": lambda epoch, epochs: (1 + math.cos(math.pi * epoch / epochs / 2)) / 2,
}
"""Factors of the learning rate in an epoch (from 0) of so many: none; a tenth after half of them (DC, DM, MTT); a fifth
at 2/3 and again at 5/6 (IDC, DANCE); halved after each fifth (NCFM); to zero along a cosine, or to a half (RDED)."""


@dataclass(frozen=True)
class Scheduled(Training):
    """What experts, observers and evaluated networks have in common: a schedule and CutMix."""

    schedule: str = setting("constant", of=tuple(SCHEDULES))
    """Learning rate over the epochs: constant; half (a tenth after half of them, where an evaluated network's momentum
    starts anew); steps (a fifth at 2/3 and again at 5/6); fifths (halved after each fifth); cosine (to zero);
    half-cosine (to a half)."""
    cutmix: float = setting(0.0, least=0, most=1)
    """Probability that a batch is mixed by CutMix; 0: none is."""

    def decay(self, epoch: int) -> float:
        """The learning rate of ``epoch``, from 0, in units of the first one."""
        return SCHEDULES[self.schedule](epoch, self.epochs)  # type: ignore[attr-defined]


# Trust ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AuditorConfig(Training, batch=128, augmentation=presets.GREY):
    """How the auditor is trained: the network whose losses and predictions judge the labels. All trust methods that
    train a network take these settings, so that they are compared at equal cost."""

    epochs: int = setting(20, least=1)
    """E, passes over the training set."""
    warmup: int = setting(5, least=1)
    """Epochs before labels are judged for the first time, at most ``epochs``; a preset's is cut to these."""
    lr: float = setting(0.02, above=0)
    """Learning rate of SGD, constant."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.warmup <= self.epochs, f"warmup must be in [1, epochs={self.epochs}], got {self.warmup}")


@dataclass(frozen=True)
class Refining(Settings):
    """What both methods have in common that correct labels."""

    drop: float = setting(0.98, least=0, most=1)
    """A sample with a corrected label is dropped if its loss under that label exceeds this quantile of the losses of
    trusted samples; 1: none is."""


@dataclass(frozen=True)
class TadConfig(Refining):
    """Settings of Trust-Aware Diversion (:mod:`tadlib.trust.tad`); the letters are those of its formulas."""

    mu: float = setting(0.5, least=0, below=1)
    """μ, share of the old value in the average of a loss over epochs; 0 keeps the last epoch's loss alone."""
    class_wise: bool = True
    """One mixture for every class, as the paper has it; otherwise one for all samples."""
    delta: float = setting(0.5, least=0)
    """δ, a class whose components lie closer together than δ(σ₀ + σ₁) is clean."""
    tau_start: float = setting(0.9, least=0, below=1)
    """τ at the first division: a sample is trusted if its w exceeds τ."""
    tau_end: float = setting(0.5, least=0, below=1)
    """τ in the last epoch."""
    minimum: float = setting(0.05, least=0, below=1)
    """Least number of trusted samples of every class, in units of N / K."""
    consistency: float = setting(0.1, least=0)
    """Weight of the consistency loss, reached as many epochs after warm-up as warm-up takes."""
    confidence_penalty: float = setting(0.0, least=0)
    """Weight of the negative entropy in warm-up."""
    criterion: str = setting("both", of=("both", "mahalanobis", "cosine"))
    """What chooses candidates: the Mahalanobis distance, the cosine similarity, or both, which have to agree."""
    alpha: float = setting(0.9, least=0, most=1)
    """α, a candidate is believed if its ρ exceeds the α-quantile of ρ over trusted samples; 1: none is."""


@dataclass(frozen=True)
class PosteriorConfig(Refining):
    """Settings of the trust posterior (:mod:`tadlib.trust.posterior`)."""

    filters: int = setting(128, least=2)
    """Most filters of the regression on patches."""
    ema: float = setting(0.99, least=0, below=1)
    """Decay, per step, of the average of the auditor's parameters, which predicts at the end; 0: the last ones do."""
    predictors: str = "network patches"
    """What predicts the true class, separated by spaces: network (the auditor; without it nothing is trained), patches
    (ridge regression on patches), embeddings:FILE (a table N x D: .npy, .safetensors, .parquet), embeddings:NAME of a
    pretrained network (torchvision:resnet18, timm:NAME, efficientnet-lite0), probabilities:FILE (N x K)."""
    mirror: bool = True
    """Average the last predictions over an image and its mirror image, where the augmentation flips images."""
    holdout: float = setting(0.1, least=0, below=1)
    """Share of the labels that no predictor is trained on: they determine the weights of the predictors."""
    threshold: float = setting(0.3, least=0, below=1)
    """A sample is trusted if its noisy label is the most probable one and its trust exceeds this."""
    cost: float = setting(2.0, above=0)
    """What a missed wrong label costs, in needless checks: a label is flagged if it is wrong with more than the
    probability 1 / (1 + cost)."""
    error: float = setting(0.39, least=0, most=1)
    """Largest probability of error of a pseudo-label that is used."""
    purity: float = setting(0.93, least=0, most=1)
    """Share of hard training labels, by weight, that should be right."""
    soft_weight: float = setting(0.5, least=0, most=1)
    """Weight of the posterior as a soft label, for what remains of a sample besides its hard label."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = self.names
        for name in names:
            kind, _, rest = name.partition(":")
            fits = name in ("network", "patches") or (kind in ("embeddings", "probabilities") and rest)
            expected = "network, patches, embeddings:FILE, embeddings:NAME or probabilities:FILE"
            require(bool(fits), f"predictors must be {expected}, got {name!r}")
            if kind == "embeddings" and not _is_file(rest):
                library, _, model = rest.partition(":")
                known_name = rest == "efficientnet-lite0" or (library in ("torchvision", "timm") and model)
                expected = f"a file {', '.join(TABLES)}, torchvision:NAME, timm:NAME or efficientnet-lite0"
                require(bool(known_name), f"embeddings must be {expected}, got {rest!r}")
        others = any(name != "network" for name in names)
        require(others, f"predictors must name one besides the network, got {self.predictors!r}")

    @property
    def names(self) -> list[str]:
        """The predictors; one with spaces in its path stands in quotes."""
        return split(self.predictors)

    @property
    def pretrained(self) -> list[str]:
        """Names of the pretrained networks whose embeddings are asked for."""
        rests = (name.partition(":")[2] for name in self.names if name.startswith("embeddings:"))
        return [rest for rest in rests if not _is_file(rest)]

    def files(self, kind: str) -> list[str]:
        """Paths of the tables of a kind, embeddings or probabilities."""
        rests = (name.partition(":")[2] for name in self.names if name.startswith(f"{kind}:"))
        return [rest for rest in rests if _is_file(rest)]


TABLES = (".npy", ".safetensors", ".parquet")


def split(predictors: str) -> list[str]:
    """The names of predictors in a text, of which those with spaces stand in quotes."""
    try:
        return shlex.split(predictors)
    except ValueError as error:
        raise InputError(f"predictors cannot be read: {error} in {predictors!r}") from error


def _is_file(text: str) -> bool:
    return text.lower().endswith(TABLES)


# Experts -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExpertConfig(Scheduled, momentum=0.0, weight_decay=0.0):
    """How experts are trained. Defaults are those of MTT's code. DANCE and NCFM read initial and final networks."""

    count: int = setting(100, least=1)
    """Number of experts."""
    epochs: int = setting(50, least=1)
    """Epochs of an expert."""
    lr: float = setting(0.01, above=0)
    """Learning rate of SGD at the start."""
    rho: float = setting(0.0, least=0)
    """Radius of GSAM's ascent step (FTD, DATM: .01); 0 is plain SGD."""
    alpha: float = 0.3
    """GSAM's weight of the gradient's part at right angles to that after the ascent step (FTD, DATM)."""
    compile: bool = False
    """Compile the training step: worthwhile for wide networks and many epochs."""
    bfloat16: bool = False
    """Multiply in bfloat16: faster where the processor supports it (AVX-512 BF16, AMX, GPUs)."""
    half: bool = False
    """Store trajectories in half precision."""


# Observers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ObserverConfig(Scheduled, weight_decay=0.01, batch=128, schedule="cosine"):
    """How the observer of RDED and CIM is trained, a network with batch norm, by AdamW (``momentum`` is its β₁). All
    but optimiser and weight decay is our choice: the authors load trained networks."""

    network: str = setting("convnet", of=("convnet", "resnet18", "vgg11"))
    """Architecture; width and depth of a ConvNet are those of the run."""
    labels: str = setting("arm", of=("arm", "vanilla", "oracle"))
    """Labels it is trained on: those of the run's arm, the noisy ones, or the true ones."""
    epochs: int = setting(30, least=1)
    """Passes over the training set."""
    lr: float = setting(0.001, above=0)
    """Learning rate at the start."""


# Distillation --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawing(Settings):
    """What the settings of all methods have in common: each draws real images, to start from or to match."""

    needs_experts: ClassVar[bool] = False
    needs_observer: ClassVar[bool] = False

    draw_power: float = setting(8.0, least=0)
    """An image of a class is drawn with a chance in proportion to (weight · probability of its label) to this power
    (our choice): images that are copied or matched should be typical. It has no effect where weights are 0 or 1 and
    labels are hard."""

    def mosaic(self, side: int) -> int:
        """Patches along the side of an image of ``side`` pixels that networks see as a whole (RDED's mosaics); those of
        a ``formation`` they see enlarged, one by one."""
        return 1


@dataclass(frozen=True)
class Learning(Drawing):
    """What the methods have in common that learn images, by SGD with momentum."""

    iterations: int = setting(5000, least=1)
    """Updates of the synthetic images; of DM each with a fresh network. Of DSA: fresh networks."""
    lr_img: float = setting(1.0, above=0)
    """Learning rate of the images."""
    momentum: float = setting(0.5, least=0, below=1)
    """Momentum of the images and of the student's learning rate."""
    augmentation: str = Training.augmentation
    """Augmentation of synthetic images, and of real ones that are matched: a DSA strategy."""
    formation: int = setting(1, least=1)
    """f of multi-formation (IDC): every stored image holds f x f smaller ones, which are enlarged to full size before
    they are augmented, matched or trained on. It must divide the side of the images; 1: images are used as they are."""


@dataclass(frozen=True)
class MttConfig(Learning, lr_img=100.0):
    """Settings of MTT; names follow its paper, defaults its code."""

    needs_experts: ClassVar[bool] = True

    syn_steps: int = setting(30, least=1)
    """N, steps of a student."""
    expert_epochs: int = setting(2, least=1)
    """M, epochs of the expert that the student's steps are compared with."""
    max_start: int = setting(20, least=1)
    """Start epochs are drawn from [0, max_start)."""
    lr_lr: float = setting(1e-5, above=0)
    """Learning rate of the student's learning rate."""
    lr_teacher: float = setting(0.01, above=0)
    """The student's learning rate at the start."""
    batch_syn: int = setting(0, least=0)
    """Synthetic images in a step of the student; 0: all of them."""
    gradient: str = setting("exact", of=("exact", "tesla", "unrolled"))
    """The meta-gradient: exact in constant memory, TESLA's approximation, or by unrolling."""
    compile: bool = False
    """Compile the meta-gradient: worthwhile for many iterations of wide networks."""

    @property
    def last_epoch(self) -> int:
        """The last epoch of an expert that is read."""
        return self.max_start - 1 + self.expert_epochs


@dataclass(frozen=True)
class TeslaConfig(MttConfig, iterations=10000, gradient="tesla"):
    """Settings of TESLA: those of MTT, with the defaults of TESLA's code."""


@dataclass(frozen=True)
class FtdConfig(MttConfig):
    """Settings of FTD: those of MTT and the decay of the average of the images."""

    ema: float = setting(0.999, least=0, below=1)
    """Decay of the average of the images, per iteration."""


@dataclass(frozen=True)
class DatmConfig(MttConfig, iterations=10000, syn_steps=80):
    """Settings of DATM: those of MTT and its own; names follow its code.

    Start epochs are drawn from [min_start, u), where u grows from ``max_start_initial`` to ``max_start``.
    """

    min_start: int = setting(0, least=0)
    """The first start epoch."""
    max_start_initial: int = setting(10, least=1)
    """The upper end of start epochs in the first iteration."""
    expansion_end: int = setting(1000, least=0)
    """Iterations until the upper end is ``max_start``; 0: it is so from the beginning."""
    lr_y: float = setting(2.0, above=0)
    """Learning rate of the labels."""
    momentum_y: float = setting(0.9, least=0, below=1)
    """Momentum of the labels."""
    threshold: float = setting(1.0, above=0)
    """An iteration whose matching loss exceeds this changes nothing."""
    init: str = setting("correct", of=("correct", "real"))
    """Images to start from: those that the experts classify correctly, or any."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.min_start < self.max_start_initial <= self.max_start,
            "min_start, max_start_initial and max_start must satisfy 0 <= min_start < max_start_initial <= max_start, "
            f"got {self.min_start}, {self.max_start_initial}, {self.max_start}",
        )


@dataclass(frozen=True)
class DmConfig(Learning, iterations=20000):
    """Settings of DM; defaults are those of its code."""

    batch_real: int = setting(256, least=1)
    """Real images of a class in an update."""
    lr_net: float = setting(0.01, above=0)
    """Learning rate of networks that are trained on the result; of DSA also that of the inner training."""


@dataclass(frozen=True)
class DsaConfig(DmConfig, iterations=1000, lr_img=0.1):
    """Settings of DSA: those of DM and its own; defaults are those of its code for 10 images per class."""

    outer_steps: int = setting(10, least=1)
    """Updates of the synthetic images along the training of one network."""
    inner_epochs: int = setting(50, least=0)
    """Epochs on the synthetic set between two updates."""
    batch_train: int = setting(256, least=1)
    """Synthetic images in a step of the inner training."""


@dataclass(frozen=True)
class DanceConfig(
    DmConfig, iterations=10000, lr_img=1.6, batch_real=128, augmentation="color_crop_cutout", formation=2
):
    """Settings of DANCE; defaults are those of its code for 10 images per class (``lr_img``: presets.toml)."""

    needs_experts: ClassVar[bool] = True

    final_epoch: int = setting(60, least=1)
    """The epoch of an expert whose parameters are θ_final."""
    calibration: float = setting(1.0, least=0)
    """Weight of the cross entropy of the synthetic images under θ_final, on which each iteration takes a second step;
    0: it takes none."""
    weighted: bool = True
    """Weigh real images by trust in the statistics that are matched (our choice); otherwise they count alike."""

    @property
    def last_epoch(self) -> int:
        """The last epoch of an expert that is read."""
        return self.final_epoch


@dataclass(frozen=True)
class NcfmConfig(DanceConfig, iterations=20000, lr_img=0.004, momentum=0.9, batch_real=1024, lr_net=0.001):
    """Settings of NCFM: those of DANCE and its own, with the defaults of its code. Images are learned by AdamW, whose
    β₁ is ``momentum``."""

    frequencies: int = setting(4096, least=1)
    """Random frequencies t at which the characteristic functions are compared, drawn anew for each class."""
    weight_decay: float = setting(5e-4, least=0)
    """Weight decay of the images."""
    sampling: bool = False
    """Draw frequencies by ψ, a network that learns to tell real from synthetic features; otherwise from N(0, I)."""
    lr_sampling: float = setting(0.001, above=0)
    """Learning rate of ψ."""

    def __post_init__(self) -> None:
        super().__post_init__()
        enough = not self.sampling or self.frequencies >= 2
        require(enough, f"frequencies must be at least 2 where ψ samples them (sampling), got {self.frequencies}")


@dataclass(frozen=True)
class RandomConfig(Drawing):
    """Settings of the baseline of random real images."""

    iterations: ClassVar[int] = 0
    formation: ClassVar[int] = 1

    lr_net: float = setting(0.01, above=0)
    """Learning rate of networks that are trained on the images (DC's evaluation)."""


@dataclass(frozen=True)
class Selecting(Drawing):
    """What the methods have in common that select images by an observer."""

    needs_observer: ClassVar[bool] = True
    iterations: ClassVar[None] = None  # one for each class

    candidates: int = setting(0, least=0)
    """Real images of a class that are looked at; 0: all."""
    lr_net: float = setting(0.001, above=0)
    """Learning rate of students."""


@dataclass(frozen=True)
class RdedConfig(Selecting, candidates=300):
    """Settings of RDED; defaults are those of its code."""

    formation: ClassVar[int] = 1

    factor: int = setting(0, least=0)
    """f, an image of the set is a mosaic of f x f patches, which networks see as it is; 0: 2 from 128 pixels on, else
    1."""
    crops: int = setting(5, least=1)
    """Random crops of each candidate."""

    def mosaic(self, side: int) -> int:
        return self.factor or (2 if side >= 128 else 1)


@dataclass(frozen=True)
class CimConfig(Selecting):
    """Settings of CIM."""

    formation: int = setting(2, least=1)
    """f, as of the methods that learn images: a stored image holds f x f patches, which networks see enlarged."""
    steps: int = setting(200, least=0)
    """Steps of AdamW on the residual of a mosaic."""
    lr_img: float = setting(0.01, above=0)
    """Learning rate of the residual."""
    layer: float = setting(0.5, above=0, most=1)
    """The inner layer, as a share of the observer's layers before its head (our choice)."""
    augmentation: str = Training.augmentation
    """Augmentation of patches and anchors alike: a DSA strategy (our choice)."""


METHODS: dict[str, type[Drawing]] = {
    **{"mtt": MttConfig, "tesla": TeslaConfig, "ftd": FtdConfig, "datm": DatmConfig},
    **{"dsa": DsaConfig, "dm": DmConfig, "dance": DanceConfig, "ncfm": NcfmConfig, "random": RandomConfig},
    **{"rded": RdedConfig, "cim": CimConfig},
}
"""Settings of each distillation method by its name; ``tadlib.distill.METHODS`` has the functions."""


# Evaluation ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Protocol(Scheduled, schedule="half"):
    """How networks are trained for evaluation. Defaults: MTT's (and FTD's, TESLA's), five networks.

    ``tadlib.evaluate.PROTOCOLS`` holds the published protocols.
    """

    networks: int = setting(5, least=1)
    """Networks trained on one distilled set."""
    epochs: int = setting(1001, least=2)
    """Epochs of each."""
    lr: float | None = setting(None, above=0)
    """Learning rate at the start; None: the synthetic set's own."""
    optimiser: str = setting("sgd", of=("sgd", "adamw"))
    """Optimiser: sgd, or adamw, of which ``momentum`` is β₁."""
    compile: bool = False
    """Compile the training step on a CPU: worthwhile for many epochs of wide networks."""
    controls: bool = False
    """Evaluate two controls as well, which triples the time at most: the set with its own hard labels only, and random
    real images with the labels, the teacher if there is one, and the recipe of the set."""
    recipe: str = setting("dsa", of=("dsa", "rded", "cim"))
    """How networks learn: dsa, or as RDED's and CIM's students do (:mod:`tadlib.students`): with batch norm, by AdamW,
    on crops. The two differ in the loss against a teacher."""
    teacher: bool = False
    """Soft labels that the observer gives to every batch instead of the labels of the set; recipes rded and cim."""
    temperature: float = setting(20.0, above=0)
    """Temperature of both softmaxes in the loss of recipe rded against the teacher."""

    def __post_init__(self) -> None:
        super().__post_init__()
        students = self.recipe != "dsa"
        require(students or not self.teacher, f"teacher is for recipes rded and cim, got recipe {self.recipe!r}")
        fits = not students or self.optimiser == "adamw"
        require(fits, f"optimiser must be adamw for recipe {self.recipe}, got {self.optimiser!r}")


# As in the authors' codes, which report the best evaluation on the test set, where ours reports the last epoch. Those
# of MTT, DATM and DM count epochs from 0 to 1000 inclusive. DC, DSA and DM share one protocol (20 networks for each of
# 5 sets). NCFM's configurations differ in batch size, weight decay and epochs; these are those of most of them.
PUBLISHED: dict[str, dict[str, Any]] = {
    "mtt": {"networks": 5, "epochs": 1001, "batch": 256},
    "datm": {"networks": 5, "epochs": 1001, "batch": 128},
    "dm": {"networks": 20, "epochs": 1001, "batch": 256, "lr": 0.01},
}
"""Settings of the published protocols; ``tadlib.evaluate.PROTOCOLS`` has the protocols."""
_MIXED = {"networks": 5, "cutmix": 0.5, "augmentation": "color_crop_flip_scale_rotate"}
PUBLISHED["dance"] = _MIXED | {"epochs": 1500, "batch": 64, "lr": 0.01, "schedule": "steps"}
PUBLISHED["ncfm"] = _MIXED | {"epochs": 2000, "batch": 128, "lr": 0.001, "optimiser": "adamw", "schedule": "fifths"}
# RDED's code, for ten images per class (10 in a batch for one, 100 for fifty) and less than 100 classes; the number of
# networks is ours, as is all of CIM but its epochs and loss
_STUDENTS = {"networks": 3, "batch": 50, "lr": 0.001, "weight_decay": 0.01, "optimiser": "adamw"}
_STUDENTS |= {"teacher": True, "schedule": "half-cosine", "cutmix": 1.0}
PUBLISHED["rded"] = _STUDENTS | {"recipe": "rded", "epochs": 300}
PUBLISHED["cim"] = _STUDENTS | {"recipe": "cim", "epochs": 1000}

# A whole run ---------------------------------------------------------------------------------------------------------

ARMS = ("vanilla", "loss-filter", "co-teaching", "confident-learning", "gce", "tad", "tad-posterior", "oracle")
"""What the labels go through before distillation (:mod:`tadlib.trust`)."""
OWN_LOOPS = ("tad", "tad-posterior")
"""Arms that experts can carry themselves (``loops`` per-expert)."""
OLD_ARMS = {"clean-then-distill": "loss-filter"}
OLD_NAMES = {
    **{f"divert_{f.name}": f"auditor_{f.name}" for f in fields(AuditorConfig)},
    **{"divert_average": "posterior_ema", "divert_patches_filters": "posterior_filters"},
    "divert_rest": "posterior_soft_weight",
    **{f"divert_{name}": f"posterior_{name}" for name in ("mirror", "holdout", "error", "drop", "purity")},
}
"""Names of settings before they had a dataclass for each method, and what they are called now."""
MACHINE = ("root", "out", "download", "device", "threads")
"""Settings that say where a run takes place, not what it is."""


@dataclass(frozen=True)
class Essentials:
    """The settings of a run that have options of their own; the texts are those of ``tad run --help``."""

    dataset: str = "digits"
    """Data set: digits, fashion-mnist, cifar10, cifar100, cifar100-coarse (its 20 superclasses) or tiny-imagenet; or
    your own images: folder:PATH (a subfolder for each class; PATH/train and PATH/test where both are there), or
    table:FILE (.csv or .parquet with columns path, label and, if there are any, true_label and split)."""
    root: str | None = None
    """Folder of the data set's files (torchvision's layout) and of human labels; digits needs none."""
    download: bool = False
    """Fetch missing files of the data set into --root."""
    n_train: int | None = None
    """Training images, a class-balanced subset; default: the preset's, else all."""
    n_test: int | None = None
    """Test images; default: the preset's, else all. Of own images all; without a test split so many training images
    are held out, by default a fifth."""
    resolution: int | None = None
    """Side of the images, in pixels; default: the preset's, else as published or, of own images, chosen from them."""
    noise: str = "none"
    """Label noise: none, symmetric, symmetric:included, asymmetric, pairflip, superclass, instance,
    human:NAME (CIFAR-N: worse, aggre, random1, random2, random3; fine, coarse), or
    file:PATH (one label an image: .safetensors, .npy, .csv or .parquet; a column index or path says of which)."""
    rate: float = 0.0
    """Fraction of labels (of every class that the noise touches) that are flipped, in [0, 1)."""
    corrections: str | None = None
    """File of labels that a person checked, .csv or .parquet with columns path or index, and label or checked (names of
    classes): they replace noisy labels, and arm tad-posterior takes them as certain."""
    arm: str = setting("tad", of=ARMS)
    """What the labels go through: vanilla, loss-filter, co-teaching, confident-learning, gce, tad, tad-posterior,
    oracle; as an option one or several, by default tad or, with --predictors, tad-posterior."""
    method: str = setting("mtt", of=tuple(METHODS))
    """Distillation method: mtt, tesla, ftd, datm (trajectories), dsa (gradients), dm, dance, ncfm (distributions),
    rded, cim (selected images), or random."""
    ipc: int = setting(10, least=1)
    """Synthetic images per class."""
    seed: int = 0
    """Seed of all randomness, noise included; as an option one or several."""
    preset: str = setting("smoke", of=presets.PRESETS)
    """Scale: smoke (seconds; to try commands out), lite (minutes on two cores; a part of the data, small images),
    native (an hour or more; all images at their own size), paper (published hyper-parameters)."""
    loops: str = setting("shared", of=("shared", "per-expert"))
    """Where labels are judged: shared (by one auditor, before all experts) or per-expert (by every expert itself)."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, cuda:1, ..."""
    threads: int = setting(1, least=1)
    """CPU threads; small networks are fastest on one."""
    out: str = "runs"
    """Output folder: a new or empty one, or one that tad made. Finished stages in it are not computed again."""


@dataclass(frozen=True)
class Config(Essentials, Settings):
    """Everything that defines a run. Build it with :meth:`from_params`, which fills in the preset.

    The nested settings have flat names: ``auditor_*``, ``tad_*``, ``posterior_*``, ``expert_*``, ``evaluate_*`` and,
    for the method chosen, its name: ``mtt_*``, ``dm_*`` and so on.
    """

    zca: bool = False
    """ZCA-whitened images instead of normalised ones."""
    width: int = setting(128, least=1, most=2**16)
    """Channels of the ConvNet."""
    depth: int = setting(3, least=1, most=16)
    """Blocks of the ConvNet."""
    norm: str = "instance"
    """Normalisation layer of the ConvNet."""
    evaluate_network: str = "convnet"
    """Network that is trained on the distilled set."""
    evaluate_protocol: str | None = None
    """A published protocol that replaces what the preset says of evaluation: mtt, datm, dm, dance, ncfm, rded or cim;
    other settings evaluate_* that are given change it. Grey images, and your own, keep the augmentation that suits
    them."""
    auditor: AuditorConfig = field(default_factory=AuditorConfig)
    tad: TadConfig = field(default_factory=TadConfig)
    posterior: PosteriorConfig = field(default_factory=PosteriorConfig)
    expert: ExpertConfig = field(default_factory=ExpertConfig)
    mtt: MttConfig = field(default_factory=MttConfig)
    tesla: TeslaConfig = field(default_factory=TeslaConfig)
    ftd: FtdConfig = field(default_factory=FtdConfig)
    datm: DatmConfig = field(default_factory=DatmConfig)
    dsa: DsaConfig = field(default_factory=DsaConfig)
    dm: DmConfig = field(default_factory=DmConfig)
    dance: DanceConfig = field(default_factory=DanceConfig)
    ncfm: NcfmConfig = field(default_factory=NcfmConfig)
    random: RandomConfig = field(default_factory=RandomConfig)
    rded: RdedConfig = field(default_factory=RdedConfig)
    cim: CimConfig = field(default_factory=CimConfig)
    observer: ObserverConfig = field(default_factory=ObserverConfig)
    evaluate: Protocol = field(default_factory=Protocol)

    def __post_init__(self) -> None:
        from tadlib import noise
        from tadlib.data import require_known
        from tadlib.nn.networks import NETWORKS, NORMS

        super().__post_init__()
        for place in ("root", "out"):
            if getattr(self, place) is not None:
                object.__setattr__(self, place, str(usable(getattr(self, place))))
        require_known(self.dataset)
        known("network", self.evaluate_network, NETWORKS)
        known("norm", self.norm, [norm for norm in NORMS if norm != "batch"])  # of observers and their students only
        noise.check(self.noise, self.rate, self.dataset)
        told = self.arm != "oracle" or self.observer.labels != "vanilla"
        require(told, "observer_labels vanilla is not for arm oracle, which sees no noisy label")
        m, epochs = self.method, self.expert.epochs
        if METHODS[m].needs_experts:
            last = self.method_config.last_epoch
            read = f"{m}_final_epoch" if m in ("dance", "ncfm") else f"{m}_max_start - 1 + {m}_expert_epochs"
            needed = f"{read} = {last} epochs or more"
            require(last <= epochs, f"experts must be trained for {needed}, got expert_epochs {epochs}")
            if self.own_loops:
                plain = ("rho", "compile", "bfloat16", "schedule", "cutmix")
                name = next((name for name in plain if getattr(self.expert, name) != getattr(ExpertConfig, name)), None)
                require(name is None, f"expert_{name} is not for experts that judge labels (loops 'per-expert')")
                judges = self.arm != "tad-posterior" or "network" in self.posterior.names
                require(judges, f"loops 'per-expert' needs the predictor network, got {self.posterior.predictors!r}")
        else:
            require(self.loops == "shared", f"loops {self.loops!r} needs experts, which method {m} does not have")
        if self.device not in ("auto", "cpu"):
            from tadlib.checks import require_device

            require_device(self.device)

    @staticmethod
    def from_params(**params: Any) -> "Config":
        """A configuration from flat JSON scalars, the preset filled in.

        Raises:
            InputError: on an unknown or misspelt name (with the nearest known one), a value that is out of range, or
                a setting of a method that is not the one chosen.
        """
        for old in params.keys() & OLD_NAMES.keys():
            new = OLD_NAMES[old]
            require(new not in params, f"{old} is the old name of {new}: give one of them")
            params[new] = params.pop(old)
        for name in params:
            known_param(name)
        given = {name: converted(name, value) for name, value in params.items()}
        if given.get("arm") in OLD_ARMS:
            given["arm"] = OLD_ARMS[given["arm"]]
        chosen: dict[str, Any] = {f.name: f.default for f in fields(Essentials)} | given
        known("method", chosen["method"], METHODS)
        for name in given:
            owner = name.partition("_")[0]
            require(
                owner not in METHODS or owner == chosen["method"],
                f"{name} is a setting of method {owner}; the method chosen is {chosen['method']}",
            )
        protocol = given.get("evaluate_protocol")
        if protocol is not None:
            known("evaluate_protocol", protocol, PUBLISHED)
        published = {} if protocol is None else asdict(Protocol(**PUBLISHED[protocol]))
        recipe = {f"evaluate_{name}": published[name] for name in published if name not in ("compile", "controls")}
        scale = [*(chosen[name] for name in ("preset", "dataset", "ipc", "method", "root")), recipe]
        values = presets.settings(*scale) | given
        if "auditor_warmup" not in given:  # a preset's is not to stand in the way of fewer epochs
            values["auditor_warmup"] = min(values["auditor_warmup"], max(1, values["auditor_epochs"]))
        nested = {name: _section(name, values, given) for name in SECTIONS}
        return Config(**(values | nested))

    @staticmethod
    def from_variables(variables: Mapping[str, Any], fixed: Collection[str] = ()) -> "Config":
        """A configuration from the variables of a notebook up to here (``globals()``): those in lower case that hold a
        scalar are its parameters, also those that papermill added.

        Raises:
            InputError: as :meth:`from_params`, and for a parameter that the notebook has ``fixed``.
        """
        scalars = {name: v for name, v in variables.items() if isinstance(v, str | int | float | None)}
        given = {name: v for name, v in scalars.items() if name.islower() and not name.startswith("_")}
        for name in fixed:
            require(name not in given, f"{name} has no effect in this notebook, which sets it itself")
        return Config.from_params(**given)

    def to_params(self) -> dict[str, Any]:
        """The inverse of :meth:`from_params`: flat JSON scalars, every one explicit, without those of other methods."""
        params = asdict(self)
        nested = {name: params.pop(name) for name in SECTIONS}
        for section, values in nested.items():
            if section == self.method or section not in METHODS:
                params |= {f"{section}_{name}": value for name, value in values.items()}
        return params

    def portable(self) -> dict[str, Any]:
        """:meth:`to_params` without what belongs to this machine, the name of a protocol that other settings spell out,
        and corrections where there are none."""
        unused = (*MACHINE, "evaluate_protocol", *(["corrections"] if self.corrections is None else []))
        return {k: v for k, v in self.to_params().items() if k not in unused}

    def with_params(self, **params: Any) -> "Config":
        """A copy with some flat parameters changed; the preset is not applied again, but to evaluation where the
        protocol changes."""
        return Config.from_params(**changed(self.to_params(), params))

    @property
    def method_config(self) -> Any:
        """The settings of the method chosen."""
        return getattr(self, self.method)

    @property
    def needs_observer(self) -> bool:
        """Whether the method or the evaluation needs an observer."""
        return self.method_config.needs_observer or self.evaluate.teacher

    @property
    def own_loops(self) -> bool:
        """Whether every expert judges the labels itself."""
        return self.loops == "per-expert" and self.arm in OWN_LOOPS

    @property
    def torch_device(self) -> "torch.device":
        """The device that ``auto`` stands for."""
        import torch

        best = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(best if self.device == "auto" else self.device)


SECTIONS: dict[str, Any] = {f.name: f.type for f in fields(Config) if is_dataclass(f.type)}
"""Classes of the nested settings by the name of their field."""


def stored_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Flat parameters as a file of any version holds them, under their present names; what is gone is left out.

    A file that names settings ``divert_*`` is of a version whose arm ``tad`` was the trust posterior.
    """
    old = any(name.startswith("divert_") for name in params)
    renamed = {OLD_NAMES.get(name, name): value for name, value in params.items()}
    renamed["arm"] = {**OLD_ARMS, **({"tad": "tad-posterior"} if old else {})}.get(params["arm"], params["arm"])
    return {name: value for name, value in renamed.items() if name in param_types()}


def changed(params: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Flat parameters with ``changes``, of which another protocol replaces the settings of the old one."""
    new = changes.get("evaluate_protocol") is not None
    old = {f"evaluate_{f.name}" for f in fields(Protocol)} - {"evaluate_compile", "evaluate_controls"} if new else set()
    return {**{name: value for name, value in params.items() if name not in old}, **changes}


def _section(section: str, values: dict[str, Any], by_user: Collection[str]) -> Any:
    """The nested settings ``section`` from flat ``values``, which lose them; errors give the flat name, and say where
    the value is none ``by_user``."""
    kind = SECTIONS[section]
    names = [f.name for f in fields(kind)]
    given = {name: values.pop(f"{section}_{name}") for name in names if f"{section}_{name}" in values}
    try:
        return kind(**given)
    except InputError as error:
        name = str(error).partition(" ")[0]
        whose = "" if f"{section}_{name}" in by_user else ", the preset's or the default: give it too"
        raise InputError(f"{section}_{error}{whose}" if name in names else str(error)) from None


@lru_cache
def meanings() -> dict[str, str]:
    """What every flat parameter means: the text under its field."""
    texts: dict[tuple[str, str], str] = {}
    for part in ast.parse(Path(__file__).read_text(encoding="utf-8")).body:
        for statement, after in pairwise(getattr(part, "body", [])):
            if isinstance(statement, ast.AnnAssign) and isinstance(after, ast.Expr):
                text = " ".join(ast.literal_eval(after.value).split())
                texts[getattr(part, "name", ""), ast.unparse(statement.target)] = text
    owners = {(f.name, f.name): Config for f in fields(Config) if f.name not in SECTIONS}
    owners |= {(f"{s}_{f.name}", f.name): kind for s, kind in SECTIONS.items() for f in fields(kind)}
    bases = {key: [base.__name__ for base in kind.__mro__] for key, kind in owners.items()}
    return {flat: next(texts[b, name] for b in of if (b, name) in texts) for (flat, name), of in bases.items()}


@lru_cache
def param_types() -> dict[str, Any]:
    """Name and type of every flat parameter."""
    types = {f.name: f.type for f in fields(Config) if f.name not in SECTIONS}
    return types | {f"{section}_{f.name}": f.type for section, kind in SECTIONS.items() for f in fields(kind)}


def known_param(name: str) -> None:
    """InputError, with the nearest known name, unless a parameter is called ``name``."""
    if name not in param_types():
        near = difflib.get_close_matches(name, param_types(), 1)
        raise InputError(f"unknown parameter {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def converted(name: str, value: Any) -> Any:
    """``value`` as the type of parameter ``name``; whole floats pass for integers, nothing else is guessed."""
    kind = param_types()[name]
    base, *optional = get_args(kind) or (kind,)  # of X | None: X and the type of None
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
