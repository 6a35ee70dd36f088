"""Other people's programs read what ``tad export`` writes.

Those that are not in this environment, because they are large or need another numpy, are looked for in the Pythons that
``TADLIB_CLIENTS`` lists (paths of interpreters, separated as in PATH); without one their test is skipped.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torchvision.datasets import ImageFolder

from tadlib import cli, export

HERE = Path(__file__).resolve().parent
SET = HERE.parent / "results" / "distilled" / "cifar10-human-worse-40-tad-posterior-dm-ipc10-lite.safetensors"


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """A distilled set of CIFAR-10 in every format."""
    out = tmp_path_factory.mktemp("export") / "out"
    assert cli.main(["export", str(SET), "--out", str(out), "--format", *export.FORMATS]) == 0
    return out


def run(module: str, script: str, *arguments: str | Path) -> str:
    """What a script of ``tests/clients`` prints under a Python that has ``module``."""
    # without the variables of pytest's own process, such as PYTHONPATH, which would mix the two environments
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    for python in (sys.executable, *filter(None, os.environ.get("TADLIB_CLIENTS", "").split(os.pathsep))):
        find = f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{module}') is None)"
        if subprocess.run([python, "-c", find], env=clean).returncode == 0:
            command = [python, str(HERE / "clients" / script), *map(str, arguments)]
            done = subprocess.run(command, env=clean, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout
    pytest.skip(f"no Python has {module}; TADLIB_CLIENTS may name one that has")


def test_torchvision_reads_the_pictures(exported):
    data = ImageFolder(str(exported / "png"))
    assert len(data) == 100
    assert [name[4:] for name in data.classes][:2] == ["airplane", "automobile"]
    assert data[0][0].size == (16, 16)


def test_hugging_face_datasets_reads_the_folder_and_its_card(exported):
    assert "100 rows" in run("datasets", "hugging_face.py", exported / "huggingface")


def test_timm_reads_the_pictures_and_trains_on_them(exported):
    assert "100 pictures of 10 classes" in run("timm", "timm_folder.py", exported / "png")


def test_dd_ranking_evaluates_the_set_with_hard_and_with_soft_labels(exported, data_root):
    assert "with soft labels" in run("ddranking", "dd_ranking.py", exported / "ddranking", data_root)
