"""Turn texts into token numbers with `datasets.map`, and cut those that are longer than the model reads."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import tokenizers
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from finetune.data import cutting
from finetune.data.cutting import TRUNCATIONS, WINDOW_POOLINGS, TextConfig, cut_contents, type_tokens
from finetune.data.labels import Task, label_matrix, task_of
from finetune.data.split import iterate_texts

__all__ = [
    "TRUNCATIONS",
    "WINDOW_POOLINGS",
    "TextConfig",
    "count_special_tokens",
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
        `input_ids`, for each text a list of token numbers, with `window` a list of such lists; `token_type_ids` too
        if the model takes them and not all are 0, as those of pairs and of XLNet; `length`, the number of tokens;
        `is_truncated`, whether tokens were left out. A text without any token becomes one of padding.
    """
    special = _special_tokens(tokenizer)
    takes_types = "token_type_ids" in tokenizer.model_input_names
    if config.truncation == "head" or pairs is not None:
        encoded = tokenizer(
            list(texts),
            None if pairs is None else list(pairs),
            truncation=True,
            max_length=config.max_length,
            return_attention_mask=False,
            return_token_type_ids=takes_types and (pairs is not None or special.has_types),
        )
        columns = dict(encoded)
        for name, nothing in (("input_ids", tokenizer.pad_token_id), ("token_type_ids", 0)):
            if name in columns:
                columns[name] = [row or [nothing] for row in columns[name]]
        columns["length"] = [len(tokens) for tokens in columns["input_ids"]]
        columns["is_truncated"] = [bool(encoding.overflowing) for encoding in encoded.encodings]
        return columns
    contents = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    if not special.prefix + special.suffix:
        contents = [content or [tokenizer.pad_token_id] for content in contents]
    columns = cut_contents(contents, special.prefix, special.suffix, config)
    if takes_types and special.has_types:
        rows, types = columns["input_ids"], (special.prefix_types, special.content_type, special.suffix_types)
        if config.truncation == "window":
            columns["token_type_ids"] = [type_tokens(windows, *types) for windows in rows]
        else:
            columns["token_type_ids"] = type_tokens(rows, *types)
    return columns


def count_special_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many special tokens a tokenizer adds to a text."""
    special = _special_tokens(tokenizer)
    return len(special.prefix) + len(special.suffix)


@dataclass(frozen=True)
class _SpecialTokens:
    """What a tokenizer puts before and after a text, and the types that it gives to its tokens."""

    prefix: list[int]
    suffix: list[int]
    prefix_types: list[int]
    content_type: int
    suffix_types: list[int]

    @property
    def has_types(self) -> bool:
        """Whether any type is not 0, as that of XLNet's and Funnel's [CLS]."""
        return any([*self.prefix_types, self.content_type, *self.suffix_types])


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> _SpecialTokens:
    """Find what the tokenizer puts before and after a text.

    Asked through transformers, since a tokenizer.json may ask for padding, as that of all-MiniLM-L6-v2 does to 128.
    """
    encoded = tokenizer("a", return_special_tokens_mask=True, return_token_type_ids=True, verbose=False)
    ids, types, mask = encoded["input_ids"], encoded["token_type_ids"], encoded["special_tokens_mask"]
    if 0 not in mask:  # no token for an "a"
        return _SpecialTokens([], ids, [], 0, types)
    first, last = mask.index(0), len(ids) - mask[::-1].index(0)
    return _SpecialTokens(ids[:first], ids[last:], types[:first], types[first], types[last:])


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
    for code in (__file__, cutting.__file__):  # what an earlier version of this code cut, it cut otherwise
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
