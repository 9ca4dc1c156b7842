"""One trial: a family fits a model with certain settings as it would in a run, and what comes of it is measured."""

import shutil
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from datasets import Dataset, DatasetDict
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune.accelerated.precision import DTYPES
from finetune.hardware import fastest_precision
from finetune.inference.evaluate import score
from finetune.lookup import family_of
from finetune.metrics import compute_metric
from finetune.run.directory import TRIAL_FOLDER
from finetune.run.run import Run
from finetune.run.training import build_stopping
from finetune.tasks import Task

__all__ = ["PrunedError", "fit_and_measure"]

# Takes the metric at an evaluation, and returns whether to go on.
Watcher = Callable[[float], bool]


class PrunedError(Exception):
    """A trial that is not worth its time."""


def fit_and_measure(
    run: Run, changes: Mapping[str, Any], splits: DatasetDict, task: Task, metric: str, watch: Watcher | None
) -> float:
    """Fit a model as a run would, and measure it on the validation rows.

    Args:
        run: That the trial is for; in its directory nothing stays of the trial.
        changes: Settings by name that are tried in place of the run's.
        splits: `train` and `validation`.
        task: What is predicted.
        metric: One of the task's.
        watch: Told the metric at each evaluation on the way; None if nobody cares.

    Raises:
        PrunedError: If `watch` said no.
        FinetuneError: If the training failed.
    """
    trial = _TrialRun(run, changes, splits["train"], metric, watch)
    family = family_of(trial.arguments.method.method)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the run itself repeats what concerns its settings
            model, tokenizer = family.fit(trial, splits, task)
        if trial.is_pruned:
            raise PrunedError
        if isinstance(model, torch.nn.Module):
            model = extract_model_from_parallel(model, keep_fp32_wrapper=False)
        text_config = None if tokenizer is None else trial.text_config
        parts = text_config, DTYPES[fastest_precision()], trial.arguments.run.accelerated
        scored = score(family.build_predictor(model, tokenizer, *parts), splits["validation"], "Measuring the trial")
    finally:
        shutil.rmtree(trial.directory, ignore_errors=True)
    assert scored.labels is not None
    return compute_metric(metric, scored.logits, scored.labels, task.problem_type)


class _TrialRun(Run):
    """What a family asks of a run, without a record or a directory of its own."""

    def __init__(self, run: Run, changes: Mapping[str, Any], train: Dataset, metric: str, watch: Watcher | None):
        arguments = run.arguments.copy()
        arguments.change(changes)
        arguments.training.output_dir = str(run.directory / TRIAL_FOLDER)
        arguments.training.report_to = []
        super().__init__(arguments)
        self.processes, self.interruption = run.processes, run.interruption
        self.record = run.record.model_copy(deep=True)
        self.is_paired = run.is_paired
        self.name_rows = lambda rows: [str(name) for name in train.select(rows)["id"]]
        self.metric, self.watch, self.is_pruned = metric, watch, False

    def record_tokens(self, tokenized: DatasetDict) -> None:
        pass

    def record_words(self, tokenizer: Any) -> None:
        pass

    def callbacks(self) -> list[TrainerCallback]:
        return [*build_stopping(self.arguments), *([_Pruning(self)] if self.watch else [])]

    def _write(self) -> None:
        pass


class _Pruning(TrainerCallback):
    """Ends a training that is not worth going on with."""

    def __init__(self, trial: _TrialRun):
        self.trial = trial

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert self.trial.watch is not None
        if not self.trial.watch(float(kwargs["metrics"][f"eval_{self.trial.metric}"])):
            self.trial.is_pruned = control.should_training_stop = True
