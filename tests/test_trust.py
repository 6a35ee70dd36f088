"""The outer loop's kernels against scikit-learn and slow loops."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture

from tadlib import trust
from tadlib.errors import InputError
from tadlib.trust import Mixture, by_class, fit_mixture, partition


def two_bumps(n_low, n_high, seed=0, low=(0.2, 0.05), high=(0.7, 0.1)):
    rng = torch.Generator().manual_seed(seed)
    parts = [m + s * torch.randn(n, generator=rng) for n, (m, s) in ((n_low, low), (n_high, high))]
    u = torch.cat(parts).double()
    return (u - u.min()) / (u.max() - u.min())


def padded(rows):
    u_KM = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=123.0)
    mask_KM = torch.arange(u_KM.shape[1]) < torch.tensor([len(r) for r in rows])[:, None]
    return u_KM, mask_KM


ROWS = [
    two_bumps(60, 40),
    two_bumps(150, 10, seed=1, low=(0.3, 0.02), high=(0.5, 0.2)),  # the upper component is the wider one
    two_bumps(30, 200, seed=2, low=(0.3, 0.2), high=(0.6, 0.05)),  # the lower one is
    two_bumps(7, 5, seed=3),
]


def sklearn_mixture(u, max_iter, tol):
    """scikit-learn's EM from the halves below and above the mid-range, which is our first M-step."""
    halves = [u[u <= (u.min() + u.max()) / 2], u[u > (u.min() + u.max()) / 2]]
    model = GaussianMixture(
        2,
        means_init=[[h.mean()] for h in halves],
        weights_init=[len(h) / len(u) for h in halves],
        precisions_init=[[[1 / (h.var() + 1e-4)]] for h in halves],
        reg_covar=1e-4,
        tol=tol,
        max_iter=max_iter,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(u[:, None])
    order = model.means_[:, 0].argsort()
    return model, order


@pytest.mark.parametrize("iterations", [2, 5, 60])
def test_mixture_equals_scikit_learns_from_the_same_start_with_rows_of_unequal_length(iterations):
    # our first iteration is scikit-learn's initialisation
    mixture = fit_mixture(*padded(ROWS), iterations=iterations, tol=0.0)
    for k, row in enumerate(ROWS):
        u = row.numpy()
        model, order = sklearn_mixture(u, iterations - 1, 0.0)
        np.testing.assert_allclose(mixture.mean[k], model.means_[order, 0], rtol=1e-6)
        np.testing.assert_allclose(mixture.variance[k], model.covariances_[order, 0, 0], rtol=1e-6)
        np.testing.assert_allclose(mixture.weight[k], model.weights_[order], rtol=1e-6)


def test_log_odds_are_those_of_scikit_learn_where_these_are_monotone():
    mixture = fit_mixture(*padded(ROWS), iterations=60, tol=0.0)
    for k, row in enumerate(ROWS):
        model, order = sklearn_mixture(row.numpy(), 59, 0.0)
        p = model.predict_proba(row.numpy()[:, None])[:, order]
        between = ((row > mixture.mean[k, 0]) & (row < mixture.mean[k, 1])).numpy()
        assert between.any()
        one = Mixture(*(t[k : k + 1] for t in vars(mixture).values()))
        expected = np.log(p[between, 0]) - np.log(p[between, 1])
        np.testing.assert_allclose(one.log_odds(row[None])[0][between], expected, rtol=1e-6, atol=1e-6)


def test_converged_fit_is_a_fixed_point_and_rows_do_not_disturb_each_other():
    together = fit_mixture(*padded(ROWS))
    for k, row in enumerate(ROWS):
        alone = fit_mixture(*padded([row]))
        torch.testing.assert_close(together.mean[k], alone.mean[0], rtol=1e-2, atol=1e-3)
        assert together.separated[k] == alone.separated[0]
    assert (together.mean[:, 0] <= together.mean[:, 1]).all()
    torch.testing.assert_close(together.weight.sum(1), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("variance", [(0.01, 0.04), (0.04, 0.01), (0.02, 0.02)])
def test_log_odds_never_rise_with_the_evidence(variance):
    mixture = Mixture(
        torch.tensor([[0.3, 0.6]]).double(),
        torch.tensor([variance]).double(),
        torch.tensor([[0.7, 0.3]]).double(),
        torch.tensor([True]),
    )
    u = torch.linspace(-2, 3, 2001, dtype=torch.float64)[None]
    odds = mixture.log_odds(u)[0]
    assert odds.isfinite().all()
    assert (odds.diff() <= 0).all()
    assert odds[0] > odds[-1]
    mean, spread = mixture.mean[0], mixture.variance[0].sqrt()
    middle = torch.tensor([0.45], dtype=torch.float64)
    log_p = [
        math.log(w) + torch.distributions.Normal(m, s).log_prob(middle) for w, m, s in zip((0.7, 0.3), mean, spread)
    ]
    torch.testing.assert_close(mixture.log_odds(middle[None])[0], log_p[0] - log_p[1])
    if variance[0] == variance[1]:
        assert (odds.diff() < 0).all()
    else:  # the raw parabola would bend back
        assert (odds.diff() == 0).any()


def test_fitted_log_odds_never_rise_with_the_evidence():
    odds = fit_mixture(*padded(ROWS)).log_odds(torch.linspace(0, 1, 500, dtype=torch.float64).expand(4, 500))
    assert (odds.diff(dim=1) <= 0).all()


def labels(counts):
    return torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])


def shuffled(u, y, seed=0):
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    return u[order], y[order]


def test_places_of_every_class_are_padded_with_a_mask():
    y = torch.tensor([2, 0, 2, 2, 0])
    places, mask = by_class(y, 3)
    assert [row[m].tolist() for row, m in zip(places, mask)] == [[1, 4], [], [0, 2, 3]]
    assert (places[~mask] == 0).all()


def test_partition_divides_each_class_by_its_own_mixture():
    u, y = torch.cat([two_bumps(60, 40), 5 + 3 * two_bumps(80, 20, seed=1)]), labels([100, 100])
    high = torch.zeros(200, dtype=torch.bool)
    high[60:100], high[180:] = True, True
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    p = partition(u[order], y[order], 2, tau=0.5)
    assert (p.trusted == ~high[order]).double().mean() > 0.98
    assert torch.equal(p.trusted, p.trust > 0.5)
    torch.testing.assert_close(p.trust, p.log_odds.sigmoid())
    for k in range(2):
        mine = y[order] == k
        torch.testing.assert_close(p.u[mine], (u[order][mine] - u[y == k].min()) / (u[y == k].max() - u[y == k].min()))
        assert p.cut[k] == p.u[mine & p.trusted].max()
        assert (p.u[mine & ~p.trusted] >= p.cut[k]).all()
    # one mixture over both sees two classes, not two kinds of label
    together = partition(u[order], y[order], 2, tau=0.5, scope="global")
    assert together.mixture.mean.shape == (1, 2)
    assert together.trusted[y[order] == 0].all()
    assert not together.trusted[y[order] == 1].all()


def test_trust_falls_with_the_evidence_within_a_class():
    for k, row in enumerate(ROWS):
        p = partition(*shuffled(row, labels([len(row)]), seed=k), 1, tau=0.5)
        assert (p.trust[p.u.argsort()].diff() <= 0).all()


def test_a_stricter_threshold_trusts_a_subset():
    u, y = two_bumps(60, 40, low=(0.3, 0.15), high=(0.6, 0.15)), labels([100])
    strict, lax = (partition(u, y, 1, tau=tau).trusted for tau in (0.95, 0.5))
    assert strict.sum() < lax.sum()
    assert (lax | ~strict).all()


def test_delta_is_the_gap_in_standard_deviations_that_separates():
    u_KM, mask_KM = padded(ROWS)
    mixture = fit_mixture(u_KM, mask_KM)
    gap = (mixture.mean[:, 1] - mixture.mean[:, 0]) / mixture.variance.sqrt().sum(1)
    for k, g in enumerate(gap.tolist()):
        assert fit_mixture(u_KM, mask_KM, delta=0.999 * g).separated[k]
        assert not fit_mixture(u_KM, mask_KM, delta=1.001 * g).separated[k]


@pytest.mark.parametrize("scope", ["class", "global"])
@pytest.mark.parametrize("u", [torch.full((50,), 3.0), two_bumps(30, 20)], ids=["constant", "close"])
def test_classes_without_two_components_are_clean_and_wholly_trusted(u, scope):
    u, y = shuffled(u, labels([25, 25]))
    p = partition(u, y, 2, tau=0.9, delta=5.0, scope=scope)
    assert not p.mixture.separated.any()
    assert p.trusted.all()
    assert p.trust.min() > 0.999
    assert torch.equal(p.log_odds[p.u.argsort()], p.log_odds.sort(descending=True).values)


def test_tiny_classes_are_clean():
    u, y = torch.tensor([0.0, 0.0, 9.0, *two_bumps(30, 30).tolist()]), labels([3, 60])
    p = partition(u, y, 2, tau=0.5)
    assert p.mixture.separated.tolist() == [False, True]
    assert p.trusted[:3].all()


def test_at_least_the_minimum_of_every_class_is_trusted():
    u, y = torch.cat([two_bumps(3, 97), two_bumps(50, 50, seed=1)]), labels([100, 100])
    u, y = shuffled(u, y)
    few, many = (partition(u, y, 2, tau=0.5, minimum=m).trusted for m in (1, 20))
    assert few[y == 0].sum() == 3
    assert many[y == 0].sum() == 20
    assert (u[many & (y == 0)].max() <= u[~many & (y == 0)].min()).item()
    assert torch.equal(few[y == 1], many[y == 1])


def test_best_takes_the_least_suspect_of_every_class():
    u, y = torch.tensor([5.0, 1.0, 3.0, 2.0, 7.0]), torch.tensor([0, 0, 0, 1, 2])
    assert trust.best(u, y, 3, 2).tolist() == [False, True, True, True, True]
    assert trust.best(u, y, 3, 1).tolist() == [False, True, False, True, True]


def test_bad_input_is_named():
    u, y = two_bumps(30, 20), labels([25, 25])
    with pytest.raises(InputError, match=r"classes without: \[2\]"):
        partition(u, y, 3, tau=0.5)
    with pytest.raises(InputError, match=r"threshold must be in \[0, 1\), got 1.4"):
        partition(u, y, 2, tau=1.4)
    with pytest.raises(InputError, match="unknown scope 'row'"):
        partition(u, y, 2, tau=0.5, scope="row")
    with pytest.raises(InputError, match="minimum must be at least 1, got 0"):
        partition(u, y, 2, tau=0.5, minimum=0)
    u[3] = torch.nan
    with pytest.raises(InputError, match="must be finite"):
        partition(u, y, 2, tau=0.5)
    with pytest.raises(InputError, match="must be finite"):
        trust.fuse(torch.ones(50), u)
    with pytest.raises(InputError, match="at least one signal"):
        trust.fuse()


def test_ema_starts_at_the_first_value_and_forgets_at_rate_mu():
    a, b, c = (torch.full((2,), v, dtype=torch.float64) for v in (1.0, 3.0, 7.0))
    first = trust.ema(None, a, 0.7)
    assert torch.equal(first, a)
    third = trust.ema(trust.ema(first, b, 0.7), c, 0.7)
    torch.testing.assert_close(third, torch.full_like(a, 0.7 * (0.7 * 1 + 0.3 * 3) + 0.3 * 7))
    assert torch.equal(trust.ema(a, b, 0.0), b)


def test_threshold_is_a_linear_ramp_from_warm_up_to_the_last_epoch():
    taus = [trust.threshold(e, 4, 9, 0.9, 0.5) for e in range(10)]
    assert taus == pytest.approx([0.9, 0.9, 0.9, 0.9, 0.9, 0.8, 0.7, 0.6, 0.5, 0.5])
    assert trust.threshold(4, 4, 5, 0.9, 0.5) == 0.9


def test_margin_is_the_lead_of_the_label_over_the_best_other():
    log_p = torch.tensor([[-1.0, -2.0, -4.0], [-3.0, -1.0, -2.0], [-0.5, -0.5, -9.0]])
    assert trust.margin(log_p, torch.tensor([0, 2, 1])).tolist() == [1.0, -1.0, 0.0]


def test_ranks_and_their_mean():
    a, b = torch.tensor([10.0, -5.0, 3.0, 10.0]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert trust.ranks(a).tolist() == [0.75, 0.125, 0.375, 0.75]
    assert trust.ranks(b).tolist() == [0.125, 0.375, 0.625, 0.875]
    torch.testing.assert_close(trust.fuse(a, b), (trust.ranks(a) + trust.ranks(b)) / 2)
    assert torch.equal(trust.fuse(a, b), trust.fuse(a.exp(), 3 * b - 7))


@pytest.mark.parametrize("levels", [3, 1000, None])
def test_auroc_equals_scikit_learns_with_and_without_ties(levels):
    rng = np.random.default_rng(0)
    score, positive = rng.random(400), rng.random(400) < 0.3
    score += 0.4 * positive
    if levels:
        score = np.round(score * levels) / levels
    got = trust.auroc(torch.tensor(score), torch.tensor(positive))
    assert got == pytest.approx(roc_auc_score(positive, score), abs=1e-12)
    assert 0.6 < got < 0.95


def test_auroc_is_undefined_where_one_kind_is_missing():
    assert trust.auroc(torch.rand(4), torch.ones(4, dtype=torch.bool)) is None
    assert trust.auroc(torch.rand(4), torch.zeros(4, dtype=torch.bool)) is None
