"""Label a file of any size: rows in, the same rows out with label and probabilities added, in constant memory.

A run that was cut off is continued exactly by the same command, each row once, in order (`unfinished.py`). The output
has its name only when it is whole.

Several processes read the same rows and divide the batches of each chunk (`compute_rows`); the main one alone writes.
"""

import collections
import contextlib
import hashlib
import itertools
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from finetune.data.columns import Columns, choose_columns
from finetune.data.nested import get_value
from finetune.data.read import Row
from finetune.data.texts import COMPRESSIONS, find_ending, open_texts
from finetune.decisions.rules import Wishes
from finetune.errors import FinetuneError
from finetune.escape import say
from finetune.inference.exported import is_exported
from finetune.inference.labelled_rows import JsonLines, RowFormat, choose_format
from finetune.inference.predict import load_predictor
from finetune.inference.unfinished import Unfinished, check_output
from finetune.models.answers import TextClassifier
from finetune.progress_bar import progress_bar
from finetune.tasks import MULTI_LABEL, REGRESSION
from finetune.threads import count_launched

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
        _refuse_taken(input_file, table.columns, added)
        if ending == ".jsonl":  # where any row may have columns of its own
            for row in open_texts(input_file, predictor.task, table.encoding).rows:
                _refuse_taken(input_file, row.values, added)
        rows = itertools.chain(sample, table.rows)
        if is_main:
            pair = "" if chosen.text_pair is None else f" and {chosen.text_pair!r}"
            how = f", {table.layout}" * bool(table.layout)
            how += f", read as {table.encoding}" if table.encoding not in (None, "utf-8") else ""
            say(f"texts from column {chosen.text!r}{pair}{how}", file=sys.stdout)
            form = choose_format(ending, input_file, table, added)
            empty: collections.Counter[str] = collections.Counter()
            count = _write(output_file, asked, form, _watch(rows, chosen, empty), chosen, predictor)
            for first, number in empty.items():
                more = f" and {number - 1:,} more have" if number > 1 else " has"
                warnings.warn(f"{first}{more} no text: the answer is that to an empty one", stacklevel=2)
            if isinstance(form, JsonLines) and form.num_nulls:
                warnings.warn(
                    f"null stands for NaN and Infinity in {form.num_nulls:,} rows: JSON has neither", stacklevel=2
                )
            return count
        done = _agree(0)
        for chunk in _chunks(itertools.islice(rows, done, None)):
            _answer(chunk, chosen, predictor)
        return None


def _check_files(input_file: Path, output_file: Path) -> str:
    """Find the format of the output; raise an error that says what is wrong with either file."""
    found = find_ending(input_file)
    if not input_file.exists():
        raise FinetuneError(f"Expected --input_file to be a file or folder, but {str(input_file)!r} does not exist.")
    if not (input_file.is_file() or input_file.is_dir()):  # it is read more than once
        raise FinetuneError(
            f"Expected --input_file to be a file or folder, but {str(input_file)!r} is a pipe or a device. Write what "
            "comes out of it to a file."
        )
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
    check_output(output_file)
    return ending


def _refuse_taken(input_file: Path, columns: Iterable[str], added: Sequence[str]) -> None:
    """Refuse columns of the input that have the name of one that is added, in whatever case, which SQL doesn't tell."""
    ours = {name.casefold() for name in added}
    taken = sorted(name for name in columns if name.casefold() in ours)
    if taken:
        raise FinetuneError(f"Expected {str(input_file)!r} without the columns {taken}, which are added. Rename them.")


def _write(
    output_file: Path,
    asked: dict[str, Any],
    form: RowFormat,
    rows: Iterator[Row],
    columns: Columns,
    predictor: TextClassifier,
) -> int:
    """Label the rows that are not done yet, and give the output its name when it is whole."""
    with Unfinished(output_file, asked) as output:
        done = _agree(output.num_rows)
        if output.is_placed:
            return done
        next(itertools.islice(rows, done, done), None)  # past those that are done
        if form.head and output.num_bytes == 0:
            output.append(form.head, 0)
        with progress_bar(0, "Predicting") as advance:
            for chunk in _chunks(rows):
                output.append(form.encode(chunk, _answer(chunk, columns, predictor)), len(chunk))
                advance(len(chunk))
                if "torch" in sys.modules:  # not for an export
                    from finetune.hardware import release_memory

                    release_memory()
        output.finish(form.finish)
    return output.num_rows


@contextlib.contextmanager
def _lost_processes_in_one_line() -> Iterator[None]:
    """Report in one line that another process of the job has ended."""
    try:
        yield
    except RuntimeError as error:
        if count_launched() == 1:
            raise
        from finetune.run.waiting import is_lost_connection

        if not is_lost_connection(error):
            raise
        raise FinetuneError(
            f"Expected {count_launched()} processes, but one ended or its host can't be reached. Look for its own "
            "message above, then give the same command again: it goes on where the output ends."
        ) from error


def _join_processes() -> bool:
    """Join the other processes of the launcher, if there are any; tells whether this is the main one."""
    if count_launched() == 1:
        return True
    import torch

    from finetune.settings.launched import join_processes

    return join_processes(SILENCE, use_cpu=not torch.cuda.is_available())


def _agree(done: int) -> int:
    """Broadcast the main process's number, once all processes have got here."""
    if count_launched() == 1:
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


def _answer(rows: list[Row], columns: Columns, predictor: TextClassifier) -> list[list[Any]]:
    """Return the values of the added columns for each row."""
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
    return found


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
