"""Which part of a long text to keep: head, tail, head and tail, or all of it in windows; on reviews, at 128 tokens.

    python benchmarks/truncation.py --output_json benchmarks/results/truncation.json

Fine-tunes the embedded encoder on 3,000 reviews with each strategy, one run a seed, through the recipe itself, and
measures each saved model, reloaded, on the same 1,500 test reviews. Windows share a quarter of their tokens. The
intervals are Student's, over seeds, of the mean and of the paired difference from the head.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from scipy.stats import t as student_t
from turns import build_parser, take_turns, write_results

STRATEGIES = {
    "head": ["--truncation", "head"],
    "tail": ["--truncation", "tail"],
    "head+tail": ["--truncation", "head+tail"],
    "window, mean": ["--truncation", "window", "--window_pooling", "mean"],
}
RECIPE = Path(__file__).parent.parent / "recipes/imdb.py"


def measure(name: str, seed: int, options: Any) -> dict[str, float]:
    """Run the recipe once."""
    with tempfile.TemporaryDirectory() as folder:
        words = {
            "max_length": options.max_length,
            "max_train_samples": options.max_train_samples,
            "max_eval_samples": options.max_eval_samples,
            "num_train_epochs": options.num_train_epochs,
            "num_threads": options.num_threads,
            "seed": seed,
            "output_dir": f"{folder}/run",
        }
        flags = [word for setting, value in words.items() for word in (f"--{setting}", str(value))]
        command = [sys.executable, str(RECIPE), *flags, *STRATEGIES[name], "--no_floor"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        record = json.loads(Path(f"{folder}/run/run.json").read_text(encoding="utf-8"))
    costs = record["costs"]
    return {
        "test_accuracy": 100 * record["metrics"]["test"]["accuracy"],
        "train_seconds": costs["train_seconds"],
        "texts_per_second": costs["texts_per_second"],
    }


def interval(values: list[float]) -> tuple[float, float, float]:
    """Return the mean and its 95 % interval by Student's t."""
    mean = statistics.mean(values)
    half = float(student_t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half


def main() -> None:
    """Measure and print."""
    parser = build_parser(__doc__)
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--max_train_samples", type=int, default=3_000)
    parser.add_argument("--max_eval_samples", type=int, default=1_500)
    parser.add_argument("--num_train_epochs", type=float, default=1)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], int(options.measure[1]), options)))
        return
    results = take_turns(__file__, list(STRATEGIES), options.turns)
    accuracies = {name: [turn["test_accuracy"] for turn in turns] for name, turns in results.items()}
    print(f"\n{options.turns} seeds, {options.max_train_samples:,} reviews, {options.max_length} tokens")
    for name, values in accuracies.items():
        mean, low, high = interval(values)
        line = f"{name:<16} {mean:.1f} % ({low:.1f} to {high:.1f})"
        if name != "head":
            differences = [ours - head for ours, head in zip(values, accuracies["head"], strict=True)]
            line += "   against head {:+.1f} ({:+.1f} to {:+.1f})".format(*interval(differences))
        print(line)
    write_results(options.output_json, options, {"test_accuracy": accuracies, "turns_measured": results})


if __name__ == "__main__":
    main()
