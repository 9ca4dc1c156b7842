"""Run directories as a recipe writes them, with predictions drawn from a random generator instead of a model."""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from finetune.metrics import (
    MULTI_LABEL,
    REGRESSION,
    SINGLE_LABEL,
    accuracy_interval,
    compute_metrics,
    compute_per_class,
    mean_interval,
    predict_labels,
)

WORDS = ["film", "plot", "actor", "scene", "story", "music", "ending", "dull", "lovely", "slow", "sharp", "warm"]
ENVIRONMENT = {
    "python": "3.11.2",
    "packages": {"finetune": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "scikit-learn": "1.9.1"},
    "git_commit": "0123456789abcdef0123456789abcdef01234567",
    "platform": "Linux",
    "processor": "A processor",
    "physical_cores": 2,
    "memory_bytes": 8 * 2**30,
    "gpus": [],
    "num_threads": 2,
    "num_processes": 1,
    "precision": "fp32",
    "prediction_precision": "fp32",
}
COSTS = {  # seconds, tokens, bytes of memory, parameters, bytes, latency
    "tfidf": (4.0, None, 600e6, 80_000, 4e6, 0.0008),
    "textcnn": (430.0, 21_000, 1.4e9, 9_500_000, 38e6, 0.0011),
    "head": (55.0, 90_000, 1.1e9, 770, 91e6, 0.0069),
    "lora": (685.0, 5_200, 1.9e9, 600_000, 2.6e6, 0.0081),
    "full": (533.0, 6_700, 2.4e9, 22_700_000, 91e6, 0.0069),
}


def make_labels(rng, count, problem_type, num_labels):
    if problem_type == SINGLE_LABEL:
        return rng.integers(num_labels, size=count)
    if problem_type == MULTI_LABEL:
        return (rng.random((count, num_labels)) < 0.3).astype(np.float32)
    return rng.normal(3, 1.2, count).astype(np.float32)


def make_logits(rng, labels, problem_type, num_labels, skill, difficulty):
    """Draw logits that are right more often the greater `skill` is, and less often on the same hard examples."""
    count = len(labels)
    if problem_type == REGRESSION:
        noise = 0.5 * difficulty + rng.normal(size=count)
        return (labels + noise / skill)[:, None].astype(np.float32)
    margin = skill - 1.6 * difficulty + 0.6 * rng.normal(size=count)
    if problem_type == MULTI_LABEL:
        signs = 2 * labels - 1
        return (signs * margin[:, None] + 0.5 * rng.normal(size=signs.shape)).astype(np.float32)
    logits = rng.normal(0, 0.5, (count, num_labels))
    logits[np.arange(count), labels] += margin
    return (1.7 * logits).astype(np.float32)  # overconfident, as networks are


def write_run(
    folder, method, seed, skill, *, problem_type=SINGLE_LABEL, label_names=("negative", "positive"), num_test=300,
    num_validation=120, texts=True, pairs=False, long_texts=False, arguments=None, change=None,
):  # fmt: skip
    """Write a run directory.

    Args:
        folder: Where; its parents are made.
        method: One of `COSTS`.
        seed: Of the noise in the predictions; labels, texts and difficulty are the same in all runs.
        skill: About 0 to 4.
        arguments: Settings that differ, by part and name.
        change: A function that changes the record before it is written.
    """
    num_labels, rng = len(label_names), np.random.default_rng(1000 * seed + sum(map(ord, method)))
    data = np.random.default_rng(7)
    record_splits, metrics = {"train": _split("train", 500, {})}, {}
    (folder / "predictions").mkdir(parents=True)
    for split, count in (("validation", num_validation), ("test", num_test)):
        labels = make_labels(data, count, problem_type, num_labels)
        difficulty = data.normal(size=count)
        lengths = data.integers(6, 400 if long_texts else 60, count)
        logits = make_logits(rng, labels, problem_type, num_labels, skill, difficulty)
        stored = labels.tolist()
        if problem_type == MULTI_LABEL:
            stored = [np.flatnonzero(row).tolist() for row in labels]
        columns = {"id": [f"{split}.csv-{row}" for row in range(count)]}
        words = data.choice(WORDS, (count, int(lengths.max())))
        written = [" ".join(row[:length]) for row, length in zip(words, lengths, strict=True)]
        if texts:
            columns["text"] = written
        if texts and pairs:
            columns["text_pair"] = [f"The second text: {text}" for text in written]
        columns |= {"num_tokens": np.minimum(lengths, 256), "label": stored, "logits": pa.array(list(logits))}
        pq.write_table(pa.table(columns), folder / "predictions" / f"{split}.parquet")
        record_splits[split] = _split(split, count, stored)
        metrics[split] = _measure(logits, labels, problem_type, label_names)
    seconds, tokens, memory, parameters, size, latency = COSTS[method]
    record = {
        "schema_version": 1,
        "id": f"{method}{seed}",
        "status": "complete",
        "started": "2026-11-22T10:00:00+00:00",
        "finished": "2026-11-22T10:10:00+00:00",
        "command": ["classify.py", "--train_file", "my reviews.csv", "--method", method, "--seed", str(seed)],
        "method": method,
        "seed": seed,
        "arguments": {
            part: {**defaults, **(arguments or {}).get(part, {})}
            for part, defaults in {
                "data": {"train_file": "my reviews.csv", "max_length": 256, "truncation": "head"},
                "model": {"model_name_or_path": "embedded", "textcnn_dropout": 0.5},
                "method": {"method": method, "lora_r": 16},
                "tuning": {"layer_decay": 1.0},
                "run": {"num_threads": 2, "no_store_text": not texts},
                "training": {"learning_rate": 5e-5, "seed": seed, "output_dir": str(folder)},
            }.items()
        },
        "environment": json.loads(json.dumps(ENVIRONMENT)),
        "data": {"problem_type": problem_type, "label_names": list(label_names), "splits": record_splits},
        "model": {
            "name": "embedded",
            "architecture": "AModel",
            "trainable_parameters": parameters,
            "total_parameters": max(parameters, 22_700_000 if method in ("head", "lora", "full") else 0),
            "bytes": int(size),
        },
        "costs": {
            "train_seconds": seconds * (1 + 0.02 * seed),
            "peak_memory_bytes": int(memory),
            "latency_seconds": latency,
            "texts_per_second": 0.6 / latency,
            **({"tokens_per_second": tokens} if tokens else {}),
        },
        "metrics": metrics,
        "reload": {"max_difference": 0.0, "num_texts": 16},
    }
    if change is not None:
        change(record)
    write_record(folder, record)
    if method != "tfidf":
        lines = []
        for step in range(1, 41):
            epoch = step / 10
            lines.append({"step": step, "loss": 0.7 / (1 + skill * epoch / 4) + 0.03 * rng.random(), "epoch": epoch})
            if step % 10 == 0:
                name = {SINGLE_LABEL: "accuracy", MULTI_LABEL: "micro_f1", REGRESSION: "mae"}[problem_type]
                value = metrics["validation"][name] * (1 - 0.2 / (1 + epoch))
                lines.append({"step": step, f"eval_{name}": value, "eval_loss": 0.7 / (1 + epoch), "epoch": epoch})
        (folder / "history.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def write_record(folder, record):
    (folder / "run.json").write_text(json.dumps(_without_nan(record), indent=2))


def _split(name, rows, labels):
    digest = hashlib.sha256(f"{name} {labels}".encode()).hexdigest()
    return {
        "origin": f"{name} rows of my reviews.csv",
        "rows": rows,
        "distinct_texts": rows,
        "labels": {},
        "sha256": digest,
    }


def _measure(logits, labels, problem_type, label_names):
    metrics = {**compute_metrics(logits, labels, problem_type), "num_examples": len(labels)}
    if problem_type == REGRESSION:
        return {**metrics, "mae_interval": mean_interval(np.abs(logits[:, 0] - labels))}
    per_class = compute_per_class(predict_labels(logits, problem_type), labels, label_names)
    return {**metrics, "accuracy_interval": accuracy_interval(metrics["accuracy"], len(labels)), "per_class": per_class}


def _without_nan(content):
    if isinstance(content, dict):
        return {name: _without_nan(value) for name, value in content.items()}
    return None if isinstance(content, float) and content != content else content
