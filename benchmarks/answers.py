"""Whether answers can be acted on: calibration, sets of labels and silence, on rows that no model was trained on.

    python benchmarks/answers.py --mr_file rt-polarity.all --trec_train_file TREC.train.all \
        --trec_test_file TREC.test.all --num_threads 1 --output_json benchmarks/results/answers.json

Each method is trained once on each data set, with its defaults, on 2,000 rows; 2,500 others are left aside. These are
divided at random, 200 times for silence and calibration and 20 times for sets: half of them stands for the validation
split, on which everything is fitted, the other half for new texts. Log losses are compared text by text; the intervals
are Student's over the new texts of the first division. Beside the calibration errors stands that of labels drawn by the
probabilities themselves, which no model of as many rows goes below. The temperature is fitted on 60 and 200 rows too,
and how often it makes the log loss of new texts significantly worse is counted. MR and TREC are cut to 64 tokens, the
embedded reviews to 128. --logits_dir keeps the models' answers, from which everything is then computed anew.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from few_labels import read
from scipy.special import log_softmax
from scipy.stats import t as student_t
from sklearn.model_selection import train_test_split
from turns import build_parser, write_results

import finetune
from finetune.data.embedded import load_embedded_reviews
from finetune.decisions.calibration import expected_calibration_error, fit_temperature
from finetune.decisions.rules import DecisionRules, HeldOut, Wishes, fit_rules
from finetune.tasks import SINGLE_LABEL, Task

METHODS = ["tfidf", "embeddings", "textcnn", "lora", "full"]
MAX_LENGTH = {"MR": 64, "TREC": 64, "reviews": 128}
NUM_TRAIN, NUM_ASIDE = 2_000, 2_500
FEWEST_OF_A_CLASS = 50  # validation rows, from which on sets of each class by itself are judged
DIVISIONS, DIVISIONS_OF_SETS = 200, 20
FEW_ROWS = (60, 200)
COVERAGE = 0.9
PRECISIONS = (0.8, 0.9, 0.95)


def train(rows: pd.DataFrame, method: str, max_length: int, num_threads: int) -> HeldOut:
    """Train once, and return the logits and labels of the rows that were left aside."""
    train, aside = train_test_split(rows, test_size=NUM_ASIDE, stratify=rows["label"], random_state=0)
    train = train.sample(min(NUM_TRAIN, len(train)), random_state=0)
    with tempfile.TemporaryDirectory() as folder:
        run = finetune.train(
            train, test=aside, method=method, output_dir=Path(folder) / "run", max_length=max_length, floor=False,
            num_threads=num_threads,
        )  # fmt: skip
        names = list(run.record.data.label_names)
        logits = run.classifier.compute_logits(aside["text"].tolist())[0]
    return HeldOut(logits, aside["label"].astype(str).map(names.index).to_numpy())


def divide(aside: HeldOut, seed: int) -> tuple[HeldOut, HeldOut]:
    """Divide rows at random into two halves."""
    order = np.random.default_rng(seed).permutation(len(aside.labels))
    halves = np.array_split(order, 2)
    first, second = (HeldOut(aside.logits[half], aside.labels[half]) for half in halves)
    return first, second


def measure_calibration(aside: HeldOut) -> dict[str, Any]:
    """Compare log losses and calibration errors before and after, on new texts."""

    def losses(rows: HeldOut, temperature: float) -> np.ndarray:
        scaled = log_softmax(rows.logits.astype(np.float64) / temperature, axis=1)
        return -scaled[np.arange(len(rows.labels)), rows.labels]

    def compare(new: HeldOut, temperature: float) -> list[float]:
        change = losses(new, temperature) - losses(new, 1.0)
        half = student_t.ppf(0.975, len(change) - 1) * change.std(ddof=1) / len(change) ** 0.5
        return [float(change.mean()), float(change.mean() - half), float(change.mean() + half)]

    errors, worse = [], dict.fromkeys(FEW_ROWS, 0)
    for seed in range(DIVISIONS):
        known, new = divide(aside, seed)
        temperature = fit_temperature(known.logits, known.labels)
        before, after = (DecisionRules(temperature=one).to_probabilities(new.logits) for one in (1.0, temperature))
        draws = np.random.default_rng(seed).random((len(after), 1))
        drawn = np.minimum((draws > after.cumsum(axis=1)).sum(axis=1), after.shape[1] - 1)
        pairs = ((before, new.labels), (after, new.labels), (after, drawn))
        errors.append([expected_calibration_error(*pair) for pair in pairs])
        for size in FEW_ROWS:
            worse[size] += compare(new, fit_temperature(known.logits[:size], known.labels[:size]))[1] > 0
        if seed == 0:
            first, change, loss = temperature, compare(new, temperature), float(losses(new, 1.0).mean())
    before, after, least = np.mean(errors, axis=0).tolist()
    return {
        "temperature": first,
        "log_loss_before": loss,
        "log_loss_change": change,
        "worse_of_few_rows": {str(size): count / DIVISIONS for size, count in worse.items()},
        "ece_before": before,
        "ece_after": after,
        "ece_of_drawn_labels": least,
    }


def measure_sets(aside: HeldOut, task: Task, class_conditional: bool) -> dict[str, Any]:
    """Count how often sets hold the right label of new texts, and how many labels are in them."""
    coverages, sizes, of_classes = [], [], []
    for seed in range(DIVISIONS_OF_SETS):
        known, new = divide(aside, seed)
        temperature = fit_temperature(known.logits, known.labels)
        rules = fit_rules(Wishes(coverage=COVERAGE, class_conditional=class_conditional), known, task, temperature)
        assert rules.prediction_sets is not None
        inside = rules.prediction_sets.contain(rules.to_probabilities(new.logits.astype(np.float64)))
        holds = inside[np.arange(len(new.labels)), new.labels]
        coverages.append(holds.mean())
        sizes.append(inside.sum(axis=1).mean())
        of_classes.append([holds[new.labels == number].mean() for number in range(len(task.label_names))])
    enough = np.bincount(aside.labels, minlength=len(task.label_names)) >= 2 * FEWEST_OF_A_CLASS
    means = np.mean(of_classes, axis=0)[enough]
    return {
        "coverage": float(np.mean(coverages)),
        "size": float(np.mean(sizes)),
        "least_class": float(means.min()),
        "most_class": float(means.max()),
    }


def measure_silence(aside: HeldOut, task: Task, precision: float) -> dict[str, float]:
    """Count how often the asked precision is reached on new texts, and what share of them is answered."""
    reached, answered = [], []
    for seed in range(DIVISIONS):
        known, new = divide(aside, seed)
        temperature = fit_temperature(known.logits, known.labels)
        rules = fit_rules(Wishes(abstain=precision), known, task, temperature)
        probabilities = rules.to_probabilities(new.logits.astype(np.float64))
        decided = rules.decide(probabilities)
        given = rules.are_given(probabilities, decided)
        right = rules.are_right(decided, new.labels)[given]
        reached.append(not len(right) or right.mean() >= precision)
        answered.append(given.mean())
    return {"precision": precision, "reached": float(np.mean(reached)), "answered": float(np.mean(answered))}


def main() -> None:
    """Measure and print."""
    parser = build_parser(__doc__)
    parser.add_argument("--mr_file", required=True)
    parser.add_argument("--trec_train_file", required=True)
    parser.add_argument("--trec_test_file", required=True)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--logits_dir")
    options = parser.parse_args()
    reviews = load_embedded_reviews().to_pandas().drop_duplicates("text")
    data = {
        "MR": read(options.mr_file),
        "TREC": pd.concat([read(options.trec_train_file), read(options.trec_test_file)]).drop_duplicates("text"),
        "reviews": reviews.assign(label=reviews["label"].map({0: "negative", 1: "positive"})),
    }
    cells: list[dict[str, Any]] = []
    for name, rows in data.items():
        for method in options.methods:
            kept = Path(options.logits_dir, f"{name}-{method}.npz") if options.logits_dir else None
            if kept and kept.exists():
                with np.load(kept) as arrays:
                    aside = HeldOut(arrays["logits"], arrays["labels"])
            else:
                aside = train(rows[["text", "label"]], method, MAX_LENGTH[name], options.num_threads)
                if kept:
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    np.savez(kept, logits=aside.logits, labels=aside.labels)
            task = Task(SINGLE_LABEL, sorted(rows["label"].unique()))
            cell: dict[str, Any] = {"data": name, "method": method}
            cell["accuracy"] = float((aside.logits.argmax(axis=1) == aside.labels).mean())
            cell["calibration"] = measure_calibration(aside)
            cell["sets"], cell["class_sets"] = (measure_sets(aside, task, one) for one in (False, True))
            cell["silence"] = [measure_silence(aside, task, precision) for precision in PRECISIONS]
            cells.append(cell)
            print(describe(cell), flush=True)
            write_results(options.output_json, options, {"cells": cells})


def describe(cell: dict[str, Any]) -> str:
    """Write a cell in a line."""
    found, sets, classes = cell["calibration"], cell["sets"], cell["class_sets"]
    change, low, high = found["log_loss_change"]
    few = "/".join(f"{share:.0%}" for share in found["worse_of_few_rows"].values())
    silence = "  ".join(
        f"{one['precision']:.0%}: {one['answered']:.0%} answered, reached in {one['reached']:.1%}"
        for one in cell["silence"]
    )
    return (
        f"{cell['data']:<8}{cell['method']:<11}{cell['accuracy']:.1%}  T {found['temperature']:.2f}  log loss "
        f"{found['log_loss_before']:.3f} {change:+.4f} ({low:+.4f} to {high:+.4f})  ECE {found['ece_before']:.1%} -> "
        f"{found['ece_after']:.1%}, drawn {found['ece_of_drawn_labels']:.1%}  worse of few {few}  sets "
        f"{sets['coverage']:.1%} of {sets['size']:.2f}; by class {classes['least_class']:.1%} to "
        f"{classes['most_class']:.1%} of {classes['size']:.2f}  {silence}"
    )


if __name__ == "__main__":
    main()
