"""Broken, foreign and hostile input of all kinds: it is answered with one line, and nothing else comes of it.

Seeded and bounded. TADLIB_FUZZ is the number of cases (default 500), TADLIB_FUZZ_SEED another series of them. A case is
made anew by its kind and number: ``TADLIB_FUZZ_ONLY=labels:17``.
"""

import io
import json
import os
import pickle
import random
import shutil
import signal
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import tadlib as tad_module
from tadlib import cli, config, distill, noise, pipeline, store
from tadlib.config import Config
from tadlib.data import load_dataset
from tadlib.distill.synthetic import Synthetic
from tadlib.errors import InputError
from tadlib.evaluate import evaluate
from tadlib.experts import train_expert
from tadlib.nn.networks import Network, NetworkSpec
from tadlib.noise import NoisyLabels
from tadlib.trust import NoisyProblem
from workflow.load import load_grid

COUNT, SEED = int(os.environ.get("TADLIB_FUZZ", "500")), os.environ.get("TADLIB_FUZZ_SEED", "0")
ONLY = os.environ.get("TADLIB_FUZZ_ONLY", "")
SECONDS = 30  # limit of a case
TINY = "--n-train 200 --n-test 100 --ipc 1 --device cpu --method random --arm vanilla --noise pairflip --rate 0.3 --set"
TINY += " width=4 evaluate_networks=2 evaluate_epochs=2"
TRUE = torch.arange(200) % 10


class Hang(BaseException):
    """A case that took longer than its limit; no ``except Exception`` stops it."""


class Trap:
    """Creates a folder when unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise Hang after so many seconds."""

    def late(*_: object) -> None:
        raise Hang(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def files(folder: Path) -> dict[str, bytes]:
    """Content of all files below, but for pipes and broken links."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def tad(*arguments: object) -> int:
    """Run the command; whatever it is given it answers with a status of 0, 1 or 2, and at most one line of error."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            status = cli.main([str(argument) for argument in arguments])
    except SystemExit as exit:  # the arguments cannot be read: tyro says why
        return 2 if exit.code == 2 else pytest.fail(f"exit status {exit.code}")
    said = err.getvalue()
    assert "Traceback" not in said, said
    assert status in (0, 1, 2), status
    errors = [line for line in said.splitlines() if line.startswith("tad: error: ")]
    assert len(errors) == (status != 0), said
    return status


def asked(function: Callable, *arguments: Any, **options: Any) -> Any:
    """What ``function`` answers; None where it refuses its input."""
    try:
        return function(*arguments, **options)
    except InputError as error:
        return None if str(error).strip() else pytest.fail("an InputError that says nothing")


# Damage --------------------------------------------------------------------------------------------------------------


def damaged(draw: random.Random, content: bytes, trap: Path) -> bytes:
    """Truncated, with flipped bits, with a part repeated, zeroed or replaced, or something else altogether."""
    content = content or b"\0"
    n = len(content)
    way = draw.choice(["cut", "cut", "flip", "flip", "flip", "part", "zero", "noise", "empty", "pickle", "text"])
    if way == "cut":
        return content[: draw.randrange(n + 1)]
    if way == "flip":
        changed = bytearray(content)
        for _ in range(draw.choice([1, 1, 3, 20])):
            changed[draw.randrange(min(n, draw.choice([64, n])))] ^= 1 << draw.randrange(8)
        return bytes(changed)
    if way in ("part", "zero"):
        start = draw.randrange(n)
        end = min(n, start + draw.randrange(1, 64))
        return content[:start] + (content[start:end] * 2 if way == "part" else bytes(end - start)) + content[end:]
    if way == "noise":
        return draw.randbytes(draw.randrange(200))
    return {"empty": b"", "pickle": pickle.dumps(Trap(trap)), "text": b"index,given_label\n0,\xff\n"}[way]


def safetensors(header: object, body: bytes = b"") -> bytes:
    """A file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def npy(header: str, body: bytes = b"") -> bytes:
    """An array with any header."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header.encode() + b"\n" + body


HEADERS = [  # sizes that are negative, do not exist, or do not belong to the body
    safetensors({"x": {"dtype": "I64", "shape": [-200], "data_offsets": [0, 1600]}}, bytes(1600)),
    safetensors({"x": {"dtype": "I64", "shape": [2**62], "data_offsets": [0, 8]}}, bytes(8)),
    safetensors({"x": {"dtype": "I64", "shape": [200], "data_offsets": [1600, 0]}}, bytes(1600)),
    safetensors({"x": {"dtype": "Q7", "shape": [1], "data_offsets": [0, 8]}}, bytes(8)),
    safetensors({"__metadata__": {"tadlib": "[" * 5000}}),
    safetensors({"__metadata__": {"tadlib": '{"metadata": [1]}'}}),
    safetensors(b"[" * 3000),
    struct.pack("<Q", 2**63) + b"{}",
]
ARRAYS = [
    npy("{'descr': '<i8', 'fortran_order': False, 'shape': (-3,), }", bytes(24)),
    npy("{'descr': '<i8', 'fortran_order': False, 'shape': (99999999999999,), }", bytes(24)),
    npy("{'descr': '<i8', 'fortran_order': False, 'shape': (10**99,), }"),
    npy("{'descr': '|O', 'fortran_order': False, 'shape': (200,), }", pickle.dumps([0] * 200)),
    npy("{'descr': [('a', '<i8')], 'fortran_order': False, 'shape': (200,), }", bytes(1600)),
    npy("__import__('os').mkdir('sprung')"),
    npy("(" * 2000),
]
WORDS = [
    "",
    "nan",
    "NaN",
    "None",
    "1e400",
    "2.5",
    "٣",
    "0x1",
    "9" * 30,
    "9" * 5000,
    "-1",
    "10",
    "3_0",
    " 3 ",
    "=1+1",
    "\0",
]


# Kinds of cases ------------------------------------------------------------------------------------------------------


def labels(draw: random.Random, case: Path) -> None:
    """A file of labels."""
    suffix = draw.choice([".csv", ".csv", ".npy", ".parquet", ".safetensors", "plain.safetensors"])
    path, values = case / f"in/labels{suffix}", TRUE.tolist()
    for _ in range(draw.randrange(80)):
        values[draw.randrange(200)] = draw.randrange(10)
    columns: dict[str, list] = {"index": list(range(200)), "given_label": values}
    if suffix == ".csv":
        lines = [",".join(columns), *(f"{i},{y}" for i, y in enumerate(values))]
        for _ in range(draw.randrange(3)):
            i = draw.randrange(len(lines))
            lines[i] = draw.choice(
                [f"{i},", "", lines[i] + ",1", *(f"{i},{word}" for word in WORDS), '"', lines[i - 1]]
            )
        coding = draw.choice(["utf-8", "utf-8-sig", "utf-8", "utf-16"])
        path.write_bytes(draw.choice(["\n", "\r\n", "\n", "\r"]).join(lines).encode(coding))
    elif suffix == ".npy":
        np.save(path, np.array(values, dtype=draw.choice(["int8", "int64", "uint16", "float32", "<U3", "bool"])))
    elif suffix == ".parquet":
        odd: list[list] = [[None] * 200, [str(y) for y in values], [[y] for y in values], [y + 0.5 for y in values]]
        name = draw.choice(["index", "given_label", "path", "weight"])
        frame = pd.DataFrame(columns | ({name: draw.choice(odd)} if draw.random() < 0.5 else {}))
        (frame.set_index("index") if draw.random() < 0.3 else frame.sample(frac=1, random_state=0)).to_parquet(path)
    elif suffix == ".safetensors":
        made = torch.tensor(values)
        NoisyLabels(made, TRUE, 10, "pairflip", 0.4, 0, noise.transition(TRUE, made, 10)).save(path)
    else:
        save_file({"labels": torch.tensor(values, dtype=draw.choice([torch.int64, torch.int8, torch.bfloat16]))}, path)
    if draw.random() < 0.6:
        hostile = {".npy": ARRAYS, ".safetensors": HEADERS}.get(path.suffix, [])
        content = damaged(draw, path.read_bytes(), case / "sprung")
        path.write_bytes(draw.choice(hostile) if hostile and draw.random() < 0.4 else content)
    if draw.random() < 0.1:
        path = path.rename(path.with_suffix(draw.choice([".csv", ".npy", ".parquet", ".safetensors", ".txt"])))
    asked(noise.list_checksum, path)
    made = asked(noise.inject, TRUE, f"file:{path}", None, n_classes=10, seed=0)
    assert made is None or (len(made.noisy_N) == 200 and 0 <= made.rate < 1)
    if draw.random() < 0.3:
        options = ["--dataset", "digits", "--arm", "vanilla", "--device", "cpu", "--n-train", "200"]
        tad("divert", *options, "--noise", f"file:{path}", "--out", case / "out")


def human(draw: random.Random, case: Path) -> None:
    """A file of human labels, which is a pickle."""
    path = case / "in/CIFAR-10_human.pt"
    kind: Any = draw.choice([np.int8, np.int32, np.int64, np.float32, object])
    torch.save({"clean_label": TRUE.numpy().astype(kind), "worse_label": TRUE.numpy()}, path)
    if draw.random() < 0.8:
        path.write_bytes(damaged(draw, path.read_bytes(), case / "sprung"))
    about = {"n_classes": 10, "seed": 0, "dataset": "cifar10", "root": path.parent}
    made = asked(noise.inject, TRUE, "human:worse", None, **about)
    assert made is None or len(made.noisy_N) == 200


def images(draw: random.Random, case: Path) -> None:
    """A folder of images, Tiny ImageNet's."""
    folder, lines = case / "in/tiny-imagenet-200", []
    for k, wnid in enumerate(("n01", "n02")):
        for i in range(2):
            for part in (folder / "train" / wnid / "images" / f"{i}.JPEG", folder / "val/images" / f"{k}{i}.JPEG"):
                part.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((64, 64, 3), 60 * k + 9 * i, dtype=np.uint8)).save(part)
            lines.append(f"{k}{i}.JPEG\t{wnid}\t0\t0\t63\t63")
    (folder / "val/val_annotations.txt").write_text("\n".join(lines))
    (folder / "words.txt").write_text("n01\tone\nn02\ttwo, too\n")
    for _ in range(draw.randrange(1, 3)):
        path = draw.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
        way = draw.choice(["damage", "damage", "16 bits", "large", "name", "beside", "gone", "float", "folder"])
        if way == "damage":
            path.write_bytes(damaged(draw, path.read_bytes(), case / "sprung"))
        elif way == "16 bits":
            Image.fromarray(np.full((64, 64), 40000, dtype=np.uint16)).save(path, format="PNG")
        elif way == "float":
            Image.fromarray(np.full((64, 64), np.nan, dtype=np.float32)).save(path, format="TIFF")
        elif way == "large":
            header = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + struct.pack(">IIBBBBB", 10**6, 10**6, 8, 2, 0, 0, 0)
            path.write_bytes(header + bytes(4))
        elif way == "name":
            name = draw.choice(["../../../etc/passwd", "/etc/passwd", "", "\0", "x" * 300, "00.JPEG\tn03"])
            (folder / "val/val_annotations.txt").write_text("\n".join([*lines, f"{name}\tn01"]))
        elif way == "beside":
            (path.parent / draw.choice(["._0.JPEG", ".DS_Store", "Thumbs.db"])).write_bytes(b"\0\5\x16\7")
        elif way == "gone":
            path.unlink()
        else:
            path.unlink()
            path.mkdir()
    data = asked(load_dataset, "tiny-imagenet", root=case / "in")
    assert data is None or data.x_train.isfinite().all()


def tensors(draw: random.Random, case: Path) -> None:
    """Images, labels, weights and networks that do not belong together, in every public function: all are refused."""
    net = Network(NetworkSpec((1, 8, 8), 10, width=4, depth=2))
    x, y, w = torch.randn(40, 1, 8, 8), torch.eye(10).repeat(4, 1), torch.ones(40)
    label = torch.arange(40) % 10
    nan = torch.full_like(x, torch.nan)
    bad_x: list[Any] = [x.numpy(), x.double(), x.byte(), x[:-1], x.permute(0, 2, 3, 1), x.repeat(1, 3, 1, 1), nan, None]
    bad_x += [x[..., :7], x.flatten(1), x.clone().requires_grad_(), x[:0], x.tolist()]
    bad_y: list[Any] = [label, y.numpy(), y.double(), y.long(), y[:-1], y[:, :9], y * 2, y - 0.1, y * torch.nan, None]
    bad_w: list[Any] = [w.numpy(), w.long(), w[:-1], -w, w * torch.inf, None, w[:, None]]
    bad_label: list[Any] = [label.numpy(), label.int(), label[:-1], label + 1, -label, label.float(), y, None]
    bad_net = [
        Network(NetworkSpec(*of, width=4, depth=2)) for of in (((3, 8, 8), 10), ((1, 16, 16), 10), ((1, 8, 8), 9))
    ]

    def one_of(good: list, bad: list[list]) -> list:
        i = draw.randrange(len(good))
        return [draw.choice(bad[i]) if i == j else value for j, value in enumerate(good)]

    method = draw.choice(list(distill.METHODS))
    which = draw.choice(["distill", "expert", "trust", "evaluate", "noise"])
    call: Callable[[], Any]
    if which in ("distill", "expert"):
        four = one_of([net, x, y, w], [bad_net, bad_x, bad_y, bad_w])
        experts = (None,) if which == "distill" else ()
        settings = config.METHODS[method]() if which == "distill" else config.ExpertConfig(epochs=1)
        function, more = (distill.METHODS[method], {"ipc": 1}) if which == "distill" else (train_expert, {})
        call = partial(function, *four, *experts, settings, seed=0, **more)
    elif which == "trust":
        call = partial(NoisyProblem, *one_of([net, x, label], [bad_net, bad_x, bad_label]), 10, 0)
    elif which == "evaluate":
        n, a, b, c, d = one_of([net, x, y, x, label], [bad_net, bad_x, bad_y, bad_x, bad_label])
        call = partial(evaluate, n, Synthetic(a, b, 0.1), c, d, config.Protocol(networks=1, epochs=2), seed=0)
    else:
        true, x = one_of([label, x], [bad_label[:2] + bad_label[3:], bad_x[:4] + bad_x[6:7]])
        call = partial(noise.inject, true, "instance", 0.4, n_classes=10, seed=0, x_NCHW=x)
    with pytest.raises(InputError):
        call()


VALUES: list[Any] = [None, True, -1, 0, 0.5, 3, 10**30, 1e308, float("nan"), float("inf"), "", "x" * 999, "\0", [1], {}]
VALUES += [
    "1",
    "'",
    "nan",
    "../..",
    "cuda:77",
    "none",
    "human:worse",
    "file:",
    "file:/",
    "file:.",
    "pairflip:1",
    -0.0,
    b"x",
]


def configurations(draw: random.Random, case: Path) -> None:
    """Settings, in Python and as options."""
    names = [*config.param_types(), "raet", "", "__class__", "mtt_", "auditor"]
    given = {draw.choice(names): draw.choice(VALUES) for _ in range(draw.randrange(1, 4))}
    made = asked(Config.from_params, **given)
    if made is not None:
        assert Config.from_params(**json.loads(json.dumps(made.to_params(), allow_nan=False))) == made
    name, value = draw.choice(list(given.items()))
    texts = [f"{name}={value}", f"{name}={json.dumps(value, default=str)}", f"{name}", f"={value}"]
    tad("divert", "--out", case / "out", *TINY.split(), draw.choice(texts))
    options = ["--seed", "--rate", "--ipc", "--n-train", "--threads", "--dataset", "--noise", "--device", "--preset"]
    extra = [
        draw.choice(options),
        draw.choice(["-1", "0", "1e9", "99999999999999999999", "nan", "", "x", "\0", "file:x"]),
    ]
    tad("divert", *TINY.split(), "--out", case / "out", *extra)


def grids(draw: random.Random, case: Path) -> None:
    """A grid's file."""
    path = case / "in/some.yml"
    text = "shared:\n  dataset: digits\n  arm: [vanilla, tad]\nblocks:\n  - {noise: pairflip, rate: [0.2, 0.4]}\n"
    lines = text.splitlines()
    lines[draw.randrange(len(lines))] = draw.choice(
        [
            "[" * 2000,
            "a: &a [x,x]\nb: &b [*a,*a,*a]\nc: &c [*b,*b,*b]\nd: [*c,*c,*c]",
            "\n".join(
                f"a{i}: &a{i} [{','.join(f'*a{i - 1}' for _ in range(9))}]" if i else "a0: &a0 [x]" for i in range(30)
            ),
            "arm: &x {<<: *x}",
            "a: !!python/object/apply:os.mkdir [sprung]",
            "x: &x [*x]",
            "{[1]: 2}",
            "\t",
            "rate: .nan",
            "- 1",
            ": :",
        ]
        + [f"  {name}: {json.dumps(draw.choice(VALUES[:14]))}" for name in draw.sample(sorted(config.param_types()), 3)]
    )
    content = "\n".join(lines).encode()
    path.write_bytes(damaged(draw, content, case / "sprung") if draw.random() < 0.4 else content)
    asked(load_grid, path)


def paths(draw: random.Random, case: Path) -> None:
    """Paths of all kinds, wherever a path is taken."""
    (case / "in/file").write_text("mine")
    (case / "in/loop").symlink_to(case / "in/loop")
    os.mkfifo(case / "in/pipe")
    inside = ["in/file", "in/file/below", "in/loop", "in/pipe", "in", "out/{grid}", "out/é ü", "out/a\nb", "out/-x"]
    inside += ["out/" + "x" * 300, "out/" + "d/" * 3000, "out/\0", "out/%s", "out/\udcff"]
    path = draw.choice([*(f"{case}/{name}" for name in inside), "", "~nobody-of-that-name/x", "~/out"])
    command = draw.choice(["divert", "run", "info", "export", "evaluate", "noise", "root", "export to"])
    if command in ("divert", "run"):
        tad(command, *TINY.split(), f"--out={path}")
    elif command in ("info", "export", "evaluate"):
        tad(command, path, *(["--out", case / "out"] if command == "export" else []))
    elif command == "noise":
        tad("divert", "--arm", "vanilla", "--device", "cpu", f"--noise=file:{path}", "--out", case / "out")
    elif command == "root":
        dataset = draw.choice(["cifar10", "tiny-imagenet", "fashion-mnist"])
        tad("divert", "--arm", "vanilla", "--dataset", dataset, f"--root={path}", "--out", case / "out")
    else:
        tad("export", finished_run() / "distilled.safetensors", f"--out={path}")
    assert (case / "in/file").read_text() == "mine"


FINISHED: list[Path] = []  # output folder of a run that nobody disturbed


def finished_run() -> Path:
    """The folder of its distilled set."""
    return next((FINISHED[0] / "distill").iterdir())


HOSTILE = [{}, [], None, {"files": {"../../../in/file": {"bytes": 4, "sha256": ""}}}, {"files": {"/etc/passwd": {}}}]
HOSTILE += [{"files": {"labels.parquet": {"bytes": -1, "sha256": 3}}}, {"files": {"a": {"bytes": 1e999, "sha256": ""}}}]


def artefacts(draw: random.Random, case: Path) -> None:
    """A finished run with damaged, swapped and hostile files: commands refuse them, or compute them anew."""
    out = case / "out"
    shutil.copytree(FINISHED[0], out)
    (case / "in/file").write_text("mine")
    existing = sorted(p for p in out.rglob("*") if p.is_file() and p.suffix)
    for _ in range(draw.randrange(1, 3)):
        path, other = draw.choice(existing), draw.choice(existing)
        way = draw.choice(["damage", "damage", "damage", "swap", "gone", "folder", "hostile", "checkpoint", "header"])
        if not path.is_file():
            continue
        if way == "damage":
            path.write_bytes(damaged(draw, path.read_bytes(), case / "sprung"))
        elif way == "swap" and other.is_file():
            path.write_bytes(other.read_bytes())
        elif way == "hostile":
            (path.parent / store.MANIFEST).write_text(json.dumps(draw.choice(HOSTILE)))
        elif way == "header":
            path.write_bytes(draw.choice(HEADERS))
        elif way == "checkpoint":
            (path.parent / store.MANIFEST).unlink(missing_ok=True)
            content = next((out / "distill").glob("*/distilled.safetensors"), path)
            shutil.copy(content, path.parent / store.CHECKPOINT) if content.is_file() else None
        else:
            path.unlink()
            if way == "folder":
                path.mkdir()
    folder = draw.choice(sorted(p for p in out.glob("*/*") if p.is_dir()))
    distilled = next((out / "distill").iterdir())
    distilled = draw.choice([distilled, distilled / "distilled.safetensors", folder])
    command = draw.choice(["info", "export", "evaluate", "run", "run", "divert"])
    if command == "info":
        tad("info", folder)
    elif command == "export":
        tad("export", distilled, "--out", case / "out2", "--format", "png", "huggingface", "ddranking")
    elif command == "evaluate":
        tad("evaluate", distilled, "--device", "cpu", "--set", "evaluate_networks=1")
    elif command == "divert":
        tad("divert", *TINY.split(), "--out", out)
    elif tad("run", *TINY.split(), "--out", out) == 0:
        found, expected = (next((o / "evaluate").glob("*/accuracies.json")) for o in (out, FINISHED[0]))
        assert found.read_bytes() == expected.read_bytes()
    assert (case / "in/file").read_text() == "mine"


def distilled_sets(draw: random.Random, case: Path) -> None:
    """The file of a distilled set whose parts are wrong though it can be read."""
    source = finished_run() / "distilled.safetensors"
    held, metadata = store.load_tensors(source), store.load_metadata(source)
    about = json.loads(metadata["distilled"])
    way = draw.choice(["tensor", "about", "params", "text"])
    if way == "tensor":
        name = draw.choice(["x", "y", "pixels"])
        t = held[name]
        held[name] = draw.choice(
            [t * torch.nan, t[:-1], t.double(), t.long(), t[..., None], -t - 1, t[:0], t.flatten()]
        )
    elif way == "text":
        metadata["distilled"] = draw.choice(["", "[]", "[" * 5000, "null", '{"lr": 1}', "\0"])
    else:
        part = about if way == "about" else about["params"]
        name = draw.choice(sorted(part))
        if draw.random() < 0.3:
            del part[name]
        else:
            part[name] = draw.choice([v for v in VALUES if not isinstance(v, bytes) and v == v and abs(hash(str(v)))])
    if way != "text":
        with suppress(ValueError):
            metadata["distilled"] = json.dumps(about)
    path = case / "in/distilled.safetensors"
    store.save_tensors(path, held, metadata)
    tad("info", path)
    tad("export", path, "--out", case / "out2", "--format", "png", "huggingface", "ddranking")
    if way != "params":  # settings may ask for much work
        tad("evaluate", path, "--device", "cpu")


MODES = {".png": ("1", "L", "LA", "I;16", "P", "RGB", "RGBA"), ".tif": ("L", "F", "CMYK", "RGB", "YCbCr")}
MODES |= {".jpg": ("L", "RGB", "CMYK"), ".gif": ("L", "P"), ".bmp": ("1", "L", "RGB"), ".webp": ("RGB", "RGBA")}


def picture(draw: random.Random, mode: str, side: int = 8) -> Image.Image:
    """Noise in a mode."""
    if mode == "I;16":
        return Image.fromarray(np.frombuffer(draw.randbytes(2 * side * side), np.uint16).reshape(side, side))
    image = Image.frombytes("RGB", (side, side), draw.randbytes(3 * side * side))
    return image.convert("L").convert(mode) if mode in ("1", "L", "LA", "F") else image.convert(mode)


def bomb(kind: str) -> bytes:
    """A file of a few bytes that says that it holds a picture of a million by a million pixels, or of none."""
    if kind == "gif":
        return b"GIF89a\xff\xff\xff\xff\xf7\0\0" + bytes(768) + b",\0\0\0\0\xff\xff\xff\xff\0\x08\0;"
    if kind == "bmp":
        return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 10**6, 10**6, 1, 24, 0, 0, 0, 0, 0, 0)
    if kind == "ppm":
        return b"P6 1000000 1000000 255\n"
    side = 0 if kind == "none" else 10**6
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0) + bytes(4)


def own_images(draw: random.Random, case: Path) -> None:
    """A folder or a table of the user's own images with odd, damaged and hostile files."""
    folder, listed = case / "in/photos", []
    for k in ("cat", "dog"):
        for i in range(6):
            suffix = draw.choice(list(MODES))
            path = folder / k / f"{i}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = picture(draw, draw.choice(MODES[suffix]))
            exif = Image.Exif()
            exif[274] = draw.choice([1, 6, 8])
            image.save(path, **({"exif": exif} if suffix == ".jpg" else {}))
            listed.append((f"{k}/{path.name}", k))
    (folder / "cat").chmod(0o755)
    for _ in range(draw.randrange(1, 5)):
        path = draw.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
        way = draw.choice(
            ["damage", "damage", "damage", "bomb", "pipe", "loop", "above", "name", "exif", "empty class"]
        )
        if way == "damage":
            path.write_bytes(damaged(draw, path.read_bytes(), case / "sprung"))
        elif way == "bomb":
            path.write_bytes(bomb(draw.choice(["png", "gif", "bmp", "ppm", "none"])))
        elif way == "pipe":
            path.unlink()
            os.mkfifo(path)
        elif way == "loop":
            path.unlink()
            path.symlink_to(path)
        elif way == "above" and not (path.parent / "above").is_symlink():
            (path.parent / "above").symlink_to(draw.choice([path.parent, folder, case / "in"]))
        elif way == "name":
            names = [
                "a\nb.png",
                "-x.png",
                "é ü.png",
                "<b>.png",
                "x" * 240 + ".png",
                b"\xff.png".decode(errors="surrogateescape"),
            ]
            path.rename(path.parent / draw.choice([*names, ".hidden.png"]))
        elif way == "exif":
            path.write_bytes(path.read_bytes().replace(b"Exif", draw.choice([b"Exif\0\0MM\0*\xff", b"Exjf"])))
        else:
            (folder / draw.choice(["empty", "__MACOSX", ".git", "train", "test"])).mkdir(exist_ok=True)
    source = f"folder:{folder}"
    if draw.random() < 0.4:
        i = draw.randrange(len(listed))
        odd = ["../../../etc/passwd", "/etc/passwd", "", "\0", "cat", "x" * 5000, "/dev/zero", "nan", "'", '"']
        listed[i] = (draw.choice([*odd, listed[i][0]]), draw.choice(["cat", "", "nan", "\0", "9" * 99, "=1+1"]))
        table = case / "in/photos/table.csv"
        table.write_text("\n".join(["path,label", *(f"{path},{label}" for path, label in listed)]))
        if draw.random() < 0.5:
            table.write_bytes(damaged(draw, table.read_bytes(), case / "sprung"))
        source = f"table:{table}"
    options = ["--dataset", source, "--device", "cpu", "--out", case / "out", "--set", "width=4"]
    if draw.random() < 0.05:
        small = ["auditor_epochs=2", "auditor_warmup=1", "posterior_filters=4"]
        tad("audit", *options, *small, "--preset", "smoke", "--predictors", "patches")
    else:
        tad("divert", "--arm", "vanilla", "--resolution", "8", *options)


def corrections(draw: random.Random, case: Path) -> None:
    """A file of labels that a person checked."""
    suffix = draw.choice([".csv", ".csv", ".parquet", ".txt"])
    path, n = case / f"in/checked{suffix}", draw.randrange(1, 12)
    names = ["0", "3", "", "10", "cat", "nan", "3.0", " 3", "\0", "=1"]
    columns: dict[str, list] = {
        draw.choice(["index", "index", "path", "Index"]): draw.choice(
            [[*range(n)], [0] * n, [-1] * n, ["x"] * n, [10**30] * n]
        ),
        draw.choice(["label", "checked", "labels"]): [draw.choice(names) for _ in range(n)],
    }
    frame = pd.DataFrame(columns)
    if suffix == ".parquet":
        with suppress(Exception):
            frame.to_parquet(path)
    if not path.exists():
        frame.to_csv(path, index=False)
    if draw.random() < 0.5:
        path.write_bytes(damaged(draw, path.read_bytes(), case / "sprung"))
    arms = ["--arm", "vanilla", "--dataset", "digits", "--n-train", "200", "--device", "cpu"]
    tad("divert", *arms, "--corrections", path, "--out", case / "out")


def matrix_files(draw: random.Random, case: Path) -> None:
    """Embeddings and probabilities from files."""
    suffix, n = draw.choice([".npy", ".safetensors", ".parquet"]), draw.choice([200, 200, 1297, 7])
    path, made = case / f"in/p{suffix}", np.random.default_rng(draw.randrange(99)).dirichlet(np.ones(10), n)
    way = draw.choice(["as it is", "nan", "negative", "sum", "flat", "empty", "type", "constant", "cube"])
    if way in ("nan", "negative", "sum"):
        made[draw.randrange(n), 3] = {"nan": np.nan, "negative": -0.5, "sum": 7}[way]
    made = {"flat": made[:, 0], "empty": made[:0], "constant": made * 0 + 0.1, "cube": made[:, :, None]}.get(way, made)
    if suffix == ".npy":
        odd = draw.choice(["<U3", "complex64", "bool", "int8", ">f8"])
        np.save(path, made.astype(odd) if way == "type" else made)
    elif suffix == ".safetensors":
        t = torch.tensor(made)
        save_file(
            {"p": t.to(torch.bfloat16) if way == "type" else t} | ({"q": t.clone()} if way == "cube" else {}), path
        )
    else:
        flat = pd.DataFrame(made.reshape(len(made), made[0].size if len(made) else 10)).add_prefix("c")
        names: list[list] = [[*range(n)], [*range(n)][::-1], [0] * n, [-1] * n, [None] * n, ["x"] * n, [[1]] * n]
        flat = flat.assign(name="x") if way == "type" else flat
        if draw.random() < 0.4:
            flat[draw.choice(["index", "path"])] = draw.choice(names)[: len(flat)]
        flat.to_parquet(path)
    if draw.random() < 0.4:
        hostile = {".npy": ARRAYS, ".safetensors": HEADERS}.get(suffix, [])
        content = damaged(draw, path.read_bytes(), case / "sprung")
        path.write_bytes(draw.choice(hostile) if hostile and draw.random() < 0.4 else content)
    kind = draw.choice(["embeddings", "probabilities"])
    if draw.random() < 0.05:
        options = ["--arm", "tad-posterior", "--n-train", "200", "--n-test", "20", "--device", "cpu"]
        tad("divert", *options, "--predictors", f"{kind}:{path}", "--out", case / "out")
    else:  # all that can be known before work starts
        about = {"n_train": 200, "posterior_predictors": f"{kind}:{path}", "out": str(case / "out")}
        asked(lambda: pipeline.check(Config.from_params(arm="tad-posterior", **about)))


def arrays(draw: random.Random, case: Path) -> None:
    """Arguments of ``tad.find_label_errors``."""
    rng = np.random.default_rng(draw.randrange(99))
    y, p, z = np.arange(60) % 3, rng.dirichlet(np.ones(3), 60), rng.normal(size=(60, 5))
    x = rng.normal(size=(60, 8, 8))
    odd: list[Any] = [None, [], {}, "labels", 3, np.zeros((0, 3)), p[:, 0], p * np.nan, p[:7], p.astype(object)]
    odd += [
        p.astype(complex),
        p > 0.5,
        [[1], [2, 3]],
        torch.tensor(p).to_sparse(),
        p * 0,
        [None] * 60,
        x * np.inf,
        np.array("x"),
    ]
    odd += [
        pd.DataFrame(p),
        torch.tensor(z, requires_grad=True),
        x[..., None],
        x[:, None].repeat(3, 1),
        p.astype("<U5"),
    ]
    odd += [np.ma.masked_array(p, p > 0.5), x.astype(np.uint8), z.astype(np.float16), z * 1e300, p.astype(">f4")]
    bad_y: list[Any] = [
        y - 1,
        y + 0.5,
        y * 0,
        y[:, None],
        y.astype("<U1"),
        y[:5],
        list("abc") * 20,
        [None] * 60,
        y == 1,
    ]
    bad_y += [y + 10**6, y.astype(np.uint8), [2**70] * 60, None, y.tolist(), pd.Series(y), np.where(y == 1, 5, y)]
    given: dict[str, Any] = {"probabilities": p, "embeddings": z, "images": x}
    names = draw.sample(sorted(given), draw.randrange(1, 4))
    given = {name: draw.choice([*odd, given[name]]) for name in names}
    more = {"cost": draw.choice([0, -1, float("nan"), "x", None, 2])} if draw.random() < 0.3 else {}
    more |= {"seed": draw.choice([-1, 0.5, None, 2**70, "x"])} if draw.random() < 0.3 else {}
    table = asked(tad_module.find_label_errors, draw.choice([*bad_y, y, y]), **given, **more)
    assert table is None or table.trust.between(0, 1).all()


KINDS = {
    f.__name__: f
    for f in (
        own_images,
        corrections,
        matrix_files,
        arrays,
        labels,
        human,
        images,
        tensors,
        configurations,
        grids,
        paths,
        artefacts,
        distilled_sets,
    )
}
SHARES = {"labels": 3, "artefacts": 2, "configurations": 2, "tensors": 2}  # others 1


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> None:
    """A finished run, shared by the cases."""
    if not FINISHED:
        out = tmp_path_factory.mktemp("fuzz") / "runs"
        assert tad("run", *TINY.split(), "--out", out) == 0
        FINISHED.append(out)


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_given_is_answered_with_one_line(kind, run, tmp_path, monkeypatch):
    total = sum(SHARES.get(name, 1) for name in KINDS)
    for i in range(-(-COUNT * SHARES.get(kind, 1) // total)):
        if ONLY and f"{kind}:{i}" != ONLY:
            continue
        case = tmp_path / str(i)
        for name in ("in", "home", "cwd"):
            (case / name).mkdir(parents=True)
        monkeypatch.setenv("HOME", str(case / "home"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(case / "cache"))
        monkeypatch.chdir(case / "cwd")
        draw = random.Random(f"{SEED}-{kind}-{i}")
        torch.manual_seed(i)
        try:
            with limited(SECONDS), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what a file makes a reader warn of is no matter here
                KINDS[kind](draw, case)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            raise AssertionError(f"case {kind}:{i}, seed {SEED}: {type(error).__name__}: {error}") from error
        allowed = {"in", "home", "cwd", "cache", "out", "out2"}
        assert {p.name for p in case.iterdir()} <= allowed, f"case {kind}:{i} wrote beside its output folder"
        assert not files(case / "cwd"), f"case {kind}:{i} wrote where it was started"
        assert {name.split("/")[0] for name in files(case / "home")} <= {"out"}, f"case {kind}:{i} wrote to ~"
        shutil.rmtree(case)
