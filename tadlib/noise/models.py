"""Noise models: noisy labels made from true ones.

Legend: N samples, K classes, C H W image.

A noise model is one function in ``NOISE_MODELS``. Papers mean different things by the same name; what is meant here:

- ``symmetric``: to any class but the true one, all equally likely.
- ``symmetric:included``: of all samples int(r N) get a label drawn from all classes, the true one among them, as in
  DivideMix (Li et al. 2020) and ELR (Liu et al. 2020). The realised rate is then about r (K-1)/K.
- ``asymmetric``: from each class of the data set's map (:mod:`tadlib.data.class_maps`) to the similar class there, at
  rate r per mapped class, all at once: no label moves twice. On CIFAR-10 the overall rate is r/2.
- ``pairflip``: from class i to i + 1, the last to the first.
- ``superclass``: CIFAR-100; to the four other classes of the superclass, all equally likely.
- ``instance``: depends on the image (:mod:`tadlib.noise.instance`).
- ``human:SET``: labels given by people, CIFAR-N (:mod:`tadlib.noise.files`).
- ``file:PATH``: noisy labels read from a file (:mod:`tadlib.noise.files`).
- ``none``: noisy labels are the true ones.

With all but ``symmetric:included`` and ``instance``, exactly round(r n_k) of the n_k samples of a class flip at rate r,
so the realised rate is the nominal one up to rounding (our choice). For one seed the samples that flip at a rate also
flip at every higher one.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tadlib.checks import require_labels, require_tensor
from tadlib.data.class_maps import ASYMMETRIC_MAPS, superclass_groups
from tadlib.errors import known, require, usable
from tadlib.noise.files import human, human_set, listed
from tadlib.noise.instance import instance_dependent
from tadlib.noise.labels import Answer, NoisyLabels, Request, require_rate
from tadlib.rng import generator


def inject(
    true_N: Tensor,
    kind: str,
    rate: float | None,
    *,
    n_classes: int,
    seed: int,
    dataset: str | None = None,
    root: Path | str | None = None,
    index_N: Tensor | None = None,
    n_full: int | None = None,
    x_NCHW: Tensor | None = None,
    paths: Sequence[str] | None = None,
) -> NoisyLabels:
    """Labels with noise of ``kind``, a name in ``NOISE_MODELS`` and for some models a variant after a colon.

    rate: in [0, 1); 0 or None where the kind has no rate (none, human, file). dataset: needed where noise depends on
    it. root: folder with the files of human labels. index_N: (N,) place of each sample in the full training set of
    ``n_full`` images, which files of labels cover; None for all of it. x_NCHW: images, needed where noise depends on
    them. paths: (N) of own images, by which files of labels may name them. The same arguments give the same bits on
    every device.

    Raises InputError for an unknown kind, labels or a rate out of range, and labels of files that are missing,
    damaged, too few or too many, or in another order than ``true_N``.
    """
    name, variant = _parsed(kind, rate, dataset)
    require(n_classes >= 2, f"n_classes must be at least 2, got {n_classes}")
    require_labels("true labels", true_N, n_classes)
    true_N = true_N.cpu()
    if index_N is not None:
        require_tensor("index_N", index_N, tuple(true_N.shape), torch.int64)
        index_N = index_N.cpu()
    root = None if root is None else usable(root)
    rng = generator(seed, "noise", kind)
    request = Request(true_N, variant, float(rate or 0), n_classes, rng, dataset, root, index_N, n_full, x_NCHW, paths)
    noisy_N, nominal, transition_nominal = NOISE_MODELS[name](request)
    return NoisyLabels(noisy_N, true_N.clone(), n_classes, kind, nominal, seed, transition_nominal)


def check(kind: str, rate: float, dataset: str) -> None:
    """InputError for a noise that cannot be made, before any data is read, and for rate 0 where noise needs a rate."""
    name, _ = _parsed(kind, rate, dataset)
    require(rate > 0 or name in FIXED_RATE, f"rate must be above 0 for noise {name}, got {rate:g}")


def _parsed(kind: str, rate: float | None, dataset: str | None) -> tuple[str, str]:
    """Name and variant of a noise; InputError for what does not exist, a rate out of range and a wrong data set."""
    name, _, variant = str(kind).partition(":")
    known("noise", name, NOISE_MODELS)
    require(kind == name or name in WITH_VARIANT, f"noise {name} has no variants, got {kind!r}")
    require_rate(0 if rate is None and name in FIXED_RATE else rate)
    if name in FIXED_RATE:
        require(not rate, f"rate must be 0 for noise {name}, which has the rate that it has, got {rate}")
    if name == "symmetric" and kind != name:
        known("variant of symmetric noise", variant, ("included",))
    elif name == "asymmetric":
        require(
            dataset in ASYMMETRIC_MAPS,
            "asymmetric noise follows a map between the classes of a data set; it must be one of: "
            f"{', '.join(ASYMMETRIC_MAPS)}, got {dataset} (pairflip is defined for every data set)",
        )
    elif name == "superclass":
        require(dataset == "cifar100", f"superclass noise is defined for cifar100 alone, got {dataset}")
    elif name == "human":
        human_set(dataset, variant)
    return name, variant


def _none(request: Request) -> Answer:
    return request.true_N.clone(), 0.0, torch.eye(request.n_classes, dtype=torch.float64)


def _symmetric(request: Request) -> Answer:
    K, n = request.n_classes, len(request.true_N)
    if request.variant == "included":
        rate = request.rate
        chosen = torch.randperm(n, generator=request.rng)[: int(rate * n)]
        label_N = torch.randint(0, K, (n,), generator=request.rng)
        noisy_N = request.true_N.clone()
        noisy_N[chosen] = label_N[chosen]
        return noisy_N, rate, (1 - rate) * torch.eye(K, dtype=torch.float64) + rate / K
    shift_N = torch.randint(1, K, request.true_N.shape, generator=request.rng)  # never 0: the true class is excluded
    target_KK = (1 - torch.eye(K, dtype=torch.float64)) / (K - 1)
    return _flip(request, (request.true_N + shift_N) % K, target_KK, range(K))


def _asymmetric(request: Request) -> Answer:
    return _mapped(request, ASYMMETRIC_MAPS[str(request.dataset)](request.n_classes))


def _pairflip(request: Request) -> Answer:
    return _mapped(request, {k: (k + 1) % request.n_classes for k in range(request.n_classes)})


def _superclass(request: Request) -> Answer:
    K = request.n_classes
    require(K == 100, f"the superclasses of cifar100 hold 100 classes, got n_classes {K}")
    groups = torch.tensor(superclass_groups())
    group_K, place_K = torch.empty(2, K, dtype=torch.int64)
    target_KK = torch.zeros(K, K, dtype=torch.float64)
    for number, group in enumerate(groups):
        group_K[group], place_K[group] = number, torch.arange(len(group))
        target_KK[group[:, None], group] = (1 - torch.eye(len(group), dtype=torch.float64)) / (len(group) - 1)
    shift_N = torch.randint(1, groups.shape[1], request.true_N.shape, generator=request.rng)
    place_N = (place_K[request.true_N] + shift_N) % groups.shape[1]
    return _flip(request, groups[group_K[request.true_N], place_N], target_KK, range(K))


def _mapped(request: Request, to: dict[int, int]) -> Answer:
    """Classes in ``to`` flip to the class it names, the others stay."""
    K = request.n_classes
    highest = max(*to, *to.values())
    require(highest < K, f"the map of {request.dataset} needs {highest + 1} classes, got n_classes {K}")
    to_K = torch.tensor([to.get(k, k) for k in range(K)])
    return _flip(request, to_K[request.true_N], torch.eye(K, dtype=torch.float64)[to_K], to)


def _flip(request: Request, target_N: Tensor, target_KK: Tensor, classes: Iterable[int]) -> Answer:
    """Give round(rate n_k) samples of each of ``classes`` their label in ``target_N``.

    target_KK: distribution of the target (column) in each true class (row). Samples are chosen by their true labels
    alone, so that no label moves twice.
    """
    rate, noisy_N = request.rate, request.true_N.clone()
    for k in classes:
        of_class = (request.true_N == k).nonzero().squeeze(1)
        order = torch.randperm(len(of_class), generator=request.rng)
        chosen = of_class[order[: round(rate * len(of_class))]]
        noisy_N[chosen] = target_N[chosen]
    stay_KK = torch.eye(request.n_classes, dtype=torch.float64)
    return noisy_N, rate, (1 - rate) * stay_KK + rate * target_KK


NOISE_MODELS: dict[str, Callable[[Request], Answer]] = {
    "none": _none,
    "symmetric": _symmetric,
    "asymmetric": _asymmetric,
    "pairflip": _pairflip,
    "superclass": _superclass,
    "instance": instance_dependent,
    "human": human,
    "file": listed,
}
WITH_VARIANT = ("symmetric", "human", "file")
FIXED_RATE = ("none", "human", "file")  # the rate is not chosen
