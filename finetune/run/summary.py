"""What a person reads at the end of a run, drawn from its record alone."""

import math
import shlex
from pathlib import Path

from finetune.escape import to_terminal
from finetune.run.fields import AbstentionRecord, Answers, Metrics, Search, SplitRecord
from finetune.run.record import CompleteRecord
from finetune.settings.describe import describe_settings
from finetune.tasks import REGRESSION

__all__ = ["BUSY", "describe_quality", "describe_silence", "summarize"]

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
        rows.append((name, describe_quality(metrics)))
    if record.thresholds is not None and record.thresholds.at_half is not None:
        half = record.thresholds.at_half
        chosen = sum(value != 0.5 for value in record.thresholds.values)
        rows.append(("thresholds", f"{chosen} of {len(record.thresholds.values)} chosen on validation; with all at "
                     f"one half: micro-F1 {half.micro_f1:.3f}, macro-F1 {half.macro_f1:.3f} on test"))  # fmt: skip
    if record.answers is not None:
        rows += _describe_answers(record.answers, record.data.problem_type == REGRESSION)
    if record.floor is not None:
        rows.append(
            ("floor (test)", f"{describe_quality(record.floor.test)}, by TF-IDF and a linear model on whole texts")
        )
    rows.append(("model", str(directory / "model")))
    rows.append(("next", f'finetune predict {shlex.quote(str(directory))} "A text to classify."'))
    return "\n".join(f"{name:<16} {to_terminal(text)}" for name, text in rows)


def _describe_answers(answers: Answers, is_number: bool) -> list[tuple[str, str]]:
    rows = []
    calibration, silence, sets = answers.calibration, answers.abstention, answers.prediction_sets
    if calibration is not None:
        before, after = calibration.test_before, calibration.test_after
        figures = "" if before is None or after is None else (
            f"; on test log loss {before.log_loss:.3f} before and {after.log_loss:.3f} after, calibration error "
            f"{before.ece:.1%} and {after.ece:.1%}"
        )  # fmt: skip
        rows.append(("calibration", f"temperature {calibration.temperature:.2f}{figures}"))
    if silence is not None:
        rows.append(("silence", describe_silence(silence)))
    if sets is not None:
        kind = " of each class" if sets.class_conditional else ""
        line = f"asked to hold {sets.coverage:.1%}{kind}"
        if sets.test_coverage is not None and sets.test_coverage_interval is not None:
            low, high = sets.test_coverage_interval
            size = f"{sets.test_mean_size:.4g} wide" if is_number else f"{sets.test_mean_size:.2f} labels on average"
            line += f"; on test they hold {sets.test_coverage:.1%} ({low:.1%} to {high:.1%}), {size}"
        rows.append(("intervals" if is_number else "sets", line))
    return rows


def describe_silence(silence: AbstentionRecord) -> str:
    """Say in words how many test texts are answered, and how many of the answers are right."""
    line = f"asked for {silence.precision:.1%} right answers, given from a probability of {silence.confidence:.3f} on"
    if silence.confidence > 1:
        return f"asked for {silence.precision:.1%} right answers, which validation can't prove: no text is answered"
    if silence.test_answered is None:
        return f"{line}: {silence.validation_answered:.0%} of the validation texts"
    if silence.test_precision is None or silence.test_precision_interval is None:
        return f"{line}: no test text is answered"
    low, high = silence.test_precision_interval
    return (
        f"{line}: answers {silence.test_answered:.0%} of the test texts, {silence.test_precision:.1%} right "
        f"({low:.1%} to {high:.1%})"
    )


def _describe_search(search: Search) -> str:
    return (
        f"{search.trials} trials in {search.seconds:.0f} s; best by {search.metric} on {search.judges} "
        f"({search.best:.4f}, with the defaults {search.default:.4f}): {describe_settings(search.chosen)}"
    )


def _cut(split: SplitRecord) -> str:
    if split.mean_tokens is None or split.truncated_share is None:
        return ""
    return f", {split.mean_tokens:.0f} tokens on average, {split.truncated_share:.1%} of the texts cut"


def describe_quality(metrics: Metrics) -> str:
    """Say in a line how good a model is on a split."""
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
