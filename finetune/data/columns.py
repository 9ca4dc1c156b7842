"""Which column is the text, which the label: told by their names or, where there are two, by their length."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.data.nested import get_value, has_field, list_fields
from finetune.data.read import Row, Table
from finetune.errors import FinetuneError

__all__ = ["Columns", "choose_columns", "is_score"]

# Names that public data sets use, the usual ones first.
TEXT_NAMES = ("text", "sentence", "review", "content", "comment", "document", "body", "message", "tweet", "utterance",
              "headline", "abstract", "phrase", "title")  # fmt: skip
LABEL_NAMES = ("label", "labels", "gold_label", "is_duplicate", "class", "category", "sentiment", "target", "topic",
               "intent", "emotion", "rating", "stars", "score")  # fmt: skip
# Numbers of rows, no text or label unless named so: GLUE's test files have `index`, pandas writes "" or the last two.
ROW_NAMES = ("", "id", "idx", "index", "guid", "unnamed: 0", "__index_level_0__")
PAIRS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"),
         ("text1", "text2"), ("text_a", "text_b"))  # fmt: skip
HEADER_NAMES = {*TEXT_NAMES, *LABEL_NAMES, *itertools.chain(*PAIRS)}
# Last parts of the names of columns that tell rows apart, or say where and when they were written: these are never
# guessed to be a text or a label.
ROW_PARTS = {"id", "ids", "uid", "uuid", "guid", "user", "username", "author", "url", "link", "date", "time",
             "datetime", "timestamp", "created"}  # fmt: skip
ADDRESS = re.compile(r"(https?://|www\.)\S+")
DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([T ]\d{1,2}:\d{2}\S*( ?[AP]M)?)?|\d{9,13}")
# Parts of the names of columns that say how sure somebody was, beside a label that says of what.
SCORES = {"score", "confidence", "probability", "prob", "certainty", "conf"}
COMPANIONS = {"text", "name", "title", "description", "desc", "str", "string", "names", "sentence", "content", "id"}
MOST_WORDS_OF_A_NAME = 3
MANY = 20  # names of columns in a message
FIX = "Pass --text_column and --label_column."


@dataclass(frozen=True)
class Columns:
    """Names of the columns that hold what an example consists of; None for what it lacks."""

    text: str
    label: str | None
    text_pair: str | None = None
    id: str | None = None
    group: str | None = None
    labels: tuple[str, ...] | None = None

    def __str__(self) -> str:
        parts = {part: name for part, name in vars(self).items() if part != "labels" and name is not None}
        found = ", ".join(f"{part} from column {name!r}" for part, name in parts.items())
        return found + (f", labels from columns {', '.join(map(repr, self.labels))}" if self.labels else "")


def choose_columns(table: Table, sample: Sequence[Row], flags: Mapping[str, Any], where: str) -> Columns:
    """Take the columns that the user names, and tell the others.

    Args:
        table: Its columns.
        sample: A few of its rows.
        flags: `text_column`, `text_pair_column`, `label_column`, `id_column`, `group_column`, where they are given;
            `label_columns`, names of columns of 0 and 1 with commas between them.
        where: The file or data set, for messages.

    Raises:
        FinetuneError: If a named column is missing, or the text can't be told. A missing label is for the caller.
    """
    found = table.columns
    _refuse_header(sample, where)
    rows = [row.values for row in sample]
    named = {part: flags.get(f"{part}_column") for part in ("text", "label", "text_pair", "id", "group")}
    labels = tuple(name.strip() for name in (flags.get("label_columns") or "").split(",") if name.strip())
    given = [*(name for name in named.values() if name is not None), *labels]
    missing = [name for name in given if name not in found and not has_field(rows, name)]
    if labels and set(labels) <= set(missing) and not set(given) - set(labels) & set(missing):
        missing, labels = [], ()  # as in a test split whose labels are withheld
    if missing:
        lacking = [f"--{part}_column" for part, name in named.items() if name in missing] or ["--label_columns"]
        known = {"--text_column", "--label_column"} & set(lacking)
        fix = FIX if known else f"Pass columns that are there as {' and as '.join(lacking)}."
        raise FinetuneError(f"Expected columns {missing} in {where}, but found {_show(found)}{_inside(rows)}. {fix}")
    if labels and named["label"] is not None:
        raise FinetuneError("Expected --label_column or --label_columns, but got both. Pass one of them.")
    if len(set(given)) < len(given):
        raise FinetuneError(f"Expected a different column of {where} for each part, but got {given}. Name each once.")
    text, pair, label = named["text"], named["text_pair"], named["label"]
    free = [
        name
        for name in found
        if name not in given and name.lower() not in ROW_NAMES and not re.fullmatch(r"unnamed: \d+", name.lower())
    ]
    if text is None and pair is None:
        lower = {name.lower(): name for name in free}
        for first, second in PAIRS:
            if first in lower and second in lower:
                text, pair = lower[first], lower[second]
                break
    text = text or _known(TEXT_NAMES, [name for name in free if not _accompanies_a_label(name)])
    free = [name for name in free if name not in (text, pair)]
    if flags.get("label_columns") is None:
        label = label or table.label or _known_label(free, sample)
        free = [name for name in free if name != label and not _accompanies(name, label)]
        if text is None and label is None and len(free) == 2 and any(map(_accompanies_a_label, free)):
            label, text = sorted(free, key=lambda name: not _accompanies_a_label(name))
            free = []
    if label is None and text is not None:
        free = [name for name in free if not is_score(name, sample)] or free
    plain = [name for name in free if not _tells_a_row(name, sample)]
    if named["text"] is None and text is not None and _parts(text)[-1] == "title":
        longer = [name for name in plain if _mean_length(sample, name) > 2 * _mean_length(sample, text)]
        text = None if longer else text
    if text is None and len(plain) == 1 and (label or labels or len(free) == 1) and not _accompanies_a_label(plain[0]):
        text = plain[0]
    elif text is None and label is None and len(free) == 2 == len(plain) and not labels:
        label, text = sorted(free, key=lambda name: _mean_length(sample, name))
        _refuse_row_as_names(text, label, sample, where)
    elif text is not None and label is None and len(free) == 1 == len(plain) and flags.get("label_columns") is None:
        label = free[0]
    if text is None:
        raise FinetuneError(
            f"Expected to tell the text column of {where} by its name, but found {_show(found)}{_inside(rows)}. {FIX}"
        )
    return Columns(text, label, pair, named["id"], named["group"], labels or None)


def _show(names: Sequence[str]) -> str:
    """Return names of columns for a message, of many or long ones the first."""
    shown = [name if len(name) <= 80 else f"{name[:79]}…" for name in names[:MANY]]
    return f"{shown}" + (f" and {len(names) - MANY:,} more" if len(names) > MANY else "")


def _inside(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return, for a message, which values lie within columns that hold objects."""
    inner = list_fields(rows[:10])
    return f", and inside of them {inner[:10]}" if inner else ""


def _refuse_row_as_names(text: str, label: str, sample: Sequence[Row], where: str) -> None:
    """Refuse names of columns that are an example, where the columns were told by the length of their values alone."""
    if any(row.values.get(label) == label for row in sample):
        raise FinetuneError(
            f"Expected names of columns in the first line of {where}, but found {label!r}, which is a label of "
            "other rows too. Add a line with names, such as text and label."
        )
    if len(text.split()) > MOST_WORDS_OF_A_NAME or re.fullmatch(r"[-+]?\d+([.,]\d+)?", label):
        raise FinetuneError(
            f"Expected names of columns in the first line of {where}, but found {text[:80]!r} and {label[:80]!r}, "
            f"which look like an example. Add a line with names, such as text and label. If these are names: {FIX}"
        )


def _parts(name: str) -> list[str]:
    return re.split(r"[_\s.-]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())


def _tells_a_row(name: str, sample: Sequence[Row]) -> bool:
    """Return whether a column says which row it is, or where or when it was written: by its name, or by its values."""
    parts = _parts(name)
    is_name = len(name.split()) <= MOST_WORDS_OF_A_NAME and set(LABEL_NAMES).isdisjoint(parts)
    if is_name and (parts[-1] in ROW_PARTS or parts[-2:] == ["created", "at"]):
        return True
    values = [str(get_value(row.values, name)).strip() for row in sample]
    return any(
        all(pattern.fullmatch(value) for value in values if value) and any(values) for pattern in (ADDRESS, DATE)
    )


def _accompanies(name: str, label: str | None) -> bool:
    """Return whether a column says its label once more in other words, as label_text beside label."""
    if label is None:
        return False
    whole, own = _parts(name), _parts(label)
    return len(whole) == len(own) + 1 and whole[:-1] == own and whole[-1] in COMPANIONS


def _accompanies_a_label(name: str) -> bool:
    parts = _parts(name)
    return len(parts) > 1 and parts[-1] in COMPANIONS and parts[-2] in (*LABEL_NAMES, "intent", "emotion")


def is_score(name: str, sample: Sequence[Row]) -> bool:
    """Return whether a column holds how sure somebody was of a label: by its name, and by numbers with fractions."""
    if SCORES.isdisjoint(_parts(name)):
        return False
    values = [get_value(row.values, name) for row in sample]
    try:
        numbers = [float(str(value).replace(",", ".")) for value in values if value not in (None, "")]
    except ValueError:
        return False
    return any(not number.is_integer() for number in numbers)


def _known_label(free: Sequence[str], sample: Sequence[Row]) -> str | None:
    """Find the label by its name, but no score where another column holds classes."""
    label = _known(LABEL_NAMES, free)
    if label is None or not is_score(label, sample):
        return label
    classes = [name for name in free if name != label and _holds_classes(name, sample)]
    if not classes:
        return label
    return _known(LABEL_NAMES, classes) or (classes[0] if len(classes) == 1 else None)


def _holds_classes(name: str, sample: Sequence[Row]) -> bool:
    """Return whether a column has few different values, none of them a number with a fraction, in the sample."""
    values = [str(get_value(row.values, name)) for row in sample]
    fractions = any(re.fullmatch(r"-?\d+[.,]\d+", value) for value in values)
    return not fractions and len(set(values)) > 1 and 2 * len(set(values)) <= len(values)


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
