"""What a person sees while it works: a bar on a terminal, plain lines in a log file."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["HistoryWriter", "ProgressReport", "progress_bar"]


@contextlib.contextmanager
def progress_bar(total: int, description: str) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal, nothing elsewhere; gives the function that advances it."""
    with tqdm(total=total, desc=description, unit=" texts", leave=False, disable=not sys.stderr.isatty()) as bar:

        def advance(count: int) -> None:
            bar.update(count)

        yield advance


class ProgressReport(TrainerCallback):
    """Report steps, loss, speed and the time left; after each evaluation, its metrics."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.started = time.perf_counter()
        self.first_step = state.global_step
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc="Training",
            unit=" steps",
            disable=not (state.is_world_process_zero and sys.stderr.isatty()),
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.bar.update(1)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        if "loss" in logs:
            done = state.global_step - self.first_step
            left = (time.perf_counter() - self.started) / done * (state.max_steps - state.global_step)
            self._say(
                f"step {state.global_step}/{state.max_steps}  epoch {state.epoch:.2f}  loss {logs['loss']:.4f}  "
                f"learning rate {logs['learning_rate']:.2e}  {left:.0f} s left",
            )
        elif "eval_loss" in logs:
            shown = "  ".join(
                f"{name.removeprefix('eval_')} {logs[name]:.4f}"
                for name in ("eval_accuracy", "eval_macro_f1", "eval_loss")
                if name in logs
            )
            self._say(f"validation after {state.epoch:.2f} epochs: {shown}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.bar.close()

    def _say(self, line: str) -> None:
        tqdm.write(line, file=sys.stderr)


class HistoryWriter(TrainerCallback):
    """Append what the `Trainer` logs to `history.jsonl`: one JSON object a line, with step and epoch."""

    def __init__(self, path: Path):
        self.path = path

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and logs:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
