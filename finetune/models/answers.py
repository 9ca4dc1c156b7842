"""From logits to answers: what every model says of a text, whatever computes its logits; imports no torch."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit, softmax

from finetune.errors import FinetuneError, failures_explained
from finetune.tasks import MULTI_LABEL, REGRESSION, Task

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
    """

    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    value: float | None = None
    all_probabilities: Mapping[str, float] = field(default_factory=dict, repr=False)

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
        thresholds: With several labels a text, the probability from which on each is predicted.
        text_config: How long texts are cut; None for TF-IDF.
        is_paired: Whether it takes pairs of texts; None if the model does not say.
        encoding: What bytes of files that are no UTF-8 are read as, as of the training texts; None if not known.
    """

    task: Task
    thresholds: Any
    text_config: Any = None
    is_paired: bool | None = None
    encoding: str | None = None

    def follow(self, config: "FinetuneConfig") -> None:
        """Decide as a saved model does, take pairs if it does, and read files as its training texts were read."""
        self.thresholds = 0.5 if config.thresholds is None else np.asarray(config.thresholds)
        self.is_paired, self.encoding = config.is_paired, config.encoding
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
        found = self.compute_probabilities(texts, pairs)
        if self.task.problem_type == REGRESSION:
            return [Prediction((), (), float(row[0])) for row in found]
        predictions = []
        for row, chosen in zip(found, self.decide(found), strict=True):
            numbers = np.flatnonzero(chosen)
            names = tuple(self.task.label_names[number] for number in numbers)
            probabilities = dict(zip(self.task.label_names, map(float, row), strict=True))
            predictions.append(Prediction(names, tuple(probabilities[name] for name in names), None, probabilities))
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
        return self.to_probabilities(self.compute_logits(first, second)[0])

    def to_probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Turn logits `(texts, num_labels)` into probabilities; a regression's numbers stay what they are.

        Raises:
            FinetuneError: If the model computes no numbers.
        """
        if not np.isfinite(logits).all():
            row = int(np.flatnonzero(~np.isfinite(logits).all(axis=1))[0])
            raise FinetuneError(
                f"Expected numbers as a model's answer, but it gives NaN or infinity for text {row} of {len(logits)}. "
                "Save the model again, or compute in another format."
            )
        if self.task.problem_type == REGRESSION:
            return logits
        return expit(logits) if self.task.problem_type == MULTI_LABEL else softmax(logits, axis=-1)

    def decide(self, probabilities: np.ndarray) -> np.ndarray:
        """Return which labels are predicted, true or false, `(texts, num_labels)`.

        The most probable one; with several labels a text, all that reach their threshold.
        """
        if self.task.problem_type == MULTI_LABEL:
            return probabilities >= self.thresholds
        return np.arange(probabilities.shape[1]) == probabilities.argmax(axis=1)[:, None]


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
