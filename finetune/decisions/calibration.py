"""How far probabilities can be believed: calibration error, its bins, and the temperature that mends the scale.

The temperature is fitted on the validation split, and saved with the model. Of several labels a text each is a task of
its own, whose probability is held against how often the label is there.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax, softmax

__all__ = [
    "TEMPERATURES",
    "ReliabilityBins",
    "brier_score",
    "compute_probabilities",
    "expected_calibration_error",
    "fit_temperature",
    "label_calibration_error",
    "label_reliability_bins",
    "reliability_bins",
]

# A temperature outside would say that the logits are noise, or that every validation example is right.
TEMPERATURES = (0.01, 100.0)
PRIOR_DEVIATION = 0.3  # of a temperature's logarithm, which is about 0


class ReliabilityBins(NamedTuple):
    """Examples grouped by confidence, the probability of the class that is predicted.

    Attributes:
        low: Lower bound of each bin's confidence, not in it, `(num_bins,)`; 0 is in the first.
        high: Upper bound, in it, `(num_bins,)`.
        num_examples: Examples in each bin, `(num_bins,)`.
        confidence: Their mean confidence, `(num_bins,)`; NaN where there is none.
        accuracy: The share of them that is right, `(num_bins,)`; NaN where there is none.
    """

    low: np.ndarray
    high: np.ndarray
    num_examples: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def label_calibration_error(probabilities: np.ndarray, labels: np.ndarray, num_bins: int = 15) -> float:
    """Compute the mean over labels of the distance between a label's probability and how often it is there.

    The binary ECE of each label, by its probability and not by the confidence in a decision: most labels are rare, and
    that they are not there says every model with confidence. Labels without examples count too.

    Args:
        probabilities: Of the labels, `(num_examples, num_labels)`, each in [0, 1].
        labels: 0 and 1, of the same shape.
        num_bins: Bins of equal width between 0 and 1.

    Returns:
        A value in [0, 1].

    Example:
        >>> label_calibration_error(np.array([[0.9], [0.9], [0.2]]), np.array([[1], [1], [0]]), num_bins=2)
        0.13333333333333333
    """
    gaps = []
    for column, truth in zip(probabilities.T, labels.T, strict=True):
        bins = label_reliability_bins(column, truth, num_bins)
        gaps.append(np.nan_to_num(np.abs(bins.accuracy - bins.confidence)) @ bins.num_examples / len(truth))
    return float(np.mean(gaps))


def compute_probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Compute the softmax of logits over a temperature in float64, shape `(num_examples, num_labels)`."""
    return softmax(logits.astype(np.float64) / temperature, axis=-1)


def reliability_bins(probabilities: np.ndarray, labels: np.ndarray, num_bins: int = 15) -> ReliabilityBins:
    """Group examples into bins of equal width by confidence.

    Args:
        probabilities: Shape `(num_examples, num_labels)`, rows that sum to 1.
        labels: Class numbers, shape `(num_examples,)`.
        num_bins: Bins between 0 and 1. With two classes no confidence lies below one half.

    Returns:
        What a reliability diagram draws (Guo et al. 2017, section 2).
    """
    return label_reliability_bins(probabilities.max(axis=-1), probabilities.argmax(axis=-1) == labels, num_bins)


def label_reliability_bins(probabilities: np.ndarray, labels: np.ndarray, num_bins: int = 15) -> ReliabilityBins:
    """Group decisions between yes and no into bins of equal width by the probability of yes.

    Args:
        probabilities: `(num_decisions,)`, each in [0, 1].
        labels: 0 and 1, `(num_decisions,)`.
        num_bins: Bins between 0 and 1.

    Returns:
        The bins, whose `accuracy` is the share of yes.
    """
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    bins = np.searchsorted(edges[1:-1], probabilities, side="left")
    counts = np.bincount(bins, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(bins, probabilities, num_bins) / counts
        accuracy = np.bincount(bins, labels, num_bins) / counts
    return ReliabilityBins(edges[:-1], edges[1:], counts, confidence, accuracy)


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, num_bins: int = 15) -> float:
    """Compute the mean distance between confidence and accuracy over bins, weighted by their examples.

    ECE, equation 3 of Guo et al. 2017, "On Calibration of Modern Neural Networks". It is never below 0, so noise raises
    it: of a model that is perfectly calibrated, 1,000 examples in 15 bins show 0.02 to 0.04.

    Args:
        probabilities: Shape `(num_examples, num_labels)`, rows that sum to 1.
        labels: Class numbers, shape `(num_examples,)`.
        num_bins: Bins of equal width between 0 and 1.

    Returns:
        A value in [0, 1].

    Example:
        >>> probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
        >>> round(expected_calibration_error(probabilities, np.array([0, 1, 1]), num_bins=2), 3)  # |2/3 - 0.8|
        0.133
    """
    bins = reliability_bins(probabilities, labels, num_bins)
    gaps = np.nan_to_num(np.abs(bins.accuracy - bins.confidence))
    return float(gaps @ bins.num_examples / len(labels))


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Compute the mean squared distance between probabilities and what is true (Brier 1950), over texts.

    Args:
        probabilities: `(num_examples, num_labels)`.
        labels: Class numbers, `(num_examples,)`, whose squares are added up over classes; or 0 and 1 of the same shape,
            of which the mean over labels is taken.

    Returns:
        A value in [0, 2]; of several labels in [0, 1].

    Example:
        >>> brier_score(np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([0, 1]))
        0.25
    """
    if labels.ndim == 2:
        return float(np.square(probabilities - labels).mean())
    truth = np.arange(probabilities.shape[1]) == labels[:, None]
    return float(np.square(probabilities - truth).sum(axis=1).mean())


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Find the temperature that makes probabilities hold: of `logits / temperature` the labels are most probable.

    Temperature scaling, section 4.2 of Guo et al. 2017. It changes no prediction. The cross-entropy is convex in the
    inverse of the temperature. Two things keep it from following a few rows: its logarithm has a normal prior around 0,
    with a standard deviation of 0.3, and it is taken only if it makes the labels more probable by more than one unit of
    log likelihood (Akaike's criterion); otherwise it is 1. Neither matters where there are a thousand rows.

    Args:
        logits: Of the validation split, `(num_examples, num_labels)`; never of the test split.
        labels: Class numbers, `(num_examples,)`; of several labels 0 and 1, `(num_examples, num_labels)`, each of which
            is a decision of its own.

    Returns:
        Above 1 where the model is too confident, below 1 where it is not confident enough; between 0.01 and 100. 1
        where the rows don't speak for any other.
    """
    from scipy.optimize import minimize_scalar

    logits = logits.astype(np.float64)
    if labels.ndim == 2:
        logits, labels = np.stack([np.zeros(logits.size), logits.ravel()], axis=1), labels.ravel().astype(int)
    rows = np.arange(len(labels))

    def cross_entropy(log_temperature: float) -> float:
        return -float(log_softmax(logits / np.exp(log_temperature), axis=-1)[rows, labels].sum())

    def improbability(log_temperature: float) -> float:
        return cross_entropy(log_temperature) + (log_temperature / PRIOR_DEVIATION) ** 2 / 2

    found = minimize_scalar(improbability, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x)) if cross_entropy(0.0) - cross_entropy(found.x) > 1.0 else 1.0
