"""Every augmentation against torchvision or a slow loop over samples, in float64."""

import itertools
import math

import pytest
import torch
from torchvision.transforms import v2

from tadlib.errors import InputError
from tadlib.nn import augment
from tadlib.nn.augment import Draw

N, C, H, W = 6, 3, 8, 10
ALL = "color_crop_cutout_flip_scale_rotate"
WHOLE_CHOICES = augment.operations(ALL)


def images(seed: int = 0, shape=(N, C, H, W)) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_draw(op: str, n: int = N, seed: int = 0) -> Draw:
    return augment.draw(op, n, torch.Generator().manual_seed(seed))[0]


# One operation on one image (C, H, W) with its parameters, the obvious way.


def flip(x, p):
    return v2.functional.horizontal_flip(x) if p[0] < 0.5 else x


def sampled(x, source):
    """Bilinear interpolation with zeros outside; ``source(i, j)`` is where pixel (i, j) comes from, in pixels."""
    out = torch.zeros_like(x)
    for i, j in itertools.product(*map(range, x.shape[1:])):
        u, v = source(i, j)
        for a, b in itertools.product((math.floor(u), math.floor(u) + 1), (math.floor(v), math.floor(v) + 1)):
            if 0 <= a < x.shape[1] and 0 <= b < x.shape[2]:
                out[:, i, j] += (1 - abs(u - a)) * (1 - abs(v - b)) * x[:, a, b]
    return out


def scale(x, p):
    middle_i, middle_j = (x.shape[1] - 1) / 2, (x.shape[2] - 1) / 2
    return sampled(x, lambda i, j: (middle_i + p[1] * (i - middle_i), middle_j + p[0] * (j - middle_j)))


def rotate(x, p):
    middle_i, middle_j = (x.shape[1] - 1) / 2, (x.shape[2] - 1) / 2
    cos, sin = math.cos(math.radians(p[0])), math.sin(math.radians(p[0]))

    def source(i, j):  # turns pixels, not the side lengths of an oblong image
        di, dj = i - middle_i, j - middle_j
        return middle_i + sin * dj + cos * di, middle_j + cos * dj - sin * di

    return sampled(x, source)


def crop(x, p):
    reach_i, reach_j = round(x.shape[1] * 0.125), round(x.shape[2] * 0.125)
    padded = v2.functional.pad(x, [reach_j, reach_i])
    top, left = math.floor(p[0] * (2 * reach_i + 1)), math.floor(p[1] * (2 * reach_j + 1))
    return v2.functional.crop(padded, top, left, x.shape[1], x.shape[2])


def cutout(x, p):
    out = x.clone()
    middle = [math.floor(u * (side + (side // 2 + 1) % 2)) for u, side in zip(p, x.shape[1:])]
    for place in itertools.product(*map(range, x.shape[1:])):
        sizes = (x.shape[1] // 2, x.shape[2] // 2)
        if all(m - s // 2 <= i < m - s // 2 + s for m, s, i in zip(middle, sizes, place)):
            out[:, *place] = 0
    return out


def brightness(x, p):
    return x + p[0]


def saturation(x, p):
    grey = sum(x) / len(x)
    return torch.stack([grey + 2 * p[0] * (channel - grey) for channel in x])


def contrast(x, p):
    grey = x.sum() / x.numel()
    return grey + (p[0] + 0.5) * (x - grey)


SLOW = {f.__name__: f for f in (flip, scale, rotate, crop, cutout, brightness, saturation, contrast)}


def test_every_operation_has_a_slow_twin():
    assert set(SLOW) == set(augment.OPERATIONS)


@pytest.mark.parametrize("op", SLOW)
@pytest.mark.parametrize("seed", range(3))
def test_operation_equals_a_slow_loop_over_samples(op, seed):
    d, x = random_draw(op, seed=seed), images(seed)
    expected = torch.stack([SLOW[op](one, p.tolist()) for one, p in zip(x, d.params)])
    # grids are computed in the images' precision from float32 parameters
    torch.testing.assert_close(augment.apply((d,), x), expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(expected, x)


@pytest.mark.parametrize("op", SLOW)
def test_a_draw_for_one_image_is_shared_by_all_and_images_keep_their_precision(op):
    d = random_draw(op, n=1)
    for x in (images(), images().float()):
        shared = augment.apply((d,), x)
        assert torch.equal(shared, augment.apply((Draw(op, d.params.repeat(N, 1)),), x))
        assert shared.dtype == x.dtype


@pytest.mark.parametrize("choice", WHOLE_CHOICES, ids="_".join)
def test_augmentation_is_affine_in_the_images(choice):
    draws = tuple(random_draw(op) for op in choice)
    x, z = images(1), images(2)
    mixed = augment.apply(draws, 0.3 * x + 0.7 * z)
    torch.testing.assert_close(
        mixed, 0.3 * augment.apply(draws, x) + 0.7 * augment.apply(draws, z), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("choice", WHOLE_CHOICES, ids="_".join)
def test_pull_back_is_the_adjoint(choice):
    draws = tuple(random_draw(op) for op in choice)
    x, v, m = images(1), images(2), images(3)
    _, pull_back = torch.func.vjp(lambda t: augment.apply(draws, t), x)
    linear_part_of_v = augment.apply(draws, v) - augment.apply(draws, torch.zeros_like(v))
    torch.testing.assert_close((linear_part_of_v * m).sum(), (v * pull_back(m)[0]).sum(), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda t: augment.apply(draws, t), (images(4, (N, C, 4, 4)).requires_grad_(),))


def test_parameters_differ_between_samples_and_stay_in_their_range():
    ranges = {"scale": (1 / 1.2, 1.2), "rotate": (-15, 15), "brightness": (-0.5, 0.5)}
    for op in augment.OPERATIONS:
        (low, high), p = ranges.get(op, (0, 1)), random_draw(op, n=500).params
        assert len(p.unique()) > 400, op
        assert low <= p.min() < low + 0.05 * (high - low), op
        assert high - 0.05 * (high - low) < p.max() <= high, op


def test_crop_reaches_every_shift_and_cutout_always_touches_the_image():
    n = 2000
    one = torch.zeros(n, 1, 8, 8, dtype=torch.float64)
    one[:, :, 4, 4] = 1
    places = augment.apply((random_draw("crop", n),), one).flatten(1).argmax(1).unique()
    assert {(int(p) // 8, int(p) % 8) for p in places} == {(i, j) for i in (3, 4, 5) for j in (3, 4, 5)}
    holes = 64 - augment.apply((random_draw("cutout", n),), torch.ones_like(one)).sum((1, 2, 3))
    assert holes.min() == 4  # a corner of the 4x4 square
    assert holes.max() == 16


def test_draw_makes_one_choice_for_the_batch_and_color_is_three_operations():
    rng = torch.Generator().manual_seed(0)
    seen = {tuple(d.op for d in augment.draw(ALL, 2, rng)) for _ in range(100)}
    color = ("brightness", "saturation", "contrast")
    assert seen == {color, ("crop",), ("cutout",), ("flip",), ("scale",), ("rotate",)}


@pytest.mark.parametrize("strategy", ["", "none"])
def test_no_strategy_is_the_identity(strategy):
    draws = augment.draw(strategy, N, torch.Generator())
    assert draws == ()
    x = images()
    assert augment.apply(draws, x) is x


def test_same_generator_same_bits_and_the_global_one_untouched():
    state = torch.get_rng_state()
    first, second = (augment.draw(ALL, N, torch.Generator().manual_seed(7)) for _ in range(2))
    assert [d.op for d in first] == [d.op for d in second]
    assert all(torch.equal(a.params, b.params) for a, b in zip(first, second))
    assert torch.equal(state, torch.get_rng_state())


def test_bad_input_is_named():
    with pytest.raises(InputError, match="unknown augmentation 'colour'"):
        augment.operations("flip_colour")
    with pytest.raises(InputError, match="a batch needs at least one image, got 0"):
        augment.draw("flip", 0, torch.Generator())


def test_cutmix_takes_a_box_from_another_image_and_mixes_labels_by_its_area_and_the_weights():
    x, y, w = images(), torch.eye(N, dtype=torch.float64), torch.linspace(0.1, 1, N, dtype=torch.float64)
    areas = []
    for seed in range(200):
        rng, again = (torch.Generator().manual_seed(seed) for _ in range(2))
        mixed, labels, weights = augment.cutmix(x, y, w, 0.5, rng)
        share, chance, row, column = torch.rand(4, generator=again).tolist()
        other = torch.randperm(N, generator=again)
        if chance >= 0.5:
            assert torch.equal(mixed, x)
            torch.testing.assert_close(labels, y)
            torch.testing.assert_close(weights, w)
            continue
        height, width = (math.floor(side * math.sqrt(share)) for side in (H, W))
        top, left = math.floor(row * H) - height // 2, math.floor(column * W) - width // 2
        expected = x.clone()
        rows, columns = range(max(top, 0), min(top + height, H)), range(max(left, 0), min(left + width, W))
        for n in range(N):
            for i in rows:
                for j in columns:
                    expected[n, :, i, j] = x[other[n], :, i, j]
        assert torch.equal(mixed, expected)
        area = len(rows) * len(columns) / (H * W)
        for n in range(N):
            mass = (1 - area) * w[n] * y[n] + area * w[other[n]] * y[other[n]]
            torch.testing.assert_close(weights[n] * labels[n], mass)
        torch.testing.assert_close(labels.sum(1), torch.ones(N, dtype=torch.float64))
        areas.append(area)
    assert 70 < len(areas) < 130
    assert max(areas) > 0.6
    assert min(areas) < 0.05
