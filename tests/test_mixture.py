"""Mixtures of losses against scikit-learn, and how they divide samples."""

import math

import numpy as np
import pytest
import torch
from noisy_digits import sklearn_mixture

from tadlib.errors import InputError
from tadlib.trust.mixture import Mixture, by_group, fit_mixture, smallest, split


def two_bumps(n_low, n_high, seed=0, low=(0.2, 0.05), high=(0.7, 0.1)):
    rng = torch.Generator().manual_seed(seed)
    parts = [m + s * torch.randn(n, generator=rng) for n, (m, s) in ((n_low, low), (n_high, high))]
    u = torch.cat(parts).double()
    return (u - u.min()) / (u.max() - u.min())


def padded(rows):
    u_GM = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=123.0)
    mask_GM = torch.arange(u_GM.shape[1]) < torch.tensor([len(r) for r in rows])[:, None]
    return u_GM, mask_GM


ROWS = [
    two_bumps(60, 40),
    two_bumps(150, 10, seed=1, low=(0.3, 0.02), high=(0.5, 0.2)),  # the upper component is the wider one
    two_bumps(30, 200, seed=2, low=(0.3, 0.2), high=(0.6, 0.05)),  # the lower one is
    two_bumps(7, 5, seed=3),
]


def labels(counts):
    return torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])


def shuffled(u, y, seed=0):
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    return u[order], y[order]


# Fitting


@pytest.mark.parametrize("iterations", [2, 5, 60])
def test_mixture_equals_scikit_learns_from_the_same_start_with_rows_of_unequal_length(iterations):
    mixture = fit_mixture(*padded(ROWS), iterations=iterations, tol=0.0)
    for k, row in enumerate(ROWS):
        model, order = sklearn_mixture(row.numpy(), iterations - 1, 0.0)
        np.testing.assert_allclose(mixture.mean[k], model.means_[order, 0], rtol=1e-6)
        np.testing.assert_allclose(mixture.variance[k], model.covariances_[order, 0, 0], rtol=1e-6)
        np.testing.assert_allclose(mixture.weight[k], model.weights_[order], rtol=1e-6)
        between = ((row > mixture.mean[k, 0]) & (row < mixture.mean[k, 1])).numpy()  # where log-odds are monotone
        assert between.any()
        p = model.predict_proba(row.numpy()[:, None])[between][:, order]
        odds = Mixture(*(t[k : k + 1] for t in vars(mixture).values())).log_odds(row[None])[0][between]
        np.testing.assert_allclose(odds, np.log(p[:, 0]) - np.log(p[:, 1]), rtol=1e-6, atol=1e-6)


def test_rows_do_not_disturb_each_other():
    together = fit_mixture(*padded(ROWS))
    for k, row in enumerate(ROWS):
        alone = fit_mixture(*padded([row]))
        torch.testing.assert_close(together.mean[k], alone.mean[0], rtol=1e-2, atol=1e-3)
        assert together.separated[k] == alone.separated[0]
    assert (together.mean[:, 0] <= together.mean[:, 1]).all()
    torch.testing.assert_close(together.weight.sum(1), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("variance", [(0.01, 0.04), (0.04, 0.01), (0.02, 0.02)])
def test_log_odds_never_rise_with_the_loss(variance):
    mean, weight = (0.3, 0.6), (0.7, 0.3)
    mixture = Mixture(*(torch.tensor([v]).double() for v in (mean, variance, weight)), torch.tensor([True]))
    odds = mixture.log_odds(torch.linspace(-2, 3, 2001, dtype=torch.float64)[None])[0]
    assert odds.isfinite().all()
    assert (odds.diff() <= 0).all()
    assert odds[0] > odds[-1]
    terms = [math.log(w / math.sqrt(v)) - (0.45 - m) ** 2 / (2 * v) for m, v, w in zip(mean, variance, weight)]
    found = mixture.log_odds(torch.tensor([[0.45]]).double()).item()
    assert found == pytest.approx(terms[0] - terms[1], rel=1e-5)
    assert (odds.diff() == 0).any() == (variance[0] != variance[1])  # there the raw parabola would bend back


def test_delta_is_the_gap_in_standard_deviations_that_separates():
    u_GM, mask_GM = padded(ROWS)
    mixture = fit_mixture(u_GM, mask_GM)
    gap = (mixture.mean[:, 1] - mixture.mean[:, 0]) / mixture.variance.sqrt().sum(1)
    for k, g in enumerate(gap.tolist()):
        assert fit_mixture(u_GM, mask_GM, delta=0.999 * g).separated[k]
        assert not fit_mixture(u_GM, mask_GM, delta=1.001 * g).separated[k]


# Division


def test_places_of_every_group_are_padded_with_a_mask():
    group = torch.tensor([2, 0, 2, 2, 0])
    places, mask = by_group(group, 3)
    assert [row[m].tolist() for row, m in zip(places, mask)] == [[1, 4], [], [0, 2, 3]]
    assert (places[~mask] == 0).all()


def test_split_divides_each_class_by_its_own_mixture():
    loss, y = torch.cat([two_bumps(60, 40), 5 + 3 * two_bumps(80, 20, seed=1)]), labels([100, 100])
    high = torch.arange(200) % 100 >= torch.tensor([60, 80])[y]
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    loss, y, high = loss[order], y[order], high[order]
    found = split(loss, y, 2, delta=0.5)
    trusted = found.above(0.5)
    assert (trusted == ~high).double().mean() > 0.98
    torch.testing.assert_close(found.w, found.log_odds.sigmoid())
    for k in range(2):
        low, top = loss[y == k].min(), loss[y == k].max()
        torch.testing.assert_close(found.u[y == k], (loss[y == k] - low) / (top - low))
    # one mixture of both classes separates the classes, not the two kinds of labels
    together = split(loss, torch.zeros_like(y), 1, delta=0.5)
    assert together.mixture.mean.shape == (1, 2)
    assert torch.equal(together.above(0.5), y == 0)


@pytest.mark.parametrize("row", ROWS)
def test_trust_falls_with_the_loss_and_above_compares_it_with_the_threshold(row):
    found = split(*shuffled(row, labels([len(row)])), 1, delta=0.5)
    assert (found.w[found.u.argsort()].diff() <= 0).all()
    for tau in (0.1, 0.5, 0.9, 0.999):
        assert torch.equal(found.above(tau), found.w > tau), tau
    assert found.above(0.0).all()


@pytest.mark.parametrize("n_groups", [1, 2])
@pytest.mark.parametrize("loss", [torch.full((50,), 3.0), two_bumps(30, 20)], ids=["constant", "close"])
def test_groups_without_two_components_are_clean_and_wholly_trusted(loss, n_groups):
    loss, y = shuffled(loss, labels([25, 25]))
    found = split(loss, y % n_groups, n_groups, delta=5.0)
    assert not found.mixture.separated.any()
    assert found.above(0.9).all()
    assert found.w.min() > 0.999
    assert torch.equal(found.log_odds[found.u.argsort()], found.log_odds.sort(descending=True).values)


def test_tiny_classes_are_clean():
    loss, y = torch.tensor([0.0, 0.0, 9.0, *two_bumps(30, 30).tolist()]), labels([3, 60])
    found = split(loss, y, 2, delta=0.5)
    assert found.mixture.separated.tolist() == [False, True]
    assert found.above(0.5)[:3].all()


def test_smallest_takes_the_least_values_of_every_class():
    value, y = torch.tensor([5.0, 1.0, 3.0, 2.0, 7.0]), torch.tensor([0, 0, 0, 1, 2])
    assert smallest(value, y, 3, 2).tolist() == [False, True, True, True, True]
    assert smallest(value, y, 3, 1).tolist() == [False, True, False, True, True]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_losses_that_are_not_finite_are_refused(bad):
    loss, y = two_bumps(30, 20), labels([25, 25])
    loss[3] = bad
    with pytest.raises(InputError, match="losses must be finite"):
        split(loss, y, 2, delta=0.5)
