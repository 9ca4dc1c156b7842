"""The optimizer and the schedule that `TuningArguments` describe; without them they are upstream's."""

import math
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune.methods import new_modules_of
from finetune.methods.rates import Rates, build_parameter_groups
from finetune.methods.schedules import build_schedule
from finetune.methods.unfreezing import GradualUnfreezing
from finetune.settings.parts import TuningArguments
from finetune.training.loading import LoadingTrainer

__all__ = ["TunedTrainer"]


class TunedTrainer(LoadingTrainer):
    """How fast parameters learn, and when; see `finetune.training.trainer.Trainer`."""

    tuning: TuningArguments | None

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


class _Unfreezing(TrainerCallback):
    """Freezes and unfreezes before each step, by the step's number alone."""

    def __init__(self, unfreezing: GradualUnfreezing):
        self.unfreezing = unfreezing

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.unfreezing.apply(kwargs["model"], state.global_step)
