"""A training that goes on exactly where a checkpoint was written, whatever was due at that moment.

What upstream forgets, does twice or never when it resumes stands in `loop_state.json`; checkpoints are written aside,
and renamed when they are whole (`checkpoints.py`). The methods of transformers that call this stand in `upstream.py`.
"""

import contextlib
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from finetune.data.batch import Drawn
from finetune.errors import FinetuneError, Interrupted, failures_explained
from finetune.files import is_disk_full
from finetune.methods import count_bytes
from finetune.models.output_layer import Standard
from finetune.training.adalora import has_adalora, save_adalora
from finetune.training.best import choose_best_anew
from finetune.training.checkpoints import (
    WRITING,
    best_of,
    commit_checkpoint,
    find_fault,
    find_resumable,
    find_unsealed,
    is_sealed,
    rotate_checkpoints,
    tidy,
)
from finetune.training.loop import EpochEnd, LoopState
from finetune.training.steps import StepTrainer

__all__ = ["EvaluationCutShort", "ResumingTrainer"]

# What of an optimizer's group comes from the settings, and what of a schedule that looks at a metric from its past.
OF_SETTINGS = ("lr", "initial_lr", "weight_decay", "betas", "eps")
OF_PLATEAU = ("best", "num_bad_epochs", "num_good_epochs", "cooldown_counter", "warmup_counter", "last_epoch")


class EvaluationCutShort(Exception):  # noqa: N818  not an error
    """A signal came during an evaluation, which the next process does again."""


class ResumingTrainer(StepTrainer):
    """How checkpoints are written and gone on from; see `finetune.training.trainer.Trainer`."""

    run_id: str | None
    apply_settings: bool
    epoch_end: EpochEnd
    resumed: tuple[Path, LoopState] | None
    last_logged: tuple[float | None, float | None]
    is_saving: bool
    steps_per_epoch: int
    has_other_metric = has_moved = is_resuming = False
    planned_epochs = 0
    sampler: Any = None
    began_in: tuple[int, list[list[int]], int] | None = None

    def find_checkpoint(self, resume_from_checkpoint: Any) -> Any:
        """Find the checkpoint to go on from: for True the newest that is whole; a named one has to be.

        Checkpoints that transformers' own `Trainer` has written have no seal, and are taken as they are.
        """
        folder = Path(str(self.args.output_dir))
        if self.args.should_save:
            tidy(folder)
        if resume_from_checkpoint is True:
            found, skipped = find_resumable(folder, self.run_id)
            unsealed = find_unsealed(folder) if found is None else None
            for line in skipped if unsealed is None else ():
                warnings.warn(line, stacklevel=3)
            found = found or unsealed
            return True if found is None else str(found)
        if resume_from_checkpoint and self.run_id is None and is_sealed(Path(resume_from_checkpoint)):
            fault = find_fault(Path(resume_from_checkpoint), self.run_id)
            if fault is not None:
                raise FinetuneError(
                    f"Expected the checkpoint {str(resume_from_checkpoint)!r} as it was written, but {fault}. Pass "
                    "another one, or resume_from_checkpoint=True for the newest that is whole."
                )
        return resume_from_checkpoint

    def write_checkpoint(self, folder: Path, write_files: Callable[[], None]) -> None:
        """Write a checkpoint aside and put it in its place when it is whole.

        Args:
            folder: Holds the checkpoints.
            write_files: What transformers does.

        Raises:
            FinetuneError: If a weight is NaN or infinite, or the disk is full.
        """
        name = f"checkpoint-{self.state.global_step}"
        self.average_weights()
        self._refuse_broken_weights()
        try:
            self.is_saving = True
            write_files()
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
                with contextlib.suppress(OSError):
                    (folder / WRITING).rmdir()
        except Exception as error:  # tokenizers has no class of its own for a full disk
            shutil.rmtree(folder / WRITING / name, ignore_errors=True)
            with contextlib.suppress(OSError):  # it holds something of somebody else's
                (folder / WRITING).rmdir()
            if not is_disk_full(error):
                with failures_explained(folder / name):
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
        standard = Standard() if self.example_loss is None else self.example_loss.standard
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
            mean=standard.mean,
            spread=standard.spread,
            metric=self.args.metric_for_best_model,
            greater_is_better=self.args.greater_is_better,
            **self._place(),
        )

    def _place(self) -> dict[str, Any]:
        """Record which examples of which epoch have been drawn, whatever another start makes of the steps."""
        if self.sampler is None:
            return {}
        epoch, taken = divmod(self.state.global_step - self.step_offset, self.steps_per_epoch)
        before: list[list[int]] = []
        if self.began_in is not None and self.began_in[0] == epoch:
            before, taken = self.began_in[1], taken - self.began_in[2]
        own = [self.sampler.step_size, self.args.gradient_accumulation_steps, taken]
        return {
            "epoch": epoch,
            "drawn": [*before, own] if taken else before,
            "num_examples": self.sampler.num_examples,
            "step_offset": self.step_offset,
        }

    def keep_place(self, loop: LoopState, max_steps: int) -> tuple[int, int]:
        """Go on after the examples that the checkpoint's steps have drawn, however large its steps were.

        Returns:
            The epoch, and the batches of it that are done.
        """
        sampler, args = self.sampler, self.args
        epoch, taken, self.step_offset = int(loop.epoch or 0), 0, loop.step_offset
        drawn = [Drawn(*part) for part in loop.drawn]
        own = sampler.step_size, args.gradient_accumulation_steps
        is_same = loop.num_examples == sampler.num_examples
        if drawn and is_same and len(drawn) == 1 and (drawn[0].step_size, drawn[0].accumulation_steps) == own:
            taken = drawn[0].num_steps
        elif drawn:
            taken = sampler.go_on(epoch, drawn, loop.num_examples)
            self.began_in = epoch, loop.drawn, taken
            if (drawn[-1].step_size, drawn[-1].accumulation_steps) == own:  # what this start adds to its last part
                self.began_in = epoch, loop.drawn[:-1], taken - drawn[-1].num_steps
        if taken == self.steps_per_epoch:
            epoch, taken = epoch + 1, 0
        position = epoch * self.steps_per_epoch + taken
        self.has_moved = self.state.global_step - self.step_offset != position
        self.step_offset = self.state.global_step - position
        if args.max_steps <= 0:
            self.state.max_steps = max_steps + self.step_offset
        return epoch, taken * args.gradient_accumulation_steps

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
        model: Any = self.model
        moments = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
        return count_bytes(model) + sum(tensor.numel() * tensor.element_size() for tensor in moments)

    def restore_loop(self, checkpoint: Path, max_steps: int) -> LoopState:
        """Restore what upstream does not, and note the rest for `catch_up`."""
        self.state.compute_steps(self.args, max_steps)  # which may have been changed on purpose
        best = best_of(checkpoint)
        self.state.best_model_checkpoint = None if best is None or not best.is_dir() else str(best)
        loop = LoopState.read(checkpoint)
        self.resumed = checkpoint, loop
        metric = self.args.metric_for_best_model, self.args.greater_is_better
        self.has_other_metric = loop.metric is not None and (loop.metric, loop.greater_is_better) != metric
        if self.has_other_metric:
            choose_best_anew(self, checkpoint, str(loop.metric))
        if self.example_loss is not None:
            self.example_loss = replace(self.example_loss, standard=Standard(loop.mean, loop.spread))
        if loop.reduced_tokens is not None:
            self.limit_tokens(loop.reduced_tokens)
        return loop

    def catch_up(self, model: Any, trial: Any, start_time: float) -> None:
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
        is_last = (self.state.global_step - self.step_offset) % self.steps_per_epoch == 0
        before = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        has_more = before.global_step >= before.max_steps and self.state.global_step < self.state.max_steps
        has_ended = loop.has_ended and not has_more  # steps were added to those that had all been taken
        if not loop.has_epoch_ended and (has_ended or is_last):
            self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
            self._maybe_log_save_evaluate(self._tr_loss, *due)
        if has_ended:
            self.control.should_training_stop = True

    def keep_own_settings(self, load: Callable[[], None]) -> None:
        """Restore optimizer and schedule by `load`, but keep the learning rates and weight decays of the settings."""
        optimizer: Any = self.optimizer
        scheduler: Any = self.lr_scheduler
        own = [{name: group[name] for name in OF_SETTINGS if name in group} for group in optimizer.param_groups]
        rates = list(scheduler.base_lrs) if isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR) else []
        fresh = dict(vars(scheduler))
        load()
        reached = [
            settings.get("initial_lr", 1.0) * group["lr"] / (group.get("initial_lr") or 1.0)
            for group, settings in zip(optimizer.param_groups, own, strict=True)
        ]
        for group, settings in zip(optimizer.param_groups, own, strict=True):
            group.update(settings)
        if self.args.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"):  # goes on from the rate it had reached
            kept = () if self.has_other_metric else OF_PLATEAU
            vars(scheduler).update({name: value for name, value in fresh.items() if name not in kept})
            for group, rate in zip(optimizer.param_groups, reached, strict=True):
                group["lr"] = rate
        if isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
            scheduler.base_lrs = rates
            if self.has_moved and self.args.max_steps <= 0:  # it ends with the epochs
                scheduler.last_epoch = self.state.global_step - self.step_offset
            factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
            for group, rate, factor in zip(optimizer.param_groups, rates, factors, strict=True):
                group["lr"] = rate * factor
            scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]  # what the next step logs

    def refuse_broken_best(self, best: Path) -> None:
        """Refuse a best checkpoint that is not what was written."""
        fault = find_fault(best, self.run_id)
        if fault is not None and (is_sealed(best) or self.run_id is not None):
            raise FinetuneError(
                f"Expected the best checkpoint {str(best)!r} as it was written, but {fault}. Start the same command "
                "again: it goes on from before it."
            )

    def stop_here(self, model: Any, trial: Any) -> None:
        """Write a checkpoint and end, after a signal."""
        self._save_checkpoint(model, trial)
        raise Interrupted(
            f"a checkpoint of step {self.state.global_step} is written. The same command goes on from it."
        )

    def unless_interrupted(self, advance: Callable[[int], None], error: BaseException) -> Callable[[int], None]:
        """Advance a bar, but raise once a signal has come; alone, since several processes can't stop anywhere."""

        def on_batch(count: int) -> None:
            if self.interruption.received and self.args.world_size == 1:
                raise error
            advance(count)

        return on_batch
