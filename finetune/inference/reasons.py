"""Ask the models of a report why they answer as they do; `finetune.comparison.reasons` has what is shown of it."""

from collections import defaultdict
from collections.abc import Iterator

import pyarrow.parquet as pq

from finetune.comparison.groups import Group
from finetune.comparison.reasons import DecidingWord, Reasons
from finetune.comparison.report import Report
from finetune.comparison.runs import StoredRun
from finetune.data.words import compose
from finetune.errors import FinetuneError
from finetune.inference.predict import load_predictor
from finetune.models.answers import TextClassifier
from finetune.models.explanation import MOST_PARTS, Explanation, find_words
from finetune.progress_bar import progress_bar
from finetune.tasks import SINGLE_LABEL

__all__ = ["explain_report"]

MOST_WORDS = 10  # of a label
# Words that may be computed for a group's classes: a text of n words takes n + 2 predictions of about n words, at most
# 102. Two thousand sentences of ten words, or a dozen reviews of 250, which is a minute of an encoder on one core.
BUDGET = 300_000
FEWEST_TEXTS = 2  # in which a word has to stand


def explain_report(report: Report) -> Reasons:
    """Explain the mistakes that a report shows, and find the words that decide each class.

    The model of a group is that of its first seed. A linear model of words gives its weights; for any other texts of
    the validation split are explained, within a bound of what is computed.

    Args:
        report: Its runs still have their models.

    Returns:
        What was found; a group whose model can't be loaded, or whose texts were not stored, has a line that says so.
    """
    reasons = Reasons()
    for group in report.groups:
        run = group.runs[0]
        try:
            predictor = load_predictor(run.directory)
        except FinetuneError as error:
            reasons.missing.append(f"{group.name}: {error}")
            continue
        if report.texts is not None:
            reasons.mistakes[group.name] = {
                example.row: _explain(report, predictor, example.row, example.answers[group.name].label)
                for example in report.differences.mistakes[group.name]
            }
        words, note = _find_deciding_words(group, predictor)
        if words is None:
            reasons.missing.append(f"{group.name}: {note}")
        else:
            reasons.words[group.name], reasons.notes[group.name] = words, note
    return reasons


def _explain(report: Report, predictor: TextClassifier, row: int, label: str | None) -> Explanation:
    assert report.texts is not None
    text, second = report.texts.get(row)
    pairs = [second] if report.texts.second is not None else None
    (explanation,) = predictor.explain([text], pairs, label)
    return explanation


def _find_deciding_words(group: Group, predictor: TextClassifier) -> tuple[dict[str, list[DecidingWord]] | None, str]:
    """Find the words of each label, and say how; None and why where there are no texts to explain."""
    names = predictor.label_names
    both = predictor.task.problem_type != SINGLE_LABEL
    known = [predictor.weigh_terms(number) for number in range(len(names))]
    if all(one is not None for one in known):
        words = {
            name: _take_strongest([DecidingWord(term, weight, None) for term, weight in terms or ()], both)
            for name, terms in zip(names, known, strict=True)
        }
        return words, "The weights of the model itself: what a term adds to the label's score."
    texts = _read_texts(group.runs[0])
    if texts is None:
        return None, "its run was made with --no_store_text, so there are no texts to explain"
    sums: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    counts: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    explained: dict[int, int] = defaultdict(int)
    chosen = list(_choose_rows(group.runs[0], texts, predictor))
    with progress_bar(len(chosen), f"Explaining {group.name}") as advance:
        for row, label in chosen:
            text, second = texts[row]
            (one,) = predictor.explain([text], None if second is None else [second], names[label])
            for word in {compose(one.text[part.start : part.end]) for part in one.parts}:
                counts[label][word] += 1
            for part in one.parts:
                sums[label][compose(one.text[part.start : part.end])] += part.contribution
            explained[label] += 1
            advance(1)
    words = {
        name: _take_strongest(
            [
                DecidingWord(word, value / explained[label], counts[label][word])
                for word, value in sums[label].items()
                if counts[label][word] >= FEWEST_TEXTS
            ],
            both,
        )
        for label, name in enumerate(names)
    }
    return words, (
        f"What words contributed to the answer, on average over {sum(explained.values()):,} validation texts that were "
        f"explained by leaving words out, {min(explained[label] for label in range(len(names))):,} to "
        f"{max(explained.values(), default=0):,} of them for each label; words of at least {FEWEST_TEXTS} texts. It "
        "describes these texts, and words that say the same stand in for one another."
    )


def _take_strongest(words: list[DecidingWord], both: bool) -> list[DecidingWord]:
    """Return the words that speak most for a label, and if `both` those that speak most against it."""
    ranked = sorted(words, key=lambda one: (-one.weight, one.word))
    found = [one for one in ranked[:MOST_WORDS] if one.weight > 0]
    return found + ([one for one in ranked[::-1][:MOST_WORDS] if one.weight < 0] if both else [])


def _read_texts(run: StoredRun) -> list[tuple[str, str | None]] | None:
    table = pq.read_table(run.directory / "predictions" / "validation.parquet")
    if "text" not in table.column_names:
        return None
    first = table["text"].to_pylist()
    second = table["text_pair"].to_pylist() if "text_pair" in table.column_names else [None] * len(first)
    return [(text or "", pair) for text, pair in zip(first, second, strict=True)]


def _choose_rows(
    run: StoredRun, texts: list[tuple[str, str | None]], predictor: TextClassifier
) -> Iterator[tuple[int, int]]:
    """Choose validation rows with the label to explain: of each answered label in turns, within `BUDGET`."""
    probabilities = predictor.rules.to_probabilities(run.validation.logits)
    by_label: dict[int, list[int]] = defaultdict(list)
    for row, label in enumerate(predictor.labels_to_explain(probabilities)):
        by_label[label].append(row)
    left = BUDGET
    for turn in range(max(map(len, by_label.values()))):
        for label, rows in sorted(by_label.items()):
            if turn < len(rows):
                count = len(find_words(texts[rows[turn]][0]))
                cost = (min(count, MOST_PARTS) + 2) * count
                if cost <= left:
                    left -= cost
                    yield rows[turn], label
