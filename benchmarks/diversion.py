"""What the dual loop costs on top of plain training of the same network, for the same epochs.

    python benchmarks/diversion.py [--width 32] [--side 16] [--images 10000] [--epochs 15] [--warmup 5]
                                   [--classes 10 100] [--device cpu]

``plain training`` and ``dual loop`` take turns epoch by epoch in one process, so that a slow spell of a shared machine
hits both; what the dual loop does before its first epoch is part of it, and is ``the auditor in closed form`` by
itself. ``a look every round`` (not on a GPU) is the setting ``divert_look_every=1``. ``mixtures`` is one round of the
class-wise mixtures for 200 classes of 500 samples. Random images: the cost does not depend on what they show. Seconds
are those of the processor; on a GPU they are those of the clock, and nothing is written to ``--out``.
"""

import json
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
from common import clock, finish, in_own_process, parser


def measure(
    width: int, side: int, images: int, epochs: int, warmup: int, classes: int, threads: int, device: str, **_
) -> dict:
    """Seconds of each method over all epochs, and of the mixtures."""
    import torch

    from tadlib import diversion, trust
    from tadlib.nn import speed
    from tadlib.nn.networks import Network, NetworkSpec
    from tadlib.nn.training import Sgd, State, one_hot, train_epoch
    from tadlib.rng import generator

    speed.prepare(threads)
    net = Network(NetworkSpec((3, side, side), classes, width=width, depth=3), torch.device(device))
    random = generator(0, "benchmark", device=device)
    x = torch.randn(images, 3, side, side, generator=random, device=device)
    given = torch.arange(images, device=device) % classes
    config = diversion.DiversionConfig(epochs=epochs, warmup=warmup, augmentation="color_crop_flip_scale_rotate")
    loops, seconds = {}, {"plain training": 0.0}

    def took(work: Callable[[], object], repeats: int = 1) -> float:
        if device == "cpu":
            return clock(work, repeats)["cpu_seconds"]
        return clock(lambda: (work(), torch.cuda.synchronize()), repeats)["seconds"]

    def start(name: str, config: diversion.DiversionConfig) -> None:
        loops[name] = diversion.start(net, x, given, classes, config, seed=0)

    methods = {"dual loop": config}
    if device == "cpu":
        methods["a look every round"] = replace(config, look_every=1)
    for name, config_of in methods.items():
        seconds[name] = took(lambda name=name, config_of=config_of: start(name, config_of))
    closed_form = seconds["dual loop"]
    state, y, w = State(net.init(0)), one_hot(given, classes), torch.ones(images, device=device)

    def plain() -> None:
        nonlocal state
        sgd = Sgd(config.lr, config.momentum, config.weight_decay)
        common = {"sgd": sgd, "batch": config.batch, "strategy": config.augmentation, "generator": random}
        state = train_epoch(net, state, x, y, w, **common)

    for _ in range(epochs):
        seconds["plain training"] += took(plain)
        for name, loop in loops.items():
            seconds[name] += took(lambda loop=loop: diversion.advance(loop))
    evidence = torch.rand(200 * 500, generator=random, device=device)
    of_200 = torch.arange(len(evidence), device=device) % 200
    seconds["the auditor in closed form"] = closed_form
    seconds["mixtures"] = took(lambda: trust.partition(evidence, of_200, 200, tau=0.5), repeats=3)
    return seconds


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--width", type=int, default=32, help="channels of the ConvNet (default: 32)")
    options.add_argument("--side", type=int, default=16, help="side of the images, in pixels (default: 16)")
    options.add_argument("--images", type=int, default=10000, help="training images (default: 10000)")
    options.add_argument("--epochs", type=int, default=15, help="epochs of each (default: 15)")
    options.add_argument("--warmup", type=int, default=5, help="epochs before the first diversion (default: 5)")
    options.add_argument("--classes", type=int, nargs="+", default=[10, 100], help="of the data set (default: 10 100)")
    options.add_argument("--device", default="cpu", help="default: cpu")
    args = options.parse_args()
    if args.one:
        print(json.dumps(measure(**json.loads(args.one))))
        return
    tables = []
    for classes in args.classes:
        settings = {k: v for k, v in vars(args).items() if k not in ("one", "out")} | {"classes": classes}
        seconds = in_own_process(settings)
        assert seconds is not None
        rows = pd.DataFrame([{"method": name, "cpu_seconds": value, **settings} for name, value in seconds.items()])
        rows["ratio"] = rows.cpu_seconds / seconds["plain training"]
        tables.append(rows.drop(columns="threads"))
    table = pd.concat(tables, ignore_index=True)
    print(table.to_string(index=False))
    if args.device == "cpu":  # the book shows processor seconds
        finish("diversion", table, args.out, args.threads)


if __name__ == "__main__":
    main()
