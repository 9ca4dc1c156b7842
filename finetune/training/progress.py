"""What a person sees while it works: a bar on a terminal, plain lines in a log file."""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from finetune.files import write_aside

__all__ = ["CostMeter", "HistoryWriter", "ProgressReport"]


class ProgressReport(TrainerCallback):
    """Report steps, loss, learning rate and the time left; after each evaluation, its metrics."""

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
            done = max(1, state.global_step - self.first_step)
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
    """Append what the `Trainer` logs to `history.jsonl`: one JSON object a line, with step and epoch.

    A run that resumes writes anew what was logged up to its checkpoint, and no more: later steps are taken again.
    """

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            with write_aside(self.path) as aside:
                aside.write_text("".join(_to_line(logged) for logged in state.log_history), encoding="utf-8")

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
                file.write(_to_line({**logs, "step": state.global_step}))


def _to_line(logged: dict[str, float]) -> str:
    known = {name: value if math.isfinite(value) else None for name, value in logged.items()}
    return json.dumps({"step": known.pop("step"), **known}) + "\n"


class CostMeter(TrainerCallback, ExportableState):
    """Count tokens and seconds of training over all processes that a run has had: checkpoints carry the counts.

    Attributes:
        train_tokens: Tokens trained on, over all processes, padding not counted.
        evaluation_seconds: Wall seconds of evaluations.
        train_seconds: Wall seconds from the beginning of training without its evaluations, up to the last step.
        first_step_seconds: Those of them in the first step of each process: with `torch_compile` the compilation.
    """

    def __init__(
        self,
        train_tokens: int = 0,
        evaluation_seconds: float = 0.0,
        train_seconds: float = 0.0,
        first_step_seconds: float = 0.0,
    ):
        self.train_tokens = train_tokens
        self.evaluation_seconds = evaluation_seconds
        self.train_seconds = train_seconds
        self.first_step_seconds = first_step_seconds

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        names = ("train_tokens", "evaluation_seconds", "train_seconds", "first_step_seconds")
        return {"args": {name: getattr(self, name) for name in names}, "attributes": {}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.tick = time.perf_counter()
        self.evaluated = self.evaluation_seconds
        self.first_step = state.global_step + 1

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        now = time.perf_counter()
        self.train_seconds += now - self.tick - (self.evaluation_seconds - self.evaluated)
        if state.global_step == self.first_step:
            self.first_step_seconds += now - self.tick
        self.tick, self.evaluated = now, self.evaluation_seconds
