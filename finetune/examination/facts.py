"""One pass over a split: everything about its texts that the checks need, in arrays."""

import re
import zlib
from dataclasses import dataclass, field

import numpy as np
from datasets import Dataset

from finetune.data.labels import Task, label_matrix
from finetune.data.split import iterate_texts, text_keys
from finetune.metrics import REGRESSION

__all__ = ["NUM_HASHES", "Facts", "collect_facts", "hash_shingles"]

SHINGLE = 5  # words
NUM_HASHES = 32
NULL_WORDS = {"nan", "null", "none", "na", "n/a", "#n/a", "<na>"}
# What UTF-8 looks like when it was read as Latin-1 or Windows-1252: two to four signs for each accented one.
MOJIBAKE = re.compile(
    r"[\u00c2\u00c3][\u0080-\u00bf\u20ac\u201a-\u201e\u0152\u0153\u0160\u0161\u017d\u017e\u2122\u2039\u203a]"
    r"|\u00e2[\u0080-\u009f\u20ac][\u0080-\u00bf\u2122\u0153\u009d\u201c\u201d\u02dc]|\ufffd"
)
PRIME = np.uint64(0x9E3779B97F4A7C15)


@dataclass
class Facts:
    """What is known of a split's rows.

    Attributes:
        dataset: The split.
        labels: `label_matrix` of its labels; None where they are withheld.
        keys: A hash of each text, `(rows,)`.
        num_words: White-space separated words of each text, `(rows,)`.
        sketches: MinHash sketch of each text, `(rows, NUM_HASHES)`.
        null, empty, null_word, mojibake: Row numbers.
        names_in_text: For each label name that was looked for, the rows that hold it as a word.
    """

    name: str
    dataset: Dataset
    labels: np.ndarray | None
    keys: np.ndarray
    num_words: np.ndarray
    sketches: np.ndarray
    null: list[int] = field(default_factory=list)
    empty: list[int] = field(default_factory=list)
    null_word: list[int] = field(default_factory=list)
    mojibake: list[int] = field(default_factory=list)
    names_in_text: dict[str, list[int]] = field(default_factory=dict)


def collect_facts(name: str, dataset: Dataset, task: Task) -> Facts:
    """Read a split once."""
    labelled = "label" in dataset.column_names
    facts = Facts(
        name,
        dataset,
        label_matrix(dataset["label"], task) if labelled else None,
        text_keys(dataset),
        np.zeros(len(dataset), dtype=np.int32),
        np.full((len(dataset), NUM_HASHES), 2**32 - 1, dtype=np.uint32),
    )
    # A number or a single letter stands in many texts without meaning the label.
    looked_for = [name for name in task.label_names if len(name) > 2 and not name.isdigit()][:200]
    spaced = {} if task.problem_type == REGRESSION else {name: f" {' '.join(_words(name))} " for name in looked_for}
    facts.names_in_text = {name: [] for name in spaced}
    for row, text in enumerate(iterate_texts(dataset)):
        if text is None:
            facts.null.append(row)
            continue
        words = _words(text)
        facts.num_words[row] = len(words)
        if not text.strip():
            facts.empty.append(row)
        elif len(text) < 8 and text.strip().lower() in NULL_WORDS:
            facts.null_word.append(row)
        if not text.isascii() and MOJIBAKE.search(text):
            facts.mojibake.append(row)
        if spaced:
            line = f" {' '.join(words)} "
            for label, word in spaced.items():
                if word in line:
                    facts.names_in_text[label].append(row)
        shingles = hash_shingles(words if len(words) > SHINGLE else list("".join(words)))
        if len(shingles):
            facts.sketches[row] = _sketch(shingles)
    return facts


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def hash_shingles(words: list[str]) -> np.ndarray:
    """Hash every run of five words, or of letters where a text has no more words; 64 bits each, repeated ones once."""
    numbers = np.fromiter(
        (zlib.crc32(word.encode("utf-8", "replace")) for word in words), dtype=np.uint64, count=len(words)
    )
    if len(numbers) == 0:
        return numbers
    width = min(SHINGLE, len(numbers))
    hashed = np.zeros(len(numbers) - width + 1, dtype=np.uint64)
    for offset in range(width):
        hashed = (hashed ^ numbers[offset : len(numbers) - width + 1 + offset]) * PRIME
        hashed ^= hashed >> np.uint64(29)
    return np.unique(hashed)


_GENERATOR = np.random.default_rng(0)
_FACTORS = _GENERATOR.integers(1, 2**63, NUM_HASHES, dtype=np.uint64) | np.uint64(1)


def _sketch(shingles: np.ndarray) -> np.ndarray:
    """Take the least of each of 32 hash functions (Broder 1997): two texts agree in as many as their shingles do."""
    mixed = shingles[:, None] * _FACTORS[None, :]
    return (mixed >> np.uint64(32)).min(axis=0).astype(np.uint32)
