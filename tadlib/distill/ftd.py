"""FTD: trajectory matching on flat experts (Du et al., CVPR 2023).

MTT's loop. The experts are trained to lie in flat regions (sharpness-aware, ``expert_rho`` and ``expert_alpha``), so
that the student's error at the end of one segment matters less at the start of the next; the distilled images are a
moving average of the learned ones.
"""

from tadlib.distill import mtt
from tadlib.distill.loop import Problem, State, driver
from tadlib.distill.synthetic import Synthetic


def start(problem: Problem) -> State:
    """As MTT; the average starts at the real images, as in FTD's code."""
    state = mtt.start(problem)
    state.ema = state.x.clone()
    return state


def advance(problem: Problem, state: State) -> None:
    """One iteration of MTT, then x̄ ← d x̄ + (1 − d) x."""
    config = problem.config
    if mtt.iterate(problem, state, range(config.max_start)):
        state.ema = config.ema * state.ema + (1 - config.ema) * state.x


def averaged(state: State) -> Synthetic:
    """The set with the averaged images."""
    assert state.ema is not None
    return Synthetic(state.ema, state.y, state.lr.item())


distill = driver(start, advance, averaged)
