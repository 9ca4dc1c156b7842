"""Texts that are nearly the same: locality-sensitive hashing finds candidates, their shingles decide."""

import functools
from collections.abc import Sequence

import numpy as np

from finetune.data_doctor.facts import NUM_HASHES, Facts, find_words, hash_shingles

__all__ = ["SIMILAR", "find_near_duplicates"]

SIMILAR = 0.7  # Jaccard similarity of the runs of five words
BANDS = 10  # of three hashes: a pair of similarity 0.7 shares a band with probability 0.985, one of 0.8 with 0.999
# Of texts alike in a band each is compared with the first ones: more pairs of the same boilerplate tell nothing new.
FIRST = 10
SHINGLES_KEPT = 4_096  # texts


def find_near_duplicates(facts: Sequence[Facts]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Find texts with at least 0.7 of their runs of five words in common with an earlier one, exact copies left out.

    Args:
        facts: The splits.

    Returns:
        For each such text, and each split with one that it is like: the first of these, and the text, both as (number
        of the split, row); in the order of the texts.
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

    found: dict[tuple[int, int], tuple[tuple[int, int], tuple[int, int]]] = {}
    for later, earlier in _find_candidates(rows, keys, sketches):
        place = locate(earlier)
        if (later, place[0]) in found:
            continue
        one, other = shingles_of(earlier), shingles_of(later)
        common = len(np.intersect1d(one, other, assume_unique=True))
        if common >= SIMILAR * (len(one) + len(other) - common):
            found[later, place[0]] = place, locate(later)
    return list(found.values())


def _find_candidates(rows: np.ndarray, keys: np.ndarray, sketches: np.ndarray) -> list[list[int]]:
    """Pair each row with earlier ones, alike in a band and in half of all hashes, which is well below 0.7; in order."""
    pairs = [np.zeros((0, 2), dtype=np.int64)]
    for band in np.split(np.arange(NUM_HASHES), BANDS):
        order = np.lexsort(sketches[rows][:, band].T)  # stable: rows of a bucket stay in order
        part = sketches[rows[order]][:, band]
        starts = np.flatnonzero((part[1:] != part[:-1]).any(axis=1)) + 1
        starts = np.concatenate([[0], starts, [len(order)]])
        for number in np.flatnonzero(np.diff(starts) > 1):
            bucket = rows[order[starts[number] : starts[number + 1]]]
            first = bucket[:FIRST]
            later, earlier = np.tile(bucket, len(first)), np.repeat(first, len(bucket))
            unequal = (later > earlier) & (keys[later] != keys[earlier])
            later, earlier = later[unequal], earlier[unequal]
            alike = (sketches[later] == sketches[earlier]).mean(axis=1) >= 0.5
            pairs.append(np.stack([later[alike], earlier[alike]], axis=1))
    return np.unique(np.concatenate(pairs), axis=0).tolist()
