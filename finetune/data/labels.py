"""What is to be predicted: the kind of task, the names of its labels in their order, and every label as numbers."""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Features, List

from finetune.errors import FinetuneError
from finetune.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task

__all__ = [
    "Task",
    "encode_labels",
    "find_task",
    "is_hidden",
    "is_number_name",
    "label_matrix",
    "natural_order",
    "number_labels",
    "task_of",
]


# What table programs write for a missing value. The first are no names of classes; the others may be some, unless every
# other label is a number.
NULL_LABELS = {"nan", "<na>", "#n/a", "nat"}
MAYBE_NULL_LABELS = {"na", "n/a", "none", "null"}


def task_of(features: Features) -> Task:
    """Read a task off the columns of a split."""
    label = features["label"]
    if isinstance(label, ClassLabel):
        return Task(SINGLE_LABEL, label.names)
    if isinstance(label, List):
        return Task(MULTI_LABEL, label.feature.names)
    return Task(REGRESSION, ["value"])


def is_hidden(values: Sequence[Any]) -> bool:
    """Tell whether a split's labels are withheld: every one is missing, or -1 as in GLUE's test splits."""
    return all(_is_missing(value) or (not isinstance(value, list) and _name(value) == "-1") for value in values)


def find_task(
    values: Sequence[Any],
    class_names: list[str] | None,
    problem_type: str | None,
    delimiter: str | None,
    where: str,
) -> Task:
    """Tell the task by the training labels.

    Lists, or a delimiter, make it multi-label; numbers with fractions regression; everything else single-label.

    Args:
        values: The labels of train as they were read.
        class_names: Names of the classes if the source holds them; then `values` are their numbers.
        problem_type: What the user says it is; None if it is to be told.
        delimiter: What separates several labels in one string.
        where: The column and file, for messages.

    Raises:
        FinetuneError: If labels are missing, of several types, or as many as there are rows; also if some are numbers
            and some words, unless the user says that they are classes.
    """
    _refuse_missing(values, delimiter, where)
    _refuse_gaps_in_numbers(values, where)
    is_told = problem_type is not None
    if problem_type is None:
        if delimiter is not None or any(isinstance(value, list) for value in values):
            problem_type = MULTI_LABEL
        elif class_names is None and _are_numbers(values) and any(not float(value).is_integer() for value in values):
            problem_type = REGRESSION
        else:
            problem_type = SINGLE_LABEL
    if problem_type == REGRESSION:
        task = Task(REGRESSION, ["value"])
        encode_labels(values, task, delimiter, where)
        return task
    if class_names is not None:
        return Task(problem_type, class_names)
    _refuse_written_lists(values, where)
    if problem_type == MULTI_LABEL:
        _refuse_vectors(values, where)
        _refuse_mixed([one for value in values if isinstance(value, list) for one in value], where)
        names = {name for value in values for name in _several(value, delimiter)}
    else:
        _refuse_mixed(values, where)
        names = {_name(value) for value in values}
        if 2 * len(names) > len(values) and len(names) > 2:
            raise FinetuneError(
                f"Expected classes of several rows each in {where}, but found {len(names)} distinct labels in "
                f"{len(values)} rows. Is it an id or free text? Pass the right --label_column, or --problem_type "
                "regression to predict a number."
            )
        if not is_told:
            _refuse_mixed_names(values, where)
    if not names:
        raise FinetuneError(f"Expected labels in {where}, but found none. Pass the right --label_column.")
    return Task(problem_type, sorted(names, key=natural_order))


def encode_labels(values: Sequence[Any], task: Task, delimiter: str | None, where: str) -> list[Any]:
    """Turn labels as they were read into numbers.

    Returns:
        For each row a class number, a sorted list of class numbers, or a float.

    Raises:
        FinetuneError: If a label is missing, not a number where one is predicted, or one that train lacks.
    """
    if delimiter is not None and (not delimiter or task.problem_type != MULTI_LABEL):
        what = "a sign" if not delimiter else "no"
        raise FinetuneError(
            f"Expected {what} --label_delimiter for {where}, whose rows "
            f"{'have several labels' if not delimiter else 'have one label each'}, but got {delimiter!r}. Leave it out."
        )
    _refuse_missing(values, delimiter, where)
    if task.problem_type == REGRESSION:
        return [_number(value, row, where) for row, value in enumerate(values, 1)]
    if task.problem_type == MULTI_LABEL:
        several = [_several(value, delimiter) for value in values]
        numbers = _numbers_of({name for names in several for name in names}, task, where)
        return [sorted({numbers[name] for name in names}) for names in several]
    names = [_name(value) for value in values]
    numbers = _numbers_of(set(names), task, where)
    return [numbers[name] for name in names]


def label_matrix(labels: Sequence[Any], task: Task) -> np.ndarray:
    """Give the labels of a split as an array: `(rows,)` of class numbers or floats, `(rows, num_labels)` of 0 and 1."""
    if task.problem_type != MULTI_LABEL:
        return np.asarray(labels[:])
    matrix = np.zeros((len(labels), len(task.label_names)), dtype=np.float32)
    for row, numbers in enumerate(labels):
        matrix[row, list(numbers)] = 1
    return matrix


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """Order "2" before "10": runs of digits compare as numbers. No two names are equal, so there is one order.

    Example:
        >>> sorted(["10", "2", "b", "02", "a"], key=natural_order)
        ['02', '2', '10', 'a', 'b']
    """
    key = []
    for part in re.findall(r"\d+|\D+", name):
        digits = part.lstrip("0")
        key.append((0, len(digits), digits) if part.isdecimal() else (1, 0, part))
    return [*key, (-1, 0, name)]


def is_number_name(name: str) -> bool:
    """Tell whether a label's name is a number."""
    return re.fullmatch(r"-?\d+([.,]\d+)?", name) is not None


def number_labels(found: Sequence[str], known: Sequence[str], where: str) -> list[int]:
    """Give the number in `known` of each label name in `found`; names that are numbers may stand for themselves.

    Raises:
        FinetuneError: If `found` has a label that is not known.
    """
    numbers = {name: number for number, name in enumerate(known)}
    if not numbers.keys() & set(found) and not any(name.isdecimal() for name in known):
        numbers = {str(number): number for number in range(len(known))}
    unknown = [name for name in found if name not in numbers]
    if unknown:
        shown = [name[:80] for name in unknown[:20]]
        raise FinetuneError(
            f"Expected only the labels {list(known)[:20]} in {where}, but found {shown} too. "
            "Rename or remove them, or pass the right --label_column."
        )
    return [numbers[name] for name in found]


def _numbers_of(names: set[str], task: Task, where: str) -> dict[str, int]:
    ordered = sorted(names, key=natural_order)
    return dict(zip(ordered, number_labels(ordered, task.label_names, where), strict=True))


def _name(value: Any) -> str:
    """Name a label as a person would: whole floats, which a column with a gap becomes, without '.0'."""
    name = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
    return name.partition(".")[0] if re.fullmatch(r"-?\d+\.0+", name) else name


def _several(value: Any, delimiter: str | None) -> list[str]:
    if isinstance(value, list):
        return [_name(one) for one in value]
    parts = str(value).split(delimiter) if delimiter else [value]
    return [name for name in map(_name, parts) if name]


def _are_numbers(values: Sequence[Any]) -> bool:
    try:
        return all(not isinstance(value, bool | list) and math.isfinite(float(value)) for value in values)
    except (TypeError, ValueError, OverflowError):
        return False


def _number(value: Any, row: int, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= float(np.finfo(np.float32).max):
        raise FinetuneError(
            f"Expected a number to predict in every row of {where}, but row {row} has {str(value)[:80]!r}. "
            "Write it with a decimal point, remove the row, or leave --problem_type out if these are classes."
        )
    return number


def _is_missing(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip()) or _is_null_label(value)


def _is_null_label(value: Any) -> bool:
    return isinstance(value, str) and value.strip().lower() in NULL_LABELS


def _refuse_missing(values: Sequence[Any], delimiter: str | None, where: str) -> None:
    """Refuse rows without a label; an empty list is allowed, and an empty string where a delimiter parts several."""
    for row, value in enumerate(values, 1):
        found = value if isinstance(value, list) else [value]
        if any(_is_null_label(one) for one in found):
            raise FinetuneError(
                f"Expected a label in every row of {where}, but row {row} has {value!r}, which stands for a missing "
                "one. Remove or complete the row, or rename the class."
            )
        if any(_is_missing(one) for one in found if delimiter is None or not isinstance(one, str)):
            raise FinetuneError(
                f"Expected a label in every row of {where}, but row {row} lacks one. Remove or complete it."
            )


def _refuse_gaps_in_numbers(values: Sequence[Any], where: str) -> None:
    """Refuse "NA" or "none" where every other label is a number: there it is a gap, and no class."""
    is_gap = [isinstance(value, str) and value.strip().lower() in MAYBE_NULL_LABELS for value in values]
    others = [value for value, gap in zip(values, is_gap, strict=True) if not gap]
    if any(is_gap) and others and _are_numbers(others):
        row = is_gap.index(True)
        raise FinetuneError(
            f"Expected a number in every row of {where}, but row {row + 1} has {values[row]!r} where others have "
            "numbers. Remove or complete the row, or rename the classes."
        )


def _refuse_written_lists(values: Sequence[Any], where: str) -> None:
    if all(isinstance(value, str) and re.fullmatch(r"\[.*\]", value.strip(), re.DOTALL) for value in values):
        raise FinetuneError(
            f"Expected labels in {where}, but found lists written as text, such as {values[0][:80]!r}. Write them as "
            "lists in .jsonl, or join the labels and pass --label_delimiter."
        )


def _refuse_vectors(values: Sequence[Any], where: str) -> None:
    lists = [value for value in values if isinstance(value, list)]
    numbers = all(one in (0, 1) for value in lists for one in value)
    if numbers and any(len(set(value)) < len(value) for value in lists):
        raise FinetuneError(
            f"Expected lists of labels in {where}, but found vectors of 0 and 1. Write the names of the labels that "
            "hold in each row."
        )


def _refuse_mixed(values: Sequence[Any], where: str) -> None:
    kinds = {"a number" if type(value) in (int, float) else type(value).__name__ for value in values}
    if len(kinds) > 1:
        raise FinetuneError(
            f"Expected labels of one type in {where}, but found {' and '.join(sorted(kinds))}. Write all as strings."
        )
    if kinds & {"dict", "list"}:
        raise FinetuneError(f"Expected strings, numbers or booleans as labels in {where}, but found {kinds}.")


def _refuse_mixed_names(values: Sequence[Any], where: str) -> None:
    """Refuse numbers and words in one column: a text file has no types, and this is how labels of two sources look."""
    is_number = [is_number_name(_name(value)) for value in values]
    if 0 < sum(is_number) < len(values):
        number, word = is_number.index(True), is_number.index(False)
        raise FinetuneError(
            f"Expected numbers or words as labels in {where}, but found both: row {number + 1} has "
            f"{_name(values[number])[:80]!r} and row {word + 1} has {_name(values[word])[:80]!r}. Write all in one "
            f"way, or pass --problem_type {SINGLE_LABEL} if each is a class of its own."
        )
