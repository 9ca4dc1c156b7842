"""Calibration against values worked by hand, and temperatures that are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from finetune.decisions.calibration import (
    brier_score,
    compute_probabilities,
    expected_calibration_error,
    fit_temperature,
    reliability_bins,
)
from finetune.metrics import compute_log_loss

# Confidences 0.95, 0.85, 0.85, 0.65, 0.55; right, right, wrong, right, wrong.
PROBABILITIES = np.array([[0.95, 0.05], [0.15, 0.85], [0.85, 0.15], [0.65, 0.35], [0.45, 0.55]])
LABELS = np.array([0, 1, 1, 0, 0])


def draw_calibrated(seed, num_examples=20_000, num_labels=3):
    """Logits whose softmax are the true probabilities of the labels."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (num_examples, num_labels))
    labels = (softmax(logits, axis=1).cumsum(axis=1) > rng.random((num_examples, 1))).argmax(axis=1)
    return logits, labels


def test_bins_worked_by_hand():
    bins = reliability_bins(PROBABILITIES, LABELS, num_bins=5)
    assert bins.num_examples.tolist() == [0, 0, 1, 1, 3]
    assert bins.confidence[2:] == pytest.approx([0.55, 0.65, (0.95 + 0.85 + 0.85) / 3])
    assert bins.accuracy[2:] == pytest.approx([0, 1, 2 / 3])
    assert np.isnan(bins.accuracy[:2]).all()
    # (1 * 0.55 + 1 * 0.35 + 3 * |2/3 - 2.65/3|) / 5
    assert expected_calibration_error(PROBABILITIES, LABELS, num_bins=5) == pytest.approx((0.55 + 0.35 + 0.65) / 5)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    bins = reliability_bins(np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([0, 0]), num_bins=2)
    assert bins.num_examples.tolist() == [1, 1]


def test_errors_of_perfect_and_of_boastful_probabilities():
    logits, labels = draw_calibrated(0)
    assert expected_calibration_error(softmax(logits, axis=1), labels) < 0.015
    sure = np.eye(3)[labels * 0]  # always sure of the first class
    assert expected_calibration_error(sure, labels) == pytest.approx(np.mean(labels != 0))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_spoilt_the_logits_is_found(temperature):
    logits, labels = draw_calibrated(1)
    spoilt = (logits * temperature).astype(np.float32)
    found = fit_temperature(spoilt, labels)
    assert found == pytest.approx(temperature, rel=0.03)
    assert expected_calibration_error(compute_probabilities(spoilt, found), labels) < 0.015
    losses = [compute_log_loss(spoilt / other, labels) for other in (found, found * 1.05, found / 1.05)]
    assert min(losses) == losses[0]


def test_temperatures_stay_within_bounds():
    logits = np.repeat([[5.0, 0.0], [0.0, 5.0]], 10_000, axis=0)
    labels = np.repeat([0, 1], 10_000)
    assert 0.01 <= fit_temperature(logits, labels) < 0.6  # all right: the colder the better
    assert 20 < fit_temperature(logits, 1 - labels) <= 100  # all wrong: the hotter the better


def test_a_handful_of_rows_hardly_moves_the_temperature():
    logits = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
    found = [fit_temperature(np.repeat(logits, count, axis=0), np.repeat([0, 1, 0], count)) for count in (1, 10, 500)]
    assert found[0] == 1 > found[1] > 0.5 > 0.35 > found[2]


def test_a_temperature_is_taken_only_where_the_rows_speak_for_it():
    logits, labels = draw_calibrated(2)
    kept = [fit_temperature(1.05 * logits[part], labels[part]) for part in np.array_split(np.arange(4_000), 40)]
    assert kept.count(1.0) > 30  # of 100 rows each
    assert fit_temperature(1.05 * logits, labels) == pytest.approx(1.05, abs=0.03)


def test_several_labels_share_a_temperature():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (5_000, 3))
    labels = (rng.random((5_000, 3)) < 1 / (1 + np.exp(-logits))).astype(int)
    assert fit_temperature(logits * 2.5, labels) == pytest.approx(2.5, rel=0.05)


def test_brier_score_worked_by_hand():
    assert brier_score(np.array([[0.8, 0.2]]), np.array([1])) == pytest.approx(0.64 + 0.64)
    assert brier_score(np.array([[0.8, 0.2]]), np.array([[1, 1]])) == pytest.approx((0.04 + 0.64) / 2)


@given(st.integers(0, 2**32 - 1), st.integers(1, 20))
def test_error_is_between_0_and_1_whatever_the_order(seed, num_bins):
    rng = np.random.default_rng(seed)
    probabilities = softmax(rng.normal(0, 3, (30, 4)), axis=1)
    labels = rng.integers(0, 4, 30)
    error = expected_calibration_error(probabilities, labels, num_bins)
    order = rng.permutation(30)
    assert 0 <= error <= 1
    assert expected_calibration_error(probabilities[order], labels[order], num_bins) == pytest.approx(error)
    assert reliability_bins(probabilities, labels, num_bins).num_examples.sum() == 30
