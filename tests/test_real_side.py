"""The benchmark of real images whose statistics are computed once."""

import pytest
import torch
from scripts import script

from tadlib import pipeline
from tadlib.config import Config
from tadlib.distill import distributions
from tadlib.distill.loop import Problem
from tadlib.distill.synthetic import Real
from tadlib.experts import TrajectoryStore


@pytest.fixture
def real_side():
    return script("benchmarks/real_side.py")


@pytest.fixture
def problem(tmp_path):
    about = {"dataset": "digits", "n_train": 200, "noise": "none", "rate": 0.0, "arm": "vanilla", "method": "dance"}
    small = {"ipc": 1, "width": 4, "expert_count": 1, "expert_epochs": 1, "dance_final_epoch": 1}
    config = Config.from_params(**about, **small, dance_augmentation="", out=str(tmp_path))
    refined = pipeline.load_refined(pipeline.divert(config))
    real = Real.of(pipeline.dataset(config).x_train, refined.y, refined.weight, 0.0)
    experts = TrajectoryStore(pipeline.train_experts(config))
    return Problem(pipeline.network(config), real, experts, config.method_config, 1, 0)


def test_without_augmentation_the_means_are_those_of_all_images_of_a_class(real_side, problem):
    theta_P = problem.experts.read(0, 1)
    mean_KD = real_side.mean_features(problem, theta_P, torch.Generator().manual_seed(0))
    features_ND = problem.net.features(theta_P, problem.real.x).double()
    for k, mean_D in enumerate(mean_KD):
        expected_D = features_ND[problem.real.label == k].mean(0)
        torch.testing.assert_close(mean_D.double(), expected_D, rtol=1e-5, atol=1e-6)


def test_an_iteration_moves_the_images_and_sees_no_real_one(real_side, problem, monkeypatch):
    known = real_side.bank(problem)
    assert len(known) == real_side.POINTS
    state = distributions.start(problem)
    before = state.x.clone()
    monkeypatch.setattr(Real, "draw", lambda *_: pytest.fail("drew real images"))
    real_side.advance(known, problem, state)
    assert state.iteration == 1
    assert not torch.equal(state.x, before)
