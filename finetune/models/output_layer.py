"""The layer whose outputs are a model's logits, found on any architecture by what it does, not by its name.

Numbers to predict need it. A network trains on numbers near 0 with a spread near 1: from a fresh head, at the rates
that suit an encoder, a mean of 230 is out of reach. So a training works on (number - mean) / spread, and at its end
both are multiplied into this layer: what is saved gives the numbers themselves, whatever loads it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["Standard", "find_output_layer"]


@dataclass(frozen=True)
class Standard:
    """Mean and spread of the numbers to predict.

    Attributes:
        mean: What is subtracted; 0 for a layer without a bias, which could not add it again.
        spread: What is divided by, more than 0.
    """

    mean: float = 0.0
    spread: float = 1.0

    @classmethod
    def of(cls, numbers: np.ndarray) -> "Standard":
        """Take mean and standard deviation; numbers that are all the same have a spread of 1."""
        numbers = np.asarray(numbers, dtype=np.float64)
        return cls(float(numbers.mean()), float(numbers.std()) or 1.0)

    def without_mean(self) -> "Standard":
        """Return the spread around 0."""
        return Standard(0.0, float(np.hypot(self.mean, self.spread)))

    def apply(self, numbers: Any) -> Any:
        """From numbers to standard ones."""
        return (numbers - self.mean) / self.spread

    def undo(self, numbers: Any) -> Any:
        """From standard numbers to those that they stand for."""
        return numbers * self.spread + self.mean

    @torch.no_grad()
    def put_into(self, layer: nn.Linear) -> None:
        """Let a layer that gives standard numbers give the numbers themselves."""
        layer.weight.mul_(self.spread)
        if layer.bias is not None:
            layer.bias.mul_(self.spread).add_(self.mean)

    @torch.no_grad()
    def take_out_of(self, layer: nn.Linear) -> None:
        """Let a layer that gives numbers give standard ones."""
        layer.weight.div_(self.spread)
        if layer.bias is not None:
            layer.bias.sub_(self.mean).div_(self.spread)


@torch.no_grad()
def find_output_layer(model: nn.Module, inputs: dict[str, torch.Tensor]) -> tuple[str, nn.Linear] | None:
    """Find the linear layer whose outputs are the logits, by trial: when they are doubled, the logits are.

    Args:
        model: Wrapped by PEFT or not, on the device of `inputs`.
        inputs: A few texts, padded.

    Returns:
        The layer and its name; None if there is none, or if an adapter adds to its outputs.
    """
    was_training = model.training
    model.eval()
    try:
        expected = model(**inputs).logits
        for name, module in reversed(list(model.named_modules())):
            is_layer = isinstance(module, nn.Linear) and module.out_features == expected.shape[-1]
            if not is_layer or name.endswith(".base_layer"):
                continue
            handle = module.register_forward_hook(lambda layer, taken, given: 2 * given + 1)
            try:
                logits = model(**inputs).logits
            finally:
                handle.remove()
            if torch.allclose(logits, 2 * expected + 1, rtol=1e-4, atol=1e-4):
                return name, module
        return None
    finally:
        model.train(was_training)
