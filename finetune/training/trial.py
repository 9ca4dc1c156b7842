"""What a model does with a batch, found by trying it: its logits, whether padding changes them, and its loss.

A loss can be summed over the micro-batches of a step, whatever they are cut into, if it is a mean over examples. No
attribute of a model says so, and no class name: so its loss on a few examples is compared with what it should then be.
"""

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from finetune.data.batch import count_labelled, has_rows_of_tokens, trim_padding
from finetune.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from finetune.training.loss import ExampleLoss

__all__ = ["Behaviour", "random_streams_kept", "try_model"]

Smoother = Callable[[Any, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Behaviour:
    """What a model was seen to do.

    Attributes:
        num_logits: Logits of an example.
        ignores_padding: Whether an example's logits are the same without the batch's padding.
        gives_logits_alone: Whether logits, and a loss, are all that comes out.
        example_loss: Whose mean over the examples its loss is; None if it is something else, or there were no labels.
        divides_by_count: Whether its loss is another one when it is told `num_items_in_batch`; None if it wasn't told.
    """

    num_logits: int
    ignores_padding: bool
    gives_logits_alone: bool
    example_loss: ExampleLoss | None
    divides_by_count: bool | None = None


@contextlib.contextmanager
def random_streams_kept() -> Iterator[None]:
    """Leave what a script draws from Python, NumPy and torch as if nothing had been tried: a collator may draw too."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


@torch.no_grad()
def try_model(
    model: nn.Module, batch: Any, smoother: Smoother | None, smoothing: float, takes_count: bool = False
) -> Behaviour | None:
    """Try a model on a few examples, in evaluation mode.

    Args:
        model: Not wrapped, on one device.
        batch: As a collator gives it, of texts of different lengths.
        smoother: transformers' label smoothing, which takes the place of the model's own loss.
        smoothing: Its factor.
        takes_count: Whether `forward` takes `num_items_in_batch`, among others perhaps.

    Returns:
        None if it takes no batch of token rows, or gives no row of logits for each example.
    """
    if not has_rows_of_tokens(batch):
        return None
    parameter = next(model.parameters())
    inputs = {name: tensor.to(parameter.device) for name, tensor in batch.items()}
    labels = inputs.pop("labels", None)
    inputs.pop("teacher", None)
    was_training = model.training
    model.eval()
    try:
        outputs = model(**inputs) if labels is None or smoother is not None else model(**inputs, labels=labels)
        logits = outputs.get("logits") if isinstance(outputs, Mapping) else None
        if not torch.is_tensor(logits) or logits.ndim != 2 or len(logits) != len(inputs["input_ids"]):
            return None
        loss = None
        if labels is not None:
            loss = outputs.get("loss") if smoother is None else smoother(outputs, labels)
        divides = None
        if takes_count and loss is not None:
            divides = False
            if smoother is None:
                counted = model(**inputs, labels=labels, num_items_in_batch=torch.tensor(7 * len(labels)))
                divides = not torch.allclose(counted["loss"], loss, equal_nan=True)
        tolerance = 1e-4 if parameter.dtype == torch.float32 else 2e-2
        alone = [
            model(**trim_padding({name: tensor[[row]] for name, tensor in inputs.items()}))["logits"]
            for row in range(len(logits))
        ]
        ignored = getattr(getattr(model, "config", None), "keys_to_ignore_at_inference", ["past_key_values"])
        return Behaviour(
            num_logits=logits.shape[1],
            ignores_padding=torch.allclose(torch.cat(alone), logits, rtol=tolerance, atol=tolerance / 10),
            gives_logits_alone=set(outputs) <= {"loss", "logits", *ignored},
            example_loss=None if loss is None else _find_loss(loss, logits.float(), labels, smoothing, tolerance),
            divides_by_count=divides,
        )
    finally:
        model.train(was_training)


def _find_loss(
    loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, smoothing: float, tolerance: float
) -> ExampleLoss | None:
    """Find the loss whose mean over the examples is what a model gave."""
    if labels.shape == logits.shape and labels.is_floating_point():
        found = ExampleLoss(MULTI_LABEL)
    elif labels.ndim == 1 and not labels.is_floating_point() and logits.shape[1] > 1:
        found = ExampleLoss(SINGLE_LABEL, smoothing)
    elif labels.ndim == 1 and logits.shape[1] == 1:
        found = ExampleLoss(REGRESSION)
    else:
        return None
    mean = found(logits, labels, None).sum() / count_labelled(labels)
    return found if torch.allclose(mean, loss.float(), rtol=tolerance, atol=tolerance) else None
