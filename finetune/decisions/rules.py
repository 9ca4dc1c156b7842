"""How a model's scores become its answers; fitted on rows that it was not trained on."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import expit, softmax

from finetune.decisions.abstention import Abstention, choose_confidence, reachable_precision
from finetune.decisions.cost_matrix import build_cost_matrix
from finetune.decisions.prediction_sets import PredictionSets, fit_prediction_sets
from finetune.errors import FinetuneError
from finetune.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task

__all__ = ["DecisionRules", "HeldOut", "Wishes", "check_wishes", "fit_rules"]


@dataclass(frozen=True)
class HeldOut:
    """Rows that a model was not trained on: what it says of them, and their labels.

    Attributes:
        logits: float32, `(rows, num_labels)`.
        labels: Class numbers or numbers, `(rows,)`; of several labels 0 and 1, `(rows, num_labels)`.
    """

    logits: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Wishes:
    """What is asked of a model's answers.

    Attributes:
        calibrate: Whether probabilities are scaled so that they hold.
        abstain: The share of the given answers that is to be right, in (0, 1); None to answer every text.
        coverage: The share of texts whose set of labels is to hold the right one, in (0, 1); None for no sets.
        class_conditional: Whether that is to hold for each class by itself.
        costs: What wrong answers cost, by the names of the true and the answered label; None if all cost the same.
    """

    calibrate: bool = True
    abstain: float | None = None
    coverage: float | None = None
    class_conditional: bool = False
    costs: Mapping[str, Mapping[str, float]] | None = None


@dataclass(frozen=True, eq=False)
class DecisionRules:
    """How scores become answers.

    Attributes:
        problem_type: transformers' name of the task.
        temperature: What logits are divided by.
        thresholds: Of several labels the probability from which on each is predicted, `(num_labels,)` or one for all.
        costs: `(num_labels, num_labels)`, what it costs to answer a column's label where a row's is right; None if the
            most probable label is the answer.
        abstention: Which answers are given; None for all.
        prediction_sets: Which labels are in a text's set; None without sets.
    """

    problem_type: str = SINGLE_LABEL
    temperature: float = 1.0
    thresholds: Any = 0.5
    costs: np.ndarray | None = None
    abstention: Abstention | None = None
    prediction_sets: PredictionSets | None = None

    def to_probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Turn logits `(texts, num_labels)` into probabilities; a regression's numbers stay what they are.

        Raises:
            FinetuneError: If they are no numbers.
        """
        with np.errstate(over="ignore"):
            scaled = logits if self.temperature == 1 else logits / np.asarray(self.temperature, logits.dtype)
        if not np.isfinite(scaled).all():
            row = int(np.flatnonzero(~np.isfinite(scaled).all(axis=1))[0])
            raise FinetuneError(
                f"Expected numbers as a model's answer, but it gives NaN or infinity for text {row} of {len(logits)}. "
                "Save the model again, or compute in another format."
            )
        if self.problem_type == REGRESSION:
            return logits
        return expit(scaled) if self.problem_type == MULTI_LABEL else softmax(scaled, axis=-1)

    def decide(self, probabilities: np.ndarray) -> np.ndarray:
        """Return which labels are the answers, true or false, `(texts, num_labels)`.

        The most probable one, or the one that costs least in expectation; with several labels a text, all that reach
        their threshold.
        """
        if self.problem_type == MULTI_LABEL:
            return probabilities >= self.thresholds
        best = probabilities.argmax(axis=1) if self.costs is None else (probabilities @ self.costs).argmin(axis=1)
        return np.arange(probabilities.shape[1]) == best[:, None]

    def predict(self, logits: np.ndarray) -> np.ndarray:
        """Return the answers by logits as metrics take them: class numbers, `(texts,)`; of several labels 0 and 1."""
        if self.problem_type == REGRESSION or (self.problem_type == SINGLE_LABEL and self.costs is None):
            return logits.argmax(axis=-1)
        decided = self.decide(self.to_probabilities(logits))
        return decided.astype(np.int64) if self.problem_type == MULTI_LABEL else decided.argmax(axis=1)

    def confidence(self, probabilities: np.ndarray, decided: np.ndarray) -> np.ndarray:
        """Return the probability that an answer is right, `(texts,)`.

        That of the answered label; of several labels the product over all of them, as if they were independent.
        """
        if self.problem_type == MULTI_LABEL:
            return np.where(decided, probabilities, 1 - probabilities).prod(axis=1)
        return (probabilities * decided).sum(axis=1)

    def are_given(self, probabilities: np.ndarray, decided: np.ndarray) -> np.ndarray:
        """Return which answers are sure enough to be given, true or false, `(texts,)`."""
        if self.abstention is None:
            return np.ones(len(probabilities), dtype=bool)
        return self.confidence(probabilities, decided) >= self.abstention.confidence

    def are_right(self, decided: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return which answers are right, `(texts,)`; of several labels those of which all are."""
        if self.problem_type == MULTI_LABEL:
            return (decided == labels.astype(bool)).all(axis=1)
        return decided[np.arange(len(labels)), labels]


def check_wishes(wishes: Wishes, task: Task) -> None:
    """Refuse what a task does not have.

    Raises:
        FinetuneError: If something is asked of answers that are numbers or several labels, or costs are given of labels
            that are not the task's.
    """
    is_number = task.problem_type == REGRESSION
    if wishes.class_conditional and (is_number or wishes.coverage is None):
        raise FinetuneError("Expected classes and --coverage with --class_conditional. Give it, or leave the flag out.")
    if is_number and wishes.abstain is not None:
        raise FinetuneError("Expected classes for --abstain, but a number is predicted. --coverage gives intervals.")
    if task.problem_type != SINGLE_LABEL and wishes.costs is not None:
        what = "a number is predicted" if is_number else "a text has several labels"
        raise FinetuneError(f"Expected one class a text for --cost_matrix, but {what}. Leave it out.")
    if wishes.costs is not None:
        build_cost_matrix(wishes.costs, task.label_names)


def fit_rules(
    wishes: Wishes, held_out: HeldOut | None, task: Task, temperature: float = 1.0, thresholds: Any = 0.5
) -> DecisionRules:
    """Fit what is asked of a model's answers.

    Args:
        wishes: What is asked.
        held_out: Rows that the model was not trained on; needed for sets and for silence.
        task: What is predicted.
        temperature: What logits are divided by; see `fit_temperature`.
        thresholds: Of several labels the probabilities, after that division, from which on each is predicted.

    Raises:
        FinetuneError: See `check_wishes`.
    """
    check_wishes(wishes, task)
    costs = None if wishes.costs is None else build_cost_matrix(wishes.costs, task.label_names)
    rules = DecisionRules(task.problem_type, temperature, thresholds, costs)
    if held_out is None:
        return rules
    probabilities = rules.to_probabilities(held_out.logits.astype(np.float64))
    sets = abstention = None
    if wishes.coverage is not None:
        sets = fit_prediction_sets(
            probabilities, held_out.labels, task.problem_type, wishes.coverage, wishes.class_conditional
        )
    if wishes.abstain is not None:
        decided = rules.decide(probabilities)
        abstention = choose_confidence(
            rules.confidence(probabilities, decided), rules.are_right(decided, held_out.labels), wishes.abstain
        )
        if not abstention.answered:
            most = reachable_precision(
                rules.confidence(probabilities, decided), rules.are_right(decided, held_out.labels)
            )
            warnings.warn(
                f"{len(decided):,} validation rows don't prove that any answers are right {wishes.abstain:.1%} of the "
                f"time, so no text is answered; --abstain {most:g} could be promised",
                stacklevel=2,
            )
    return replace(rules, abstention=abstention, prediction_sets=sets)
