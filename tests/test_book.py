"""The build of the book fails when a notebook does, and leaves the working tree alone."""

import base64
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from nbformat.v4 import new_code_cell, new_notebook
from scripts import script
from torchvision.io import decode_png, encode_png

import tadbook
from tadbook import benchmarks, costs, methods, pages, tables
from tadbook.style import ARMS as STYLES
from tadlib import noise
from tadlib.config import ARMS
from tadlib.data import load_dataset
from tadlib.store import save_table
from tadlib.trust import mixture

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def build() -> ModuleType:
    return script("book/build.py")


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
    there += [f"notebooks/{path.stem}" for path in build.chapter_paths(ROOT)]
    assert sorted(toc) == sorted(there)


def test_api_pages_cover_every_public_module_once(build, tmp_path):
    names = ["__init__", "_private", "data/__init__", "noise/__init__", "noise/files"]
    names += ["distill/__init__", "distill/mtt"]
    for name in (*(f"tadlib/{name}" for name in names), "tadbook/__init__", "tadbook/style"):
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    pages = build.api_pages(tmp_path / "tadlib", tmp_path / "tadbook")
    modules = {
        page: [line.split()[-1] for line in text.splitlines() if line.startswith(".. automodule::")]
        for page, text in pages.items()
    }
    assert modules == {
        "api": ["tadlib", "tadlib.data"],
        "api-labels": ["tadlib.noise", "tadlib.noise.files"],
        "api-distillation": ["tadlib.distill", "tadlib.distill.mtt"],
        "api-report": ["tadbook", "tadbook.style"],
    }
    stubs = {path.stem for path in (ROOT / "book").glob("api*.md")}
    assert stubs == {*build.API_PAGES}, "each page of the API needs a file that includes it"


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


def test_a_notebook_is_shown_as_run_here_unless_its_code_has_changed_since(build, tmp_path, capsys):
    committed, staged = (tmp_path / folder / "a.ipynb" for folder in ("notebooks", "staged"))
    for path, outputs in ((committed, "as committed"), (staged, "as run here")):
        write_notebook(path, "1")
        notebook = nbformat.read(path, as_version=4)
        notebook.cells[0].outputs = [nbformat.v4.new_output("stream", text=outputs)]
        nbformat.write(notebook, path)
    build.check_executed([committed], staged.parent)
    assert "as run here" in staged.read_text()
    notebook = nbformat.read(committed, as_version=4)
    notebook.cells[0].source = "2"
    nbformat.write(notebook, committed)
    build.check_executed([committed], staged.parent)
    assert "as committed" in staged.read_text()
    assert "a.ipynb is shown as committed" in capsys.readouterr().out


def test_pages_link_to_a_repository_only_where_there_is_one(build, tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: book/intro\n")
    config = {"repository": {"url": "https://example.org/OWNER/tadlib"}, "launch_buttons": {"colab_url": "c"}}
    for owner, buttons in (("OWNER", {}), ("someone", {"colab_url": "c"})):
        url = f"https://example.org/{owner}/tadlib"
        (tmp_path / "_config.yml").write_text(yaml.safe_dump(config | {"repository": {"url": url}}))
        build.stage(tmp_path, tmp_path / "staged")
        staged = yaml.safe_load((tmp_path / "staged" / "_config.yml").read_text())
        assert staged["launch_buttons"] == buttons
        assert bool(staged["repository"]["url"]) == bool(buttons)


def test_install_cell_comes_first_and_is_written_once(build, tmp_path):
    path = write_notebook(tmp_path / "a.ipynb", "1")
    notebook = nbformat.read(path, as_version=4)
    for url in ("https://example.org/OWNER/tadlib", "https://example.org/someone/tadlib"):
        notebook = build.with_install_cell(notebook, url)
        assert [url in cell.source for cell in notebook.cells] == [True, False]
    assert "find_spec" in notebook.cells[0].source  # where the library is there, nothing is installed


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_install_from_the_repository_that_the_book_names(build, path):
    url = build.repository_url(yaml.safe_load((ROOT / "_config.yml").read_text()))
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if build.INSTALL in cell.metadata.get("tags", [])]
    if not cells:
        pytest.skip("has no such cell yet: python book/build.py --in-place --only " + path.stem)
    assert [cell.source for cell in cells] == [build.install_source(url)], "make notebooks"


def test_readers_get_the_text_as_it_is_now_and_what_the_chapter_takes(build, tmp_path):
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    code = new_code_cell("# NBVAL_CHECK_OUTPUT\n1", outputs=[])
    code.outputs = [nbformat.v4.new_output("display_data", {"text/html": "<tr><th></th><th>a</th></tr>"})]
    for name, text in (("source", "# Title\n\n*Why?*\n\nnew"), ("executed", "# Title\n\n*Why?*\n\nold")):
        cells = [nbformat.v4.new_markdown_cell(text), code]
        nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), tmp_path / f"{name}.ipynb")
    for seconds in (2, 1):  # rendered twice without a run, the second time after a change of structure
        build.dress(tmp_path / "source.ipynb", tmp_path / "executed.ipynb", f":::{{note}}\ntakes {seconds} s\n:::")
        executed = nbformat.read(tmp_path / "executed.ipynb", as_version=4)
        if seconds == 2:
            executed.cells.append(new_code_cell("2"))
            nbformat.write(executed, tmp_path / "executed.ipynb")
    dressed = nbformat.read(tmp_path / "executed.ipynb", as_version=4)
    assert dressed.cells[0].source == "# Title\n\n*Why?*\n\n:::{note}\ntakes 1 s\n:::\n\nnew"
    assert dressed.cells[1].source == "1"
    assert "<th></th>" not in dressed.cells[1].outputs[0].data["text/html"]
    assert build.code_of(tmp_path / "executed.ipynb") == ["1", "2"]


def test_costs_of_a_chapter_are_kept_once_and_told(build, tmp_path):
    for seconds in (10.0, 20.0):
        build.keep_costs(tmp_path / "chapters.parquet", "02-trust", 2 * seconds, seconds)
    build.keep_costs(tmp_path / "chapters.parquet", "01-noise", 1.0, 1.0)
    assert costs.read_chapters(tmp_path)["chapter"].tolist() == ["01-noise", "02-trust"]
    assert "**takes** 20 s of one processor core" in tadbook.chapter_note(tmp_path, "02-trust")
    assert tadbook.chapter_note(tmp_path, "03-recalibration") == ""
    tadbook.write_book_tables(tmp_path, tmp_path / "generated")
    assert "| 02-trust | 20 s | 40 s |" in (tmp_path / "generated" / "costs.md").read_text()
    assert [costs.duration(s) for s in (9.4, 99, 100, 5999, 7200)] == ["9 s", "99 s", "2 min", "100 min", "2.0 h"]


def test_binder_installs_the_lock_and_the_library():
    script = ROOT / "binder" / "postBuild"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "-r requirements.lock" in script.read_text()
    assert "--editable ." in script.read_text()
    assert "http" not in script.read_text()  # no registry by its address


def test_newcomers_pictures_come_from_committed_results(tmp_path):
    tadbook.write_book_pictures(ROOT / "results", tmp_path)
    results = tadbook.read_results(ROOT / "results")
    digits = results[(results.dataset == "digits") & (results.noise == "pairflip") & (results.arm == "oracle")]
    digits = digits[digits.rate_nominal == 0.4]
    text = (tmp_path / "few_for_many.md").read_text()
    assert f"names\n{100 * digits.accuracy_mean.mean():.0f} % of unseen digits correctly" in text
    assert "40 % of the labels are wrong" in (tmp_path / "by_arm.md").read_text()
    for name in ("few_for_many.png", "by_arm.png", "images.html", "runs.html"):
        assert (tmp_path / name).stat().st_size > 5000
    empty = tadbook.write_book_pictures(tmp_path / "nothing", tmp_path / "empty")
    assert {path.read_text() for path in empty} == {"\n"}


def test_interactive_figures_need_no_network_and_carry_their_data(tmp_path):
    pixels = torch.linspace(0, 1, 2 * 3 * 4 * 4).view(6, 1, 4, 4)
    figure = tadbook.explore_images({"digits": (("a", "b"), {"one": (pixels, "</script>")})})
    html = figure.html()
    assert html.count("<script>") == html.count("</script>") == 1
    assert not re.search(r"https?://(?!www\.w3\.org)", html)
    assert html == tadbook.explore_images({"digits": (("a", "b"), {"one": (pixels, "</script>")})}).html()
    sheet = figure.data["sprites"][0]
    assert (sheet["columns"], sheet["rows"]) == (6, 1)
    picture = decode_png(
        torch.frombuffer(bytearray(base64.b64decode(sheet["source"].partition(",")[2])), dtype=torch.uint8)
    )
    assert picture.shape == (1, 4, 24)
    assert picture[0, :, 4:8].equal(255 - (pixels[1, 0] * 255).round().to(torch.uint8))  # ink is dark


def test_noise_to_explore_is_the_nominal_matrix_at_any_rate():
    target = torch.tensor(
        tadbook.explore_noise([str(k) for k in range(10)], dataset="cifar10").data["targets"]["asymmetric"]
    )
    true_N = torch.arange(100) % 10
    nominal = noise.inject(true_N, "asymmetric", 0.3, n_classes=10, seed=0, dataset="cifar10").transition_nominal
    torch.testing.assert_close(0.7 * torch.eye(10) + 0.3 * target, nominal.float())


def rows_of_results(**differing) -> pd.DataFrame:
    """One row of results for each value of the lists in ``differing``, which are as long as each other."""
    same = {"dataset": "digits", "n_train": 100, "rate_nominal": 0.0, "preset": "lite", "seed": 0, "rate_realised": 0.0}
    same |= {"accuracy_ci95": 0.01, "n_networks": 3, "noise": "none", "arm": "oracle", "ipc": 10, "method": "mtt"}
    same |= {"evaluate_network": "convnet", "formation": 1, "draw_power": 8.0, "n_test": 1000}
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
    table = tadbook.methods_table(results)
    assert table["method"].tolist() == ["random", "mtt"]
    assert table["10 a class"].tolist() == ["30.0 ± 1.0", "60.0 ± 1.0"]
    assert tadbook.results_table(results)["noise"].tolist() == ["pairflip"]
    # with an arm that does something about labels, clean labels are a control
    control = pd.concat([results, rows_of_results(arm=["tad-posterior"], accuracy_mean=[0.55])])
    assert tadbook.results_table(control)["noise"].tolist() == ["none", "pairflip"]
    assert tadbook.methods_table(results[results["noise"] != "none"]).empty


@pytest.mark.parametrize(
    "setting, differing, word",
    [("n_test", [1000, 2000], "mtt"), ("evaluate_network", ["convnet", "resnet18"], "mtt, tested on resnet18")],
)
def test_methods_tested_in_different_ways_have_rows_of_their_own(setting, differing, word, tmp_path):
    results = rows_of_results(accuracy_mean=[0.5, 0.6], **{setting: differing})
    table = tadbook.methods_table(results)
    assert table["10 a class"].tolist() == ["50.0 ± 1.0", "60.0 ± 1.0"]
    assert table["method"].tolist() == ["mtt", word]
    about = {"torch_version": "1", "tadlib_version": "1", "peak_memory_bytes": 1e9}
    save_table(tmp_path / "lite.parquet", results.assign(**about))
    tadbook.write_book_tables(tmp_path, tmp_path)
    text = (tmp_path / "methods.md").read_text()
    assert ("| test images |" in text) == (setting == "n_test")
    assert ("--set evaluate_network=resnet18" in text) == (setting != "n_test")


def test_a_single_network_of_a_single_seed_has_no_interval(tmp_path):
    rows = rows_of_results(noise=["a"], arm=["tad"], accuracy_mean=[0.5], accuracy_ci95=[None], seconds_observer=[None])
    save_table(tmp_path / "lite.parquet", rows.assign(seconds_divert=1.0))
    results = tadbook.read_results(tmp_path)
    (row,) = tadbook.results_table(results).to_dict("records")
    assert (row["tad"], row["interval over"]) == ("50.0", "–")
    assert tadbook.explore_runs(results).data["rows"][0]["seconds"] == 1.0


def test_a_setting_tested_on_several_numbers_of_images_counts_once_and_is_one_curve():
    arms, rates = ["vanilla", "tad", "oracle"], [0.2, 0.4]
    results = rows_of_results(
        arm=arms * 4,
        accuracy_mean=[0.3, 0.5, 0.6] * 2 + [0.2, 0.5, 0.6] * 2,
        noise=["pairflip"] * 12,
        rate_nominal=[rate for _ in range(2) for rate in rates for _ in arms],
        n_test=[2000] * 6 + [10000] * 6,
    )
    results["rate_realised"] = results["rate_nominal"]
    text = tadbook.verdict(tadbook.comparisons(results))
    assert text == "tad is above vanilla in 2 of 2 runs (100 %), by 30.0 points on average over 2 settings."
    drawn = tadbook.against_rate(results)
    assert len(drawn.axes) == 2  # accuracies above, gaps below
    (curve, *_) = (line for line in drawn.axes[0].get_lines() if len(line.get_xdata()) == len(rates))
    assert curve.get_ydata().tolist() == [20.0, 20.0]  # vanilla's, on most test images
    mosaics = results.assign(formation=2)
    assert len(tadbook.against_rate(pd.concat([results, mosaics])).axes) == 4


def test_arms_are_compared_run_by_run_and_shortfalls_are_told():
    arms = ["vanilla", "loss-filter", "tad-posterior", "oracle"]
    results = rows_of_results(
        arm=arms * 3 + ["tad-posterior"] * 3,
        noise=["pairflip"] * 8 + ["symmetric"] * 5 + ["none"] * 2,
        seed=[0] * 4 + [1] * 4 + [0] * 4 + [1] + [0, 1],
        rate_nominal=[0.4] * 8 + [0.2] * 5 + [0.0] * 2,
        accuracy_mean=[0.2, 0.3, 0.6, 0.6, 0.2, 0.3, 0.5, 0.6, 0.5, 0.55, 0.5, 0.4, 0.9, 0.6, 0.6],
        label_accuracy=[0.6, 0.7, 0.9, 1.0] * 2 + [0.8, 0.9, 0.7, 1.0, 1.0] + [1.0] * 2,
    )
    pairs = tadbook.comparisons(results)  # the seed of one arm alone has nothing to be compared with
    assert pairs[["seed", "vanilla", "accuracy", "clean"]].values.tolist() == [
        [0, 0.2, 0.6, 0.6],
        [1, 0.2, 0.5, 0.6],
        [0, 0.5, 0.5, 0.6],
    ]
    text = tadbook.verdict(pairs)
    # averages are of the setting that both seeds have
    assert text.startswith(
        "tad-posterior is above vanilla in 2 of 3 runs (67 %), by 35.0 points on average over one setting; "
    )
    assert "above loss-filter in 2 of 3 runs (67 %), by 25.0 points on average over one setting." in text
    assert "It closes 0.88 of the gap, over one setting." in text
    short = tadbook.shortfalls(results)
    assert short["noise"].tolist() == ["symmetric"]
    assert short["falls short by"].tolist() == ["no better than vanilla, no better than loss-filter, gap"]
    assert short["right labels"].tolist() == ["70.0"]
    left = pd.DataFrame({"true_label": ["cat", "dog"], "label": ["dog", "cat"], "share": [0.1, 0.2]})
    same = dict(results[["dataset", "n_train", "noise", "rate_nominal", "arm", "preset", "seed"]].iloc[10])
    (told,) = tadbook.shortfalls(results, left.assign(**same))["wrong labels left"]
    assert told == "dog → cat 20.0 %, cat → dog 10.0 %"
    (told,) = tadbook.shortfalls(results, left.assign(**same | {"arm": "tad"}))["wrong labels left"]
    assert told == "–"
    assert tadbook.comparisons(results[:0]).empty
    assert tadbook.shortfalls(results[:8]).empty


def test_shortfalls_are_told_while_a_grid_has_yet_to_run_some_arms():
    results = rows_of_results(
        arm=["vanilla", "tad-posterior"], noise=["pairflip"] * 2, accuracy_mean=[0.5, 0.4], label_accuracy=[0.6, 0.9]
    )
    (row,) = tadbook.shortfalls(results).to_dict("records")
    assert row["falls short by"] == "no better than vanilla"
    assert [row[name] for name in ("loss-filter", "oracle", "right labels: loss-filter")] == ["–"] * 3


def test_both_methods_are_compared_each_with_its_rivals():
    arms = ["vanilla", "loss-filter", "tad", "tad-posterior", "oracle"]
    results = rows_of_results(
        arm=[*arms, "tad", "tad-posterior"],
        accuracy_mean=[0.2, 0.4, 0.3, 0.5, 0.45, 0.6, 0.6],
        noise=["pairflip"] * 5 + ["none"] * 2,
        label_accuracy=[0.5] * 7,
    )
    pairs = tadbook.comparisons(results)
    assert pairs[["arm", "accuracy"]].values.tolist() == [["tad", 0.3], ["tad-posterior", 0.5]]
    assert tadbook.shortfalls(results)["falls short by"].tolist() == ["no better than loss-filter, gap", "gap"]
    row = tadbook.results_table(results).to_dict("records")[0]
    assert [row["gap closed tad"], row["gap closed tad-posterior"]] == ["0.25", "0.75"]
    row = tadbook.results_table(results[results["arm"] != "tad"]).to_dict("records")[0]
    assert [row["tad"], row["gap closed tad"], row["tad-posterior"]] == ["–", "–", "50.0 ± 1.0"]


def rows_with_controls() -> pd.DataFrame:
    """Three seeds of pairflip and of clean labels, with controls and with uniform drawing on clean labels."""
    rows = []
    for seed in range(3):
        plain = {"seed": seed, "method": "dm", "arm": "vanilla", "noise": "none", "draw_power": 8.0}
        plain |= {"rate_nominal": 0.0, "accuracy_mean": 0.40 + 0.01 * seed, "accuracy_random_real": 0.3}
        ours = plain | {"arm": "tad-posterior", "accuracy_mean": 0.43 + 0.01 * seed, "accuracy_hard_labels": 0.42}
        rows += [plain, ours, ours | {"draw_power": 0.0, "accuracy_mean": 0.405 + 0.01 * seed}]
        noisy = {"noise": "pairflip", "rate_nominal": 0.4}
        rows += [plain | noisy | {"accuracy_mean": 0.2}, ours | noisy | {"accuracy_mean": 0.41 + 0.01 * seed}]
    table = pd.DataFrame(rows)
    return rows_of_results(**{name: table[name].tolist() for name in table})


def test_controls_stand_beside_every_arm():
    from tadbook import comparison

    table = comparison.controls_table(rows_with_controls()).to_dict("records")
    assert [row["noise"] for row in table] == ["none", "pairflip"]
    clean, noisy = ({name: value for name, value in row.items() if name not in ("noise", "rate")} for row in table)
    assert clean["distilled"].startswith("44.0 ± 2.5")
    assert [clean["random images"], clean["hard labels"]] == ["30.0 ± 0.0", "42.0 ± 0.0"]
    assert clean["uniform drawing"].startswith("41.5")
    assert noisy["uniform drawing"] == "–"
    assert comparison.controls_table(rows_of_results(arm=["tad"], accuracy_mean=[0.5])).empty


def test_what_selection_brings_is_measured_where_no_label_is_wrong():
    from tadbook import comparison

    default, uniform = comparison.selection_table(rows_with_controls()).to_dict("records")
    assert (default["tad-posterior"], default["tad"], default["seeds"]) == ("3.0 ± 0.0", "–", 3)
    assert uniform["method"] == "dm, draw power 0"
    assert uniform["tad-posterior"] == "0.5 ± 0.0"


def test_differences_are_paired_over_seeds():
    from tadbook import comparison

    (row,) = comparison.differences_table(rows_with_controls()).to_dict("records")
    assert row["above vanilla"].startswith("22.0 ± 2.5")
    assert row["above loss-filter"] == "–"


def test_the_gap_closed_is_a_ratio_of_means():
    from tadlib.evaluate import gap_closed

    gap, half = gap_closed([0.5, 0.6, 0.7], [0.2, 0.2, 0.2], [0.6, 0.7, 0.8])
    assert gap == pytest.approx(0.8)
    residuals = np.array([0.3 - 0.8 * 0.4, 0.4 - 0.8 * 0.5, 0.5 - 0.8 * 0.6]) / 0.5
    assert half == pytest.approx(4.302653 * residuals.std(ddof=1) / 3**0.5, rel=1e-6)
    assert gap_closed([0.5], [0.2], [0.8]) == (pytest.approx(0.5), None)
    assert gap_closed([0.5], [0.6], [0.6]) == (None, None)
    assert gap_closed([], [], []) == (None, None)


def test_arms_by_noise_are_drawn_where_there_are_rows():
    found = methods.by_noise(rows_with_controls())
    (panel,) = methods.arms_by_noise(found).axes
    assert panel.get_title("left") == "digits, DM\n1,000 test images"
    assert [label.get_text() for label in panel.get_xticklabels()] == ["clean labels", "pairflip, 40 %"]
    assert methods.by_noise(rows_with_controls()[:0]).empty


def test_a_pdf_that_latex_left_half_way_is_an_error(build, tmp_path, monkeypatch):
    def stopped(root, *_):
        (root / "_build" / "latex").mkdir(parents=True)
        (root / "_build" / "latex" / "book.pdf").write_bytes(b"%PDF half of it")
        return 1

    monkeypatch.setattr(build, "jupyter_book", stopped)
    monkeypatch.setattr(build.shutil, "which", lambda name: name)
    with pytest.raises(build.BuildError, match="LaTeX stopped at an error"):
        build.render_pdf(tmp_path, tmp_path / "src")


def test_every_entry_of_the_bibliography_is_cited():
    entries = re.findall(r"^@\w+\{(\w+),", (ROOT / "book" / "references.bib").read_text(), re.MULTILINE)
    files = [*(ROOT / "book").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "tadlib").rglob("*.py")]
    text = " ".join(path.read_text(encoding="utf-8") for path in files)
    cited = {key for group in re.findall(r"\{cite:\w\}`([^`]+)`", text) for key in group.replace(" ", "").split(",")}
    cited |= {key for group in re.findall(r"references\.md#([\w,]+)\)", text) for key in group.split(",")}
    cited |= {key for _, sources in pages.PUBLISHED.values() for key in sources.split(",")}
    assert len(entries) > 30
    assert set(entries) == cited


def test_published_figures_are_tables_with_their_sources(tmp_path):
    text = tadbook.write_published(ROOT / "book" / "published", tmp_path).read_text()
    assert ":name: tab-published-noisy" in text
    assert ":name: tab-published-clean" in text
    assert text.count("{cite:t}") == len(pages.PUBLISHED)
    assert "| IDM with RDC | 10 |" in text


def test_columns_that_say_the_same_in_every_row_are_told_once():
    table = pd.DataFrame({"dataset": ["digits"] * 2, "noise": ["a", "b"], "ipc": [1, 10]})
    shorter, told = pages.folded(table)
    assert [*shorter] == ["noise", "ipc"]
    assert told == "In every row: data set digits."
    assert pages.folded(table[["noise"]])[1] == ""


def test_a_difference_that_rounds_to_nothing_has_no_sign():
    assert [tables.with_interval(mean, None, 100) for mean in (-0.0001, -0.001, 0.0001)] == ["0.0", "−0.1", "0.0"]


@pytest.mark.parametrize("ours", [["tad"], ["tad-posterior"], ["tad", "tad-posterior"]])
def test_what_was_run_at_several_rates_is_drawn_against_them(ours):
    arms = ["vanilla", *ours, "oracle"]
    rates = [("pairflip", 0.2, 0.2), ("pairflip", 0.4, 0.4), ("human:aggre", 0.0, 0.09), ("human:worse", 0.0, 0.4)]
    noise, nominal, realised = ([value for value in column for _ in arms] for column in zip(*rates))
    results = rows_of_results(
        arm=arms * 4, accuracy_mean=[0.3, *[0.5] * len(ours), 0.6] * 4, noise=noise, rate_nominal=nominal
    ).assign(rate_realised=realised)
    drawn = tadbook.against_rate(results)
    assert [ax.get_title(loc="left").partition("\n")[0] for ax in drawn.axes[:2]] == ["pairflip", "human"]
    assert len(drawn.axes[2].containers) == len(ours)
    assert tadbook.against_rate(results[results["rate_realised"] == 0.4]) is None  # one rate of each kind
    assert tadbook.against_rate(results[:0]) is None
    assert tadbook.against_rate(results[~results["arm"].isin(ours)]) is None


def test_ablations_have_a_table_a_data_set_a_row_a_variant_and_columns_by_noise(tmp_path):
    tadbook.write_book_tables(tmp_path, tmp_path / "generated")
    for name in ("ablation", "ablation_tad"):
        assert "No results yet" in (tmp_path / "generated" / f"{name}.md").read_text()
    runs = [(v, noise, seed) for v in ("as it is", "without anchors") for noise in ("a", "human:b") for seed in (0, 1)]
    rows = pd.DataFrame(runs, columns=["variant", "noise", "seed"])
    rows = rows.assign(trust_auroc=0.9, label_accuracy=0.8, preset="lite", n_train=100, rate_nominal=0.4)
    other = rows[rows["noise"] == "a"].assign(dataset="cifar100", trust_auroc=0.7)
    both = pd.concat([rows.assign(dataset="cifar10"), other], ignore_index=True)
    save_table(tmp_path / "ablation.parquet", both)
    save_table(tmp_path / "ablation_tad.parquet", both.assign(accuracy_mean=0.4, accuracy_ci95=0.02))
    tadbook.write_book_tables(tmp_path, tmp_path / "generated")
    text = (tmp_path / "generated" / "ablation.md").read_text()
    assert "| without anchors | 0.900 | 0.900 |" in text
    assert "| without anchors | 0.700 |" in text
    of_tad = (tmp_path / "generated" / "ablation_tad.md").read_text()
    assert "| variant | a: AUROC | a: accuracy | human:b: AUROC | human:b: accuracy |" in of_tad
    assert "| without anchors | 0.900 | 40.0 | 0.900 | 40.0 |" in of_tad
    for settings in ("cifar10:a:0.4 cifar10:human:b", "cifar100:a:0.4"):
        assert f"--ablation tad-posterior --root DATA --preset lite --settings {settings}\n" in text
        assert f"--ablation tad --root DATA --preset lite --settings {settings}\n" in of_tad


def test_an_ablation_has_a_column_for_each_rate_of_a_noise():
    rows = pd.DataFrame({"rate_nominal": [0.2, 0.4], "trust_auroc": [0.9, 0.7], "seed": [0, 0]})
    (row,) = tables.ablation_table(rows.assign(variant="as it is", noise="symmetric")).to_dict("records")
    assert (row["symmetric 20 %"], row["symmetric 40 %"]) == ("0.900", "0.700")


def test_the_refined_set_has_a_row_a_method_with_a_column_for_each_set_of_labels(tmp_path):
    rows = pd.DataFrame([{"seed": seed, "rate_nominal": 0.4, "rate_realised": 0.39} for seed in (0, 1)])
    rows = rows.assign(dataset="cifar10", n_train=100, noise="pairflip", preset="lite", arm="tad-posterior")
    for name, value in (("given", 0.3), ("trusted", 0.4), ("refined", 0.5), ("true", 0.6)):
        rows[f"accuracy_{name}"] = value
    save_table(tmp_path / "refined.parquet", rows)
    tadbook.write_book_tables(tmp_path, tmp_path / "generated")
    text = (tmp_path / "generated" / "refined.md").read_text()
    assert "| tad |" not in text  # it was not run
    assert "| pairflip, 39 % | tad-posterior | 30.0 | 40.0 | 50.0 | 60.0 |" in text


def test_mixtures_are_drawn_with_the_cut_between_trusted_and_not():
    label_N = torch.arange(200) % 2
    right_N = torch.arange(200) < 140
    loss_N = torch.where(right_N, 0.1, 2.0) + torch.linspace(0, 0.3, 200)
    split = mixture.split(loss_N, label_N, 2, delta=0.5)
    trusted_N = split.above(0.5)
    drawn = tadbook.mixtures(split, label_N, trusted_N, right_N, ["a", "b"])
    for k, ax in enumerate(drawn.axes):
        (cut,) = [line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 2]
        assert cut == split.u[trusted_N & (label_N == k)].max() < split.u[~trusted_N & (label_N == k)].min()


def test_every_arm_has_a_colour_and_a_marker_of_its_own():
    assert {*STYLES} == {*ARMS}
    for part in zip(*(value[:2] for value in STYLES.values()), strict=True):
        assert len({*part}) == len(ARMS)


def test_results_page_shows_every_benchmark_that_is_there(tmp_path):
    folder = tmp_path / "results" / "benchmarks"
    folder.mkdir(parents=True)
    for name in ("evaluation.parquet", "evaluation.png", "meta_gradient.png"):
        shutil.copy(ROOT / "results" / "benchmarks" / name, folder)
    tadbook.write_book_tables(tmp_path / "results", tmp_path / "generated")
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


def test_the_example_of_own_images_runs(repository, tmp_path, monkeypatch):
    """As printed on the page, but for its sizes."""
    source = (repository / "book" / "own_images.py").read_text()
    small = "n_test=0, ipc=1, width=4, depth=1, auditor_epochs=2, auditor_warmup=1, dm_iterations=2"
    assert source.count("n_test=0") == 1
    digits = load_dataset("digits", n_train=100)
    for i, (image, label) in enumerate(zip(digits.pixels(digits.x_train), digits.y_train.tolist())):
        folder = tmp_path / "images" / f"digit {(label + (i % 5 == 0)) % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:03d}.png").write_bytes(encode_png((image * 255).round().byte()).numpy().tobytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["own_images.py", str(tmp_path / "images")])
    left: dict = {"__name__": "__main__"}
    exec(compile(source.replace("n_test=0", small), "own_images.py", "exec"), left)
    suspects = left["suspects"]
    assert len(suspects) == 100
    assert suspects["trust"].is_monotonic_increasing
    assert all(Path(path).parent.name == f"digit {k}" for path, k in zip(suspects["path"], suspects["given_label"]))
    assert left["distilled"].pixels.shape == (10, 1, 8, 8)


def test_the_example_of_label_errors_runs(repository, capsys):
    left: dict = {"__name__": "__main__"}
    exec(compile((repository / "book" / "label_errors.py").read_text(), "label_errors.py", "exec"), left)
    wrong, flagged = left["labels"] != left["true"], left["suspects"]["flagged"]
    assert wrong[flagged].mean() > 0.9
    assert flagged[wrong].mean() > 0.9
    low, high = left["suspects"].attrs["interval"]
    assert low < wrong.mean() < high
    assert capsys.readouterr().err == ""


def test_a_setting_tested_on_another_network_is_another_setting(tmp_path):
    rows = rows_of_results(
        evaluate_network=["convnet", "resnet18"], accuracy_mean=[0.5, 0.1], noise=["a", "a"], arm=["tad", "tad"]
    )
    save_table(tmp_path / "lite.parquet", rows)
    table = tadbook.results_table(tadbook.read_results(tmp_path))
    assert table[["method", "tad"]].values.tolist() == [
        ["mtt", "50.0 ± 1.0"],
        ["mtt, tested on resnet18", "10.0 ± 1.0"],
    ]


def test_mosaics_are_another_setting_and_rows_from_before_there_were_any_have_none(tmp_path):
    differing = {"noise": ["a", "a"], "arm": ["tad", "tad"], "accuracy_mean": [0.5, 0.1]}
    tables.replace_rows(tmp_path / "lite.parquet", rows_of_results(**differing, seed=[0, 1]).drop(columns="formation"))
    mosaics = rows_of_results(**differing, formation=[2, 1], seed=[0, 1])
    tables.replace_rows(tmp_path / "lite.parquet", mosaics.assign(config_hash=["x", "y"]))
    read = tadbook.read_results(tmp_path)
    assert read[["seed", "formation", "config_hash"]].values.tolist() == [[0, 1, "0"], [1, 1, "y"], [0, 2, "x"]]
    table = tadbook.results_table(read)
    assert table[["method", "tad"]].values.tolist() == [["mtt", "30.0"], ["mtt, f = 2", "50.0 ± 1.0"]]
    clean = rows_of_results(formation=[1, 2], accuracy_mean=[0.5, 0.6])
    assert tadbook.methods_table(clean)[["f", "10 a class"]].values.tolist() == [[1, "50.0 ± 1.0"], [2, "60.0 ± 1.0"]]
