"""The `Trainer`: transformers' own, with the right loss, micro-batches by tokens, and exact resumes.

What it does differently stands in modules of their own: a step (`steps.py`), checkpoints and resumes (`resume.py`),
evaluation (`evaluation.py`), loading (`loading.py`), optimizers and schedules (`optimization.py`), numbers to predict
(`standard.py`), frozen encoders (`frozen_features.py`). What of transformers is private and overridden stands in
`upstream.py`.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate.utils import DynamoBackend
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_callback import (
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)

from finetune.adapted import without_adapter
from finetune.data.batch import OF_EXAMPLES, MicroBatchCollator, take_rows
from finetune.data.stream import TokenizingRows
from finetune.errors import FinetuneError
from finetune.hardware import release_memory, time_hashes
from finetune.methods.adapters import refuse_too_long
from finetune.metrics import SINGLE_LABEL
from finetune.models.inputs import shortest_input
from finetune.models.output_layer import Standard
from finetune.progress_bar import progress_bar
from finetune.settings.parts import TuningArguments
from finetune.training.adalora import AdaLoraAllocation, has_adalora
from finetune.training.frozen_features import features_of_frozen_encoder
from finetune.training.interruption import Interruption
from finetune.training.loop import EpochEnd
from finetune.training.loss import ExampleLoss
from finetune.training.optimization import TunedTrainer
from finetune.training.progress import CostMeter
from finetune.training.sharding import name_layers_for_fsdp
from finetune.training.standard import standardised
from finetune.training.trial import Behaviour, random_streams_kept, try_model
from finetune.training.upstream import warn_if_changed
from finetune.training.watch import Watch, warn_if_collapsed

__all__ = ["FineTuningTrainer", "Trainer"]

STEPS_BETWEEN_RELEASES = 25
MAX_TOKENS = {"cpu": 3_072}
MAX_TOKENS_ELSEWHERE = 16_384
NUM_TRIED = 4
CLASSIFIER = "ForSequenceClassification"


class Trainer(TunedTrainer):
    """A drop-in for `transformers.Trainer` on text classification.

    `docs/how-to/trainer.md` says what it does differently.

    Args:
        model: As for `transformers.Trainer`, like all that follow up to `preprocess_logits_for_metrics`.
        max_tokens_per_micro_batch: Most tokens that are computed at once, padding included; by default 3,072 on a
            processor and 16,384 elsewhere.
        example_loss: The loss of each example, instead of the model's own and of `args.label_smoothing_factor`.
        tuning: Relations of the learning rates, their schedule, gradual unfreezing.

    Attributes:
        interruption: Whether a signal asks for the end; by default none does.
        name_rows: From rows of the training data to what a message calls them.
        run_id: What its checkpoints are marked with; None where nobody asks.
        apply_settings: Whether a resumed training takes its learning rates and weight decay from the settings instead
            of from the checkpoint.
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator: Callable[[list[Any]], Any] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Callable[..., PreTrainedModel] | None = None,
        compute_loss_func: Callable[..., torch.Tensor] | None = None,
        compute_metrics: Callable[..., dict[str, Any]] | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[Any, Any], Any] | None = None,
        *,
        max_tokens_per_micro_batch: int | None = None,
        example_loss: ExampleLoss | None = None,
        tuning: TuningArguments | None = None,
    ):
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            model_init=model_init,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        if self.args.process_index == 0:
            warn_if_changed()
        compiler = self.accelerator.state.dynamo_plugin
        if compiler.backend != DynamoBackend.NO:
            compiler.dynamic = True  # micro-batches differ in shape; `accelerate launch` says False by default
        trained: Any = self.model
        base = without_adapter(trained)
        if (CLASSIFIER in type(base).__name__ and not hasattr(base, "accepts_loss_kwargs")) or example_loss is not None:
            self.model_accepts_loss_kwargs = False  # upstream thinks that it divides by `num_items_in_batch`
        most = MAX_TOKENS.get(self.args.device.type, MAX_TOKENS_ELSEWHERE)
        self.max_tokens = max_tokens_per_micro_batch or most
        self.standard = Standard()
        self.example_loss = None
        self.has_given_loss = example_loss is not None
        if example_loss is not None:
            self.standard, self.example_loss = example_loss.standard, replace(example_loss, standard=Standard())
        self.tuning = tuning
        self.behaviour: Behaviour | None = None
        self.train_lengths: np.ndarray | None = None
        self.known_lengths = []
        self.interruption = Interruption()
        self.name_rows: Callable[[Sequence[Any]], list[str]] = lambda rows: [f"row {row}" for row in rows]
        self.run_id = None
        self.apply_settings = False
        self.epoch_end = EpochEnd()
        self.resumed = None
        self.last_logged = None, None
        self.batches_of_step = []
        self.bad_batches = []
        self.stop_after_step = self.is_saving = False
        self.left_out = 0
        self.reduced_tokens = None
        self.add_callback(self.epoch_end)
        self.add_callback(CostMeter)

    def train(
        self, resume_from_checkpoint: Any = None, trial: Any = None, ignore_keys_for_eval: list[str] | None = None
    ) -> Any:
        """Train; where the encoder is frozen, on its features, computed once; numbers to predict are standardised.

        Args:
            resume_from_checkpoint: A checkpoint, or True for the newest that is whole.
            trial: Of a search for hyperparameters.
            ignore_keys_for_eval: As upstream.
        """
        checkpoint = self.find_checkpoint(resume_from_checkpoint)
        self.is_resuming = checkpoint is not None
        with contextlib.ExitStack() as stack:
            if self.standard != Standard():
                stack.enter_context(standardised(self, self.standard, self._collate_probes()))
            if isinstance(self.data_collator, MicroBatchCollator) and not self._is_stream:
                stack.enter_context(features_of_frozen_encoder(self, self._collate_probes()))
            return super().train(checkpoint, trial, ignore_keys_for_eval)

    @property
    def _is_stream(self) -> bool:
        return isinstance(self.train_dataset, TokenizingRows)

    def _collate_probes(self) -> Any:
        """Return a few texts as the model takes them."""
        rows: Any = self.eval_dataset if self._is_stream else self.train_dataset
        collator: Any = self.data_collator
        probes = getattr(collator, "collate", collator)([rows[row] for row in range(min(NUM_TRIED, len(rows)))])
        texts = {name: tensor for name, tensor in probes.items() if name not in OF_EXAMPLES}
        return self._prepare_inputs(texts)

    def is_overridden(self, *names: str) -> bool:
        """Return whether a subclass has its own methods of these names."""
        return any(getattr(type(self), name) is not getattr(Trainer, name) for name in names)

    def cuts_batches(self) -> bool:
        """Return whether a step may be cut anywhere: its loss is known to be a mean over examples."""
        return (
            self.has_known_loss()
            and self.args.n_gpu <= 1
            and "lomo" not in str(self.args.optim)
            and not self.is_overridden("compute_loss", "training_step")
            and self.label_names == ["labels"]
        )

    def knows_model(self, dataset: Any, collate: Callable[[list[Any]], Any], lengths: np.ndarray | None) -> bool:
        """Try the model on a few examples, unless that has been done, and return whether it is a text classifier.

        Their loss is found with it, if they have labels and none was given.
        """
        if self.behaviour is None or (self.behaviour.example_loss is None and not self.has_given_loss):
            model: Any = self.model
            order = np.arange(len(dataset)) if lengths is None else np.argsort(lengths, kind="stable")
            rows = np.unique(order[np.linspace(0, (len(order) - 1) // 2, NUM_TRIED).astype(int)])
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                return False
            smoothing = float(self.args.label_smoothing_factor)
            with random_streams_kept():
                batch = collate(take_rows(dataset, rows.tolist()))
                found = try_model(model, batch, self.label_smoother, smoothing, self.model_accepts_loss_kwargs)
            if found is not None and found.divides_by_count is False and not hasattr(model, "accepts_loss_kwargs"):
                self.model_accepts_loss_kwargs = False
            if found is not None and not self.has_given_loss:
                self.example_loss = found.example_loss
            self.behaviour = found
        return self.behaviour is not None


class FineTuningTrainer(Trainer):
    """The `Trainer` of a run: on data sets of `tokenize_dataset`, with warnings, and a quieter report.

    Args:
        model: Takes `input_ids` and `attention_mask` and returns `logits`.
        args: As for the `Trainer`; `label_smoothing_factor` applies to the training loss alone.
        train_dataset: Columns `input_ids`, `labels` and `length`, as `tokenize_dataset` gives them; or a stream.
        eval_dataset: As `tokenize_dataset` gives it.
        processing_class: The tokenizer; it pads and is saved with checkpoints.
        compute_metrics: From an `EvalPrediction` with all logits and labels to numbers.
        max_tokens_per_micro_batch: Most tokens that are computed at once, padding included.
        example_loss: The loss of each example; by default that of the model's `problem_type`, smoothed by
            `args.label_smoothing_factor`.
        max_train_windows: Most windows of a text that train in a step.
        tuning: Relations of the learning rates, their schedule, gradual unfreezing.
        callbacks: Added to the `Trainer`'s own, whose progress bar and printed dictionaries are left out.
    """

    keeps_newest = True
    hash_seconds: list[float]  # of `time_hashes`, before, during and after training

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        train_dataset: Dataset | TokenizingRows,
        eval_dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]],
        max_tokens_per_micro_batch: int,
        example_loss: ExampleLoss | None = None,
        max_train_windows: int = 8,
        tuning: TuningArguments | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ):
        refuse_too_long(model, processing_class.model_max_length)
        args._n_gpu = min(args.n_gpu, 1)  # several GPUs take several processes, never nn.DataParallel
        name_layers_for_fsdp(model)
        problem_type = model.config.problem_type or SINGLE_LABEL
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=MicroBatchCollator(
                processing_class, max_tokens_per_micro_batch, max_train_windows, shortest_input(model)
            ),
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            max_tokens_per_micro_batch=max_tokens_per_micro_batch,
            example_loss=example_loss or ExampleLoss(problem_type, args.label_smoothing_factor),
            tuning=tuning or TuningArguments(),
        )
        if self.is_fsdp_enabled:  # autocast casts, as everywhere else, and gradients are summed in float32
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = None
        if has_adalora(model):
            self.add_callback(AdaLoraAllocation)
        self.remove_callback(DEFAULT_PROGRESS_CALLBACK)  # another one in a notebook
        self.remove_callback(PrinterCallback)
        self.add_callback(Watch)
        if args.device.type == "cpu":
            self.add_callback(_ReleaseMemory)
        self.hash_seconds = []

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Look at how busy the machine is, and evaluate."""
        with self.costs.evaluating():
            self.hash_seconds += time_hashes(torch.get_num_threads())
        return super().evaluate(*args, **kwargs)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Hand the data set itself to `evaluation_loop`, which batches by tokens."""
        dataset: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        return DataLoader(dataset, collate_fn=self.data_collator)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Likewise."""
        return self.get_eval_dataloader(test_dataset)

    @contextlib.contextmanager
    def evaluation_progress(self, num_examples: int, description: str) -> Iterator[Callable[[int], None]]:
        """Show a bar of its own."""
        with progress_bar(num_examples, description) as advance:
            yield advance

    def look_at(self, logits: np.ndarray, metrics: dict[str, float]) -> None:
        """Warn if all predictions are the same.

        Raises:
            FinetuneError: If what chooses the best checkpoint is not defined.
        """
        config: Any = self.model.config  # type: ignore[union-attr]
        assert self.example_loss is not None
        if self.args.process_index == 0:
            warn_if_collapsed(logits, self.example_loss.problem_type, config.id2label)
        best = (self.args.metric_for_best_model or "loss").removeprefix("eval_")
        if math.isnan(metrics.get(best, 0.0)):
            raise FinetuneError(
                f"Expected a number for --metric_for_best_model {best}, but it is not defined on these examples. "
                "Take another metric, or evaluate on examples of every class."
            )


class _ReleaseMemory(TrainerCallback):
    """Bounds what freed memory adds to a process that trains on a CPU; costs some 0.1 s each time."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % STEPS_BETWEEN_RELEASES == 0:
            release_memory()
