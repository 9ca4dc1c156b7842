"""Evaluation and prediction: sorted by length, batched by tokens, and given in the order of the data."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.utils.data import DataLoader, IterableDataset
from transformers import EvalPrediction
from transformers.trainer_utils import EvalLoopOutput, denumpify_detensorize

from finetune.data.batch import count_labelled, take_rows, trim_padding
from finetune.data.lengths import find_lengths
from finetune.models.logits import compute_logits
from finetune.training.resume import EvaluationCutShort
from finetune.training.trial import random_streams_kept
from finetune.training.upstream import UpstreamTrainer

__all__ = ["EvaluatingTrainer"]

NUM_KNOWN = 4  # data sets whose lengths are kept


class EvaluatingTrainer(UpstreamTrainer):
    """How data sets are evaluated; see `finetune.training.trainer.Trainer`."""

    known_lengths: list[tuple[Any, np.ndarray | None]]

    def knows_model(self, dataset: Any, collate: Callable[[list[Any]], Any], lengths: np.ndarray | None) -> bool:
        """Try the model on a few examples, unless that has been done, and return whether it is a text classifier."""
        raise NotImplementedError

    def lengths_of(self, dataset: Any) -> np.ndarray | None:
        """Count the tokens of each example, once where each has to be looked at: the last few data sets are known."""
        for known, lengths in self.known_lengths:
            if known is dataset and (lengths is None or len(lengths) == len(dataset)):
                return lengths
        with random_streams_kept():
            lengths = find_lengths(dataset, self.args.length_column_name)
        self.known_lengths = [*self.known_lengths[-NUM_KNOWN + 1 :], (dataset, lengths)]
        return lengths

    def is_overridden(self, *names: str) -> bool:
        """Return whether a subclass has its own methods of these names, or an object its own functions."""
        raise NotImplementedError

    @property
    def precision(self) -> torch.dtype:
        """The number format of matrix products."""
        return torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else torch.float32

    @contextlib.contextmanager
    def evaluation_progress(self, num_examples: int, description: str) -> Iterator[Callable[[int], None]]:
        """Notify the callbacks of as many batches as upstream would have."""
        size, done = self.args.eval_batch_size, 0

        def advance(count: int) -> None:
            nonlocal done
            batches = -(-(done + count) // size) if done + count == num_examples else (done + count) // size
            for _ in range(batches - done // size):
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
            done += count

        yield advance

    def look_at(self, logits: np.ndarray, metrics: dict[str, float]) -> None:
        """Warn of, or refuse, what can't be meant."""

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Compute the logits of every example once, whatever the number of processes, and their metrics.

        Where more than logits is asked for, or the model's padding matters to them, upstream's own loop does it.
        """
        with self.costs.evaluating():
            rows = self._find_rows(dataloader, ignore_keys)
            if rows is None:
                return super().evaluation_loop(
                    dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
                )
            return self.evaluate_rows(rows, dataloader, description, prediction_loss_only, metric_key_prefix)

    def evaluate_rows(
        self,
        rows: "_Rows",
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None,
        metric_key_prefix: str,
    ) -> EvalLoopOutput:
        """Compute the logits of rows that may be taken in any order, and their metrics."""
        self.callback_handler.eval_dataloader = dataloader
        self.average_weights()
        with self.evaluation_progress(len(rows), description) as advance:
            logits = compute_logits(
                self.model,  # type: ignore[arg-type]
                rows if rows.is_numbered else rows.dataset,
                rows.lengths,  # type: ignore[arg-type]
                rows.collate,
                getattr(self.data_collator, "max_tokens", self.max_tokens),
                self.precision,
                None if self.example_loss is None else self.example_loss.window_pooling,
                on_batch=self.unless_interrupted(advance, EvaluationCutShort()),
            )
        labels = rows.gather_labels()
        loss = None if labels is None else self._mean_loss(logits, labels)
        if self.example_loss is not None:
            logits = self.example_loss.standard.undo(logits)
        if prediction_loss_only if prediction_loss_only is not None else self.args.prediction_loss_only:
            output = EvalLoopOutput(None, None, {}, len(rows))  # type: ignore[arg-type]
        else:
            predictions = self._preprocess(logits, labels)
            metrics = {}
            if self.compute_metrics is not None and labels is not None:
                metrics = self.compute_metrics(EvalPrediction(predictions=predictions, label_ids=labels))
            self.look_at(logits, metrics)
            output = EvalLoopOutput(predictions, labels, metrics, len(rows))
        metrics = denumpify_detensorize(output.metrics)
        if loss is not None and f"{metric_key_prefix}_loss" not in metrics:
            metrics = {"loss": loss, **metrics}
        prefix = f"{metric_key_prefix}_"
        named = {name if name.startswith(prefix) else prefix + name: value for name, value in metrics.items()}
        return output._replace(metrics=named)

    def _find_rows(self, dataloader: DataLoader, ignore_keys: list[str] | None) -> "_Rows | None":
        """Find the examples behind a loader, if they can be taken in another order and in other batches."""
        dataset, collate = dataloader.dataset, dataloader.collate_fn
        if hasattr(collate, "collate"):  # of our own: whatever it is, it is meant for this
            column: Any = dataset
            labels = column.with_format("numpy")["labels"][:] if "labels" in column.column_names else None
            return _Rows(dataset, np.asarray(column["length"]), collate.collate, False, labels)
        args = self.args
        if (
            isinstance(dataset, IterableDataset)
            or not hasattr(dataset, "__len__")
            or not len(dataset)
            or args.batch_eval_metrics
            or args.include_for_metrics
            or args.fp16_full_eval
            or args.bf16_full_eval
            or ignore_keys is not None
            or self.is_overridden(
                "get_eval_dataloader", "get_test_dataloader", "_get_eval_sampler", "prediction_step", "compute_loss"
            )
        ):
            return None
        lengths = self.lengths_of(dataset)
        if lengths is None or not self.knows_model(dataset, collate, lengths):
            return None
        assert self.behaviour is not None
        num_labels = getattr(getattr(self.model, "config", None), "num_labels", None)
        if not (self.behaviour.ignores_padding and self.behaviour.gives_logits_alone) or (
            num_labels != self.behaviour.num_logits
        ):
            return None
        has_labels = any(name in self._collate_one(dataset, collate) for name in self.label_names)
        if has_labels and (not self.has_known_loss() or self.label_names != ["labels"]):
            return None
        return _Rows(dataset, lengths, collate, True)

    def has_known_loss(self) -> bool:
        """Return whether `example_loss` is what the evaluation's loss is the mean of."""
        return self.example_loss is not None and self.compute_loss_func is None

    @staticmethod
    @random_streams_kept()
    def _collate_one(dataset: Any, collate: Callable[[list[Any]], Any]) -> Mapping[str, Any]:
        return collate(take_rows(dataset, [0]))

    def _mean_loss(self, logits: np.ndarray, labels: np.ndarray) -> float | None:
        """Compute the mean loss of all examples: upstream weights the last, smaller batch as the others."""
        if self.example_loss is None:
            return None
        given = torch.from_numpy(labels)
        losses = self.example_loss(torch.from_numpy(logits), given, None)
        if self.args.logging_nan_inf_filter and torch.isfinite(losses).any():
            losses = losses[torch.isfinite(losses)]
            return float(losses.sum()) / max(1, min(count_labelled(given), len(losses)))
        return float(losses.sum()) / max(1, count_labelled(given))

    def _preprocess(self, logits: np.ndarray, labels: np.ndarray | None) -> Any:
        """Let `preprocess_logits_for_metrics` have all logits at once."""
        if self.preprocess_logits_for_metrics is None:
            return logits
        given: Any = None if labels is None else torch.from_numpy(labels)
        found = self.preprocess_logits_for_metrics(torch.from_numpy(logits), given)
        if isinstance(found, tuple | list):
            return tuple(part.numpy() if torch.is_tensor(part) else part for part in found)
        return found.numpy() if torch.is_tensor(found) else found


class _Rows(Sequence):
    """The examples of a data set, or their numbers, so that their labels are known when a batch of them is made."""

    def __init__(
        self,
        dataset: Any,
        lengths: np.ndarray,
        collate: Callable[[list[Any]], Any],
        is_numbered: bool,
        labels: np.ndarray | None = None,
    ):
        self.dataset = dataset
        self.lengths = lengths
        self.collator = collate
        self.is_numbered = is_numbered
        self.labels = labels
        self.seen: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: Any) -> Any:
        return int(row) if self.is_numbered else self.dataset[row]

    def collate(self, examples: list[Any]) -> dict[str, torch.Tensor]:
        """Make a batch without needless padding, and note its labels."""
        if not self.is_numbered:
            return self.collator(examples)
        batch = dict(self.collator(take_rows(self.dataset, examples)))
        labels = batch.pop("labels", None)
        if labels is not None:
            self.seen.update(zip(examples, labels.cpu().numpy(), strict=True))
        return trim_padding(batch)

    def gather_labels(self) -> np.ndarray | None:
        """Return the labels of all examples, those that other processes have seen too."""
        if not self.is_numbered:
            return self.labels
        seen = self.seen
        if distributed.is_available() and distributed.is_initialized():
            found: list[Any] = [None] * distributed.get_world_size()
            distributed.all_gather_object(found, seen)
            seen = {row: label for labels in found for row, label in labels.items()}
        return np.stack([seen[row] for row in range(len(self))]) if seen else None
