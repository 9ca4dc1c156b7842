"""Rows with the answers beside them, as bytes of CSV, JSON Lines or Parquet that every reader takes for what they are.

What the input's file says of a row is handed on as it stands there, not as Python read it: the digits of a number in
JSON, the fields of a line, the types and the metadata of Parquet.
"""

import csv
import io
import itertools
import json
import math
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from finetune.data.read import Row, Table
from finetune.errors import FinetuneError

__all__ = ["JsonLines", "ParquetRows", "RowFormat", "SeparatedRows", "choose_format"]

ENDS_OF_LINES = {0x0A: " ", 0x0D: " ", 0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}
NOT_JSON = re.compile(r'"(?:[^"\\]|\\.)*"|-?\b(?:NaN|Infinity)\b')
UNWRITTEN = {"INTERVAL", "ENUM", "BSON"}
LABELS = pa.list_(pa.string())
TYPES = {
    "predicted_label": pa.string(),
    "predicted_labels": LABELS,
    "prediction_set": LABELS,
    "is_answered": pa.bool_(),
}


class RowFormat:
    """How labelled rows are written.

    Attributes:
        head: What stands before the first row.
        finish: Writes the file in its last form, given a path with all rows and the path of the file; None where the
            rows as they are written are that.
    """

    head = b""
    finish: Callable[[Path, Path], None] | None = None

    def encode(self, rows: Sequence[Row], answers: Sequence[Sequence[Any]]) -> bytes:
        """Return rows with their answers, so that what several calls returned can stand one after the other."""
        raise NotImplementedError


class SeparatedRows(RowFormat):
    """CSV or TSV.

    Args:
        table: The input.
        added: Names of the answers' columns.
        separator: Between two fields.
    """

    def __init__(self, table: Table, added: Sequence[str], separator: str):
        self.columns = table.columns
        self.separator = separator
        self.head = self._write([[*(table.header or table.columns), *added]], others=";|")

    def encode(self, rows: Sequence[Row], answers: Sequence[Sequence[Any]]) -> bytes:
        fields = (row.source or [row.values.get(name) for name in self.columns] for row in rows)
        lines = [
            [*map(_to_field, own), *map(_answer_to_field, found)] for own, found in zip(fields, answers, strict=True)
        ]
        return self._write(lines)

    def _write(self, lines: Sequence[Sequence[Any]], others: str = "") -> bytes:
        """Write lines; those with a field that not every reader leaves alone without quotes are all in quotes.

        csv.writer alone quotes no lone carriage return. Of names other separators count too, by which some are guessed.
        """
        text = io.StringIO()
        plain, quoted = (
            csv.writer(text, delimiter=self.separator, lineterminator="\n", quoting=quoting)
            for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
        )
        for fields in lines:
            delicate = any(
                isinstance(one, str) and (_is_delicate(one) or any(sign in one for sign in others)) for one in fields
            )
            (quoted if delicate else plain).writerow(fields)
        try:
            return text.getvalue().encode("utf-8")
        except UnicodeEncodeError as error:
            raise FinetuneError(
                f"Expected characters, which UTF-8 has, but found {error.object[error.start]!r}, half of one. Mend the "
                "file, or pass its --encoding."
            ) from None


class JsonLines(RowFormat):
    """An object a line: that of the input, with the answers as its last members.

    NaN and Infinity, which Python and others write though JSON lacks them, become null. A character that some readers
    take for the end of a line is escaped.

    Attributes:
        num_nulls: In how many rows so far null stands for what JSON lacks.
    """

    def __init__(self, added: Sequence[str]):
        self.names = [json.dumps(name, ensure_ascii=False) for name in added]
        self.num_nulls = 0

    def encode(self, rows: Sequence[Row], answers: Sequence[Sequence[Any]]) -> bytes:
        lines: list[str] = []
        for row, found in zip(rows, answers, strict=True):
            own = json.dumps(row.values, ensure_ascii=False) if row.source is None else row.source.strip()
            if "NaN" in own or "Infinity" in own:
                before, own = own, NOT_JSON.sub(lambda match: match[0] if match[0][0] == '"' else "null", own)
                self.num_nulls += own != before
            members = own.strip()[1:-1].strip()
            ours = [f"{name}: {_to_json(answer)}" for name, answer in zip(self.names, found, strict=True)]
            line = f"{{{', '.join([members, *ours] if members else ours)}}}"
            lines += line if line.isprintable() else line.translate(ENDS_OF_LINES), "\n"
        return "".join(lines).encode("utf-8", "backslashreplace")  # which is how JSON writes half of a character


class ParquetRows(RowFormat):
    """Parquet with the columns and the metadata of the input's.

    A Parquet file can't be added to, so rows are Arrow streams, one after the other, until they are all there.

    Args:
        file: The input. A warning names columns of types that pyarrow reads and can't write.
        added: Names of the answers' columns.
    """

    def __init__(self, file: pq.ParquetFile, added: Sequence[str]):
        own = file.schema_arrow
        self.added = [pa.field(name, TYPES.get(name, pa.float32())) for name in added]
        self.schema = pa.schema([*own, *self.added], metadata=own.metadata)
        self.finish = self._to_parquet
        columns = map(file.schema.column, range(len(file.schema)))
        lost = {column.path: column.converted_type for column in columns if column.converted_type in UNWRITTEN}
        if lost:
            warnings.warn(f"pyarrow writes as plain bytes what these columns hold: {lost}", stacklevel=2)

    def encode(self, rows: Sequence[Row], answers: Sequence[Sequence[Any]]) -> bytes:
        of_batches = [list(group) for _, group in itertools.groupby(rows, lambda row: id(row.source[0]))]
        slices = [group[0].source[0].slice(group[0].source[1], len(group)) for group in of_batches]
        own = pa.Table.from_batches(slices).unify_dictionaries()
        columns = zip(self.added, zip(*answers, strict=True), strict=True)
        table = pa.table([*own.columns, *(pa.array(column, field.type) for field, column in columns)], self.schema)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.schema) as writer:
            writer.write_table(table)
        return sink.getvalue().to_pybytes()

    def _to_parquet(self, rows: Path, target: Path) -> None:
        with rows.open("rb") as source, pq.ParquetWriter(target, self.schema) as writer:
            while source.peek(1):
                with pa.ipc.open_stream(source) as stream:
                    writer.write_table(stream.read_all())


def choose_format(ending: str, input_file: Path, table: Table, added: Sequence[str]) -> RowFormat:
    """Return how the rows of an open file are written to one with this ending."""
    if ending == ".parquet":
        return ParquetRows(pq.ParquetFile(input_file), added)
    if ending == ".jsonl":
        return JsonLines(added)
    return SeparatedRows(table, added, "\t" if ending == ".tsv" else ",")


def _is_delicate(field: str) -> bool:
    """Return whether a field has a control character, a mark, or a blank at an end, or could begin a comment."""
    return not field.isprintable() or field.startswith((" ", "#", "'")) or field.endswith(" ")


def _to_field(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value


def _answer_to_field(answer: Any) -> Any:
    return f"{answer:.6g}" if isinstance(answer, float) else _to_field(answer)


def _to_json(answer: Any) -> str:
    if isinstance(answer, float):
        return str(float(f"{answer:.6g}")) if math.isfinite(answer) else "null"
    return json.dumps(answer, ensure_ascii=False)
