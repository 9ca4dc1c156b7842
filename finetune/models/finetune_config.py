"""What a saved model's own files don't say; cheap to import, since a model without torch needs it too."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.data.cutting import TRUNCATIONS, WINDOW_POOLINGS, TextConfig
from finetune.errors import FinetuneError
from finetune.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL

__all__ = ["FINETUNE_CONFIG_FILE", "FinetuneConfig", "read_finetune_config"]

FINETUNE_CONFIG_FILE = "finetune_config.json"


@dataclass(frozen=True)
class FinetuneConfig:
    """What a saved model's own files don't say; it lies beside them in `finetune_config.json`.

    Attributes:
        problem_type: transformers' name of the task.
        text: How texts are cut; None for TF-IDF, and for models that were not trained here.
        thresholds: For several labels a text: the probability, in (0, 1), from which on each label is predicted.
        four_bit: Whether the adapter's base is held in four bits.
        is_paired: Whether it was trained on pairs of texts; None for models that don't say.
    """

    problem_type: str = SINGLE_LABEL
    text: TextConfig | None = None
    thresholds: list[float] | None = None
    four_bit: bool = False
    is_paired: bool | None = None


def read_finetune_config(folder: Path) -> FinetuneConfig:
    """Read `finetune_config.json`; without it, one class of several, its texts cut as the tokenizer says.

    Raises:
        FinetuneError: If it is not as it was written.
    """
    file = folder / FINETUNE_CONFIG_FILE
    if not file.is_file():
        return FinetuneConfig()
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        text = content.get("text") and TextConfig(**content["text"])
        found = {name: content[name] for name in ("thresholds", "four_bit", "is_paired") if name in content}
        config = FinetuneConfig(content["problem_type"] or SINGLE_LABEL, text, **found)
        reason = _find_fault(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__} {error}"
    if reason is not None:
        raise FinetuneError(f"Expected {str(file)!r} as finetune writes it, but got: {reason}. Save the model again.")
    return config


def _find_fault(config: FinetuneConfig) -> str | None:
    """Tell which of the values none of the writers writes."""
    text, thresholds = config.text, config.thresholds
    if config.problem_type not in (SINGLE_LABEL, MULTI_LABEL, REGRESSION):
        return f"problem_type {config.problem_type!r}"
    if text is not None and (text.truncation not in TRUNCATIONS or text.window_pooling not in WINDOW_POOLINGS):
        return f"text {text.to_dict()}"
    if text is not None and not (_is_count(text.max_length, 1) and _is_count(text.window_stride, 0)):
        return f"text {text.to_dict()}"
    if thresholds is not None and not all(isinstance(value, float | int) and 0 <= value <= 1 for value in thresholds):
        return f"thresholds {thresholds}"
    wrong = [name for name in ("four_bit", "is_paired") if not isinstance(getattr(config, name), bool | None)]
    return f"{wrong[0]} {getattr(config, wrong[0])!r}" if wrong else None


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and value >= least
