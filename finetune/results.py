"""What the public functions return: a finished run, a comparison, findings; each shows itself in a notebook."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import failures_explained
from finetune.escape import to_html

if TYPE_CHECKING:
    import pandas

    from finetune.comparison.report import Report
    from finetune.models.answers import Prediction, TextClassifier
    from finetune.models.explanation import Explanation
    from finetune.run.record import CompleteRecord

__all__ = ["Comparison", "Findings", "TrainedRun"]


class TrainedRun:
    """A finished run.

    Attributes:
        directory: The run directory: `run.json`, the model, the predictions, the learning curve.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)

    @functools.cached_property
    def record(self) -> "CompleteRecord":
        """What ran, on what, at what cost, how well; `docs/reference/run.md` describes every field."""
        from finetune.run.record import CompleteRecord

        return CompleteRecord.read(self.directory)

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics of the saved model on `"validation"` and `"test"`, with 95 % intervals as `..._interval`."""
        return self.record.metrics.to_dict()

    @functools.cached_property
    @failures_explained()
    def classifier(self) -> "TextClassifier":
        """The saved model, loaded."""
        from finetune.inference.predict import load_predictor
        from finetune.quiet import quietly

        with quietly():
            return load_predictor(self.directory, accelerated=self.record.arguments.run.get("accelerated", True))

    def predict(self, texts: str | Iterable[str], pairs: str | Iterable[str] | None = None) -> "list[Prediction]":
        """Predict with the saved model.

        Args:
            texts: Any number of them; a single one counts as a list of one.
            pairs: A second text for each, if the model was trained on pairs.

        Returns:
            For each text its label, the label's probability, and all probabilities; its number for regression.
        """
        return self.classifier.predict(texts, pairs)

    @failures_explained()
    def explain(
        self, texts: str | Iterable[str], pairs: str | Iterable[str] | None = None, label: str | None = None
    ) -> "list[Explanation]":
        """Say what each word contributed to the saved model's answers.

        Args:
            texts: Any number of them; a single one counts as a list of one.
            pairs: A second text for each, if the model was trained on pairs.
            label: The label to explain; if None each text's answer, of several labels the most probable one.

        Returns:
            For each text what its words contributed, in a notebook as coloured text.
        """
        return self.classifier.explain(texts, pairs, label)

    @failures_explained()
    def push(self, name: str, *, private: bool = True, **how: Any) -> None:
        """Put the model on the Hub, fetch it back, and compare its logits.

        Args:
            name: `user/name`.
            private: Whether only its owner can see it.
            **how: `revision`, `adapter`, `message` and `card`, as of `finetune push`.
        """
        from finetune.hub.push import push

        push(str(self.directory), name, private=private, **how)

    def __repr__(self) -> str:
        from finetune.run.summary import summarize

        return summarize(self.record, self.directory)

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th style='text-align:left'>{to_html(line[:17].strip())}</th>"
            f"<td style='text-align:left'>{to_html(line[17:])}</td></tr>"
            for line in repr(self).splitlines()
        )
        return f"<table>{cells}</table>"


class Comparison:
    """What some finished runs show.

    Attributes:
        failures: A line for each run that has not finished.
    """

    def __init__(
        self,
        runs: Sequence[str | Path],
        metric: str | None = None,
        margin: float = 1.0,
        cost: str | None = None,
        failures: Sequence[str] = (),
    ):
        from finetune.comparison.report import build_report

        self.failures = list(failures)
        self.report: Report = build_report(list(runs), metric, margin, cost)

    @property
    def verdict(self) -> str:
        """Which method to take, or that it is not decided, why, and under which conditions."""
        from finetune.comparison.text import describe_verdict

        return " ".join([*describe_verdict(self.report), *self.report.conditions])

    def table(self) -> "pandas.DataFrame":
        """Return a row for each method: each metric with the bounds of its 95 % interval, and the costs."""
        import pandas

        rows = []
        for row in self.report.rows:
            cells: dict[str, Any] = {"method": row.name, "seeds": len(row.seeds)}
            for name, interval in row.quality.items():
                cells |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
            rows.append({**cells, **row.costs})
        return pandas.DataFrame(rows).set_index("method")

    @failures_explained()
    def save_html(self, path: str | Path, explain: bool = False) -> Path:
        """Write the whole report, with its figures, as one page that needs no network.

        Args:
            path: The file.
            explain: Whether to load the models, and show the words that decide each class, and those of mistakes.
        """
        if explain and self.report.reasons is None:
            from finetune.inference.reasons import explain_report
            from finetune.quiet import quietly

            with quietly():
                self.report = dataclasses.replace(self.report, reasons=explain_report(self.report))
        from finetune.comparison.drawings import draw_report
        from finetune.comparison.page import build_page
        from finetune.files import write_aside

        target = Path(path)
        with write_aside(target) as aside:
            aside.write_bytes(build_page(self.report, draw_report(self.report)).encode("utf-8", "replace"))
        return target

    def __repr__(self) -> str:
        from finetune.comparison.text import describe_report

        return describe_report(self.report)

    def _repr_html_(self) -> str:
        return f"<p><b>{to_html(self.verdict)}</b></p>{self.table().to_html(float_format='{:.4g}'.format)}"


class Findings(list):
    """What the data doctor found: a list of findings, the severest first."""

    @property
    def has_errors(self) -> bool:
        """Whether a finding would stop a training."""
        return any(finding.severity == "error" for finding in self)

    def __repr__(self) -> str:
        from finetune.data_doctor.findings import describe_findings

        return describe_findings(self)

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td>{finding.severity}</td><td style='text-align:left'>{to_html(finding.name.replace('_', ' '))}"
            f"</td><td style='text-align:left'>{to_html(finding.message)} {to_html(finding.advice)}</td></tr>"
            for finding in self
        )
        return f"<table><tr><th></th><th>finding</th><th></th></tr>{cells}</table>"
