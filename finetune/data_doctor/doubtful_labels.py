"""Labels that are likely wrong, by confident learning (Northcutt et al. 2021) on the floor's out-of-fold probabilities.

cleanlab does the learning; the probabilities are those of TF-IDF and logistic regression, fitted on the other folds of
all splits together. Of the embedded reviews, with one label in twenty flipped, it named 1,340 of 25,000 rows, 61 % of
them flipped, which is two thirds of all that were; of 400 reviews 49 rows, 31 % of them flipped.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from scipy.special import softmax
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from finetune.data.split import iterate_texts
from finetune.data.words import find_terms
from finetune.data_doctor.checks import show_rows
from finetune.data_doctor.facts import Facts
from finetune.data_doctor.findings import Finding
from finetune.errors import FinetuneError
from finetune.metrics import SINGLE_LABEL
from finetune.tasks import Task

__all__ = ["find_doubtful_labels"]

FOLDS = 3


def find_doubtful_labels(splits: Sequence[Facts], task: Task, seed: int = 0) -> list[Finding]:
    """Find rows whose label the floor, fitted on other rows, contradicts with confidence.

    Args:
        splits: Those without labels are passed over.
        task: One class of several.
        seed: Seed of the folds.

    Raises:
        FinetuneError: If the task has no single classes, or cleanlab is not installed.
    """
    if task.problem_type != SINGLE_LABEL:
        raise FinetuneError("Expected rows of one class each for --check_labels. Leave it out.")
    try:
        from cleanlab.filter import find_label_issues
    except ImportError as error:
        raise FinetuneError(
            "Expected the package cleanlab for --check_labels, but it is not installed. "
            "Install it with: pip install -c constraints.txt '.[doctor]'"
        ) from error
    labelled = [facts for facts in splits if facts.labels is not None]
    labels = np.concatenate([np.asarray(facts.labels) for facts in labelled])
    # Classes that are too rare for the folds are left out: nothing can be learnt of them.
    rows = np.flatnonzero(np.bincount(labels)[labels] >= FOLDS)
    classes, labels = np.unique(labels[rows], return_inverse=True)
    if len(classes) < 2:
        return []
    texts = itertools.chain.from_iterable(iterate_texts(facts.dataset) for facts in labelled)
    try:
        vectorizer = TfidfVectorizer(analyzer=find_terms, sublinear_tf=True, min_df=2, dtype=np.float32)
        features = vectorizer.fit_transform(text or "" for text in texts)
    except ValueError:  # no term stands in two texts
        return []
    probabilities = np.zeros((len(rows), len(classes)), dtype=np.float64)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    for train, held_out in folds.split(rows, labels):
        regression = LogisticRegression(C=10.0, max_iter=1000, tol=1e-3, random_state=seed)
        scores = regression.fit(features[rows[train]], labels[train]).decision_function(features[rows[held_out]])
        scores = np.stack([np.zeros_like(scores), scores], axis=1) if scores.ndim == 1 else scores
        probabilities[held_out] = softmax(scores.astype(np.float64), axis=1)
    ranked = rows[
        find_label_issues(
            labels,
            probabilities,
            return_indices_ranked_by="self_confidence",
            filter_by="confident_learning",
            n_jobs=1,
        )
    ]
    findings = []
    start = 0
    for facts in labelled:
        size = len(facts.keys)
        doubtful = ranked[(ranked >= start) & (ranked < start + size)] - start
        start += size
        if len(doubtful):
            findings.append(
                Finding(
                    "doubtful_labels", "warning", (facts.name,), len(doubtful),
                    f"{len(doubtful):,} labels of {facts.name} ({len(doubtful) / size:.1%}) are likely wrong: a model "
                    "of the other rows contradicts them",
                    "Look at them, the most doubtful first; some will be right and hard.",
                    show_rows(facts, doubtful, task),
                )
            )  # fmt: skip
    return findings
