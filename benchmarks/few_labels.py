"""Methods on a few labels of each class, on the same draws, beside the vectors of the frozen encoder.

    python benchmarks/few_labels.py --train_file rt-polarity.all
    python benchmarks/few_labels.py --train_file TREC.train.all --test_file TREC.test.all

Each draw takes as many rows of each class as the training split, and up to 1,000 others, or those of the test file, as
the test split. 60 more are the validation split, which none of these methods fits or chooses by. Differences from
`embeddings` are paired by draw; their 95 % intervals are Student's.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import t as student_t
from textcnn_sentences import read_sentences
from turns import build_parser, write_results

import finetune

TEST_SIZE, VALIDATION_SIZE = 1_000, 60
REFERENCE = "embeddings"


def read(file: str) -> pd.DataFrame:
    """Read sentences, each once, with words for labels."""
    sentences = read_sentences(Path(file)).to_pandas().drop_duplicates("text")
    return sentences.assign(label=sentences["label"].map("class {}".format))


def draw(train: pd.DataFrame, test: pd.DataFrame | None, per_class: int, seed: int) -> dict[str, pd.DataFrame]:
    """Draw the three splits."""
    shuffled = train.sample(frac=1, random_state=seed)
    chosen = pd.concat([of_class[:per_class] for _, of_class in shuffled.groupby("label")])
    rest = shuffled.drop(index=chosen.index)
    others = rest[VALIDATION_SIZE:] if test is None else test.sample(frac=1, random_state=seed)
    return {"train": chosen, "validation": rest[:VALIDATION_SIZE], "test": others[:TEST_SIZE]}


def measure(
    splits: dict[str, pd.DataFrame], method: str, seed: int, num_threads: int, max_length: int = 64
) -> dict[str, float]:
    """Fit once; the seconds are those of the training."""
    with tempfile.TemporaryDirectory() as folder:
        run = finetune.train(
            splits["train"], validation=splits["validation"], test=splits["test"], method=method, seed=seed,
            output_dir=Path(folder) / "run", max_length=max_length, floor=False, num_threads=num_threads,
        )  # fmt: skip
        record = run.record
    assert record.metrics.test.accuracy is not None
    return {"test_accuracy": 100 * record.metrics.test.accuracy, "train_seconds": record.costs.train_seconds}


def describe(turns: list[dict[str, dict[str, float]]], method: str) -> str:
    """Write mean accuracy, the difference from the reference, and seconds."""
    accuracy, reference = ([turn[name]["test_accuracy"] for turn in turns] for name in (method, REFERENCE))
    differences = [one - other for one, other in zip(accuracy, reference, strict=True)]
    mean = statistics.mean(differences)
    shown = ""
    if method != REFERENCE and len(turns) > 1:
        half = student_t.ppf(0.975, len(turns) - 1) * statistics.stdev(differences) / len(turns) ** 0.5
        shown = f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"
    seconds = statistics.median(turn[method]["train_seconds"] for turn in turns)
    return f"{statistics.mean(accuracy):>9.1f}{shown:>26}{seconds:>10.1f}"


def main() -> None:
    """Measure and print."""
    parser = build_parser(__doc__)
    parser.set_defaults(turns=10)
    parser.add_argument("--train_file", required=True, help="lines of 'label text', as MR and TREC have them")
    parser.add_argument("--test_file", help="the same; without it test rows are drawn from --train_file")
    parser.add_argument("--per_class", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--methods", nargs="+", default=["contrastive", "full", "tfidf"])
    options = parser.parse_args()
    train = read(options.train_file)
    test = None if options.test_file is None else read(options.test_file)
    methods = list(dict.fromkeys([REFERENCE, *options.methods]))
    results: list[dict[str, Any]] = []
    print(f"{'a class':>8} {'method':<14}{'accuracy':>9}{f'against {REFERENCE}':>26}{'seconds':>10}", flush=True)
    for per_class in options.per_class:
        turns = []
        for seed in range(options.turns):
            splits = draw(train, test, per_class, seed)
            turns.append({method: measure(splits, method, seed, options.num_threads) for method in methods})
        results.append({"per_class": per_class, "turns": turns})
        for method in methods:
            print(f"{per_class:>8} {method:<14}{describe(turns, method)}", flush=True)
    write_results(options.output_json, options, {"results": results})


if __name__ == "__main__":
    main()
