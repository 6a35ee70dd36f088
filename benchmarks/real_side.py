"""What it would save, and cost, to compute the statistics of the real images once (DANCE).

    python benchmarks/real_side.py --root DATA [--seeds 1 2 3]

DANCE draws a network between the initial and the final weights of an expert in every iteration, and one augmentation
for real and synthetic images alike, so that the real images are seen anew each time. With a *fixed* bank (``POINTS``
networks between the ends of each expert) and real features averaged over ``DRAWS`` augmentations, the mean features of
every class are computed once, and an iteration sees synthetic images alone. Variants, both on clean labels at scale
lite, and evaluated alike:

- ``drawn``: DANCE as it is;
- ``computed once``: the fixed bank, the synthetic images augmented by themselves.

Processor seconds of the preparation and of an iteration; the iterations of both are measured in turns.
"""

import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from common import clock, finish, parser
from torch import Tensor

from tadlib import pipeline
from tadlib.config import Config
from tadlib.distill import dance, distributions
from tadlib.distill.loop import Problem, State
from tadlib.distill.synthetic import Real
from tadlib.evaluate import evaluate
from tadlib.experts import TrajectoryStore
from tadlib.nn import augment, speed

POINTS, DRAWS, BATCH = 5, 8, 500
Bank = list[tuple[Tensor, Tensor, Tensor, int]]  # θ (P,), θ_final (P,), mean features (K, D), expert


def mean_features(problem: Problem, theta_P: Tensor, random: torch.Generator) -> Tensor:
    """(K, D) weighted mean features of every class, over ``DRAWS`` augmentations of every batch."""
    real, means = problem.real, []
    for k in range(real.n_classes):
        of_class = (real.label == k).nonzero()[:, 0]
        total = 0.0
        for index_B, _ in itertools.product(of_class.split(BATCH), range(DRAWS)):
            draws = augment.draw(problem.config.augmentation, 1, random)
            total += real.weight[index_B] @ problem.net.features(theta_P, augment.apply(draws, real.x[index_B]))
        means.append(total / (DRAWS * real.weight[of_class].sum()))
    return torch.stack(means)


@torch.no_grad()
def bank(problem: Problem) -> Bank:
    """All networks of the fixed bank with the statistics of the real images."""
    random, made = problem.generator("real side"), []
    for expert, u in itertools.product(range(len(problem.experts)), torch.linspace(0, 1, POINTS)):
        first_P, final_P = (problem.experts.read(expert, e) for e in (0, problem.config.final_epoch))
        theta_P = final_P.lerp(first_P, u)
        made.append((theta_P, final_P, mean_features(problem, theta_P, random), expert))
    return made


def advance(known: Bank, problem: Problem, state: State) -> None:
    """An iteration of DANCE that sees no real image."""
    config, random = problem.config, state.generator
    theta_P, final_P, mean_KD, expert = known[int(torch.randint(len(known), (), generator=random))]

    def matched(k: int, x_SCHW: Tensor) -> tuple[Tensor, Tensor]:
        draws = augment.draw(config.augmentation, 1, random)
        distance = partial(dance.distance, mean_KD[k, None], torch.ones(1), random=random)
        return distributions.gradient_to(problem.net, theta_P, draws, x_SCHW, distance)

    distributions.take_steps(problem, state, final_P, matched, dance.mover(config), expert=expert)


def measure(config: Config) -> list[dict]:
    """A row for each variant."""
    data, net = pipeline.dataset(config), pipeline.network(config)
    refined = pipeline.load_refined(pipeline.divert(config))
    settings = config.method_config
    real = Real.of(data.x_train, refined.y, refined.weight, settings.draw_power)
    experts = TrajectoryStore(pipeline.train_experts(config))
    problem = Problem(net, real, experts, settings, config.ipc, config.seed)
    known: Bank = []
    prepared = {"drawn": 0.0, "computed once": clock(lambda: known.extend(bank(problem)))["cpu_seconds"]}
    steps = {"drawn": dance.advance, "computed once": partial(advance, known)}
    states = {name: distributions.start(problem) for name in steps}
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(settings.iterations):
        for name, step in steps.items():
            spent[name].append(clock(partial(step, problem, states[name]))["cpu_seconds"])
    rows = []
    for name, state in states.items():
        synthetic = replace(state.synthetic(), formation=settings.formation)
        found = evaluate(net, synthetic, data.x_test, data.y_test, config.evaluate, seed=config.seed)
        row = {"variant": name, "seed": config.seed, "dataset": config.dataset, "n_train": len(data.x_train)}
        row |= {"preset": config.preset, "ipc": config.ipc, "iterations": settings.iterations}
        row |= {"n_test": len(data.y_test), "networks": len(found), "accuracy": sum(found) / len(found)}
        per_step = sorted(spent[name])[len(spent[name]) // 2]
        rows.append(row | {"cpu_seconds_before": prepared[name], "cpu_ms_iteration": 1000 * per_step})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure and write ``real_side.parquet``."""
    options = parser(__doc__)
    options.add_argument("--root", help="folder of CIFAR-10; without it the digits, at preset smoke")
    options.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    options.add_argument("--runs", default="runs", help="folder of the stages")
    chosen = options.parse_args()
    speed.prepare(chosen.threads)
    source = {"dataset": "cifar10", "root": chosen.root, "preset": "lite"} if chosen.root else {"dataset": "digits"}
    about = {"noise": "none", "rate": 0.0, "arm": "vanilla", "method": "dance", "ipc": 10, "out": chosen.runs}
    rows = []
    for seed in chosen.seeds:
        rows += measure(Config.from_params(**source, **about, seed=seed, device="cpu"))
        finish("real_side", pd.DataFrame(rows), Path(chosen.out), chosen.threads)


if __name__ == "__main__":
    main()
