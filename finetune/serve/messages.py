"""What requests and answers hold, as JSON; OpenAPI describes them by these classes."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictStr, model_validator

from finetune.models.answers import Prediction
from finetune.models.explanation import Explanation

__all__ = [
    "Answer",
    "ExplainRequest",
    "ExplainResponse",
    "Health",
    "Piece",
    "PredictRequest",
    "PredictResponse",
    "Refusal",
    "State",
]

SHOWN = 200  # characters of what came in, in a message
ABSENT = {"type": "null"}
SHAPES: list[Any] = [  # of a request, which the types of its fields alone don't tell
    {"required": ["text"], "properties": {"text": {"type": "string"}, "texts": ABSENT, "pairs": ABSENT}},
    {"required": ["texts"], "properties": {"texts": {"type": "array"}, "text": ABSENT, "pair": ABSENT}},
]


class _Request(BaseModel):
    """What comes in: no other keys than those that are known, and texts of whole characters."""

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, given: Any) -> Any:
        """Refuse the first key that is not known; pydantic alone would list them all."""
        for key in given if isinstance(given, dict) else ():
            if key not in cls.model_fields:
                *most, last = cls.model_fields
                raise ValueError(f"expected {', '.join(most)} and {last}, but got {key[:SHOWN]!r}")
        return given

    def _check_characters(self, *texts: str | None) -> None:
        for text in texts:
            try:
                (text or "").encode()
            except UnicodeEncodeError:
                raise ValueError("expected whole characters, but got half of a character (a lone surrogate)") from None


class PredictRequest(_Request):
    """One text, or many; a second one for each if the model is of pairs."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"oneOf": SHAPES})

    text: StrictStr | None = Field(None, description="a text", examples=["A wonderful film."])
    pair: StrictStr | None = Field(None, description="its second text, for models of pairs")
    # Without fail_fast the errors of a list with a million numbers, which fits into a body, take a gigabyte.
    texts: list[StrictStr] | None = Field(None, min_length=1, fail_fast=True, description="many texts instead")
    pairs: list[StrictStr] | None = Field(None, fail_fast=True, description="a second text for each of them")

    @model_validator(mode="after")
    def _check(self) -> "PredictRequest":
        if (self.text is None) == (self.texts is None):
            raise ValueError("expected either text or texts")
        if self.texts is None and self.pairs is not None:
            raise ValueError("expected pairs beside texts, and pair beside text")
        if self.text is None and self.pair is not None:
            raise ValueError("expected pair beside text, and pairs beside texts")
        if self.texts is not None and self.pairs is not None and len(self.pairs) != len(self.texts):
            raise ValueError(f"expected a second text for each of {len(self.texts)}, but got {len(self.pairs)}")
        self._check_characters(self.text, self.pair, *(self.texts or ()), *(self.pairs or ()))
        return self


class ExplainRequest(_Request):
    """One text, with a second one if the model is of pairs, and the label to explain."""

    model_config = ConfigDict(extra="forbid")

    text: StrictStr = Field(description="a text", examples=["A wonderful film."])
    pair: StrictStr | None = Field(None, description="its second text, for models of pairs; it stays as it is")
    label: StrictStr | None = Field(
        None, description="the label to explain; if null the answer, of several labels the most probable one"
    )

    @model_validator(mode="after")
    def _check(self) -> "ExplainRequest":
        self._check_characters(self.text, self.pair, self.label)
        return self


class Answer(BaseModel):
    """What the model says of a text."""

    labels: list[str] = Field(description="the most probable label; all that reach their threshold if several may hold")
    probabilities: dict[str, float] = Field(description="of every label")
    value: float | None = Field(None, description="the predicted number, of a regression")
    is_given: bool = Field(True, description="false where the model is not sure enough to answer; then no label is")
    label_set: list[str] | None = Field(
        None, description="labels that hold the right one as often as was asked for; null if it was not"
    )
    interval: tuple[float, float] | None = Field(None, description="likewise the ends of an interval around the number")

    @classmethod
    def of(cls, prediction: Prediction) -> "Answer":
        """Answer with a prediction."""
        return cls(
            labels=list(prediction.labels),
            probabilities=dict(prediction.all_probabilities),
            value=prediction.value,
            is_given=prediction.is_given,
            label_set=None if prediction.label_set is None else list(prediction.label_set),
            interval=prediction.interval,
        )


class PredictResponse(BaseModel):
    """The answers, in the order of the texts."""

    predictions: list[Answer] = Field(description="one for each text, in their order")


class Piece(BaseModel):
    """A word of the text, or what is between two."""

    text: str = Field(description="its characters; those of all pieces, one after the other, are the text")
    contribution: float | None = Field(
        description="to the score of the label, above 0 for it and below 0 against it; null between words"
    )


class ExplainResponse(BaseModel):
    """What the words of the text contributed to the score of the label."""

    label: str = Field(description="the label that is explained; of a number its name")
    score: float = Field(
        description="the label's logit less the mean of the others', of two classes the log-odds; of several labels "
        "the logit, of a number the number"
    )
    base: float = Field(description="the score of an empty text")
    is_exact: bool = Field(
        description="whether the contributions add up to the score less the base; otherwise each is what the score "
        "loses when that word alone is left out"
    )
    pieces: list[Piece] = Field(description="the whole text, word by word")

    @classmethod
    def of(cls, explanation: Explanation) -> "ExplainResponse":
        """Answer with an explanation."""
        return cls(
            label=explanation.label,
            score=explanation.score,
            base=explanation.base,
            is_exact=explanation.is_exact,
            pieces=[Piece(text=text, contribution=value) for text, value in explanation.pieces()],
        )


class Health(BaseModel):
    """What is served."""

    status: str = Field(description="ok")
    model: str = Field(description="its name")
    problem_type: str = Field(description="transformers' name of the task")
    labels: list[str] = Field(description="the names of the labels; of a number its name")
    version: str = Field(description="of finetune")
    is_paired: bool | None = Field(description="whether it takes pairs of texts; null if the model does not say")
    facts: dict[str, str] = Field(description="what is known of the model, in words: its task, data and figures")
    examples: list[list[str]] = Field(description="texts to try, of --examples; of pairs with the second one")


class State(BaseModel):
    """Whether the process is alive, or the model ready."""

    status: str


class Refusal(BaseModel):
    """Why a request was refused, in one line."""

    error: str
