"""From a run's splits to a fitted linear layer: tokens, vectors that are kept for the next fit, the regression."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from datasets import Dataset, DatasetDict

from finetune.accelerated import enable
from finetune.accelerated.precision import DTYPES
from finetune.data.labels import balanced_class_weights, label_matrix
from finetune.data.soft_labels import count_labelled_rows, soften_labels
from finetune.families.embeddings.linear import fit_linear
from finetune.families.embeddings.pooled_encoder import PooledEncoderForSequenceClassification, combine_pair
from finetune.families.embeddings.vectors import (
    compute_vectors,
    find_vectors_file,
    read_vectors,
    tokenize_texts,
    write_vectors,
)
from finetune.hardware import cpu_seconds
from finetune.progress_bar import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from finetune.run.run import Run
    from finetune.tasks import Task

__all__ = ["compute_features", "fit_classifier", "load_features", "precision_of", "record_tokens"]


def record_tokens(run: Run, splits: DatasetDict, tokenizer: PreTrainedTokenizerBase) -> None:
    """Note how many tokens the texts have, and what share of them is cut; the two of a pair count together."""
    counts = {}
    with run.main_process_first():
        for name, split in splits.items():
            parts = [tokenize_texts(split, column, tokenizer, run.text_config) for column in _text_columns(split)]
            lengths, cut = (np.stack([one[column][:] for one in parts]) for column in ("length", "is_truncated"))
            counts[name] = Dataset.from_dict({"length": lengths.sum(axis=0), "is_truncated": cut.any(axis=0)})
    run.record_tokens(DatasetDict(counts))


def load_features(
    run: Run, train: Dataset, model: PooledEncoderForSequenceClassification, tokenizer: PreTrainedTokenizerBase
) -> tuple[np.ndarray, np.ndarray]:
    """Compute what the linear layer reads of the training texts, or read the vectors that an earlier fit has kept.

    They lie in the cache of `datasets`, beside the tokens, under a name that depends on the texts, the encoder's
    weights, the pooling, the number format and how texts are cut.

    Args:
        run: Its settings say the number format.
        train: The training split.
        model: Not tuned: its weights are those that `run.starts_from` stands for.
        tokenizer: Its tokenizer.

    Returns:
        float32 features `(rows, width)`, and how many wall and CPU seconds those that were read had taken to compute.
    """
    precision = precision_of(run)
    facts = [str(run.processes.gather(run.starts_from)[0]), model.config.pooling, precision]
    parts, seconds = [], np.zeros(2)
    for column in _text_columns(train):
        file = find_vectors_file(train, column, tokenizer, run.text_config, facts)
        kept = read_vectors(file, len(train))
        if all(run.processes.gather(kept is not None)):  # all processes compute, or none does
            assert kept is not None
            seconds = seconds + kept[1]
            parts.append(kept[0])
            continue
        start = np.array([time.perf_counter(), cpu_seconds()])
        vectors = _compute_column(run, train, column, model, tokenizer)
        parts.append(vectors)
        if run.processes.is_first_of_host:
            write_vectors(file, vectors, np.array([time.perf_counter(), cpu_seconds()]) - start)
    return _combine(parts), seconds


def compute_features(
    run: Run, train: Dataset, model: PooledEncoderForSequenceClassification, tokenizer: PreTrainedTokenizerBase
) -> np.ndarray:
    """Compute what the linear layer reads of the training texts, float32 `(rows, width)`."""
    return _combine([_compute_column(run, train, column, model, tokenizer) for column in _text_columns(train)])


def fit_classifier(
    model: PooledEncoderForSequenceClassification,
    features: np.ndarray,
    train: Dataset,
    task: Task,
    inverse_penalty: float | None = None,
    balanced: bool = False,
) -> None:
    """Fit the linear layer of a model, in place.

    Args:
        model: Its encoder stays as it is.
        features: `(rows, width)`, what the layer reads of the training texts.
        train: The training split, for its labels, and a teacher's answers if it has them.
        task: What is predicted.
        inverse_penalty: scikit-learn's C; chosen by cross-validation if None.
        balanced: Whether each class counts alike in the loss, however many rows it has.
    """
    labels = label_matrix(train["label"], task)[: count_labelled_rows(train)]
    soft_labels = soften_labels(train, task)
    num_labels = len(task.label_names)
    weights = balanced_class_weights(labels, num_labels) if balanced else None
    linear = fit_linear(features, labels, num_labels, task.problem_type, inverse_penalty, soft_labels, weights)
    with torch.no_grad():
        model.classifier.weight.copy_(torch.from_numpy(linear.weight))
        model.classifier.bias.copy_(torch.from_numpy(linear.bias))


def _compute_column(
    run: Run,
    train: Dataset,
    column: str,
    model: PooledEncoderForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
) -> np.ndarray:
    tokenized = tokenize_texts(train, column, tokenizer, run.text_config)
    if run.arguments.run.accelerated:
        enable(model)
    model.to(device=run.arguments.training.device).eval()  # type: ignore[call-arg]
    with progress_bar(len(tokenized), "Computing vectors") as advance:
        return compute_vectors(model, tokenizer, tokenized, tokenized["length"][:], DTYPES[precision_of(run)], advance)


def _combine(parts: list[np.ndarray]) -> np.ndarray:
    if len(parts) == 1:
        return parts[0]
    return combine_pair(*(torch.from_numpy(part) for part in parts)).numpy()


def _text_columns(split: Dataset) -> list[str]:
    return [name for name in ("text", "text_pair") if name in split.column_names]


def precision_of(run: Run) -> str:
    """Return the number format that the settings say: "bf16", "fp16" or "fp32"."""
    training = run.arguments.training
    return "bf16" if training.bf16 else "fp16" if training.fp16 else "fp32"
