"""How many tokens each example of a tokenized data set has, whoever tokenized it."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset

__all__ = ["find_lengths"]

ROWS_AT_ONCE = 10_000


def find_lengths(dataset: Any, length_column: str = "length") -> np.ndarray | None:
    """Count the tokens of each example, padding left out.

    By the attention mask, else by `input_ids`, of a data set in Arrow; else by its column of lengths, as where texts
    are tokenized when they are asked for; else by looking at each example once.

    Args:
        dataset: Has a length, and gives examples as dictionaries by their numbers.
        length_column: Its name in a data set that holds no tokens.

    Returns:
        `(examples,)`; None if the examples have no `input_ids` of one dimension.
    """
    if isinstance(dataset, Dataset):
        for name, is_mask in (("attention_mask", True), ("input_ids", False)):
            if name in dataset.column_names:
                return _count_in_arrow(dataset.select_columns(name), name, is_mask)
        if length_column in dataset.column_names:
            return np.asarray(dataset.with_format("numpy")[length_column][:], dtype=np.int64)
    lengths = []
    for row in range(len(dataset)):
        length = _count(dataset[row])
        if length is None:
            return None
        lengths.append(length)
    return np.array(lengths, dtype=np.int64)


def _count_in_arrow(column: Dataset, name: str, is_mask: bool) -> np.ndarray | None:
    parts = [np.zeros(0, dtype=np.int64)]
    for table in column.with_format("arrow").iter(ROWS_AT_ONCE):
        lists = table[name].combine_chunks()  # type: ignore[index]
        if not (pa.types.is_list(lists.type) or pa.types.is_large_list(lists.type)) or lists.null_count:
            return None
        values = lists.flatten()
        if not pa.types.is_integer(values.type) and not pa.types.is_boolean(values.type):
            return None  # texts in windows
        ends = np.cumsum(lists.value_lengths().to_numpy(zero_copy_only=False))
        if is_mask:
            ones = np.cumsum(values.to_numpy(zero_copy_only=False), dtype=np.int64)
            ends = np.where(ends > 0, np.concatenate([[0], ones])[ends], 0)
        parts.append(np.diff(ends, prepend=0))
    return np.concatenate(parts)


def _count(example: Any) -> int | None:
    if not isinstance(example, Mapping) or "input_ids" not in example:
        return None
    tokens = example.get("attention_mask", example["input_ids"])
    if torch.is_tensor(tokens) or isinstance(tokens, np.ndarray):
        is_mask = tokens.ndim == 1 and "attention_mask" in example
        return None if tokens.ndim != 1 else int(tokens.sum()) if is_mask else len(tokens)
    if not isinstance(tokens, Iterable) or not all(isinstance(token, int) for token in tokens):
        return None
    return sum(tokens) if "attention_mask" in example else len(list(tokens))
