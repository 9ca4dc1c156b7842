"""How much more to measure until an open difference is decided: a range, since where the difference lies is not known.

What has been measured says where the next estimate will lie: around the present one, since what is added to it is drawn
around a truth that is as uncertain as the interval says (a predictive distribution with flat priors: Spiegelhalter,
Abrams and Myles 2004, chapter 6). The chance that the next look decides, one way or the other, follows for each amount.
The range goes from what decides in one case of ten to what does in nine, so that in four cases of five what is needed
lies in it. `benchmarks/coverage.py` makes plans and adds what they say.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from finetune.comparison.statistics import Difference

__all__ = ["MOST_SEEDS", "MOST_TIMES", "Plan", "plan_examples", "plan_seeds"]

# Beyond these a plan is no help: times as many test examples, and runs more of a method.
MOST_TIMES, MOST_SEEDS = 100, 30
# Beyond the tenths that are promised, since the variances are estimates too.
FEW, MANY = 0.08, 0.92
NUM_DRAWN = 500


class Plan(NamedTuple):
    """How many more would decide.

    Attributes:
        low: Fewer do in at most one case of ten.
        high: So many do in nine; None if no practical number does.
        most: The largest practical number.
        chance: The probability that this one does.
    """

    low: int
    high: int | None
    most: int
    chance: float

    def __str__(self) -> str:
        """Write the range in two digits, not narrower than it is; of one without an end its beginning."""
        low, digit = self.low, 10 ** max(0, len(str(self.low)) - 2)
        low = low // digit * digit
        if self.high is None:
            return f"{low:,}"
        digit = 10 ** max(0, len(str(self.high)) - 2)
        high = -(-self.high // digit) * digit
        return f"about {low:,}" if low == high else f"between {low:,} and {high:,}"


def plan_examples(difference: Difference, margin: float, level: float) -> Plan | None:
    """Plan more test examples, with the runs there are.

    Args:
        difference: The open one, of a method and another one.
        margin: In the unit of the scores.
        level: Of the one-sided tests at the next look, that it is worse by more than the margin and that it is not.

    Returns:
        None if a hundred times as many examples would hardly decide.
    """
    now, freedom = difference.num_examples, difference.degrees_of_freedom
    distance = difference.estimate + margin

    def chance(more: int) -> float:
        ahead = difference.foresee(now + more)
        needed = float(stdtrit(ahead.degrees_of_freedom, 1 - level)) * ahead.standard_error
        if ahead.movement == 0:
            return float(abs(distance) >= needed)
        return float(stdtr(freedom, [(side * distance - needed) / ahead.movement for side in (-1, 1)]).sum())

    return _find(chance, MOST_TIMES * now)


def plan_seeds(difference: Difference, margin: float, level: float) -> Plan | None:
    """Plan more runs of each method that has several, on the same test examples.

    Of two or three runs the spread is hardly known, so it is drawn too, and new runs with it.

    Returns:
        None if no method has several runs, or thirty more would hardly decide.
    """
    if max(difference.num_seeds) == 1:
        return None
    rng, more = np.random.default_rng(0), np.arange(1, MOST_SEEDS + 1)
    num_examples = difference.num_examples
    moved = np.zeros((NUM_DRAWN, MOST_SEEDS))
    of_examples = np.full(MOST_SEEDS, difference.example_variance / num_examples)
    of_runs, spread = np.zeros_like(moved), np.zeros_like(moved)
    for sign, seeds, observed, noise in zip(
        (1, -1), difference.num_seeds, difference.run_variances, difference.noise_variances, strict=True
    ):
        if seeds == 1:
            continue
        noise /= num_examples
        true = np.maximum(observed * (seeds - 1) / rng.chisquare(seeds - 1, NUM_DRAWN), noise)[:, None] ** 0.5
        # The means of the new runs, from that of the old ones, which lies beside the true one.
        new = true * (rng.standard_normal((NUM_DRAWN, 1)) / seeds**0.5 + rng.standard_normal(moved.shape))
        total = seeds + more
        mean = new.cumsum(axis=1) / total
        variance = (observed * (seeds - 1) + (new**2).cumsum(axis=1) - total * mean**2) / (total - 1)
        moved += sign * mean
        of_examples = of_examples + noise / total
        of_runs += np.maximum(variance - noise, 0) / total
        spread += (variance / total) ** 2 / (total - 1)
    variance = of_examples + of_runs
    freedom = variance**2 / (of_examples**2 / (num_examples - 1) + spread)
    distance = np.abs(difference.estimate + moved + margin) / variance**0.5

    def chance(number: int) -> float:
        return float((distance[:, number - 1] >= stdtrit(freedom[:, number - 1], 1 - level)).mean())

    return _find(chance, MOST_SEEDS)


def _find(chance: Callable[[int], float], most: int) -> Plan | None:
    """Find the range, where the chance grows with the number."""

    def least(wanted: float) -> int | None:
        few, enough = 0, most
        if chance(most) < wanted:
            return None
        while enough - few > 1:
            middle = (few + enough) // 2
            few, enough = (few, middle) if chance(middle) >= wanted else (middle, enough)
        return enough

    low = least(FEW)
    return None if low is None else Plan(low, least(MANY), most, chance(most))
