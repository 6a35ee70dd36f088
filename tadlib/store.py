"""Files that are whole or absent, and the folders of stages: keys, manifests, checkpoints and locks.

``manifest.json`` is written last and lists every file with its SHA-256: a folder with a valid manifest is complete, any
other is not. Nothing is pickled.
"""

import ast
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import secrets
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import tadlib
from tadlib.errors import InputError, parsing, readable, require, usable

PACKAGE = Path(__file__).parent
MARKER = ".tadlib-output"
MANIFEST = "manifest.json"
CHECKPOINT = "checkpoint.safetensors"
LOCK = ".lock"
TEMPORARY = ".tmp"  # prefix of files that are being written, by us or by safetensors
HEADER = "tadlib"  # our one key in the header of a tensor file


def content_key(payload: Mapping[str, Any]) -> str:
    """16 hex digits of the SHA-256 of ``payload`` as JSON.

    The order of keys does not matter; 1, 1.0 and True differ; a tuple equals a list. Raises InputError on what JSON
    cannot hold: NaN, infinities, tensors, paths.
    """
    return hashlib.sha256(_json(payload, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def _json(value: Any, **layout: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False, **layout)
    except (TypeError, ValueError) as error:
        raise InputError(f"cannot be stored as JSON: {error}") from error


APART = ("config", "presets", "errors", "store")  # modules whose code is no part of what a stage computes


def code_version(*modules: str) -> str:
    """12 hex digits that change when the code of one of these modules of tadlib does, or that of any it imports.

    Comments, docstrings and layout do not count, nor do the modules :data:`APART`, whose settings are part of keys
    themselves. A package stands for all of its modules. The text hashed is ``ast.unparse``'s, which may differ between
    versions of Python.
    """
    waiting, code = {PACKAGE.joinpath(*module.split(".")) for module in modules}, {}
    for module in modules:
        require(bool(_files(PACKAGE.joinpath(*module.split(".")))), f"unknown module {module!r} of tadlib")
    while waiting:
        for file in _files(waiting.pop()):
            name = file.relative_to(PACKAGE).as_posix()
            if name not in code:
                tree = ast.parse(file.read_text(encoding="utf-8"))
                code[name] = ast.unparse(_StripStrings().visit(tree))
                waiting |= _imported(tree)
    return content_key(code)[:12]


def _files(base: Path) -> list[Path]:
    """The file of a module, or all files of a package, given their path without suffix."""
    files = base.rglob("*.py") if base.is_dir() else [base.with_suffix(".py")]
    return sorted(file for file in files if file.is_file() and base.name not in APART)


def _imported(tree: ast.AST) -> set[Path]:
    """Paths, without suffix, of the modules of tadlib that a module imports from."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (names := (node.module or "").split("."))[0] == PACKAGE.name:
            base = PACKAGE.joinpath(*names[1:])
            for inner in (base / alias.name for alias in node.names):
                is_module = inner.is_dir() or inner.with_suffix(".py").is_file()
                found.add(inner if is_module else base / "__init__" if base.is_dir() else base)
    return found


class _StripStrings(ast.NodeTransformer):
    """Drop every statement that is a bare string: docstrings, and the strings that document fields."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        is_string = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_string else node


def claim_output(path: Path | str) -> Path:
    """Make ``path`` an output folder: created when absent, marked when empty, accepted when marked before.

    Raises InputError, and changes nothing, where it is a file or a folder with content that is not ours.
    """
    path = usable(path)
    try:
        require(path.is_dir() or not path.exists(), f"{path} is not an output folder of tadlib: it is a file")
        path.mkdir(parents=True, exist_ok=True)
        # The order counts: another process that claims the folder writes its marker before anything else.
        occupied = any(path.iterdir())
        ours = (path / MARKER).is_file()
        require(ours or not occupied, f"{path} is not an output folder of tadlib: it holds other files")
        if not ours:
            (path / MARKER).write_text("tadlib writes its results here; this file lets it use the folder again.\n")
    except OSError as error:
        raise InputError(f"cannot use {path} as output folder: {error.strerror}") from error
    return path


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A temporary path beside ``path``; what is written there replaces ``path`` at the end of the ``with`` block.

    The file at ``path`` is at all times the old one or the new one, whole, also after a crash or a power cut. Only a
    killed process leaves a temporary file (named ``.tmp…``). An OSError, as for a full disk, names ``path``.
    """
    path = usable(path)
    # The name ends as the final one does: some writers choose the format by it.
    temporary = path.parent / f"{TEMPORARY}-{secrets.token_hex(6)}-{path.name}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors makes its files private to their owner, whatever the umask says
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        raise OSError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()  # where something failed


def _sync(path: Path) -> None:
    """Force a file's content, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` against other processes and threads; waits, and says so, while another holds it.

    Not reentrant. The system releases the lock when the process ends, however it ends.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            held = lock.acquire(timeout=1)
        except Timeout:
            print(f"tad: waiting for another process that uses {path.parent}", file=sys.stderr)
            held = lock.acquire()
    except OSError as error:  # a read-only folder, a full disk
        raise OSError(f"cannot write to {path.parent}: {error.strerror or error}") from error
    with held:
        yield


@contextmanager
def _reading(path: Path | str, *errors: type[Exception]) -> Iterator[Path]:
    """The path of a file, ~ expanded; InputError that names it where it is missing, or its parser raises ``errors``."""
    path = readable("", path)
    with parsing(path, "cannot be read", *errors):
        yield path


def write_atomic(path: Path | str, data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all (see :func:`replacing`)."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def save_json(path: Path | str, value: Any) -> None:
    """Write ``value`` as JSON; InputError on what JSON cannot hold. Tuples come back as lists."""
    write_atomic(path, f"{_json(value, indent=2)}\n".encode())


def load_json(path: Path | str) -> Any:
    """Read a JSON file; InputError naming it when it is missing or damaged."""
    with _reading(path, ValueError, RecursionError) as file:  # bad JSON, bad UTF-8, and brackets without end
        return json.loads(file.read_text(encoding="utf-8"))


def save_table(path: Path | str, table: pd.DataFrame) -> None:
    """Write ``table`` as Parquet, its index included."""
    with replacing(path) as temporary:
        table.to_parquet(temporary)


def load_table(path: Path | str) -> pd.DataFrame:
    """Read a Parquet file; InputError naming it when it is missing or cannot be read."""
    # A damaged footer makes the parser raise whatever it trips over, hence Exception.
    # ParquetFile reads just this file: read_table would take "name=value" in a folder's name for a column.
    with _reading(path, Exception) as found, pq.ParquetFile(found) as file:
        return file.read().to_pandas()


def save_tensors(path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write dense tensors as safetensors, with ``metadata`` in the header.

    Values, shapes and dtypes come back bit for bit (not complex128, which the format lacks); device, strides, shared
    storage and the order of names do not. The same content gives the same bytes.
    """
    storable, storages = {}, set()  # safetensors refuses strides and shared storage, and drops a lazy conjugation
    for name, tensor in tensors.items():
        tensor = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        storable[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    # One key, because safetensors writes several in random order and equal content would give different files.
    header = {HEADER: _json({"metadata": dict(metadata or {})}, sort_keys=True)}
    with replacing(path) as temporary:
        save_file(storable, temporary, metadata=header)


def load_tensors(path: Path | str) -> dict[str, Tensor]:
    """Read a safetensors file, on the CPU; InputError naming it when it is missing or cannot be read."""
    with _reading(path, SafetensorError) as file:
        return load_file(file)


def load_metadata(path: Path | str) -> dict[str, str]:
    """The metadata of a file of :func:`save_tensors`; empty for other safetensors files."""
    damage = (SafetensorError, ValueError, AttributeError, RecursionError)  # no JSON, or no mapping
    with _reading(path, *damage) as found, safe_open(found, framework="pt") as file:
        return dict(json.loads((file.metadata() or {}).get(HEADER, "{}")).get("metadata", {}).items())


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware() -> dict[str, Any]:
    """The processor's name, how many cores this process may use, and the first GPU's name or None."""
    about = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    named = re.search(r"^model name\s*:\s*(.+)$", about, re.MULTILINE)
    cpu = named[1] if named else platform.processor() or platform.machine()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu, "cores": cores(), "gpu": gpu}


def processor(hardware: Mapping[str, Any], device: str) -> str | None:
    """What did the arithmetic of a run on ``device``, out of :func:`hardware`: the GPU's or the processor's name."""
    return hardware.get("gpu" if device.startswith("cuda") else "cpu")


def versions() -> dict[str, str]:
    """Versions of Python, tadlib and the packages whose arithmetic ends up in results."""
    packages = {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "numpy", "scikit-learn")}
    return {"python": platform.python_version(), "tadlib": tadlib.__version__} | packages


class StageFolder:
    """The folder ``runs/<stage>/<key>`` of one stage.

    A stage asks :meth:`is_complete`, takes the :meth:`lock`, asks again (another process may have done the work),
    works, and ends with :meth:`finish`.
    """

    def __init__(self, path: Path | str):
        self.path = usable(path)

    def is_complete(self) -> bool:
        """Whether the manifest is valid and every file it lists is there with its size; contents are not read."""
        try:
            files = {self.path / name: entry["bytes"] for name, entry in self.manifest()["files"].items()}
            return all(path.is_file() and path.stat().st_size == size for path, size in files.items())
        except (InputError, OSError):
            return False

    def manifest(self) -> dict[str, Any]:
        """What :meth:`finish` wrote; InputError when the stage is not finished or the manifest is damaged."""
        path = self.path / MANIFEST
        require(path.is_file(), f"{self.path} is not a finished stage: it has no {MANIFEST}")
        manifest = load_json(path)
        try:
            files = manifest["files"].items()
            valid = all({"bytes", "sha256"} <= entry.keys() for _, entry in files)
            inside = all(name and not Path(name).is_absolute() and ".." not in Path(name).parts for name, _ in files)
        except (TypeError, KeyError, AttributeError):  # another structure
            valid = inside = False
        require(valid, f"{path} is damaged: it must list each file with its bytes and sha256")
        rest = {name: value for name, value in manifest.items() if name != "checksum"}
        whole = manifest.get("checksum", content_key(rest)) == content_key(rest)  # older ones have none
        require(whole, f"{path} is damaged: its content does not match its checksum")
        require(inside, f"{path} is damaged: it lists files outside its folder")
        return manifest

    def verify(self) -> None:
        """Compare every file with its SHA-256 in the manifest; InputError naming the first that differs."""
        for name, entry in self.manifest()["files"].items():
            path, advice = self.path / name, f"delete {self.path} to have it computed anew"
            require(path.is_file(), f"{path} is missing; {advice}")
            found, expected = file_digest(path), entry["sha256"]
            require(found == expected, f"{path} is damaged: its SHA-256 is {found}, expected {expected}; {advice}")

    def finish(self, **about: Any) -> None:
        """Declare the stage complete: write the manifest, ``about`` and all files here, then remove the checkpoint."""
        files = {}
        for path in sorted(path for path in self.path.rglob("*") if path.is_file()):
            name = path.relative_to(self.path).as_posix()
            if path.name.startswith(TEMPORARY):
                path.unlink()  # left by a killed process
            elif name not in (MANIFEST, CHECKPOINT, LOCK):
                files[name] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        manifest = {**about, "versions": versions(), "hardware": hardware(), "files": files}
        save_json(self.path / MANIFEST, manifest | {"checksum": content_key(manifest)})
        (self.path / CHECKPOINT).unlink(missing_ok=True)

    def save_checkpoint(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Replace the checkpoint by ``tensors`` and ``meta``: one file, so that they agree also after a crash."""
        text = _json(meta)
        about = {"meta": text, "checksum": _checkpoint_digest(self.path.name, tensors, text)}
        save_tensors(self.path / CHECKPOINT, tensors, about)

    def load_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors (on the CPU) and meta of the last checkpoint; None when there is none, or, with a warning, when it
        is damaged or of another folder: the stage then starts anew."""
        path = self.path / CHECKPOINT
        if not path.exists():
            return None
        try:
            tensors, about = load_tensors(path), load_metadata(path)
            whole = about["checksum"] == _checkpoint_digest(self.path.name, tensors, about["meta"])
            require(whole, "its content does not match its checksum")
            return tensors, json.loads(about["meta"])
        except (InputError, KeyError) as error:
            warnings.warn(f"checkpoint ignored, the stage starts anew: {path}: {error}", stacklevel=2)
            return None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder against other processes (see :func:`locked`)."""
        with locked(self.path / LOCK):
            if (self.path / MANIFEST).exists() and not self.is_complete():
                # Half of the files written anew could match the old manifest in size, and pass for complete.
                # A checkpoint beside a manifest is a leftover of the finished run, and says that all is done.
                (self.path / CHECKPOINT).unlink(missing_ok=True)
                (self.path / MANIFEST).unlink()
            yield


def _checkpoint_digest(folder: str, tensors: Mapping[str, Tensor], meta: str) -> str:
    digest = hashlib.sha256(f"{folder}\0{meta}".encode())
    for name in sorted(tensors):
        digest.update(f"\0{name}\0{tensors[name].dtype}\0{tuple(tensors[name].shape)}\0".encode())
        digest.update(tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256, in hex, of the content of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
