"""Measure the randomly initialised TextCNN on sentences and set it beside the published CNN-rand (Kim 2014, table 2).

    python benchmarks/textcnn_sentences.py --train_file rt-polarity.all
    python benchmarks/textcnn_sentences.py --train_file TREC.train.all --test_file TREC.test.all --num_train_epochs 20

Files have one example a line: an integer label, a space, the tokenised text, in Latin-1. Without a test file it does
one stratified cross-validation, with one it trains once per seed. Every run is a single TextCNN after its last epoch:
no test row chooses an epoch or a setting. `--development_share 0.1` leaves the test rows out and measures on a tenth of
each run's training rows instead; the settings below were chosen on such parts.
"""

import argparse
import importlib.metadata
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Value
from scipy.stats import t as student_t
from sklearn.model_selection import StratifiedKFold
from transformers import TrainingArguments

from finetune import __version__
from finetune.accelerated import enable
from finetune.data.cutting import TextConfig
from finetune.data.labels import task_of
from finetune.data.split import carve_splits
from finetune.data.tokenize import tokenize_dataset
from finetune.errors import FinetuneError, exit_on_error
from finetune.families.textcnn import TextCNNSettings, build_textcnn, load_textcnn_tokenizer
from finetune.files import write_json
from finetune.hardware import default_num_threads, describe_hardware, supports_bf16, use_processor
from finetune.metrics import accuracy_interval, compute_metrics
from finetune.quiet import quiet_program
from finetune.settings.parts import ModelArguments
from finetune.training.trainer import FineTuningTrainer

# What training differs in from `TrainingArguments`' own defaults; every one is also a flag.
SETTINGS = {
    "learning_rate": 1e-3,
    "num_train_epochs": 5,
    "per_device_train_batch_size": 50,  # Kim 2014, section 3.1, as are filters, dropout and the word vectors' range
    "weight_decay": 0.0,
    "label_smoothing_factor": 0.0,
    "lr_scheduler_type": "linear",
}
MAX_LENGTH = 512
MAX_TOKENS = 32_768  # a batch of sentences is one micro-batch
PUBLISHED = {  # accuracy of CNN-rand in per cent
    "rt-polarity.all": {"Kim 2014": 76.1, "harvardnlp/sent-conv-torch": 75.9},
    "TREC.train.all": {"Kim 2014": 91.2, "harvardnlp/sent-conv-torch": 88.2},
}
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy")


def parse_flags(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_file", type=Path, required=True)
    parser.add_argument("--test_file", type=Path, help="Without it, cross-validation on the training file.")
    parser.add_argument("--folds", type=int, default=10, help="Parts of the cross-validation.")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="One run each; cross-validation takes the first alone.")
    parser.add_argument("--max_runs", type=int, help="Stop after this many folds or seeds.")
    parser.add_argument("--development_share", type=float, help="Measure on this share of each run's training rows.")
    parser.add_argument("--num_threads", type=int, default=default_num_threads())
    parser.add_argument("--fp32", action="store_true", help="Do not compute in bfloat16 where the machine can.")
    parser.add_argument("--output_json", type=Path)
    for name, default in SETTINGS.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    return parser.parse_args(argv)


def read_sentences(path: Path) -> Dataset:
    """Read a file of `label text` lines into the columns `text` and `label`.

    Lines end at the line feed alone, since such files hold stray control characters that `str.splitlines` cuts at.

    Raises:
        FinetuneError: If a line does not start with an integer.
    """
    with path.open(encoding="latin-1", newline="") as file:
        lines = [line.partition(" ") for line in file.read().split("\n") if line]
    wrong = next((number for number, (label, _, _) in enumerate(lines, 1) if not label.isdecimal()), None)
    if wrong is not None:
        raise FinetuneError(f"Expected 'label text' lines with an integer label, but line {wrong} of {path} has none.")
    labels = [int(label) for label, _, _ in lines]
    names = [str(label) for label in range(max(labels) + 1)]
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"text": [text for _, _, text in lines], "label": labels}, features=features)


def plan_runs(flags: argparse.Namespace) -> Iterator[tuple[str, int, Dataset, Dataset]]:
    """Yield each run's name, seed, training rows and test rows."""
    seeds = [int(seed) for seed in flags.seeds.split(",")]
    train = read_sentences(flags.train_file)
    if flags.test_file is not None:
        test = read_sentences(flags.test_file).cast(train.features)
        for seed in seeds:
            yield f"seed {seed}", seed, train, test
    else:
        labels = np.asarray(train["label"])
        folds = StratifiedKFold(flags.folds, shuffle=True, random_state=seeds[0])
        for number, (train_rows, test_rows) in enumerate(folds.split(labels, labels)):
            yield f"fold {number}", seeds[0], train.select(train_rows), train.select(test_rows)


def train_and_measure(train: Dataset, test: Dataset, seed: int, flags: argparse.Namespace) -> float:
    """Train one TextCNN with the toolkit's parts, as a recipe does, and give its accuracy on `test`."""
    arguments, settings = ModelArguments(), TextCNNSettings()
    tokenizer = load_textcnn_tokenizer(arguments, settings, train, MAX_LENGTH)
    model = enable(build_textcnn(arguments, settings, tokenizer, task_of(train.features), seed))
    with tempfile.TemporaryDirectory() as directory:
        trainer = FineTuningTrainer(
            model=model,
            args=TrainingArguments(
                output_dir=directory,
                seed=seed,
                use_cpu=not torch.cuda.is_available(),
                bf16=supports_bf16() and not flags.fp32,
                save_strategy="no",
                report_to="none",
                **{name: getattr(flags, name) for name in SETTINGS},
            ),
            train_dataset=tokenize_dataset(train, tokenizer, TextConfig(MAX_LENGTH)),
            eval_dataset=tokenize_dataset(test, tokenizer, TextConfig(MAX_LENGTH)),
            processing_class=tokenizer,
            compute_metrics=lambda prediction: compute_metrics(*prediction),
            max_tokens_per_micro_batch=MAX_TOKENS,
        )
        trainer.train()
        return trainer.evaluate()["eval_accuracy"]


def mean_interval(values: list[float]) -> tuple[float, float, float]:
    """Return the mean and its 95 % interval by Student's t, [0, 1] for a single value.

    The runs of a cross-validation share training rows, and those on one test file share that, so it is a guide.
    """
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return mean, 0.0, 1.0
    half = float(student_t.ppf(0.975, count - 1) * np.std(values, ddof=1) / count**0.5)
    return mean, mean - half, mean + half


def main(argv: list[str]) -> None:
    """Do all runs, print them, and write the record."""
    flags = parse_flags(argv)
    quiet_program()
    use_processor(flags.num_threads)
    settings = {name: getattr(flags, name) for name in SETTINGS}
    settings |= {"max_length": MAX_LENGTH, "bf16": supports_bf16() and not flags.fp32, "num_threads": flags.num_threads}
    print("  ".join(f"{name} {value}" for name, value in settings.items()))

    runs: list[dict[str, Any]] = []
    for name, seed, train, test in itertools.islice(plan_runs(flags), flags.max_runs):
        if flags.development_share:
            splits = carve_splits(train, {"development": round(flags.development_share * len(train))}, seed)
            train, test = splits["train"], splits["development"]
        start = time.perf_counter()
        accuracy = train_and_measure(train, test, seed, flags)
        seconds = round(time.perf_counter() - start, 1)
        print(f"{name}: accuracy {accuracy:.4f} on {len(test)} rows, {seconds:.0f} s", flush=True)
        rows = {"train_rows": len(train), "test_rows": len(test)}
        runs.append({"run": name, "seed": seed, **rows, "accuracy": accuracy, "seconds": seconds})

    mean, low, high = mean_interval([run["accuracy"] for run in runs])
    test_rows = sum(run["test_rows"] for run in runs) if flags.test_file is None else runs[0]["test_rows"]
    low_rows, high_rows = accuracy_interval(mean, test_rows)
    print(f"mean accuracy {mean:.4f}; 95 % interval over {len(runs)} runs {low:.4f} to {high:.4f}", end="; ")
    print(f"over the choice of {test_rows} test rows {low_rows:.4f} to {high_rows:.4f}")
    published = PUBLISHED.get(flags.train_file.name, {})
    if published and not flags.development_share:
        print("published CNN-rand:", ", ".join(f"{name} {value}" for name, value in published.items()))
    if flags.output_json is not None:
        flags.output_json.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "files": [file.name for file in (flags.train_file, flags.test_file) if file is not None],
            "evaluation": "test file" if flags.test_file else f"{flags.folds}-fold cross-validation",
            "development_share": flags.development_share,
            "machine": describe_hardware(),
            "versions": {"finetune": __version__, **{name: importlib.metadata.version(name) for name in PACKAGES}},
            "settings": settings,
            "runs": runs,
            "mean_accuracy": mean,
            "interval_over_runs": [low, high],
            "interval_over_test_rows": [low_rows, high_rows],
            "published_percent": published,
        }
        write_json(flags.output_json, record)


if __name__ == "__main__":
    with exit_on_error():
        main(sys.argv[1:])
