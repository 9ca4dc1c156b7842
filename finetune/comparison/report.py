"""Everything that a report says, as numbers and words: built from run directories alone, written as `report.json`.

`finetune.comparison.drawings` draws it, `.text` writes it for the terminal and as Markdown, `.page` as HTML.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from finetune import __version__
from finetune.catalogue import FLOOR
from finetune.comparison.conditions import describe_conditions
from finetune.comparison.costs import VERDICT_COSTS, choose_cost, describe_busy_machine
from finetune.comparison.differences import Differences, find_differences
from finetune.comparison.groups import Group, describe_machines, group_runs, refuse_different_splits
from finetune.comparison.looks import note_look
from finetune.comparison.reasons import Reasons
from finetune.comparison.reasons import to_json as reasons_to_json
from finetune.comparison.runs import StoredRun, Texts, load_findings, load_runs, load_texts
from finetune.comparison.selective import SelectiveAccuracy, compute_selective_accuracy
from finetune.comparison.statistics import FEWEST_OF_A_CLASS, Support, find_support
from finetune.comparison.table import (
    BETTER_IF_GREATER,
    METRIC_NAMES,
    QUALITY_METRICS,
    TABLE_METRICS,
    Row,
    build_floor_row,
    build_rows,
    compute_scores,
)
from finetune.comparison.verdict import Verdict, decide
from finetune.data_doctor.findings import Finding
from finetune.data_doctor.findings import to_json as findings_to_json
from finetune.decisions.calibration import (
    ReliabilityBins,
    brier_score,
    compute_probabilities,
    expected_calibration_error,
    fit_temperature,
    label_calibration_error,
    label_reliability_bins,
    reliability_bins,
)
from finetune.errors import FinetuneError
from finetune.escape import blank_tokens
from finetune.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL, compute_per_class, present_labels

__all__ = ["REPORT_SCHEMA_VERSION", "Calibration", "Lengths", "Report", "build_report", "to_json"]

REPORT_SCHEMA_VERSION = 1
NUM_LENGTH_BINS = 5
# What report.json repeats of each run's record.
COPIED = {"method", "seed", "command", "started", "finished", "model", "costs", "environment", "arguments", "search"}


@dataclass(frozen=True)
class Calibration:
    """How far a group's probabilities can be believed, on the test split.

    Attributes:
        temperatures: Fitted on the validation split, one a seed.
        before: Expected calibration error of the probabilities as they are, mean over seeds.
        after: The same of the probabilities scaled by the temperatures.
        log_loss: In nats, mean over seeds, before and after.
        brier: Brier score, mean over seeds, before and after.
        bins_before: Of all seeds together.
        bins_after: Of all seeds together.
    """

    temperatures: list[float]
    before: float
    after: float
    log_loss: tuple[float, float]
    brier: tuple[float, float]
    bins_before: ReliabilityBins
    bins_after: ReliabilityBins


@dataclass(frozen=True)
class Lengths:
    """Quality by text length.

    Attributes:
        unit: What a length counts.
        edges: Bounds of the bins, which hold about as many test texts each, `(num_bins + 1,)`.
        num_examples: In each bin, `(num_bins,)`.
        metric: Accuracy, or the mean absolute error.
        quality: For each group, its mean in each bin, `(num_bins,)`.
    """

    unit: str
    edges: np.ndarray
    num_examples: np.ndarray
    metric: str
    quality: dict[str, np.ndarray]


@dataclass(frozen=True)
class Report:
    """What is known of some runs. Groups stand from best to worst, and everything by group in their order.

    Attributes:
        groups: Runs that differ in their seed alone.
        rows: Of the table, one a group, and last the floor if no group is one.
        metric: That of the verdict.
        margin: In the metric's unit.
        cost: That of the verdict, one of `VERDICT_COSTS`.
        verdict: None with a single group, or where the metric can't be judged by on these test examples.
        no_verdict: Why there is none, in a sentence; empty if there is one.
        conditions: Under which it holds, in sentences.
        calibration: None for regression.
        selective: What answering only when sure gives; None for regression.
        per_class: Precision, recall and F1 of each class, mean over seeds; empty for regression.
        confusion: Examples by label and prediction, mean over seeds; for one class of several.
        lengths: Quality by text length.
        differences: Examples worth reading.
        texts: Of the test examples; None if no run stored them.
        findings: What the data doctor found in the splits.
        reasons: Why methods answer as they do; None unless it was asked for.
        warnings: What the reader has to know before the figures.
        left_out: One line for each run directory that is not in the report.
        created: UTC, ISO 8601.
    """

    groups: list[Group]
    rows: list[Row]
    metric: str
    margin: float
    cost: str
    verdict: Verdict | None
    no_verdict: str
    conditions: list[str]
    calibration: dict[str, Calibration] | None
    selective: dict[str, SelectiveAccuracy] | None
    per_class: dict[str, dict[str, dict[str, float]]]
    confusion: dict[str, np.ndarray] | None
    lengths: Lengths | None
    differences: Differences
    texts: Texts | None
    findings: list[Finding]
    warnings: list[str]
    left_out: list[str]
    created: str
    reasons: Reasons | None = None

    @property
    def runs(self) -> list[StoredRun]:
        return [run for group in self.groups for run in group.runs]

    @property
    def problem_type(self) -> str:
        return self.groups[0].runs[0].problem_type

    @property
    def label_names(self) -> list[str]:
        return self.groups[0].runs[0].label_names

    @property
    def num_examples(self) -> int:
        """Count the test examples."""
        return len(self.groups[0].runs[0].test.labels)


def build_report(
    paths: Sequence[str | Path], metric: str | None = None, margin: float = 1.0, cost: str | None = None
) -> Report:
    """Read run directories and work out everything that a report says.

    Args:
        paths: Run directories, or folders that contain them.
        metric: That of the verdict, one of `QUALITY_METRICS` of the task; its first if None.
        margin: The loss that doesn't matter, in points: hundredths of a metric in [0, 1], of the standard deviation
            (for `mse` the variance) of the numbers to predict, or of the greatest cost.
        cost: That of the verdict, one of `VERDICT_COSTS`; if None the one that a busy machine changes least.

    Raises:
        FinetuneError: If no run is left, runs don't have the same splits, or an argument doesn't fit the task.
    """
    if not (margin > 0 and math.isfinite(margin)):
        raise FinetuneError(f"Expected --margin above 0, in points, but got {margin:g}. 1 is usual.")
    runs, left_out = load_runs(paths)
    refuse_different_splits(runs)
    groups, doubled = group_runs(runs)
    cost = cost or choose_cost(runs)
    if cost not in VERDICT_COSTS:
        raise FinetuneError(f"Expected --cost to be one of {', '.join(VERDICT_COSTS)}, but got {cost!r}.")
    problem_type = runs[0].problem_type
    known = QUALITY_METRICS[problem_type]
    metric = metric or TABLE_METRICS[problem_type][0]
    if metric not in known:
        raise FinetuneError(f"Expected --metric for this task to be one of {', '.join(known)}, but got {metric!r}.")
    if metric == "cost_per_text":
        _refuse_different_costs(runs)
    sign = 1 if BETTER_IF_GREATER[metric] else -1
    groups.sort(key=lambda group: -sign * float(np.mean([run.metrics[metric] for run in group.runs])))
    margin *= _unit_of(metric, runs[0]) / 100

    metrics = list(dict.fromkeys([metric, *TABLE_METRICS[problem_type]]))
    rows = build_rows(groups, metrics)
    support = find_support(metric, runs[0].test.labels)
    verdict, unkept = None, None
    no_verdict = _refuse_verdict(groups, metric, support)
    if not no_verdict:
        look, unkept = note_look([run for group in groups for run in group.runs])
        costs = {row.name: value for row in rows if (value := row.costs[cost]) is not None}
        verdict = decide(
            scores={group.name: compute_scores(group, metric) for group in groups},
            costs=costs,
            margin=margin,
            greater_is_better=BETTER_IF_GREATER[metric],
            metric=METRIC_NAMES[metric],
            deterministic={group.name for group in groups if group.is_deterministic},
            support=support,
            look=look,
        )
    named = groups[0].name if verdict is None else verdict.chosen or verdict.best
    floor = build_floor_row(groups, metrics)
    calibration = None if problem_type == REGRESSION else {group.name: _calibrate(group) for group in groups}
    temperatures = {group.name: [1.0] * len(group.runs) for group in groups}
    if calibration:
        temperatures = {name: one.temperatures for name, one in calibration.items()}
    texts = load_texts(runs)
    return Report(
        groups=groups,
        rows=[*rows, *([floor] if floor else [])],
        metric=metric,
        margin=margin,
        cost=cost,
        verdict=verdict,
        no_verdict=no_verdict,
        conditions=describe_conditions(groups, metric, named),
        calibration=calibration,
        selective=None
        if problem_type == REGRESSION
        else {group.name: compute_selective_accuracy(group) for group in groups},
        per_class={} if problem_type == REGRESSION else {group.name: _per_class(group) for group in groups},
        confusion={group.name: _confusion(group) for group in groups} if problem_type == SINGLE_LABEL else None,
        lengths=_by_length(groups, texts),
        differences=find_differences(groups, temperatures),
        texts=texts,
        findings=load_findings(runs),
        warnings=[*_warn(groups, floor), *([unkept] if unkept else [])],
        left_out=left_out + doubled,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _refuse_different_costs(runs: Sequence[StoredRun]) -> None:
    first = runs[0].rules.costs
    if first is None or any(one is None or (one != first).any() for one in (run.rules.costs for run in runs)):
        raise FinetuneError("Expected runs with the same --cost_matrix for --metric cost_per_text. Train them with it.")


def _unit_of(metric: str, run: StoredRun) -> float:
    """Return what a hundred points of a metric are: 1, a spread of the numbers to predict, or the greatest cost."""
    if metric == "cost_per_text":
        assert run.rules.costs is not None
        return float(run.rules.costs.max())
    return float(run.test.labels.astype(np.float64).std()) ** {"mae": 1.0, "mse": 2.0}.get(metric, 0.0)


def _refuse_verdict(groups: Sequence[Group], metric: str, support: Support | None) -> str:
    """Explain why there is no verdict, if there can't be one."""
    if len(groups) == 1:
        return f"There is one method, {groups[0].name}, so there is nothing to compare it with."
    if support is None or support.is_enough:
        return ""
    return (
        f"No verdict by {METRIC_NAMES[metric]}: it averages over classes, and the rarest has {support.smallest} test "
        f"{'example' if support.smallest == 1 else 'examples'}, where {FEWEST_OF_A_CLASS} are needed for intervals and "
        "tests that hold. Judge by accuracy, or test on more examples."
    )


def _warn(groups: Sequence[Group], floor: Row | None) -> list[str]:
    runs = [run for group in groups for run in group.runs]
    lines = describe_machines(runs) + describe_busy_machine(runs)
    for package in ("finetune", "torch", "transformers", "scikit-learn"):
        found = sorted({str(run.record.environment.packages.get(package)) for run in runs})
        if len(found) > 1:
            lines.append(f"The runs were made with different versions of {package}: {', '.join(found)}.")
    first = runs[0]
    if first.problem_type != REGRESSION:
        absent = len(first.label_names) - len(present_labels(first.test.labels))
        if absent:
            lines.append(
                f"The test split has no example of {absent} of {len(first.label_names)} classes: averages over classes "
                "are over the others."
            )
    if floor is None and not any(group.method == FLOOR for group in groups):
        lines.append(
            f"No run measured a floor: run the recipe with --method {FLOOR} to see what the simplest method gives."
        )
    return lines


def _calibrate(group: Group) -> Calibration:
    several = group.runs[0].problem_type == MULTI_LABEL
    labels = group.runs[0].test.labels
    temperatures: list[float] = []
    before: list[np.ndarray] = []
    after: list[np.ndarray] = []
    for run in group.runs:
        answers = run.record.answers
        if answers is not None and answers.calibration is not None:
            temperatures.append(answers.calibration.temperature)
        else:  # of the first runs, which saved none
            temperatures.append(fit_temperature(run.validation.logits, run.validation.labels))
        for tables, temperature in ((before, 1.0), (after, temperatures[-1])):
            logits = run.test.logits.astype(np.float64)
            tables.append(expit(logits / temperature) if several else compute_probabilities(logits, temperature))
    error = label_calibration_error if several else expected_calibration_error
    bins = []
    for tables in (before, after):
        pooled, truth = np.concatenate(tables), np.concatenate([labels] * len(tables))
        bins.append(
            label_reliability_bins(pooled.ravel(), truth.ravel()) if several else reliability_bins(pooled, truth)
        )
    return Calibration(
        temperatures=temperatures,
        before=float(np.mean([error(table, labels) for table in before])),
        after=float(np.mean([error(table, labels) for table in after])),
        log_loss=(_mean_log_loss(before, labels), _mean_log_loss(after, labels)),
        brier=(
            float(np.mean([brier_score(table, labels) for table in before])),
            float(np.mean([brier_score(table, labels) for table in after])),
        ),
        bins_before=bins[0],
        bins_after=bins[1],
    )


def _mean_log_loss(tables: Sequence[np.ndarray], labels: np.ndarray) -> float:
    """Return the mean cross-entropy in nats over tables of probabilities; of several labels also over labels."""
    several = labels.ndim == 2
    rows = np.arange(len(labels))
    tiny = np.finfo(np.float64).tiny
    found = [np.where(labels == 1, one, 1 - one) if several else one[rows, labels] for one in tables]
    return float(np.mean([-np.log(np.maximum(one, tiny)).mean() for one in found]))


def _per_class(group: Group) -> dict[str, dict[str, float]]:
    tables = [compute_per_class(run.decide(), run.test.labels, run.label_names) for run in group.runs]
    return {
        label: {name: float(np.mean([table[label][name] for table in tables])) for name in tables[0][label]}
        for label in tables[0]
    }


def _confusion(group: Group) -> np.ndarray:
    num_labels, labels = len(group.runs[0].label_names), group.runs[0].test.labels
    counts = [np.bincount(labels * num_labels + run.decide(), minlength=num_labels**2) for run in group.runs]
    return np.mean(counts, axis=0).reshape(num_labels, num_labels)


def _by_length(groups: Sequence[Group], texts: Texts | None) -> Lengths | None:
    runs = [run for group in groups for run in group.runs]
    if texts is not None:
        unit, lengths = "characters", texts.num_characters()
    else:  # the run that cut least
        run = max(runs, key=lambda run: int(run.test.num_tokens.sum()))
        unit, lengths = f"tokens of {run.method}", run.test.num_tokens
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, NUM_LENGTH_BINS + 1), method="inverted_cdf"))
    if len(edges) < 3:
        return None
    bins = np.clip(np.searchsorted(edges, lengths, side="left") - 1, 0, len(edges) - 2)
    metric = "mae" if runs[0].problem_type == REGRESSION else "accuracy"
    counts = np.bincount(bins, minlength=len(edges) - 1)
    quality = {}
    for group in groups:
        quality[group.name] = np.bincount(bins, compute_scores(group, metric).mean(axis=0), len(edges) - 1) / counts
    return Lengths(unit, edges, counts, metric, quality)


def to_json(report: Report) -> dict[str, Any]:
    """Return a report as JSON has it; `docs/reference/report.md` describes the fields. What is not a number is null."""
    first = report.runs[0]
    groups = []
    for group, row in zip(report.groups, report.rows, strict=False):
        calibration = report.calibration[group.name] if report.calibration else None
        groups.append(
            {
                "name": group.name,
                "method": group.method,
                "settings": group.settings,
                "seeds": group.seeds,
                "runs": [str(run.directory) for run in group.runs],
                "quality": {
                    name: {**interval._asdict(), "by_seed": [run.metrics[name] for run in group.runs]}
                    for name, interval in row.quality.items()
                },
                "costs": {
                    name: {"mean": value, "by_seed": [run.cost(name) for run in group.runs]}
                    for name, value in row.costs.items()
                },
                "calibration": None
                if calibration is None
                else {
                    "temperatures": calibration.temperatures,
                    "ece": calibration.before,
                    "ece_scaled": calibration.after,
                    "log_loss": calibration.log_loss[0],
                    "log_loss_scaled": calibration.log_loss[1],
                    "brier": calibration.brier[0],
                    "brier_scaled": calibration.brier[1],
                },
                "selective": report.selective and _selective_to_json(report.selective[group.name]),
                "per_class": report.per_class.get(group.name),
                "confusion": report.confusion and report.confusion[group.name].tolist(),
                "by_length": report.lengths and report.lengths.quality[group.name].tolist(),
            }
        )
    floor = next((row for row in report.rows if row.is_floor), None)
    content = {
        "schema_version": REPORT_SCHEMA_VERSION,
        "created": report.created,
        "finetune": __version__,
        "metric": report.metric,
        "margin": report.margin,
        "cost": report.cost,
        "warnings": report.warnings,
        "left_out": report.left_out,
        "verdict": report.verdict and _verdict_to_json(report.verdict),
        "no_verdict": report.no_verdict or None,
        "conditions": report.conditions,
        "findings": findings_to_json(report.findings),
        "groups": groups,
        "floor": floor
        and {"quality": {name: one._asdict() for name, one in floor.quality.items()}, "costs": floor.costs},
        "data": {
            "problem_type": report.problem_type,
            "label_names": report.label_names,
            "splits": first.record.data.splits.to_dict(),
        },
        "by_length": report.lengths
        and {
            "unit": report.lengths.unit,
            "metric": report.lengths.metric,
            "edges": report.lengths.edges.tolist(),
            "num_examples": report.lengths.num_examples.tolist(),
        },
        "differences": _differences_to_json(report.differences, first),
        "reasons": report.reasons and reasons_to_json(report.reasons),
        "runs": [
            {
                "directory": str(run.directory),
                "metrics": run.metrics,
                **blank_tokens(run.record.model_dump(include=COPIED, exclude_unset=True)),
            }
            for run in report.runs
        ],
    }
    return _without_nan(content)


def _selective_to_json(selective: SelectiveAccuracy) -> dict[str, Any]:
    names = ("threshold", "answered", "right", "low", "high")
    return {**{name: getattr(selective, name).tolist() for name in names}, "chosen": selective.chosen}


def _verdict_to_json(verdict: Verdict) -> dict[str, Any]:
    content = asdict(verdict)
    for comparison in content["comparisons"].values():
        comparison["difference"] = comparison["difference"]._asdict()
    return content


def _differences_to_json(differences: Differences, run: StoredRun) -> dict[str, Any]:
    def show(examples: Any) -> Any:
        if isinstance(examples, dict):
            return {name: show(some) for name, some in examples.items()}
        return examples and [{"id": run.test.ids[one.row].as_py(), **asdict(one)} for one in examples]

    return {
        "num_only_right": differences.num_only_right,
        "only_right": show(differences.only_right),
        "mistakes": show(differences.mistakes),
        "num_suspects": differences.num_suspects,
        "suspects": show(differences.suspects),
    }


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {str(name): _without_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
