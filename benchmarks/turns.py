"""Settings that take turns, each measured in a process of its own, so that none warms memory or caches for another."""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune.hardware import default_num_threads, describe_hardware

__all__ = ["build_parser", "take_turns", "write_results"]


def build_parser(description: str | None) -> argparse.ArgumentParser:
    """Declare the flags that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3, help="times that each setting is measured")
    parser.add_argument("--num_threads", type=int, default=default_num_threads(), help="threads of every setting")
    parser.add_argument("--output_json", help="write settings, machine and measurements to this file")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)  # what a process of this script measures
    return parser


def take_turns(script: str, names: Sequence[str], turns: int) -> dict[str, list[dict[str, Any]]]:
    """Run `script --measure NAME TURN` with this process's own flags for each name, in turns.

    Returns:
        For each name what its processes printed as their last line: a JSON object.
    """
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for turn in range(turns):
        for name in names:
            command = [sys.executable, script, *sys.argv[1:], "--measure", name, str(turn)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results[name].append(json.loads(done.stdout.splitlines()[-1]))
            shown = "  ".join(f"{key} {value:.4g}" for key, value in results[name][-1].items() if _is_number(value))
            print(f"turn {turn + 1}  {name:<28} {shown}", flush=True)
    return results


def write_results(path: str | None, options: argparse.Namespace, results: dict[str, Any]) -> None:
    """Keep results with the date, the machine and the settings."""
    if path is None:
        return
    settings = {name: value for name, value in vars(options).items() if name not in ("measure", "output_json")}
    for name, value in settings.items():
        if isinstance(value, str) and Path(value).exists():
            settings[name] = Path(value).name  # where it lies is this machine's affair
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": describe_hardware(),
        "settings": settings,
        **results,
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
