"""Arguments of a wrong type or kind are refused by name in Python, as options are."""

import pytest
import torch
from noisy_digits import SMALL, digits

from tadlib import config, distill, noise, trust
from tadlib.data import load_dataset
from tadlib.errors import InputError
from tadlib.evaluate import mean_ci95
from tadlib.nn.networks import NetworkSpec

LABELS = torch.arange(20) % 10


def random_images(**more):
    problem = digits()
    settings = config.METHODS["random"]()
    about = problem.x, problem.noisy_NK, torch.ones(len(problem)), None, settings
    return distill.METHODS["random"](SMALL, *about, **{"ipc": 1, "seed": 0} | more)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: random_images(ipc=1.5), "ipc must be a whole number, at least 1, got 1.5"),
        (lambda: random_images(ipc=None), "ipc must be a whole number, at least 1, got None"),
        (lambda: noise.inject(LABELS, 3, 0.4, n_classes=10, seed=0), "unknown noise '3'"),
        (lambda: load_dataset("digits", device="cuda:77"), "device 'cuda:77' cannot be used: "),
        (lambda: load_dataset("digits", device="tpu"), "device 'tpu' cannot be used: "),
        (lambda: trust.refine(trust.Tad, digits()), r"a trust method must be made first, as in Tad\(\), got <class"),
        (lambda: trust.refine(None, digits()), "a trust method must be made first, .* got None"),
        (lambda: mean_ci95([]), "a mean needs one value or more, got none"),
        (lambda: NetworkSpec((1, 8, 8), 0), "n_classes must be at least 1, got 0"),
    ],
)
def test_arguments_of_a_wrong_kind_are_refused_by_name(call, message):
    with pytest.raises(InputError, match=message):
        call()
