"""What the settings of a run say about its training: the rows that are drawn, the loss, who listens; and its costs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import DynamoBackend
from datasets import Dataset
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune.data.labels import balanced_class_weights
from finetune.metrics import REGRESSION
from finetune.models.output_layer import Standard
from finetune.run.fields import DataRecord, TrainingCosts
from finetune.settings.arguments import Arguments
from finetune.training.loss import ExampleLoss, oversample
from finetune.training.progress import HistoryWriter, ProgressReport
from finetune.training.trainer import FineTuningTrainer

__all__ = [
    "RowNames",
    "build_callbacks",
    "build_loss",
    "build_stopping",
    "describe_costs",
    "repeat_rare_classes",
]

# From the rows of the training data to what a message calls them.
RowNames = Callable[[Sequence[Any]], list[str]]


def repeat_rare_classes(train: Dataset, seed: int, name_rows: RowNames) -> tuple[Dataset, RowNames]:
    """Return the rows of train with the rarer classes' repeated, and how their names are found."""

    def name_drawn(rows: Sequence[int]) -> list[str]:
        numbered = Dataset.from_dict({"labels": train["labels"][:], "row": range(len(train))})
        return name_rows(oversample(numbered, seed).select(rows)["row"][:])

    return oversample(train, seed), name_drawn


def build_loss(arguments: Arguments, described: DataRecord, train: Dataset) -> ExampleLoss:
    """Build the loss that the settings ask for, by the classes or numbers of the tokenized training split."""
    data, method = arguments.data, arguments.method
    weights = None
    if method.class_weights == "balanced":
        balanced = balanced_class_weights(np.asarray(train["labels"][:]), len(described.label_names))
        weights = torch.tensor(balanced, dtype=torch.float32)
    return ExampleLoss(
        described.problem_type,
        arguments.training.label_smoothing_factor,
        weights,
        method.focal_gamma,
        data.window_pooling if data.truncation == "window" else None,
        Standard.of(train["labels"][:]) if described.problem_type == REGRESSION else Standard(),
        method.distillation_temperature,
    )


def build_callbacks(arguments: Arguments, history: Path, begin: Callable[[], None]) -> list[TrainerCallback]:
    """Build the progress report, the writer of the history, and early stopping if it is asked for.

    Args:
        arguments: The settings.
        history: The file to write.
        begin: Called when training begins, before all others.
    """
    return [_Beginning(begin), ProgressReport(), HistoryWriter(history), *build_stopping(arguments)]


def build_stopping(arguments: Arguments) -> list[TrainerCallback]:
    """Build early stopping, if it is asked for."""
    patience = arguments.run.early_stopping_patience
    return [EarlyStoppingCallback(patience)] if patience and arguments.training.load_best_model_at_end else []


def describe_costs(trainer: FineTuningTrainer, peak_memory_bytes: int, train_cpu_seconds: float) -> TrainingCosts:
    """Return what a training has cost.

    Args:
        trainer: After it.
        peak_memory_bytes: Of all processes together.
        train_cpu_seconds: Likewise.
    """
    costs = trainer.costs
    described = TrainingCosts(
        train_seconds=costs.train_seconds,
        train_cpu_seconds=train_cpu_seconds,
        train_evaluation_seconds=costs.evaluation_seconds,
        train_steps=trainer.state.global_step,
        train_tokens=costs.train_tokens,
        tokens_per_second=costs.train_tokens / costs.train_seconds,
        peak_memory_bytes=peak_memory_bytes,
    )
    if trainer.accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
        described.compile_seconds = costs.first_step_seconds
    return described


class _Beginning(TrainerCallback):
    """Tells when training begins: everything is loaded then."""

    def __init__(self, begin: Callable[[], None]):
        self.begin = begin

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.begin()
