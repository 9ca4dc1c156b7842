"""Every private method of transformers' `Trainer` that is overridden, and why; and what was tested of it.

What the methods call stands elsewhere. They may change in any release, and a change rarely fails where it matters: a
renamed method is simply not called any more, and checkpoints, say, would be written in place again. So a training
compares the signatures first. What the methods do is not compared.
"""

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.state import GradientState
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_callback import ExportableState

from finetune.errors import FinetuneError, Interrupted
from finetune.training.adalora import has_adalora, has_adalora_state, load_adalora
from finetune.training.checkpoints import WRITING, is_sealed
from finetune.training.resume import EvaluationCutShort, ResumingTrainer

__all__ = ["AGAIN", "UpstreamTrainer", "find_changes", "warn_if_changed"]

AGAIN = "start the same command again to go on."
RESTORED = ("optimizer.pt", "scheduler.pt")
TESTED = "5.10.1", "5.23.0"  # the oldest transformers and the newest
# Methods that are overridden, or private and called, and their parameters after `self`.
SIGNATURES: dict[type, dict[str, str]] = {
    Trainer: {
        "_get_collator_with_removed_columns": "data_collator description",
        "_evaluate": "trial ignore_keys_for_eval skip_scheduler",
        "_finalize_training": "trial num_train_samples start_time",
        "_get_grad_norm": "model grad_norm",
        "_get_num_items_in_batch": "batch_samples device",
        "_get_output_dir": "trial",
        "_init_training_state": "max_steps num_update_steps_per_epoch num_train_epochs resume_from_checkpoint trial",
        "_load_best_model": "",
        "_load_from_checkpoint": "resume_from_checkpoint model",
        "_load_optimizer_and_scheduler": "checkpoint",
        "_load_rng_state": "checkpoint",
        "_maybe_log_save_evaluate": "tr_loss grad_norm model trial epoch ignore_keys_for_eval start_time learning_rate",
        "_prepare_inputs": "inputs",
        "_push_from_checkpoint": "checkpoint_folder",
        "_remove_unused_columns": "dataset description",
        "_run_epoch": "model epoch train_dataloader steps_in_epoch num_update_steps_per_epoch trial "
        "ignore_keys_for_eval start_time resume_from_checkpoint epochs_trained steps_trained_in_current_epoch",
        "_save_checkpoint": "model trial",
        "_track_num_input_tokens": "inputs",
        "compute_loss": "model inputs return_outputs num_items_in_batch",
        "create_optimizer": "model",
        "create_scheduler": "num_training_steps optimizer",
        "evaluate": "eval_dataset ignore_keys metric_key_prefix",
        "evaluation_loop": "dataloader description prediction_loss_only ignore_keys metric_key_prefix",
        "floating_point_ops": "inputs",
        "set_initial_training_values": "args dataloader",
        "get_batch_samples": "epoch_iterator num_batches device",
        "get_eval_dataloader": "eval_dataset",
        "get_test_dataloader": "test_dataset",
        "get_train_dataloader": "",
        "train": "resume_from_checkpoint trial ignore_keys_for_eval",
        "training_step": "model inputs num_items_in_batch",
    },
    PreTrainedModel: {"_init_weights": "module", "get_input_embeddings": ""},
    GradientState: {"_set_sync_gradients": "sync_gradients"},
}
# Attributes that are set from outside of the `Trainer`, whose methods then have to read them. Not among them:
# `_initial_global_step`, which older ones don't have and don't need.
ATTRIBUTES = (
    "_created_lr_scheduler", "_globalstep_last_logged", "_total_loss_scalar", "_tr_loss", "_train_batch_size",
    "model_accepts_loss_kwargs", "optimizer_cls_and_kwargs",
)  # fmt: skip


class UpstreamTrainer(ResumingTrainer):
    """Overridden private methods of transformers' `Trainer`; see `finetune.training.trainer.Trainer`."""

    keeps_newest = False

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor | int | None:
        """Count examples: upstream counts labels, and only where it thinks that the model divides by them."""
        if batch_samples and all("micro_batches" in batch for batch in batch_samples):
            return self.count_step(batch_samples, device)
        return super()._get_num_items_in_batch(batch_samples, device)

    def _track_num_input_tokens(self, inputs: Any) -> None:
        """Count the tokens of micro-batches: upstream looks for `input_ids` in the batch itself."""
        for micro_batch in inputs.get("micro_batches", [inputs]):
            super()._track_num_input_tokens(micro_batch)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """Leave a step out whose loss or gradient is no number: upstream takes it, and the weights are gone."""
        norm = super()._get_grad_norm(model, grad_norm)
        self.leave_out_unless_finite(model, norm)
        return norm

    def _get_output_dir(self, trial: Any = None) -> str:
        """Write checkpoints aside: upstream writes them in their place, file by file."""
        folder = super()._get_output_dir(trial)
        return str(Path(folder) / WRITING) if self.is_saving else folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint that is whole or isn't there."""
        folder = Path(self._get_output_dir(trial))
        self.write_checkpoint(folder, lambda: super(UpstreamTrainer, self)._save_checkpoint(model, trial))
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder / f"checkpoint-{self.state.global_step}"))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Upload a checkpoint from its place, not while it is written aside."""
        if not self.is_saving:
            super()._push_from_checkpoint(checkpoint_folder)

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, num_train_epochs: int, resume_from_checkpoint: Any,
        trial: Any,
    ) -> tuple[int, int]:  # fmt: skip
        """Restore also what upstream forgets of its loop."""
        patience = [stopping.early_stopping_patience for stopping in self._early_stopping()]
        positions = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        for stopping, own in zip(self._early_stopping(), patience, strict=False):
            stopping.early_stopping_patience = own  # else that of the checkpoint
        states: Any = self.state.stateful_callbacks
        for callback in self.callback_handler.callbacks:  # a checkpoint may have been written without it
            if isinstance(callback, ExportableState):
                states.setdefault(type(callback).__name__, callback.state())
        self.state.num_train_epochs = self.planned_epochs
        self.resumed = self.began_in = None
        self.steps_per_epoch, self.step_offset = num_update_steps_per_epoch, 0
        self.has_moved = self.has_other_metric = False
        if resume_from_checkpoint is not None and is_sealed(Path(resume_from_checkpoint)):
            loop = self.restore_loop(Path(resume_from_checkpoint), max_steps)
            if loop.epoch is not None and self.sampler is not None:
                return self.keep_place(loop, max_steps)
        return positions

    def set_initial_training_values(self, args: TrainingArguments, dataloader: DataLoader) -> Any:
        """Leave the end of a training that is counted in steps to them: those of a resumed one may have become larger.

        Upstream ends it after as many epochs as all its steps would have taken.
        """
        found = super().set_initial_training_values(args, dataloader)
        self.planned_epochs = found[0]
        return (args.max_steps, *found[1:]) if self.is_resuming and args.max_steps > 0 else found

    def _early_stopping(self) -> list[EarlyStoppingCallback]:
        return [callback for callback in self.callback_handler.callbacks if isinstance(callback, EarlyStoppingCallback)]

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Do first what was due when the checkpoint was written: upstream leaves it out."""
        self.catch_up(kwargs["model"], kwargs["trial"], kwargs["start_time"])
        if not self.control.should_training_stop:
            if hasattr(kwargs["train_dataloader"], "set_epoch"):  # 5.16 and before forget it where batches are skipped
                kwargs["train_dataloader"].set_epoch(kwargs["epoch"])
            super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, trial: Any, num_train_samples: Any, start_time: float) -> Any:
        """Do what was due also where no epoch is left; a run keeps its newest checkpoint until it is complete."""
        self.catch_up(self.model, trial, start_time)
        self.average_weights()
        limit = self.args.save_total_limit
        if self.keeps_newest:
            self.args.save_total_limit = None
        try:
            return super()._finalize_training(trial, num_train_samples, start_time)
        finally:
            self.args.save_total_limit = limit

    def _maybe_log_save_evaluate(
        self, tr_loss: torch.Tensor, grad_norm: Any, model: Any, trial: Any, epoch: Any, ignore_keys_for_eval: Any,
        start_time: float, learning_rate: float | None = None,
    ) -> None:  # fmt: skip
        """Stop here after a signal: log, write a checkpoint, and leave the rest for later.

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
            self.stop_here(model, trial)
        try:
            super()._maybe_log_save_evaluate(*due)
        except EvaluationCutShort:
            self.stop_here(model, trial)

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        """Leave out the evaluation before the first step where an earlier process has done it."""
        if skip_scheduler and self.resumed is not None:
            return {}
        try:
            return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        except EvaluationCutShort:
            if skip_scheduler:
                raise Interrupted(AGAIN) from None
            raise

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load AdaLoRA's weights before its ranks were cut: PEFT saves those that are left."""
        trained: Any = self.model
        if has_adalora(trained) and has_adalora_state(Path(resume_from_checkpoint)):
            load_adalora(trained, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        """Load the best checkpoint if it is what was written.

        Raises:
            FinetuneError: If it is not.
        """
        best = Path(str(self.state.best_model_checkpoint))
        self.refuse_broken_best(best)
        trained: Any = self.model
        if has_adalora(trained) and has_adalora_state(best):
            load_adalora(trained, best)
        else:
            super()._load_best_model()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Restore both, or say that it can't be: upstream goes on in silence if a file is missing."""
        if checkpoint is not None and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            missing = [name for name in RESTORED if not (Path(checkpoint) / name).exists()]
            if missing:
                warnings.warn(
                    f"{checkpoint} has no {' and no '.join(missing)}: the optimizer and the learning rate begin anew",
                    stacklevel=2,
                )

        if (
            self.args.device.type == "cpu"
        ):  # cpu:0 with several processes: before 5.18 upstream tells torch to load to it
            self.args._setup_devices = torch.device("cpu")

        def load() -> None:
            super(UpstreamTrainer, self)._load_optimizer_and_scheduler(checkpoint)

        try:
            if (self.apply_settings or self.has_other_metric or self.has_moved) and checkpoint is not None:
                self.keep_own_settings(load)
            else:
                load()
        except ValueError as error:
            raise FinetuneError(
                "Expected settings that fit the optimizer's state in the checkpoint, but the changed ones group the "
                f"parameters otherwise: {error}. Restore those that were or are 0, or pass --restart."
            ) from error


def find_changes() -> list[str]:
    """Compare the installed libraries with those that were tested; a phrase for each difference."""
    changes = []
    for owner, methods in SIGNATURES.items():
        for name, tested in methods.items():
            method = getattr(owner, name, None)
            if method is None:
                changes.append(f"{owner.__name__}.{name} is gone")
            elif (found := _parameters(method)) != tested.split():
                changes.append(f"{owner.__name__}.{name} takes ({', '.join(found)})")
    read = {name for code in map(_code_of, vars(Trainer).values()) if code for name in code.co_names}
    changes += [f"Trainer.{name} is not read" for name in ATTRIBUTES if name not in read]
    return changes


def warn_if_changed() -> None:
    """Warn, in one line, if something that is overridden is not what was tested."""
    changes = find_changes()
    if changes:
        warnings.warn(
            f"transformers {transformers.__version__} differs from the versions that were tested, {TESTED[0]} to "
            f"{TESTED[1]}, where finetune overrides it: {'; '.join(changes)}. The training may go wrong: install one "
            "of those",
            stacklevel=2,
        )


def _parameters(method: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(method).parameters)[1:]


def _code_of(attribute: Any) -> Any:
    return getattr(inspect.unwrap(attribute) if callable(attribute) else attribute, "__code__", None)
