"""The floor: TF-IDF of words and word pairs, and logistic regression. About 90 % on IMDb within a minute.

Saved as its arrays and its terms, without pickle, so that loading runs no code. (skops does that for any scikit-learn
model, but describes each of 366,000 terms in 600 bytes: 229 MB, 6.5 s and 1.7 GB of memory to load, against 9 MB and
half a second here.)
"""

import json
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from safetensors.numpy import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from finetune.data.labels import label_matrix, task_of
from finetune.data.soft_labels import of_two_classes, soften_labels, weigh_classes
from finetune.data.split import iterate_texts
from finetune.data.words import ANALYSIS, WORD
from finetune.families.tfidf import LABEL_NAMES_FILE, TERMS_FILE, WEIGHTS_FILE
from finetune.models.answers import TextClassifier
from finetune.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task

__all__ = ["TfidfClassifier", "TfidfPredictor", "fit_floor", "fit_tfidf"]

UNREAD = 0.02  # share of the training texts without a word from which on that is worth a warning
NO_TERMS = ["no word"]  # that no analysed text holds: a vectorizer must have a column
CERTAIN = 10.0  # log-odds of a label that all or no training texts have


class TfidfClassifier:
    """A fitted TF-IDF vectorizer and linear model that answer with logits, like the neural models.

    Args:
        vectorizer: Fitted, with the settings of `ANALYSIS`.
        coefficients: `(num_labels, terms)`, or `(1, terms)` for two classes: the log-odds of the second.
        intercepts: One for each row of `coefficients`.
        label_names: Names of the labels, in the order of their numbers.
        problem_type: transformers' name of the task.
    """

    def __init__(
        self,
        vectorizer: TfidfVectorizer,
        coefficients: np.ndarray,
        intercepts: np.ndarray,
        label_names: Sequence[str],
        problem_type: str = SINGLE_LABEL,
    ):
        self.vectorizer = vectorizer
        self.coefficients = coefficients
        self.intercepts = intercepts
        self.label_names = list(label_names)
        self.problem_type = problem_type

    def compute_logits(self, texts: Sequence[str]) -> np.ndarray:
        """Score texts: float32 logits `(len(texts), num_labels)`, whose softmax is the regression's probability."""
        scores = self.vectorizer.transform(list(texts)) @ self.coefficients.T + self.intercepts
        if self.problem_type == SINGLE_LABEL and scores.shape[1] == 1:
            scores = np.concatenate([-scores / 2, scores / 2], axis=1)
        return scores.astype(np.float32)

    def num_parameters(self) -> int:
        """Count the weights and intercepts."""
        return self.coefficients.size + self.intercepts.size

    def num_bytes(self) -> int:
        """Count the bytes of the arrays and the terms, of which the saved files consist."""
        terms = sum(len(term.encode()) for term in self.vectorizer.vocabulary_)
        return self.vectorizer.idf_.nbytes + self.coefficients.nbytes + self.intercepts.nbytes + terms

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the arrays, the terms and the label names into an existing folder."""
        arrays = {
            "idf": self.vectorizer.idf_,
            "coefficients": np.ascontiguousarray(self.coefficients),
            "intercepts": np.ascontiguousarray(self.intercepts),
        }
        save_file(arrays, Path(folder) / WEIGHTS_FILE)
        terms = self.vectorizer.get_feature_names_out().tolist()
        for name, content in ((TERMS_FILE, terms), (LABEL_NAMES_FILE, self.label_names)):
            (Path(folder) / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path, problem_type: str = SINGLE_LABEL) -> "TfidfClassifier":
        """Read what `save_pretrained` wrote."""
        terms, label_names = (
            json.loads((Path(folder) / name).read_text(encoding="utf-8")) for name in (TERMS_FILE, LABEL_NAMES_FILE)
        )
        arrays = load_file(Path(folder) / WEIGHTS_FILE)
        if not all(isinstance(words, list) and {str} == set(map(type, words)) for words in (terms, label_names)):
            raise ValueError(f"{TERMS_FILE} or {LABEL_NAMES_FILE} is no list of words")
        rows = len(label_names)
        if problem_type == SINGLE_LABEL and rows <= 2:
            rows -= 1
        expected = {"idf": (len(terms),), "coefficients": (rows, len(terms)), "intercepts": (rows,)}
        found = {name: array.shape for name, array in arrays.items()}
        if found != expected:
            raise ValueError(f"arrays {found} for {len(label_names)} labels and {len(terms)} terms")
        analysis = _analysis(max(term.count(" ") for term in terms) + 1)
        vectorizer = TfidfVectorizer(**analysis, vocabulary={term: column for column, term in enumerate(terms)})
        vectorizer.idf_ = arrays["idf"]
        return cls(vectorizer, arrays["coefficients"], arrays["intercepts"], label_names, problem_type)


class TfidfPredictor(TextClassifier):
    """TF-IDF that takes texts; those of a pair count as one."""

    def __init__(self, model: TfidfClassifier):
        self.model = model
        self.task = Task(model.problem_type, model.label_names)
        self.thresholds = 0.5

    def compute_logits(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        on_batch: Callable[[int], None] = lambda num_examples: None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Score texts; see `TextClassifier`."""
        self.check_pairs(pairs)
        whole = list(texts) if pairs is None else [f"{text} {pair}" for text, pair in zip(texts, pairs, strict=True)]
        logits = self.model.compute_logits(whole)
        on_batch(len(whole))
        return logits, np.array([len(text.split()) for text in whole], dtype=np.int64)


def fit_tfidf(
    texts: Sequence[str],
    labels: np.ndarray,
    label_names: Sequence[str],
    seed: int,
    problem_type: str = SINGLE_LABEL,
    c: float = 10.0,
    max_ngram: int = 2,
    soft_labels: np.ndarray | None = None,
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
    """
    labels, analysis = np.asarray(labels), _analysis(max_ngram)
    vectorizer = TfidfVectorizer(**analysis, min_df=2)
    try:
        features = vectorizer.fit_transform(texts)
    except ValueError:  # no term stands in two texts
        # Or none in any, as where texts are emoji alone: what is left is then how frequent each class is.
        has_words = any(re.search(WORD, text) for text in texts)
        vectorizer = TfidfVectorizer(**analysis, vocabulary=None if has_words else NO_TERMS)
        features = vectorizer.fit_transform(texts)
    if problem_type == REGRESSION:
        numbers = labels if soft_labels is None else soft_labels
        ridge = Ridge(alpha=10.0 / c, random_state=seed).fit(features, numbers)
        return TfidfClassifier(
            vectorizer, ridge.coef_[None, :], np.array([ridge.intercept_]), label_names, problem_type
        )
    if problem_type == MULTI_LABEL:
        coefficients, intercepts = np.zeros((labels.shape[1], features.shape[1])), np.zeros(labels.shape[1])
        for number, column in enumerate(labels.T):
            if column.min() == column.max():
                intercepts[number] = CERTAIN if column[0] else -CERTAIN
            else:
                soft = None if soft_labels is None else of_two_classes(soft_labels[:, number])
                regression = _fit_classes(features, column, soft, seed, c)
                coefficients[number], intercepts[number] = regression.coef_[0], regression.intercept_[0]
        return TfidfClassifier(vectorizer, coefficients, intercepts, label_names, problem_type)
    regression = _fit_classes(features, labels, soft_labels, seed, c)
    return TfidfClassifier(vectorizer, regression.coef_, regression.intercept_, label_names)


def fit_floor(train: Dataset, seed: int, c: float = 10.0, max_ngram: int = 2) -> TfidfClassifier:
    """Fit TF-IDF on a training split, as `fit_tfidf` does; the texts of a pair count as one."""
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
    return fit_tfidf(texts, labels, task.label_names, seed, task.problem_type, c, max_ngram, soft_labels)


def _fit_classes(
    features: Any, labels: np.ndarray, soft_labels: np.ndarray | None, seed: int, c: float
) -> LogisticRegression:
    regression = LogisticRegression(C=c, max_iter=1000, random_state=seed)
    if soft_labels is None:
        return regression.fit(features, labels)
    rows, classes, weights = weigh_classes(soft_labels)
    return regression.fit(features[rows], classes, weights)


def _analysis(max_ngram: int) -> dict[str, Any]:
    return {**ANALYSIS, "ngram_range": (1, max_ngram)}
