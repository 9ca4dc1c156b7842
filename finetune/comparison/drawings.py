"""Which figures a report has, with titles and the words that stand for them."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from finetune.comparison.costs import format_cost
from finetune.comparison.differences import find_confusions
from finetune.comparison.plots import (
    embed_svg,
    plot_confusion,
    plot_curves,
    plot_differences,
    plot_intervals,
    plot_per_class,
    plot_predictions,
    plot_quality_by_cost,
    plot_quality_by_length,
    plot_reliability,
    plot_selective_accuracy,
    render_svg,
)
from finetune.comparison.report import Report
from finetune.comparison.statistics import Interval
from finetune.comparison.table import BETTER_IF_GREATER, METRIC_NAMES, format_interval, format_metric
from finetune.escape import to_terminal
from finetune.metrics import MULTI_LABEL, REGRESSION

__all__ = ["Drawing", "draw_report"]

# Seconds, bytes and numbers as the axes show them.
COST_AXES: dict[str, tuple[str, str, float]] = {
    "train_seconds": ("training time", "training time in seconds", 1),
    "train_cpu_seconds": ("CPU time", "CPU time of training in seconds", 1),
    "peak_memory_bytes": ("memory", "peak memory in MiB", 2**20),
    "bytes": ("stored size", "stored model in MiB", 2**20),
    "latency_seconds": ("latency", "latency of one text in ms", 1e-3),
}
MOST_CLASSES = 12  # in the bars
MOST_MATRIX_CLASSES = 20  # of a confusion matrix, whose names have to be read
MOST_POINTS = 200  # of a curve


@dataclass(frozen=True)
class Drawing:
    """A figure of the report.

    Attributes:
        name: Letters, digits and hyphens; also its file's name.
        section: "verdict", "cost", "training", "errors", "confusion", "calibration" or "silence".
        title: What it shows, in a line.
        alt: The same with its numbers, for those who don't see it.
        svg: A file of its own.
        embedded: The same as part of a page.
    """

    name: str
    section: str
    title: str
    alt: str
    svg: str
    embedded: str


def draw_report(report: Report) -> list[Drawing]:
    """Draw every figure that the report has numbers for."""
    with warnings.catch_warnings():
        # Text stays text, so that the reader's fonts count and not those that measure it here.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        return [
            _finish(name, section, title, alt, axes)
            for build in (
                _draw_quality,
                _draw_costs,
                _draw_training,
                _draw_errors,
                _draw_calibration,
                _draw_silence,
            )
            for name, section, title, alt, axes in build(report)
        ]


Parts = tuple[str, str, str, str, Axes]


def _finish(name: str, section: str, title: str, alt: str, axes: Axes) -> Drawing:
    svg = render_svg(axes)
    return Drawing(name, section, title, alt, svg, embed_svg(svg, name, alt))


def _scale(metric: str) -> tuple[float, str]:
    """Return the factor and the name with which an axis shows a metric: accuracies in percent."""
    if metric in ("accuracy", "balanced_accuracy"):
        return 100, f"{METRIC_NAMES[metric]} in %"
    return 1, METRIC_NAMES[metric]


def _capital(name: str) -> str:
    return name[0].upper() + name[1:]


def _times(interval: Interval, factor: float) -> Interval:
    return Interval(*(factor * value for value in interval))


def _draw_quality(report: Report) -> Iterator[Parts]:
    metric, name = report.metric, METRIC_NAMES[report.metric]
    factor, label = _scale(metric)
    verdict = report.verdict
    if verdict is not None:
        greater = BETTER_IF_GREATER[metric]
        unit, shown = (" in points", 100) if greater else ("", 1)
        differences = {group.name: verdict.comparisons[group.name].difference for group in report.groups}
        alt = f"Difference of each method to {verdict.best} in {name}{unit} with 95 % intervals: " + "; ".join(
            f"{method} {shown * one.estimate:+.2g} ({shown * one.low:+.2g} to {shown * one.high:+.2g})"
            for method, one in differences.items()
            if method != verdict.best
        )
        axes = plot_differences(
            {method: _times(one, shown) for method, one in differences.items()}, shown * report.margin,
            f"difference to {verdict.best}{unit}", greater,
        )  # fmt: skip
        title = f"Difference to {verdict.best} in {name}; shaded: losses within the margin"
        yield "difference-to-best", "verdict", title, alt, axes
    quality = {row.name: row.quality[metric] for row in report.rows}
    alt = f"{name} on the test split with 95 % intervals: " + "; ".join(
        f"{method} {format_interval(metric, one)}" for method, one in quality.items()
    )
    axes = plot_intervals({method: _times(one, factor) for method, one in quality.items()}, label)
    yield "quality", "verdict", f"{_capital(name)} on the test split, 95 % intervals", alt, axes
    if report.lengths is not None:
        lengths = report.lengths
        factor, label = _scale(lengths.metric)
        alt = f"{METRIC_NAMES[lengths.metric]} by text length in {lengths.unit}: " + "; ".join(
            f"{method} " + ", ".join(format_metric(lengths.metric, value) for value in values)
            for method, values in lengths.quality.items()
        )
        axes = plot_quality_by_length(
            lengths.edges, {method: factor * values for method, values in lengths.quality.items()},
            f"length in {lengths.unit}", label,
        )  # fmt: skip
        yield "by-length", "errors", f"{_capital(METRIC_NAMES[lengths.metric])} by text length", alt, axes


def _draw_costs(report: Report) -> Iterator[Parts]:
    metric, rows = report.metric, [row for row in report.rows if not row.is_floor]
    factor, label = _scale(metric)
    quality = [row.quality[metric] for row in rows]
    for cost, (short, axis, unit) in COST_AXES.items():
        costs = [row.costs[cost] for row in rows]
        known = [value for value in costs if value]
        if len(known) < len(rows):
            continue
        alt = f"{METRIC_NAMES[metric]} against {short}: " + "; ".join(
            f"{row.name} {format_metric(metric, one.estimate)} at {format_cost(cost, row.costs[cost])}"
            for row, one in zip(rows, quality, strict=True)
        )
        axes = plot_quality_by_cost(
            [row.name for row in rows], [value / unit for value in known], [_times(one, factor) for one in quality],
            axis, label, BETTER_IF_GREATER[metric],
        )  # fmt: skip
        name = f"cost-{cost.replace('_', '-')}"
        yield name, "cost", f"{_capital(METRIC_NAMES[metric])} against {short}", alt, axes


def _draw_training(report: Report) -> Iterator[Parts]:
    factor, label = _scale(report.metric)
    metric = METRIC_NAMES[report.metric]
    for key, name, title, axis, times in (
        (f"eval_{report.metric}", "validation-curve", f"Validation {metric}", f"validation {label}", factor),
        ("eval_loss", "validation-loss-curve", "Validation loss", "validation loss", 1),
        ("loss", "loss-curve", "Training loss", "training loss", 1),
    ):  # fmt: skip
        curves, colours = {}, []
        for position, group in enumerate(report.groups):
            lines = [_curve(run.history, key, times) for run in group.runs]
            lines = [line for line in lines if len(line[0])]
            if lines:
                curves[group.name] = lines
                colours.append(position)
        if curves:
            alt = f"{title} by epoch: " + "; ".join(
                f"{method} ends at {np.mean([values[-1] for _, values in lines]):.4g}"
                for method, lines in curves.items()
            )
            yield name, "training", f"{title}, a line for each seed", alt, plot_curves(curves, axis, colours)


def _curve(history: Sequence[dict[str, float]], key: str, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Return epochs and values of what was logged, thinned to the means of neighbours where there are many."""
    points = np.array([(entry["epoch"], factor * entry[key]) for entry in history if key in entry]).reshape(-1, 2)
    if len(points) > MOST_POINTS:
        points = np.array([part.mean(axis=0) for part in np.array_split(points, MOST_POINTS)])
    return points[:, 0], points[:, 1]


def _draw_errors(report: Report) -> Iterator[Parts]:
    names = [to_terminal(name) for name in report.label_names]
    if report.problem_type == REGRESSION:
        for position, group in enumerate(report.groups):
            predicted = np.mean([run.test.logits[:, 0] for run in group.runs], axis=0)
            labels = group.runs[0].test.labels
            alt = f"Predicted numbers of {group.name} against the labels, correlation {_correlate(predicted, labels)}"
            yield f"predictions-{position}", "confusion", group.name, alt, plot_predictions(predicted, labels, position)
        return
    f1 = {
        method: np.array([table[label]["f1"] for label in report.label_names])
        for method, table in report.per_class.items()
    }
    spread = np.ptp(list(f1.values()), axis=0) if len(f1) > 1 else -next(iter(f1.values()))
    shown = np.sort(np.argsort(-spread, kind="stable")[:MOST_CLASSES])
    title = "F1 of each class"
    if len(names) > MOST_CLASSES:
        title = f"F1 of the {MOST_CLASSES} classes " + ("that differ most" if len(f1) > 1 else "with the lowest F1")
    alt = f"{title}: " + "; ".join(
        f"{method} " + ", ".join(f"{names[number]} {values[number]:.3f}" for number in shown)
        for method, values in f1.items()
    )
    axes = plot_per_class(
        {method: values[shown] for method, values in f1.items()}, [names[number] for number in shown], "F1"
    )
    yield "per-class", "errors", title, alt, axes
    for position, (method, counts) in enumerate(report.confusion.items() if report.confusion is not None else ()):
        sums = counts.sum(axis=1, keepdims=True)
        shares = np.divide(counts, sums, out=np.zeros_like(counts), where=sums > 0)
        alt = f"Confusion matrix of {method}; most often " + "; ".join(
            f"{one.label} is taken for {one.prediction} ({one.share:.0%} of its examples)"
            for one in find_confusions(counts, names)
        )
        title = method
        if len(names) > MOST_MATRIX_CLASSES:
            mixed = counts * (1 - np.eye(len(counts)))
            worst = np.sort(np.argsort(-(mixed.sum(axis=0) + mixed.sum(axis=1)), kind="stable")[:MOST_MATRIX_CLASSES])
            shares, title = (
                shares[np.ix_(worst, worst)],
                f"{method}, the {MOST_MATRIX_CLASSES} classes with most mistakes",
            )
            axes = plot_confusion(shares, [names[number] for number in worst], position)
        else:
            axes = plot_confusion(shares, names, position)
        yield f"confusion-{position}", "confusion", title, alt, axes


def _correlate(predicted: np.ndarray, labels: np.ndarray) -> str:
    if len(labels) < 2 or np.ptp(predicted) == 0 or np.ptp(labels) == 0:
        return "not defined"
    return f"{np.corrcoef(predicted, labels)[0, 1]:.3f}"


def _draw_calibration(report: Report) -> Iterator[Parts]:
    if report.calibration is None:
        return
    for position, (method, one) in enumerate(report.calibration.items()):
        alt = (
            f"Reliability of {method}: expected calibration error {one.before:.3f}, and {one.after:.3f} after "
            f"temperature scaling with {', '.join(f'{value:.2f}' for value in one.temperatures)}"
        )
        several = report.problem_type == MULTI_LABEL
        named = ("probability of a label", "share with the label") if several else ("confidence", "accuracy")
        axes = plot_reliability(one.bins_before, one.bins_after, (one.before, one.after), position, named)
        yield f"reliability-{position}", "calibration", method, alt, axes


def _draw_silence(report: Report) -> Iterator[Parts]:
    if report.selective is None:
        return
    described = []
    for method, curve in report.selective.items():
        points = [int(np.abs(curve.answered - share).argmin()) for share in (0.5, 0.8, 1.0)]
        found = ", ".join(f"{curve.right[at]:.1%} of {curve.answered[at]:.0%}" for at in points)
        described.append(f"{method} {found}")
    alt = f"Right answers by the share of texts that are answered, the surest first: {'; '.join(described)}"
    title = "Right answers, where only the surest are given; shaded: 95 % intervals"
    yield "selective-accuracy", "silence", title, alt, plot_selective_accuracy(report.selective)
