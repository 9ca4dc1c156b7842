"""Lines of a label and a text, in either order; fastText's `__label__` before, behind or within a text.

Which it is, the lines of the whole file decide: labels are few and short, texts many and long.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from finetune.errors import FinetuneError

__all__ = ["read_labelled_lines"]

PREFIX = "__label__"
SAMPLED_LINES = 20_000
# What English sentences begin with; three of them are no coincidence of classes that have such names.
COMMON_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "at",
        "but",
        "for",
        "from",
        "he",
        "how",
        "i",
        "if",
        "in",
        "is",
        "it",
        "my",
        "of",
        "on",
        "our",
        "she",
        "that",
        "the",
        "there",
        "they",
        "this",
        "to",
        "we",
        "what",
        "when",
        "where",
        "who",
        "why",
        "with",
        "you",
        "your",
    ]
)
FEWEST_COMMON = 3
MAX_LABEL = 60  # characters of a label that stands behind its text


def read_labelled_lines(
    path: Path, open_lines: Callable[[], Iterator[str]]
) -> tuple[str, Iterator[tuple[str | list[str], str, int]]]:
    """Read the label or labels, the text and the number of each line that is not blank.

    Returns:
        How lines were understood, for the person who reads it; and label, text and number of each.

    Raises:
        FinetuneError: While they are read, if a line has no `__label__` and others have, or the lines are JSON.
    """
    sample = [line.strip() for line, _ in zip(_filled(open_lines()), range(SAMPLED_LINES), strict=False)]
    if sample and sample[0].startswith(('{"', "[{")):
        raise FinetuneError(
            f"Expected lines 'label text' in {str(path)!r}, whose ending names no other format, but found "
            "JSON. Rename it to .jsonl."
        )
    if any(re.search(rf"(?:^|[\s,;|]){PREFIX}\S", line) for line in sample):
        ends_at_comma = _labels_end_at_commas(sample)
        return f"lines with {PREFIX}", (
            (*_take_prefixed(path, line, number, ends_at_comma), number) for line, number in _numbered(open_lines())
        )
    _refuse_names(path, sample)
    if all(line.count("\t") == 1 for line in sample) and sample:
        pairs = [tuple(line.split("\t")) for line in sample]
        first, second = [_Shape([pair[side] for pair in pairs]) for side in (0, 1)]
        if second.is_label and (not first.is_label or first.mean_length > 2 * second.mean_length):
            return "lines of a text, a tab and a label", (
                (text.rpartition("\t")[2].strip(), text.rpartition("\t")[0], number)
                for text, number in _numbered(open_lines())
            )
        if first.is_label and any(" " in pair[0] for pair in pairs):
            return "lines of a label, a tab and a text", (
                (text.partition("\t")[0].strip(), text.partition("\t")[2].strip(" \t"), number)
                for text, number in _numbered(open_lines())
            )
    sign, is_first = _find_sign(path, sample)
    if sign is not None:
        layout = f"lines of a label, {sign!r} and a text" if is_first else f"lines of a text, {sign!r} and a label"
        return layout, ((*_cut(line, sign, is_first), number) for line, number in _numbered(open_lines()))
    _refuse_unlabelled(path, sample)
    return "lines 'label text'", ((*_part(line), number) for line, number in _numbered(open_lines()))


def _refuse_unlabelled(path: Path, lines: list[str]) -> None:
    """Refuse lines whose first words are those that sentences begin with, and no labels."""
    firsts = {_part(line)[0].lower() for line in lines}
    if len(found := sorted(firsts & COMMON_WORDS)) >= FEWEST_COMMON:
        raise FinetuneError(
            f"Expected lines 'label text' in {str(path)!r}, but some begin with {', '.join(map(repr, found[:5]))}, as "
            "texts without a label do. Put a label and a tab before each text."
        )


def _refuse_names(path: Path, lines: list[str]) -> None:
    """Refuse a first line of two words in two columns, where no other line is so short: the names of columns."""
    for sign in ("\t", ",", ";", "|"):
        first = [part.strip() for part in lines[0].split(sign)] if len(lines) > 3 else []
        if len(first) != 2 or not all(re.fullmatch(r"[^\W\d]\w*", part) for part in first):
            continue
        others = [[part.strip() for part in line.split(sign)] for line in lines[1:]]
        if any({*first} & {*other} for other in others) or any(all(" " not in part for part in row) for row in others):
            continue
        if all(len(row) > 1 for row in others):
            raise FinetuneError(
                f"Expected an example in the first line of {str(path)!r}, but found {lines[0]!r}, which looks like "
                "names of columns. Name the file .csv or .tsv if it is that, or remove the line."
            )


def _cut(line: str, sign: str, is_first: bool) -> tuple[str, str]:
    before, _, behind = line.partition(sign) if is_first else line.rpartition(sign)
    return (before.strip(), behind.strip()) if is_first else (behind.strip(), before.strip())


def _find_sign(path: Path, lines: list[str]) -> tuple[str | None, bool]:
    """Find what parts labels from texts if that is no space behind the first word, and whether the label is first.

    Raises:
        FinetuneError: If the first words of the lines could be their labels, and the last ones as well.
    """
    words = _Shape([_part(line)[0] for line in lines] or [""])
    for sign in ("|", ";", ","):
        if all(sign in _part(line)[0] for line in lines) and lines:
            starts = _Shape([line.partition(sign)[0] for line in lines])
            if starts.is_label and 1 < starts.num_distinct < words.num_distinct:
                return sign, True
    for sign in ("\t", "|", ";", ",", "  ", " "):
        ends = [line.rpartition(sign)[2].strip() for line in lines if sign in line]
        if len(ends) < max(4, len(lines)) or not all(re.search(r"\w", end) for end in ends):
            continue
        shape = _Shape(ends)
        if (
            shape.is_label
            and 1 < shape.num_distinct <= max(2, len(ends) // 4)
            and (words.num_distinct == 1 or shape.num_distinct < words.num_distinct)
        ):
            if sign == " " and words.is_label and words.num_distinct > 1:
                raise FinetuneError(
                    f"Expected lines 'label text' in {str(path)!r}, but both the first and the last words of its lines "
                    f"could be labels: {words.shown} or {shape.shown}. Put a tab between label and text."
                )
            return sign, False
    return None, True


class _Shape:
    """What tells labels from texts: how many different ones there are, and how long they are."""

    def __init__(self, values: list[str]):
        distinct = {value.strip() for value in values}
        self.num_distinct, self.shown = len(distinct), sorted(distinct)[:3]
        self.mean_length = sum(map(len, values)) / len(values)
        few = len(distinct) <= 2 or 2 * len(distinct) <= len(values)
        self.is_label = few and "" not in distinct and max(map(len, distinct)) <= MAX_LABEL


def _filled(lines: Iterator[str]) -> Iterator[str]:
    return (line for line in lines if line.strip())


def _numbered(lines: Iterator[str]) -> Iterator[tuple[str, int]]:
    return ((line.strip(), number) for number, line in enumerate(lines, 1) if line.strip())


def _part(line: str) -> tuple[str, str]:
    """Part a line at its first run of spaces or tabs."""
    label, *text = re.split(r"[ \t]+", line, maxsplit=1)
    return label, "".join(text)


def _labels_end_at_commas(lines: list[str]) -> bool:
    """Return whether a comma ends a label, as in `__label__x,text`: else there would be nearly as many as lines."""
    whole = {word for line in lines for word in line.split() if word.startswith(PREFIX)}
    cut = {re.split(r"[,;|]", word)[0] for word in whole}
    return any(word[-1] in ",;|" for word in whole) or (len(cut) < len(whole) and 2 * len(whole) > len(lines))


def _take_prefixed(path: Path, line: str, number: int, ends_at_comma: bool) -> tuple[str | list[str], str]:
    end = r"[^\s,;|]+" if ends_at_comma else rf"(?:(?!,{PREFIX})\S)+"
    pattern = rf"(?:(?<=^)|(?<=[\s,;|])){PREFIX}({end})"
    labels = re.findall(pattern, line)
    if not labels:
        raise FinetuneError(
            f"Expected labels in every line of {str(path)!r} to be written alike, but line {number} is without "
            f"{PREFIX}. Write it in each line, or in none."
        )
    before = re.match(rf"(?:[\s,;|]*{PREFIX}{end})*[,;|]?[ \t]*", line)
    behind = re.search(rf"[ \t]*[,;|]?[ \t]*(?:(?<=[\s,;|]){PREFIX}{end}[\s,;|]*)+$", line)
    start = before.end() if before else 0
    stop = behind.start() if behind and behind.start() >= start else len(line)
    text = re.sub(rf"[ \t]*{pattern}", "", line[start:stop])
    return (labels if len(labels) > 1 else labels[0]), text
