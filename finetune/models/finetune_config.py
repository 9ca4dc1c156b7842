"""What a saved model's own files don't say; cheap to import, since a model without torch needs it too."""

import codecs
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.data.cutting import TRUNCATIONS, WINDOW_POOLINGS, TextConfig
from finetune.errors import FinetuneError
from finetune.examination.documents import is_whole, read_object
from finetune.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL

__all__ = ["FINETUNE_CONFIG_FILE", "FinetuneConfig", "read_finetune_config"]

MOST_TOKENS = 10**9  # of a text, and of what its windows share
FINETUNE_CONFIG_FILE = "finetune_config.json"
KNOWN = ("problem_type", "text")
OPTIONAL = ("thresholds", "four_bit", "is_paired", "encoding", "is_numbered", "family")


@dataclass(frozen=True)
class FinetuneConfig:
    """What a saved model's own files don't say; it lies beside them in `finetune_config.json`.

    Attributes:
        problem_type: transformers' name of the task.
        text: How texts are cut; None for TF-IDF, and for models that were not trained here.
        thresholds: For several labels a text: the probability, in (0, 1), from which on each label is predicted.
        four_bit: Whether the adapter's base is held in four bits.
        is_paired: Whether it was trained on pairs of texts; None for models that don't say.
        encoding: What bytes of its training texts that are no UTF-8 were read as; None if there were none.
        is_numbered: Whether the order of its labels is that of the class names of their source, so that numbers may
            stand for them.
        family: Which family reads the folder: a name of `finetune.catalogue.FAMILIES`, or where one is imported from;
            None for models that don't say.
    """

    problem_type: str = SINGLE_LABEL
    text: TextConfig | None = None
    thresholds: list[float] | None = None
    four_bit: bool = False
    is_paired: bool | None = None
    encoding: str | None = None
    is_numbered: bool | None = None
    family: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what `finetune_config.json` holds: the task and how texts are cut, and what else is known."""
        known = {name: value for name, value in vars(self).items() if value is not None and name != "text"}
        if not self.four_bit:
            del known["four_bit"]
        return {"problem_type": self.problem_type, "text": self.text and self.text.to_dict(), **known}


def read_finetune_config(folder: Path) -> FinetuneConfig:
    """Read `finetune_config.json`; without it, one class of several, its texts cut as the tokenizer says.

    Raises:
        FinetuneError: If it is not as it was written.
    """
    file = folder / FINETUNE_CONFIG_FILE
    if not file.is_file():
        return FinetuneConfig()
    try:
        content = read_object(file)
        unknown = [name for name in content if name not in (*KNOWN, *OPTIONAL)]
        text = content.get("text") and TextConfig(**content["text"])
        found = {name: content[name] for name in OPTIONAL if name in content}
        config = FinetuneConfig(content["problem_type"] or SINGLE_LABEL, text, **found)
        reason = f"{unknown[0]!r}, which nothing reads" if unknown else _find_fault(config)
    except FinetuneError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__} {error}"
    if reason is not None:
        raise FinetuneError(f"Expected {str(file)!r} as finetune writes it, but got: {reason}. Save the model again.")
    return config


def _find_fault(config: FinetuneConfig) -> str | None:
    """Return which of the values none of the writers writes."""
    text, thresholds = config.text, config.thresholds
    if config.problem_type not in (SINGLE_LABEL, MULTI_LABEL, REGRESSION):
        return f"problem_type {config.problem_type!r}"
    if text is not None and (text.truncation not in TRUNCATIONS or text.window_pooling not in WINDOW_POOLINGS):
        return f"text {text.to_dict()}"
    if text is not None and not (_is_count(text.max_length, 1) and _is_count(text.window_stride, 0)):
        return f"text {text.to_dict()}"
    if thresholds is not None and not _are_probabilities(thresholds):
        return f"thresholds {thresholds}"
    wrong = [
        name for name in ("four_bit", "is_paired", "is_numbered") if not isinstance(getattr(config, name), bool | None)
    ]
    if not isinstance(config.family, str | None):
        return f"family {config.family!r}"
    if config.encoding is not None and not _is_encoding(config.encoding):
        return f"encoding {config.encoding!r}"
    return f"{wrong[0]} {getattr(config, wrong[0])!r}" if wrong else None


def _are_probabilities(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(one, float | int) and not isinstance(one, bool) and 0 <= one <= 1 for one in values
    )


def _is_encoding(name: Any) -> bool:
    try:
        return isinstance(name, str) and bool(codecs.lookup(name))
    except (LookupError, ValueError):
        return False


def _is_count(value: Any, least: int) -> bool:
    return is_whole(value) and least <= value <= MOST_TOKENS
