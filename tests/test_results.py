"""What is committed in results/ is what the README says and what its distilled sets give."""

from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from scripts import script

import tadbook
from tadbook.tables import SETTING
from tadlib import pipeline
from tadlib.errors import InputError
from tadlib.store import load_table

RESULTS = Path(__file__).resolve().parents[1] / "results"


def test_the_table_in_the_readme_is_generated_from_the_results(repository):
    assert not tadbook.write_readme_table(RESULTS, repository / "README.md", check=True)


def test_every_row_tells_seed_hardware_versions_and_commit():
    rows = tadbook.read_results(RESULTS)
    assert len(rows) > 0
    for column in ("seed", "hardware", "device", "torch_version", "tadlib_version", "commit", "config_hash"):
        assert rows[column].notna().all(), column
    assert not rows["config_hash"].duplicated().any()


def test_the_posterior_beats_vanilla_by_more_than_both_intervals_at_forty_per_cent_without_an_observer():
    rows = tadbook.read_results(RESULTS)
    rows = rows[rows["noise"].isin(["pairflip", "symmetric"]) & (rows["rate_nominal"].astype(float) == 0.4)]
    rows = rows[rows["method"] != "rded"]  # whose observer corrects labels too: under symmetric noise they are level
    for _, runs in rows.groupby([*SETTING, "seed"]):
        of = runs.set_index("arm")
        if {"tad-posterior", "vanilla"} <= {*of.index}:
            difference = of.accuracy_mean["tad-posterior"] - of.accuracy_mean["vanilla"]
            half = of.accuracy_ci95.fillna(0)  # a single network has no interval
            assert difference > max(half["tad-posterior"], half["vanilla"]), runs


@pytest.mark.slow
def test_a_committed_distilled_set_gives_the_accuracy_of_its_row():
    rows = tadbook.read_results(RESULTS)
    (path,) = (RESULTS / "distilled").glob("digits-pairflip-40-tad-posterior-*.safetensors")
    rows = rows[(rows.noise == "pairflip") & (rows.rate_nominal == 0.4)]
    row = rows[(rows.dataset == "digits") & (rows.arm == "tad-posterior") & (rows.seed == 0)].iloc[0]
    accuracies = pipeline.load_distilled(path).evaluate(device="cpu", evaluate_networks=2)
    # other CPUs round differently, and two networks stand for five
    assert sum(accuracies) / 2 == pytest.approx(row.accuracy_mean, abs=0.03)


@pytest.fixture
def collect(tmp_path, monkeypatch) -> ModuleType:
    """``results/collect.py`` with an empty folder of results."""
    module = script("results/collect.py")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    return module


def test_a_new_row_takes_the_place_of_the_old_one_of_its_setting_arm_and_seed(collect, tmp_path):
    rows, path = load_table(RESULTS / "smoke.parquet"), tmp_path / "some.parquet"
    collect.replace_rows(path, rows)
    pd.testing.assert_frame_equal(load_table(path), rows)
    new = rows.iloc[:2].assign(config_hash=["other", "another"], accuracy_mean=0.5)
    collect.replace_rows(path, new)
    merged = load_table(path)
    assert len(merged) == len(rows)
    assert (merged.accuracy_mean == 0.5).sum() == 2
    collect.replace_rows(path, new.assign(seed=99, config_hash=["a", "b"]).iloc[:1])
    assert len(load_table(path)) == len(rows) + 1


def test_a_grid_is_merged_from_its_folder_and_its_stages_beside_it(collect, tmp_path):
    settings = {"n_train": 200, "n_test": 100, "ipc": 1, "width": 4, "evaluate_networks": 2, "evaluate_epochs": 2}
    config = pipeline.Config.from_params(**settings, method="random", arm="vanilla", seed=3, out=str(tmp_path / "runs"))
    row = pipeline.run(config)
    (tmp_path / "runs" / "some").mkdir()
    (tmp_path / "runs" / "results.parquet").rename(tmp_path / "runs" / "some" / "results.parquet")
    collect.merge(tmp_path / "runs" / "some")
    assert load_table(tmp_path / "results" / "smoke.parquet").config_hash.tolist() == [row["config_hash"]]
    assert len([*(tmp_path / "results" / "distilled").iterdir()]) == 1
    assert not (tmp_path / "results" / "leftover.parquet").exists()  # no arm chose labels
    for arm in ("tad", "tad-posterior"):
        pipeline.run(config.with_params(arm=arm, noise="pairflip", rate=0.4, auditor_epochs=2, auditor_warmup=1))
    for _ in range(2):  # the second time the rows take the place of the first ones
        collect.merge(tmp_path / "runs")
    left = load_table(tmp_path / "results" / "leftover.parquet")
    assert {*left["arm"]} == {"tad", "tad-posterior"}
    for _, of_arm in left.groupby("arm"):
        assert 0 < len(of_arm) <= collect.LEFT
        assert of_arm["share"].is_monotonic_decreasing
        assert 0 < of_arm["share"].sum() < 1
    assert (left["true_label"] != left["label"]).all()
    with pytest.raises(InputError, match="is no query of rows"):
        collect.merge(tmp_path / "runs" / "some", "nothing ==")
