"""Anchors in feature space, distances and reliabilities against scikit-learn and slow loops."""

import math

import numpy as np
import pytest
import sklearn.covariance
import torch

from tadlib.errors import InputError
from tadlib.trust import anchors as module
from tadlib.trust.anchors import TEMPERATURES, anchors, candidates, cosines, distances, temperature

K, D = 4, 6


def features(n=200, seed=0, k=K, d=D, separation=3.0, offset=0.0):
    """Gaussian classes in float64 with one correlated covariance; returns features (N, D) and labels (N,)."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % k
    mean = separation * torch.randn(k, d, generator=rng, dtype=torch.float64)
    mixing = torch.eye(d, dtype=torch.float64) + 0.3 * torch.randn(d, d, generator=rng, dtype=torch.float64)
    z = mean[y] + torch.randn(n, d, generator=rng, dtype=torch.float64) @ mixing
    order = torch.randperm(n, generator=rng)
    return (z + offset)[order], y[order]


def one_hot(y, k=K):
    return torch.nn.functional.one_hot(y, k).double()


def of_all(z, y):
    """Anchors of all samples, in the precision of z."""
    return anchors(z, one_hot(y).to(z.dtype), torch.ones(len(z), dtype=z.dtype))


@pytest.mark.parametrize("n, d", [(500, 4), (40, 30), (10, 50)])
def test_ledoit_wolf_equals_scikit_learns(n, d):
    rng = torch.Generator().manual_seed(n)
    z = torch.randn(n, d, generator=rng, dtype=torch.float64) @ torch.randn(d, d, generator=rng, dtype=torch.float64)
    expected, shrink = sklearn.covariance.ledoit_wolf(z.numpy(), assume_centered=True)
    assert 0 < shrink < 1
    np.testing.assert_allclose(module.ledoit_wolf(z), expected, rtol=1e-10, atol=1e-10 * expected.max())


def test_dead_and_collinear_features_leave_the_whitening_finite():
    z, y = features(2000)
    z = torch.cat([100 * z[:, :1].expand(-1, 20) + 0.001 * z[:, :1], torch.zeros(2000, 20), z], 1).float()
    a = of_all(z, y)
    assert a.whiten.isfinite().all()
    assert (distances(a, z).argmin(1) == y).double().mean() > 0.9


def test_anchors_are_weighted_means_over_samples_of_positive_weight():
    z, y = features()
    w = torch.rand(200, generator=torch.Generator().manual_seed(1)).double()
    w[::3] = 0
    a = anchors(z, one_hot(y), w)
    for k in range(K):
        mine = [i for i in range(200) if y[i] == k and w[i] > 0]
        expected = sum(w[i] * z[i] for i in mine) / sum(w[i] for i in mine)
        torch.testing.assert_close(a.mean[k], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(a.origin, z[w > 0].mean(0), rtol=1e-12, atol=1e-12)
    broken = z.clone()
    broken[w == 0] = 1e6
    assert torch.equal(anchors(broken, one_hot(y), w).whiten, a.whiten)


def test_distances_are_mahalanobis_distances():
    z, y = features()
    a = of_all(z, y)
    residual = torch.stack([z[i] - a.mean[y[i]] for i in range(200)])
    covariance = torch.tensor(sklearn.covariance.ledoit_wolf(residual.numpy(), assume_centered=True)[0])
    covariance = covariance + 1e-6 * covariance.diagonal().mean() * torch.eye(D)
    precision = covariance.inverse()
    expected = torch.tensor([[(one - m) @ precision @ (one - m) for m in a.mean] for one in z])
    torch.testing.assert_close(distances(a, z), expected, rtol=1e-10, atol=1e-10)


def test_distances_in_float32_survive_features_far_from_zero():
    z, y = features(offset=1000.0)
    exact, single = (distances(of_all(v, y), v) for v in (z, z.float()))
    torch.testing.assert_close(single.double(), exact, rtol=5e-3, atol=5e-2)


def test_cosines_are_taken_about_the_mean_of_the_trusted_features():
    z, y = features(offset=5.0)
    w = (torch.arange(200) % 5 > 0).double()
    a = anchors(z, one_hot(y), w)
    middle = z[w > 0].mean(0)
    expected = torch.cosine_similarity((z - middle)[:, None], (a.mean - middle)[None], dim=2)
    torch.testing.assert_close(cosines(a, z), expected, rtol=1e-10, atol=1e-10)


def test_classes_without_trusted_samples_and_features_that_are_not_finite_are_refused():
    z, y = features()
    with pytest.raises(InputError, match=r"classes without: \[1, 3\]"):
        anchors(z, one_hot(y), (y % 2 == 0).double())
    z[3, 2] = torch.nan
    with pytest.raises(InputError, match="features must be finite"):
        of_all(z, y)


def test_reliability_is_posterior_times_similarity_where_both_criteria_agree():
    z, y = features(separation=1.0)
    a = of_all(z, y)
    d, s, t = distances(a, z), cosines(a, z), 2.0
    found = candidates(d, s, t)
    agreements = 0
    for i in range(200):
        weights = [math.exp(-(d[i, k] - d[i].min()) / (2 * t)) for k in range(K)]
        k = min(range(K), key=lambda k: d[i, k])
        agree = k == max(range(K), key=lambda k: s[i, k])
        agreements += agree
        q = [w / sum(weights) for w in weights]
        assert found.label[i] == k
        assert found.q[i].tolist() == pytest.approx(q, rel=1e-10, abs=1e-14)
        assert found.reliability[i].item() == pytest.approx(q[k] * (1 + s[i, k].item()) / 2 if agree else 0, rel=1e-10)
    assert 0 < agreements < 200


def test_one_criterion_alone():
    z, y = features(separation=1.0)
    a = of_all(z, y)
    d, s = distances(a, z), cosines(a, z)
    by_distance, by_angle = (candidates(d, s, 2.0, criterion) for criterion in ("mahalanobis", "cosine"))
    assert torch.equal(by_distance.label, d.argmin(1))
    assert torch.equal(by_distance.reliability, (-d / 4).softmax(1).amax(1))
    assert torch.equal(by_angle.label, s.argmax(1))
    torch.testing.assert_close(by_angle.reliability, (1 + s.amax(1)) / 2)
    assert not torch.equal(by_angle.label, by_distance.label)
    for found in (by_distance, by_angle):  # the soft label agrees with the candidate
        assert torch.equal(found.q.argmax(1), found.label)
        torch.testing.assert_close(found.q.sum(1), torch.ones(200).double())
    with pytest.raises(InputError, match="unknown criterion 'angle'"):
        candidates(d, s, 1.0, "angle")


@pytest.mark.parametrize("true_t", [1.0, 3.0, 8.0])
def test_temperature_recovers_how_overconfident_distances_are(true_t):
    rng = torch.Generator().manual_seed(0)
    d = 40 * torch.rand(20_000, K, generator=rng).double()
    label = torch.multinomial((-d / (2 * true_t)).softmax(1), 1, generator=rng)[:, 0]
    assert temperature(d, label) == true_t
    assert true_t in TEMPERATURES
