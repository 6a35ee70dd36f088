"""Discriminants of left-out predictions against the same formulas, written out sample by sample in float64."""

import pytest
import torch

from tadlib import discriminant
from tadlib.discriminant import evidence
from tadlib.transition import level

K = 4


def problem(n=400, k=K, apart=1.0, seed=0, T=None):
    """Predictions in which class 1 looks much like class 0; true and noisy labels."""
    rng = torch.Generator().manual_seed(seed)
    true = torch.randint(k, (n,), generator=rng)
    centre = apart * torch.eye(k, dtype=torch.float64)
    centre[1] = 0.7 * centre[0] + 0.3 * centre[1]
    given = true if T is None else torch.multinomial(T[true], 1, generator=rng)[:, 0]
    return centre[true] + 0.3 * torch.randn(n, k, generator=rng, dtype=torch.float64), true, given


def slow(r, given, T, scale):
    """p(y | x) of every sample, with its class's mean made anew without it."""
    n, k = r.shape
    T, eye = T.double(), torch.eye(k, dtype=torch.float64)
    r = r - r.mean(0)
    sigma = sum(torch.outer(x, x) for x in r) / n
    values, vectors = torch.linalg.eigh(sigma + discriminant.SHRINKAGE * sigma.trace() / k * eye)
    whiten = vectors @ torch.diag(values**-0.5) @ vectors.T
    share = torch.tensor([(given == c).double().mean() for c in range(k)])
    word = torch.stack([whiten @ sigma[c] / share[c] for c in range(k)])
    r = r @ whiten

    def means(without):
        use = torch.ones(n, dtype=torch.bool)
        if without is not None:
            use[without] = False
        return torch.stack([r[use & (given == c)].mean(0) for c in range(k)])

    beyond = means(None) - word
    spread, axes = torch.linalg.eigh(sum(share[c] * torch.outer(beyond[c], beyond[c]) for c in range(k)))
    kept = [max(0.0, 1 - discriminant.CHANCE * k / n / spread[j].item()) for j in range(k)]
    F = sum(kept[j] * torch.outer(axes[:, j], axes[:, j]) for j in range(k))
    m = word + beyond @ F

    def damped(M, right):
        return (1 + discriminant.EPSILON) * torch.linalg.inv(M.T @ M + discriminant.EPSILON * eye) @ M.T @ right

    p = damped(T.T, share).clamp_min(discriminant.LEAST / k)
    p = p / p.sum()
    R = torch.stack([p * T[:, c] / (p * T[:, c]).sum() for c in range(k)])
    U = damped(R, eye)
    A = U @ m @ m.T @ U.T
    X = torch.diag(p) @ A
    C = eye + X + X @ X + X @ X @ X
    scores = [
        (r[i] @ (word + (means(i) - word) @ F).T) @ U.T @ C - 0.5 * (C.T @ A).diagonal() + p.log() for i in range(n)
    ]
    return (scale * torch.stack(scores)).softmax(1)


@pytest.mark.parametrize("T", [level(0.0, K), level(0.3, K), torch.eye(K).roll(1, 1) * 0.4 + torch.eye(K) * 0.6])
def test_views_equal_the_formulas_written_out(T):
    r, _, given = problem(n=120, T=level(0.2, K))
    torch.testing.assert_close(evidence(r, given).view(T, 0.8).double(), slow(r, given, T, 0.8), atol=2e-5, rtol=1e-4)


def test_the_matrix_unmixes_the_means():
    """Two of five labels of a class are those of the next one: told so, the view finds the true class."""
    T = 0.6 * torch.eye(K, dtype=torch.float64) + 0.4 * torch.eye(K, dtype=torch.float64).roll(1, 1)
    r, true, given = problem(n=6000, T=T)
    seen = evidence(r @ T, given)

    def right(T):
        return (seen.view(T, 1.0).argmax(1) == true).double().mean().item()

    assert right(T) > right(level(0.0, K)) + 0.05


def test_what_is_chance_is_left_out():
    """Predictions that know nothing say nothing, for every label is judged without itself."""
    rng = torch.Generator().manual_seed(0)
    r, given = torch.randn(300, 30, generator=rng), torch.randint(30, (300,), generator=rng)
    p = evidence(r, given).view(level(0.0, 30), 1.0)
    at_given = p.gather(1, given[:, None])[:, 0]
    assert at_given.mean() < 2 * p.mean()


def test_heavy_noise_does_not_drown_what_predictions_know():
    """With a fifth of few labels right, means of classes are chance; predictions still say which label is likely."""
    rng = torch.Generator().manual_seed(0)
    T = level(0.8, 10)
    true = torch.randint(10, (1000,), generator=rng)
    given = torch.multinomial(T[true], 1, generator=rng)[:, 0]
    r = 0.1 + 0.1 * (torch.eye(10)[true] - 0.1) + 0.06 * torch.randn(1000, 10, generator=rng)
    p = evidence(r, given).view(T, 1.0)
    assert (p.argmax(1) == true).double().mean() > 0.8 * (r.argmax(1) == true).double().mean()


def test_no_matrix_makes_a_view_undefined():
    r, _, given = problem()
    seen = evidence(r, given)
    for T in (level(0.75, K), torch.full((K, K), 1 / K), torch.eye(K).flip(0), torch.tensor([[1.0, 0, 0, 0]] * K)):
        p = seen.view(T.double(), 3.0)
        assert p.isfinite().all()
        torch.testing.assert_close(p.sum(1), torch.ones(len(r)))


def test_gradients_reach_the_matrix_and_the_scale():
    r, _, given = problem()
    T, scale = level(0.2, K).requires_grad_(), torch.tensor(1.0, requires_grad=True)
    evidence(r, given).view(T, scale)[:, 0].log().mean().backward()
    assert T.grad.abs().sum() > 0
    assert scale.grad.abs() > 0


def test_classes_without_a_label_or_with_one_and_a_single_class_are_no_obstacle():
    r, _, given = problem()
    given = given.clone()
    given[given == 3] = 0
    assert evidence(r, given).view(level(0.1, K), 1.0).isfinite().all()
    given[7] = 3
    assert evidence(r, given).view(level(0.1, K), 1.0).isfinite().all()
    assert (
        evidence(torch.ones(4, 1), torch.zeros(4, dtype=torch.long)).view(torch.ones(1, 1), 1.0).tolist() == [[1]] * 4
    )
