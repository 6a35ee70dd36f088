"""Time and memory of RDED on a folder of 5,000 large JPEGs: ten classes, IPC 10, ResNet-18 as the observer.

The folder is made from the JPEGs of ten classes of Tiny ImageNet, enlarged: what it shows does not matter here. The
observer is trained for ``--epochs``, which take most of the time; ``seconds_at_10_epochs`` is all stages with ten times
the time of one epoch instead of that. Peak memory is the process's, libraries included.

    python benchmarks/large_images.py --root DATA --threads 2
"""

import itertools
import json
import resource
import tempfile
from pathlib import Path

import pandas as pd
from common import finish, in_own_process, parser
from PIL import Image

from tadlib import pipeline
from tadlib.config import Config
from tadlib.store import StageFolder

CLASSES, TRAIN, TEST = 10, 500, 50  # images of a class
EPOCHS = 10  # of the figure that is extrapolated


def write(root: Path, folder: Path, side: int) -> None:
    """JPEGs of ``side`` pixels in folders ``train`` and ``test``."""
    source = root / "tiny-imagenet-200"
    names = sorted(path.name for path in (source / "train").iterdir())[:CLASSES]
    annotations = (source / "val" / "val_annotations.txt").read_text().splitlines()
    label = {name: of for name, of, *_ in map(str.split, annotations)}
    for name in names:
        train = (source / "train" / name / "images").iterdir()
        test = (source / "val" / "images" / file for file, of in label.items() if of == name)
        for split, files, n in (("train", train, TRAIN), ("test", test, TEST)):
            (folder / split / name).mkdir(parents=True)
            for file in itertools.islice(files, n):
                image = Image.open(file).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
                image.save(folder / split / name / f"{file.stem}.jpg", quality=90)


def measure(root: str, side: int, resolution: int, arm: str, epochs: int, threads: int) -> dict:
    """Seconds of each stage and peak memory of one run."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(root), Path(folder) / "images", side)
        config = Config.from_params(
            **{"dataset": f"folder:{folder}/images", "out": f"{folder}/runs", "resolution": resolution, "arm": arm},
            **{"method": "rded", "ipc": 10, "preset": "lite", "noise": "symmetric", "rate": 0.4, "threads": threads},
            **{"observer_network": "resnet18", "observer_batch": 64, "observer_epochs": epochs, "depth": 5},
            **{"posterior_predictors": "patches", "device": "cpu"},
        )
        pipeline.distill(config)
        manifests = {
            name: StageFolder(planned.path).manifest()
            for name, planned in pipeline.plan(config).items()
            if name != "evaluate"
        }
        seconds = {f"seconds_{name}": manifest["seconds"] for name, manifest in manifests.items()}
        more = manifests["observer"]["seconds"] / epochs * (EPOCHS - epochs)
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        about = {
            "images": CLASSES * TRAIN,
            "side": side,
            "resolution": resolution,
            "arm": arm,
            "observer_epochs": epochs,
        }
        total = sum(seconds.values())
        accuracy = manifests["observer"]["extra"]["accuracy"]
        return (
            about
            | seconds
            | {"seconds": total, f"seconds_at_{EPOCHS}_epochs": total + more}
            | {
                "observer_accuracy": accuracy,
                "peak_memory_bytes": peak,
            }
        )


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--root", help="folder that holds tiny-imagenet-200")
    arguments.add_argument("--side", type=int, default=224, help="pixels of a side of the JPEGs (default: 224)")
    arguments.add_argument("--resolution", type=int, default=128, help="pixels that networks see (default: 128)")
    arguments.add_argument("--arm", default="tad-posterior")
    arguments.add_argument("--epochs", type=int, default=2, help="of the observer (default: 2)")
    options = arguments.parse_args()
    if options.one:
        settings = json.loads(options.one)
        settings.pop("memory_limit")
        print(json.dumps(measure(**settings)))
        return
    settings = {name: getattr(options, name) for name in ("root", "side", "resolution", "arm", "epochs", "threads")}
    row = in_own_process(settings)
    finish("large_images", pd.DataFrame([row]), options.out, options.threads)
    print(pd.Series(row).to_string())


if __name__ == "__main__":
    main()
