"""The benchmark of label errors: noises that nothing was tuned on."""

import pytest
import torch
from scripts import script

from tadlib.errors import InputError


@pytest.fixture
def label_errors():
    return script("benchmarks/label_errors.py")


@pytest.mark.parametrize("kind", ["mixture", "permutation", "class-rates", "dirichlet"])
def test_unseen_noise_is_a_transition_matrix_in_which_most_labels_are_right(label_errors, kind):
    T_KK = label_errors.flips(kind, 10, torch.Generator().manual_seed(1))
    torch.testing.assert_close(T_KK.sum(1), torch.ones(10))
    assert (T_KK >= 0).all()
    assert (T_KK.diag() == T_KK.amax(1)).all()
    again_KK = label_errors.flips(kind, 10, torch.Generator().manual_seed(1))
    assert torch.equal(T_KK, again_KK)


def test_an_unseen_noise_that_does_not_exist_is_named(label_errors):
    with pytest.raises(InputError, match="unknown unseen noise 'circle'"):
        label_errors.flips("circle", 10, torch.Generator())


def test_a_set_of_unseen_noise_is_judged_by_every_method(label_errors, tmp_path):
    results = tmp_path / "rows.parquet"
    about = ["--root", str(tmp_path), "--preset", "smoke", "--out", str(tmp_path / "runs"), "--results", str(results)]
    assert not label_errors.main([*about, "--sets", "digits:unseen:mixture", "--predictors", "patches", "--seeds", "1"])
    rows = label_errors.store.load_table(results)
    assert {"trust posterior", "argmax differs"} <= {*rows["method"]}
    assert rows["wrong"].between(0.3, 0.5).all()
    assert (rows["auroc"] > 0.9).all()
