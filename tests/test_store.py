"""Promises of store.py: stable keys, files that are whole or absent, damage noticed and named, work done once."""

import json
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from tadlib import store
from tadlib.errors import InputError
from tadlib.rng import generator
from tadlib.store import (
    CHECKPOINT,
    MANIFEST,
    MARKER,
    StageFolder,
    claim_output,
    code_version,
    content_key,
    hardware,
    load_json,
    load_metadata,
    load_table,
    load_tensors,
    replacing,
    save_json,
    save_table,
    save_tensors,
    versions,
    write_atomic,
)

ROOT = Path(__file__).parents[1]
DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
]


@pytest.fixture
def start_python():
    """Run code in a fresh interpreter that finds tadlib; killed when the test ends."""
    processes: list[subprocess.Popen[str]] = []
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

    def start(code: str, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})
        processes.append(process)
        return process

    yield start
    for process in processes:
        kill(process)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()  # SIGKILL: nothing is cleaned up
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    def raw(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.contiguous().reshape(-1).view(torch.uint8)

    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(raw(a), raw(b))


def finish(folder: StageFolder, **changes) -> None:
    folder.finish(**{"stage": "divert", "config": {"rate": 0.4}, "inputs": {"noise": "n"}} | changes)


@pytest.fixture
def finished(tmp_path: Path) -> StageFolder:
    folder = StageFolder(tmp_path / "divert" / "k")
    save_tensors(folder.path / "experts.safetensors", {"theta_P": torch.arange(100.0)})
    save_table(folder.path / "labels.parquet", pd.DataFrame({"index": range(50), "trust": np.linspace(0, 1, 50)}))
    save_json(folder.path / "log" / "epochs.json", {"loss": [2.0, 1.0]})
    finish(folder)
    return folder


# Keys


def test_key_ignores_the_order_of_a_mapping():
    a = {"noise": "pairflip", "rate": 0.4, "net": {"width": 32, "depth": 3}}
    b = {"net": {"depth": 3, "width": 32}, "rate": 0.4, "noise": "pairflip"}
    assert content_key(a) == content_key(b)


def test_key_is_the_same_in_every_session():
    # printf '{"arms":["tad"],"rate":0.4}' | sha256sum
    assert content_key({"rate": 0.4, "arms": ["tad"]}) == "0829d0feb1bc637c"


def test_key_changes_with_any_part_of_the_payload():
    payloads: list[dict[str, Any]] = [
        *({"a": 1}, {"a": 2}, {"b": 1}, {"a": 1.0}, {"a": True}, {"a": "1"}, {"a": None}, {"a": "None"}, {}),
        *({"a": [1, 2]}, {"a": [2, 1]}, {"a": [[1], 2]}, {"a": {"b": 1}}, {"a": 0.1}, {"a": 0.1 + 2**-56}),
    ]
    keys = [content_key(payload) for payload in payloads]
    assert len(set(keys)) == len(payloads)
    assert all(len(key) == 16 and int(key, 16) >= 0 for key in keys)


UNSTORABLE = [{"rate": float("nan")}, {"net": {"lr": [1.0, float("inf")]}}, {"root": Path("data")}, {"k": np.int64(3)}]


@pytest.mark.parametrize("payload", [*UNSTORABLE, {"x": torch.zeros(2)}])
def test_key_refuses_what_json_cannot_hold(payload):
    with pytest.raises(InputError, match="cannot be stored as JSON"):
        content_key(payload)


SOURCE = """
def loss(x):
    return x * 2


class Config:
    rate: float = 0.4
"""
SOURCE_IN_OTHER_PROSE = '''"""A module."""
# A comment.

def loss(x):
    """Twice x."""
    return (x *
            2)  # why

class Config:
    """A configuration."""
    rate: float = 0.4
    """Fraction of labels that flip."""
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in place of tadlib, in which trust imports a module of nn and settings, and experts imports nothing."""
    monkeypatch.setattr(store, "PACKAGE", tmp_path / "tadlib")
    files = {
        "trust.py": f"from tadlib.nn import training\nfrom tadlib.config import Config\n{SOURCE}",
        "nn/__init__.py": "",
        "nn/training.py": "from tadlib.rng import generator\n",
        "rng.py": "SEED = 0\n",
        "config.py": "RATE = 0.4\n",
        "experts.py": "STEPS = 40\n",
    }
    for name, text in files.items():
        (tmp_path / "tadlib" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tadlib" / name).write_text(text)
    return tmp_path / "tadlib"


def test_code_version_ignores_comments_docstrings_and_layout(package: Path):
    before = code_version("trust")
    text = (package / "trust.py").read_text()
    (package / "trust.py").write_text(text.replace(SOURCE, SOURCE_IN_OTHER_PROSE))
    assert code_version("trust") == before
    assert len(before) == 12


@pytest.mark.parametrize(
    "edit", [("x * 2", "x * 3"), ("0.4", "0.5"), ("def loss(x)", "def loss(x, y=None)"), ("return x", 'return "x"')]
)
def test_code_version_changes_with_the_code(package: Path, edit: tuple[str, str]):
    before = code_version("trust")
    (package / "trust.py").write_text((package / "trust.py").read_text().replace(*edit))
    assert code_version("trust") != before


@pytest.mark.parametrize(
    ("file", "counts"), [("nn/training.py", True), ("rng.py", True), ("config.py", False), ("experts.py", False)]
)
def test_code_version_covers_all_that_is_imported_and_nothing_else(package: Path, file: str, counts: bool):
    """Modules that hold settings are left out: the settings themselves are part of keys."""
    before = code_version("trust")
    (package / file).write_text((package / file).read_text() + "MORE = 1\n")
    assert (code_version("trust") != before) == counts


def test_code_version_of_a_package_covers_all_of_its_modules(package: Path):
    before = code_version("nn")
    (package / "nn" / "speed.py").write_text("FAST = True\n")
    assert code_version("nn") != before


def test_code_version_names_an_unknown_module():
    with pytest.raises(InputError, match="unknown module 'trusst'"):
        code_version("trusst")


# Output folders


def listing(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_output_folder_is_created_and_accepted_again(tmp_path: Path):
    path = claim_output(tmp_path / "a" / "runs")
    assert (path / MARKER).is_file()
    (path / "result.txt").write_text("kept")
    before = listing(path)
    assert claim_output(str(path)) == path
    assert listing(path) == before
    (tmp_path / "empty").mkdir()
    assert (claim_output(tmp_path / "empty") / MARKER).is_file()


def test_foreign_folder_is_refused_and_left_untouched(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("precious")
    before = listing(tmp_path)
    with pytest.raises(InputError, match=r"is not an output folder of tadlib") as caught:
        claim_output(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert listing(tmp_path) == before


def test_output_path_that_is_a_file_or_below_one_is_refused(tmp_path: Path):
    file = tmp_path / "notes.txt"
    file.write_text("precious")
    for path in (file, file / "runs"):
        with pytest.raises(InputError, match="output folder"):
            claim_output(path)
    assert file.read_text() == "precious"


# Atomic writes


class Interrupted(BaseException):
    """Stands for what may end a write half-way: a full disk, Ctrl-C, a kernel that says no."""


@pytest.mark.parametrize("step", ["content", "fsync", "replace"])
@pytest.mark.parametrize("old", [b"old", None])
def test_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch, step, old):
    path = tmp_path / "file.bin"
    if old is not None:
        path.write_bytes(old)

    def fail(*_):
        raise Interrupted

    if step != "content":
        monkeypatch.setattr(store.os, step, fail)

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half of the n")
            if step == "content":
                raise Interrupted

    with pytest.raises(Interrupted):
        write()
    assert listing(tmp_path) == ({} if old is None else {"file.bin": old})


@pytest.mark.parametrize(
    ("save", "value"),
    [
        (save_tensors, {"a": torch.zeros(3, dtype=torch.complex128)}),
        (save_table, pd.DataFrame({"mixed": [1, "one", object()]})),
        (save_json, {"loss": float("nan")}),
    ],
)
def test_content_that_cannot_be_stored_keeps_the_old_file(tmp_path, save, value):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises((KeyError, ValueError)):
        save(path, value)
    assert listing(tmp_path) == {"file": b"old"}


@pytest.mark.parametrize(
    "save",
    [
        lambda path: save_json(path, [0] * 10_000),
        lambda path: save_table(path, pd.DataFrame({"x": np.arange(10_000)})),
        lambda path: save_tensors(path, {"x": torch.arange(10_000)}),
    ],
)
def test_full_disk_is_one_line_that_names_the_file(tmp_path: Path, save):
    """A limit on the size of files stands for a full disk."""
    (tmp_path / "t.json").write_bytes(b"old")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=r"cannot write .*t\.json: .*[Tt]oo large"):
            save(tmp_path / "t.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert listing(tmp_path) == {"t.json": b"old"}


def test_written_file_is_readable_by_others_as_the_umask_says(tmp_path: Path):
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    write_atomic(tmp_path / "a", b"a")
    save_tensors(tmp_path / "t", {"a": torch.zeros(1)})
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {stat.S_IMODE(plain.stat().st_mode)}


KILLED_BEFORE_REPLACE = """
import sys, time, torch
from tadlib import store
def hang(path):
    print("written", flush=True)
    time.sleep(600)
store._sync = hang
store.save_tensors(sys.argv[1], {"a": torch.ones(1000)})
"""


@pytest.mark.parametrize("old", [True, False])
def test_process_killed_before_the_file_is_safe_leaves_the_old_one(start_python, tmp_path: Path, old: bool):
    folder = StageFolder(tmp_path / "k")
    path = folder.path / "file.safetensors"
    if old:
        save_tensors(path, {"a": torch.zeros(5)})
    process = start_python(KILLED_BEFORE_REPLACE, path)
    assert first_line(process) == "written\n"
    kill(process)
    assert path.exists() == old
    if old:
        assert torch.equal(load_tensors(path)["a"], torch.zeros(5))
    # The temporary file that remains is never taken for a result, and goes when the stage is done.
    assert not folder.is_complete()
    finish(folder)
    assert set(listing(folder.path)) == {MANIFEST} | ({path.name} if old else set())


# Files that come back as they were, or not at all


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype):
    raw = torch.randint(0, 256, (24, 8), dtype=torch.uint8, generator=generator(0, "bits"))  # NaNs and denormals too
    tensor = raw % 2 == 0 if dtype == torch.bool else raw.view(dtype)
    tensors = {"matrix": tensor, "empty": tensor[:0], "scalar": tensor[0, 0], "strided": tensor.T, "slice": tensor[1:3]}
    save_tensors(tmp_path / "file", tensors)
    loaded = load_tensors(tmp_path / "file")
    assert loaded.keys() == tensors.keys()
    assert all(same_bits(loaded[name], tensor) for name, tensor in tensors.items())


def test_tensors_that_share_storage_come_back_apart(tmp_path: Path):
    x = torch.arange(6.0, requires_grad=True)
    tensors = {"a": x, "same": x, "overlap": x[2:], "spread": x[:1].expand(4), "parameter": torch.nn.Parameter(x)}
    save_tensors(tmp_path / "file", tensors)
    loaded = load_tensors(tmp_path / "file")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    loaded["a"].zero_()
    assert torch.equal(loaded["same"], x)


def test_lazily_conjugated_and_negated_tensors_keep_their_values(tmp_path: Path):
    z = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64)
    save_tensors(tmp_path / "file", {"conj": z.conj(), "imag": z.conj().imag})
    loaded = load_tensors(tmp_path / "file")
    assert loaded["conj"].tolist() == [1 - 2j, 3 + 4j]
    assert loaded["imag"].tolist() == [-2.0, 4.0]


def test_loaded_tensors_survive_a_new_version_of_their_file(tmp_path: Path):
    save_tensors(tmp_path / "file", {"a": torch.arange(10_000)})
    loaded = load_tensors(tmp_path / "file")["a"]
    save_tensors(tmp_path / "file", {"a": torch.zeros(3)})
    assert torch.equal(loaded, torch.arange(10_000))


def test_no_tensors_at_all_are_stored_too(tmp_path: Path):
    save_tensors(tmp_path / "file", {}, {"why": "nothing untrusted"})
    assert load_tensors(tmp_path / "file") == {}
    assert load_metadata(tmp_path / "file") == {"why": "nothing untrusted"}


def test_equal_content_gives_equal_bytes(tmp_path: Path):
    tensors = {name: torch.ones(3) for name in "abcd"}
    metadata = {name: name for name in "efghijkl"}
    for i in range(5):
        save_tensors(tmp_path / str(i), tensors, metadata)
        save_table(tmp_path / f"table{i}", pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]}))
    assert len(set(listing(tmp_path).values())) == 2
    assert load_metadata(tmp_path / "0") == metadata


def test_tables_and_json_come_back_equal(tmp_path: Path):
    table = pd.DataFrame({"index": [3, 1], "space": ["trusted", None], "trust": [0.1, np.nan], "ok": [True, False]})
    # A folder named like a Hive partition must not grow a column.
    save_table(tmp_path / "seed=0" / "t.parquet", table)
    pd.testing.assert_frame_equal(load_table(tmp_path / "seed=0" / "t.parquet"), table)
    value = {"b": [1, 2.5, None, True], "a": {"ü": 0.1 + 0.2}}
    save_json(tmp_path / "v.json", value)
    assert load_json(tmp_path / "v.json") == value
    assert list(load_json(tmp_path / "v.json")) == ["b", "a"]


TABLE = pd.DataFrame({"x": np.arange(200.0)})
SAVED = {
    "tensors": (lambda path: save_tensors(path, {"a": torch.arange(50.0)}, {"k": "v"}), load_tensors),
    "table": (lambda path: save_table(path, TABLE), load_table),
    "json": (lambda path: save_json(path, {"a": [1, 2]}), load_json),
}


@pytest.mark.parametrize("kind", SAVED)
def test_truncated_file_is_noticed_and_named(tmp_path: Path, kind: str):
    save, load = SAVED[kind]
    path = tmp_path / "file.dat"
    save(path)
    whole = path.read_bytes()
    for size in (0, 1, 9, len(whole) // 2, len(whole) - 2):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"file\.dat is damaged"):
            load(path)


@pytest.mark.parametrize("kind", SAVED)
def test_missing_file_is_named(tmp_path: Path, kind: str):
    with pytest.raises(InputError, match=r"file\.dat does not exist"):
        SAVED[kind][1](tmp_path / "file.dat")
    with pytest.raises(InputError, match="cannot be read"):
        SAVED[kind][1](tmp_path)


def test_tensor_files_of_earlier_versions_and_of_other_programs_are_read(tmp_path: Path):
    header = {"tadlib": json.dumps({"metadata": {"k": "v"}, "sha256": "0" * 64})}
    for metadata, ours in [(header, {"k": "v"}), ({"format": "pt"}, {})]:
        save_file({"a": torch.arange(3)}, tmp_path / "file", metadata=metadata)
        assert load_tensors(tmp_path / "file")["a"].tolist() == [0, 1, 2]
        assert load_metadata(tmp_path / "file") == ours


# Stage folders


def test_manifest_says_what_was_computed_how_and_on_what(finished: StageFolder):
    finished.verify()
    assert finished.is_complete()
    manifest = finished.manifest()
    assert set(manifest["files"]) == {"experts.safetensors", "labels.parquet", "log/epochs.json"}
    assert manifest["config"] == {"rate": 0.4}
    assert manifest["inputs"] == {"noise": "n"}
    assert manifest["versions"] == versions()
    assert manifest["hardware"] == hardware()
    assert {"python", "torch", "numpy", "tadlib"} <= manifest["versions"].keys()
    assert {"cpu", "cores", "gpu"} == manifest["hardware"].keys()


def test_manifest_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written: list[str] = []
    replace = os.replace

    def record(temporary: Path, path: Path) -> None:
        replace(temporary, path)
        written.append(path.name)

    monkeypatch.setattr(store.os, "replace", record)
    folder = StageFolder(tmp_path / "k")
    save_json(folder.path / "a.json", 1)
    folder.save_checkpoint({}, {})
    assert not folder.is_complete()
    finish(folder)
    assert written == ["a.json", CHECKPOINT, MANIFEST]
    assert set(listing(folder.path)) == {"a.json", MANIFEST}


def test_what_a_killed_writer_left_is_removed_and_not_listed(tmp_path: Path):
    folder = StageFolder(tmp_path / "k")
    save_json(folder.path / "a.json", 1)
    for name in (".tmp-0123456789ab-a.json", ".tmpzGpkGO"):  # ours, and one of safetensors' own
        (folder.path / name).write_bytes(b"half")
    finish(folder)
    assert set(folder.manifest()["files"]) == {"a.json"}
    assert set(listing(folder.path)) == {"a.json", MANIFEST}


def test_stage_that_fails_before_its_manifest_is_not_complete(tmp_path: Path):
    folder = StageFolder(tmp_path / "k")
    folder.save_checkpoint({"a": torch.zeros(2)}, {"epoch": 1})
    save_json(folder.path / "a.json", 1)
    with pytest.raises(InputError, match="cannot be stored as JSON"):
        finish(folder, extra={"loss": float("nan")})
    assert not folder.is_complete()
    assert folder.load_checkpoint() is not None
    with pytest.raises(InputError, match="is not a finished stage"):
        folder.verify()


@pytest.mark.parametrize("name", ["experts.safetensors", "labels.parquet", "log/epochs.json"])
def test_damage_to_any_file_is_found_and_named(finished: StageFolder, name: str):
    path = finished.path / name
    whole = path.read_bytes()
    path.write_bytes(whole[:10] + bytes([whole[10] ^ 0xFF]) + whole[11:])
    assert finished.is_complete()  # the cheap check looks at sizes only
    with pytest.raises(InputError, match=f"{path} is damaged.* delete {finished.path}"):
        finished.verify()
    path.write_bytes(whole[:-1])
    assert not finished.is_complete()
    with pytest.raises(InputError, match=f"{name} is damaged"):
        finished.verify()
    path.unlink()
    assert not finished.is_complete()
    with pytest.raises(InputError, match=f"{name} is missing"):
        finished.verify()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"files": {"a": 3}}', '{"files": {"a": {"bytes": 1}}}'])
def test_damaged_manifest_makes_a_stage_incomplete(finished: StageFolder, content: str):
    (finished.path / MANIFEST).write_text(content)
    assert not finished.is_complete()
    with pytest.raises(InputError, match=r"manifest\.json is damaged"):
        finished.manifest()


def test_old_manifest_does_not_vouch_for_new_files(finished: StageFolder):
    """A damaged stage is computed anew and stops half-way, its files as large as before: it must not look complete."""
    labels = finished.path / "labels.parquet"
    content = labels.read_bytes()
    labels.unlink()
    with finished.lock():
        labels.write_bytes(content)
    assert not finished.is_complete()


def test_lock_leaves_a_complete_stage_complete(finished: StageFolder):
    with finished.lock():
        assert finished.is_complete()
    finished.verify()


# Checkpoints


def test_checkpoint_comes_back_bit_for_bit_and_continues_the_same_numbers(tmp_path: Path):
    random = generator(0, "experts")
    theta = torch.randn(7, generator=random)
    tensors = {"theta_P": theta, "half": theta.bfloat16(), "rng": random.get_state(), "none": torch.zeros(0)}
    meta = {"epoch": 3, "lr": 0.1 + 0.2, "losses": [1e-300, 2.0], "best": None}
    folder = StageFolder(tmp_path / "k")
    folder.save_checkpoint(tensors, meta)
    expected = torch.randn(100, generator=random)

    loaded = folder.load_checkpoint()
    assert loaded is not None
    assert loaded[1] == meta
    assert loaded[0].keys() == tensors.keys()
    assert all(same_bits(loaded[0][name], tensor) for name, tensor in tensors.items())
    resumed = torch.Generator()
    resumed.set_state(loaded[0]["rng"])
    assert torch.equal(torch.randn(100, generator=resumed), expected)


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "of other tensors"])
def test_unreadable_checkpoint_is_ignored_with_a_warning(tmp_path: Path, damage: str):
    folder = StageFolder(tmp_path / "k")
    assert folder.load_checkpoint() is None  # without a warning
    folder.save_checkpoint({"theta_P": torch.arange(100.0)}, {"epoch": 3})
    path = folder.path / CHECKPOINT
    content = path.read_bytes()
    if damage == "of other tensors":
        save_tensors(path, {"theta_P": torch.zeros(3)})
    else:
        path.write_bytes({"truncated": content[:-1], "empty": b"", "foreign": b"PK\x03\x04" * 50}[damage])
    with pytest.warns(UserWarning, match="checkpoint ignored.*" + CHECKPOINT):
        assert folder.load_checkpoint() is None
    folder.save_checkpoint({}, {"epoch": 1})
    assert folder.load_checkpoint() == ({}, {"epoch": 1})


def test_checkpoint_that_cannot_be_stored_keeps_the_one_before(tmp_path: Path):
    folder = StageFolder(tmp_path / "k")
    folder.save_checkpoint({}, {"epoch": 1})
    with pytest.raises(InputError, match="cannot be stored as JSON"):
        folder.save_checkpoint({}, {"epoch": 2, "loss": float("nan")})
    assert folder.load_checkpoint() == ({}, {"epoch": 1})


# Locks

HOLDS_LOCK = """
import sys, time
from tadlib.store import StageFolder
with StageFolder(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(600)
"""


def test_lock_of_a_killed_process_and_of_one_that_failed_is_free(start_python, tmp_path: Path):
    folder = StageFolder(tmp_path / "k")
    process = start_python(HOLDS_LOCK, folder.path)
    assert first_line(process) == "held\n"
    kill(process)
    with pytest.raises(RuntimeError), folder.lock():
        raise RuntimeError
    with folder.lock():
        pass


def test_who_waits_for_a_lock_says_so_once(start_python, tmp_path: Path, capfd):
    folder = StageFolder(tmp_path / "k")
    holder = start_python(HOLDS_LOCK, folder.path)
    assert first_line(holder) == "held\n"
    waiting = start_python(HOLDS_LOCK, folder.path)
    said, deadline = "", time.monotonic() + 300
    while not said and time.monotonic() < deadline:
        time.sleep(0.1)
        said += capfd.readouterr().err
    kill(holder)
    assert first_line(waiting) == "held\n"
    assert said + capfd.readouterr().err == f"tad: waiting for another process that uses {folder.path}\n"
