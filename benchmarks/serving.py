"""The service under load: many clients at once on loopback, good and bad requests mixed, every answer checked.

    python benchmarks/serving.py runs/imdb/full-seed42 --output_json benchmarks/results/serving.json

`finetune serve` runs as a process of its own. Each client sends one request after the other, nine of ten good (one
to four texts of the run's validation split) and one bad; the answers are compared with those that `finetune predict`
gives. A label may differ where the probability lies within 0.02 of a tie. The clients share the machine with the
service, so its latency on a machine of its own is lower.
"""

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from turns import build_parser, write_results

from finetune.hardware import use_processor
from finetune.hub_client import CLIENT
from finetune.inference.predict import load_predictor
from finetune.quiet import quiet_program

TIE = 0.02
BAD: list[tuple[bytes, int]] = [
    (b"{not json", 400),
    (b'{"text": 3}', 422),
    (b'{"texts": []}', 422),
    (b'{"texts": ["a"], "pairs": []}', 422),
    (json.dumps({"texts": ["a"] * 257}).encode(), 413),
    (json.dumps({"text": "a" * 100_001}).encode(), 413),
]


async def send(
    client: CLIENT.AsyncClient, number: int, texts: list[str], expected: np.ndarray, until: float, found: dict[str, Any]
) -> None:
    """Send requests until the time is up, and note what came back."""
    rng = np.random.default_rng(number)
    while time.monotonic() < until:
        is_bad = rng.random() < 0.1
        if is_bad:
            body, status = BAD[rng.integers(len(BAD))]
        else:
            rows = rng.integers(len(texts), size=rng.integers(1, 5))
            body, status = json.dumps({"texts": [texts[row] for row in rows]}).encode(), 200
        start = time.perf_counter()
        response = await client.post("/predict", content=body, headers={"Content-Type": "application/json"})
        seconds = time.perf_counter() - start
        found["status"][response.status_code] += 1
        if response.status_code != status:
            found["wrong status"] += 1
        elif is_bad:
            found["wrong answers"] += set(response.json()) != {"error"}
        else:
            found["seconds"].append(seconds)
            answers = response.json()["predictions"]
            found["wrong answers"] += len(answers) != len(rows)
            for row, answer in zip(rows, answers, strict=False):
                probabilities = np.array(list(answer["probabilities"].values()))
                found["texts"] += 1
                found["difference"] = max(found["difference"], float(np.abs(probabilities - expected[row]).max()))
                sure = np.sort(expected[row])
                differs = probabilities.argmax() != expected[row].argmax()
                found["ties"] += bool(differs and sure[-1] - sure[-2] <= 2 * TIE)
                found["wrong answers"] += bool(differs and sure[-1] - sure[-2] > 2 * TIE)


async def load_service(url: str, texts: list[str], expected: np.ndarray, options: Any) -> dict[str, Any]:
    """Let all clients send for the given time."""
    found: dict[str, Any] = {"status": Counter(), "seconds": [], "difference": 0.0}
    found |= dict.fromkeys(("wrong status", "wrong answers", "ties", "texts"), 0)
    limits = CLIENT.Limits(max_connections=options.clients)
    until = time.monotonic() + options.seconds
    async with CLIENT.AsyncClient(base_url=url, limits=limits, timeout=60) as client:
        await asyncio.gather(*(send(client, at, texts, expected, until, found) for at in range(options.clients)))
    return found


def measure(options: Any) -> dict[str, Any]:
    """Serve, send and check."""
    quiet_program()
    use_processor(options.num_threads)
    served = options.serve or options.run
    table = pq.read_table(Path(options.run) / "predictions/validation.parquet", columns=["text"])
    texts = table.column("text").to_pylist()[: options.num_texts]
    expected = load_predictor(served).compute_probabilities(texts)

    command = [sys.executable, "-m", "finetune.cli", "serve", served, "--port", "0"]
    command += ["--num_threads", str(options.num_threads)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = line.split(" on ")[1].split()[0]
        found = asyncio.run(load_service(url, texts, expected, options))
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    seconds = found.pop("seconds")
    return {
        "requests": sum(found["status"].values()),
        "server_errors": sum(count for status, count in found["status"].items() if status >= 500),
        "status": {str(status): count for status, count in sorted(found.pop("status").items())},
        "wrong_answers": found["wrong answers"],
        "wrong_status": found["wrong status"],
        "labels_that_differ_at_a_tie": found["ties"],
        "max_probability_difference": found["difference"],
        "texts": found["texts"],
        "texts_per_second": found["texts"] / options.seconds,
        "latency_p50_seconds": float(np.quantile(seconds, 0.5)),
        "latency_p95_seconds": float(np.quantile(seconds, 0.95)),
        "exit_status": process.returncode,
        "standard_error": errors,
    }


def build_options() -> argparse.ArgumentParser:
    """Declare the flags."""
    parser = build_parser(__doc__)
    parser.add_argument("run", help="a run directory, whose validation texts are sent")
    parser.add_argument("--serve", help="what is served (default: the run), such as its export")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--num_texts", type=int, default=500, help="distinct texts")
    return parser


def main() -> None:
    """Measure and print."""
    options = build_options().parse_args()
    results = measure(options)
    print(json.dumps(results, indent=2))
    write_results(options.output_json, options, results)
    is_good = not results["server_errors"] and not results["wrong_answers"] and not results["wrong_status"]
    sys.exit(0 if is_good and results["exit_status"] == 0 else 1)


if __name__ == "__main__":
    main()
