"""How far a model's answers can be trusted, in figures: calibration, silence, sets of labels."""

import numpy as np
from sklearn.model_selection import KFold

from finetune.decisions.calibration import (
    brier_score,
    expected_calibration_error,
    fit_temperature,
    label_calibration_error,
)
from finetune.decisions.rules import DecisionRules, HeldOut
from finetune.metrics import MULTI_LABEL, REGRESSION, accuracy_interval, compute_log_loss, compute_metric
from finetune.run.fields import AbstentionRecord, Answers, Calibration, CalibrationFigures, PredictionSetsRecord

__all__ = ["describe_answers", "measure_calibration", "measure_sets", "measure_silence"]

PARTS = 5  # of the validation rows, each scaled by a temperature that the others gave
FEWEST_TO_PART = 10


def describe_answers(rules: DecisionRules, validation: HeldOut, test: HeldOut | None) -> Answers:
    """Describe rules that were fitted on validation, with what they give on test; only the rules without its labels."""
    calibration = None
    if rules.problem_type != REGRESSION:
        calibration = Calibration(
            temperature=rules.temperature,
            validation_before=measure_calibration(validation.logits, validation.labels),
            validation_after=measure_calibration(_scale_in_parts(rules, validation), validation.labels),
        )
        if test is not None:
            calibration.test_before = measure_calibration(test.logits, test.labels)
            calibration.test_after = measure_calibration(test.logits / rules.temperature, test.labels)
    answers = Answers(calibration=calibration) if calibration is not None else Answers()
    if rules.costs is not None:
        answers.costs = rules.costs.tolist()
    if rules.abstention is not None:
        answers.abstention = measure_silence(rules, test)
    if rules.prediction_sets is not None:
        answers.prediction_sets = measure_sets(rules, test)
    return answers


def measure_calibration(logits: np.ndarray, labels: np.ndarray) -> CalibrationFigures:
    """Compute log loss, calibration error and Brier score of logits, for one class a text or several labels."""
    several = labels.ndim == 2
    rules = DecisionRules(MULTI_LABEL) if several else DecisionRules()
    probabilities = rules.to_probabilities(logits.astype(np.float64))
    loss = compute_metric("loss", logits, labels, MULTI_LABEL) if several else compute_log_loss(logits, labels)
    error = label_calibration_error if several else expected_calibration_error
    return CalibrationFigures(log_loss=loss, ece=error(probabilities, labels), brier=brier_score(probabilities, labels))


def measure_silence(rules: DecisionRules, test: HeldOut | None) -> AbstentionRecord:
    """Count how many texts are answered, and how many of these answers are right."""
    assert rules.abstention is not None
    asked = rules.abstention
    record = AbstentionRecord(
        precision=asked.precision, confidence=asked.confidence, validation_answered=asked.answered
    )
    if test is None:
        return record
    probabilities = rules.to_probabilities(test.logits)
    decided = rules.decide(probabilities)
    given = rules.are_given(probabilities, decided)
    record.test_answered = float(given.mean())
    if given.any():
        right = rules.are_right(decided, test.labels)[given]
        record.test_precision = float(right.mean())
        record.test_precision_interval = accuracy_interval(record.test_precision, len(right))
    return record


def measure_sets(rules: DecisionRules, test: HeldOut | None) -> PredictionSetsRecord:
    """Count how often sets hold the right label, or intervals the number, and how large they are."""
    assert rules.prediction_sets is not None
    sets = rules.prediction_sets
    record = PredictionSetsRecord(
        coverage=sets.coverage, class_conditional=sets.class_conditional, quantiles=list(sets.quantiles)
    )
    if test is None:
        return record
    found = rules.to_probabilities(test.logits)
    if rules.problem_type == REGRESSION:
        ends = sets.around(found[:, 0])
        holds = (ends[:, 0] <= test.labels) & (test.labels <= ends[:, 1])
        sizes = ends[:, 1] - ends[:, 0]
    else:
        contained = sets.contain(found)
        several = test.labels.ndim == 2
        truth = test.labels.astype(bool) if several else np.arange(found.shape[1]) == test.labels[:, None]
        holds, sizes = (contained | ~truth).all(axis=1), contained.sum(axis=1)
    record.test_coverage = float(holds.mean())
    record.test_coverage_interval = accuracy_interval(record.test_coverage, len(holds))
    record.test_mean_size = float(sizes.mean())
    return record


def _scale_in_parts(rules: DecisionRules, validation: HeldOut) -> np.ndarray:
    """Divide logits by temperatures that other rows gave; by the rules' own where there are too few rows to part."""
    logits, labels = validation.logits.astype(np.float64), validation.labels
    if rules.temperature == 1 or len(logits) < FEWEST_TO_PART:
        return logits / rules.temperature
    scaled = np.empty_like(logits)
    for others, part in KFold(PARTS, shuffle=True, random_state=0).split(logits):
        scaled[part] = logits[part] / fit_temperature(logits[others], labels[others])
    return scaled
