"""The distilled set as a file that stands on its own: images, labels, learning rate, and the recipe to train on them.

Legend: S synthetic images, K classes, C H W image.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from tadlib import materials
from tadlib.checks import require_distributions, require_images
from tadlib.config import MACHINE, Config, changed, converted, known_param, stored_params
from tadlib.data import Dataset
from tadlib.distill.synthetic import Synthetic
from tadlib.errors import InputError, require, some, usable
from tadlib.evaluate import evaluate
from tadlib.nn import speed
from tadlib.store import StageFolder, load_metadata, load_tensors, save_tensors

LARGEST = 1e38  # float32 ends a little above
ESSENTIAL = ("dataset", "noise", "rate", "arm", "method", "ipc", "seed", "zca")
"""Settings that the file of a distilled set has to have."""
OF_EVALUATION = ("n_test", "seed", "width", "depth", "norm")
"""Settings, beside ``evaluate_*`` and those of the machine, that the evaluation of a finished set depends on."""


@dataclass(frozen=True)
class Distilled:
    """A distilled set with what is needed to use it.

    ``synthetic`` holds the images as networks take them: normalised by ``mean`` and ``std``, or ZCA-whitened where
    ``params["zca"]`` is true. ``pixels`` (S f², C, H, W) are its decoded images (f: its formation, mostly 1) as pixels,
    not clamped to [0, 1].
    ``params`` are the flat settings of the run, without those of the machine; ``provenance`` says what made the file.
    """

    synthetic: Synthetic
    pixels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    params: dict[str, Any]
    provenance: dict[str, Any]

    def evaluate(self, *, root: str | None = None, device: str = "auto", **params: Any) -> list[float]:
        """Test accuracies of fresh networks under the protocol of the run that made the set.

        ``params`` change flat settings of it; the file stays as it is. InputError for settings that made the set and
        have no meaning any more (``zca``, ``ipc``, ``noise`` ...), and where the labels are a teacher's, which the file
        does not hold; ``evaluate_teacher=False`` trains on the set's own.
        """
        for name in params:
            known_param(name)
            fits = name.startswith("evaluate_") or name in OF_EVALUATION or name in MACHINE
            why = f"which was made with its own; settings that count are evaluate_* and {', '.join(OF_EVALUATION)}"
            require(fits, f"{name} is not for a distilled set, {why}")
        with TemporaryDirectory() as out:  # decoded images of the user's own are kept no longer than this takes
            given = {"root": root, "device": device, "out": out, **params}
            config = Config.from_params(**changed(self.params, given))
            held = "labels of this set come from a teacher, which its file does not hold"
            require(not config.evaluate.teacher, f"{held}: evaluate_teacher=False trains on hard labels")
            speed.prepare(config.threads)
            data, net = materials.dataset(config), materials.evaluated_network(config)
            require(len(data.x_test) > 0, "evaluation needs test images, got n_test 0")
            synthetic = self.synthetic.to(config.torch_device)
            test = data.x_test, data.y_test
            how: dict[str, Any] = {"seed": config.seed, "workers": config.threads}
            how["factor"] = config.method_config.mosaic(data.image_shape[-1])
            return evaluate(net, synthetic, *test, config.evaluate, **how)


def save_distilled(
    path: Path, synthetic: Synthetic, data: Dataset, config: Config, provenance: dict[str, Any] | None = None
) -> None:
    """Write a distilled set as one safetensors file."""
    about: dict[str, Any] = {"mean": data.mean, "std": data.std, "class_names": data.class_names, "lr": synthetic.lr}
    about |= {"formation": synthetic.formation, "params": config.portable(), "provenance": provenance or {}}
    pixels = data.pixels(synthetic.decoded().x, clamp=False)
    tensors = {"x": synthetic.x, "pixels": pixels, "y": synthetic.y}
    save_tensors(path, tensors, {"distilled": json.dumps(about)})


def load_distilled(path: Path | str) -> Distilled:
    """Read a distilled set from its file, or from the folder of a finished stage ``distill``, which is verified.

    Raises InputError where the file is missing, damaged or holds something else.
    """
    path = usable(path)
    path = path / "distilled.safetensors" if path.is_dir() else path
    stage = StageFolder(path.parent)
    if stage.is_complete():
        stage.verify()
    tensors, metadata = load_tensors(path), load_metadata(path)
    holds = "distilled" in metadata and {"x", "pixels", "y"} <= tensors.keys()
    require(holds, f"{path} does not hold a distilled set")
    try:
        about = json.loads(metadata["distilled"])
        synthetic = Synthetic(tensors["x"], tensors["y"], about["lr"], about.get("formation", 1))
        more: dict[str, Any] = {name: tuple(about[name]) for name in ("mean", "std", "class_names")}
        more |= {"params": stored_params(about["params"]), "provenance": dict(about["provenance"])}
        held = Distilled(synthetic, tensors["pixels"], **more)
        _check(held)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:  # InputError among them
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise InputError(f"{path} does not hold a distilled set: {reason}") from error
    return held


def _check(held: Distilled) -> None:
    """InputError where what a file holds does not fit together."""
    x_SCHW, y_SK, lr = held.synthetic.x, held.synthetic.y, held.synthetic.lr
    require_images("images", x_SCHW)
    shape, names = tuple(x_SCHW.shape[1:]), held.class_names
    require_images("pixels", held.pixels, shape)
    whole = len(held.pixels) % len(x_SCHW) == 0  # several where images are stored in parts
    require(whole, f"pixels must be a multiple of {len(x_SCHW)} images, got {len(held.pixels)}")
    f = held.synthetic.formation
    require(type(f) is int and f >= 1 and shape[-1] % f == 0, f"formation must divide {shape[-1]} pixels, got {f!r}")
    require_distributions("labels", y_SK, len(names), len(x_SCHW))
    for what, values in (("mean", held.mean), ("std", held.std), ("learning rate", [lr] * shape[0])):
        fits = len(values) == shape[0] and all(type(v) in (int, float) and abs(v) < LARGEST for v in values)
        require(fits, f"{what} must be finite, one number a channel, got {values}")
    require(lr > 0 and all(s > 0 for s in held.std), f"learning rate and std must be positive, got {lr}, {held.std}")
    require(all(isinstance(name, str) for name in names), f"names of classes must be text, got {some(names)}")
    for name in ESSENTIAL:
        require(name in held.params, f"params must have {name}")
    for name, value in held.params.items():
        converted(name, value)
