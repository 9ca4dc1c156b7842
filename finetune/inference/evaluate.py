"""Measure the saved model, reloaded: the one place where the test split is used."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
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
from finetune.data.labels import Task, label_matrix
from finetune.data.load import read_examples
from finetune.data.tokenize import encode_texts
from finetune.errors import FinetuneError
from finetune.families.save import write_thresholds
from finetune.files import write_aside
from finetune.hardware import cpu_seconds, fastest_precision
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

__all__ = [
    "evaluate_file",
    "evaluate_run",
    "measure",
    "measure_floor",
    "measure_latency",
    "measure_tokenization",
    "write_predictions",
]

NUM_PROBES = 16
NUM_LATENCY_TEXTS = 30
NUM_TOKENIZED = 2_000  # training rows by which tokenizing all of them is timed
# Saved weights are the weights in memory, bit by bit; what may differ is the order of a sum.
MAX_RELOAD_DIFFERENCE = 1e-4


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
    accelerated = run.arguments.run.accelerated
    predictor = load_predictor(run.model_directory, torch.float32, accelerated=accelerated)
    probes = splits["validation"].select(range(min(NUM_PROBES, len(splits["validation"]))))
    if isinstance(model, torch.nn.Module):  # which accelerate has let compute in lower precision
        model = extract_model_from_parallel(model, keep_fp32_wrapper=False)
    family = family_of(run.record.method)
    reference = family.build_predictor(model, tokenizer, predictor.text_config, torch.float32, accelerated)
    in_memory = reference.compute_logits(*_texts(probes))[0]
    difference = float(np.abs(predictor.compute_logits(*_texts(probes))[0] - in_memory).max())
    if not difference <= MAX_RELOAD_DIFFERENCE * unit_of_logits(in_memory, predictor.task.problem_type):
        raise FinetuneError(
            f"Expected the saved model to give the logits of the one in memory, but they differ by {difference:.1e}. "
            f"Don't use {run.model_directory}; please report this."
        )
    predictor.compute_in(DTYPES[fastest_precision()])

    metrics, thresholds, throughput = {}, None, 0.0
    for name in ("validation", "test"):
        split = splits[name]
        if run.is_main and not sys.stderr.isatty():
            print(f"evaluating the saved model on {name}: {len(split):,} texts", file=sys.stderr)
        start = time.perf_counter()
        with progress_bar(len(split), f"Evaluating on {name}") as advance:
            logits, num_tokens = predictor.compute_logits(*_texts(split), advance)
        throughput = len(split) / (time.perf_counter() - start)
        if predictor.task.problem_type == MULTI_LABEL and "label" in split.column_names:
            labels = label_matrix(split["label"], predictor.task)
            if name == "validation":
                thresholds = Thresholds(values=tune_thresholds(logits, labels))
            elif thresholds is not None:
                thresholds.at_half = _decide_at_half(logits, labels)
        metrics[name] = Metrics(
            **measure(logits, split, predictor.task, None if thresholds is None else thresholds.values)
        )
        if run.is_main:
            write_predictions(run, name, split, logits, num_tokens)
    single = splits["test"].select(range(min(NUM_LATENCY_TEXTS, len(splits["test"]))))
    latency = measure_latency(_merge(predictor, run.record.method), single)
    if thresholds is not None and run.is_main:
        write_thresholds(run.model_directory, thresholds.values)
    floor = None
    if run.is_main and run.arguments.run.floor and run.record.method != FLOOR:
        floor = measure_floor(splits, run.arguments)
    run.finish(
        metrics=MeasuredSplits(**metrics),
        reload=Reload(max_difference=difference, num_texts=len(probes)),
        latency_seconds=latency,
        texts_per_second=throughput,
        tokenize_seconds=measure_tokenization(run, tokenizer, splits["train"]),
        thresholds=thresholds,
        floor=floor,
    )
    run.wait()


def _decide_at_half(logits: np.ndarray, labels: np.ndarray) -> Decisions:
    """Measure the labels that are predicted from a probability of one half on."""
    found = compute_metrics(logits, labels, MULTI_LABEL)
    return Decisions(micro_f1=found["micro_f1"], macro_f1=found["macro_f1"], accuracy=found["accuracy"])


def _texts(split: Dataset) -> tuple[Any, Any]:
    """Return a split's texts, and its second texts if they are pairs."""
    return split["text"][:], split["text_pair"][:] if "text_pair" in split.column_names else None


def measure(
    logits: np.ndarray, split: Dataset, task: Task, thresholds: Sequence[float] | None = None
) -> dict[str, Any]:
    """Compute all metrics, 95 % intervals, and each class's own figures; only the count where labels are withheld."""
    if "label" not in split.column_names:
        return {"num_examples": len(split), "labels_withheld": True}
    labels = label_matrix(split["label"], task)
    metrics: dict[str, Any] = compute_metrics(logits, labels, task.problem_type, thresholds)
    if task.problem_type == REGRESSION:
        metrics["mae_interval"] = mean_interval(np.abs(logits[:, 0] - labels))
    else:
        metrics["accuracy_interval"] = accuracy_interval(metrics["accuracy"], len(labels))
        metrics["per_class"] = compute_per_class(logits, labels, task.label_names, task.problem_type, thresholds)
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
        run: Of a method that trains in steps, else its fit includes it; so do steps of streamed rows.
        tokenizer: That of its model.
        train: Its training split.

    Returns:
        Wall seconds, and seconds that processors worked, for all rows, from at most 2,000 of them; None where the
        training was timed with it.
    """
    if tokenizer is None or run.arguments.data.streaming or not family_of(run.record.method).trains_network:
        return None
    rows = np.linspace(0, len(train) - 1, min(len(train), NUM_TOKENIZED)).astype(int)
    texts, pairs = _texts(train.select(rows))
    wall, cpu = time.perf_counter(), cpu_seconds()
    encode_texts(texts, tokenizer, run.text_config, pairs)
    share = len(train) / len(rows)
    return (time.perf_counter() - wall) * share, (cpu_seconds() - cpu) * share


def measure_floor(splits: DatasetDict, arguments: Arguments) -> Floor:
    """Fit the method that is the floor on the run's training rows, and measure it on its test rows.

    Of several labels it decides by thresholds that are chosen on validation, as every other method does.
    """
    validation, test, family = splits["validation"], splits["test"], family_of(FLOOR)
    wall, cpu = time.perf_counter(), cpu_seconds()
    predictor = family.build_predictor(family.fit_rows(splits["train"], arguments), None)
    seconds = {"train_seconds": time.perf_counter() - wall, "train_cpu_seconds": cpu_seconds() - cpu}
    thresholds = None
    if predictor.task.problem_type == MULTI_LABEL:
        logits = predictor.compute_logits(*_texts(validation))[0]
        thresholds = tune_thresholds(logits, label_matrix(validation["label"], predictor.task))
    logits = predictor.compute_logits(*_texts(test))[0]
    return Floor(test=Metrics(**measure(logits, test, predictor.task, thresholds)), **seconds)


def write_predictions(run: Run, name: str, split: Dataset, logits: np.ndarray, num_tokens: np.ndarray) -> None:
    """Write `predictions/<name>.parquet`: id, text unless `--no_store_text`, num_tokens, label, float32 logits."""
    columns = {"id": split["id"][:]}
    if not run.arguments.run.no_store_text:
        columns["text"] = split["text"][:]
    if "text_pair" in split.column_names and not run.arguments.run.no_store_text:
        columns["text_pair"] = split["text_pair"][:]
    columns["num_tokens"] = num_tokens
    if "label" in split.column_names:
        columns["label"] = split["label"][:]
    table = pa.table({**columns, "logits": pa.array(list(logits))})
    folder = run.directory / "predictions"
    folder.mkdir(exist_ok=True)
    with write_aside(folder / f"{name}.parquet") as aside:
        pq.write_table(table, aside)


def evaluate_file(path: str | Path, test_file: str, columns: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Measure a saved model on a file of labelled texts.

    Args:
        path: A run directory or model folder.
        test_file: See `finetune.data.load.read_examples`.
        columns: `text_column`, `label_column` and other settings of `DataArguments` for reading the file.

    Returns:
        The metrics, and scikit-learn's classification report, which is empty for regression.

    Raises:
        FinetuneError: If the file has a label that the model does not know.
    """
    predictor = load_predictor(path)
    examples = read_examples(test_file, DataArguments(**columns), predictor.task, predictor.encoding)
    with progress_bar(len(examples), "Evaluating") as advance:
        logits, _ = predictor.compute_logits(*_texts(examples), advance)
    task, thresholds = predictor.task, None
    if task.problem_type == MULTI_LABEL:
        thresholds = np.broadcast_to(predictor.thresholds, len(task.label_names)).tolist()
    metrics = measure(logits, examples, task, thresholds)
    if task.problem_type == REGRESSION:
        return metrics, ""
    labels = label_matrix(examples["label"], task)
    return metrics, compute_classification_report(logits, labels, task.label_names, task.problem_type, thresholds)
