"""`contrastive` beside setfit, with the same encoder, on the same draws of a few labels of each class.

    pip install setfit==1.2.0
    python benchmarks/few_labels_setfit.py --mr_file rt-polarity.all --trec_train_file TREC.train.all \
        --trec_test_file TREC.test.all --num_threads 1 --output_json benchmarks/results/few_labels_setfit.json

Rows are drawn as `few_labels.py` draws them: 8, 16 and 64 of each class for training, up to 1,000 others, or those of
the test file, to measure on. setfit trains as in its paper (Tunstall et al. 2022): 20 iterations, 40 pairs a row, one
epoch of batches of 16 pairs, then a logistic regression. Both cut texts to 64 tokens. Seconds are those of training,
without loading. Differences are paired by draw. Pooled is the mean over the cells, with Welch's degrees of
freedom. What --output_json holds already is not measured again.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from few_labels import draw, measure, read
from scipy.stats import t as student_t
from setfit import SetFitModel, Trainer, TrainingArguments
from turns import build_parser, write_results

from finetune.data.embedded import find_embedded_model

DRAWS = {8: 10, 16: 10, 64: 3}


def measure_setfit(splits: dict[str, pd.DataFrame], seed: int, num_threads: int) -> dict[str, float]:
    """Train setfit once; the seconds are those of the training."""
    torch.set_num_threads(num_threads)
    names = sorted(set(splits["train"]["label"]))
    model = SetFitModel.from_pretrained(str(find_embedded_model()), labels=names)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder, batch_size=16, num_epochs=1, num_iterations=20, max_length=64, seed=seed,
            report_to="none", show_progress_bar=False,
        )  # fmt: skip
        rows = Dataset.from_pandas(splits["train"][["text", "label"]], preserve_index=False)
        trainer = Trainer(model=model, args=settings, train_dataset=rows)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    test = splits["test"]
    right = [str(found) == label for found, label in zip(model.predict(list(test["text"])), test["label"], strict=True)]
    return {"test_accuracy": 100 * sum(right) / len(right), "train_seconds": seconds}


def find_differences(turns: list[dict[str, dict[str, float]]]) -> list[float]:
    """Return what `contrastive` is ahead by, in points, of each draw."""
    return [turn["contrastive"]["test_accuracy"] - turn["setfit"]["test_accuracy"] for turn in turns]


def pool(cells: list[dict[str, Any]]) -> dict[str, float]:
    """Compute the mean difference over the cells and its 95 % interval."""
    differences = [find_differences(cell["turns"]) for cell in cells]
    variances = [statistics.variance(one) / len(one) / len(cells) ** 2 for one in differences]
    freedom = sum(variances) ** 2 / sum(
        variance**2 / (len(one) - 1) for variance, one in zip(variances, differences, strict=True)
    )
    mean, half = statistics.fmean(map(statistics.fmean, differences)), sum(variances) ** 0.5
    half *= float(student_t.ppf(0.975, freedom))
    return {"difference": mean, "low": mean - half, "high": mean + half}


def describe(cell: dict[str, Any]) -> str:
    """Write what a cell has found."""
    turns, differences = cell["turns"], find_differences(cell["turns"])
    accuracy = [statistics.fmean(turn[name]["test_accuracy"] for turn in turns) for name in ("contrastive", "setfit")]
    seconds = [statistics.median(turn[name]["train_seconds"] for turn in turns) for name in ("contrastive", "setfit")]
    half = student_t.ppf(0.975, len(turns) - 1) * statistics.stdev(differences) / len(turns) ** 0.5
    mean = statistics.fmean(differences)
    shown = f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"
    ratio = statistics.median(turn["contrastive"]["train_seconds"] / turn["setfit"]["train_seconds"] for turn in turns)
    return (
        f"{cell['data']:<5}{cell['per_class']:>5}{accuracy[0]:>8.1f}{accuracy[1]:>8.1f}{shown:>24}"
        f"{seconds[0]:>9.1f}{seconds[1]:>9.1f}{ratio:>7.2f}"
    )


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser: argparse.ArgumentParser = build_parser(__doc__)
    parser.set_defaults(turns=10)
    parser.add_argument("--mr_file", required=True)
    parser.add_argument("--trec_train_file", required=True)
    parser.add_argument("--trec_test_file", required=True)
    options = parser.parse_args(argv)
    data = {
        "MR": (read(options.mr_file), None),
        "TREC": (read(options.trec_train_file), read(options.trec_test_file)),
    }
    cells = [{"data": name, "per_class": per_class, "turns": []} for per_class in DRAWS for name in ("MR", "TREC")]
    file = Path(options.output_json) if options.output_json else None
    if file is not None and file.exists():  # go on where it was cut off
        cells = json.loads(file.read_text())["cells"]
    print(
        f"{'data':<5}{'each':>5}{'ours':>8}{'setfit':>8}{'difference':>24}{'seconds':>9}{'setfit':>9}{'ratio':>7}",
        flush=True,
    )
    for cell in cells:
        train, test = data[cell["data"]]
        for seed in range(len(cell["turns"]), min(DRAWS[cell["per_class"]], options.turns)):
            splits = draw(train, test, cell["per_class"], seed)
            ours = measure(splits, "contrastive", seed, options.num_threads)
            theirs = measure_setfit(splits, seed, options.num_threads)
            cell["turns"].append({"contrastive": ours, "setfit": theirs})
            write_results(options.output_json, options, {"cells": cells})
        print(describe(cell), flush=True)
    pooled = pool(cells)
    print(f"pooled {pooled['difference']:+.2f} ({pooled['low']:+.2f} to {pooled['high']:+.2f})")
    write_results(options.output_json, options, {"cells": cells, "pooled": pooled})


if __name__ == "__main__":
    main()
