"""What is kept of a long text, and how many texts go at once: numbers in, numbers out, and cheap to import."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

__all__ = [
    "TRUNCATIONS",
    "WINDOW_POOLINGS",
    "TextConfig",
    "cut_by_padding",
    "cut_by_tokens",
    "cut_contents",
    "group_equal",
    "type_tokens",
]

TRUNCATIONS = ["head", "tail", "head+tail", "window"]
WINDOW_POOLINGS = ["mean", "max", "vote"]


@dataclass(frozen=True)
class TextConfig:
    """How texts become tokens; saved with a model, since it must be the same when it is used.

    Attributes:
        max_length: Most tokens of a text, or of each of its windows, special tokens included.
        truncation: What is kept of a longer text: its head; its tail; a quarter of the tokens from the head and the
            rest from the tail (Sun et al. 2019, section 5.3: 128 and 382 of 512); or all of it, in windows.
        window_stride: Tokens that a window shares with the one before it.
        window_pooling: How the logits of a text's windows become the text's: their mean, their maximum, or the share of
            windows that vote for a class.
    """

    max_length: int
    truncation: str = "head"
    window_stride: int = 0
    window_pooling: str = "mean"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


def cut_contents(
    contents: Sequence[Sequence[int]], prefix: Sequence[int], suffix: Sequence[int], config: TextConfig
) -> dict[str, list]:
    """Cut tokenized texts to their tail, their head and tail, or into windows.

    Args:
        contents: Token numbers of each text, without special tokens.
        prefix: Special tokens before a text.
        suffix: Special tokens after it.
        config: How long texts are cut; any `truncation` but "head", which tokenizers do by themselves.

    Returns:
        `input_ids`, for each text a list of token numbers, with `window` a list of such lists; `length`, the number of
        tokens; `is_truncated`, whether tokens were left out.
    """
    prefix, suffix = list(prefix), list(suffix)
    budget = config.max_length - len(prefix) - len(suffix)
    if config.truncation == "window":
        step = max(1, budget - config.window_stride)
        windows = [
            [
                prefix + list(content[start : start + budget]) + suffix
                for start in _window_starts(len(content), budget, step)
            ]
            for content in contents
        ]
        return {
            "input_ids": windows,
            "length": [sum(map(len, one)) for one in windows],
            "is_truncated": [False] * len(windows),
        }
    head = config.max_length // 4 if config.truncation == "head+tail" else 0
    cut = [
        prefix + list(content if len(content) <= budget else [*content[:head], *content[head - budget :]]) + suffix
        for content in contents
    ]
    return {
        "input_ids": cut,
        "length": [len(tokens) for tokens in cut],
        "is_truncated": [len(content) > budget for content in contents],
    }


def type_tokens(
    rows: Sequence[Sequence[int]], prefix: Sequence[int], content: int, suffix: Sequence[int]
) -> list[list[int]]:
    """Return the token types of texts that `cut_contents` has cut, or of their windows.

    Args:
        rows: Token numbers of each, special tokens included.
        prefix: Types of the special tokens before a text.
        content: The type of its own tokens.
        suffix: Types of the special tokens after it.
    """
    return [[*prefix, *[content] * (len(row) - len(prefix) - len(suffix)), *suffix] for row in rows]


def _window_starts(length: int, budget: int, step: int) -> range:
    """Return the first token of each window; the last one reaches the end of the text."""
    return range(0, max(1, length - budget + step), step)


def cut_by_tokens(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Cut examples into groups of similar length with at most `max_tokens` tokens each, padding included.

    Args:
        lengths: Tokens of each example.
        max_tokens: Most tokens of a group: its size times its longest example. A longer example stands alone.

    Returns:
        Groups of positions in `lengths`, longest first, so that memory peaks at once rather than late.

    Example:
        >>> cut_by_tokens([3, 9, 4, 2], max_tokens=10)
        [[1], [2, 0], [3]]
    """
    groups: list[list[int]] = []
    longest = 0
    for position in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        if groups and (len(groups[-1]) + 1) * longest <= max_tokens:
            groups[-1].append(position)
        else:
            groups.append([position])
            longest = lengths[position]
    return groups


def cut_by_padding(lengths: Sequence[int], max_tokens: int, overhead: int) -> list[list[int]]:
    """Cut examples into groups as `cut_by_tokens` does, and further where that leaves out more padding than it costs.

    Of all ways to cut the examples in the order of their length, the one with the least padded tokens, where each group
    counts as `overhead` tokens more (dynamic programming).

    Args:
        lengths: Tokens of each example.
        max_tokens: Most tokens of a group, padding included. A longer example stands alone.
        overhead: As how many tokens' computation a group's own cost counts.

    Returns:
        Groups of positions in `lengths`, longest first.

    Example:
        >>> cut_by_padding([3, 9, 4, 2], max_tokens=100, overhead=4)
        [[1], [2, 0, 3]]
    """
    order = np.argsort(-np.asarray(lengths), kind="stable").tolist()
    costs, starts = [0], [0]  # of the first 0, 1, 2, ... examples: the least cost, and where its last group starts
    for end in range(1, len(order) + 1):
        best = None
        for start in range(end - 1, -1, -1):
            padded = (end - start) * lengths[order[start]]
            if padded > max_tokens and end - start > 1:
                break
            cost = costs[start] + padded + overhead
            if best is None or cost <= best[0]:
                best = cost, start
        assert best is not None
        costs.append(best[0])
        starts.append(best[1])
    groups, end = [], len(order)
    while end:
        groups.append(order[starts[end] : end])
        end = starts[end]
    return groups[::-1]


def group_equal(lengths: Sequence[int], max_tokens: int, pair_lengths: Sequence[int] | None = None) -> list[list[int]]:
    """Group rows of exactly one length, so that none is padded, by at most `max_tokens` tokens or single rows.

    Args:
        lengths: Tokens of each row.
        max_tokens: Of a group.
        pair_lengths: Tokens of each row's second text, if that is read apart; a group has one length of these too.

    Example:
        >>> group_equal([3, 2, 3, 3], max_tokens=6)
        [[1], [0, 2], [3]]
        >>> group_equal([3, 2, 3, 3], max_tokens=100, pair_lengths=[5, 5, 4, 5])
        [[1], [2], [0, 3]]
    """
    sizes = list(zip(lengths, [0] * len(lengths) if pair_lengths is None else pair_lengths, strict=True))
    groups: list[list[int]] = []
    for position in sorted(range(len(sizes)), key=sizes.__getitem__):
        size = sizes[position]
        if groups and sizes[groups[-1][0]] == size and (len(groups[-1]) + 1) * sum(size) <= max_tokens:
            groups[-1].append(position)
        else:
            groups.append([position])
    return groups
