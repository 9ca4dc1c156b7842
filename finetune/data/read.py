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
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from finetune.data.encoding import choose_encoding
from finetune.errors import FinetuneError

__all__ = ["FORMATS", "MAX_CHARACTERS", "Row", "Table", "detect_encoding", "open_table"]

FORMATS = ".csv, .tsv, .jsonl, .json, .parquet (also .gz, .zst), lines 'label text', or a folder per class"
MAX_CHARACTERS = 1_000_000  # of one value; more is a file that was not what it seemed
MAX_NAME_CHARACTERS = 1_000  # of a column's name; survey exports have whole questions
SAMPLE_BYTES = 2**18
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",  # after UTF-32's, which begins with it
    codecs.BOM_UTF16_BE: "utf-16",
}
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
    _check_encoding(encoding)
    with _one_line_errors(path):
        if path.is_dir():
            return _open_folder(path, encoding)
        if not path.is_file():
            raise FinetuneError(f"Expected a file or folder of examples, but found none at {str(path)!r}.")
        if path.stat().st_size == 0:
            raise FinetuneError(f"Expected examples in {str(path)!r}, but the file is empty.")
        ending = (path.with_suffix("") if path.suffix.lower() in (".gz", ".zst") else path).suffix.lower()
        if ending == ".parquet":
            return _open_parquet(path)
        encoding = encoding or detect_encoding(path)
        # Other formats end their lines at line feeds alone: sentences hold stray control characters.
        newline = "" if ending in (".csv", ".tsv") else "\n"

        def open_lines() -> Iterator[str]:
            stream = io.TextIOWrapper(_open_bytes(path), encoding=encoding, newline=newline)
            return itertools.chain([next(stream, "").removeprefix("\ufeff")], stream)

        match ending:
            case ".csv" | ".tsv":
                columns, rows = _read_separated(path, open_lines, tab=ending == ".tsv")
            case ".jsonl" | ".json" | ".ndjson":
                columns, rows = _read_json(path, open_lines())
            case _:
                columns, rows = _read_label_first(path, open_lines())
    return Table(columns, _guarded(path, rows), encoding, {})


def _check_encoding(encoding: str | None) -> None:
    try:
        io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    except (LookupError, ValueError) as error:
        raise FinetuneError(f"Expected a known --encoding, but got {encoding!r}. Try utf-8 or latin-1.") from error


def detect_encoding(*files: Path) -> str:
    """Find out how the bytes of files are to be read as text: UTF-8 if they are, else what they look most like.

    Only lines that are not ASCII tell anything, so these alone are looked at, wherever they stand.

    Raises:
        FinetuneError: If they look like no text, or lines of several encodings are among them.
    """
    sample = bytearray()
    others, utf8, first = 0, 0, ""
    for file in files:
        with _one_line_errors(file), _open_bytes(file) as stream:
            for number, line in enumerate(stream, 1):
                if number == 1 and line.startswith(tuple(BYTE_ORDER_MARKS)):
                    return next(name for mark, name in BYTE_ORDER_MARKS.items() if line.startswith(mark))
                if b"\0" in line:
                    raise FinetuneError(
                        f"Expected text in {str(file)!r}, but line {number} holds zero bytes, as binary files do and "
                        f"UTF-16. Pass --encoding utf-16-le if it is that, or save it as one of {FORMATS}."
                    )
                if line.isascii():
                    continue
                try:
                    line.decode()
                    utf8 += 1
                except UnicodeDecodeError:
                    others += 1
                    first = first or f"line {number} of {str(file)!r}"
                    if len(sample) < SAMPLE_BYTES:
                        sample += line
    if not others:
        return "utf-8"
    # Longer lines in another encoding are never UTF-8 by chance. Read as anything else, UTF-8 would come out garbled.
    if utf8 > others / 10:
        raise FinetuneError(
            f"Expected one encoding, but found {utf8:,} lines in UTF-8 and {others:,} that are not, the first of them "
            f"{first}. Mend or remove these, or pass the --encoding of all."
        )
    encoding = choose_encoding(bytes(sample))
    if encoding is None:
        raise FinetuneError(f"Expected text, but {first} is in no encoding that is known here. Pass its --encoding.")
    return encoding


def _open_bytes(path: Path) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return gzip.open(path)  # type: ignore[return-value]
    if path.suffix.lower() == ".zst":
        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    return path.open("rb")


@contextlib.contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Say what is wrong with a file in one line."""
    try:
        yield
    except FinetuneError:
        raise
    except UnicodeError as error:
        encoding = getattr(error, "encoding", "UTF-16 or UTF-32 with a byte order mark")
        raise FinetuneError(
            f"Expected {str(path)!r} to be text in {encoding}, but found bytes that are not. "
            "Pass its --encoding, or save it as UTF-8."
        ) from error
    except (OSError, EOFError, ValueError, OverflowError, zlib.error, pa.ArrowException) as error:
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
    longest = max(map(len, columns), default=0)
    if longest > MAX_NAME_CHARACTERS:
        raise FinetuneError(
            f"Expected names of columns at the head of {str(path)!r}, but found one of {longest:,} characters. "
            "Add a line with names, such as text and label."
        )


def _read_separated(path: Path, open_lines: Callable[[], Iterator[str]], tab: bool) -> tuple[list[str], Iterator[Row]]:
    """Read separated values with a header: tabs, or commas, or semicolons where the header has more of these."""
    csv.field_size_limit(2**31 - 1)
    first = next((line for line in open_lines() if line.strip("\r\n")), "")
    if first.startswith(("{", "[")):
        raise FinetuneError(
            f"Expected names of columns in the first line of {str(path)!r}, but found {first[:40]!r}. Rename the file "
            "to .jsonl if it holds JSON."
        )
    declared = first.startswith("sep=")  # a line that Excel writes above the header
    separator = first[4] if declared and first[4:].strip() else "\t" if tab else max(",;\t", key=first.count)
    quoted = declared or separator != "\t" or _has_quoted_texts(path, open_lines)
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(open_lines(), delimiter=separator, quoting=quoting, strict=True)

    def lines() -> Iterator[tuple[list[str], int]]:
        """Give the fields of each row with the number of its first line."""
        number = 1
        try:
            for fields in reader:
                if fields:
                    yield fields, number
                number = reader.line_num + 1
        except csv.Error as error:
            raise FinetuneError(
                f"Expected separated values in {str(path)!r}, but in the row from line {number} on got: {error}. Close "
                "each quote that opens a text, and double those within it."
            ) from error

    found = lines()
    if declared:
        next(found)
    header, _ = next(found, ([], 0))
    columns = [name.strip() for name in header]
    _check_columns(path, columns)

    def rows() -> Iterator[Row]:
        for fields, number in found:
            if len(fields) != len(columns):
                raise FinetuneError(
                    f"Expected {len(columns)} fields in each row of {str(path)!r}, as in its header, but line "
                    f"{number} has {len(fields)}. Put texts that contain the separator in double quotes."
                )
            if fields == header:
                raise FinetuneError(
                    f"Expected one header in {str(path)!r}, but line {number} is its header once more. Remove the line."
                )
            yield Row(dict(zip(columns, fields, strict=True)), f"line {number}")

    return columns, rows()


def _has_quoted_texts(path: Path, open_lines: Callable[[], Iterator[str]]) -> bool:
    """Tell whether quotes in tab-separated values enclose texts, as in CSV, or are mere characters, as in GLUE's files.

    They are mere characters where every line is a row of its own, but would not be one if quotes enclosed texts.
    """
    width, count, quotes = 0, 0, 0
    for line in open_lines():
        if line.strip("\r\n"):
            width = width or line.count("\t") + 1
            count += 1
            quotes += line.count('"')
            if line.count("\t") + 1 != width:
                return True
    try:
        widths = [len(row) for row in csv.reader(open_lines(), delimiter="\t", strict=True) if row] if quotes else []
    except csv.Error:
        return False
    if set(widths) != {width}:
        return False
    if len(widths) < count:
        raise FinetuneError(
            f"Expected each quote in {str(path)!r} to be closed in its line, but {count - len(widths):,} lines could "
            "also be within one that was opened above. Save the file as .csv or .jsonl."
        )
    return True


def _read_json(path: Path, lines: Iterator[str]) -> tuple[list[str], Iterator[Row]]:
    """Read an object a line, or one list of objects."""
    numbered = ((line, number) for number, line in enumerate(lines, 1) if line.strip())
    first = next(numbered, ("", 1))

    def objects() -> Iterator[tuple[Any, str]]:
        if first[0].lstrip().startswith("["):
            values = _parse_json("".join([first[0], *(line for line, _ in numbered)]), path, "it")
            yield from ((value, f"object {number}") for number, value in enumerate(values, 1))
        else:
            for line, number in itertools.chain([first], numbered):
                yield _parse_json(line, path, f"line {number}"), f"line {number}"

    def rows() -> Iterator[Row]:
        for value, place in objects() if first[0] else ():
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
    _check_columns(path, columns)
    return columns, itertools.chain(head, found)


def _parse_json(text: str, path: Path, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FinetuneError(
            f"Expected JSON in {str(path)!r}, but {place} is not. Write one object a line, or one list of objects."
        ) from error


def _read_label_first(path: Path, lines: Iterator[str]) -> tuple[list[str], Iterator[Row]]:
    """Read lines 'label text'; fastText's prefix `__label__` is dropped, and several of them make a list."""

    def rows() -> Iterator[Row]:
        prefixed = None
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            if prefixed is None and line.startswith(('{"', "[{")):
                raise FinetuneError(
                    f"Expected lines 'label text' in {str(path)!r}, whose ending names no other format, but found "
                    "JSON. Rename it to .jsonl."
                )
            labels, text = [], line.strip()
            while text.startswith("__label__"):
                label, text = _part(text)
                labels.append(label.removeprefix("__label__"))
            if prefixed is None:
                prefixed = bool(labels)
            if prefixed != bool(labels):
                raise FinetuneError(
                    f"Expected labels in every line of {str(path)!r} to be written alike, but line {number} begins "
                    f"{'without' if prefixed else 'with'} __label__. Write it in each line, or in none."
                )
            if not labels:
                label, text = _part(text)
                labels = [label]
            yield Row({"label": labels if len(labels) > 1 else labels[0], "text": text}, f"line {number}")

    return ["label", "text"], rows()


def _part(line: str) -> tuple[str, str]:
    """Part a line at its first run of spaces or tabs."""
    label, *text = re.split(r"[ \t]+", line, maxsplit=1)
    return label, "".join(text)


def _open_parquet(path: Path) -> Table:
    source: Any = path if path.suffix == ".parquet" else pa.BufferReader(_open_bytes(path).read())
    file = pq.ParquetFile(source)
    columns = file.schema_arrow.names
    _check_columns(path, columns)
    noted = b"huggingface" in (file.schema_arrow.metadata or {})
    class_names = _read_class_names(path, file.schema_arrow) if noted else {}

    def rows() -> Iterator[Row]:
        number = 0
        for batch in file.iter_batches(1_000):
            for values in batch.to_pylist():
                number += 1
                yield Row(values, f"row {number}")

    return Table(columns, _guarded(path, rows()), None, class_names)


def _read_class_names(path: Path, schema: pa.Schema) -> dict[str, list[str]]:
    """Give the names of the classes by column, as `datasets` has noted them; only then is it imported."""
    from datasets import ClassLabel, Features, List

    try:
        features = Features.from_arrow_schema(schema)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FinetuneError(
            f"Expected features that `datasets` knows in {str(path)!r}, but reading them gave: {type(error).__name__}. "
            "Update `datasets`, or save the file without them."
        ) from error
    inner = {name: feature.feature if isinstance(feature, List) else feature for name, feature in features.items()}
    return {name: feature.names for name, feature in inner.items() if isinstance(feature, ClassLabel)}


def _open_folder(path: Path, encoding: str | None) -> Table:
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    for folder in folders:
        inner = [one.name for one in sorted(folder.iterdir()) if one.is_dir() and any(one.glob("*.txt"))]
        if len(inner) > 1:
            raise FinetuneError(
                f"Expected a folder of .txt files for each class in {str(path)!r}, but {folder.name!r} holds "
                f"folders of them: {inner[:5]}. Pass it as --train_file, others as --validation_file or --test_file."
            )
    files = [
        file
        for folder in folders
        for file in sorted(folder.glob("*.txt"))
        if folder.name != UNLABELLED_FOLDER and not file.name.startswith(".")
    ]
    if not files:
        raise FinetuneError(
            f"Expected a folder of .txt files for each class in {str(path)!r}, but found "
            f"{[entry.name for entry in sorted(path.iterdir())][:5]}. Pass the folder that holds the classes."
        )
    encoding = encoding or detect_encoding(*files)

    def rows() -> Iterator[Row]:
        for file in files:
            with _one_line_errors(file), file.open(encoding=encoding, newline="") as stream:
                text = stream.read().removeprefix("\ufeff")
            yield Row({"label": file.parent.name, "text": text}, str(file.relative_to(path)))

    return Table(["label", "text"], rows(), encoding, {})
