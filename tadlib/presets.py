"""Published hyper-parameters and our own small scales, as flat settings that fill in what the user leaves out.

smoke: seconds on one thread. lite: minutes on one thread, small-scale, not comparable with published figures.
paper: the published settings of the method (source beside each value).
"""

from collections.abc import Mapping

from tadlib.errors import known, require

Settings = dict[str, object]

GREY = "crop_scale_rotate"  # digits and garments: no flip, no colour
COLOUR = "color_crop_cutout_flip_scale_rotate"  # DSA's published strategy
WEAK = "crop_flip"

SMOKE: Settings = {
    "width": 16,
    "depth": 2,
    "divert_epochs": 20,
    "divert_warmup": 6,
    "divert_batch": 64,
    "divert_augmentation": GREY,
    "expert_count": 3,
    "expert_epochs": 12,
    "expert_lr": 0.02,
    "expert_batch": 64,
    "expert_augmentation": GREY,
    "mtt_iterations": 80,
    "mtt_syn_steps": 12,
    "mtt_expert_epochs": 1,
    "mtt_max_start": 10,
    "mtt_lr_img": 10.0,
    "mtt_lr_lr": 1e-5,
    "mtt_lr_teacher": 0.02,
    "mtt_batch_syn": 50,
    "mtt_augmentation": GREY,
    "evaluate_networks": 5,
    "evaluate_epochs": 500,
    "evaluate_augmentation": GREY,
}

LITE: Settings = {
    "n_train": 10000,
    "n_test": 2000,
    "resolution": 16,
    "width": 32,
    "depth": 3,
    "divert_epochs": 15,
    "divert_warmup": 5,
    "divert_batch": 128,
    "divert_augmentation": "color_crop_flip_scale_rotate",
    "expert_count": 3,
    "expert_epochs": 10,
    "expert_lr": 0.02,
    "expert_batch": 128,
    "expert_augmentation": COLOUR,
    "mtt_iterations": 120,
    "mtt_syn_steps": 15,
    "mtt_expert_epochs": 1,
    "mtt_max_start": 8,
    "mtt_lr_img": 50.0,
    "mtt_lr_lr": 1e-5,
    "mtt_lr_teacher": 0.02,
    "mtt_batch_syn": 50,
    "mtt_augmentation": COLOUR,
    "evaluate_networks": 3,
    "evaluate_epochs": 200,
    "evaluate_augmentation": COLOUR,
}

# MTT: author-supplied settings (README of its code). N, M, max start, lr img, lr lr, lr teacher, batch syn (0 = all)
MTT: Mapping[tuple[str, int], tuple[int, int, int, float, float, float, int]] = {
    ("cifar10", 1): (50, 2, 2, 100.0, 1e-7, 0.01, 0),
    ("cifar10", 10): (30, 2, 20, 100.0, 1e-5, 0.001, 0),
    ("cifar10", 50): (30, 2, 40, 1000.0, 1e-5, 0.001, 0),
    ("cifar100", 1): (20, 3, 20, 1000.0, 1e-5, 0.01, 0),
    ("cifar100", 10): (20, 2, 20, 1000.0, 1e-5, 0.01, 0),
    ("cifar100", 50): (80, 2, 40, 1000.0, 1e-5, 0.01, 125),
}
MTT_NAMES = ("syn_steps", "expert_epochs", "max_start", "lr_img", "lr_lr", "lr_teacher", "batch_syn")


def _paper(dataset: str, ipc: int) -> Settings:
    require(
        (dataset, ipc) in MTT,
        f"preset paper has published settings for {', '.join(f'{d} ipc {i}' for d, i in MTT)}; got {dataset} ipc {ipc}",
    )
    return {
        "width": 128,
        "depth": 3,
        "divert_epochs": 50,
        "divert_warmup": 10,
        "divert_augmentation": COLOUR,
        "evaluate_epochs": 1000,  # MTT: 1000 epochs and one more
        "mtt_iterations": 5000,
        **{f"mtt_{name}": value for name, value in zip(MTT_NAMES, MTT[dataset, ipc], strict=True)},
    }


def settings(preset: str, dataset: str, ipc: int) -> Settings:
    """Flat settings of ``preset`` (see :class:`tadlib.config.Config`) for a data set and a number of images a class."""
    known("preset", preset, PRESETS)
    if preset == "paper":
        return _paper(dataset, ipc)
    values = dict(SMOKE if preset == "smoke" else LITE)
    if dataset == "digits":
        values |= {k: v for k, v in SMOKE.items() if "augmentation" in k or k in ("width", "depth")}
        values |= dict.fromkeys(("n_train", "n_test", "resolution"))
    elif dataset == "fashion-mnist":
        values |= {k: GREY for k in values if "augmentation" in k}
    elif preset == "smoke":
        values |= {"n_train": 2000, "n_test": 1000, "resolution": 16}
    elif dataset == "tiny-imagenet":
        values |= {"n_test": 1000, "resolution": 32}  # also of a part with 20 of its classes, which has 10000 and 1000
    return values


PRESETS = ("smoke", "lite", "paper")
