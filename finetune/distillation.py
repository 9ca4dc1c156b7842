"""Let a model learn from the answers of another one, beside the labels, and on texts that have none.

Hinton et al. 2015, Distilling the Knowledge in a Neural Network; on texts without labels Tang et al. 2019.
"""

import time
import warnings
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, DatasetDict

from finetune.data.soft_labels import TEACHER
from finetune.errors import FinetuneError
from finetune.escape import say
from finetune.hardware import cpu_seconds
from finetune.inference.load import find_model_folder
from finetune.inference.predict import load_predictor
from finetune.models.answers import TextClassifier
from finetune.models.load import hash_folder
from finetune.progress_bar import progress_bar
from finetune.run.fields import Teacher
from finetune.run.record import CompleteRecord, has_record
from finetune.run.run import Run
from finetune.tasks import MULTI_LABEL, REGRESSION, Task

__all__ = ["ask_teacher"]


def ask_teacher(run: Run, splits: DatasetDict, task: Task, unlabeled: Dataset | None) -> DatasetDict:
    """Let the teacher answer every training text and every unlabelled one, and note which teacher that was.

    Args:
        run: Its settings say who the teacher is, and its share of the loss.
        splits: `train`, `validation` and `test`; the last two stay as they are, and are not shown to it.
        task: What is predicted.
        unlabeled: As `load_unlabeled` gives them.

    Returns:
        The splits, `train` with the column `teacher` (see `finetune.data.soft_labels`) and the unlabelled texts behind
        its own, labelled as the teacher would; as they were if there is no teacher.

    Raises:
        FinetuneError: If the teacher can't be loaded, or answers another question.
    """
    method = run.arguments.method
    if method.teacher is None or "teacher" in run.arguments.unused():
        return splits
    path = find_model_folder(method.teacher)
    teacher = load_predictor(path, accelerated=run.arguments.run.accelerated)
    columns = _match_labels(teacher, task, method.teacher)
    record = CompleteRecord.read(Path(method.teacher)) if has_record(Path(method.teacher)) else None
    _warn_of_seen_rows(run, record, method.teacher)
    wall, cpu = time.perf_counter(), cpu_seconds()
    logits = _answer(teacher, splits["train"], method.teacher)[:, columns]
    taught = [_teach(splits["train"], None, method.distillation_alpha, logits)]
    if unlabeled is not None:
        logits = _answer(teacher, unlabeled, method.teacher)[:, columns]
        taught.append(_teach(unlabeled, _label(logits, task), 1.0, logits))
    run.record.teacher = Teacher(
        name=method.teacher,
        method=None if record is None else record.method,
        run_id=None if record is None else record.id,
        sha256=run.processes.gather(hash_folder(path))[0],
        seconds=time.perf_counter() - wall,
        cpu_seconds=cpu_seconds() - cpu,
    )
    features = taught[0].features
    shared = [part.select_columns(list(features)).cast(features) for part in taught]
    train = datasets.concatenate_datasets(shared)
    run.name_rows = lambda rows: [str(name) for name in train.select(rows)["id"]]
    more = "" if unlabeled is None else f" and {len(unlabeled):,} without labels"
    say(f"teacher: {method.teacher} answered {len(splits['train']):,} training texts{more}")
    return DatasetDict({**splits, "train": train})


def _match_labels(teacher: TextClassifier, task: Task, name: str) -> list[int]:
    """Return which of the teacher's logits stands for each label of the task."""
    own = teacher.task
    if own.problem_type != task.problem_type:
        raise FinetuneError(
            f"Expected a teacher for {task.problem_type}, but {name!r} is one for {own.problem_type}. Pass one "
            "that has learnt such labels."
        )
    if task.problem_type == REGRESSION:
        return [0]
    if set(own.label_names) != set(task.label_names):
        raise FinetuneError(
            f"Expected a teacher with the labels {task.label_names}, but {name!r} has {own.label_names}. Pass a model "
            "that was trained on these labels."
        )
    return [own.label_names.index(label) for label in task.label_names]


def _warn_of_seen_rows(run: Run, record: CompleteRecord | None, name: str) -> None:
    """Warn where the teacher may have been trained on rows that this run measures by."""
    data = run.record.data
    assert data is not None
    own = data.splits.test.sha256
    if record is None or record.data.splits.test.sha256 != own:
        why = "says nothing of its test split" if record is None else "kept another test split aside"
        warnings.warn(
            f"the teacher {name!r} {why}: if it was trained on test texts of this run, their figures are too good",
            stacklevel=2,
        )


def _answer(teacher: TextClassifier, rows: Dataset, name: str) -> np.ndarray:
    texts = [text or "" for text in rows["text"]]
    pairs = [text or "" for text in rows["text_pair"]] if "text_pair" in rows.column_names else None
    with progress_bar(len(texts), "Asking the teacher") as advance:
        logits, _ = teacher.compute_logits(texts, pairs, advance)
    if not np.isfinite(logits).all():
        raise FinetuneError(f"Expected numbers from the teacher {name!r}, but it gave some that are none.")
    return logits


def _label(logits: np.ndarray, task: Task) -> list[Any]:
    """Label as the teacher would."""
    if task.problem_type == REGRESSION:
        return logits[:, 0].tolist()
    if task.problem_type == MULTI_LABEL:
        return [np.flatnonzero(row > 0).tolist() for row in logits]
    return logits.argmax(axis=1).tolist()


def _teach(rows: Dataset, labels: list[Any] | None, share: float, logits: np.ndarray) -> Dataset:
    """Add the teacher's share and its logits to rows, and labels to those that have none."""
    columns: dict[str, Any] = {} if labels is None else {"label": labels}
    columns[TEACHER] = np.concatenate([np.full((len(rows), 1), share), logits], axis=1).astype(np.float32)
    return datasets.concatenate_datasets([rows, Dataset.from_dict(columns)], axis=1)
