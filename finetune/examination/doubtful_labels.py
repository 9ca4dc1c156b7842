"""Labels that are likely wrong, by confident learning (Northcutt et al. 2021) on the floor's out-of-fold probabilities.

cleanlab does the learning; the probabilities are those of TF-IDF and logistic regression, fitted on the other folds.
"""

import numpy as np
from scipy.special import softmax
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from finetune.data.labels import Task
from finetune.data.split import iterate_texts
from finetune.errors import FinetuneError
from finetune.examination.checks import show_rows
from finetune.examination.facts import Facts
from finetune.examination.findings import Finding
from finetune.metrics import SINGLE_LABEL
from finetune.models.tfidf import ANALYSIS

__all__ = ["find_doubtful_labels"]

FOLDS = 3


def find_doubtful_labels(facts: Facts, task: Task, seed: int = 0) -> list[Finding]:
    """Find rows of a split whose label the floor, fitted on other rows, contradicts with confidence.

    Args:
        facts: Of a labelled split.
        task: One class of several.
        seed: Seed of the folds.

    Raises:
        FinetuneError: If the task has no single classes, or cleanlab is not installed.
    """
    if task.problem_type != SINGLE_LABEL or facts.labels is None:
        raise FinetuneError("Expected labelled rows of one class each for --check_labels. Leave it out.")
    try:
        from cleanlab.filter import find_label_issues
    except ImportError as error:
        raise FinetuneError(
            "Expected the package cleanlab for --check_labels, but it is not installed. "
            "Install it with: pip install -c constraints.txt '.[doctor]'"
        ) from error
    # Classes that are too rare for the folds are left out: nothing can be learnt of them.
    counts = np.bincount(facts.labels, minlength=len(task.label_names))
    rows = np.flatnonzero(counts[facts.labels] >= FOLDS)
    classes, labels = np.unique(facts.labels[rows], return_inverse=True)
    if len(classes) < 2:
        return []
    vectorizer = TfidfVectorizer(**ANALYSIS, min_df=2, dtype=np.float32)
    features = vectorizer.fit_transform(text or "" for text in iterate_texts(facts.dataset.select(rows)))
    probabilities = np.zeros((len(rows), len(classes)), dtype=np.float64)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    for train, held_out in folds.split(rows, labels):
        regression = LogisticRegression(C=10.0, max_iter=1000, tol=1e-3, random_state=seed)
        scores = regression.fit(features[train], labels[train]).decision_function(features[held_out])
        scores = np.stack([np.zeros_like(scores), scores], axis=1) if scores.ndim == 1 else scores
        probabilities[held_out] = softmax(scores.astype(np.float64), axis=1)
    doubtful = find_label_issues(labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    if len(doubtful) == 0:
        return []
    return [
        Finding(
            "doubtful_labels", "warning", (facts.name,), len(doubtful),
            f"{len(doubtful):,} labels of {facts.name} ({len(doubtful) / len(rows):.1%}) are likely wrong: a model "
            "of the other rows contradicts them",
            "Look at them, the most doubtful first; some will be right and hard.",
            show_rows(facts, rows[doubtful], task),
        )
    ]  # fmt: skip
