"""What all trust methods share: bad input, the refined set and its metrics, division, and resuming between epochs."""

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
import torch
from noisy_digits import SMALL, K, assert_consistent, digits, resumed, same_bits, without_truth

from tadlib import config, trust
from tadlib.config import AuditorConfig
from tadlib.errors import InputError
from tadlib.nn.training import one_hot
from tadlib.trust import RECALIBRATED, SPACES, TRUSTED, UNTRUSTED, NoisyProblem, RefinedSet, auroc, base

AUDITOR = AuditorConfig(epochs=4, warmup=2, lr=0.05, batch=32)
TRAINED = [arm for arm in config.ARMS if arm not in ("vanilla", "oracle")]


@pytest.fixture(scope="module")
def problem():
    return digits(300, "symmetric", 0.3)


def of(arm):
    if arm == "confident-learning":
        pytest.importorskip("cleanlab")
    return trust.method(arm, AUDITOR)


@lru_cache
def whole(arm) -> tuple[RefinedSet, list[tuple]]:
    """The refined set of a run without interruption, and the checkpoint of every epoch."""
    kept: list[tuple] = []
    refined = trust.refine(of(arm), digits(300, "symmetric", 0.3), on_epoch=lambda s: kept.append(trust.checkpoint(s)))
    return refined, kept


# Problems


IMAGES = r"images must be \(300, 1, 8, 8\) float32, "
LABELS = r"labels must be \(N,\) int64, "


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.zeros(300, 1, 8, 8).double()}, IMAGES + "got .* float64"),
        ({"x": torch.zeros(300, 64)}, IMAGES + r"got \(300, 64\) float32"),
        ({"x": torch.zeros(300, 3, 8, 8)}, IMAGES + r"got \(300, 3, 8, 8\)"),
        ({"x": torch.zeros(300, 1, 9, 8)}, IMAGES + r"got \(300, 1, 9, 8\)"),
        ({"x": torch.zeros(300, 8, 8, 1)}, r"channels first, \(300, 1, 8, 8\), .*: give x.permute\(0, 3, 1, 2\)"),
        ({"x": torch.zeros(300, 1, 8, 8, requires_grad=True)}, "images must not require gradients: .*detach"),
        ({"x": [[0.0]] * 300}, IMAGES + "a tensor, got list"),
        ({"noisy": torch.zeros(300, dtype=torch.int32)}, LABELS + "got .* int32"),
        ({"noisy": torch.zeros(300, 10).long()}, LABELS + r"got \(300, 10\)"),
        ({"noisy": list(range(300))}, LABELS + "a tensor, got list"),
        ({"noisy": np.zeros(300, dtype=np.int64)}, LABELS + "a tensor, got ndarray"),
        ({"x": torch.zeros(0, 1, 8, 8), "noisy": torch.zeros(0).long()}, LABELS + ".* which is empty"),
        ({"noisy": torch.arange(299) % K}, r"images must be \(299, 1, 8, 8\) float32, got \(300, 1, 8, 8\)"),
        ({"noisy": torch.arange(300) % 11}, r"labels must be in \[0, 10\), got 10 at 10"),
        ({"noisy": torch.arange(300) % K - 1}, r"labels must be in \[0, 10\), got -1 at 0"),
        ({"noisy": (torch.arange(300) % 8).clamp_min(1)}, "every class needs a sample .* without: 0, 8, 9"),
        ({"n_classes": 11}, "the network has 10 classes, expected 11"),
        ({"true": torch.arange(299) % K}, r"true labels must be \(300,\) int64, got \(299,\)"),
        ({"true": np.zeros(300, dtype=np.int64)}, r"true labels must be \(300,\) int64, a tensor, got ndarray"),
    ],
)
def test_bad_problems_are_named_before_any_work(problem, change, message):
    with pytest.raises(InputError, match=message):
        replace(problem, **change)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_images_that_are_not_finite_are_refused(problem, bad):
    x = problem.x.clone()
    x[3, 0, 2, 5] = x[7, 0, 0, 0] = bad
    with pytest.raises(InputError, match="images must be finite, got NaN or infinity in 2 of 300"):
        replace(problem, x=x)


def test_a_problem_knows_its_size_its_labels_and_the_least_number_of_trusted_samples(problem):
    assert len(problem) == 300
    assert torch.equal(problem.noisy_NK, one_hot(problem.noisy, K))
    assert [problem.minimum(share) for share in (0.0, 0.05, 0.1, 0.5)] == [1, 1, 3, 15]


# Refined sets


def by_hand(**changes) -> tuple[RefinedSet, torch.Tensor]:
    noisy, label = torch.tensor([0, 1, 0, 1, 0, 1]), torch.tensor([0, 1, 0, 1, 1, 0])
    true = torch.tensor([0, 0, 0, 1, 1, 0])  # wrong: 1, 4, 5
    fields = {
        "noisy": noisy,
        "y": one_hot(label, 2),
        "weight": torch.tensor([1, 1, 1, 0, 0.5, 0.5]),
        "trust": torch.tensor([0.9, 0.8, 0.7, 0.6, 0.1, 0.2]).double(),
        "space": torch.tensor([TRUSTED, TRUSTED, TRUSTED, UNTRUSTED, RECALIBRATED, RECALIBRATED], dtype=torch.int8),
        "reliability": torch.tensor([0, 0, 0, 0.3, 0.5, 0.5]),
    }
    return RefinedSet(**fields | changes), true


def test_metrics_by_hand():
    refined, true = by_hand()
    # of nine pairs of right and wrong, .8 exceeds .7 and .6
    expected = {"trust_auroc": 7 / 9, "trust_precision": 2 / 3, "trust_recall": 2 / 3}
    expected |= {"relabel_count": 2, "relabel_accuracy": 1.0, "relabel_recall": 2 / 3}
    expected |= {"label_accuracy": 3 / 4, "mass_accuracy": 3 / 4}
    assert refined.metrics(true) == pytest.approx(expected)
    clean = refined.metrics(refined.noisy)
    assert clean["trust_auroc"] is clean["relabel_recall"] is None
    nothing, true = by_hand(space=torch.zeros(6, dtype=torch.int8), weight=torch.zeros(6))
    found = nothing.metrics(true)
    assert found["trust_precision"] is found["relabel_accuracy"] is None
    assert found["label_accuracy"] is found["mass_accuracy"] is None
    assert found["trust_recall"] == found["relabel_count"] == 0


def test_metrics_of_soft_labels_count_their_mass_and_those_of_hard_labels_their_weight():
    y = torch.tensor([[0.9, 0.1], [0.4, 0.6], [1, 0], [0.5, 0.5], [0.2, 0.8], [0.7, 0.3]])
    hard = torch.tensor([0.8, 0.2, 1, 0, 0.4, 0.1])
    refined, true = by_hand(y=y, hard_weight=hard)
    found = refined.metrics(true)
    assert torch.equal(refined.label_weight, hard)
    assert found["label_accuracy"] == pytest.approx((0.8 + 1 + 0.4 + 0.1) / 2.5)
    assert found["mass_accuracy"] == pytest.approx((0.9 + 0.4 + 1 + 0.5 * 0.8 + 0.5 * 0.7) / 4)


def decided(**changes):
    """The set with what the trust posterior adds."""
    fields = {
        "posterior": torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.4, 0.6], [0.1, 0.9], [0.8, 0.2]]),
        "flagged": torch.tensor([False, True, False, False, True, True]),
        "noise_rate": torch.tensor([0.45, 0.3, 0.6], dtype=torch.float64),
    }
    return by_hand(**fields | changes)


def test_metrics_of_decisions_by_hand():
    refined, true = decided()
    found = {name: refined.metrics(true)[name] for name in refined.metrics(true).keys() - by_hand()[0].metrics(true)}
    brier = sum(x**2 for x in (0.1, 0.8, 0.3, 0.4, 0.1, 0.2)) / 6
    expected = {"flag_share": 0.5, "flag_f1": 1.0, "brier": brier}
    expected |= {"noise_rate_estimate": 0.45, "noise_rate_low": 0.3, "noise_rate_high": 0.6}
    assert found == pytest.approx(expected)
    # of four flags two are right, and one wrong label is missed: precision 1/2, recall 2/3
    other, _ = decided(flagged=torch.tensor([True, True, True, False, True, False]))
    assert other.metrics(true)["flag_f1"] == pytest.approx(2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3))
    none, _ = decided(flagged=torch.zeros(6, dtype=torch.bool))
    assert none.metrics(true)["flag_f1"] == 0
    assert none.metrics(none.noisy)["flag_f1"] is None  # nothing to flag, and nothing flagged


def test_the_table_tells_what_is_flagged_and_suggested():
    refined, true = decided()
    table = refined.table(true)
    assert list(table.columns[-3:]) == ["flagged", "suggested", "probability"]
    assert list(table.flagged) == refined.flagged.tolist()
    assert list(table.suggested) == [0, 1, 0, 1, 1, 0]
    assert list(table.probability) == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.9, 0.8])


def test_the_table_has_one_row_a_sample():
    refined, true = by_hand()
    expected = pd.DataFrame(
        {
            "index": range(6),
            "given_label": refined.noisy,
            "trust": refined.trust,
            "space": ["trusted"] * 3 + ["untrusted", "recalibrated", "recalibrated"],
            "label": [0, 1, 0, 1, 1, 0],
            "weight": refined.weight,
            "reliability": refined.reliability,
            "true_label": true,
        }
    )
    pd.testing.assert_frame_equal(refined.table(true).astype({"space": "str"}), expected, check_dtype=False)
    assert list(refined.table().columns) == list(expected.columns[:-1])
    assert list(by_hand(hard_weight=torch.full((6,), 0.25))[0].table().weight) == [0.25] * 6
    assert list(refined.table(index_N=torch.tensor([4, 8, 15, 16, 23, 42]))["index"]) == [4, 8, 15, 16, 23, 42]


def test_a_set_moves_between_devices_as_a_whole():
    refined, _ = decided(hard_weight=torch.ones(6), transition=torch.eye(2), space_history=torch.zeros(3, 6))
    moved = refined.to("meta")
    tensors = {name for name, value in vars(refined).items() if isinstance(value, torch.Tensor)}
    assert len(tensors) == 12
    assert all(getattr(moved, name).device.type == "meta" for name in tensors)
    assert moved.history == refined.history


def test_sets_of_labels_and_of_trusted_samples(problem):
    labels = (problem.noisy + (torch.arange(300) < 30)) % K
    refined = RefinedSet.of_labels(problem, labels)
    assert torch.equal(refined.label, labels)
    assert torch.equal(refined.noisy, problem.noisy)
    assert torch.equal(refined.trust, (torch.arange(300) >= 30).double())
    assert (refined.weight == 1).all()
    assert (refined.space == TRUSTED).all()
    trust_N = torch.rand(300, generator=torch.Generator().manual_seed(0))
    divided = RefinedSet.of_trusted(problem, trust_N, trust_N > 0.4, [{"epoch": 0}])
    assert torch.equal(divided.label, problem.noisy)
    assert torch.equal(divided.weight, (trust_N > 0.4).float())
    assert divided.space.tolist() == torch.where(trust_N > 0.4, TRUSTED, UNTRUSTED).tolist()
    assert (divided.trust.dtype, divided.history) == (torch.float64, ({"epoch": 0},))


# Kernels


@pytest.mark.parametrize("levels", [3, 1000, None])
def test_auroc_counts_pairs_with_ties_for_half(levels):
    rng = torch.Generator().manual_seed(0)
    positive = torch.rand(120, generator=rng) < 0.3
    score = torch.rand(120, generator=rng).double() + 0.4 * positive
    score = (score * levels).round() / levels if levels else score
    pairs = [(a, b) for a in score[positive].tolist() for b in score[~positive].tolist()]
    expected = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)
    assert auroc(score, positive) == pytest.approx(expected, abs=1e-12)
    assert 0.6 < expected < 0.95
    assert auroc(score, positive | True) is auroc(score, positive & False) is None  # one kind is missing


def test_quantile_is_the_lower_neighbour():
    values = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0])
    assert [base.quantile(values, a) for a in (0.0, 0.3, 0.5, 0.99, 1.0)] == [1.0, 2.0, 3.0, 4.0, 5.0]
    many = torch.rand(1001, generator=torch.Generator().manual_seed(0)).double()
    for alpha in (0.1, 0.25, 0.333, 0.9):
        assert base.quantile(many, alpha) == torch.quantile(many, alpha, interpolation="lower").item()


@pytest.mark.parametrize("drop", [0.0, 0.4, 0.98, 1.0])
def test_division_equals_a_loop_over_samples(problem, drop):
    rng, n = torch.Generator().manual_seed(0), len(problem)
    trusted, believed = (torch.rand(n, generator=rng) < share for share in (0.5, 0.6))
    label = torch.where(torch.rand(n, generator=rng) < 0.4, problem.noisy, torch.randint(K, (n,), generator=rng))
    q, p = (torch.randn(n, K, generator=rng).mul(2).softmax(1) for _ in range(2))
    rho, before = torch.rand(n, generator=rng), RefinedSet.of_labels(problem, problem.noisy)
    found = {"label_N": label, "q_NK": q, "rho_N": rho, "believed_N": believed, "p_NK": p}
    refined, counts = base.recalibrated(before, trusted, **found, drop=drop)
    back = ~trusted & believed & (label == problem.noisy)
    losses = sorted(-math.log(p[i, problem.noisy[i]]) for i in range(n) if trusted[i] or back[i])
    limit, dropped = losses[int(drop * (len(losses) - 1))] if drop < 1 else math.inf, 0
    for i in range(n):
        expected, y, weight = UNTRUSTED, one_hot(problem.noisy[i : i + 1], K)[0], 0.0
        if trusted[i] or back[i]:
            expected, weight = TRUSTED, 1.0
        elif believed[i] and -math.log(p[i, label[i]]) > limit:
            dropped += 1
        elif believed[i]:
            expected, y, weight = RECALIBRATED, q[i], rho[i].item()
        assert (refined.space[i], refined.weight[i]) == (expected, weight)
        assert torch.equal(refined.y[i], y)
    assert counts == {"n_recalled": int(back.sum()), "n_dropped": dropped}
    assert back.any()
    assert (dropped > 0) == (drop < 1)
    assert torch.equal(refined.reliability, rho)
    assert torch.equal(refined.trust, before.trust)


# Methods


def test_every_arm_of_the_settings_has_a_method_and_an_unknown_one_is_named():
    assert tuple(trust.ARMS) == config.ARMS
    with pytest.raises(InputError, match="unknown arm 'tda'; expected one of: " + ", ".join(config.ARMS)):
        trust.method("tda")


@pytest.mark.parametrize("arm", TRAINED)
def test_every_epoch_is_reported_and_has_a_row(arm):
    (refined, kept), n = whole(arm), of(arm).epochs
    assert [len(values["/rows"]) for _, values in kept] == list(range(1, n + 1))
    assert [row["epoch"] for row in refined.history] == list(range(n))


@pytest.mark.parametrize("arm", ["tad", "tad-posterior"])
def test_the_history_counts_spaces_and_moves(problem, arm):
    refined, before = whole(arm)[0], None
    for row, spaces in zip(refined.history, refined.space_history, strict=True):
        assert [row[f"n_{name}"] for name in SPACES] == [int((spaces == s).sum()) for s in range(3)]
        assert row.get("n_moved") == (None if before is None else int((spaces != before).sum()))
        before = spaces
    assert refined.history[-1]["n_moved"] > 0
    assert {name: refined.history[-1][name] for name in refined.metrics(problem.true)} == refined.metrics(problem.true)


@pytest.mark.parametrize("arm", ["tad", "tad-posterior"])
def test_settings_of_the_auditor_reach_its_training(problem, arm):
    assert_consistent(whole(arm)[0], AUDITOR)
    for change in ({"warmup": 1}, {"momentum": 0.0}, {"augmentation": "none"}):
        auditor = replace(AUDITOR, **change)
        refined = trust.refine(trust.method(arm, auditor), problem)
        assert_consistent(refined, auditor)
        assert not same_bits(refined, whole(arm)[0]), change


@pytest.mark.parametrize("arm, n", [("tad", 1), ("tad", 2), ("tad-posterior", 2)])
def test_a_single_epoch_and_a_single_division_are_enough(problem, arm, n):
    auditor = replace(AUDITOR, epochs=n, warmup=n)
    assert_consistent(trust.refine(trust.method(arm, auditor), problem), auditor)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("arm", TRAINED)
def test_a_restored_checkpoint_ends_with_the_same_bits(problem, tmp_path, arm, last):
    method, (refined, _) = of(arm), whole(arm)
    again = resumed(method, problem, method.epochs - 1 if last else 1, tmp_path / "stage")
    assert same_bits(refined, again)
    assert refined.history == again.history


@pytest.mark.parametrize("arm", ["tad", "co-teaching", "loss-filter"])
def test_a_checkpoint_of_the_last_epoch_gives_the_result_without_a_step(problem, arm):
    (refined, kept), steps = whole(arm), []
    assert same_bits(refined, trust.refine(of(arm), problem, resume=kept[-1], on_epoch=steps.append))
    assert steps == []


def test_runs_that_go_on_from_a_checkpoint_in_memory_do_not_change_it(problem):
    refined, kept = whole("tad")
    for _ in range(2):
        again = trust.refine(of("tad"), problem, resume=kept[1])
        assert same_bits(refined, again)
        assert refined.history == again.history


@pytest.mark.parametrize("arm", ["tad", "co-teaching"])
def test_without_momentum_a_checkpoint_has_no_velocity_and_resumes_as_well(problem, tmp_path, arm):
    method = trust.method(arm, replace(AUDITOR, momentum=0.0))
    kept = []
    uninterrupted = trust.refine(method, problem, on_epoch=lambda state: kept.append(trust.checkpoint(state)))
    assert not any("velocity" in name for name in kept[0][0])
    assert same_bits(uninterrupted, resumed(method, problem, 1, tmp_path / "stage"))


@pytest.mark.parametrize("arm", config.ARMS)
def test_every_field_of_a_state_is_in_its_checkpoint(problem, arm):
    state = of(arm).init(problem)
    tensors, values = trust.checkpoint(state)
    names = {path.split("/")[1] for path in (*tensors, *values)}
    assert names == set(vars(state))
    restored = base.restored(of(arm).init(replace(problem, seed=5)), (tensors, values), torch.device("cpu"))
    again = trust.checkpoint(restored)
    assert again[0].keys() == tensors.keys()
    assert all(torch.equal(again[0][name], value) for name, value in tensors.items())
    assert again[1] == values


# Labels as they are, and the true ones


def test_vanilla_and_oracle_keep_every_sample_and_the_oracle_alone_needs_the_truth(problem):
    for arm, expected in (("vanilla", problem.noisy), ("oracle", problem.true)):
        refined = trust.refine(of(arm), problem)
        assert torch.equal(refined.label, expected)
        assert torch.equal(refined.y, one_hot(expected, K))
        assert (refined.weight == 1).all()
        assert (refined.space == TRUSTED).all()
        assert torch.equal(refined.noisy, problem.noisy)
        assert refined.history == ()
    assert same_bits(*(trust.refine(of("vanilla"), p) for p in (problem, without_truth(problem))))
    with pytest.raises(InputError, match="oracle needs the true labels"):
        trust.refine(of("oracle"), without_truth(problem))


@pytest.mark.parametrize("arm", TRAINED)
def test_the_same_seed_gives_the_same_bits_without_truth_and_global_generator_and_another_seed_or_name_others(arm):
    problem, (refined, _), before = digits(300, "symmetric", 0.3), whole(arm), torch.get_rng_state()
    again = trust.refine(of(arm), without_truth(problem))
    assert same_bits(refined, again)
    assert torch.equal(before, torch.get_rng_state())
    for row, without in zip(refined.history, again.history, strict=True):
        assert without == {name: value for name, value in row.items() if name in without}
    for other in ({"seed": 1}, {"name": "another"}):
        assert not torch.equal(refined.trust, trust.refine(of(arm), replace(problem, **other)).trust), other


@pytest.mark.parametrize("arm", ["tad", "tad-posterior"])
def test_the_truth_is_used_for_metrics_only(problem, arm):
    refined, _ = whole(arm)
    lied = trust.refine(of(arm), replace(problem, true=(problem.true + 1) % K))
    assert same_bits(refined, lied)
    assert refined.history[-1]["trust_precision"] != lied.history[-1]["trust_precision"]


def test_the_network_of_a_problem_is_the_one_that_is_trained():
    problem = NoisyProblem(SMALL, torch.zeros(20, 1, 8, 8), torch.arange(20) % K, K, seed=3)
    first, second = base.Auditor.new(problem), base.Auditor.new(problem, 1)
    assert torch.equal(first.theta, SMALL.init(3, "auditor", 0))
    assert not torch.equal(first.theta, second.theta)
    assert not torch.equal(torch.rand(3, generator=first.generator), torch.rand(3, generator=second.generator))
