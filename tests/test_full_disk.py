"""A full disk in every writer: one line, what was finished stays, and the same command goes on when there is room."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tadlib import cli
from tadlib.nn import pretrained
from workflow import run as workflow

TINY = "--n-train 200 --n-test 50 --ipc 1 --device cpu --arm vanilla --noise pairflip --rate 0.3"
FAST = "--set width=4 evaluate_networks=2 evaluate_epochs=2"


@pytest.fixture
def disk(tmp_path):
    """A small file system; yields its folder and what sets its size in kB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", mount], capture_output=True).returncode:
        pytest.skip("no file system can be mounted")

    def resize(kilobytes: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", mount], check=True)

    yield mount, resize
    subprocess.run(["umount", mount], check=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Folder with a finished run, and with images of which one diversion is finished."""
    folder = tmp_path_factory.mktemp("made")
    assert cli.main(["run", *TINY.split(), "--method", "random", "--out", f"{folder}/runs", *FAST.split()]) == 0
    draw = np.random.default_rng(0)
    for k in range(2):
        (folder / f"images/{k}").mkdir(parents=True)
        for i in range(20):
            pixels_HW = draw.integers(0, 100, (16, 16)) + 150 * k * np.eye(16)
            Image.fromarray(pixels_HW.clip(0, 255).astype(np.uint8)).save(folder / f"images/{k}/{i}.png")
    args = ["divert", "--arm", "vanilla", "--device", "cpu", "--dataset", f"folder:{folder}/images"]
    assert cli.main([*args, "--out", f"{folder}/own"]) == 0
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Files that must not depend on what happened on the way: all but what holds times, versions and locks."""
    measured = ("manifest.json", "results.parquet", "metrics.json", ".lock", ".results.lock", "history.parquet")
    found = {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and not p.is_symlink()
    }
    return {name: held for name, held in found.items() if Path(name).name not in (*measured, "report.html")}


AUDIT = "audit --n-train 200 --device cpu --set auditor_epochs=2 auditor_warmup=1 width=4 --predictors patches"
POSTERIOR = "divert --arm tad-posterior --n-train 200 --device cpu --predictors patches embeddings:torchvision:resnet18"
COMMANDS = {
    "selection": f"run {TINY} --method rded {FAST} observer_epochs=1 rded_crops=1 evaluate_batch=20",
    "trajectories": f"distill {TINY} --method mtt {FAST} expert_count=2 expert_epochs=4 mtt_iterations=2 "
    "mtt_syn_steps=2 mtt_max_start=2",
    "embeddings": POSTERIOR,
    "audit": AUDIT,
    "formats": "export {made}/runs/distill/* --format png ddranking huggingface",
    "corrected": "export {made}/own --format folder table --copy",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_one_line_and_loses_nothing(name, disk, made, tmp_path, monkeypatch, capsys):
    class Pretend:
        def embed(self, x_NCHW, step, _):
            step()
            return x_NCHW.flatten(1)[:, :32].contiguous()

    monkeypatch.setattr(pretrained, "load", lambda *_: Pretend())
    folder, resize = disk
    words = COMMANDS[name].format(made=made).split()
    args = [str(next(Path(word[:-2]).iterdir())) if word.endswith("/*") else word for word in words]

    def tad(out: Path) -> int:
        torch.manual_seed(0)
        return cli.main([args[0], f"--out={out}", *args[1:]])

    assert tad(tmp_path / "whole") == 0, capsys.readouterr().err
    expected, kept, failures = contents(tmp_path / "whole"), {}, 0
    for size in [*range(4, 120, 20), *range(120, 1200, 240)]:
        resize(size)
        capsys.readouterr()
        status = tad(folder / "out")
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("tad: error", "Traceback"))]
        assert len(said) == (status != 0), said
        assert status == 0 or "No space left" in said[0], said
        assert status == 0 or str(folder) in said[0], said
        failures += status != 0
        done = {path: path.stat().st_mtime_ns for path in folder.rglob("manifest.json")}
        assert kept.items() <= done.items()  # no finished stage is done again
        assert not list(folder.rglob(".tmp*")), "a part of a file is left"
        kept = done
        if status == 0:
            break
    resize(64 * 1024)
    assert tad(folder / "out") == 0
    assert failures
    assert contents(folder / "out") == expected


def test_a_grid_on_a_full_disk_is_one_line(disk, tmp_path, capsys):
    (tmp_path / "mine.yml").write_text(
        "shared: {dataset: digits, preset: smoke}\nblocks: [{arm: vanilla, method: random}]\n"
    )
    folder, resize = disk
    resize(4)
    (folder / "full").write_bytes(bytes(4096))
    assert workflow.main([str(tmp_path / "mine.yml"), "--out", str(folder / "out"), "--device", "cpu"]) in (1, 2)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("error: ")
    assert str(folder) in said[0]
