"""The floor, fitted: TF-IDF of words and word pairs, and a linear model. It needs neither torch nor scikit-learn.

Saved as its arrays and its terms, without pickle, so that loading runs no code. (skops does that for any scikit-learn
model, but describes each of 366,000 terms in 600 bytes: 229 MB, 6.5 s and 1.7 GB of memory to load, against 9 MB and
half a second here.)
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_array

from finetune.data.words import WORD, compose, find_terms
from finetune.families.tfidf import LABEL_NAMES_FILE, TERMS_FILE, WEIGHTS_FILE
from finetune.models.answers import TextClassifier
from finetune.models.explanation import Explanation, Part, compute_scores, find_words
from finetune.tasks import REGRESSION, SINGLE_LABEL, Task

__all__ = ["TfidfClassifier", "TfidfPredictor"]

MOST_WORDS = 100  # of a term, since each text is cut into all that are as long


class TfidfClassifier:
    """TF-IDF and a linear model, fitted, that answer with logits, like the neural models.

    Args:
        terms: What is counted, of `finetune.data.words.find_terms`, in the order of the columns.
        idf: Inverse document frequencies, `(terms,)`.
        coefficients: `(num_labels, terms)`, or `(1, terms)` for two classes: the log-odds of the second.
        intercepts: One for each row of `coefficients`.
        label_names: Names of the labels, in the order of their numbers.
        problem_type: transformers' name of the task.
    """

    def __init__(
        self,
        terms: Sequence[str],
        idf: np.ndarray,
        coefficients: np.ndarray,
        intercepts: np.ndarray,
        label_names: Sequence[str],
        problem_type: str = SINGLE_LABEL,
    ):
        self.columns = {term: column for column, term in enumerate(terms)}
        self.max_ngram = max(term.count(" ") for term in terms) + 1
        self.idf = idf
        self.coefficients = coefficients
        self.intercepts = intercepts
        self.label_names = list(label_names)
        self.problem_type = problem_type

    def compute_features(self, texts: Sequence[str]) -> csr_array:
        """Weigh the terms of texts, float64 `(len(texts), terms)`: (1 + log of the count) x idf, each row of length 1.

        Bit by bit what scikit-learn's `TfidfVectorizer(sublinear_tf=True)` computes, whose import takes as long as all
        else that a prediction of a few texts does.
        """
        columns: list[int] = []
        counts: list[int] = []
        ends = [0]
        for text in texts:
            found: dict[int, int] = {}
            for term in find_terms(text, self.max_ngram):
                if (column := self.columns.get(term)) is not None:
                    found[column] = found.get(column, 0) + 1
            for column in sorted(found):
                columns.append(column)
                counts.append(found[column])
            ends.append(len(columns))
        indices = np.array(columns, dtype=np.int32)
        values = (np.log(np.array(counts, dtype=np.float64)) + 1.0) * self.idf[indices]
        rows = np.repeat(np.arange(len(texts)), np.diff(ends))
        values /= np.sqrt(np.bincount(rows, values * values, len(texts)))[rows]
        return csr_array((values, indices, ends), shape=(len(texts), len(self.columns)))

    def compute_logits(self, texts: Sequence[str]) -> np.ndarray:
        """Score texts: float32 logits `(len(texts), num_labels)`, whose softmax is the regression's probability."""
        scores = self.compute_features(texts) @ self.coefficients.T + self.intercepts
        if self.problem_type == SINGLE_LABEL and scores.shape[1] == 1:
            scores = np.concatenate([-scores / 2, scores / 2], axis=1)
        return scores.astype(np.float32)

    def num_parameters(self) -> int:
        """Count the weights and intercepts."""
        return self.coefficients.size + self.intercepts.size

    def num_bytes(self) -> int:
        """Count the bytes of the arrays and the terms, of which the saved files consist."""
        terms = sum(len(term.encode()) for term in self.columns)
        return self.idf.nbytes + self.coefficients.nbytes + self.intercepts.nbytes + terms

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the arrays, the terms and the label names into an existing folder."""
        arrays = {
            "idf": self.idf,
            "coefficients": np.ascontiguousarray(self.coefficients),
            "intercepts": np.ascontiguousarray(self.intercepts),
        }
        save_file(arrays, Path(folder) / WEIGHTS_FILE)
        for name, content in ((TERMS_FILE, list(self.columns)), (LABEL_NAMES_FILE, self.label_names)):
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
        return cls(terms, **arrays, label_names=label_names, problem_type=problem_type)


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
        return list(zip(self.model.columns, scores, strict=True))

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
        if spelt != re.findall(WORD, compose(whole)):  # a spelling that only its neighbours decide
            shown = compose(whole)
            words = find_words(shown)
            spelt = [shown[start:end] for start, end in words]
        row = self.model.compute_features([whole])
        values = dict(zip(row.indices.tolist(), row.data.tolist(), strict=True))
        coefficients = self._coefficients_by_label()
        used = np.array(sorted(values), dtype=np.int64)
        weights = dict(
            zip(used.tolist(), _scores_of(coefficients[:, used], label, self.task.problem_type), strict=True)
        )
        places: dict[int, list[range]] = {}
        for length in range(1, self.model.max_ngram + 1):
            for at in range(len(words) - length + 1):
                column = self.model.columns.get(" ".join(spelt[at : at + length]))
                if column is not None:
                    places.setdefault(column, []).append(range(at, at + length))
        contributions = np.zeros(len(words))
        for column, found in places.items():
            for place in found:
                contributions[place] += values[column] * weights[column] / (len(found) * len(place))
        parts = tuple(Part(*span, float(value)) for span, value in zip(words, contributions, strict=True))
        logits = compute_logits(["", text], None if pair is None else ["", pair])
        base, score = compute_scores(logits, np.array([label, label]), self.task.problem_type).tolist()
        return Explanation(
            shown, self.label_names[label], score, base, parts, is_exact=True, holds_pair=pair is not None
        )


def _scores_of(coefficients: np.ndarray, label: int, problem_type: str) -> list[float]:
    """Return what a term adds to a label's score, `(terms,)`, by its coefficients, `(num_labels, terms)`."""
    return compute_scores(coefficients.T, np.full(coefficients.shape[1], label), problem_type).tolist()
