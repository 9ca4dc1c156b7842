"""When to keep silent: the confidence from which on answers are as often right as they have to be."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

__all__ = ["Abstention", "choose_confidence", "reachable_precision"]

RISK = 0.05  # of a threshold whose answers are less often right than was asked for
NUM_STARTS = 3
NUM_STEPS = 40  # in which a walk comes from the fewest rows that could prove anything to all of them


@dataclass(frozen=True)
class Abstention:
    """Which answers are given.

    Attributes:
        precision: The share of the given answers that was asked to be right, in (0, 1).
        confidence: The probability of an answer from which on it is given; above 1 where none ever is.
        answered: The share of the validation rows that are answered, 0 to 1.
    """

    precision: float
    confidence: float
    answered: float


def choose_confidence(confidence: np.ndarray, is_right: np.ndarray, precision: float) -> Abstention:
    """Choose the lowest confidence above which answers are right as often as is asked.

    The rows are walked through from the most confident on. At each step an exact binomial test asks whether so few of
    the answers so far would be wrong if more than is allowed were in truth; the walk ends where it can't say so. Since
    a single mistake at the beginning would end it, there are three walks, from different beginnings, each with a third
    of the risk (fixed sequences with several starts, Angelopoulos et al. 2021, "Learn then Test"). So with a
    probability of 95 % over the draw of the validation rows the precision is reached on new texts.

    Args:
        confidence: The probability of each answer, `(rows,)`, in [0, 1].
        is_right: Whether it is right, `(rows,)`.
        precision: The share of the given answers that has to be right, in (0, 1).

    Returns:
        The threshold, half way to the next lower confidence; above 1 if the rows prove nothing.

    Example:
        >>> confidence = np.linspace(0.5, 1, 1_000)
        >>> choose_confidence(confidence, confidence > 0.6, precision=0.95).answered
        0.811
    """
    order = np.argsort(-confidence, kind="stable")
    ordered, hits = confidence[order], np.cumsum(is_right[order])
    fewest = math.ceil(math.log(RISK / NUM_STARTS) / math.log(precision))  # without a mistake among them
    if fewest > len(ordered):
        return Abstention(precision, 2.0, 0.0)
    places = np.linspace(fewest, len(ordered), NUM_STEPS).round().astype(int)
    starts = np.geomspace(fewest, len(ordered), NUM_STARTS + 1)[:-1]
    counts = np.searchsorted(-ordered, -ordered[places - 1], side="right")  # equal ones are answered together, or not
    is_proven = binom.sf(hits[counts - 1] - 1, counts, precision) <= RISK / NUM_STARTS
    most = 0
    for start in np.searchsorted(places, starts):
        ends = np.flatnonzero(~is_proven[start:])
        length = int(ends[0]) if len(ends) else len(places) - start
        if length:
            most = max(most, int(counts[start + length - 1]))
    if not most:
        return Abstention(precision, 2.0, 0.0)
    below = ordered[most] if most < len(ordered) else 0.0
    return Abstention(precision, float((ordered[most - 1] + below) / 2), most / len(ordered))


def reachable_precision(confidence: np.ndarray, is_right: np.ndarray) -> float:
    """Return the highest precision in whole percents that `choose_confidence` finds an answer for; 0 if none."""
    percents = (percent / 100 for percent in range(99, 0, -1))
    return next((one for one in percents if choose_confidence(confidence, is_right, one).answered), 0.0)
