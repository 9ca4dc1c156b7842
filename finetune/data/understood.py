"""What was understood of the data, in a few lines, so that one glance shows a wrong reading."""

import numpy as np

from finetune.data.labels import Task, count_labels, label_matrix
from finetune.data.load import GivenSplits, Reading
from finetune.tasks import MULTI_LABEL, REGRESSION

__all__ = ["describe_understanding"]

SHOWN_CLASSES = 12
SHOWN_NAME = 40  # characters


def describe_understanding(given: GivenSplits) -> list[str]:
    """Describe the task with its classes and their counts, then where each split came from and how it was read."""
    lines = [f"task: {_describe_task(given)}"]
    for name, reading in given.readings.items():
        parts = [f"{len(given[name]):,} rows of {reading.where}", reading.columns, reading.layout]
        if reading.encoding is not None:
            parts.append(f"read as {reading.encoding}")
        parts += [f"without {what}" for what in reading.ignored]
        parts += _describe_names(reading)
        if "label" not in given[name].column_names:
            parts.append("labels withheld")
        lines.append(f"{name}: " + ", ".join(part for part in parts if part))
    return lines


def _describe_task(given: GivenSplits) -> str:
    task: Task = given.task
    labels = label_matrix(given["train"]["label"], task)
    if task.problem_type == REGRESSION:
        return f"a number, {labels.min():.6g} to {labels.max():.6g}"
    counts = count_labels(labels, task)
    order = range(len(counts)) if len(counts) <= SHOWN_CLASSES else np.argsort(-counts, kind="stable")[:SHOWN_CLASSES]
    shown = ", ".join(f"{_shorten(task.label_names[number])} {int(counts[number]):,}" for number in order)
    shown += ", …" if len(counts) > SHOWN_CLASSES else ""
    if task.problem_type != MULTI_LABEL:
        return f"one of {len(counts):,} classes: {shown}"
    none = int((labels.sum(axis=1) == 0).sum())
    return f"any of {len(counts):,} labels: {shown}" + (f"; {none:,} rows with none" if none else "")


def _shorten(name: str) -> str:
    line = " ".join(name.split())
    return line if len(line) <= SHOWN_NAME else f"{line[: SHOWN_NAME - 1]}…"


def _describe_names(reading: Reading) -> list[str]:
    parts = [f"{' and '.join(map(ascii, names))} taken for one label" for names in reading.twins[:5]]
    if reading.numbered:
        joined = ", ".join(f"{number} {name}" for number, name in list(reading.numbered.items())[:SHOWN_CLASSES])
        parts.append(f"numbers stand for train's class names: {joined}")
    return parts
