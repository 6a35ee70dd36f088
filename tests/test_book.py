"""The build of the book fails when a notebook does, and leaves the working tree alone."""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import nbformat
import pandas as pd
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook

from tadlib import report
from tadlib.report import benchmarks, pages

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
    toc = build.toc_pages(yaml.safe_load((ROOT / "_toc.yml").read_text()))
    there = [f"book/{path.stem}" for path in (ROOT / "book").glob("*.md")]
    there += [f"notebooks/{path.stem}" for path in build.notebook_paths(ROOT)]
    assert sorted(toc) == sorted(there)


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
    mathjax = {path for path in kept if path.startswith("extra/mathjax/")}
    assert "extra/mathjax/tex-mml-chtml.js" in mathjax
    assert [path for path in kept if path not in mathjax] == [
        "_config.yml",
        "_toc.yml",
        "book/intro.md",
        "notebooks/a.ipynb",
    ]


def test_launch_buttons_need_a_repository(build, tmp_path, monkeypatch):
    config = {"launch_buttons": {"notebook_interface": "jupyterlab"}}
    build.add_launch_buttons(config, "https://example.org/someone/tadlib")
    assert config["repository"] == {"url": "https://example.org/someone/tadlib", "branch": "main"}
    assert set(config["launch_buttons"]) == {"notebook_interface", "binderhub_url", "colab_url"}


def rows_of_results(**differing) -> pd.DataFrame:
    """One row of results for each value of the lists in ``differing``, which are as long as each other."""
    same = {"dataset": "digits", "n_train": 100, "rate_nominal": 0.0, "preset": "lite", "seed": 0}
    same |= {"accuracy_ci95": 0.01, "n_networks": 3, "noise": "none", "arm": "oracle", "ipc": 10, "method": "mtt"}
    table = pd.DataFrame([same | dict(zip(differing, values)) for values in zip(*differing.values(), strict=True)])
    return table.assign(config_hash=[f"{i:x}" for i in range(len(table))], device="cpu", hardware="a machine")


def test_methods_on_clean_labels_have_a_table_of_their_own():
    results = rows_of_results(
        method=["mtt", "mtt", "random", "random", "mtt", "mtt"],
        ipc=[1, 10, 1, 10, 10, 10],
        noise=["none"] * 4 + ["pairflip"] * 2,
        arm=["oracle"] * 4 + ["vanilla", "oracle"],
        accuracy_mean=[0.4, 0.6, 0.2, 0.3, 0.5, 0.6],
    )
    table = report.methods_table(results)
    assert table["method"].tolist() == ["random", "mtt"]
    assert table["10 a class"].tolist() == ["30.0 ± 1.0", "60.0 ± 1.0"]
    assert report.results_table(results)["noise"].tolist() == ["pairflip"]
    # with an arm that does something about labels, clean labels are a control
    control = pd.concat([results, rows_of_results(arm=["tad"], accuracy_mean=[0.55])])
    assert report.results_table(control)["noise"].tolist() == ["none", "pairflip"]
    assert report.methods_table(results[results["noise"] != "none"]).empty


def test_results_page_shows_every_benchmark_that_is_there(tmp_path):
    folder = tmp_path / "results" / "benchmarks"
    folder.mkdir(parents=True)
    for name in ("evaluation.parquet", "evaluation.png", "meta_gradient.png"):
        shutil.copy(ROOT / "results" / "benchmarks" / name, folder)
    report.write_book_tables(tmp_path / "results", tmp_path / "generated")
    text = (tmp_path / "generated" / "benchmarks.md").read_text()
    assert ":::{figure} ../results/benchmarks/evaluation.png" in text
    assert ":alt: " in text
    assert "torch" in text
    assert {*pages.BENCHMARKS} == {*benchmarks.FIGURES}
    assert "meta_gradient" not in text  # without its table nobody could tell where the picture is from


def test_unknown_notebook_is_a_usage_error(build, capsys):
    with pytest.raises(SystemExit) as exit_:
        build.main(["--only", "99_nothing"])
    assert exit_.value.code == 2
    assert "99_nothing" in capsys.readouterr().err
