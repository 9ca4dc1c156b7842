"""Where in its loop a training is, beyond what transformers' own checkpoint says."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["EpochEnd", "LoopState"]

FILE = "loop_state.json"


@dataclass
class LoopState:
    """What the `Trainer` keeps in attributes and forgets, or does twice or never, when it resumes.

    Attributes:
        loss_sum: Losses since the last time they were logged.
        logged_loss_sum: Losses of all steps before.
        logged_step: The step after which they were logged.
        grad_norm: Norm of the last step's gradient; None before clipping is done.
        learning_rate: That of the last step.
        has_epoch_ended: Whether what is due at the end of an epoch (evaluation, checkpoint) was due already. A
            checkpoint after an epoch's last step may come before or after it.
        is_evaluation_due: Whether an evaluation was cut short by a signal.
        has_ended: Whether no step is to follow: the last one was taken, or early stopping said so.
        reduced_tokens: Most tokens of a micro-batch since memory did not suffice; None if it always did.
        left_out: How many steps in a row were left out, since their loss was no number.
        mean: Of the numbers to predict, as the training began.
        spread: Likewise; the weights give (number - mean) / spread.
        metric: What chose the best checkpoint so far; None in checkpoints of before it was noted.
        greater_is_better: Its direction.
        epoch: The epoch of the next step; None where the steps are not ours.
        drawn: What was drawn of it: step size, accumulation steps and number of steps, for each setting of these.
        num_examples: Of the training data.
        step_offset: How many more steps were taken than the same examples are with these settings.
    """

    loss_sum: float
    logged_loss_sum: float
    logged_step: int
    grad_norm: float | None
    learning_rate: float | None
    has_epoch_ended: bool
    is_evaluation_due: bool
    has_ended: bool
    reduced_tokens: int | None
    left_out: int
    mean: float = 0.0
    spread: float = 1.0
    metric: str | None = None
    greater_is_better: bool | None = None
    epoch: int | None = None
    drawn: list[list[int]] = field(default_factory=list)
    num_examples: int = 0
    step_offset: int = 0

    def write(self, checkpoint: Path) -> None:
        """Write it into a checkpoint; numbers come back as the same bits."""
        (checkpoint / FILE).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, checkpoint: Path) -> "LoopState":
        """Read it from a checkpoint."""
        return cls(**json.loads((checkpoint / FILE).read_text(encoding="utf-8")))


class EpochEnd(TrainerCallback):
    """Knows whether the end of the current epoch has come."""

    def __init__(self) -> None:
        self.has_come = False

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.has_come = False

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.has_come = True
