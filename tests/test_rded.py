"""RDED and CIM: crops and mosaics, the observer, students, images of any size."""

import itertools
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_mtt import K, small_problem

from tadlib import cli, export, pipeline
from tadlib.config import CimConfig, Config, ObserverConfig, Protocol, RdedConfig
from tadlib.distill import METHODS, cim, rded
from tadlib.distill.loop import Problem
from tadlib.distill.synthetic import Real, Synthetic
from tadlib.errors import InputError
from tadlib.evaluate import PROTOCOLS, start, train_networks
from tadlib.nn import crops
from tadlib.nn.images import Images
from tadlib.nn.networks import Network, NetworkSpec
from tadlib.nn.training import AdamW, State, accuracy
from tadlib.observer import Observer, decayed, step, train_observer
from tadlib.state import checkpoint, restored
from tadlib.store import StageFolder, load_json, load_tensors
from tadlib.students import target_loss

NET = Network(NetworkSpec((1, 8, 8), K, width=4, depth=2, norm="batch"))
IPC = 2
CONFIGS = {
    "rded": RdedConfig(factor=2, candidates=6, crops=3),
    "cim": CimConfig(steps=4, augmentation="crop_scale"),
}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def problem():
    x, y, w, _ = small_problem(least_weight=0.1)
    return x, y, w, train_observer(NET, x, y, w, ObserverConfig(epochs=3, batch=8), seed=0)


def run(problem, method, config=None, **more):
    return METHODS[method](NET, *problem, config or CONFIGS[method], **{"ipc": IPC, "seed": 0} | more)


def as_problem(problem, config):
    x, y, w, observer = problem
    return Problem(NET, Real.of(x, y, w, config.draw_power), observer, config, IPC, 0)


# Batch norm


def test_a_network_with_batch_norm_learns_by_the_batch_and_predicts_by_running_statistics():
    theta, x = NET.init(3), 2 + torch.randn(16, 1, 8, 8, generator=rng())
    module = torch.nn.Sequential(  # the same network, written out
        *(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.AvgPool2d(2)),
        *(torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.AvgPool2d(2)),
        *(torch.nn.Flatten(), torch.nn.Linear(16, K)),
    )
    parameters = list(module.parameters())
    torch.nn.utils.vector_to_parameters(theta[: sum(p.numel() for p in parameters)], parameters)
    for _ in range(3):
        logits, statistics = NET.learn(theta, x)
        torch.testing.assert_close(logits, module(x))
        theta = torch.cat([theta[: -len(statistics)], statistics])
    torch.testing.assert_close(NET(theta, x), module.eval()(x))
    assert NET.n_statistics == len(statistics) == 16
    assert not torch.allclose(NET(theta, x), logits)


def test_training_is_pytorchs_adamw_with_weight_decay_on_matrices_alone():
    net = Network(NetworkSpec((1, 8, 8), K, width=4, depth=1, norm="none"))
    state, rule = State(net.init(0)), AdamW(0.01, 0.9, 0.3 * decayed(net))
    matrices = torch.cat([torch.full((s.numel(),), len(s) > 1) for s in net.shapes.values()])
    leaves = [state.theta[chosen].clone().requires_grad_() for chosen in (matrices, ~matrices)]
    groups = [{"params": [leaf], "weight_decay": wd} for leaf, wd in zip(leaves, (0.3, 0.0))]
    adamw = torch.optim.AdamW(groups, lr=0.01)
    for i in range(3):
        x, y = torch.randn(5, 1, 8, 8, generator=rng(i)), torch.arange(5) % K
        theta = torch.zeros_like(state.theta)
        theta = theta.masked_scatter(matrices, leaves[0]).masked_scatter(~matrices, leaves[1])
        logits, _ = net.learn(theta, x)
        for leaf, g in zip(leaves, torch.autograd.grad(F.cross_entropy(logits, y), leaves)):
            leaf.grad = g
        adamw.step()
        state = step(net, state, x, lambda z, y=y: F.cross_entropy(z, y), rule)
    for chosen, leaf in zip((matrices, ~matrices), leaves):
        torch.testing.assert_close(state.theta[chosen], leaf.detach())


def kept_at(epoch):
    """A callback that keeps a copy of the state after ``epoch`` epochs, and what it kept."""
    kept = []

    def keep(state):
        if state.epoch == epoch:
            tensors, values = checkpoint(state)
            kept.append(({k: v.clone() for k, v in tensors.items()}, values))

    return keep, kept


def test_an_observer_resumed_in_the_middle_ends_with_the_same_bits_and_sees_no_sample_of_weight_zero(problem):
    x, y, w, observer = problem
    keep, kept = kept_at(2)
    config = ObserverConfig(epochs=3, batch=8)
    assert torch.equal(train_observer(NET, x, y, w, config, seed=0, on_epoch=keep).theta, observer.theta)
    assert torch.equal(train_observer(NET, x, y, w, config, seed=0, resume=kept[0]).theta, observer.theta)
    w, spoilt = w.clone(), x.clone()
    w[::2], spoilt[::2] = 0, torch.nan
    assert train_observer(NET, spoilt, y, w, config, seed=0).theta.isfinite().all()


def test_an_observer_that_diverges_is_an_error(problem):
    with pytest.raises(InputError, match="the observer diverged: its parameters are not finite; lower lr"):
        train_observer(NET, *problem[:3], ObserverConfig(epochs=2, batch=8, lr=1e38), seed=0)


# Crops and mosaics


def test_random_crops_lie_in_the_image_and_have_the_size_asked_for():
    row = torch.arange(40.0).expand(1, 24, 40)
    found = crops.random_crops(row, 50, 12, rng())
    assert found.shape == (50, 1, 12, 12)
    assert found.min() >= 0
    assert found.max() <= 39
    assert (found.diff(dim=3) > 0).all()  # no edge was padded
    spans = found[:, 0, 0, -1] - found[:, 0, 0, 0]
    assert spans.max() > 2 * spans.min()
    same = torch.randn(3, 9, 9, generator=rng())
    assert torch.equal(crops.resized(same[None], 9)[0], same)


def test_a_mosaic_has_the_patches_of_an_image_row_by_row():
    parts = torch.randn(4 * 3, 2, 5, 5, generator=rng())
    images = crops.mosaic(parts, 2)
    for n, (i, j) in itertools.product(range(3), itertools.product(range(2), range(2))):
        assert torch.equal(images[n, :, 5 * i : 5 * i + 5, 5 * j : 5 * j + 5], parts[4 * n + 2 * i + j])
    assert torch.equal(crops.patches(images, 2), parts)
    best = torch.arange(12)
    assert rded.spread(best, 3).tolist() == [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]


def test_shuffled_patches_stay_in_their_image():
    images = torch.arange(6.0).repeat_interleave(4).view(6, 4, 1, 1, 1)
    images = (images + torch.arange(4.0).view(1, 4, 1, 1, 1) / 10).expand(6, 4, 1, 2, 2)
    images = crops.mosaic(images.flatten(0, 1), 2)
    found = crops.shuffled(images, 2, rng())
    assert torch.equal(found.flatten(1).sort(1).values, images.flatten(1).sort(1).values)
    assert len({tuple(image.flatten().mul(10).round().remainder(10).tolist()) for image in found}) > 2
    assert torch.equal(crops.shuffled(images, 1, rng()), images)


def test_crops_of_students_are_those_of_a_resize_and_nearly_whole_at_a_least_area_of_one():
    x = torch.rand(64, 1, 16, 16, generator=rng())
    torch.testing.assert_close(crops.resized_crops(x, 1.0, rng()), x, atol=1e-5, rtol=0)
    ramp = torch.arange(16.0).expand(64, 1, 16, 16)
    spans = [image[0, 0, -1] - image[0, 0, 0] for image in crops.resized_crops(ramp, 0.5, rng())]
    assert 15 * (0.5 * 3 / 4) ** 0.5 - 1.5 < min(spans) < 12
    assert max(spans) <= 15


# RDED


def test_crops_are_scored_as_by_a_loop_in_float64(problem):
    x, y, _, observer = problem
    double = Observer(NET, observer.theta.double())
    found = rded.score(double, crops.padded(x[:5, :, :4, :4], 8).double(), y[:5].double())
    for i in range(5):
        canvas = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
        canvas[0, :, 2:6, 2:6] = x[i, :, :4, :4]
        logits = NET(double.theta, canvas)[0]
        total = sum(z.exp() for z in logits)
        expected = -sum(y[i, k].double() * (logits[k].exp() / total).log() for k in range(K))
        torch.testing.assert_close(found[i], expected, rtol=1e-12, atol=1e-12)


def test_the_best_crop_of_every_image_then_the_best_of_the_class_remain(problem, monkeypatch):
    config = replace(CONFIGS["rded"], candidates=9, crops=4)
    task = as_problem(problem, config)
    monkeypatch.setattr(rded, "TOGETHER", 4)  # several batches
    found, scores = rded.best_crops(task, 1, rng())
    random = rng()
    index = rded.candidates(task, 1, random)
    assert len(index) == 9
    best = []
    for i in index:
        each = crops.random_crops(task.real.x[i], 4, 4, random)
        values = rded.score(task.experts, crops.padded(each, 8), task.real.y[i].expand(4, K))
        best.append((values.min().item(), each[values.argmin()]))
    best = sorted(best, key=lambda pair: pair[0])[: IPC * 4]
    torch.testing.assert_close(scores, torch.tensor([value for value, _ in best]))
    torch.testing.assert_close(found, torch.stack([crop for _, crop in best]))


def test_a_class_with_fewer_images_than_patches_gives_several_crops_of_each(problem):
    x, y, w, observer = problem
    w = w.clone()
    w[(y.argmax(1) == 1).nonzero()[3:, 0]] = 0
    found, _ = rded.best_crops(as_problem((x, y, w, observer), CONFIGS["rded"]), 1, rng())
    assert len(found) == 4 * IPC
    assert len({tuple(crop.flatten().tolist()) for crop in found}) > 4  # of three images


def test_mosaics_have_four_patches_from_128_pixels_on():
    assert [RdedConfig().mosaic(side) for side in (32, 64, 127, 128, 224)] == [1, 1, 1, 2, 2]
    assert CimConfig().mosaic(224) == 1
    assert (RdedConfig.formation, CimConfig().formation) == (1, 2)


@pytest.mark.parametrize("method", CONFIGS)
def test_same_seed_same_bits_also_after_an_interruption(problem, method):
    kept = []

    def keep(state):
        if len(state.rows) == 1:
            tensors, values = checkpoint(state)
            kept.append(({k: v.clone() for k, v in tensors.items()}, values))

    before = torch.get_rng_state()
    whole, rows = run(problem, method, on_iteration=keep)
    again, same = run(problem, method, resume=kept[0])
    assert torch.equal(whole.x, again.x)
    assert rows == same
    assert len(rows) == K
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(whole.x, run(problem, method, seed=1)[0].x)
    assert whole.x.shape == (K * IPC, 1, 8, 8)
    assert whole.y.tolist() == torch.eye(K).repeat_interleave(IPC, 0).tolist()


@pytest.mark.parametrize("method", CONFIGS)
def test_samples_of_weight_zero_are_never_used_and_bad_input_is_named(problem, method):
    x, y, w, observer = problem
    w, spoilt = w.clone(), x.clone()
    w[::2], spoilt[::2] = 0, torch.nan
    assert run((spoilt, y, w, observer), method)[0].x.isfinite().all()
    with pytest.raises(InputError, match="needs an observer, got none"):
        run((x, y, w, None), method)
    name, setting = {"rded": ("rded_factor", "factor"), "cim": ("formation", "formation")}[method]
    with pytest.raises(InputError, match=f"{name} must divide the sides of 8x8 images, got 3"):
        run(problem, method, replace(CONFIGS[method], **{setting: 3}))
    w[y.argmax(1) == 1] = 0
    with pytest.raises(InputError, match="class 1 has 0, got 2"):
        run((x, y, w, observer), method)


# CIM


def test_anchors_are_the_whole_images_with_the_lowest_scores(problem):
    task = as_problem(problem, replace(CONFIGS["cim"], candidates=0))
    index, scores = cim.anchors(task, 2, rng())
    of_class = (task.real.label == 2).nonzero()[:, 0]
    every = rded.score(task.experts, task.real.x[of_class], task.real.y[of_class])
    torch.testing.assert_close(scores, every.sort().values[: 4 * IPC])
    assert set(index.tolist()) <= set(of_class.tolist())
    few = replace(task, real=replace(task.real, chance=task.real.chance * (task.real.label.cumsum(0) < 12)))
    assert len(cim.anchors(few, 2, rng())[0]) == 4 * IPC


def test_a_residual_brings_the_features_of_patches_closer_to_those_of_their_anchors(problem):
    task = as_problem(problem, replace(CONFIGS["cim"], steps=40, augmentation="none"))
    anchors = task.real.x[task.real.label == 0][: 4 * IPC]
    made, distance = cim.matched(task, anchors, rng())
    start, first = cim.matched(replace(task, config=replace(task.config, steps=1)), anchors, rng())
    assert distance < 0.85 * first
    small = F.interpolate(anchors, (4, 4), mode="bilinear", antialias=True)
    assert (start - crops.mosaic(small, 2)).abs().max() < 0.02  # one step of AdamW at .01
    net, theta = NET, task.experts.theta

    def distance_by_hand(images):
        values = []
        for a, (n, i, j) in enumerate((n, i, j) for n in range(IPC) for i in range(2) for j in range(2)):
            patch = images[n : n + 1, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
            seen = F.interpolate(patch, (8, 8), mode="bilinear", align_corners=False)
            values.append((net.inner(theta, seen, 0.5) - net.inner(theta, anchors[a : a + 1], 0.5)).abs().mean())
        return torch.stack(values).mean()

    torch.testing.assert_close(first, distance_by_hand(crops.mosaic(small, 2)))
    assert distance_by_hand(made) < first


def test_an_inner_layer_is_a_part_of_the_body(problem):
    x, theta = problem[0][:3], problem[3].theta
    assert torch.equal(NET.inner(theta, x, 1.0), NET.features(theta, x))
    assert NET.inner(theta, x, 0.5).shape == (3, 4, 4, 4)


# Students


PROTOCOL = replace(PROTOCOLS["rded"], networks=2, epochs=4, batch=4, lr=0.01)


def taught(problem, protocol=PROTOCOL, **more):
    x, y, _, observer = problem
    synthetic = Synthetic(x[:9], y[:9], 0.001)
    return train_networks(NET, synthetic, protocol, **{"seed": 0, "teacher": observer, "factor": 2} | more)


@pytest.mark.parametrize("recipe, teacher", [("rded", True), ("rded", False), ("cim", True)])
def test_students_resumed_in_the_middle_end_with_the_same_bits(problem, recipe, teacher):
    keep, kept = kept_at(2)
    protocol = replace(PROTOCOL, recipe=recipe, teacher=teacher)
    theta = taught(problem, protocol, on_epoch=keep)
    loop = restored(start(NET, protocol, seed=0), kept[0], torch.device("cpu"))
    assert torch.equal(theta, taught(problem, protocol, loop=loop))
    assert not torch.equal(theta[0], theta[1])
    assert theta.isfinite().all()


def test_students_of_an_observer_never_see_the_labels_of_the_set(problem):
    x, y, w, observer = problem
    wrong = (x, y.roll(1, 1), w, observer)
    assert torch.equal(taught(problem), taught(wrong))
    alone = replace(PROTOCOL, teacher=False)
    assert not torch.equal(taught(problem, alone), taught(wrong, alone))
    with pytest.raises(InputError, match="needs an observer, got none"):
        taught(problem, teacher=None)
    with pytest.raises(InputError, match="teacher is for recipes rded and cim, got recipe 'dsa'"):
        Protocol(teacher=True)
    with pytest.raises(InputError, match="optimiser must be adamw for recipe cim, got 'sgd'"):
        Protocol(recipe="cim")


def test_the_loss_against_a_teacher_is_kl_at_a_temperature_or_mse():
    z, t = (3 * torch.randn(5, 4, generator=rng(i), dtype=torch.float64) for i in (0, 1))
    kl = F.kl_div((z / 20).log_softmax(1), (t / 20).softmax(1), reduction="batchmean")
    torch.testing.assert_close(target_loss("rded", 20.0, t)(z), kl)
    torch.testing.assert_close(target_loss("cim", 20.0, t)(z), F.mse_loss(z, t))


def test_a_taught_student_learns_what_its_teacher_knows(problem):
    x, y, w, _ = problem
    observer = train_observer(NET, x, y, w, ObserverConfig(epochs=40, batch=8, augmentation="none"), seed=0)
    label = observer(x).argmax(1)
    protocol = replace(PROTOCOL, networks=1, epochs=60, augmentation="none")
    theta = train_networks(NET, Synthetic(x, y, 0.01), protocol, seed=0, teacher=observer)
    assert accuracy(NET, theta[0], x, label) > 0.8


def test_published_protocols_are_those_of_the_codes():
    a, b = PROTOCOLS["rded"], PROTOCOLS["cim"]
    assert (a.epochs, a.lr, a.weight_decay, a.temperature, a.batch, a.teacher) == (300, 0.001, 0.01, 20, 50, True)
    assert (b.epochs, b.recipe, b.teacher) == (1000, "cim", True)


# Images of any size


def mixed_sizes(n=24, classes=3):
    """uint8 images of 64 to 128 pixels, a colour for each class, as a list."""
    images, labels = [], torch.arange(n) % classes
    for i, k in enumerate(labels.tolist()):
        height, width = (int(s) for s in torch.randint(64, 129, (2,), generator=rng(i)))
        image = torch.randint(0, 120, (3, height, width), generator=rng(i), dtype=torch.uint8)
        image[k] += 130
        images.append(image)
    return images, labels


@pytest.mark.parametrize("name, side, depth", [("convnet", 64, 4), ("convnet", 128, 5), ("resnet18", 128, 3)])
def test_images_of_mixed_sizes_that_stay_bytes_are_distilled(name, side, depth):
    source, labels = mixed_sizes()
    x = Images(source, side, (0.4,) * 3, (0.25,) * 3)
    y, w = F.one_hot(labels, 3).float(), torch.ones(len(labels))
    net = Network(NetworkSpec((3, side, side), 3, name, width=8, depth=depth, norm="batch"))
    observer = train_observer(net, x, y, w, ObserverConfig(epochs=1, batch=6, augmentation="none"), seed=0)
    made, rows = rded.distill(net, x, y, w, observer, RdedConfig(candidates=4, crops=2), ipc=1, seed=0)
    assert made.x.shape == (3, 3, side, side)
    for k, image in enumerate(made.x):  # the colour of its class, in every quarter
        assert all(part.mean((1, 2)).argmax() == k for row in image.chunk(2, 1) for part in row.chunk(2, 2))
    if name == "convnet":
        made, _ = cim.distill(net, x, y, w, observer, CimConfig(steps=1, augmentation="none"), ipc=1, seed=0)
        assert made.x.shape == (3, 3, side, side)


def test_images_make_batches_as_a_tensor_of_floats_would():
    source = torch.randint(0, 256, (5, 3, 16, 16), generator=rng(), dtype=torch.uint8)
    x = Images(source, 16, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    mean = torch.tensor([0.5, 0.4, 0.3])[:, None, None]
    plain = (source.float() / 255 - mean) / 0.2
    torch.testing.assert_close(x[torch.tensor([3, 1])], plain[[3, 1]])
    torch.testing.assert_close(torch.cat(list(x.split(2))), plain)
    assert x.shape == plain.shape
    some = Images(source, 16, x.mean, x.std, places=torch.tensor([4, 0, 2]))
    torch.testing.assert_close(some[torch.tensor([2, 0])], plain[[2, 4]])
    torch.testing.assert_close(torch.cat(list(some.split(2))), plain[[4, 0, 2]])
    torch.testing.assert_close(some.whole(1), plain[0])
    listed = Images(list(source), 16, x.mean, x.std, places=torch.tensor([4, 0, 2]))
    torch.testing.assert_close(listed[:2], plain[[4, 0]])
    assert some.shape == (3, 3, 16, 16)


def test_convnets_of_depth_five_and_six_and_resnets_take_large_images():
    for name, side, depth in (("convnet", 128, 5), ("convnet", 224, 6), ("resnet18", 224, 3)):
        net = Network(NetworkSpec((3, side, side), 4, name, width=8, depth=depth, norm="batch"))
        assert net(net.init(0), torch.zeros(1, 3, side, side)).shape == (1, 4)
    spec = NetworkSpec((3, 224, 224), 1000, "resnet18", norm="batch")
    assert Network(spec).n_parameters - Network(spec).n_statistics == 11_689_512  # torchvision's for ImageNet


MEMORY = """
import resource, sys, torch
from tadlib.config import RdedConfig
from tadlib.distill import rded
from tadlib.nn.networks import Network, NetworkSpec
from tadlib.observer import Observer

torch.set_num_threads(1)
ipc = int(sys.argv[1])
net = Network(NetworkSpec((3, 64, 64), 2, width=8, depth=4, norm="batch"))
x = torch.zeros(200, 3, 64, 64)
y = torch.eye(2).repeat(100, 1)
made, _ = rded.distill(net, x, y, torch.ones(200), Observer(net, net.init(0)), RdedConfig(), ipc=ipc, seed=0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - 3 * made.x.nbytes)
"""


def test_memory_of_rded_does_not_grow_with_images_per_class_beside_the_set_itself():
    peaks = [int(subprocess.check_output([sys.executable, "-c", MEMORY, str(ipc)])) for ipc in (1, 60)]
    assert peaks[1] - peaks[0] < 20e6


# Stages


SMALL = {"dataset": "digits", "n_train": 200, "n_test": 100, "noise": "symmetric", "rate": 0.4, "device": "cpu"}
SMALL |= {"width": 4, "depth": 2, "auditor_epochs": 4, "auditor_warmup": 2, "observer_epochs": 4, "ipc": 2}
SMALL |= {"evaluate_networks": 2, "evaluate_epochs": 4}
OF = {"rded": {"rded_candidates": 8, "rded_crops": 2}, "cim": {"cim_steps": 2}}


def small(out, method="rded", **changes):
    return Config.from_params(**SMALL | OF[method] | {"method": method, "out": str(out)} | changes)


def files(out):
    """Name, size and SHA-256 of every file of the finished stages."""
    return {path.parent.parent.name: load_json(path)["files"] for path in out.glob("*/*/manifest.json")}


@pytest.mark.parametrize("method", OF)
@pytest.mark.parametrize("arm", ["vanilla", "tad-posterior"])
def test_a_row_and_an_artefact_name_the_teacher_and_both_methods_share_it(tmp_path, monkeypatch, method, arm):
    row = pipeline.run(small(tmp_path / "runs", method, arm=arm))
    assert row["teacher_arm"] == arm
    assert 0 < row["teacher_accuracy"] < 1
    made = pipeline.load_distilled(pipeline.distill(small(tmp_path / "runs", method, arm=arm)))
    assert made.provenance["observer"] == {
        "accuracy": row["teacher_accuracy"],
        "arm": arm,
        "network": "convnet",
    }
    with pytest.raises(InputError, match="evaluate_teacher=False trains on hard labels"):
        made.evaluate(device="cpu")
    assert 0 <= made.evaluate(device="cpu", evaluate_teacher=False)[0] <= 1
    out = tmp_path / "export"
    path = pipeline.distill(small(tmp_path / "runs", method, arm=arm))
    assert cli.main(["export", str(path), "--out", str(out), "--format", "huggingface"]) == 0
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.main(["export", f"~/{path.relative_to(tmp_path)}", "--out", str(out)]) == 0
    observed = load_tensors(out / "observer.safetensors")["theta"]
    stage = pipeline.plan(small(tmp_path / "runs", method, arm=arm))["observer"].path
    assert torch.equal(observed, load_tensors(stage / "observer.safetensors")["theta"])
    assert load_tensors(out / "images.safetensors")["x"].shape[0] == 20 * made.synthetic.formation**2
    assert "with AdamW" in (out / "huggingface" / "README.md").read_text()
    with pytest.raises(InputError, match="was made with an observer, which is not in"):
        export.observer(made, tmp_path / "elsewhere" / "distill" / "key" / "distilled.safetensors", out)
    keys = [pipeline.plan(small(tmp_path / "runs", m, arm=arm))["observer"].key for m in OF]
    assert keys[0] == keys[1]


def test_the_labels_of_the_teacher_are_a_choice(tmp_path):
    out = tmp_path / "runs"
    run = {"arm": "loss-filter", "ipc": 1}
    rows = {of: pipeline.run(small(out, **run, observer_labels=of)) for of in ("arm", "vanilla", "oracle")}
    assert [row["teacher_arm"] for row in rows.values()] == ["loss-filter", "vanilla", "oracle"]
    plain = pipeline.plan(small(out, arm="vanilla"))["observer"]
    assert plain.key == pipeline.plan(small(out, arm="loss-filter", observer_labels="vanilla"))["observer"].key
    row = pipeline.run(small(out, **run, evaluate_teacher=False))
    assert row["teacher_arm"] is None
    assert row["seconds_distill"] == rows["arm"]["seconds_distill"]  # the same set
    with pytest.raises(InputError, match="observer_labels vanilla is not for arm oracle"):
        small(out, arm="oracle", observer_labels="vanilla")


def test_random_images_can_be_evaluated_with_the_same_labels_and_recipe(tmp_path):
    same = {k: v for k, v in small(tmp_path).to_params().items() if k.startswith(("evaluate_", "observer_"))}
    config = Config.from_params(**SMALL | same | {"method": "random", "out": str(tmp_path / "runs"), "ipc": 2})
    assert pipeline.run(config)["teacher_arm"] == "tad"


@pytest.mark.parametrize("method", OF)
def test_killed_stages_go_on_and_end_with_the_same_bits(tmp_path, monkeypatch, method):
    pipeline.run(small(tmp_path / "whole", method))

    class Killed(Exception):
        pass

    save, calls = StageFolder.save_checkpoint, []

    def save_then_die(self, *args):
        save(self, *args)
        calls.append(self.path.parent.name)
        if calls.count(calls[-1]) == 2:
            raise Killed

    monkeypatch.setattr(pipeline, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(StageFolder, "save_checkpoint", save_then_die)
    for stage in ("divert", "observer", "distill", "evaluate"):
        with pytest.raises(Killed):
            pipeline.run(small(tmp_path / "parts", method))
        assert calls[-1] == stage
    pipeline.run(small(tmp_path / "parts", method))
    assert files(tmp_path / "whole") == files(tmp_path / "parts")
