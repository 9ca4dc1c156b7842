"""Learning rates over the steps that transformers has no schedule for: slanted triangles and cycles."""

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["SCHEDULES", "build_schedule", "schedule_factor"]

SCHEDULES = ["slanted_triangular", "triangular", "triangular2", "exp_range"]
CUT_FRACTION, RATIO = 0.1, 32.0  # Howard and Ruder 2018, section 3.2
LOWEST = 0.1  # of the learning rate, at the foot of a cycle
LAST = 0.1  # what the amplitude of exp_range has shrunk to after the last cycle


def schedule_factor(name: str, num_steps: int, num_cycles: float) -> Callable[[int], float]:
    """Return the factor on the learning rate as a function of the step, from 0.

    - `slanted_triangular` (Howard and Ruder 2018, equation 3): a short rise over the first tenth of the steps, then a
      long fall to 1/32 of the rate.
    - `triangular`, `triangular2`, `exp_range` (Smith 2017, section 3): cycles between a tenth of the rate and the rate;
      with `triangular2` the amplitude is halved after each cycle, with `exp_range` it shrinks step by step, to a tenth
      at the end.

    Args:
        name: One of `SCHEDULES`.
        num_steps: Steps of the training.
        num_cycles: Cycles in them.
    """
    if name == "slanted_triangular":
        cut = max(1, math.floor(num_steps * CUT_FRACTION))

        def slanted(step: int) -> float:
            share = step / cut if step < cut else 1 - (step - cut) / max(1, num_steps - cut)
            return (1 + max(0.0, share) * (RATIO - 1)) / RATIO

        return slanted

    half = num_steps / num_cycles / 2  # Smith's step size

    def cyclic(step: int) -> float:
        cycle = math.floor(1 + step / (2 * half))
        height = max(0.0, 1 - abs(step / half - 2 * cycle + 1))
        scale = {"triangular": 1.0, "triangular2": 0.5 ** (cycle - 1), "exp_range": LAST ** (step / num_steps)}[name]
        return LOWEST + (1 - LOWEST) * height * scale

    return cyclic


def build_schedule(optimizer: Optimizer, name: str, num_steps: int, num_cycles: float) -> LambdaLR:
    """Build the scheduler: every parameter group's own rate times `schedule_factor`."""
    return LambdaLR(optimizer, schedule_factor(name, num_steps, num_cycles))
