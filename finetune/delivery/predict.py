"""Logits, labels and probabilities of texts, from any saved model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import softmax

from finetune.data.batch import MicroBatchCollator
from finetune.data.tokenize import encode_texts
from finetune.delivery.load import load
from finetune.hardware import fastest_precision
from finetune.models.attention import use_cpu_attention
from finetune.models.inference import compute_logits
from finetune.models.precision import DTYPES, keep_activations_in_bf16
from finetune.models.tfidf import TfidfClassifier

__all__ = ["Prediction", "Predictor", "load_predictor"]

MAX_TOKENS = 4_096


@dataclass(frozen=True)
class Prediction:
    """The most probable label of a text and its probability in [0, 1]."""

    label: str
    probability: float


class Predictor:
    """A model that takes texts.

    Encoders and TextCNN compute in bfloat16 where the processor or GPU has units for it, else in float32; whoever
    reports a metric must take it from here, so that it is the metric of what users will run.

    Args:
        model: What `finetune.load` gives.
        tokenizer: Its tokenizer, whose `model_max_length` cuts texts; None for TF-IDF.
        dtype: Number format of the computation; by default what the machine does fast.
    """

    def __init__(self, model: Any, tokenizer: Any, dtype: torch.dtype | None = None):
        self.model = model
        self.tokenizer = tokenizer
        self.dtype = dtype or DTYPES[fastest_precision()]
        if isinstance(model, TfidfClassifier):
            self.label_names = model.label_names
        else:
            model.to("cuda" if torch.cuda.is_available() else "cpu")
            use_cpu_attention(model)
            keep_activations_in_bf16(model)
            self.label_names = [model.config.id2label[number] for number in range(model.config.num_labels)]
            positions = getattr(model.config, "max_position_embeddings", None)
            self.max_length = min(tokenizer.model_max_length, positions or 1_000_000)
            self.collate = MicroBatchCollator(tokenizer, MAX_TOKENS).collate

    def compute_logits(
        self, texts: Sequence[str], on_batch: Callable[[int], None] = lambda num_examples: None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Score texts.

        Args:
            texts: Any number of them.
            on_batch: Called with the number of texts after each batch.

        Returns:
            float32 logits `(len(texts), num_labels)`, and the number of tokens of each text, `(len(texts),)`, after
            cutting (white-space separated words for TF-IDF).
        """
        if isinstance(self.model, TfidfClassifier):
            logits = self.model.compute_logits(texts)
            on_batch(len(texts))
            return logits, np.array([len(text.split()) for text in texts], dtype=np.int64)
        columns = encode_texts(list(texts), self.tokenizer, self.max_length)
        lengths = columns["length"]
        examples = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        logits = compute_logits(self.model, examples, lengths, self.collate, MAX_TOKENS, self.dtype, on_batch)
        return logits, np.asarray(lengths, dtype=np.int64)

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """Give each text's most probable label."""
        probabilities = softmax(self.compute_logits(texts)[0], axis=-1)
        return [Prediction(self.label_names[int(row.argmax())], float(row.max())) for row in probabilities]


def load_predictor(path: str | Path) -> Predictor:
    """Load the model of a run directory or model folder for prediction."""
    return Predictor(*load(path))
