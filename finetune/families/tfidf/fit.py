"""Fit the floor: TF-IDF of words and word pairs, and a linear model. About 90 % on IMDb within a minute."""

import functools
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from finetune.data.labels import balanced_class_weights, label_matrix, task_of
from finetune.data.soft_labels import count_labelled_rows, of_two_classes, soften_labels, weigh_classes
from finetune.data.split import iterate_texts
from finetune.data.words import WORD, find_terms
from finetune.families.tfidf.classifier import TfidfClassifier
from finetune.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL

__all__ = ["fit_floor", "fit_tfidf"]

UNREAD = 0.02  # share of the training texts without a word from which on that is worth a warning
NO_TERMS = ["no word"]  # that no analysed text holds: a vectorizer must have a column
CERTAIN = 10.0  # log-odds of a label that all or no training texts have


def fit_tfidf(
    texts: Sequence[str],
    labels: np.ndarray,
    label_names: Sequence[str],
    seed: int,
    problem_type: str = SINGLE_LABEL,
    c: float = 10.0,
    max_ngram: int = 2,
    soft_labels: np.ndarray | None = None,
    class_weights: np.ndarray | None = None,
) -> TfidfClassifier:
    """Fit TF-IDF: terms of at least two texts, sublinear frequency, and a linear model.

    One class: logistic regression. Several labels: one logistic regression for each. A number: ridge regression.

    Args:
        texts: Training texts.
        labels: Class numbers in `[0, len(label_names))`, every class at least once, or numbers to predict,
            `(len(texts),)`; for several labels 0 and 1, `(len(texts), num_labels)`.
        label_names: Names of the labels.
        seed: Seed of the solver.
        problem_type: transformers' name of the task.
        c: Inverse of the penalty of logistic regression; that of ridge regression is 10 / c.
        max_ngram: Most neighbouring words that are a term.
        soft_labels: What to fit in place of the labels: probabilities `(len(texts), num_labels)`, or numbers.
        class_weights: Each class's factor in the loss, `(num_labels,)`; for several labels that of a label's presence.
    """
    labels = np.asarray(labels)
    build = functools.partial(
        TfidfVectorizer, analyzer=functools.partial(find_terms, max_ngram=max_ngram), sublinear_tf=True
    )
    vectorizer = build(min_df=2)
    try:
        features = vectorizer.fit_transform(texts)
    except ValueError:  # no term stands in two texts
        # Or none in any, as where texts are emoji alone: what is left is then how frequent each class is.
        has_words = any(re.search(WORD, text) for text in texts)
        vectorizer = build(vocabulary=None if has_words else NO_TERMS)
        features = vectorizer.fit_transform(texts)
    fitted = vectorizer.get_feature_names_out().tolist(), vectorizer.idf_
    if problem_type == REGRESSION:
        numbers = labels if soft_labels is None else soft_labels
        ridge = Ridge(alpha=10.0 / c, random_state=seed).fit(features, numbers)
        return TfidfClassifier(*fitted, ridge.coef_[None, :], np.array([ridge.intercept_]), label_names, problem_type)
    if problem_type == MULTI_LABEL:
        coefficients, intercepts = np.zeros((labels.shape[1], features.shape[1])), np.zeros(labels.shape[1])
        for number, column in enumerate(labels.T):
            if column.min() == column.max():
                intercepts[number] = CERTAIN if column[0] else -CERTAIN
            else:
                soft = None if soft_labels is None else of_two_classes(soft_labels[:, number])
                presence = None if class_weights is None else np.array([1.0, class_weights[number]])
                regression = _fit_classes(features, column.astype(int), soft, presence, seed, c)
                coefficients[number], intercepts[number] = regression.coef_[0], regression.intercept_[0]
        return TfidfClassifier(*fitted, coefficients, intercepts, label_names, problem_type)
    regression = _fit_classes(features, labels, soft_labels, class_weights, seed, c)
    return TfidfClassifier(*fitted, regression.coef_, regression.intercept_, label_names)


def fit_floor(
    train: Dataset, seed: int, c: float = 10.0, max_ngram: int = 2, balanced: bool = False
) -> TfidfClassifier:
    """Fit TF-IDF on a training split, as `fit_tfidf` does; the texts of a pair count as one, and so, if that is asked
    for, do classes.
    """
    task = task_of(train.features)
    texts = [(text or "").replace("\0", " ") for text in iterate_texts(train)]
    unread = sum(re.search(WORD, text) is None for text in texts)
    if unread > UNREAD * len(texts):
        warnings.warn(
            f"TF-IDF reads nothing of {unread:,} of the {len(texts):,} training texts, which hold no letter, digit or "
            "emoji: of those it knows the most frequent answer alone",
            stacklevel=2,
        )
    labels, soft_labels = label_matrix(train["label"], task), soften_labels(train, task)
    weights = balanced_class_weights(labels[: count_labelled_rows(train)], len(task.label_names)) if balanced else None
    return fit_tfidf(texts, labels, task.label_names, seed, task.problem_type, c, max_ngram, soft_labels, weights)


def _fit_classes(
    features: Any,
    labels: np.ndarray,
    soft_labels: np.ndarray | None,
    class_weights: np.ndarray | None,
    seed: int,
    c: float,
) -> LogisticRegression:
    rows, classes, weights = weigh_classes(labels, soft_labels, class_weights)
    regression = LogisticRegression(C=c, max_iter=1000, random_state=seed)
    return regression.fit(features if rows is None else features[rows], classes, weights)
