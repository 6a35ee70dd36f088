"""The table of trust: a run is computed once, a failing one stops no other, and the book shows what was measured."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from scripts import script

import tadbook
from tadbook.tables import replace_rows
from tadlib import pipeline
from tadlib.errors import InputError
from tadlib.store import load_table, save_table

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return script("benchmarks/trust.py")


def run(benchmark, folder: Path, *more: str) -> int:
    options = ["--out", str(folder / "runs"), "--results", str(folder / "trust.parquet"), "--preset", "smoke"]
    options += ["--set", "n_train=200", "auditor_epochs=2", "auditor_warmup=1", "width=4", "--device", "cpu"]
    return benchmark.main([*options, *more])


@pytest.mark.parametrize(
    "text, params",
    [
        ("cifar10:symmetric:.4", {"dataset": "cifar10", "noise": "symmetric", "rate": 0.4}),
        ("cifar10:symmetric:included:.4", {"dataset": "cifar10", "noise": "symmetric:included", "rate": 0.4}),
        ("cifar10:human:worse", {"dataset": "cifar10", "noise": "human:worse"}),
        ("cifar10:none", {"dataset": "cifar10", "noise": "none"}),
    ],
)
def test_settings_are_read(benchmark, text, params):
    assert benchmark.parse(text) == params


def test_a_table_resumes_and_a_failing_run_stops_no_other(benchmark, tmp_path, monkeypatch, capsys):
    options = ("--settings", "digits:symmetric:.3", "digits:none", "--arms", "loss-filter", "tad")
    divert = pipeline.divert

    def failing(config):
        if config.noise == "none" and config.arm == "tad":
            raise RuntimeError("no luck")
        return divert(config)

    monkeypatch.setattr(pipeline, "divert", failing)
    assert run(benchmark, tmp_path, *options, "--seeds", "0") == 1
    assert "digits none 0 tad 0: failed: RuntimeError: no luck" in capsys.readouterr().err
    assert len(load_table(tmp_path / "trust.parquet")) == 3
    monkeypatch.setattr(pipeline, "divert", divert)

    computed = []
    work = pipeline.Work
    monkeypatch.setattr(pipeline, "Work", lambda folder, title: computed.append(title) or work(folder, title))
    assert run(benchmark, tmp_path, *options, "--seeds", "0") == 0
    assert computed == ["divert"]  # the one that had failed
    assert run(benchmark, tmp_path, *options, "--seeds", "0") == 0
    assert computed == ["divert"]
    rows = load_table(tmp_path / "trust.parquet")
    assert len(rows) == 4
    noisy = rows[rows.noise == "symmetric"]
    assert noisy.trust_auroc.between(0, 1).all()
    assert rows[rows.noise == "none"].trust_auroc.isna().all()
    assert rows.flagged.between(0, 1).all()
    for column in ("seconds_divert", "hardware", "torch_version", "tadlib_version", "commit", "config_hash", "key"):
        assert rows[column].notna().all(), column


@pytest.mark.parametrize("arm, part", [("tad", "tad"), ("tad-posterior", "posterior")])
def test_every_variant_of_an_ablation_is_a_setting_of_its_arm(benchmark, arm, part):
    variants = dict(benchmark.ablation(arm, ["digits:symmetric:.3"], [0], preset="smoke"))
    assert variants.keys() == benchmark.VARIANTS[arm].keys()
    base = variants.pop("as it is")
    assert base.arm == arm
    for config in variants.values():
        assert getattr(config, part) != getattr(base, part)
        assert replace(config, **{part: getattr(base, part)}) == base  # nothing else differs


@pytest.mark.parametrize("arm, other", [("tad", "no recalibration"), ("tad-posterior", "no held-out labels")])
def test_an_ablation_has_a_row_for_every_variant_and_resumes(benchmark, tmp_path, monkeypatch, arm, other):
    monkeypatch.setitem(benchmark.VARIANTS, arm, {name: benchmark.VARIANTS[arm][name] for name in ("as it is", other)})
    options = ["--ablation", arm, "--settings", "digits:symmetric:.3", "--seeds", "0"]
    if arm == "tad":
        options += ["--set", "n_train=200", "auditor_epochs=2", "auditor_warmup=1", "width=4", "ipc=1"]
        options += ["dm_iterations=2", "evaluate_networks=2", "evaluate_epochs=2"]
    assert run(benchmark, tmp_path, *options) == 0
    rows = load_table(tmp_path / "trust.parquet")
    assert set(rows.variant) == {"as it is", other}
    assert ("accuracy_mean" in rows) == ("accuracy_ci95" in rows) == (arm == "tad")
    assert (rows.arm == arm).all()
    assert tadbook.read_results(tmp_path).empty  # they are no results of arms
    monkeypatch.setattr(pipeline, "Work", lambda folder, title: pytest.fail(f"{title} is done again"))
    assert run(benchmark, tmp_path, *options) == 0
    assert len(load_table(tmp_path / "trust.parquet")) == 2


def test_a_row_takes_the_place_of_that_of_another_version(tmp_path):
    old = rows().assign(variant="as it is")
    replace_rows(tmp_path / "a.parquet", old.assign(config_hash=[f"{i}" for i in range(6)]))
    replace_rows(tmp_path / "a.parquet", old.assign(config_hash=[f"new {i}" for i in range(6)]).iloc[:2])
    found = load_table(tmp_path / "a.parquet")
    assert len(found) == 6
    assert found["config_hash"].str.startswith("new").sum() == 2


def test_networks_learn_more_from_better_labels(benchmark, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    refined, results = script("benchmarks/refined.py"), tmp_path / "refined.parquet"
    options = ["--settings", "digits:pairflip:.4", "--arms", "tad-posterior", "--seeds", "0", "--preset", "smoke"]
    options += ["--device", "cpu", "--out", str(tmp_path / "runs"), "--results", str(results)]
    assert refined.main(options) == 0
    (row,) = load_table(results).to_dict("records")
    assert row["accuracy_given"] < 0.8 < row["accuracy_trusted"] <= 1
    assert row["accuracy_given"] < 0.8 < row["accuracy_refined"] <= 1
    assert row["accuracy_true"] > 0.95
    assert "given" in capsys.readouterr().out
    assert refined.main(options) == 0
    assert capsys.readouterr().out == ""  # finished


def test_no_run_starts_after_the_time_limit(benchmark, tmp_path, capsys):
    options = ("--settings", "digits:symmetric:.3", "--arms", "tad", "--time-limit", "0")
    assert run(benchmark, tmp_path, *options) == 0
    assert "time is up: 3 of 3 runs are left" in capsys.readouterr().out
    assert not (tmp_path / "trust.parquet").exists()


@pytest.mark.parametrize("setting", ["digits", "digits:symetric:.4", "digits:symmetric:1.4", "mnist:none"])
def test_bad_settings_are_bad_arguments(benchmark, tmp_path, setting, capsys):
    assert run(benchmark, tmp_path, "--settings", setting) == 2
    assert capsys.readouterr().err.startswith("error: ")


def rows(**change) -> pd.DataFrame:
    base = {
        "dataset": "cifar10",
        "n_train": 1000,
        "noise": "symmetric",
        "rate_nominal": 0.4,
        "rate_realised": 0.4,
        "preset": "lite",
        "trust_precision": 0.9,
        "trust_recall": 0.8,
        "flagged": 0.45,
        "relabel_count": 100,
        "relabel_accuracy": 0.85,
        "relabel_recall": 0.2125,
        "label_accuracy": 0.9,
        "seconds_divert": 12.0,
        "device": "cpu",
        "hardware": "a CPU",
        "torch_version": "2",
        "tadlib_version": "1",
        "commit": "c" * 40,
        "config_hash": "0",
    }
    found = [
        base | {"arm": arm, "seed": seed, "trust_auroc": value + seed / 100} | change
        for arm, value in (("gce", 0.85), ("tad-posterior", 0.9))
        for seed in range(3)
    ]
    return pd.DataFrame(found)


def test_tables_show_mean_and_interval_by_setting_and_arm():
    clean = rows(noise="none", rate_nominal=0.0, rate_realised=0.0, trust_auroc=np.nan, flagged=0.02)
    both = pd.concat([rows(), clean])
    table = tadbook.trust_table(both)
    assert table["gce"].tolist() == ["0.860 ± 0.025", "2.0 ± 0.0 %"]  # 4.303 · .01 / √3
    assert table["tad-posterior"].tolist() == ["0.910 ± 0.025", "2.0 ± 0.0 %"]
    assert table["tad"].tolist() == ["–", "–"]  # it has no rows yet
    assert [*table][-3:] == ["tad", "tad-posterior", "gce"]
    assert table["noise"].tolist() == ["symmetric, 40 %", "none"]
    second = tadbook.spaces_table(both)
    assert second["arm"].tolist() == ["gce", "tad-posterior"] * 2
    assert second["precision"][1] == "90.0 ± 0.0"
    third = tadbook.labels_table(both)
    assert third["arm"].tolist() == ["tad", "tad-posterior"] * 2
    assert third["pseudo-labels"].tolist() == ["–", "10.0 ± 0.0"] * 2
    assert third["of these right"].tolist() == ["–", "85.0 ± 0.0"] * 2


def test_the_book_shows_the_table_once_there_is_one(tmp_path):
    tadbook.write_book_tables(tmp_path, tmp_path / "generated")
    assert "No results yet" in (tmp_path / "generated" / "trust.md").read_text()
    save_table(tmp_path / "trust.parquet", rows())
    tadbook.write_book_tables(tmp_path, tmp_path / "generated")
    text = (tmp_path / "generated" / "trust.md").read_text()
    assert "| 0.910 ± 0.025 |" in text
    assert "Seeds 0, 1, 2; cpu on a CPU; torch 2, tadlib 1, commit cccccccccccc." in text
    assert "No results yet" in (tmp_path / "generated" / "results.md").read_text()  # it holds no accuracies
    assert len(tadbook.read_trust(tmp_path / "trust.parquet")) == 6


def test_unknown_forms_of_settings_are_named(benchmark):
    with pytest.raises(InputError, match=r"a setting is DATASET:NOISE\[:VARIANT\]\[:RATE\], got 'digits'"):
        benchmark.parse("digits")
