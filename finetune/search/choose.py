"""Hyperparameter search before a run: the best settings by validation rows, with which it is then trained."""

import statistics
import time
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from datasets import DatasetDict

from finetune.data.soft_labels import count_labelled_rows, without_teacher
from finetune.errors import FinetuneError
from finetune.escape import say
from finetune.hardware import cpu_seconds
from finetune.metrics import METRICS, SINGLE_LABEL
from finetune.run.fields import Search, Settings
from finetune.run.resume import flatten
from finetune.run.run import Run
from finetune.search.space import build_space
from finetune.search.trial_run import PrunedError, fit_and_measure
from finetune.search.trials import Trial, Trials
from finetune.settings.arguments import FEWEST_TO_CHOOSE
from finetune.settings.describe import describe_settings
from finetune.settings.duration import read_duration
from finetune.tasks import Task

__all__ = ["choose_settings"]

MOST_FOLDS = 5
NUM_RANDOM = 5  # trials before those that came before are learnt from, and before any is given up on the way


def choose_settings(run: Run, splits: DatasetDict, task: Task) -> None:
    """Try settings as `--trials` and `--budget` say, and change those of the run to the best.

    The first trial has the settings of a run without a search, so what is chosen is never worse on the rows that judge:
    those of the validation split, or, where that has fewer than 100, those of the training split in folds. The test
    split is not looked at. Trials are kept in `trials.jsonl`; a run that is started again goes on after the last, and
    what it tries does not depend on where it was cut off. The others are proposed by a tree of Parzen estimators
    (Bergstra et al. 2011) and given up on the way when they are worse than the median (Golovin et al. 2017), by Optuna.

    Args:
        run: Its data has been recorded. Left as it is if no search is asked for, or its method has nothing to try.
        splits: Its splits.
        task: What is predicted.

    Raises:
        FinetuneError: If training fails with the settings of a run without a search.
    """
    arguments = run.arguments
    if "trials" in arguments.unused() or not (arguments.run.trials or arguments.run.budget):
        return
    space = build_space(arguments, task.problem_type)
    metric = (arguments.training.metric_for_best_model or "loss").removeprefix("eval_")
    greater_is_better = METRICS[task.problem_type][metric]
    folds = list(_divide(splits, task))
    by_folds = len(folds) if len(folds) > 1 else None
    trials = Trials(run.directory, _describe(run))
    present = {name: arguments.values()[name] for name in space}
    study = _Study(space, present, trials, arguments.training.seed, greater_is_better)
    where = f"{by_folds} folds of the training split" if by_folds else f"{len(splits['validation']):,} validation rows"
    say(f"search: {', '.join(f'--{name}' for name in space)}, judged by {metric} on {where}")
    while not _is_over(trials, arguments.run.trials, arguments.run.budget):
        trial = _try(run, study, folds, task, metric)
        trials.add(trial)
        say(_describe_trial(trial, metric))
    best = trials.find_best(greater_is_better)
    assert best is not None, "the first trial was completed"
    chosen = {name: type(present[name])(value) for name, value in best.settings.items()}
    arguments.change(chosen)
    states = [trial.state for trial in trials.all]
    run.record.search = Search(
        trials=len(states),
        pruned=states.count("pruned"),
        failed=states.count("failed"),
        seconds=trials.seconds,
        cpu_seconds=sum(trial.cpu_seconds for trial in trials.all),
        metric=metric,
        folds=by_folds,
        default=trials.all[0].find_value(),
        best=best.find_value(),
        chosen=chosen,
    )
    run.record.arguments = Settings(**arguments.to_dict())
    what = "the settings of a run without a search" if best.number == 0 else describe_settings(chosen)
    say(f"search: best of {len(states)} trials is number {best.number + 1}: {what}")


class _Study:
    """Optuna's view of the trials; what it proposes next depends on them and the seed alone."""

    def __init__(
        self, space: dict[str, Any], present: dict[str, Any], trials: Trials, seed: int, greater_is_better: bool
    ):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.optuna, self.space, self.present, self.seed = optuna, space, present, seed
        pruner = optuna.pruners.MedianPruner(n_startup_trials=NUM_RANDOM)
        direction = optuna.study.StudyDirection.MAXIMIZE if greater_is_better else optuna.study.StudyDirection.MINIMIZE
        self.study = optuna.create_study(direction=direction, pruner=pruner)
        for trial in trials.all:
            state = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}[trial.state]
            self.study.add_trial(
                optuna.trial.create_trial(
                    state=optuna.trial.TrialState[state],
                    params=trial.settings,
                    distributions=space,
                    value=trial.value,
                    intermediate_values=dict(enumerate(trial.values)),
                )
            )
        if not trials.all:
            self.study.enqueue_trial(present)

    def ask(self) -> Any:
        """Propose what to try next."""
        number = len(self.study.trials)
        self.study.sampler = self.optuna.samplers.TPESampler(
            seed=int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0]), n_startup_trials=NUM_RANDOM
        )
        return self.study.ask(self.space)

    def tell(self, asked: Any, value: float | None, state: str) -> None:
        """Say what came of it."""
        known = self.optuna.trial.TrialState
        self.study.tell(asked, value, {"complete": known.COMPLETE, "pruned": known.PRUNED, "failed": known.FAIL}[state])


def _try(run: Run, study: _Study, folds: list[DatasetDict], task: Task, metric: str) -> Trial:
    """Make one trial, on each fold in turn."""
    asked = study.ask()
    changes = {name: type(study.present[name])(value) for name, value in asked.params.items()}
    on_the_way: list[float] = []

    def watch(value: float) -> bool:
        asked.report(value, len(on_the_way))
        on_the_way.append(value)
        return asked.number == 0 or not asked.should_prune()

    begin, cpu = time.perf_counter(), cpu_seconds()
    value, message = None, ""
    state: Literal["complete", "pruned", "failed"] = "complete"
    try:
        if len(folds) == 1:
            value = fit_and_measure(run, changes, folds[0], task, metric, watch)
        else:
            found: list[float] = []
            for fold in folds:
                found.append(fit_and_measure(run, changes, fold, task, metric, None))
                if not watch(statistics.fmean(found)) and len(found) < len(folds):
                    raise PrunedError
            value = statistics.fmean(found)
        if not np.isfinite(value):
            raise FinetuneError(
                f"Expected a number for {metric} on the rows that judge, but it is not defined there. Pass another "
                "--metric_for_best_model, or more validation rows."
            )
    except PrunedError:
        state, value = "pruned", on_the_way[-1]
    except FinetuneError as error:
        if asked.number == 0:
            raise
        value, state, message = None, "failed", str(error)
    study.tell(asked, value if state == "complete" else None, state)
    trial = Trial(
        number=asked.number,
        settings=asked.params,
        state=state,
        value=value,
        values=on_the_way,
        seconds=time.perf_counter() - begin,
        cpu_seconds=cpu_seconds() - cpu,
    )
    if message:
        trial.message = message
    return trial


def _divide(splits: DatasetDict, task: Task) -> Iterator[DatasetDict]:
    """Give the training rows and those that judge: of the validation split, or of folds where it is small."""
    train, validation = splits["train"], splits["validation"]
    num_labelled = count_labelled_rows(train)  # a teacher's answers judge nothing
    if len(validation) >= FEWEST_TO_CHOOSE:
        yield DatasetDict(train=train, validation=validation)
        return
    from sklearn.model_selection import KFold, StratifiedKFold

    rows, labels = np.arange(num_labelled), None
    kind: Any = KFold
    if task.problem_type == SINGLE_LABEL:
        labels = np.asarray(train["label"][:num_labelled])
        rows = rows[np.bincount(labels)[labels] > 1]  # a class's only row is trained on
        labels, kind = labels[rows], StratifiedKFold
        most = int(np.bincount(labels).max()) if len(labels) else 0
    else:
        most = len(rows)
    if most < 2:
        raise FinetuneError(
            f"Expected {FEWEST_TO_CHOOSE} validation rows or training rows to divide into folds, but got "
            f"{len(validation)} and {len(train)}. Leave out --trials and --budget, or label more."
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        divided = list(kind(min(MOST_FOLDS, most), shuffle=True, random_state=0).split(rows, labels))
    for _, judging in divided:
        left_out = set(rows[judging].tolist())
        rest = [row for row in range(len(train)) if row not in left_out]
        yield DatasetDict(train=train.select(rest), validation=without_teacher(train.select(sorted(left_out))))


def _is_over(trials: Trials, number: int | None, budget: str | None) -> bool:
    """Return whether there are enough trials, or the time does not suffice for another one."""
    if not trials.all:
        return False
    if number is not None and len(trials.all) >= number:
        return True
    typical = statistics.median(trial.seconds for trial in trials.all)
    return budget is not None and trials.seconds + typical > read_duration(budget)


def _describe(run: Run) -> dict[str, Any]:
    """Return what trials depend on: settings, rows, the pretrained model; not how many there will be."""
    assert run.record.data is not None
    settings = flatten(run.record.arguments)
    for name in ("trials", "budget"):
        settings.pop(name, None)
    rows = {f"the split '{name}'": split.sha256 for name, split in run.record.data.splits if name != "test"}
    vectors = {} if run.record.word_vectors is None else {"the word vectors": run.record.word_vectors.sha256}
    return {**settings, **rows, "the model": run.record.pretrained, **vectors}


def _describe_trial(trial: Trial, metric: str) -> str:
    found = {"complete": f"{metric} {trial.value:.4f}" if trial.value is not None else "", "failed": trial.message}
    said = found.get(trial.state, f"given up at {metric} {trial.value:.4f}" if trial.value is not None else "given up")
    return f"trial {trial.number + 1}: {describe_settings(trial.settings)}: {said} ({trial.seconds:.0f} s)"
