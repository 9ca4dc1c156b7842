"""The floor: TF-IDF of words and word pairs, and logistic regression. About 90 % on IMDb within a minute.

Saved with skops, which writes no pickle, so that loading it runs no code.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import skops.io
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

__all__ = ["TFIDF_FILE", "TfidfClassifier", "fit_tfidf"]

TFIDF_FILE = "tfidf.skops"
LABEL_NAMES_FILE = "label_names.json"


class TfidfClassifier:
    """A scikit-learn pipeline that answers with logits, like the neural models.

    Args:
        pipeline: A fitted `TfidfVectorizer` and `LogisticRegression`.
        label_names: Names of the classes, in the order of their numbers.
    """

    def __init__(self, pipeline: Pipeline, label_names: Sequence[str]):
        self.pipeline = pipeline
        self.label_names = list(label_names)

    def compute_logits(self, texts: Sequence[str]) -> np.ndarray:
        """Score texts: float32 logits `(len(texts), num_labels)`, whose softmax is the regression's probability."""
        scores = self.pipeline.decision_function(list(texts))
        if scores.ndim == 1:  # two classes: scikit-learn gives the log-odds of the second
            scores = np.stack([-scores / 2, scores / 2], axis=1)
        return scores.astype(np.float32)

    def num_parameters(self) -> int:
        """Count the weights and intercepts of the regression."""
        regression = self.pipeline[-1]
        return regression.coef_.size + regression.intercept_.size

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the pipeline and the label names into an existing folder."""
        skops.io.dump(self.pipeline, Path(folder) / TFIDF_FILE)
        (Path(folder) / LABEL_NAMES_FILE).write_text(json.dumps(self.label_names, ensure_ascii=False, indent=2))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "TfidfClassifier":
        """Read what `save_pretrained` wrote; skops refuses types that it does not know to be harmless."""
        pipeline = skops.io.load(Path(folder) / TFIDF_FILE)
        return cls(pipeline, json.loads((Path(folder) / LABEL_NAMES_FILE).read_text()))


def fit_tfidf(texts: Sequence[str], labels: Sequence[int], label_names: Sequence[str], seed: int) -> TfidfClassifier:
    """Fit the floor.

    Words and pairs of neighbours (Wang and Manning 2012 found pairs to help sentiment), sublinear term frequency, and
    a weakly regularised regression; one setting for all data, nothing tuned.

    Args:
        texts: Training texts.
        labels: Their class numbers in `[0, len(label_names))`, every class at least once.
        label_names: Names of the classes.
        seed: Seed of the solver.
    """
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    regression = LogisticRegression(C=10.0, max_iter=1000, random_state=seed)
    pipeline = make_pipeline(vectorizer, regression)
    pipeline.fit(list(texts), list(labels))
    return TfidfClassifier(pipeline, label_names)
