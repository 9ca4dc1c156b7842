"""What a teacher's answers make of labels: the column `teacher` of training rows, and probabilities in its place.

A row of `teacher` is the share of the loss that follows the teacher, 1 for a text without a label, and its logits in
the order of the student's labels. Unlabelled rows stand behind the labelled ones, labelled as the teacher would.
"""

import numpy as np
from datasets import Dataset
from scipy.special import expit, softmax

from finetune.data.labels import label_matrix
from finetune.tasks import MULTI_LABEL, REGRESSION, Task

__all__ = ["TEACHER", "count_labelled_rows", "of_two_classes", "soften_labels", "weigh_classes", "without_teacher"]

TEACHER = "teacher"
NEGLIGIBLE = 1e-4  # a probability that no fit would notice


def soften_labels(train: Dataset, task: Task) -> np.ndarray | None:
    """Mix labels with a teacher's probabilities, or numbers with its numbers.

    Args:
        train: A training split.
        task: What is predicted.

    Returns:
        In [0, 1], `(rows, num_labels)`; numbers to predict, `(rows,)`. None without a teacher.
    """
    if TEACHER not in train.column_names:
        return None
    taught = np.asarray(train[TEACHER][:], dtype=np.float64)
    share, logits = taught[:, :1], taught[:, 1:]
    labels = label_matrix(train["label"], task)
    if task.problem_type == REGRESSION:
        return ((1 - share) * np.asarray(labels, dtype=np.float64)[:, None] + share * logits)[:, 0]
    if task.problem_type == MULTI_LABEL:
        return (1 - share) * labels + share * expit(logits)
    return (1 - share) * np.eye(len(task.label_names))[labels] + share * softmax(logits, axis=1)


def count_labelled_rows(train: Dataset) -> int:
    """Return how many rows of a training split have a label of their own; they are the first."""
    if TEACHER not in train.column_names:
        return len(train)
    return int((np.asarray(train[TEACHER][:])[:, 0] < 1).sum())


def without_teacher(rows: Dataset) -> Dataset:
    """Return rows to measure on, without the column `teacher`."""
    return rows.remove_columns(TEACHER) if TEACHER in rows.column_names else rows


def of_two_classes(probabilities: np.ndarray) -> np.ndarray:
    """Write the probabilities of a label, `(rows,)`, as those of its absence and presence, `(rows, 2)`."""
    return np.stack([1 - probabilities, probabilities], axis=1)


def weigh_classes(
    labels: np.ndarray, soft_labels: np.ndarray | None = None, class_weights: np.ndarray | None = None
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray | None]:
    """Write what is fitted as weighted labels, which scikit-learn's logistic regression takes: the loss is the same.

    Args:
        labels: Class numbers, `(rows,)`.
        soft_labels: Probabilities in their place, `(rows, num_labels)`.
        class_weights: Each class's factor, `(num_labels,)`.

    Returns:
        Numbers of rows, each once for every class that is not negligible, None for all rows as they are; the classes;
        and their weights, None for all the same.
    """
    rows, classes, weights = None, labels, None
    if soft_labels is not None:
        rows, classes = np.nonzero(soft_labels > NEGLIGIBLE)
        weights = soft_labels[rows, classes]
    if class_weights is not None:
        weights = class_weights[classes] * (1.0 if weights is None else weights)
    return rows, classes, weights
