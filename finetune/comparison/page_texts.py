"""What a page shows of texts: examples, with the words that decided if they are known, and the words of each class."""

from collections.abc import Iterator, Sequence
from typing import Any

from finetune.comparison.differences import Example
from finetune.comparison.plots import COLOURS
from finetune.comparison.report import Report
from finetune.comparison.text import describe_words
from finetune.metrics import REGRESSION
from finetune.models.explanation import Explanation

__all__ = ["colour_of", "describe_texts", "list_examples", "list_words"]

BEGINNING, MOST = 220, 20_000  # characters of a text: those that are shown, and those that can be unfolded


def colour_of(position: int) -> int:
    """Return the number of the page's colour for a group, by its position."""
    return position % len(COLOURS)


def describe_texts(report: Report) -> str:
    """Describe what stands beside the examples."""
    parts = ["Probabilities are the mean over a method's seeds, scaled by temperature as above."]
    if report.problem_type == REGRESSION:
        parts = ["Numbers are the mean over a method's seeds."]
    if report.texts is None:
        parts.append("The runs were made with --no_store_text, so examples are named by their ids alone.")
    if report.reasons is None:
        parts.append("finetune report --explain also shows which words decided.")
    else:
        parts.append(
            "In a method's mistakes words are on blue, with a line under them, where they speak for its answer, and on "
            "orange, with a dashed line, where against it; the model is that of its first seed."
        )
    return " ".join(parts)


def list_examples(report: Report) -> Iterator[dict[str, Any]]:
    """Yield the kinds of examples, each with those of every method."""
    differences, names = report.differences, [group.name for group in report.groups]
    regression = report.problem_type == REGRESSION

    def by_method(examples: dict[str, list[Example]], words: Any) -> list[dict[str, Any]]:
        return [
            {
                "colour": colour_of(names.index(name)),
                "heading": words(name),
                "examples": [_example(report, one) for one in found],
            }
            for name, found in examples.items()
            if found
        ]

    if len(names) > 1:
        parts = by_method(
            differences.only_right,
            lambda name: (
                name if regression else f"{name}: {differences.num_only_right[name]:,} of {report.num_examples:,}"
            ),
        )
        if regression:
            heading, note = "Where one is far better", "Its error is the smallest, by the widest distance."
        else:
            heading, note = "Only one is right", "All its seeds are right, and all seeds of all other methods wrong."
        yield {"heading": heading, "note": note if parts else "There are no such examples.", "methods": parts}
    reasons = {} if report.reasons is None else report.reasons.mistakes
    parts = [
        {
            "colour": colour_of(names.index(name)),
            "heading": name,
            "examples": [_example(report, one, reasons.get(name, {}).get(one.row)) for one in found],
        }
        for name, found in differences.mistakes.items()
        if found
    ]
    yield {
        "heading": "Largest errors" if regression else "Surest mistakes",
        "note": "" if parts else "There are none.",
        "methods": parts,
    }
    if differences.suspects is not None:
        found = [_example(report, one) for one in differences.suspects]
        heading = f"the surest {len(found)} of {differences.num_suspects:,}"
        note = "All seeds of all methods give one answer, each method with a probability of at least 80 %, and the "
        yield {
            "heading": "Labels that are likely wrong",
            "note": note + ("label says something else." if found else "label never says something else."),
            "methods": [{"colour": None, "heading": heading, "examples": found}] if found else [],
        }


def _example(report: Report, example: Example, why: Explanation | None = None) -> dict[str, Any]:
    texts = (
        []
        if report.texts is None
        else [_cut([_piece(text, None, 1)]) for text in report.texts.get(example.row) if text]
    )
    if why is not None and texts:
        shown = _cut([_piece(text, value, why.strongest() or 1) for text, value in why.pieces()])
        texts = [shown] if why.holds_pair else [shown, *texts[1:]]
    return {
        "id": report.runs[0].test.ids[example.row].as_py(),
        "label": example.label,
        "answers": [
            {
                "method": method,
                "text": answer.text,
                "right": answer.is_right,
                "colour": colour_of(position),
            }
            for position, (method, answer) in enumerate(example.answers.items())
        ],
        "texts": texts,
        "why": "" if why is None else describe_words(why),
    }


def _cut(pieces: Sequence[dict[str, str]]) -> dict[str, Any]:
    """Part a text, given in pieces, where its beginning ends, at a space if there is one near."""
    text = "".join(piece["text"] for piece in pieces)
    if len(text) <= BEGINNING * 1.2:
        return {"begin": list(pieces), "rest": [], "cut": ""}
    end = text.rfind(" ", BEGINNING // 2, BEGINNING)
    end = BEGINNING if end < 0 else end
    cut = f"{len(text) - MOST:,} more characters are in predictions/test.parquet." if len(text) > MOST else ""
    return {"begin": list(_slice(pieces, 0, end)), "rest": list(_slice(pieces, end, MOST)), "cut": cut}


def _slice(pieces: Sequence[dict[str, str]], start: int, end: int) -> Iterator[dict[str, str]]:
    """Yield what of a text's pieces lies between two of its characters."""
    at = 0
    for piece in pieces:
        part = piece["text"][max(0, start - at) : max(0, end - at)]
        if part:
            yield {**piece, "text": part}
        at += len(piece["text"])


def list_words(report: Report) -> Iterator[dict[str, Any]]:
    """Yield for each method the words that decide each label."""
    if report.reasons is None:
        return
    names = [group.name for group in report.groups]
    for method, labels in report.reasons.words.items():
        rows = []
        for label, words in labels.items():
            most = max((abs(word.weight) for word in words), default=0.0) or 1.0
            shown = [
                _piece(word.word, word.weight, most)
                | {
                    "weight": f"{word.weight:+.2f}",
                    "count": "" if word.num_texts is None else f"{word.num_texts} texts",
                }
                for word in words
            ]
            rows.append({"label": label, "words": shown})
        colour = colour_of(names.index(method))
        yield {"name": method, "colour": colour, "note": report.reasons.notes[method], "labels": rows}


def _piece(text: str, value: float | None, most: float) -> dict[str, str]:
    """Describe a piece of a text: its colour, by whether it speaks for a label, and how full that is."""
    if value is None:
        return {"text": text, "kind": "", "share": "", "title": ""}
    kind = "for" if value > 0 else "against"
    return {"text": text, "kind": kind, "share": f"{abs(value) / most:.2f}", "title": f"{value:+.3f}"}
