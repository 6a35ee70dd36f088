"""Chapters run with one setting changed, and what a wrong parameter is answered with."""

import itertools
import os
from pathlib import Path

import nbformat
import pytest
from torchvision.utils import save_image

import tadbook
from tadlib.data import load_dataset
from tadlib.errors import InputError

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
CHAPTERS = sorted(FOLDER.glob("0*.ipynb"))
SMALL = {"n_train": 300, "n_test": 100, "auditor_epochs": 12, "auditor_warmup": 3, "expert_epochs": 4}
SMALL |= {"mtt_iterations": 3, "mtt_expert_epochs": 1, "mtt_max_start": 2, "expert_count": 1}
SMALL |= {"evaluate_networks": 2, "evaluate_epochs": 5}
CIFAR = {"dataset": "cifar10", "resolution": 16, "width": 16}
SETTINGS = {
    "dataset": CIFAR,
    "noise": {"noise": "symmetric"},
    "human": CIFAR | {"noise": "human:worse"},  # rate stays as it is in the notebook
    "rate": {"rate": 0.2},
    "seed": {"seed": 1},
    "ipc": {"ipc": 1},
    "folder": {"dataset": "folder:"},
    "embeddings": {"posterior_predictors": "network patches embeddings:efficientnet-lite0"},
}


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder of 300 digits, a subfolder for each class."""
    data = load_dataset("digits", n_train=300)
    for i, (pixels, label) in enumerate(zip(data.pixels(data.x_train), data.y_train.tolist())):
        path = tmp_path / "images" / f"class {label}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_image(pixels, path)
    return tmp_path / "images"


# each setting in one chapter: all pairs take an hour
PAIRS = list(zip(SETTINGS, itertools.cycle(CHAPTERS[1:] + CHAPTERS[:1])))[:-1] + [("embeddings", CHAPTERS[1])]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "path"), PAIRS, ids=[f"{path.stem}-{name}" for name, path in PAIRS])
def test_one_changed_setting_gives_a_whole_chapter(path, name, tmp_path, request, monkeypatch):
    papermill = pytest.importorskip("papermill", reason="papermill is not installed: the extra book has it")
    values = SETTINGS[name]
    if name == "folder":
        values = {"dataset": f"folder:{request.getfixturevalue('images')}"}
    elif "dataset" in values:
        values = values | {"root": str(request.getfixturevalue("data_root"))}
    if path.stem.startswith("06"):  # which takes all images, and distils none
        values = {key: value for key, value in values.items() if key != "ipc"}
    else:
        values = {"ipc": 2} | values  # of so few images some arms keep less than ten a class
    small = {"n_train": 200, "n_test": 60} if name == "folder" else SMALL
    small = {
        key: value
        for key, value in (SMALL | small).items()
        if not key.startswith(("mtt", "expert")) or path.stem[:2] in ("04", "05")
    }
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]))
    made = papermill.execute_notebook(
        path,
        tmp_path / path.name,
        {**small, **values, "out": str(tmp_path / "runs")},
        kernel_name="python3",
        cwd=str(FOLDER),
        progress_bar=False,
    )
    before = nbformat.read(path, as_version=4)
    drawn = [
        sum("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))
        for notebook in (before, made)
    ]
    assert drawn[0] == drawn[1], "the chapter lost figures"


def test_a_rate_that_has_no_effect_is_put_aside_and_said(capsys):
    assert tadbook.configure({"noise": "none", "rate": 0.4}).rate == 0
    assert 'rate = 0.4 has no effect: noise = "none" has a rate of its own' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ({"dataset": "cifar10"}, ['dataset = "cifar10"', "root ="]),
        ({"dataset": "cifar10", "root": "nowhere"}, ["root =", "download = True"]),
        ({"dataset": "tiny-imagenet", "root": "nowhere"}, ['dataset = "tiny-imagenet"', "root ="]),
        ({"noise": "human:worse", "rate": 0.4}, ['dataset = "cifar10"', "root ="]),
        ({"noise": "pairflip", "rate": 0}, ["rate = 0.4"]),
        ({"noise": "asymmetric", "rate": 0.4}, ['noise = "pairflip"']),
        ({"noise": "pairflip", "rate": 1.4}, ["cell of parameters"]),
        ({"arm": "vanilla"}, ["arm has no effect"]),
        ({"nois": "pairflip"}, ["did you mean 'noise'", "cell of parameters"]),
    ],
    ids=str,
)
def test_errors_say_what_to_write_in_the_cell_of_parameters(values, lines):
    with pytest.raises(InputError) as raised:
        tadbook.configure(values)
    told = str(raised.value)
    assert "cell of parameters" in told
    assert [line for line in lines if line not in told] == []
