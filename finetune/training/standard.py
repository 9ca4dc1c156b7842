"""Numbers to predict are standardised while a model trains, and the model gives them as they are in the end."""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from finetune.adapted import without_adapter
from finetune.methods import new_modules_of
from finetune.models.output_layer import Standard, find_output_layer
from finetune.training.steps import StepTrainer

__all__ = ["standardised"]


@contextlib.contextmanager
def standardised(trainer: StepTrainer, standard: Standard, probes: dict[str, torch.Tensor]) -> Iterator[None]:
    """Let a model's outputs stand for standardised numbers, and put mean and spread into them in the end.

    A head that the checkpoint brought along goes on from the numbers that it gives; a fresh one from the mean.

    Args:
        trainer: Its model is changed, and the scale of its `example_loss`.
        standard: Mean and spread of the numbers.
        probes: A few texts, as the model takes them.
    """
    model: Any = trainer.model
    is_divided = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    found = None if is_divided else find_output_layer(model, probes)
    if found is None:
        why = "weights are divided over processes" if is_divided else "no linear layer alone gives the output"
        warnings.warn(
            f"the numbers to predict (mean {standard.mean:.4g}, spread {standard.spread:.4g}) are not "
            f"standardised, since {why}: bring them near 0 yourself, or train longer",
            stacklevel=2,
        )
        yield
        return
    name, layer = found
    if layer.bias is None:
        standard = standard.without_mean()
    base: Any = without_adapter(model)
    # Of a model that was made from its config alone, and not loaded, all layers are.
    is_fresh = not base.config.name_or_path or any(f".{module}." in f".{name}." for module in new_modules_of(model))
    if not is_fresh:
        standard.take_out_of(layer)
    assert trainer.example_loss is not None
    trainer.example_loss = replace(trainer.example_loss, standard=standard)
    try:
        yield
    finally:
        trainer.example_loss.standard.put_into(layer)  # that of the checkpoint, if it went on from one
        trainer.example_loss = replace(trainer.example_loss, standard=Standard())
