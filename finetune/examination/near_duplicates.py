"""Texts that are nearly the same: locality-sensitive hashing finds candidates, their shingles decide."""

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from finetune.examination.facts import NUM_HASHES, Facts, hash_shingles

__all__ = ["SIMILAR", "find_near_duplicates"]

SIMILAR = 0.7  # Jaccard similarity of the runs of five words
BANDS = 8  # of four hashes: a pair of similarity 0.7 shares a band with probability 0.89, one of 0.9 with 0.9999
MAX_BUCKET = 50  # rows alike in a band; more is boilerplate, of which the first ones are compared


def find_near_duplicates(facts: Sequence[Facts]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Find pairs of texts with at least 0.7 of their runs of five words in common, exact copies left out.

    Args:
        facts: The splits.

    Returns:
        Pairs of (number of the split, row).
    """
    offsets = np.cumsum([0, *(len(one.keys) for one in facts)])
    keys = np.concatenate([one.keys for one in facts])
    sketches = np.concatenate([one.sketches for one in facts])
    rows = np.concatenate([offsets[n] + np.unique(one.keys, return_index=True)[1] for n, one in enumerate(facts)])
    rows = rows[(sketches[rows] != 2**32 - 1).any(axis=1)]
    width = NUM_HASHES // BANDS
    candidates: set[tuple[int, int]] = set()
    for band in range(BANDS):
        part = np.ascontiguousarray(sketches[rows, band * width : (band + 1) * width])
        _, inverse, counts = np.unique(part, axis=0, return_inverse=True, return_counts=True)
        inverse = inverse.ravel()
        repeated = np.flatnonzero(counts[inverse] > 1)
        buckets: dict[int, list[int]] = defaultdict(list)
        for position in repeated.tolist():
            bucket = buckets[int(inverse[position])]
            if len(bucket) < MAX_BUCKET:
                bucket.append(int(rows[position]))
        for bucket in buckets.values():
            candidates.update((a, b) for i, a in enumerate(bucket) for b in bucket[i + 1 :] if keys[a] != keys[b])

    found = []
    shingles: dict[int, np.ndarray] = {}
    for a, b in sorted(candidates):
        # Half of the hashes agreeing is well below 0.7: not worth reading the texts.
        if (sketches[a] == sketches[b]).mean() < 0.5:
            continue
        pair: list[np.ndarray] = []
        for row in (a, b):
            if row not in shingles:
                shingles[row] = _shingles_of(facts, offsets, row)
            pair.append(shingles[row])
        common = len(np.intersect1d(pair[0], pair[1], assume_unique=True))
        if common >= SIMILAR * (len(pair[0]) + len(pair[1]) - common):
            found.append((_locate(offsets, a), _locate(offsets, b)))
    return found


def _locate(offsets: np.ndarray, row: int) -> tuple[int, int]:
    split = int(np.searchsorted(offsets, row, side="right")) - 1
    return split, row - int(offsets[split])


def _shingles_of(facts: Sequence[Facts], offsets: np.ndarray, row: int) -> np.ndarray:
    split, position = _locate(offsets, row)
    example = facts[split].dataset[position]
    words = re.findall(r"\w+", " ".join([example["text"] or "", example.get("text_pair") or ""]).lower())
    return hash_shingles(words if len(words) > 5 else list("".join(words)))
