"""What the trust methods cost on top of plain training of the same network, for the same epochs.

    python benchmarks/diversion.py [--width 32] [--side 16] [--images 10000] [--epochs 15] [--warmup 5]
                                   [--classes 10 100] [--device cpu]

Plain training, ``tad`` and ``tad-posterior`` take turns epoch by epoch in one process, so that a slow spell of a shared
machine hits all of them; what the posterior does before its first epoch is part of it, and has a row of its own.
``mixtures`` is one fit of the class-wise mixtures for 200 classes of 500 samples. Random images: the cost does not
depend on what they show. Seconds are those of the processor; on a GPU they are those of the clock, and nothing is
written to ``--out``.
"""

import json
from collections.abc import Callable

import pandas as pd
from common import clock, finish, in_own_process, parser


def measure(
    width: int, side: int, images: int, epochs: int, warmup: int, classes: int, threads: int, device: str, **_
) -> dict:
    """Seconds of each method over all epochs, and of the mixtures."""
    import torch

    from tadlib import trust
    from tadlib.config import AuditorConfig
    from tadlib.nn import speed
    from tadlib.nn.networks import Network, NetworkSpec
    from tadlib.rng import generator
    from tadlib.trust import base, mixture

    speed.prepare(threads)
    net = Network(NetworkSpec((3, side, side), classes, width=width, depth=3), torch.device(device))
    random = generator(0, "benchmark", device=device)
    x = torch.randn(images, 3, side, side, generator=random, device=device)
    noisy = torch.arange(images, device=device) % classes
    problem = trust.NoisyProblem(net, x, noisy, classes, seed=0)
    config = AuditorConfig(epochs=epochs, warmup=warmup, augmentation="color_crop_flip_scale_rotate")
    methods = {arm: trust.method(arm, config) for arm in ("tad", "tad-posterior")}
    states, seconds = {}, {"plain training": 0.0}

    def took(work: Callable[[], object], repeats: int = 1) -> float:
        if device == "cpu":
            return clock(work, repeats)["cpu_seconds"]
        return clock(lambda: (work(), torch.cuda.synchronize()), repeats)["seconds"]

    def start(arm: str) -> None:
        states[arm] = methods[arm].init(problem)

    for arm in methods:
        seconds[arm] = took(lambda arm=arm: start(arm))
    before = seconds["tad-posterior"]
    auditor, y, w = base.Auditor.new(problem), problem.noisy_NK, torch.ones(images, device=device)
    for _ in range(epochs):
        seconds["plain training"] += took(lambda: auditor.train(problem, config, y, w))
        for arm, method in methods.items():
            seconds[arm] += took(lambda arm=arm, method=method: method.step(problem, states[arm]))
    loss = torch.rand(200 * 500, generator=random, device=device)
    of_200 = torch.arange(len(loss), device=device) % 200
    seconds["tad-posterior, before the first epoch"] = before
    seconds["mixtures"] = took(lambda: mixture.split(loss, of_200, 200, delta=0.5), repeats=3)
    return seconds


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--width", type=int, default=32, help="channels of the ConvNet (default: 32)")
    options.add_argument("--side", type=int, default=16, help="side of the images, in pixels (default: 16)")
    options.add_argument("--images", type=int, default=10000, help="training images (default: 10000)")
    options.add_argument("--epochs", type=int, default=15, help="epochs of each (default: 15)")
    options.add_argument("--warmup", type=int, default=5, help="epochs before labels are judged (default: 5)")
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
