"""Training an expert: this library, eager and compiled, against a plain PyTorch loop like that of the reference codes.

    python benchmarks/expert_training.py [--width 128] [--images 1024] [--epochs 2] [--root DATA]

``reference`` is written here as in MTT's code: an ``nn.Module``, ``optim.SGD``, a ``DataLoader`` over tensors, one
random DSA operation a batch, whose parameters are assembled in Python, image by image. All train the same network from
the same start on the same images of CIFAR-10 (random ones without ``--root``), on as many threads; the loss after every
epoch is stored beside the speed. Compilation is timed apart. ``bfloat16`` is the setting ``expert_bfloat16``, which is
fast where the processor multiplies in that type.
"""

import json
from dataclasses import replace

import pandas as pd
from common import clock, finish, in_own_process, parser

METHODS = ("reference", "eager", "compiled", "eager, bfloat16", "compiled, bfloat16")
DSA = "color_crop_cutout_flip_scale_rotate"
LR, BATCH = 0.01, 256  # MTT's experts


def _images(n: int, root: str | None):
    import torch

    from tadlib.data import load_dataset
    from tadlib.rng import generator

    if root is not None:
        data = load_dataset("cifar10", root=root, n_train=n, n_test=10)
        return data.x_train, data.y_train
    random = generator(0, "benchmark")
    return torch.randn(n, 3, 32, 32, generator=random), torch.randint(10, (n,), generator=random)


def _reference_step(x, params, op):
    """One DSA operation as the reference does it: parameters of warps image by image, in Python."""
    import torch

    from tadlib.nn import augment

    if op not in ("scale", "rotate"):
        return augment.OPERATIONS[op][3](x, params)
    rows = []
    for p in params:
        if op == "scale":
            rows.append([[p[0], 0, 0], [0, p[1], 0]])
        else:
            angle = torch.deg2rad(p[0])
            rows.append([[torch.cos(angle), -torch.sin(angle), 0], [torch.sin(angle), torch.cos(angle), 0]])
    grid = torch.nn.functional.affine_grid(torch.tensor(rows, dtype=torch.float), x.shape, align_corners=False)
    return torch.nn.functional.grid_sample(x, grid, align_corners=False)


def _reference(spec, start_P, x, y, epochs: int):
    """A generator that trains one epoch each time and yields the module."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    from tadlib.nn import augment
    from tadlib.nn.networks import NETWORKS
    from tadlib.rng import generator

    module = NETWORKS[spec.name](spec)
    nn.utils.vector_to_parameters(start_P, module.parameters())
    optimiser, criterion = torch.optim.SGD(module.parameters(), lr=LR), nn.CrossEntropyLoss()
    random = generator(0, "reference")
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True, generator=random)
    for _ in range(epochs):
        for x_B, y_B in loader:
            for d in augment.draw(DSA, len(x_B), random):
                x_B = _reference_step(x_B, d.params, d.op)
            optimiser.zero_grad()
            criterion(module(x_B), y_B).backward()
            optimiser.step()
        yield module


def measure(method: str, width: int, images: int, epochs: int, root: str | None, threads: int, memory_limit=None):
    """One row an epoch: loss on the training images, seconds of the epoch."""
    import torch
    from torch import nn

    from tadlib.nn import speed
    from tadlib.nn.networks import Network, NetworkSpec
    from tadlib.nn.training import Sgd, State, one_hot, train_epoch
    from tadlib.rng import generator

    if method == "reference":
        torch.set_num_threads(threads)
        torch.set_flush_denormal(True)
    else:
        speed.prepare(threads)
    x, y = _images(images, root)
    exact = Network(NetworkSpec((3, 32, 32), 10, width=width, depth=3))
    net = replace(exact, bfloat16=method.endswith("bfloat16"))
    start_P = net.init(0)
    state, random = State(start_P), generator(0, "train")

    def epoch(n: int | None = None) -> None:
        nonlocal state
        state = train_epoch(
            net,
            state,
            x[:n],
            one_hot(y[:n], 10),
            torch.ones(len(y[:n])),
            sgd=Sgd(LR),
            batch=BATCH,
            strategy=DSA,
            generator=random,
            compile=method.startswith("compiled"),
        )

    run = _reference(net.spec, start_P, x, y, epochs)
    if method == "reference":
        warm = _reference(net.spec, start_P, x[:BATCH], y[:BATCH], 1)
        first = clock(lambda: next(warm))["seconds"]
    else:
        first = clock(lambda: epoch(BATCH))["seconds"]
        state, random = State(start_P), generator(0, "train")
    rows = []
    for number in range(epochs):
        if method == "reference":
            found = {}
            times = clock(lambda found=found: found.update(module=next(run)))
            theta_P = nn.utils.parameters_to_vector(found["module"].parameters()).detach()
        else:
            times = clock(epoch)
            theta_P = state.theta
        with torch.no_grad():
            loss = nn.functional.cross_entropy(exact(theta_P, x[:512]), y[:512]).item()
        rows.append({"method": method, "epoch": number, "loss": loss, "first_seconds": first, **times})
    return rows


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--width", type=int, default=128, help="channels of the ConvNet (default: 128)")
    p.add_argument("--images", type=int, default=1024, help="training images, a multiple of 256 (default: 1024)")
    p.add_argument("--epochs", type=int, default=2, help="epochs of each (default: 2)")
    p.add_argument("--root", help="folder of CIFAR-10 (torchvision's layout)")
    args = p.parse_args()
    if args.one:
        print(json.dumps(measure(**json.loads(args.one))))
        return
    case = {"width": args.width, "images": args.images}
    rows = []
    for method in METHODS:
        settings = {"method": method, "epochs": args.epochs, "root": args.root, "threads": args.threads}
        rows += in_own_process(case | settings) or []
        print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    for kind in ("seconds", "cpu_seconds"):
        best = table.groupby("method")[kind].transform("min")
        table[f"images_per_{kind.removesuffix('s')}"] = args.images / best
        table[f"speed_up_{kind}"] = best[table.method == "reference"].iloc[0] / best
    table["last_loss"] = table.groupby("method")["loss"].transform("last")
    table = table.assign(**case)
    finish("expert_training", table, args.out, args.threads)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
