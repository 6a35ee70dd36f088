"""What is committed in results/ is what the README says and what its distilled sets give."""

from pathlib import Path

import pytest

from tadlib import report, stages

RESULTS = Path(__file__).resolve().parents[1] / "results"


def test_the_table_in_the_readme_is_generated_from_the_results(repository):
    assert not report.write_readme_table(RESULTS, repository / "README.md", check=True)


def test_every_row_tells_seed_hardware_versions_and_commit():
    rows = report.read_results(RESULTS)
    assert len(rows) > 0
    for column in ("seed", "hardware", "device", "torch_version", "tadlib_version", "commit", "config_hash"):
        assert rows[column].notna().all(), column
    assert not rows["config_hash"].duplicated().any()


def test_tad_beats_vanilla_by_more_than_both_intervals_wherever_it_is_claimed():
    table = report.summarise(report.read_results(RESULTS))
    for _, cell in table.groupby(["dataset", "noise", "rate_nominal", "preset"]):
        of = cell.set_index("arm")
        if not {"tad", "vanilla"} <= {*of.index}:
            continue
        difference = of.accuracy["tad"] - of.accuracy["vanilla"]
        assert difference > max(of.half["tad"], of.half["vanilla"]), cell


@pytest.mark.slow
def test_a_committed_distilled_set_gives_the_accuracy_of_its_row():
    rows = report.read_results(RESULTS)
    row = rows[(rows.dataset == "digits") & (rows.arm == "tad") & (rows.seed == 0)].iloc[0]
    (path,) = (RESULTS / "distilled").glob(f"digits-{row.noise}-*-tad-*.safetensors")
    accuracies = stages.load_distilled(path).evaluate(device="cpu", evaluate_networks=2)
    # other CPUs round differently, and two networks stand for five
    assert sum(accuracies) / 2 == pytest.approx(row.accuracy_mean, abs=0.03)
