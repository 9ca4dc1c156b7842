"""The trials of a run, one JSON object a line of `trials.jsonl`: what was tried, what came of it, what it took."""

import json
import math
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from finetune.errors import FinetuneError, failures_explained
from finetune.run.directory import TRIALS_FILE
from finetune.run.fields import Amount, Count, Figure, Part

__all__ = ["Trial", "Trials"]


class Trial(Part):
    """One training with certain settings, measured on validation rows."""

    number: Count = Field(description="from 0; the first has the settings of a run without a search")
    settings: dict[str, Any] = Field(description="what was tried, by setting")
    state: Literal["complete", "pruned", "failed"] = Field(
        description="`pruned`: given up on the way, since it was worse than half of those before; `failed`: the "
        "training ended with an error"
    )
    value: Figure | None = Field(description="the metric on validation rows; null of a trial that failed")
    values: list[Figure] = Field(description="the metric at each evaluation on the way, or in each fold")
    seconds: Amount = Field(description="wall time")
    cpu_seconds: Amount = Field(description="seconds that processors worked")
    message: str = Field(default="", description="why it failed; absent else")

    def find_value(self) -> float:
        """Return the metric; NaN of a trial that failed."""
        return math.nan if self.value is None else self.value


class Trials:
    """The trials of one run directory, kept as they come in.

    Args:
        directory: The run directory.
        what: What they depend on, by name, as JSON holds it; the first line of the file.

    Raises:
        FinetuneError: If the file is of other settings or data, or can't be read.
    """

    def __init__(self, directory: Path, what: dict[str, Any]):
        self.path = directory / TRIALS_FILE
        self.what = what
        self.all: list[Trial] = []
        if self.path.exists():
            self._read(json.loads(json.dumps(what)))

    def add(self, trial: Trial) -> None:
        """Keep a trial; the first makes the file."""
        entries = [trial.to_dict()] if self.all else [self.what, trial.to_dict()]
        with failures_explained(self.path), self.path.open("a" if self.all else "w", encoding="utf-8") as file:
            file.write("".join(json.dumps(entry) + "\n" for entry in entries))
        self.all.append(trial)

    @property
    def seconds(self) -> float:
        """Add up what the trials took."""
        return sum(trial.seconds for trial in self.all)

    def find_best(self, greater_is_better: bool) -> Trial | None:
        """Return the best of the trials that were completed, of equal ones the first; None if there is none."""
        sign = 1 if greater_is_better else -1
        complete = [trial for trial in self.all if trial.state == "complete"]
        return max(complete, key=lambda trial: (sign * trial.find_value(), -trial.number), default=None)

    def _read(self, what: dict[str, Any]) -> None:
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]  # the last may have been cut off
        if len(whole) < 2:  # in the first trial's
            return
        try:
            before, *rest = map(json.loads, whole)
            self.all = [Trial.model_validate(entry) for entry in rest]
        except (ValueError, ValidationError) as error:
            raise FinetuneError(
                f"Expected the trials of this run in {str(self.path)!r}, but they can't be read. Pass --restart to "
                "start over."
            ) from error
        if before != what:
            differing = ", ".join(sorted(name for name in {**before, **what} if before.get(name) != what.get(name)))
            raise FinetuneError(
                f"Expected what the trials in {str(self.path)!r} were made with, but these differ: {differing}. "
                "Restore them to go on, or pass --restart to start over."
            )
        if whole != lines:
            os.truncate(self.path, len("".join(whole).encode()))
