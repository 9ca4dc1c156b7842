"""Fold an adapter into the weights it was trained on: a model that everything loads, no slower than its base."""

from typing import Any

from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from transformers import PreTrainedModel

from finetune.errors import FinetuneError
from finetune.models.quantization import is_four_bit

__all__ = ["merge_adapter"]


def merge_adapter(model: PeftModel) -> PreTrainedModel:
    """Fold an adapter into its base model, which then carries the label names in its own `config.json`.

    Args:
        model: Is used up: its base becomes the result.

    Raises:
        FinetuneError: If the adapter is none that merges: virtual tokens, or weights in four bits.
    """
    config: Any = next(iter(model.peft_config.values()))
    method = str(config.peft_type.value).lower()
    instead = "Push the adapter itself with --adapter."
    base: Any = model.get_base_model()
    if is_four_bit(base):
        raise FinetuneError(
            "Expected an adapter on float weights to merge, but its base is held in four bits, to which the sum would "
            f"have to be rounded again. {instead}"
        )
    if not hasattr(model.base_model, "merge_and_unload"):
        raise FinetuneError(f"Expected an adapter that merges, but {method} does not. {instead}")
    # PEFT's merging takes these wrappers for one of its layers, and some methods stop at a head of several layers.
    for name, module in list(model.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, module.modules_to_save[module.active_adapter])
    try:
        merged = model.merge_and_unload()
    except (AttributeError, TypeError, ValueError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise FinetuneError(
            f"Expected an adapter that merges, but PEFT says of {method}: {reason}. {instead}"
        ) from error
    return merged
