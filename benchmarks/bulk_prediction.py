"""Labelling a large file: how fast, in how much memory, and is every row answered once when it is killed midway?

    python benchmarks/bulk_prediction.py runs/imdb/textcnn-seed42 --output_json benchmarks/results/bulk_prediction.json

Writes a CSV file of a million sentences of the embedded reviews, each row with an id of its own, and labels it with
`finetune predict --input_file`, which is killed with SIGKILL at a random row and started again by the same command.
Prints the peak of the resident memory in each tenth of the rows, rows a second, and whether the output is the input,
row by row, with an answer to each. A random thousand of them are labelled anew in other company.
"""

import csv
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from turns import build_parser, write_results

from finetune.data.embedded import load_embedded_reviews
from finetune.hardware import use_processor
from finetune.inference.predict import load_predictor
from finetune.quiet import quiet_program

SENTENCE_ENDS = re.compile(r"(?<=[.!?])\s+|<br />")
MIN_CHARACTERS, MAX_CHARACTERS = 20, 200
NUM_ANSWERED_ANEW = 1_000
TIE = 0.02  # between the two most probable labels; in bfloat16 batches of other sizes may round otherwise


@dataclass
class Course:
    """What a process was seen to do.

    Attributes:
        samples: Rows done and resident bytes, four times a second.
        seconds: By the clock, loading of the model included.
        cpu_seconds: Of the processor, as of the last sample.
    """

    samples: list[tuple[int, int]] = field(default_factory=list)
    seconds: float = 0.0
    cpu_seconds: float = 0.0


def write_rows(path: Path, num_rows: int) -> float:
    """Write sentences, drawn at random, with ids; give their mean length in characters."""
    sentences = [
        sentence
        for review in load_embedded_reviews()["text"][:]
        for sentence in map(str.strip, SENTENCE_ENDS.split(review))
        if MIN_CHARACTERS <= len(sentence) <= MAX_CHARACTERS
    ]
    characters = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "text"])
        for number, chosen in enumerate(np.random.default_rng(0).integers(len(sentences), size=num_rows)):
            writer.writerow([f"row-{number:08}", sentences[chosen]])
            characters += len(sentences[chosen])
    return characters / num_rows


def rows_done(target: Path) -> int:
    """Read how many rows of an unfinished output count."""
    try:
        *_, last = (
            (target.with_name(f"{target.name}.unfinished") / "journal.jsonl")
            .read_text(encoding="utf-8")
            .split("\n")[:-1]
        )
        return json.loads(last).get("rows", 0)
    except (OSError, ValueError):  # there is none, or no line of it
        return 0


def predict(command: list[str], target: Path, kill_at: int | None = None) -> Course:
    """Run the command, and kill it once so many rows are done."""
    course, start, done = Course(), time.monotonic(), 0
    process = subprocess.Popen([*command, str(target)], stdout=subprocess.DEVNULL)
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        done = max(done, rows_done(target))  # the count is gone once the output is whole
        try:
            course.samples.append((done, watched.memory_info().rss))
            course.cpu_seconds = sum(watched.cpu_times()[:2])
        except psutil.NoSuchProcess:
            break
        if kill_at is not None and done >= kill_at:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.25)
    status = process.wait()
    course.seconds = time.monotonic() - start
    if kill_at is None and status:
        sys.exit(f"{command} ended with status {status}")
    return course


def check(source: Path, target: Path, run: str) -> dict[str, int]:
    """Compare output with input, row by row; give what is wrong."""
    predictor = load_predictor(run)
    names = [f"probability_{name}" for name in predictor.task.label_names]
    chosen = set(random.Random(0).sample(range(_count_rows(source)), NUM_ANSWERED_ANEW))
    texts, labels, gaps = [], [], []
    found = {"rows": 0, "out_of_place": 0, "without_answer": 0}
    with source.open(encoding="utf-8", newline="") as before, target.open(encoding="utf-8", newline="") as after:
        for row, (given, answered) in enumerate(zip(csv.DictReader(before), csv.DictReader(after), strict=True)):
            probabilities = [float(answered[name]) for name in names]
            predicted = float(answered.get(f"probability_{answered['predicted_label']}", "nan"))
            is_answered = predicted == max(probabilities) and abs(sum(probabilities) - 1) < 1e-4
            found["rows"] += 1
            found["out_of_place"] += any(given[name] != answered[name] for name in given)
            found["without_answer"] += not is_answered
            if row in chosen:
                texts.append(answered["text"])
                labels.append(answered["predicted_label"])
                gaps.append(np.ptp(np.sort(probabilities)[-2:]))
    anew = [prediction.labels[0] for prediction in predictor.predict(texts)]
    differ = [gap for label, other, gap in zip(labels, anew, gaps, strict=True) if label != other]
    return {
        **found,
        "answered_anew": len(anew),
        "differ": len(differ),
        "differ_beyond_a_tie": sum(g > 0.02 for g in differ),
    }


def _count_rows(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file) - 1  # no sentence holds a line feed


def main() -> None:
    """Measure and print."""
    parser = build_parser(__doc__)
    parser.add_argument("run", help="a run directory or model folder of single texts, one class of several")
    parser.add_argument("--num_rows", type=int, default=1_000_000)
    options = parser.parse_args()
    quiet_program()
    use_processor(options.num_threads)
    kill_at = random.randrange(options.num_rows // 5, options.num_rows * 4 // 5)
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary, "rows.csv")
        mean_characters = write_rows(source, options.num_rows)
        command = [sys.executable, "-m", "finetune.cli", "predict", options.run, "--input_file", str(source)]
        command += ["--num_threads", str(options.num_threads), "--output_file"]
        target = Path(temporary, "labelled.csv")
        before = predict(command, target, kill_at)
        after = predict(command, target)
        checked = check(source, target, options.run)
    peaks = [0] * 10
    for done, rss in before.samples + after.samples:
        tenth = min(9, 10 * done // options.num_rows)
        peaks[tenth] = max(peaks[tenth], rss)
    killed_after = before.samples[-1][0]
    seconds, cpu_seconds = before.seconds + after.seconds, before.cpu_seconds + after.cpu_seconds
    print(
        f"{options.num_rows:,} rows of {mean_characters:.0f} characters in {seconds:.0f} s, both loadings of the model "
        f"included: {options.num_rows / seconds:,.0f} a second, {options.num_rows / cpu_seconds:,.0f} a second of "
        f"processor time; killed after {killed_after:,} rows"
    )
    print(f"peak memory in each tenth, MiB: {', '.join(f'{peak / 2**20:.0f}' for peak in peaks)}")
    print(", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in checked.items()))
    results = {
        "mean_characters": mean_characters,
        "killed_after_rows": killed_after,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "rows_per_second": options.num_rows / seconds,
        "rows_per_cpu_second": options.num_rows / cpu_seconds,
        "peak_bytes_by_tenth": peaks,
        "checked": checked,
    }
    write_results(options.output_json, options, results)
    wrong = checked["out_of_place"] + checked["without_answer"] + checked["differ_beyond_a_tie"]
    sys.exit(0 if checked["rows"] == options.num_rows and not wrong else 1)


if __name__ == "__main__":
    main()
