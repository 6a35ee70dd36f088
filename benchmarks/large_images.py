"""Time and memory of RDED on a folder of 5,000 large JPEGs: ten classes, IPC 10, ResNet-18 as the observer.

The folder is made from the JPEGs of ten classes of Tiny ImageNet, enlarged: what it shows does not matter here. With
fewer ``--images`` of a class and ``--epochs`` of the observer a part is measured. ``cpu_seconds_expected`` is then what
all of it takes with 500 images of a class, of which RDED looks at 300, and 10 epochs, every stage in proportion to its
images; it is processor time, which other processes do not change much: two idle cores take half as long at best. Peak
memory is the process's, libraries included.

``cpu_ms_*`` are milliseconds of one image in a step of the observer, part by part, and in a training step of
torchvision's ResNet-18 on images that lie ready as floats; ``ratio_torchvision`` is the former in units of the
latter, measured in turns.

    python benchmarks/large_images.py --root DATA --threads 2
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
from tadlib.config import Config
from tadlib.materials import dataset, observer_network
from tadlib.nn import augment
from tadlib.nn.training import AdamW, State, weighted_loss
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


def iteration(config: Config) -> dict[str, float]:
    """Processor milliseconds of an image in a step of the observer and of torchvision's network, the best of three."""
    data, net, random = dataset(config), observer_network(config), generator(0, "iteration")
    batch = min(config.observer.batch, len(data.y_train))
    index_B, w_B = torch.randperm(len(data.y_train), generator=random)[:batch], torch.ones(batch)
    x_BCHW, y_B = data.x_train[index_B], data.y_train[index_B]
    state, rule = State(net.init(0)), AdamW(config.observer.lr, 0.9, config.observer.weight_decay * decayed(net))
    loss = partial(weighted_loss, y_BK=torch.nn.functional.one_hot(y_B, data.n_classes).float(), w_B=w_B)
    plain = resnet18(num_classes=data.n_classes).train()
    optimiser = torch.optim.AdamW(plain.parameters(), lr=config.observer.lr)

    def plain_step() -> None:
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(plain(x_BCHW), y_B).backward()
        optimiser.step()

    def augmented() -> None:  # every choice once, as often as it is drawn
        for names in augment.operations(config.observer.augmentation):
            choice = "color" if names == augment.COLOR else names[0]
            augment.apply(augment.draw(choice, batch, random), x_BCHW)

    choices = max(1, len(augment.operations(config.observer.augmentation)))
    parts = {"convert": lambda: data.x_train[index_B], "augment": augmented, "torchvision": plain_step}
    parts["step"] = lambda: step(net, state, x_BCHW, loss, rule)
    plain_step()
    rows = [{name: clock(part)["cpu_seconds"] for name, part in parts.items()} for _ in range(3)]
    best = {name: 1000 * min(row[name] for row in rows) / batch for name in parts}
    best["augment"] /= choices
    ours = best["convert"] + best["augment"] + best["step"]
    return {f"cpu_ms_{name}": value for name, value in best.items()} | {"ratio_torchvision": ours / best["torchvision"]}


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
        return row | {"cpu_seconds_expected": expected, "peak_memory_bytes": peak} | iteration(config)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--root", help="folder that holds tiny-imagenet-200")
    arguments.add_argument("--side", type=int, default=224, help="pixels of a side of the JPEGs (default: 224)")
    arguments.add_argument("--resolution", type=int, default=128, help="pixels that networks see (default: 128)")
    arguments.add_argument("--arm", default="tad-posterior")
    arguments.add_argument("--images", type=int, default=TRAIN, help="of a class (default: 500)")
    arguments.add_argument("--epochs", type=int, default=EPOCHS, help="of the observer (default: 10)")
    options = arguments.parse_args()
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
