"""Why methods answer as they do: the words of their mistakes, and those that decide each class, for `report --explain`.

Finding them takes the models, so it stands in `finetune.inference.reasons`; here is what a report shows of them.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from finetune.models.explanation import Explanation

__all__ = ["DecidingWord", "Reasons", "to_json"]


class DecidingWord(NamedTuple):
    """A word, or a term of several, that speaks for a label or against it.

    Attributes:
        word: In lower case.
        weight: Above 0 for the label, below 0 against it.
        num_texts: In how many of the explained texts it stands; None where it is a weight of the model itself.
    """

    word: str
    weight: float
    num_texts: int | None


@dataclass
class Reasons:
    """What was found out about some methods, by the names of their groups.

    Attributes:
        mistakes: Of a group's mistakes that the report shows, by their row in the test split.
        words: For each label its words, the strongest for it first, then the strongest against it where the task has no
            other label to stand for these.
        notes: How the words of a group were found.
        missing: A line for each group that could not be explained.
    """

    mistakes: dict[str, dict[int, Explanation]] = field(default_factory=dict)
    words: dict[str, dict[str, list[DecidingWord]]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def to_json(reasons: Reasons) -> dict[str, Any]:
    """Return reasons as `report.json` has them."""
    return {
        "words": {
            name: {label: [word._asdict() for word in words] for label, words in labels.items()}
            for name, labels in reasons.words.items()
        },
        "mistakes": {
            name: {
                str(row): {
                    "label": one.label, "score": one.score, "base": one.base, "is_exact": one.is_exact,
                    "pieces": [{"text": text, "contribution": value} for text, value in one.pieces()],
                }
                for row, one in found.items()
            }
            for name, found in reasons.mistakes.items()
        },
        "notes": reasons.notes,
        "missing": reasons.missing,
    }  # fmt: skip
