"""One pass over a split: everything about its texts that the checks need, in arrays."""

import re
import zlib
from dataclasses import dataclass, field

import numpy as np
from datasets import Dataset

from finetune.data.labels import label_matrix
from finetune.data.split import iterate_texts, text_keys
from finetune.data.words import MARKS, UNSPACED
from finetune.metrics import REGRESSION
from finetune.tasks import Task

__all__ = ["NUM_HASHES", "SHINGLE", "Facts", "collect_facts", "find_words", "hash_shingles"]

SHINGLE = 5  # words
NUM_HASHES = 30
NO_SHINGLES = 2**32 - 1  # in every place of the sketch of a text that has none
NULL_WORDS = {"nan", "null", "none", "na", "n/a", "#n/a", "<na>"}
WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+(?:[{MARKS}]+[^\W_{UNSPACED}]*)*")


def _mojibake_pattern() -> re.Pattern[str]:
    """Describe what UTF-8 looks like when it was read as Latin-1 or Windows-1252: two to four signs for each one.

    The second sign of such a pair may be a dash, quote or space, which also stands behind correct words in capitals
    (AMANHÃ”, ĐÃ…, HÂLÂ »). So these count only if no capital stands before, or one behind (AÃ‘O for AÑO).
    """
    signs = bytes(range(0x80, 0xC0)).decode("cp1252", "ignore") + "".join(map(chr, range(0x80, 0xA0)))
    unclear = "‘’“”‹›«»•–—…°\xa0"
    clear = "".join(sign for sign in signs if sign not in unclear)
    capital = "A-ZÀ-ÞĐ"
    patterns = (
        rf"[ÂÃ][{re.escape(clear)}]",
        rf"(?<![{capital}])[ÂÃ][{unclear}]",
        rf"Ã[‘’“”‹›•–](?=[{capital}])",
        r"Å[“\x93](?=[a-z])",  # œ
        r"â€|â‚¬|â„¢|â[\x80-\x9f]",  # dashes and quotes, the euro, the trade mark
        r"ðŸ|ð\x9f",  # emoji
        rf"(?:[Ã-ß][{re.escape(signs)}]){{3}}",  # Greek, Cyrillic, Hebrew, Arabic
        rf"(?:[à-ï][{re.escape(signs)}]{{2}}){{2}}",  # Chinese, Japanese, Korean, Thai, Hindi
        "\ufffd|锟斤拷",  # what can't be decoded, and its UTF-8 read as Chinese
    )
    return re.compile("|".join(patterns))


MOJIBAKE = _mojibake_pattern()
PRIME = np.uint64(0x9E3779B97F4A7C15)


@dataclass
class Facts:
    """What is known of a split's rows.

    Attributes:
        name: The split's name.
        dataset: The split.
        labels: `label_matrix` of its labels; None where they are withheld.
        keys: A hash of each text, `(rows,)`.
        num_words: Words of each text, `(rows,)`; see `find_words`.
        sketches: MinHash sketch of each text, `(rows, NUM_HASHES)`.
        null, empty, null_word, mojibake: Row numbers; of pairs in which either text is so.
        names_in_text: For each label name that was looked for, the rows that hold it as words.
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
        np.full((len(dataset), NUM_HASHES), NO_SHINGLES, dtype=np.uint32),
    )
    # Label names by their first word. A number or one or two letters stand in many texts without meaning the label.
    phrases: dict[str, list[tuple[str, str]]] = {}
    for label in [] if task.problem_type == REGRESSION else task.label_names:
        words = find_words(label)
        if words and not label.isdigit() and not (label.isascii() and len(label) <= 2):
            phrases.setdefault(words[0], []).append((label, f" {' '.join(words)} "))
            facts.names_in_text[label] = []
    paired = "text_pair" in dataset.column_names
    for row, text in enumerate(iterate_texts(dataset)):
        if text is None:
            facts.null.append(row)
            continue
        words = find_words(text)
        facts.num_words[row] = len(words)
        if len(words) <= 2 or paired:  # blank texts have no words, null words at most two
            parts = [part.strip().lower() for part in (text.split("\0") if paired else [text])]
            if "" in parts:
                facts.empty.append(row)
            elif not NULL_WORDS.isdisjoint(parts):
                facts.null_word.append(row)
        if not text.isascii() and MOJIBAKE.search(text):
            facts.mojibake.append(row)
        if firsts := phrases.keys() & words:
            line = f" {' '.join(words)} "
            for label, phrase in (pair for first in firsts for pair in phrases[first]):
                if phrase in line:
                    facts.names_in_text[label].append(row)
        if len(words) > 1:  # a single word is another word, however similar it is
            facts.sketches[row] = _sketch(hash_shingles(words))
    return facts


def find_words(text: str) -> list[str]:
    """Find the words of a text, in lower case; each sign is one in scripts that put no spaces between words.

    Example:
        >>> find_words("Mind the gap_year, 明日!")
        ['mind', 'the', 'gap', 'year', '明', '日']
    """
    return WORD.findall(text.lower())


def hash_shingles(words: list[str]) -> np.ndarray:
    """Hash every run of five words, or of letters where a text has no more words; 64 bits each, repeated ones once."""
    parts = words if len(words) > SHINGLE else "".join(words)
    numbers = np.fromiter((zlib.crc32(part.encode()) for part in parts), dtype=np.uint64, count=len(parts))
    width = min(SHINGLE, len(numbers))
    hashed = np.zeros(len(numbers) - width + 1, dtype=np.uint64)
    for offset in range(width):
        hashed = (hashed ^ numbers[offset : len(numbers) - width + 1 + offset]) * PRIME
        hashed ^= hashed >> np.uint64(29)
    return np.unique(hashed)


_GENERATOR = np.random.default_rng(0)
_FACTORS = _GENERATOR.integers(1, 2**63, NUM_HASHES, dtype=np.uint64) | np.uint64(1)


def _sketch(shingles: np.ndarray) -> np.ndarray:
    """Take the least of each of 30 hash functions (Broder 1997): two texts agree in as many as their shingles do."""
    mixed = shingles[:, None] * _FACTORS[None, :]
    return (mixed >> np.uint64(32)).min(axis=0).astype(np.uint32)
