"""ZCA whitening against a slow version in float64, and back again."""

import pytest
import torch

from tadlib.data import load_dataset, whiten
from tadlib.errors import InputError


@pytest.fixture(scope="module")
def pixels():
    """Correlated pixels in [0, 1]."""
    rng = torch.Generator().manual_seed(0)
    mixing = torch.rand(27, 27, generator=rng, dtype=torch.float64)
    x = torch.randn(40, 27, generator=rng, dtype=torch.float64) @ mixing
    return ((x - x.min()) / (x.max() - x.min())).view(40, 3, 3, 3)


def transform_by_hand(pixels: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and T = U (S + ε)^(−½) Uᵀ from the singular values of the covariance, sample by sample."""
    flat = pixels.flatten(1)
    mean = sum(flat) / len(flat)
    covariance = sum(torch.outer(x - mean, x - mean) for x in flat) / (len(flat) - 1)
    u, s, _ = torch.linalg.svd(covariance)
    return mean, u @ torch.diag(1 / (s + epsilon).sqrt()) @ u.T


@pytest.mark.parametrize("epsilon", [0.1, 0.001])
def test_whitening_equals_a_slow_version(pixels, epsilon, monkeypatch):
    monkeypatch.setattr(whiten, "CHUNK", 7)
    w = whiten.fit(pixels, epsilon)
    mean, transform = transform_by_hand(pixels, epsilon)
    expected = torch.stack([(transform @ (x.flatten() - mean)).view(3, 3, 3) for x in pixels])
    torch.testing.assert_close(w.apply(pixels), expected, rtol=1e-4, atol=1e-5)


def test_the_inverse_gives_the_pixels_back(pixels):
    w = whiten.fit(pixels)
    torch.testing.assert_close(w.undo(w.apply(pixels)), pixels, rtol=1e-5, atol=1e-5)
    single = pixels.float()
    torch.testing.assert_close(w.undo(w.apply(single)), single, rtol=1e-4, atol=1e-5)
    assert w.apply(single).dtype == torch.float32


def test_whitened_pixels_are_uncorrelated_up_to_epsilon(pixels):
    flat = whiten.fit(pixels, 1e-6).apply(pixels).flatten(1)
    covariance = torch.cov(flat.T)
    variance = torch.cov(pixels.flatten(1).T).diagonal()
    strong = torch.linalg.eigvalsh(torch.cov(pixels.flatten(1).T)) > 1e-3
    assert strong.sum() >= 5
    eigenvalues = torch.linalg.eigvalsh(covariance)
    torch.testing.assert_close(eigenvalues[strong], torch.ones(int(strong.sum())).double(), rtol=1e-2, atol=1e-2)
    assert variance.max() < 1


def test_a_data_set_is_whitened_by_its_training_images_alone():
    data = load_dataset("digits", n_train=200, n_test=50)
    white = data.whitened()
    assert torch.equal(white.y_train, data.y_train)
    raw = data.pixels(data.x_train, clamp=False)
    mean, transform = transform_by_hand(raw.double(), 0.1)
    for ours, x in ((white.x_train, raw), (white.x_test, data.pixels(data.x_test, clamp=False))):
        expected = ((x.double().flatten(1) - mean) @ transform).view_as(x)
        torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(white.pixels(white.x_test), data.pixels(data.x_test), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="whitened already"):
        white.whitened()


def test_bad_input_is_named(pixels):
    with pytest.raises(InputError, match="at least 2 images, got 1"):
        whiten.fit(pixels[:1])
    with pytest.raises(InputError, match="epsilon must be positive, got 0"):
        whiten.fit(pixels, 0)
