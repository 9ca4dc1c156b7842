"""What a person sees while it works: a bar on a terminal, plain lines in a log file."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from finetune.errors import failures_explained
from finetune.files import write_aside
from finetune.hardware import cpu_seconds

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
        if state.is_world_process_zero and not sys.stderr.isatty():
            self._say(f"training from step {state.global_step} to {state.max_steps}")

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
            with failures_explained(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(_to_line({**logs, "step": state.global_step}))


def _to_line(logged: dict[str, float]) -> str:
    known = {name: value if math.isfinite(value) else None for name, value in logged.items()}
    return json.dumps({"step": known.pop("step"), **known}) + "\n"


class CostMeter(TrainerCallback, ExportableState):
    """Count tokens and seconds of training over all processes that a run has had: checkpoints carry the counts.

    Attributes:
        train_tokens: Tokens trained on, over all processes, padding not counted.
        evaluation_seconds: Wall seconds of evaluations, and of all else that is done for the validation split.
        train_seconds: Wall seconds from the beginning of training without these, up to the last step.
        first_step_seconds: Those of them in the first step of each process: with `torch_compile` the compilation.
        evaluation_cpu_seconds: Seconds that processors worked on evaluations, in all threads of this process.
        train_cpu_seconds: The same for `train_seconds`.
    """

    def __init__(
        self,
        train_tokens: int = 0,
        evaluation_seconds: float = 0.0,
        train_seconds: float = 0.0,
        first_step_seconds: float = 0.0,
        evaluation_cpu_seconds: float = 0.0,
        train_cpu_seconds: float = 0.0,
    ):
        self.train_tokens = train_tokens
        self.evaluation_seconds = evaluation_seconds
        self.train_seconds = train_seconds
        self.first_step_seconds = first_step_seconds
        self.evaluation_cpu_seconds = evaluation_cpu_seconds
        self.train_cpu_seconds = train_cpu_seconds

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        names = ("train_tokens", "evaluation_seconds", "train_seconds", "first_step_seconds",
                 "evaluation_cpu_seconds", "train_cpu_seconds")  # fmt: skip
        return {"args": {name: getattr(self, name) for name in names}, "attributes": {}}

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Count what is done before the first step, and would else be done in each."""
        wall, cpu = time.perf_counter(), cpu_seconds()
        yield
        self.train_seconds += time.perf_counter() - wall
        self.train_cpu_seconds += cpu_seconds() - cpu

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Count an evaluation, which then is no part of the training around it."""
        wall, cpu = time.perf_counter(), cpu_seconds()
        try:
            yield
        finally:
            self.evaluation_seconds += time.perf_counter() - wall
            self.evaluation_cpu_seconds += cpu_seconds() - cpu

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._start_step()
        self.first_step = state.global_step + 1

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        seconds = time.perf_counter() - self.tick
        self.train_seconds += seconds - (self.evaluation_seconds - self.evaluated)
        self.train_cpu_seconds += cpu_seconds() - self.cpu_tick - (self.evaluation_cpu_seconds - self.cpu_evaluated)
        if state.global_step == self.first_step:
            self.first_step_seconds += seconds
        self._start_step()

    def _start_step(self) -> None:
        self.tick, self.evaluated = time.perf_counter(), self.evaluation_seconds
        self.cpu_tick, self.cpu_evaluated = cpu_seconds(), self.evaluation_cpu_seconds
