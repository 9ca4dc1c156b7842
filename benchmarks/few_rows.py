"""What the defaults make of 16, 128 and 1,000 labelled rows, beside three epochs and the best checkpoint.

    python benchmarks/few_rows.py --train_file rt-polarity.all --output_json benchmarks/results/few_rows.json

For each draw as many rows of MR, half of each class, are the training file, of which a tenth is carved for validation,
and 1,000 others are the test file. "before" is what every size got once: three epochs, and the checkpoint that is best
on the carved rows. "now" is what the defaults are: enough steps, and the last checkpoint where few rows would choose.
Differences are paired by draw; their 95 % intervals are Student's.
"""

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import t as student_t
from textcnn_sentences import read_sentences
from turns import build_parser, write_results

import finetune

TEST_SIZE = 1_000
BEFORE = {"num_train_epochs": 3, "load_best_model_at_end": True}
NOW: dict[str, Any] = {}


def draw(sentences: pd.DataFrame, num_rows: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Draw training rows, half of each class, and 1,000 others to test on."""
    shuffled = sentences.sample(frac=1, random_state=seed)
    test, rest = shuffled[:TEST_SIZE], shuffled[TEST_SIZE:]
    train = pd.concat([of_class[: num_rows // 2] for _, of_class in rest.groupby("label")])
    return train.sample(frac=1, random_state=seed), test


def measure(
    train: pd.DataFrame, test: pd.DataFrame, method: str, seed: int, num_threads: int, settings: dict[str, Any]
) -> dict[str, float]:
    """Fit once; the seconds are those of the training."""
    with tempfile.TemporaryDirectory() as folder:
        run = finetune.train(
            train, method=method, test=test, output_dir=Path(folder) / "run", max_length=128, seed=seed, floor=False,
            num_threads=num_threads, **settings,
        )  # fmt: skip
        record = json.loads((run.directory / "run.json").read_text())
    return {
        "test_accuracy": 100 * record["metrics"]["test"]["accuracy"],
        "train_seconds": record["costs"]["train_seconds"],
    }


def main() -> None:
    """Measure and print."""
    parser = build_parser(__doc__)
    parser.set_defaults(turns=5)
    parser.add_argument("--train_file", required=True, help="lines of 'label text', as MR has them")
    parser.add_argument("--num_rows", type=int, nargs="+", default=[16, 128, 1_000])
    parser.add_argument("--methods", nargs="+", default=["full", "lora"])
    options = parser.parse_args()
    sentences = read_sentences(Path(options.train_file)).to_pandas().drop_duplicates("text")
    sentences["label"] = sentences["label"].map({0: "negative", 1: "positive"})
    results = []
    print(f"{'rows':>6} {'method':<8}{'before':>8}{'now':>8}{'difference':>30}{'seconds':>16}", flush=True)
    for num_rows in options.num_rows:
        for method in options.methods:
            turns = []
            for seed in range(options.turns):
                train, test = draw(sentences, num_rows, seed)
                turns.append(
                    {
                        name: measure(train, test, method, seed, options.num_threads, settings)
                        for name, settings in (("before", BEFORE), ("now", NOW))
                    }
                )
            before, now = ([turn[name]["test_accuracy"] for turn in turns] for name in ("before", "now"))
            seconds = [statistics.median(turn[name]["train_seconds"] for turn in turns) for name in ("before", "now")]
            differences = [after - earlier for after, earlier in zip(now, before, strict=True)]
            mean = statistics.mean(differences)
            half = student_t.ppf(0.975, len(turns) - 1) * statistics.stdev(differences) / len(turns) ** 0.5
            results.append({"num_rows": num_rows, "method": method, "turns": turns, "difference": mean, "half": half})
            shown = f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"
            print(
                f"{num_rows:>6} {method:<8}{statistics.mean(before):>8.1f}{statistics.mean(now):>8.1f}{shown:>30}"
                f"{seconds[0]:>8.1f}{seconds[1]:>8.1f}",
                flush=True,
            )
    write_results(options.output_json, options, {"results": results})


if __name__ == "__main__":
    main()
