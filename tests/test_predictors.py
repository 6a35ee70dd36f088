"""Predictors that need no network: ridge regression against training without a sample, and LDA against its formulas."""

import pytest
import torch
from noisy_digits import digits
from sklearn.linear_model import Ridge

from tadlib.data import load_dataset
from tadlib.errors import InputError
from tadlib.trust import auroc, predictors
from tadlib.trust.predictors import lda_statistics
from tadlib.trust.transition import uniform


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def problem(n=60, d=7, k=3, seed=0):
    """Features, one-hot labels, and that all are in use."""
    z = torch.randn(n, d, generator=random(seed), dtype=torch.float64) * torch.arange(1, d + 1) + 3
    y = torch.nn.functional.one_hot(torch.randint(k, (n,), generator=random(seed + 1)), k).double()
    return z, y, torch.ones(n, dtype=torch.bool)


def of_patches(x, y, use=None, count=4, mirror=False):
    use = torch.ones(len(x), dtype=torch.bool) if use is None else use
    return predictors.leave_one_out_of_patches(x, y, use, count=count, mirror=mirror, generator=random())


@pytest.mark.parametrize("held_out", [0, 20])
def test_leave_one_out_in_closed_form_equals_training_without_the_sample(held_out):
    z, y, _ = problem()
    use, share = torch.arange(60) >= held_out, 0.2
    r = predictors.leave_one_out(z, y, use, ridge=(share,))
    scaled = (z - z[use].mean(0)) / z[use].std(0, correction=0)
    for i in range(60):
        others = use & (torch.arange(60) != i)
        # λ is N times a share, for all N in use; the closed form keeps it when it leaves one out
        model = Ridge(alpha=share * int(use.sum())).fit(scaled[others], y[others])
        assert r[i].tolist() == pytest.approx(model.predict(scaled[i : i + 1])[0].tolist(), abs=1e-9)


def test_neither_the_own_label_of_a_sample_nor_labels_that_are_not_in_use_have_an_influence():
    z, y, use = problem()
    other = y.clone()
    other[7] = y[7].roll(1)
    a, b = (predictors.leave_one_out(z, labels, use, ridge=(0.2,)) for labels in (y, other))
    assert (a[7] - b[7]).abs().max() < 1e-12
    assert (a[8] - b[8]).abs().max() > 1e-5
    use = torch.arange(60) >= 20
    other = torch.where(use[:, None], y, y.roll(1, 1))
    assert torch.equal(*(predictors.leave_one_out(z, labels, use) for labels in (y, other)))


def with_copies(seed=0):
    """The problem, in which groups of one to four samples have the same features; their labels differ."""
    z, y, use = problem(seed=seed)
    group = torch.cat(
        [torch.arange(6).repeat_interleave(4), 6 + torch.arange(6).repeat_interleave(2), 12 + torch.arange(24)]
    )
    group = group[torch.randperm(60, generator=random(3))]
    first = torch.stack([(group == g).nonzero()[0, 0] for g in range(36)])
    return z[first[group]], y, use, group


@pytest.mark.parametrize("held_out, apart", [(0, 0.0), (9, 0.0), (0, 0.5), (9, 0.5)])
def test_copies_and_near_copies_of_an_image_are_left_out_together(held_out, apart):
    """The closed form equals refitting without the whole group."""
    z, y, use, group = with_copies()
    z = z + apart * torch.randn(z.shape, generator=random(5), dtype=torch.float64)
    use, share = group >= held_out, 0.2
    r = predictors.leave_one_out(z, y, use, group, ridge=(share,))
    scaled = (z - z[use].mean(0)) / z[use].std(0, correction=0)
    for i in range(60):
        others = use & (group != group[i])
        # the mean of features stays the one of all samples in use, as it needs no labels; so does λ
        model = Ridge(alpha=share * int(use.sum())).fit(scaled[others], y[others])
        assert r[i].tolist() == pytest.approx(model.predict(scaled[i : i + 1])[0].tolist(), abs=1e-9)


def test_no_label_of_a_copy_has_an_influence_on_a_sample():
    z, y, use, group = with_copies()
    group_of_four = (group == 2).nonzero()[:, 0]
    other = y.clone()
    other[group_of_four] = y[group_of_four].roll(1, 1)
    a, b = (predictors.leave_one_out(z, labels, use, group, ridge=(0.2,)) for labels in (y, other))
    assert (a - b)[group_of_four].abs().max() < 1e-12
    assert (a - b)[group == 3].abs().max() > 1e-5
    known, leaked = (predictors.leave_one_out(z, labels, use, ridge=(0.2,)) for labels in (y, other))
    assert (known - leaked)[group_of_four].abs().max() > 1e-3  # without groups they have


def test_groups_of_one_sample_are_none():
    z, y, use = problem()
    alone = predictors.leave_one_out(z, y, use)
    assert torch.equal(alone, predictors.leave_one_out(z, y, use, torch.arange(60).flip(0)))


def test_images_with_the_same_pixels_share_a_group():
    x = torch.rand(5, 1, 3, 3, generator=random())
    assert predictors.copies(x) is None
    group = predictors.copies(x[[0, 1, 2, 1, 4, 0, 1]])
    assert group.tolist() == [0, 1, 2, 1, 3, 0, 1]
    x = torch.rand(2, 5, generator=random())
    assert predictors.copies(x.T.expand(5, 2)[:, [0, 0]].T).tolist() == [0, 0]  # rows of numbers, in any layout
    assert predictors.copies(x[[0, 0]] + torch.tensor([[0.0], [1e-3]])) is None


def test_near_copies_share_a_group_and_images_that_are_only_alike_do_not():
    x = load_dataset("digits").x_train
    assert predictors.copies(x) is None
    noise = torch.randn(10, 1, 8, 8, generator=random())
    changed = [x[:10] * 0.8 + 0.3, x[10:20] + 0.05 * noise, x[20:30].clamp_min(-1)]
    group = predictors.copies(torch.cat([x, *changed]))
    assert torch.equal(group[len(x) :], group[:30])
    assert len(group.unique()) == len(x)
    # what all images look like makes no copies of them, nor does one brightness
    alike = x[:1] + 0.01 * torch.randn(200, 1, 8, 8, generator=random())
    assert predictors.copies(alike) is None
    flat = torch.linspace(0, 1, 5)[:, None, None, None].expand(5, 1, 8, 8)
    assert predictors.copies(torch.cat([x[:50], flat])) is predictors.copies(flat) is None
    assert predictors.copies(torch.cat([x[:50], flat, flat[:1]])).unique().numel() == 55


def test_a_crowd_of_near_copies_is_no_group():
    x = load_dataset("digits").x_train[:200]
    crowd = x[:1] + 0.05 * torch.randn(60, 1, 8, 8, generator=random())
    assert len(predictors.copies(torch.cat([x, crowd[:12]])).unique()) == 200
    assert predictors.copies(torch.cat([x, crowd])) is None
    assert len(predictors.copies(torch.cat([x, crowd, crowd[:3]])).unique()) == 260


def test_the_ridge_is_the_one_of_least_error():
    z, y, use = problem(400)
    grid = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
    alone = {share: predictors.leave_one_out(z, y, use, ridge=(share,)) for share in grid}
    errors = {share: (r - y)[:: predictors.PROBED].square().sum().item() for share, r in alone.items()}
    best = min(errors, key=errors.__getitem__)
    assert best != grid[0]
    torch.testing.assert_close(predictors.leave_one_out(z, y, use, ridge=grid), alone[best])


@pytest.mark.parametrize("mirror", [False, True])
def test_responses_equal_loops_over_patches(mirror):
    x = torch.randn(2, 2, 8, 8, generator=random())
    made = predictors.filters(x, 3, random(1))
    z = predictors.responses(made, x, mirror=mirror)
    assert z.shape == (2, 3 * predictors.GRID**2)
    side = made.kernel.shape[2]
    assert side == 3
    for n in range(2):
        total = torch.zeros(3, 6, 6)
        for image in [x[n], x[n].flip(2)] if mirror else [x[n]]:
            found = torch.zeros(3, 6, 6)
            for i in range(6):
                for j in range(6):
                    u = image[:, i : i + side, j : j + side]
                    u = u / (u.var(correction=0) + predictors.CONTRAST).sqrt()
                    for m in range(3):
                        response = (made.kernel[m] * u).sum() - made.shift[m]
                        found[m, i, j] = max(0.0, response - predictors.BIAS)
            total += found
        cells = total.reshape(3, 3, 2, 3, 2).mean((2, 4))  # three cells a side, of two by two
        torch.testing.assert_close(z[n], cells.flatten(), atol=1e-5, rtol=1e-4)


def test_filters_ignore_brightness_and_much_contrast_and_whiten():
    made = predictors.filters(torch.randn(200, 3, 10, 10, generator=random()), 16, random(1))
    assert made.kernel.shape == (16, 3, 3, 3)
    assert made.kernel.sum((1, 2, 3)).abs().max() < 1e-4  # brightness is left out
    # of white noise the whitened filters are patches of unit length
    assert (made.kernel.flatten(1).norm(dim=1) - 1).abs().max() < 0.15
    x = 100 * torch.randn(20, 3, 9, 9, generator=random())
    a, b = (predictors.responses(made, scale * x, mirror=False) for scale in (1, 3))
    torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("shape", [(12, 1, 8, 8), (12, 3, 64, 64), (12, 3, 48, 96), (12, 1, 3, 3)])
def test_images_of_any_size_give_a_prediction_of_every_class(shape):
    x, y = torch.randn(shape, generator=random()), torch.eye(3).repeat(4, 1)
    r, again = (of_patches(x, y, count=8, mirror=True) for _ in range(2))
    assert r.shape == (12, 3)
    assert r.isfinite().all()
    assert torch.equal(r, again)


def test_flat_images_give_the_share_of_every_class():
    assert (of_patches(torch.ones(12, 1, 8, 8), torch.eye(2).repeat(6, 1)) - 0.5).abs().max() < 0.1


def test_too_small_images_and_too_few_labels_are_named():
    y = torch.eye(2).repeat(6, 1)
    with pytest.raises(InputError, match="at least 3 pixels wide and high, got 2 by 8"):
        of_patches(torch.ones(12, 1, 2, 8), y)
    with pytest.raises(InputError, match="at least 2 samples, got 1"):
        of_patches(torch.ones(12, 1, 8, 8), y, torch.arange(12) == 0)


def test_wrong_labels_of_digits_stand_out_before_anything_is_trained():
    problem = digits(None, "symmetric", 0.4)
    of_noisy = of_patches(problem.x, problem.noisy_NK, count=128).gather(1, problem.noisy[:, None])[:, 0]
    assert auroc(of_noisy.double(), problem.noisy == problem.true) > 0.95


# LDA of leave-one-out predictions

K = 4


def blurred(n=400, seed=0, T=None):
    """Predictions in which class 1 looks much like class 0; true and noisy labels."""
    rng = torch.Generator().manual_seed(seed)
    true = torch.randint(K, (n,), generator=rng)
    centre = torch.eye(K, dtype=torch.float64)
    centre[1] = 0.7 * centre[0] + 0.3 * centre[1]
    noisy = true if T is None else torch.multinomial(T[true], 1, generator=rng)[:, 0]
    return centre[true] + 0.3 * torch.randn(n, K, generator=rng, dtype=torch.float64), true, noisy


def slow(r, noisy, T, scale, group=None):
    """p(y | x) of every sample, from class means that are computed without it and its copies."""
    group = torch.arange(len(r)) if group is None else group
    n, k = r.shape
    T, eye = T.double(), torch.eye(k, dtype=torch.float64)
    r = r - r.mean(0)
    sigma = sum(torch.outer(x, x) for x in r) / n
    values, vectors = torch.linalg.eigh(sigma + predictors.DELTA * sigma.trace() / k * eye)
    whiten = vectors @ torch.diag(values**-0.5) @ vectors.T
    share = torch.tensor([(noisy == c).double().mean() for c in range(k)])
    own = torch.stack([whiten @ sigma[c] / share[c] for c in range(k)])
    r = r @ whiten

    def means(without):
        use = torch.ones(n, dtype=torch.bool)
        if without is not None:
            use &= group != group[without]
        return torch.stack([r[use & (noisy == c)].mean(0) for c in range(k)])

    beyond = means(None) - own
    spread, axes = torch.linalg.eigh(sum(share[c] * torch.outer(beyond[c], beyond[c]) for c in range(k)))
    kept = [max(0.0, 1 - predictors.CHANCE * k / n / spread[j].item()) for j in range(k)]
    F = sum(kept[j] * torch.outer(axes[:, j], axes[:, j]) for j in range(k))
    m = own + beyond @ F

    def damped(M, right):
        return (1 + predictors.EPSILON) * torch.linalg.inv(M.T @ M + predictors.EPSILON * eye) @ M.T @ right

    p = damped(T.T, share).clamp_min(predictors.LEAST_PRIOR / k)
    p = p / p.sum()
    R = torch.stack([p * T[:, c] / (p * T[:, c]).sum() for c in range(k)])
    U = damped(R, eye)
    A = U @ m @ m.T @ U.T
    X = torch.diag(p) @ A
    C = eye + X + X @ X + X @ X @ X
    scores = [
        (r[i] @ (own + (means(i) - own) @ F).T) @ U.T @ C - 0.5 * (C.T @ A).diagonal() + p.log() for i in range(n)
    ]
    return (scale * torch.stack(scores)).softmax(1)


TRANSITIONS = [uniform(0.0, K), uniform(0.3, K), torch.eye(K).roll(1, 1) * 0.4 + torch.eye(K) * 0.6]


@pytest.mark.parametrize("T", TRANSITIONS)
def test_lda_equals_the_formulas_written_out_sample_by_sample(T):
    r, _, noisy = blurred(n=120, T=uniform(0.2, K))
    found = lda_statistics(r, noisy).probabilities(T, 0.8)
    torch.testing.assert_close(found.double(), slow(r, noisy, T, 0.8), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("T", TRANSITIONS)
def test_means_of_classes_are_those_without_all_copies_of_a_sample(T):
    r, _, noisy = blurred(n=120, T=uniform(0.2, K))
    group = torch.cat([torch.arange(20).repeat_interleave(3), torch.arange(20, 80)])[
        torch.randperm(120, generator=random())
    ]
    r = r[torch.stack([(group == g).nonzero()[0, 0] for g in range(80)])[group]]  # copies have the same predictions
    found = lda_statistics(r, noisy, group).probabilities(T, 0.8)
    torch.testing.assert_close(found.double(), slow(r, noisy, T, 0.8, group), atol=2e-5, rtol=1e-4)
    assert (found.double() - slow(r, noisy, T, 0.8)).abs().max() > 1e-3
    # numbers of groups need not be consecutive
    assert torch.equal(found, lda_statistics(r, noisy, 7 * group + 3).probabilities(T, 0.8))


def test_the_matrix_unmixes_the_means():
    """Two of five labels of a class are those of the next one; under that T predictions are more often right."""
    T = 0.6 * torch.eye(K, dtype=torch.float64) + 0.4 * torch.eye(K, dtype=torch.float64).roll(1, 1)
    r, true, noisy = blurred(n=6000, T=T)
    lda = lda_statistics(r @ T, noisy)
    right, without = ((lda.probabilities(M, 1.0).argmax(1) == true).double().mean() for M in (T, uniform(0.0, K)))
    assert right > without + 0.05


def test_differences_of_means_by_chance_are_left_out():
    """Random predictions stay uninformative, for the mean of a class is taken without the sample itself."""
    rng = torch.Generator().manual_seed(0)
    r, noisy = torch.randn(300, 30, generator=rng), torch.randint(30, (300,), generator=rng)
    p = lda_statistics(r, noisy).probabilities(uniform(0.0, 30), 1.0)
    at_noisy = p.gather(1, noisy[:, None])[:, 0]
    assert at_noisy.mean() < 2 * p.mean()


def test_heavy_noise_leaves_predictions_informative():
    """With a fifth of few labels right, means of classes are chance; the covariance of r still tells the classes."""
    rng = torch.Generator().manual_seed(0)
    T = uniform(0.8, 10)
    true = torch.randint(10, (1000,), generator=rng)
    noisy = torch.multinomial(T[true], 1, generator=rng)[:, 0]
    r = 0.1 + 0.1 * (torch.eye(10)[true] - 0.1) + 0.06 * torch.randn(1000, 10, generator=rng)
    p = lda_statistics(r, noisy).probabilities(T, 1.0)
    assert (p.argmax(1) == true).double().mean() > 0.8 * (r.argmax(1) == true).double().mean()


def test_every_matrix_gives_distributions():
    r, _, noisy = blurred()
    lda = lda_statistics(r, noisy)
    for T in (uniform(0.75, K), torch.full((K, K), 1 / K), torch.eye(K).flip(0), torch.tensor([[1.0, 0, 0, 0]] * K)):
        p = lda.probabilities(T.double(), 3.0)
        assert p.isfinite().all()
        torch.testing.assert_close(p.sum(1), torch.ones(len(r)))


def test_gradients_reach_the_matrix_and_the_scale():
    r, _, noisy = blurred()
    T, scale = uniform(0.2, K).requires_grad_(), torch.tensor(1.0, requires_grad=True)
    lda_statistics(r, noisy).probabilities(T, scale)[:, 0].log().mean().backward()
    assert T.grad.abs().sum() > 0
    assert scale.grad.abs() > 0


def test_classes_without_a_label_or_with_one_and_a_single_class_are_no_obstacle():
    r, _, noisy = blurred()
    without = noisy.where(noisy != 3, 0)
    for labels in (without, without.where(torch.arange(400) != 7, 3)):
        assert lda_statistics(r, labels).probabilities(uniform(0.1, K), 1.0).isfinite().all()
    one = lda_statistics(torch.ones(4, 1), torch.zeros(4, dtype=torch.long))
    assert one.probabilities(torch.ones(1, 1), 1.0).tolist() == [[1]] * 4
