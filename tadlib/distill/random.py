"""Random: real images of the refined set as they are, the baseline of every table.

They are chosen as all methods choose the images that they start from: by the hard training label, images of a large
weight more often (:class:`tadlib.config.Drawing`).
"""

from tadlib.distill.loop import Problem, State, driver, start_from_real


def start(problem: Problem) -> State:
    """Choose the images."""
    return start_from_real(problem, "random", problem.config.lr_net)


def advance(problem: Problem, state: State) -> None:
    """Nothing is learned."""


distill = driver(start, advance)
