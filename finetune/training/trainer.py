"""The `Trainer`: micro-batches by tokens, a loss that is the mean over the step's examples, fast evaluation.

Upstream's `Trainer` takes `BertForSequenceClassification` for a model that divides its loss by `num_items_in_batch`,
since its `forward` has `**kwargs`; it doesn't, so under accumulation or several processes the gradient is a multiple
of what it should be (transformers issue 47688). Here the loss is computed in one place: the sum over examples divided
by the number of examples in the whole step, over all micro-batches, accumulation steps and processes.
"""

import contextlib
import itertools
import math
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
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
from finetune.data.batch import (
    GlobalStepSampler,
    MicroBatchCollator,
    StepSampler,
    TrainDataLoader,
    count_padded_tokens,
    split_micro_batch,
)
from finetune.data.stream import StreamedStepSampler, TokenizingRows
from finetune.errors import FinetuneError, Interrupted
from finetune.files import is_disk_full
from finetune.hardware import is_out_of_memory, release_memory
from finetune.methods import new_modules_of
from finetune.methods.adapters import refuse_too_long
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
from finetune.models.output_layer import Standard, find_output_layer
from finetune.models.save import count_bytes
from finetune.progress_bar import progress_bar
from finetune.training.adalora import (
    AdaLoraAllocation,
    has_adalora,
    load_adalora,
    orthogonality_penalty,
    save_adalora,
)
from finetune.training.checkpoints import WRITING, best_of, commit_checkpoint, find_fault, rotate_checkpoints
from finetune.training.interruption import Interruption
from finetune.training.loop import EpochEnd, LoopState
from finetune.training.loss import ExampleLoss
from finetune.training.progress import CostMeter
from finetune.training.sharding import name_layers_for_fsdp
from finetune.training.upstream import warn_if_changed
from finetune.training.watch import Watch, warn_if_collapsed

__all__ = ["FineTuningTrainer"]

STEPS_BETWEEN_RELEASES = 25
MOST_LEFT_OUT = 3  # steps in a row whose loss or gradient is no number
MOST_NAMED = 20
AGAIN = "start the same command again to go on."


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

    Attributes:
        interruption: Whether a signal asks for the end; by default none does.
        name_rows: From rows of the training data to what a message calls them.
        run_id: What its checkpoints are marked with.
        apply_settings: Whether a resumed training takes its learning rates and weight decay from the settings instead
            of from the checkpoint.
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
        if args.process_index == 0:
            warn_if_changed()
        refuse_too_long(model, processing_class.model_max_length)
        args._n_gpu = min(args.n_gpu, 1)  # several GPUs take several processes, never nn.DataParallel
        name_layers_for_fsdp(model)
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
        if self.is_fsdp_enabled:  # autocast casts, as everywhere else, and gradients are summed in float32
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = None
        self.training_data: Any = train_dataset
        self.collator: Any = MicroBatchCollator(processing_class, max_tokens_per_micro_batch)
        self.metrics_of = compute_metrics
        problem_type = model.config.problem_type or SINGLE_LABEL
        loss = example_loss or ExampleLoss(problem_type, args.label_smoothing_factor)
        self.standard, self.example_loss = loss.standard, replace(loss, standard=Standard())  # which `train` takes
        self.tuning = tuning or TuningArguments()
        self.interruption = Interruption()
        self.name_rows: Callable[[Sequence[Any]], list[str]] = lambda rows: [f"row {row}" for row in rows]
        self.run_id = ""
        self.apply_settings = False
        self.epoch_end = EpochEnd()
        self.resumed: tuple[Path, LoopState] | None = None
        self.last_logged: tuple[float | None, float | None] = None, None
        self.batches_of_step: list[dict[str, Any]] = []
        self.stop_after_step = False
        self.left_out = 0
        self.bad_batches: list[int] = []
        self.reduced_tokens: int | None = None
        self.is_saving = False
        self.add_callback(self.epoch_end)
        if has_adalora(model):
            self.add_callback(AdaLoraAllocation)
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        self.add_callback(CostMeter)
        self.add_callback(Watch)
        self.add_callback(_ReleaseMemory)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; where the encoder is frozen, on its features, computed once; numbers to predict are standardised."""
        with self._standardised():
            return self._train(*args, **kwargs)

    @contextlib.contextmanager
    def _standardised(self) -> Iterator[None]:
        """Let the model's outputs stand for standardised numbers, and put mean and spread into them in the end.

        A head that the checkpoint brought along goes on from the numbers that it gives; a fresh one from the mean.
        """
        standard = self.standard
        if standard == Standard():
            yield
            return
        model: Any = self.model
        is_divided = self.is_fsdp_enabled or self.is_deepspeed_enabled
        found = None if is_divided else find_output_layer(model, self._collate_probes())
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
        base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        is_fresh = base.config.model_type == "textcnn" or any(
            f".{module}." in f".{name}." for module in new_modules_of(model)
        )
        if not is_fresh:
            standard.take_out_of(layer)
        self.example_loss = replace(self.example_loss, standard=standard)
        try:
            yield
        finally:
            self.example_loss.standard.put_into(layer)  # that of the checkpoint, if it went on from one
            self.example_loss = replace(self.example_loss, standard=Standard())

    def _collate_probes(self) -> Any:
        """Give a few texts as the model takes them."""
        is_stream = isinstance(self.training_data, TokenizingRows)
        rows: Any = self.eval_dataset if is_stream else self.training_data
        probes = self.collator.collate([rows[row] for row in range(min(4, len(rows)))])
        del probes["labels"]
        probes.pop("num_windows", None)
        return self._prepare_inputs(probes)

    def _train(self, *args: Any, **kwargs: Any) -> Any:
        model: Any = self.model
        is_stream = isinstance(self.training_data, TokenizingRows)
        if is_stream or not has_frozen_encoder(model) or self.example_loss.window_pooling is not None:
            return super().train(*args, **kwargs)
        start = time.perf_counter()
        model.to(self.args.device).eval()
        read = find_feature_reader(model, self._collate_probes())
        if read is None:
            return super().train(*args, **kwargs)

        texts: Any = (self.training_data, self.eval_dataset, self.collator)
        features = []
        for dataset in texts[:2]:
            with progress_bar(len(dataset), "Computing features") as advance:
                collate, max_tokens = self.collator.collate, self.collator.max_tokens
                on_batch = self._unless_interrupted(advance, Interrupted(AGAIN))
                features.append(compute_features(model, read, dataset, collate, max_tokens, self.precision, on_batch))
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
        """Count the examples, and the tokens, of a step over its accumulation steps and all processes.

        With them goes whether any process was told to end, so that all of them end after the same step.
        """
        own = [sum(batch[count] for batch in batch_samples) for count in ("num_examples", "num_tokens")]
        own.append(self.interruption.received)
        num_examples, num_tokens, told = self.accelerator.reduce(torch.tensor(own, device=device), reduction="sum")
        self.costs.train_tokens += int(num_tokens)
        self.stop_after_step = bool(told)
        self.batches_of_step, self.bad_batches = [], []
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
        self.batches_of_step.append(inputs)
        loss = self._work_off(model, inputs, num_items_in_batch)
        while loss is None:  # also the earlier batches again, whose gradients can't be told from the spoilt ones
            self._reduce_tokens(inputs)
            model.zero_grad()
            losses = [self._work_off(model, batch, num_items_in_batch) for batch in self.batches_of_step]
            loss = None if None in losses else losses[-1]
        if not torch.isfinite(loss):
            self.bad_batches.append(len(self.batches_of_step) - 1)
        return loss

    def _work_off(self, model: torch.nn.Module, inputs: dict[str, Any], num_items: Any) -> torch.Tensor | None:
        """Add the gradients of a batch; None if memory did not suffice, and then nothing holds any of it."""
        micro_batches = inputs["micro_batches"]
        if self.reduced_tokens is not None:
            micro_batches = [part for whole in micro_batches for part in split_micro_batch(whole, self.reduced_tokens)]
        step_loss = torch.zeros((), device=self.args.device)
        synchronises = self.accelerator.sync_gradients  # False before the last accumulation step
        count = self._most_micro_batches(len(micro_batches))
        try:
            for number in range(1, count + 1):
                micro_batch = self._prepare_inputs(micro_batches[min(number, len(micro_batches)) - 1])
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
                    f"Expected memory for micro-batches of {self.collator.max_tokens:,} tokens, but an allocation "
                    f"failed. Pass --max_tokens_per_micro_batch {self.collator.max_tokens // 2}."
                ) from error
            return None
        return step_loss

    def _reduce_tokens(self, inputs: dict[str, Any]) -> None:
        """Halve the tokens of a micro-batch for the rest of the training, and say so.

        The examples of a step, and so its gradient up to rounding, stay; dropout draws other numbers.
        """
        release_memory()
        most = self.collator.max_tokens if self.reduced_tokens is None else self.reduced_tokens
        parts = [part for whole in inputs["micro_batches"] for part in split_micro_batch(whole, most)]
        if all(len(part["labels"]) == 1 for part in parts):
            longest = max(map(count_padded_tokens, parts))
            raise FinetuneError(
                f"Expected memory to train on a text of {longest:,} tokens, but an allocation failed in step "
                f"{self.state.global_step + 1}. Pass a smaller --max_length, or a smaller model."
            )
        largest = max(count_padded_tokens(part) for part in parts if len(part["labels"]) > 1)
        self.reduced_tokens = self.collator.max_tokens = max(1, min(most, largest) // 2)
        warnings.warn(
            f"out of memory in step {self.state.global_step + 1}: from now on micro-batches of at most "
            f"{self.reduced_tokens:,} tokens. A step's examples stay the same; dropout draws other numbers",
            stacklevel=2,
        )

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """Give the gradient's norm; where it or the loss is no number, leave the step out and say so.

        Raises:
            FinetuneError: At the third such step in a row.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        is_number = math.isfinite(norm) or self.accelerator.scaler is not None  # float16 skips such steps by itself
        if is_number and (not self.bad_batches or self.args.world_size > 1):
            self.left_out = 0
            return norm
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
        return norm

    def _name_examples(self, batches: Sequence[int]) -> str:
        """Name the examples of batches of the current step: the sampler draws them again."""
        sampler: Any = self.get_train_dataloader().batch_sampler
        epoch, step = divmod(self.state.global_step, sampler.num_steps)
        sampler.set_epoch(epoch)
        first = step * self.args.gradient_accumulation_steps
        drawn = list(itertools.islice(iter(sampler), first, first + len(self.batches_of_step)))
        names = self.name_rows([row for batch in batches for row in drawn[batch]])
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        return ", ".join(names[:MOST_NAMED]) + more

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
                on_batch=self._unless_interrupted(advance, _EvaluationCutShort()),
            )
        logits = self.example_loss.standard.undo(logits)
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

    # Checkpoints: written aside and verified; what upstream forgets goes into `loop_state.json`.

    def _get_output_dir(self, trial: Any = None) -> str:
        folder = super()._get_output_dir(trial)
        return str(Path(folder) / WRITING) if self.is_saving else folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint aside and put it in its place when it is whole.

        Raises:
            FinetuneError: If a weight is NaN or infinite, or the disk is full.
        """
        folder = Path(str(self.args.output_dir))
        name = f"checkpoint-{self.state.global_step}"
        self._refuse_broken_weights()
        try:
            self.is_saving = True
            super()._save_checkpoint(model, trial)
            if self.state.best_model_checkpoint == str(folder / WRITING / name):
                self.state.best_model_checkpoint = str(folder / name)
            if self.args.should_save:
                trained: Any = self.model
                if has_adalora(trained):
                    save_adalora(trained, folder / WRITING / name)
                self._loop_state().write(folder / WRITING / name)
                self.state.save_to_json(str(folder / WRITING / name / "trainer_state.json"))
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                commit_checkpoint(folder / WRITING / name, folder / name, self.run_id)
        except Exception as error:  # tokenizers has no class of its own for a full disk
            shutil.rmtree(folder / WRITING, ignore_errors=True)
            if not is_disk_full(error):
                raise
            raise FinetuneError(
                f"Expected {self._checkpoint_bytes():,} bytes free in {str(folder)!r} for a checkpoint of step "
                f"{self.state.global_step}, but found {shutil.disk_usage(folder).free:,}. Earlier checkpoints are "
                "whole: make room, and start the same command again to go on from the newest."
            ) from error
        finally:
            self.is_saving = False
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            rotate_checkpoints(folder, self.args.save_total_limit, None if best is None else Path(best).name)
        self.accelerator.wait_for_everyone()

    def _loop_state(self) -> LoopState:
        grad_norm, learning_rate = self.last_logged
        return LoopState(
            loss_sum=self._tr_loss.item(),
            logged_loss_sum=self._total_loss_scalar,
            logged_step=self._globalstep_last_logged,
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            has_epoch_ended=self.epoch_end.has_come,
            is_evaluation_due=self.control.should_evaluate,
            has_ended=self.control.should_training_stop,
            reduced_tokens=self.reduced_tokens,
            left_out=self.left_out,
            mean=self.example_loss.standard.mean,
            spread=self.example_loss.standard.spread,
        )

    def _refuse_broken_weights(self) -> None:
        model: Any = self.model
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not torch.isfinite(parameter.detach()).all():
                raise FinetuneError(
                    f"Expected finite weights, but {name} has NaN or infinity after step {self.state.global_step}; no "
                    "checkpoint of it is written. Lower --learning_rate, and pass --restart."
                )

    def _checkpoint_bytes(self) -> int:
        """Estimate the size of a checkpoint: the weights that are saved, and the optimizer's state."""
        optimizer: Any = self.optimizer
        moments = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
        return count_bytes(self.model) + sum(tensor.numel() * tensor.element_size() for tensor in moments)

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, num_train_epochs: int, resume_from_checkpoint: Any,
        trial: Any,
    ) -> tuple[int, int]:  # fmt: skip
        """Restore what upstream restores, and note the rest for `_catch_up`."""
        positions = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        self.resumed = None
        if resume_from_checkpoint is not None:
            checkpoint = Path(resume_from_checkpoint)
            self.state.compute_steps(self.args, max_steps)  # which may have been changed on purpose
            best = best_of(checkpoint)
            self.state.best_model_checkpoint = None if best is None else str(best)
            self.steps_per_epoch = num_update_steps_per_epoch
            self.resumed = checkpoint, LoopState.read(checkpoint)
            loop = self.resumed[1]
            self.example_loss = replace(self.example_loss, standard=Standard(loop.mean, loop.spread))
            self.reduced_tokens = loop.reduced_tokens
            if self.reduced_tokens is not None:
                self.collator.max_tokens = self.reduced_tokens
        return positions

    def _catch_up(self, model: Any, trial: Any, start_time: float) -> None:
        """Do what was due when the checkpoint was written and comes before the next step, if there is one."""
        if self.resumed is None:
            return
        (checkpoint, loop), self.resumed = self.resumed, None
        self._tr_loss.fill_(loop.loss_sum)
        self._total_loss_scalar = loop.logged_loss_sum
        self._globalstep_last_logged = loop.logged_step
        self._initial_global_step = 0  # train_loss is the mean over all steps
        self.left_out = loop.left_out
        control, saving = self.control, self.control.should_save
        control.should_log = control.should_evaluate = control.should_save = False
        self.epoch_end.has_come = loop.has_epoch_ended
        self._load_rng_state(str(checkpoint))
        due = loop.grad_norm, model, trial, self.state.epoch, None, start_time, loop.learning_rate
        if loop.is_evaluation_due:
            control.should_evaluate, control.should_save = True, saving
            self._maybe_log_save_evaluate(self._tr_loss, *due)
        if not loop.has_epoch_ended and (loop.has_ended or self.state.global_step % self.steps_per_epoch == 0):
            self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
            self._maybe_log_save_evaluate(self._tr_loss, *due)
        if loop.has_ended:
            self.control.should_training_stop = True

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Take an epoch's steps, if any are to be taken."""
        self._catch_up(kwargs["model"], kwargs["trial"], kwargs["start_time"])
        if not self.control.should_training_stop:
            # Which transformers before 5.17 forgets where batches are skipped.
            kwargs["train_dataloader"].set_epoch(kwargs["epoch"])
            super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, trial: Any, num_train_samples: Any, start_time: float) -> Any:
        """Load the best model; the newest checkpoint stays until the run is complete."""
        self._catch_up(self.model, trial, start_time)
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(trial, num_train_samples, start_time)
        finally:
            self.args.save_total_limit = limit

    def _maybe_log_save_evaluate(
        self, tr_loss: torch.Tensor, grad_norm: Any, model: Any, trial: Any, epoch: Any, ignore_keys_for_eval: Any,
        start_time: float, learning_rate: float | None = None,
    ) -> None:  # fmt: skip
        """Do what is due after a step; after a signal log and write a checkpoint, and leave the rest for later.

        Raises:
            Interrupted: After a signal, when the checkpoint is written.
        """
        self.last_logged = None if grad_norm is None else float(grad_norm), learning_rate
        due = tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, learning_rate
        if self.stop_after_step or (self.interruption.received and self.args.world_size == 1):
            evaluating, saving = self.control.should_evaluate, self.control.should_save
            self.control.should_evaluate = self.control.should_save = False
            super()._maybe_log_save_evaluate(*due)
            self.control.should_evaluate, self.control.should_save = evaluating, saving
            self._stop_here(model, trial)
        try:
            super()._maybe_log_save_evaluate(*due)
        except _EvaluationCutShort:
            self._stop_here(model, trial)

    def _stop_here(self, model: Any, trial: Any) -> None:
        self._save_checkpoint(model, trial)
        raise Interrupted(
            f"a checkpoint of step {self.state.global_step} is written. The same command goes on from it."
        )

    def _unless_interrupted(self, advance: Callable[[int], None], error: BaseException) -> Callable[[int], None]:
        """Advance a bar, but raise once a signal has come; alone, since several processes can't stop anywhere."""

        def on_batch(count: int) -> None:
            if self.interruption.received and self.args.world_size == 1:
                raise error
            advance(count)

        return on_batch

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        if skip_scheduler and self.resumed is not None:
            return {}  # --eval_on_start, which an earlier process has done
        try:
            return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        except _EvaluationCutShort:
            if skip_scheduler:
                raise Interrupted(AGAIN) from None
            raise

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        trained: Any = self.model
        if has_adalora(trained):
            load_adalora(trained, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        """Load the best checkpoint.

        Raises:
            FinetuneError: If it is not what was written.
        """
        best = Path(str(self.state.best_model_checkpoint))
        fault = find_fault(best, self.run_id)
        if fault is not None:
            raise FinetuneError(
                f"Expected the best checkpoint {str(best)!r} as it was written, but {fault}. Start the same command "
                "again: it goes on from before it."
            )
        trained: Any = self.model
        if has_adalora(trained):
            load_adalora(trained, best)
        else:
            super()._load_best_model()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Restore both; settings that were changed on purpose win over those in the checkpoint."""
        optimizer: Any = self.optimizer
        scheduler: Any = self.lr_scheduler
        own = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
        rates = list(getattr(scheduler, "base_lrs", []))
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except ValueError as error:
            raise FinetuneError(
                "Expected settings that fit the optimizer's state in the checkpoint, but the changed ones group the "
                f"parameters otherwise: {error}. Restore those that were or are 0, or pass --restart."
            ) from error
        if self.apply_settings and checkpoint is not None:
            for group, settings in zip(optimizer.param_groups, own, strict=True):
                group.update(settings)
            if isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
                scheduler.base_lrs = rates
                factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
                for group, rate, factor in zip(optimizer.param_groups, rates, factors, strict=True):
                    group["lr"] = rate * factor
                scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]  # what the next step logs


class _EvaluationCutShort(Exception):  # noqa: N818  not an error
    """A signal came during an evaluation, which the next process does again."""


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
