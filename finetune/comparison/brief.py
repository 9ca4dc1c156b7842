"""The report in five lines, for those who decide and don't read further."""

from collections.abc import Iterator

import numpy as np

from finetune.catalogue import FLOOR
from finetune.comparison.costs import format_cost
from finetune.comparison.report import Report
from finetune.comparison.table import METRIC_NAMES, Row, format_interval
from finetune.metrics import MULTI_LABEL

__all__ = ["describe_in_brief"]

SURE_SHARE = 0.8  # of the texts, whose answers are the surest
WEAK = 0.5  # F1 of a class below which it is named
MOST_NAMES = 5


def describe_in_brief(report: Report) -> list[tuple[str, str]]:
    """Describe in a line each, with a heading, what to take, how good it is, what it costs, and what to watch."""
    name = _find_subject(report)
    row = next(row for row in report.rows if row.name == name)
    lines = [
        ("Choice" if len(report.groups) > 1 else "Method", _describe_choice(report, name)),
        ("Quality", _describe_quality(report, row)),
        ("Baseline", _describe_baseline(report, row)),
        ("Cost", _describe_cost(row)),
        ("Watch", " ".join(_describe_risks(report, name))),
    ]
    return [(heading, line) for heading, line in lines if line]


def _find_subject(report: Report) -> str:
    """Return the method that the lines are about: the one to take, else the best."""
    verdict = report.verdict
    return report.groups[0].name if verdict is None else verdict.chosen or verdict.best


def _describe_choice(report: Report, name: str) -> str:
    verdict = report.verdict
    if verdict is None:
        return f"{name} alone was measured." if len(report.groups) == 1 else f"Not judged; {name} has the best figure."
    if verdict.chosen is None:
        return f"Not decided; {name} has the best {METRIC_NAMES[report.metric]}."
    if verdict.decided:
        return f"Take {name}: the cheapest method that is no worse than any other by more than the margin."
    return f"Not decided; {name} is the safe choice until it is."


def _describe_quality(report: Report, row: Row) -> str:
    found = format_interval(report.metric, row.quality[report.metric])
    texts = f"{report.num_examples:,} test texts"
    if report.metric == "accuracy" and report.problem_type != MULTI_LABEL:
        return f"{row.name} is right about {found} of {texts} (in brackets a 95 % interval)."
    bounds = " (in brackets a 95 % interval)" if "(" in found else ""
    return f"{row.name} has a {METRIC_NAMES[report.metric]} of {found} on {texts}{bounds}."


def _describe_baseline(report: Report, row: Row) -> str:
    floor = next((one for one in report.rows if one.is_floor), None)
    if floor is None:
        groups = [group for group in report.groups if group.method == FLOOR]
        floor = next((one for one in report.rows for group in groups if one.name == group.name), None)
    if floor is None:
        return "Not measured."
    if floor is row:
        return "It is the baseline itself: no other method here is shown to be worth its cost."
    shown = format_interval(report.metric, floor.quality[report.metric])
    return f"TF-IDF with a linear model, which trains in seconds, has {shown}."


def _describe_cost(row: Row) -> str:
    return (
        f"{format_cost('train_seconds', row.costs['train_seconds'])} of training, "
        f"{format_cost('latency_seconds', row.costs['latency_seconds'])} for a text, "
        f"{format_cost('bytes', row.costs['bytes'])} to store."
    )


def _describe_risks(report: Report, name: str) -> Iterator[str]:
    if report.selective is not None:
        curve = report.selective[name]
        at = int(np.abs(curve.answered - SURE_SHARE).argmin())
        yield (
            f"Of the surest {curve.answered[at]:.0%} of its answers {curve.right[at]:.1%} are right "
            f"({curve.low[at]:.1%} to {curve.high[at]:.1%})."
        )
    table = report.per_class.get(name, {})
    dead = [label for label, one in table.items() if one["num_examples"] and not one["recall"]]
    weak = [label for label, one in table.items() if one["num_examples"] and one["recall"] and one["f1"] < WEAK]
    if dead:
        yield f"It never finds {_list(dead)}."
    if weak:
        yield f"It is weak on {_list(weak)} (F1 below {WEAK:g})."
    if not dead and not weak and table:
        label = min(table, key=lambda one: table[one]["f1"])
        yield f"Its weakest class is {label} (F1 {table[label]['f1']:.2f})."


def _list(labels: list[str]) -> str:
    more = f" and {len(labels) - MOST_NAMES} more classes" if len(labels) > MOST_NAMES else ""
    return ", ".join(labels[:MOST_NAMES]) + more
