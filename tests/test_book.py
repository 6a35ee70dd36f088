"""The build of the book fails when a notebook does, and leaves the working tree alone."""

import importlib.util
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("book_build", ROOT / "book" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_notebook(path: Path, *sources: str) -> Path:
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = new_notebook(cells=[new_code_cell(source) for source in sources], metadata={"kernelspec": kernel})
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def run(build: ModuleType, folder: Path, *sources: str) -> Path:
    source = write_notebook(folder / "notebooks" / "a.ipynb", *sources)
    target = folder / "src" / "notebooks" / "a.ipynb"
    target.parent.mkdir(parents=True)
    build.run_notebook(source, target, folder / "attempts" / "a.ipynb")
    return target


def test_notebook_runs_in_the_staged_folder_and_loses_the_machines_traces(build, tmp_path):
    target = run(build, tmp_path, "import os", "print(os.path.basename(os.path.dirname(os.getcwd())))")
    executed = nbformat.read(target, as_version=4)
    assert executed.cells[1].outputs[0].text == "src\n"
    assert str(tmp_path) not in target.read_text()


def test_failing_notebook_fails_the_build_and_is_not_staged(build, tmp_path):
    with pytest.raises(build.BuildError, match=r"a\.ipynb failed"):
        run(build, tmp_path, "1 / 0")
    assert not (tmp_path / "src" / "notebooks" / "a.ipynb").exists()
    assert "ZeroDivisionError" in (tmp_path / "attempts" / "a.ipynb").read_text()


def test_notebook_that_warns_fails_the_build(build, tmp_path):
    with pytest.raises(build.BuildError, match="stderr"):
        run(build, tmp_path, "import warnings", "warnings.warn('look out')")


def test_table_of_contents_names_every_notebook_and_page_once(build):
    pages = build.toc_pages(yaml.safe_load((ROOT / "_toc.yml").read_text()))
    there = [f"book/{path.stem}" for path in (ROOT / "book").glob("*.md")]
    there += [f"notebooks/{path.stem}" for path in build.notebook_paths(ROOT)]
    assert sorted(pages) == sorted(there)


def test_api_page_covers_every_public_module(build, tmp_path):
    for name in ("__init__", "noise", "_private", "distill/__init__", "distill/mtt"):
        path = tmp_path / "lib" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    lines = build.api_page(tmp_path / "lib").splitlines()
    modules = [line.split()[-1] for line in lines if line.startswith(".. automodule::")]
    assert modules == ["lib", "lib.distill", "lib.distill.mtt", "lib.noise"]


def test_staging_keeps_executed_notebooks_and_drops_all_else(build, tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "intro.md").write_text("# Intro\n")
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: book/intro\n")
    (tmp_path / "_config.yml").write_text("title: A book\n")
    write_notebook(tmp_path / "notebooks" / "a.ipynb", "1")
    staged = tmp_path / "_build" / "src"
    write_notebook(staged / "notebooks" / "a.ipynb", "1")
    write_notebook(staged / "notebooks" / "gone.ipynb", "1")
    (staged / "book").mkdir()
    (staged / "book" / "gone.md").write_text("# Gone\n")
    build.stage(tmp_path, staged)
    kept = sorted(path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file())
    assert kept == ["_config.yml", "_toc.yml", "book/intro.md", "notebooks/a.ipynb"]


def test_launch_buttons_need_a_repository(build, tmp_path, monkeypatch):
    config = {"launch_buttons": {"notebook_interface": "jupyterlab"}}
    build.add_launch_buttons(config, "https://example.org/someone/tadlib")
    assert config["repository"] == {"url": "https://example.org/someone/tadlib", "branch": "main"}
    assert set(config["launch_buttons"]) == {"notebook_interface", "binderhub_url", "colab_url"}


def test_unknown_notebook_is_a_usage_error(build, capsys):
    with pytest.raises(SystemExit) as exit_:
        build.main(["--only", "99_nothing"])
    assert exit_.value.code == 2
    assert "99_nothing" in capsys.readouterr().err
