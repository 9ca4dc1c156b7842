"""What a saved model's own files don't say; cheap to import, since a model without torch needs it too."""

import json
from dataclasses import dataclass
from pathlib import Path

from finetune.data.cutting import TextConfig
from finetune.tasks import SINGLE_LABEL

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
    """

    problem_type: str = SINGLE_LABEL
    text: TextConfig | None = None
    thresholds: list[float] | None = None
    four_bit: bool = False


def read_finetune_config(folder: Path) -> FinetuneConfig:
    """Read `finetune_config.json`; without it, one class of several, its texts cut as the tokenizer says."""
    file = folder / FINETUNE_CONFIG_FILE
    if not file.is_file():
        return FinetuneConfig()
    content = json.loads(file.read_text(encoding="utf-8"))
    text = content.get("text") and TextConfig(**content["text"])
    return FinetuneConfig(content["problem_type"], text, content.get("thresholds"), content.get("four_bit", False))
