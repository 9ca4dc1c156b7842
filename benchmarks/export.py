"""What an export costs and gives: fp32 torch, ONNX, ONNX in 8 bits, and a TextCNN, on one machine in turns.

    python benchmarks/export.py runs/full-seed42 runs/textcnn-seed42 --output_json benchmarks/results/export.json

The first run is exported twice, in float32 and in 8 bits, by `finetune export` with its default tolerance; of the
second, a TextCNN, both forms are measured too. Accuracy is that on the texts of each run's own test split (as they lie
in `predictions/`), the same texts in the same order. Every setting is timed in a process and with threads of its own,
from texts to logits, tokens included: 100 texts one by one, and batches of 32 texts of similar length.
"""

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from turns import build_parser, take_turns, write_results

from finetune.data.labels import label_matrix
from finetune.export.onnx import Examples, export, measure_cost
from finetune.hardware import use_processor
from finetune.inference.exported import find_graph, is_exported, load_exported
from finetune.inference.predict import load_predictor
from finetune.metrics import accuracy_interval
from finetune.quiet import quiet_program

NUM_COST_TEXTS = 512


def read_test(run: str, num_texts: int | None) -> Examples:
    """Read a run's test split, a random part of it that is the same for all settings."""
    columns = pq.read_table(Path(run) / "predictions/test.parquet", columns=["id", "text", "label"]).to_pydict()
    order = np.random.default_rng(0).permutation(np.argsort(columns["id"]))[:num_texts]
    texts = [columns["text"][row] for row in order]
    return Examples(texts, None, np.asarray(columns["label"])[order], f"the test split of {Path(run).name}")


def measure(path: str, run: str, options: Any) -> dict[str, Any]:
    """Measure one model: its size, accuracy, latency and throughput."""
    quiet_program()
    use_processor(options.num_threads)
    examples = read_test(run, options.num_texts)
    if is_exported(path):
        predictor: Any = load_exported(path, options.num_threads)
        size = sum(file.stat().st_size for file in find_graph(Path(path)).parent.glob("model*.onnx*"))
    else:
        predictor = load_predictor(path, torch.float32)
        size = sum(file.stat().st_size for file in Path(path, "model").glob("*.safetensors"))
    answers = []
    if options.measure[1] == "0":  # the answers are the same each turn
        logits = predictor.compute_logits(examples.texts)[0]
        labels = label_matrix(examples.labels, predictor.task)
        answers = (logits.argmax(axis=1) == labels).astype(int).tolist()
    part = Examples(examples.texts[:NUM_COST_TEXTS], None, examples.labels[:NUM_COST_TEXTS], examples.source)
    return {"bytes": size, **measure_cost(predictor, part), "right": answers}


def main() -> None:
    """Export, measure and print."""
    parser = build_parser(__doc__)
    parser.add_argument("encoder", help="a run directory of an encoder")
    parser.add_argument("textcnn", nargs="?", help="a run directory of a TextCNN on the same data")
    parser.add_argument("--num_texts", type=int, help="texts of the test split to measure accuracy on (default: all)")
    parser.add_argument(
        "--max_samples", type=int, help="validation texts that each export is checked on (default: all)"
    )
    parser.add_argument("--exports", help="folder for the exports; kept, and used if they are there")
    options = parser.parse_args()
    if options.measure:
        path, run = options.measure[0].partition("=")[2].split(":")
        print(json.dumps(measure(path, run, options)))
        return
    workplace = Path(options.exports or tempfile.mkdtemp(prefix="exports-"))
    settings = {"fp32 torch": (options.encoder, options.encoder), "ONNX": (str(workplace / "onnx"), options.encoder),
                "ONNX int8": (str(workplace / "int8"), options.encoder)}  # fmt: skip
    if options.textcnn:
        settings["TextCNN, fp32 torch"] = (options.textcnn, options.textcnn)
        settings["TextCNN, ONNX"] = (str(workplace / "textcnn"), options.textcnn)

    quiet_program()
    use_processor(options.num_threads)
    checks = {}
    for name, (folder, run) in settings.items():
        if folder == run:
            continue
        if not is_exported(folder):
            export(run, folder, int8="int8" in name, max_samples=options.max_samples)
        checks[name] = json.loads((Path(folder) / "export.json").read_text())["measured"]
    turns = take_turns(__file__, [f"{name}={path}:{run}" for name, (path, run) in settings.items()], options.turns)
    table = {}
    for key, measured in turns.items():
        name = key.partition("=")[0]
        right = measured[0]["right"]
        accuracy = sum(right) / len(right)
        names = ("bytes", "latency_p50_seconds", "latency_p95_seconds", "texts_per_second")
        table[name] = {
            **{one: statistics.median(turn[one] for turn in measured) for one in names},
            "accuracy": accuracy,
            "accuracy_interval": accuracy_interval(accuracy, len(right)),
        }
        for turn in measured:
            del turn["right"]
    base = table["fp32 torch"]
    print(f"\n{options.num_threads} threads, {len(right)} test texts\n")
    print("| | MB | test accuracy | latency p50 | p95 | texts/s | of fp32 torch |\n|---|---|---|---|---|---|---|")
    for name, row in table.items():
        row["ratio"] = row["texts_per_second"] / base["texts_per_second"]
        low, high = row["accuracy_interval"]
        print(
            f"| {name} | {row['bytes'] / 1e6:.1f} | {row['accuracy']:.1%} ({low:.1%} to {high:.1%}) | "
            f"{1e3 * row['latency_p50_seconds']:.1f} ms | {1e3 * row['latency_p95_seconds']:.1f} ms | "
            f"{row['texts_per_second']:.1f} | {row['ratio']:.2f} × |"
        )
    write_results(
        options.output_json,
        options,
        {
            "num_texts": len(right),
            "table": table,
            "on_validation": checks,
            "turns_measured": {key.partition("=")[0]: measured for key, measured in turns.items()},
        },
    )


if __name__ == "__main__":
    main()
