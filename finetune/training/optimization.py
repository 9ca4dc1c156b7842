"""The optimizer and the schedule that `TuningArguments` describe; without them they are upstream's."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    SchedulerType,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    get_scheduler,
)

from finetune.methods import new_modules_of
from finetune.methods.rates import Rates, build_parameter_groups
from finetune.methods.schedules import build_schedule
from finetune.methods.unfreezing import GradualUnfreezing
from finetune.settings.parts import TuningArguments
from finetune.training.loading import LoadingTrainer

__all__ = ["TunedTrainer", "warn_of_rates"]

BY_METRIC = [SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY]
MOST_LOOKED_AT = 1_000  # steps


class TunedTrainer(LoadingTrainer):
    """How fast parameters learn, and when; see `finetune.training.trainer.Trainer`."""

    tuning: TuningArguments | None

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Group the parameters by learning rate and weight decay, if `tuning` says how."""
        if self.optimizer is None and self.tuning is not None:
            trained: Any = self.model if model is None else model
            optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args, trained)
            if "warmup_steps" in settings:  # upstream hands a share on as if it were a number of steps
                settings["warmup_steps"] = self.args.get_warmup_steps(self.state.max_steps)
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
            self.add_callback(_Unfreezing(unfreezing, lambda: self.step_offset))
        wrapped: Any = self.optimizer if optimizer is None else optimizer
        schedule: Any
        if self.lr_scheduler is not None or self.is_deepspeed_enabled:
            return super().create_scheduler(num_training_steps, optimizer)
        if tuning.lr_schedule is not None:
            schedule = build_schedule(wrapped, tuning.lr_schedule, num_training_steps, tuning.num_cycles)
        elif self.args.lr_scheduler_type in BY_METRIC:
            settings: Any = self.args.lr_scheduler_kwargs or {}
            mode = "max" if self.args.greater_is_better else "min"  # upstream: always "min"
            schedule = get_scheduler(
                self.args.lr_scheduler_type, wrapped, scheduler_specific_kwargs={"mode": mode, **settings}
            )
            for group in wrapped.param_groups:
                group.setdefault("initial_lr", group["lr"])  # as other schedules do; a resume asks for it
        else:
            schedule = super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler = schedule
        self._created_lr_scheduler = True
        warn_of_rates(schedule, num_training_steps, self.args.get_warmup_steps(num_training_steps))
        return schedule


def warn_of_rates(schedule: Any, num_steps: int, num_warmup_steps: int) -> None:
    """Warn of a schedule that hardly comes near the learning rate, or leaves the range from 0 to it.

    Args:
        schedule: Those are looked at whose rates depend on the step alone.
        num_steps: Of the training.
        num_warmup_steps: For the message.
    """
    if not isinstance(schedule, LambdaLR):
        return
    steps = np.unique(np.linspace(0, max(0, num_steps - 1), MOST_LOOKED_AT).astype(int))
    factors = [float(schedule.lr_lambdas[0](int(step))) for step in steps]
    lowest, highest = min(factors), max(factors)
    if highest < 0.5:
        warnings.warn(
            f"the learning rate reaches {highest:.0%} of --learning_rate at most in {num_steps} steps, with "
            f"{num_warmup_steps} to warm up. Lower --warmup_steps, look at --lr_scheduler_kwargs, or train longer",
            stacklevel=2,
        )
    elif highest > 1 + 1e-6 or lowest < 0:
        warnings.warn(
            f"the learning rate goes from {lowest:.3g} to {highest:.3g} times --learning_rate in {num_steps} steps. "
            "Look at --lr_scheduler_kwargs",
            stacklevel=2,
        )


class _Unfreezing(TrainerCallback):
    """Freezes and unfreezes before each step, by the step's number alone."""

    def __init__(self, unfreezing: GradualUnfreezing, offset: Callable[[], int]):
        self.unfreezing = unfreezing
        self.offset = offset

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.unfreezing.apply(kwargs["model"], state.global_step - self.offset())
