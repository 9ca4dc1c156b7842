"""Write a model so that it reloads."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune.data.cutting import TextConfig
from finetune.errors import FinetuneError
from finetune.families.tfidf.classifier import LABEL_NAMES_FILE, TfidfClassifier
from finetune.files import is_disk_full, replace_folder, write_json
from finetune.models.finetune_config import FINETUNE_CONFIG_FILE, FinetuneConfig, read_finetune_config
from finetune.models.quantization import is_four_bit

__all__ = [
    "FINETUNE_CONFIG_FILE",
    "FinetuneConfig",
    "count_bytes",
    "read_finetune_config",
    "write_model",
    "write_thresholds",
]


def write_model(
    folder: Path,
    model: PreTrainedModel | PeftModel | TfidfClassifier,
    tokenizer: PreTrainedTokenizerBase | None,
    text_config: TextConfig | None = None,
    thresholds: Sequence[float] | None = None,
    weights: dict[str, Any] | None = None,
    is_paired: bool | None = None,
    encoding: str | None = None,
    is_numbered: bool | None = None,
) -> None:
    """Write a model, its tokenizer and its label names aside and rename the folder, so that it is always whole.

    `finetune_config.json` beside them holds what transformers' own files don't: how texts are cut, whether they come in
    pairs, how their bytes were read, and for adapters and TF-IDF the kind of task. `weights` are the whole ones of a
    model that is divided over processes.

    Raises:
        FinetuneError: If the disk is full.
    """
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir()
        told = {"is_paired": is_paired, "encoding": encoding, "is_numbered": is_numbered}
        _write_files(aside, model, tokenizer, text_config, thresholds, weights, told)
        replace_folder(folder, aside)
    except Exception as error:
        shutil.rmtree(aside, ignore_errors=True)
        if not is_disk_full(error):
            raise
        free = shutil.disk_usage(folder.parent).free
        raise FinetuneError(
            f"Expected {count_bytes(model):,} bytes free for the model in {str(folder)!r}, but found {free:,}. "
            "Make room, and start the same command again."
        ) from error


def _write_files(
    aside: Path,
    model: PreTrainedModel | PeftModel | TfidfClassifier,
    tokenizer: PreTrainedTokenizerBase | None,
    text_config: TextConfig | None,
    thresholds: Sequence[float] | None,
    weights: dict[str, Any] | None,
    told: dict[str, Any],
) -> None:
    if weights is None or isinstance(model, TfidfClassifier):
        model.save_pretrained(str(aside))
    else:
        model.save_pretrained(str(aside), state_dict=weights)
    if tokenizer is not None:
        tokenizer.save_pretrained(str(aside))
    if isinstance(model, PeftModel):  # an adapter folder has no config.json, so it would lose the label names
        (aside / "README.md").unlink(missing_ok=True)  # PEFT's empty card
        _sort_names(aside / "adapter_config.json")
        labels: Any = model.get_base_model().config.id2label  # type: ignore[union-attr]
        write_json(aside / LABEL_NAMES_FILE, [labels[number] for number in range(len(labels))])
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    problem_type = base.problem_type if isinstance(base, TfidfClassifier) else base.config.problem_type
    four_bit = isinstance(base, PreTrainedModel) and is_four_bit(base)
    found = None if thresholds is None else list(thresholds)
    config = FinetuneConfig(problem_type, text_config, found, four_bit, **told)
    write_json(aside / FINETUNE_CONFIG_FILE, config.to_dict())


def _sort_names(file: Path) -> None:
    """Put the names of modules, which PEFT writes from a set, into an order that does not depend on Python's hashes."""
    content = json.loads(file.read_text(encoding="utf-8"))
    for name in ("target_modules", "exclude_modules", "modules_to_save"):
        if isinstance(content.get(name), list):
            content[name] = sorted(content[name])
    file.write_text(json.dumps(content, indent=2, sort_keys=True), encoding="utf-8")


def count_bytes(model: Any) -> int:
    """Count the bytes of the weights that are saved: of an adapter those that are trained, else all."""
    if isinstance(model, TfidfClassifier):
        return model.num_bytes()
    saved = [weight for weight in model.parameters() if weight.requires_grad or not isinstance(model, PeftModel)]
    return sum(weight.numel() * weight.element_size() for weight in saved)


def write_thresholds(folder: Path, thresholds: Sequence[float]) -> None:
    """Add the probabilities from which on labels are predicted to a saved model."""
    content = json.loads((folder / FINETUNE_CONFIG_FILE).read_text(encoding="utf-8"))
    write_json(folder / FINETUNE_CONFIG_FILE, {**content, "thresholds": list(thresholds)})
