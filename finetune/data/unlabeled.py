"""Texts without labels, to learn from beside the labelled ones."""

import itertools
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
from datasets import Dataset, DatasetDict

from finetune.data.columns import choose_columns
from finetune.data.examples import name_of, write_examples
from finetune.data.split import text_keys
from finetune.data.texts import open_texts
from finetune.errors import FinetuneError
from finetune.settings.parts import DataArguments
from finetune.tasks import Task

__all__ = ["load_unlabeled"]


def load_unlabeled(
    arguments: DataArguments, splits: DatasetDict, task: Task, encoding: str | None = None
) -> Dataset | None:
    """Load the texts of `--unlabeled_file`, each once, without those that are in a split too.

    Labels that stand beside them are not read. What is measured on, or chosen by, is never learnt from.

    Args:
        arguments: The file, and the names of its columns if they can't be told.
        splits: `train`, `validation` and `test`.
        task: What train's labels are.
        encoding: What bytes of the splits that are no UTF-8 were read as.

    Returns:
        The columns `id`, `text`, and `text_pair` if the splits have it; None without a file.

    Raises:
        FinetuneError: If it can't be read, has one text where the splits have two, or none that is new.
    """
    if arguments.unlabeled_file is None:
        return None
    path, where = Path(arguments.unlabeled_file), repr(arguments.unlabeled_file)
    table = open_texts(path, task, arguments.encoding, encoding)
    sample = list(itertools.islice(table.rows, 100))
    if not sample:
        raise FinetuneError(f"Expected texts in {where}, but found none.")
    named = {name: getattr(arguments, name) for name in ("text_column", "text_pair_column")}
    columns = replace(choose_columns(table, sample, named, where), label=None, labels=None)
    table = replace(table, rows=itertools.chain(sample, table.rows))
    rows = Dataset.from_file(str(write_examples(path, table, columns, where))).remove_columns("label")
    is_paired = "text_pair" in splits["train"].column_names
    if ("text_pair" in rows.column_names) != is_paired:
        numbers = ("two texts", "one") if is_paired else ("one text", "two")
        raise FinetuneError(
            f"Expected {numbers[0]} a row in {where}, as in train, but found {numbers[1]}. Name the columns alike, or "
            "pass --text_column and --text_pair_column."
        )
    keys = text_keys(rows)
    known = set(np.concatenate([text_keys(split) for split in splits.values()]).tolist())
    _, first = np.unique(keys, return_index=True)
    has_text = np.array([bool(text and text.strip()) for text in rows["text"]])
    kept = [row for row in np.sort(first).tolist() if has_text[row] and keys[row] not in known]
    if not kept:
        raise FinetuneError(f"Expected texts in {where} that are in no split, but found none. Pass another file.")
    unlabeled = rows.select(kept)
    origin = f"file {name_of(path)}, text from column {columns.text!r}"
    if dropped := len(rows) - len(kept):
        origin += f", less {dropped:,} rows that are empty, there before, or in a split"
    unlabeled = unlabeled.cast(datasets.Features({name: datasets.Value("string") for name in unlabeled.column_names}))
    unlabeled.info.description = origin
    return unlabeled
