"""Whether continued pretraining pays: 128 and 1,000 labelled rows, all other rows as texts without labels.

    python benchmarks/pretraining.py --mr_file rt-polarity.all --trec_train_file TREC.train.all \
        --trec_test_file TREC.test.all --output_json benchmarks/results/pretraining.json

1,000 sentences of MR, and the 500 questions of TREC's own test file, are left aside to test on. On the texts of all
other rows the encoder is trained first, once for each data set and without labels, as `--pretrain_epochs` does it. Of
these rows each draw has so many labels, in the shares of the classes; 60 more are the validation split, which none of
the methods fits or chooses by. "before" starts from the encoder as it is. Differences are paired by draw; their 95 %
intervals are Student's, and hold the draw of the labelled rows, not that of the one pretraining.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from few_labels import read
from scipy.stats import t as student_t
from sklearn.model_selection import train_test_split
from turns import build_parser, write_results

import finetune
from finetune.data.cutting import TextConfig
from finetune.engine import parse_training
from finetune.hardware import use_processor
from finetune.lookup import family_of
from finetune.pretraining.pretrain import make_encoder
from finetune.quiet import quiet_program

TEST_SIZE, VALIDATION_SIZE = 1_000, 60
MAX_LENGTH = 64


def read_data(options: argparse.Namespace) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """Read the rows of each data set, and those to test on."""
    data = {}
    if options.mr_file:
        data["MR"] = train_test_split(read(options.mr_file), test_size=TEST_SIZE, random_state=0)
    if options.trec_train_file:
        train, test = read(options.trec_train_file), read(options.trec_test_file)
        data["TREC"] = train[~train["text"].isin(test["text"])], test
    return data


def draw(rows: pd.DataFrame, num_rows: int, seed: int) -> dict[str, pd.DataFrame]:
    """Draw the rows that have labels, and others to validate on."""
    train, rest = train_test_split(rows, train_size=num_rows, stratify=rows["label"], random_state=seed)
    return {"train": train, "validation": rest.sample(VALIDATION_SIZE, random_state=seed)}


def pretrain(texts: pd.Series, epochs: float, num_threads: int, folder: Path) -> dict[str, Any]:
    """Make an encoder of all texts, and say what that took."""
    flags = f"--pretrain_epochs {epochs} --num_threads {num_threads} --dataset_name embedded"
    arguments = parse_training(flags.split())
    use_processor(num_threads)
    quiet_program()
    return make_encoder(arguments, TextConfig(MAX_LENGTH), sorted(set(texts)), folder).to_dict()


def measure(
    splits: dict[str, pd.DataFrame], test: pd.DataFrame, method: str, model: str, seed: int, num_threads: int
) -> dict[str, float]:
    """Fit once; the seconds are those of the training. No checkpoint is chosen, so none is written."""
    last = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    settings = last if family_of(method).trains_network else {}
    with tempfile.TemporaryDirectory() as folder:
        run = finetune.train(
            splits["train"], validation=splits["validation"], test=test, method=method, model=model, seed=seed,
            output_dir=Path(folder) / "run", max_length=MAX_LENGTH, floor=False, num_threads=num_threads,
            **settings,
        )  # fmt: skip
        record = run.record
    assert record.metrics.test.accuracy is not None
    return {"test_accuracy": 100 * record.metrics.test.accuracy, "train_seconds": record.costs.train_seconds}


def describe(turns: list[dict[str, dict[str, float]]]) -> str:
    """Write both mean accuracies, their difference with its interval, and the seconds of the training."""
    before, after = ([turn[name]["test_accuracy"] for turn in turns] for name in ("before", "after"))
    differences = [one - other for one, other in zip(after, before, strict=True)]
    mean, shown = statistics.mean(differences), ""
    if len(turns) > 1:
        half = student_t.ppf(0.975, len(turns) - 1) * statistics.stdev(differences) / len(turns) ** 0.5
        shown = f" ({mean - half:+.1f} to {mean + half:+.1f})"
    seconds = statistics.median(turn["after"]["train_seconds"] for turn in turns)
    difference = f"{mean:+.1f}{shown}"
    return f"{statistics.mean(before):>8.1f}{statistics.mean(after):>8.1f}{difference:>26}{seconds:>9.1f}"


def main() -> None:
    """Measure and print."""
    parser = build_parser(__doc__)
    parser.add_argument("--mr_file", help="lines of 'label text'")
    parser.add_argument("--trec_train_file", help="the same")
    parser.add_argument("--trec_test_file", help="the same; with --trec_train_file")
    parser.add_argument("--num_rows", type=int, nargs="+", default=[128, 1_000])
    parser.add_argument("--methods", nargs="+", default=["embeddings", "full"])
    parser.add_argument("--pretrain_epochs", type=float, default=1.0)
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    for name, (rows, test) in read_data(options).items():
        with tempfile.TemporaryDirectory() as folder:
            encoder = Path(folder) / "encoder"
            made = pretrain(rows["text"], options.pretrain_epochs, options.num_threads, encoder)
            say(f"{name}: {made['texts']:,} texts, {made['objective']}, loss {made['first_loss']:.3f} at first, "
                  f"{made['last_loss']:.3f} at last, {made['seconds']:.0f} s")  # fmt: skip
            say(f"{'rows':>6} {'method':<12}{'before':>8}{'after':>8}{'difference':>26}{'seconds':>9}")
            for method in options.methods:
                for num_rows in options.num_rows:
                    turns = []
                    for seed in range(options.turns):
                        splits = draw(rows, num_rows, seed)
                        models = {"before": "embedded", "after": str(encoder)}
                        turns.append(
                            {
                                when: measure(splits, test, method, model, seed, options.num_threads)
                                for when, model in models.items()
                            }
                        )
                    results.append({"data": name, "num_rows": num_rows, "method": method, "turns": turns})
                    say(f"{num_rows:>6} {method:<12}{describe(turns)}")
            results.append({"data": name, "pretraining": made})
    print("\n".join(["", *lines]))  # once more, since each run has said a page of its own
    write_results(options.output_json, options, {"results": results})


if __name__ == "__main__":
    main()
