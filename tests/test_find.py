"""Label errors from arrays: what is found, what is said of it, and what is refused."""

import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from noisy_digits import digits
from safetensors.torch import save_file

import tadlib
from tadlib import pipeline
from tadlib.config import Config
from tadlib.data import matrices
from tadlib.errors import InputError
from tadlib.nn import pretrained

K = 4


def predicted(n=1500, rate=0.3, seed=0, sharp=6.0):
    """Out-of-fold probabilities of a good classifier of noisy labels, these, and which are wrong."""
    rng = np.random.default_rng(seed)
    true = rng.integers(K, size=n)
    T = (1 - rate) * np.eye(K) + rate * np.roll(np.eye(K), 1, 1)
    noisy = np.array([rng.choice(K, p=T[k]) for k in true])
    logits = sharp * np.eye(K)[true] + rng.normal(size=(n, K))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return p @ T, noisy, noisy != true


def f1(flagged, wrong):
    return 2 * (flagged & wrong).sum() / (flagged.sum() + wrong.sum())


def test_wrong_labels_are_found_from_probabilities_and_the_share_of_them_is_estimated():
    p, noisy, wrong = predicted(6000)
    table = tadlib.find_label_errors(noisy, p)
    assert list(table.columns) == ["index", "label", "trust", "flagged", "suggested", "probability"]
    assert f1(table["flagged"].to_numpy(), wrong) > 0.95
    low, high = table.attrs["interval"]
    assert low <= wrong.mean() <= high
    assert table.attrs["noise_rate"] == pytest.approx(wrong.mean(), abs=0.03)
    assert table.attrs["transition"].diagonal().mean() == pytest.approx(0.7, abs=0.05)
    assert table.attrs["expected_precision"] > 0.9


def test_a_cost_may_be_any_number():
    p, noisy, _ = predicted(300)
    first, *others = (tadlib.find_label_errors(noisy, p, cost=of(2)) for of in (int, float, np.float32, np.int64))
    assert all(first.equals(other) for other in others)


def test_numpy_torch_and_lists_give_the_same():
    p, noisy, _ = predicted(300)
    found = [
        tadlib.find_label_errors(noisy, p),
        tadlib.find_label_errors(torch.from_numpy(noisy), torch.from_numpy(p)),
        tadlib.find_label_errors(noisy.tolist(), p.tolist()),
    ]
    for other in found[1:]:
        pd.testing.assert_frame_equal(found[0], other)


@pytest.mark.parametrize("what", ["embeddings", "images", "both"])
def test_wrong_labels_are_found_from_embeddings_and_images(what):
    problem = digits(None, "symmetric", 0.3)
    wrong = (problem.noisy != problem.true).numpy()
    images = problem.x[:, 0].numpy()
    given = {"embeddings": problem.x.flatten(1)} if what != "images" else {}
    given |= {"images": images} if what != "embeddings" else {}
    table = tadlib.find_label_errors(problem.noisy, **given)
    assert f1(table["flagged"].to_numpy(), wrong) > 0.8
    assert table["suggested"][wrong].to_numpy() == pytest.approx(problem.true.numpy()[wrong], abs=9)
    assert (table["suggested"].to_numpy() == problem.true.numpy()).mean() > 0.9


def test_few_labels_are_said_to_tell_little():
    problem = digits(None, "symmetric", 0.4)
    some = torch.arange(60)
    labels = problem.noisy[some] % 3
    with pytest.warns(UserWarning, match="cannot tell how many labels are wrong"):
        table = tadlib.find_label_errors(labels, images=problem.x[some])
    low, high = table.attrs["interval"]
    assert high - low > 0.3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p[:-1], "probabilities has 299 rows, expected 300"),
        (lambda p: np.where(np.arange(300)[:, None] == 7, np.nan, p), "must be finite, got nan in row 7, column 0"),
        (lambda p: p - 0.5 * (np.arange(K) == 1), "must not be negative"),
        (lambda p: p * 1.1, "must sum to 1 in every row, got 1.1 in row"),
        (lambda p: np.full_like(p, 1 / K), "all rows are the same"),
        (lambda p: p[:, 0], r"must be \(N, K\), got shape \(300,\)"),
        (lambda p: p[:, :2] / p[:, :2].sum(1, keepdims=True), "have 2 columns, and labels go to 3"),
    ],
)
def test_probabilities_that_cannot_be_such_are_refused(change, message):
    p, noisy, _ = predicted(300)
    with pytest.raises(InputError, match=message):
        tadlib.find_label_errors(noisy, change(p))


@pytest.mark.parametrize(
    ("labels", "more", "message"),
    [
        ([0, 1], {}, "give at least one of probabilities, embeddings, images"),
        ([0.0, 1.0], {"embeddings": [[1.0], [2.0]]}, "labels must be two or more integers"),
        ([0, -1], {"embeddings": [[1.0], [2.0]]}, "labels must not be negative, got -1"),
        ([1, 1], {"embeddings": [[1.0], [2.0]]}, "class 0 has no label"),
        ([0, 10**12], {"embeddings": [[1.0], [2.0]]}, "class 1 has no label; number classes from 0 without gaps"),
        ([0, 1], {"embeddings": [[1.0], [1.0]]}, "all rows are the same"),
        ([0, 1], {"embeddings": [[1.0]]}, "embeddings has 1 rows, expected 2"),
        ([0, 1], {"images": np.zeros((3, 8, 8))}, "got 3 images and 2 labels"),
        ([0, 1], {"embeddings": "text"}, "embeddings must be an array of numbers"),
        ([0, 1], {"embeddings": [[1.0], [2.0]], "cost": -1.0}, "cost must be a positive number, got -1.0"),
    ],
)
def test_other_bad_input_is_refused(labels, more, message):
    with pytest.raises(InputError, match=message):
        tadlib.find_label_errors(labels, **more)


def test_probabilities_within_rounding_are_taken_and_in_sample_ones_warned_of():
    p, noisy, _ = predicted(300)
    tadlib.find_label_errors(
        noisy, p.astype(np.float16).astype(np.float64) / p.astype(np.float16).sum(1, keepdims=True)
    )
    certain = 0.997 * np.eye(K)[noisy] + 0.001 * np.linspace(0.5, 1, 300)[:, None]
    with pytest.warns(UserWarning, match="in-sample"):
        tadlib.find_label_errors(noisy, certain / certain.sum(1, keepdims=True))


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".parquet"])
def test_rows_of_a_table_are_taken_by_their_place_where_it_does_not_name_images(tmp_path, suffix):
    values, path = torch.rand(6, 3), tmp_path / f"table{suffix}"
    if suffix == ".npy":
        np.save(path, values.numpy())
    elif suffix == ".safetensors":
        save_file({"any name": values}, path)
    else:
        pd.DataFrame(values.numpy(), columns=list("abc")).to_parquet(path)
    rows, index = matrices.read_matrix(path), torch.tensor([4, 1])
    torch.testing.assert_close(rows.values, values)
    torch.testing.assert_close(rows.values[matrices.places_of(6, rows.names, index, 6, None, "x")], values[index])
    torch.testing.assert_close(rows.values[matrices.places_of(6, rows.names, torch.arange(6), 40, None, "x")], values)
    with pytest.raises(InputError, match=r"x has 6 rows, expected 2 \(images used\) or 40 \(full training set\)"):
        matrices.places_of(6, rows.names, index, 40, None, "x")


@pytest.mark.parametrize("by", ["index", "path"])
def test_rows_of_a_table_that_names_images_are_taken_by_that(tmp_path, by):
    values, order, index = torch.rand(6, 3), [3, 1, 0, 2, 5, 4], torch.tensor([4, 1])
    names = [f"{i}.png" for i in range(6)] if by == "path" else list(range(6))
    table = pd.DataFrame(values.numpy(), columns=list("abc")).assign(**{by: names}).iloc[order]
    paths = [f"{i}.png" for i in index.tolist()]

    def rows(table, paths=paths if by == "path" else None, index=index):
        table.to_parquet(tmp_path / "a.parquet")
        read = matrices.read_matrix(tmp_path / "a.parquet")
        return read.values[matrices.places_of(len(read.values), read.names, index, 6, paths, "x")]

    torch.testing.assert_close(rows(table), values[index])
    torch.testing.assert_close(rows(table.set_index(by)), values[index])
    torch.testing.assert_close(rows(table[table[by].isin([names[4], names[1]])]), values[index])
    other = [name for name in names if name not in (names[4], names[1])]
    with pytest.raises(InputError, match=rf"x must have a row for every image .* column {by} lacks .* 2 of 2"):
        rows(table[table[by].isin(other)][:2])  # as many rows as images in use, and of others
    with pytest.raises(InputError, match=f"column {by} of x must name each image once"):
        rows(table.assign(**{by: names[0]}))
    with pytest.raises(InputError, match=f"column {by} of x must name each image once"):
        rows(table.assign(**{by: [[1]] * 6}))
    if by == "path":  # index may be of an earlier state of the folder
        torch.testing.assert_close(rows(table.assign(index=range(6))), values[index])
        with pytest.raises(InputError, match="x must name images by index: the data set has no paths"):
            rows(table, None)


def test_errors_name_rows_of_the_file_also_where_a_part_of_them_is_used(tmp_path):
    p_NK = np.random.default_rng(0).dirichlet(np.ones(10), 1297).astype(np.float32)
    config = smoke(tmp_path / "out", f"probabilities:{tmp_path / 'p.npy'}", n_train=200)
    row = int(pipeline.plain_dataset(config).index[-1])
    assert row > 200
    for change, message in ((np.nan, f"nan in row {row}, column 3"), (2.0, f"in row {row}"), (-1.0, f"in row {row}")):
        bad_NK = p_NK.copy()
        bad_NK[row, 3] = change
        np.save(tmp_path / "p.npy", bad_NK)
        with pytest.raises(InputError, match=message):
            pipeline.check(config)


@pytest.mark.parametrize("value", [0.1, 1 / 3])
def test_constant_tables_are_refused_also_where_their_deviation_is_rounded(value):
    z_ND = np.full((50_000, 3), value)
    with pytest.raises(InputError, match="all rows are the same"):
        matrices.require_embeddings(torch.from_numpy(z_ND), 50_000, "x")


@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", b"PK\x03\x04", b"text"])
@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".parquet", ".txt"])
def test_damaged_and_foreign_tables_are_refused_with_their_name(tmp_path, content, suffix):
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match="bad"):
        matrices.read_matrix(path)


def smoke(tmp_path, predictors, **more):
    return Config.from_params(
        arm="tad-posterior", noise="symmetric", rate=0.3, posterior_predictors=predictors, out=str(tmp_path), **more
    )


def test_predictors_from_files_reach_the_posterior_without_training_and_their_content_is_in_the_key(tmp_path):
    problem_of = Config.from_params(arm="tad-posterior", noise="symmetric", rate=0.3, out=str(tmp_path / "first"))
    labels = pipeline.load_labels(pipeline.inject_noise(problem_of))
    p = (0.05 + 0.5 * torch.nn.functional.one_hot(labels.true_N, 10)).numpy()
    first, second = tmp_path / "a" / "p.npy", tmp_path / "b" / "p.npy"
    for path in (first, second):
        path.parent.mkdir()
        np.save(path, p / p.sum(1, keepdims=True))
    config = smoke(tmp_path / "runs", f"probabilities:{first}")
    refined = pipeline.load_refined(pipeline.divert(config))
    assert len(refined.history) == 1
    assert (refined.posterior.argmax(1) == labels.true_N).double().mean() > 0.95
    keys = [pipeline.plan(smoke(tmp_path, f"probabilities:{path}"))["divert"].key for path in (first, second)]
    assert keys[0] == keys[1]
    np.save(second, np.roll(p / p.sum(1, keepdims=True), 1, 1))
    assert pipeline.plan(smoke(tmp_path, f"probabilities:{second}"))["divert"].key != keys[0]


@pytest.mark.parametrize(
    ("predictors", "message"),
    [
        ("network", "must name one besides the network"),
        ("pixels", "predictors must be network, patches, embeddings:FILE"),
        ("embeddings:resnet18", "embeddings must be a file .npy, .safetensors, .parquet, torchvision:NAME"),
        ("patches probabilities:no.npy", "table of numbers no.npy does not exist"),
        ("patches embeddings:torchvision:nonesuch", "torchvision has no pretrained model 'nonesuch'"),
        ("patches embeddings:torchvision:resnet18", "--download fetches them"),
    ],
)
def test_predictors_that_are_not_there_are_told_before_any_work(tmp_path, monkeypatch, predictors, message):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    with pytest.raises(InputError, match=message):
        pipeline.check(smoke(tmp_path / "runs", predictors))
    assert not (tmp_path / "runs" / "divert").exists()


def test_a_pretrained_network_of_a_package_embeds_images_as_a_stage(tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch", reason="the extra embeddings is not installed")
    config = smoke(tmp_path, "patches embeddings:efficientnet-lite0", n_train=40)
    folder = pipeline.divert(config)
    [made] = (tmp_path / "embed").iterdir()
    [z] = pipeline.store.load_tensors(made / "embeddings.safetensors").values()
    assert z.shape == (40, 1280)
    assert pipeline.divert(config) == folder
    network = pretrained.load("efficientnet-lite0", download=False)
    x = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(
        network.embed(x), torch.cat([network.embed(x[:1]), network.embed(x[1:])]), atol=1e-4, rtol=1e-3
    )


def test_the_function_is_at_hand_without_importing_torch_first():
    code = "import sys, tadlib; assert 'torch' not in sys.modules; tadlib.find_label_errors"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_warning_where_all_is_well():
    p, noisy, _ = predicted()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tadlib.find_label_errors(noisy, p)
