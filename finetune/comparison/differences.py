"""Where methods differ: test examples that one alone gets right, confident mistakes, and labels that are likely wrong.

Probabilities are the mean over a method's seeds, each scaled by the temperature of its validation split, so that
confidence means the same for every method.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import expit, softmax

from finetune.comparison.groups import Group
from finetune.metrics import MULTI_LABEL, REGRESSION

__all__ = ["Answer", "Confusion", "Differences", "Example", "find_confusions", "find_differences"]

# All methods have to be this sure of another label before one is called likely wrong.
SURE = 0.8


@dataclass(frozen=True)
class Answer:
    """What a method says of an example.

    Attributes:
        text: Labels with their probabilities, or the number.
        is_right: None for a number.
        label: The label that is answered, of several the most probable one; None without one, and for a number.
    """

    text: str
    is_right: bool | None
    label: str | None = None


@dataclass(frozen=True)
class Example:
    """A test example that says something about the methods.

    Attributes:
        row: In the test split, from 0.
        label: Its label in words; for regression the number.
        answers: What each method says of it.
    """

    row: int
    label: str
    answers: dict[str, Answer]


@dataclass(frozen=True)
class Differences:
    """Test examples on which methods differ.

    Attributes:
        num_only_right: For each method how many examples all its seeds get right and all seeds of the others wrong.
        only_right: The clearest of them.
        mistakes: For each method its most confident mistakes; for regression its largest errors.
        num_suspects: How many labels all seeds of all methods contradict, each method with a probability of `SURE`.
        suspects: The most confident of them. None where this says nothing: with a single run, or for regression.
    """

    num_only_right: dict[str, int]
    only_right: dict[str, list[Example]]
    mistakes: dict[str, list[Example]]
    num_suspects: int
    suspects: list[Example] | None


class Confusion(NamedTuple):
    """A class that is taken for another: how often, mean over seeds, and in which share of its examples."""

    label: str
    prediction: str
    num_examples: float
    share: float


def find_differences(
    groups: Sequence[Group], temperatures: Mapping[str, Sequence[float]], num_examples: int = 5
) -> Differences:
    """Find the examples worth reading.

    Args:
        groups: Runs on the same test examples.
        temperatures: By the groups' names, one for each run; 1 where there is none.
        num_examples: Most examples of a kind; of likely wrong labels twice as many.
    """
    first = groups[0].runs[0]
    if first.problem_type == REGRESSION:
        return _find_large_errors(groups, num_examples)
    answers = {group.name: _answer(group, temperatures[group.name]) for group in groups}
    right = {group.name: _is_right(group) for group in groups}

    def example(row: int) -> Example:
        said = {}
        for name, one in answers.items():
            text = _describe(one.probabilities[row], one.decided[row], first.label_names)
            label = _name_surest(one.probabilities[row], one.decided[row], first.label_names)
            said[name] = Answer(text, bool(one.is_right[row]), label)
        return Example(int(row), _describe_label(first.test.labels[row], first.label_names), said)

    only_right, num_only_right, mistakes = {}, {}, {}
    for name, one in answers.items():
        others = [other for other in answers if other != name]
        rows, lead = np.array([], dtype=np.int64), one.of_label
        if others:
            none_else = ~np.any([right[other].any(axis=0) for other in others], axis=0)
            rows = np.flatnonzero(right[name].all(axis=0) & none_else)
            lead = one.of_label - np.max([answers[other].of_label for other in others], axis=0)
        num_only_right[name] = len(rows)
        only_right[name] = [example(row) for row in _first(rows, lead, num_examples)]
        wrong = _first(np.flatnonzero(~one.is_right), one.of_answer, num_examples)
        mistakes[name] = [example(row) for row in wrong]

    if sum(len(group.runs) for group in groups) < 2:
        return Differences(num_only_right, only_right, mistakes, 0, None)
    runs = [run for group in groups for run in group.runs]
    decided = np.stack([run.decide() for run in runs])
    differ = (decided != decided[0]).any(axis=0)
    agree = ~(differ.any(axis=1) if differ.ndim == 2 else differ)
    wrong = ~np.any([table.any(axis=0) for table in right.values()], axis=0)
    sure = np.min([one.of_answer for one in answers.values()], axis=0)
    rows = np.flatnonzero(agree & wrong & (sure >= SURE))
    suspects = [example(row) for row in _first(rows, sure, 2 * num_examples)]
    return Differences(num_only_right, only_right, mistakes, len(rows), suspects)


class _Answers(NamedTuple):
    """What a method says by its mean probabilities.

    Attributes:
        probabilities: Shape `(num_examples, num_labels)`.
        decided: Class numbers, `(num_examples,)`; for several labels 0 and 1, `(num_examples, num_labels)`.
        is_right: Of several labels all of them, `(num_examples,)`.
        of_answer: The probability of what is decided, of several labels of all of them together, `(num_examples,)`.
        of_label: The probability of what is true.
    """

    probabilities: np.ndarray
    decided: np.ndarray
    is_right: np.ndarray
    of_answer: np.ndarray
    of_label: np.ndarray


def _answer(group: Group, temperatures: Sequence[float]) -> _Answers:
    labels, several = group.runs[0].test.labels, group.runs[0].problem_type == MULTI_LABEL
    tables = []
    for run, temperature in zip(group.runs, temperatures, strict=True):
        logits = run.test.logits.astype(np.float64) / temperature
        tables.append(expit(logits) if several else softmax(logits, axis=1))
    table = np.mean(tables, axis=0)
    if several:
        decided = (np.mean([run.decide() for run in group.runs], axis=0) >= 0.5).astype(np.int64)  # by most seeds
        of_answer, of_label = (np.where(one == 1, table, 1 - table).prod(axis=1) for one in (decided, labels))
        return _Answers(table, decided, (decided == labels).all(axis=1), of_answer, of_label)
    decided = table.argmax(axis=1)
    return _Answers(table, decided, decided == labels, table.max(axis=1), table[np.arange(len(labels)), labels])


def _is_right(group: Group) -> np.ndarray:
    """Return which examples each seed gets right, of several labels all of them; shape `(num_seeds, num_examples)`."""
    right = np.stack([run.decide() == run.test.labels for run in group.runs])
    return np.asarray(right.all(axis=2) if right.ndim == 3 else right)


def find_confusions(counts: np.ndarray, label_names: Sequence[str], most: int = 5) -> list[Confusion]:
    """Find the classes that are most often taken for another, the most frequent first.

    Args:
        counts: Examples by label and prediction, `(num_labels, num_labels)`.
        label_names: In the order of rows and columns.
        most: How many at most.
    """
    wrong = counts * (1 - np.eye(len(counts)))
    found = []
    for place in np.argsort(-wrong, axis=None, kind="stable")[:most]:
        row, column = divmod(int(place), len(counts))
        if wrong[row, column] > 0:
            share = float(counts[row, column] / counts[row].sum())
            found.append(Confusion(label_names[row], label_names[column], float(counts[row, column]), share))
    return found


def _find_large_errors(groups: Sequence[Group], num_examples: int) -> Differences:
    labels = groups[0].runs[0].test.labels
    numbers = {group.name: np.mean([run.test.logits[:, 0] for run in group.runs], axis=0) for group in groups}
    errors = {name: np.abs(values - labels) for name, values in numbers.items()}

    def example(row: int) -> Example:
        answers = {name: Answer(f"{values[row]:.4g}", None) for name, values in numbers.items()}
        return Example(int(row), f"{labels[row]:.4g}", answers)

    only_right, mistakes = {}, {}
    for name, error in errors.items():
        others = [errors[other] for other in errors if other != name]
        lead = np.min(others, axis=0) - error if others else np.zeros(len(labels))
        only_right[name] = [example(row) for row in _first(np.flatnonzero(lead > 0), lead, num_examples)]
        mistakes[name] = [example(row) for row in _first(np.arange(len(labels)), error, num_examples)]
    return Differences({}, only_right, mistakes, 0, None)


def _first(rows: np.ndarray, by: np.ndarray, count: int) -> np.ndarray:
    """Return the rows with the largest values; ties in their own order."""
    return rows[np.argsort(-by[rows], kind="stable")[:count]]


def _describe(probabilities: np.ndarray, decided: np.ndarray, names: Sequence[str]) -> str:
    """Name what was decided, each label with its probability."""
    numbers = np.flatnonzero(decided) if decided.ndim else [decided]
    found = [f"{names[int(number)]} {_percent(probabilities[number])}" for number in numbers]
    return ", ".join(found) or "none"


def _name_surest(probabilities: np.ndarray, decided: np.ndarray, names: Sequence[str]) -> str | None:
    """Name the most probable of the labels that were decided."""
    numbers = np.flatnonzero(decided) if decided.ndim else np.array([decided])
    return names[int(numbers[probabilities[numbers].argmax()])] if len(numbers) else None


def _percent(probability: float) -> str:
    """Write a probability so that only a certain one is 100 %."""
    return f"{probability:.0%}" if probability < 0.995 else f"{min(probability, 0.999):.1%}"


def _describe_label(label: np.ndarray, names: Sequence[str]) -> str:
    numbers = np.flatnonzero(label) if label.ndim else [label]
    return ", ".join(names[int(number)] for number in numbers) or "none"
