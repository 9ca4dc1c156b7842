"""Prediction by the toolkit against transformers' text-classification pipeline, side by side in one run.

    python benchmarks/prediction_throughput.py runs/imdb/full-seed42 --output_json benchmarks/results/prediction.json

The texts are embedded reviews, a stratified sample, cut to 512 tokens. Each turn takes its own part of them: the
toolkit all of that part, the pipeline all of it as well, once text by text, as it does by default, and once with
`batch_size=32`. Every setting loads the same saved model, in a process and with threads of its own, and is timed from
texts to labels. The labels must agree but for ties: texts whose classes are about equally probable.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import pipeline
from turns import build_parser, take_turns, write_results

from finetune.data.embedded import load_embedded_reviews
from finetune.data.split import sample_stratified
from finetune.hardware import use_processor
from finetune.inference.load import find_model_folder
from finetune.inference.predict import load_predictor
from finetune.quiet import quiet_program

OURS, ONE_BY_ONE, BATCHED = "finetune", "pipeline, one by one", "pipeline, batch_size=32"
TIE = 0.02  # a probability this close to that of the other class may fall either way in bfloat16


def measure(name: str, turn: int, options: Any) -> dict[str, Any]:
    """Predict a turn's part of the texts under one setting."""
    quiet_program()
    texts = sample_stratified(load_embedded_reviews(), options.num_texts, seed=0)["text"][turn :: options.turns]
    if name == OURS:
        use_processor(options.num_threads)
        predictor = load_predictor(options.path)
        predictor.max_tokens = options.max_tokens or predictor.max_tokens
        predictor.predict(texts[:1])
        start = time.perf_counter()
        found = [(prediction.labels[0], prediction.probabilities[0]) for prediction in predictor.predict(texts)]
    else:
        torch.set_num_threads(options.num_threads)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        classify = pipeline("text-classification", model=str(find_model_folder(options.path)), device=device)
        classify(texts[0], truncation=True)
        start = time.perf_counter()
        batch_size = 32 if name == BATCHED else 1
        found = [(one["label"], one["score"]) for one in classify(texts, truncation=True, batch_size=batch_size)]
    seconds = time.perf_counter() - start
    labels, probabilities = zip(*found, strict=True)
    return {"texts_per_second": len(texts) / seconds, "labels": labels, "probabilities": probabilities}


def summarise(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Compare speeds by their medians over turns, and the labels with those that the pipeline gives one by one."""
    medians = {name: statistics.median(turn["texts_per_second"] for turn in turns) for name, turns in results.items()}
    labels = {name: np.array([label for turn in turns for label in turn["labels"]]) for name, turns in results.items()}
    ours, theirs = labels[OURS], labels[ONE_BY_ONE]
    sure = np.array([p for turn in results[ONE_BY_ONE] for p in turn["probabilities"]])
    differ = ours != theirs
    ties = differ & (np.abs(sure - 0.5) <= TIE)
    return {
        "texts_per_second": medians,
        "ratios": {name: medians[OURS] / median for name, median in medians.items()},
        "num_texts": len(ours),
        "labels_that_differ": int(differ.sum()),
        "of_them_ties": int(ties.sum()),
    }


def build_options() -> argparse.ArgumentParser:
    """Declare the flags."""
    parser = build_parser(__doc__)
    parser.add_argument("path", help="a run directory or model folder of a full model on the reviews")
    parser.add_argument("--num_texts", type=int, default=2_000)
    parser.add_argument("--max_tokens", type=int, help="computed at once by the toolkit, if not its default")
    return parser


def main() -> None:
    """Measure and print."""
    options = build_options().parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], int(options.measure[1]), options)))
        return

    results = take_turns(__file__, [OURS, ONE_BY_ONE, BATCHED], options.turns)
    summary = summarise(results)
    print(f"\n{options.num_threads} threads, {summary['num_texts']} texts")
    for name, median in summary["texts_per_second"].items():
        print(f"{name:<28} {median:7.1f} texts/s  finetune is {summary['ratios'][name]:5.2f}x")
    print(f"{summary['labels_that_differ']} labels differ, {summary['of_them_ties']} of them within {TIE} of a tie")
    for turns in results.values():
        for turn in turns:
            del turn["labels"], turn["probabilities"]
    write_results(options.output_json, options, {**summary, "turns_measured": results})


if __name__ == "__main__":
    main()
