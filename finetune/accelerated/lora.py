"""LoRA on a CPU within the matrix products, instead of in passes of its own over the activations.

PEFT adds the update in three steps, B (A x), times the scale, plus W x: each a tensor of the size of the output that is
written to memory and read again, and once more in the backward pass. The products are so small that these passes cost
more than LoRA saves by not computing the gradients of W. A product can add to what is there; here it does.
"""

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import nn
from torch.nn import functional as F

__all__ = ["use_fused_lora"]


class _LowRankFunction(torch.autograd.Function):
    """W x + b + scale · B A x for rows x of shape `(rows, in)`; W and b have no gradient.

    What it returns is no view, so that a model may change it in place, as Longformer does.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        dtype = rows.dtype
        weight, a, b = weight.to(dtype), a.to(dtype), (b * scale).to(dtype)
        hidden = rows @ a.T  # (rows, r)
        output = F.linear(rows, weight, None if bias is None else bias.to(dtype)).addmm_(hidden, b.T)
        ctx.save_for_backward(rows, hidden, weight, a, b)
        ctx.scale = scale
        return output

    @staticmethod
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, hidden, weight, a, b = ctx.saved_tensors
        inner = outer @ b  # (rows, r)
        of_inputs = None
        if ctx.needs_input_grad[0]:  # not in the lowest layer, below which nothing trains
            of_inputs = (outer @ weight).addmm_(inner, a)
        of_a = (inner.T @ rows).float()
        of_b = (outer.T @ hidden).float().mul_(ctx.scale)
        return of_inputs, None, None, of_a, of_b, None


class _FusedLinear(Linear):
    """PEFT's layer, computed at once while it trains; in evaluation, and for all else that PEFT can do, PEFT's own."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        base: Any = self.base_layer
        name = self.active_adapters[0] if len(self.active_adapters) == 1 else ""
        plain = (
            name in self.lora_A
            and name not in self.lora_variant
            and x.device.type == "cpu"
            and self.training
            and torch.is_grad_enabled()
            and not (self.disable_adapters or self.merged or args or kwargs or torch.compiler.is_compiling())
            and type(base) is nn.Linear
            and not base.weight.requires_grad
            and isinstance(self.lora_dropout[name], nn.Identity)
            and not self.lora_bias[name]
        )
        if not plain:
            return super().forward(x, *args, **kwargs)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else base.weight.dtype
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        rows = x.to(dtype).reshape(-1, x.shape[-1])
        output = _LowRankFunction.apply(rows, base.weight, base.bias, a, b, self.scaling[name])
        return output.view(*x.shape[:-1], -1)


def use_fused_lora(model: nn.Module) -> None:
    """Let every LoRA layer of a model on linear layers compute at once, in place; what is saved stays the same."""
    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = _FusedLinear
