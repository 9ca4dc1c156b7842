"""The `Trainer`: transformers' own, with the right loss, micro-batches by tokens, and exact resumes.

What it does differently stands in modules of their own: a step (`steps.py`), checkpoints and resumes (`resume.py`),
evaluation (`evaluation.py`), numbers to predict (`standard.py`), frozen encoders (`frozen_features.py`). What of
transformers is private and overridden stands in `upstream.py`.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import DataLoader, IterableDataset
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
from transformers.trainer_callback import (
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from transformers.trainer_utils import seed_worker

from finetune.arguments import TuningArguments
from finetune.data.batch import GlobalStepSampler, MicroBatchCollator, StepSampler, TrainDataLoader
from finetune.data.lengths import find_lengths
from finetune.data.stream import StreamedStepSampler, TokenizingRows
from finetune.errors import FinetuneError
from finetune.hardware import release_memory
from finetune.methods import new_modules_of
from finetune.methods.adapters import refuse_too_long
from finetune.methods.rates import Rates, build_parameter_groups
from finetune.methods.schedules import build_schedule
from finetune.methods.unfreezing import GradualUnfreezing
from finetune.metrics import SINGLE_LABEL
from finetune.models.output_layer import Standard
from finetune.progress_bar import progress_bar
from finetune.training.adalora import AdaLoraAllocation, has_adalora
from finetune.training.evaluation import EvaluatingTrainer
from finetune.training.frozen_features import features_of_frozen_encoder
from finetune.training.interruption import Interruption
from finetune.training.loop import EpochEnd
from finetune.training.loss import ExampleLoss
from finetune.training.progress import CostMeter
from finetune.training.sharding import name_layers_for_fsdp
from finetune.training.standard import standardised
from finetune.training.trial import Behaviour, try_model
from finetune.training.watch import Watch, warn_if_collapsed

__all__ = ["FineTuningTrainer", "Trainer"]

STEPS_BETWEEN_RELEASES = 25
MAX_TOKENS = {"cpu": 3_072}
MAX_TOKENS_ELSEWHERE = 16_384
NUM_TRIED = 4
CLASSIFIER = "ForSequenceClassification"


class Trainer(EvaluatingTrainer):
    """A drop-in for `transformers.Trainer` on text classification. `docs/trainer.md` says what it does differently.

    Args:
        args: As for `transformers.Trainer`.
        kwargs: Likewise.
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

    Example:
        >>> from finetune.training.trainer import Trainer  # instead of transformers' own
    """

    def __init__(
        self,
        *args: Any,
        max_tokens_per_micro_batch: int | None = None,
        example_loss: ExampleLoss | None = None,
        tuning: TuningArguments | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        model: Any = self.model
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        self.is_classifier = CLASSIFIER in type(base).__name__
        if (self.is_classifier and not hasattr(base, "accepts_loss_kwargs")) or example_loss is not None:
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
        del probes["labels"]
        probes.pop("num_windows", None)
        return self._prepare_inputs(probes)

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
            batch = collate([dataset[int(row)] for row in rows])
            found = try_model(model, batch, self.label_smoother, smoothing)
            if found is not None and not self.has_given_loss:
                self.example_loss = found.example_loss
            self.behaviour = found
        return self.behaviour is not None

    def get_train_dataloader(self) -> DataLoader:
        """Load this process's share of each step; the sampler divides, so accelerate must not.

        What can't be drawn by its length is loaded as upstream loads it.
        """
        args, collator = self.args, self.data_collator
        if hasattr(collator, "collate"):  # of our own: the data set has lengths
            return self._load_steps(self.train_dataset, collator)
        dataset: Any = self.train_dataset
        if not self._has_rows(dataset):
            return super().get_train_dataloader()
        if isinstance(dataset, Dataset):
            dataset = self._remove_unused_columns(dataset, description="training")
        else:
            collator = self._get_collator_with_removed_columns(collator, description="training")
        self.behaviour = None if self.model_init is not None else self.behaviour
        self.train_lengths = find_lengths(dataset, args.length_column_name)
        is_known = self.train_lengths is not None and self.knows_model(dataset, collator, self.train_lengths)
        if not is_known or not self._draws_steps():
            return super().get_train_dataloader()
        return self._load_steps(dataset, collator)

    def _has_rows(self, dataset: Any) -> bool:
        return dataset is not None and hasattr(dataset, "__len__") and not isinstance(dataset, IterableDataset)

    def _draws_steps(self) -> bool:
        """Return whether the order of the examples is left to the `Trainer`."""
        strategy = str(getattr(self.args.train_sampling_strategy, "value", self.args.train_sampling_strategy))
        return (
            strategy in ("random", "group_by_length")
            and not self.is_overridden("_get_train_sampler")
            and self.args.n_gpu <= 1
            and self.args.parallelism_config is None
        )

    def _load_steps(self, dataset: Any, collator: Any) -> TrainDataLoader:
        args = self.args
        if len(dataset) < args.world_size:
            raise FinetuneError(
                f"Expected a training example for each of {args.world_size} processes, but got "
                f"{len(dataset)}. Start fewer processes."
            )
        return TrainDataLoader(
            dataset,
            batch_sampler=self.build_sampler(),
            collate_fn=collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and not args.use_cpu,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            worker_init_fn=partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index),
        )

    def build_sampler(self) -> StepSampler | None:
        """Return the sampler that draws steps, or None where transformers' own draws batches."""
        args, dataset = self.args, self.train_dataset
        size = self._train_batch_size
        settings: dict[str, Any] = {
            "step_size": size * args.world_size * args.gradient_accumulation_steps,
            "seed": args.seed if args.data_seed is None else args.data_seed,
            "accumulation_steps": args.gradient_accumulation_steps,
            "rank": args.process_index,
            "world_size": args.world_size,
        }
        if isinstance(dataset, TokenizingRows):
            return StreamedStepSampler(dataset, **settings)
        lengths: Any = self.train_lengths
        if hasattr(self.data_collator, "collate"):
            column: Any = dataset
            lengths = column["length"]
        elif lengths is None or self.behaviour is None or not self._draws_steps():
            return None
        return GlobalStepSampler(lengths, batch_size=size if args.dataloader_drop_last else None, **settings)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Group the parameters by learning rate and weight decay, if `tuning` says how."""
        if self.optimizer is None and self.tuning is not None:
            trained: Any = self.model if model is None else model
            optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args, trained)
            rates = Rates(self.tuning.layer_decay, self.tuning.head_learning_rate, self.tuning.lora_plus_ratio)
            decay_parameters = self.get_decay_parameter_names(trained)
            groups = build_parameter_groups(
                trained,
                rates,
                new_modules_of(trained),
                decay_parameters,
                self.args.learning_rate,
                self.args.weight_decay,
            )
            for group in groups:
                del group["names"]
            self.optimizer_cls_and_kwargs = optimizer_class, {**settings, "params": groups}
        return super().create_optimizer(model)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Build the schedule that `TrainingArguments` or `tuning` names, and the one of unfreezing."""
        tuning = self.tuning or TuningArguments()
        if tuning.unfreeze_every is not None:
            model: Any = self.model
            sampler = self.build_sampler()
            steps = math.ceil(len(self.get_train_dataloader())) if sampler is None else sampler.num_steps
            period = max(1, round(tuning.unfreeze_every * steps))
            unfreezing = GradualUnfreezing(model, new_modules_of(model), period, num_training_steps)
            self.add_callback(_Unfreezing(unfreezing))
        if tuning.lr_schedule is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        wrapped: Any = self.optimizer if optimizer is None else optimizer
        schedule = build_schedule(wrapped, tuning.lr_schedule, num_training_steps, tuning.num_cycles)
        self.lr_scheduler = schedule
        self._created_lr_scheduler = True
        return schedule


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
        tuning: Relations of the learning rates, their schedule, gradual unfreezing.
        callbacks: Added to the `Trainer`'s own, whose progress bar and printed dictionaries are left out.
    """

    keeps_newest = True

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
            data_collator=MicroBatchCollator(processing_class, max_tokens_per_micro_batch),
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
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        self.add_callback(Watch)
        self.add_callback(_ReleaseMemory)

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


class _Unfreezing(TrainerCallback):
    """Freezes and unfreezes before each step, by the step's number alone."""

    def __init__(self, unfreezing: GradualUnfreezing):
        self.unfreezing = unfreezing

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.unfreezing.apply(kwargs["model"], state.global_step)


class _ReleaseMemory(TrainerCallback):
    """Bounds what freed memory adds to the process over a long training; costs some 0.1 s each time."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % STEPS_BETWEEN_RELEASES == 0:
            release_memory()
