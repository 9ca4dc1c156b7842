"""Measure the saved model, reloaded: the one place where the test split is used."""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate.utils import extract_model_from_parallel
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from finetune.accelerated.precision import DTYPES
from finetune.catalogue import FLOOR
from finetune.data.labels import label_matrix
from finetune.data.load import read_examples
from finetune.data.tokens import encode_texts
from finetune.decisions.calibration import fit_temperature
from finetune.decisions.rules import DecisionRules, HeldOut, Wishes, fit_rules
from finetune.decisions.saved import write_rules
from finetune.errors import FinetuneError
from finetune.examination.checksums import write_checksums
from finetune.families.save import write_thresholds
from finetune.files import write_aside
from finetune.hardware import cpu_seconds, fastest_precision
from finetune.inference.figures import describe_answers, measure_sets, measure_silence
from finetune.inference.predict import load_predictor
from finetune.lookup import family_of, find_method
from finetune.methods.merging import merge_adapter
from finetune.metrics import (
    MULTI_LABEL,
    REGRESSION,
    accuracy_interval,
    compute_classification_report,
    compute_metrics,
    compute_per_class,
    mean_interval,
    tune_thresholds,
)
from finetune.models.answers import TextClassifier, unit_of_logits
from finetune.progress_bar import progress_bar
from finetune.run.fields import Decisions, Floor, MeasuredSplits, Metrics, Reload, Thresholds
from finetune.run.run import Run
from finetune.settings.arguments import Arguments
from finetune.settings.parts import DataArguments
from finetune.tasks import Task

__all__ = [
    "ScoredRows",
    "evaluate_file",
    "evaluate_run",
    "measure",
    "measure_floor",
    "measure_latency",
    "measure_tokenization",
    "score",
    "write_predictions",
]

NUM_PROBES = 16
NUM_LATENCY_TEXTS = 30
NUM_TOKENIZED = 2_000  # training rows by which tokenizing all of them is timed
# Saved weights are the weights in memory, bit by bit; what may differ is the order of a sum.
MAX_RELOAD_DIFFERENCE = 1e-4


@dataclass(frozen=True)
class ScoredRows:
    """Rows, their labels as `label_matrix` gives them (None where withheld), and what a model says of them.

    `seconds` is the wall time that the logits took.
    """

    rows: Dataset
    task: Task
    labels: np.ndarray | None
    logits: np.ndarray
    num_tokens: np.ndarray
    seconds: float

    @property
    def held_out(self) -> HeldOut | None:
        """Logits and labels; None where the labels are withheld."""
        return None if self.labels is None else HeldOut(self.logits, self.labels)

    def decide(self, rules: DecisionRules | None = None) -> np.ndarray:
        """Return the labels that are predicted; of several labels those from one half on, without rules."""
        return (rules or DecisionRules(self.task.problem_type)).predict(self.logits)


def evaluate_run(run: Run, model: Any, tokenizer: PreTrainedTokenizerBase | None, splits: DatasetDict) -> None:
    """Reload what the run saved, check it against the model in memory, and measure it on validation and test.

    Writes `predictions/` and completes `run.json`: metrics with 95 % intervals, single-text latency and throughput,
    and, unless `--no_floor`, the TF-IDF floor fitted on the same training rows.

    Args:
        run: Its `model/` has been written.
        model: The model in memory.
        tokenizer: Its tokenizer; None for TF-IDF.
        splits: The run's splits; `test` is read here and nowhere else.

    Raises:
        FinetuneError: If the saved model gives other logits than the one in memory.
    """
    predictor = load_predictor(run.model_directory, torch.float32, accelerated=run.arguments.run.accelerated)
    reload = _compare(predictor, run, model, tokenizer, splits["validation"])
    predictor.compute_in(DTYPES[fastest_precision()])

    if run.is_main and not sys.stderr.isatty():
        print(
            f"evaluating the saved model on {len(splits['validation']) + len(splits['test']):,} texts", file=sys.stderr
        )
    scored = {name: score(predictor, splits[name], f"Evaluating on {name}") for name in ("validation", "test")}
    single = splits["test"].select(range(min(NUM_LATENCY_TEXTS, len(splits["test"]))))
    latency = measure_latency(_merge(predictor, run.record.method), single)
    wishes = run.arguments.decisions.to_wishes()
    rules = _fit_rules(wishes, scored["validation"])
    thresholds = None
    if predictor.task.problem_type == MULTI_LABEL and scored["validation"].labels is not None:
        thresholds = Thresholds(values=list(rules.thresholds), at_half=_decide_at_half(scored["test"]))
    floor, held_out = None, scored["validation"].held_out
    if run.is_main:
        for name, rows in scored.items():
            write_predictions(run, name, rows)
        if thresholds is not None:
            write_thresholds(run.model_directory, thresholds.values)
        if held_out is not None:
            write_rules(run.model_directory, rules, held_out)
            write_checksums(run.model_directory)
        if run.arguments.run.floor and run.record.method != FLOOR:
            floor = measure_floor(splits["train"], scored, run.arguments)
    metrics = {name: Metrics(**measure(rows, rows.decide(rules), rules.costs)) for name, rows in scored.items()}
    run.finish(
        metrics=MeasuredSplits(**metrics),
        reload=reload,
        latency_seconds=latency,
        texts_per_second=len(splits["test"]) / scored["test"].seconds,
        tokenize_seconds=measure_tokenization(run, tokenizer, splits["train"]),
        thresholds=thresholds,
        answers=None if held_out is None else describe_answers(rules, held_out, scored["test"].held_out),
        floor=floor,
    )
    run.wait()


def _compare(predictor: TextClassifier, run: Run, model: Any, tokenizer: Any, validation: Dataset) -> Reload:
    """Compare the logits of the saved model and of the one in memory, both in float32."""
    probes = _texts(validation.select(range(min(NUM_PROBES, len(validation)))))
    if isinstance(model, torch.nn.Module):  # which accelerate has let compute in lower precision
        model = extract_model_from_parallel(model, keep_fp32_wrapper=False)
    reference = family_of(run.record.method).build_predictor(
        model, tokenizer, predictor.text_config, torch.float32, run.arguments.run.accelerated
    )
    in_memory = reference.compute_logits(*probes)[0]
    difference = float(np.abs(predictor.compute_logits(*probes)[0] - in_memory).max())
    if not difference <= MAX_RELOAD_DIFFERENCE * unit_of_logits(in_memory, predictor.task.problem_type):
        raise FinetuneError(
            f"Expected the saved model to give the logits of the one in memory, but they differ by {difference:.1e}. "
            f"Don't use {run.model_directory}; please report this."
        )
    return Reload(max_difference=difference, num_texts=len(in_memory))


def score(predictor: TextClassifier, rows: Dataset, description: str) -> ScoredRows:
    """Compute the logits of rows, behind a bar with this description."""
    start = time.perf_counter()
    with progress_bar(len(rows), description) as advance:
        logits, num_tokens = predictor.compute_logits(*_texts(rows), advance)
    seconds = time.perf_counter() - start
    labels = label_matrix(rows["label"], predictor.task) if "label" in rows.column_names else None
    return ScoredRows(rows, predictor.task, labels, logits, num_tokens, seconds)


def _texts(rows: Dataset) -> tuple[Any, Any]:
    """Return the texts of rows, and their second texts if they are pairs."""
    return rows["text"][:], rows["text_pair"][:] if "text_pair" in rows.column_names else None


def _fit_rules(wishes: Wishes, validation: ScoredRows) -> DecisionRules:
    """Fit how scores become answers on the validation rows; the thresholds of several labels as well.

    Raises:
        FinetuneError: If something is asked for that needs their labels, which are withheld.
    """
    task, held_out = validation.task, validation.held_out
    if held_out is None:
        if wishes.abstain is not None or wishes.coverage is not None:
            raise FinetuneError("Expected validation rows with labels for --abstain and --coverage. Leave them out.")
        return fit_rules(wishes, None, task)
    temperature, thresholds = 1.0, None
    if wishes.calibrate and task.problem_type != REGRESSION:
        temperature = fit_temperature(held_out.logits, held_out.labels)
    if task.problem_type == MULTI_LABEL:
        thresholds = tune_thresholds(held_out.logits / np.float32(temperature), held_out.labels)
    return fit_rules(wishes, held_out, task, temperature, thresholds or 0.5)


def _decide_at_half(test: ScoredRows) -> Decisions | None:
    """Measure the labels that are predicted from a probability of one half on; None where theirs are withheld."""
    found = measure(test, test.decide())
    return None if test.labels is None else Decisions(**{name: found[name] for name in Decisions.model_fields})


def measure(scored: ScoredRows, predicted: np.ndarray, costs: np.ndarray | None = None) -> dict[str, Any]:
    """Compute all metrics, 95 % intervals, and each class's own figures; only the count where labels are withheld."""
    logits, labels, task = scored.logits, scored.labels, scored.task
    if labels is None:
        return {"num_examples": len(logits), "labels_withheld": True}
    metrics: dict[str, Any] = compute_metrics(logits, labels, task.problem_type, predicted)
    if task.problem_type == REGRESSION:
        metrics["mae_interval"] = mean_interval(np.abs(logits[:, 0] - labels))
    else:
        metrics["accuracy_interval"] = accuracy_interval(metrics["accuracy"], len(labels))
        if costs is not None:
            metrics["cost_per_text"] = float(costs[labels, predicted].mean())
        metrics["per_class"] = compute_per_class(predicted, labels, task.label_names)
    return {**metrics, "num_examples": len(labels)}


def measure_latency(predictor: TextClassifier, split: Dataset) -> float:
    """Measure the median seconds from one text to its logits, tokenization included."""
    seconds = []
    for row in range(len(split)):
        texts, pairs = _texts(split.select([row]))
        start = time.perf_counter()
        predictor.compute_logits(texts, pairs)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def _merge(predictor: Any, method: str) -> TextClassifier:
    """Merge an adapter for good, if its method merges: so it is pushed, and so its latency is that of use."""
    if not find_method(method).merges:
        return predictor
    try:
        merged = merge_adapter(predictor.model)
    except FinetuneError:  # four bits
        return predictor
    parts = predictor.tokenizer, predictor.text_config, predictor.dtype, predictor.accelerated
    return family_of(method).build_predictor(merged, *parts)


def measure_tokenization(
    run: Run, tokenizer: PreTrainedTokenizerBase | None, train: Dataset
) -> tuple[float, float] | None:
    """Measure what it takes to tokenize the training rows once, whether or not the cache had them.

    Args:
        run: Its `model/` has been written.
        tokenizer: That of its model; None where the fit reads texts itself, as TF-IDF does.
        train: Its training split.

    Returns:
        Wall seconds, and seconds that processors worked, for all rows, from at most 2,000 of them; None where the
        training was timed with it, as with streamed rows, and where nothing was trained.
    """
    described = run.record.model
    if tokenizer is None or run.arguments.data.streaming or (described and described.trainable_parameters == 0):
        return None
    rows = np.linspace(0, len(train) - 1, min(len(train), NUM_TOKENIZED)).astype(int)
    texts, pairs = _texts(train.select(rows))
    wall, cpu = time.perf_counter(), cpu_seconds()
    encode_texts(texts, tokenizer, run.text_config, pairs)
    share = len(train) / len(rows)
    return (time.perf_counter() - wall) * share, (cpu_seconds() - cpu) * share


def measure_floor(train: Dataset, scored: Mapping[str, ScoredRows], arguments: Arguments) -> Floor:
    """Fit the method that is the floor on a run's training rows, and measure it on its test rows.

    Of several labels it decides by thresholds that are chosen on validation, as every other method does.
    """
    family, wall, cpu = family_of(FLOOR), time.perf_counter(), cpu_seconds()
    predictor = family.build_predictor(family.fit_rows(train, arguments), None)
    seconds = {"train_seconds": time.perf_counter() - wall, "train_cpu_seconds": cpu_seconds() - cpu}
    validation, test = (
        replace(scored[name], logits=predictor.compute_logits(*_texts(scored[name].rows))[0])
        for name in ("validation", "test")
    )
    wishes = arguments.decisions.to_wishes()
    rules = _fit_rules(Wishes(wishes.calibrate, costs=wishes.costs), validation)  # it is asked for labels alone
    metrics = measure(test, test.decide(rules), rules.costs)
    return Floor(test=Metrics(**metrics), **seconds)


def write_predictions(run: Run, name: str, scored: ScoredRows) -> None:
    """Write `predictions/<name>.parquet`: id, text unless `--no_store_text`, num_tokens, label, float32 logits."""
    rows, given = scored.rows, set(scored.rows.column_names)
    texts = [] if run.arguments.run.no_store_text else ["text", "text_pair"]
    columns = {column: rows[column][:] for column in ["id", *texts] if column in given}
    columns["num_tokens"] = scored.num_tokens
    if "label" in given:
        columns["label"] = rows["label"][:]
    table = pa.table({**columns, "logits": pa.array(list(scored.logits))})
    folder = run.directory / "predictions"
    folder.mkdir(exist_ok=True)
    with write_aside(folder / f"{name}.parquet") as aside:
        pq.write_table(table, aside)


def evaluate_file(predictor: TextClassifier, test_file: str, columns: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Measure a saved model on a file of labelled texts.

    Args:
        predictor: What `load_predictor` gives.
        test_file: See `finetune.data.load.read_examples`.
        columns: `text_column`, `label_column` and other settings of `DataArguments` for reading the file.

    Returns:
        The metrics, and scikit-learn's classification report, which is empty for regression.

    Raises:
        FinetuneError: If the file has a label that the model does not know.
    """
    examples = read_examples(test_file, DataArguments(**columns), predictor.task, predictor.encoding)
    scored = score(predictor, examples, "Evaluating")
    predicted, report = scored.decide(predictor.rules), ""
    if scored.labels is not None and predictor.task.problem_type != REGRESSION:
        report = compute_classification_report(predicted, scored.labels, predictor.label_names)
    return measure(scored, predicted, predictor.rules.costs) | _measure_asked(predictor.rules, scored.held_out), report


def _measure_asked(rules: DecisionRules, rows: HeldOut | None) -> dict[str, Any]:
    """Measure silence and sets of labels where they were asked for; nothing where labels are withheld."""
    found: dict[str, Any] = {}
    if rows is not None and rules.abstention is not None:
        silence = measure_silence(rules, rows)
        found["answered"] = silence.test_answered
        if silence.test_precision is not None:
            found |= {
                "answered_right": silence.test_precision,
                "answered_right_interval": silence.test_precision_interval,
            }
    if rows is not None and rules.prediction_sets is not None:
        sets = measure_sets(rules, rows)
        found |= {"set_coverage": sets.test_coverage, "set_coverage_interval": sets.test_coverage_interval}
        found["set_size"] = sets.test_mean_size
    return found
