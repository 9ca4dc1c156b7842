"""Label a file of any size: rows in, the same rows out with label and probabilities added, in constant memory.

What is done is kept in `OUTPUT.partial`, and `OUTPUT.state.json` says how much of it counts: a run that was cut off is
continued exactly by the same command, each row once, in order. The output has its name only when it is whole.

Several processes read the same rows and divide the batches of each chunk (`compute_rows`); the main one alone writes.
"""

import collections
import contextlib
import csv
import fcntl
import hashlib
import io
import itertools
import json
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from finetune.data.columns import Columns, choose_columns
from finetune.data.nested import get_value
from finetune.data.read import Row, Table
from finetune.data.texts import COMPRESSIONS, find_ending, open_texts
from finetune.decisions.rules import Wishes
from finetune.errors import FinetuneError
from finetune.files import write_json
from finetune.inference.exported import is_exported
from finetune.inference.predict import load_predictor
from finetune.models.answers import TextClassifier
from finetune.progress_bar import progress_bar
from finetune.tasks import MULTI_LABEL, REGRESSION

__all__ = ["predict_file"]

# The ending of the output, by that of the input. Of any other ending, and of folders, rows come out as CSV.
FORMATS = {".csv": ".csv", ".tsv": ".tsv", ".tab": ".tsv", ".jsonl": ".jsonl", ".ndjson": ".jsonl", ".json": ".jsonl",
           ".parquet": ".parquet", ".xlsx": ".csv", ".xlsm": ".csv"}  # fmt: skip
ROWS_AT_ONCE = 4_096  # sorted by length among themselves, and what is lost when a run is cut off
SILENCE = timedelta(minutes=2)  # after which another process counts as gone


def predict_file(
    path: str | Path,
    input_file: Path,
    output_file: Path,
    columns: dict[str, Any],
    num_threads: int | None = None,
    accelerated: bool = True,
    wishes: Wishes | None = None,
) -> int | None:
    """Label the texts of a file.

    The output has the columns of the input, then `predicted_label` (for several labels a text `predicted_labels`, a
    list, in CSV written in JSON; for a number `predicted_value`), and `probability_<label>` for each label. A text that
    is missing is labelled as an empty one. With `--abstain` `is_answered` says whether a label is given, which else is
    empty; with `--coverage` `prediction_set` is a list of labels, or `interval_low` and `interval_high` the ends around
    a number.

    Args:
        path: What `load_predictor` takes. An export is run without torch.
        input_file: What `open_table` reads, except compressed Parquet. Lines of a file whose ending names no format are
            texts, or labels and texts if all have labels of the model.
        output_file: In the same format, not compressed: JSON as .jsonl, `.tab` as .tsv, Excel, lines and folders as
            .csv. It is continued if it was left unfinished.
        columns: `text_column`, `text_pair_column` and `encoding`, where they can't be told.
        num_threads: Threads of an export; by default one for each physical core. Of others torch's own setting counts.
        accelerated: Whether to compute with `finetune.accelerated`.
        wishes: What is asked of the answers, in place of what was saved with the model.

    Returns:
        The number of rows in the output; None in a process beside the main one.

    Raises:
        FinetuneError: If the files don't fit, something else than the unfinished output's is asked for, or another
            process of this job is gone.
    """
    ending = _check_files(input_file, output_file)
    # oneDNN keeps a compiled kernel for each shape that it has seen, 1,024 of them; batches of a large file differ.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    with _lost_processes_in_one_line():
        is_main = _join_processes()
        folder = Path(path)
        if not is_exported(folder):  # which runs without what the others import
            from finetune.inference.load import find_model_folder

            folder = find_model_folder(path)
        predictor = load_predictor(folder, accelerated=accelerated, num_threads=num_threads, wishes=wishes)
        model = _hash(*sorted(folder.glob("*")))
        plain = None if accelerated else True  # it computes the same but for rounding, which a file is not to mix
        asked = {"input": _hash_input(input_file), "model": model, "no_accelerated": plain, **columns}
        if wishes is not None:
            asked |= {name: value for name, value in vars(wishes).items() if value != getattr(Wishes(), name)}
        table = open_texts(input_file, predictor.task, columns.get("encoding"), predictor.encoding)
        sample = list(itertools.islice(table.rows, 100))
        chosen = choose_columns(table, sample, columns, repr(str(input_file)))
        added = _added_columns(predictor)
        taken = sorted(set(added) & set(table.columns))
        if taken:
            raise FinetuneError(
                f"Expected {str(input_file)!r} without the columns {taken}, which are added. Rename them."
            )
        rows = itertools.chain(sample, table.rows)
        if is_main:
            pair = "" if chosen.text_pair is None else f" and {chosen.text_pair!r}"
            how = "".join(f", {one}" for one in (table.layout, *(f"without {what}" for what in table.ignored)) if one)
            how += f", read as {table.encoding}" if table.encoding not in (None, "utf-8") else ""
            print(f"texts from column {chosen.text!r}{pair}{how}", flush=True)
            schema = _schema(input_file, table, added)
            empty: collections.Counter[str] = collections.Counter()
            count = _write(output_file, ending, schema, asked, _watch(rows, chosen, empty), chosen, predictor, added)
            for first, number in empty.items():
                more = f" and {number - 1:,} more have" if number > 1 else " has"
                warnings.warn(f"{first}{more} no text: the answer is that to an empty one", stacklevel=2)
            return count
        done = _agree(0)
        for chunk in _chunks(itertools.islice(rows, done, None)):
            _label(chunk, chosen, predictor, added)
        return None


def _check_files(input_file: Path, output_file: Path) -> str:
    """Find the format of the output; raise an error that says what is wrong with either file."""
    found = find_ending(input_file)
    if not input_file.exists():
        raise FinetuneError(f"Expected --input_file to be a file or folder, but {str(input_file)!r} does not exist.")
    if found == ".parquet" and input_file.suffix.lower() in COMPRESSIONS:
        raise FinetuneError(
            f"Expected --input_file in Parquet as it is, which is compressed within, but got {input_file}. Unpack it."
        )
    ending = ".csv" if input_file.is_dir() else FORMATS.get(found, ".csv")
    if output_file.suffix.lower() != ending:
        raise FinetuneError(
            f"Expected --output_file to end in {ending}, as {str(input_file)!r} is read, but got {output_file}. "
            "Give it that ending."
        )
    if output_file.exists():
        raise FinetuneError(f"Expected a new --output_file, but {str(output_file)!r} exists. Pass another one.")
    if not output_file.parent.is_dir():
        raise FinetuneError(f"Expected --output_file in a folder, but {str(output_file.parent)!r} is none. Make it.")
    return ending


def _write(
    output_file: Path,
    ending: str,
    schema: pa.Schema,
    asked: dict[str, Any],
    rows: Iterator[Row],
    columns: Columns,
    predictor: TextClassifier,
    added: Sequence[str],
) -> int:
    """Label the rows that are not done yet, and give the output its name when it is whole."""
    partial = output_file.with_name(f"{output_file.name}.partial")
    state_file = output_file.with_name(f"{output_file.name}.state.json")
    try:
        opened = partial.open("ab")
    except OSError as error:
        raise FinetuneError(
            f"Expected to write {str(partial)!r}, but got: {error.strerror}. Pass another --output_file."
        ) from error
    with opened as sink:
        try:
            fcntl.flock(sink, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FinetuneError(
                f"Expected to write {str(partial)!r} alone, but another process is at it. Wait for it to end."
            ) from None
        try:
            done = _agree(_resume(sink, state_file, asked))
            next(itertools.islice(rows, done, done), None)  # past those that are done
            if done == 0:
                _write_head(sink, ending, schema)
            with progress_bar(0, "Predicting") as advance:
                for chunk in _chunks(rows):
                    _write_rows(sink, ending, schema, added, _label(chunk, columns, predictor, added))
                    sink.flush()
                    os.fsync(sink.fileno())
                    done += len(chunk)
                    write_json(state_file, {"asked": asked, "rows": done, "bytes": sink.tell()})
                    advance(len(chunk))
                    if "torch" in sys.modules:  # not for an export
                        from finetune.hardware import release_memory

                        release_memory()
            if ending == ".parquet":
                _to_parquet(partial, schema)
            partial.replace(output_file)
        except BaseException:
            if not state_file.is_file():  # there is nothing to go on from
                partial.unlink(missing_ok=True)
            raise
    state_file.unlink(missing_ok=True)
    return done


@contextlib.contextmanager
def _lost_processes_in_one_line() -> Iterator[None]:
    """Report in one line that another process of the job has ended."""
    try:
        yield
    except RuntimeError as error:
        if _num_processes() == 1:
            raise
        from finetune.run.waiting import is_lost_connection

        if not is_lost_connection(error):
            raise
        raise FinetuneError(
            f"Expected {_num_processes()} processes, but one ended or its host can't be reached. Look for its own "
            "message above, then give the same command again: it goes on where the output ends."
        ) from error


def _num_processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _join_processes() -> bool:
    """Join the other processes of the launcher, if there are any; tells whether this is the main one."""
    if _num_processes() == 1:
        return True
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available(), timeout=SILENCE).is_main_process


def _agree(done: int) -> int:
    """Broadcast the main process's number, once all processes have got here."""
    if _num_processes() == 1:
        return done
    from torch import distributed

    numbers: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(numbers, done)
    return numbers[0]


def _hash_input(path: Path) -> str:
    return _hash(*(sorted(path.rglob("*")) if path.is_dir() else [path]))


def _hash(*files: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _added_columns(predictor: TextClassifier) -> list[str]:
    rules, names = predictor.rules, [f"probability_{name}" for name in predictor.task.label_names]
    if predictor.task.problem_type == REGRESSION:
        return ["predicted_value", *([] if rules.prediction_sets is None else ["interval_low", "interval_high"])]
    several = predictor.task.problem_type == MULTI_LABEL
    silence = [] if rules.abstention is None else ["is_answered"]
    sets = [] if rules.prediction_sets is None else ["prediction_set"]
    return ["predicted_labels" if several else "predicted_label", *silence, *sets, *names]


def _schema(input_file: Path, table: Table, added: Sequence[str]) -> pa.Schema:
    """Return names and types of the output's columns; of text formats the names alone matter."""
    if input_file.suffix.lower() == ".parquet":
        fields = list(pq.ParquetFile(input_file).schema_arrow)
    else:
        fields = [pa.field(name, pa.string()) for name in table.columns]
    labels = pa.list_(pa.string())
    kinds = {"predicted_label": pa.string(), "predicted_labels": labels, "prediction_set": labels}
    kinds["is_answered"] = pa.bool_()
    return pa.schema([*fields, *(pa.field(name, kinds.get(name, pa.float32())) for name in added)])


def _resume(sink: IO[bytes], state_file: Path, asked: dict[str, Any]) -> int:
    """Cut off what an earlier run left half-written; gives the number of rows that count."""
    if not state_file.is_file():
        sink.truncate(0)
        return 0
    try:
        state = json.loads(state_file.read_text(encoding="utf-8"))
        before, is_whole = state["asked"], sink.seek(0, io.SEEK_END) >= state["bytes"]
    except (ValueError, KeyError, TypeError):
        before, is_whole = {}, False
    if not is_whole:
        raise FinetuneError(
            f"Expected {sink.name!r} as {str(state_file)!r} describes it, but one of them was changed. Delete both to "
            "start over."
        )
    changed = [name for name, value in asked.items() if before.get(name) != value]
    if changed:
        raise FinetuneError(
            f"Expected to continue the unfinished output with the same {' and '.join(changed)}, but found others. "
            f"Restore them, or delete {str(state_file)!r} to start over."
        )
    sink.truncate(state["bytes"])
    sink.seek(0, io.SEEK_END)
    return int(state["rows"])


def _watch(rows: Iterator[Row], columns: Columns, empty: collections.Counter[str]) -> Iterator[Row]:
    """Hand rows on, and count those without a text by the place of the first."""
    for row in rows:
        value = get_value(row.values, columns.text)
        if _is_missing(value) or value == "":
            empty[next(iter(empty), row.place)] += 1
        yield row


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while chunk := list(itertools.islice(rows, ROWS_AT_ONCE)):
        yield chunk


def _label(rows: list[Row], columns: Columns, predictor: TextClassifier, added: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows with the added columns."""
    texts = [_to_text(row, columns.text) for row in rows]
    pairs = None if columns.text_pair is None else [_to_text(row, columns.text_pair) for row in rows]
    several = predictor.task.problem_type == MULTI_LABEL
    found = []
    for one in predictor.predict(texts, pairs):
        if one.value is not None:
            found.append([one.value, *(one.interval or ())])
            continue
        silence = [] if predictor.rules.abstention is None else [one.is_given]
        sets = [] if one.label_set is None else [list(one.label_set)]
        label = list(one.labels) if several else one.label
        found.append([label, *silence, *sets, *one.all_probabilities.values()])
    return [row.values | dict(zip(added, values, strict=True)) for row, values in zip(rows, found, strict=True)]


def _is_missing(value: Any) -> bool:
    return value is None or value != value  # NaN is what pandas has for what is missing


def _to_text(row: Row, column: str) -> str:
    value = get_value(row.values, column)
    if _is_missing(value):
        return ""
    if isinstance(value, dict | list | bytes):
        raise FinetuneError(
            f"Expected texts in column {column!r}, but {row.place} has a {type(value).__name__}. Pass --text_column."
        )
    text = str(value)
    return text if text.isascii() else text.encode("utf-8", "replace").decode()  # "?" for half of a character


def _write_head(sink: IO[bytes], ending: str, schema: pa.Schema) -> None:
    if ending in (".csv", ".tsv"):
        _write_lines(sink, ending, [schema.names])


def _write_rows(
    sink: IO[bytes], ending: str, schema: pa.Schema, added: Sequence[str], rows: list[dict[str, Any]]
) -> None:
    if ending == ".jsonl":
        sink.write(b"".join(_to_json(row, added) for row in rows))
    elif ending == ".parquet":
        batch = pa.RecordBatch.from_pylist(rows, schema=schema)
        with pa.ipc.new_stream(sink, schema) as writer:  # one after the other; they become Parquet at the end
            writer.write_batch(batch)
    else:
        numbers = {name for name in added if not name.startswith("predicted_label")}
        _write_lines(sink, ending, [[_cell(row.get(name), name in numbers) for name in schema.names] for row in rows])


def _write_lines(sink: IO[bytes], ending: str, lines: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    delimiter = "\t" if ending == ".tsv" else ","
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(lines)
    sink.write(text.getvalue().encode("utf-8"))


def _cell(value: Any, is_ours: bool) -> Any:
    """Write a value; numbers of the model's with six digits, those of the input as they are."""
    if isinstance(value, float) and is_ours:
        return f"{value:.6g}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value


def _to_json(row: dict[str, Any], added: Sequence[str]) -> bytes:
    row = row | {name: float(f"{row[name]:.6g}") for name in added if isinstance(row[name], float)}
    try:
        return f"{json.dumps(row, ensure_ascii=False)}\n".encode()
    except UnicodeEncodeError:  # half of a character, of which UTF-8 has none
        return f"{json.dumps(row)}\n".encode()


def _to_parquet(partial: Path, schema: pa.Schema) -> None:
    """Turn the streams that lie one after the other into one Parquet file, a row group each."""
    aside = partial.with_name(f"{partial.name}.parquet")
    with partial.open("rb") as source, pq.ParquetWriter(aside, schema) as writer:
        while source.peek(1):
            with pa.ipc.open_stream(source) as stream:
                for batch in stream:
                    writer.write_batch(batch)
    shutil.move(aside, partial)
