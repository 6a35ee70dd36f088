"""Benchmarks without a figure as tables of the page *Speed*: the rows of ``benchmarks/decoding.py``, of
``large_images.py``, with and without ``--step``, and of ``real_side.py``."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from tadbook.pages import NONE_YET, captioned, machine
from tadbook.tables import over_seeds
from tadlib.store import load_table, write_atomic


def write_speed(results_dir: Path | str, target_dir: Path | str) -> list[Path]:
    """Write ``decoding.md``, ``large_images.md``, ``large_images_step.md`` and ``real_side.md``, which the page
    includes; returns them."""
    parts: dict[str, Callable[[pd.DataFrame], str]] = {
        "decoding": _decoding_fragment,
        "large_images": _large_images_fragment,
        "large_images_step": _step_fragment,
        "real_side": _real_side_fragment,
    }
    target, written = Path(target_dir), []
    target.mkdir(parents=True, exist_ok=True)
    for name, fragment in parts.items():
        path = Path(results_dir, "benchmarks", f"{name}.parquet")
        text = fragment(load_table(path)) if path.exists() else NONE_YET
        written.append(target / f"{name}.md")
        write_atomic(written[-1], f"{text}\n".encode())
    return written


def decoding_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each number and size of images of ``benchmarks/decoding.py``: rates and memory relative to what they
    are measured by."""
    shown = {"speed": "images a second", "cpu_speed": "images a processor second", "memory": "memory"}
    ratios = {name: rows[name].map("{:.2f}".format) for name in shown}
    return rows.assign(**ratios)[["images", "side", *shown]].rename(columns=shown)


def _decoding_fragment(rows: pd.DataFrame) -> str:
    caption = (
        "Reading a folder of JPEG files of 500 × 400 pixels into square images: images a second, and a processor "
        "second, relative to torchvision's decoder alone, which neither resizes nor keeps them; and peak memory "
        "relative to the tensors that are left."
    )
    commands = (
        f"$ python benchmarks/decoding.py --images {images} --sides {' '.join(map(str, of['side']))}"
        for images, of in rows.groupby("images")
    )
    again = "\n".join(["```console", *commands, "```"])
    return f"{captioned(decoding_table(rows), 'decoding', caption)}\n\n{machine(rows)}\n\n{again}"


def large_images_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each stage of a run of ``benchmarks/large_images.py``, in minutes on the clock and of processors, and
    one for all together."""
    words = {"noise": "reading the images", "divert": "diversion", "observer": "the observer", "distill": "RDED"}
    times = {word: (rows[f"seconds_{name}"], rows[f"cpu_seconds_{name}"]) for name, word in words.items()}
    times["together"] = tuple(sum(each) for each in zip(*times.values()))
    minutes = {word: [f"{of.mean() / 60:.1f}" for of in both] for word, both in times.items()}
    return pd.DataFrame(
        [[word, *of] for word, of in minutes.items()], columns=["stage", "minutes", "processor minutes"]
    )


def _large_images_fragment(rows: pd.DataFrame) -> str:
    row = rows.iloc[0]
    at = f"{row['side']} × {row['side']} pixels in ten classes, read at {row['resolution']} × {row['resolution']}"
    caption = (
        f"RDED on a folder of {row['images']:,} JPEG files of {at}, ten images per class, arm {row['arm']} (predictor: "
        f"patches), with a ResNet-18 as the observer, trained for {row['epochs']} epochs: what every stage takes."
    )
    memory = f"Peak memory of the process: {row['peak_memory_bytes'] / 1e9:.1f} GB."
    again = f"```console\n$ python benchmarks/large_images.py --root DATA --threads {row['threads']}\n```"
    shown = captioned(large_images_table(rows), "large-images", caption)
    return f"{shown}\n\n{memory} {machine(rows)}\n\n{again}"


def _step_fragment(rows: pd.DataFrame) -> str:
    caption = (
        "One training step of RDED's observer, a ResNet-18, on images held as bytes: processor milliseconds an image "
        "in its parts and as a whole, in a step whose images keep the plain layout in memory (networks with batch norm "
        "put channels side by side on a CPU), and in a step of torchvision's ResNet-18 on images that lie ready as "
        "floats. "
        "*Ratio*: conversion, augmentation and step together, in units of torchvision's step."
    )
    shown = {"resolution": "side", "batch": "batch"}
    times = {"convert": "conversion", "augment": "augmentation", "optimiser": "optimiser", "step": "step"}
    times |= {"plain_layout": "step, plain layout", "torchvision": "torchvision's step"}
    table = rows.assign(**{f"cpu_ms_{name}": rows[f"cpu_ms_{name}"].map("{:.2f}".format) for name in times})
    table = table.assign(ratio=rows["ratio"].map("{:.2f}".format))
    table = table[[*shown, *(f"cpu_ms_{name}" for name in times), "ratio"]]
    table = table.rename(columns=shown | {f"cpu_ms_{name}": word for name, word in times.items()})
    again = "```console\n$ python benchmarks/large_images.py --step --batch 16\n```"
    return f"{captioned(table, 'large-images-step', caption)}\n\n{machine(rows)}\n\n{again}"


def real_side_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each variant of ``benchmarks/real_side.py``: means over seeds, with half of the 95 % interval of
    accuracy."""
    return pd.DataFrame(
        {
            "real images": variant,
            "before the first iteration (s)": over_seeds(of["cpu_seconds_before"], 1, 1),
            "an iteration (ms)": over_seeds(of["cpu_ms_iteration"], 1, 0),
            "test accuracy (%)": over_seeds(of["accuracy"], 100, 1),
        }
        for variant, of in rows.groupby("variant", sort=False)
    )


def _real_side_fragment(rows: pd.DataFrame) -> str:
    caption = (
        "DANCE as it is, which draws real images anew in every iteration, and with the mean features of real images "
        "computed once, for a fixed bank of networks and over several augmentations: processor seconds of the "
        f"preparation, milliseconds of an iteration, and test accuracy ({rows['iterations'].iloc[0]} iterations, "
        f"{rows['ipc'].iloc[0]} images per class). Mean ± half of the 95 % interval over seeds; without an interval "
        "where there are fewer than three."
    )
    means = rows.groupby("variant")[["cpu_seconds_before", "cpu_ms_iteration"]].mean()
    paid = ""
    if {"drawn", "computed once"} <= {*means.index}:
        more, saved = means.loc["computed once"] - means.loc["drawn"]
        if saved < 0:
            paid = f"The preparation pays off after {more / -saved * 1000:,.0f} iterations. "
    again = "Made by `python benchmarks/real_side.py --root DATA`."
    return f"{captioned(real_side_table(rows), 'real-side', caption)}\n\n{paid}{machine(rows)} {again}"
