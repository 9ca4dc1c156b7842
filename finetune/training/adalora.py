"""What AdaLoRA needs of a training loop beyond a step: its budget planned, spent, and kept orthogonal."""

from typing import Any

import torch
from peft import PeftModel, PeftType
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["AdaLoraAllocation", "has_adalora", "orthogonality_penalty"]

WARM_UP, FINAL = 0.1, 0.3  # shares of the steps before ranks are cut, and after (Zhang et al. 2023, appendix)


def has_adalora(model: nn.Module) -> bool:
    """Tell whether the model carries an AdaLoRA adapter."""
    return isinstance(model, PeftModel) and model.peft_type == PeftType.ADALORA


def orthogonality_penalty(model: PeftModel) -> torch.Tensor:
    """Compute the mean of ‖PᵀP - I‖ and ‖QQᵀ - I‖ times its weight (Zhang et al. 2023, equation 4).

    PEFT adds it only to a loss that the model itself computes.
    """
    norms = []
    for name, parameter in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            gram = parameter @ parameter.T if "lora_A" in name else parameter.T @ parameter
            norms.append(torch.linalg.norm(gram - torch.eye(len(gram), device=gram.device)))
    return model.peft_config["default"].orth_reg_weight * torch.stack(norms).mean()  # type: ignore[attr-defined]


class AdaLoraAllocation(TrainerCallback):
    """Plan AdaLoRA's budget by the steps of the training, and allocate it after each step."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        config = kwargs["model"].peft_config["default"]
        config.total_step = state.max_steps
        config.tinit, config.tfinal = round(WARM_UP * state.max_steps), round(FINAL * state.max_steps)
        kwargs["model"].base_model.rankallocator.set_total_step(state.max_steps)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        kwargs["model"].base_model.update_and_allocate(state.global_step)
