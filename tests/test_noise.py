"""Promises of tadlib.noise: exact rates, the class maps of the field, human labels in order, the same bits per seed."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import truncnorm
from test_data import Trap

from tadlib.data import DATASETS, load_dataset
from tadlib.data.class_maps import ASYMMETRIC_MAPS, CIFAR100_SUPERCLASSES, superclass_groups, superclass_of
from tadlib.errors import InputError
from tadlib.noise import HUMAN_LABELS, NoisyLabels, inject, list_checksum, transition
from tadlib.noise.instance import truncated_normal
from tadlib.rng import generator
from tadlib.store import save_table, save_tensors

MAPPED = {9: 1, 2: 0, 3: 5, 5: 3, 4: 7}  # asymmetric CIFAR-10
RATES = (0.0, 0.1, 0.37, 0.5, 0.8, 0.99)


def labels(sizes: list[int]) -> torch.Tensor:
    """``sizes[k]`` labels of each class k, shuffled."""
    y_N = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return y_N[torch.randperm(len(y_N), generator=torch.Generator().manual_seed(0))]


UNEVEN = [100, 37, 1, 250, 64, 99, 10, 200, 3, 77]


def noisy(kind: str, rate: Any, *, true_N: torch.Tensor | None = None, seed: int = 0, **options) -> Any:
    """Noisy labels (untyped: their optional parts are there) of uneven classes, with CIFAR-10's map where needed."""
    true_N = labels(UNEVEN) if true_N is None else true_N
    arguments: dict[str, Any] = {"n_classes": 10, "seed": seed, "dataset": "cifar10"} | options
    return inject(true_N, kind, rate, **arguments)


# How many flip, and where to


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("kind", ["symmetric", "pairflip", "asymmetric"])
def test_each_class_flips_exactly_as_often_as_asked(kind, rate):
    noise = noisy(kind, rate)
    flips = [0] * 10
    for true, given in zip(noise.true_N.tolist(), noise.noisy_N.tolist()):
        flips[true] += true != given
    flipping = set(MAPPED) if kind == "asymmetric" else set(range(10))
    assert flips == [round(rate * n) if k in flipping else 0 for k, n in enumerate(UNEVEN)]
    assert noise.rate == rate
    assert noise.rate_realised == pytest.approx(sum(flips) / sum(UNEVEN), abs=1e-12)


def test_symmetric_noise_reaches_every_other_class_alike():
    n, rate = 9000, 0.5
    noise = noisy("symmetric", rate, true_N=labels([n] * 10))
    counts_KK = transition(noise.true_N, noise.noisy_N, 10) * n
    assert counts_KK.diagonal().tolist() == pytest.approx([n * (1 - rate)] * 10)
    others = counts_KK[~torch.eye(10, dtype=torch.bool)]
    # 90 multinomial counts of mean 500 and standard deviation 21; five of them for the farthest
    assert (others - 500).abs().max() < 5 * (500 * 8 / 9) ** 0.5
    assert others.std() > 10  # drawn, not dealt out in turn


def test_asymmetric_noise_moves_mapped_classes_once_and_at_the_same_time():
    # With cats turned dogs flipped again (sequential in place), cats and dogs would miss their counts.
    noise = noisy("asymmetric", 0.4, true_N=labels([1000] * 10))
    expected_KK = torch.eye(10, dtype=torch.float64)
    for true, given in MAPPED.items():
        expected_KK[true, true], expected_KK[true, given] = 0.6, 0.4
    torch.testing.assert_close(noise.transition_realised, expected_KK)
    assert (noise.rate, noise.rate_realised) == (0.4, pytest.approx(0.2))  # overall half of the rate of a mapped class


def test_none_keeps_the_labels():
    noise = noisy("none", None)
    assert torch.equal(noise.noisy_N, noise.true_N)
    assert (noise.rate, noise.rate_realised) == (0.0, 0.0)
    assert torch.equal(noise.transition_nominal, torch.eye(10, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["symmetric", "pairflip", "asymmetric"])
def test_nominal_and_realised_transitions_agree_with_counting(kind):
    noise, rate = noisy(kind, 0.4, true_N=labels([2000] * 10)), 0.4
    nominal, counts = torch.zeros(2, 10, 10, dtype=torch.float64)
    for true in range(10):
        others = {"symmetric": set(range(10)) - {true}, "pairflip": {(true + 1) % 10}}
        reached = others.get(kind, {MAPPED.get(true, true)})
        nominal[true, true] += 1 - rate
        for given in reached:
            nominal[true, given] += rate / len(reached)
    torch.testing.assert_close(noise.transition_nominal, nominal)
    for true, given in zip(noise.true_N, noise.noisy_N):
        counts[true, given] += 1
    torch.testing.assert_close(noise.transition_realised, counts / 2000)


@pytest.mark.parametrize("kind", ["symmetric", "pairflip", "asymmetric"])
def test_a_class_without_samples_changes_nothing_for_the_others(kind):
    noise = noisy(kind, 0.4, true_N=labels([50, 50, 50, 0, 50, 50, 50, 50, 50, 50]))
    realised = noise.transition_realised
    assert realised[3].tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert realised.sum(1).tolist() == pytest.approx([1] * 10)
    assert realised.diagonal()[[2, 4, 5, 9]].tolist() == pytest.approx([0.6] * 4)
    assert (noise.noisy_N == 3).any()  # the class may still be given to others


def test_symmetric_noise_with_the_true_class_included_redraws_exactly_int_r_n_labels():
    n, rate = 20000, 0.45
    noise = noisy("symmetric:included", rate, true_N=labels([n // 10] * 10))
    assert noise.rate == rate
    # of the labels drawn a tenth is right: r (K-1)/K, up to five standard deviations of a binomial count
    wrong = int((noise.noisy_N != noise.true_N).sum())
    assert wrong < int(rate * n)
    assert abs(wrong - 0.9 * rate * n) < 5 * (rate * n * 0.9 * 0.1) ** 0.5
    expected_KK = (1 - rate) * torch.eye(10, dtype=torch.float64) + rate / 10
    torch.testing.assert_close(noise.transition_nominal, expected_KK)
    assert (noise.transition_realised - expected_KK).abs().max() < 5 * (0.5 * 0.5 / (n / 10)) ** 0.5
    few = noisy("symmetric:included", 0.37, true_N=torch.arange(10))
    assert int((few.noisy_N != few.true_N).sum()) <= 3  # int(3.7) labels are drawn, not 4


def test_asymmetric_cifar100_turns_every_class_within_its_official_superclass():
    noise = noisy("asymmetric", 0.4, true_N=labels([50] * 100), n_classes=100, dataset="cifar100")
    targets: dict[int, set[int]] = {k: set() for k in range(100)}
    for true, given in zip(noise.true_N.tolist(), noise.noisy_N.tolist()):
        targets[true] |= {given} - {true}
    assert all(len(given) == 1 for given in targets.values())  # mouse too: no class is left out
    to = {true: given.pop() for true, given in targets.items()}
    for group in superclass_groups():  # a rotation: after five turns each is home again, and not before
        turns = [group[0]]
        for _ in range(5):
            turns.append(to[turns[-1]])
        assert sorted(turns[1:]) == sorted(group)
    assert noise.rate_realised == pytest.approx(0.4)
    names = sorted(sum(CIFAR100_SUPERCLASSES.values(), ()))
    assert (names[50], names[to[50]]) == ("mouse", "rabbit")


def test_superclass_noise_reaches_the_four_others_of_a_superclass_alike():
    per_class, rate = 2000, 0.4
    noise = noisy("superclass", rate, true_N=labels([per_class] * 100), n_classes=100, dataset="cifar100")
    of_K = torch.tensor(superclass_of())
    expected_KK = torch.where(of_K[:, None] == of_K, rate / 4, 0.0).double().fill_diagonal_(1 - rate)
    torch.testing.assert_close(noise.transition_nominal, expected_KK)
    realised = noise.transition_realised
    torch.testing.assert_close(realised.diagonal(), expected_KK.diagonal())
    assert (realised - expected_KK).abs().max() < 5 * (0.1 * 0.9 / per_class) ** 0.5
    assert noise.rate_realised == pytest.approx(rate)


@pytest.mark.parametrize("n_classes", [2, 3, 7, 20, 200])
def test_tiny_imagenet_map_covers_every_class_once_and_pairs_neighbours(n_classes):
    to = ASYMMETRIC_MAPS["tiny-imagenet"](n_classes)
    assert sorted(to) == sorted(to.values()) == list(range(n_classes))
    assert all(k != given and abs(k - given) <= 2 for k, given in to.items())
    assert n_classes % 2 or all(to[given] == k for k, given in to.items())
    noise = noisy("asymmetric", 0.4, true_N=labels([50] * n_classes), n_classes=n_classes, dataset="tiny-imagenet")
    assert noise.rate_realised == pytest.approx(0.4)


# Noise that depends on the image


def instance_by_hand(true_N, x_NCHW, rate, n_classes, seed):
    """Xia et al. (2020), algorithm 2, one sample after the other, from the same random numbers."""
    rng = generator(seed, "noise", "instance")
    u_N, v_N, w_N = torch.rand(3, len(true_N), dtype=torch.float64, generator=rng).numpy()
    x_ND = x_NCHW.flatten(1).double().numpy()
    W = [torch.randn(x_ND.shape[1], n_classes, dtype=torch.float64, generator=rng).numpy() for _ in range(n_classes)]
    q_N = truncnorm.ppf(w_N, -rate / 0.1, (1 - rate) / 0.1, loc=rate, scale=0.1)
    given, rows = [], np.zeros((n_classes, n_classes))
    for i, y in enumerate(true_N.tolist()):
        score = x_ND[i] @ W[y]
        e = np.exp(score - max(np.delete(score, y)))
        e[y] = 0
        p = e / e.sum()
        rows[y] += q_N[i] * p
        rows[y, y] += 1 - q_N[i]
        target = next(j for j in range(n_classes) if v_N[i] < p[: j + 1].sum())
        given.append(target if u_N[i] < q_N[i] else y)
    return given, rows / np.bincount(true_N, minlength=n_classes)[:, None]


def test_instance_noise_is_that_of_the_paper_sample_by_sample():
    x_NCHW = torch.randn(300, 1, 3, 3, generator=torch.Generator().manual_seed(3)) / 3
    true_N = labels([100, 120, 80])
    noise, again, other = (
        noisy("instance", 0.4, true_N=true_N, n_classes=3, seed=7, x_NCHW=x) for x in (x_NCHW, x_NCHW, x_NCHW.flip(0))
    )
    given, rows = instance_by_hand(true_N, x_NCHW, 0.4, 3, 7)
    assert noise.noisy_N.tolist() == given
    np.testing.assert_allclose(noise.transition_nominal.numpy(), rows, atol=1e-12)
    assert again.checksum == noise.checksum
    assert not torch.equal(other.noisy_N, noise.noisy_N)  # the image counts


@pytest.mark.parametrize("rate", [0.2, 0.4, 0.6])
def test_instance_noise_has_about_the_rate_asked_for_and_differs_between_images_of_a_class(rate):
    n = 10000
    x_NCHW = torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    noise = noisy("instance", rate, true_N=labels([n // 10] * 10), x_NCHW=x_NCHW)
    assert noise.rate_realised == pytest.approx(rate, abs=5 * (rate * (1 - rate) / n) ** 0.5 + 0.006)
    assert noise.transition_nominal.sum(1).tolist() == pytest.approx([1] * 10)
    assert (noise.transition_realised - noise.transition_nominal).abs().max() < 5 * 0.5 / (n / 10) ** 0.5
    assert noisy("instance", 0.0, true_N=labels([10] * 10), x_NCHW=x_NCHW[:100]).rate_realised == 0


def test_a_cut_normal_distribution_is_scipys():
    u_N = torch.linspace(0.001, 0.999, 99, dtype=torch.float64)
    for mean in (0.0, 0.1, 0.4, 0.95):
        expected = truncnorm.ppf(u_N.numpy(), -mean / 0.1, (1 - mean) / 0.1, loc=mean, scale=0.1)
        np.testing.assert_allclose(truncated_normal(u_N, mean).numpy(), expected, atol=1e-9)


# Determinism


@pytest.mark.parametrize("kind", ["symmetric", "pairflip", "asymmetric", "symmetric:included"])
def test_the_seed_alone_decides(kind):
    true_N = labels(UNEVEN)
    kept = true_N.clone()
    torch.manual_seed(1)
    first = noisy(kind, 0.4, true_N=true_N, seed=5)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again = noisy(kind, 0.4, true_N=true_N, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.noisy_N, again.noisy_N)
    assert first.checksum == again.checksum
    assert not torch.equal(first.noisy_N, noisy(kind, 0.4, true_N=true_N, seed=6).noisy_N)
    assert torch.equal(true_N, kept)


@pytest.mark.parametrize("kind", ["symmetric", "pairflip", "asymmetric", "symmetric:included"])
def test_what_flips_at_a_rate_flips_alike_at_higher_ones(kind):
    low, high = noisy(kind, 0.2), noisy(kind, 0.6)
    flipped = low.noisy_N != low.true_N
    assert flipped.any()
    assert torch.equal(high.noisy_N[flipped], low.noisy_N[flipped])


def test_bits_stay_what_they_were():
    # golden: a change makes every stored result under noise stale
    noise = inject(torch.arange(20) % 4, "symmetric", 0.4, n_classes=4, seed=0)
    assert noise.noisy_N.tolist() == [1, 1, 2, 2, 0, 3, 2, 3, 0, 2, 3, 1, 0, 1, 0, 3, 2, 1, 2, 3]


def test_checksum_covers_given_and_true_labels_and_kind():
    noise = noisy("pairflip", 0.4)
    others: list[dict] = [{"kind": "symmetric"}, {"noisy_N": noise.true_N}, {"true_N": noise.noisy_N}, {"true_N": None}]
    assert len({noise.checksum, *(replace(noise, **other).checksum for other in others)}) == 5


# Files


@pytest.mark.parametrize("truth_known", [True, False])
def test_saved_labels_come_back_with_the_same_bits(tmp_path, truth_known):
    noise = noisy("symmetric", 0.37, seed=2**62 + 1)
    if not truth_known:
        noise = replace(noise, true_N=None, transition_nominal=None)
    noise.save(tmp_path / "labels.safetensors")
    back: Any = NoisyLabels.load(tmp_path / "labels.safetensors")
    assert (back.n_classes, back.kind, back.rate, back.seed) == (10, "symmetric", 0.37, 2**62 + 1)
    assert torch.equal(back.noisy_N, noise.noisy_N)
    assert (back.checksum, back.rate_realised) == (noise.checksum, noise.rate_realised)
    if truth_known:
        assert torch.equal(back.true_N, noise.true_N)
        assert torch.equal(back.transition_nominal, noise.transition_nominal)
    else:
        assert back.true_N is back.transition_nominal is back.rate_realised is back.transition_realised is None
    noise.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "labels.safetensors").read_bytes()


def test_files_that_hold_no_noisy_labels_are_refused(tmp_path):
    path = tmp_path / "labels.safetensors"
    noisy("pairflip", 0.4).save(path)
    whole = path.read_bytes()
    for change, message in (
        (path.unlink, "does not exist"),
        (lambda: path.write_bytes(whole[:-100]), "is damaged"),
        (lambda: save_tensors(path, {"given": torch.arange(3)}), "does not hold noisy labels"),
    ):
        change()
        with pytest.raises(InputError, match=r"labels\.safetensors " + message):
            NoisyLabels.load(path)


# Noisy labels from a file


def listed(path: Path, true_N: torch.Tensor, **options) -> Any:
    arguments: dict[str, Any] = {"n_classes": 10, "seed": 0} | options
    return inject(true_N, f"file:{path}", arguments.pop("rate", None), **arguments)


def write_list(path: Path, values: list[int]) -> Path:
    """The same labels in any of the formats."""
    if path.suffix == ".npy":
        np.save(path, np.array(values, dtype=np.int16))
    elif path.suffix == ".parquet":
        save_table(path, pd.DataFrame({"index": range(len(values)), "given_label": values}))
    elif path.suffix == ".csv":
        pd.Series(values, name="label").to_csv(path, index=False, header=path.stem == "named")
    elif path.stem == "plain":
        save_file({"labels": torch.tensor(values)}, path)
    else:
        truth, given = torch.arange(len(values)) % 10, torch.tensor(values)
        NoisyLabels(given, truth, 10, "pairflip", 0.4, 0, transition(truth, given, 10)).save(path)
    return path


@pytest.mark.parametrize("name", ["a.npy", "a.csv", "named.csv", "a.parquet", "a.safetensors", "plain.safetensors"])
def test_labels_of_a_file_are_those_of_the_file(tmp_path, name):
    true_N = torch.arange(40) % 10
    values = [(k + (i % 4 == 0)) % 10 for i, k in enumerate(true_N.tolist())]
    path = write_list(tmp_path / name, values)
    whole = listed(path, true_N)
    assert whole.noisy_N.tolist() == values
    assert torch.equal(whole.true_N, true_N)
    assert whole.rate == whole.rate_realised == 0.25
    assert torch.equal(whole.transition_nominal, whole.transition_realised)
    assert list_checksum(path) == list_checksum(write_list(tmp_path / "other.npy", values))
    index_N = torch.tensor([39, 0, 17])
    assert listed(path, index_N % 10, index_N=index_N, n_full=40, rate=0).noisy_N.tolist() == [9, 1, 7]
    whole.save(tmp_path / "back.safetensors")
    assert NoisyLabels.load(tmp_path / "back.safetensors").checksum == whole.checksum


@pytest.mark.parametrize(
    "values, options, message",
    [
        (list(range(9)), {}, "has 9 rows, expected 10$"),
        (
            [*range(10)] * 2,
            {"index_N": torch.arange(10), "n_full": 30},
            "has 20 rows, expected 10 .* or 30 .full training set",
        ),
        ([*range(9), 10], {}, r"labels in .*a\.npy must be in \[0, 10\), got 10 at 9"),
        ([*range(9), -1], {}, r"must be in \[0, 10\), got -1 at 9"),
        ([*range(1, 10), 0], {}, "every label differs from the true one"),
        (list(range(10)), {"rate": 0.4}, "rate must be 0 for noise file, .*, got 0.4"),
    ],
)
def test_labels_of_a_file_that_do_not_fit_are_refused(tmp_path, values, options, message):
    path = write_list(tmp_path / "a.npy", values)
    with pytest.raises(InputError, match=message):
        listed(path, torch.arange(10), **options)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("gone.npy", None, r"file of labels .*gone\.npy does not exist"),
        ("a.pt", b"", r"unknown type of file of labels '\.pt'; expected one of: \.safetensors, \.npy"),
        ("a.npy", b"not numpy", r"a\.npy is damaged or no array of integers"),
        ("a.csv", b"1\n2\n2.5\n", r"a\.csv is damaged or no table of integers: .*2\.5"),
        ("a.csv", b"", r"a\.csv is damaged or no table"),
        ("a.csv", b"x,y\n1,2\n", r"must have one column of labels or one named given_label, got x, y"),
        ("a.csv", b"index\n1\n", r"must have one column of labels or one named given_label, got index"),
        ("a.csv", b"index,label\n1,2\n1,3\n", "column index of .* must name each image once, by numbers from 0 on"),
        ("a.csv", b"index,label\n-1,2\n", "column index of .* must name each image once"),
        ("a.csv", b"1\n99999999999999999999\n", r"a\.csv is damaged or no table of integers"),
        ("a.csv", b"\n\n", r"a\.csv is damaged or no table"),
        ("a.npy", b"", r"a\.npy is damaged or no array of integers"),
        ("a.parquet", b"PAR1", r"a\.parquet is damaged"),
        ("a.safetensors", b"", r"a\.safetensors is damaged"),
    ],
)
def test_files_that_are_no_lists_of_labels_are_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        listed(tmp_path / name, torch.arange(10))


def test_files_of_other_things_are_refused_and_never_unpickled(tmp_path):
    np.save(tmp_path / "trap.npy", np.array([Trap(tmp_path / "sprung")], dtype=object), allow_pickle=True)
    np.save(tmp_path / "halves.npy", np.arange(10) / 2)
    np.savez(tmp_path / "a.npz", np.arange(10))
    (tmp_path / "a.npz").rename(tmp_path / "archive.npy")
    save_table(tmp_path / "a.parquet", pd.DataFrame(index=range(10)))
    save_file({"x": torch.arange(10), "y": torch.arange(10)}, tmp_path / "two.safetensors")
    save_file({"x": torch.ones(10)}, tmp_path / "float.safetensors")
    save_file({"x": torch.ones(10, dtype=torch.bfloat16)}, tmp_path / "bfloat16.safetensors")
    for name, message in {
        "trap.npy": r"trap\.npy is damaged or no array of integers",
        "halves.npy": "must hold one column of integers, got shape .* of float64",
        "archive.npy": r"archive\.npy is damaged or no array of integers",
        "a.parquet": r"must have one column of labels or one named given_label, got ",
        "two.safetensors": "must hold one tensor of labels, got 2: x, y",
        "float.safetensors": "must hold one column of integers, got shape .* of float32",
        "bfloat16.safetensors": r"bfloat16\.safetensors is damaged or no file of a tensor of integers",
    }.items():
        with pytest.raises(InputError, match=message):
            listed(tmp_path / name, torch.arange(10))
    assert not (tmp_path / "sprung").exists()


def test_rows_with_an_index_are_taken_by_it_and_not_by_their_place(tmp_path):
    true_N = torch.arange(40) % 10
    table = pd.DataFrame({"index": range(40), "given_label": (true_N + (torch.arange(40) % 4 == 0)).numpy() % 10})
    expected = listed(write_list(tmp_path / "a.npy", table.given_label.tolist()), true_N)
    other = table.sample(frac=1, random_state=0)
    other.to_csv(tmp_path / "b.csv", index=False)
    save_table(tmp_path / "b.parquet", other)
    save_table(tmp_path / "c.parquet", other.set_index("index"))
    for name in ("b.csv", "b.parquet", "c.parquet"):
        assert torch.equal(listed(tmp_path / name, true_N).noisy_N, expected.noisy_N)
        assert list_checksum(tmp_path / name) == list_checksum(tmp_path / "a.npy")

    part, index_N = tmp_path / "part.parquet", torch.tensor([39, 0, 17])
    save_table(part, other[other["index"].isin([0, 17, 39])])
    assert listed(part, index_N % 10, index_N=index_N, n_full=40).noisy_N.tolist() == [9, 1, 7]
    save_table(tmp_path / "first.parquet", table[:3])
    assert list_checksum(part) != list_checksum(tmp_path / "first.parquet")
    with pytest.raises(InputError, match=r"its column index lacks \[39\] and others, 2 of 3"):
        listed(tmp_path / "first.parquet", index_N % 10, index_N=index_N, n_full=40)


def test_rows_with_a_path_are_taken_by_it(tmp_path):
    true_N = torch.arange(40) % 10
    paths = [f"{k}/image {i}.png" for i, k in enumerate(true_N.tolist())]
    given = (true_N + (torch.arange(40) % 4 == 0)).numpy() % 10
    table = pd.DataFrame({"path": paths, "given_label": given}).sample(frac=1, random_state=0)
    index_N = torch.tensor([39, 0, 17])
    table.to_csv(tmp_path / "a.csv", index=False)
    save_table(tmp_path / "a.parquet", table[::-1])
    save_table(tmp_path / "b.parquet", table.set_index("path"))
    # path counts where both are there: index may be of an earlier state of the folder
    save_table(tmp_path / "c.parquet", table.assign(index=range(40)))
    for name in ("a.csv", "a.parquet", "b.parquet", "c.parquet"):
        about = {"index_N": index_N, "n_full": 40, "paths": [paths[i] for i in index_N]}
        assert listed(tmp_path / name, index_N % 10, **about).noisy_N.tolist() == [9, 1, 7]
    assert list_checksum(tmp_path / "a.csv") == list_checksum(tmp_path / "a.parquet")
    save_table(tmp_path / "b.parquet", table.assign(path=table.path + "x"))
    assert list_checksum(tmp_path / "b.parquet") != list_checksum(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"its column path lacks \['0/image 0.png'\] and others, 40 of 40"):
        listed(tmp_path / "b.parquet", true_N, paths=paths)
    save_table(tmp_path / "b.parquet", pd.concat([table, table[:1]]))
    with pytest.raises(InputError, match="column path of .* must name each image once"):
        listed(tmp_path / "b.parquet", true_N, paths=paths)


@pytest.mark.parametrize(
    "content, message",
    [
        ("label\n1\n\n3\n", "line 3 has ''"),
        ("index,given_label\n0,1\n1,\n", "line 3 has ''"),
        ("index,given_label\n0,1\n1\n", "line 3 has '1'"),
        ("1\nnan\n", "line 2 has 'nan'"),
        ("given_label,path\n1,a.png\n", "must name images by index: the data set has no paths"),
        ("path,given_label\na.png,1\nb.png\n", "line 3 has 'b.png'"),
    ],
)
def test_what_is_missing_in_a_table_is_told_with_its_line(tmp_path, content, message):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        listed(tmp_path / "a.csv", torch.arange(3))


def test_a_row_without_a_path_is_a_row_of_no_image(tmp_path):
    table = pd.DataFrame({"path": ["a.png", None, "b.png"], "given_label": [1, 2, 3]})
    for name, save in (("a.parquet", save_table), ("A.CSV", lambda path, t: t.to_csv(path, index=False))):
        save(tmp_path / name, table)
        assert listed(tmp_path / name, torch.tensor([3, 2]), paths=["b.png", "a.png"]).noisy_N.tolist() == [3, 1]
    assert list_checksum(tmp_path / "a.parquet") == list_checksum(tmp_path / "A.CSV")


def test_tables_of_spreadsheets_are_read(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfIndex, Given_Label\r\n1,2\r\n0,0\r\n2,2\r\n\r\n")
    assert listed(tmp_path / "a.csv", torch.arange(3)).noisy_N.tolist() == [0, 2, 2]


def test_labels_that_agree_with_the_true_ones_by_chance_bring_a_warning(tmp_path):
    true_N = labels([100] * 10)
    path = write_list(tmp_path / "a.npy", true_N[torch.randperm(1000, generator=generator(0, "test"))].tolist())
    with pytest.warns(UserWarning, match=r"no more than by chance \(10\.0 %\); the order of the images or the numb"):
        listed(path, true_N)
    listed(write_list(tmp_path / "b.npy", noisy("symmetric", 0.8, true_N=true_N).noisy_N.tolist()), true_N)


def test_saved_labels_of_other_images_are_refused(tmp_path):
    path = write_list(tmp_path / "a.safetensors", list(range(10)))
    with pytest.raises(InputError, match="belongs to other images: its true labels differ for 10 of 10"):
        listed(path, torch.arange(9, -1, -1))


# Bad input


@pytest.mark.parametrize("rate", [1, 1.0, 1.4, -0.1, float("nan"), float("inf"), None, "0.4", True])
@pytest.mark.parametrize("kind", ["symmetric", "pairflip", "asymmetric"])
def test_rates_outside_the_unit_interval_are_refused(kind, rate):
    with pytest.raises(InputError, match=rf"rate must be in \[0, 1\), got {rate!r}"):
        noisy(kind, rate)


@pytest.mark.parametrize(
    "kind, rate, options, message",
    [
        ("symetric", 0.4, {}, "unknown noise 'symetric'; expected one of: none, symmetric, .*, instance, human, file"),
        ("symmetric:2", 0.4, {}, "unknown variant of symmetric noise '2'; expected one of: included"),
        ("pairflip:2", 0.4, {}, "noise pairflip has no variants, got 'pairflip:2'"),
        ("none", 0.4, {}, r"rate must be 0 for noise none, which has the rate that it has, got 0\.4"),
        ("symmetric", 0.4, {"n_classes": 1}, "n_classes must be at least 2, got 1"),
        ("symmetric", 0.4, {"n_classes": 5}, r"true labels must be in \[0, 5\), got \d at \d"),
        ("symmetric", 0.4, {"true_N": torch.tensor([0, 1, -1])}, r"true labels must be in \[0, 10\), got -1 at 2"),
        ("symmetric", 0.4, {"true_N": torch.zeros(3)}, r"true labels must be \(N,\) int64, got \(3,\) float32"),
        ("symmetric", 0.4, {"true_N": torch.zeros(3, 1).long()}, r"true labels must be \(N,\) int64, got \(3, 1\)"),
        ("symmetric", 0.4, {"true_N": torch.zeros(0).long()}, r"true labels must be \(N,\) int64, got \(0,\)"),
        ("symmetric", 0.4, {"index_N": torch.arange(3)}, r"index_N must be \(841,\) int64, got \(3,\)"),
        ("asymmetric", 0.4, {"dataset": "digits"}, "must be one of: cifar10, cifar100, tiny-imagenet, got digits"),
        ("asymmetric", 0.4, {"dataset": "fashion-mnist"}, "must be one of: .*, got fashion-mnist"),
        ("asymmetric", 0.4, {"dataset": None}, "must be one of: .*, got None"),
        ("asymmetric", 0.4, {"dataset": "cifar100"}, "the map of cifar100 needs 100 classes, got n_classes 10"),
        ("superclass", 0.4, {}, "superclass noise is defined for cifar100 alone, got cifar10"),
        ("superclass", 0.4, {"dataset": "cifar100"}, "hold 100 classes, got n_classes 10"),
        ("instance", 0.4, {}, "instance noise depends on the images: give x_NCHW"),
        ("instance", 0.4, {"x_NCHW": torch.zeros(3, 1, 2, 2)}, r"must be \(841, C, H, W\) float32, got \(3, 1"),
        ("asymmetric", 0.4, {"n_classes": 4, "true_N": torch.arange(4)}, "map of cifar10 needs 10 classes, .* 4"),
    ],
)
def test_what_a_model_cannot_do_is_refused(kind, rate, options, message):
    with pytest.raises(InputError, match=message):
        noisy(kind, rate, **options)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"noisy_N": torch.zeros(840).long()}, r"true labels must be \(840,\) int64, got \(841,\)"),
        ({"noisy_N": torch.full((841,), 10)}, r"noisy labels must be in \[0, 10\), got 10 at 0"),
        ({"true_N": torch.full((841,), -1)}, r"true labels must be in \[0, 10\), got -1 at 0"),
        ({"rate": 1.0}, r"rate must be in \[0, 1\), got 1\.0"),
        ({"transition_nominal": torch.eye(9).double()}, r"must be \(10, 10\) float64, got \(9, 9\)"),
        ({"transition_nominal": torch.eye(10)}, r"must be \(10, 10\) float64, got \(10, 10\) float32"),
        ({"transition_nominal": torch.ones(10, 10).double()}, "rows of transition_nominal must be distributions"),
        ({"transition_nominal": 2 * torch.eye(10).double() - 0.1}, "rows of transition_nominal must be distributions"),
    ],
)
def test_labels_that_do_not_fit_together_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        replace(noisy("pairflip", 0.4), **change)


# Human labels


@pytest.fixture
def human_root(tmp_path) -> Path:
    """A folder with a file like CIFAR-10N's, for 100 images: class i % 10, in ``worse`` the first 30 one class up."""
    clean = np.arange(100) % 10
    worse = np.where(np.arange(100) < 30, (clean + 1) % 10, clean)
    path = tmp_path / "cifar-n" / "CIFAR-10_human.pt"
    path.parent.mkdir()
    torch.save({"clean_label": clean, "worse_label": worse, "aggre_label": clean}, path)
    return tmp_path


def human(root: Path | None, kind: str = "human:worse", rate: float | None = None, **options) -> Any:
    arguments: dict[str, Any] = {"true_N": torch.arange(100) % 10, "n_classes": 10, "seed": 0, "dataset": "cifar10"}
    arguments |= options
    return inject(arguments.pop("true_N"), kind, rate, root=root, **arguments)


def test_human_labels_follow_the_index(human_root):
    whole = human(human_root)
    assert torch.equal(whole.noisy_N, (whole.true_N + (torch.arange(100) < 30)) % 10)
    index_N = torch.tensor([99, 0, 31, 5])
    part = human(human_root, true_N=index_N % 10, index_N=index_N, rate=0)
    assert part.noisy_N.tolist() == [9, 1, 1, 6]
    assert (part.rate, part.rate_realised) == (pytest.approx(0.3), 0.5)  # of the file; of these four
    assert torch.equal(part.transition_nominal, whole.transition_realised)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, np.uint64])
def test_human_labels_may_be_integers_of_any_size(human_root, kind):
    expected, path = human(human_root).checksum, human_root / "cifar-n" / "CIFAR-10_human.pt"
    clean = np.arange(100) % 10
    worse = np.where(np.arange(100) < 30, (clean + 1) % 10, clean)
    torch.save({"clean_label": clean.astype(kind), "worse_label": worse.astype(kind)}, path)
    assert human(human_root).checksum == expected


def test_human_labels_need_a_root_and_may_lie_in_it(human_root):
    with pytest.raises(InputError, match=r"human labels in CIFAR-10_human\.pt is read .*: give their folder, --root"):
        human(None)
    expected = human(human_root).checksum
    (human_root / "cifar-n" / "CIFAR-10_human.pt").rename(human_root / "CIFAR-10_human.pt")
    assert human(human_root).checksum == expected


@pytest.mark.parametrize(
    "options, message",
    [
        ({"true_N": torch.arange(99, -1, -1) % 10}, "another order than the images: its true labels differ for 100 of"),
        ({"true_N": torch.arange(50) % 10}, "index_N must say which of the 100 labels in .* belong to 50"),
        ({"index_N": torch.arange(1, 101)}, r"index_N must be in \[0, 100\), got \[100\]"),
        ({"index_N": torch.arange(-1, 99)}, r"index_N must be in \[0, 100\), got \[-1\]"),
        ({"index_N": torch.arange(50)}, r"index_N must be \(100,\) int64, got \(50,\)"),
        ({"rate": 0.4}, r"rate must be 0 for noise human, .*, got 0\.4"),
        ({"kind": "human:worst"}, "unknown set of human labels of cifar10 'worst'; expected one of: aggre, worse"),
        ({"kind": "human"}, "unknown set of human labels of cifar10 ''"),
        ({"kind": "human:random1"}, r"CIFAR-10_human\.pt is damaged or no file of CIFAR-N's labels \(KeyError\)"),
        ({"kind": "human:fine"}, "human:fine labels the classes of data set cifar100, got cifar10"),
        ({"dataset": "digits"}, "human labels exist for: cifar10, cifar100, cifar100-coarse, got digits"),
        (
            {"dataset": "cifar100", "kind": "human:coarse"},
            "labels the classes of data set cifar100-coarse, got cifar100",
        ),
        ({"dataset": "cifar100-coarse", "kind": "human:fine"}, "the classes of data set cifar100, got cifar100-coarse"),
        ({"dataset": "cifar100", "kind": "human:fine"}, r"labels missing: put CIFAR-100_human\.pt .* at .*cifar-n"),
        ({"n_classes": 11, "true_N": torch.arange(100) % 11}, "another order than the images"),
    ],
)
def test_human_labels_that_do_not_fit_are_refused(human_root, options, message):
    with pytest.raises(InputError, match=message):
        human(human_root, **options)


def test_code_in_a_file_of_human_labels_is_not_run(human_root):
    path, sprung = human_root / "cifar-n" / "CIFAR-10_human.pt", human_root / "sprung"
    for write in (torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))):
        write({"clean_label": Trap(sprung)}, path)
        with pytest.raises(InputError, match="is damaged or no file of CIFAR-N's labels"):
            human(human_root)
    assert not sprung.exists()


@pytest.mark.parametrize(
    "labels, message",
    [
        (np.full(100, 10), r"worse_label in .* must be in \[0, 10\), got 10 at 0"),
        (np.zeros(99, dtype=int), r"worse_label in .* must be \(100,\) int64, got \(99,\)"),
        (np.zeros((100, 1), dtype=int), r"worse_label in .* must be \(100,\) int64, got \(100, 1\)"),
        (None, r"CIFAR-10_human\.pt is damaged"),
    ],
)
def test_damaged_human_labels_are_refused(human_root, labels, message):
    path = human_root / "cifar-n" / "CIFAR-10_human.pt"
    if labels is None:
        path.write_bytes(path.read_bytes()[:-200])
    else:
        torch.save({"clean_label": np.arange(100) % 10, "worse_label": labels}, path)
    with pytest.raises(InputError, match=message):
        human(human_root)


# Real CIFAR-N

PERCENT = {
    "cifar10": {"aggre": 9.01, "random1": 17.23, "random2": 18.12, "random3": 17.64, "worse": 40.21},
    "cifar100": {"fine": 40.20},
    "cifar100-coarse": {"coarse": 26.40},
}
FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python", "cifar100-coarse": "cifar-100-python"}


@pytest.fixture(params=list(PERCENT))
def real(request, data_root):
    """Name and labels of a real CIFAR whose human labels are there too."""
    name = request.param
    for path in (data_root / FOLDERS[name], data_root / "cifar-n" / HUMAN_LABELS[name][0]):
        if not path.exists():
            pytest.skip(f"{path} is missing")
    return name, DATASETS[name](data_root, False).y_train


def test_real_human_labels_have_their_published_rates_and_order(real, data_root):
    name, true_N = real
    options = {"n_classes": len(true_N.unique()), "seed": 0, "dataset": name, "root": data_root}
    rates: dict[str, Any] = {
        kind: inject(true_N, f"human:{kind}", None, **options).rate_realised for kind in HUMAN_LABELS[name][1]
    }
    assert {kind: round(100 * rate, 2) for kind, rate in rates.items()} == PERCENT[name]

    kind = f"human:{next(iter(rates))}"
    shuffled = torch.randperm(len(true_N), generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="another order than the images"):
        inject(true_N[shuffled], kind, None, **options)
    assert inject(true_N[shuffled], kind, None, index_N=shuffled, **options).rate_realised == rates[kind[6:]]

    dataset = load_dataset(name, root=data_root, n_train=1000, n_test=100)
    inject(dataset.y_train, kind, None, index_N=dataset.index, **options)  # the order of a subset is checked too
    with pytest.raises(InputError, match="another order than the images"):
        inject(dataset.y_train, kind, None, index_N=dataset.index.flip(0), **options)
