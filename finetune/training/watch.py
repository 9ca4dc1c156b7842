"""Warnings that save a day: what trains in name only, or has settled on one answer."""

import warnings
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from finetune.adapted import without_adapter
from finetune.metrics import MULTI_LABEL, REGRESSION, predict_labels

__all__ = ["Watch", "warn_if_collapsed", "warn_if_head_is_frozen"]

STEPS = 3  # LoRA's A matrices have no gradient in the first step, since B is zero


class Watch(TrainerCallback, ExportableState):
    """Warns of trainable parameters without a gradient, and of a validation metric that never moves."""

    def __init__(self, values: list[float] | None = None) -> None:
        self.without_gradient: set[str] | None = None
        self.values = values or []

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"args": {"values": self.values}, "attributes": {}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            warn_if_head_is_frozen(kwargs["model"])

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step >= STEPS or not state.is_world_process_zero:
            return
        model: nn.Module = kwargs["model"]
        idle = {
            name
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any())
        }
        self.without_gradient = idle if self.without_gradient is None else self.without_gradient & idle
        if state.global_step == STEPS - 1 and self.without_gradient:
            names = sorted(self.without_gradient)
            warnings.warn(
                f"{len(names)} trainable parameters had no gradient in the first {STEPS} steps, among them "
                f"{', '.join(names[:3])}: nothing of the loss depends on them",
                stacklevel=2,
            )

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        metric = (args.metric_for_best_model or "loss").removeprefix("eval_")
        self.values.append(float(kwargs["metrics"].get(f"eval_{metric}", np.nan)))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and len(self.values) > 1 and len(set(self.values)) == 1:
            warnings.warn(
                f"the validation metric was {self.values[0]:.4f} at all {len(self.values)} evaluations: nothing was "
                "learnt. Raise --learning_rate, as prompt tuning and IA3 need, or train longer",
                stacklevel=2,
            )


def warn_if_head_is_frozen(model: nn.Module) -> None:
    """Warn if nothing trains outside the encoder, as where a checkpoint has a head whose name PEFT doesn't know."""
    base = without_adapter(model)
    if not isinstance(base, PreTrainedModel):
        return
    encoder = {id(parameter) for parameter in base.base_model.parameters()}
    head = [name for name, parameter in base.named_parameters() if id(parameter) not in encoder]
    if head and not any(base.get_parameter(name).requires_grad for name in head):
        warnings.warn(
            f"the classification head does not train ({', '.join(head[:3])}): name its module as modules_to_save in "
            "--peft_config, unless it fits these classes already",
            stacklevel=2,
        )


def warn_if_collapsed(logits: np.ndarray, problem_type: str, label_names: dict[int, str]) -> None:
    """Warn if every text gets the same class, or with several labels no text gets any."""
    if problem_type == REGRESSION or len(logits) < 10:
        return
    if problem_type == MULTI_LABEL:
        if not predict_labels(logits, problem_type).any():
            warnings.warn(
                f"none of {len(logits):,} validation texts is predicted to have any label. If that lasts: raise "
                "--learning_rate, train longer, or pass --class_weights balanced",
                stacklevel=2,
            )
        return
    predicted = np.unique(predict_labels(logits, problem_type))
    if len(predicted) == 1:
        warnings.warn(
            f"all {len(logits):,} validation texts are predicted as {label_names[int(predicted[0])]!r}. "
            "If that lasts: raise or lower --learning_rate, train longer, or look at the class balance",
            stacklevel=2,
        )
