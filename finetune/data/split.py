"""Carve splits and draw samples: deduplicated, stratified, seeded; and describe what came out.

Nothing here takes the first n rows: data sets are often sorted by label, and then such a sample is of one class.
"""

import hashlib
import itertools
import warnings
from collections.abc import Iterator, Mapping

import numpy as np
from datasets import Dataset, DatasetDict

from finetune.data.labels import count_labels, label_matrix, task_of
from finetune.errors import FinetuneError
from finetune.tasks import MULTI_LABEL, REGRESSION

__all__ = [
    "carve_splits",
    "check_classes",
    "describe_split",
    "drop_duplicates",
    "iterate_texts",
    "remove_leakage",
    "sample_stratified",
    "strata_of",
    "stratified_indices",
    "text_keys",
]


def iterate_texts(dataset: Dataset) -> Iterator[str | None]:
    """Read the texts of a split one after the other; those of a pair as one, with a zero byte between them."""
    names = [name for name in ("text", "text_pair") if name in dataset.column_names]
    for batch in dataset.select_columns(names).with_format("arrow").iter(batch_size=1_000):
        columns = [batch.column(name).to_pylist() for name in names]
        if len(columns) == 1:
            yield from columns[0]
        else:
            yield from (None if None in pair else "\0".join(pair) for pair in zip(*columns, strict=True))


def text_keys(dataset: Dataset) -> np.ndarray:
    """Return a 64-bit hash of each row's text, `(rows,)`: equal texts, equal keys."""
    hashed = (
        hashlib.blake2b((text or "").encode("utf-8", "replace"), digest_size=8).digest()
        for text in iterate_texts(dataset)
    )
    return np.frombuffer(b"".join(hashed), dtype=np.int64)


def drop_duplicates(dataset: Dataset) -> Dataset:
    """Keep the first row of each distinct text, and note how many were dropped and how many disagreed on the label."""
    keys = text_keys(dataset)
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    if len(first) == len(keys):
        return dataset
    note = f"{len(keys):,} rows, {len(first):,} distinct texts: {len(keys) - len(first):,} duplicates dropped"
    repeated = np.flatnonzero(np.bincount(inverse)[inverse] > 1)
    labels: dict[int, set[str]] = {}
    for row, label in zip(repeated.tolist(), dataset.select(repeated)["label"], strict=True):
        labels.setdefault(int(inverse[row]), set()).add(str(label))
    contradicted = sum(len(found) > 1 for found in labels.values())
    if contradicted:
        note += f", of {contradicted:,} texts with different labels the first row was kept"
    return _with_origin(dataset.select(np.sort(first)), f"{dataset.info.description}, {note}")


def remove_leakage(splits: DatasetDict) -> DatasetDict:
    """Drop the training rows whose text is in another split; the other splits stay as they are.

    Raises:
        FinetuneError: If no training row would be left.
    """
    others = [text_keys(split) for name, split in splits.items() if name != "train"]
    if not others:
        return splits
    train = splits["train"]
    kept = np.flatnonzero(~np.isin(text_keys(train), np.concatenate(others)))
    if not len(kept):
        raise FinetuneError(
            f"Expected training texts that are in no other split, but all {len(train):,} rows are. "
            "Pass another --train_file, or leave --remove_leakage out."
        )
    note = f"{train.info.description}, less {len(train) - len(kept):,} rows whose text is in another split"
    return DatasetDict({**splits, "train": _with_origin(train.select(kept), note)})


def strata_of(dataset: Dataset) -> np.ndarray:
    """Number the groups of rows that a stratified draw keeps in proportion, `(rows,)`.

    The class; for several labels the rarest of a row's own, so that rare ones are in every split; for a number to
    predict its tenth of the distribution.
    """
    task = task_of(dataset.features)
    labels = label_matrix(dataset["label"], task)
    if task.problem_type == MULTI_LABEL:
        frequency = np.where(labels > 0, labels.sum(axis=0), np.inf)
        return np.where(labels.any(axis=1), frequency.argmin(axis=1), labels.shape[1])
    if task.problem_type == REGRESSION:
        return np.searchsorted(np.quantile(labels, np.linspace(0.1, 0.9, 9)), labels)
    return labels


def stratified_indices(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Draw row numbers so that each class keeps its share, to within a row (largest remainders), and at least one row.

    Args:
        labels: Class numbers, shape `(num_rows,)`.
        size: How many rows to draw, at most `num_rows`.
        seed: Seed of the draw.

    Returns:
        `size` different row numbers in random order.

    Example:
        >>> labels = np.array([0] * 90 + [1] * 10)
        >>> np.bincount(labels[stratified_indices(labels, 20, seed=0)]).tolist()
        [18, 2]
    """
    generator = np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * (size / len(labels))
    quotas = np.floor(exact).astype(int)
    quotas[np.argsort(quotas - exact, kind="stable")[: size - quotas.sum()]] += 1
    # A class that is too rare for a row of its own takes one from the most frequent.
    while size >= len(classes) and quotas.min() == 0:
        quotas[quotas.argmax()] -= 1
        quotas[quotas.argmin()] += 1
    drawn = [
        generator.permutation(np.flatnonzero(labels == class_))[:quota]
        for class_, quota in zip(classes, quotas, strict=True)
    ]
    return generator.permutation(np.concatenate(drawn))


def carve_splits(train: Dataset, sizes: Mapping[str, int], seed: int) -> DatasetDict:
    """Take splits out of the training rows, each with the classes in the proportions of the whole.

    Args:
        train: Rows without duplicate texts, so that no text stands on two sides of a cut.
        sizes: The number of rows of each split to carve, by its name.
        seed: Seed of the draw.

    Returns:
        The carved splits and `train` with the rows that are left.

    Raises:
        FinetuneError: If nothing would be left to train on.
    """
    strata = strata_of(train)
    groups = np.array(train["group"][:]) if "group" in train.column_names else np.arange(len(train))
    remaining = np.flatnonzero(_can_be_carved(strata, groups, len(sizes)))
    if sum(sizes.values()) >= len(remaining):
        unit = "groups" if "group" in train.column_names else "rows"
        raise FinetuneError(
            f"Expected more than {sum(sizes.values())} training rows to carve {', '.join(sizes)} from, of classes with "
            f"more than {len(sizes)} {unit} each, but found {len(remaining)} of {len(train)} distinct texts. Pass "
            "--validation_file and --test_file, or more rows."
        )
    splits = DatasetDict()
    taken = []
    for offset, (name, size) in enumerate(sizes.items()):
        if "group" in train.column_names:
            picked = remaining[_whole_groups(strata[remaining], groups[remaining], size, seed + offset)]
            remaining = remaining[~np.isin(groups[remaining], groups[picked])]
            remaining = remaining[_can_be_carved(strata[remaining], groups[remaining], len(sizes) - offset - 1)]
        else:
            picked = remaining[stratified_indices(strata[remaining], size, seed + offset)]
            remaining = np.setdiff1d(remaining, picked)
        taken.append(picked)
        how = "stratified, whole groups" if "group" in train.column_names else "stratified"
        splits[name] = _with_origin(train.select(picked), f"carved from train, {how}, split_seed {seed}")
    carved = np.concatenate(taken)
    splits["train"] = _with_origin(
        train.select(np.setdiff1d(np.arange(len(train)), carved)),
        f"{train.info.description}, less {len(carved):,} rows carved for {' and '.join(sizes)}",
    )
    return splits


def _can_be_carved(strata: np.ndarray, groups: np.ndarray, num_splits: int) -> np.ndarray:
    """Return which rows may leave train, `(rows,)`: a class in no more groups than splits stays, in whole groups."""
    numbered = np.unique(groups, return_inverse=True)[1]
    num_groups = np.bincount(np.unique(np.stack([strata, numbered]), axis=1)[0].astype(int))
    rare = num_groups[strata] <= num_splits
    return ~np.isin(numbered, numbered[rare])


def _whole_groups(strata: np.ndarray, groups: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Draw about `size` rows such that no group is divided, each class in proportion as far as that goes."""
    parts = max(2, round(len(strata) / size))
    if len(np.unique(groups)) < parts:
        raise FinetuneError(
            f"Expected at least {parts} groups to carve a split of whole groups from, but found "
            f"{len(np.unique(groups))}. Pass --validation_file and --test_file, or leave --group_column out."
        )
    if np.unique(strata, return_counts=True)[1].max() < parts:
        raise FinetuneError(
            f"Expected a class with at least {parts} rows to carve a split of whole groups from, but the largest has "
            f"{np.unique(strata, return_counts=True)[1].max()}. Pass --validation_file and --test_file, or more rows."
        )
    from sklearn.model_selection import StratifiedGroupKFold

    folds = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes with fewer rows than folds
        parted = list(folds.split(strata, strata, groups))
    # Rather a split that is larger or smaller than one that takes all rows of a class.
    classes = len(np.unique(strata))
    return min(parted, key=lambda part: (classes - len(np.unique(strata[part[0]])), abs(len(part[1]) - size)))[1]


def sample_stratified(dataset: Dataset, size: int, seed: int) -> Dataset:
    """Draw a stratified sample of at most `size` rows."""
    if size >= len(dataset):
        return dataset
    strata = strata_of(dataset) if "label" in dataset.column_names else np.zeros(len(dataset), dtype=int)
    picked = stratified_indices(strata, size, seed)
    origin = f"{dataset.info.description}; stratified sample of {size} of {len(dataset)} rows"
    return _with_origin(dataset.select(picked), origin)


def _with_origin(dataset: Dataset, origin: str) -> Dataset:
    """Note where a split's rows come from; `map` and `select` keep the note, `run.json` records it."""
    dataset = dataset.select(range(len(dataset)))
    dataset.info.description = origin
    return dataset


def check_classes(splits: DatasetDict) -> None:
    """Refuse a split that holds a single class, which the first rows of a sorted file do, and a class without training.

    Raises:
        FinetuneError: Naming the split and its class, or the class that train lacks.
    """
    task = task_of(splits["train"].features)
    labels = {
        name: label_matrix(split["label"], task) for name, split in splits.items() if "label" in split.column_names
    }
    for name, of_split in labels.items():
        found = np.unique(of_split, axis=0)
        if len(found) < 2:
            what = "two numbers to predict" if task.problem_type == REGRESSION else "two classes"
            label = (
                task.label_names[int(found[0])] if found.ndim == 1 and found.size and what == "two classes" else found
            )
            raise FinetuneError(
                f"Expected at least {what} in split {name!r}, but found only {str(label)!r} in its {len(of_split)} "
                "rows. Was it cut from a file sorted by label? Take rows of all classes, or more of them."
            )
    if task.problem_type == REGRESSION:
        return
    counts = count_labels(labels["train"], task)
    lacking = [name for name, count in zip(task.label_names, counts, strict=True) if count == 0]
    if lacking:
        raise FinetuneError(
            f"Expected training rows of every class, but after carving and sampling found none of {lacking}. "
            "Add rows of these classes, or raise --max_train_samples."
        )


def describe_split(split: Dataset) -> dict[str, object]:
    """Describe a split for `run.json`: origin, rows, distinct texts, its labels, and a SHA-256 of its content.

    `labels` holds the rows of each label, or the mean, standard deviation, least and greatest number to predict; None
    where they are withheld.
    """
    labelled = "label" in split.column_names
    labels = split["label"] if labelled else itertools.repeat("")
    digest = hashlib.sha256()
    for text, label in zip(iterate_texts(split), labels, strict=labelled):
        digest.update(f"{label}\t{text}\0".encode("utf-8", "replace"))
    return {
        "origin": split.info.description,
        "rows": len(split),
        "distinct_texts": len(np.unique(text_keys(split))),
        "labels": _describe_labels(split) if labelled else None,
        "sha256": digest.hexdigest(),
    }


def _describe_labels(split: Dataset) -> dict[str, float]:
    task = task_of(split.features)
    labels = label_matrix(split["label"], task)
    if task.problem_type == REGRESSION:
        statistics = {"mean": labels.mean(), "std": labels.std(), "min": labels.min(), "max": labels.max()}
        return {name: float(value) for name, value in statistics.items()}
    counts = zip(task.label_names, count_labels(labels, task), strict=True)
    return {name: int(count) for name, count in counts}
