"""Intervals and tests against scipy, scikit-learn and values worked by hand; their coverage in a small simulation."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, f1_score, matthews_corrcoef

from finetune.comparison.statistics import (
    INFLUENCE_METRICS,
    holm,
    mcnemar,
    mean_interval,
    metric_influence,
    paired_difference,
)
from finetune.errors import FinetuneError
from finetune.metrics import accuracy_interval

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=8)
NUM_LABELS = 4


def draw_scores(seed, *shape, share=0.9):
    return (np.random.default_rng(seed).random(shape) < share).astype(float)


def draw_labels(seed, num_examples=600):
    """Labels of four unequal classes, and predictions that are right for about three of four."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(NUM_LABELS, num_examples, p=[0.5, 0.3, 0.15, 0.05])
    return labels, np.where(rng.random(num_examples) < 0.7, labels, rng.choice(NUM_LABELS, num_examples))


def test_importing_needs_no_torch_and_no_slow_package():
    code = (
        "import sys, finetune.comparison.verdict, finetune.decisions.calibration; "
        "print([name for name in ('torch', 'sklearn', 'scipy.stats', 'pandas') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_interval_of_one_run_is_wilsons():
    scores = np.repeat([[1.0, 0.0]], [2250, 250], axis=1)
    estimate, low, high = mean_interval(scores)
    assert estimate == 0.9
    assert (low, high) == pytest.approx(accuracy_interval(0.9, 2500), abs=1e-9)
    # Runs that are all alike tell no more than one.
    assert mean_interval(np.repeat(scores, 3, axis=0)) == pytest.approx((0.9, low, high))


def test_interval_of_a_perfect_and_of_a_hopeless_score_is_wilsons():
    assert mean_interval(np.ones((1, 50))) == pytest.approx((1.0, accuracy_interval(1.0, 50)[0], 1.0))
    assert mean_interval(np.zeros((3, 50))) == pytest.approx((0.0, 0.0, accuracy_interval(0.0, 50)[1]))


def test_interval_of_errors_of_one_run_is_students():
    errors = np.random.default_rng(0).gamma(2.0, size=(1, 40))
    expected = stats.ttest_1samp(errors[0], 0).confidence_interval(0.9)
    assert mean_interval(errors, confidence=0.9)[1:] == pytest.approx(tuple(expected))


def test_interval_of_runs_that_differ_in_nothing_but_a_shift_is_students_between_runs():
    # No noise and no example's part: what varies are the three runs' means.
    scores = np.repeat([[1.0], [2.0], [4.0]], 10, axis=1)
    expected = stats.ttest_1samp([11.0, 12.0, 14.0], 0).confidence_interval(0.95)
    assert mean_interval(scores + 10)[1:] == pytest.approx(tuple(expected))
    assert mean_interval(scores)[1:] == pytest.approx((0, expected[1] - 10))  # errors are not below 0


def test_difference_of_single_runs_is_the_paired_one():
    scores, reference = draw_scores(0, 1, 400), draw_scores(1, 1, 400, share=0.85)
    difference = paired_difference(scores, reference)
    student = stats.ttest_rel(scores[0], reference[0])
    assert difference.estimate == pytest.approx(scores.mean() - reference.mean())
    # The paired standard error, and two added examples of 400.
    assert difference.standard_error**2 == pytest.approx((difference.estimate / student.statistic) ** 2 + 2 / 400**2)


def test_difference_between_runs_is_welchs():
    # Every example is alike, so that the means of the runs are all that varies.
    first, second = [1.0, 2.0, 4.0], [0.5, 0.7, 0.8, 0.9]
    num_examples = 10**6
    difference = paired_difference(*(np.repeat(np.c_[runs], num_examples, axis=1) for runs in (first, second)))
    expected = stats.ttest_ind(first, second, equal_var=False)
    assert difference.degrees_of_freedom == pytest.approx(expected.df, rel=1e-4)
    assert difference.interval[1:] == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-4)
    assert difference.p_not_worse(0.0) == pytest.approx(expected.pvalue / 2, rel=1e-3)


def test_variance_components_worked_by_hand():
    # Runs' means 3/4 and 1/4, examples' 1, 1/2, 1/2, 0; residuals 1/4, -1/4, -1/4, 1/4 and their opposites: the noise
    # is 8 / 16 / 3 = 1/6. Between runs 1/8, of which 1/24 is noise; the reference has one run and no variance.
    scores = np.array([[1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    difference = paired_difference(scores, np.zeros((1, 4)))
    assert difference.noise_variances == pytest.approx((1 / 6, 0))
    assert difference.seed_variances == pytest.approx((1 / 8 - 1 / 24, 0))
    assert difference.example_variance == pytest.approx(1 / 6 - 1 / 12 + 2 / 4)  # and two examples of 1 added
    # Examples (1/6) / 4, two more 2 / 16, runs (1/12) / 2, three times as much as there are only two.
    assert difference.standard_error**2 == pytest.approx(1 / 24 + 1 / 8 + 3 / 24)


def test_agreement_on_few_examples_shows_little():
    right = np.ones((1, 100))
    assert paired_difference(right, right).low < -0.02
    assert paired_difference(np.ones((1, 5000)), np.ones((1, 5000))).low > -0.001


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 4), st.integers(2, 40))
def test_swapping_turns_the_sign_and_order_does_not_matter(seed, runs, reference_runs, num_examples):
    scores, reference = draw_scores(seed, runs, num_examples), draw_scores(seed + 1, reference_runs, num_examples)
    difference, swapped = paired_difference(scores, reference), paired_difference(reference, scores)
    assert (swapped.estimate, swapped.low, swapped.high) == pytest.approx(
        (-difference.estimate, -difference.high, -difference.low), abs=1e-12
    )
    assert difference.low <= difference.estimate <= difference.high
    assert difference.low >= -1
    assert difference.high <= 1
    assert swapped.p_worse(0.0) == pytest.approx(difference.p_not_worse(0.0))
    order = np.random.default_rng(seed).permutation(num_examples)
    reordered = paired_difference(scores[::-1, order], reference[:, order])
    assert (reordered.estimate, reordered.low) == pytest.approx((difference.estimate, difference.low), abs=1e-12)
    estimate, low, high = mean_interval(scores)
    assert 0 <= low <= estimate <= high <= 1
    assert mean_interval(scores[:, order]) == pytest.approx((estimate, low, high), abs=1e-12)


def test_p_value_agrees_with_the_interval():
    difference = paired_difference(draw_scores(0, 3, 500), draw_scores(1, 3, 500))
    assert difference.p_not_worse(-difference.low) == pytest.approx(0.025)
    assert difference.p_worse(-difference.high) == pytest.approx(0.025)
    assert difference.p_not_worse(0.01) + difference.p_worse(0.01) == pytest.approx(1)


def test_a_foreseen_difference_moves_by_what_its_uncertainty_loses():
    difference = paired_difference(draw_scores(0, 1, 20_000), draw_scores(1, 1, 20_000))
    same, more = difference.foresee(20_000), difference.foresee(80_000)
    assert (same.movement, same.standard_error) == (0, pytest.approx(difference.standard_error))
    assert more.standard_error == pytest.approx(difference.standard_error / 2)
    assert more.movement**2 + more.standard_error**2 == pytest.approx(difference.standard_error**2)


@pytest.mark.parametrize("scores", [np.ones(5), np.ones((1, 1)), np.array([[1.0, np.nan]]), np.ones((2, 4))])
def test_scores_that_cannot_be_compared(scores):
    with pytest.raises(FinetuneError, match="Expected"):
        paired_difference(scores, np.ones((1, 5)))


def test_mcnemar_is_the_binomial_test_of_the_examples_that_differ():
    correct, reference = draw_scores(0, 2, 500, share=0.8).astype(int)
    wins = int(((correct == 1) & (reference == 0)).sum())
    differing = int((correct != reference).sum())
    assert mcnemar(correct, reference) == pytest.approx(stats.binomtest(wins, differing).pvalue)
    assert mcnemar(correct, correct) == 1
    assert mcnemar(np.array([1, 0]), np.array([0, 1])) == 1


@given(P_VALUES)
def test_holm_keeps_the_order_and_lies_between_none_and_bonferroni(p_values):
    adjusted = holm(p_values)
    ranks = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(adjusted)[ranks]) >= 0).all()
    for p_value, after in zip(p_values, adjusted, strict=True):
        assert p_value <= after <= min(1, len(p_values) * p_value)
    assert adjusted[ranks[0]] == min(1, len(p_values) * p_values[ranks[0]])
    assert all(fewer <= after for fewer, after in zip(holm(p_values, len(p_values) - 1), adjusted, strict=True))


def test_holm_worked_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # 4, 3, 2 times, then the largest
    assert holm([0.01, 0.04], most_true=1) == [0.01, 0.04]
    assert holm([]) == []


REFERENCES = {
    "accuracy": lambda labels, predictions: np.mean(labels == predictions),
    "balanced_accuracy": balanced_accuracy_score,
    "macro_f1": lambda labels, predictions: f1_score(
        labels, predictions, labels=range(NUM_LABELS), average="macro", zero_division=0
    ),
    "mcc": matthews_corrcoef,
}


@pytest.mark.parametrize("name", INFLUENCE_METRICS["single_label_classification"])
def test_influences_are_what_leaving_out_an_example_does(name):
    labels, predictions = draw_labels(0)
    estimate, influence = metric_influence(name, labels, predictions, NUM_LABELS)
    assert estimate == pytest.approx(REFERENCES[name](labels, predictions))
    assert influence.mean() == pytest.approx(0, abs=1e-12)
    # The empirical influence with an example's weight raised by a little: the derivative itself.
    n, weight = len(labels), 20
    for row in range(25):
        labels_more, predictions_more = (
            np.concatenate([np.repeat(values, weight), values[row : row + 1]]) for values in (labels, predictions)
        )
        raised = REFERENCES[name](labels_more, predictions_more)
        # One more of 20 n examples moves the share of this example by 1 / (20 n + 1).
        assert (raised - estimate) * (weight * n + 1) == pytest.approx(influence[row], rel=0.02, abs=0.005)


@pytest.mark.parametrize("name", INFLUENCE_METRICS["single_label_classification"])
def test_influences_have_the_variance_of_the_bootstrap(name):
    labels, predictions = draw_labels(1)
    _, influence = metric_influence(name, labels, predictions, NUM_LABELS)
    rng = np.random.default_rng(0)
    drawn = [rng.integers(0, len(labels), len(labels)) for _ in range(400)]
    bootstrap = [metric_influence(name, labels[rows], predictions[rows], NUM_LABELS)[0] for rows in drawn]
    assert influence.std() / len(labels) ** 0.5 == pytest.approx(np.std(bootstrap), rel=0.1)


@pytest.mark.parametrize("name", ["macro_f1", "micro_f1"])
def test_influences_with_several_labels(name):
    rng = np.random.default_rng(2)
    labels = (rng.random((500, 3)) < [0.5, 0.3, 0.1]).astype(int)
    predictions = np.where(rng.random((500, 3)) < 0.8, labels, 1 - labels)
    average = name.removesuffix("_f1")
    estimate, influence = metric_influence(name, labels, predictions, 3)
    assert estimate == pytest.approx(f1_score(labels, predictions, average=average))
    bootstrap = []
    for _ in range(300):
        rows = rng.integers(0, 500, 500)
        bootstrap.append(f1_score(labels[rows], predictions[rows], average=average))
    assert influence.mean() == pytest.approx(0, abs=1e-12)
    assert influence.std() / 500**0.5 == pytest.approx(np.std(bootstrap), rel=0.12)
    assert metric_influence("accuracy", labels, predictions, 3)[0] == (labels == predictions).all(axis=1).mean()


def test_influences_where_a_metric_is_0_by_convention():
    labels, same = np.array([0, 0, 1, 1]), np.zeros(4, dtype=int)
    assert metric_influence("mcc", labels, same, 2)[0] == 0
    # The third class has no example, so it is in no mean, though predicting it is a mistake.
    assert metric_influence("macro_f1", labels, labels, 3)[0] == 1
    assert metric_influence("macro_f1", labels, np.array([0, 2, 1, 1]), 3)[0] == pytest.approx((2 / 3 + 1) / 2)
    assert metric_influence("balanced_accuracy", labels, labels, 3)[0] == 1
    with pytest.raises(FinetuneError, match="roc_auc"):
        metric_influence("roc_auc", labels, labels, 2)


def simulate(rng, num_simulations, num_seeds, seed_deviation):
    """Draw as benchmarks/coverage.py does: a latent score with a part shared by methods, a method's and a run's own."""
    num_examples = 2_000
    shared = rng.standard_normal((num_simulations, 1, num_examples)) * 0.7**0.5
    scores = []
    for accuracy in (0.92, 0.90):
        own = rng.standard_normal((num_simulations, 1, num_examples)) * 0.15**0.5
        noise = rng.standard_normal((num_simulations, num_seeds, num_examples)) * 0.15**0.5
        run = stats.norm.ppf(accuracy + seed_deviation * rng.standard_normal((num_simulations, num_seeds, 1)))
        scores.append(run + shared + own + noise > 0)
    return scores


@pytest.mark.parametrize("num_seeds", [3, 5])
@pytest.mark.parametrize("seed_deviation", [0.0, 0.003, 0.01])
def test_intervals_hold_the_true_difference_of_new_seeds_and_examples(num_seeds, seed_deviation):
    rng = np.random.default_rng(num_seeds)
    held = []
    for first, second in zip(*simulate(rng, 200, num_seeds, seed_deviation), strict=True):
        _, low, high = paired_difference(first, second).interval
        held.append(low <= 0.02 <= high)
    assert 0.91 <= np.mean(held) <= 0.99  # 200 draws of 0.95: four standard deviations are 6 points
