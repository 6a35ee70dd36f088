"""Time and peak memory of the meta-gradient: exact (constant memory), eager and compiled, against the unrolled graph.

    python benchmarks/meta_gradient.py --width 128 --batch 100 --steps 20 40 --methods compiled unrolled
    python benchmarks/meta_gradient.py --width 32 --batch 50 --steps 10 20 40 80 200 --memory-limit 8

Methods: ``compiled`` and ``exact`` (the same gradient, eager), ``unrolled`` (eager, memory kept between steps as the
library sets it up) and ``unrolled-plain`` (eager, with the settings of Python and torch, as the reference codes run).
Every measurement runs in its own process, for its peak memory; methods take turns, so that a slow phase of a shared
machine affects all. The ratios are what matters. Compilation is timed apart. A method that
needs more than ``--memory-limit`` GB of address space is recorded as out of memory. Rows of the same width, batch,
method and N replace older ones in ``meta_gradient.parquet``.
"""

import json

import pandas as pd
from common import clock, finish, give_back_memory, in_own_process, limited, parser

DSA = "color_crop_cutout_flip_scale_rotate"
METHODS = ("compiled", "exact", "unrolled", "unrolled-plain")

UNKNOWN = dict.fromkeys(("seconds", "cpu_seconds", "first_seconds", "peak_bytes", "parameters"), float("nan"))


def measure(method: str, steps: int, width: int, batch: int, threads: int, memory_limit: int | None) -> dict:
    """Seconds and peak memory of one meta-gradient, above what the process held before it."""
    import torch

    from tadlib.matching import Step, match
    from tadlib.nn import augment, speed
    from tadlib.nn.networks import Network, NetworkSpec
    from tadlib.pipeline import peak_memory
    from tadlib.rng import generator

    if method == "unrolled-plain":
        torch.set_num_threads(threads)
        torch.set_flush_denormal(True)
    else:
        speed.prepare(threads)
    net = Network(NetworkSpec((3, 32, 32), 10, width=width, depth=3))
    start, target = net.init(0), net.init(1)
    x = torch.randn(batch, 3, 32, 32, generator=generator(0, "benchmark"))
    y = torch.eye(10)[torch.arange(batch) % 10]
    random = generator(0, "steps")
    plan = [Step(torch.randperm(batch, generator=random), augment.draw(DSA, batch, random)) for _ in range(steps)]

    def once(n: int) -> None:
        kind = "unrolled" if method.startswith("unrolled") else "exact"
        match(net, start, target, x, y, torch.tensor(0.01), plan[:n], gradient=kind, compile=method == "compiled")

    first = clock(lambda: once(1))["seconds"]  # compiles, or warms up
    give_back_memory()
    with peak_memory(torch.device("cpu")) as peak:
        before = peak() or 0
        times = limited(lambda: clock(lambda: once(steps)), memory_limit)
        held = (peak() or 0) - before
    return {**times, "first_seconds": first, "peak_bytes": held, "parameters": net.n_parameters}


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--width", type=int, default=32, help="channels of the ConvNet (default: 32)")
    p.add_argument("--batch", type=int, default=50, help="synthetic images in a student step (default: 50)")
    p.add_argument("--steps", type=int, nargs="+", default=[10, 20, 40, 80, 200], help="student steps N")
    p.add_argument("--methods", nargs="+", choices=METHODS, default=["compiled", "exact", "unrolled"])
    p.add_argument("--memory-limit", type=float, default=8.0, help="GB that a measurement may take (default: 8)")
    args = p.parse_args()
    if args.one:
        print(json.dumps(measure(**json.loads(args.one))))
        return
    kept = args.out / "meta_gradient.parquet"
    table = pd.read_parquet(kept) if kept.exists() else pd.DataFrame()
    for steps in args.steps:
        for method in args.methods:
            case = {"method": method, "steps": steps, "width": args.width, "batch": args.batch}
            found = in_own_process({**case, "threads": args.threads}, int(args.memory_limit * 1e9))
            row = case | {"memory_limit_gb": args.memory_limit, "out_of_memory": found is None} | (found or UNKNOWN)
            print(row, flush=True)
            table = pd.concat([table, pd.DataFrame([row])]).drop_duplicates([*case], keep="last")
            finish("meta_gradient", table.sort_values(["width", "batch", "steps", "method"]), args.out, args.threads)


if __name__ == "__main__":
    main()
