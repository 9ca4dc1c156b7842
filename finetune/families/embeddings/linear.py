"""The linear model over vectors: how strongly it is regularised is chosen by cross-validation on the training rows."""

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import StratifiedKFold, train_test_split

from finetune.data.soft_labels import of_two_classes, weigh_classes
from finetune.tasks import MULTI_LABEL, REGRESSION

__all__ = ["OF_SINGLE_ROWS", "OF_TUNED_ENCODERS", "Linear", "choose_inverse_penalty", "fit_linear"]

# scikit-learn's C, the inverse of the penalty, from strong to weak, for rows whose squared length is 1 on average.
INVERSE_PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
# In place of a cross-validation where a class has a single row: on 8 rows a class it costs least
# (docs/reference/methods.md).
OF_SINGLE_ROWS = 10.0
# For an encoder that was tuned on the rows, which tells them apart without fail: a cross-validation would find any
# penalty too strong. It is scikit-learn's default, as SetFit takes it.
OF_TUNED_ENCODERS = 1.0
PENALTIES = tuple(10.0**power for power in np.arange(-3, 3.5, 0.5))  # ridge regression's alpha
MOST_ROWS = 2_500  # that a cross-validation looks at: with more, the penalty hardly matters
FEW_ROWS = 1_000  # up to here in five parts, beyond in three
CERTAIN = 10.0  # log-odds of a label that all or no training texts have
SEED = 0  # of the parts, so that nothing depends on the run's seed


@dataclass(frozen=True)
class Linear:
    """A fitted linear layer.

    Attributes:
        weight: `(num_labels, width)`.
        bias: `(num_labels,)`.
        penalties: What was chosen, C of a logistic regression or the alpha of a ridge regression; one for each label
            where each has a regression of its own. None for a label that all or no rows have.
    """

    weight: np.ndarray
    bias: np.ndarray
    penalties: list[float | None]


def fit_linear(
    vectors: np.ndarray,
    labels: np.ndarray,
    num_labels: int,
    problem_type: str,
    inverse_penalty: float | None = None,
    soft_labels: np.ndarray | None = None,
    class_weights: np.ndarray | None = None,
) -> Linear:
    """Fit a logistic regression, one for each of several labels, or for numbers a ridge regression.

    The vectors are centred and scaled to a mean squared length of 1, so that one range of penalties fits every encoder;
    the layer takes them as they are.

    Args:
        vectors: `(rows, width)`.
        labels: Class numbers, every class at least once, or numbers to predict, `(rows,)`; for several labels 0 and 1,
            `(rows, num_labels)`.
        num_labels: Outputs of the layer.
        problem_type: transformers' name of the task.
        inverse_penalty: scikit-learn's C; chosen by cross-validation if None. It is of no use for numbers.
        soft_labels: What to fit in place of the labels: probabilities `(rows, num_labels)`, or numbers `(rows,)`. The
            first rows have labels, by which the penalty is chosen; `labels` are these alone.
        class_weights: Each class's factor in the loss, `(num_labels,)`; for several labels that of a label's presence.
    """
    centre = vectors.mean(axis=0, dtype=np.float64)
    scale = float(np.sqrt(np.square(vectors - centre).sum(axis=1).mean())) or 1.0
    standard = ((vectors - centre) / scale).astype(np.float32)
    weight, bias = np.zeros((num_labels, vectors.shape[1])), np.zeros(num_labels)
    penalties: list[float | None] = []
    if problem_type == REGRESSION:
        numbers = labels if soft_labels is None else soft_labels
        ridge = RidgeCV(PENALTIES).fit(standard.astype(np.float64), numbers)  # exact leave-one-out
        weight[0], bias[0] = ridge.coef_, ridge.intercept_
        penalties.append(float(ridge.alpha_))
    elif problem_type == MULTI_LABEL:
        for number, column in enumerate(labels.T.astype(int)):
            if column.min() == column.max():
                bias[number] = CERTAIN if column[0] else -CERTAIN
                penalties.append(None)
                continue
            soft = None if soft_labels is None else of_two_classes(soft_labels[:, number])
            presence = None if class_weights is None else np.array([1.0, class_weights[number]])
            inverse, regression = _fit_classes(standard, column, inverse_penalty, soft, presence)
            weight[number], bias[number] = regression.coef_[0], regression.intercept_[0]
            penalties.append(inverse)
    else:
        inverse, regression = _fit_classes(standard, labels, inverse_penalty, soft_labels, class_weights)
        weight, bias = regression.coef_.astype(np.float64), regression.intercept_.astype(np.float64)
        if num_labels == 2:  # scikit-learn has the log-odds of the second class alone
            weight, bias = np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
        penalties.append(inverse)
    weight = weight / scale
    return Linear(weight, bias - weight @ centre, penalties)


def choose_inverse_penalty(rows: np.ndarray, labels: np.ndarray, class_weights: np.ndarray | None = None) -> float:
    """Choose scikit-learn's C by cross-validation: the one with the lowest log loss.

    From a strong penalty to weaker ones, each from the solution of the one before, up to where the loss rises.

    Args:
        rows: `(rows, width)`, of a mean squared length of 1.
        labels: Class numbers, `(rows,)`.
        class_weights: Each class's factor in the loss, `(num_labels,)`.

    Returns:
        One of `INVERSE_PENALTIES`; `OF_SINGLE_ROWS` where a class has but one row.
    """
    if len(rows) > MOST_ROWS:
        rows, labels = _sample(rows, labels)
    fewest = int(np.unique(labels, return_counts=True)[1].min())
    if fewest < 2:
        return OF_SINGLE_ROWS
    parts = StratifiedKFold(min(5 if len(rows) <= FEW_ROWS else 3, fewest), shuffle=True, random_state=SEED)
    folds = [
        (train, test, LogisticRegression(max_iter=1_000, warm_start=True)) for train, test in parts.split(rows, labels)
    ]
    best, lowest = INVERSE_PENALTIES[0], float("inf")
    for inverse in INVERSE_PENALTIES:
        loss = 0.0
        for train, test, regression in folds:
            regression.C = inverse
            _fit(
                regression, rows[train], labels[train], None if class_weights is None else class_weights[labels[train]]
            )
            loss += _sum_losses(regression, rows[test], labels[test], class_weights)
        if loss >= lowest:
            break
        best, lowest = inverse, loss
    return best


def _fit_classes(
    rows: np.ndarray,
    labels: np.ndarray,
    inverse: float | None,
    soft_labels: np.ndarray | None,
    class_weights: np.ndarray | None,
) -> tuple[float, LogisticRegression]:
    if inverse is None:
        inverse = choose_inverse_penalty(rows[: len(labels)], labels, class_weights)
    repeated, classes, weights = weigh_classes(labels, soft_labels, class_weights)
    regression = LogisticRegression(C=inverse, max_iter=1_000)
    return inverse, _fit(regression, rows if repeated is None else rows[repeated], classes, weights)


def _fit(
    regression: LogisticRegression, rows: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # at a thousand steps the answers no longer change
        return regression.fit(rows, labels, weights)


def _sum_losses(
    regression: LogisticRegression, rows: np.ndarray, labels: np.ndarray, class_weights: np.ndarray | None
) -> float:
    """Add up the cross-entropy of rows, each times its class's factor."""
    scores = regression.decision_function(rows).astype(np.float64)
    if scores.ndim == 1:
        scores = np.stack([np.zeros_like(scores), scores], axis=1)
    right = scores[np.arange(len(rows)), np.searchsorted(regression.classes_, labels)]
    losses = logsumexp(scores, axis=1) - right
    return float((losses if class_weights is None else losses * class_weights[labels]).sum())


def _sample(rows: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Take `MOST_ROWS`, stratified where every class has two rows."""
    strata = labels if np.unique(labels, return_counts=True)[1].min() > 1 else None
    chosen, _ = train_test_split(np.arange(len(rows)), train_size=MOST_ROWS, stratify=strata, random_state=SEED)
    chosen.sort()
    return rows[chosen], labels[chosen]
