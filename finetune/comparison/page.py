"""The report as one HTML page that needs nothing else: no network, no framework, figures and styles inside.

Texts, labels, paths and settings come from elsewhere; Jinja escapes them all, and the page's own policy lets no script
run but the one whose hash it names.
"""

import base64
import hashlib
import shlex
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from finetune import __version__
from finetune.comparison.brief import describe_in_brief
from finetune.comparison.costs import COSTS, VERDICT_COSTS, format_cost
from finetune.comparison.differences import find_confusions
from finetune.comparison.drawings import Drawing
from finetune.comparison.page_texts import colour_of, describe_texts, list_examples, list_words
from finetune.comparison.report import Report
from finetune.comparison.runs import SPLITS, StoredRun
from finetune.comparison.table import (
    BETTER_IF_GREATER,
    METRIC_MEANINGS,
    METRIC_NAMES,
    Row,
    format_interval,
    format_metric,
)
from finetune.comparison.text import COST_NOTE, count_groups, describe_subject, describe_verdict
from finetune.escape import to_terminal
from finetune.metrics import MULTI_LABEL, REGRESSION

__all__ = ["build_page"]

ANSWERED = (1.0, 0.9, 0.8, 0.7, 0.5)  # shares of the texts
MORE_IS_BETTER = ("tokens_per_second", "texts_per_second")


def _show(value: Any) -> Any:
    """Show what is hidden in a name or a text from outside, line by line; Jinja escapes what HTML takes for its own."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    lines = value.replace("\r\n", "\n").split("\n")
    return "\n".join("\t".join(to_terminal(part) for part in line.split("\t")) for line in lines)


def build_page(report: Report, drawings: Sequence[Drawing]) -> str:
    """Write the report as HTML."""
    folder = files("finetune.comparison")
    template, style, script = (folder.joinpath(f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    environment = jinja2.Environment(
        autoescape=True,
        finalize=_show,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    sections = {drawing.section for drawing in drawings}
    shown = {
        "brief": "In brief",
        "verdict": "Verdict",
        "table": "Quality and cost",
        "errors": "Where they err",
        "calibration": "Calibration and silence",
        "words": "Words that decide",
        "training": "Training",
        "differences": "Where they differ",
        "provenance": "Provenance",
    }
    for name in ("calibration", "training"):
        if name not in sections:
            del shown[name]
    if report.reasons is None:
        del shown["words"]
    names = [group.name for group in report.groups]
    return environment.from_string(template).render(
        title=f"Comparison of {count_groups(report)}" if len(names) > 1 else f"Report on {names[0]}",
        subject=describe_subject(report),
        sections=shown.items(),
        style=Markup(style),
        script=Markup(script),
        script_hash=Markup(base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()),
        drawings=drawings,
        warnings=report.warnings,
        left_out=report.left_out,
        conditions=report.conditions,
        brief=describe_in_brief(report),
        **_verdict(report),
        **_table(report),
        has_confusion="confusion" in sections,
        confusion_heading="Predictions and labels"
        if report.problem_type == REGRESSION
        else "What each class is taken for",
        confusions=_confusions(report),
        methods=names,
        f1_by_class=_f1_by_class(report),
        per_class=list(_per_class(report)),
        has_calibration="calibration" in sections,
        calibration_note=_describe_calibration(report),
        calibration_rows=list(_calibration_rows(report)),
        **_silence(report),
        words=list(list_words(report)),
        words_missing=[] if report.reasons is None else report.reasons.missing,
        has_training="training" in sections,
        training_note=_describe_training(report),
        differences_note=describe_texts(report),
        examples=list(list_examples(report)),
        splits=[{"name": name, **_split(report.runs[0], name)} for name in SPLITS],
        findings=report.findings,
        has_troubles=any(finding.severity != "note" for finding in report.findings),
        runs=[_run(run, position) for position, group in enumerate(report.groups) for run in group.runs],
        created=report.created,
        version=__version__,
    )


def _verdict(report: Report) -> dict[str, Any]:
    verdict = report.verdict
    metric, cost = METRIC_NAMES[report.metric], VERDICT_COSTS[report.cost]
    state = "none" if verdict is None else "decided" if verdict.decided else "open"
    margin = f"{report.margin:.4g}"
    if BETTER_IF_GREATER[report.metric]:
        margin = f"{100 * report.margin:g} {'point' if 100 * report.margin == 1 else 'points'}"
    return {
        "state": state,
        "sentences": describe_verdict(report),
        "basis": f"Judged by {metric} on the test split; a loss of {margin} doesn't matter; cheap means {cost}.",
        "assumptions": [] if verdict is None else verdict.assumptions,
    }


def _table(report: Report) -> dict[str, Any]:
    metrics = list(report.rows[0].quality)
    columns = [{"heading": "method", "kind": "", "sort": "none"}]
    for name in metrics:
        kind = "more" if BETTER_IF_GREATER[name] else "less"
        sort = ("descending" if kind == "more" else "ascending") if name == report.metric else "none"
        columns.append({"heading": METRIC_NAMES[name], "kind": kind, "sort": sort})
    for name, heading in COSTS.items():
        columns.append({"heading": heading, "kind": "more" if name in MORE_IS_BETTER else "less", "sort": "none"})
    best = {name: _best(report.rows, name) for name in (*metrics, *COSTS)}
    rows = []
    for position, row in enumerate(report.rows):
        cells = []
        for name in metrics:
            interval = row.quality[name]
            text, _, bounds = format_interval(name, interval).partition(" (")
            value = interval.estimate if np.isfinite(interval.estimate) else ""
            cells.append({"value": value, "text": text, "more": bounds.removesuffix(")"), "best": value == best[name]})
        for name in COSTS:
            cost = row.costs[name]
            value = "" if cost is None else cost
            cells.append({"value": value, "text": format_cost(name, cost), "more": "", "best": value == best[name]})
        chosen = ""
        if report.verdict is not None and row.name == report.verdict.chosen:
            chosen = "take this" if report.verdict.decided else "safe choice"
        seeds = "" if row.is_floor else f"{len(row.seeds)} {'seed' if len(row.seeds) == 1 else 'seeds'}"
        rows.append(
            {
                "name": row.name,
                "seeds": seeds,
                "colour": colour_of(position),
                "cells": cells,
                "is_floor": row.is_floor,
                "is_chosen": chosen,
            }
        )
    note = (
        "Means over seeds on the test split; below them 95 % intervals, which hold the choice of test examples and of "
        "seeds. In bold the best of a column. A method with one seed has an interval for its test examples alone."
    )
    if report.verdict is not None and report.verdict.chosen is not None:
        badge = "take this" if report.verdict.decided else "safe choice"
        why = "what the verdict names" if report.verdict.decided else "what to use until it is decided"
        note += f" The badge “{badge}” marks {why}."
    note += f" {COST_NOTE} Tokens/s is of training; latency is from one text to its answer, and texts/s is in bulk."
    if any(row.is_floor for row in report.rows):
        note += (
            " The floor was fitted beside the runs on the same rows; its predictions are not kept, so no test has it."
        )
    settings = [(row.name, row.settings) for row in report.rows if row.settings]
    cost_note = (
        "Filled marks lie on the Pareto front, the dashed line: no method is both better and cheaper. Hollow ones are "
        "beaten in both. The vertical lines are 95 % intervals."
    )
    terms = [(METRIC_NAMES[name], METRIC_MEANINGS[name]) for name in metrics]
    return {
        "columns": columns, "rows": rows, "settings": settings, "table_note": note, "cost_note": cost_note,
        "terms": terms,
    }  # fmt: skip


def _best(rows: Sequence[Row], name: str) -> float | None:
    values = [
        row.quality[name].estimate if name in row.quality else row.costs[name] for row in rows if not row.is_floor
    ]
    known = [value for value in values if value is not None and np.isfinite(value)]
    if len(set(known)) < 2 or name == "trainable_parameters":
        return None
    more = name in MORE_IS_BETTER or BETTER_IF_GREATER.get(name, False)
    return max(known) if more else min(known)


def _confusions(report: Report) -> list[dict[str, Any]]:
    if report.confusion is None or len(report.label_names) < 3:
        return []
    return [
        {
            "name": name,
            "colour": colour_of(position),
            "found": [
                {
                    "label": one.label,
                    "prediction": one.prediction,
                    "count": f"{round(one.num_examples, 1):g}",
                    "share": f"{one.share:.0%}",
                }
                for one in find_confusions(counts, report.label_names)
            ],
        }
        for position, (name, counts) in enumerate(report.confusion.items())
    ]


def _f1_by_class(report: Report) -> list[dict[str, Any]]:
    """Return the F1 of each class by method, the lowest first; nothing for a single class."""
    methods = list(report.per_class)
    rows = []
    for label in report.label_names if methods else ():
        values = [report.per_class[method][label]["f1"] for method in methods]
        count = report.per_class[methods[0]][label]["num_examples"]
        rows.append({"label": label, "count": f"{count:,.0f}", "number": count, "values": values})
    return sorted(rows, key=lambda row: min(row["values"]))


def _per_class(report: Report) -> Iterator[dict[str, Any]]:
    for label in report.label_names if report.per_class else ():
        for method, table in report.per_class.items():
            values = [table[label][name] for name in ("precision", "recall", "f1")]
            figures = [{"value": value, "text": f"{value:.3f}"} for value in values]
            count = table[label]["num_examples"]
            yield {"label": label, "method": method, "figures": [*figures, {"value": count, "text": f"{count:,.0f}"}]}


def _describe_calibration(report: Report) -> str:
    if report.problem_type == MULTI_LABEL:
        what, error = "How often a label is there by its probability", "mean over labels and seeds"
    else:
        what, error = "How often the class that is predicted is right by its probability", "mean over seeds"
    return (
        f"{what}: on the dotted line one can take the probability at its word. Large circles are many test examples. "
        f"ECE is the mean distance from the line (Guo et al. 2017) over 15 bins, {error}; scaled means with the "
        "temperature that fits the validation split, which changes no answer."
    )


def _calibration_rows(report: Report) -> Iterator[dict[str, Any]]:
    for position, (method, one) in enumerate((report.calibration or {}).items()):
        pairs = (one.log_loss, (one.before, one.after), one.brier)
        yield {
            "name": method,
            "colour": colour_of(position),
            "temperature": ", ".join(f"{value:.2f}" for value in one.temperatures),
            "figures": [f"{before:.3f} → {after:.3f}" for before, after in pairs],
        }


def _silence(report: Report) -> dict[str, Any]:
    """Return the table of what answering only when sure gives, and what stands above it."""
    rows: list[dict[str, Any]] = []
    for position, (method, curve) in enumerate((report.selective or {}).items()):
        cells = []
        for share in ANSWERED:
            at = int(np.abs(curve.answered - share).argmin())
            bounds = f"{curve.low[at]:.1%}".removesuffix("%") + f" to {curve.high[at]:.1%}".removesuffix("%")
            cells.append(
                {"text": f"{curve.right[at]:.1%}", "bounds": bounds, "threshold": f"{curve.threshold[at]:.2f}"}
            )
        rows.append({"name": method, "colour": colour_of(position), "cells": cells})
    note = (
        "How many answers are right where a method answers the share of the test texts that it is surest of; below "
        "them 95 % intervals over texts, and the probability (p) from which on it answers. These thresholds were read "
        "off the test split: --abstain chooses one on validation, so that a precision is kept on new texts."
    )
    if any(curve.chosen is not None for curve in (report.selective or {}).values()):
        note += " Large marks are what it chose."
    return {"silence_rows": rows, "silence_note": note, "answered": [f"{share:.0%}" for share in ANSWERED]}


def _describe_training(report: Report) -> str:
    without = [group.name for group in report.groups if not any(run.history for run in group.runs)]
    note = "Losses compare between methods only where their label smoothing and weights are the same."
    return f"{note} Without a curve: {', '.join(without)}." if without else note


def _split(run: StoredRun, name: str) -> dict[str, Any]:
    split = dict(run.record.data.splits)[name]
    return {"rows": f"{split.rows:,}", "sha256": split.sha256, "origin": split.origin}


def _run(run: StoredRun, position: int) -> dict[str, Any]:
    record, model, environment = run.record, run.record.model, run.record.environment
    primary = "accuracy" if "accuracy" in run.metrics else "mae"
    facts = {
        "model": f"{model.architecture}, {model.name or 'no pretrained model'}",
        "parameters": f"{model.trainable_parameters:,} trained of {model.total_parameters:,}",
        "started, finished": f"{record.started}, {record.finished}",
        "processor": f"{environment.processor}, {environment.physical_cores} cores, "
        f"{format_cost('bytes', environment.memory_bytes)} memory",
        "GPUs": ", ".join(environment.gpus) or "none",
        "threads": f"{environment.num_processes} process(es) of {environment.num_threads}",
        "precision": f"{environment.precision}, predictions {environment.prediction_precision}",
        "commit": str(environment.git_commit),
        "platform": environment.platform,
        "versions": f"Python {environment.python}, "
        + ", ".join(f"{name} {version}" for name, version in environment.packages.items() if version),
    }
    return {
        "directory": str(run.directory),
        "colour": colour_of(position),
        "brief": f"seed {run.seed}, {METRIC_NAMES[primary]} {format_metric(primary, run.metrics[primary])}, "
        f"{format_cost('train_seconds', run.cost('train_seconds'))}",
        "command": shlex.join(record.command),
        "facts": facts.items(),
    }
