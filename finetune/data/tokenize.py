"""Turn texts into token numbers with `datasets.map`, and cut those that are longer than the model reads."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import tokenizers
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from finetune.data import cutting
from finetune.data.cutting import TRUNCATIONS, WINDOW_POOLINGS, TextConfig, cut_contents
from finetune.data.labels import Task, label_matrix, task_of
from finetune.data.split import iterate_texts

__all__ = [
    "TRUNCATIONS",
    "WINDOW_POOLINGS",
    "TextConfig",
    "encode_rows",
    "encode_texts",
    "find_cache",
    "tokenize_dataset",
    "tokenize_splits",
]


def encode_texts(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    config: TextConfig,
    pairs: Sequence[str] | None = None,
) -> dict[str, list]:
    """Tokenize texts without padding them: batches pad to their own longest text.

    Args:
        texts: Any number of them.
        tokenizer: A fast tokenizer.
        config: How long texts are cut.
        pairs: A second text for each; then the longer one of a pair is cut at its end.

    Returns:
        `input_ids`, for each text a list of token numbers, with `window` a list of such lists; `token_type_ids` for
        pairs if the model takes them; `length`, the number of tokens; `is_truncated`, whether tokens were left out.
    """
    if config.truncation == "head" or pairs is not None:
        encoded = tokenizer(
            list(texts),
            None if pairs is None else list(pairs),
            truncation=True,
            max_length=config.max_length,
            return_attention_mask=False,
            return_token_type_ids=pairs is not None and "token_type_ids" in tokenizer.model_input_names,
        )
        columns = dict(encoded)
        columns["length"] = [len(tokens) for tokens in encoded["input_ids"]]
        columns["is_truncated"] = [bool(encoding.overflowing) for encoding in encoded.encodings]
        return columns
    prefix, suffix = _special_tokens(tokenizer)
    contents = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return cut_contents(contents, prefix, suffix, config)


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Find what the tokenizer puts before and after a text.

    Asked through transformers, since a tokenizer.json may ask for padding, as that of all-MiniLM-L6-v2 does to 128.
    """
    encoded = tokenizer("a", return_special_tokens_mask=True, verbose=False)
    ids, mask = encoded["input_ids"], encoded["special_tokens_mask"]
    last = len(ids) - mask[::-1].index(0)
    return ids[: mask.index(0)], ids[last:]


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
        for several labels a list of 0 and 1. Rows keep their order.
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
        batch: The columns `text`, `text_pair` if they are pairs, and `label` unless it is withheld.
        tokenizer: A fast tokenizer.
        config: How long texts are cut.
        task: What the labels are; None leaves them out.
    """
    columns: dict[str, Any] = encode_texts(batch["text"], tokenizer, config, batch.get("text_pair"))
    if task is not None and "label" in batch:
        columns["labels"] = list(label_matrix(batch["label"], task))
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
    names = (tokenizer.model_input_names, dataset.column_names, dataset.features.get("label"))
    digest = hashlib.sha256()
    for code in (__file__, cutting.__file__):  # what an earlier version of this code cut, it cut otherwise
        digest.update(Path(code).read_bytes())
    digest.update(f"{tokenizers.__version__} {datasets.__version__} {config} {names} {backend}".encode())
    for text in iterate_texts(dataset):
        digest.update(f"{len(text or '')} {text}".encode("utf-8", "replace"))
    if "label" in dataset.column_names:
        for label in dataset["label"]:
            digest.update(f"{label} ".encode())
    return Path(datasets.config.HF_DATASETS_CACHE) / "finetune" / f"tokenized-{digest.hexdigest()}.arrow"
