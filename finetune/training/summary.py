"""What a person reads at the end of a run, drawn from `run.json` alone."""

import shlex
from pathlib import Path
from typing import Any

__all__ = ["summarize"]


def summarize(record: dict[str, Any], directory: Path) -> str:
    """Tell in a dozen lines what ran, what it cost, how good it is, and what to type next.

    Args:
        record: The content of a complete `run.json`.
        directory: The run directory.
    """
    model, costs, environment, splits = (
        record["model"],
        record["costs"],
        record["environment"],
        record["data"]["splits"],
    )
    rows = []
    for name, split in splits.items():
        rows.append((f"data: {name}", split["origin"]))
        rows.append(("", f"{split['rows']:,} rows, {split['distinct_texts']:,} distinct texts{_cut(split)}"))
    rows.append(("method", f"{record['method']}: {model['architecture']}, seed {record['seed']}"))
    rows.append(("parameters", f"{model['trainable_parameters']:,} trained of {model['total_parameters']:,}"))
    speed = f", {costs['tokens_per_second']:,.0f} tokens/s" if "tokens_per_second" in costs else ""
    if "compile_seconds" in costs:
        speed += f", {costs['compile_seconds']:.0f} s of it compiling in the first step"
    rows.append(("training", f"{costs['train_seconds']:.1f} s{speed}, in {environment['precision']}"))
    rows.append(("machine", f"{environment['num_processes']} process(es) of {environment['num_threads']} thread(s)"))
    rows.append(("peak memory", f"{costs['peak_memory_bytes'] / 2**30:.2f} GiB"))
    latency = f"{costs['latency_seconds'] * 1000:.1f} ms for one text, {costs['texts_per_second']:,.0f} texts/s in bulk"
    rows.append(("prediction", latency))
    rows.append(("reloaded", f"the saved model's logits differ by at most {record['reload']['max_difference']:.1e}"))
    for split in ("validation", "test"):
        rows.append((split, _quality(record["metrics"][split])))
    if "test" in record.get("thresholds", {}):
        tuned = record["thresholds"]["test"]
        rows.append(("tuned (test)", f"micro-F1 {tuned['micro_f1']:.3f}, macro-F1 {tuned['macro_f1']:.3f}, with the "
                     "thresholds that `predict` uses, chosen on validation"))  # fmt: skip
    if "floor" in record:
        rows.append(
            ("floor (test)", f"{_quality(record['floor']['test'])}, by TF-IDF and a linear model on whole texts")
        )
    rows.append(("model", str(directory / "model")))
    rows.append(("next", f'finetune predict {shlex.quote(str(directory))} "A text to classify."'))
    return "\n".join(f"{name:<16} {text}" for name, text in rows)


def _cut(split: dict[str, Any]) -> str:
    if "truncated_share" not in split:
        return ""
    return f", {split['mean_tokens']:.0f} tokens on average, {split['truncated_share']:.1%} of the texts cut"


def _quality(metrics: dict[str, Any]) -> str:
    if "labels_withheld" in metrics:
        return f"{metrics['num_examples']:,} rows predicted, not scored: their labels are withheld"
    if "mae" in metrics:
        low, high = metrics["mae_interval"]
        return (
            f"mean absolute error {metrics['mae']:.4g} (95 % interval {low:.4g} to {high:.4g}), "
            f"R² {metrics['r2']:.3f}, Spearman {metrics['spearman']:.3f}"
        )
    low, high = metrics["accuracy_interval"]
    accuracy = f"accuracy {metrics['accuracy']:.1%} (95 % interval {low:.1%} to {high:.1%})"
    if "micro_f1" in metrics:
        return f"micro-F1 {metrics['micro_f1']:.3f}, macro-F1 {metrics['macro_f1']:.3f}, all labels right: {accuracy}"
    return f"{accuracy}, macro-F1 {metrics['macro_f1']:.3f}, MCC {metrics['mcc']:.3f}"
