"""Run directories in, as `docs/reference/run.md` describes them: what each run was, what it cost, its predictions.

A run directory may have been cut short, copied in part, or edited. What a report would repeat is checked here, the
metrics by computing them again from the stored predictions; a directory that fails is named in one line and left out.
"""

import json
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from finetune.data_doctor.findings import Finding, from_json
from finetune.decisions.rules import DecisionRules
from finetune.errors import FinetuneError
from finetune.files import read_json
from finetune.lookup import find_method
from finetune.metrics import MULTI_LABEL, REGRESSION, compute_metrics, present_labels
from finetune.run.fields import Metrics
from finetune.run.record import RECORD_FILE, CompleteRecord

__all__ = ["SPLITS", "Predictions", "StoredRun", "Texts", "find_run_directories", "load_findings",
           "load_run", "load_runs", "load_texts", "rules_of"]  # fmt: skip

SPLITS = ("train", "validation", "test")
# Any of these makes a folder a run directory, whole or not.
MARKS = (RECORD_FILE, "predictions", "history.jsonl", "checkpoints")
# A metric computed again by another version of scikit-learn may differ in its last digits.
METRIC_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Predictions:
    """A split's examples in their order, without their texts.

    Attributes:
        ids: Of the examples, `(num_examples,)`.
        num_tokens: Tokens of each text after cutting, words for TF-IDF, `(num_examples,)`.
        labels: Class numbers or numbers to predict, `(num_examples,)`; for several labels 0 and 1,
            `(num_examples, num_labels)`.
        logits: float32, `(num_examples, num_labels)`.
    """

    ids: pa.Array
    num_tokens: np.ndarray
    labels: np.ndarray
    logits: np.ndarray


@dataclass(frozen=True, eq=False)
class StoredRun:
    """A complete run whose `run.json` agrees with its predictions.

    Attributes:
        directory: As it was given or found.
        record: Its `run.json`.
        validation: Predictions on the validation split.
        test: Predictions on the test split.
        metrics: Every metric of the test split, computed from `test`, decided as the model decides.
        history: What was logged, a dictionary a line; empty for a method without steps.
    """

    directory: Path
    record: CompleteRecord = field(repr=False)
    validation: Predictions = field(repr=False)
    test: Predictions = field(repr=False)
    metrics: dict[str, float] = field(repr=False)
    history: list[dict[str, Any]] = field(repr=False)

    @property
    def method(self) -> str:
        return self.record.method

    @property
    def seed(self) -> int:
        return self.record.seed

    @property
    def problem_type(self) -> str:
        return self.record.data.problem_type

    @property
    def label_names(self) -> list[str]:
        return self.record.data.label_names

    @property
    def rules(self) -> DecisionRules:
        """How the model's scores become answers."""
        return rules_of(self.record)

    def decide(self) -> np.ndarray:
        """Return what the model answers on the test split: class numbers; of several labels 0 and 1."""
        return self.rules.predict(self.test.logits)

    def cost(self, name: str) -> float | None:
        """Return one of `costs`, or of `model`, as it compares with those of other methods; None if there is none.

        Training includes tokenizing its rows, as that of TF-IDF does, and the trials before it; `bytes` of an adapter
        are with its base, which in the first runs is taken for float32.
        """
        model, costs = self.record.model, self.record.costs
        value = {**model.to_dict(), **costs.to_dict()}.get(name)
        if value is None:
            return None
        search = self.record.search
        if name == "train_seconds":
            return value + (costs.tokenize_seconds or 0) + (0 if search is None else search.seconds)
        if name == "train_cpu_seconds":
            return value + (costs.tokenize_cpu_seconds or 0) + (0 if search is None else search.cpu_seconds)
        if name == "bytes" and find_method(self.method).saves_adapter:
            return value + (model.base_bytes or 4 * (model.total_parameters - model.trainable_parameters))
        return value


@dataclass(frozen=True)
class Texts:
    """The test examples' texts, and second texts if they are pairs, `(num_examples,)` each."""

    first: pa.ChunkedArray
    second: pa.ChunkedArray | None

    def get(self, row: int) -> tuple[str, str]:
        """Return the texts of an example, the second "" if it is no pair."""
        second = None if self.second is None else self.second[row].as_py()
        return self.first[row].as_py() or "", second or ""

    def num_characters(self) -> np.ndarray:
        """Count the characters of each example, both texts of a pair together."""
        counts = pc.fill_null(pc.utf8_length(self.first), 0).to_numpy()
        return counts if self.second is None else counts + pc.fill_null(pc.utf8_length(self.second), 0).to_numpy()


def find_run_directories(paths: Sequence[str | Path]) -> Iterator[Path]:
    """Find the run directories among `paths` and in the folders that they are, each once, in natural reading order."""
    seen = set()
    for path in map(Path, paths):
        for directory in _find_in(path):
            if directory.resolve() not in seen:
                seen.add(directory.resolve())
                yield directory


def _find_in(path: Path) -> Iterator[Path]:
    if any((path / mark).exists() for mark in MARKS):
        yield path
    else:
        for folder in sorted(
            child for child in path.iterdir() if child.is_dir() and os.access(child, os.R_OK | os.X_OK)
        ):
            if not folder.is_symlink() or any((folder / mark).exists() for mark in MARKS):  # links can go in circles
                yield from _find_in(folder)


def load_runs(paths: Sequence[str | Path]) -> tuple[list[StoredRun], list[str]]:
    """Load every run directory that is whole.

    Args:
        paths: Run directories, or folders that contain them at any depth.

    Returns:
        The runs, and one line for each directory that is left out.

    Raises:
        FinetuneError: If none is left.
    """
    runs, left_out = [], []
    for path in paths:
        if not Path(path).is_dir():
            left_out.append(f"{path}: there is no such folder")
        elif not any(True for _ in find_run_directories([path])):
            left_out.append(f"{path}: there is no run directory in it")
    for directory in find_run_directories([path for path in paths if Path(path).is_dir()]):
        try:
            runs.append(load_run(directory))
        except (FinetuneError, OSError) as error:
            left_out.append(f"{directory}: {error}")
    if not runs:
        found = "; ".join(left_out[:5]) + (f"; and {len(left_out) - 5} more" if len(left_out) > 5 else "")
        raise FinetuneError(f"Expected at least one complete run directory, but found none: {found}.")
    return runs, left_out


def load_run(directory: Path) -> StoredRun:
    """Load and check one run directory.

    Raises:
        FinetuneError: If a file is missing, cut short, or does not agree with the others; in one line.
    """
    record = CompleteRecord.read(directory)
    problem_type, num_labels = record.data.problem_type, len(record.data.label_names)
    rules = rules_of(record)
    if np.size(rules.thresholds) not in (1, num_labels):
        raise FinetuneError(f"expected {num_labels} thresholds in run.json, but found {np.size(rules.thresholds)}")
    if rules.costs is not None and rules.costs.shape != (num_labels, num_labels):
        raise FinetuneError(f"expected costs of {num_labels} labels in run.json, but found {rules.costs.shape}")
    record_splits = dict(record.data.splits)
    predictions, metrics = {}, {}
    for split, recorded in record.metrics:
        if recorded.labels_withheld:
            raise FinetuneError(f"the labels of its {split} split are withheld, so there is nothing to compare")
        path = directory / "predictions" / f"{split}.parquet"
        predictions[split] = _read_predictions(path, problem_type, num_labels)
        logits, labels, rows = predictions[split].logits, predictions[split].labels, record_splits[split].rows
        if len(logits) != rows:
            raise FinetuneError(f"expected {rows} rows in {split}.parquet, as run.json says, but found {len(logits)}")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"sklearn\..*")  # of classes without examples, which have no ROC
            decided = rules.predict(logits)
            measured = at_half = compute_metrics(logits, labels, problem_type, decided)
            if record.thresholds is not None and record.thresholds.validation is not None:  # of 0.1
                at_half = compute_metrics(logits, labels, problem_type)
        if rules.costs is not None:
            measured["cost_per_text"] = float(rules.costs[labels, decided].mean())
        _check_metrics(recorded, at_half, labels, num_labels, split)
        metrics[split] = measured
    history = _read_history(directory / "history.jsonl")
    return StoredRun(directory, record, predictions["validation"], predictions["test"], metrics["test"], history)


def rules_of(record: CompleteRecord) -> DecisionRules:
    """Return how a run's model turns scores into answers, by its record."""
    answers, thresholds = record.answers, 0.5 if record.thresholds is None else np.asarray(record.thresholds.values)
    if answers is None:  # of the first runs
        return DecisionRules(record.data.problem_type, thresholds=thresholds)
    temperature = 1.0 if answers.calibration is None else answers.calibration.temperature
    costs = None if answers.costs is None else np.asarray(answers.costs)
    return DecisionRules(record.data.problem_type, temperature, thresholds, costs)


def load_findings(runs: Sequence[StoredRun]) -> list[Finding]:
    """Load what the data doctor found, from the first run whose `findings.json` can be read."""
    for run in runs:
        try:
            return from_json(read_json(run.directory / "findings.json"))
        except (ValueError, TypeError, KeyError):
            continue
    return []


def load_texts(runs: Sequence[StoredRun]) -> Texts | None:
    """Load the test texts from the first run that stored them; None if `--no_store_text` kept them out of all.

    Raises:
        FinetuneError: If they can't be read.
    """
    for run in runs:
        path = run.directory / "predictions" / "test.parquet"
        names = [column.name for column in pq.read_schema(path) if _is_text(column.type)]
        if "text" in names:
            try:
                table = pq.read_table(path, columns=[name for name in ("text", "text_pair") if name in names])
            except (OSError, ValueError, pa.ArrowException) as error:
                raise FinetuneError(
                    f"Expected the texts in {str(path)!r} as they were written, but they can't be read: "
                    f"{str(error).splitlines()[0]}. Leave this run out, or run it again."
                ) from None
            return Texts(table["text"], table["text_pair"] if "text_pair" in names else None)
    return None


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _read_predictions(path: Path, problem_type: str, num_labels: int) -> Predictions:
    if not path.is_file():
        raise FinetuneError(f"it has no predictions/{path.name}")
    try:
        table = pq.read_table(path, columns=["id", "num_tokens", "label", "logits"])
        missing = {"id", "num_tokens", "label", "logits"} - set(table.column_names)
        if missing:
            raise FinetuneError(f"its {path.name} lacks the column {sorted(missing)[0]}")
        if table.num_rows == 0:
            raise FinetuneError(f"its {path.name} has no rows")
        logits = _to_matrix(table["logits"], num_labels)
        labels = _to_labels(table["label"], problem_type, num_labels)
        num_tokens = table["num_tokens"].combine_chunks().to_numpy(zero_copy_only=False)
        ids = pc.cast(table["id"], pa.string()).combine_chunks()
    except FinetuneError as error:
        raise FinetuneError(f"{error} in {path.name}" if path.name not in str(error) else str(error)) from None
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:
        raise FinetuneError(f"its {path.name} can't be read: {str(error).splitlines()[0]}") from None
    if table["id"].null_count or not np.issubdtype(num_tokens.dtype, np.number) or np.isnan(num_tokens).any():
        raise FinetuneError(f"its {path.name} has rows without an id or a number of tokens")
    return Predictions(ids, num_tokens, labels, logits)


def _to_matrix(column: pa.ChunkedArray, width: int) -> np.ndarray:
    lists = column.combine_chunks()
    lengths = pc.unique(pc.list_value_length(lists)).to_pylist()
    if lengths != [width]:
        raise FinetuneError(f"expected {width} logits a row, but found {', '.join(map(str, lengths[:5]))}")
    logits = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, width)
    if not np.isfinite(logits).all():
        rows = int((~np.isfinite(logits)).any(axis=1).sum())
        raise FinetuneError(f"expected numbers as logits, but found none in {rows} rows")
    return logits


def _to_labels(column: pa.ChunkedArray, problem_type: str, num_labels: int) -> np.ndarray:
    if problem_type == MULTI_LABEL:
        lists = column.combine_chunks()
        numbers = lists.flatten().to_numpy(zero_copy_only=False)
        labels = np.zeros((len(lists), num_labels), dtype=np.float32)
        rows = np.repeat(np.arange(len(lists)), pc.fill_null(pc.list_value_length(lists), 0).to_numpy())
    else:
        numbers = column.combine_chunks().to_numpy(zero_copy_only=False)
    if column.null_count or not np.issubdtype(numbers.dtype, np.number) or not np.isfinite(numbers).all():
        raise FinetuneError("expected a label in every row, but some lack one")
    if problem_type == REGRESSION:
        return numbers.astype(np.float32)
    if len(numbers) and not (numbers.min() >= 0 and numbers.max() < num_labels):
        raise FinetuneError(f"expected labels from 0 to {num_labels - 1}, but found {numbers.min()} to {numbers.max()}")
    if problem_type == MULTI_LABEL:
        labels[rows, numbers.astype(np.int64)] = 1
        return labels
    return numbers.astype(np.int64)


def _check_metrics(
    recorded: Metrics, computed: dict[str, float], labels: np.ndarray, num_labels: int, split: str
) -> None:
    """Refuse predictions that don't give the metrics of `run.json`; what is not a number is null there.

    In a mean over classes, 0.1 counted those without examples as 0.
    """
    share = 1.0 if labels.dtype.kind == "f" and labels.ndim == 1 else len(present_labels(labels)) / num_labels
    for name, value in computed.items():
        found = recorded.get(name)
        if found is None:
            agrees = math.isnan(value) and name in recorded.model_fields_set
        else:
            known = (value, value * share) if name in ("macro_f1", "precision", "recall") else (value,)
            agrees = any(math.isclose(found, one, rel_tol=METRIC_TOLERANCE, abs_tol=METRIC_TOLERANCE) for one in known)
        if not agrees:
            raise FinetuneError(
                f"its predictions give a {split} {name} of {value:.6g}, but run.json says {found}; one of the "
                "two was changed"
            )


def _read_history(path: Path) -> list[dict[str, Any]]:
    """Read what was logged; lines that are not whole are passed over, since nothing but a curve depends on them."""
    history: list[dict[str, Any]] = []
    if not path.is_file():  # a pipe would be waited for
        return history
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict):
            numbers = {name: value for name, value in entry.items() if _is_number(value)}
            if {"step", "epoch"} <= numbers.keys():
                history.append(numbers)
    return history


def _is_number(value: Any) -> TypeGuard[float]:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer of more digits than a float holds
        return False
