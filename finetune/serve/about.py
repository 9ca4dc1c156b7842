"""What the service says of its model, in words: what it does, what it was trained on, how good it is."""

import json
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError
from finetune.inference.exported import EXPORT_FILE, INT8_FILE, find_graph, is_exported
from finetune.models.answers import TextClassifier
from finetune.run.record import CompleteRecord, has_record
from finetune.run.summary import describe_quality
from finetune.tasks import MULTI_LABEL, REGRESSION

__all__ = ["MOST_EXAMPLES", "describe_predictor", "read_examples", "read_facts"]

MOST_EXAMPLES = 20


def describe_predictor(predictor: TextClassifier) -> dict[str, str]:
    """Describe what a loaded model says of itself, by name: its task, what it reads, how it answers."""
    labels, config = predictor.label_names, predictor.text_config
    task = {REGRESSION: "a number", MULTI_LABEL: f"any of {len(labels)} labels"}
    what = task.get(predictor.task.problem_type, f"one of {len(labels)} labels")
    facts = {"Predicts": f"{what}, for pairs of texts" if predictor.is_paired else what}
    if config is None:
        facts["Reads"] = "whole texts"
    elif config.truncation == "window":
        facts["Reads"] = f"whole texts, in windows of {config.max_length:,} tokens"
    else:
        facts["Reads"] = f"{config.max_length:,} tokens of a text ({config.truncation})"
    silence, sets = predictor.rules.abstention, predictor.rules.prediction_sets
    if silence is not None:
        facts["Answers"] = f"where {silence.precision:.1%} of its answers are right; else it is not sure"
    if sets is not None:
        each = ", for each class" if sets.class_conditional else ""
        facts["Intervals" if predictor.task.problem_type == REGRESSION else "Sets of labels"] = (
            f"hold what is right for {sets.coverage:.1%} of texts{each}"
        )
    return facts


def read_facts(folder: Path) -> dict[str, str]:
    """Read what is known of a model beside it: from the record of its run, or what its export was measured to be.

    Args:
        folder: A run directory or an export; of anything else nothing is known.

    Returns:
        Facts by name, in words; none of them a path of this machine.
    """
    if is_exported(folder):
        return _describe_export(folder)
    if not has_record(folder):
        return {}
    try:
        record = CompleteRecord.read(folder)
    except FinetuneError:  # of an unfinished run, whose model is refused where it is loaded
        return {}
    splits = record.data.splits
    return {
        "Method": f"{record.method}: {record.model.architecture}",
        "Trained on": f"{splits.train.rows:,} texts",
        "On test": f"{describe_quality(record.metrics.test)}, {splits.test.rows:,} texts",
    }


def _describe_export(folder: Path) -> dict[str, str]:
    facts = {"Format": f"ONNX{', 8 bits' if find_graph(folder).name == Path(INT8_FILE).name else ''}"}
    try:
        measured: dict[str, Any] = json.loads((folder / EXPORT_FILE).read_text(encoding="utf-8"))["measured"]
        facts["Checked"] = (
            f"gives the answers of the original on {measured['agreement']:.1%} of {measured['num_texts']:,} texts"
        )
    except (OSError, ValueError, KeyError, TypeError):  # written by hand, or by an early version
        pass
    return facts


def read_examples(path: str) -> list[list[str]]:
    """Read texts to try from a file, one a line; the second text of a pair follows a tab.

    Raises:
        FinetuneError: If it can't be read as UTF-8, has no text, or more than `MOST_EXAMPLES`.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise FinetuneError(
            f"Expected --examples to be a text file in UTF-8, but {path!r} can't be read: {error}. Pass another one."
        ) from None
    examples = [line.split("\t")[:2] for line in lines if line.strip()]
    if not 1 <= len(examples) <= MOST_EXAMPLES:
        raise FinetuneError(
            f"Expected 1 to {MOST_EXAMPLES} lines in {path!r}, but got {len(examples)}. Each is an example of the page."
        )
    return examples
