"""Storing trajectories: bytes, time of one random read, and the error of each precision in the matching loss.

    python benchmarks/trajectory_store.py [--root DATA] [--out results/benchmarks]

A short expert is trained (on CIFAR-10, or random images without ``--root``), stored in several formats, read at random,
and a student is matched with what was read. ``whole list`` is the format of the reference codes: a list of float32
parameter vectors, loaded whole (they pickle it, which adds a few hundred bytes a vector). ``float16`` and ``bfloat16``
round θ itself; ``half`` is the half precision of :meth:`tadlib.experts.TrajectoryStore.save`. Errors are relative to
float32, the largest over the segments.
"""

import random
import tempfile
import time
from pathlib import Path

import pandas as pd
from common import finish, parser

READS = 200


def _milliseconds(read, places) -> float:
    """Median time of one read, warm."""
    for place in places[:20]:
        read(*place)
    times = []
    for place in places:
        began = time.perf_counter()
        read(*place)
        times.append(time.perf_counter() - began)
    return 1e3 * sorted(times)[len(times) // 2]


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--width", type=int, default=32, help="channels of the ConvNet (default: 32)")
    p.add_argument("--images", type=int, default=2000, help="training images (default: 2000)")
    p.add_argument("--epochs", type=int, default=8, help="epochs of the expert (default: 8)")
    p.add_argument("--read-width", type=int, default=128, help="width of the network whose reads are timed")
    p.add_argument("--read-epochs", type=int, default=50, help="epochs of the trajectory whose reads are timed")
    p.add_argument("--root", help="folder of CIFAR-10 (torchvision's layout)")
    args = p.parse_args()

    import torch

    from tadlib import experts
    from tadlib.config import ExpertConfig
    from tadlib.data import load_dataset
    from tadlib.matching import Step, match
    from tadlib.nn import augment, speed
    from tadlib.nn.networks import Network, NetworkSpec
    from tadlib.nn.training import one_hot
    from tadlib.rng import generator
    from tadlib.store import load_tensors, save_tensors

    speed.prepare(args.threads)
    rng = generator(0, "benchmark")
    if args.root is None:
        x, y = torch.randn(args.images, 3, 16, 16, generator=rng), torch.randint(10, (args.images,), generator=rng)
    else:
        data = load_dataset("cifar10", root=args.root, n_train=args.images, n_test=10, resolution=16)
        x, y = data.x_train, data.y_train
    net = Network(NetworkSpec((3, 16, 16), 10, width=args.width, depth=3))
    config = ExpertConfig(count=1, epochs=args.epochs, batch=128)
    theta_EP = experts.train_expert(net, x, one_hot(y, 10), torch.ones(len(x)), config, seed=0)

    wide = Network(NetworkSpec((3, 32, 32), 10, width=args.read_width, depth=3))
    scale = (theta_EP[1] - theta_EP[0]).std()
    moves = scale * torch.randn(args.read_epochs + 1, wide.n_parameters, generator=rng)
    long_EP = wide.init(0) + moves.cumsum(0)
    n = args.read_epochs + 1

    with tempfile.TemporaryDirectory() as folder:
        full, half = experts.TrajectoryStore(Path(folder) / "full"), experts.TrajectoryStore(Path(folder) / "half")
        for store, small in ((full, False), (half, True)):
            store.save(0, long_EP, half=small)
            store.save(1, theta_EP, half=small)
        listed = Path(folder) / "list.safetensors"
        save_tensors(listed, {f"{e:03d}": row.clone() for e, row in enumerate(long_EP)})
        places = [(0, e) for e in random.Random(0).choices(range(n), k=READS)]
        began = time.perf_counter()
        load_tensors(listed)
        whole = 1e3 * (time.perf_counter() - began)
        kept = {
            "whole list": (listed.stat().st_size, whole, lambda e: theta_EP[e]),
            "float32": (full.path(0).stat().st_size, _milliseconds(full.read, places), lambda e: full.read(1, e)),
            "half": (half.path(0).stat().st_size, _milliseconds(half.read, places), lambda e: half.read(1, e)),
            "float16": (2 * long_EP.numel(), None, lambda e: theta_EP[e].half().float()),
            "bfloat16": (2 * long_EP.numel(), None, lambda e: theta_EP[e].bfloat16().float()),
        }
        segments = [(e, e + span) for span in (1, 2) for e in range(0, args.epochs - span, 2)]
        plan = []
        for _ in range(10):
            index = torch.randperm(100, generator=rng)[:50]
            plan.append(Step(index, augment.draw("color_crop_cutout_flip_scale_rotate", 50, rng)))

        def matched(read) -> list:
            images, labels = x[:100], one_hot(y[:100], 10)
            return [match(net, read(a), read(b), images, labels, torch.tensor(0.01), plan) for a, b in segments]

        exact = matched(lambda e: theta_EP[e])
        rows = []
        for name, (n_bytes, milliseconds, read) in kept.items():
            found = exact if name in ("whole list", "float32") else matched(read)
            loss = max(abs(m.loss / e.loss - 1).item() for m, e in zip(found, exact, strict=True))
            slope = max(
                ((m.grad_x - e.grad_x).norm() / e.grad_x.norm()).item() for m, e in zip(found, exact, strict=True)
            )
            rows.append(
                {
                    "method": name,
                    "bytes": n_bytes,
                    "bytes_ratio": n_bytes / kept["whole list"][0],
                    "read_milliseconds": milliseconds,
                    "loss_error": loss,
                    "gradient_error": slope,
                }
            )
    table = pd.DataFrame(rows).assign(width=args.width, read_width=args.read_width, epochs=args.epochs)
    finish("trajectory_store", table, args.out, args.threads)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
