"""A finding: what was seen, in which rows, and what to do about it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from finetune.escape import to_terminal

__all__ = ["SEVERITIES", "Finding", "describe_findings", "from_json", "has_errors", "to_json"]

# Errors stop a training; warnings change what its figures mean; notes are good to know.
SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """Something seen in the data.

    Attributes:
        name: What it is, in a few words joined by underscores.
        severity: One of `SEVERITIES`.
        splits: The splits it is about.
        num_rows: How many rows it concerns.
        message: What was seen.
        advice: What to do about it.
        examples: A few of the rows: split, id, label and the beginning of the text.
    """

    name: str
    severity: str
    splits: tuple[str, ...]
    num_rows: int
    message: str
    advice: str
    examples: tuple[dict[str, Any], ...] = ()


def has_errors(findings: Sequence[Finding]) -> bool:
    """Return whether any finding stops a training."""
    return any(finding.severity == "error" for finding in findings)


def to_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Return findings as JSON has them."""
    return [asdict(finding) for finding in findings]


def from_json(content: Sequence[dict[str, Any]]) -> list[Finding]:
    """Read what `to_json` gave."""
    return [
        Finding(**{**fields, "splits": tuple(fields["splits"]), "examples": tuple(fields["examples"])})
        for fields in content
    ]


def describe_findings(findings: Sequence[Finding], with_notes: bool = True) -> str:
    """Write findings for a person, the severest first."""
    lines = []
    for severity in SEVERITIES if with_notes else SEVERITIES[:2]:
        for finding in (finding for finding in findings if finding.severity == severity):
            lines.append(f"{severity:<8} {finding.name.replace('_', ' ')}: {finding.message}")
            for example in finding.examples:
                label = "" if example["label"] is None else f" [{example['label']}]"
                lines.append(f"{'':<10}{example['split']} {example['id']}{label}: {example['text']}")
            if finding.advice:
                lines.append(f"{'':<8} → {finding.advice}")
    counts = {severity: sum(finding.severity == severity for finding in findings) for severity in SEVERITIES}
    lines.append(", ".join(f"{count} {severity}{'s' if count != 1 else ''}" for severity, count in counts.items()))
    return "\n".join(map(to_terminal, lines))
