"""Numbers in, drawings out: every function draws on the axes it is given, or on new ones, and returns them.

Colours are those of light paper. `embed_svg` turns them into CSS variables, so that a page in dark mode sets them anew.
"""

import html
import io
import itertools
import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter
from matplotlib.transforms import ScaledTranslation

from finetune.comparison.selective import SelectiveAccuracy
from finetune.comparison.statistics import Interval
from finetune.decisions.calibration import ReliabilityBins

__all__ = [
    "COLOURS",
    "embed_svg",
    "find_pareto_front",
    "plot_confusion",
    "plot_curves",
    "plot_differences",
    "plot_intervals",
    "plot_per_class",
    "plot_predictions",
    "plot_quality_by_cost",
    "plot_quality_by_length",
    "plot_reliability",
    "plot_selective_accuracy",
    "render_svg",
]

# With the markers also for people who don't tell red from green; dark enough for white paper.
COLOURS = ("#0b62c4", "#c2500a", "#14804a", "#8a3ffc", "#b3204d", "#00778a", "#7a5a12", "#5c6670")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
INK, FAINT = "#1f2328", "#d0d7de"
Box = tuple[float, float, float, float]  # left, bottom, right, top
DIRECTIONS = ((1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1))
WIDTH, HEIGHT = 3.9, 3.0  # inches: on a phone's 310 pixels the text's 9.5 points are 10 pixels
STYLE: Any = {
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: it can be read out, searched and copied
    "svg.hashsalt": "finetune",
    "text.parse_math": False,  # a label may be "$"
}


def _axes(ax: Axes | None, width: float = WIDTH, height: float = HEIGHT) -> Axes:
    return Figure(figsize=(width, height), layout="constrained").subplots() if ax is None else ax


def _colour(position: int) -> str:
    return COLOURS[position % len(COLOURS)]


def _marker(position: int) -> str:
    return MARKERS[(position + position // len(MARKERS)) % len(MARKERS)]


def _wrap(name: str) -> str:
    """Break a long name into lines."""
    return "\n".join(textwrap.wrap(name, 20, max_lines=4, placeholder=" …")) if len(name) > 20 else name


def _num_columns(names: Collection[str]) -> int:
    """Count how many names stand side by side in a legend."""
    return min(len(names), 3 if max(map(len, names)) <= 14 else 2)


def _legend_height(names: Collection[str]) -> float:
    """Return the inches that a legend takes."""
    rows = -(-len(names) // _num_columns(names))
    return 0.17 * rows * (1 + max(_wrap(name).count("\n") for name in names))


def _legend(ax: Axes) -> None:
    """Put each name once above the axes, where it covers nothing."""
    handles, names = ax.get_legend_handles_labels()
    unique = dict(zip(names, handles, strict=True))
    columns = _num_columns(unique)
    ax.legend(
        unique.values(), [_wrap(name) for name in unique], loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns,
        columnspacing=1.2,
    )  # fmt: skip


def _grid(ax: Axes, axis: str) -> None:
    ax.grid(axis=axis, color=FAINT, linewidth=0.6)  # type: ignore[arg-type]
    ax.set_axisbelow(True)


@mpl.rc_context(STYLE)
def plot_intervals(
    intervals: Mapping[str, Interval], label: str, colours: Sequence[int] | None = None, ax: Axes | None = None
) -> Axes:
    """Draw estimates with their intervals, one a line.

    Args:
        intervals: By name, the first on top; bounds may be NaN.
        label: Of the axis.
        colours: Positions in `COLOURS`; 0, 1, … if None.
        ax: Axes to draw on; new ones if None.
    """
    ax = _axes(ax, height=0.8 + sum(0.24 + 0.12 * _wrap(name).count("\n") + 0.1 for name in intervals))
    for line, (name, interval) in enumerate(intervals.items()):
        position = line if colours is None else colours[line]
        bounds = [[interval.estimate - interval.low], [interval.high - interval.estimate]]
        ax.errorbar(
            interval.estimate, line, xerr=np.nan_to_num(bounds), fmt=_marker(position), color=_colour(position),
            markersize=5.5, capsize=3, linewidth=1.4, label=name,
        )  # fmt: skip
    ax.set_yticks(range(len(intervals)), [_wrap(name) for name in intervals])
    ax.set_ylim(len(intervals) - 0.5, -0.5)
    ax.set_xlabel(label)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    _grid(ax, "x")
    return ax


@mpl.rc_context(STYLE)
def plot_differences(
    differences: Mapping[str, Interval], margin: float, label: str, greater_is_better: bool = True,
    colours: Sequence[int] | None = None, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Draw differences to the best method with their intervals, and the margin that does not matter.

    Args:
        differences: By method, in the metric's unit.
        margin: In the same unit, above 0.
        label: Of the axis.
        greater_is_better: False for errors: then more than the margin above 0 is worse.
        colours: Positions in `COLOURS`.
        ax: Axes to draw on.
    """
    ax = plot_intervals(differences, label, colours, ax)
    worse = -margin if greater_is_better else margin
    ax.axvspan(worse, 0, color=COLOURS[2], alpha=0.14, linewidth=0)
    ax.axvline(0, color=INK, linewidth=0.8)
    ax.axvline(worse, color=COLOURS[2], linewidth=1, linestyle="--")
    left, right = ax.get_xlim()
    ax.set_xlim(min(left, 2 * min(worse, 0)), max(right, 2 * max(worse, 0), margin / 2))
    return ax


def find_pareto_front(costs: Sequence[float], quality: Sequence[float], greater_is_better: bool = True) -> list[int]:
    """Find what nothing beats in cost and quality at once, cheapest first.

    Example:
        >>> find_pareto_front([1.0, 2.0, 3.0], [0.8, 0.7, 0.9])
        [0, 2]
    """
    sign = 1 if greater_is_better else -1
    front: list[int] = []
    for position in sorted(range(len(costs)), key=lambda position: (costs[position], -sign * quality[position])):
        if not front or sign * quality[position] > sign * quality[front[-1]]:
            front.append(position)
    return front


@mpl.rc_context(STYLE)
def plot_quality_by_cost(
    names: Sequence[str], costs: Sequence[float], quality: Sequence[Interval], cost_label: str, quality_label: str,
    greater_is_better: bool = True, colours: Sequence[int] | None = None, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Draw quality against cost with the Pareto front: the methods that none beats in both.

    Args:
        names: Of the methods.
        costs: Above 0, drawn on a logarithmic axis.
        quality: With intervals.
        cost_label: Of the horizontal axis, with its unit.
        quality_label: Of the vertical axis.
        greater_is_better: False for errors.
        colours: Positions in `COLOURS`.
        ax: Axes to draw on.
    """
    ax = _axes(ax)
    estimates = [interval.estimate for interval in quality]
    front = find_pareto_front(costs, estimates, greater_is_better)
    low, high = min(costs), max(costs)
    room = max(1.8, (high / low) ** 0.12)
    ax.step(
        [*(costs[position] for position in front), high * room],
        [estimates[position] for position in (*front, front[-1])],
        where="post", color=INK, linewidth=0.9, linestyle="--", zorder=1,
    )  # fmt: skip
    for line, interval in enumerate(quality):
        position = line if colours is None else colours[line]
        bounds = [[interval.estimate - interval.low], [interval.high - interval.estimate]]
        ax.errorbar(
            costs[line], interval.estimate, yerr=np.nan_to_num(bounds), fmt=_marker(position), color=_colour(position),
            markersize=7, markerfacecolor=_colour(position) if line in front else "none", markeredgewidth=1.5,
            capsize=3, linewidth=1.1,
        )  # fmt: skip
    ax.set_xscale("log")
    ax.set_xlim(low / room, high * room)
    ax.margins(y=0.18)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(axis="x", which="minor", pad=5)  # on a line with the major ones
    if high / low < 12:  # a decade has few powers of ten
        ax.xaxis.set_minor_formatter(FuncFormatter(_show_one_two_five))
    ax.set_xlabel(f"{cost_label}, logarithmic")
    ax.set_ylabel(quality_label)
    ax.yaxis.set_major_locator(MaxNLocator(6))
    _grid(ax, "y")
    points = [(cost, *interval) for cost, interval in zip(costs, quality, strict=True)]
    steps = [(costs[position], estimates[position]) for position in front]
    ends = [cost for cost, _ in steps[1:]] + [high * room]
    _label_points(ax, names, points, range(len(names)) if colours is None else colours,
                  [(x, end, y) for (x, y), end in zip(steps, ends, strict=True)])  # fmt: skip
    return ax


def _show_one_two_five(value: float, _: object) -> str:
    return f"{value:,.6g}" if f"{value:e}"[0] in "125" else ""


def _label_points(
    ax: Axes, names: Sequence[str], points: Sequence[tuple[float, float, float, float]], colours: Sequence[int],
    lines: Sequence[tuple[float, float, float]],
) -> None:  # fmt: skip
    """Write each name beside its point `(x, y, low, high)`, at the nearest place where it covers nothing.

    Nothing means no point, no interval, no other name, and no horizontal line `(left, right, y)`.
    """
    figure = ax.get_figure()
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    area = ax.get_window_extent()
    at = ax.transData.transform([(x, y) for x, y, _, _ in points])
    lows = ax.transData.transform([(x, low if np.isfinite(low) else y) for x, y, low, _ in points])
    highs = ax.transData.transform([(x, high if np.isfinite(high) else y) for x, y, _, high in points])
    marks = [(x - 6, y - 6, x + 6, y + 6) for x, y in at]
    taken = marks + [(x - 3, low, x + 3, high) for (x, low), (_, high) in zip(lows, highs, strict=True)]
    for left, right, height in lines:
        start, end = ax.transData.transform([(left, height), (right, height)])
        taken.append((start[0], start[1] - 2, end[0], end[1] + 2))
    for line, name in enumerate(names):
        x, y = points[line][:2]
        best: tuple[float, Text, Box, tuple[int, int]] | None = None
        for distance, (across, up) in itertools.product((9, 20, 32, 46), DIRECTIONS):
            shift = (across * distance, up * distance)
            note = ax.text(
                x, y, _wrap(name), color=_colour(colours[line]), linespacing=0.95,
                ha=("center", "left", "right")[across], va=("center", "bottom", "top")[up],
                transform=ax.transData + ScaledTranslation(shift[0] / 72, shift[1] / 72, figure.dpi_scale_trans),
            )  # fmt: skip
            note.set_in_layout(False)
            extent = note.get_window_extent()
            box = (extent.x0, extent.y0, extent.x1, extent.y1)
            covered = sum(_overlap(box, other) for other in taken)
            inside = _overlap(box, (area.x0, area.y0, area.x1, area.y1 + 8))
            score = covered + (box[2] - box[0]) * (box[3] - box[1]) - inside
            if best is None or score < best[0] - 1e-6:
                if best is not None:
                    best[1].remove()
                best = (score, note, box, shift)
            else:
                note.remove()
            if best[0] < 1e-6:
                break
        assert best is not None
        taken.append(best[2])
        if max(map(abs, best[3])) > 9:
            arrow = {"arrowstyle": "-", "color": _colour(colours[line]), "linewidth": 0.6, "shrinkA": 0, "shrinkB": 5}
            ax.annotate("", (x, y), best[3], textcoords="offset points", arrowprops=arrow).set_in_layout(False)


def _overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


@mpl.rc_context(STYLE)
def plot_curves(
    curves: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]], label: str,
    colours: Sequence[int] | None = None, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Draw what was logged during training, a line for each seed.

    Args:
        curves: By method, for each seed the epochs and the values.
        label: Of the vertical axis.
        colours: Positions in `COLOURS`.
        ax: Axes to draw on.
    """
    ax = _axes(ax, height=HEIGHT - 0.2 + _legend_height(curves))
    for line, (name, runs) in enumerate(curves.items()):
        position = line if colours is None else colours[line]
        for epochs, values in runs:
            few = len(epochs) <= 12
            ax.plot(
                epochs, values, color=_colour(position), linewidth=1.2, alpha=0.85, label=name,
                marker=_marker(position) if few else None, markersize=4,
            )  # fmt: skip
    _legend(ax)
    ax.set_xlabel("epoch")
    ax.set_ylabel(label)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=all(runs[0][0].max() > 1 for runs in curves.values())))
    _grid(ax, "both")
    return ax


@mpl.rc_context(STYLE)
def plot_confusion(shares: np.ndarray, label_names: Sequence[str], position: int = 0, ax: Axes | None = None) -> Axes:
    """Draw of each class the shares that are taken for each class.

    Args:
        shares: Rows are labels, columns predictions, each row sums to 1 (or to 0 without examples).
        label_names: In the order of rows and columns.
        position: Of the colour in `COLOURS`.
        ax: Axes to draw on.
    """
    count = len(label_names)
    ax = _axes(ax, WIDTH, 3.0 if count <= 2 else 3.7)
    # From nothing to colour, so that it stands on light and dark ground.
    red, green, blue = (int(_colour(position)[at : at + 2], 16) / 255 for at in (1, 3, 5))
    fade = LinearSegmentedColormap.from_list("fade", [(red, green, blue, 0.04), (red, green, blue, 0.6)])
    ax.imshow(shares, cmap=fade, vmin=0, vmax=1, interpolation="nearest")
    if count <= 12:
        size = 9.5 if count <= 6 else 8.5
        for row in range(count):
            for column in range(count):
                shown = f"{shares[row, column]:.0%}" if count <= 6 else f"{100 * shares[row, column]:.0f}"
                ax.text(column, row, shown, ha="center", va="center", fontsize=size)
    step = max(1, -(-count // 25))
    ticks = range(0, count, step)
    shown_names = [name if len(name) <= 14 else f"{name[:13]}…" for name in label_names]
    flat = count <= 3 and max(map(len, shown_names)) <= 9
    ax.set_xticks(ticks, [shown_names[tick] for tick in ticks], rotation=0 if flat else 90)
    ax.set_yticks(ticks, [shown_names[tick] for tick in ticks])
    ax.set_xlabel("predicted")
    ax.set_ylabel("label")
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.tick_params(length=0)
    return ax


@mpl.rc_context(STYLE)
def plot_reliability(
    before: ReliabilityBins, after: ReliabilityBins, errors: tuple[float, float], position: int = 0,
    axis_labels: tuple[str, str] = ("confidence", "accuracy"), ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Draw accuracy against confidence, before and after temperature scaling.

    Args:
        before: Bins of the probabilities as they are.
        after: Bins of the scaled ones.
        errors: The expected calibration errors of both, in [0, 1].
        axis_labels: Of the two axes.
        position: Of the colour in `COLOURS`.
        ax: Axes to draw on.
    """
    ax = _axes(ax, WIDTH, 3.4)
    ax.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
    for bins, label, style, face in (
        (before, f"as it is, ECE {errors[0]:.3f}", "--", "none"),
        (after, f"scaled, ECE {errors[1]:.3f}", "-", _colour(position)),
    ):
        some = bins.num_examples > 0
        sizes = 10 + 70 * bins.num_examples[some] / bins.num_examples.sum()
        ax.plot(bins.confidence[some], bins.accuracy[some], style, color=_colour(position), linewidth=1.2, label=label)
        ax.scatter(
            bins.confidence[some], bins.accuracy[some], s=sizes, facecolors=face, edgecolors=_colour(position),
            linewidths=1.1, zorder=3,
        )  # fmt: skip
    low = min(float(np.floor(10 * bins.low[bins.num_examples > 0].min()) / 10) for bins in (before, after))
    ax.set_xlim(low - 0.02, 1.02)
    ax.set_ylim(-0.03, 1.03)
    ax.set_xlabel(axis_labels[0])
    ax.set_ylabel(axis_labels[1])
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.legend(loc="lower right" if low < 0.3 else "lower left")
    _grid(ax, "both")
    return ax


@mpl.rc_context(STYLE)
def plot_selective_accuracy(
    curves: Mapping[str, SelectiveAccuracy], colours: Sequence[int] | None = None, ax: Axes | None = None
) -> Axes:
    """Draw how many of the surest answers are right against how many texts are answered, with 95 % intervals.

    Args:
        curves: By method; what `--abstain` chose is a large mark.
        colours: Positions in `COLOURS`.
        ax: Axes to draw on.
    """
    ax = _axes(ax, height=HEIGHT + _legend_height(curves))
    for line, (name, curve) in enumerate(curves.items()):
        position = line if colours is None else colours[line]
        colour = _colour(position)
        ax.plot(curve.answered, curve.right, color=colour, linewidth=1.4, label=name)
        ax.fill_between(curve.answered, curve.low, curve.high, color=colour, alpha=0.12, linewidth=0)
        if curve.chosen is not None:
            ax.plot(*curve.chosen, _marker(position), color=colour, markersize=8)
    ax.set_xlim(0, 1.02)
    ax.set_xlabel("answered texts")
    ax.set_ylabel("right answers")
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    _legend(ax)
    _grid(ax, "both")
    return ax


@mpl.rc_context(STYLE)
def plot_quality_by_length(
    edges: np.ndarray, quality: Mapping[str, np.ndarray], length_label: str, quality_label: str,
    colours: Sequence[int] | None = None, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Draw quality by text length.

    Args:
        edges: Bounds of the bins of length, `(num_bins + 1,)`.
        quality: By method, the mean in each bin, `(num_bins,)`.
        length_label: Of the horizontal axis.
        quality_label: Of the vertical axis.
        colours: Positions in `COLOURS`.
        ax: Axes to draw on.
    """
    ax = _axes(ax, height=HEIGHT - 0.2 + _legend_height(quality))
    places = np.arange(len(edges) - 1)
    for line, (name, values) in enumerate(quality.items()):
        position = line if colours is None else colours[line]
        ax.plot(
            places, values, color=_colour(position), marker=_marker(position), markersize=5, linewidth=1.3, label=name
        )
    ax.set_xticks(places, [f"{low:,.0f}–{high:,.0f}" for low, high in itertools.pairwise(edges)],
                  rotation=0 if len(places) <= 4 and edges[-1] < 1000 else 20, ha="center")  # fmt: skip
    ax.set_xlabel(length_label)
    ax.set_ylabel(quality_label)
    _legend(ax)
    _grid(ax, "y")
    return ax


@mpl.rc_context(STYLE)
def plot_per_class(
    values: Mapping[str, np.ndarray], label_names: Sequence[str], value_label: str,
    colours: Sequence[int] | None = None, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Draw bars for each class, one a method.

    Args:
        values: By method, shape `(num_labels,)`.
        label_names: Of the classes.
        value_label: Of the horizontal axis.
        colours: Positions in `COLOURS`.
        ax: Axes to draw on.
    """
    thickness = 0.8 / len(values)
    height = 0.8 + _legend_height(values) + len(label_names) * max(0.28, 0.13 * len(values))
    ax = _axes(ax, height=height)
    places = np.arange(len(label_names))
    for line, (name, bars) in enumerate(values.items()):
        position = line if colours is None else colours[line]
        offset = (line - (len(values) - 1) / 2) * thickness
        ax.barh(places + offset, bars, thickness * 0.92, color=_colour(position), label=name)
    ax.set_yticks(places, [name if len(name) <= 24 else f"{name[:23]}…" for name in label_names])
    ax.set_ylim(len(label_names) - 0.4, -0.6)
    ax.set_xlabel(value_label)
    ax.set_xlim(0, 1)
    _legend(ax)
    _grid(ax, "x")
    return ax


@mpl.rc_context(STYLE)
def plot_predictions(predicted: np.ndarray, labels: np.ndarray, position: int = 0, ax: Axes | None = None) -> Axes:
    """Draw predicted numbers against the labels; on the dotted line they agree.

    Args:
        predicted: Shape `(num_examples,)`.
        labels: Shape `(num_examples,)`.
        position: Of the colour in `COLOURS`.
        ax: Axes to draw on.
    """
    ax = _axes(ax, WIDTH, 3.4)
    ax.scatter(labels, predicted, s=7, color=_colour(position), alpha=0.35, linewidths=0, rasterized=len(labels) > 2000)
    low, high = min(predicted.min(), labels.min()), max(predicted.max(), labels.max())
    ax.plot([low, high], [low, high], color=INK, linewidth=0.8, linestyle=":")
    ax.set_xlabel("label")
    ax.set_ylabel("predicted")
    _grid(ax, "both")
    return ax


@mpl.rc_context(STYLE)
def render_svg(ax: Axes) -> str:
    """Draw the figure of some axes as an SVG file on white ground; the same figure gives the same bytes."""
    figure = ax.get_figure()
    assert isinstance(figure, Figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<!DOCTYPE[^>]*>", "", buffer.getvalue(), flags=re.DOTALL)
    text = re.sub(r"'DejaVu Sans'[^;\"]*sans-serif", "'DejaVu Sans', system-ui, sans-serif", text)
    text = re.sub(r"[\x00-\x08\x0b-\x1f\ud800-\udfff]", " ", text)  # what a label may hold, and XML may not
    return text.replace("<svg ", '<svg style="background: #ffffff" ', 1)


def embed_svg(svg: str, name: str, alt: str) -> str:
    """Make a file of `render_svg` part of a page: ids and colours that fit in, a text for those who don't see it.

    Args:
        svg: The file.
        name: Letters, digits and hyphens; distinct on the page.
        alt: What the figure shows, in words.
    """
    text = svg[svg.index("<svg ") :]
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)  # it would style the whole page
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r' width="[\d.]+pt"| height="[\d.]+pt"', "", text, count=2)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{name}-", text)
    text = text.replace("'DejaVu Sans', system-ui, sans-serif", "inherit")
    for position, colour in enumerate(COLOURS):
        text = text.replace(colour, f"var(--colour-{position}, {colour})")
    text = text.replace(INK, "currentColor").replace(FAINT, "var(--faint)")
    described = f'role="img" aria-label="{html.escape(alt, quote=True)}"'
    return text.replace('style="background: #ffffff"', described, 1)
