"""transformers' `TrainingArguments`, from which a tracker hears of the other settings too."""

from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import TrainingArguments

__all__ = ["TrackedArguments", "track"]


@dataclass
class TrackedArguments(TrainingArguments):
    """The same fields; `to_dict`, which transformers gives to trackers, adds what `others` holds.

    Attributes:
        others: Settings by name, beside those of the `Trainer`.
    """

    others: ClassVar[dict[str, Any]] = {}

    def to_dict(self) -> dict[str, Any]:
        """Return all settings by name."""
        return {**self.others, **super().to_dict()}


def track(training: TrainingArguments) -> None:
    """Make `TrackedArguments` of settings that a script has built, and hands to its `Trainer` itself."""
    training.__class__ = TrackedArguments
