"""What a method costs: which figures compare, how they are written, and when a busy machine has spoilt them."""

from collections.abc import Sequence

from finetune.comparison.runs import StoredRun
from finetune.run.summary import BUSY

__all__ = ["COSTS", "VERDICT_COSTS", "choose_cost", "describe_busy_machine", "format_cost"]

COSTS = {
    "train_seconds": "training time",
    "train_cpu_seconds": "CPU time",
    "tokens_per_second": "tokens/s",
    "peak_memory_bytes": "peak memory",
    "trainable_parameters": "trained parameters",
    "bytes": "stored model",
    "latency_seconds": "latency",
    "texts_per_second": "texts/s",
}
VERDICT_COSTS = {
    "train_cpu_seconds": "CPU time of training",
    "train_seconds": "training time",
    "latency_seconds": "latency",
    "bytes": "the size of the stored model",
    "peak_memory_bytes": "peak memory",
}


def choose_cost(runs: Sequence[StoredRun]) -> str:
    """Return what a busy machine changes least: CPU time; training time where a GPU worked, or it is not known."""
    is_known = all(run.cost("train_cpu_seconds") is not None for run in runs)
    has_gpu = any(run.record.environment.gpus for run in runs)
    return "train_cpu_seconds" if is_known and not has_gpu else "train_seconds"


def describe_busy_machine(runs: Sequence[StoredRun]) -> list[str]:
    """Name the runs during which other programs took turns with them, so that their seconds say too much."""
    slowdowns = [(run.record.costs.slowdown or 1.0, run) for run in runs]
    busy = [(slowdown, run) for slowdown, run in slowdowns if slowdown > BUSY]
    if not busy:
        return []
    most, run = max(busy, key=lambda one: one[0])
    return [
        f"The machine was busy with other programs during {len(busy)} of {len(runs)} runs (most in {run.directory}: "
        f"everything took about {most:.1f} times as long): wall seconds don't compare, CPU time does better."
    ]


def format_cost(name: str, value: float | None) -> str:
    """Write a cost with its unit, in three digits or so."""
    if value is None:
        return "–"
    if name in ("train_seconds", "train_cpu_seconds"):
        return _format_seconds(value)
    if name == "latency_seconds":
        return f"{_digits(value * 1000)} ms"
    if name in ("peak_memory_bytes", "bytes"):
        for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
            if value >= size:
                return f"{_digits(value / size)} {unit}"
        return f"{value:.0f} B"
    return f"{value / 1e6:.3g} M" if value >= 1e6 else _digits(value)


def _format_seconds(value: float) -> str:
    return f"{_digits(value)} s" if value < 10_000 else f"{value / 3600:.1f} h"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
