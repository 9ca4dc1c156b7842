"""Logits and labels in, numbers out: scikit-learn and scipy, nothing downloaded, torch not imported.

`finetune.evaluate_metrics` has each of them as an `evaluate.Metric`; it stands apart because importing `evaluate` takes
seconds.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.special import expit, log_softmax, softmax
from scipy.stats import binomtest, pearsonr, spearmanr
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    classification_report,
    f1_score,
    matthews_corrcoef,
    mean_absolute_error,
    mean_squared_error,
    precision_recall_fscore_support,
    precision_score,
    r2_score,
    recall_score,
    roc_auc_score,
)

from finetune.escape import to_terminal
from finetune.tasks import MULTI_LABEL, PROBLEM_TYPES, REGRESSION, SINGLE_LABEL

__all__ = [
    "DEFAULT_METRIC",
    "GREATER_IS_BETTER",
    "METRICS",
    "MULTI_LABEL",
    "PROBLEM_TYPES",
    "REGRESSION",
    "SINGLE_LABEL",
    "accuracy_interval",
    "compute_classification_report",
    "compute_log_loss",
    "compute_metric",
    "compute_metrics",
    "compute_per_class",
    "compute_roc_auc",
    "mean_interval",
    "predict_labels",
    "present_labels",
    "tune_thresholds",
]

# Of predictions as `predict_labels` gives them, or of logits `(num_examples, num_labels)`; and of labels.
MetricFunction = Callable[[np.ndarray, np.ndarray], float]

# Every metric that `compute_metrics` returns, and so every value `--metric_for_best_model` may take; whether more is
# better.
METRICS: dict[str, dict[str, bool]] = {
    SINGLE_LABEL: {
        "accuracy": True,
        "balanced_accuracy": True,
        "macro_f1": True,
        "precision": True,
        "recall": True,
        "mcc": True,
        "roc_auc": True,
        "loss": False,
    },
    MULTI_LABEL: {
        "micro_f1": True,
        "macro_f1": True,
        "precision": True,
        "recall": True,
        "accuracy": True,
        "roc_auc": True,
        "average_precision": True,
        "loss": False,
    },
    REGRESSION: {"mse": False, "mae": False, "r2": True, "pearson": True, "spearman": True, "loss": False},
}
GREATER_IS_BETTER = {name: greater for metrics in METRICS.values() for name, greater in metrics.items()}
# Examples with a label, and without it, from which on its threshold is chosen. With ten, of a label in a hundred, the
# chosen threshold gave an F1 from 2 points below to 21 above that of one half in simulations; with two, from 8 below.
FEWEST_TO_TUNE = 10
DEFAULT_METRIC = {SINGLE_LABEL: "accuracy", MULTI_LABEL: "micro_f1", REGRESSION: "mse"}


def compute_metrics(
    logits: np.ndarray,
    labels: np.ndarray,
    problem_type: str = SINGLE_LABEL,
    predicted: np.ndarray | None = None,
) -> dict[str, float]:
    """Compute every metric of a task.

    Precision, recall and F1 are unweighted means over the labels that these examples have ("macro") unless their name
    says "micro"; a label that is never predicted has precision 0. A label without examples is in no mean: nothing of it
    was measured, though predicting it is a mistake. Balanced accuracy is the mean recall, so the same as `recall`. MCC
    is Matthews' correlation coefficient (Gorodkin 2004 for more than two classes). With several labels a text,
    `accuracy` is the share of texts whose labels are all right. `loss` is the mean cross-entropy in nats, without label
    smoothing or weights; for regression the mean squared error.

    Args:
        logits: Scores before the softmax or sigmoid, or predicted numbers, shape `(num_examples, num_labels)`.
        labels: Class numbers in `[0, num_labels)` or numbers to predict, shape `(num_examples,)`; for several labels 0
            and 1, shape `(num_examples, num_labels)`.
        problem_type: One of `PROBLEM_TYPES`.
        predicted: What `predict_labels` makes of the logits; by one half, where there are several labels, if None.

    Returns:
        The names of `METRICS[problem_type]` with their values; NaN where one is not defined on these examples.

    Example:
        >>> compute_metrics(np.array([[2.0, 0.0], [0.0, 2.0]]), np.array([0, 1]))["accuracy"]
        1.0
    """
    if predicted is None:
        predicted = predict_labels(logits, problem_type)
    decided, scored = DECISION_METRICS[problem_type], SCORE_METRICS[problem_type]
    return {name: function(predicted, labels) for name, function in decided.items()} | {
        name: function(logits, labels) for name, function in scored.items()
    }


def compute_metric(name: str, logits: np.ndarray, labels: np.ndarray, problem_type: str = SINGLE_LABEL) -> float:
    """Compute one of the metrics of a task; see `compute_metrics`."""
    if name in DECISION_METRICS[problem_type]:
        return DECISION_METRICS[problem_type][name](predict_labels(logits, problem_type), labels)
    return SCORE_METRICS[problem_type][name](logits, labels)


def _of_decisions(function: Callable[..., Any], **kwargs: Any) -> MetricFunction:
    """Make a function of predictions and labels from one of scikit-learn's, which takes the labels first."""

    def compute(predicted: np.ndarray, labels: np.ndarray) -> float:
        return float(function(labels, predicted, **kwargs))

    return compute


def _macro(function: Callable[..., Any]) -> MetricFunction:
    """Likewise a mean over the labels that have examples; NaN where none has."""

    def compute(predicted: np.ndarray, labels: np.ndarray) -> float:
        present = present_labels(labels)
        if len(present) == 0:
            return float("nan")
        return float(function(labels, predicted, labels=present, average="macro", zero_division=0))

    return compute


def _compute_balanced_accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of predicted classes without examples
        return float(balanced_accuracy_score(labels, predicted))


def _of_label_scores(function: Callable[..., Any]) -> MetricFunction:
    """Make a function of logits from one of scikit-learn's of scores; NaN where a label has every example or none."""

    def compute(logits: np.ndarray, labels: np.ndarray) -> float:
        varying = (labels.min(axis=0) != labels.max(axis=0)).all()
        return float(function(labels, logits, average="macro")) if varying else float("nan")

    return compute


def _compute_binary_log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(np.logaddexp(0, logits.astype(np.float64)) - labels * logits))


def _of_numbers(function: Callable[[np.ndarray, np.ndarray], Any], needs: str = "") -> MetricFunction:
    """Make a function of predictions `(num_examples, 1)` from one of true and predicted numbers.

    Args:
        function: Of the true numbers and the predicted ones, in float64.
        needs: Without which the metric is NaN: "rows", at least two; "variance" of both beside.
    """

    def compute(logits: np.ndarray, labels: np.ndarray) -> float:
        predictions, truth = logits[:, 0].astype(np.float64), labels.astype(np.float64)
        is_constant = needs == "variance" and not (np.ptp(predictions) > 0 and np.ptp(truth) > 0)
        if needs and (len(truth) < 2 or is_constant):
            return float("nan")
        return float(function(truth, predictions))

    return compute


def present_labels(labels: np.ndarray) -> np.ndarray:
    """Return the numbers of the labels that have examples, in their order.

    Args:
        labels: Class numbers, `(num_examples,)`; for several labels 0 and 1, `(num_examples, num_labels)`.
    """
    return np.flatnonzero(labels.any(axis=0)) if labels.ndim == 2 else np.unique(labels)


def predict_labels(logits: np.ndarray, problem_type: str, thresholds: Sequence[float] | None = None) -> np.ndarray:
    """Decide: the most probable class, or every label that is probable enough.

    Args:
        logits: `(num_examples, num_labels)`.
        problem_type: One of `PROBLEM_TYPES`.
        thresholds: Of several labels a text the probability from which on each is predicted; one half if None.

    Returns:
        Class numbers, `(num_examples,)`; of several labels 0 and 1, `(num_examples, num_labels)`.
    """
    if problem_type != MULTI_LABEL:
        return logits.argmax(axis=-1)
    return (expit(logits) >= (0.5 if thresholds is None else np.asarray(thresholds))).astype(np.int64)


def tune_thresholds(logits: np.ndarray, labels: np.ndarray) -> list[float]:
    """Choose for each label the probability from which on it is predicted, so that its F1 is greatest.

    Halfway between the two probabilities that it parts (Lipton et al. 2014: the best threshold is half the best F1, so
    rarely one half); of equally good ones the nearest to one half. A label that fewer than `FEWEST_TO_TUNE` examples
    have, or all but so few, keeps one half: a cut between one or two examples says little of any other.

    Args:
        logits: Of validation examples, `(num_examples, num_labels)`.
        labels: 0 and 1, `(num_examples, num_labels)`.

    Returns:
        Thresholds in (0, 1), one a label.

    Example:
        >>> logits = np.repeat([[-3.0], [-2.0], [-1.0]], 10, axis=0)
        >>> tune_thresholds(logits, np.repeat([[0], [1], [1]], 10, axis=0))[0] < 0.2
        True
    """
    thresholds = []
    for scores, truth in zip(expit(logits.astype(np.float64)).T, labels.T, strict=True):
        if min(truth.sum(), len(truth) - truth.sum()) < FEWEST_TO_TUNE:
            thresholds.append(0.5)
            continue
        order = np.argsort(-scores, kind="stable")
        scores, hits = scores[order], np.cumsum(truth[order])
        f1 = 2 * hits / (np.arange(1, len(hits) + 1) + hits[-1])
        lower = np.append(scores[1:], 0.0)
        cuts = (scores + lower) / 2
        f1 = np.where(scores > lower, f1, -1.0)  # equal probabilities can't be parted
        best = np.flatnonzero(f1 == f1.max())
        thresholds.append(float(cuts[best[np.abs(cuts[best] - 0.5).argmin()]]))
    return thresholds


def compute_per_class(
    predicted: np.ndarray, labels: np.ndarray, label_names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Compute precision, recall, F1 and the number of examples of each class; 0 where one has no examples.

    Args:
        predicted: As `predict_labels` gives it.
        labels: Likewise the true ones.
        label_names: Names of the labels in the order of their numbers.
    """
    table = precision_recall_fscore_support(labels, predicted, labels=range(len(label_names)), zero_division=0)
    names = ("precision", "recall", "f1", "num_examples")
    return {
        label: {
            name: float(value) if name != "num_examples" else int(value) for name, value in zip(names, row, strict=True)
        }
        for label, row in zip(label_names, zip(*table, strict=True), strict=True)
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


# Each metric of `METRICS`: those that go by what is predicted, and those that go by logits.
DECISION_METRICS: dict[str, dict[str, MetricFunction]] = {
    SINGLE_LABEL: {
        "accuracy": _of_decisions(accuracy_score),
        "balanced_accuracy": _compute_balanced_accuracy,
        "macro_f1": _macro(f1_score),
        "precision": _macro(precision_score),
        "recall": _macro(recall_score),
        "mcc": _of_decisions(matthews_corrcoef),
    },
    MULTI_LABEL: {
        "micro_f1": _of_decisions(f1_score, average="micro", zero_division=0),
        "macro_f1": _macro(f1_score),
        "precision": _macro(precision_score),
        "recall": _macro(recall_score),
        "accuracy": _of_decisions(accuracy_score),
    },
    REGRESSION: {},
}
SCORE_METRICS: dict[str, dict[str, MetricFunction]] = {
    SINGLE_LABEL: {"roc_auc": compute_roc_auc, "loss": compute_log_loss},
    MULTI_LABEL: {
        "roc_auc": _of_label_scores(roc_auc_score),
        "average_precision": _of_label_scores(average_precision_score),
        "loss": _compute_binary_log_loss,
    },
    REGRESSION: {
        "mse": _of_numbers(mean_squared_error),
        "mae": _of_numbers(mean_absolute_error),
        "r2": _of_numbers(r2_score, needs="rows"),
        "pearson": _of_numbers(lambda labels, predictions: pearsonr(labels, predictions).statistic, needs="variance"),
        "spearman": _of_numbers(lambda labels, predictions: spearmanr(labels, predictions).statistic, needs="variance"),
        "loss": _of_numbers(mean_squared_error),
    },
}


def accuracy_interval(accuracy: float, num_examples: int) -> tuple[float, float]:
    """Return the 95 % interval of an accuracy measured on `num_examples` examples (Wilson 1927).

    It holds the uncertainty from the choice of test examples alone, not that from the training seed.

    Example:
        >>> low, high = accuracy_interval(0.8, 1000)
        >>> round(low, 3), round(high, 3)
        (0.774, 0.824)
    """
    interval = binomtest(round(accuracy * num_examples), num_examples).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of a mean over examples, such as an absolute error, by the normal distribution."""
    half = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return float(values.mean()) - half, float(values.mean()) + half


def compute_classification_report(predicted: np.ndarray, labels: np.ndarray, label_names: Sequence[str]) -> str:
    """Write precision, recall, F1 and the number of examples of each class as scikit-learn's text table.

    Classes without examples are named below it: they are in no mean. For the arguments see `compute_per_class`.
    """
    present = present_labels(labels)
    table: str = classification_report(
        labels,
        predicted,
        labels=present,
        target_names=[to_terminal(label_names[number]) for number in present],
        digits=3,
        zero_division=0,
    )
    absent = [name for number, name in enumerate(label_names) if number not in set(present.tolist())]
    return table + (f"\nwithout examples, so in no mean: {', '.join(map(to_terminal, absent))}\n" if absent else "")
