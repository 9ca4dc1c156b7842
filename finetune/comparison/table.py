"""The table: for each group of runs its quality on the test split with intervals, and what it costs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetune.catalogue import FLOOR
from finetune.comparison.costs import COSTS
from finetune.comparison.groups import Group
from finetune.comparison.runs import StoredRun
from finetune.comparison.statistics import INFLUENCE_METRICS, Interval, find_support, mean_interval, metric_influence
from finetune.metrics import GREATER_IS_BETTER, MULTI_LABEL, REGRESSION, SINGLE_LABEL
from finetune.settings.describe import describe_settings

__all__ = [
    "BETTER_IF_GREATER",
    "METRIC_MEANINGS",
    "METRIC_NAMES",
    "QUALITY_METRICS",
    "TABLE_METRICS",
    "Row",
    "build_floor_row",
    "build_rows",
    "compute_scores",
    "format_interval",
    "format_metric",
]

# Metrics that are a mean over test examples, or as good as one, so that they have intervals and can be tested.
QUALITY_METRICS = {
    **INFLUENCE_METRICS,
    SINGLE_LABEL: (*INFLUENCE_METRICS[SINGLE_LABEL], "cost_per_text"),
    REGRESSION: ("mae", "mse"),
}
BETTER_IF_GREATER = {**GREATER_IS_BETTER, "cost_per_text": False}
# The columns of the table, the first by default that of the verdict.
TABLE_METRICS = {
    SINGLE_LABEL: ("accuracy", "macro_f1", "mcc"),
    MULTI_LABEL: ("micro_f1", "macro_f1", "accuracy"),
    REGRESSION: ("mae", "mse", "r2", "spearman"),
}
METRIC_NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "micro_f1": "micro-F1",
    "mcc": "MCC",
    "cost_per_text": "cost per text",
    "mae": "mean absolute error",
    "mse": "mean squared error",
    "r2": "R²",
    "spearman": "Spearman",
}
# For readers who meet the name for the first time.
METRIC_MEANINGS = {
    "accuracy": "the share of the test texts whose answer is right; of several labels a text all of them have to be",
    "balanced_accuracy": "the share of a class that is found, averaged over classes: rare ones count as much as others",
    "macro_f1": "F1, the harmonic mean of precision and recall, averaged over classes: rare ones count as much",
    "micro_f1": "F1, the harmonic mean of precision and recall, over all labels of all texts: frequent ones count most",
    "mcc": "Matthews correlation of answers and labels: 1 where all are right, 0 for answers that don't depend on the "
    "text, also where one class is much more frequent",
    "cost_per_text": "the mean cost of an answer by the cost matrix",
    "mae": "how far predicted numbers are off, on average",
    "mse": "the mean of the squared errors: large errors count most",
    "r2": "the share of the variance that is explained: 0 for always predicting the mean",
    "spearman": "correlation of the ranks: 1 where the order is right",
}


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: Of the group.
        settings: Of the group in words, if its name has none of them.
        seeds: Of its runs.
        quality: The mean over seeds of each metric of the table; bounds are NaN where a metric has no interval.
        costs: The mean over seeds of each of `COSTS`; None where the method has no such cost.
        is_floor: Measured beside other runs (`floor` in run.json), without predictions of its own.
    """

    name: str
    settings: str
    seeds: list[int]
    quality: dict[str, Interval]
    costs: dict[str, float | None]
    is_floor: bool = False


def build_rows(groups: Sequence[Group], metrics: Sequence[str]) -> list[Row]:
    """Build a row for each group, in their order, with these metrics of `finetune.metrics.METRICS`."""
    return [
        Row(
            name=group.name,
            settings="" if "(" in group.name else describe_settings(group.settings),
            seeds=group.seeds,
            quality={name: _summarize(group, name) for name in metrics},
            costs={name: group.mean_cost(name) for name in COSTS},
        )
        for group in groups
    ]


def _summarize(group: Group, name: str) -> Interval:
    labels = group.runs[0].test.labels
    if name in QUALITY_METRICS[group.runs[0].problem_type] and len(labels) > 1:
        support = find_support(name, labels)
        if support is None or support.is_enough:
            return mean_interval(compute_scores(group, name), support=support)
    return Interval(float(np.mean([run.metrics[name] for run in group.runs])), float("nan"), float("nan"))


def compute_scores(group: Group, name: str) -> np.ndarray:
    """Return a metric as scores whose mean over examples is the metric, shape `(num_seeds, num_examples)`.

    For accuracy 0 and 1, for errors the errors, else the metric plus each example's influence on it.

    Args:
        group: Runs on the same test examples.
        name: One of `QUALITY_METRICS` of its task.
    """
    return np.stack([_compute_run_scores(run, name) for run in group.runs])


def _compute_run_scores(run: StoredRun, name: str) -> np.ndarray:
    labels, logits = run.test.labels, run.test.logits
    if run.problem_type == REGRESSION:
        errors = logits[:, 0].astype(np.float64) - labels
        return np.abs(errors) if name == "mae" else errors**2
    predictions = run.decide()
    if name == "accuracy":
        right = labels == predictions
        return (right.all(axis=1) if right.ndim == 2 else right).astype(np.float64)
    if name == "cost_per_text":
        assert run.rules.costs is not None
        return run.rules.costs[labels, predictions]
    estimate, influence = metric_influence(name, labels, predictions, len(run.label_names))
    return estimate + influence


def build_floor_row(groups: Sequence[Group], metrics: Sequence[str]) -> Row | None:
    """Build the row of TF-IDF and a linear model as the runs measured it beside themselves.

    Returns:
        None if there is a group of the method itself, which says more, or no run measured it.
    """
    measured = [run.record.floor for group in groups for run in group.runs]
    floors = [floor for floor in measured if floor and all(floor.test.get(name) is not None for name in metrics)]
    if not floors or any(group.method == FLOOR for group in groups):
        return None
    test = floors[0].test
    unknown = float("nan"), float("nan")
    quality = {name: Interval(getattr(test, name), *(test.interval(name) or unknown)) for name in metrics}
    costs: dict[str, float | None] = dict.fromkeys(COSTS)
    costs["train_seconds"] = float(np.mean([floor.train_seconds for floor in floors]))
    cpu_seconds = [floor.train_cpu_seconds for floor in floors if floor.train_cpu_seconds is not None]
    if len(cpu_seconds) == len(floors):
        costs["train_cpu_seconds"] = float(np.mean(cpu_seconds))
    return Row("floor: TF-IDF + linear", "", [], quality, costs, is_floor=True)


def format_metric(name: str, value: float) -> str:
    """Write a metric for a person: accuracies in percent, errors in four digits, the others to three places."""
    if not np.isfinite(value):
        return "–"
    if name in ("accuracy", "balanced_accuracy"):
        return f"{value:.1%}"
    return f"{value:#.4g}".rstrip(".") if name in ("mae", "mse", "cost_per_text") else f"{value:.3f}"


def format_interval(name: str, interval: Interval) -> str:
    """Write a metric with its interval, if it has one."""
    if not np.isfinite([interval.low, interval.high]).all():
        return format_metric(name, interval.estimate)
    low, high = (format_metric(name, bound).removesuffix("%") for bound in (interval.low, interval.high))
    return f"{format_metric(name, interval.estimate)} ({low} to {high})"
