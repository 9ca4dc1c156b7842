"""bfloat16 with float32 weights: autocast, and activations that stay in bfloat16 from the embeddings on.

The weights that the optimizer steps and that are saved are float32; autocast casts a copy for each matrix product, and
gradients are accumulated in float32. Left to autocast alone, a CPU adds the residual stream up in float32, since
embeddings are looked up in float32, and casts it back and forth around every product.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from finetune.tasks import REGRESSION

__all__ = ["DTYPES", "autocast", "compute_numbers_in_fp32", "keep_activations_in_bf16"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Compute matrix products in `dtype`; float32 leaves everything as it is."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not torch.float32)


def keep_activations_in_bf16(model: nn.Module) -> None:
    """Let every embedding of a model on a CPU come out in autocast's format, where autocast is on.

    Also lets PEFT's layers take their inputs as they come, which they would cast to float32 and autocast back.
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding) and _cast_to_autocast_dtype not in module._forward_hooks.values():
            module.register_forward_hook(_cast_to_autocast_dtype)
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False  # type: ignore[assignment]


def _cast_to_autocast_dtype(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    if output.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        return output.to(torch.get_autocast_dtype("cpu"))
    return output


class _Float32Linear(nn.Linear):
    """A linear layer that autocast leaves in float32."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not torch.is_autocast_enabled(input.device.type):
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input.to(self.weight.dtype), self.weight, self.bias)


def compute_numbers_in_fp32(model: Any) -> None:
    """Let the layer that gives the numbers of a regression compute in float32, in place; what is saved stays the same.

    bfloat16 has eight bits: of the years from 1,024 to 2,047 it knows every eighth. Models that classify stay as they
    are. One logit without a `problem_type` is a number, as transformers takes it.
    """
    num_labels = model.config.num_labels
    if model.config.problem_type != REGRESSION and (model.config.problem_type is not None or num_labels != 1):
        return
    for module in model.modules():
        if type(module) is nn.Linear and module.out_features == num_labels:
            module.__class__ = _Float32Linear
