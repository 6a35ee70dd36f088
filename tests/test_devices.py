"""What a GPU asks of the code, on machines without one: every tensor on one device, steps that can be recorded."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tadlib.nn import networks, training
from tadlib.nn.networks import Network, NetworkSpec
from tadlib.nn.speed import Recorded
from tadlib.nn.training import Sgd, State, gradient, one_hot, train_epoch, weighted_loss
from tadlib.rng import generator

SCRIPT = Path(__file__).parent / "pretend.py"
FEW = ("auditor_epochs=4", "auditor_warmup=2")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize(
    "arm, settings, least",
    [
        ("tad", (), 0.6),
        ("tad", ("tad_confidence_penalty=0.5", "tad_criterion=cosine"), 0.6),
        ("tad-posterior", (), 0.98),
        ("loss-filter", (), 0.6),
        ("co-teaching", (), 0.6),
        ("confident-learning", (), 0.6),
        ("gce", (), 0.6),
    ],
)
def test_an_arm_keeps_all_tensors_on_its_device(arm, settings, least):
    command = [sys.executable, str(SCRIPT), arm, *FEW, *settings]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["refused"], found["device"]) == (True, "pretend:0")  # tensors of two devices do not mix there
    assert found["finite"]
    assert found["auroc"] > least


def problem(device="cpu", n=40):
    random = torch.Generator().manual_seed(0)
    x, y_N = torch.randn(n, 3, 8, 8, generator=random), torch.arange(n) % 4
    net = Network(NetworkSpec((3, 8, 8), 4, width=8, depth=2), torch.device(device))
    w_N = torch.rand(n, generator=random)
    return net, x.to(device), one_hot(y_N, 4).to(device), w_N.to(device)


@pytest.mark.parametrize("sgd", [Sgd(0.1, 0.9, 1e-3), Sgd(0.1), Sgd(0.1, 0.9, rho=0.01, alpha=0.3)])
def test_the_step_that_a_gpu_records_is_the_plain_one(sgd):
    net, x, y, w = problem()
    theta_P, velocity_P = net.init(0), 0.1 * net.init(1)
    step = training._recorded(net, training.replace(sgd, lr=0.0), weighted_loss).f
    *moved, logits_BK = step(theta_P, velocity_P, x, y, w, torch.tensor(sgd.lr))
    g_P = sgd.direction(lambda theta: gradient(lambda t: weighted_loss(net(t, x), y, w), theta), theta_P)
    expected = sgd.step(theta_P, g_P, velocity_P)[: len(moved)]
    assert len(moved) == (2 if sgd.momentum else 1)
    for got, wanted in zip(moved, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-8)
    assert torch.equal(logits_BK, net(theta_P, x))


def test_steps_run_one_by_one_where_no_graph_can_be_recorded(caplog):
    if torch.cuda.is_available():
        pytest.skip("graphs can be recorded here")
    twice = Recorded(lambda x: (2 * x,))
    with caplog.at_level(logging.WARNING):
        assert torch.equal(twice(torch.ones(3))[0], torch.full((3,), 2.0))
        twice(torch.ones(3))
    assert [record.message.startswith("no CUDA graph is recorded") for record in caplog.records] == [True]


def test_pooling_on_a_gpu_is_the_average_pool():
    x_NCHW = torch.randn(2, 3, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(networks.halved(x_NCHW), torch.nn.functional.avg_pool2d(x_NCHW, 2))
    odd = torch.randn(1, 1, 5, 4)
    assert networks.HalvingPool(2)(odd).shape == (1, 1, 2, 2)


@pytest.mark.parametrize("side", [4, 8, 9, 16])
def test_pooling_has_the_bits_of_the_average_pool_to_the_second_derivative(side):
    x_NCHW = torch.randn(3, 5, side, side, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def derivatives(pool):
        y = pool(x_NCHW)
        (g,) = torch.autograd.grad(y.pow(3).sum(), x_NCHW, create_graph=True)
        return y, g, torch.autograd.grad(g.square().sum(), x_NCHW)[0]

    ours, torchs = derivatives(networks.HalvingPool(2)), derivatives(torch.nn.AvgPool2d(2))
    assert [torch.equal(a, b) for a, b in zip(ours, torchs, strict=True)] == [True] * 3


@CUDA
def test_a_recorded_epoch_is_the_plain_one():
    net, x, y, w = problem("cuda", 200)

    def trained(**more):
        how = {
            "sgd": Sgd(0.02, 0.9),
            "batch": 64,
            "strategy": "color_crop_flip",
            "generator": generator(0, device="cuda"),
        }
        return train_epoch(net, State(net.init(0)), x, y, w, **how, **more).theta

    plain_P = trained(extra=lambda logits_BK, index_B: 0 * logits_BK.sum())
    torch.testing.assert_close(trained(), plain_P, rtol=1e-3, atol=1e-5)
