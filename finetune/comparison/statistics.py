"""Scores per example and seed in, intervals and p-values out: what another seed or other test examples would change.

A method's scores form a matrix, one row a training run (seed), one column a test example; every method has the same
examples. The mean over both is the figure that is reported. With a run s and an example i drawn at random, a score is

    score[s, i] = mean + run[s] + example[i] + noise[s, i],

four uncorrelated parts: two-way crossed random effects, one score a cell (Searle, Casella and McCulloch 1992,
"Variance Components", chapter 4). More runs shrink the share of `run` and `noise` in the mean's variance, more examples
that of `example` and `noise`. Two methods share the examples, so their difference is taken example by example; they
share no runs: seed 0 of one has nothing to do with seed 0 of the other. Student's t has Satterthwaite's (1946) degrees
of freedom. So with endless examples the interval becomes Welch's between runs, and with one run of each method, or
runs that are all alike, the paired one between examples.

What no interval here holds: another draw of the training or the validation split, and other hyper-parameters. With one
run of a method it holds nothing of the seed either.

`benchmarks/coverage.py` measures how often the 95 % intervals hold the truth: 95 to 96 % of them for differences on
2,000 examples with 3 or 5 seeds, whether the seed's standard deviation is 0, 0.3 or 1.0 points; up to 98 % with 2 seeds
or 300 examples; 92 to 94 % where most of the uncertainty comes from 3 seeds of one method.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import bdtr, stdtr, stdtrit

from finetune.errors import FinetuneError

__all__ = [
    "FEWEST_OF_A_CLASS",
    "INFLUENCE_METRICS",
    "Difference",
    "Foreseen",
    "Interval",
    "Support",
    "find_support",
    "holm",
    "mcnemar",
    "mean_interval",
    "metric_influence",
    "paired_difference",
]


# What `metric_influence` knows, by problem type.
INFLUENCE_METRICS = {
    "single_label_classification": ("accuracy", "balanced_accuracy", "macro_f1", "mcc"),
    "multi_label_classification": ("accuracy", "macro_f1", "micro_f1"),
}


# Test examples of each class from which on a metric that averages over classes has an interval.
FEWEST_OF_A_CLASS = 10


class Support(NamedTuple):
    """How few examples a metric may rest on that averages over classes, however many the split has.

    Attributes:
        low: The least value of the metric; the greatest is 1.
        smallest: Test examples of the rarest class.
        size: Examples of which a plain mean would be as uncertain, were all classes equally hard: `k**2 / sum(1 / n)`
            of k classes with n examples each.
        largest: The most that one example adds to its own score, one of the rarest class: its share of the metric times
            the number of examples.
        degrees_of_freedom: Of the variance between examples, which is mostly that within the rarest classes
            (Satterthwaite 1946, for a mean over strata).
    """

    low: float
    smallest: int
    size: float
    largest: float
    degrees_of_freedom: float

    @property
    def is_enough(self) -> bool:
        """Whether intervals and tests hold: not of a class with a handful of examples."""
        return self.smallest >= FEWEST_OF_A_CLASS


class Interval(NamedTuple):
    """An estimate and its two-sided interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """The difference of two methods' means over seeds and examples, and what its tests need.

    Attributes:
        estimate: Mean of the method's scores minus that of the reference.
        low: Lower bound of the two-sided interval.
        high: Upper bound.
        standard_error: Of the estimate, over new examples and, for a method with several runs, new seeds.
        degrees_of_freedom: Of Student's t.
        num_examples: Test examples.
        num_seeds: Runs of the method and of the reference.
        example_variance: Between examples, of the difference of the two methods' expected scores; the two examples that
            `paired_difference` adds included.
        noise_variances: For each method, of a run's score around what its example and run let expect; 0 with one run,
            where it is part of `example_variance`.
        seed_variances: For each method, between runs, of a run's mean over endless examples; 0 with one run.
        run_variances: The same on these examples, noise included.
    """

    estimate: float
    low: float
    high: float
    standard_error: float
    degrees_of_freedom: float
    num_examples: int
    num_seeds: tuple[int, int]
    example_variance: float
    noise_variances: tuple[float, float]
    seed_variances: tuple[float, float]
    run_variances: tuple[float, float]

    @property
    def interval(self) -> Interval:
        """The estimate with its two-sided interval."""
        return Interval(self.estimate, self.low, self.high)

    def p_not_worse(self, margin: float = 0.0) -> float:
        """Test whether the method is worse than the reference by less than `margin`, if at all (non-inferiority).

        Args:
            margin: In the unit of the scores, 0 or more.

        Returns:
            The one-sided p-value of the hypothesis that the true difference is `-margin` or less.
        """
        return self._p_value(-self.estimate - margin)

    def p_worse(self, margin: float = 0.0) -> float:
        """Test whether the method is worse than the reference by more than `margin`.

        Args:
            margin: In the unit of the scores, 0 or more.

        Returns:
            The one-sided p-value of the hypothesis that the true difference is `-margin` or more.
        """
        return self._p_value(self.estimate + margin)

    def _p_value(self, distance: float) -> float:
        """Return the probability of Student's t below `distance`."""
        if self.standard_error == 0:  # scores that don't vary, so the difference is known
            return float(distance >= 0)
        return float(stdtr(self.degrees_of_freedom, distance / self.standard_error))

    def foresee(self, num_examples: int) -> "Foreseen":
        """Foresee the same difference, with the same runs, on more examples, of which the present ones are a part.

        Args:
            num_examples: At least as many as now.

        Returns:
            What the variances that were measured let expect: as uncertain as they are.
        """
        seeds, noise, runs = np.array(self.num_seeds), np.array(self.noise_variances), np.array(self.seed_variances)
        of_examples = float(self.example_variance + (noise / seeds).sum())
        between_examples = of_examples / num_examples
        variance = between_examples + float((_widen(seeds) * runs / seeds).sum())
        observed = runs + noise / num_examples
        return Foreseen(
            movement=(of_examples / self.num_examples - between_examples) ** 0.5,
            standard_error=variance**0.5,
            degrees_of_freedom=_satterthwaite(variance, between_examples, num_examples - 1, observed, seeds),
        )


class Foreseen(NamedTuple):
    """A difference that will be measured.

    Attributes:
        movement: Standard deviation of its estimate around the present one: what the uncertainty will have lost.
        standard_error: Of its estimate.
        degrees_of_freedom: Of Student's t.
    """

    movement: float
    standard_error: float
    degrees_of_freedom: float


class _Parts(NamedTuple):
    """One method's scores taken apart.

    Attributes:
        num_seeds: Runs.
        by_example: Mean over the runs, `(num_examples,)`.
        noise: Variance of the noise.
        seeds: Variance between the runs' means over endless examples, at least 0.
        observed: Variance between the runs' means over these examples, noise included.
    """

    num_seeds: int
    by_example: np.ndarray
    noise: float
    seeds: float
    observed: float


def _take_apart(scores: np.ndarray) -> _Parts:
    """Estimate the variance components from the mean squares of the two-way table (ANOVA estimators)."""
    num_seeds, num_examples = scores.shape
    by_example = scores.mean(axis=0)
    if num_seeds == 1:
        return _Parts(1, by_example, 0.0, 0.0, 0.0)
    by_run = scores.mean(axis=1)
    residuals = scores - by_example - (by_run - by_run.mean())[:, None]
    noise = float((residuals**2).sum()) / ((num_seeds - 1) * (num_examples - 1))
    observed = float(by_run.var(ddof=1))
    return _Parts(num_seeds, by_example, noise, max(0.0, observed - noise / num_examples), observed)


def _widen(num_seeds: np.ndarray) -> np.ndarray:
    """Return by what the variance between runs is multiplied: 3 with two runs, where it is a guess.

    With one degree of freedom it is often far too small, and then Satterthwaite's are far too many: where the spread of
    the seeds outweighs the test examples, intervals of a method with two runs held the truth in 87 % of simulations,
    and hold it in 93 % with three times the variance.
    """
    return np.where(num_seeds == 2, 3.0, 1.0)


def _satterthwaite(
    variance: float, between_examples: float, freedom: float, observed: np.ndarray, num_seeds: np.ndarray
) -> float:
    """Return the degrees of freedom of a variance that is a sum of mean squares (Satterthwaite 1946, equation 17)."""
    several = num_seeds > 1
    runs = (_widen(num_seeds) * observed / num_seeds)[several] ** 2 / (num_seeds[several] - 1)
    spread = between_examples**2 / freedom + float(runs.sum())
    return variance**2 / spread if spread > 0 else freedom


def _check(*matrices: np.ndarray) -> list[np.ndarray]:
    """Take scores as float64 and refuse what can't be compared."""
    checked = [np.asarray(scores, dtype=np.float64) for scores in matrices]
    for scores in checked:
        if scores.ndim != 2 or scores.shape[1] < 2 or scores.shape[0] < 1:
            raise FinetuneError(
                f"Expected scores of at least one run and two test examples, but found the shape {scores.shape}. "
                "Compare runs on a larger test split."
            )
        if not np.isfinite(scores).all():
            raise FinetuneError("Expected scores that are numbers, but found NaN or infinity. Train that run again.")
    if len({scores.shape[1] for scores in checked}) > 1:
        raise FinetuneError(
            f"Expected methods with the same test examples, but found {[scores.shape[1] for scores in checked]} of "
            "them. Compare runs on one test split."
        )
    return checked


def _is_right_or_wrong(scores: np.ndarray) -> bool:
    return bool(((scores == 0) | (scores == 1)).all())


def mean_interval(scores: np.ndarray, confidence: float = 0.95, support: Support | None = None) -> Interval:
    """Return the mean of a method's scores with what a new seed and new test examples would do to it.

    For a metric that is at most 1 it is Wilson's (1927) interval with the number of examples that a simple sample would
    need for the same variance, and Student's t for the normal quantile (as Dean and Pagano 2015 do for clustered
    samples); so it stays within the metric's range. Errors, which have no upper end, have Student's interval.

    Args:
        scores: Shape `(num_seeds, num_examples)`: 0 and 1, errors, or a metric plus the influences on it. With one run,
            or runs that are all alike, the interval holds the uncertainty from the test examples alone; for a method
            that isn't deterministic say so.
        confidence: In (0, 1).
        support: Of a metric plus the influences on it, from `find_support`.

    Raises:
        FinetuneError: If the scores are not such a matrix of finite numbers.

    Example:
        >>> [round(bound, 3) for bound in mean_interval(np.repeat([[1.0, 0.0]], [800, 200], axis=1))]
        [0.8, 0.774, 0.824]
    """
    (scores,) = _check(scores)
    num_examples = scores.shape[1]
    parts = _take_apart(scores)
    mean = float(parts.by_example.mean())
    is_share = _is_right_or_wrong(scores) and support is None
    # Wilson's variance is that of a share, without Bessel's correction.
    between_examples = float(parts.by_example.var(ddof=0 if is_share else 1)) / num_examples
    num_seeds = np.array([parts.num_seeds])
    variance = between_examples + float(_widen(num_seeds)[0]) * parts.seeds / parts.num_seeds
    freedom = num_examples - 1 if support is None else support.degrees_of_freedom
    freedom = _satterthwaite(variance, between_examples, freedom, np.array([parts.observed]), num_seeds)
    if support is None and not is_share:
        half = float(stdtrit(freedom, (1 + confidence) / 2)) * variance**0.5
        return Interval(mean, max(mean - half, 0.0) if scores.min() >= 0 else mean - half, mean + half)
    low, most = (0.0, float(num_examples)) if support is None else (support.low, support.size)
    # Of a share alone the variance is known where the share is, so the quantile is the normal one.
    knows_variance = is_share and parts.observed == 0
    quantile = float(stdtrit(np.inf if knows_variance else freedom, (1 + confidence) / 2))
    share, variance = (mean - low) / (1 - low), variance / (1 - low) ** 2
    size = share * (1 - share) / variance if variance > 0 else most
    if support is not None:
        size = min(size, most)  # a rare class that is all right by chance is no proof that it is easy
    centre = (share + quantile**2 / (2 * size)) / (1 + quantile**2 / size)
    half = quantile / (1 + quantile**2 / size) * (share * (1 - share) / size + (quantile / (2 * size)) ** 2) ** 0.5
    bounds = max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))
    return Interval(mean, *(low + (1 - low) * bound for bound in bounds))


def paired_difference(
    scores: np.ndarray, reference: np.ndarray, confidence: float = 0.95, support: Support | None = None
) -> Difference:
    """Compare two methods on the same test examples: the difference of their means over seeds and examples.

    Its variance is that of the differences by example, averaged over the runs, over the number of examples, plus for
    each method the variance between its runs that the noise doesn't explain, at least 0, over their number.

    Two examples are added to the variance, on which one method is right and the other is wrong, one each way (Bonett
    and Price 2012 do so for two proportions): that two methods agree on a hundred examples doesn't show that they
    always do. Of a metric that averages over classes they are two of the rarest class; errors take the largest
    difference that was seen instead.

    Args:
        scores: Shape `(num_seeds, num_examples)`, more is better.
        reference: Shape `(num_seeds, num_examples)`: any number of seeds, the same examples in the same order.
        confidence: Of the two-sided interval, in (0, 1).
        support: Of a metric plus the influences on it, from `find_support`.

    Returns:
        The difference `scores` minus `reference`. A method with one run, or with runs that are all alike, has no
        variance between seeds in it: right for a deterministic method; for another it holds for that run alone.

    Raises:
        FinetuneError: If the scores are not such matrices of finite numbers, or differ in their examples.
    """
    scores, reference = _check(scores, reference)
    num_examples = scores.shape[1]
    parts = (_take_apart(scores), _take_apart(reference))
    by_example = parts[0].by_example - parts[1].by_example
    estimate = float(by_example.mean())
    most = np.inf  # the largest difference that there can be
    if support is not None:
        size, most = support.largest, 1 - support.low
    elif _is_right_or_wrong(scores) and _is_right_or_wrong(reference):
        size = most = 1.0
    else:
        size = float(np.abs(by_example).max()) or float(max(np.ptp(scores), np.ptp(reference)))
    example_variance = float(by_example.var(ddof=1)) + 2 * size**2 / num_examples
    between_examples = example_variance / num_examples
    num_seeds = np.array([part.num_seeds for part in parts])
    seeds = np.array([part.seeds for part in parts])
    variance = between_examples + float((_widen(num_seeds) * seeds / num_seeds).sum())
    observed = np.array([part.observed for part in parts])
    freedom = num_examples - 1 if support is None else support.degrees_of_freedom
    freedom = _satterthwaite(variance, between_examples, freedom, observed, num_seeds)
    half = float(stdtrit(freedom, (1 + confidence) / 2)) * variance**0.5
    return Difference(
        estimate=estimate,
        low=max(-most, estimate - half),
        high=min(most, estimate + half),
        standard_error=variance**0.5,
        degrees_of_freedom=freedom,
        num_examples=num_examples,
        num_seeds=(parts[0].num_seeds, parts[1].num_seeds),
        example_variance=max(0.0, example_variance - sum(part.noise / part.num_seeds for part in parts)),
        noise_variances=(parts[0].noise, parts[1].noise),
        seed_variances=(parts[0].seeds, parts[1].seeds),
        run_variances=(parts[0].observed, parts[1].observed),
    )


def mcnemar(correct: np.ndarray, reference: np.ndarray) -> float:
    """Test by McNemar's exact test whether two models are right equally often.

    Of the examples on which one is right and the other wrong, each has half if they are (McNemar 1947; Dietterich
    1998). It speaks of these two trained models, not of their methods.

    Args:
        correct: 0 and 1, shape `(num_examples,)`.
        reference: 0 and 1, the same examples.

    Returns:
        The two-sided p-value.

    Example:
        >>> mcnemar(np.array([1, 1, 1, 1, 1, 0]), np.array([0, 0, 0, 0, 0, 0]))  # 5 of 5: 2 * (1/2)**5
        0.0625
    """
    correct, reference = np.asarray(correct, dtype=bool), np.asarray(reference, dtype=bool)
    wins, losses = int((correct & ~reference).sum()), int((~correct & reference).sum())
    return min(1.0, 2 * float(bdtr(min(wins, losses), wins + losses, 0.5)))


def holm(p_values: Sequence[float], most_true: int | None = None) -> list[float]:
    """Adjust p-values of several tests (Holm 1979).

    Reject those that are at most the level: the probability of one false rejection or more is at most the level too,
    however the tests depend on each other.

    Args:
        p_values: In any order.
        most_true: How many of the hypotheses can be true together, if not all; no p-value is multiplied by more
            (Shaffer 1986).

    Returns:
        The adjusted p-values, in the same order.

    Example:
        >>> holm([0.03, 0.01, 0.04])
        [0.06, 0.03, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    most_true = len(p_values) if most_true is None else most_true
    largest = 0.0
    for rank, position in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, min(most_true, len(p_values) - rank) * p_values[position]))
        adjusted[position] = largest
    return adjusted


def find_support(name: str, labels: np.ndarray) -> Support | None:
    """Count what a metric rests on.

    Args:
        name: A metric; None is returned of one that is a plain mean over the examples, such as accuracy.
        labels: Class numbers, `(num_examples,)`; for several labels 0 and 1, `(num_examples, num_labels)`. Classes
            without examples are in no mean, so they don't count.
    """
    if name in ("accuracy", "mae", "mse"):
        return None
    num_examples, at_once = len(labels), 1.0
    counts = labels.sum(axis=0).astype(np.int64) if labels.ndim == 2 else np.bincount(labels)
    counts = counts[counts > 0]
    if name == "micro_f1":  # of all labels together, of which an example may have several
        at_once = max(1.0, float(labels.sum(axis=1).max()))
        counts = np.array([counts.sum()])
    elif name == "mcc" and len(counts) > 1:  # of all examples together, so of those beside the most frequent class
        counts = np.array([counts.max(), counts.sum() - counts.max()])
    if len(counts) == 0:
        return Support(0.0, 0, 1.0, float(num_examples), 1.0)
    shares = 1 / counts
    within = float((shares**2 / np.maximum(counts - 1, 1)).sum())
    return Support(
        low=-1.0 if name == "mcc" else 0.0,
        smallest=int(counts.min()),
        size=len(counts) ** 2 / float(shares.sum()),
        largest=at_once * num_examples / (len(counts) * int(counts.min())),
        degrees_of_freedom=float(shares.sum()) ** 2 / within,
    )


def metric_influence(
    name: str, labels: np.ndarray, predictions: np.ndarray, num_labels: int
) -> tuple[float, np.ndarray]:
    """Return a metric with the influence of each example on it, so that it can be treated as a mean over examples.

    The influence is the metric's derivative by the example's weight, times the number of examples (the infinitesimal
    jackknife, Efron 1982, chapter 6), from the confusion matrix in one pass. `estimate + influence` are scores for
    `mean_interval` and `paired_difference`: their mean is the metric, and their variance over the number of examples
    is the metric's. This is a first-order approximation, which breaks with a handful of examples of a class: see
    `find_support`.

    Args:
        name: One of `INFLUENCE_METRICS`.
        labels: Class numbers, shape `(num_examples,)`; for several labels 0 and 1, shape `(num_examples, num_labels)`.
        predictions: Of the same shape.
        num_labels: Classes, those without examples included.

    Returns:
        The metric as `finetune.metrics.compute_metrics` computes it, and the influences, `(num_examples,)`, of mean 0.

    Raises:
        FinetuneError: If the metric is none of these.
    """
    known = INFLUENCE_METRICS["single_label_classification" if labels.ndim == 1 else "multi_label_classification"]
    if name not in known:
        raise FinetuneError(
            f"Expected one of the metrics {', '.join(known)}, but got {name!r}. Compare by one of them."
        )
    right = (labels == predictions).astype(np.float64)
    if labels.ndim == 2:
        right = right.min(axis=1)
    if name == "accuracy":
        estimate = float(right.mean())
        return estimate, right - estimate
    if labels.ndim == 2:
        hits, sizes = 2.0 * labels * predictions, (labels + predictions).astype(np.float64)
        if name == "micro_f1":
            hits, sizes = hits.sum(axis=1, keepdims=True), sizes.sum(axis=1, keepdims=True)
        elif labels.any():
            hits, sizes = hits[:, labels.any(axis=0)], sizes[:, labels.any(axis=0)]
        totals = sizes.mean(axis=0)
        f1 = _divide(hits.mean(axis=0), totals)
        return float(f1.mean()), _divide(hits - f1 * sizes, totals).mean(axis=1)
    confusion = np.bincount(labels * num_labels + predictions, minlength=num_labels**2) / len(labels)
    confusion = confusion.reshape(num_labels, num_labels)
    hit, true, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    if name == "macro_f1":
        f1, present = _divide(2 * hit, true + predicted), true > 0
        weight = _divide(np.where(present, 1.0, 0.0), true + predicted)
        influence = 2 * right * weight[labels] - (f1 * weight)[labels] - (f1 * weight)[predictions]
        return float(f1[present].mean()), influence / np.count_nonzero(present)
    if name == "balanced_accuracy":
        recall, present = _divide(hit, true), np.count_nonzero(true)
        return float(recall.sum() / present), (right - recall[labels]) / true[labels] / present
    # Gorodkin 2004: the covariance of labels and predictions over the root of the product of their variances.
    both = true @ predicted
    spread_true, spread_predicted = 1 - true @ true, 1 - predicted @ predicted
    if spread_true == 0 or spread_predicted == 0:
        return 0.0, np.zeros(len(labels))
    covariance, scale = hit.sum() - both, (spread_true * spread_predicted) ** 0.5
    mcc = covariance / scale
    change = right - hit.sum() - predicted[labels] - true[predictions] + 2 * both
    change_true = 2 * (true @ true - true[labels])
    change_predicted = 2 * (predicted @ predicted - predicted[predictions])
    shrink = change_true / spread_true + change_predicted / spread_predicted
    return float(mcc), change / scale - mcc * shrink / 2


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide; 0 where the denominator is 0."""
    zeros = np.zeros(np.broadcast_shapes(numerator.shape, denominator.shape))
    return np.divide(numerator, denominator, out=zeros, where=denominator > 0)
