"""What answering only when sure gives: how many test texts are answered, and how many of these answers are right."""

from dataclasses import dataclass

import numpy as np

from finetune.comparison.groups import Group
from finetune.metrics import accuracy_interval

__all__ = ["SelectiveAccuracy", "compute_selective_accuracy"]

SHARES = np.arange(0.05, 1.001, 0.05)


@dataclass(frozen=True)
class SelectiveAccuracy:
    """The accuracy of a group's surest answers, for thresholds of confidence from high to low.

    Risk and coverage of El-Yaniv and Wiener 2010; means over seeds, `(num_thresholds,)` each.

    Attributes:
        threshold: The probability of an answer from which on it is given.
        answered: The share of the test texts that are answered, 0 to 1.
        right: The share of these answers that are right, 0 to 1; of several labels a text all have to be.
        low: Lower end of its 95 % interval over test texts (Wilson's).
        high: Upper end.
        chosen: What `--abstain` chose on validation gives: the share answered, and of these the share that is right;
            None where it was not asked for, or nothing is answered.
    """

    threshold: np.ndarray
    answered: np.ndarray
    right: np.ndarray
    low: np.ndarray
    high: np.ndarray
    chosen: tuple[float, float] | None


def compute_selective_accuracy(group: Group) -> SelectiveAccuracy:
    """Compute how often the surest answers of a group of classifiers are right, over shares of the test texts."""
    thresholds, answered, right = [], [], []
    for run in group.runs:
        probabilities = run.rules.to_probabilities(run.test.logits.astype(np.float64))
        decided = run.rules.decide(probabilities)
        confidence = run.rules.confidence(probabilities, decided)
        order = np.argsort(-confidence, kind="stable")
        ordered, hits = confidence[order], np.cumsum(run.rules.are_right(decided, run.test.labels)[order])
        places = np.maximum(1, np.round(SHARES * len(ordered)).astype(int))
        counts = np.searchsorted(-ordered, -ordered[places - 1], side="right")  # equal ones are answered together
        thresholds.append(ordered[counts - 1])
        answered.append(counts / len(ordered))
        right.append(hits[counts - 1] / counts)
    share, precision = np.mean(answered, axis=0), np.mean(right, axis=0)
    num_texts = len(group.runs[0].test.labels)
    bounds = [accuracy_interval(value, round(part * num_texts)) for part, value in zip(share, precision, strict=True)]
    low, high = np.array(bounds).T
    return SelectiveAccuracy(np.mean(thresholds, axis=0), share, precision, low, high, _find_chosen(group))


def _find_chosen(group: Group) -> tuple[float, float] | None:
    given = [run.record.answers.abstention for run in group.runs if run.record.answers is not None]
    found = [
        (one.test_answered, one.test_precision)
        for one in given
        if one is not None and one.test_answered is not None and one.test_precision is not None
    ]
    if len(found) < len(group.runs):
        return None
    answered, right = np.mean(found, axis=0).tolist()
    return answered, right
