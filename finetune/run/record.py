"""The record of a run, `run.json`: here and nowhere else is it written and read.

`docs/reference/run.md` is made from it. A field may be added without another
`SCHEMA_VERSION`: readers pass over what they don't know. Where the meaning or the place of one changes, the version
does.
"""

import json
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import Field, ValidationError

from finetune.errors import FinetuneError
from finetune.escape import blank_tokens
from finetune.files import write_json
from finetune.run.fields import (
    Answers,
    Change,
    Costs,
    DataRecord,
    Environment,
    Floor,
    MeasuredSplits,
    ModelRecord,
    Part,
    Pretraining,
    Reload,
    Search,
    Settings,
    Teacher,
    Thresholds,
    TrainingCosts,
    WordVectorsRecord,
)

__all__ = ["RECORD_FILE", "SCHEMA_VERSION", "CompleteRecord", "RunRecord", "has_record", "read_status"]

RECORD_FILE = "run.json"
SCHEMA_VERSION: Final = 1


class RunRecord(Part):
    """What is known of a run while it is at work; `complete` adds what it has measured at its end."""

    schema_version: Literal[1] = Field(description="1")
    id: str = Field(
        default="", description="drawn at random; the run's checkpoints are marked with it; absent in the first runs"
    )
    status: Literal["running", "complete"] = Field(
        description='`"running"` until everything is written and measured, then `"complete"`'
    )
    started: str = Field(description="when the run was first started, UTC, ISO 8601")
    command: list[str] = Field(description="the recipe and its flags, word by word")
    method: str = Field(
        pattern=r"^([\w.+-]{1,40}|[\w.]+:\w+)$",
        max_length=200,
        description="how the model was fitted; see below, or `package.module:NAME` of a method from elsewhere",
    )
    seed: int = Field(description="the training seed; it draws new weights, the order of examples, and dropout")
    arguments: Settings = Field(description="every setting, by part")
    chosen: list[str] | None = Field(
        default=None,
        description="names of the settings that flags, `--config` or the call gave, the others being defaults; absent "
        "in the first runs",
    )
    environment: Environment = Field(description="versions, code and machine")
    data: DataRecord | None = Field(default=None, description="the task and its splits")
    pretrained: str | None = Field(
        default=None,
        description="of the model that training started from the commit on the Hub that was loaded, whatever "
        "`--model_revision` says, or a SHA-256 of the JSON and safetensors files of its folder; absent if the method "
        "starts from none",
    )
    word_vectors: WordVectorsRecord | None = Field(
        default=None, description="the static vectors that training started from; absent without `--word_vectors`"
    )
    changes: list[Change] | None = Field(
        default=None, description="what differed at each resume with `--resume_with_changes`; absent without"
    )
    pretraining: Pretraining | None = Field(
        default=None,
        description="what that model was trained on before anything else; absent without `--pretrain_epochs`",
    )
    search: Search | None = Field(
        default=None, description="the settings that were tried before; absent without `--trials` and `--budget`"
    )
    teacher: Teacher | None = Field(
        default=None, description="the model whose answers were learnt from; absent without `--teacher`"
    )
    costs: TrainingCosts | None = Field(default=None, description="seconds, bytes and rates")
    best_checkpoint_metric: float | None = Field(
        default=None,
        description="the validation value of `--metric_for_best_model` that chose the checkpoint; null if none was "
        "chosen, absent for TF-IDF",
    )
    model: ModelRecord | None = Field(default=None, description="the model that was saved")

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read and check the record in a run directory.

        Raises:
            FinetuneError: If there is none, it can't be read, or a field is not as it was written; in one line that
                speaks of the directory as "it".
        """
        try:
            return cls.model_validate(_read_json(directory), extra="ignore")
        except ValidationError as error:
            raise FinetuneError(_describe_first(error)) from None

    def write(self, directory: Path) -> None:
        """Write `run.json` into a run directory, whole or not at all, without any token."""
        write_json(directory / RECORD_FILE, blank_tokens(self.to_dict()))

    def as_read(self) -> Self:
        """Return this record as it would be read: settings as JSON holds them."""
        return type(self).model_validate(json.loads(json.dumps(blank_tokens(self.to_dict()), default=str)))

    def complete(
        self,
        *,
        finished: str,
        metrics: MeasuredSplits,
        reload: Reload,
        latency_seconds: float,
        texts_per_second: float,
        tokenize_seconds: tuple[float, float] | None = None,
        thresholds: Thresholds | None = None,
        answers: Answers | None = None,
        floor: Floor | None = None,
    ) -> "CompleteRecord":
        """Add what was measured on the saved model; the run is complete with it."""
        assert self.costs is not None
        fields = {name: getattr(self, name) for name in self.model_fields_set}
        measured = {"metrics": metrics, "reload": reload, "thresholds": thresholds, "answers": answers, "floor": floor}
        fields |= {name: part for name, part in measured.items() if part is not None}
        fields["costs"] = costs = Costs(
            **self.costs.to_dict(), latency_seconds=latency_seconds, texts_per_second=texts_per_second
        )
        if tokenize_seconds is not None:
            costs.tokenize_seconds, costs.tokenize_cpu_seconds = tokenize_seconds
        return CompleteRecord(**{**fields, "status": "complete", "finished": finished})


class CompleteRecord(RunRecord):
    """The record of a run that has been trained, saved, reloaded and measured."""

    status: Literal["complete"] = Field(
        description='`"complete"`; `"running"` until everything is written and measured, and till then what is not '
        "known yet is absent"
    )
    data: DataRecord = Field(description="the task and its splits")
    costs: Costs = Field(description="seconds, bytes and rates")
    model: ModelRecord = Field(description="the model that was saved")
    metrics: MeasuredSplits = Field(
        description="quality of the saved model, reloaded, in the precision that `finetune predict` uses"
    )
    reload: Reload = Field(description="the saved model against the one in memory")
    thresholds: Thresholds | None = Field(
        default=None, description="decisions by tuned thresholds; absent but for several labels"
    )
    answers: Answers | None = Field(
        default=None,
        description="calibration, silence, sets of labels; absent in the first runs, and where the labels of "
        "validation are withheld",
    )
    floor: Floor | None = Field(
        default=None, description="TF-IDF and a linear model on the same rows; absent with `--no_floor` and for `tfidf`"
    )
    finished: str = Field(description="when everything was measured, UTC, ISO 8601")


def has_record(directory: Path) -> bool:
    """Return whether there is a `run.json`, readable or not."""
    return (directory / RECORD_FILE).is_file()


def read_status(directory: Path) -> str | None:
    """Read how far a run is, "running" or "complete"; None where there is no record that says so."""
    try:
        content = _read_json(directory)
    except FinetuneError:
        return None
    return content.get("status") if isinstance(content, dict) else None


def _read_json(directory: Path) -> Any:
    if not has_record(directory):
        raise FinetuneError(f"it has no {RECORD_FILE}")
    try:
        return json.loads((directory / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FinetuneError(f"its {RECORD_FILE} can't be read: {error}") from error


def _describe_first(error: ValidationError) -> str:
    """Describe the first thing that is wrong, in the order of the fields: what was expected where, and found."""
    first = error.errors()[0]
    field, kind = ".".join(map(str, first["loc"])), first["type"]
    found = None if kind == "missing" else _shorten(first["input"])
    if not field:
        return f"its {RECORD_FILE} holds no record of a run"
    if field == "schema_version":
        return f"expected schema_version {SCHEMA_VERSION} in {RECORD_FILE}, but found {found}"
    if kind == "missing":
        return f"its {RECORD_FILE} lacks {field}"
    if field == "status":
        return f"the run is not complete, its status is {found}"
    if kind == "literal_error":
        return f"expected {field} to be one of {first['ctx']['expected']} in {RECORD_FILE}, but found {found}"
    if kind == "value_error":
        return f"expected {field} to be {first['ctx']['error']} in {RECORD_FILE}, but found {found}"
    return f"its {RECORD_FILE} has {found} as {field}"


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
