"""Texts that are nearly the same: locality-sensitive hashing finds candidates, their shingles decide."""

import functools
from collections.abc import Sequence

import numpy as np

from finetune.examination.facts import NUM_HASHES, Facts, find_words, hash_shingles

__all__ = ["SIMILAR", "find_near_duplicates"]

SIMILAR = 0.7  # Jaccard similarity of the runs of five words
BANDS = 8  # of four hashes: a pair of similarity 0.7 shares a band with probability 0.89, one of 0.9 with 0.9999
# Of texts alike in a band each is compared with the first ones: more pairs of the same boilerplate tell nothing new.
FIRST = 10
SHINGLES_KEPT = 4_096  # texts


def find_near_duplicates(facts: Sequence[Facts]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Find pairs of texts with at least 0.7 of their runs of five words in common, exact copies left out.

    Args:
        facts: The splits.

    Returns:
        Pairs of (number of the split, row), the earlier one first.
    """
    offsets = np.cumsum([0, *(len(one.keys) for one in facts)])
    keys = np.concatenate([one.keys for one in facts])
    sketches = np.concatenate([one.sketches for one in facts])
    rows = np.concatenate([offsets[n] + np.unique(one.keys, return_index=True)[1] for n, one in enumerate(facts)])
    rows = np.sort(rows[np.concatenate([one.num_words for one in facts])[rows] > 1])

    def locate(row: int) -> tuple[int, int]:
        split = int(np.searchsorted(offsets, row, side="right")) - 1
        return split, row - int(offsets[split])

    @functools.lru_cache(SHINGLES_KEPT)
    def shingles_of(row: int) -> np.ndarray:
        split, position = locate(row)
        example = facts[split].dataset[position]
        return hash_shingles(find_words(f"{example['text']} {example.get('text_pair', '')}"))

    found = []
    for a, b in _find_candidates(rows, keys, sketches):
        one, other = shingles_of(a), shingles_of(b)
        common = len(np.intersect1d(one, other, assume_unique=True))
        if common >= SIMILAR * (len(one) + len(other) - common):
            found.append((locate(a), locate(b)))
    return found


def _find_candidates(rows: np.ndarray, keys: np.ndarray, sketches: np.ndarray) -> list[list[int]]:
    """Pair the rows that are alike in a band and in half of all hashes, which is well below 0.7, in order."""
    pairs = [np.zeros((0, 2), dtype=np.int64)]
    for band in np.split(np.arange(NUM_HASHES), BANDS):
        order = np.lexsort(sketches[rows][:, band].T)  # stable: rows of a bucket stay in order
        part = sketches[rows[order]][:, band]
        starts = np.flatnonzero((part[1:] != part[:-1]).any(axis=1)) + 1
        starts = np.concatenate([[0], starts, [len(order)]])
        for number in np.flatnonzero(np.diff(starts) > 1):
            bucket = rows[order[starts[number] : starts[number + 1]]]
            first = bucket[:FIRST]
            a, b = np.repeat(first, len(bucket)), np.tile(bucket, len(first))
            alike = (a < b) & (keys[a] != keys[b])
            a, b = a[alike], b[alike]
            alike = (sketches[a] == sketches[b]).mean(axis=1) >= 0.5
            pairs.append(np.stack([a[alike], b[alike]], axis=1))
    return np.unique(np.concatenate(pairs), axis=0).tolist()
