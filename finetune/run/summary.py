"""What a person reads at the end of a run, drawn from its record alone."""

import math
import shlex
from pathlib import Path

from finetune.escape import to_terminal
from finetune.run.fields import Metrics, Search, SplitRecord
from finetune.run.record import CompleteRecord
from finetune.settings.describe import describe_settings

__all__ = ["BUSY", "summarize"]

BUSY = 1.25  # times the shortest time of a short computation, on average


def summarize(record: CompleteRecord, directory: Path) -> str:
    """Write in a dozen lines what ran, what it cost, how good it is, and what to type next."""
    model, costs, environment = record.model, record.costs, record.environment
    rows = []
    for name, split in record.data.splits:
        rows.append((f"data: {name}", split.origin))
        rows.append(("", f"{split.rows:,} rows, {split.distinct_texts:,} distinct texts{_cut(split)}"))
    rows.append(("method", f"{record.method}: {model.architecture}, seed {record.seed}"))
    rows.append(("parameters", f"{model.trainable_parameters:,} trained of {model.total_parameters:,}"))
    if record.data.unlabeled is not None:
        rows.insert(-2, ("data: unlabelled", record.data.unlabeled.origin))
        rows.insert(-2, ("", f"{record.data.unlabeled.rows:,} rows"))
    if record.teacher is not None:
        teacher = f"{record.teacher.name} ({record.teacher.method})" if record.teacher.method else record.teacher.name
        rows.append(("teacher", f"{teacher}, which answered in {record.teacher.seconds:.1f} s"))
    if record.pretraining is not None:
        rows.append(("pretraining", f"{record.pretraining.task}: {record.pretraining.losses}"))
    if record.search is not None:
        rows.append(("search", _describe_search(record.search)))
    speed = "" if costs.tokens_per_second is None else f", {costs.tokens_per_second:,.0f} tokens/s"
    if costs.compile_seconds is not None:
        speed += f", {costs.compile_seconds:.0f} s of it compiling in the first step"
    cpu = "" if costs.train_cpu_seconds is None else f" ({costs.train_cpu_seconds:.1f} s of processors)"
    rows.append(("training", f"{costs.train_seconds:.1f} s{cpu}{speed}, in {environment.precision}"))
    busy = ""
    if costs.slowdown is not None and costs.slowdown > BUSY:
        busy = f"; busy with other programs, so that everything took about {costs.slowdown:.1f} times as long"
    rows.append(("machine", f"{environment.num_processes} process(es) of {environment.num_threads} thread(s){busy}"))
    before = ""
    if costs.start_memory_bytes is not None:
        before = f", {costs.start_memory_bytes / 2**30:.2f} of it before any data or model was loaded"
    rows.append(("peak memory", f"{costs.peak_memory_bytes / 2**30:.2f} GiB{before}"))
    latency = f"{costs.latency_seconds * 1000:.1f} ms for one text, {costs.texts_per_second:,.0f} texts/s in bulk"
    rows.append(("prediction", latency))
    rows.append(("reloaded", f"the saved model's logits differ by at most {record.reload.max_difference:.1e}"))
    for name, metrics in record.metrics:
        rows.append((name, _quality(metrics)))
    if record.thresholds is not None and record.thresholds.at_half is not None:
        half = record.thresholds.at_half
        chosen = sum(value != 0.5 for value in record.thresholds.values)
        rows.append(("thresholds", f"{chosen} of {len(record.thresholds.values)} chosen on validation; with all at "
                     f"one half: micro-F1 {half.micro_f1:.3f}, macro-F1 {half.macro_f1:.3f} on test"))  # fmt: skip
    if record.floor is not None:
        rows.append(("floor (test)", f"{_quality(record.floor.test)}, by TF-IDF and a linear model on whole texts"))
    rows.append(("model", str(directory / "model")))
    rows.append(("next", f'finetune predict {shlex.quote(str(directory))} "A text to classify."'))
    return "\n".join(f"{name:<16} {to_terminal(text)}" for name, text in rows)


def _describe_search(search: Search) -> str:
    return (
        f"{search.trials} trials in {search.seconds:.0f} s; best by {search.metric} on {search.judges} "
        f"({search.best:.4f}, with the defaults {search.default:.4f}): {describe_settings(search.chosen)}"
    )


def _cut(split: SplitRecord) -> str:
    if split.mean_tokens is None or split.truncated_share is None:
        return ""
    return f", {split.mean_tokens:.0f} tokens on average, {split.truncated_share:.1%} of the texts cut"


def _quality(metrics: Metrics) -> str:
    if metrics.labels_withheld:
        return f"{metrics.num_examples:,} rows predicted, not scored: their labels are withheld"
    if metrics.mae_interval is not None:
        low, high = metrics.mae_interval
        return (
            f"mean absolute error {metrics.mae:.4g} (95 % interval {low:.4g} to {high:.4g}), "
            f"R² {metrics.r2:.3f}, Spearman {metrics.spearman:.3f}"
        )
    low, high = metrics.accuracy_interval or (math.nan, math.nan)
    accuracy = f"accuracy {metrics.accuracy:.1%} (95 % interval {low:.1%} to {high:.1%})"
    if metrics.get("micro_f1") is not None:
        return f"micro-F1 {metrics.micro_f1:.3f}, macro-F1 {metrics.macro_f1:.3f}, all labels right: {accuracy}"
    return f"{accuracy}, macro-F1 {metrics.macro_f1:.3f}, MCC {metrics.mcc:.3f}"
