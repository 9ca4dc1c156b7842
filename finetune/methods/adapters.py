"""Adapters, through PEFT: a preset of the catalogue, or any of PEFT's config classes with the fields of a YAML file."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, PeftType, TaskType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import PreTrainedModel

from finetune.adapted import has_adapter
from finetune.errors import FinetuneError, explain_shortage
from finetune.examination.patterns import refuse_endless_patterns
from finetune.lookup import find_method
from finetune.models.inputs import count_positions, make_sample
from finetune.models.load import HEADS, hub_commit_of
from finetune.settings.parts import MethodArguments
from finetune.settings.peft_config import read_peft_config

__all__ = ["add_adapter", "fitting_adapter", "lora_over", "refuse_too_long"]

OWN_FIELDS = {"task_type", "inference_mode"}
UNPLANNED = 10**9  # AdaLoRA wants to know the steps of the training, which are set when it begins


def add_adapter(
    model: PreTrainedModel,
    method: str,
    settings: dict[str, Any],
    new_modules: list[str],
    task_type: TaskType | None = TaskType.SEQ_CLS,
) -> PeftModel:
    """Wrap a model so that an adapter trains, and every newly initialised module.

    A module that the checkpoint lacked is trained in full and saved with the adapter: left frozen, it would be drawn
    anew at every load. It is kept out of what the adapter changes.

    Args:
        model: Its logits are unchanged until the first step for LoRA and its kin, whose B starts at zero.
        method: Its name; with "peft" `settings` holds the `peft_type`.
        settings: Fields of PEFT's config class on top of the preset's.
        new_modules: Names of the modules that the checkpoint lacked.
        task_type: PEFT's name of what the model is; None for an encoder without a head.

    Raises:
        FinetuneError: If there is no such PEFT method or field, or it does not fit the model.
    """
    fields = {**find_method(method).peft_config, **settings}
    preset = find_method(method).peft_type
    peft_type = str(fields.pop("peft_type", preset)).upper()
    if preset is not None and peft_type != preset:
        raise FinetuneError(
            f"Expected one method, but got --method {method} and peft_type {peft_type} in --peft_config. Pass "
            "--method peft for the latter, or leave the peft_type out."
        )
    if peft_type not in PeftType.__members__ or PeftType[peft_type] not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise FinetuneError(
            f"Expected a peft_type that PEFT knows in --peft_config, but got {peft_type!r}. "
            f"It knows {', '.join(sorted(member.name for member in PEFT_TYPE_TO_CONFIG_MAPPING))}."
        )
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[peft_type]]
    known = _check_fields(config_class, fields)
    _refuse_endless_patterns(settings, model)
    if "exclude_modules" in known:
        fields.setdefault("exclude_modules", [*HEADS, *new_modules])
    if "modules_to_save" in known:
        modules = [name for name, _ in model.named_modules()]
        more = _names(fields.get("modules_to_save"))
        there = [name for name in more if any(f".{module}".endswith(f".{name}") for module in modules)]
        if "modules_to_save" in settings and there != more:
            missing = next(name for name in more if name not in there)
            raise FinetuneError(f"Expected modules of the model as modules_to_save, but it has no {missing!r}.")
        fields["modules_to_save"] = list(dict.fromkeys([*new_modules, *there])) or None
    if peft_type == "PROMPT_TUNING":  # of the width of word vectors, which in ALBERT is not the hidden size
        embeddings: Any = model.get_input_embeddings()
        fields.setdefault("token_dim", embeddings.embedding_dim)
    if "total_step" in known:
        fields.setdefault("total_step", UNPLANNED)
    with fitting_adapter(model, peft_type):
        config = config_class(task_type=task_type, **fields)
        wrapped = get_peft_model(model, config, revision=hub_commit_of(model))
        _try(wrapped)
    return wrapped


@contextlib.contextmanager
def fitting_adapter(model: PreTrainedModel, peft_type: str = "LORA") -> Iterator[None]:
    """Add an adapter with `get_peft_model`.

    Raises:
        FinetuneError: For what PEFT raises where the adapter does not fit the model, in one line.
    """
    try:
        yield
    except FinetuneError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise explain_shortage(error) or FinetuneError(
            f"Expected a {peft_type} adapter that fits {type(model).__name__}, but PEFT says: {reason}. "
            "Other fields go into --peft_config."
        ) from error


def lora_over(arguments: MethodArguments, model: PreTrainedModel, **written: Any) -> dict[str, Any]:
    """Put `--lora_r`, `--lora_alpha`, `--lora_dropout` and `--peft_config` over a `LoraConfig` that is written out.

    Args:
        arguments: The flags.
        model: What it is for: patterns of the names of its modules that may match without end are refused.
        **written: Fields of `LoraConfig`. To its `modules_to_save`, which train in full, those of `--peft_config` are
            added; the former get no adapter.

    Returns:
        Keyword arguments for `LoraConfig`.

    Raises:
        FinetuneError: If `--peft_config` has another `peft_type`, or fields that `LoraConfig` lacks.
    """
    settings = {} if arguments.peft_config is None else read_peft_config(arguments.peft_config)
    if str(settings.pop("peft_type", "LORA")).upper() != "LORA":
        raise FinetuneError(
            "Expected the peft_type LORA, or none, in --peft_config, for that is what this recipe trains. "
            "`finetune train --method peft` takes the others."
        )
    _check_fields(LoraConfig, settings)
    _refuse_endless_patterns(settings, model)
    given = {"r": arguments.lora_r, "lora_alpha": arguments.lora_alpha, "lora_dropout": arguments.lora_dropout}
    fields = {**written, **{name: value for name, value in given.items() if value is not None}, **settings}
    whole = _names(written.get("modules_to_save"))
    fields["modules_to_save"] = list(dict.fromkeys([*whole, *_names(settings.get("modules_to_save"))])) or None
    return {"exclude_modules": [*HEADS, *whole], **fields}


def _check_fields(config_class: type, fields: Mapping[str, Any]) -> set[str]:
    """Return the fields of a config class of PEFT; refuse others, and those that a training sets."""
    known = {field.name for field in dataclasses.fields(config_class)}
    unknown = sorted(fields.keys() - known)
    if unknown:
        raise FinetuneError(f"Expected fields of {config_class.__name__}, but got {unknown}. It has {sorted(known)}.")
    for name in sorted(OWN_FIELDS & fields.keys()):
        raise FinetuneError(f"Expected no {name} in --peft_config, which is always that of a training. Leave it out.")
    return known


def _refuse_endless_patterns(settings: Mapping[str, Any], model: PreTrainedModel) -> None:
    refuse_endless_patterns(settings, [name for name, _ in model.named_modules()], Path("--peft_config"))


def refuse_too_long(model: Any, max_length: int) -> None:
    """Refuse texts that virtual tokens before them would push beyond the model's last position.

    Raises:
        FinetuneError: If `max_length` and the virtual tokens are more than the model was built for.
    """
    if not has_adapter(model) or not model.active_peft_config.is_prompt_learning:
        return
    most, virtual = count_positions(model), model.active_peft_config.num_virtual_tokens
    if most is not None and max_length > most:
        raise FinetuneError(
            f"Expected --max_length of at most {most}, since {virtual} virtual tokens come before a text and the model "
            f"was built for {most + virtual}, but got {max_length}. Pass --max_length {most}."
        )


def _names(field: Any) -> list[str]:
    """Return a field of PEFT that is None, a name, or several."""
    return [] if field is None else [field] if isinstance(field, str) else list(field)


@torch.no_grad()
def _try(model: PeftModel) -> None:
    """Run a few tokens through, since PEFT notices some misfits only then."""
    sample = make_sample(model.get_base_model())  # type: ignore[arg-type]
    before = model.training
    model.train()  # in evaluation bitsandbytes would pack its weights for good
    with torch.random.fork_rng():  # dropout must not draw from the run's own stream
        model(**sample)
    model.train(before)
