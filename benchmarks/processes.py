"""Two processes with one thread each against one process with two threads, side by side in one run.

    python benchmarks/processes.py --output_json benchmarks/results/processes.json

Both fine-tune the embedded encoder on the same embedded reviews in the same steps, each started by `accelerate launch`,
in turns. Prints the tokens per second of training over all processes, and the efficiency: the second over the first.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from turns import build_parser, take_turns, write_results

from finetune.data.embedded import load_embedded_reviews
from finetune.data.split import sample_stratified

ROOT = Path(__file__).parent.parent
ONE, TWO = "1 process, 2 threads", "2 processes, 1 thread each"
FILES = {ONE: "cpu.yaml", TWO: "cpu_two_processes.yaml"}


def measure(name: str, turn: int, options: Any) -> dict[str, float]:
    """Train once, in a folder of its own."""
    num_processes = 1 if name == ONE else 2
    rows = options.max_steps * options.step_size
    reviews = sample_stratified(load_embedded_reviews(), rows + 200, seed=turn).shuffle(seed=turn)
    with tempfile.TemporaryDirectory() as temporary:
        parts = {
            "train": range(rows),
            "validation": range(rows, rows + 100),
            "test": range(rows + 100, rows + 200),
        }
        for part, chosen in parts.items():
            reviews.select(chosen).to_parquet(f"{temporary}/{part}.parquet")
        settings: dict[str, Any] = {
            **{f"{part}_file": f"{temporary}/{part}.parquet" for part in parts},
            "method": "full",
            "max_length": options.max_length,
            "max_steps": options.max_steps,
            "per_device_train_batch_size": options.step_size // num_processes,
            "num_threads": 2 // num_processes,
            "eval_strategy": "no",
            "save_strategy": "no",
            "load_best_model_at_end": "false",
            "output_dir": f"{temporary}/run",
        }
        flags = [word for flag, value in settings.items() for word in (f"--{flag}", str(value))]
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file"]
        command = [*launcher, str(ROOT / "accelerate_configs" / FILES[name]), str(ROOT / "recipes/classify.py")]
        subprocess.run([*command, *flags, "--no_floor"], stdout=subprocess.DEVNULL, check=True)
        costs = json.loads(Path(f"{temporary}/run/run.json").read_text(encoding="utf-8"))["costs"]
    return {name: costs[name] for name in ("tokens_per_second", "train_seconds", "train_tokens")}


def main() -> None:
    """Measure and print."""
    parser = build_parser(__doc__)
    parser.add_argument("--max_steps", type=int, default=40)
    parser.add_argument("--step_size", type=int, default=16)
    parser.add_argument("--max_length", type=int, default=256)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], int(options.measure[1]), options)))
        return

    results = take_turns(__file__, [ONE, TWO], options.turns)
    medians = {name: statistics.median(turn["tokens_per_second"] for turn in turns) for name, turns in results.items()}
    efficiency = medians[TWO] / medians[ONE]
    print(f"\n{TWO}: {medians[TWO]:,.0f} tokens/s, {efficiency:.2f} times the {medians[ONE]:,.0f} of {ONE}")
    write_results(options.output_json, options, {"efficiency": efficiency, "turns_measured": results})


if __name__ == "__main__":
    main()
