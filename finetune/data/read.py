"""Read a file of rows, whatever its format: one row at a time, so that its size does not matter.

CSV and TSV with a header line, also Orange's three; JSON Lines and JSON of objects; Parquet; each of them compressed
(.gz, .zst); Excel; a folder with files of texts per class; and, for every other ending, lines of a label and a text.
What a row means is decided elsewhere.
"""

import codecs
import collections
import contextlib
import csv
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from finetune.data.encoding import choose_encoding
from finetune.data.excel import read_sheet
from finetune.data.lines import read_labelled_lines
from finetune.data.signatures import LEAD_BYTES, refuse_other_formats
from finetune.errors import FinetuneError, explain_shortage

__all__ = ["FORMATS", "MAX_CHARACTERS", "SEPARATORS", "Row", "Table", "detect_common_encoding",
           "detect_encoding", "open_lines", "open_table"]  # fmt: skip

FORMATS = ".csv, .tsv, .jsonl, .json, .parquet (also .gz, .zst), .xlsx, lines 'label text', or a folder per class"
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
MAX_CHARACTERS = 1_000_000  # of one value; more is a file that was not what it seemed
MAX_NAME_CHARACTERS = 1_000  # of a column's name; survey exports have whole questions
SAMPLE_BYTES = 2**18
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",  # after UTF-32's, which begins with it
    codecs.BOM_UTF16_BE: "utf-16",
}
ORANGE_KINDS = {"d", "c", "s", "t", "discrete", "continuous", "string", "time", "basket"}
READ_ENDINGS = {
    ".csv",
    ".tsv",
    ".tab",
    ".jsonl",
    ".ndjson",
    ".json",
    ".parquet",
    ".xlsx",
    ".gz",
    ".zst",
    ".md",
    ".arrow",
}
JSON_BETWEEN = re.compile(r"[ \t\r\n,]*")  # values of a list
NO_CLASSES = {"readme", "license", "about", "urls"}
# Of one text a line: at most so many files for each class, with so many lines on average.
MAX_FILES_OF_LINES, MIN_LINES = 3, 5
UNLABELLED_FOLDER = "unsup"  # the original IMDb archive keeps reviews without a label in it


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        values: By column.
        place: Where it stands, for messages.
        source: The row as the file has it, for who hands it on: the fields of separated values, the text of an object
            in JSON, or an Arrow batch and the row's place in it; None of other formats.
    """

    values: dict[str, Any]
    place: str
    source: Any = None


@dataclass(frozen=True)
class Table:
    """An open file of rows.

    Attributes:
        columns: Its column names.
        rows: Its rows, to be read once.
        encoding: How its bytes were read as text; None for Parquet.
        class_names: Names of the classes by column, where a Parquet file of `datasets` holds them.
        layout: How its rows are written, for the person who reads it, such as "separated by commas".
        label: The column of the label, where the format says so.
        ignored: What of the file is left out, for the same person.
        header: The name above each field of its rows' `source`, where these are separated values.
    """

    columns: list[str]
    rows: Iterator[Row]
    encoding: str | None
    class_names: dict[str, list[str]]
    layout: str = ""
    label: str | None = None
    ignored: tuple[str, ...] = ()
    header: tuple[str, ...] | None = None


def open_table(path: Path, encoding: str | None = None, fallback: str | None = None) -> Table:
    """Open a file or folder of rows.

    Args:
        path: The file, or a folder with files of texts for each class.
        encoding: How to read its bytes as text; found out if None.
        fallback: How to read them where they are no UTF-8; found out if None.

    Raises:
        FinetuneError: Here or while its rows are read, if it is not a readable file of its format.
    """
    _check_encoding(encoding)
    with _one_line_errors(path):
        if path.is_dir():
            return _open_folder(path, encoding, fallback)
        if not path.is_file():
            raise FinetuneError(f"Expected a file or folder of examples, but found none at {str(path)!r}.")
        if path.stat().st_size == 0:
            raise FinetuneError(f"Expected examples in {str(path)!r}, but the file is empty.")
        ending = (path.with_suffix("") if path.suffix.lower() in (".gz", ".zst") else path).suffix.lower()
        with _open_bytes(path) as stream:
            lead = stream.read(LEAD_BYTES)
        refuse_other_formats(path, ending, lead)
        if ending == ".parquet":
            return _open_parquet(path)
        if ending in (".xlsx", ".xlsm"):
            return _open_sheet(path)
        encoding = encoding or detect_encoding(path, fallback=fallback)
        # Other formats end their lines at line feeds alone: sentences hold stray control characters.
        newline = "" if ending in (".csv", ".tsv", ".tab") else "\n"

        def open_lines() -> Iterator[str]:
            stream = io.TextIOWrapper(_open_bytes(path), encoding=encoding, newline=newline)
            first = next(stream, "")
            rest = (line.removeprefix("\ufeff") for line in stream) if first.startswith("\ufeff") else stream
            return itertools.chain([first.lstrip("\ufeff")], rest)  # files that were joined have a mark within, too

        match ending:
            case ".csv" | ".tsv" | ".tab":
                table = _read_separated(path, open_lines, tab=ending != ".csv")
            case ".jsonl" | ".json" | ".ndjson":
                table = _read_json(path, open_lines())
            case _:
                table = _read_lines(path, open_lines)
    return replace(table, rows=_guarded(path, table.rows), encoding=encoding)


def open_lines(path: Path, encoding: str | None = None, fallback: str | None = None) -> Table:
    """Open a file of one text a line, blank ones too: a table of the single column `text`.

    Raises:
        FinetuneError: As `open_table` does.
    """
    _check_encoding(encoding)
    with _one_line_errors(path):
        with _open_bytes(path) as stream:
            refuse_other_formats(path, "", stream.read(LEAD_BYTES))
        encoding = encoding or detect_encoding(path, fallback=fallback)
        lines = io.TextIOWrapper(_open_bytes(path), encoding=encoding, newline="\n")
        rows = (
            Row({"text": line.lstrip("\ufeff").rstrip("\r\n")}, f"line {number}")
            for number, line in enumerate(lines, 1)
        )
    return Table(["text"], _guarded(path, rows), encoding, {}, "a text a line")


def _open_sheet(path: Path) -> Table:
    columns, numbered = read_sheet(path)
    _check_columns(path, columns)
    rows = (Row(values, f"row {number}") for values, number in numbered)
    return Table(columns, _guarded(path, rows), None, {}, "one sheet")


def _check_encoding(encoding: str | None) -> None:
    try:
        io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    except (LookupError, ValueError) as error:
        raise FinetuneError(f"Expected a known --encoding, but got {encoding!r}. Try utf-8 or latin-1.") from error


def detect_encoding(*files: Path, fallback: str | None = None) -> str:
    """Find out how the bytes of files are to be read as text: UTF-8 if they are, else what they look most like.

    Only lines that are not ASCII tell anything, so these alone are looked at, wherever they stand.

    Args:
        *files: Files of one source.
        fallback: What bytes that are no UTF-8 are, if that is known.

    Raises:
        FinetuneError: If they look like no text, or lines of several encodings are among them.
    """
    found, sample, first = _sample_bytes(files)
    if found is not None:
        return found
    encoding = fallback or choose_encoding(sample)
    if encoding is None:
        raise FinetuneError(f"Expected text, but {first} is in no encoding that is known here. Pass its --encoding.")
    return encoding


def detect_common_encoding(files: Sequence[Path]) -> str | None:
    """Choose one encoding for all files whose bytes are no UTF-8, by the lines of all of them; None if there are none.

    Raises:
        FinetuneError: As `detect_encoding` does.
    """
    sample, first = bytearray(), ""
    for file in files:
        inside = _text_files(file)[0] if file.is_dir() else [file]
        found, lines, place = _sample_bytes([one for one in inside if _is_text(one)])
        if found is None:
            sample += lines
            first = first or place
    if not sample:
        return None
    encoding = choose_encoding(bytes(sample))
    if encoding is None:
        raise FinetuneError(f"Expected text, but {first} is in no encoding that is known here. Pass its --encoding.")
    return encoding


def _is_text(path: Path) -> bool:
    """Return whether a file is one of those whose encoding matters: any but Parquet's, Excel's, and unknown ones."""
    name = path.name.lower()
    if not path.is_file() or re.search(r"\.(parquet(\.(gz|zst))?|xls[xm])$", name):
        return False
    try:
        with _open_bytes(path) as stream:
            refuse_other_formats(path, "", stream.read(LEAD_BYTES))
    except (OSError, EOFError, ValueError, zlib.error, pa.ArrowException):
        return False  # what is wrong with it is said when it is read
    return True


def _sample_bytes(files: Sequence[Path]) -> tuple[str | None, bytes, str]:
    """Return an encoding that needs no guess, or lines in another one and where the first of them stands."""
    sample = bytearray()
    others, utf8, first = 0, 0, ""
    for file in files:
        with _one_line_errors(file), _open_bytes(file) as stream:
            position = 0
            for number, line in enumerate(stream, 1):
                if number == 1 and line.startswith(tuple(BYTE_ORDER_MARKS)):
                    return next(name for mark, name in BYTE_ORDER_MARKS.items() if line.startswith(mark)), b"", ""
                if b"\0" in line:
                    order = "le" if (position + line.index(b"\0")) % 2 else "be"  # the zero byte of an ASCII sign
                    raise FinetuneError(
                        f"Expected text in {str(file)!r}, but line {number} holds zero bytes, as binary files do and "
                        f"UTF-16. Pass --encoding utf-16-{order} if it is that, remove them if they are damage, or "
                        f"save it as one of {FORMATS}."
                    )
                if line.startswith(b"\x1b$") or b"\x1b$B" in line:
                    return "iso2022_jp", b"", ""
                position += len(line)
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
        return "utf-8", b"", ""
    # Longer lines in another encoding are never UTF-8 by chance. Read as anything else, UTF-8 would come out garbled.
    if utf8 > others / 10:
        raise FinetuneError(
            f"Expected one encoding, but found {utf8:,} lines in UTF-8 and {others:,} that are not, the first of them "
            f"{first}. Mend or remove these, or pass the --encoding of all."
        )
    return None, bytes(sample), first


def _open_bytes(path: Path) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return gzip.open(path)  # type: ignore[return-value]
    if path.suffix.lower() == ".zst":
        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    return path.open("rb")


@contextlib.contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Describe what is wrong with a file in one line."""
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
    except (OSError, EOFError, ValueError, OverflowError, RecursionError, zlib.error, pa.ArrowException) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise explain_shortage(error) or FinetuneError(
            f"Expected {str(path)!r} to be a whole, readable file, but got: {reason}. Check it, or save it again."
        ) from error


def _guarded(path: Path, rows: Iterator[Row]) -> Iterator[Row]:
    with _one_line_errors(path):
        yield from rows


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    twice = sorted(name for name, times in collections.Counter(columns).items() if times > 1)
    if twice:
        raise FinetuneError(f"Expected each column of {str(path)!r} once, but found {twice} twice. Rename one.")
    longest = max(map(len, columns), default=0)
    if longest > MAX_NAME_CHARACTERS:
        raise FinetuneError(
            f"Expected names of columns at the head of {str(path)!r}, but found one of {longest:,} characters. "
            "Add a line with names, such as text and label."
        )


def _read_separated(path: Path, open_lines: Callable[[], Iterator[str]], tab: bool) -> Table:
    """Read separated values with a header: by what the header has most of, or tabs in a file that is named for them."""
    csv.field_size_limit(2**31 - 1)
    first = next((line for line in open_lines() if line.strip("\r\n")), "")
    if first.startswith(("{", "[")):
        raise FinetuneError(
            f"Expected names of columns in the first line of {str(path)!r}, but found {first[:40]!r}. Rename the file "
            "to .jsonl if it holds JSON."
        )
    declared = first.startswith("sep=")  # a line that Excel writes above the header
    names = re.sub(r'"[^"\r\n]*"', "", first)
    separator = "\t" if tab and "\t" in names else max(SEPARATORS, key=names.count)
    if tab and not names.count(separator):
        separator = "\t"
    separator = first[4] if declared and first[4:].strip() else separator
    quoted = declared or separator != "\t" or _has_quoted_texts(path, open_lines)
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    dialect: dict[str, Any] = {"delimiter": separator, "quoting": quoting}
    if quoted:
        dialect |= _find_quotes(names, separator, open_lines)
    reader = csv.reader(open_lines(), **dialect, strict=True)

    def lines_again() -> Iterator[list[str]]:
        """Read the rows below the header once more, by themselves."""
        with contextlib.suppress(csv.Error):  # said when they are read
            again = (row for row in csv.reader(open_lines(), **dialect) if row)
            yield from itertools.islice(again, 2 if declared else 1, None)

    def lines() -> Iterator[tuple[list[str], int]]:
        """Yield the fields of each row with the number of its first line."""
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

    found: Iterator[tuple[list[str], int]] = lines()
    if declared:
        next(found)
    header, _ = next(found, ([], 0))
    columns = [name.strip() for name in header]
    second, third = next(found, None), next(found, None)
    columns = _fit_columns(columns, [row[0] for row in (second, third) if row is not None])
    names_above = tuple(header if len(header) == len(columns) else columns)
    _refuse_markdown(path, second)
    kinds = _read_orange_header(columns, second, third)
    if kinds is None:
        found = itertools.chain([row for row in (second, third) if row is not None], found)
    columns, label = kinds or (columns, None)
    _refuse_other_separator(path, columns)
    unnamed = [place for place, name in enumerate(columns) if not name] if columns.count("") > 1 else []
    ignored = _describe_unnamed(lines_again(), unnamed) if unnamed else ()
    named = [name for name in columns if name] if unnamed else columns
    _check_columns(path, named)

    def rows() -> Iterator[Row]:
        for fields, number in found:
            if len(fields) != len(columns):
                raise FinetuneError(
                    f"Expected {len(columns)} fields in each row of {str(path)!r}, as in its header"
                    f"{f' {columns[0][:80]!r}' if len(columns) == 1 else ''}, but line {number} has {len(fields)}. Put "
                    "texts that contain the separator in double quotes."
                )
            if [fields[0].removeprefix("\ufeff"), *fields[1:]] == header:
                raise FinetuneError(
                    f"Expected one header in {str(path)!r}, but line {number} is its header once more. Remove the line."
                )
            values = dict(zip(columns, fields, strict=True))
            if unnamed:
                del values[""]
            yield Row(values, f"line {number}", fields)

    layout = f"separated by {SEPARATORS.get(separator, repr(separator))}"
    layout += ", with Orange's three lines of header" if kinds else ""
    return Table(named, rows(), None, {}, layout, label, ignored, names_above)


def _find_quotes(names: str, separator: str, open_lines: Callable[[], Iterator[str]]) -> dict[str, Any]:
    """Find out whether quotes are single ones, by the header, and whether blanks stand before those within a row."""
    parts = names.strip("\r\n").split(separator)
    if len(parts) > 1 and all(re.fullmatch(r"'[^']*'", part.strip()) for part in parts):
        return {"quotechar": "'"}
    if len(parts) > 1 and all(part.startswith(" ") for part in parts[1:]):
        plain = csv.reader(open_lines(), delimiter=separator)
        with contextlib.suppress(csv.Error):  # said when the rows are read
            if any(re.match(r'\s+"', field) for row in itertools.islice(plain, 20) for field in row):
                return {"skipinitialspace": True}
    return {}


def _fit_columns(columns: list[str], rows: list[list[str]]) -> list[str]:
    """Add or drop a nameless column where a header is one name short or long of the rows below it.

    R numbers its rows without a name above the numbers; others end rows, or the header, with a separator.
    """
    widths = {len(row) for row in rows}
    if len(rows) < 2:
        return columns
    if columns[-1:] == [""] and widths == {len(columns) - 1}:
        return columns[:-1]
    if widths == {len(columns) + 1}:
        first = [row[0].strip() for row in rows]
        if (
            all(number.isdecimal() for number in first)
            and [int(one) - int(first[0]) for one in first] == [0, 1][: len(first)]
        ):
            return ["", *columns]
        if not any(row[-1].strip() for row in rows):
            return [*columns, ""]
    return columns


def _refuse_markdown(path: Path, second: tuple[list[str], int] | None) -> None:
    cells = [] if second is None else [cell.strip() for cell in second[0] if cell.strip()]
    if cells and all(re.fullmatch(r":?-{2,}:?", cell) for cell in cells):
        raise FinetuneError(
            f"Expected rows below the header of {str(path)!r}, but found {cells[0]!r}, as in a table in Markdown. Save "
            "it as .csv."
        )


def _describe_unnamed(rows: Iterator[list[str]], unnamed: Sequence[int]) -> tuple[str, ...]:
    """Describe that columns without names are left out, and of how many rows that leaves values out."""
    filled = sum(any(place < len(row) and row[place].strip() for place in unnamed) for row in rows)
    what = f"{len(unnamed)} columns without a name, "
    return (what + (f"which hold values in {filled:,} rows" if filled else "which are empty"),)


def _refuse_other_separator(path: Path, columns: Sequence[str]) -> None:
    """Refuse a single column whose name looks like several, parted by a sign that is none of ours."""
    parted = re.fullmatch(r"\w+(?:([^\w\s'\"().-]+|\x1f|\x01)\w+)(?:\1\w+)*", columns[0]) if len(columns) == 1 else None
    if parted:
        raise FinetuneError(
            f"Expected columns separated by {', '.join(SEPARATORS.values())} in {str(path)!r}, but its header is "
            f"{columns[0][:80]!r}. Save it with one of these instead of {parted[1]!r}."
        )


def _read_orange_header(
    names: Sequence[str], second: tuple[list[str], int] | None, third: tuple[list[str], int] | None
) -> tuple[list[str], str | None] | None:
    """Read the three lines of header of Orange's tables: names, kinds, and roles. None if there are no such lines."""
    if second is None or third is None or not len(names) == len(second[0]) == len(third[0]):
        return None
    kinds, roles = ([value.strip().lower() for value in row[0]] for row in (second, third))
    if not all(role == "" or re.fullmatch(r"(class|meta|ignore|weight|[cmiw])?(\s*\w+=\S*)*", role) for role in roles):
        return None
    if not any(roles) or sum(kind in ORANGE_KINDS for kind in kinds) < max(1, sum(map(bool, kinds)) - 1):
        return None
    labels = [name for name, role in zip(names, roles, strict=True) if re.match(r"(class|c)\b", role)]
    return list(names), labels[0] if len(labels) == 1 else None


def _has_quoted_texts(path: Path, open_lines: Callable[[], Iterator[str]]) -> bool:
    """Return whether quotes in tab-separated values enclose texts, as in CSV, or are mere signs, as in GLUE's files.

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


def _read_json(path: Path, lines: Iterator[str]) -> Table:
    """Read an object a line, one list of objects, an object that holds such a list, or one of columns."""
    numbered = ((line, number) for number, line in enumerate(lines, 1) if line.strip())
    first, second = next(numbered, ("", 1)), next(numbered, None)
    rest: Iterator[tuple[str, int]] = itertools.chain([] if second is None else [second], numbered)
    layout = "an object a line"
    whole: Any = None
    if first[0].lstrip().startswith("["):
        layout, whole = "a list of objects", _parse_list("".join([first[0], *(line for line, _ in rest)]), path)
    elif first[0].lstrip().startswith("{") and (second is None or not _is_json(first[0])):
        held = list(rest)
        text = "".join([first[0], *(line for line, _ in held)])
        rest = iter(held)
        found = _find_objects(path, json.loads(text)) if _is_json(text) else None
        if found is not None:
            layout, whole = found[0], [(value, None) for value in found[1]]

    def objects() -> Iterator[tuple[Any, str, str | None]]:
        if whole is not None:
            yield from ((value, f"object {number}", text) for number, (value, text) in enumerate(whole, 1))
        else:
            for line, number in itertools.chain([first], rest):
                yield _parse_json(line, path, f"line {number}"), f"line {number}", line

    def rows() -> Iterator[Row]:
        for value, place, source in objects() if first[0] else ():
            if not isinstance(value, dict):
                raise FinetuneError(
                    f'Expected objects like {{"text": …, "label": …}} in {str(path)!r}, but {place} is a '
                    f"{type(value).__name__}."
                )
            yield Row(value, place, source)

    # The columns of a file whose objects need not have the same keys are those of its first hundred.
    made = rows()
    head = list(itertools.islice(made, 100))
    columns = list(dict.fromkeys(name for row in head for name in row.values))
    _check_columns(path, columns)
    return Table(columns, itertools.chain(head, made), None, {}, layout)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _find_objects(path: Path, value: dict[str, Any]) -> tuple[str, list[Any]] | None:
    """Find the rows that one object holds: a list of objects under some name, or columns, as pandas writes them."""
    names = value.get("columns")
    if isinstance(names, list) and isinstance(value.get("data"), list):
        rows = value["data"]
        if all(isinstance(row, list) and len(row) == len(names) for row in rows):
            return "columns and data", [dict(zip(map(str, names), row, strict=True)) for row in rows]
    lists = {
        name: one
        for name, one in value.items()
        if isinstance(one, list) and one and all(isinstance(row, dict) for row in one)
    }
    if len(lists) > 1 and len(lists) == len([one for one in value.values() if isinstance(one, list | dict)]):
        raise FinetuneError(
            f"Expected one list of objects in {str(path)!r}, but found several: {list(lists)[:10]}. Save each as a "
            "file of its own, for --train_file, --validation_file and --test_file."
        )
    if len(lists) == 1:
        (name, rows), *_ = lists.items()
        return f"a list of objects under {name!r}", rows
    columns = list(value.values())
    if len(columns) > 1 and all(isinstance(column, dict) for column in columns):
        keys = list(columns[0])
        plain = all(not isinstance(one, dict) for column in columns for one in column.values())
        if plain and len(columns) > len(keys) > 1 and all(keys == list(column) for column in columns):
            return "objects by their row", columns
        if plain and len(keys) > 0 and all(list(column) == keys for column in columns):
            return "columns", [{name: column[key] for name, column in value.items()} for key in keys]
    if len(columns) > 1 and all(isinstance(column, list) and len(column) == len(columns[0]) > 1 for column in columns):
        return "columns", [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
    return None


def _parse_json(text: str, path: Path, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        if "integer string conversion" in str(error):  # Python has no integers of more than 4,300 digits
            return json.loads(text, parse_int=float)
        raise FinetuneError(
            f"Expected JSON in {str(path)!r}, but {place} is not. Write one object a line, or one list of objects."
        ) from error


def _parse_list(text: str, path: Path) -> list[tuple[Any, str]]:
    """Parse a list, and return each of its values with its own text."""
    _parse_json(text, path, "it")
    decoder, found = json.JSONDecoder(), []
    end = text.index("[") + 1
    while text[start := JSON_BETWEEN.match(text, end).end()] != "]":  # type: ignore[union-attr]  # it always matches
        value, end = decoder.raw_decode(text, start)
        found.append((value, text[start:end]))
    return found


def _read_lines(path: Path, open_lines: Callable[[], Iterator[str]]) -> Table:
    """Read lines of a label and a text."""
    layout, lines = read_labelled_lines(path, open_lines)
    rows = (Row({"label": label, "text": text}, f"line {number}") for label, text, number in lines)
    return Table(["label", "text"], rows, None, {}, layout)


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
            for place, values in enumerate(_to_values(batch)):
                number += 1
                yield Row(values, f"row {number}", (batch, place))

    return Table(columns, _guarded(path, rows()), None, class_names)


def _to_values(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return the values of rows; in words where Python has none, as of dates beyond the year 9999."""
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException):
        columns = [_to_list(column) for column in batch.columns]
        return [dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]


def _to_list(column: pa.Array) -> list[Any]:
    try:
        return column.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException):
        # The name of a time zone may be one that nobody here knows.
        return column.cast(pa.int64() if pa.types.is_timestamp(column.type) else pa.string()).to_pylist()


def _read_class_names(path: Path, schema: pa.Schema) -> dict[str, list[str]]:
    """Return the names of the classes by column, as `datasets` has noted them; only then is it imported."""
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


def _open_folder(path: Path, encoding: str | None, fallback: str | None) -> Table:
    files, is_a_line = _text_files(path)
    if not files:
        raise FinetuneError(
            f"Expected a folder of .txt files for each class in {str(path)!r}, but found "
            f"{[entry.name for entry in sorted(path.iterdir())][:5]}. Pass the folder that holds the classes"
            f"{_advise_on_folder(path)}."
        )
    encoding = encoding or detect_encoding(*files, fallback=fallback)

    def rows() -> Iterator[Row]:
        for file in files:
            label = _class_of(file, path)
            with _one_line_errors(file), file.open(encoding=encoding, newline="\n" if is_a_line else "") as stream:
                if is_a_line:
                    for number, line in enumerate(stream, 1):
                        text = line.removeprefix("\ufeff").rstrip("\r\n")
                        if text.strip():
                            yield Row({"label": label, "text": text}, f"line {number} of {file.relative_to(path)}")
                else:
                    text = stream.read().removeprefix("\ufeff")
                    yield Row({"label": label, "text": text}, str(file.relative_to(path)))

    layout = "a text a line" if is_a_line else "a text a file"
    return Table(["label", "text"], rows(), encoding, {}, layout)


def _text_files(path: Path) -> tuple[list[Path], bool]:
    """Find the files of texts in a folder, and tell whether each of their lines is a text.

    A folder of files for each class; or a file for each class, pos.txt and neg.txt, or reviews.pos and reviews.neg.
    """
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
    if files:
        return files, _hold_a_text_a_line(files)
    own = [file for file in sorted(path.iterdir()) if file.is_file() and not file.name.startswith(".")]
    texts = [file for file in own if file.suffix.lower() == ".txt" and file.stem.lower() not in NO_CLASSES]
    if len(texts) < 2:
        stems = {file.stem for file in own if file.suffix}
        texts = own if len(own) > 1 and len(stems) == 1 and not {file.suffix for file in own} & READ_ENDINGS else []
    return texts, True


def _class_of(file: Path, folder: Path) -> str:
    if file.parent != folder:
        return file.parent.name
    return file.stem if file.suffix.lower() == ".txt" else file.suffix.removeprefix(".")


def _hold_a_text_a_line(files: Sequence[Path]) -> bool:
    """Return whether files hold many texts, one a line: a few for each class, with many lines."""
    classes = {file.parent for file in files}
    if len(files) > MAX_FILES_OF_LINES * len(classes):
        return False
    lines = sum(sum(1 for line in file.open("rb") if line.strip()) for file in files)
    return lines >= MIN_LINES * len(files)


def _advise_on_folder(path: Path) -> str:
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        return ", or save each split of this data set with to_parquet()"
    endings = sorted({file.suffix for file in path.iterdir() if file.suffix in READ_ENDINGS})
    return f", or one of its {endings[0]} files" if endings else ""
