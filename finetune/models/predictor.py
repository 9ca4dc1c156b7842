"""Logits of texts from a network of transformers or PEFT."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from finetune.accelerated import enable
from finetune.accelerated.precision import DTYPES, compute_numbers_in_fp32
from finetune.accelerated.processor import multiplies_fast
from finetune.data.batch import MicroBatchCollator
from finetune.data.cutting import TextConfig
from finetune.data.tokens import encode_texts
from finetune.errors import FinetuneError, failures_explained
from finetune.hardware import fastest_precision
from finetune.models.answers import TextClassifier
from finetune.models.finetune_config import FINETUNE_CONFIG_FILE
from finetune.models.inputs import NO_LIMIT, longest_input, shortest_input
from finetune.models.logits import compute_logits
from finetune.tasks import Task

__all__ = ["Predictor"]


class Predictor(TextClassifier):
    """A network that takes texts.

    It computes in bfloat16 where the processor or GPU has units for it, else in float32; whoever
    reports a metric must take it from here, so that it is the metric of what users will run.

    Args:
        model: What `finetune.load` gives.
        tokenizer: Its tokenizer.
        text_config: How long texts are cut; at their end, to what the model reads, if None.
        dtype: Number format of the computation; by default what the machine does fast. One for which the processor
            has no units is emulated, with a warning.
        is_paired: Whether it takes pairs of texts; None if that is not known.
        accelerated: Whether to compute with `finetune.accelerated`; else the model stays that of plain transformers.
        max_tokens: Computed at once, padding included.
    """

    @failures_explained()
    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        text_config: TextConfig | None = None,
        dtype: torch.dtype | None = None,
        is_paired: bool | None = None,
        accelerated: bool = True,
        max_tokens: int = 4_096,
    ):
        self.model = model
        self.accelerated = accelerated
        self.is_paired = is_paired
        self.tokenizer = tokenizer
        self.dtype = dtype or DTYPES[fastest_precision()]
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        if model.device.type == "cpu" and not multiplies_fast(self.dtype):
            warnings.warn(
                f"this processor has no units for {self.dtype}: products take longer than in float32, its default",
                stacklevel=2,
            )
        if accelerated:
            enable(model)
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
        self.max_tokens = max_tokens
        self.collate = MicroBatchCollator(tokenizer, self.max_tokens, min_length=shortest_input(model)).collate

    def compute_in(self, dtype: torch.dtype | None = None) -> None:
        """Compute in this format from now on. An accelerated model's linear layers are cast to it, for good."""
        self.dtype = dtype or self.dtype
        if self.accelerated:
            enable(self.model, predict_in=self.dtype)

    @failures_explained()
    def compute_logits(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        on_batch: Callable[[int], None] = lambda num_examples: None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Score texts; see `TextClassifier`."""
        self.check_pairs(pairs)
        columns = encode_texts(texts, self.tokenizer, self.text_config, pairs)
        lengths = columns["length"]
        examples = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        pooling = self.text_config.window_pooling if self.text_config.truncation == "window" else None
        logits = compute_logits(
            self.model, examples, lengths, self.collate, self.max_tokens, self.dtype, pooling, on_batch
        )
        return logits, np.asarray(lengths, dtype=np.int64)
