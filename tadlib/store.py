"""Artefacts: content keys, atomic files that notice damage, and stage folders.

A stage writes ``runs/<stage>/<key>/``; the key follows from its configuration, its inputs and the code that computes
it. Files appear under their final names only when they are whole, and ``manifest.json`` comes last: a folder with a
valid manifest is complete, any other is not. Nothing is pickled.
"""

import ast
import fcntl
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import platform
import secrets
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tadlib.errors import InputError, require

PACKAGE = Path(__file__).parent
MARKER = ".tadlib-output"
MANIFEST = "manifest.json"
CHECKPOINT = "checkpoint.safetensors"
LOCK = ".lock"
TEMPORARY = ".tmp"  # prefix of files that are being written, by us or by safetensors
HEADER = "tadlib"  # our one key in the header of a tensor file

logger = logging.getLogger(__name__)


# Keys


def content_key(payload: Mapping[str, Any]) -> str:
    """16 hex digits of the SHA-256 of ``payload`` as canonical JSON.

    The order of keys does not matter; 1, 1.0 and True differ; a tuple equals a list. Raises InputError on what JSON
    cannot hold: NaN, infinities, keys that are not strings, tensors, paths.
    """
    return hashlib.sha256(_canonical(payload).encode()).hexdigest()[:16]


APART = ("config", "presets", "errors", "store")  # modules whose code is no part of what a stage computes


def code_version(module: str) -> str:
    """12 hex digits that change when the code of a module of tadlib does, or that of any it imports.

    Comments, docstrings and layout do not count, nor do the modules :data:`APART`, whose settings are part of keys
    themselves. A package stands for all of its modules. The text hashed is ``ast.unparse``'s, which may differ between
    versions of Python.
    """
    waiting, code = {PACKAGE.joinpath(*module.split("."))}, {}
    require(any(_files(base) for base in waiting), f"unknown module {module!r} of tadlib")
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
    if base.is_dir():
        return sorted(base.rglob("*.py"))
    file = base.with_suffix(".py")
    return [file] if file.is_file() and base.name not in APART else []


def _imported(tree: ast.AST) -> set[Path]:
    """Paths, without suffix, of the modules of tadlib that a module imports from."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == PACKAGE.name:
            base = PACKAGE.joinpath(*(node.module or "").split(".")[1:])
            inner = [base / alias.name for alias in node.names]
            modules = [path for path in inner if path.is_dir() or path.with_suffix(".py").is_file()]
            found |= {*modules}
            if len(modules) < len(inner):  # names that are no modules come from the module itself
                found.add(base / "__init__" if base.is_dir() else base)
    return found


class _StripStrings(ast.NodeTransformer):
    """Drop every statement that is a bare string: docstrings, and the strings that document fields."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        is_string = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_string else node


def _plain(value: Any, where: str) -> Any:
    """``value`` built from JSON's types alone; InputError naming the place of what JSON cannot hold."""
    if isinstance(value, Mapping):
        for key in value:
            # json.dumps would turn 1, True and None into strings, so that different payloads shared a key.
            require(isinstance(key, str), f"{where}: keys must be strings, got {key!r}")
        return {key: _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, float):
        require(math.isfinite(value), f"{where} must be finite, got {value}")
    else:
        expected = "a string, number, bool, None, list or mapping"
        require(value is None or isinstance(value, str | int), f"{where} must be {expected}, got {type(value)}")
    return value


def _canonical(value: Any) -> str:
    return json.dumps(_plain(value, "payload"), sort_keys=True, separators=(",", ":"), allow_nan=False)


# Folders and files


def claim_output(path: Path | str) -> Path:
    """Make ``path`` an output folder: created when absent, marked when empty, accepted when marked before.

    Raises InputError, and changes nothing, when ``path`` is a file or a folder with content that is not ours.
    """
    path = Path(path)
    require(path.is_dir() or not path.exists(), f"{path} is not an output folder of tadlib: it is a file")
    try:
        path.mkdir(parents=True, exist_ok=True)
        # The order counts: another process that claims the folder writes its marker before anything else.
        occupied = any(path.iterdir())
        marker = path / MARKER
        ours = marker.is_file()
        require(ours or not occupied, f"{path} is not an output folder of tadlib: it holds other files")
        if not ours:
            marker.write_text("tadlib writes its results here; this file lets it use the folder again.\n")
    except OSError as error:
        raise InputError(f"cannot use {path} as output folder: {error.strerror}") from error
    return path


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A temporary path beside ``path``; what is written there replaces ``path`` at the end of the ``with`` block.

    The file at ``path`` is at all times the old one or the new one, whole, also after a crash or a power cut. An
    exception leaves the old one and no temporary file; only a killed process leaves one (named ``.tmp…``).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The name ends as the final one does: some writers choose the format by it.
    temporary = path.parent / f"{TEMPORARY}-{secrets.token_hex(6)}-{path.name}"
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors makes its files private to their owner, whatever the umask says
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Force a file's content, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _reading(path: Path, *errors: type[Exception]) -> Iterator[None]:
    """Turn a missing or unreadable file, and the parser's ``errors``, into an InputError that names the file."""
    damage: tuple[type[Exception], ...] = (OSError, *errors)
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except damage as error:
        raise InputError(f"{path} is damaged or cannot be read: {error}") from error


def write_atomic(path: Path | str, data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all (see :func:`replacing`)."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def save_json(path: Path | str, value: Any) -> None:
    """Write ``value`` as JSON; InputError on what JSON cannot hold. Tuples come back as lists."""
    text = json.dumps(_plain(value, "value"), indent=2, allow_nan=False)
    write_atomic(path, f"{text}\n".encode())


def load_json(path: Path | str) -> Any:
    """Read a JSON file; InputError naming it when it is missing or damaged."""
    path = Path(path)
    with _reading(path, ValueError):  # covers bad JSON and bad UTF-8
        return json.loads(path.read_text(encoding="utf-8"))


def save_table(path: Path | str, table: pd.DataFrame) -> None:
    """Write ``table`` as Parquet, its index included, with a checksum on every page."""
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pandas(table), temporary, write_page_checksum=True)


def load_table(path: Path | str) -> pd.DataFrame:
    """Read a Parquet file; InputError naming it when it is missing or damaged.

    The checksums cover the values. The footer (names, types) has none: only :meth:`StageFolder.verify` sees all of it.
    """
    path = Path(path)
    # A damaged footer makes pandas raise whatever its parser trips over, hence Exception.
    # ParquetFile reads just this file: read_table would take "name=value" in a folder's name for a column.
    with _reading(path, Exception), pq.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read().to_pandas()


def save_tensors(path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write dense tensors as safetensors, with ``metadata`` and a SHA-256 over all of it in the header.

    Values, shapes and dtypes come back bit for bit (not complex128, which the format lacks); device, strides, shared
    storage and the order of names do not. The same content gives the same bytes.
    """
    tensors = _storable(tensors)
    metadata = dict(metadata or {})
    for key, value in metadata.items():
        require(isinstance(value, str), f"metadata[{key!r}] must be a string, got {type(value)}")
    # One key, because safetensors writes several in random order and equal content would give different files.
    header = {HEADER: _canonical({"metadata": metadata, "sha256": _tensor_digest(tensors, metadata)})}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=header)


def load_tensors(path: Path | str) -> dict[str, Tensor]:
    """Read, on the CPU, a file of :func:`save_tensors`; InputError naming it when it is missing or damaged."""
    return _read_tensors(Path(path))[0]


def load_metadata(path: Path | str) -> dict[str, str]:
    """The metadata of a file of :func:`save_tensors`; reads its header only, so tensors are not checked."""
    path = Path(path)
    with _reading(path, SafetensorError), safe_open(path, framework="pt") as file:
        return _header(path, file.metadata())["metadata"]


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CPU copies where needed: safetensors refuses strides and shared storage, and drops a lazy conjugation."""
    storable, storages = {}, set()
    for name, tensor in tensors.items():
        require(name != "__metadata__", "safetensors keeps the tensor name '__metadata__' for itself")
        require(tensor.layout == torch.strided, f"tensor {name!r} must be dense, got {tensor.layout}")
        tensor = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        storable[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return storable


def _tensor_digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(_canonical(metadata).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(_canonical([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _header(path: Path, header: Mapping[str, str] | None) -> dict[str, Any]:
    """Our part of a tensor file's header: {"metadata": …, "sha256": …}."""
    with _reading(path, ValueError):
        ours = json.loads((header or {}).get(HEADER, "null"))
    valid = isinstance(ours, dict) and ours.keys() == {"metadata", "sha256"}
    require(valid, f"{path} is damaged, or not a tensor file of tadlib")
    return ours


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file of :func:`save_tensors`, compared with their checksum."""
    with _reading(path, SafetensorError), safe_open(path, framework="pt") as file:
        header = _header(path, file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    digest = _tensor_digest(tensors, header["metadata"])
    require(digest == header["sha256"], f"{path} is damaged: its SHA-256 is {digest}, expected {header['sha256']}")
    return tensors, header["metadata"]


# What a run ran on


def hardware() -> dict[str, Any]:
    """The processor's name, how many cores this process may use, and the first GPU's name or None."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu, "cores": cores, "gpu": gpu}


def processor(hardware: Mapping[str, Any], device: str) -> str | None:
    """What did the arithmetic of a run on ``device``, out of :func:`hardware`: the GPU's or the processor's name."""
    return hardware.get("gpu" if device.startswith("cuda") else "cpu")


def versions() -> dict[str, str]:
    """Versions of Python, tadlib and the packages whose arithmetic ends up in results."""
    packages = ("tadlib", "torch", "torchvision", "numpy", "scikit-learn")
    return {"python": platform.python_version(), **{package: _version(package) for package in packages}}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"


# Stages


@dataclass(frozen=True)
class StageFolder:
    """The folder ``runs/<stage>/<key>`` of one stage.

    A stage asks :meth:`is_complete`, takes the :meth:`lock`, asks again (another process may have done the work),
    works, and ends with :meth:`finish`.
    """

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    def is_complete(self) -> bool:
        """Whether the manifest is valid and every file it lists is there with its size; contents are not read."""
        try:
            files = self.manifest()["files"]
        except InputError:
            return False
        return all(self._size(name) == entry["bytes"] for name, entry in files.items())

    def manifest(self) -> dict[str, Any]:
        """What :meth:`finish` wrote; InputError when the stage is not finished or the manifest is damaged."""
        path = self.path / MANIFEST
        require(path.is_file(), f"{self.path} is not a finished stage: it has no {MANIFEST}")
        manifest = load_json(path)
        files = manifest.get("files") if isinstance(manifest, dict) else None
        valid = isinstance(files, dict) and all(
            isinstance(entry, dict) and {"bytes", "sha256"} <= entry.keys() for entry in files.values()
        )
        require(valid, f"{path} is damaged: it must list each file with its bytes and sha256")
        return manifest

    def verify(self) -> None:
        """Compare size and SHA-256 of every file with the manifest; InputError naming the first that differs."""
        advice = f"delete {self.path} to have it computed anew"
        for name, entry in self.manifest()["files"].items():
            path = self.path / name
            size = self._size(name)
            require(size is not None, f"{path} is missing; {advice}")
            require(size == entry["bytes"], f"{path} is damaged: {size} bytes, expected {entry['bytes']}; {advice}")
            digest = _file_digest(path)
            message = f"{path} is damaged: its SHA-256 is {digest}, expected {entry['sha256']}; {advice}"
            require(digest == entry["sha256"], message)

    def finish(
        self,
        *,
        stage: str,
        key: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        seed: int,
        device: str,
        seconds: float,
        peak_memory_bytes: int | None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Declare the stage complete: write the manifest over all files here, then remove the checkpoint.

        ``inputs`` maps the name of each input to its key, ``seconds`` is wall time, ``extra`` anything JSON can hold.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        files = {}
        for path in sorted(path for path in self.path.rglob("*") if path.is_file()):
            name = path.relative_to(self.path).as_posix()
            if path.name.startswith(TEMPORARY):
                path.unlink()  # left by a killed process
            elif name not in (MANIFEST, CHECKPOINT, LOCK):
                files[name] = {"bytes": path.stat().st_size, "sha256": _file_digest(path)}
        manifest = {
            "stage": stage,
            "key": key,
            "config": config,
            "inputs": inputs,
            "seed": seed,
            "device": str(device),
            "seconds": seconds,
            "peak_memory_bytes": peak_memory_bytes,
            "versions": versions(),
            "hardware": hardware(),
            "extra": extra or {},
            "files": files,
        }
        save_json(self.path / MANIFEST, manifest)
        (self.path / CHECKPOINT).unlink(missing_ok=True)

    def save_checkpoint(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Replace the checkpoint by ``tensors`` (RNG states are uint8 tensors) and ``meta``, which JSON must hold.

        Both lie in one file, so that they cannot disagree after a crash.
        """
        save_tensors(self.path / CHECKPOINT, tensors, {"meta": json.dumps(_plain(meta, "meta"))})

    def load_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors (on the CPU) and meta of the last checkpoint; None when there is none, or, with a warning, when it
        is damaged: the stage then starts anew."""
        path = self.path / CHECKPOINT
        if not path.exists():
            return None
        try:
            tensors, metadata = _read_tensors(path)
        except InputError as error:
            warnings.warn(f"checkpoint ignored, the stage starts anew: {error}", stacklevel=2)
            return None
        return tensors, json.loads(metadata["meta"])

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder against other processes (and threads); waits as long as another one holds it.

        Not reentrant. The system lets go of the lock when the process ends, however it ends.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("%s is in use by another process; waiting for it", self.path)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not self.is_complete():
                # Half of the files written anew could match an old manifest in size, and pass for complete.
                # A checkpoint beside a manifest is a leftover of the finished run, and says that all is done.
                if (self.path / MANIFEST).exists():
                    (self.path / CHECKPOINT).unlink(missing_ok=True)
                (self.path / MANIFEST).unlink(missing_ok=True)
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked child may hold the descriptor open
            os.close(descriptor)

    def _size(self, name: str) -> int | None:
        """Bytes of a file here; None when it is missing."""
        path = self.path / name
        return path.stat().st_size if path.is_file() else None


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
