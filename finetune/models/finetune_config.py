"""What a saved model's own files don't say; cheap to import, since a model without torch needs it too."""

import json
from dataclasses import dataclass
from pathlib import Path

from finetune.data.cutting import TextConfig
from finetune.errors import FinetuneError
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
        FinetuneError: If the file is not what finetune writes.
    """
    file = folder / FINETUNE_CONFIG_FILE
    if not file.is_file():
        return FinetuneConfig()
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        text = content.get("text") and TextConfig(**content["text"])
        found = {name: content[name] for name in ("thresholds", "four_bit", "is_paired") if name in content}
        return FinetuneConfig(content["problem_type"], text, **found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FinetuneError(
            f"Expected {str(file)!r} as finetune writes it, but reading it gave {type(error).__name__}: {error}. Save "
            "the model again."
        ) from error
