"""Zero-shot by a model of natural language inference: does a text entail what is said of a label (Yin et al. 2019)?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from finetune.errors import FinetuneError
from finetune.models.answers import TextClassifier
from finetune.models.inputs import fit_model
from finetune.models.load import load_weights, read_config, refuse_spoilt_weights
from finetune.models.predictor import Predictor
from finetune.settings.parts import ModelArguments
from finetune.tasks import MULTI_LABEL, Task

__all__ = ["EntailmentPredictor", "find_entailment", "is_inference_model", "load_inference_model"]

HYPOTHESIS = "This example is {}."  # of a label without a description, as transformers' own pipeline has it


def find_entailment(config: Any) -> tuple[int, int] | None:
    """Return which outputs of a model say entailment and contradiction; None if it is none of inference."""
    names = {str(name).lower(): int(number) for number, name in (config.id2label or {}).items()}
    entailment = [number for name, number in names.items() if name.startswith("entail")]
    others = [number for name, number in names.items() if name.startswith(("contradict", "not_entail"))]
    return (entailment[0], others[0]) if len(entailment) == len(others) == 1 else None


def is_inference_model(arguments: ModelArguments) -> bool:
    """Return whether the model that is named is one of inference, by its config."""
    return find_entailment(read_config(arguments)) is not None


def load_inference_model(
    arguments: ModelArguments, tokenizer: Any, task: Task, given: dict[str, str]
) -> PreTrainedModel | None:
    """Load a model of inference, and note in its config what is asked of each label.

    Args:
        arguments: Which model.
        tokenizer: Its tokenizer.
        task: The labels.
        given: The descriptions that the user gave, as sentences.

    Returns:
        The model; None if the one that is named is none of inference.

    Raises:
        FinetuneError: If it can't be had, or its head was not trained.
    """
    config = read_config(arguments)
    if find_entailment(config) is None:
        return None
    model, info = load_weights(AutoModelForSequenceClassification, arguments, config)
    if info["missing_keys"]:
        raise FinetuneError(
            f"Expected a trained model of inference in {arguments.model_name_or_path}, but its weights lack "
            f"{sorted(info['missing_keys'])[0]!r}. Take another one."
        )
    refuse_spoilt_weights(model, arguments.model_name_or_path)
    model.config.hypotheses = {name: given.get(name, HYPOTHESIS.format(name)) for name in task.label_names}
    model.config.zero_shot_problem_type = task.problem_type
    fit_model(model, tokenizer, arguments.model_name_or_path)
    return model.eval()


class EntailmentPredictor(TextClassifier):
    """Asks for each label whether a text entails what is said of it: as many passes as there are labels.

    The logit of a label is that of entailment; of several labels a text, less that of contradiction.
    """

    def __init__(self, inner: Predictor):
        self.inner = inner
        self.hypotheses: dict[str, str] = inner.model.config.hypotheses
        self.task = Task(inner.model.config.zero_shot_problem_type, list(self.hypotheses))
        self.text_config = inner.text_config

    def compute_in(self, dtype: Any = None) -> None:
        """Compute in this format from now on."""
        self.inner.compute_in(dtype)

    def compute_logits(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        on_batch: Callable[[int], None] = lambda num_examples: None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Score texts; see `TextClassifier`. The tokens of a text count as often as it is read."""
        self.is_paired = False
        self.check_pairs(pairs)
        found = find_entailment(self.inner.model.config)
        assert found is not None
        entailment, contradiction = found
        columns, num_tokens = [], np.zeros(len(texts), dtype=np.int64)
        for hypothesis in self.hypotheses.values():
            logits, tokens = self.inner.compute_logits(texts, [hypothesis] * len(texts))
            several = self.task.problem_type == MULTI_LABEL
            columns.append(logits[:, entailment] - (logits[:, contradiction] if several else 0))
            num_tokens += tokens
        on_batch(len(texts))
        return np.stack(columns, axis=1).astype(np.float32), num_tokens
