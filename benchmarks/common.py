"""What the benchmarks share: processes of their own for each measurement, and what is kept beside the figures."""

import argparse
import ctypes
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

OUT_OF_MEMORY = 77  # exit status of a measurement that its memory limit ended


def parser(text: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    made.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    made.add_argument("--one", help=argparse.SUPPRESS)
    return made


def in_own_process(settings: dict, memory_limit: int | None = None) -> dict | None:
    """Run this benchmark once more with ``--one``; its answer, or None where it ran out of memory."""
    command = [sys.executable, sys.argv[0], "--one", json.dumps({**settings, "memory_limit": memory_limit})]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == OUT_OF_MEMORY:
        return None
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def limited(work: Callable[[], dict], memory_limit: int | None) -> dict:
    """``work()`` with at most ``memory_limit`` further bytes of address space."""
    if memory_limit is not None:
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + memory_limit, mapped + memory_limit))
    try:
        return work()
    except (MemoryError, RuntimeError) as error:
        if memory_limit is not None and ("memory" in str(error) or isinstance(error, MemoryError)):
            sys.exit(OUT_OF_MEMORY)
        raise


def give_back_memory() -> None:
    """Return freed memory to the system, so that what is held next counts from here."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def clock(work: Callable[[], object], repeats: int = 1) -> dict[str, float]:
    """Wall and processor seconds of ``work``, the best of ``repeats``; the latter do not see other processes."""
    walls, processor = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - wall)
        processor.append(time.process_time() - cpu)
    return {"seconds": min(walls), "cpu_seconds": min(processor)}


def finish(name: str, table: pd.DataFrame, out: Path, threads: int, device: str = "cpu") -> None:
    """Write the table with hardware (of ``device``) and versions, and the figure made from it, where there is one."""
    from tadbook.benchmarks import FIGURES, draw
    from tadlib.store import hardware, processor, save_table, versions

    machine = hardware()
    save_table(
        out / f"{name}.parquet",
        table.assign(
            threads=threads,
            hardware=processor(machine, device),
            cores=machine["cores"],
            torch_version=versions()["torch"],
            tadlib_version=versions()["tadlib"],
        ),
    )
    if name in FIGURES:
        draw(out, name)
