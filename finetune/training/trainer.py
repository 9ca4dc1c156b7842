"""The `Trainer`: micro-batches by tokens, a loss that is the mean over the step's examples, fast evaluation.

Upstream's `Trainer` takes `BertForSequenceClassification` for a model that divides its loss by `num_items_in_batch`,
since its `forward` has `**kwargs`; it doesn't, so under accumulation or several processes the gradient is a multiple
of what it should be (transformers issue 47688). Here the loss is computed in one place: the sum over examples divided
by the number of examples in the whole step, over all micro-batches, accumulation steps and processes.
"""

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.trainer_callback import (
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from transformers.trainer_utils import EvalLoopOutput

from finetune.arguments import TuningArguments
from finetune.data.batch import GlobalStepSampler, MicroBatchCollator, StepSampler, TrainDataLoader
from finetune.data.stream import StreamedStepSampler, TokenizingRows
from finetune.errors import FinetuneError
from finetune.hardware import release_memory
from finetune.methods import new_modules_of
from finetune.methods.features import (
    FeatureCollator,
    compute_features,
    encoder_replaced,
    find_feature_reader,
    has_frozen_encoder,
)
from finetune.methods.rates import Rates, build_parameter_groups
from finetune.methods.schedules import build_schedule
from finetune.methods.unfreezing import GradualUnfreezing
from finetune.metrics import SINGLE_LABEL
from finetune.models.inference import compute_logits
from finetune.training.adalora import AdaLoraAllocation, has_adalora, orthogonality_penalty
from finetune.training.loss import ExampleLoss
from finetune.training.progress import CostMeter, progress_bar
from finetune.training.watch import Watch, warn_if_collapsed

__all__ = ["FineTuningTrainer"]

STEPS_BETWEEN_RELEASES = 25


class FineTuningTrainer(Trainer):
    """A `Trainer` for sequence classification.

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
        args._n_gpu = min(args.n_gpu, 1)  # several GPUs take several processes, never nn.DataParallel
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,  # type: ignore[arg-type]
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
        )
        self.model_accepts_loss_kwargs = False
        self.training_data: Any = train_dataset
        self.collator: Any = MicroBatchCollator(processing_class, max_tokens_per_micro_batch)
        self.metrics_of = compute_metrics
        problem_type = model.config.problem_type or SINGLE_LABEL
        self.example_loss = example_loss or ExampleLoss(problem_type, args.label_smoothing_factor)
        self.tuning = tuning or TuningArguments()
        if has_adalora(model):
            self.add_callback(AdaLoraAllocation)
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        self.add_callback(CostMeter)
        self.add_callback(Watch)
        self.add_callback(_ReleaseMemory)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; where the encoder is frozen, on its features, computed once."""
        model: Any = self.model
        is_stream = isinstance(self.training_data, TokenizingRows)
        if is_stream or not has_frozen_encoder(model) or self.example_loss.window_pooling is not None:
            return super().train(*args, **kwargs)
        start = time.perf_counter()
        model.to(self.args.device).eval()
        probes = self.collator.collate([self.training_data[row] for row in range(min(4, len(self.training_data)))])
        probes.pop("labels")
        read = find_feature_reader(model, self._prepare_inputs(probes))
        if read is None:
            return super().train(*args, **kwargs)

        texts: Any = (self.training_data, self.eval_dataset, self.collator)
        features = []
        for dataset in texts[:2]:
            with progress_bar(len(dataset), "Computing features") as advance:
                collate, max_tokens = self.collator.collate, self.collator.max_tokens
                features.append(compute_features(model, read, dataset, collate, max_tokens, self.precision, advance))
        self.costs.train_tokens += sum(self.training_data["length"])
        self.costs.train_seconds += time.perf_counter() - start
        self.training_data, self.eval_dataset, self.collator = *features, FeatureCollator()
        try:
            with encoder_replaced(model):
                return super().train(*args, **kwargs)
        finally:
            self.training_data, self.eval_dataset, self.collator = texts

    @property
    def precision(self) -> torch.dtype:
        """The number format of matrix products."""
        return torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else torch.float32

    def get_train_dataloader(self) -> TrainDataLoader:
        """Load this process's share of each step; the sampler divides, so accelerate must not."""
        args = self.args
        if len(self.training_data) < args.world_size:
            raise FinetuneError(
                f"Expected a training example for each of {args.world_size} processes, but got "
                f"{len(self.training_data)}. Start fewer processes."
            )
        settings: dict[str, Any] = {
            "step_size": args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps,
            "seed": args.seed if args.data_seed is None else args.data_seed,
            "accumulation_steps": args.gradient_accumulation_steps,
            "rank": args.process_index,
            "world_size": args.world_size,
        }
        sampler: StepSampler
        if isinstance(self.training_data, TokenizingRows):
            sampler = StreamedStepSampler(self.training_data, **settings)
        else:
            sampler = GlobalStepSampler(self.training_data["length"], **settings)
        return TrainDataLoader(
            self.training_data,
            batch_sampler=sampler,
            collate_fn=self.collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and not args.use_cpu,
        )

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> torch.Tensor:
        """Count the examples, and the tokens, of a step over its accumulation steps and all processes."""
        own = [sum(batch[count] for batch in batch_samples) for count in ("num_examples", "num_tokens")]
        num_examples, num_tokens = self.accelerator.reduce(torch.tensor(own, device=device), reduction="sum")
        self.costs.train_tokens += int(num_tokens)
        return num_examples

    @property
    def costs(self) -> CostMeter:
        """The counts of tokens and seconds, also those of earlier processes of a resumed run."""
        return next(callback for callback in self.callback_handler.callbacks if isinstance(callback, CostMeter))

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
        model.train()
        micro_batches = inputs["micro_batches"]
        step_loss = torch.zeros((), device=self.args.device)
        synchronises = self.accelerator.sync_gradients  # False before the last accumulation step
        count = self._most_micro_batches(len(micro_batches))
        for number in range(1, count + 1):
            micro_batch = self._prepare_inputs(micro_batches[min(number, len(micro_batches)) - 1])
            is_last = number == count
            self.accelerator.gradient_state._set_sync_gradients(synchronises and is_last)  # what DeepSpeed goes by
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(model):
                loss = self.compute_loss(model, micro_batch, num_items_in_batch=num_items_in_batch)
                assert isinstance(loss, torch.Tensor)
                if number > len(micro_batches):
                    loss = 0 * loss
                self.accelerator.backward(loss)
            step_loss += loss.detach()
        return step_loss

    def _most_micro_batches(self, count: int) -> int:
        """Give the number of micro-batches that this process works off, repetitions without weight included.

        Where the weights are divided over processes (FSDP, ZeRO) every forward and backward pass is one of all.
        """
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            return count
        counts = self.accelerator.gather(torch.tensor([count], device=self.args.device))
        return int(counts.max())

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Compute the loss that `ExampleLoss` defines.

        Args:
            model: The model, wrapped or not.
            inputs: Tensors of one micro-batch, with `labels`.
            return_outputs: Return the model's outputs as well.
            num_items_in_batch: Examples in the whole step; the number of examples in `inputs` if None.

        Returns:
            The sum over the examples divided by `num_items_in_batch`, times the number of processes, since those
            average their gradients.
        """
        labels = inputs["labels"]
        outputs = model(**{name: tensor for name, tensor in inputs.items() if name not in ("labels", "num_windows")})
        total = self.example_loss(outputs["logits"].float(), labels, inputs.get("num_windows")).sum()
        trained: Any = self.model
        if has_adalora(trained):
            total = total + len(labels) * orthogonality_penalty(trained)
        if num_items_in_batch is None:
            loss = total / len(labels)
        else:
            loss = total * (self.args.world_size / num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Group the parameters by learning rate and weight decay."""
        if self.optimizer is None:
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
        """Build the schedule that `TrainingArguments` or `--lr_schedule` names, and the one of unfreezing."""
        if self.tuning.unfreeze_every is not None:
            model: Any = self.model
            sampler: Any = self.get_train_dataloader().batch_sampler
            period = max(1, round(self.tuning.unfreeze_every * sampler.num_steps))
            unfreezing = GradualUnfreezing(model, new_modules_of(model), period, num_training_steps)
            self.add_callback(_Unfreezing(unfreezing))
        if self.tuning.lr_schedule is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        wrapped: Any = self.optimizer if optimizer is None else optimizer
        schedule = build_schedule(wrapped, self.tuning.lr_schedule, num_training_steps, self.tuning.num_cycles)
        self.lr_scheduler = schedule
        self._created_lr_scheduler = True
        return schedule

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Estimate the operations of a batch as 6 x parameters x tokens, padding included."""
        texts = [batch for batch in inputs["micro_batches"] if "input_ids" in batch]
        return sum(int(super(FineTuningTrainer, self).floating_point_ops(batch)) for batch in texts)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Hand the data set itself to `evaluation_loop`, which batches by tokens."""
        dataset: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        return DataLoader(dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Likewise."""
        return self.get_eval_dataloader(test_dataset)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Compute the logits of every example once, whatever the number of processes, and their metrics."""
        dataset: Any = dataloader.dataset
        start = time.perf_counter()
        with progress_bar(len(dataset), description) as advance:
            logits = compute_logits(
                self.model,  # type: ignore[arg-type]
                dataset,
                dataset["length"],
                self.collator.collate,
                self.collator.max_tokens,
                self.precision,
                self.example_loss.window_pooling,
                on_batch=advance,
            )
        config: Any = self.model.config  # type: ignore[union-attr]
        if self.args.process_index == 0:
            warn_if_collapsed(logits, self.example_loss.problem_type, config.id2label)
        labels = dataset.with_format("numpy")["labels"][:]
        metrics = self.metrics_of(EvalPrediction(predictions=logits, label_ids=labels))
        self.costs.evaluation_seconds += time.perf_counter() - start
        best = (self.args.metric_for_best_model or "loss").removeprefix("eval_")
        if math.isnan(metrics.get(best, 0.0)):
            raise FinetuneError(
                f"Expected a number for --metric_for_best_model {best}, but it is not defined on these examples. "
                "Take another metric, or evaluate on examples of every class."
            )
        return EvalLoopOutput(
            predictions=logits,
            label_ids=labels,
            metrics={f"{metric_key_prefix}_{name}": value for name, value in metrics.items()},
            num_samples=len(dataset),
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
