"""The auditor in closed form against training without a sample, and the features against loops over patches."""

import pytest
import torch
from sklearn.linear_model import Ridge

from tadlib import data, noise, patches, trust
from tadlib.errors import InputError


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def problem(n=60, d=7, k=3, seed=0):
    z = torch.randn(n, d, generator=random(seed), dtype=torch.float64) * torch.arange(1, d + 1) + 3
    y = torch.nn.functional.one_hot(torch.randint(k, (n,), generator=random(seed + 1)), k).double()
    return z, y


@pytest.mark.parametrize("held_out", [0, 20])
def test_leaving_one_out_in_closed_form_equals_leaving_it_out(held_out):
    z, y = problem()
    use = torch.arange(60) >= held_out
    share = 0.2
    r = patches.leave_one_out(z, y, use, (share,))
    scaled = (z - z[use].mean(0)) / z[use].std(0, correction=0)
    for i in range(60):
        others = use.clone()
        others[i] = False
        # λ is N times a share, for all N in use; the closed form keeps it when it leaves one out
        model = Ridge(alpha=share * int(use.sum())).fit(scaled[others], y[others])
        assert r[i].tolist() == pytest.approx(model.predict(scaled[i : i + 1])[0].tolist(), abs=1e-9)


def test_a_label_has_no_part_in_what_is_said_of_its_own_sample():
    z, y = problem()
    use = torch.ones(60, dtype=torch.bool)
    other = y.clone()
    other[7] = y[7].roll(1)
    a, b = (patches.leave_one_out(z, labels, use, (0.2,)) for labels in (y, other))
    assert (a[7] - b[7]).abs().max() < 1e-12
    assert (a[8] - b[8]).abs().max() > 1e-5


def test_shrinkage_is_the_one_of_least_error():
    z, y = problem(400)
    use = torch.ones(400, dtype=torch.bool)
    grid = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
    alone = {share: patches.leave_one_out(z, y, use, (share,)) for share in grid}
    errors = {share: (r - y)[:: patches.PROBED].square().sum().item() for share, r in alone.items()}
    best = min(errors, key=errors.__getitem__)
    assert best not in (grid[0],)
    torch.testing.assert_close(patches.leave_one_out(z, y, use, grid), alone[best])


@pytest.mark.parametrize("mirror", [False, True])
def test_responses_equal_loops_over_patches(mirror):
    x = torch.randn(2, 2, 8, 8, generator=random())
    made = patches.filters(x, 3, random(1))
    z = patches.responses(made, x, mirror=mirror)
    assert z.shape == (2, 3 * patches.GRID**2)
    side = made.kernel.shape[2]
    assert side == 3
    for n in range(2):
        total = torch.zeros(3, 6, 6)
        for image in [x[n], x[n].flip(2)] if mirror else [x[n]]:
            found = torch.zeros(3, 6, 6)
            for i in range(6):
                for j in range(6):
                    u = image[:, i : i + side, j : j + side]
                    u = u / (u.var(correction=0) + patches.CONTRAST).sqrt()
                    for m in range(3):
                        response = (made.kernel[m] * u).sum() - made.shift[m]
                        found[m, i, j] = max(0.0, response - patches.BIAS)
            total += found
        cells = total.reshape(3, 3, 2, 3, 2).mean((2, 4))  # three cells a side, of two by two
        torch.testing.assert_close(z[n], cells.flatten(), atol=1e-5, rtol=1e-4)


def test_filters_ignore_brightness_and_whiten():
    x = torch.randn(200, 3, 10, 10, generator=random())
    made = patches.filters(x, 16, random(1))
    assert made.kernel.shape == (16, 3, 3, 3)
    assert made.kernel.sum((1, 2, 3)).abs().max() < 1e-4  # a patch may be as bright as it likes
    # of white noise the whitened filters are patches of unit length
    assert (made.kernel.flatten(1).norm(dim=1) - 1).abs().max() < 0.15


def test_contrast_makes_no_difference_where_there_is_much():
    x = 100 * torch.randn(20, 1, 9, 9, generator=random())
    made = patches.filters(x, 8, random(1))
    a, b = (patches.responses(made, scale * x, mirror=False) for scale in (1, 3))
    torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("shape", [(12, 1, 8, 8), (12, 3, 64, 64), (12, 3, 48, 96), (12, 1, 3, 3)])
def test_images_of_any_size_give_a_prediction_of_every_class(shape):
    x = torch.randn(shape, generator=random())
    y = torch.eye(3).repeat(4, 1)
    use = torch.ones(12, dtype=torch.bool)
    r = patches.left_out(x, y, use, count=8, mirror=True, generator=random())
    assert r.shape == (12, 3)
    assert r.isfinite().all()
    assert torch.equal(r, patches.left_out(x, y, use, count=8, mirror=True, generator=random()))


def test_flat_images_say_nothing_and_break_nothing():
    y = torch.eye(2).repeat(6, 1)
    r = patches.left_out(
        torch.ones(12, 1, 8, 8), y, torch.ones(12, dtype=torch.bool), count=4, mirror=False, generator=random()
    )
    assert (r - 0.5).abs().max() < 0.1


def test_too_small_images_and_too_few_labels_are_named():
    y, use = torch.eye(2).repeat(6, 1), torch.ones(12, dtype=torch.bool)
    with pytest.raises(InputError, match="at least 3 pixels wide and high, got 2 by 8"):
        patches.left_out(torch.ones(12, 1, 2, 8), y, use, count=4, mirror=False, generator=random())
    few = torch.arange(12) == 0
    with pytest.raises(InputError, match="at least 2 samples, got 1"):
        patches.left_out(torch.ones(12, 1, 8, 8), y, few, count=4, mirror=False, generator=random())


def test_wrong_labels_of_digits_stand_out_before_anything_is_trained():
    loaded = data.load_dataset("digits")
    labels = noise.inject(loaded.y_train, "symmetric", 0.4, n_classes=10, seed=0)
    y = torch.nn.functional.one_hot(labels.noisy_N, 10).float()
    use = torch.ones(len(y), dtype=torch.bool)
    r = patches.left_out(loaded.x_train, y, use, count=128, mirror=False, generator=random())
    at_given = r.gather(1, labels.noisy_N[:, None])[:, 0]
    assert trust.auroc(at_given.double(), labels.noisy_N == loaded.y_train) > 0.95
