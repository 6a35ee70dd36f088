"""Reading a folder of JPEG images: speed relative to torchvision's decoder alone, and peak memory.

    python benchmarks/decoding.py [--images 20000] [--sides 32 64 256] [--workers 2] [--out results/benchmarks]

Images of 500 x 400 pixels, smooth gradients with some noise, are written as JPEG files; from the :data:`DISTINCT`-th on
they are further links to the first ones. ``torchvision`` reads and decodes the first :data:`TIMED` at full size with
``decode_jpeg`` in as many threads and keeps none; tadlib also takes their checksums, turns them upright, resizes them,
and holds them all. ``speed`` is the ratio of images a second, each side the best of three runs in turn, and
``cpu_speed`` that of images a second of processor time, which other processes disturb less. ``memory`` is the peak
while the data set is loaded, all files of it, over what was held before, relative to the tensors that are left:
normalised images of both splits.
"""

import os
import resource
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
from common import clock, give_back_memory, in_own_process, parser

REPEATS = 3
CLASSES = 10
DISTINCT = 1000  # images; making more takes longer than to read them
TIMED = 2000  # files at most whose decoding is timed; all of them are loaded for memory


def write(folder: Path, n: int) -> None:
    """``n`` JPEG files in folders of ten classes."""
    import numpy as np
    from PIL import Image

    y, x = np.mgrid[0:400, 0:500] / 500
    for i in range(n):
        place = folder / f"{i % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        if i >= DISTINCT:
            first = i % DISTINCT
            os.link(folder / f"{first % CLASSES}" / f"{first}.jpg", place / f"{i}.jpg")
            continue
        rng = np.random.default_rng(i)
        a, b, c = rng.uniform(-1, 1, (3, 3))
        smooth = 128 + 100 * np.sin(3 * (a * x[..., None] + b * y[..., None]) + 3 * c)
        pixels = (smooth + rng.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{i}.jpg", quality=90)


def size(x: Any) -> int:
    """Bytes of images, which are held as floats or, of more than 64 pixels, as bytes."""
    return int(x[:1].numel() * len(x) * (1 if hasattr(x, "source") else x.element_size()))


def speed(folder: str, side: int, workers: int) -> dict[str, float]:
    """Images a second of both."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    from tadlib.data import own

    torch.set_num_threads(1)
    own.cores = lambda: workers
    files = [str(path) for path in sorted(Path(folder).rglob("*.jpg"))][:TIMED]

    def plain() -> None:
        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(lambda file: decode_jpeg(read_file(file), ImageReadMode.RGB).shape, files):
                pass

    works = {"torchvision": plain, "tadlib": lambda: own.decoded(files, side, True)}
    best: dict[str, float] = {}
    for _ in range(REPEATS):
        for name, work in works.items():
            for column, seconds in clock(work).items():
                key = name if column == "seconds" else f"{name}_cpu"
                best[key] = max(best.get(key, 0.0), len(files) / seconds)
    return best


def memory(folder: str, side: int, workers: int) -> dict[str, float]:
    """Peak bytes of loading the folder, and bytes of the tensors."""
    from tadlib import pipeline
    from tadlib.data import load_dataset, own

    own.cores = lambda: workers
    with tempfile.TemporaryDirectory() as out:
        small = Path(out) / "small"
        write(small, 40)
        load_dataset(f"folder:{small}", resolution=8)  # what is imported or allocated once
        give_back_memory()
        import torch

        before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        with pipeline.peak_memory(torch.device("cpu")) as peak:
            cache = Path(out) / "runs" / "images"
            data = load_dataset(f"folder:{folder}", resolution=side, cache=cache)
            held = sum(size(x) for x in (data.x_train, data.x_test))
            return {"peak_bytes": peak() - before, "tensor_bytes": held, "cached": cache.is_dir()}


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--images", type=int, default=20000, help="number of images (default: 20000)")
    p.add_argument("--sides", type=int, nargs="+", default=[32, 64, 256], help="sides of the tensors")
    p.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="threads (default: one a core)")
    args = p.parse_args()
    if args.one is not None:
        import json

        one = json.loads(args.one)
        print(json.dumps({"speed": speed, "memory": memory}[one["what"]](one["folder"], one["side"], one["workers"])))
        return
    from tadlib.store import hardware, load_table, save_table, versions

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), args.images)
        for side in args.sides:
            of = {"folder": folder, "side": side, "workers": args.workers}
            rate, peak = (in_own_process({"what": what, **of}) for what in ("speed", "memory"))
            assert rate is not None
            assert peak is not None
            row = {"images": args.images, "side": side, "threads": args.workers, **rate, **peak}
            row |= {"speed": rate["tadlib"] / rate["torchvision"], "memory": peak["peak_bytes"] / peak["tensor_bytes"]}
            rows.append(row | {"cpu_speed": rate["tadlib_cpu"] / rate["torchvision_cpu"]})
    machine, of = hardware(), versions()
    about = {"hardware": machine["cpu"], "cores": machine["cores"]}
    table = pd.DataFrame(rows).assign(**about, torch_version=of["torch"], tadlib_version=of["tadlib"])
    if (path := args.out / "decoding.parquet").exists():  # of other sides and numbers of images
        old = pd.concat([load_table(path), table], ignore_index=True)
        table = old.drop_duplicates(["images", "side", "threads"], keep="last")
    save_table(path, table)
    shown = ["images", "side", "threads", "torchvision", "tadlib", "speed", "cpu_speed", "memory"]
    print(table[shown].round(2).to_string(index=False))


if __name__ == "__main__":
    main()
