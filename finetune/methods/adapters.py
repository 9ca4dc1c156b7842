"""Adapters, through PEFT: a preset of the catalogue, or any of PEFT's config classes with the fields of a YAML file."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import PeftModel, PeftType, TaskType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import PreTrainedModel

from finetune.catalogue import CATALOGUE
from finetune.errors import FinetuneError
from finetune.models.load import HEADS
from finetune.models.precision import keep_activations_in_bf16

__all__ = ["add_adapter", "read_peft_config"]

UNPLANNED = 10**9  # AdaLoRA wants to know the steps of the training, which are set when it begins


def read_peft_config(path: str) -> dict[str, Any]:
    """Read the fields of a PEFT config from a YAML file.

    Raises:
        FinetuneError: If it is not a file of names and values.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FinetuneError(f"Expected a YAML file after --peft_config, but {path!r} can't be read: {error}") from error
    if not isinstance(content, dict):
        raise FinetuneError(f"Expected 'name: value' lines in {path!r}, but found a {type(content).__name__}.")
    return content


def add_adapter(model: PreTrainedModel, method: str, settings: dict[str, Any], new_modules: list[str]) -> PeftModel:
    """Wrap a model so that an adapter trains, and every newly initialised module.

    A module that the checkpoint lacked is trained in full and saved with the adapter: left frozen, it would be drawn
    anew at every load. It is kept out of what the adapter changes.

    Args:
        model: Its logits are unchanged until the first step for LoRA and its kin, whose B starts at zero.
        method: A name of the catalogue; with "peft" `settings` holds the `peft_type`.
        settings: Fields of PEFT's config class on top of the preset's.
        new_modules: Names of the modules that the checkpoint lacked.

    Raises:
        FinetuneError: If there is no such PEFT method or field, or it does not fit the model.
    """
    fields = {**CATALOGUE[method].peft_config, **settings}
    peft_type = str(fields.pop("peft_type", CATALOGUE[method].peft_type)).upper()
    if peft_type not in PeftType.__members__ or PeftType[peft_type] not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise FinetuneError(
            f"Expected a peft_type that PEFT knows in --peft_config, but got {peft_type!r}. "
            f"It knows {', '.join(sorted(member.name for member in PEFT_TYPE_TO_CONFIG_MAPPING))}."
        )
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[peft_type]]
    known = {field.name for field in dataclasses.fields(config_class)}
    unknown = sorted(fields.keys() - known)
    if unknown:
        raise FinetuneError(f"Expected fields of {config_class.__name__}, but got {unknown}. It has {sorted(known)}.")
    if "exclude_modules" in known:
        fields.setdefault("exclude_modules", [*HEADS, *new_modules])
    if "modules_to_save" in known:
        fields.setdefault("modules_to_save", new_modules or None)
    if "total_step" in known:
        fields.setdefault("total_step", UNPLANNED)
    try:
        config = config_class(task_type=TaskType.SEQ_CLS, **fields)
        wrapped = get_peft_model(model, config, revision=getattr(model.config, "_commit_hash", None))
        _try(wrapped)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise FinetuneError(
            f"Expected a {peft_type} adapter that fits {type(model).__name__}, but PEFT says: {reason}. "
            "Other fields go into --peft_config."
        ) from error
    keep_activations_in_bf16(wrapped)
    return wrapped


@torch.no_grad()
def _try(model: PeftModel) -> None:
    """Run a few tokens through, since PEFT notices some misfits only then."""
    tokens = torch.ones((1, 4), dtype=torch.long, device=model.device)
    before = model.training
    model.train()  # in evaluation bitsandbytes would pack its weights for good
    with torch.random.fork_rng():  # dropout must not draw from the run's own stream
        model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    model.train(before)
