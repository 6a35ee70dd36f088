"""Evaluating networks: one after the other, side by side, and with a compiled step.

    python benchmarks/evaluation.py [--width 32] [--side 16] [--images 100] [--epochs 30] [--networks 5]

``one by one`` trains a network to the end before the next, with the step differentiated by ``torch.func`` and the
memory settings and pooling of Python and torch. ``side by side`` is the default (plain autograd, freed memory kept,
pooling as a convolution); ``torch pooling`` the same with PyTorch's pooling; ``stacked`` one step for all networks at
once; ``compiled`` the setting ``evaluate_compile=true``, whose compilation (``first_seconds``) pays for long runs only.
All give the same networks, up to rounding: ``difference`` is the largest distance of their parameters from the first
row's, relative.
"""

import json
import tempfile
from pathlib import Path

import pandas as pd
from common import clock, finish, in_own_process, parser

METHODS = ("one by one", "torch pooling", "side by side", "stacked", "compiled")
DSA = "color_crop_cutout_flip_scale_rotate"


def measure(method: str, width: int, side: int, images: int, epochs: int, networks: int, threads: int, at: str, **_):
    """Seconds to train all networks; their parameters are written to ``at``."""
    import torch
    from torch.func import grad

    from tadlib import evaluate
    from tadlib.config import Protocol
    from tadlib.nn import speed, training
    from tadlib.nn.networks import HalvingPool, Network, NetworkSpec
    from tadlib.nn.training import Sgd
    from tadlib.rng import generator
    from tadlib.store import save_tensors

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    if method == "one by one":
        training.gradient = lambda loss, theta_P, *rest: grad(loss)(theta_P, *rest)
    else:
        speed.prepare(threads)
    if method in ("one by one", "torch pooling"):
        HalvingPool.forward = torch.nn.AvgPool2d.forward
    net = Network(NetworkSpec((3, side, side), 10, width=width, depth=3))
    x = torch.randn(images, 3, side, side, generator=generator(0, "benchmark"))
    y = torch.eye(10)[torch.arange(images) % 10]

    def train(n_networks: int, n_epochs: int):
        loop = evaluate.start(net, Protocol(networks=n_networks), seed=0)
        order = range(n_networks) if method == "one by one" else [slice(None)]
        for part in order:
            part = slice(part, part + 1) if isinstance(part, int) else part
            states = loop.states[part]
            for _ in range(n_epochs):
                states = training.train_epoch_together(
                    net,
                    states,
                    x,
                    y,
                    torch.ones(images),
                    sgd=Sgd(0.01, 0.9, 5e-4),
                    batch=256,
                    strategy=DSA,
                    generators=loop.generators[part],
                    compile=method == "compiled",
                    stacked=method == "stacked",
                )
            loop.states[part] = states
        return torch.stack([s.theta for s in loop.states])

    first = clock(lambda: train(1, 1))["seconds"]
    found = {}
    times = clock(lambda: found.update(theta=train(networks, epochs)))
    save_tensors(Path(at) / f"{method}.safetensors", found)
    return {"method": method, "first_seconds": first, **times}


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--width", type=int, default=32, help="channels of the ConvNet (default: 32)")
    p.add_argument("--side", type=int, default=16, help="side of the images (default: 16)")
    p.add_argument("--images", type=int, default=100, help="synthetic images (default: 100)")
    p.add_argument("--epochs", type=int, default=30, help="epochs (default: 30)")
    p.add_argument("--networks", type=int, default=5, help="networks (default: 5)")
    args = p.parse_args()
    if args.one:
        print(json.dumps(measure(**json.loads(args.one))))
        return
    from tadlib.store import load_tensors

    case = {name: getattr(args, name) for name in ("width", "side", "images", "epochs", "networks")}
    rows = []
    with tempfile.TemporaryDirectory() as at:
        for method in METHODS:
            rows.append(in_own_process(case | {"method": method, "threads": args.threads, "at": at}) or {})
            print(rows[-1], flush=True)
        theta = {m: load_tensors(Path(at) / f"{m}.safetensors")["theta"] for m in METHODS}
    table = pd.DataFrame(rows).assign(**case)
    first = theta[METHODS[0]]
    table["difference"] = [((theta[m] - first).norm() / first.norm()).item() for m in METHODS]
    for kind in ("seconds", "cpu_seconds"):
        table[f"speed_up_{kind}"] = table[kind][0] / table[kind]
    finish("evaluation", table, args.out, args.threads)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
