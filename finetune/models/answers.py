"""From logits to answers: what every model says of a text, whatever computes its logits; imports no torch."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.decisions.rules import DecisionRules
from finetune.errors import FinetuneError, failures_explained
from finetune.models.explanation import Explanation, explain_by_leaving_out
from finetune.tasks import REGRESSION, SINGLE_LABEL, Task

if TYPE_CHECKING:
    from finetune.models.finetune_config import FinetuneConfig

__all__ = ["Prediction", "TextClassifier", "unit_of_logits"]


@dataclass(frozen=True)
class Prediction:
    """What a model says of a text.

    Attributes:
        labels: The most probable class; with several labels a text those whose probability reaches their threshold;
            none for regression.
        probabilities: Of each of them, in [0, 1].
        value: The predicted number; None for classes.
        all_probabilities: Of every label, by its name; empty for regression.
        is_given: Whether the model is sure enough to answer, where that was asked for; else `labels` is empty.
        label_set: Labels that hold the right one as often as was asked for; None if it was not.
        interval: Likewise the lower and upper end of an interval around `value`.
    """

    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    value: float | None = None
    all_probabilities: Mapping[str, float] = field(default_factory=dict, repr=False)
    is_given: bool = True
    label_set: tuple[str, ...] | None = None
    interval: tuple[float, float] | None = None

    @property
    def label(self) -> str | None:
        """The most probable of the predicted labels; None where there is none."""
        return max(zip(self.probabilities, self.labels, strict=True), default=(0.0, None))[1]

    @property
    def probability(self) -> float | None:
        """Of `label`; None where there is none."""
        return max(self.probabilities, default=None)


def unit_of_logits(logits: np.ndarray, problem_type: str) -> float:
    """Return what a difference of logits is to be compared with: 1, or the largest of numbers if that is more.

    float32 has seven digits: where prices of 100,000 are predicted, the hundredth is noise.
    """
    return max(1.0, float(np.abs(logits).max())) if problem_type == REGRESSION else 1.0


class TextClassifier:
    """A model that takes texts.

    Attributes:
        task: What is predicted, and the names of the labels.
        text_config: How long texts are cut; None for TF-IDF.
        is_paired: Whether it takes pairs of texts; None if the model does not say.
        encoding: What bytes of files that are no UTF-8 are read as, as of the training texts; None if not known.
    """

    task: Task
    text_config: Any = None
    is_paired: bool | None = None
    encoding: str | None = None
    _rules: DecisionRules | None = None

    @property
    def rules(self) -> DecisionRules:
        """How scores become answers; by the most probable label unless the model follows others."""
        return self._rules or DecisionRules(self.task.problem_type)

    @rules.setter
    def rules(self, rules: DecisionRules) -> None:
        self._rules = rules

    def follow(self, config: "FinetuneConfig", rules: DecisionRules) -> None:
        """Answer as a saved model does, take pairs if it does, and read files as its training texts were read."""
        self.rules, self.is_paired, self.encoding = rules, config.is_paired, config.encoding
        self.task = Task(self.task.problem_type, self.task.label_names, bool(config.is_numbered))

    def compute_in(self, dtype: Any = None) -> None:
        """Compute in this format of torch from now on, or in its own if None; not where a model has but one."""

    @property
    def label_names(self) -> list[str]:
        """The names of the labels, in the order of probabilities and logits."""
        return self.task.label_names

    def compute_logits(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        on_batch: Callable[[int], None] = lambda num_examples: None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Score texts.

        Args:
            texts: Any number of them.
            pairs: A second text for each, if the model was trained on pairs.
            on_batch: Called with the number of texts after each batch.

        Returns:
            float32 logits `(len(texts), num_labels)`, and the number of tokens of each text, `(len(texts),)`, after
            cutting (white-space separated words for TF-IDF).

        Raises:
            FinetuneError: If a model of pairs gets single texts, or the other way round.
        """
        raise NotImplementedError

    def check_pairs(self, pairs: Sequence[str] | None) -> None:
        """Refuse what the model was not trained on: single texts instead of pairs, or pairs instead of single texts."""
        if self.is_paired is True and pairs is None:
            raise FinetuneError(
                "Expected pairs of texts, as the model was trained on, but got single ones. Pass the second texts: "
                "--pairs, a file's --text_pair_column, or pairs in JSON."
            )
        if self.is_paired is False and pairs is not None:
            raise FinetuneError(
                "Expected single texts, as the model was trained on, but got pairs. Leave the second texts out; of a "
                "file name the --text_column."
            )

    @failures_explained()
    def predict(self, texts: str | Iterable[str], pairs: str | Iterable[str] | None = None) -> list[Prediction]:
        """Return each text's most probable label, its labels, or its number.

        Args:
            texts: Any number of them; a single one counts as a list of one.
            pairs: A second text for each, if the model was trained on pairs.

        Raises:
            FinetuneError: If something among the texts is none, or a model of pairs gets single texts, or the other way
                round.
        """
        return self.answer(self.compute_probabilities(texts, pairs))

    def answer(self, found: np.ndarray) -> list[Prediction]:
        """Return what probabilities, or numbers, `(texts, num_labels)` say of each text."""
        names = self.task.label_names
        sets = self.rules.prediction_sets
        if self.task.problem_type == REGRESSION:
            values = found[:, 0].tolist()
            ends = [None] * len(values) if sets is None else map(tuple, sets.around(found[:, 0]).tolist())
            return [Prediction((), (), value, interval=one) for value, one in zip(values, ends, strict=True)]
        chosen = self.rules.decide(found)
        given = self.rules.are_given(found, chosen)
        contained = None if sets is None else sets.contain(found)
        predictions = []
        for at, row in enumerate(found):
            probabilities = dict(zip(names, map(float, row), strict=True))
            labels = tuple(names[number] for number in np.flatnonzero(chosen[at])) if given[at] else ()
            inside = None if contained is None else tuple(names[number] for number in np.flatnonzero(contained[at]))
            own = tuple(probabilities[name] for name in labels)
            predictions.append(Prediction(labels, own, None, probabilities, bool(given[at]), inside))
        return predictions

    @failures_explained()
    def compute_probabilities(self, texts: str | Iterable[str], pairs: str | Iterable[str] | None = None) -> np.ndarray:
        """Return each label's probability, `(len(texts), num_labels)`; for regression the number, `(len(texts), 1)`.

        Raises:
            FinetuneError: If something among the texts is none, or there are not as many second ones.
        """
        first, second = _list_texts(texts, "text"), None if pairs is None else _list_texts(pairs, "second text")
        if second is not None and len(second) != len(first):
            raise FinetuneError(
                f"Expected a second text for each, but got {len(second):,} for {len(first):,}. Give as many."
            )
        if not first:
            return np.zeros((0, len(self.label_names)), dtype=np.float32)
        return self.rules.to_probabilities(self.compute_logits(first, second)[0])

    def explain(
        self, texts: str | Iterable[str], pairs: str | Iterable[str] | None = None, label: str | None = None
    ) -> list[Explanation]:
        """Say what each word of a text contributed to a label.

        Args:
            texts: Any number of them; a single one counts as a list of one.
            pairs: A second text for each, if the model was trained on pairs; it stays as it is.
            label: The label to explain; if None each text's answer, of several labels the most probable one.

        Returns:
            An explanation for each text.

        Raises:
            FinetuneError: If there is no such label, or something among the texts is none.
        """
        first = _list_texts(texts, "text")
        numbers = self.labels_to_explain(self.compute_probabilities(first, pairs), label)
        second = [None] * len(first) if pairs is None else _list_texts(pairs, "second text")

        def compute(variants: Sequence[str], seconds: Sequence[str] | None) -> np.ndarray:
            return self.compute_logits(variants, seconds)[0]

        return [self.explain_text(*one, compute) for one in zip(first, second, numbers, strict=True)]

    def labels_to_explain(self, found: np.ndarray, label: str | None = None) -> list[int]:
        """Return the number of the label to explain for each text.

        Args:
            found: Probabilities, or numbers, `(texts, num_labels)`.
            label: Its name; if None each text's answer, of several labels the most probable one.

        Raises:
            FinetuneError: If there is no such label.
        """
        names = self.label_names
        if label is None:
            chosen = self.rules.decide(found) if self.task.problem_type == SINGLE_LABEL else found
            return [int(number) for number in chosen.argmax(axis=1)]
        self.check_label(label)
        return [names.index(label)] * len(found)

    def check_label(self, label: str) -> None:
        """Refuse what is none of the labels."""
        if label not in self.label_names:
            more = ", …" if len(self.label_names) > 10 else ""
            raise FinetuneError(
                f"Expected one of the labels {', '.join(self.label_names[:10])}{more}, but got {label!r}."
            )

    def weigh_terms(self, label: int) -> list[tuple[str, float]] | None:
        """Return what each term adds to a label's score, where the model is linear in terms of words; else None."""
        return None

    def explain_text(
        self,
        text: str,
        pair: str | None,
        label: int,
        compute_logits: Callable[[Sequence[str], Sequence[str] | None], np.ndarray],
    ) -> Explanation:
        """Explain one text by leaving out words; a model that knows better says it itself.

        Args:
            text: The text.
            pair: Its second text, if the model was trained on pairs.
            label: The number of the label to explain.
            compute_logits: Texts and their second ones to logits, `(texts, num_labels)`: the model's own, or by way of
                a queue in front of it.
        """

        def compute(variants: Sequence[str]) -> np.ndarray:
            return compute_logits(variants, None if pair is None else [pair] * len(variants))

        return explain_by_leaving_out(compute, text, label, self.label_names[label], self.task.problem_type)


def _list_texts(texts: Any, what: str) -> list[str]:
    """Return texts as a list, a single one as a list of one, and refuse what is no text."""
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, Mapping) or hasattr(texts, "columns") or not isinstance(texts, Iterable):
        kind = type(texts).__name__
        raise FinetuneError(f"Expected a list of texts, but got a {kind}. Pass one of its columns, such as x['text'].")
    found = list(texts)
    for number, text in enumerate(found):
        if not isinstance(text, str):
            is_missing = text is None or text != text
            fix = "Fill it in, or leave it out." if is_missing else "Second texts are passed as predict(texts, pairs)."
            shown = repr(text) if len(repr(text)) < 40 else f"{repr(text)[:37]}..."
            raise FinetuneError(f"Expected texts, but {what} {number} is {shown}. {fix}")
    return found
