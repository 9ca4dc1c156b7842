"""Sets of labels that hold the right one as often as was asked, whatever the model: split conformal prediction.

Vovk, Gammerman and Shafer 2005; for classes the smallest sets, of Sadinle, Lei and Wasserman 2019; for numbers an
interval around the answer (Lei et al. 2018).
"""

from dataclasses import dataclass

import numpy as np

from finetune.tasks import MULTI_LABEL, REGRESSION

__all__ = ["PredictionSets", "fit_prediction_sets"]


@dataclass(frozen=True)
class PredictionSets:
    """Which labels are in a text's set.

    Attributes:
        coverage: The share of new texts whose set holds the right label, or all right ones, in (0, 1).
        class_conditional: Whether that holds for the texts of each class by themselves.
        quantiles: For each label how far its probability may be below 1, in [0, 1]; of a number the greatest distance
            of an answer, infinite where too few rows were there.
    """

    coverage: float
    class_conditional: bool
    quantiles: tuple[float, ...]

    def contain(self, probabilities: np.ndarray) -> np.ndarray:
        """Return which labels are in the sets, true or false, `(texts, num_labels)`, by their probabilities."""
        return 1 - probabilities <= np.asarray(self.quantiles)

    def around(self, values: np.ndarray) -> np.ndarray:
        """Return the lower and upper ends of the intervals around predicted numbers, `(texts, 2)`."""
        return np.stack([values - self.quantiles[0], values + self.quantiles[0]], axis=1)


def fit_prediction_sets(
    probabilities: np.ndarray, labels: np.ndarray, problem_type: str, coverage: float, class_conditional: bool = False
) -> PredictionSets:
    """Find the quantiles by rows that the model was not trained on.

    A text's score is how far the probability of its label is below 1, of several labels that of the least probable one,
    of a number how far the answer was off. The quantile is the k-th smallest score of n, k = ⌈(n + 1) · coverage⌉: over
    the draw of these rows and of a new text, its set holds the right label with a probability between `coverage` and
    `coverage` + 1 / (n + 1). Where k is above n, every label is in every set.

    Args:
        probabilities: `(rows, num_labels)`; of a number the answers, `(rows, 1)`.
        labels: Class numbers or numbers, `(rows,)`; of several labels 0 and 1, `(rows, num_labels)`.
        problem_type: transformers' name of the task.
        coverage: The share of texts whose set is to hold the right label, in (0, 1).
        class_conditional: Whether each class has a quantile of its own, by its rows alone.

    Example:
        >>> probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
        >>> fit_prediction_sets(probabilities, np.array([0, 0, 1, 1]), "single_label_classification", 0.6).quantiles
        (0.30000000000000004, 0.30000000000000004)
    """
    if problem_type == REGRESSION:
        return PredictionSets(coverage, False, (_quantile(np.abs(probabilities[:, 0] - labels), coverage, np.inf),))
    distances, count = 1 - probabilities, probabilities.shape[1]
    if problem_type == MULTI_LABEL:
        present = labels.astype(bool)
        if class_conditional:
            columns = [distances[present[:, number], number] for number in range(count)]
        else:
            scores = np.where(present, distances, 0.0).max(axis=1)  # nothing is missed where there is no label
            columns = [scores] * count
    else:
        scores = distances[np.arange(len(labels)), labels]
        columns = [scores[labels == number] if class_conditional else scores for number in range(count)]
    return PredictionSets(coverage, class_conditional, tuple(_quantile(one, coverage, 1.0) for one in columns))


def _quantile(scores: np.ndarray, coverage: float, otherwise: float) -> float:
    place = int(np.ceil((len(scores) + 1) * coverage - 1e-9))
    return otherwise if place > len(scores) else float(np.sort(scores)[place - 1])
