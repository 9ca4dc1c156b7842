"""Logits and labels in, numbers out: scikit-learn and scipy, nothing downloaded, torch not imported.

`finetune.evaluate_metrics` wraps the same functions as `evaluate.Metric`; it stands apart because importing
`evaluate` takes seconds.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import log_softmax, softmax
from scipy.stats import binomtest
from sklearn.metrics import (
    accuracy_score,
    classification_report,
    f1_score,
    matthews_corrcoef,
    precision_score,
    recall_score,
    roc_auc_score,
)

__all__ = [
    "GREATER_IS_BETTER",
    "accuracy_interval",
    "compute_classification_report",
    "compute_log_loss",
    "compute_metrics",
    "compute_roc_auc",
]

# Every metric that `compute_metrics` returns, and so every value `--metric_for_best_model` may take.
GREATER_IS_BETTER = {
    "accuracy": True,
    "macro_f1": True,
    "precision": True,
    "recall": True,
    "mcc": True,
    "roc_auc": True,
    "loss": False,
}


def compute_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Compute every metric of a single-label task.

    Precision, recall and F1 are unweighted means over all classes ("macro"); a class that is never predicted has
    precision 0, one without examples recall 0. MCC is Matthews' correlation coefficient (Gorodkin 2004 for more than
    two classes). `loss` is the mean cross-entropy in nats, without label smoothing.

    Args:
        logits: Scores before the softmax, shape `(num_examples, num_labels)`.
        labels: Class numbers in `[0, num_labels)`, shape `(num_examples,)`.

    Returns:
        The names of `GREATER_IS_BETTER` with their values. `roc_auc` is NaN where a class has no example.

    Example:
        >>> compute_metrics(np.array([[2.0, 0.0], [0.0, 2.0]]), np.array([0, 1]))["accuracy"]
        1.0
    """
    predictions = logits.argmax(axis=-1)
    macro: Any = {"labels": range(logits.shape[-1]), "average": "macro", "zero_division": 0}
    return {
        "accuracy": float(accuracy_score(labels, predictions)),
        "macro_f1": float(f1_score(labels, predictions, **macro)),
        "precision": float(precision_score(labels, predictions, **macro)),
        "recall": float(recall_score(labels, predictions, **macro)),
        "mcc": float(matthews_corrcoef(labels, predictions)),
        "roc_auc": compute_roc_auc(logits, labels),
        "loss": compute_log_loss(logits, labels),
    }


def compute_roc_auc(logits: np.ndarray, labels: np.ndarray) -> float:
    """Compute the area under the ROC curve; for more than two classes the macro mean of one class against the rest.

    Args:
        logits: Shape `(num_examples, num_labels)`.
        labels: Shape `(num_examples,)`.

    Returns:
        A value in [0, 1], or NaN if some class has no example, where it is not defined.
    """
    num_labels = logits.shape[-1]
    if len(np.unique(labels)) < num_labels:
        return float("nan")
    if num_labels == 2:
        return float(roc_auc_score(labels, logits[:, 1] - logits[:, 0]))
    # The softmax must be taken in float64: scikit-learn checks that the rows sum to 1.
    probabilities = softmax(logits.astype(np.float64), axis=-1)
    return float(roc_auc_score(labels, probabilities, multi_class="ovr", average="macro"))


def compute_log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Compute the mean cross-entropy in nats of logits `(num_examples, num_labels)` against class numbers."""
    return float(-log_softmax(logits.astype(np.float64), axis=-1)[np.arange(len(labels)), labels].mean())


def accuracy_interval(accuracy: float, num_examples: int) -> tuple[float, float]:
    """Give the 95 % interval of an accuracy measured on `num_examples` examples (Wilson 1927).

    It holds the uncertainty from the choice of test examples alone, not that from the training seed.

    Example:
        >>> low, high = accuracy_interval(0.8, 1000)
        >>> round(low, 3), round(high, 3)
        (0.774, 0.824)
    """
    interval = binomtest(round(accuracy * num_examples), num_examples).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def compute_classification_report(logits: np.ndarray, labels: np.ndarray, label_names: Sequence[str]) -> str:
    """Write precision, recall, F1 and the number of examples of each class as scikit-learn's text table."""
    return classification_report(
        labels,
        logits.argmax(axis=-1),
        labels=range(len(label_names)),
        target_names=list(label_names),
        digits=3,
        zero_division=0,
    )
