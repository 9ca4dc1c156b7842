"""Logits, labels and probabilities of texts, from any saved model."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.accelerated import enable
from finetune.accelerated.precision import DTYPES
from finetune.accelerated.processor import multiplies_fast
from finetune.data.batch import MicroBatchCollator
from finetune.data.labels import Task
from finetune.data.tokenize import TextConfig, encode_texts
from finetune.delivery.exported import is_exported, load_exported
from finetune.delivery.load import find_model_folder, load
from finetune.errors import FinetuneError
from finetune.families.textcnn.textcnn import TextCNNForSequenceClassification
from finetune.families.tfidf.classifier import TfidfClassifier
from finetune.hardware import fastest_precision
from finetune.metrics import REGRESSION
from finetune.models.answers import Prediction, TextClassifier
from finetune.models.inference import compute_logits
from finetune.models.inputs import NO_LIMIT, longest_input, shortest_input
from finetune.models.output_layer import compute_numbers_in_fp32
from finetune.models.save import FINETUNE_CONFIG_FILE, read_finetune_config

__all__ = ["Prediction", "Predictor", "load_predictor"]

# Computed at once, padding included. What a TextCNN needs for 1,024 stays in the processor's caches: 4,276 sentences a
# second of processor time, where 4,096 at once gave 3,518 (one core of an Intel Xeon with AMX; the logits are equal).
MAX_TOKENS, MAX_TOKENS_TEXTCNN = 4_096, 1_024


class Predictor(TextClassifier):
    """A model that takes texts.

    Encoders and TextCNN compute in bfloat16 where the processor or GPU has units for it, else in float32; whoever
    reports a metric must take it from here, so that it is the metric of what users will run.

    Args:
        model: What `finetune.load` gives.
        tokenizer: Its tokenizer; None for TF-IDF.
        text_config: How long texts are cut; at their end, to what the model reads, if None.
        dtype: Number format of the computation; by default what the machine does fast. One for which the processor
            has no units is emulated, with a warning.
        thresholds: With several labels a text, the probability from which on each is predicted; one half if None.
        is_paired: Whether it takes pairs of texts; None if that is not known.
        accelerated: Whether to compute with `finetune.accelerated`; else the model stays that of plain transformers.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        text_config: TextConfig | None = None,
        dtype: torch.dtype | None = None,
        thresholds: Sequence[float] | None = None,
        is_paired: bool | None = None,
        accelerated: bool = True,
    ):
        self.model = model
        self.accelerated = accelerated
        self.is_paired = is_paired
        self.thresholds = 0.5 if thresholds is None else np.asarray(thresholds)
        self.tokenizer = tokenizer
        self.dtype = dtype or DTYPES[fastest_precision()]
        if isinstance(model, TfidfClassifier):
            self.task = Task(model.problem_type, model.label_names)
        else:
            model.to("cuda" if torch.cuda.is_available() else "cpu")
            if model.device.type == "cpu" and not multiplies_fast(self.dtype):
                warnings.warn(
                    f"this processor has no units for {self.dtype}: products take longer than in float32, its default",
                    stacklevel=2,
                )
            if accelerated:
                enable(model)
            if model.config.problem_type == REGRESSION:
                compute_numbers_in_fp32(model)
            names = [model.config.id2label[number] for number in range(model.config.num_labels)]
            self.task = Task(model.config.problem_type or "single_label_classification", names)
            longest = longest_input(model, tokenizer) or NO_LIMIT
            self.text_config = text_config or TextConfig(longest)
            if self.text_config.max_length > longest:
                raise FinetuneError(
                    f"Expected texts to be cut to at most {longest} tokens, which the model was built for, but its "
                    f"{FINETUNE_CONFIG_FILE} says {self.text_config.max_length}. Set max_length in it to {longest}."
                )
            self.max_tokens = MAX_TOKENS_TEXTCNN if isinstance(model, TextCNNForSequenceClassification) else MAX_TOKENS
            self.collate = MicroBatchCollator(tokenizer, self.max_tokens, min_length=shortest_input(model)).collate

    def compute_in(self, dtype: torch.dtype) -> None:
        """Compute in this format from now on. An accelerated model's linear layers are cast to it, for good."""
        self.dtype = dtype
        if self.accelerated and isinstance(self.model, torch.nn.Module):
            enable(self.model, predict_in=dtype)

    def compute_logits(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        on_batch: Callable[[int], None] = lambda num_examples: None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Score texts; see `TextClassifier`."""
        self.check_pairs(pairs)
        if isinstance(self.model, TfidfClassifier):
            whole = (
                list(texts) if pairs is None else [f"{text} {pair}" for text, pair in zip(texts, pairs, strict=True)]
            )
            logits = self.model.compute_logits(whole)
            on_batch(len(whole))
            return logits, np.array([len(text.split()) for text in whole], dtype=np.int64)
        columns = encode_texts(texts, self.tokenizer, self.text_config, pairs)
        lengths = columns["length"]
        examples = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        pooling = self.text_config.window_pooling if self.text_config.truncation == "window" else None
        logits = compute_logits(
            self.model, examples, lengths, self.collate, self.max_tokens, self.dtype, pooling, on_batch
        )
        return logits, np.asarray(lengths, dtype=np.int64)


def load_predictor(
    path: str | Path, dtype: torch.dtype | None = None, trust_remote_code: bool = False, accelerated: bool = True
) -> TextClassifier:
    """Load a model for prediction.

    Args:
        path: A run directory, a model folder, also one that `finetune export` wrote, `user/name` or
            `user/name@revision` on the Hub.
        dtype: Number format of the computation; by default what the machine does fast.
        trust_remote_code: Whether a model on the Hub may run code of its own.
        accelerated: Whether to compute with `finetune.accelerated`.

    Raises:
        FinetuneError: If there is none, or it can't be loaded.
    """
    folder = find_model_folder(path, trust_remote_code)
    if is_exported(folder):
        predictor: TextClassifier = load_exported(folder, torch.get_num_threads())
    else:
        model, tokenizer = load(folder, trust_remote_code)
        config = read_finetune_config(folder)
        predictor = Predictor(model, tokenizer, config.text, dtype, config.thresholds, config.is_paired, accelerated)
        predictor.take_reading(config.encoding, config.is_numbered)
        predictor.compute_in(predictor.dtype)
    count = len(predictor.task.label_names)
    if np.size(predictor.thresholds) not in (1, count):
        raise FinetuneError(
            f"Expected thresholds for {count} labels in {str(folder)!r}, but found {np.size(predictor.thresholds)}. "
            "Save the model again."
        )
    return predictor
