"""How much of an encoder's lead a fast model keeps that learns from its answers on texts without labels.

    python benchmarks/distillation.py --train_file rt-polarity.all --output_json benchmarks/results/distillation.json

For each seed a fifth of MR is the test split, 2,000 other sentences have labels, of which a tenth is carved for
validation, and what is left has none. The teacher, `full`, is trained on the labels; each student on the labels alone,
and on labels, unlabelled sentences and the teacher's answers (`--teacher`, `--unlabeled_file`). Gain: the second less
the first, in points of test accuracy, paired by seed, with Student's 95 % interval. Kept: the gain over the teacher's
lead, means of both. What --output_json holds already is not measured again.
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

TEST_SHARE, NUM_LABELLED = 0.2, 2_000


def measure(method: str, train: pd.DataFrame, test: pd.DataFrame, folder: Path, **settings: Any) -> dict[str, float]:
    """Train once."""
    run = finetune.train(train, method=method, test=test, output_dir=folder, max_length=64, floor=False, **settings)
    record = run.record
    return {
        "test_accuracy": 100 * record.metrics.test.accuracy,
        "train_seconds": record.costs.train_seconds,
        "texts_per_second": record.costs.texts_per_second,
    }


def measure_seed(
    sentences: pd.DataFrame, students: list[str], seed: int, num_threads: int, teacher: str
) -> dict[str, Any]:
    """Train a teacher, and every student without and with it."""
    shuffled = sentences.sample(frac=1, random_state=seed)
    num_test = round(TEST_SHARE * len(shuffled))
    test, rest = shuffled[:num_test], shuffled[num_test:]
    train, unlabeled = rest[:NUM_LABELLED], rest[NUM_LABELLED:]
    settings: dict[str, Any] = {"seed": seed, "num_threads": num_threads}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        unlabeled[["text"]].to_csv(folder / "unlabeled.csv", index=False)
        turn: dict[str, Any] = {"teacher": measure(teacher, train, test, folder / "teacher", **settings)}
        taught = {"teacher": str(folder / "teacher"), "unlabeled_file": str(folder / "unlabeled.csv")}
        for student in students:
            turn[student] = {
                "alone": measure(student, train, test, folder / student, **settings),
                "taught": measure(student, train, test, folder / f"{student}-taught", **settings, **taught),
            }
    return turn


def describe(turns: list[dict[str, Any]], student: str) -> str:
    """Write what a student has gained, and how much of the lead that is."""
    teacher = [turn["teacher"]["test_accuracy"] for turn in turns]
    alone, taught = ([turn[student][how]["test_accuracy"] for turn in turns] for how in ("alone", "taught"))
    gains = [after - before for after, before in zip(taught, alone, strict=True)]
    gain, lead = statistics.fmean(gains), statistics.fmean(teacher) - statistics.fmean(alone)
    shown = f"{gain:+.1f}"
    if len(turns) > 1:
        half = student_t.ppf(0.975, len(turns) - 1) * statistics.stdev(gains) / len(turns) ** 0.5
        shown += f" ({gain - half:+.1f} to {gain + half:+.1f})"
    speed = statistics.median(
        turn[student]["taught"]["texts_per_second"] / turn["teacher"]["texts_per_second"] for turn in turns
    )
    return (
        f"{student:<12}{statistics.fmean(alone):>8.1f}{statistics.fmean(taught):>8.1f}{statistics.fmean(teacher):>9.1f}"
        f"{shown:>24}{gain / lead:>7.0%}{speed:>7.1f} ×"
    )


def main() -> None:
    """Measure and print."""
    parser = build_parser(__doc__)
    parser.set_defaults(turns=5)
    parser.add_argument("--train_file", required=True, help="lines of 'label text', as MR has them")
    parser.add_argument("--teacher", default="full", help="the teacher's method")
    parser.add_argument("--students", nargs="+", default=["textcnn", "tfidf", "embeddings"])
    options = parser.parse_args()
    sentences = read_sentences(Path(options.train_file)).to_pandas().drop_duplicates("text")
    sentences["label"] = sentences["label"].map({0: "negative", 1: "positive"})
    turns: list[dict[str, Any]] = []
    file = Path(options.output_json) if options.output_json else None
    if file is not None and file.exists():
        turns = json.loads(file.read_text())["turns_of_seeds"]
    for seed in range(len(turns), options.turns):
        turns.append(measure_seed(sentences, options.students, seed, options.num_threads, options.teacher))
        write_results(options.output_json, options, {"turns_of_seeds": turns})
        print(f"{'':<12}{'alone':>8}{'taught':>8}{'teacher':>9}{'gain':>24}{'kept':>7}{'speed':>9}")
        for student in options.students:
            print(describe(turns, student), flush=True)


if __name__ == "__main__":
    main()
