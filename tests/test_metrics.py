"""Metrics against values worked by hand, and the `evaluate` objects against the functions."""

import math

import evaluate
import numpy as np
import pytest

from finetune.comparison.statistics import metric_influence
from finetune.evaluate_metrics import LogitMetric, list_metrics
from finetune.metrics import (
    DECISION_METRICS,
    METRICS,
    MULTI_LABEL,
    REGRESSION,
    SCORE_METRICS,
    SINGLE_LABEL,
    accuracy_interval,
    compute_classification_report,
    compute_log_loss,
    compute_metrics,
)

# Predicted 1, 1, 0, 0 for 1, 0, 0, 0: one false positive.
LOGITS = np.array([[0.0, 2.0], [0.0, 1.0], [3.0, 0.0], [1.5, 0.0]], dtype=np.float32)
LABELS = np.array([1, 0, 0, 0])


def test_values_worked_by_hand():
    metrics = compute_metrics(LOGITS, LABELS)
    assert metrics.keys() == METRICS[SINGLE_LABEL].keys()
    assert metrics["accuracy"] == 3 / 4
    assert metrics["precision"] == pytest.approx((1 + 1 / 2) / 2)  # class 0: 2 of 2; class 1: 1 of 2
    assert metrics["recall"] == pytest.approx((2 / 3 + 1) / 2)
    assert metrics["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert metrics["mcc"] == pytest.approx((1 * 2 - 1 * 0) / math.sqrt(2 * 1 * 3 * 2))
    assert metrics["roc_auc"] == 1.0  # the one positive has the highest score
    margins = [2, -1, 3, 1.5]  # of the true class over the other
    assert metrics["loss"] == pytest.approx(sum(math.log(1 + math.exp(-margin)) for margin in margins) / 4)


@pytest.mark.parametrize("absent", [0, 1, 2])
def test_a_class_without_examples_is_in_no_average(absent):
    first, second = (number for number in range(3) if number != absent)
    labels = np.array([first, first, second, second])
    right = compute_metrics(10 * np.eye(3)[labels], labels)
    assert {name: right[name] for name in ("macro_f1", "precision", "recall", "balanced_accuracy")} == dict.fromkeys(
        ("macro_f1", "precision", "recall", "balanced_accuracy"), 1.0
    )
    estimate, influence = metric_influence("macro_f1", labels, labels, 3)
    assert (estimate, np.abs(influence).max()) == (1.0, 0.0)
    several = compute_metrics(np.where(np.eye(3)[labels] > 0, 5.0, -5.0), np.eye(3, dtype=int)[labels], MULTI_LABEL)
    assert several["macro_f1"] == 1.0


def test_cross_entropy_of_the_textbook_example():
    assert compute_log_loss(np.log([[0.1, 0.7, 0.2]]), np.array([1])) == pytest.approx(0.357, abs=5e-4)


def test_roc_auc_of_three_classes_and_of_a_missing_class():
    logits = np.eye(3)[[0, 1, 2, 0]] * 4.0
    assert compute_metrics(logits, np.array([0, 1, 2, 0]))["roc_auc"] == 1.0
    assert math.isnan(compute_metrics(logits, np.array([0, 1, 1, 0]))["roc_auc"])


def test_wilson_interval():
    # n = 2500, p = 0.9, z = 1.959964: (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    low, high = accuracy_interval(0.9, 2500)
    assert (low, high) == pytest.approx((0.88760, 0.91116), abs=5e-5)
    assert accuracy_interval(1.0, 100)[1] == 1.0


def test_report_names_every_class():
    report = compute_classification_report(LOGITS.argmax(axis=1), LABELS, ["no", "yes", "never"])
    assert [name for name in ("no", "yes", "never") if name in report] == ["no", "yes", "never"]


NUMBERS = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("problem_type", "logits", "labels"),
    [
        (SINGLE_LABEL, LOGITS, LABELS),
        (
            SINGLE_LABEL,
            NUMBERS.normal(size=(40, 4)).astype(np.float32),
            NUMBERS.integers(0, 3, 40),
        ),  # one never appears
        (
            MULTI_LABEL,
            NUMBERS.normal(size=(40, 3)).astype(np.float32),
            NUMBERS.integers(0, 2, (40, 3)).astype(np.float32),
        ),
        (REGRESSION, NUMBERS.normal(size=(40, 1)), NUMBERS.normal(size=40).astype(np.float32)),
        (REGRESSION, np.ones((3, 1)), np.ones(3)),
    ],
)
def test_evaluate_objects_give_the_same_numbers_without_a_download(problem_type, logits, labels):
    metrics = evaluate.combine(list_metrics(problem_type))
    for _ in range(2):  # the second time nothing is left of the first
        found = metrics.compute(predictions=logits, references=labels)
        assert list(found) == list(METRICS[problem_type])
        np.testing.assert_equal(found, compute_metrics(logits, labels, problem_type))
    one = LogitMetric("loss", problem_type).compute(predictions=logits, references=labels)
    assert one == {"loss": found["loss"]}


def test_every_metric_has_a_function():
    for task, names in METRICS.items():
        assert [*DECISION_METRICS[task], *SCORE_METRICS[task]] == list(names)
