"""Why a model answers as it does: what each word contributed to the score of a label.

The score is a label's logit less the mean of the others', of two classes the log-odds; of several labels a text the
logit alone, of a number the number. Temperature and thresholds have no part in it. Linear models say themselves what
each word contributes; of any other model words are left out, one after the other (Zeiler and Fergus 2014 cover parts of
images; Li et al. 2016 leave out words).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from finetune.data.words import WORD
from finetune.escape import to_html
from finetune.tasks import MULTI_LABEL, REGRESSION

__all__ = ["Explanation", "Part", "compute_scores", "explain_by_leaving_out", "find_words"]

MOST_PARTS = 100  # of a text; in longer ones neighbours are left out together
# Blue and orange, which people who confuse red and green tell apart, on light ground and on dark.
COLOURS = {True: "30, 110, 200", False: "200, 95, 0"}


@dataclass(frozen=True)
class Part:
    """A word of a text, or some neighbours, and what it contributed.

    Attributes:
        start: Of its characters in the text.
        end: After the last of them.
        contribution: To the score of the explained label, above 0 for it and below 0 against it.
    """

    start: int
    end: int
    contribution: float


@dataclass(frozen=True)
class Explanation:
    """What the words of a text contributed to the score of a label.

    Attributes:
        text: The text; of a pair the first one, or both with a space between them.
        label: The label that is explained; of a number its name.
        score: The score of the whole text.
        base: The score without a word.
        parts: The words in their order.
        is_exact: Whether the contributions add up to `score` less `base`; otherwise each is what the score loses when
            that part alone is left out.
        holds_pair: Whether the text is both of a pair.
    """

    text: str
    label: str
    score: float
    base: float
    parts: tuple[Part, ...]
    is_exact: bool
    holds_pair: bool = False

    def top(self, count: int = 10) -> list[tuple[str, float]]:
        """Return the words that contributed most, for or against, and what."""
        ranked = sorted(self.parts, key=lambda part: -abs(part.contribution))
        return [(self.text[part.start : part.end], part.contribution) for part in ranked[:count]]

    def pieces(self) -> list[tuple[str, float | None]]:
        """Return the whole text in pieces: words with their contributions, and with None what is between them."""
        found: list[tuple[str, float | None]] = []
        at = 0
        for part in self.parts:
            found += [(self.text[at : part.start], None), (self.text[part.start : part.end], part.contribution)]
            at = part.end
        return [(piece, value) for piece, value in [*found, (self.text[at:], None)] if piece]

    def strongest(self) -> float:
        """Return the largest contribution for or against; 0 without words."""
        return max((abs(part.contribution) for part in self.parts), default=0.0)

    def to_html(self) -> str:
        """Return the text as HTML, its words on blue where they speak for the label and on orange where against it.

        The strongest has the fullest colour; each says its contribution when it is pointed at.
        """
        most, shown = self.strongest() or 1.0, []
        for piece, value in self.pieces():
            if value is None:
                shown.append(to_html(piece))
                continue
            colour = f"rgba({COLOURS[value > 0]}, {0.75 * abs(value) / most:.2f})"
            style = f"background: {colour}; border-radius: .2em"
            shown.append(f'<span style="{style}" title="{value:+.3f}">{to_html(piece)}</span>')
        return f'<p style="line-height: 1.7">{to_html(self.label)}: {"".join(shown)}</p>'

    _repr_html_ = to_html  # as notebooks show it


def find_words(text: str) -> list[tuple[int, int]]:
    """Return where each word of a text begins and ends."""
    return [match.span() for match in re.finditer(WORD, text)]


def compute_scores(logits: np.ndarray, labels: np.ndarray, problem_type: str) -> np.ndarray:
    """Compute the score of a label for each row, as the module's docstring says.

    Args:
        logits: `(rows, num_labels)`.
        labels: A class number for each row, `(rows,)`.
        problem_type: transformers' name of the task.

    Returns:
        `(rows,)`.
    """
    logits = logits.astype(np.float64)
    own = logits[np.arange(len(logits)), labels]
    if problem_type in (REGRESSION, MULTI_LABEL) or logits.shape[1] == 1:
        return own
    return own - (logits.sum(axis=1) - own) / (logits.shape[1] - 1)


def explain_by_leaving_out(
    compute_logits: Callable[[Sequence[str]], np.ndarray],
    text: str,
    label: int,
    label_name: str,
    problem_type: str,
) -> Explanation:
    """Explain a label of a text by what its score loses when a word is left out.

    Args:
        compute_logits: Texts to logits, `(texts, num_labels)`.
        text: The text.
        label: The number of the label.
        label_name: Its name.
        problem_type: transformers' name of the task.

    Returns:
        A contribution for each word; in texts of more than `MOST_PARTS` words some neighbours share one.
    """
    words = find_words(text)
    size = max(1, -(-len(words) // MOST_PARTS))
    groups = [words[at : at + size] for at in range(0, len(words), size)]
    variants = [text, "", *(text[: group[0][0]] + text[group[-1][1] :] for group in groups)]
    scores = compute_scores(compute_logits(variants), np.full(len(variants), label), problem_type)
    parts = [
        Part(start, end, float(scores[0] - without) / len(group))
        for group, without in zip(groups, scores[2:], strict=True)
        for start, end in group
    ]
    return Explanation(text, label_name, float(scores[0]), float(scores[1]), tuple(parts), is_exact=False)
