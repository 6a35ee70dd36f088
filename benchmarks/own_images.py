"""What cleaning a real folder of images is worth: the Roman numerals, whose label errors reviewers have marked.

    python benchmarks/own_images.py --root DATA
    python benchmarks/own_images.py --root DATA --points 400 --parts review network curve

Four parts, each a row for every seed:

- ``review``: wrong labels left after a person has looked at so many images, in the order of an arm's trust or in
  random order;
- ``network``: test accuracy of a network trained on all images of each arm's refined set, as in
  ``benchmarks/refined.py``;
- ``curve``: the same of what is left at ``--points``: an image that was looked at stays where the review calls its
  label right, and is taken out where it calls it wrong;
- ``distilled``: test accuracy of sets distilled by DM.

``reviewed`` stands for the labels without those that the review calls wrong. The review is used for nothing else.
Accuracy is that on the folder's test images. Rows are kept as they come, and those that are there are not made again.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from refined import TESTED, trained
from torch import Tensor

from tadlib import audit, pipeline
from tadlib.config import Config
from tadlib.nn import speed
from tadlib.nn.training import accuracy, one_hot
from tadlib.rng import generator
from tadlib.store import load_table, save_table

ARMS = ("vanilla", "loss-filter", "tad", "tad-posterior")
ORDERS = {"tad-posterior": "trust of the posterior", "random": "random", "loss-filter": "loss"}
REVIEWED = "reviewed"
LOOKED = range(0, 1001, 25)
PARTS = ("review", "network", "curve", "distilled")
KEY = ["part", "labels", "looked", "seed"]

Work = Callable[[], dict[str, Any]]


def reviewed(root: Path, out: Path) -> str:
    """The folder without images whose label the review calls wrong, as a table of files: a source of images."""
    folder = root / "roman-numerals"
    review = pd.read_csv(folder / "verified.csv")
    kept = [folder / path for path in review["path"][review["label_is_wrong"] == 0]]
    rows = [(path, "train") for path in kept] + [(path, "test") for path in sorted(folder.glob("test/*/*.*"))]
    table = pd.DataFrame(
        {"path": str(path.resolve()), "label": path.parent.name, "split": split} for path, split in rows
    )
    file = out / "reviewed.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(file, index=False)
    return f"table:{file}"


def origin(config: Config) -> dict[str, Any]:
    """Scale, hardware, versions and commit, as columns."""
    found = pipeline.trust_row(config, pipeline.divert(config))
    return {name: found[name] for name in ("preset", "device", "hardware", "torch_version", "tadlib_version", "commit")}


def configuration(options: argparse.Namespace, labels: str, seed: int) -> Config:
    """All images at the size that an audit gives them."""
    root, out = Path(options.root), Path(options.out)
    source = reviewed(root, out) if labels == REVIEWED else f"folder:{root / 'roman-numerals'}"
    arm = "vanilla" if labels == REVIEWED else labels
    about = {"preset": options.preset, "device": options.device, "out": str(out)}
    return audit.whole(Config.from_params(dataset=source, arm=arm, method="dm", ipc=10, seed=seed, **about))


@cache
def wrong(config: Config, root: str) -> Tensor:
    """(N,) labels that the review calls wrong."""
    review = pd.read_csv(Path(root, "roman-numerals", "verified.csv"))
    known = {Path(path).name: bad == 1 for path, bad in zip(review["path"], review["label_is_wrong"], strict=True)}
    paths = pipeline.plain_dataset(config).paths
    assert paths is not None
    return torch.tensor([known[Path(path).name] for path in paths])


def order(config: Config, labels: str, n: int) -> Tensor:
    """(N,) images in the order in which they are looked at."""
    if labels == "random":
        return torch.randperm(n, generator=generator(config.seed, "subset", "review"))
    return pipeline.load_refined(pipeline.divert(config)).trust.double().cpu().argsort(stable=True)


def network_accuracy(config: Config, y_NK: Tensor, w_N: Tensor) -> float:
    """Test accuracy after training on these labels and weights, averaged over the last epochs."""
    data, net = pipeline.dataset(config), pipeline.network(config)
    tested = [
        accuracy(net, theta_P, data.x_test, data.y_test)
        for epoch, theta_P in enumerate(trained(config, data.x_train, y_NK, w_N, "refined"))
        if epoch >= config.auditor.epochs - TESTED
    ]
    return sum(tested) / len(tested)


def todo(options: argparse.Namespace) -> Iterator[tuple[str, str, int, int, Work]]:
    """Part, labels, number of images looked at, seed and work of every row."""
    for part in options.parts:
        places = {"review": LOOKED, "curve": options.points}.get(part, [0])
        whose = list(ORDERS) if part in ("review", "curve") else [*ARMS, REVIEWED]
        for looked in [None] if part == "review" else places:
            for seed in options.seeds:
                for labels in whose:
                    yield from _row(options, part, labels, looked, seed)


def _row(
    options: argparse.Namespace, part: str, labels: str, looked: int | None, seed: int
) -> Iterator[tuple[str, str, int, int, Work]]:
    judged = configuration(options, "vanilla" if labels == "random" else labels, seed)
    plain = configuration(options, "vanilla", seed)

    @cache
    def asked() -> tuple[Tensor, Tensor]:
        wrong_N = wrong(plain, options.root)
        return wrong_N, order(judged, labels, len(wrong_N))

    def left(after: int) -> tuple[Tensor, Tensor]:
        wrong_N, order_N = asked()
        gone_N = wrong_N.clone()
        gone_N[order_N[after:]] = False
        return wrong_N, ~gone_N

    def counts(after: int) -> dict[str, Any]:
        wrong_N, left_N = left(after)
        return {"images_left": int(left_N.sum()), "errors_left": int((wrong_N & left_N).sum())}

    def curve() -> dict[str, Any]:
        assert looked is not None
        data = pipeline.dataset(plain)
        y_NK = one_hot(data.y_train, data.n_classes)
        return counts(looked) | {"accuracy": network_accuracy(plain, y_NK, left(looked)[1].float())}

    def of_arm() -> dict[str, Any]:
        if labels == REVIEWED:
            data = pipeline.dataset(plain)
            keep_N = (~wrong(plain, options.root)).float()
            return {"accuracy": network_accuracy(plain, one_hot(data.y_train, data.n_classes), keep_N)}
        refined = pipeline.load_refined(pipeline.divert(judged)).to(judged.torch_device)
        return {"accuracy": network_accuracy(judged, refined.y, refined.weight)}

    def distilled() -> dict[str, Any]:
        row = pipeline.run(judged)
        return {"accuracy": row["accuracy_mean"], "n_networks": row["n_networks"], "evaluated_on": row["evaluated_on"]}

    if part == "review":
        for after in LOOKED:
            yield part, labels, after, seed, lambda after=after: counts(after)
    else:
        assert looked is not None
        work: dict[str, Work] = {"network": of_arm, "curve": curve, "distilled": distilled}
        yield part, labels, looked, seed, work[part]


def main(arguments: list[str] | None = None) -> int:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--root", required=True, help="folder that holds roman-numerals")
    made.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="default: all")
    made.add_argument("--points", nargs="+", type=int, default=[400, 200, 100], help="images looked at (400 200 100)")
    made.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    made.add_argument("--preset", default="lite")
    made.add_argument("--device", default="auto")
    made.add_argument("--out", default="runs/own_images", help="folder of the stages")
    made.add_argument("--results", type=Path, default=Path("results", "own_images.parquet"))
    made.add_argument("--time-limit", type=float, metavar="MINUTES", help="start no row after so long")
    options, started = made.parse_args(arguments), time.monotonic()
    speed.prepare(1)
    origins: dict[int, dict[str, Any]] = {}
    table = load_table(options.results) if options.results.exists() else pd.DataFrame(columns=KEY)
    known = set(table[KEY].itertuples(index=False, name=None))
    for part, labels, looked, seed, work in todo(options):
        if (part, labels, looked, seed) in known:
            continue
        if options.time_limit is not None and time.monotonic() - started > 60 * options.time_limit:
            print("time is up; the same command goes on")
            return 0
        began = time.monotonic(), time.process_time()
        found = work()
        spent = {"seconds": time.monotonic() - began[0], "cpu_seconds": time.process_time() - began[1]}
        if seed not in origins:
            origins[seed] = origin(configuration(options, "vanilla", seed))
        row = dict(zip(KEY, (part, labels, looked, seed), strict=True)) | origins[seed]
        row |= {"accuracy": None, "images_left": None, "errors_left": None, "n_networks": None, "evaluated_on": None}
        row |= found | spent
        table = pd.DataFrame([*table.to_dict("records"), row])
        if part != "review" or looked == LOOKED[-1]:  # points of an order at once: to write takes longer than to count
            save_table(options.results, table)
        if part != "review" or looked in options.points:
            numbers = ", ".join(f"{name} {value}" for name, value in found.items())
            print(f"{part} {labels} {looked} {seed}: {numbers}; {spent['cpu_seconds']:.0f} CPU s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
