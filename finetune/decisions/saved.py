"""The rules beside a saved model, and the rows that they were fitted on, so that others can be asked for later.

`decisions.json` has the rules; `validation.safetensors` the logits and labels of the validation split, without texts.
"""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.special import expit, logit

from finetune.decisions.abstention import Abstention
from finetune.decisions.calibration import TEMPERATURES
from finetune.decisions.prediction_sets import PredictionSets
from finetune.decisions.rules import DecisionRules, HeldOut, Wishes, fit_rules
from finetune.errors import FinetuneError
from finetune.examination.checksums import write_checksums
from finetune.examination.documents import read_object, show
from finetune.files import write_aside, write_json
from finetune.tasks import Task

__all__ = [
    "DECISIONS_FILE",
    "HELD_OUT_FILE",
    "copy_rules",
    "read_held_out",
    "read_rules",
    "revise_rules",
    "write_rules",
]

DECISIONS_FILE = "decisions.json"
HELD_OUT_FILE = "validation.safetensors"


def write_rules(folder: Path, rules: DecisionRules, held_out: HeldOut) -> None:
    """Write rules, but for the thresholds, which the model's own config has, and what they were fitted on.

    The sums of the files in the folder, which this changes, are written anew.
    """
    with write_aside(folder / HELD_OUT_FILE) as aside:
        save_file({"logits": held_out.logits.astype(np.float32), "labels": np.asarray(held_out.labels)}, aside)
    write_json(folder / DECISIONS_FILE, _to_dict(rules))
    write_checksums(folder)


def copy_rules(source: Path, folder: Path) -> None:
    """Copy what `write_rules` wrote, if a model has it."""
    for name in (HELD_OUT_FILE, DECISIONS_FILE):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def read_rules(folder: Path, task: Task, thresholds: Any = None) -> DecisionRules:
    """Read what `write_rules` wrote; a folder without it answers with the most probable label.

    Args:
        folder: Of a model.
        task: What it predicts.
        thresholds: Of several labels the probabilities from which on each is predicted; one half if None.

    Raises:
        FinetuneError: If it is not as it was written.
    """
    rules = DecisionRules(task.problem_type, thresholds=0.5 if thresholds is None else np.asarray(thresholds))
    file = folder / DECISIONS_FILE
    if not file.is_file():
        return rules
    content = read_object(file)
    try:
        return _from_dict(content, rules, len(task.label_names))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FinetuneError(
            f"Expected {str(file)!r} as finetune writes it, but got: {type(error).__name__} {error}. Restore it, or "
            "remove it to answer with the most probable label."
        ) from error


def read_held_out(folder: Path, task: Task) -> HeldOut:
    """Read the logits and labels that the rules of a model were fitted on.

    Raises:
        FinetuneError: If they are not there, as in models of earlier versions, or not as they were written.
    """
    file = folder / HELD_OUT_FILE
    fix = "Train it again, or leave --abstain, --coverage, --cost_matrix and --no_calibrate out."
    if not file.is_file():
        raise FinetuneError(f"Expected {HELD_OUT_FILE} beside the model, but {str(folder)!r} has none. {fix}")
    try:
        arrays = load_file(file)
        logits, labels = arrays["logits"], arrays["labels"]
        several = task.problem_type == "multi_label_classification"
        shape = (len(logits), len(task.label_names))
        if logits.shape != shape or labels.shape != (shape if several else shape[:1]) or not np.isfinite(logits).all():
            raise ValueError(f"arrays of shapes {logits.shape} and {labels.shape} for {shape[1]} labels")
        if not (np.isfinite(labels).all() and (not several or np.isin(labels, (0, 1)).all())):
            raise ValueError("labels that are none")
        is_class = task.problem_type == "single_label_classification"
        if is_class and not (labels.dtype.kind == "i" and labels.min() >= 0 and labels.max() < shape[1]):
            raise ValueError("labels that are none of the model's")
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise FinetuneError(f"Expected {str(file)!r} as finetune writes it, but got: {error}. {fix}") from error
    return HeldOut(logits, labels)


def revise_rules(folder: Path, rules: DecisionRules, wishes: Wishes, task: Task) -> DecisionRules:
    """Fit the rules of a saved model anew, where something else is asked for than what was saved.

    Args:
        folder: Of the model.
        rules: What was saved.
        wishes: What is asked; what is not stays as it is.
        task: What the model predicts.

    Raises:
        FinetuneError: If it can't be had.
    """
    costs = wishes.costs
    if costs is None and rules.costs is not None:
        names = task.label_names
        costs = {
            truth: dict(zip(names, row, strict=True)) for truth, row in zip(names, rules.costs.tolist(), strict=True)
        }
    abstain, coverage, class_conditional = wishes.abstain, wishes.coverage, wishes.class_conditional
    if abstain is None and rules.abstention is not None:
        abstain = rules.abstention.precision
    if coverage is None and rules.prediction_sets is not None:
        coverage = rules.prediction_sets.coverage
        class_conditional = class_conditional or rules.prediction_sets.class_conditional
    temperature, thresholds = rules.temperature, rules.thresholds
    if not wishes.calibrate:
        thresholds = expit(logit(thresholds) * temperature)  # the same decisions
        temperature = 1.0
    wanted = Wishes(wishes.calibrate, abstain, coverage, class_conditional, costs)
    needs_rows = abstain is not None or coverage is not None
    held_out = read_held_out(folder, task) if needs_rows else None
    return fit_rules(wanted, held_out, task, temperature, thresholds)


def _to_dict(rules: DecisionRules) -> dict[str, Any]:
    content: dict[str, Any] = {"temperature": rules.temperature}
    if rules.costs is not None:
        content["costs"] = rules.costs.tolist()
    if rules.abstention is not None:
        content["abstention"] = vars(rules.abstention)
    if rules.prediction_sets is not None:
        sets = rules.prediction_sets
        finite = [value if math.isfinite(value) else None for value in sets.quantiles]  # JSON has no infinity
        content["prediction_sets"] = {**vars(sets), "quantiles": finite}
    return content


def _from_dict(content: dict[str, Any], rules: DecisionRules, num_labels: int) -> DecisionRules:
    temperature, costs, abstention, sets = _number(content["temperature"], *TEMPERATURES), None, None, None
    if unknown := content.keys() - {"temperature", "costs", "abstention", "prediction_sets"}:
        raise ValueError(f"{min(unknown)!r}, which nothing reads")
    if "costs" in content:
        costs = np.asarray(content["costs"], dtype=np.float64)
        if costs.shape != (num_labels, num_labels) or not (np.isfinite(costs).all() and (costs >= 0).all()):
            raise ValueError(f"costs {content['costs']}")
    if "abstention" in content:
        abstention = Abstention(**{name: _number(value, 0, 2) for name, value in content["abstention"].items()})
    if "prediction_sets" in content:
        given = content["prediction_sets"]
        quantiles = tuple(math.inf if value is None else _number(value, 0, math.inf) for value in given["quantiles"])
        sets = PredictionSets(_number(given["coverage"], 0, 1), bool(given["class_conditional"]), quantiles)
        if len(quantiles) != num_labels:
            raise ValueError(f"quantiles {given['quantiles']}")
    return replace(rules, temperature=temperature, costs=costs, abstention=abstention, prediction_sets=sets)


def _number(value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{show(value)}, no number from {low:g} to {high:g}")
    return float(value)
