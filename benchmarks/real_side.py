"""What DANCE and NCFM would save if the statistics of real images were computed once, and what that would cost.

An iteration embeds real and synthetic images of every class under one augmentation, by a network between the initial
and the final weights of an expert. With a fixed number of such networks, and real images averaged over augmentations
of their own, the mean features of each network and class can be computed before the first iteration.

Rows ``share``: the part of an iteration's processor time that goes into real images, which is the most that can be
saved; random images of 16 pixels, width 32, ten classes, ten mosaics per class with f = 2 (scale lite), under the
batches of real images of scale lite and of the published codes. Rows ``accuracy``: DANCE on digits at scale smoke,
clean labels, mean test accuracy over seeds with real images drawn in each iteration and with means computed once, the
difference, half of its 95 % interval, and the processor seconds of each.

    python benchmarks/real_side.py
"""

import tempfile
from dataclasses import replace

import pandas as pd
import torch
from common import clock, finish, parser

from tadlib import evaluate, pipeline
from tadlib.config import Config, DanceConfig, NcfmConfig
from tadlib.distill import METHODS, dance, distributions, loop, ncfm
from tadlib.distill.loop import Problem
from tadlib.distill.synthetic import Real, Synthetic
from tadlib.experts import InMemory, TrajectoryStore
from tadlib.materials import dataset, network
from tadlib.nn import augment, speed
from tadlib.nn.networks import Network, NetworkSpec
from tadlib.nn.training import one_hot
from tadlib.rng import generator

NETWORKS, DRAWS = 20, 10  # blended networks, and augmentations that a mean of real features is taken over
CLASSES, IPC, SIDE, WIDTH = 10, 10, 16, 32
SHARES = (("dance", 64), ("dance", 128), ("ncfm", 64), ("ncfm", 1024))  # real images of a class in an iteration


def share(method: str, batch: int) -> dict:
    """Processor seconds of an iteration and of its real images, each the best of three."""
    random = generator(0, "real side")
    net = Network(NetworkSpec((3, SIDE, SIDE), CLASSES, width=WIDTH))
    y_N = torch.arange(CLASSES).repeat(batch)
    x_NCHW, w_N = torch.randn(len(y_N), 3, SIDE, SIDE, generator=random), torch.ones(len(y_N))
    bank = InMemory((torch.stack([net.init(0), net.init(1)]),))
    settings = {"batch_real": batch, "final_epoch": 1, "formation": 2}
    config = DanceConfig(**settings) if method == "dance" else NcfmConfig(**settings, frequencies=1024)
    problem = Problem(net, Real.of(x_NCHW, one_hot(y_N, CLASSES), w_N, 8.0), bank, config, IPC, 0)
    module = dance if method == "dance" else ncfm
    state = (distributions if method == "dance" else ncfm).start(problem)

    @torch.no_grad()
    def real_side() -> None:
        for k in range(CLASSES):
            index_B, draws = loop.drawn(problem, k, random)
            net.features(net.init(0), augment.apply(draws, x_NCHW[index_B]))

    module.advance(problem, state)
    whole = clock(lambda: module.advance(problem, state), 3)["cpu_seconds"]
    real = clock(real_side, 3)["cpu_seconds"]
    about = {"row": "share", "method": method, "batch_real": batch}
    return about | {"cpu_seconds_iteration": whole, "share_real": real / whole}


def once(problem: Problem) -> Synthetic:
    """DANCE with a fixed bank, whose mean features of real images are computed before the first iteration."""
    config, net, real = problem.config, problem.net, problem.real
    state, random = distributions.start(problem), problem.generator("once")
    bank = [distributions.blended(problem, random)[:2] for _ in range(NETWORKS)]

    @torch.no_grad()
    def mean(theta_P: torch.Tensor, k: int) -> torch.Tensor:
        index_B = (real.label == k).nonzero()[:, 0]
        draws = (augment.draw(config.augmentation, 1, random) for _ in range(DRAWS))
        return torch.stack([net.features(theta_P, augment.apply(d, real.x[index_B])).mean(0) for d in draws]).mean(0)

    means = [[mean(theta_P, k) for k in range(real.n_classes)] for theta_P, _ in bank]
    for _ in range(config.iterations):
        place = int(torch.randint(NETWORKS, (), generator=random))
        theta_P, final_P = bank[place]

        def features(k: int, x_SCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x_SCHW = x_SCHW.detach().requires_grad_()
            seen = augment.apply(augment.draw(config.augmentation, 1, random), x_SCHW)
            value = (means[place][k] - net.features(theta_P, seen).mean(0)).square().sum()  # noqa: B023
            return torch.autograd.grad(value, x_SCHW)[0], value.detach()

        def calibrated(k: int, x_SCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x_SCHW = x_SCHW.detach().requires_grad_()
            seen = augment.apply(augment.draw(config.augmentation, 1, random), x_SCHW)
            target = torch.full((len(x_SCHW),), k)
            value = config.calibration * torch.nn.functional.cross_entropy(net(final_P, seen), target)  # noqa: B023
            return torch.autograd.grad(value, x_SCHW)[0], value.detach()

        for gradient in (features, calibrated):
            grad_x, _ = loop.class_by_class(problem, state.x, gradient)
            moved = loop.momentum_step(state.x, state.velocity_x, grad_x, config.lr_img, config.momentum)
            state.x, state.velocity_x = moved
    return replace(state.synthetic(), formation=config.formation)


def accuracies(seeds: int) -> dict:
    """DANCE on digits both ways."""
    found: dict[str, list[float]] = {"drawn": [], "once": []}
    spent = {"drawn": 0.0, "once": 0.0}
    with tempfile.TemporaryDirectory() as out:
        for seed in range(seeds):
            about = {"method": "dance", "arm": "vanilla", "seed": seed, "device": "cpu", "evaluate_networks": 3}
            config = Config.from_params(**about, out=f"{out}/runs")
            bank = TrajectoryStore(pipeline.train_experts(config))
            data, net = dataset(config), network(config)
            y_NK, w_N = one_hot(data.y_train, data.n_classes), torch.ones(len(data.y_train))
            real = Real.of(data.x_train, y_NK, w_N, config.dance.draw_power)
            problem = Problem(net, real, bank, config.dance, config.ipc, seed)
            how = {"ipc": config.ipc, "seed": seed}
            ways = {"drawn": lambda: METHODS["dance"](net, data.x_train, y_NK, w_N, bank, config.dance, **how)[0]}  # noqa: B023
            ways["once"] = lambda: once(problem)  # noqa: B023
            for way, work in ways.items():
                made: list[Synthetic] = []
                spent[way] += clock(lambda: made.append(work()))["cpu_seconds"]  # noqa: B023
                test = data.x_test, data.y_test, config.evaluate
                found[way].append(sum(evaluate.evaluate(net, made[0], *test, seed=seed)) / config.evaluate.networks)
    mean, half = evaluate.mean_ci95([a - b for a, b in zip(found["once"], found["drawn"])])
    row = {"row": "accuracy", "method": "dance", "batch_real": config.dance.batch_real, "seeds": seeds}
    row |= {f"accuracy_{way}": sum(values) / seeds for way, values in found.items()}
    row |= {f"cpu_seconds_{way}": seconds / seeds for way, seconds in spent.items()}
    return row | {"difference": mean, "difference_ci95": half}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, default=5)
    arguments.add_argument("--only", choices=("share", "accuracy"), help="these rows; others of the table stay")
    options = arguments.parse_args()
    speed.prepare(options.threads)
    rows = [] if options.only == "accuracy" else [share(*each) for each in SHARES]
    rows += [] if options.only == "share" else [accuracies(options.seeds)]
    table, path = pd.DataFrame(rows), options.out / "real_side.parquet"
    if options.only and path.exists():
        before = pd.read_parquet(path)
        table = pd.concat([before[before["row"] != options.only], table], ignore_index=True)
    finish("real_side", table, options.out, options.threads)
    print(table.to_string())


if __name__ == "__main__":
    main()
