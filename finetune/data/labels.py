"""What is to be predicted: the kind of task, the names of its labels in their order, and every label as numbers."""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Features, List

from finetune.data.spelling import MINUS, compare_spelling, find_spellings, looks_like
from finetune.data.vectors import find_vector_length, looks_like_vector, parse_list, parse_vector, vector_names
from finetune.errors import FinetuneError
from finetune.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task

__all__ = [
    "Task",
    "balanced_class_weights",
    "count_labels",
    "encode_labels",
    "find_task",
    "find_twins",
    "is_hidden",
    "is_number_name",
    "label_matrix",
    "name_classes",
    "natural_order",
    "number_labels",
    "task_of",
]


FEW_OTHERS = 0.1  # share of rows up to which what is no number is taken for a mistake among numbers
# What table programs write for a missing value. The first are no names of classes; the others may be some, unless every
# other label is a number.
NULL_LABELS = {"nan", "<na>", "#n/a", "nat"}
OTHER_DELIMITERS = (", ", ",", "; ", ";", " | ", "|", "\t", " & ", "/", " ")
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
    """Return whether a split's labels are withheld: every one is missing, or -1 as in GLUE's test splits."""
    return all(_is_missing(value) or (not isinstance(value, list) and _name(value) == "-1") for value in values)


def find_task(
    values: Sequence[Any],
    class_names: list[str] | None,
    problem_type: str | None,
    delimiter: str | None,
    where: str,
) -> Task:
    """Find the task by the training labels.

    Lists, vectors of 0 and 1, or a delimiter make it multi-label; numbers with fractions regression; everything else
    single-label. Spellings of a name that differ in nothing visible are one label, named as most rows have it.

    Args:
        values: The labels of train as they were read.
        class_names: Names of the classes in the source's order, if it holds them; `values` need not be looked at then.
        problem_type: What the user says it is; None if it is to be told.
        delimiter: What separates several labels in one string.
        where: The column and file, for messages.

    Raises:
        FinetuneError: If labels are missing, of several types, or as many as there are rows; also if some are numbers
            and some words, unless the user says that they are classes.
    """
    if class_names is not None and problem_type != REGRESSION:
        several = any(isinstance(value, list) for value in values)
        if delimiter is not None:
            raise FinetuneError(
                f"Expected no --label_delimiter for {where}, which has class names of its own, but got {delimiter!r}. "
                "Leave it out."
            )
        return Task(problem_type or (MULTI_LABEL if several else SINGLE_LABEL), class_names, is_numbered=True)
    _refuse_missing(values, delimiter, where)
    length = _find_length(values, delimiter, problem_type, where)
    if length is not None:
        return Task(MULTI_LABEL, vector_names(length))
    _refuse_gaps_in_numbers(values, where)
    if problem_type in (None, REGRESSION):
        _refuse_thousands(values, where)
    if delimiter is not None and _are_written_lists(values):
        raise FinetuneError(
            f"Expected labels parted by {delimiter!r} in {where}, but found lists written as text, such as "
            f"{values[0][:80]!r}. Leave --label_delimiter out, or join the labels with it."
        )
    is_told = problem_type is not None
    if not is_told and delimiter is None:
        _refuse_unread_vectors(values, where)
    if delimiter and problem_type in (None, MULTI_LABEL):
        _refuse_other_delimiter(values, delimiter, where)
    if problem_type is None:
        if delimiter is not None or any(isinstance(value, list) for value in values) or _are_written_lists(values):
            problem_type = MULTI_LABEL
        elif _are_numbers(values) and any(not _to_float(value).is_integer() for value in values):
            problem_type = REGRESSION
        else:
            problem_type = SINGLE_LABEL
    if problem_type == REGRESSION:
        task = Task(REGRESSION, ["value"])
        encode_labels(values, task, delimiter, where)
        return task
    if problem_type == MULTI_LABEL:
        lists = [value if isinstance(value, list) else parse_list(value) or [] for value in values]
        _refuse_fractions([one for value in lists for one in value], where)
        _refuse_numbers_by_place(lists, where)
        _refuse_mixed([one for value in values if isinstance(value, list) for one in value], where)
        found = [name for value in values for name in _several(value, delimiter)]
    else:
        _refuse_mixed(values, where)
        found = [_name(value) for value in values]
    spellings = find_spellings(found)
    names = [names[0] for names in spellings.values()]
    if problem_type == SINGLE_LABEL:
        if 2 * len(names) > len(values) and len(names) > 2:
            others = [row for row, value in enumerate(values) if not _are_numbers([value])]
            if 0 < len(others) <= FEW_OTHERS * len(values):
                raise FinetuneError(
                    f"Expected a number in every row of {where}, or classes of several rows each, but row "
                    f"{others[0] + 1} has {values[others[0]]!r} among numbers. Write a number, or remove the row."
                )
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


def find_twins(values: Sequence[Any], delimiter: str | None) -> list[list[str]]:
    """Return the spellings of each label name that stands there in several which differ in nothing visible."""
    found = [name for value in values if not _is_missing(value) for name in _several(value, delimiter)]
    return [names for names in find_spellings(found).values() if len(names) > 1]


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
        if task.label_names == vector_names(len(task.label_names)):
            values = [_name_bits(value, task, row, where) for row, value in enumerate(values, 1)]
        several = [_several(value, delimiter) for value in values]
        numbers = _numbers_of({name for names in several for name in names}, task, where)
        return [sorted({numbers[name] for name in names}) for names in several]
    names = [_name(value) for value in values]
    numbers = _numbers_of(set(names), task, where)
    return [numbers[name] for name in names]


def name_classes(value: Any, names: Sequence[str]) -> Any:
    """Return the name of a class for its number, in lists too; what is no number of a class stays what it is."""
    if isinstance(value, list):
        return [name_classes(one, names) for one in value]
    is_number = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names)
    return names[value] if is_number else value


def label_matrix(labels: Sequence[Any], task: Task) -> np.ndarray:
    """Return a split's labels as an array: `(rows,)` of class numbers or floats, `(rows, num_labels)` of 0 and 1."""
    if task.problem_type != MULTI_LABEL:
        return np.asarray(labels[:])
    matrix = np.zeros((len(labels), len(task.label_names)), dtype=np.float32)
    for row, numbers in enumerate(labels):
        matrix[row, list(numbers)] = 1
    return matrix


def balanced_class_weights(labels: np.ndarray, num_labels: int) -> np.ndarray:
    """Weight classes against their frequency.

    Args:
        labels: Class numbers `(rows,)`, or 0 and 1 `(rows, num_labels)`.
        num_labels: Number of classes, each at least once in `labels`; of several labels some may be in no row.

    Returns:
        `(num_labels,)`: rows / (num_labels x rows of the class), whose mean over the rows is 1 (King and Zeng 2001);
        with several labels rows without the label / rows with it.
    """
    if labels.ndim == 2:
        present = labels.sum(axis=0)
        return (len(labels) - present) / np.maximum(present, 1)
    return len(labels) / (num_labels * np.bincount(labels, minlength=num_labels))


def count_labels(labels: np.ndarray, task: Task) -> np.ndarray:
    """Count the rows of each label, `(num_labels,)`, in what `label_matrix` gives."""
    return labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=len(task.label_names))


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
    """Return whether a label's name is a number."""
    return re.fullmatch(r"-?\d+([.,]\d+)?", name) is not None


def number_labels(found: Sequence[str], known: Sequence[str], where: str, is_numbered: bool = False) -> list[int]:
    """Return the number in `known` of each label name in `found`, joined by name.

    Args:
        found: Names of labels as they were read.
        known: Names of the labels in the order of their numbers.
        where: The column and file, for messages.
        is_numbered: Whether that order is the source's own, so that numbers may stand for names that are none.

    Raises:
        FinetuneError: If `found` has a label that is not known.
    """
    numbers = {name: number for number, name in enumerate(known)}
    spellings = [compare_spelling(name) for name in known]
    plain = {key: number for number, key in enumerate(spellings) if spellings.count(key) == 1}
    joined = [numbers.get(name, plain.get(compare_spelling(name))) for name in found]
    are_numbers, are_names = _split_by_kind(found), _split_by_kind(known)
    if is_numbered and are_numbers == "numbers" and are_names == "names":
        joined = [int(name) if name.isdecimal() and int(name) < len(known) else None for name in found]
    unknown = [name for name, number in zip(found, joined, strict=True) if number is None]
    if unknown:
        shown = [name[:80] for name in list(dict.fromkeys(unknown))[:10]]
        if len(unknown) == len(found) and {are_numbers, are_names} == {"numbers", "names"}:
            raise FinetuneError(
                f"Expected the labels {list(known)[:20]} in {where}, but found {shown}: numbers can't be joined to "
                "names by their position. Write the same names into every file."
            )
        near = _describe_near(unknown, known)
        raise FinetuneError(
            f"Expected only the labels {list(known)[:20]} in {where}, but found {shown} too{near}. "
            "Rename or remove them, or pass the right --label_column."
        )
    return [number for number in joined if number is not None]


def _describe_near(unknown: Sequence[str], known: Sequence[str]) -> str:
    """Describe, for a message, how a name that is unknown differs from a known one that it looks like."""
    looks = {looks_like(name): name for name in known}
    near = next((name for name in unknown if looks_like(name) in looks), None)
    if near is None:
        return ""
    other = looks[looks_like(near)]
    return f", of which {near[:80]!a} is not {other[:80]!a}, though it looks like it"


def _split_by_kind(names: Sequence[str]) -> str:
    """Return whether names are all numbers, all words, or some of both."""
    count = sum(is_number_name(name) for name in names)
    return "numbers" if count == len(names) else "names" if count == 0 else "both"


def _numbers_of(names: set[str], task: Task, where: str) -> dict[str, int]:
    ordered = sorted(names, key=natural_order)
    return dict(zip(ordered, number_labels(ordered, task.label_names, where, task.is_numbered), strict=True))


def _name_bits(value: Any, task: Task, row: int, where: str) -> Any:
    """Return the names of the labels that a vector of 0 and 1 says hold; what is none stays what it is."""
    vector = parse_vector(value)
    if vector is None:
        empty = isinstance(value, str) and parse_list(value) == []
        return [] if empty else value
    if len(vector) != len(task.label_names):
        raise FinetuneError(
            f"Expected vectors of {len(task.label_names)} zeros and ones in {where}, but row {row} has "
            f"{str(value)[:80]!r}. Write one for each label, in one order."
        )
    return [name for name, bit in zip(task.label_names, vector, strict=True) if bit]


def _find_length(values: Sequence[Any], delimiter: str | None, problem_type: str | None, where: str) -> int | None:
    """Find the length of the vectors of 0 and 1 that labels are, or None where they are something else.

    Raises:
        FinetuneError: If they are of several lengths, or could be numbers with a decimal comma.
    """
    if problem_type not in (None, MULTI_LABEL):
        return None
    length, lengths = find_vector_length(values)
    strings = [value for value in values if isinstance(value, str) and value.strip()]
    if (
        length == 2
        and delimiter is None
        and strings
        and all(re.fullmatch(r"[01],[01]", one.strip()) for one in strings)
    ):
        raise FinetuneError(
            f"Expected labels that can be read in one way in {where}, but {strings[0]!r} is a number with a decimal "
            "comma or two labels. Pass --problem_type regression, or --label_delimiter ','."
        )
    digits = {value.strip() for value in strings}
    if (
        problem_type is None and len(strings) == len(values) and len(set(map(len, digits))) == 1 and len(digits) > 1
        and all(re.fullmatch(r"[01]{3,}", value) for value in digits) and any(value[0] == "0" for value in digits)
    ):  # fmt: skip
        raise FinetuneError(
            f"Expected labels that can be read in one way in {where}, but {strings[0]!r} is a name or a vector of 0 "
            f"and 1. Put spaces between its digits, or pass --problem_type {SINGLE_LABEL} if each is a class."
        )
    repeats = any(len(set(vector)) < len(vector) for vector in map(parse_vector, values) if vector is not None)
    if length is None and len(lengths) > 1 and max(lengths) > 1 and repeats:
        raise FinetuneError(
            f"Expected lists of labels in {where}, but found vectors of 0 and 1 of {sorted(lengths)[:5]} places. "
            "Write one for each label in every row, or the names of the labels that hold."
        )
    return length


def _name(value: Any) -> str:
    """Name a label as a person would: whole floats, which a column with a gap becomes, without '.0'."""
    name = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
    name = re.sub(rf"^{MINUS}(?=\d)", "-", name)
    return name.partition(".")[0] if re.fullmatch(r"-?\d+\.0+", name) else name


def _several(value: Any, delimiter: str | None) -> list[str]:
    written = parse_list(value) if delimiter is None else None
    value = value if written is None else written
    if isinstance(value, list):
        return [_name(one) for one in value]
    parts = str(value).split(delimiter) if delimiter else [value]
    return [name for name in map(_name, parts) if name]


def _are_numbers(values: Sequence[Any]) -> bool:
    try:
        return all(not isinstance(value, bool | list) and math.isfinite(_to_float(value)) for value in values)
    except (TypeError, ValueError, OverflowError):
        return False


def _to_float(value: Any) -> float:
    """Read a number, also with a decimal comma and the sign of mathematics: −0,65."""
    if isinstance(value, str):
        value = value.replace(MINUS, "-")
        if re.fullmatch(r"\s*[-+]?\d+,\d+\s*", value):
            value = value.replace(",", ".")
    return float(value)


def _number(value: Any, row: int, where: str) -> float:
    try:
        number = _to_float(value)
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


def _are_written_lists(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(value, str) and parse_list(value) is not None for value in values)


def _refuse_thousands(values: Sequence[Any], where: str) -> None:
    """Refuse numbers whose comma may be that of decimals or of thousands."""
    commas = [value.strip() for value in values if isinstance(value, str) and "," in value]
    if commas and _are_numbers(values) and all(re.fullmatch(r"[-+]?[1-9]\d{0,2},\d{3}", value) for value in commas):
        raise FinetuneError(
            f"Expected numbers that can be read in one way in {where}, but the comma in {commas[0]!r} may part "
            "decimals or thousands. Write decimals with a point, and thousands without a sign."
        )


def _refuse_unread_vectors(values: Sequence[Any], where: str) -> None:
    """Refuse vectors of 0 and 1 in a spelling that is not read, and objects written as text: they are no classes."""
    shown = str(values[0])[:80] if values else ""
    if looks_like_vector(values):
        raise FinetuneError(
            f"Expected labels that can be read in one way in {where}, but found what looks like vectors of 0 and 1, "
            f"such as {shown!r}. Write them as '0 1 0', or pass --problem_type {SINGLE_LABEL} if each is a class."
        )
    if values and all(isinstance(value, str) and re.fullmatch(r"\s*\{.*:.*\}\s*", value) for value in values):
        raise FinetuneError(
            f"Expected names or numbers as labels in {where}, but found objects written as text, such as {shown!r}. "
            "Write the name of the label, a list of several, or a column of 0 and 1 for each (--label_columns)."
        )


def _refuse_other_delimiter(values: Sequence[Any], delimiter: str, where: str) -> None:
    """Refuse labels that another sign parts than the one that was named, which no row has."""
    names = {value.strip() for value in values if isinstance(value, str)}
    if any(isinstance(value, list) for value in values) or any(delimiter in name for name in names):
        return
    for sign in OTHER_DELIMITERS:
        several = next(
            (name for name in sorted(names) if sign in name and not names.isdisjoint(name.split(sign))), None
        )
        if several is not None:
            raise FinetuneError(
                f"Expected {delimiter!r} between labels in {where}, but no row has it, and one has {several[:80]!r}. "
                "Pass the --label_delimiter that parts them, or leave it out."
            )


def _refuse_numbers_by_place(lists: Sequence[list[Any]], where: str) -> None:
    """Refuse lists of numbers that mean something by their place, such as counts, or votes of -1, 0 and 1."""
    kinds = {type(one) for found in lists for one in found}
    lengths = {len(found) for found in lists if found}
    repeated = [found for found in lists if len(set(found)) < len(found)]
    if kinds and kinds <= {int, float} and len(lengths) == 1 and repeated:
        raise FinetuneError(
            f"Expected lists of labels, or vectors of 0 and 1, in {where}, but found lists of {lengths.pop()} numbers "
            f"that repeat, such as {repeated[0]}. Write the names of the labels that hold in each row."
        )


def _refuse_fractions(values: Sequence[Any], where: str) -> None:
    """Refuse lists of shares or scores: a label holds, or it doesn't."""
    fractions = [value for value in values if isinstance(value, float) and not value.is_integer()]
    if fractions:
        raise FinetuneError(
            f"Expected lists of labels in {where}, but found numbers with fractions in them, such as {fractions[0]}. "
            "Write the names of the labels that hold in each row."
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
