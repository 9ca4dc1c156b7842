"""Dropout that is cheap to draw on a CPU.

torch draws one Bernoulli number an element, on one thread: a third to a half of a training step. Here one 64-bit number
of torch's own generator, whose state checkpoints hold, decides over four elements, 16 bits each.
"""

from typing import Any

import torch
from torch import nn

__all__ = ["FastDropout", "use_fast_dropout"]

LEVELS = 2**16


class _DropoutFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, num_dropped: int) -> torch.Tensor:
        count = inputs.numel()
        words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        keep = (words.view(torch.int16)[:count] >= num_dropped - LEVELS // 2).view(inputs.shape)
        ctx.save_for_backward(keep)
        ctx.scale = LEVELS / (LEVELS - num_dropped)
        return (inputs * keep).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (keep,) = ctx.saved_tensors
        return (gradient * keep).mul_(ctx.scale), None


class FastDropout(nn.Dropout):
    """`nn.Dropout` (Srivastava et al. 2014) with the probability rounded to a multiple of 2⁻¹⁶.

    What is kept is scaled by the rounded probability, so the expectation is exact. Elsewhere than on a CPU it is
    `nn.Dropout` itself.
    """

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        num_dropped = round(self.p * LEVELS)
        if not self.training or num_dropped == 0:
            return inputs
        if inputs.device.type != "cpu" or num_dropped >= LEVELS:
            return super().forward(inputs)
        return _DropoutFunction.apply(inputs, num_dropped)


def use_fast_dropout(model: nn.Module) -> None:
    """Replace every `nn.Dropout` in the model, in place; it holds no weights, so what is saved stays the same."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, FastDropout(child.p))
