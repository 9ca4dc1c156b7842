"""What AdaLoRA needs of a training loop beyond a step: its budget planned, spent, kept orthogonal, and checkpointed."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, PeftType
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune.adapted import has_adapter

__all__ = [
    "AdaLoraAllocation",
    "has_adalora",
    "has_adalora_state",
    "load_adalora",
    "orthogonality_penalty",
    "save_adalora",
]

STATE_FILE = "adalora.safetensors"
IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")
WARM_UP, FINAL = 0.1, 0.3  # shares of the steps before ranks are cut, and after (Zhang et al. 2023, appendix)


def has_adalora(model: nn.Module) -> bool:
    """Return whether the model carries an AdaLoRA adapter."""
    return has_adapter(model) and model.peft_type == PeftType.ADALORA


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
        if any(p.grad is None for name, p in kwargs["model"].named_parameters() if "lora_" in name):
            return  # a step that was left out, since its loss was no number
        kwargs["model"].base_model.update_and_allocate(state.global_step)


def has_adalora_state(folder: Path) -> bool:
    """Return whether a checkpoint has what `save_adalora` writes."""
    return (folder / STATE_FILE).exists()


def save_adalora(model: PeftModel, folder: Path) -> None:
    """Write what PEFT's own files leave out: the weights before the ranks are cut, and the importance of each rank."""
    allocator: Any = model.base_model.rankallocator
    tensors = {f"weights/{name}": p.detach() for name, p in model.named_parameters() if p.requires_grad}
    for kind in IMPORTANCE:
        tensors |= {f"{kind}/{name}": tensor for name, tensor in getattr(allocator, kind).items()}
    pattern = json.dumps(model.peft_config["default"].rank_pattern)  # type: ignore[attr-defined]
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / STATE_FILE, {"ranks": pattern})


@torch.no_grad()
def load_adalora(model: PeftModel, folder: Path) -> None:
    """Read what `save_adalora` wrote."""
    allocator: Any = model.base_model.rankallocator
    allocator.reset_ipt()
    parameters = dict(model.named_parameters())
    with safe_open(folder / STATE_FILE, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118  not a dictionary
            kind, name = key.split("/", 1)
            if kind == "weights":
                parameters[name].copy_(file.get_tensor(key))
            else:
                getattr(allocator, kind)[name] = file.get_tensor(key).to(model.device)
        pattern = json.loads(file.metadata()["ranks"])
    model.peft_config["default"].rank_pattern = pattern  # type: ignore[attr-defined]
