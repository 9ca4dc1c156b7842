"""The report in plain text for the terminal, and as Markdown."""

import shlex
import shutil
import textwrap
from collections.abc import Iterator, Sequence

from finetune.comparison.brief import describe_in_brief
from finetune.comparison.costs import COSTS, format_cost
from finetune.comparison.differences import Example
from finetune.comparison.drawings import Drawing
from finetune.comparison.report import Report
from finetune.comparison.runs import StoredRun
from finetune.comparison.table import METRIC_NAMES, format_interval
from finetune.escape import to_markdown as _escape
from finetune.escape import to_markdown_code, to_terminal
from finetune.models.explanation import Explanation

__all__ = [
    "COST_NOTE",
    "count_groups",
    "describe_machine",
    "describe_report",
    "describe_subject",
    "describe_verdict",
    "describe_words",
    "to_markdown",
]

COST_NOTE = (
    "Training time and CPU time are of training, of tokenizing its rows and of the trials before it, without "
    "evaluations; CPU time adds up all threads. Peak memory is all that the process held until training ended, with "
    "Python and its libraries, or where a GPU worked what was allocated on it. The stored model of an adapter is with "
    "its base, its latency once merged, if it merges."
)
TEXT_WIDTH = 300  # characters of a text that Markdown shows
MOST_NAMED = 6  # words of a mistake, for it and against it


def count_groups(report: Report) -> str:
    """Count in words how many methods there are, or variants where a method has several settings."""
    groups = len(report.groups)
    if groups == 1:
        return "1 method"
    return f"{groups} {'methods' if len({group.method for group in report.groups}) == groups else 'variants'}"


def describe_subject(report: Report) -> str:
    """Describe in a line what is compared on what."""
    runs = len(report.runs)
    test = report.runs[0].record.data.splits.test
    return (
        f"{count_groups(report)}, {runs} {'run' if runs == 1 else 'runs'}, "
        f"{report.num_examples:,} test examples ({test.origin})"
    )


def describe_verdict(report: Report) -> list[str]:
    """Return the verdict's sentences, or why there is none."""
    return [report.no_verdict] if report.verdict is None else report.verdict.sentences


def describe_report(report: Report) -> str:
    """Write the verdict and the table for a terminal."""
    width = min(120, shutil.get_terminal_size((120, 24)).columns)
    parts = ["\n".join(textwrap.fill(to_terminal(sentence), width) for sentence in describe_verdict(report))]
    parts.append("\n".join(_fill(line, width) for line in report.conditions))
    metrics = list(report.rows[0].quality)
    quality = [["test split, 95 % intervals", "seeds", *(METRIC_NAMES[name] for name in metrics)]]
    costs = [["mean over seeds", *COSTS.values()]]
    for row in report.rows:
        seeds = " ".join(map(str, row.seeds)) or "–"
        quality.append([row.name, seeds, *(format_interval(name, row.quality[name]) for name in metrics)])
        costs.append([row.name, *(format_cost(name, row.costs[name]) for name in COSTS)])
    parts += [_align(quality), _align(costs)]
    settings = [to_terminal(f"{row.name}: {row.settings}") for row in report.rows if row.settings]
    parts += ["\n".join(settings)] if settings else []
    found = [f"data doctor: {finding.message}" for finding in report.findings if finding.severity != "note"]
    parts += ["\n".join(_fill(line, width) for line in found)] if found else []
    return "\n\n".join([to_terminal(describe_subject(report)), *parts])


def _fill(line: str, width: int) -> str:
    return textwrap.fill(to_terminal(line), width, subsequent_indent="  ")


def _align(table: Sequence[Sequence[str]]) -> str:
    table = [[to_terminal(cell) for cell in line] for line in table]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
    )


def to_markdown(report: Report, drawings: Sequence[Drawing]) -> str:
    """Write the report as Markdown, with figures from `figures/` beside it."""
    lines = ["# Comparison of text classifiers", "", _escape(describe_subject(report)), ""]
    lines += [f"> **Before you read on:** {_escape(line)}\n" for line in report.warnings]
    lines += ["## In brief", ""]
    lines += [*(f"- **{heading}**: {_escape(line)}" for heading, line in describe_in_brief(report)), ""]
    lines += ["## Verdict", ""]
    lines += [f"{_escape(sentence)}\n" for sentence in describe_verdict(report)]
    lines += ["Conditions:", "", *(f"- {_escape(line)}" for line in report.conditions), ""]
    if report.verdict is not None:
        lines += ["What this rests on:", "", *(f"- {_escape(line)}" for line in report.verdict.assumptions), ""]
    lines += _show(drawings, "verdict")
    lines += [
        "## Quality and cost",
        "",
        "On the test split, means over seeds, with 95 % intervals where there are brackets. " + COST_NOTE,
        "",
    ]
    metrics = list(report.rows[0].quality)
    lines += _table(
        ["method", "seeds", *(METRIC_NAMES[name] for name in metrics), *COSTS.values()],
        [
            [
                row.name,
                " ".join(map(str, row.seeds)) or "–",
                *(format_interval(name, row.quality[name]) for name in metrics),
                *(format_cost(name, row.costs[name]) for name in COSTS),
            ]
            for row in report.rows
        ],
    )
    lines += [f"- {_escape(row.name)}: {_escape(row.settings)}" for row in report.rows if row.settings]
    lines += ["", *_show(drawings, "cost")]
    for title, section in (
        ("Where they err", "errors"),
        ("What is taken for what", "confusion"),
        ("Calibration", "calibration"),
        ("Answering only when sure", "silence"),
        ("Training", "training"),
    ):
        shown = _show(drawings, section)
        lines += [f"## {title}", "", *shown] if shown else []
    lines += _words(report)
    lines += ["## Examples", "", *_examples(report)]
    if report.findings:
        lines += ["## What the data doctor found", ""]
        lines += [f"- **{one.severity}**: {_escape(f'{one.message}. {one.advice}'.strip())}" for one in report.findings]
        lines += [""]
    lines += ["## Provenance", "", *_provenance(report)]
    return "\n".join(lines)


def _show(drawings: Sequence[Drawing], section: str) -> list[str]:
    lines = []
    for drawing in drawings:
        if drawing.section == section:
            lines += [
                f"![{_escape(drawing.alt)}](figures/{drawing.name}.svg)",
                "",
                f"*{_escape(drawing.title)}*",
                "",
            ]
    return lines


def _words(report: Report) -> Iterator[str]:
    if report.reasons is None:
        return
    yield from ("## Words that decide", "")
    yield from (f"- Not explained: {_escape(line)}" for line in report.reasons.missing)
    for method, labels in report.reasons.words.items():
        yield from (f"### {_escape(method)}", "", report.reasons.notes[method], "")
        for label, words in labels.items():
            shown = ", ".join(f"{_escape(word.word)} {word.weight:+.2f}" for word in words)
            yield f"- {_escape(label)}: {shown or 'no word'}"
        yield ""


def _examples(report: Report) -> Iterator[str]:
    differences = report.differences
    for title, by_method in (
        ("Only this method is right", differences.only_right),
        ("Its surest mistakes", differences.mistakes),
    ):
        for method, examples in by_method.items():
            count = differences.num_only_right.get(method)
            more = f" ({count:,} examples)" if count is not None and by_method is differences.only_right else ""
            why = {}
            if report.reasons is not None and by_method is differences.mistakes:
                why = report.reasons.mistakes.get(method, {})
            if examples:
                yield from (f"### {_escape(method)}: {title[0].lower()}{title[1:]}{more}", "")
                yield from (_example(report, one, why.get(one.row)) for one in examples)
                yield ""
    if differences.suspects:
        yield from (f"### Labels that are likely wrong ({differences.num_suspects:,} examples)", "")
        yield "Every seed of every method says the same, with confidence, and the label says something else."
        yield ""
        yield from (_example(report, one) for one in differences.suspects)
        yield ""


def _example(report: Report, example: Example, why: Explanation | None = None) -> str:
    answers = "; ".join(f"{method}: {answer.text}" for method, answer in example.answers.items())
    name = to_markdown_code(report.runs[0].test.ids[example.row].as_py())
    line = f"- {name} label **{_escape(example.label)}**. {_escape(answers)}."
    if report.texts is None:
        return line
    text = " / ".join(part for part in report.texts.get(example.row) if part)
    cut = f"{text[:TEXT_WIDTH]}…" if len(text) > TEXT_WIDTH else text
    words = "" if why is None else f" {_escape(describe_words(why))}"
    return f"{line} {_escape(cut)}{words}"


def describe_words(why: Explanation) -> str:
    """Name in a line the words that speak most for a label and against it."""
    ranked = sorted(why.parts, key=lambda part: -part.contribution)
    sides = (
        ("for", [part for part in ranked[:MOST_NAMED] if part.contribution > 0]),
        ("against", [part for part in ranked[::-1][:MOST_NAMED] if part.contribution < 0]),
    )
    found = [
        f"{side} it "
        + (", ".join(f"{why.text[part.start : part.end]} {part.contribution:+.2f}" for part in parts) or "no word")
        for side, parts in sides
    ]
    return f"Why {why.label}: {'; '.join(found)}."


def _provenance(report: Report) -> Iterator[str]:
    splits = report.runs[0].record.data.splits
    yield from _table(
        ["split", "rows", "sha256", "origin"],
        [[name, f"{split.rows:,}", split.sha256, split.origin] for name, split in splits],
    )
    for run in report.runs:
        yield f"- {to_markdown_code(str(run.directory))}: {to_markdown_code(shlex.join(run.record.command))}."
        yield f"  {_escape(describe_machine(run))}."
    yield ""
    for line in report.left_out:
        yield f"- Left out: {_escape(line)}"
    yield f"\nWritten {report.created}."


def describe_machine(run: StoredRun) -> str:
    """Describe in a line what a run ran on: processor, threads, precision, versions, commit."""
    environment = run.record.environment
    versions = ", ".join(f"{name} {version}" for name, version in environment.packages.items() if version)
    parts = [
        environment.processor,
        *([", ".join(environment.gpus)] if environment.gpus else []),
        f"{environment.num_processes} x {environment.num_threads} threads",
        f"{environment.precision} (predictions {environment.prediction_precision})",
        f"Python {environment.python}",
        versions,
        f"commit {environment.git_commit}",
    ]
    return "; ".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [
        *(f"| {' | '.join(_escape(cell) if cell != '---' else cell for cell in line)} |" for line in lines),
        "",
    ]
