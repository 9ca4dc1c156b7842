"""Turn texts into token numbers with `datasets.map`."""

import hashlib
from pathlib import Path

import datasets
import tokenizers
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

__all__ = ["encode_texts", "tokenize_dataset", "tokenize_splits"]


def encode_texts(texts: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, list]:
    """Tokenize texts, cut at their end, without padding: batches pad to their own longest text.

    Args:
        texts: Any number of them.
        tokenizer: A fast tokenizer.
        max_length: Most tokens of a text, special tokens included.

    Returns:
        The tokenizer's columns (`input_ids`, …) without `attention_mask`, which padding adds; `length`, the number of
        tokens; and `is_truncated`.
    """
    encoded = tokenizer(texts, truncation=True, max_length=max_length, return_attention_mask=False)
    columns = dict(encoded)
    columns["length"] = [len(tokens) for tokens in encoded["input_ids"]]
    columns["is_truncated"] = [bool(encoding.overflowing) for encoding in encoded.encodings]
    return columns


def tokenize_splits(splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, max_length: int) -> DatasetDict:
    """Tokenize every split; see `tokenize_dataset`."""
    return DatasetDict({name: tokenize_dataset(split, tokenizer, max_length) for name, split in splits.items()})


def tokenize_dataset(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Tokenize the column `text`; see `encode_texts`.

    The result lies in the cache of `datasets`, under a name that depends on the texts, the labels and the tokenizer
    alone, so that the next run on them reads it from there. The tokenizer works on all cores by itself.

    Args:
        dataset: Has the column `text`, and `label` unless it is only to be predicted.
        tokenizer: A fast tokenizer.
        max_length: Most tokens of a text, special tokens included.

    Returns:
        The columns of `encode_texts`, and `labels` if `dataset` has `label`. Rows keep their order.
    """
    tokenized = dataset.map(
        lambda batch: encode_texts(batch["text"], tokenizer, max_length),
        batched=True,
        remove_columns=[column for column in dataset.column_names if column != "label"],
        cache_file_name=str(_cache_file(dataset, tokenizer, max_length)),
        desc="Tokenizing",
    )
    return tokenized.rename_column("label", "labels") if "label" in tokenized.column_names else tokenized


def _cache_file(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Path:
    """Name the cache file by a hash of everything that the columns depend on."""
    backend = tokenizer.backend_tokenizer.to_str()
    digest = hashlib.sha256(f"{tokenizers.__version__} {datasets.__version__} {max_length} {backend}".encode())
    for text in dataset["text"]:
        digest.update(f"{len(text)} {text}".encode())
    if "label" in dataset.column_names:
        digest.update(f"{dataset.features['label']} {dataset['label'][:]}".encode())
    return Path(datasets.config.HF_DATASETS_CACHE) / "finetune" / f"tokenized-{digest.hexdigest()}.arrow"
