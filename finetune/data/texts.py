"""Open files of texts whose labels, if there are any, are not looked at. Imports nothing heavy."""

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.data.read import Table, open_lines, open_table
from finetune.data.spelling import compare_spelling
from finetune.errors import FinetuneError
from finetune.tasks import REGRESSION, Task

__all__ = ["COMPRESSIONS", "find_ending", "open_texts"]

COMPRESSIONS = (".gz", ".zst")
# Whose rows have columns with names; of any other ending a line is a text.
TABLES = frozenset({".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".json", ".parquet", ".xlsx", ".xlsm"})


def find_ending(path: Path) -> str:
    """Return the ending that names a file's format, without that of a compression."""
    return (path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path).suffix.lower()


def open_texts(path: Path, task: Task, encoding: str | None = None, fallback: str | None = None) -> Table:
    """Open what training reads; lines of an ending that names no format are texts, unless all hold labels of the task.

    Raises:
        FinetuneError: If it can't be read, or some of its lines hold labels and others don't.
    """
    if path.is_dir() or find_ending(path) in TABLES:
        return open_table(path, encoding, fallback)
    plain = open_lines(path, encoding, fallback)
    try:
        table = open_table(path, encoding, fallback)
        head = list(itertools.islice(table.rows, 100))
    except FinetuneError:  # lines of texts alone need not look like any of labels and texts
        return plain
    known = [_is_label(row.values["label"], task) for row in head]
    if any(known) and not all(known):
        one, other = head[known.index(True)].place, head[known.index(False)].place
        raise FinetuneError(
            f"Expected labels of the model in all lines of {str(path)!r} or in none, but {one} has one and {other} has "
            "none. Save it as .csv, with a column text."
        )
    return replace(table, rows=itertools.chain(head, table.rows)) if any(known) else plain


def _is_label(value: Any, task: Task) -> bool:
    """Return whether what a line was taken to be labelled with is a label of the task."""
    if task.problem_type == REGRESSION:
        return re.fullmatch(r"[-+]?\d+([.,]\d+)?", value) is not None
    known = {compare_spelling(name) for name in task.label_names}
    return {compare_spelling(name) for name in (value if isinstance(value, list) else [value])} <= known
