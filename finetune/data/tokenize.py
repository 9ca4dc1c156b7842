"""Turn the texts of a data set into token numbers with `datasets.map`, kept in its cache."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import tokenizers
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from finetune.data import cutting, tokens
from finetune.data.cutting import TextConfig
from finetune.data.labels import label_matrix, task_of
from finetune.data.split import iterate_texts
from finetune.data.tokens import encode_texts
from finetune.tasks import Task

__all__ = ["encode_rows", "find_cache", "tokenize_dataset", "tokenize_splits"]


def tokenize_splits(splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, config: TextConfig) -> DatasetDict:
    """Tokenize every split; see `tokenize_dataset`."""
    return DatasetDict({name: tokenize_dataset(split, tokenizer, config) for name, split in splits.items()})


def tokenize_dataset(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, config: TextConfig) -> Dataset:
    """Tokenize the column `text`, and `text_pair` if there is one; see `encode_texts`.

    The result lies in the cache of `datasets`, under a name that depends on the texts, the labels and the tokenizer
    alone, so that the next run on them reads it from there. The tokenizer works on all cores by itself.

    Args:
        dataset: Has the column `text`, and `label` unless it is only to be predicted.
        tokenizer: A fast tokenizer.
        config: How long texts are cut.

    Returns:
        The columns of `encode_texts`, and `labels` if `dataset` has `label`: a class number, a number to predict, or
        for several labels a list of 0 and 1; `teacher` as it is. Rows keep their order.
    """
    task = task_of(dataset.features) if "label" in dataset.column_names else None

    def tokenize(batch: Mapping[str, list]) -> dict[str, Any]:
        return encode_rows(batch, tokenizer, config, task)

    cache = find_cache(dataset, tokenizer, config)
    return dataset.map(
        tokenize, batched=True, remove_columns=dataset.column_names, cache_file_name=cache, desc="Tokenizing"
    )


def encode_rows(
    batch: Mapping[str, list], tokenizer: PreTrainedTokenizerBase, config: TextConfig, task: Task | None
) -> dict[str, Any]:
    """Tokenize rows as `datasets.map` hands them over: the columns of `encode_texts`, and `labels` if there are any.

    Args:
        batch: The columns `text`, `text_pair` if they are pairs, `label` unless it is withheld, and `teacher` where
            there is one.
        tokenizer: A fast tokenizer.
        config: How long texts are cut.
        task: What the labels are; None leaves them out.
    """
    columns: dict[str, Any] = encode_texts(batch["text"], tokenizer, config, batch.get("text_pair"))
    if task is not None and "label" in batch:
        columns["labels"] = list(label_matrix(batch["label"], task))
    if "teacher" in batch:
        columns["teacher"] = batch["teacher"]
    return columns


def find_cache(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, config: TextConfig) -> str:
    """Name the file that a data set's tokens are cached in, by all that they depend on; a spoilt one is removed."""
    cache = _cache_file(dataset, tokenizer, config)
    if cache.exists():
        try:
            is_whole = len(Dataset.from_file(str(cache))) == len(dataset)
        except (pa.ArrowInvalid, OSError):
            is_whole = False
        if not is_whole:  # the machine went down before all of it was on the disk
            cache.unlink(missing_ok=True)
    return str(cache)


def _cache_file(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, config: TextConfig) -> Path:
    """Name the cache file by a hash of everything that the columns depend on."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    del backend["truncation"], backend["padding"]  # those of the tokenizer's last call, not of this one
    names = (tokenizer.model_input_names, tokenizer.split_special_tokens, dataset.column_names)
    label = dataset.features.get("label")
    digest = hashlib.sha256()
    for code in (
        __file__,
        cutting.__file__,
        tokens.__file__,
    ):  # an earlier version may have cut otherwise
        digest.update(Path(code).read_bytes())
    digest.update(f"{tokenizers.__version__} {datasets.__version__} {config} {names} {label} {backend}".encode())
    for text in iterate_texts(dataset):
        digest.update(f"{len(text or '')} {text}".encode("utf-8", "replace"))
    if "label" in dataset.column_names:
        for label in dataset["label"]:
            digest.update(f"{label} ".encode())
    if "teacher" in dataset.column_names:
        digest.update(np.asarray(dataset["teacher"][:], dtype=np.float32).tobytes())
    return Path(datasets.config.HF_DATASETS_CACHE) / "finetune" / f"tokenized-{digest.hexdigest()}.arrow"
