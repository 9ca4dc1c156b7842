"""From the rows of a table to examples: strings, and the label as JSON, in an Arrow file in the cache of `datasets`."""

import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from finetune.data.columns import Columns
from finetune.data.labels import name_classes
from finetune.data.nested import get_value
from finetune.data.read import MAX_CHARACTERS, Row, Table
from finetune.data.vectors import name_bits
from finetune.errors import FinetuneError
from finetune.files import write_aside

__all__ = ["NO_GROUP", "iterate_examples", "name_group", "name_of", "name_values", "write_examples"]

ROWS_AT_ONCE = 1_000
MAX_LABEL_CHARACTERS = 10_000  # of a string, which may hold several; more is a text
NO_GROUP = "without a group: "  # before the id of a row that names none
NO_GROUPS = {
    "",
    "nan",
    "none",
    "null",
    "<na>",
    "na",
    "n/a",
    "-",
    "--",
    "?",
    "unknown",
    "anonymous",
    "deleted",
    "[deleted]",
}
CACHE_VERSION = 4  # of what `write_examples` writes


def write_examples(path: Path, table: Table, columns: Columns, where: str) -> Path:
    """Write the examples of a table as an Arrow file, labels as JSON; a bad row leaves nothing behind."""
    digest = hashlib.sha256(f"{CACHE_VERSION} {name_of(path)} {columns!r} {table.encoding}".encode())
    for file in sorted(path.rglob("*.txt")) if path.is_dir() else [path]:
        digest.update(os.fsencode(file.relative_to(path)))
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    target = Path(datasets.config.HF_DATASETS_CACHE) / "finetune" / f"read-{digest.hexdigest()}.arrow"
    if target.exists():
        return target
    names = ["id", "text", "label", *(name for name in ("text_pair", "group") if getattr(columns, name) is not None)]
    schema = pa.schema([(name, pa.string() if name in ("id", "group") else pa.large_string()) for name in names])
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        write_aside(target) as aside,  # other processes may be writing it too
        pa.OSFile(str(aside), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as writer,
    ):
        for rows in _chunks(iterate_examples(table, columns, name_of(path), where), ROWS_AT_ONCE):
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
    return target


def name_of(path: Path) -> str:
    """Return the name of a file in text."""
    return path.name.encode(errors="replace").decode()  # a name need not be UTF-8


def iterate_examples(table: Table, columns: Columns, name: str, where: str) -> Iterator[dict[str, Any]]:
    """Yield each row's example: strings, and the label as JSON."""
    seen: set[str] = set()
    for number, row in enumerate(table.rows):
        values = row.values
        example: dict[str, Any] = {
            "id": f"{name}-{number}",
            "text": _text(get_value(values, columns.text), row, columns.text, where),
        }
        if columns.id is not None:
            example["id"] = str(get_value(values, columns.id))
            if example["id"] in seen:
                raise FinetuneError(
                    f"Expected ids that differ in {where}, but {row.place} repeats {example['id']!r}. Pass another "
                    "--id_column, or leave it out."
                )
            seen.add(example["id"])
        if columns.text_pair is not None:
            example["text_pair"] = _text(get_value(values, columns.text_pair), row, columns.text_pair, where)
        if columns.group is not None:
            example["group"] = name_group(get_value(values, columns.group), example["id"])
        label = columns.label
        if columns.labels:
            bits = name_bits(name_values(values, table.class_names), columns.labels, row.place, where)
            example["label"] = json.dumps(bits, ensure_ascii=False)
        else:
            example["label"] = "null" if label is None else _label(get_value(values, label), row, label, where)
        try:
            "".join(filter(None, example.values())).encode()
        except UnicodeEncodeError as error:
            raise FinetuneError(
                f"Expected whole characters in {where}, but {row.place} has half of a surrogate pair, as a cut emoji "
                "leaves. Remove it."
            ) from error
        yield example


def name_group(value: Any, id: str) -> str:
    """Return the name of a row's group; of a row that names none one of its own."""
    group = str(value).strip()
    return f"{NO_GROUP}{id}" if group.lower() in NO_GROUPS else group


def name_values(values: dict[str, Any], class_names: dict[str, list[str]]) -> dict[str, Any]:
    """Put the names of classes in place of their numbers in the columns that have some."""
    return values | {name: name_classes(values.get(name), names) for name, names in class_names.items()}


def _label(value: Any, row: Row, column: str, where: str) -> str:
    """Return a label as JSON."""
    wrong = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, list | dict | bytes)]
    if wrong:
        raise FinetuneError(
            f"Expected strings, numbers or booleans, or lists of them, as labels in column {column!r} of {where}, but "
            f"{row.place} has a {type(wrong[0]).__name__}. {_advise_on_objects(column, wrong[0])}"
        )
    if isinstance(value, str) and len(value) > MAX_LABEL_CHARACTERS:
        raise FinetuneError(
            f"Expected labels of at most {MAX_LABEL_CHARACTERS:,} characters in column {column!r} of {where}, but the "
            f"one at {row.place} has {len(value):,}. Pass --label_column if it is the text."
        )
    return json.dumps(value, ensure_ascii=False, default=str)


def _advise_on_objects(column: str, value: Any) -> str:
    if not isinstance(value, dict) or not value:
        return "Pass --label_column if the label is in another."
    first = f"{column}.{next(iter(value))}"
    return (
        f"What is within is named with dots: --label_column {first}, or --label_columns {first},… for zeros and ones."
    )


def _text(value: Any, row: Row, column: str, where: str) -> str | None:
    if value is None or isinstance(value, str):
        text = value
    elif isinstance(value, int | float | bool):
        text = None if value != value else str(value)
    else:
        within = isinstance(value, dict) and next((name for name, one in value.items() if isinstance(one, str)), None)
        advice = (
            f"What is within is named with dots: --text_column {column}.{within}."
            if within
            else ("Pass --text_column if the text is in another.")
        )
        raise FinetuneError(
            f"Expected texts in column {column!r} of {where}, but {row.place} has a {type(value).__name__}. {advice}"
        )
    if text is not None and len(text) > MAX_CHARACTERS:
        raise FinetuneError(
            f"Expected texts of at most {MAX_CHARACTERS:,} characters in {where}, but the one at {row.place} has "
            f"{len(text):,}. Is a quote missing? Split it, or remove it."
        )
    return text


def _chunks(examples: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    while chunk := list(itertools.islice(examples, size)):
        yield chunk
