"""Measure the saved model, reloaded: the one place where the test split is used."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from finetune.data.load import number_labels, read_examples
from finetune.delivery.predict import Predictor, load_predictor
from finetune.errors import FinetuneError
from finetune.metrics import accuracy_interval, compute_classification_report, compute_metrics
from finetune.models.tfidf import fit_tfidf
from finetune.training.progress import progress_bar
from finetune.training.run import Run

__all__ = [
    "evaluate_file",
    "evaluate_run",
    "measure",
    "measure_floor",
    "measure_latency",
    "write_predictions",
]

NUM_PROBES = 16
NUM_LATENCY_TEXTS = 30
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
    predictor = load_predictor(run.model_directory)
    probes = splits["validation"]["text"][:NUM_PROBES]
    in_memory = Predictor(model, tokenizer).compute_logits(probes)[0]
    difference = float(np.abs(predictor.compute_logits(probes)[0] - in_memory).max())
    if difference > MAX_RELOAD_DIFFERENCE:
        raise FinetuneError(
            f"Expected the saved model to give the logits of the one in memory, but they differ by {difference:.1e}. "
            f"Don't use {run.model_directory}; please report this."
        )

    metrics, throughput = {}, 0.0
    for name in ("validation", "test"):
        split = splits[name]
        start = time.perf_counter()
        with progress_bar(len(split), f"Evaluating on {name}") as advance:
            logits, num_tokens = predictor.compute_logits(split["text"], advance)
        throughput = len(split) / (time.perf_counter() - start)
        metrics[name] = measure(logits, np.asarray(split["label"]))
        if run.is_main:
            write_predictions(run, name, split, logits, num_tokens)
    results: dict[str, Any] = {
        "metrics": metrics,
        "reload": {"max_difference": difference, "num_texts": len(probes)},
        "costs": {
            "latency_seconds": measure_latency(predictor, splits["test"]["text"][:NUM_LATENCY_TEXTS]),
            "texts_per_second": throughput,
        },
    }
    if run.arguments.run.floor and run.record["method"] != "tfidf":
        results["floor"] = measure_floor(splits, run.record["seed"])
    run.finish(results)
    run.wait()


def measure(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Compute all metrics, and the 95 % interval of the accuracy."""
    metrics = compute_metrics(logits, labels)
    return {
        **metrics,
        "accuracy_interval": accuracy_interval(metrics["accuracy"], len(labels)),
        "num_examples": len(labels),
    }


def measure_latency(predictor: Predictor, texts: list[str]) -> float:
    """Measure the median seconds from one text to its logits, tokenization included."""
    seconds = []
    for text in texts:
        start = time.perf_counter()
        predictor.compute_logits([text])
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def measure_floor(splits: DatasetDict, seed: int) -> dict[str, Any]:
    """Fit TF-IDF and logistic regression on the run's training rows and measure it on its test rows."""
    train, test = splits["train"], splits["test"]
    start = time.perf_counter()
    floor = fit_tfidf(train["text"], train["label"], train.features["label"].names, seed)
    seconds = time.perf_counter() - start
    return {"test": measure(floor.compute_logits(test["text"]), np.asarray(test["label"])), "train_seconds": seconds}


def write_predictions(run: Run, name: str, split: Dataset, logits: np.ndarray, num_tokens: np.ndarray) -> None:
    """Write `predictions/<name>.parquet`: id, text unless `--no_store_text`, num_tokens, label, float32 logits."""
    columns = {"id": split["id"][:]}
    if not run.arguments.run.no_store_text:
        columns["text"] = split["text"][:]
    table = pa.table(
        {**columns, "num_tokens": num_tokens, "label": split["label"][:], "logits": pa.array(list(logits))}
    )
    folder = run.directory / "predictions"
    folder.mkdir(exist_ok=True)
    aside = folder / f"{name}.parquet.partial"
    pq.write_table(table, aside)
    aside.rename(folder / f"{name}.parquet")


def evaluate_file(path: str | Path, test_file: str, text_column: str, label_column: str) -> tuple[dict[str, Any], str]:
    """Measure a saved model on a file of labelled texts.

    Args:
        path: A run directory or model folder.
        test_file: See `finetune.data.load.read_examples`.
        text_column: The column of the texts.
        label_column: The column of the labels: the model's label names, or their numbers.

    Returns:
        The metrics, and scikit-learn's classification report.

    Raises:
        FinetuneError: If the file has a label that the model does not know.
    """
    examples = read_examples(test_file, text_column, label_column)
    predictor = load_predictor(path)
    numbers = number_labels(examples.features["label"].names, predictor.label_names, repr(test_file))
    labels = np.array([numbers[label] for label in examples["label"]])
    with progress_bar(len(examples), "Evaluating") as advance:
        logits, _ = predictor.compute_logits(examples["text"], advance)
    return measure(logits, labels), compute_classification_report(logits, labels, predictor.label_names)
