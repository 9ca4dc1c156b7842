"""Does the cost of a row stay the same when there are a hundred times as many?

    python benchmarks/growth.py --output_json benchmarks/results/growth.json

Loads, examines, tokenizes, batches and trains a TextCNN for one epoch on 2,500, 25,000 and 250,000 reviews, each in a
process of its own and with empty caches: seconds for a thousand rows, and the most memory of the process's own while
each stage ran. Pages of files that the system maps in and takes back as it likes are not counted. There are 25,000
reviews; further ones are copies with their words in another order, so that no two texts are alike.
"""

import csv
import json
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import psutil
import torch
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback
from turns import build_parser, take_turns, write_results

from finetune.accelerated import enable
from finetune.catalogue import METHOD_DEFAULTS
from finetune.data.cutting import TextConfig
from finetune.data.embedded import load_embedded_reviews
from finetune.data.labels import task_of
from finetune.data.load import complete_splits, load_given_splits
from finetune.data.tokenize import tokenize_splits
from finetune.data_doctor.examine import examine
from finetune.families.textcnn import TextCNNSettings, build_textcnn, load_textcnn_tokenizer
from finetune.hardware import fastest_precision, use_processor
from finetune.metrics import compute_metrics
from finetune.quiet import quiet_program
from finetune.settings.parts import DataArguments, ModelArguments
from finetune.training.trainer import FineTuningTrainer

SETTINGS = METHOD_DEFAULTS["textcnn"]


def write_reviews(path: Path, num_rows: int) -> None:
    """Write as many distinct reviews as are wanted, in random order."""
    reviews = load_embedded_reviews().shuffle(seed=0)
    generator = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number in range(num_rows):
            row = reviews[number % len(reviews)]
            words = row["text"].split()
            if number >= len(reviews):
                generator.shuffle(words)
            writer.writerow([" ".join(words), row["label"]])


class Stages:
    """Seconds and peak memory of one stage after the other."""

    def __init__(self, num_rows: int):
        self.num_rows = num_rows
        self.measured: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage while a thread watches the memory that is the process's own."""
        process, peak, done = psutil.Process(), 0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.05):
                memory = process.memory_info()
                peak = max(peak, memory.rss - memory.shared)

        watcher = threading.Thread(target=watch)
        watcher.start()
        start = time.perf_counter()
        try:
            yield
        finally:
            self.measured[f"{name}_seconds_per_1000_rows"] = (time.perf_counter() - start) / self.num_rows * 1_000
            done.set()
            watcher.join()
            self.measured[f"{name}_peak_memory_mib"] = peak / 2**20


def measure(num_rows: int, options: Any) -> dict[str, float]:
    """Go through all stages with one number of rows."""
    use_processor(options.num_threads)
    quiet_program()
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder)
        path = Path(folder) / "reviews.csv"
        write_reviews(path, num_rows)
        stages = Stages(num_rows)
        arguments = DataArguments(train_file=str(path))
        with stages.stage("load"):
            given = load_given_splits(arguments)
            splits = complete_splits(given, arguments)
        with stages.stage("examine"):
            examine(given)
        model_arguments, settings = ModelArguments(), TextCNNSettings()
        with stages.stage("tokenize"):
            tokenizer = load_textcnn_tokenizer(model_arguments, settings, splits["train"], options.max_length)
            tokenized = tokenize_splits(splits, tokenizer, TextConfig(options.max_length))
        trainer = FineTuningTrainer(
            model=enable(
                build_textcnn(model_arguments, settings, tokenizer, task_of(splits["train"].features), seed=0)
            ),
            args=TrainingArguments(
                output_dir=folder,
                num_train_epochs=1,
                learning_rate=SETTINGS["learning_rate"],
                per_device_train_batch_size=SETTINGS["per_device_train_batch_size"],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(),
                seed=0,
                bf16=fastest_precision() == "bf16",
            ),
            train_dataset=tokenized["train"],
            eval_dataset=tokenized["validation"],
            processing_class=tokenizer,
            compute_metrics=lambda prediction: compute_metrics(*prediction),
            max_tokens_per_micro_batch=SETTINGS["max_tokens_per_micro_batch"],
        )
        trainer.remove_callback(PrinterCallback)
        with stages.stage("batch"):
            for _ in trainer.get_train_dataloader():
                pass
        with stages.stage("train"):
            trainer.train()
    return stages.measured


def main() -> None:
    """Measure and print."""
    parser = build_parser(__doc__)
    parser.set_defaults(turns=1)
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--rows", type=int, nargs="+", default=[2_500, 25_000, 250_000])
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(int(options.measure[0]), options)))
        return
    results = take_turns(__file__, [str(rows) for rows in options.rows], options.turns)
    measured = list(results.values())
    print(f"\n{options.num_threads} threads; seconds for 1,000 rows, and peak memory in MiB")
    print(f"{'':<12}" + "".join(f"{int(rows):>22,} rows" for rows in results))
    for name in ("load", "examine", "tokenize", "batch", "train"):
        cells = []
        for turns in measured:
            seconds = min(turn[f"{name}_seconds_per_1000_rows"] for turn in turns)
            cells.append(f"{seconds:>12.3f} s {max(turn[f'{name}_peak_memory_mib'] for turn in turns):>8,.0f} MiB")
        print(f"{name:<12}" + " ".join(f"{cell:>26}" for cell in cells))
    write_results(options.output_json, options, {"turns_measured": results})


if __name__ == "__main__":
    main()
