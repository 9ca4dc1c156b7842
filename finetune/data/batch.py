"""Batch by tokens: a step's examples are drawn globally, dealt to the processes, and cut by length into micro-batches.

Texts of one length waste nothing on padding, and a bound on tokens bounds memory whatever the longest text. What the
user calls the batch size stays the number of examples in a step, so a learning rate keeps its meaning.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from finetune.data.cutting import cut_by_padding, cut_by_tokens

__all__ = [
    "OF_EXAMPLES",
    "Drawn",
    "GlobalStepSampler",
    "MicroBatchCollator",
    "StepSampler",
    "TrainDataLoader",
    "count_labelled",
    "count_padded_tokens",
    "cut_batch",
    "cut_by_tokens",
    "has_rows_of_tokens",
    "split_micro_batch",
    "take_rows",
    "trim_padding",
]


# What a batch has besides what the model reads: a row for each example.
OF_EXAMPLES = ("labels", "teacher", "num_windows")


@dataclass(frozen=True)
class Drawn:
    """A part of an epoch that was drawn with the same settings.

    Attributes:
        step_size: Examples in a step.
        accumulation_steps: Batches of a step.
        num_steps: How many steps.
    """

    step_size: int
    accumulation_steps: int
    num_steps: int


class StepSampler(Sampler[list[Any]]):
    """Draw each optimizer step's examples from the whole data set and give this process its share.

    An epoch is one random order, a pure function of `(seed, epoch)`. Within windows of `WINDOW_STEPS` steps it is
    ordered by length and cut into steps, which are then shuffled, so the examples of a step are of similar length while
    the order over the epoch stays random. Which examples make up a step depends neither on the number of processes nor
    on accumulation: these only divide it. Every example is drawn exactly once an epoch by exactly one process; the last
    step may be smaller, or larger where it would leave a process without an example.

    Args:
        num_examples: At least one for each process.
        step_size: Examples in an optimizer step over all processes and accumulation steps.
        seed: Seed of the order.
        accumulation_steps: Batches that a process cuts its share of a step into.
        rank: This process's number.
        world_size: How many processes share a step.
    """

    WINDOW_STEPS = 50

    def __init__(
        self,
        num_examples: int,
        step_size: int,
        seed: int,
        accumulation_steps: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.num_examples = num_examples
        self.step_size = step_size
        self.seed = seed
        self.accumulation_steps = accumulation_steps
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        full, rest = divmod(num_examples, step_size)
        self.num_steps = max(1, full + (rest >= world_size))
        self.last_step_size = num_examples - (self.num_steps - 1) * step_size
        self.last_accumulation_steps = min(accumulation_steps, max(1, self.last_step_size // world_size))
        self.first_step_size = step_size
        self.rest: tuple[int, int, Iterable[list[Any]]] | None = None

    def draw(self, generator: np.random.Generator, sizes: list[int]) -> Iterator[tuple[list[Any], np.ndarray]]:
        """Yield the examples of each window, as many as `sizes` says, with their lengths."""
        raise NotImplementedError

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return (self.num_steps - 1) * self.accumulation_steps + self.last_accumulation_steps

    def go_on(self, epoch: int, drawn: Sequence[Drawn], num_examples: int) -> int:
        """Go on in an epoch of which other settings have drawn a part, at the same share of it.

        Args:
            epoch: The epoch.
            drawn: What was drawn of it.
            num_examples: Of the data set then.

        Returns:
            After how many of this sampler's steps that is.
        """
        share = sum(part.step_size * part.num_steps for part in drawn) / num_examples
        return min(self.num_steps, round(share * self.num_steps))

    def __iter__(self) -> Iterator[list[Any]]:
        if self.rest is not None and self.rest[0] == self.epoch:
            yield from itertools.chain([[]] * self.rest[1], self.rest[2])  # the first ones are skipped
        else:
            for step, accumulation_steps in self._draw_steps():
                yield from self._deal(step, accumulation_steps)

    def _draw_steps(self) -> Iterator[tuple[list[Any], int]]:
        """Draw the steps of the epoch, each with the number of batches that it is cut into."""
        generator = np.random.default_rng([self.seed, self.epoch])
        begins = self.first_step_size != self.step_size
        windows, rest = divmod(self.num_steps - 1 - begins, self.WINDOW_STEPS)
        groups = [(1, self.first_step_size)] * begins
        groups += [(self.WINDOW_STEPS, self.step_size)] * windows + [(rest, self.step_size)] * (rest > 0)
        sizes = [*(steps * size for steps, size in groups), self.last_step_size]
        drawn = self.draw(generator, sizes)
        for (steps, size), (examples, lengths) in zip(groups, drawn, strict=False):
            examples = [examples[position] for position in np.argsort(lengths, kind="stable")]
            for step in generator.permutation(steps):
                yield examples[step * size : (step + 1) * size], self.accumulation_steps
        examples, lengths = next(drawn)
        yield [examples[position] for position in np.argsort(lengths, kind="stable")], self.last_accumulation_steps

    def _deal(self, step: list[Any], accumulation_steps: int) -> Iterator[list[Any]]:
        """Deal a step, ordered by length, in turns, so that all shares take about as long."""
        shares = accumulation_steps * self.world_size
        for number in range(accumulation_steps):
            yield step[number * self.world_size + self.rank :: shares]


class GlobalStepSampler(StepSampler):
    """Draw the row numbers of a data set whose lengths are known.

    Args:
        lengths: Tokens of each example.
        settings: As for `StepSampler`, from `step_size` on.
        batch_size: With one an epoch leaves out, at random, what fills no batch of this size on every process.
    """

    def __init__(
        self, lengths: Sequence[int] | np.ndarray, *settings: Any, batch_size: int | None = None, **named_settings: Any
    ):
        num_drawn = len(lengths)
        if batch_size is not None:
            shared = batch_size * named_settings.get("world_size", 1)
            num_drawn = max(num_drawn // shared, 1) * shared if num_drawn >= shared else num_drawn
        super().__init__(num_drawn, *settings, **named_settings)
        self.lengths = np.asarray(lengths)

    def go_on(self, epoch: int, drawn: Sequence[Drawn], num_examples: int) -> int:
        """Go on in an epoch of which other settings have drawn a part: with the examples that are left of it.

        Args:
            epoch: The epoch.
            drawn: What was drawn of it.
            num_examples: Of the data set then. If it is another one, only the share of the epoch is kept.

        Returns:
            After how many of this sampler's steps that is.
        """
        if num_examples != len(self.lengths) or self.num_examples != len(self.lengths):
            return super().go_on(epoch, drawn, num_examples)
        rows = np.arange(num_examples)
        for part in drawn:
            rows, layout = self._lay_out(rows, part.step_size, part.accumulation_steps, epoch)
            steps = itertools.islice(layout._draw_steps(), part.num_steps)
            rows = np.delete(rows, [position for step, _ in steps for position in step])
        if not len(rows):
            return self.num_steps
        left, layout = self._lay_out(rows, self.step_size, self.accumulation_steps, epoch)
        skipped = self.num_steps - layout.num_steps
        batches = ([int(left[position]) for position in batch] for batch in layout)
        self.rest = epoch, skipped * self.accumulation_steps, batches
        return skipped

    def _lay_out(
        self, rows: np.ndarray, step_size: int, accumulation_steps: int, epoch: int
    ) -> tuple[np.ndarray, "GlobalStepSampler"]:
        """Lay out the steps of an epoch over the rows that are left of it, and return these and their sampler.

        A step that isn't full comes first, so that the last one has as many batches as the last of a whole epoch; where
        too few rows are left for these, some come twice.
        """
        settings = self.seed, accumulation_steps, self.rank, self.world_size
        whole = StepSampler(len(self.lengths), step_size, *settings)
        rows = np.resize(rows, max(len(rows), whole.last_accumulation_steps * self.world_size))
        sampler = GlobalStepSampler(self.lengths[rows], step_size, *settings)
        sampler.set_epoch(epoch)
        if len(rows) < len(self.lengths):
            before = max(0, len(rows) - whole.last_step_size)
            full, first = divmod(before, step_size)
            if first < accumulation_steps * self.world_size:  # too few for its batches
                before, first = full * step_size, 0
            sampler.num_steps = full + (first > 0) + 1
            sampler.first_step_size = first or step_size
            sampler.last_step_size = len(rows) - before
            sampler.last_accumulation_steps = whole.last_accumulation_steps
        return rows, sampler

    def draw(self, generator: np.random.Generator, sizes: list[int]) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yield each window's row numbers: parts of one permutation."""
        order = generator.permutation(len(self.lengths))[: self.num_examples]
        for window in np.split(order, np.cumsum(sizes[:-1])):
            yield window.tolist(), self.lengths[window]


class TrainDataLoader(DataLoader):
    """A `DataLoader` whose batch sampler is told the epoch, as the `Trainer` expects of a distributed loader."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


class MicroBatchCollator:
    """Turn the examples of a batch into padded micro-batches of at most `max_tokens` tokens.

    A text in windows is one example: its windows become rows of `input_ids`, and `num_windows` says how many.

    Args:
        tokenizer: Pads, and knows the padding token and side.
        max_tokens: Most tokens of a micro-batch, padding included.
        max_windows: Most windows of a text that train in one step, evenly spread over it.
        min_length: Tokens up to which all texts are padded, for models that can't compute fewer.
    """

    TEXT_COLUMNS = ("input_ids", "token_type_ids")

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int, max_windows: int = 8, min_length: int = 1):
        self.pad = DataCollatorWithPadding(tokenizer)
        self.pad_to_least = DataCollatorWithPadding(tokenizer, padding="max_length", max_length=min_length)
        self.min_length = min_length
        self.max_tokens = max_tokens
        self.max_windows = max_windows

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return `micro_batches`, a list of dictionaries of tensors, `num_examples` and `num_tokens`.

        `input_ids` and `attention_mask` of a micro-batch have the shape `(examples, longest example)`, `labels` has
        `(examples,)` or `(examples, num_labels)`, and `teacher`, if the examples have it, `(examples, 1 + num_labels)`.
        """
        examples = [self._spread(example) for example in examples]
        lengths = [_num_tokens(example["input_ids"]) for example in examples]
        groups = cut_by_tokens(lengths, self.max_tokens)
        return {
            "micro_batches": [self.collate([examples[position] for position in group]) for group in groups],
            "num_examples": len(examples),
            "num_tokens": sum(lengths),
        }

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Pad examples to the longest of them."""
        texts = [{name: example[name] for name in self.TEXT_COLUMNS if name in example} for example in examples]
        if _has_windows(examples[0]["input_ids"]):
            texts = [
                dict(zip(text, window, strict=True)) for text in texts for window in zip(*text.values(), strict=True)
            ]
        is_short = max(len(text["input_ids"]) for text in texts) < self.min_length
        inputs = dict(self.pad_to_least(texts) if is_short else self.pad(texts))
        if _has_windows(examples[0]["input_ids"]):
            inputs["num_windows"] = torch.tensor([len(example["input_ids"]) for example in examples])
        if "labels" in examples[0]:
            inputs["labels"] = torch.tensor(np.array([example["labels"] for example in examples]))
        if "teacher" in examples[0]:
            inputs["teacher"] = torch.tensor(np.array([example["teacher"] for example in examples], dtype=np.float32))
        return inputs

    def _spread(self, example: dict[str, Any]) -> dict[str, Any]:
        windows = example["input_ids"]
        if not _has_windows(windows) or len(windows) <= self.max_windows:
            return example
        chosen = np.linspace(0, len(windows) - 1, self.max_windows).round().astype(int)
        names = [name for name in self.TEXT_COLUMNS if name in example]
        return {**example, **{name: [example[name][number] for number in chosen] for name in names}}


def take_rows(dataset: Any, rows: Sequence[int]) -> list[Any]:
    """Take rows of a data set as a `DataLoader` takes them: all at once where it can give them so."""
    return dataset.__getitems__(rows) if hasattr(dataset, "__getitems__") else [dataset[row] for row in rows]


def has_rows_of_tokens(batch: Any) -> bool:
    """Return whether a batch is what it can be cut as: tensors with a row for each example, `input_ids` among them."""
    if not isinstance(batch, Mapping) or not torch.is_tensor(batch.get("input_ids")) or batch["input_ids"].ndim != 2:
        return False
    rows = len(batch["input_ids"])
    return all(torch.is_tensor(tensor) and tensor.ndim and len(tensor) == rows for tensor in batch.values())


def cut_batch(batch: Mapping[str, torch.Tensor], max_tokens: int, trims: bool = True) -> dict[str, Any]:
    """Cut a batch that any collator has made, of examples that were not drawn by their length.

    Args:
        batch: As `has_rows_of_tokens` wants it, with `labels`. A label of -100 does not count, as in cross-entropy.
        max_tokens: Most tokens of a micro-batch, padding included.
        trims: Whether padding that none of a micro-batch's texts needs goes; it matters to some models.

    Returns:
        `micro_batches`, `num_examples` and `num_tokens`.
    """
    labels, width = batch["labels"], batch["input_ids"].shape[1]
    lengths = [width] * len(labels)
    mask = batch.get("attention_mask")
    if mask is not None and mask.shape == batch["input_ids"].shape:
        lengths = mask.sum(dim=1).tolist()
    groups = cut_by_padding(lengths if trims else [width] * len(labels), max_tokens, max(1, max_tokens // 16))
    micro_batches = [{name: tensor[group] for name, tensor in batch.items()} for group in groups]
    return {
        "micro_batches": [trim_padding(part) for part in micro_batches] if trims else micro_batches,
        "num_examples": count_labelled(labels),
        "num_tokens": sum(lengths),
    }


def count_labelled(labels: torch.Tensor) -> int:
    """Count the examples that a mean is over: a class of -100 is none, as in cross-entropy."""
    is_class = labels.ndim == 1 and not labels.is_floating_point()
    return int((labels != -100).sum()) if is_class else len(labels)


def split_micro_batch(
    micro_batch: dict[str, torch.Tensor], max_tokens: int, trims: bool = True
) -> list[dict[str, torch.Tensor]]:
    """Halve a micro-batch, and its halves, until none has more than `max_tokens` tokens, or one example is left.

    Args:
        micro_batch: As `MicroBatchCollator` or `cut_batch` gives it, or its features.
        max_tokens: Most tokens of a part, padding included.
        trims: Whether padding that none of a part's texts needs is cut off.

    Returns:
        Parts with the same examples in the same order.
    """
    num_examples = len(micro_batch["labels"])
    if num_examples == 1 or count_padded_tokens(micro_batch) <= max_tokens:
        return [micro_batch]
    half = num_examples // 2
    counts = micro_batch.get("num_windows")
    rows = half if counts is None else int(counts[:half].sum())
    parts = []
    for examples, texts in ((slice(half), slice(rows)), (slice(half, None), slice(rows, None))):
        part = {name: tensor[examples if name in OF_EXAMPLES else texts] for name, tensor in micro_batch.items()}
        parts += split_micro_batch(trim_padding(part) if trims else part, max_tokens, trims)
    return parts


def count_padded_tokens(micro_batch: dict[str, torch.Tensor]) -> int:
    """Count the tokens of a micro-batch, padding included."""
    texts = micro_batch["input_ids" if "input_ids" in micro_batch else "inputs_embeds"]
    return texts.shape[0] * texts.shape[1]


def trim_padding(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Cut off the padding that every text of a batch has, on either side, by `attention_mask`."""
    mask = batch.get("attention_mask")
    if mask is None or "input_ids" not in batch or mask.shape != batch["input_ids"].shape or not mask.any():
        return batch
    used = mask.any(dim=0).nonzero()
    tokens = slice(int(used.min()), int(used.max()) + 1)
    return {
        name: tensor[:, tokens] if name not in OF_EXAMPLES and tensor.shape == mask.shape else tensor
        for name, tensor in batch.items()
    }


def _has_windows(input_ids: list) -> bool:
    return bool(input_ids) and isinstance(input_ids[0], list)


def _num_tokens(input_ids: list) -> int:
    return sum(map(len, input_ids)) if _has_windows(input_ids) else len(input_ids)
