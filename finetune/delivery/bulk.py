"""Label a file of any size: rows in, the same rows out with label and probabilities added, in constant memory.

What is done is kept in `OUTPUT.partial`, and `OUTPUT.state.json` says how much of it counts: a run that was cut off is
continued exactly by the same command, each row once, in order. The output has its name only when it is whole.

Several processes read the same rows and divide the batches of each chunk (`compute_rows`); the main one alone writes.
"""

import csv
import fcntl
import hashlib
import io
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from torch import distributed

from finetune.arguments import DataArguments
from finetune.data.columns import Columns, choose_columns
from finetune.data.read import Row, Table, open_table
from finetune.delivery.answers import TextClassifier
from finetune.delivery.load import find_model_folder
from finetune.delivery.predict import load_predictor
from finetune.errors import FinetuneError
from finetune.files import write_json
from finetune.metrics import MULTI_LABEL, REGRESSION
from finetune.training.progress import progress_bar

__all__ = ["predict_file"]

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")
ROWS_AT_ONCE = 4_096  # sorted by length among themselves, and what is lost when a run is cut off
LABEL_SEPARATOR = ";"
SILENCE = timedelta(minutes=2)  # after which another process counts as gone


def predict_file(path: str | Path, input_file: Path, output_file: Path, columns: dict[str, Any]) -> int | None:
    """Label the texts of a file.

    The output has the columns of the input, then `predicted_label` (for several labels a text `predicted_labels`, a
    list, or joined by ";" in CSV; for a number `predicted_value`), and `probability_<label>` for each label.

    Args:
        path: What `load_predictor` takes.
        input_file: .csv, .tsv, .jsonl or .parquet.
        output_file: In the same format; is continued if it was left unfinished.
        columns: `text_column`, `text_pair_column` and `encoding`, where they can't be told.

    Returns:
        The number of rows in the output; None in a process beside the main one.

    Raises:
        FinetuneError: If the files don't fit, or something else than the unfinished output's is asked for.
    """
    if output_file.suffix not in FORMATS:
        raise FinetuneError(f"Expected --output_file to end in one of {', '.join(FORMATS)}, but got {output_file}.")
    if input_file.suffix != output_file.suffix:
        raise FinetuneError(
            f"Expected --output_file in the format of the input, {input_file.suffix!r}, but got {output_file.suffix!r}."
        )
    if output_file.exists():
        raise FinetuneError(f"Expected a new --output_file, but {str(output_file)!r} exists. Pass another one.")
    if not input_file.is_file():
        raise FinetuneError(f"Expected --input_file to be a file, but {str(input_file)!r} does not exist.")
    is_main = _join_processes()
    folder = find_model_folder(path)
    asked = {"input": _hash(input_file), "model": _hash(*sorted(folder.glob("*"))), **columns}
    table = open_table(input_file, columns.get("encoding"))
    sample = list(itertools.islice(table.rows, 100))
    chosen = choose_columns(table, sample, DataArguments(**columns), repr(str(input_file)))
    predictor = load_predictor(folder)
    added = _added_columns(predictor)
    taken = sorted(set(added) & set(table.columns))
    if taken:
        raise FinetuneError(f"Expected {str(input_file)!r} without the columns {taken}, which are added. Rename them.")
    schema = _schema(input_file, table, added)
    if not is_main:
        done = _agree(0)
        for chunk in _chunks(itertools.islice(itertools.chain(sample, table.rows), done, None)):
            _label(chunk, chosen, predictor, added)
        return None

    partial = output_file.with_name(f"{output_file.name}.partial")
    with partial.open("ab") as sink:
        try:
            fcntl.flock(sink, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FinetuneError(
                f"Expected to write {str(partial)!r} alone, but another process is at it. Wait for it to end."
            ) from None
        state_file = output_file.with_name(f"{output_file.name}.state.json")
        done = _agree(_resume(sink, state_file, asked))
        rows = itertools.chain(sample, table.rows)
        next(itertools.islice(rows, done, done), None)  # past those that are done
        if done == 0:
            _write_head(sink, output_file, schema)
        with progress_bar(0, "Predicting") as advance:
            for chunk in _chunks(rows):
                _write_rows(sink, output_file, schema, _label(chunk, chosen, predictor, added))
                sink.flush()
                os.fsync(sink.fileno())
                done += len(chunk)
                write_json(state_file, {"asked": asked, "rows": done, "bytes": sink.tell()})
                advance(len(chunk))
        if output_file.suffix == ".parquet":
            _to_parquet(partial, schema)
        partial.replace(output_file)
    state_file.unlink(missing_ok=True)
    return done


def _join_processes() -> bool:
    """Join the other processes of the launcher, if there are any; tells whether this is the main one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=SILENCE)
    return state.is_main_process


def _agree(done: int) -> int:
    """Give every process the main one's number, once all of them have got here."""
    if not distributed.is_initialized():
        return done
    numbers: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(numbers, done)
    return numbers[0]


def _hash(*files: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _added_columns(predictor: TextClassifier) -> list[str]:
    names = [f"probability_{name}" for name in predictor.task.label_names]
    match predictor.task.problem_type:
        case "regression":
            return ["predicted_value"]
        case "multi_label_classification":
            return ["predicted_labels", *names]
    return ["predicted_label", *names]


def _schema(input_file: Path, table: Table, added: Sequence[str]) -> pa.Schema:
    """Give names and types of the output's columns; of text formats the names alone matter."""
    if input_file.suffix == ".parquet":
        fields = list(pq.ParquetFile(input_file).schema_arrow)
    else:
        fields = [pa.field(name, pa.string()) for name in table.columns]
    kinds = {"predicted_label": pa.string(), "predicted_labels": pa.list_(pa.string())}
    return pa.schema([*fields, *(pa.field(name, kinds.get(name, pa.float32())) for name in added)])


def _resume(sink: IO[bytes], state_file: Path, asked: dict[str, Any]) -> int:
    """Cut off what an earlier run left half-written; gives the number of rows that count."""
    if not state_file.is_file():
        sink.truncate(0)
        return 0
    state = json.loads(state_file.read_text(encoding="utf-8"))
    changed = [name for name, value in asked.items() if state["asked"].get(name) != value]
    if changed:
        raise FinetuneError(
            f"Expected to continue the unfinished output with the same {' and '.join(changed)}, but found others. "
            f"Restore them, or delete {str(state_file)!r} to start over."
        )
    sink.truncate(state["bytes"])
    sink.seek(0, io.SEEK_END)
    return int(state["rows"])


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while chunk := list(itertools.islice(rows, ROWS_AT_ONCE)):
        yield chunk


def _label(rows: list[Row], columns: Columns, predictor: TextClassifier, added: Sequence[str]) -> list[dict[str, Any]]:
    """Give the rows with the added columns."""
    texts = [_to_text(row.values.get(columns.text)) for row in rows]
    pairs = None if columns.text_pair is None else [_to_text(row.values.get(columns.text_pair)) for row in rows]
    probabilities = predictor.compute_probabilities(texts, pairs)
    names = predictor.task.label_names
    if predictor.task.problem_type == REGRESSION:
        found: Any = probabilities.astype(float).tolist()
    else:
        chosen = predictor.decide(probabilities)
        labels: list[Any] = [[names[number] for number in np.flatnonzero(row)] for row in chosen]
        if predictor.task.problem_type != MULTI_LABEL:
            labels = [one[0] for one in labels]
        found = [[label, *map(float, row)] for label, row in zip(labels, probabilities, strict=True)]
    return [row.values | dict(zip(added, values, strict=True)) for row, values in zip(rows, found, strict=True)]


def _to_text(value: Any) -> str:
    return "" if value is None else str(value)


def _write_head(sink: IO[bytes], output_file: Path, schema: pa.Schema) -> None:
    if output_file.suffix in (".csv", ".tsv"):
        _write_lines(sink, output_file, [schema.names])


def _write_rows(sink: IO[bytes], output_file: Path, schema: pa.Schema, rows: list[dict[str, Any]]) -> None:
    if output_file.suffix == ".jsonl":
        sink.write("".join(f"{json.dumps(_rounded(row), ensure_ascii=False)}\n" for row in rows).encode("utf-8"))
    elif output_file.suffix == ".parquet":
        batch = pa.RecordBatch.from_pylist(rows, schema=schema)
        with pa.ipc.new_stream(sink, schema) as writer:  # one after the other; they become Parquet at the end
            writer.write_batch(batch)
    else:
        _write_lines(sink, output_file, [[_cell(row.get(name)) for name in schema.names] for row in rows])


def _write_lines(sink: IO[bytes], output_file: Path, lines: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    delimiter = "\t" if output_file.suffix == ".tsv" else ","
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(lines)
    sink.write(text.getvalue().encode("utf-8"))


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}"
    return LABEL_SEPARATOR.join(value) if isinstance(value, list) else value


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: float(f"{value:.6g}") if isinstance(value, float) and name.startswith(("probability_", "pred")) else value
        for name, value in row.items()
    }


def _to_parquet(partial: Path, schema: pa.Schema) -> None:
    """Turn the streams that lie one after the other into one Parquet file, a row group each."""
    aside = partial.with_name(f"{partial.name}.parquet")
    with partial.open("rb") as source, pq.ParquetWriter(aside, schema) as writer:
        while source.peek(1):
            with pa.ipc.open_stream(source) as stream:
                for batch in stream:
                    writer.write_batch(batch)
    shutil.move(aside, partial)
