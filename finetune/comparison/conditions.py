"""Under which conditions a verdict holds, in sentences: settings, what was read of the texts, classes, duplicates."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from finetune.comparison.groups import Group
from finetune.comparison.runs import StoredRun
from finetune.comparison.statistics import find_support, paired_difference
from finetune.comparison.table import BETTER_IF_GREATER, METRIC_NAMES, compute_scores
from finetune.comparison.verdict import join_names
from finetune.metrics import MULTI_LABEL, REGRESSION
from finetune.settings.declaration import Values
from finetune.settings.declared import default_values, facts_of, is_used
from finetune.settings.describe import describe_settings

__all__ = ["describe_conditions"]

# Of the settings those that say how a method trains; the others where data lies and what is shown.
PARTS = ("method", "family", "tuning", "decisions", "training", "model")
NOT_TUNED = {"method", "seed", "model_name_or_path", "model_revision", "trials", "budget", "teacher"}
IMBALANCED = 10  # times as many test examples in the most frequent class as in the rarest
LARGEST_SHARE = 0.8  # of the most frequent class
MOST_NAMES = 5
# As `finetune.data.split` notes them where the rows come from.
DROPPED = re.compile(r"([\d,]+) (duplicates dropped)|less ([\d,]+) (rows whose text is in another split)")


def describe_conditions(groups: Sequence[Group], metric: str, named: str) -> list[str]:
    """Describe what a reader has to know beside the verdict.

    Args:
        groups: What is compared, from best to worst.
        metric: That of the verdict.
        named: The group that the verdict is about: the one to take, or the best.
    """
    first = groups[0].runs[0]
    lines = [_describe_settings(groups), *_describe_gains(groups, metric), *_describe_teachers(groups)]
    lines.append(_describe_reading(groups))
    if first.problem_type != REGRESSION:
        lines += _describe_unequal_classes(groups, metric)
        lines += _describe_missed_classes(groups, named)
    return [*lines, *_describe_dropped(first)]


def _describe_settings(groups: Sequence[Group]) -> str:
    if any(run.record.chosen is None for group in groups for run in group.runs):
        return "Settings: some runs don't say which of theirs were chosen, and which are defaults."
    own = []
    for group in groups:
        chosen = describe_settings(_find_chosen(group.runs[0]))
        parts = [*([_describe_search(group)] if group.is_tuned else []), *([chosen] if chosen else [])]
        own += [f"{group.name} with {' and '.join(parts)}"] if parts else []
    if not own:
        return (
            f"Settings: {'each method has its' if len(groups) > 1 else 'the'} defaults, and none was tuned. Tuned, "
            f"{'another method' if len(groups) > 1 else 'it'} may be better."
        )
    rest = len(groups) - len(own)
    others = f"; the {'other method has its' if rest == 1 else 'others have their'} defaults" if rest else ""
    return f"Settings: {'; '.join(own)}{others}. What else was tried before is not known."


def _describe_search(group: Group) -> str:
    """Describe what was tried before the runs of a group."""
    searches = [run.record.search for run in group.runs if run.record.search is not None]
    least, most = (choose(search.trials for search in searches) for choose in (min, max))
    seconds = float(np.mean([search.seconds for search in searches]))
    count = f"{most}" if least == most else f"{least} to {most}"
    return f"the best of {count} trials by {searches[0].metric} on {searches[0].judges} ({seconds:,.0f} s a run)"


def _describe_gains(groups: Sequence[Group], metric: str) -> list[str]:
    """Describe what tuning gained each method on the test split, with its interval, beside its defaults."""
    support = find_support(metric, groups[0].runs[0].test.labels)
    if support is not None and not support.is_enough:
        return []
    sign, points = (1, 100) if BETTER_IF_GREATER[metric] else (-1, 1)
    lines = []
    for method in dict.fromkeys(group.method for group in groups):
        kinds = {tuned: [one for one in groups if (one.method, one.is_tuned) == (method, tuned)] for tuned in (0, 1)}
        if len(kinds[0]) != 1 or len(kinds[1]) != 1:
            continue
        default, tuned = (sign * compute_scores(kinds[tuned][0], metric) for tuned in (0, 1))
        gain = paired_difference(tuned, default, support=support)
        found = ", ".join(f"{points * bound:+.3g}" for bound in (gain.low, gain.high))
        lines.append(
            f"Tuning: {kinds[1][0].name} is {points * gain.estimate:+.3g} {'points ' if points > 1 else ''}from "
            f"{kinds[0][0].name} in {METRIC_NAMES[metric]} on test (95 % interval {found})."
        )
    return lines


def _find_chosen(run: StoredRun) -> dict[str, Any]:
    """Return the settings that were chosen and change what the method does."""
    arguments = dict(run.record.arguments)
    flat = {name: value for part in arguments.values() for name, value in part.items()}
    values = Values({**flat, "method": run.method}, default_values())
    known = {name for part in PARTS for name in arguments[part]} - NOT_TUNED
    return {
        name: flat[name]
        for name in run.record.chosen or ()
        if name in known and facts_of(name).changes == "results" and is_used(name, values)
    }


def _describe_teachers(groups: Sequence[Group]) -> list[str]:
    """Name whose answers a method learnt from: what they cost is in no column."""
    lines = []
    for group in groups:
        record = group.runs[0].record
        if record.teacher is None:
            continue
        what = f"{'the method ' + record.teacher.method if record.teacher.method else 'a model'}"
        unlabeled = record.data.unlabeled
        texts = "" if unlabeled is None else f", also on {unlabeled.rows:,} texts without labels"
        lines.append(
            f"Teacher: {group.name} learnt from the answers of {what}{texts}; what the teacher's own training and its "
            f"answers ({record.teacher.seconds:,.0f} s) cost is not counted."
        )
    return lines


def _describe_reading(groups: Sequence[Group]) -> str:
    by_reading: dict[str, list[str]] = defaultdict(list)
    for group in groups:
        by_reading[_describe_texts(group.runs[0])].append(group.name)
    return f"Texts: {'; '.join(f'{join_names(names)} read {reading}' for reading, names in by_reading.items())}."


def _describe_texts(run: StoredRun) -> str:
    """Describe how much of each text a method reads."""
    arguments = dict(run.record.arguments)
    flat = {name: value for part in arguments.values() for name, value in part.items()}
    if "max_length" not in flat or not is_used("max_length", Values({**flat, "method": run.method}, default_values())):
        return "whole texts"
    length, share = flat["max_length"], run.record.data.splits.test.truncated_share
    truncation = flat.get("truncation", "head")
    if truncation == "window":
        return f"whole texts in windows of {length:,} tokens"
    part = {"head": "the first", "tail": "the last", "head+tail": "the first and last"}[truncation]
    if share is None:
        return f"{part} {length:,} tokens"
    return f"{part} {length:,} tokens, which cuts {'none' if share == 0 else f'{share:.1%}'} of the test texts"


def _describe_unequal_classes(groups: Sequence[Group], metric: str) -> list[str]:
    """Describe strong imbalance where the metric hides it, and whether one that doesn't says the same."""
    if metric not in ("accuracy", "micro_f1"):
        return []
    first = groups[0].runs[0]
    labels, names = first.test.labels, first.label_names
    counts = labels.sum(axis=0).astype(int) if labels.ndim == 2 else np.bincount(labels, minlength=len(names))
    present = np.flatnonzero(counts)
    if len(present) < 2:
        return []
    most, least = counts.argmax(), present[counts[present].argmin()]
    is_skewed = labels.ndim == 1 and counts[most] >= LARGEST_SHARE * len(labels)
    if counts[most] < IMBALANCED * counts[least] and not is_skewed:
        return []
    line = f"Classes: {names[most]!r} has {counts[most]:,} test examples, {names[least]!r} {counts[least]:,}"
    if labels.ndim == 1:
        line += f"; always answering {names[most]!r} has an accuracy of {counts[most] / len(labels):.1%}"
    line += f": {METRIC_NAMES[metric]} says little of the rare ones; "
    means = {
        name: {group.name: float(np.mean([run.metrics[name] for run in group.runs])) for group in groups}
        for name in (metric, "macro_f1")
    }
    best = {name: max(found, key=found.__getitem__) for name, found in means.items()}
    found = means["macro_f1"]
    if len(groups) == 1:
        line += f"macro-F1 is {found[groups[0].name]:.3f}."
    elif best["macro_f1"] == best[metric]:
        line += f"by macro-F1 {best[metric]} is best too ({found[best[metric]]:.3f})."
    else:
        line += (
            f"by macro-F1 {best['macro_f1']} is best ({found[best['macro_f1']]:.3f}, and {best[metric]} "
            f"{found[best[metric]]:.3f}): --metric macro_f1 judges by it."
        )
    return [line]


def _describe_missed_classes(groups: Sequence[Group], named: str) -> list[str]:
    """Name the classes of the test split that a method never answers, or never rightly, in any of its runs."""
    lines = []
    for group in sorted(groups, key=lambda group: group.name != named):
        first = group.runs[0]
        labels, names = first.test.labels, first.label_names
        if first.problem_type == MULTI_LABEL:
            truth = labels > 0
            answers = [run.decide() > 0 for run in group.runs]
        else:
            truth = np.eye(len(names), dtype=bool)[labels]
            answers = [np.eye(len(names), dtype=bool)[run.decide()] for run in group.runs]
        present = truth.any(axis=0)
        answered = np.any([table.any(axis=0) for table in answers], axis=0)
        hit = np.any([(table & truth).any(axis=0) for table in answers], axis=0)
        parts = [
            f"{what} {count:,} of {len(names):,} ({_list_names(names, missed)})"
            for what, missed in (
                ("never answers", present & ~answered),
                ("never finds", present & answered & ~hit),
            )
            if (count := int(missed.sum()))
        ]
        if parts:
            lines.append(f"Classes with F1 0: {group.name} {' and '.join(parts)}.")
    return lines


def _list_names(names: Sequence[str], which: np.ndarray) -> str:
    found = [repr(name) for name, is_one in zip(names, which, strict=True) if is_one]
    return ", ".join(found[:MOST_NAMES]) + (", …" if len(found) > MOST_NAMES else "")


def _describe_dropped(run: StoredRun) -> list[str]:
    """Repeat which rows were dropped before training."""
    found: Mapping[str, None] = dict.fromkeys(
        f"{count or other} {what or why}"
        for _, split in run.record.data.splits
        for count, what, other, why in DROPPED.findall(split.origin)
    )
    return [f"Rows: {', '.join(found)}."] if found else []
