"""Ten ways to fit a classifier on the same sentences: accuracy, what trains, seconds, bytes of what is saved.

    python benchmarks/methods.py --train_file rt-polarity.all --output_json benchmarks/results/methods.json

Each method runs through `recipes/classify.py` with its own default settings, once a seed, on the same splits: 2,500
test sentences and a stratified sample of the rest to train on. The intervals are Student's, over seeds: of the mean,
and of the paired difference from full fine-tuning. They hold what another seed would change, not what other test
sentences would.
"""

import csv
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from textcnn_sentences import read_sentences
from truncation import interval
from turns import build_parser, take_turns, write_results

from finetune.data.split import carve_splits, drop_duplicates

METHODS = ["full", "last_layers", "head", "bitfit", "lora", "dora", "pissa", "adalora", "ia3", "prompt", "prefix",
           "textcnn", "tfidf"]  # fmt: skip
TEST_SIZE = 2_500
RECIPE = Path(__file__).parent.parent / "recipes/classify.py"


def write_splits(path: str, folder: Path) -> None:
    """Write train.csv and test.csv: the same rows in every run."""
    sentences = drop_duplicates(read_sentences(Path(path)))
    for name, split in carve_splits(sentences, {"test": TEST_SIZE}, seed=0).items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows(zip(split["text"], split["label"], strict=True))


def measure(name: str, seed: int, options: Any) -> dict[str, float]:
    """Run the recipe once."""
    with tempfile.TemporaryDirectory() as folder:
        write_splits(options.train_file, Path(folder))
        words = {
            "method": name,
            "train_file": f"{folder}/train.csv",
            "test_file": f"{folder}/test.csv",
            "max_train_samples": options.max_train_samples,
            "max_length": options.max_length,
            "num_threads": options.num_threads,
            "seed": seed,
            "output_dir": f"{folder}/run",
        }
        if name not in ("head", "textcnn", "tfidf"):  # these have their own
            words["num_train_epochs"] = options.num_train_epochs
        flags = [word for setting, value in words.items() for word in (f"--{setting}", str(value))]
        command = [sys.executable, str(RECIPE), *flags, "--no_floor"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        record = json.loads(Path(f"{folder}/run/run.json").read_text(encoding="utf-8"))
    return {
        "test_accuracy": 100 * record["metrics"]["test"]["accuracy"],
        "trainable_share": record["model"]["trainable_parameters"] / record["model"]["total_parameters"],
        "train_seconds": record["costs"]["train_seconds"],
        "peak_memory_bytes": record["costs"]["peak_memory_bytes"],
        "bytes": record["model"]["bytes"],
    }


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = build_parser(__doc__)
    parser.add_argument("--train_file", required=True, help="lines of 'label text', as MR has them")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--max_train_samples", type=int, default=4_000)
    parser.add_argument("--max_length", type=int, default=64)
    parser.add_argument("--num_train_epochs", type=float, default=3)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], int(options.measure[1]), options)))
        return
    results = take_turns(__file__, options.methods, options.turns)
    accuracies = {name: [turn["test_accuracy"] for turn in turns] for name, turns in results.items()}
    print("\n| method | trains | test accuracy | against full | seconds | MiB in memory | MiB saved |")
    print("|---|---|---|---|---|---|---|")
    for name, turns in results.items():
        mean, low, high = interval(accuracies[name])
        against = ""
        if name != "full" and "full" in accuracies:
            differences = [ours - full for ours, full in zip(accuracies[name], accuracies["full"], strict=True)]
            against = "{:+.1f} ({:+.1f} to {:+.1f})".format(*interval(differences))
        seconds, memory = (
            statistics.median(turn[key] for turn in turns) for key in ("train_seconds", "peak_memory_bytes")
        )
        print(
            f"| `{name}` | {turns[0]['trainable_share']:.2%} | {mean:.1f} % ({low:.1f} to {high:.1f}) | {against} "
            f"| {seconds:.0f} | {memory / 2**20:.0f} | {turns[0]['bytes'] / 2**20:.2f} |"
        )
    write_results(options.output_json, options, {"test_accuracy": accuracies, "turns_measured": results})


if __name__ == "__main__":
    main()
