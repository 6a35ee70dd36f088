"""Time and peak memory of the meta-gradient: exact (constant memory) against the unrolled graph, in one run.

    python benchmarks/meta_gradient.py [--width 32] [--batch 50] [--steps 10 20 40 80] [--out results/benchmarks]

Every measurement runs in a process of its own, so that its peak memory is its own; the two methods take turns, so that
a slow spell of a shared machine hits both. What counts are the ratios. Writes ``meta_gradient.parquet``.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

METHODS = ("exact", "unrolled")


def measure(method: str, n_steps: int, width: int, batch: int, repeats: int) -> dict:
    """Seconds (best of ``repeats``) and peak memory of one meta-gradient, above what the process held before it."""
    import torch

    from tadlib.distill.mtt import MttConfig, steps
    from tadlib.matching import match
    from tadlib.networks import Network, NetworkSpec
    from tadlib.rng import generator
    from tadlib.stages import peak_memory

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    net = Network(NetworkSpec((3, 32, 32), 10, width=width, depth=3))
    start, target = net.init(0), net.init(1)
    x = torch.randn(batch, 3, 32, 32, generator=generator(0, "benchmark"))
    y = torch.eye(10)[torch.arange(batch) % 10]
    config = MttConfig(syn_steps=n_steps)

    def once() -> float:
        plan = steps(config, batch, generator(0, "steps"))
        began = time.perf_counter()
        match(net, start, target, x, y, torch.tensor(0.01), plan, gradient=method)
        return time.perf_counter() - began

    match(net, start, target, x, y, torch.tensor(0.01), steps(config, batch, generator(0, "steps"))[:1])  # warm up
    with peak_memory(torch.device("cpu")) as peak:
        before = peak() or 0
        seconds = min(once() for _ in range(repeats))
        held = (peak() or 0) - before
    return {"method": method, "steps": n_steps, "seconds": seconds, "peak_bytes": held, "parameters": net.n_parameters}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=32, help="channels of the ConvNet (default: 32)")
    parser.add_argument("--batch", type=int, default=50, help="synthetic images in a student step (default: 50)")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20, 40, 80], help="student steps N")
    parser.add_argument("--repeats", type=int, default=2, help="the best of so many counts (default: 2)")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "N"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], int(args.one[1]), args.width, args.batch, args.repeats)))
        return
    rows = []
    for n_steps in args.steps:
        for method in METHODS:
            command = [sys.executable, __file__, "--one", method, str(n_steps), "--width", str(args.width)]
            command += ["--batch", str(args.batch), "--repeats", str(args.repeats)]
            rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            print(rows[-1], flush=True)
    from tadlib.artifacts import hardware, save_table, versions

    table = pd.DataFrame(rows)
    unrolled = table[table.method == "unrolled"].set_index("steps")
    table["time_ratio"] = table.seconds / table.steps.map(unrolled.seconds)
    table["memory_ratio"] = table.peak_bytes / table.steps.map(unrolled.peak_bytes)
    machine = hardware()
    table = table.assign(
        width=args.width,
        batch=args.batch,
        hardware=machine.get("gpu") or machine.get("cpu"),
        torch_version=versions()["torch"],
        tadlib_version=versions()["tadlib"],
    )
    save_table(args.out / "meta_gradient.parquet", table)
    print(table.drop(columns=["hardware"]).to_string(index=False))


if __name__ == "__main__":
    main()
