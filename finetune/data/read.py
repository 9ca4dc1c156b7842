"""Read a file of rows, whatever its format: one row at a time, so that its size does not matter.

CSV and TSV with a header line; JSON Lines and JSON lists of objects; Parquet; any of them compressed (.gz, .zst); a
folder of .txt files per class; and, for every other ending, lines that begin with their label, as fastText and the
sentence benchmarks of Kim 2014 have them. What a row means is decided elsewhere.
"""

import codecs
import contextlib
import csv
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from charset_normalizer import from_bytes
from datasets import ClassLabel, Features

from finetune.errors import FinetuneError

__all__ = ["FORMATS", "MAX_CHARACTERS", "Row", "Table", "detect_encoding", "open_table"]

FORMATS = ".csv, .tsv, .jsonl, .json, .parquet (also .gz, .zst), lines 'label text', or a folder per class"
MAX_CHARACTERS = 1_000_000  # of one value; more is a file that was not what it seemed
SAMPLE_BYTES = 2**18
# Tried in this order where a file is not UTF-8. The last one takes any bytes.
ENCODINGS = [
    "gb18030", "big5", "shift_jis", "euc_jp", "euc_kr", "cp1251", "koi8_r", "cp1252", "cp1250", "cp1253", "cp1254",
    "cp1255", "cp1256", "latin_1",
]  # fmt: skip
UNLABELLED_FOLDER = "unsup"  # the original IMDb archive keeps reviews without a label in it


@dataclass(frozen=True)
class Row:
    """A row of a table: its values by column, and where it stands, for messages."""

    values: dict[str, Any]
    place: str


@dataclass(frozen=True)
class Table:
    """An open file of rows.

    Attributes:
        columns: Its column names.
        rows: Its rows, to be read once.
        encoding: How its bytes were read as text; None for Parquet.
        class_names: Names of the classes by column, where a Parquet file of `datasets` holds them.
    """

    columns: list[str]
    rows: Iterator[Row]
    encoding: str | None
    class_names: dict[str, list[str]]


def open_table(path: Path, encoding: str | None = None) -> Table:
    """Open a file or folder of rows.

    Args:
        path: The file, or a folder with a folder of `.txt` files for each class.
        encoding: How to read its bytes as text; found out if None.

    Raises:
        FinetuneError: Here or while its rows are read, if it is not a readable file of its format.
    """
    if path.is_dir():
        return _open_folder(path, encoding)
    if not path.is_file():
        raise FinetuneError(f"Expected a file or folder of examples, but {str(path)!r} does not exist.")
    if path.stat().st_size == 0:
        raise FinetuneError(f"Expected examples in {str(path)!r}, but the file is empty.")
    ending = path.with_suffix("").suffix if path.suffix in (".gz", ".zst") else path.suffix
    with _one_line_errors(path):
        if ending.lower() == ".parquet":
            return _open_parquet(path)
        encoding = encoding or detect_encoding(path)
        separated = ending.lower() in (".csv", ".tsv")
        # Other formats end their lines at line feeds alone: sentences hold stray control characters.
        stream = io.TextIOWrapper(_open_bytes(path), encoding=encoding, newline="" if separated else "\n")
        match ending.lower():
            case ".csv" | ".tsv":
                columns, rows = _read_separated(path, stream, tab=ending.lower() == ".tsv")
            case ".jsonl" | ".json" | ".ndjson":
                columns, rows = _read_json(path, stream)
            case _:
                columns, rows = _read_label_first(path, stream)
    return Table(columns, _guarded(path, rows), encoding, {})


def detect_encoding(path: Path) -> str:
    """Find out how a file's bytes are to be read as text: UTF-8 if they are, else what they look most like.

    Raises:
        FinetuneError: If they look like no text at all.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    with _one_line_errors(path), _open_bytes(path) as file:
        head = file.read(SAMPLE_BYTES)
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16"
        if b"\0" in head:
            raise FinetuneError(f"Expected text in {str(path)!r}, but it holds zero bytes. Is it a binary file?")
        chunk, sample = head, head
        try:
            while chunk:
                decoder.decode(chunk)
                sample = chunk  # in the end, the chunk that is not UTF-8
                chunk = file.read(SAMPLE_BYTES)
            decoder.decode(b"", final=True)
            return "utf-8-sig"
        except UnicodeDecodeError:
            pass
    best = from_bytes(chunk or sample, cp_isolation=ENCODINGS, enable_fallback=False).best()
    return best.encoding if best is not None else "latin_1"


def _open_bytes(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return gzip.open(path)  # type: ignore[return-value]
    if path.suffix == ".zst":
        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    return path.open("rb")


@contextlib.contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Say what is wrong with a file in one line."""
    try:
        yield
    except UnicodeError as error:
        encoding = getattr(error, "encoding", "the encoding")
        raise FinetuneError(
            f"Expected {str(path)!r} to be text in {encoding}, but found bytes that are not. "
            "Pass its --encoding, or save it as UTF-8."
        ) from error
    except LookupError as error:
        raise FinetuneError(f"Expected a known --encoding, but got: {error}. utf-8 and latin-1 are examples.") from None
    except csv.Error as error:
        raise FinetuneError(f"Expected separated values in {str(path)!r}, but got: {error}.") from error
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FinetuneError(
            f"Expected {str(path)!r} to be a whole, readable file, but got: {reason}. Check it, or save it again."
        ) from error


def _guarded(path: Path, rows: Iterator[Row]) -> Iterator[Row]:
    with _one_line_errors(path):
        yield from rows


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise FinetuneError(f"Expected each column of {str(path)!r} once, but found {twice} twice. Rename one.")


def _read_separated(path: Path, stream: IO[str], tab: bool) -> tuple[list[str], Iterator[Row]]:
    """Read separated values with a header: tabs, or commas, or semicolons where the header has more of these."""
    csv.field_size_limit(2**31 - 1)
    first = stream.readline()
    separator = "\t" if tab else max(",;\t", key=first.count)
    reader = csv.reader(itertools.chain([first], stream), delimiter=separator, strict=True)
    columns = [name.strip() for name in next(reader)]
    _check_columns(path, columns)

    def rows() -> Iterator[Row]:
        for fields in reader:
            if not fields:
                continue  # a blank line
            if len(fields) != len(columns):
                raise FinetuneError(
                    f"Expected {len(columns)} fields in each row of {str(path)!r}, as in its header, but line "
                    f"{reader.line_num} has {len(fields)}. Put texts that contain the separator in double quotes."
                )
            yield Row(dict(zip(columns, fields, strict=True)), f"line {reader.line_num}")

    return columns, rows()


def _read_json(path: Path, stream: IO[str]) -> tuple[list[str], Iterator[Row]]:
    """Read an object a line, or one list of objects."""
    first = stream.readline()
    while first and not first.strip():
        first = stream.readline()

    def objects() -> Iterator[tuple[Any, str]]:
        if first.lstrip().startswith("["):
            try:
                for number, value in enumerate(json.loads(first + stream.read()), 1):
                    yield value, f"object {number}"
            except (json.JSONDecodeError, RecursionError) as error:
                raise _not_json(path, f"line {getattr(error, 'lineno', 1)}") from error
        else:
            for number, line in enumerate(itertools.chain([first], stream), 1):
                try:
                    value = json.loads(line) if line.strip() else None
                except (json.JSONDecodeError, RecursionError) as error:
                    raise _not_json(path, f"line {number}") from error
                if line.strip():
                    yield value, f"line {number}"

    def rows() -> Iterator[Row]:
        for value, place in objects():
            if not isinstance(value, dict):
                raise FinetuneError(
                    f'Expected objects like {{"text": …, "label": …}} in {str(path)!r}, but {place} is a '
                    f"{type(value).__name__}."
                )
            yield Row(value, place)

    # The columns of a file whose objects need not have the same keys are those of its first hundred.
    found = rows()
    head = list(itertools.islice(found, 100))
    columns = list(dict.fromkeys(name for row in head for name in row.values))
    return columns, itertools.chain(head, found)


def _not_json(path: Path, place: str) -> FinetuneError:
    return FinetuneError(
        f"Expected JSON in {str(path)!r}, but {place} is not. Write one object a line, or one list of objects."
    )


def _read_label_first(path: Path, stream: IO[str]) -> tuple[list[str], Iterator[Row]]:
    """Read lines 'label text'; fastText's prefix `__label__` is dropped, and several of them make a list."""

    def rows() -> Iterator[Row]:
        for number, line in enumerate(stream, 1):
            labels, text = [], line.strip()
            while text.startswith("__label__"):
                label, _, text = text.partition(" ")
                labels.append(label.removeprefix("__label__"))
            if not labels:
                label, _, text = text.partition(" ")
                labels = [label]
            if line.strip():
                yield Row({"label": labels if len(labels) > 1 else labels[0], "text": text.strip()}, f"line {number}")

    return ["label", "text"], rows()


def _open_parquet(path: Path) -> Table:
    source: Any = path if path.suffix == ".parquet" else pa.BufferReader(_open_bytes(path).read())
    file = pq.ParquetFile(source)
    columns = file.schema_arrow.names
    _check_columns(path, columns)
    features = (
        Features.from_arrow_schema(file.schema_arrow) if b"huggingface" in (file.schema_arrow.metadata or {}) else {}
    )
    class_names = {name: feature.names for name, feature in features.items() if isinstance(feature, ClassLabel)}

    def rows() -> Iterator[Row]:
        number = 0
        for batch in file.iter_batches(1_000):
            for values in batch.to_pylist():
                number += 1
                yield Row(values, f"row {number}")

    return Table(columns, _guarded(path, rows()), None, class_names)


def _open_folder(path: Path, encoding: str | None) -> Table:
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir() and folder.name != UNLABELLED_FOLDER)
    files = [(folder.name, file) for folder in folders for file in sorted(folder.glob("*.txt"))]
    if not files:
        raise FinetuneError(
            f"Expected a folder of .txt files for each class in {str(path)!r}, but found "
            f"{[entry.name for entry in sorted(path.iterdir())][:5]}. Pass the folder that holds the classes."
        )

    def rows() -> Iterator[Row]:
        for label, file in files:
            with _one_line_errors(file), file.open(encoding=encoding or detect_encoding(file), newline="") as stream:
                yield Row({"label": label, "text": stream.read()}, str(file.relative_to(path)))

    return Table(["label", "text"], rows(), encoding, {})
