"""Carve splits and draw samples: deduplicated, stratified, seeded; and describe what came out.

Nothing here takes the first n rows: data sets are often sorted by label, and then such a sample is of one class.
"""

import hashlib
from collections.abc import Mapping

import numpy as np
from datasets import Dataset, DatasetDict

from finetune.errors import FinetuneError

__all__ = [
    "carve_splits",
    "check_classes",
    "describe_split",
    "drop_duplicates",
    "sample_stratified",
    "stratified_indices",
]


def drop_duplicates(dataset: Dataset) -> Dataset:
    """Keep the first row of each distinct text, and note how many were dropped and how many disagreed on the label."""
    labels: dict[str, int] = {}
    first, contradicted = [], set()
    for row, (text, label) in enumerate(zip(dataset["text"], dataset["label"], strict=True)):
        if text not in labels:
            labels[text] = label
            first.append(row)
        elif labels[text] != label:
            contradicted.add(text)
    if len(first) == len(dataset):
        return dataset
    note = f"{len(dataset):,} rows, {len(first):,} distinct texts: {len(dataset) - len(first):,} duplicates dropped"
    if contradicted:
        note += f", of {len(contradicted):,} texts with different labels the first row was kept"
    return _with_origin(dataset.select(first), f"{dataset.info.description}, {note}")


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
    if sum(sizes.values()) >= len(train):
        raise FinetuneError(
            f"Expected more than {sum(sizes.values())} training rows to carve {', '.join(sizes)} from, "
            f"but found {len(train)}. Pass --validation_file and --test_file, or more rows."
        )
    labels = np.asarray(train["label"])
    remaining = np.arange(len(train))
    splits = DatasetDict()
    for offset, (name, size) in enumerate(sizes.items()):
        picked = remaining[stratified_indices(labels[remaining], size, seed + offset)]
        remaining = np.setdiff1d(remaining, picked)
        splits[name] = _with_origin(train.select(picked), f"carved from train, stratified, split_seed {seed}")
    splits["train"] = _with_origin(
        train.select(remaining),
        f"{train.info.description}, less {sum(sizes.values()):,} rows carved for {' and '.join(sizes)}",
    )
    return splits


def sample_stratified(dataset: Dataset, size: int, seed: int) -> Dataset:
    """Draw a stratified sample of at most `size` rows."""
    if size >= len(dataset):
        return dataset
    picked = stratified_indices(np.asarray(dataset["label"]), size, seed)
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
    for name, split in splits.items():
        found = np.unique(split["label"])
        if len(found) < 2:
            label = split.features["label"].int2str(int(found[0])) if len(found) else "none"
            raise FinetuneError(
                f"Expected at least two classes in split {name!r}, but found only {label!r} in its {len(split)} rows. "
                "Was it cut from a file sorted by label? Take rows of all classes, or more of them."
            )
    names = splits["train"].features["label"].names
    lacking = [names[label] for label in range(len(names)) if label not in set(splits["train"]["label"])]
    if lacking:
        raise FinetuneError(
            f"Expected training rows of every class, but after carving and sampling found none of {lacking}. "
            "Add rows of these classes, or raise --max_train_samples."
        )


def describe_split(split: Dataset) -> dict[str, object]:
    """Describe a split for `run.json`: origin, rows, distinct texts, rows per label, and a SHA-256 of its content."""
    texts, labels = split["text"], split["label"]
    digest = hashlib.sha256()
    for text, label in zip(texts, labels, strict=True):
        digest.update(f"{label}\t{text}\0".encode())
    names = split.features["label"].names
    counts = np.bincount(labels, minlength=len(names))
    return {
        "origin": split.info.description,
        "rows": len(split),
        "distinct_texts": len(set(texts)),
        "labels": {name: int(count) for name, count in zip(names, counts, strict=True)},
        "sha256": digest.hexdigest(),
    }
