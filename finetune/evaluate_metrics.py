"""The metrics of `finetune.metrics` as `evaluate.Metric` objects, for use with `evaluate.combine`. No download.

`evaluate.load("accuracy")` fetches a script from the Hub; these are classes in this file. They compute with
scikit-learn, from predictions or, for ROC-AUC, from logits.

Example:
    >>> metric = evaluate.combine([Accuracy(), MacroF1()])
    >>> metric.compute(predictions=[0, 1, 1], references=[0, 1, 0])["accuracy"]
    0.6666666666666666
"""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, precision_score, recall_score

from finetune.metrics import compute_roc_auc

__all__ = ["MCC", "Accuracy", "MacroF1", "Precision", "Recall", "RocAuc"]


class _ClassificationMetric(evaluate.Metric):
    """A metric of predicted class numbers against true ones."""

    features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=(type(self).__doc__ or "").strip(),
            citation="",
            inputs_description="predictions, references: class numbers",
            features=self.features,
        )


class Accuracy(_ClassificationMetric):
    """Share of predictions that equal the reference."""

    def _compute(self, predictions, references):
        return {"accuracy": float(accuracy_score(references, predictions))}


class MacroF1(_ClassificationMetric):
    """F1, the unweighted mean over the classes."""

    def _compute(self, predictions, references):
        return {"macro_f1": float(f1_score(references, predictions, average="macro", zero_division=0))}


class Precision(_ClassificationMetric):
    """Precision, the unweighted mean over the classes."""

    def _compute(self, predictions, references):
        return {"precision": float(precision_score(references, predictions, average="macro", zero_division=0))}


class Recall(_ClassificationMetric):
    """Recall, the unweighted mean over the classes."""

    def _compute(self, predictions, references):
        return {"recall": float(recall_score(references, predictions, average="macro", zero_division=0))}


class MCC(_ClassificationMetric):
    """Matthews' correlation coefficient."""

    def _compute(self, predictions, references):
        return {"mcc": float(matthews_corrcoef(references, predictions))}


class RocAuc(_ClassificationMetric):
    """Area under the ROC curve; takes logits, one row an example, as `predictions`."""

    features = datasets.Features(
        {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")}
    )

    def _compute(self, predictions, references):
        return {"roc_auc": compute_roc_auc(np.asarray(predictions), np.asarray(references))}
