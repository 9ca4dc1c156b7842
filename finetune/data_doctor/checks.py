"""The checks: each looks at the facts of the splits for one kind of trouble and gives findings."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from finetune.data.examples import NO_GROUP
from finetune.data.labels import Task, is_number_name
from finetune.data.load import Reading
from finetune.data.spelling import looks_like
from finetune.data_doctor.facts import SHINGLE, Facts
from finetune.data_doctor.findings import Finding
from finetune.data_doctor.near_duplicates import SIMILAR, find_near_duplicates
from finetune.metrics import REGRESSION, SINGLE_LABEL

__all__ = [
    "CHECKS",
    "check_duplicates",
    "check_groups",
    "check_label_leaks",
    "check_label_names",
    "check_labels_of_splits",
    "check_lengths",
    "check_missing_groups",
    "check_near_duplicates",
    "check_order",
    "check_readings",
    "check_texts",
    "show_rows",
]

NUM_EXAMPLES = 3
SHOWN_CHARACTERS = 100
NUM_SPLITS = 3  # train, validation, test
IMBALANCED = 10  # times as many rows in the most frequent class as in the rarest
LEAK_SHARE, LEAK_RATIO = 0.2, 5.0
# From so many classes on whose names are in their texts they are topics, unless they are in so many of all texts that
# somebody seems to have written them there.
FEWEST_TOPICS, WRITTEN_SHARE = 3, 0.9
MIN_CHANGES = 8  # of label between neighbours in random order; with fewer, a random order may be a sorted one
BLOCKS = 0.1  # of the changes of a random order
SORTED_CORRELATION = 0.95  # of the numbers to predict with their row
MANY_NUMBERS = 20
NULL_WORDS = {
    "null",
    "na",
    "n/a",
    "?",
    "??",
    "???",
    "-",
    "--",
    "---",
    ".",
    "..",
    "...",
    "\\n",
    "missing",
    "#null!",
    "#ref!",
}
DELIMITERS = ("|", ";", ",", "&", "/", "+")
# A number with a currency, a percent sign, or thousands parted by spaces or commas; a share such as 3/5.
QUANTITY = re.compile(r"[-+]?[$€£¥]?\s?\d+(?:[\s,.]\d+)*\s?[%$€£¥]?|\d+/\d+")


def show_rows(facts: Facts, rows: Sequence[int] | np.ndarray, task: Task) -> tuple[dict[str, Any], ...]:
    """Return the first few rows as examples."""
    shown = []
    for row in list(rows)[:NUM_EXAMPLES]:
        example = facts.dataset[int(row)]
        texts = [example[part] or "" for part in ("text", "text_pair") if part in example]
        text = " | ".join(" ".join(text.split()) for text in texts)
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
    several = train.labels.ndim == 2
    num_labels = len(task.label_names)
    counts = train.labels.sum(axis=0).astype(int) if several else np.bincount(train.labels, minlength=num_labels)
    lacking = [name for name, count in zip(task.label_names, counts, strict=True) if count == 0]
    if lacking:
        yield Finding(
            "labels_missing_from_train", "error", ("train",), 0, f"train has no row of {lacking}",
            "Add rows of them, or leave them out of the names.",
        )  # fmt: skip
    rare = np.flatnonzero((counts > 0) & (counts < NUM_SPLITS))
    if len(rare):
        rows = np.flatnonzero(train.labels[:, rare].any(axis=1) if several else np.isin(train.labels, rare))
        named = ", ".join(f"{task.label_names[number]} ({counts[number]})" for number in rare[:10])
        yield Finding(
            "classes_with_fewer_rows_than_splits", "warning", ("train",), len(rows),
            f"train has fewer than {NUM_SPLITS} rows of {len(rare)} of its {num_labels} classes: {named}"
            f"{', …' if len(rare) > 10 else ''}",
            "Carved splits leave them whole in train: nothing is known of how well they are found. Add rows, or join "
            "classes.",
            show_rows(train, rows, task),
        )  # fmt: skip
    majority, rarest = counts.argmax(), np.where(counts > 0, counts, counts.max()).argmin()
    if counts[majority] >= IMBALANCED * counts[rarest] > 0:
        yield Finding(
            "class_imbalance", "warning", ("train",), int(counts[rarest]),
            f"{task.label_names[majority]} has {counts[majority]:,} rows, {task.label_names[rarest]} "
            f"{counts[rarest]:,}: {counts[majority] / counts[rarest]:.0f} times as many",
            "Read macro-F1 and the figures of each class, not accuracy; try --class_weights balanced.",
        )  # fmt: skip


def check_label_names(splits: Sequence[Facts], task: Task) -> Iterator[Finding]:
    """Find names that may mean the same class, hold several, stand for a missing one, or be numbers to predict."""
    facts = splits[0]
    if facts.labels is None or task.problem_type == REGRESSION:
        return

    def found(name: str, names: Sequence[str], message: str, advice: str) -> Finding:
        numbers = [task.label_names.index(one) for one in names]
        labels = np.asarray(facts.labels)
        rows = np.flatnonzero(labels[:, numbers].any(axis=1) if labels.ndim == 2 else np.isin(labels, numbers))
        return Finding(name, "warning", ("train",), len(rows), message, advice, show_rows(facts, rows, task))

    alike: dict[str, list[str]] = {}
    for name in task.label_names:
        alike.setdefault(looks_like(name), []).append(name)
    if similar := [names for names in alike.values() if len(names) > 1]:
        shown = ", ".join(" and ".join(map(repr, names)) for names in similar[:5])
        yield found(
            "similar_label_names", [name for names in similar for name in names],
            f"{len(similar):,} classes go by several names: {shown}", "Write each in one way, if they are the same.",
        )  # fmt: skip
    numbers = [name for name in task.label_names if is_number_name(name)]
    words = [name for name in task.label_names if not is_number_name(name)]
    if numbers and words:
        yield found(
            "mixed_label_names", numbers,
            f"{len(numbers):,} labels are numbers, such as {numbers[0]!r}, and {len(words):,} are not, such as "
            f"{words[0]!r}",
            "Write all in one way, if several mean the same.",
        )  # fmt: skip
    quantities = [name for name in task.label_names if QUANTITY.fullmatch(name)]
    if len(quantities) == len(task.label_names) > MANY_NUMBERS:
        yield found(
            "numbers_as_classes", quantities,
            f"{len(quantities):,} different numbers, from {quantities[0]} to {quantities[-1]}, are taken as that many "
            "classes",
            "--problem_type regression predicts a number, written with a decimal point and no unit.",
        )  # fmt: skip
    # "none" may be a class; "None" is what Python writes of what is missing.
    if missing := [name for name in words if name.lower() in NULL_WORDS or name == "None"]:
        yield found(
            "null_word_label", missing, f"{', '.join(map(repr, missing))} among the labels may stand for a missing one",
            "Remove these rows, or give the class another name.",
        )  # fmt: skip
    for delimiter in DELIMITERS if task.problem_type == SINGLE_LABEL else ():
        several = [name for name in task.label_names if len(name.split(delimiter)) > 1]
        parts = {part.strip() for name in several for part in name.split(delimiter)}
        if several and len(parts & set(task.label_names)) >= max(2, len(parts) / 2):
            yield found(
                "several_labels_in_one", several,
                f"{len(several):,} labels look like several, such as {several[0]!r}",
                f"--label_delimiter {delimiter!r} parts them.",
            )  # fmt: skip


def check_order(splits: Sequence[Facts], task: Task) -> Iterator[Finding]:
    """Find splits that are sorted by label, or lie in blocks of one, so that their first rows are of one class."""
    for facts in splits:
        if facts.labels is not None and task.problem_type == REGRESSION and len(facts.keys) >= MIN_CHANGES:
            ranks = np.unique(facts.labels, return_inverse=True)[1]
            if ranks.any() and abs(np.corrcoef(ranks, np.arange(len(ranks)))[0, 1]) > SORTED_CORRELATION:
                yield Finding(
                    "sorted_by_label", "warning", (facts.name,), len(facts.keys),
                    f"the rows of {facts.name} are sorted by the number to predict: select(range(n)) gives one end",
                    "Carved splits and samples are drawn at random here; draw yours so too.",
                    show_rows(facts, [0, len(facts.keys) - 1], task),
                )  # fmt: skip
        if facts.labels is None or task.problem_type != SINGLE_LABEL:
            continue
        changes = np.flatnonzero(np.diff(facts.labels))
        counts = np.unique(facts.labels, return_counts=True)[1]
        # How often neighbours would differ if the rows were in random order.
        expected = len(facts.keys) - (counts**2).sum() / len(facts.keys)
        if expected >= MIN_CHANGES and (len(changes) < len(counts) or len(changes) < BLOCKS * expected):
            run = int(changes[0]) + 1
            how = "sorted by label" if len(changes) < len(counts) else f"in {len(changes) + 1:,} blocks of one label"
            yield Finding(
                "sorted_by_label", "warning", (facts.name,), len(facts.keys),
                f"the rows of {facts.name} are {how}: the first {run:,} are all "
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
            texts = int((counts > 1).sum())
            first = np.flatnonzero(counts[inverse] > 1)[0]
            yield Finding(
                "exact_duplicates", "warning", (facts.name,), copies,
                f"{facts.name} has {len(facts.keys):,} rows of {len(counts):,} distinct texts: {copies:,} rows repeat "
                f"one of {texts:,} texts",
                "Splits carved from it drop them first. In a split of your own they count double.",
                show_rows(facts, np.flatnonzero(inverse == inverse[first])[:2], task),
            )  # fmt: skip
    labelled = [facts for facts in splits if facts.labels is not None]
    keys = np.concatenate([facts.keys for facts in labelled])
    labels = np.concatenate([np.asarray(facts.labels) for facts in labelled])
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    unequal = labels[order][1:] != labels[order][:-1]
    pairs = np.flatnonzero(same & (unequal.any(axis=1) if unequal.ndim == 2 else unequal))
    if len(pairs):
        contradicted = np.unique(keys[order][pairs])
        starts = np.cumsum([0, *(len(facts.keys) for facts in labelled)])
        examples: list[dict[str, Any]] = []
        for position in order[pairs[0] : pairs[0] + 2]:
            split = int(np.searchsorted(starts, position, side="right")) - 1
            examples += show_rows(labelled[split], [position - starts[split]], task)
        yield Finding(
            "same_text_different_labels", "warning", tuple(facts.name for facts in labelled),
            int(np.isin(keys, contradicted).sum()),
            f"{len(contradicted):,} texts stand under different labels",
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
        yield Finding(
            "near_duplicates_across_splits" if across else "near_duplicates",
            "warning" if across else "note",
            names if across else names[:1],
            len(rows),
            f"{len(rows):,} texts of {names[1]} share at least {SIMILAR:.0%} of their runs of {SHINGLE} words "
            f"(letters in short ones) with {'a' if across else 'another'} text of {names[0]}",
            "Figures on them flatter. Remove them from one of the splits."
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
    """Find label names that stand in the texts of their own class and hardly elsewhere.

    Topics are named in texts about them ("zinc"), and will be when the model is used: where the names of several
    classes stand in their texts, though not in nearly all of them, that is a note.
    """
    facts = splits[0]
    if facts.labels is None:
        return
    found: dict[str, tuple[float, float, list[int]]] = {}
    for number, label in enumerate(task.label_names):
        rows = facts.names_in_text.get(label)
        own = facts.labels[:, number] > 0 if facts.labels.ndim == 2 else facts.labels == number
        if not rows or not own.any() or own.all():
            continue
        inside = float(own[rows].sum() / own.sum())
        outside = float((~own[rows]).sum() / (~own).sum())
        if inside >= LEAK_SHARE and inside >= LEAK_RATIO * outside and own[rows].sum() >= 3:
            found[label] = inside, outside, [row for row in rows if own[row]]
    if not found:
        return
    label, (inside, outside, first) = max(found.items(), key=lambda item: len(item[1][2]))
    told = sorted({row for _, _, rows in found.values() for row in rows})
    message = f"{inside:.0%} of the texts of class {label!r} hold its name, of the others {outside:.1%}"
    if len(found) > 1:
        message += (
            f"; so do texts of {len(found) - 1:,} more of {len(task.label_names):,} classes, {len(told):,} in all"
        )
    are_topics = len(found) >= FEWEST_TOPICS and len(told) < WRITTEN_SHARE * len(facts.keys)
    yield Finding(
        "label_in_text", "note" if are_topics else "warning", (facts.name,), len(told), message,
        "Texts about a topic name it. If yours won't when the model is used, take the names out of them."
        if are_topics else "If texts will not name their class when the model is used, take the name out of them.",
        show_rows(facts, first, task),
    )  # fmt: skip


def check_groups(splits: Sequence[Facts], task: Task) -> Iterator[Finding]:
    """Find groups that stand in several splits."""
    if any("group" not in facts.dataset.column_names for facts in splits):
        return
    groups = [list(facts.dataset["group"]) for facts in splits]
    for number, later in enumerate(splits):
        for other, earlier in enumerate(splits[:number]):
            shared = set(groups[number]) & set(groups[other])
            if shared:
                rows = [row for row, group in enumerate(groups[number]) if group in shared]
                first = groups[other].index(groups[number][rows[0]])
                yield Finding(
                    "groups_across_splits", "warning", (earlier.name, later.name), len(rows),
                    f"{len(rows):,} rows of {later.name} are of {len(shared):,} groups that are also in "
                    f"{earlier.name}, for example {groups[number][rows[0]]!r}",
                    "Figures flatter where a group is known from training. Move each group to one split.",
                    show_rows(earlier, [first], task) + show_rows(later, rows[:1], task),
                )  # fmt: skip


def check_missing_groups(splits: Sequence[Facts], task: Task) -> Iterator[Finding]:
    """Find rows that name no group, each of which is taken for a group of its own."""
    for facts in splits:
        if "group" not in facts.dataset.column_names:
            continue
        rows = [row for row, group in enumerate(facts.dataset["group"]) if group.startswith(NO_GROUP)]
        if rows:
            yield Finding(
                "rows_without_group", "warning", (facts.name,), len(rows),
                f"{len(rows):,} of {len(facts.keys):,} rows of {facts.name} name no group, and are groups of their own",
                "If some of them belong together, a carved split may divide them: complete the column.",
                show_rows(facts, rows, task),
            )  # fmt: skip


def check_readings(readings: Mapping[str, Reading], splits: Sequence[Facts]) -> Iterator[Finding]:
    """Find splits that were read in different encodings, values left out, and spellings that were taken for one."""
    sizes = {facts.name: len(facts.keys) for facts in splits}
    encodings = {name: reading.encoding for name, reading in readings.items() if reading.encoding is not None}
    if len(set(encodings.values())) > 1:
        yield Finding(
            "encodings_differ", "warning", tuple(encodings), sum(sizes[name] for name in encodings),
            "splits were read in different encodings: "
            + ", ".join(f"{name} as {encoding}" for name, encoding in encodings.items()),
            "Look at their signs beyond ASCII, such as £ or é; if one is wrong, pass --encoding, or save all as UTF-8.",
        )  # fmt: skip
    for name, reading in readings.items():
        if reading.twins:
            shown = ", ".join(" and ".join(map(ascii, names)) for names in reading.twins[:5])
            yield Finding(
                "label_spellings", "warning", (name,), sizes[name],
                f"{len(reading.twins):,} labels of {name} are written in ways that look the same, and each is taken "
                f"for one: {shown}",
                "Write each in one way: composed (NFC), without zero-width signs and variation selectors.",
            )  # fmt: skip
        for what in reading.ignored:
            if "hold values" in what:
                yield Finding(
                    "unnamed_columns", "warning", (name,), sizes[name], f"{name} was read without {what}",
                    "Texts with the separator in them may have been cut: put them in quotes, or name the columns.",
                )  # fmt: skip


def check_lengths(splits: Sequence[Facts], max_length: int) -> Iterator[Finding]:
    """Describe the lengths in words, and how many texts have more of them than `max_length` tokens can hold."""
    for facts in splits:
        median, most, longest = np.quantile(facts.num_words, [0.5, 0.95, 1.0]).round().astype(int)
        cut = float((facts.num_words > max_length).mean())
        yield Finding(
            "lengths", "note", (facts.name,), len(facts.keys),
            f"{facts.name}: a text has {median:,} words in the median, 95 % at most {most:,}, the longest {longest:,}"
            + (f"; {cut:.1%} have more than {max_length:,}, so --max_length {max_length} cuts them" if cut else ""),
            "--max_length raises the bound; --truncation head+tail or window keeps other parts." if cut > 0.1 else "",
        )  # fmt: skip


CHECKS: tuple[Callable[[Sequence[Facts], Task], Iterator[Finding]], ...] = (
    check_labels_of_splits, check_label_names, check_order, check_duplicates, check_near_duplicates, check_texts,
    check_label_leaks, check_groups, check_missing_groups,
)  # fmt: skip
