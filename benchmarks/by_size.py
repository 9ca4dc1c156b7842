"""Which method to take for how many labelled rows: the table of `docs/reference/methods.md`.

    python benchmarks/by_size.py --mr_file rt-polarity.all --trec_train_file TREC.train.all \
        --trec_test_file TREC.test.all --num_threads 1 --output_json benchmarks/results/by_size.json

For each number of rows, data set and draw, as many rows are drawn, each class at its share, and up to 1,000 others, or
those of the test file, to measure on; 60 more are the validation split, so few that no method chooses by it. MR and
TREC are cut to 64 tokens, the embedded reviews to 128. All methods have their defaults and see the same rows;
differences from the best are paired by draw, with Student's 95 % intervals. What --output_json holds already is not
measured again, so that the hours that it takes can be divided.
"""

import json
import statistics
from pathlib import Path
from typing import Any

import pandas as pd
from few_labels import VALIDATION_SIZE, measure, read
from scipy.stats import t as student_t
from sklearn.model_selection import train_test_split
from turns import build_parser, write_results

from finetune.data.embedded import load_embedded_reviews

TEST_SIZE = 1_000
MAX_LENGTH = {"MR": 64, "TREC": 64, "reviews": 128}
METHODS = ["tfidf", "embeddings", "contrastive", "textcnn", "lora", "full"]
MOST_ROWS = {"contrastive": 1_000}  # beyond, it is no longer what it is for


def draw(data: tuple[pd.DataFrame, pd.DataFrame | None], num_rows: int, seed: int) -> dict[str, pd.DataFrame] | None:
    """Draw the splits; None if there are too few rows."""
    rows, test = data
    if len(rows) < num_rows + VALIDATION_SIZE + (TEST_SIZE if test is None else 0):
        return None
    train, rest = train_test_split(rows, train_size=num_rows, stratify=rows["label"], random_state=seed)
    rest = rest.sample(frac=1, random_state=seed)
    if test is None:
        test, rest = rest[:TEST_SIZE], rest[TEST_SIZE:]
    return {"train": train, "validation": rest[:VALIDATION_SIZE], "test": test}


def show(cell: dict[str, Any]) -> str:
    """Write a cell: mean accuracies, differences from the best with their intervals, and seconds."""
    turns = cell["turns"]
    means = {name: statistics.fmean(turn[name]["test_accuracy"] for turn in turns) for name in turns[0]}
    best = max(means, key=means.__getitem__)
    lines = []
    for name, mean in means.items():
        differences = [turn[name]["test_accuracy"] - turn[best]["test_accuracy"] for turn in turns]
        shown = ""
        if name != best and len(turns) > 1:
            half = student_t.ppf(0.975, len(turns) - 1) * statistics.stdev(differences) / len(turns) ** 0.5
            centre = statistics.fmean(differences)
            shown = f"{centre:+.1f} ({centre - half:+.1f} to {centre + half:+.1f})"
        seconds = statistics.median(turn[name]["train_seconds"] for turn in turns)
        lines.append(f"{cell['data']:<9}{cell['num_rows']:>6} {name:<13}{mean:>7.1f}{shown:>26}{seconds:>9.1f}")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = build_parser(__doc__)
    parser.add_argument("--mr_file", required=True)
    parser.add_argument("--trec_train_file", required=True)
    parser.add_argument("--trec_test_file", required=True)
    parser.add_argument("--num_rows", type=int, nargs="+", default=[16, 128, 1_000, 10_000])
    parser.add_argument("--data", nargs="+", choices=list(MAX_LENGTH), default=list(MAX_LENGTH))
    options = parser.parse_args()
    reviews = load_embedded_reviews().to_pandas().drop_duplicates("text")
    data: dict[str, tuple[pd.DataFrame, pd.DataFrame | None]] = {
        "MR": (read(options.mr_file), None),
        "TREC": (read(options.trec_train_file), read(options.trec_test_file)),
        "reviews": (reviews.assign(label=reviews["label"].map({0: "negative", 1: "positive"})), None),
    }
    file = Path(options.output_json) if options.output_json else None
    cells: list[dict[str, Any]] = json.loads(file.read_text())["cells"] if file is not None and file.exists() else []
    for num_rows in options.num_rows:
        for name in options.data:
            kept = [cell for cell in cells if (cell["data"], cell["num_rows"]) == (name, num_rows)]
            cell = kept[0] if kept else {"data": name, "num_rows": num_rows, "turns": []}
            for seed in range(options.turns):
                splits = draw(data[name], num_rows, seed)
                if splits is None:
                    break
                if seed == len(cell["turns"]):
                    cell["turns"].append({})
                if not kept and cell not in cells:
                    cells.append(cell)
                for method in METHODS:
                    if method in cell["turns"][seed] or num_rows > MOST_ROWS.get(method, num_rows):
                        continue
                    found = measure(splits, method, seed, options.num_threads, MAX_LENGTH[name])
                    cell["turns"][seed][method] = found
                    write_results(options.output_json, options, {"cells": cells})
            if cell["turns"]:
                print(show(cell), flush=True)


if __name__ == "__main__":
    main()
