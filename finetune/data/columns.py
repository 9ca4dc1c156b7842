"""Which column is the text, which the label: told by their names or, where there are two, by their length."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.data.read import Row, Table
from finetune.errors import FinetuneError

__all__ = ["Columns", "choose_columns"]

# Names that public data sets use, the usual ones first.
TEXT_NAMES = ("text", "sentence", "review", "content", "comment", "document", "body", "message", "tweet", "title")
LABEL_NAMES = ("label", "labels", "gold_label", "is_duplicate", "class", "category", "sentiment", "target", "topic",
               "rating", "stars", "score")  # fmt: skip
# Numbers of rows, no text or label unless named so: GLUE's test files have `index`, pandas writes "" or the last two.
ROW_NAMES = ("", "id", "idx", "index", "guid", "unnamed: 0", "__index_level_0__")
PAIRS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"),
         ("text1", "text2"), ("text_a", "text_b"))  # fmt: skip
HEADER_NAMES = {*TEXT_NAMES, *LABEL_NAMES, *itertools.chain(*PAIRS)}
FIX = "Pass --text_column and --label_column."


@dataclass(frozen=True)
class Columns:
    """Names of the columns that hold what an example consists of; None for what it lacks."""

    text: str
    label: str | None
    text_pair: str | None = None
    id: str | None = None
    group: str | None = None

    def __str__(self) -> str:
        return ", ".join(f"{part} from column {name!r}" for part, name in vars(self).items() if name is not None)


def choose_columns(table: Table, sample: Sequence[Row], flags: Mapping[str, Any], where: str) -> Columns:
    """Take the columns that the user names, and tell the others.

    Args:
        table: Its columns.
        sample: A few of its rows.
        flags: `text_column`, `text_pair_column`, `label_column`, `id_column`, `group_column`, where they are given.
        where: The file or data set, for messages.

    Raises:
        FinetuneError: If a named column is missing, or the text can't be told. A missing label is for the caller.
    """
    found = table.columns
    _refuse_header(sample, where)
    named = {part: flags.get(f"{part}_column") for part in ("text", "label", "text_pair", "id", "group")}
    missing = [name for name in named.values() if name is not None and name not in found]
    if missing:
        raise FinetuneError(f"Expected columns {missing} in {where}, but found {found}. {FIX}")
    given = [name for name in named.values() if name is not None]
    if len(set(given)) < len(given):
        raise FinetuneError(f"Expected a different column of {where} for each part, but got {given}. {FIX}")
    text, pair, label = named["text"], named["text_pair"], named["label"]
    free = [name for name in found if name not in given and name.lower() not in ROW_NAMES]
    if text is None and pair is None:
        lower = {name.lower(): name for name in free}
        for first, second in PAIRS:
            if first in lower and second in lower:
                text, pair = lower[first], lower[second]
                break
    text = text or _known(TEXT_NAMES, free)
    free = [name for name in free if name not in (text, pair)]
    label = label or _known(LABEL_NAMES, free)
    free = [name for name in free if name != label]
    if text is None and len(free) == 1:
        text, free = free[0], []
    elif text is None and label is None and len(free) == 2:
        label, text = sorted(free, key=lambda name: _mean_length(sample, name))
        if any(row.values.get(label) == label for row in sample):
            raise FinetuneError(
                f"Expected names of columns in the first line of {where}, but found {label!r}, which is a label of "
                "other rows too. Add a line with names, such as text and label."
            )
    elif text is not None and label is None and len(free) == 1:
        label = free[0]
    if text is None:
        raise FinetuneError(f"Expected to tell the text column of {where} by its name, but found {found}. {FIX}")
    return Columns(text, label, pair, named["id"], named["group"])


def _refuse_header(sample: Sequence[Row], where: str) -> None:
    """Refuse a first row that is a header, as where a CSV file has an ending that says nothing."""
    for row in sample[:1]:
        line = "\t".join(value for value in row.values.values() if isinstance(value, str))
        names = [name.strip(' "').lower() for name in re.split(r"[,;\t|]", line)]
        names = [name for name in names if name not in ROW_NAMES]
        if len(names) > 1 and HEADER_NAMES.issuperset(names):
            raise FinetuneError(
                f"Expected an example in the first row of {where}, but found the names of columns: {line.strip()!r}. "
                "Name the file .csv or .tsv if it is that, or remove the line."
            )


def _known(names: Sequence[str], found: Sequence[str]) -> str | None:
    """Find the column of the first of these names, or else that one which alone ends in it: "review_body"."""
    lower = {name.lower(): name for name in reversed(found)}
    whole = next((lower[name] for name in names if name in lower), None)
    if whole is not None:
        return whole
    endings = [[column for column in found if re.split(r"[_\s-]", column.lower())[-1] == name] for name in names]
    return next((columns[0] for columns in endings if len(columns) == 1), None)


def _mean_length(sample: Sequence[Row], column: str) -> float:
    lengths: list[int] = [len(str(_value(row, column))) for row in sample]
    return sum(lengths) / max(1, len(lengths))


def _value(row: Row, column: str) -> Any:
    return row.values.get(column, "")
