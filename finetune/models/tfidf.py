"""The floor: TF-IDF of words and word pairs, and logistic regression. About 90 % on IMDb within a minute.

Saved as its arrays and its terms, without pickle, so that loading runs no code. (skops does that for any scikit-learn
model, but describes each of 366,000 terms in 600 bytes: 229 MB, 6.5 s and 1.7 GB of memory to load, against 9 MB and
half a second here.)
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

__all__ = ["LABEL_NAMES_FILE", "TERMS_FILE", "WEIGHTS_FILE", "TfidfClassifier", "fit_tfidf"]

TERMS_FILE = "tfidf_terms.json"
WEIGHTS_FILE = "tfidf.safetensors"
LABEL_NAMES_FILE = "label_names.json"
# Words and pairs of neighbours (Wang and Manning 2012 found pairs to help sentiment), also one-letter words.
ANALYSIS = {"ngram_range": (1, 2), "sublinear_tf": True, "token_pattern": r"(?u)\b\w+\b"}


class TfidfClassifier:
    """A fitted TF-IDF vectorizer and logistic regression that answer with logits, like the neural models.

    Args:
        vectorizer: Fitted, with the settings of `ANALYSIS`.
        regression: Fitted on the vectorizer's output.
        label_names: Names of the classes, in the order of their numbers.
    """

    def __init__(self, vectorizer: TfidfVectorizer, regression: LogisticRegression, label_names: Sequence[str]):
        self.vectorizer = vectorizer
        self.regression = regression
        self.label_names = list(label_names)

    def compute_logits(self, texts: Sequence[str]) -> np.ndarray:
        """Score texts: float32 logits `(len(texts), num_labels)`, whose softmax is the regression's probability."""
        scores = self.regression.decision_function(self.vectorizer.transform(list(texts)))
        if scores.ndim == 1:  # two classes: scikit-learn gives the log-odds of the second
            scores = np.stack([-scores / 2, scores / 2], axis=1)
        return scores.astype(np.float32)

    def num_parameters(self) -> int:
        """Count the weights and intercepts of the regression."""
        return self.regression.coef_.size + self.regression.intercept_.size

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the arrays, the terms and the label names into an existing folder."""
        arrays = {
            "idf": self.vectorizer.idf_,
            "coefficients": self.regression.coef_,
            "intercepts": self.regression.intercept_,
        }
        save_file(arrays, Path(folder) / WEIGHTS_FILE)
        terms = self.vectorizer.get_feature_names_out().tolist()
        for name, content in ((TERMS_FILE, terms), (LABEL_NAMES_FILE, self.label_names)):
            (Path(folder) / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "TfidfClassifier":
        """Read what `save_pretrained` wrote."""
        terms, label_names = (
            json.loads((Path(folder) / name).read_text(encoding="utf-8")) for name in (TERMS_FILE, LABEL_NAMES_FILE)
        )
        arrays = load_file(Path(folder) / WEIGHTS_FILE)
        vectorizer = TfidfVectorizer(**ANALYSIS, vocabulary={term: column for column, term in enumerate(terms)})
        vectorizer.idf_ = arrays["idf"]
        regression = LogisticRegression()
        regression.coef_, regression.intercept_ = arrays["coefficients"], arrays["intercepts"]
        regression.classes_ = np.arange(len(label_names))
        return cls(vectorizer, regression, label_names)


def fit_tfidf(texts: Sequence[str], labels: Sequence[int], label_names: Sequence[str], seed: int) -> TfidfClassifier:
    """Fit the floor: terms of at least two texts, sublinear frequency, weak regularisation; nothing is tuned.

    Args:
        texts: Training texts.
        labels: Their class numbers in `[0, len(label_names))`, every class at least once.
        label_names: Names of the classes.
        seed: Seed of the solver.
    """
    vectorizer = TfidfVectorizer(**ANALYSIS, min_df=2)
    try:
        features = vectorizer.fit_transform(list(texts))
    except ValueError:  # no term stands in two texts, as in small data without spaces between words
        vectorizer = TfidfVectorizer(**ANALYSIS)
        features = vectorizer.fit_transform(list(texts))
    regression = LogisticRegression(C=10.0, max_iter=1000, random_state=seed)
    regression.fit(features, list(labels))
    return TfidfClassifier(vectorizer, regression, label_names)
