"""Training on more text than memory should hold: how much does a process grow, and does it resume exactly?

    python benchmarks/streaming.py --output_json benchmarks/results/streaming.json

Writes a gigabyte of texts, each the beginning of one embedded review and the end of another, as Parquet shards, and
trains a TextCNN on them with `--streaming`: once undisturbed, once killed in the middle and started again. Prints the
resident memory after the first hundred steps, the most that it reached afterwards, and whether the weights are equal.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from turns import build_parser, write_results

from finetune.data.embedded import load_embedded_reviews

RECIPE = Path(__file__).parent.parent / "recipes/classify.py"
ROWS_PER_SHARD = 50_000
WARM_UP_STEPS = 100


def write_shards(folder: Path, num_bytes: int) -> int:
    """Write shards until they hold this much text, and two small files; give the number of rows."""
    reviews = load_embedded_reviews()
    texts, labels = reviews["text"][:], np.array(reviews["label"][:])
    generator = np.random.default_rng(0)
    written = num_rows = 0
    while written < num_bytes:
        chosen = generator.integers(len(texts), size=(ROWS_PER_SHARD, 2))
        rows = [
            texts[first][: len(texts[first]) // 2] + texts[second][len(texts[second]) // 2 :]
            for first, second in chosen
        ]
        written += sum(map(len, rows))
        table = pa.table({"text": rows, "label": labels[chosen[:, 1]]})
        pq.write_table(table, folder / f"{num_rows // ROWS_PER_SHARD:03}.parquet", row_group_size=10_000)
        num_rows += len(rows)
    for name in ("validation", "test"):
        chosen = generator.choice(len(texts), size=500, replace=False)
        pq.write_table(
            pa.table({"text": [texts[row] for row in chosen], "label": labels[chosen]}),
            folder.parent / f"{name}.parquet",
        )
    return num_rows


def steps_done(run: Path) -> int:
    """Read the number of steps that a run has logged."""
    try:
        lines = (run / "history.jsonl").read_text(encoding="utf-8").splitlines()
        return max((json.loads(line).get("step", 0) for line in lines), default=0)
    except (OSError, ValueError):
        return 0


def train(command: list[str], run: Path, kill_at: int | None = None) -> list[tuple[int, int]]:
    """Run the command, and kill it after so many steps; give steps and resident bytes, twice a second."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    measured = []
    while process.poll() is None:
        steps = steps_done(run)
        try:
            measured.append((steps, psutil.Process(process.pid).memory_info().rss))
        except psutil.NoSuchProcess:
            break
        if kill_at is not None and steps >= kill_at:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.5)
    status = process.wait()
    if kill_at is None and status:
        sys.exit(f"{command} ended with status {status}")
    return measured


def hash_of(run: Path) -> str:
    """Hash the final weights."""
    return sha256((run / "model/model.safetensors").read_bytes()).hexdigest()


def main() -> None:
    """Measure and print."""
    parser = build_parser(__doc__)
    parser.add_argument("--gigabytes", type=float, default=1)
    parser.add_argument("--max_steps", type=int, default=1_000)
    parser.add_argument("--max_length", type=int, default=64)
    parser.add_argument("--step_size", type=int, default=32)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "shards").mkdir()
        num_rows = write_shards(folder / "shards", int(options.gigabytes * 1e9))
        settings: dict[str, Any] = {
            "train_file": folder / "shards",
            "validation_file": folder / "validation.parquet",
            "test_file": folder / "test.parquet",
            "method": "textcnn",
            "max_steps": options.max_steps,
            "max_length": options.max_length,
            "per_device_train_batch_size": options.step_size,
            "num_threads": options.num_threads,
            "logging_steps": 10,
            "eval_strategy": "steps",
            "save_strategy": "steps",
            "eval_steps": options.max_steps // 4,
            "save_steps": options.max_steps // 4,
        }
        flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, str(RECIPE), *flags, "--streaming", "--no_floor", "--output_dir"]
        measured = train([*command, str(folder / "straight")], folder / "straight")
        cut = folder / "cut"
        train([*command, str(cut)], cut, kill_at=options.max_steps * 5 // 8)
        train([*command, str(cut)], cut)
        equal = hash_of(cut) == hash_of(folder / "straight")
        costs = json.loads((folder / "straight/run.json").read_text(encoding="utf-8"))["costs"]
    warm = next(rss for steps, rss in measured if steps >= WARM_UP_STEPS)
    peak = max(rss for steps, rss in measured if steps >= WARM_UP_STEPS)
    print(f"{num_rows:,} rows, {options.max_steps:,} steps in {costs['train_seconds']:.0f} s")
    print(f"resident after {WARM_UP_STEPS} steps {warm / 2**20:,.0f} MiB, at most {peak / 2**20:,.0f} MiB afterwards")
    print(f"killed and resumed: weights {'equal' if equal else 'DIFFER'}")
    summary = {"num_rows": num_rows, "warm_bytes": warm, "peak_bytes": peak, "resumed_to_equal_weights": equal}
    write_results(options.output_json, options, {**summary, "train_seconds": costs["train_seconds"]})


if __name__ == "__main__":
    main()
