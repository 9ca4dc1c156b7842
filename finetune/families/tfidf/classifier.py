"""The floor, fitted: TF-IDF of words and word pairs, and logistic regression. No torch is imported here.

Saved as its arrays and its terms, without pickle, so that loading runs no code. (skops does that for any scikit-learn
model, but describes each of 366,000 terms in 600 bytes: 229 MB, 6.5 s and 1.7 GB of memory to load, against 9 MB and
half a second here.)
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer

from finetune.data.words import ANALYSIS, compose
from finetune.families.tfidf import LABEL_NAMES_FILE, TERMS_FILE, WEIGHTS_FILE
from finetune.models.answers import TextClassifier
from finetune.models.explanation import Explanation, Part, compute_scores, find_words
from finetune.tasks import REGRESSION, SINGLE_LABEL, Task

__all__ = ["TfidfClassifier", "TfidfPredictor", "analysis_of"]


MOST_WORDS = 100  # of a term, since each text is cut into all that are as long


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
        if len(set(terms)) < len(terms):
            raise ValueError(f"a term twice in {TERMS_FILE}")
        longest = max(term.count(" ") for term in terms) + 1
        if longest > MOST_WORDS:
            raise ValueError(f"a term of {longest:,} words in {TERMS_FILE}, where {MOST_WORDS} are the most")
        rows = len(label_names)
        if problem_type == REGRESSION and rows != 1:
            raise ValueError(f"{rows} labels for numbers to predict")
        if problem_type == SINGLE_LABEL and rows <= 2:
            rows -= 1
        expected = {"idf": (len(terms),), "coefficients": (rows, len(terms)), "intercepts": (rows,)}
        found = {name: array.shape for name, array in arrays.items()}
        if found != expected:
            raise ValueError(f"arrays {found} for {len(label_names)} labels and {len(terms)} terms")
        analysis = analysis_of(longest)
        vectorizer = TfidfVectorizer(**analysis, vocabulary={term: column for column, term in enumerate(terms)})
        vectorizer.idf_ = arrays["idf"]
        return cls(vectorizer, arrays["coefficients"], arrays["intercepts"], label_names, problem_type)


class TfidfPredictor(TextClassifier):
    """TF-IDF that takes texts; those of a pair count as one."""

    def __init__(self, model: TfidfClassifier):
        self.model = model
        self.task = Task(model.problem_type, model.label_names)

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

    def weigh_terms(self, label: int) -> list[tuple[str, float]]:
        """Return each term with what it adds to a label's score, per unit of its weight in a text."""
        scores = _scores_of(self._coefficients_by_label(), label, self.task.problem_type)
        return list(zip(self.model.vectorizer.get_feature_names_out().tolist(), scores, strict=True))

    def _coefficients_by_label(self) -> np.ndarray:
        """Return the coefficients of every label, `(num_labels, terms)`; of two the model has those of the second."""
        coefficients = self.model.coefficients
        if len(coefficients) == 1 and self.task.problem_type == SINGLE_LABEL:
            return np.concatenate([-coefficients / 2, coefficients / 2])
        return coefficients

    def explain_text(
        self,
        text: str,
        pair: str | None,
        label: int,
        compute_logits: Callable[[Sequence[str], Sequence[str] | None], np.ndarray],
    ) -> Explanation:
        """Explain one text exactly: a term's weight times its coefficient, divided among its words."""
        whole = text if pair is None else f"{text} {pair}"
        words, shown = find_words(whole), whole
        spelt = [compose(whole[start:end]) for start, end in words]
        vectorizer = self.model.vectorizer
        if spelt != vectorizer.build_tokenizer()(compose(whole)):  # a spelling that only its neighbours decide
            shown = compose(whole)
            words = find_words(shown)
            spelt = [shown[start:end] for start, end in words]
        row = vectorizer.transform([whole]).tocoo()
        values = dict(zip(row.col.tolist(), row.data.tolist(), strict=True))
        coefficients = self._coefficients_by_label()
        used = np.array(sorted(values), dtype=np.int64)
        weights = dict(
            zip(used.tolist(), _scores_of(coefficients[:, used], label, self.task.problem_type), strict=True)
        )
        places: dict[int, list[range]] = {}
        for length in range(1, vectorizer.ngram_range[1] + 1):
            for at in range(len(words) - length + 1):
                column = vectorizer.vocabulary_.get(" ".join(spelt[at : at + length]))
                if column is not None:
                    places.setdefault(column, []).append(range(at, at + length))
        contributions = np.zeros(len(words))
        for column, found in places.items():
            for place in found:
                contributions[place] += values[column] * weights[column] / (len(found) * len(place))
        parts = tuple(Part(*span, float(value)) for span, value in zip(words, contributions, strict=True))
        logits = compute_logits(["", text], None if pair is None else ["", pair])
        base, score = compute_scores(logits, np.array([label, label]), self.task.problem_type).tolist()
        return Explanation(shown, self.label_names[label], score, base, parts, is_exact=True)


def _scores_of(coefficients: np.ndarray, label: int, problem_type: str) -> list[float]:
    """Return what a term adds to a label's score, `(terms,)`, by its coefficients, `(num_labels, terms)`."""
    return compute_scores(coefficients.T, np.full(coefficients.shape[1], label), problem_type).tolist()


def analysis_of(max_ngram: int) -> dict[str, Any]:
    """Return the settings of the vectorizer for terms of at most so many words."""
    return {**ANALYSIS, "ngram_range": (1, max_ngram)}
