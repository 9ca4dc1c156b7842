"""A training step: micro-batches bounded by tokens, whose loss is the mean over the examples of the whole step.

Upstream's `Trainer` takes `BertForSequenceClassification` for a model that divides its loss by `num_items_in_batch`,
since its `forward` has `**kwargs`; it doesn't, so under accumulation or several processes the gradient is a multiple
of what it should be (transformers issue 47688). Here the loss is the sum over examples divided by the number of
examples in the whole step, over all micro-batches, accumulation steps and processes.

The overridden methods of this class are public ones of transformers; private ones stand in `upstream.py`.
"""

import contextlib
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import Trainer

from finetune.data.batch import (
    OF_EXAMPLES,
    count_labelled,
    count_padded_tokens,
    cut_batch,
    has_rows_of_tokens,
    split_micro_batch,
    trim_padding,
)
from finetune.errors import FinetuneError
from finetune.hardware import is_out_of_memory, release_memory
from finetune.training.adalora import has_adalora, orthogonality_penalty
from finetune.training.interruption import Interruption
from finetune.training.loss import ExampleLoss
from finetune.training.progress import CostMeter
from finetune.training.trial import Behaviour

__all__ = ["StepTrainer"]

MOST_LEFT_OUT = 3  # steps in a row whose loss or gradient is no number
MOST_NAMED = 20


class StepTrainer(Trainer):
    """How a step is worked off; see `finetune.training.trainer.Trainer`."""

    max_tokens: int
    example_loss: ExampleLoss | None
    behaviour: Behaviour | None
    interruption: Interruption
    name_rows: Callable[[Sequence[Any]], list[str]]
    batches_of_step: list[dict[str, Any]]
    bad_batches: list[int]
    stop_after_step: bool
    left_out: int
    reduced_tokens: int | None
    step_offset = 0

    def cuts_batches(self) -> bool:
        """Return whether a step may be cut anywhere: its loss is known to be a mean over examples."""
        raise NotImplementedError

    def build_sampler(self) -> Any:
        """Return the sampler that draws steps, or None where transformers' own draws batches."""
        raise NotImplementedError

    @property
    def costs(self) -> CostMeter:
        """The counts of tokens and seconds, also those of earlier processes of a resumed run."""
        return next(callback for callback in self.callback_handler.callbacks if isinstance(callback, CostMeter))

    @property
    def trims_padding(self) -> bool:
        """Whether padding that no text of a micro-batch needs may go, since the model ignores it."""
        return self.behaviour is None or self.behaviour.ignores_padding

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """Take the batches of a step, cut into micro-batches if they can be."""
        batches = list(itertools.islice(epoch_iterator, num_batches))
        self.batches_of_step, self.bad_batches = [], []
        if all(has_rows_of_tokens(batch) for batch in batches) and self.behaviour is not None:
            if self.cuts_batches() and all("labels" in batch for batch in batches):
                batches = [cut_batch(batch, self.max_tokens, self.trims_padding) for batch in batches]
            elif self.trims_padding:
                batches = [trim_padding(dict(batch)) for batch in batches]
        return batches, self._get_num_items_in_batch(batches, device)

    def count_step(self, batches: list[dict[str, Any]], device: torch.device) -> torch.Tensor:
        """Count the examples, and the tokens, of a step over its accumulation steps and all processes.

        With them goes whether any process was told to end, so that all of them end after the same step.
        """
        own = [sum(batch[count] for batch in batches) for count in ("num_examples", "num_tokens")]
        own.append(self.interruption.received)
        counts = torch.tensor(own)
        if self.args.world_size > 1:  # a process alone would wait for its GPU, to read what it knows
            counts = self.accelerator.reduce(counts.to(device), reduction="sum")
        num_examples, num_tokens, told = counts
        self.costs.train_tokens += int(num_tokens)
        self.stop_after_step = bool(told)
        return num_examples

    def average_weights(self) -> None:
        """Let an optimizer without a schedule put its averages into the model, until the next step.

        Its gradients are taken elsewhere (Defazio et al. 2024): what is measured and saved are the averages.
        """
        optimizer: Any = self.optimizer
        if callable(getattr(optimizer, "eval", None)):
            optimizer.eval()

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Work off the micro-batches of a batch; only the last one synchronises the processes' gradients.

        Returns:
            This batch's part of the step's mean loss, times the number of processes, whose mean the `Trainer` logs.
        """
        self.batches_of_step.append(inputs)
        if "micro_batches" not in inputs:
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            model.train()
            optimizer: Any = self.optimizer
            if callable(getattr(optimizer, "train", None)):  # those without a schedule
                optimizer.train()
            loss = self._work_off_within_memory(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            self.bad_batches.append(len(self.batches_of_step) - 1)
        return loss

    def _work_off_within_memory(self, model: torch.nn.Module, inputs: dict[str, Any], num_items: Any) -> torch.Tensor:
        loss = self._work_off(model, inputs, num_items)
        while loss is None:  # also the earlier batches again, whose gradients can't be told from the spoilt ones
            self._reduce_tokens(inputs)
            model.zero_grad()
            losses = [self._work_off(model, batch, num_items) for batch in self.batches_of_step]
            loss = None if None in losses else losses[-1]
        return loss

    def _work_off(self, model: torch.nn.Module, inputs: dict[str, Any], num_items: Any) -> torch.Tensor | None:
        """Add the gradients of a batch; None if memory did not suffice, and then nothing holds any of it."""
        micro_batches = inputs["micro_batches"]
        if self.reduced_tokens is not None:
            micro_batches = self._split(micro_batches, self.reduced_tokens)
        step_loss = torch.zeros((), device=self.args.device)
        synchronises = self.accelerator.sync_gradients  # False before the last accumulation step
        count = self._most_micro_batches(len(micro_batches))
        try:
            for number in range(1, count + 1):
                micro_batch = self._prepare_inputs(self._send(micro_batches[min(number, len(micro_batches)) - 1]))
                is_last = number == count
                self.accelerator.gradient_state._set_sync_gradients(synchronises and is_last)  # what DeepSpeed goes by
                with contextlib.nullcontext() if is_last else self.accelerator.no_sync(model):
                    loss = self.compute_loss(model, micro_batch, num_items_in_batch=num_items)
                    assert isinstance(loss, torch.Tensor)
                    if number > len(micro_batches):
                        loss = 0 * loss
                    # DeepSpeed would divide by the accumulation steps, which the loss holds already.
                    self.accelerator.backward(loss, **({"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}))
                step_loss += loss.detach()
        except (RuntimeError, MemoryError) as error:
            self.accelerator.gradient_state._set_sync_gradients(synchronises)
            if not is_out_of_memory(error):
                raise
            if self.args.world_size > 1:  # the others wait for this process's gradients: all have to start again
                raise FinetuneError(
                    f"Expected memory for micro-batches of {self.max_tokens:,} tokens, but an allocation "
                    f"failed. Pass --max_tokens_per_micro_batch {self.max_tokens // 2}."
                ) from error
            return None
        return step_loss

    def _send(self, micro_batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Begin to copy a micro-batch to a GPU, where upstream would wait for each copy, and for all work before it."""
        if self.args.device.type != "cuda":
            return micro_batch
        return {name: tensor.to(self.args.device, non_blocking=True) for name, tensor in micro_batch.items()}

    def _split(self, micro_batches: list[dict[str, torch.Tensor]], most: int) -> list[dict[str, torch.Tensor]]:
        return [part for whole in micro_batches for part in split_micro_batch(whole, most, self.trims_padding)]

    def limit_tokens(self, most: int) -> None:
        """Let no micro-batch have more tokens from now on."""
        self.reduced_tokens = self.max_tokens = most
        if hasattr(self.data_collator, "max_tokens"):
            self.data_collator.max_tokens = most

    def _reduce_tokens(self, inputs: dict[str, Any]) -> None:
        """Halve the tokens of a micro-batch for the rest of the training, and say so.

        The examples of a step, and so its gradient up to rounding, stay; dropout draws other numbers.
        """
        release_memory()
        most = self.max_tokens if self.reduced_tokens is None else self.reduced_tokens
        parts = self._split(inputs["micro_batches"], most)
        if all(len(part["labels"]) == 1 for part in parts):
            longest = max(map(count_padded_tokens, parts))
            raise FinetuneError(
                f"Expected memory to train on a text of {longest:,} tokens, but an allocation failed in step "
                f"{self.state.global_step + 1}. Pass a smaller --max_length, or a smaller model."
            )
        largest = max(count_padded_tokens(part) for part in parts if len(part["labels"]) > 1)
        self.limit_tokens(max(1, min(most, largest) // 2))
        warnings.warn(
            f"out of memory in step {self.state.global_step + 1}: from now on micro-batches of at most "
            f"{self.reduced_tokens:,} tokens. A step's examples stay the same; dropout draws other numbers",
            stacklevel=2,
        )

    def leave_out_unless_finite(self, model: torch.nn.Module, norm: Any) -> None:
        """Drop the gradients of a step if they or its loss are no numbers, and say so.

        Raises:
            FinetuneError: At the third such step in a row.
        """
        is_number = math.isfinite(norm) or self.accelerator.scaler is not None  # float16 skips such steps by itself
        if is_number and (not self.bad_batches or self.args.world_size > 1):
            self.left_out = 0
            return
        model.zero_grad()
        self.left_out += 1
        step = self.state.global_step + 1
        names = self._name_examples(self.bad_batches or range(len(self.batches_of_step)))
        what = "the loss" if self.bad_batches else "the gradient"
        if self.left_out == MOST_LEFT_OUT:
            raise FinetuneError(
                f"Expected a finite loss, but in {MOST_LEFT_OUT} steps in a row it was none; {what} of step {step} is "
                f"NaN or infinite, on {names}. Look at these examples, lower --learning_rate, or pass --bf16 false. "
                "The checkpoints are of steps before."
            )
        warnings.warn(f"{what} of step {step} is NaN or infinite, on {names}: the step is left out", stacklevel=1)

    def _name_examples(self, batches: Sequence[int]) -> str:
        """Name the examples of batches of the current step: the sampler draws them again."""
        sampler = self.build_sampler()
        if sampler is None:
            return "its examples"
        epoch, step = divmod(self.state.global_step - self.step_offset, sampler.num_steps)
        sampler.set_epoch(epoch)
        first = step * self.args.gradient_accumulation_steps
        drawn = list(itertools.islice(iter(sampler), first, first + len(self.batches_of_step)))
        names = self.name_rows([row for batch in batches for row in drawn[batch]])
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        return ", ".join(names[:MOST_NAMED]) + more

    def _most_micro_batches(self, count: int) -> int:
        """Return the number of micro-batches that this process works off, repetitions without weight included.

        Where the weights are divided over processes (FSDP, ZeRO) every forward and backward pass is one of all.
        """
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            return count
        counts = self.accelerator.gather(torch.tensor([count], device=self.args.device))
        return int(counts.max())

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Compute the loss that `example_loss` defines; upstream's where none is given or known.

        Args:
            model: The model, wrapped or not.
            inputs: Tensors of one micro-batch, with `labels`.
            return_outputs: Return the model's outputs as well.
            num_items_in_batch: Examples in the whole step; the number of examples in `inputs` if None.

        Returns:
            The sum over the examples divided by `num_items_in_batch`, times the number of processes, since those
            average their gradients.
        """
        if self.example_loss is None or self.compute_loss_func is not None or "labels" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"]
        outputs = model(**{name: tensor for name, tensor in inputs.items() if name not in OF_EXAMPLES})
        beside = inputs.get("num_windows"), inputs.get("teacher")
        total = self.example_loss(outputs["logits"].float(), labels, *beside).sum()
        trained: Any = self.model
        if has_adalora(trained):
            total = total + len(labels) * orthogonality_penalty(trained)
        if num_items_in_batch is None:
            loss = total / count_labelled(labels)
        else:
            loss = total * (self.args.world_size / num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Estimate the operations of a batch as 6 x parameters x tokens, padding included."""
        if "micro_batches" not in inputs:
            return super().floating_point_ops(inputs)
        texts = [batch for batch in inputs["micro_batches"] if "input_ids" in batch]
        return sum(int(super(StepTrainer, self).floating_point_ops(batch)) for batch in texts)
