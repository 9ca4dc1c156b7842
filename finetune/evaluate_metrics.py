"""The metrics of `finetune.metrics` as `evaluate.Metric` objects, which `evaluate.combine` takes. No download.

`evaluate.load("accuracy")` fetches a script from the Hub; these are objects of this file, and compute with
scikit-learn. They take what a `Trainer` has: logits as `predictions`, labels as `references`.

Example:
    >>> metrics = evaluate.combine(list_metrics("single_label_classification"))
    >>> metrics.compute(predictions=[[2.0, 0.0], [0.0, 2.0], [0.0, 1.0]], references=[0, 1, 0])["accuracy"]
    0.6666666666666666
"""

from typing import Any

import evaluate
import numpy as np
from datasets import Features, Sequence, Value

from finetune.metrics import METRICS, MULTI_LABEL, REGRESSION, SINGLE_LABEL, compute_metric

__all__ = ["LogitMetric", "list_metrics"]

# What is predicted and what is true, a row an example.
FEATURES = {
    SINGLE_LABEL: Features({"predictions": Sequence(Value("float32")), "references": Value("int64")}),
    MULTI_LABEL: Features({"predictions": Sequence(Value("float32")), "references": Sequence(Value("float32"))}),
    REGRESSION: Features({"predictions": Sequence(Value("float64")), "references": Value("float64")}),
}


class LogitMetric(evaluate.Metric):
    """One metric of a task, computed from logits.

    Args:
        metric_name: A name in `finetune.metrics.METRICS[problem_type]`, under which `compute` returns it.
        problem_type: One of `finetune.tasks.PROBLEM_TYPES`.
    """

    def __init__(self, metric_name: str, problem_type: str = SINGLE_LABEL):
        self.metric_name, self.problem_type = metric_name, problem_type
        super().__init__(config_name=metric_name, keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=f"{self.metric_name} of {self.problem_type}",
            citation="",
            inputs_description="predictions: logits, a row an example; references: labels",
            features=FEATURES[self.problem_type],
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        exact = np.float64 if self.problem_type == REGRESSION else np.float32  # as the logits came
        logits, labels = np.asarray(predictions, dtype=exact), np.asarray(references)
        if self.problem_type == MULTI_LABEL:
            labels = labels.astype(np.float32)
        return {self.metric_name: compute_metric(self.metric_name, logits, labels, self.problem_type)}


def list_metrics(problem_type: str = SINGLE_LABEL) -> list[LogitMetric]:
    """Build every metric of a task, for `evaluate.combine`.

    Args:
        problem_type: One of `finetune.tasks.PROBLEM_TYPES`.

    Returns:
        An object for each name in `finetune.metrics.METRICS[problem_type]`.
    """
    return [LogitMetric(name, problem_type) for name in METRICS[problem_type]]
