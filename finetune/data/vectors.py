"""Several labels of a text as a vector of 0 and 1, or as a list, in whatever way a table program or Python wrote it."""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from finetune.data.nested import get_value
from finetune.errors import FinetuneError

__all__ = [
    "find_vector_length",
    "looks_like_vector",
    "name_bits",
    "parse_bit",
    "parse_list",
    "parse_vector",
    "vector_names",
]

BIT = r"(?:[01](?:\.0*)?|true|false)"
# [0, 1], (0, 1), [0 1], array([0, 1]), tensor([0., 1.]), 0,1 0;1 0|1 0 1
VECTOR = re.compile(
    rf"(?:[\w.]+\()?\s*(?P<open>[\[(])?\s*{BIT}(?:(?:\s*[,;|]\s*|\s+){BIT})*\s*[,;|]?\s*[\])]?"
    r"(?:,\s*(?:dtype|device)=[^)]*)*\)?",
    re.IGNORECASE,
)
WORDS_OF_BITS = {"0", "1", "true", "false", "t", "f", "yes", "no", "y", "n"}
EMPTY = re.compile(r"\s*(?:[\[(]\s*[\])])?\s*")


def parse_bit(value: Any) -> int | None:
    """Return what a column of 0 and 1 holds, in whatever words; None for anything else."""
    word = str(value).strip().lower()
    if word in ("0", "0.0", "false", "no"):
        return 0
    return 1 if word in ("1", "1.0", "true", "yes") else None


def name_bits(values: Mapping[str, Any], columns: Sequence[str], place: str, where: str) -> list[str] | None:
    """Return the names of the columns of a row that hold 1; None where all are missing or -1, as in a withheld test.

    Raises:
        FinetuneError: If one of them holds something else than 0 or 1.
    """
    found = [get_value(values, name) for name in columns]
    if all(value is None or value != value or str(value).strip() in ("", "-1", "-1.0") for value in found):
        return None
    bits = [parse_bit(value) for value in found]
    if None in bits:
        wrong = bits.index(None)
        raise FinetuneError(
            f"Expected 0 or 1 in each of --label_columns in {where}, but column {columns[wrong]!r} at {place} has "
            f"{str(found[wrong])[:80]!r}. Name the columns of labels alone, or mend the row."
        )
    return [name for name, bit in zip(columns, bits, strict=True) if bit]


def vector_names(length: int) -> list[str]:
    """Name the labels of a vector, which has no names, by their place in it."""
    return [f"label_{place}" for place in range(length)]


def parse_vector(value: Any) -> list[int] | None:
    """Return the zeros and ones of a vector in any spelling; None for what is none, such as a single digit."""
    if isinstance(value, list | tuple):
        if not value or not all(isinstance(one, bool | int | float) and one in (0, 1) for one in value):
            return _parse_all(value)
        return [int(one) for one in value]
    if not isinstance(value, str) or not VECTOR.fullmatch(value.strip()):
        return None
    found = re.findall(rf"(?<![\w.]){BIT}(?![\w])", re.sub(r"(?:dtype|device)=.*", "", value), re.IGNORECASE)
    bits = [int(one.lower() == "true" or one.startswith("1")) for one in found]
    return bits if len(bits) > 1 or re.search(r"[\[(]", value) else None


def _parse_all(values: Sequence[Any]) -> list[int] | None:
    """Return the vector of a list of the words "0" and "1", which JSON made of a table may hold."""
    if values and all(isinstance(one, str) and re.fullmatch(BIT, one.strip(), re.IGNORECASE) for one in values):
        return [int(one.strip().lower() == "true" or one.strip().startswith("1")) for one in values]
    return None


def find_vector_length(values: Sequence[Any]) -> tuple[int | None, set[int]]:
    """Find out whether labels are vectors of 0 and 1.

    Returns:
        The length of all of them; None if some value is none, or they differ. Then all lengths that were found, which
        are no vectors' if they are empty or hold 1 alone. Rows without a label, or an empty list, are of any length.
    """
    lengths = set()
    for value in values:
        if value is None or (isinstance(value, str | list) and not value) or _is_empty(value):
            continue
        vector = parse_vector(value)
        if vector is None:
            return None, set()
        lengths.add(len(vector))
    (length,) = lengths if len(lengths) == 1 else (None,)
    return (length if length is not None and length > 1 else None), lengths


def looks_like_vector(values: Sequence[Any]) -> bool:
    """Return whether labels are as many words for 0 and 1 in every row, in no spelling that `parse_vector` knows."""
    if not all(isinstance(value, str) for value in values):
        return False
    rows = [value.strip().lower() for value in values]
    if all(re.fullmatch(r"[-+]?\d+([.,]\d+)?", row) for row in rows):
        return False  # numbers
    parts = [re.split(r"[\s,;|/.:_-]+", re.sub(r"^[\[({]+|[\])}]+$", "", row).strip()) for row in rows]
    if not all(set(row) <= WORDS_OF_BITS for row in parts):
        parts = [re.split(r"[\s,;|]+", row) for row in rows]
        if not all(set(row) <= {"+", "-"} for row in parts):
            return False
    return len(set(rows)) > 1 and len(set(map(len, parts))) == 1 and len(parts[0]) > 1


def _is_empty(value: Any) -> bool:
    return isinstance(value, str) and EMPTY.fullmatch(value) is not None


def parse_list(value: Any) -> list[Any] | None:
    """Return the labels of a list that was written as text, in JSON or as Python writes it; None for other text."""
    if not isinstance(value, str) or not re.fullmatch(r"\[.*\]|\(.*\)|\{.*\}", value.strip(), re.DOTALL):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
        if isinstance(found, list | tuple | set) and all(isinstance(one, str | int | float | bool) for one in found):
            return sorted(found, key=str) if isinstance(found, set) else list(found)
    return None
