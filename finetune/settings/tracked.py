"""transformers' `TrainingArguments`, from which a tracker hears of the other settings too."""

from dataclasses import dataclass
from typing import Any

from transformers import TrainingArguments

__all__ = ["TrackedArguments"]


@dataclass
class TrackedArguments(TrainingArguments):
    """The same fields; `to_dict`, which transformers gives to trackers, adds what `others` holds.

    Attributes:
        others: Settings by name, beside those of the `Trainer`.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.others: dict[str, Any] = {}

    def to_dict(self) -> dict[str, Any]:
        """Return all settings by name."""
        return {**self.others, **super().to_dict()}
