"""Figures of measured rows show what the rows say, and nothing where rows are missing."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from docutils import nodes
from docutils.frontend import get_default_settings
from docutils.parsers.rst import Parser
from docutils.utils import new_document
from scripts import script

import tadbook
from tadbook import calibration, methods
from tadbook.style import METHODS as STYLES
from tadbook.tables import calibration_table, read_trust
from tadlib import config
from tadlib.store import load_table, save_table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
NAMES = ["cat", "dog", "cow"]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return script("benchmarks/calibration.py")


def test_bins_of_trust_are_those_of_a_slow_count(benchmark):
    generator = np.random.default_rng(0)
    trust_N = np.append(generator.uniform(0, 1, 500), [0.0, 1.0, 0.1])
    trust_N = trust_N[(trust_N < 0.3) | (trust_N >= 0.4)]  # a bin is empty
    right_N = (generator.uniform(0, 1, len(trust_N)) < trust_N).astype(float)
    found = benchmark.binned(trust_N, right_N)
    error = 0.0
    for b in range(10):
        own = [i for i, w in enumerate(trust_N) if int(10 * w) == b or (b == 9 and w == 1)]
        assert found["bin_count"][b] == len(own)
        if not own:
            assert b == 3
            assert found["bin_trust"][b] is None
            assert found["bin_right"][b] is None
            continue
        assert found["bin_trust"][b] == pytest.approx(np.mean(trust_N[own]))
        assert found["bin_right"][b] == pytest.approx(np.mean(right_N[own]))
        error += len(own) * abs(np.mean(trust_N[own]) - np.mean(right_N[own]))
    assert found["calibration_error"] == pytest.approx(error / len(trust_N))
    assert found["brier"] == pytest.approx(np.mean((trust_N - right_N) ** 2))


def test_the_true_matrix_is_the_shares_of_noisy_labels_by_true_class(benchmark):
    true_N, noisy_N = torch.tensor([0, 0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 0, 1, 1, 2, 2])
    expected = torch.tensor([[0.75, 0.25, 0], [0, 0.5, 0.5], [0, 0, 1]])
    torch.testing.assert_close(benchmark.shares(true_N, noisy_N, 3), expected)


def test_calibration_is_measured_once_and_drawn(benchmark, tmp_path, monkeypatch, capsys):
    options = ["--settings", "digits:pairflip:.3", "--preset", "smoke", "--device", "cpu", "--seeds", "1"]
    options += ["--out", str(tmp_path / "runs"), "--results", str(tmp_path / "calibration.parquet")]
    assert benchmark.main([*options, "--arms", "loss-filter", "tad-posterior"]) == 0
    rows = read_trust(tmp_path / "calibration.parquet")
    assert rows["arm"].tolist() == ["loss-filter", "tad-posterior"]
    assert [sum(count) for count in rows["bin_count"]] == rows["n_train"].tolist()
    assert rows["noise_rate"].isna().tolist() == [True, False]
    true, estimated = calibration.matrices(rows[1:])
    assert np.allclose(true.sum(1), 1)
    assert np.allclose(estimated.sum(1), 1, atol=1e-4)
    found = calibration.fragments(tmp_path)
    assert [name for name, (figure, text) in found.items() if figure and text] == ["reliability", "transitions"]
    assert "1,297 images" in found["reliability"][1]
    assert "seeds 1," in found["reliability"][1]
    assert not (tmp_path / "found_errors.parquet").exists()  # nobody erred: the noise was injected
    monkeypatch.setattr(benchmark.pipeline, "Work", lambda folder, title: pytest.fail(f"{title} is done again"))
    assert benchmark.main([*options, "--arms", "tad-posterior"]) == 0
    assert len(read_trust(tmp_path / "calibration.parquet")) == 2


def test_needless_flags_are_kept_beside_found_errors(benchmark, monkeypatch):
    params = {"dataset": "digits", "n_train": 300, "preset": "smoke", "noise": "symmetric", "rate": 0.3, "seed": 1}
    of = config.Config.from_params(**params, arm="tad-posterior", device="cpu")
    data = benchmark.dataset(of)
    true_N = data.y_train
    noisy_N = torch.where(torch.arange(300) < 30, (true_N + 1) % 10, true_N)
    suggested_N = torch.where(torch.arange(300) % 15 == 14, (true_N + 2) % 10, true_N)  # now and then it errs
    q_NK = torch.nn.functional.one_hot(suggested_N, 10) * torch.linspace(0.9, 0.5, 300)[:, None]
    space_N = torch.zeros(300, dtype=torch.int8)
    refined = benchmark.RefinedSet(noisy_N, q_NK, q_NK[:, 0], q_NK[:, 0].double(), space_N, q_NK[:, 0])
    refined = benchmark.replace(refined, posterior=q_NK.float(), flagged=suggested_N != noisy_N)
    table = benchmark.gallery(of, refined, true_N)
    certain, needless = (table[table["kind"] == kind] for kind in ("certain", "needless"))
    assert len(certain) == benchmark.MOST_CERTAIN
    assert len(needless) == benchmark.NEEDLESS
    assert (needless["noisy"] == needless["true"]).all()
    assert (table["noisy"] != table["suggested"]).all()
    assert certain["probability"].is_monotonic_decreasing
    assert certain["index"].tolist() == data.index[:12].tolist()
    assert table["flagged"].iloc[0] == 30 + 18  # every wrong label, and the suggestions that are wrong beyond
    assert table["flagged_wrong"].iloc[0] == 30
    axes = calibration.found_errors(table).axes
    assert [ax.get_ylabel() for ax in axes if ax.get_ylabel()] == [*calibration.KINDS.values()]
    assert axes[0].get_title(loc="center").startswith(f"{certain['noisy'].iloc[0]} → {certain['suggested'].iloc[0]}")


def test_the_book_says_of_committed_calibration_what_the_rows_say():
    rows = read_trust(RESULTS / "calibration.parquet")
    table = load_table(RESULTS / "found_errors.parquet")
    assert 0 not in {*rows["seed"]}  # constants were tuned on it
    error = rows.pivot_table(index="noise", columns="arm", values="calibration_error")
    others = error.drop(columns="tad-posterior").min(axis=1)
    assert (error["tad-posterior"] < others).all()
    assert error["tad-posterior"].idxmax() == "human:worse"
    shown = calibration_table(rows)
    assert (shown["estimated"] == "–").equals(shown["arm"] != "tad-posterior")
    assert (table[table["kind"] == "needless"]["noisy"] == table[table["kind"] == "needless"]["true"]).all()
    people = rows[(rows["noise"] == "human:worse") & (rows["arm"] == "tad-posterior")]
    true, estimated = calibration.matrices(people)
    off = true - np.diag(true.diagonal())
    assert (estimated < true).flat[np.argsort(-off, axis=None)[: calibration.NAMED]].all()


def results(**differing) -> pd.DataFrame:
    """Rows of results, one for each value of the lists in ``differing``."""
    same = {
        "dataset": "cifar10",
        "n_train": 100,
        "rate_nominal": 0.4,
        "preset": "lite",
        "seed": 1,
        "noise": "symmetric",
    }
    same |= {"rate_realised": 0.4, "accuracy_ci95": 0.01, "n_networks": 3, "evaluate_network": "convnet"}
    same |= {"formation": 1, "draw_power": 8.0, "n_test": 1000, "ipc": 10}
    same |= {"seconds_divert": 10.0, "seconds_experts": None}
    same |= {"seconds_distill": 30.0, "seconds_evaluate": 1000.0, "arm": "vanilla", "method": "dm"}
    table = pd.DataFrame([same | dict(zip(differing, values)) for values in zip(*differing.values(), strict=True)])
    return table.assign(config_hash=[f"{i:x}" for i in range(len(table))])


def test_arms_tested_on_several_networks_have_panels_of_their_own():
    rows = results(
        arm=["vanilla", "tad"] * 2,
        evaluate_network=["convnet"] * 2 + ["resnet18"] * 2,
        accuracy_mean=[0.3, 0.4, 0.2, 0.3],
    )
    drawn = methods.arms_by_noise(methods.by_noise(rows))
    titles = [ax.get_title(loc="left") or ax.get_title() for ax in drawn.axes]
    assert ["resnet18" in title for title in titles] == [False, True]


def test_cost_is_that_of_all_stages_but_evaluation():
    rows = results(seed=[1, 2], seconds_distill=[30.0, 50.0], accuracy_mean=[0.3, 0.4])
    assert methods.with_cost(rows)["cost"].tolist() == [50.0]


def test_figures_of_methods_fill_themselves_and_claim_nothing_without_rows(tmp_path):
    empty = methods.fragments(tmp_path)
    assert {*empty.values()} == {(None, "")}
    few = results(method=["dm", "mtt"], noise=["none"] * 2, rate_nominal=[0.0] * 2, accuracy_mean=[0.3, 0.4])
    arms = ["vanilla", "tad", "oracle"]
    one_method = results(arm=arms, accuracy_mean=[0.2, 0.3, 0.4])
    save_table(tmp_path / "lite.parquet", pd.concat([few, one_method]).assign(config_hash=list("abcde")))
    found = methods.fragments(tmp_path)
    assert found.pop("by_noise") != (None, "")  # which compares the arms of one method
    assert {*found.values()} == {(None, "")}  # two methods, or one size, are no comparison

    clean = results(
        method=["random", "dm", "dm", "mtt"],
        ipc=[10, 1, 10, 10],
        noise=["none"] * 4,
        rate_nominal=[0.0] * 4,
        accuracy_mean=[0.1, 0.2, 0.3, 0.4],
    )
    noisy = [one_method.assign(method=method, ipc=ipc) for method in ("dm", "mtt") for ipc in (1, 10)]
    rows = pd.concat([clean, *noisy], ignore_index=True)
    save_table(tmp_path / "lite.parquet", rows.assign(config_hash=[f"{i}" for i in range(len(rows))]))
    found = methods.fragments(tmp_path)
    figure, text = found["methods_by_size"]
    assert figure is not None
    drawn = {c.get_label(): c.lines[0].get_xdata().tolist() for c in figure.axes[0].containers}
    assert drawn == {"random": [10], "DM": [1, 10], "MTT": [10]}
    assert "100 images, 1, 10 images per class, scale lite; means over 1 seeds" not in text
    assert "one seed" in text
    by_size, _ = found["arms_by_size"]
    assert by_size is not None
    assert {c.get_label() for ax in by_size.axes for c in ax.containers} == {*arms}
    by_cost, text = found["arms_by_cost"]
    assert by_cost is not None
    assert {note.get_text() for note in by_cost.axes[0].texts} == {"DM", "MTT"}
    assert "evaluation is left out" in text


def test_methods_are_told_apart_by_colour_and_by_marker():
    assert STYLES.keys() == config.METHODS.keys()
    for part in (0, 1):
        assert len({style[part] for style in STYLES.values()}) == len(STYLES)


def test_a_table_of_a_notebook_is_numbered_as_a_table():
    extension = script("book/_ext/book_html.py")
    document = new_document("page", get_default_settings(Parser()))
    for name in ("tab-rates", "fig-rates"):
        document += nodes.figure("", nodes.caption("", name), names=[name], ids=[name])
        document.ids[name] = document[-1]
    extension.NumberedTables(document).apply()
    assert [type(node) for node in document] == [extension.TableFigure, nodes.figure]
    assert document.ids == {"tab-rates": document[0], "fig-rates": document[1]}
    assert document[0].astext() == "tab-rates"


def test_no_figure_has_type_below_seven_points(tmp_path):
    found = calibration.fragments(RESULTS) | methods.fragments(RESULTS)
    figures = [figure for figure, _ in found.values() if figure is not None]
    T = torch.eye(3)
    figures.append(tadbook.transition_maps({"true": T, "estimated": T}, NAMES))
    assert len(figures) > 4
    for figure in figures:
        for text in figure.findobj(lambda artist: hasattr(artist, "get_fontsize")):
            assert text.get_fontsize() >= 7
