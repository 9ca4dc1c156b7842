"""Logits of many texts: sorted by length, batched by tokens, without gradients, in the order of the input."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.nn import functional as F
from transformers import PreTrainedModel

from finetune.accelerated.precision import autocast
from finetune.data.batch import MicroBatchCollator
from finetune.data.cutting import cut_by_tokens, group_equal
from finetune.errors import FinetuneError
from finetune.hardware import is_out_of_memory, release_memory
from finetune.models.inputs import needs_equal_lengths
from finetune.tasks import MULTI_LABEL
from finetune.threads import compute_side_by_side

__all__ = ["compute_logits", "compute_rows", "pool_windows"]

# Fewer tokens are not worth a thread: the texts of a TextCNN, which takes 1,024, are computed by all threads together.
MIN_TOKENS_OF_A_THREAD = 1_024


def compute_logits(
    model: PreTrainedModel,
    examples: Sequence[dict[str, Any]],
    lengths: Sequence[int],
    collate: Callable[[list[dict]], dict[str, torch.Tensor]],
    max_tokens: int,
    dtype: torch.dtype = torch.float32,
    window_pooling: str | None = None,
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
        window_pooling: How the windows of a text are combined; None for texts that are not in windows.
        on_batch: Called with the number of examples, or of windows, after each batch.

    Returns:
        float32 logits, `(len(examples), num_labels)`.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()

    def forward(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        inputs.pop("num_windows", None)
        with autocast(device, dtype):
            return model(**inputs).logits

    width = int(model.config.num_labels or 0)
    cut = group_equal if needs_equal_lengths(model) else cut_by_tokens
    if window_pooling is None:
        logits = compute_rows(forward, width, examples, lengths, collate, max_tokens, device, on_batch, cut)
    else:
        windows = _Windows(examples)
        rows = compute_rows(forward, width, windows, windows.lengths, collate, max_tokens, device, on_batch, cut)
        pooled = pool_windows(
            torch.from_numpy(rows), torch.tensor(windows.counts), window_pooling, model.config.problem_type
        )
        logits = pooled.numpy()
    model.train(was_training)
    return logits


class _Windows(Sequence):
    """The windows of all examples, each as an example of its own."""

    def __init__(self, examples: Sequence[dict[str, Any]]):
        self.examples = examples
        lengths = [[len(window) for window in example["input_ids"]] for example in examples]
        self.counts = [len(one) for one in lengths]
        self.lengths = [length for one in lengths for length in one]
        self.owners = np.repeat(np.arange(len(self.counts)), self.counts)
        self.firsts = np.cumsum([0, *self.counts])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, position: Any) -> Any:
        owner = int(self.owners[position])
        window, example = position - int(self.firsts[owner]), self.examples[owner]
        return {name: example[name][window] for name in MicroBatchCollator.TEXT_COLUMNS if name in example}


def pool_windows(logits: torch.Tensor, num_windows: torch.Tensor, how: str, problem_type: str | None) -> torch.Tensor:
    """Combine the logits of windows to those of texts.

    "mean" and "max" combine each class's logits. "vote" gives the share of windows that decide for a class, with the
    probability by the mean logits as one more vote, so that it breaks ties: p = (votes + mean's p) / (windows + 1).

    Args:
        logits: `(windows, num_labels)`, the windows of a text one after the other.
        num_windows: Windows of each text, `(texts,)`.
        how: "mean", "max" or "vote".
        problem_type: transformers' name of the task; with several labels a text each label is voted on.

    Returns:
        `(texts, num_labels)`. A vote has no gradient.
    """
    texts = torch.arange(len(num_windows), device=logits.device)  # a GPU would be waited for to count what it repeats
    texts = torch.repeat_interleave(texts, num_windows.to(logits.device), output_size=len(logits))
    counts = num_windows.to(logits).unsqueeze(1)
    index = texts.unsqueeze(1).expand_as(logits)
    zeros = logits.new_zeros(len(num_windows), logits.shape[1])
    if how == "max":
        return zeros.scatter_reduce(0, index, logits, "amax", include_self=False)
    mean = zeros.scatter_add(0, index, logits) / counts
    if how == "mean":
        return mean
    if problem_type == MULTI_LABEL:
        votes = zeros.scatter_add(0, index, (logits >= 0).to(logits))
        return torch.logit((votes + torch.sigmoid(mean)) / (counts + 1), eps=1e-6)
    votes = zeros.scatter_add(0, index, F.one_hot(logits.argmax(dim=1), logits.shape[1]).to(logits))
    return torch.log(((votes + torch.softmax(mean, dim=1)) / (counts + 1)).clamp_min(1e-6))


def compute_rows(
    forward: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    width: int,
    examples: Sequence[dict[str, Any]],
    lengths: Sequence[int],
    collate: Callable[[list[dict]], dict[str, torch.Tensor]],
    max_tokens: int,
    device: torch.device,
    on_batch: Callable[[int], None] = lambda num_examples: None,
    cut: Callable[[Sequence[int], int], list[list[int]]] = cut_by_tokens,
) -> np.ndarray:
    """Compute one row of numbers for each example.

    With several processes each takes every n-th batch, so that every example counts exactly once, and all of them
    get all rows. Fewer batches than processes are not worth dividing: each computes them all.

    Args:
        forward: From a batch's tensors, without labels, to `(batch, width)`.
        width: Numbers in a row.
        examples: What `collate` takes.
        lengths: Tokens of each example.
        collate: Pads examples into tensors.
        max_tokens: Most tokens of a batch, padding included.
        device: Where `forward` computes.
        on_batch: Called with the number of examples after each batch.
        cut: From lengths and `max_tokens` to batches: `group_equal` for models that padding disturbs.

    Returns:
        float32, `(len(examples), width)`.

    Raises:
        FinetuneError: If memory does not suffice for a single example; for several, batches are halved.
    """
    batches = cut(lengths, max_tokens)
    rank, world_size = 0, 1
    several = distributed.is_available() and distributed.is_initialized()
    if several and distributed.get_world_size() <= len(batches):
        rank, world_size = distributed.get_rank(), distributed.get_world_size()
    rows = np.zeros((len(lengths), width), dtype=np.float32)

    def compute(group: list[int]) -> np.ndarray | None:
        return _compute_unless_out_of_memory(forward, collate([examples[at] for at in group]), device)

    groups = batches[rank::world_size]
    workers = min(torch.get_num_threads(), max_tokens // MIN_TOKENS_OF_A_THREAD)
    if device.type == "cpu" and not several and 1 < workers < len(groups):  # processes must keep to one order
        # What is serial in a batch keeps no other thread waiting. All batches together have as many tokens as one had.
        groups, left = cut(lengths, max_tokens // workers), []
        threads = torch.get_num_threads() // workers
        results = compute_side_by_side(compute, groups, workers, lambda: torch.set_num_threads(threads))
        for group, computed in zip(groups, results, strict=True):
            if computed is None:
                left.append(group)
                continue
            rows[group] = computed
            on_batch(len(group))
        groups = _cut_smaller(left, lengths, cut) if left else []
    while groups:
        computed = compute(groups[0])
        if computed is None:
            groups = _cut_smaller(groups, lengths, cut)
            continue
        positions = groups.pop(0)
        rows[positions] = computed
        on_batch(len(positions))
    if rank >= (len(batches) % world_size or world_size):
        compute(batches[-1])  # where weights are divided over processes all must call the model, as often
    if world_size > 1:  # each row is zero but on the one process that computed it
        total = torch.from_numpy(rows).to(device)
        distributed.all_reduce(total)
        rows = total.cpu().numpy()
    return rows


@torch.inference_mode()
def _compute_unless_out_of_memory(
    forward: Callable[[dict[str, torch.Tensor]], torch.Tensor], inputs: dict[str, torch.Tensor], device: torch.device
) -> np.ndarray | None:
    """Compute the rows of a batch; None if its memory could not be had, and then nothing holds any of it."""
    inputs.pop("labels", None)
    try:
        return forward({name: tensor.to(device) for name, tensor in inputs.items()}).float().cpu().numpy()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def _cut_smaller(
    groups: list[list[int]], lengths: Sequence[int], cut: Callable[[Sequence[int], int], list[list[int]]]
) -> list[list[int]]:
    """Cut the groups that are left by half the tokens of the first one, for which memory did not suffice."""
    release_memory()
    first = [int(lengths[at]) for at in groups[0]]
    if len(first) == 1:
        raise FinetuneError(
            f"Expected memory for the logits of a text of {first[0]:,} tokens, but an allocation failed. "
            "Pass a smaller --max_length, or free memory."
        )
    max_tokens = len(first) * max(first) // 2
    warnings.warn(f"out of memory: from now on at most {max_tokens:,} tokens are computed at once", stacklevel=2)
    left = [at for group in groups for at in group]
    return [[left[at] for at in group] for group in cut([int(lengths[at]) for at in left], max_tokens)]
