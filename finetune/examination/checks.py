"""The checks: each looks at the facts of the splits for one kind of trouble and gives findings."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from finetune.data.labels import Task
from finetune.examination.facts import Facts
from finetune.examination.findings import Finding
from finetune.examination.near_duplicates import SIMILAR, find_near_duplicates
from finetune.metrics import REGRESSION, SINGLE_LABEL

__all__ = ["CHECKS", "show_rows"]

NUM_EXAMPLES = 3
SHOWN_CHARACTERS = 100
NUM_SPLITS = 3  # train, validation, test
IMBALANCED = 10  # times as many rows in the most frequent class as in the rarest
LEAK_SHARE, LEAK_RATIO = 0.2, 5.0


def show_rows(facts: Facts, rows: Sequence[int] | np.ndarray, task: Task) -> tuple[dict[str, Any], ...]:
    """Give the first few rows as examples."""
    shown = []
    for row in list(rows)[:NUM_EXAMPLES]:
        example = facts.dataset[int(row)]
        text = " ".join((example["text"] or "").split())
        cut = text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
        label = _label(example.get("label"), task)
        shown.append({"split": facts.name, "id": example["id"], "label": label, "text": cut})
    return tuple(shown)


def _label(label: Any, task: Task) -> str | None:
    if label is None:
        return None
    if task.problem_type == REGRESSION:
        return f"{label:g}"
    return ",".join(task.label_names[number] for number in (label if isinstance(label, list) else [label]))


def check_labels_of_splits(splits: Sequence[Facts], task: Task) -> Iterator[Finding]:
    """Find splits of a single class, labels that train lacks, rare and unequal classes, withheld labels."""
    for facts in splits:
        if facts.labels is None:
            yield Finding(
                "labels_withheld", "note", (facts.name,), len(facts.keys),
                f"every label of {facts.name} is missing or -1", "It will be predicted, and not scored.",
            )  # fmt: skip
        elif len(np.unique(facts.labels, axis=0)) < 2:
            yield Finding(
                "single_class", "error", (facts.name,), len(facts.keys),
                f"all {len(facts.keys):,} rows of {facts.name} have the same label",
                "Was it cut from a file sorted by label? Give rows of all classes.", show_rows(facts, [0], task),
            )  # fmt: skip
    train = splits[0]
    if train.labels is None or task.problem_type == REGRESSION:
        return
    counts = (
        train.labels.sum(axis=0)
        if train.labels.ndim == 2
        else np.bincount(train.labels, minlength=len(task.label_names))
    )
    by_count = sorted(zip(counts.astype(int).tolist(), task.label_names, strict=True))
    lacking = [name for count, name in by_count if count == 0]
    if lacking:
        yield Finding(
            "labels_missing_from_train", "error", ("train",), 0, f"train has no row of {lacking}",
            "Add rows of them, or leave them out of the names.",
        )  # fmt: skip
    rare = [f"{name} ({count})" for count, name in by_count if 0 < count < NUM_SPLITS]
    if rare:
        yield Finding(
            "classes_with_fewer_rows_than_splits", "warning", ("train",), 0,
            f"{len(rare)} classes have fewer than {NUM_SPLITS} rows: {', '.join(rare[:10])}",
            "They stay whole in train, so nothing is known of how well they are found. Add rows, or join classes.",
        )  # fmt: skip
    (least, rarest), (most, majority) = (
        by_count[len(lacking)] if len(lacking) < len(by_count) else by_count[0],
        by_count[-1],
    )
    if least and most >= IMBALANCED * least:
        yield Finding(
            "class_imbalance", "warning", ("train",), 0,
            f"{majority} has {most:,} rows, {rarest} {least:,}: {most / least:.0f} times as many",
            "Read macro-F1 and the figures of each class, not accuracy; try --class_weights balanced.",
        )  # fmt: skip


def check_order(splits: Sequence[Facts], task: Task) -> Iterator[Finding]:
    """Find splits that are sorted by label, whose first rows are of one class."""
    for facts in splits:
        if facts.labels is None or facts.labels.ndim == 2 or task.problem_type != SINGLE_LABEL or len(facts.keys) < 20:
            continue
        changes = np.flatnonzero(np.diff(facts.labels))
        num_classes = len(np.unique(facts.labels))
        if 1 < num_classes == len(changes) + 1:
            run = int(changes[0]) + 1
            yield Finding(
                "sorted_by_label", "warning", (facts.name,), len(facts.keys),
                f"the rows of {facts.name} are sorted by label: the first {run:,} are all "
                f"{task.label_names[int(facts.labels[0])]!r}, so select(range(n)) up to there gives one class",
                "Carved splits and samples are drawn at random here; draw yours so too.",
                show_rows(facts, [0, run], task),
            )  # fmt: skip


def check_duplicates(splits: Sequence[Facts], task: Task) -> Iterator[Finding]:
    """Find exact copies, inside a split and across splits, and copies whose labels disagree."""
    for facts in splits:
        _, inverse, counts = np.unique(facts.keys, return_inverse=True, return_counts=True)
        copies = len(facts.keys) - len(counts)
        if copies:
            repeated = np.flatnonzero(counts[inverse] > 1)
            texts = int((counts > 1).sum())
            yield Finding(
                "exact_duplicates", "warning", (facts.name,), copies,
                f"{facts.name} has {len(facts.keys):,} rows of {len(counts):,} distinct texts: {copies:,} rows repeat "
                f"one of {texts:,} texts",
                "Splits carved from it drop them first. In a split of your own they count double.",
                show_rows(facts, repeated[np.argsort(inverse[repeated], kind="stable")][:2], task),
            )  # fmt: skip
    labelled = [facts for facts in splits if facts.labels is not None]
    keys = np.concatenate([facts.keys for facts in labelled])
    labels = np.concatenate([np.asarray(facts.labels) for facts in labelled])
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    unequal = labels[order][1:] != labels[order][:-1]
    unequal = unequal.any(axis=1) if unequal.ndim == 2 else unequal
    pairs = np.flatnonzero(same & unequal)
    if len(pairs):
        offsets = np.cumsum([0, *(len(facts.keys) for facts in labelled)])
        examples: list[dict[str, Any]] = []
        for position in (order[pairs[0]], order[pairs[0] + 1]):
            split = int(np.searchsorted(offsets, position, side="right")) - 1
            examples += show_rows(labelled[split], [int(position - offsets[split])], task)
        yield Finding(
            "same_text_different_labels", "warning", tuple(facts.name for facts in labelled), len(pairs),
            f"{len(np.unique(keys[order][pairs])):,} texts stand under different labels",
            "Decide which label is right. Of a carved split's copies the first is kept.", tuple(examples),
        )  # fmt: skip
    for number, later in enumerate(splits):
        for earlier in splits[:number]:
            shared = np.isin(later.keys, earlier.keys)
            if shared.any():
                yield Finding(
                    "duplicates_across_splits", "warning", (earlier.name, later.name), int(shared.sum()),
                    f"{shared.sum():,} rows of {later.name} ({len(np.unique(later.keys[shared])):,} texts) are also in "
                    f"{earlier.name}",
                    "Figures on them flatter. --remove_leakage drops them from train."
                    if earlier.name == "train" else "A model chosen on one is measured on the same texts.",
                    show_rows(later, np.flatnonzero(shared), task),
                )  # fmt: skip


def check_near_duplicates(splits: Sequence[Facts], task: Task) -> Iterator[Finding]:
    """Find texts that are nearly the same in different splits, or, before any are carved, in one."""
    by_splits: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for (first, row), (second, other) in find_near_duplicates(splits):
        by_splits.setdefault((first, second), []).append((row, other))
    for (first, second), rows in by_splits.items():
        across = first != second
        if not across and not (len(splits) < NUM_SPLITS and first == 0):
            continue
        names = (splits[first].name, splits[second].name)
        examples = show_rows(splits[first], [rows[0][0]], task) + show_rows(splits[second], [rows[0][1]], task)
        where = f"of {names[1]} and {names[0]}" if across else f"inside {names[0]}"
        yield Finding(
            "near_duplicates_across_splits" if across else "near_duplicates",
            "warning" if across else "note",
            names if across else names[:1],
            len({other for _, other in rows}),
            f"{len(rows):,} pairs of texts {where} share at least {SIMILAR:.0%} of their runs of five words",
            "Figures on them flatter; remove them, or give --group_column so that they stay together."
            if across else "A carved split may divide a pair; --group_column keeps rows together.",
            examples,
        )  # fmt: skip


def check_texts(splits: Sequence[Facts], task: Task) -> Iterator[Finding]:
    """Find texts that are missing, blank, a written null, or wrongly decoded."""
    kinds = (
        ("null", "null_text", "error", "have no text", "Remove them, or pass the right --text_column."),
        ("empty", "empty_text", "warning", "have an empty or blank text", "Remove them; a model learns nothing there."),
        ("null_word", "null_word", "warning", 'have the text "nan", "null" or the like',
         "A table program wrote a missing value as a word. Remove them."),
        ("mojibake", "mojibake", "warning", "look as if they had been decoded wrongly",
         "Read the file with its true --encoding, or repair the text (ftfy does)."),
    )  # fmt: skip
    for facts in splits:
        for attribute, name, severity, what, advice in kinds:
            rows = getattr(facts, attribute)
            if rows:
                message = f"{len(rows):,} rows of {facts.name} {what}"
                yield Finding(name, severity, (facts.name,), len(rows), message, advice, show_rows(facts, rows, task))


def check_label_leaks(splits: Sequence[Facts], task: Task) -> Iterator[Finding]:
    """Find label names that stand in the texts of their own class and hardly elsewhere."""
    facts = splits[0]
    if facts.labels is None:
        return
    for number, label in enumerate(task.label_names):
        rows = facts.names_in_text.get(label)
        own = facts.labels[:, number] > 0 if facts.labels.ndim == 2 else facts.labels == number
        if not rows or not own.any() or own.all():
            continue
        inside = float(own[rows].sum() / own.sum())
        outside = float((~own[rows]).sum() / (~own).sum())
        if inside >= LEAK_SHARE and inside >= LEAK_RATIO * outside and own[rows].sum() >= 3:
            yield Finding(
                "label_in_text", "warning", (facts.name,), int(own[rows].sum()),
                f"{inside:.0%} of the texts of class {label!r} hold its name, of the others {outside:.1%}",
                "If texts will not name their class when the model is used, take the name out of them.",
                show_rows(facts, [row for row in rows if own[row]], task),
            )  # fmt: skip


def check_groups(splits: Sequence[Facts], task: Task) -> Iterator[Finding]:
    """Find groups that stand in several splits."""
    if any("group" not in facts.dataset.column_names for facts in splits):
        return
    groups = [set(facts.dataset["group"]) for facts in splits]
    for number, later in enumerate(splits):
        for other, earlier in enumerate(splits[:number]):
            shared = groups[number] & groups[other]
            if shared:
                yield Finding(
                    "groups_across_splits", "warning", (earlier.name, later.name), len(shared),
                    f"{len(shared):,} groups are in {earlier.name} and in {later.name}, for example {min(shared)!r}",
                    "Figures flatter where a group is known from training. Move each group to one split.",
                )  # fmt: skip


def check_lengths(splits: Sequence[Facts], task: Task) -> Iterator[Finding]:
    """Describe the lengths in words."""
    for facts in splits:
        half, most, longest = np.quantile(facts.num_words, [0.5, 0.95, 1.0]).round().astype(int)
        yield Finding(
            "lengths", "note", (facts.name,), len(facts.keys),
            f"{facts.name}: a text has {half:,} words in the median, 95 % at most {most:,}, the longest {longest:,}", "",
        )  # fmt: skip


CHECKS: tuple[Callable[[Sequence[Facts], Task], Iterator[Finding]], ...] = (
    check_labels_of_splits, check_order, check_duplicates, check_near_duplicates, check_texts, check_label_leaks,
    check_groups, check_lengths,
)  # fmt: skip
