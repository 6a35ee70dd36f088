"""Time and memory of RDED on a folder of 5,000 large JPEGs: ten classes, IPC 10, ResNet-18 as the observer.

The folder is made from the JPEGs of ten classes of Tiny ImageNet, enlarged: what it shows does not matter here. With
fewer ``--images`` of a class and ``--epochs`` of the observer a part is measured. ``cpu_seconds_expected`` is then what
all of it takes with 500 images of a class, of which RDED looks at 300, and 10 epochs, every stage in proportion to its
images; it is processor time, which other processes do not change much: two idle cores take half as long at best. Peak
memory is the process's, libraries included.

``--step`` measures one step instead, on random images and without any file: processor milliseconds of an image in a
step of the observer, part by part, in one whose images keep their plain layout in memory, and in a training step of
torchvision's ResNet-18 on images that lie ready as floats. ``ratio`` is what the parts take together in units of the
latter; all are measured in turns, and of eight the best counts.

    python benchmarks/large_images.py --root DATA --threads 2
    python benchmarks/large_images.py --step
"""

import itertools
import json
import resource
import tempfile
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from common import clock, finish, in_own_process, parser
from PIL import Image
from torchvision.models import resnet18

from tadlib import pipeline
from tadlib.config import Config, ObserverConfig
from tadlib.nn import augment, speed
from tadlib.nn.images import Images
from tadlib.nn.networks import Network, NetworkSpec
from tadlib.nn.training import AdamW, State, one_hot, weighted_loss
from tadlib.observer import decayed, step
from tadlib.rng import generator

CLASSES, TRAIN, TEST = 10, 500, 50  # images of a class
EPOCHS, CANDIDATES = 10, 300
STAGES = {"noise": pipeline.inject_noise, "divert": pipeline.divert}
STAGES |= {"observer": pipeline.train_observer, "distill": pipeline.distill}


def write(root: Path, folder: Path, side: int, images: int) -> None:
    """JPEGs of ``side`` pixels in folders ``train`` and ``test``."""
    source = root / "tiny-imagenet-200"
    names = sorted(path.name for path in (source / "train").iterdir())[:CLASSES]
    annotations = (source / "val" / "val_annotations.txt").read_text().splitlines()
    label = {name: of for name, of, *_ in map(str.split, annotations)}
    for name in names:
        train = (source / "train" / name / "images").iterdir()
        test = (source / "val" / "images" / file for file, of in label.items() if of == name)
        for split, files, n in (("train", train, images), ("test", test, TEST)):
            (folder / split / name).mkdir(parents=True)
            for file in itertools.islice(files, n):
                image = Image.open(file).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
                image.save(folder / split / name / f"{file.stem}.jpg", quality=90)


def measure(root: str, side: int, resolution: int, arm: str, images: int, epochs: int, threads: int) -> dict:
    """Wall and processor seconds of each stage, and peak memory, of one run."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(root), Path(folder) / "images", side, images)
        config = Config.from_params(
            **{"dataset": f"folder:{folder}/images", "out": f"{folder}/runs", "resolution": resolution, "arm": arm},
            **{"method": "rded", "ipc": 10, "preset": "lite", "noise": "symmetric", "rate": 0.4, "threads": threads},
            **{"observer_network": "resnet18", "observer_batch": 64, "observer_epochs": epochs, "depth": 5},
            **{"posterior_predictors": "patches", "rded_candidates": CANDIDATES, "device": "cpu"},
        )
        row: dict = {"images": CLASSES * images, "side": side, "resolution": resolution, "arm": arm, "epochs": epochs}
        expected = 0.0
        for name, stage in STAGES.items():
            took = clock(partial(stage, config))
            row |= {f"{what}_{name}": value for what, value in took.items()}
            share = min(images, CANDIDATES) / CANDIDATES if name == "distill" else images / TRAIN
            expected += took["cpu_seconds"] / share * (EPOCHS / epochs if name == "observer" else 1)
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return row | {"cpu_seconds_expected": expected, "peak_memory_bytes": peak}


class PlainLayout(Network):
    """A network that takes images as they lie in memory."""

    def _laid_out(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return x_NCHW


def measure_step(side: int, batch: int) -> dict:
    """Processor milliseconds of an image in every part of a step, the best of eight, and their ratio."""
    random, config = generator(0, "step"), ObserverConfig()
    source = torch.randint(0, 256, (batch, 3, side, side), generator=random, dtype=torch.uint8)
    images, index_B = Images(source, side, (0.5,) * 3, (0.25,) * 3), torch.randperm(batch, generator=random)
    x_BCHW, y_B = images[index_B], torch.arange(batch) % CLASSES
    spec = NetworkSpec((3, side, side), CLASSES, "resnet18", norm="batch")
    net, other = Network(spec), PlainLayout(spec)
    rule = AdamW(config.lr, config.momentum, config.weight_decay * decayed(net))
    loss = partial(weighted_loss, y_BK=one_hot(y_B, CLASSES), w_B=torch.ones(batch))
    state = step(net, State(net.init(0)), x_BCHW, loss, rule)
    g_P = torch.randn(net.n_parameters, generator=random)
    plain = resnet18(num_classes=CLASSES).train()
    optimiser = torch.optim.AdamW(plain.parameters(), lr=config.lr)

    def plain_step() -> None:
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(plain(x_BCHW), y_B).backward()
        optimiser.step()

    def augmented() -> None:
        """Every choice of the strategy once, of which a batch gets one."""
        for names in augment.operations(config.augmentation):
            augment.apply(augment.draw("color" if names == augment.COLOR else names[0], batch, random), x_BCHW)

    parts = {
        "convert": lambda: images[index_B],
        "augment": augmented,
        "optimiser": lambda: rule.step(state.theta, g_P, state.velocity),
    }
    parts |= {
        "step": lambda: step(net, state, x_BCHW, loss, rule),
        "plain_layout": lambda: step(other, state, x_BCHW, loss, rule),
        "torchvision": plain_step,
    }
    plain_step()
    rows = [{name: clock(part)["cpu_seconds"] for name, part in parts.items()} for _ in range(8)]
    ms = {name: 1000 * min(row[name] for row in rows) / batch for name in parts}
    ms["augment"] /= len(augment.operations(config.augmentation))
    ratio = (ms["convert"] + ms["augment"] + ms["step"]) / ms["torchvision"]
    about = {"resolution": side, "batch": batch}
    return about | {f"cpu_ms_{name}": value for name, value in ms.items()} | {"ratio": ratio}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--root", help="folder that holds tiny-imagenet-200")
    arguments.add_argument("--side", type=int, default=224, help="pixels of a side of the JPEGs (default: 224)")
    arguments.add_argument("--resolution", type=int, default=128, help="pixels that networks see (default: 128)")
    arguments.add_argument("--arm", default="tad-posterior")
    arguments.add_argument("--images", type=int, default=TRAIN, help="of a class (default: 500)")
    arguments.add_argument("--epochs", type=int, default=EPOCHS, help="of the observer (default: 10)")
    arguments.add_argument("--step", action="store_true", help="measure one step, and nothing else")
    arguments.add_argument("--batch", type=int, default=64, help="of that step (default: 64)")
    options = arguments.parse_args()
    if options.step:
        speed.prepare(options.threads)
        row = measure_step(options.resolution, options.batch)
        finish("large_images_step", pd.DataFrame([row]), options.out, options.threads)
        print(pd.Series(row).to_string())
        return
    if options.one:
        settings = json.loads(options.one)
        settings.pop("memory_limit")
        print(json.dumps(measure(**settings)))
        return
    settings = {
        name: getattr(options, name) for name in ("root", "side", "resolution", "arm", "images", "epochs", "threads")
    }
    row = in_own_process(settings)
    finish("large_images", pd.DataFrame([row]), options.out, options.threads)
    print(pd.Series(row).to_string())


if __name__ == "__main__":
    main()
