"""Logits of many texts: sorted by length, batched by tokens, without gradients, in the order of the input."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import distributed
from transformers import PreTrainedModel

from finetune.data.batch import cut_by_tokens
from finetune.models.precision import autocast

__all__ = ["compute_logits", "compute_rows"]


def compute_logits(
    model: PreTrainedModel,
    examples: Sequence[dict[str, Any]],
    lengths: Sequence[int],
    collate: Callable[[list[dict]], dict[str, torch.Tensor]],
    max_tokens: int,
    dtype: torch.dtype = torch.float32,
    on_batch: Callable[[int], None] = lambda num_examples: None,
) -> np.ndarray:
    """Compute the logits of tokenized examples.

    Args:
        model: Put into evaluation mode for the call.
        examples: Each has `input_ids`; a list, or a data set of `tokenize_dataset`.
        lengths: Tokens of each example.
        collate: Pads examples into tensors.
        max_tokens: Most tokens of a batch, padding included.
        dtype: Number format of the matrix products, by autocast.
        on_batch: Called with the number of examples after each batch.

    Returns:
        float32 logits, `(len(examples), num_labels)`.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()

    def forward(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        with autocast(device, dtype):
            return model(**inputs).logits

    width = int(model.config.num_labels or 0)
    logits = compute_rows(forward, width, examples, lengths, collate, max_tokens, device, on_batch)
    model.train(was_training)
    return logits


@torch.inference_mode()
def compute_rows(
    forward: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    width: int,
    examples: Sequence[dict[str, Any]],
    lengths: Sequence[int],
    collate: Callable[[list[dict]], dict[str, torch.Tensor]],
    max_tokens: int,
    device: torch.device,
    on_batch: Callable[[int], None] = lambda num_examples: None,
) -> np.ndarray:
    """Compute one row of numbers for each example.

    With several processes each takes every n-th batch, so that every example counts exactly once, and all of them
    get all rows.

    Args:
        forward: From a batch's tensors, without labels, to `(batch, width)`.
        width: Numbers in a row.
        examples: What `collate` takes.
        lengths: Tokens of each example.
        collate: Pads examples into tensors.
        max_tokens: Most tokens of a batch, padding included.
        device: Where `forward` computes.
        on_batch: Called with the number of examples after each batch.

    Returns:
        float32, `(len(examples), width)`.
    """
    rank, world_size = 0, 1
    if distributed.is_available() and distributed.is_initialized():
        rank, world_size = distributed.get_rank(), distributed.get_world_size()
    rows = np.zeros((len(lengths), width), dtype=np.float32)
    for positions in cut_by_tokens(lengths, max_tokens)[rank::world_size]:
        inputs = collate([examples[position] for position in positions])
        inputs.pop("labels", None)
        outputs = forward({name: tensor.to(device) for name, tensor in inputs.items()})
        rows[positions] = outputs.float().cpu().numpy()
        on_batch(len(positions))
    if world_size > 1:  # each row is zero but on the one process that computed it
        total = torch.from_numpy(rows).to(device)
        distributed.all_reduce(total)
        rows = total.cpu().numpy()
    return rows
