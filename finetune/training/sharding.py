"""Weights that are divided over processes by FSDP or ZeRO: when, by which layers, and whole again for saving.

Models are loaded whole, since heads, adapters and dropout are put onto whole ones, and divided when the `Trainer`
starts.
"""

import os
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, Trainer
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from finetune.adapted import without_adapter

__all__ = ["gather_weights", "load_whole", "name_layers_for_fsdp"]

LAYERS = "FSDP_TRANSFORMER_CLS_TO_WRAP"  # read by accelerate and by PEFT


def load_whole() -> None:
    """Let `from_pretrained` give whole weights under ZeRO 3, whose settings make it divide them."""
    unset_hf_deepspeed_config()


def name_layers_for_fsdp(model: PreTrainedModel | PeftModel) -> None:
    """Name to accelerate the layers to gather by themselves, unless its configuration file does.

    A model's own list may name its embeddings, which accelerate divides as well: FSDP 2 refuses to do it twice.
    """
    if os.environ.get("ACCELERATE_USE_FSDP") != "true":
        return
    base: Any = without_adapter(model)
    listed = base._no_split_modules or ()
    embeddings = base.get_input_embeddings()
    holders = {type(module).__name__ for module in base.modules() if embeddings in module.modules()}
    found = {type(module).__name__ for module in base.modules()} & set(listed) - holders
    if found:
        os.environ.setdefault(LAYERS, ",".join(sorted(found)))


def gather_weights(trainer: Trainer) -> dict[str, Any] | None:
    """Collect a trained model's whole weights, on the main process; every process must call it.

    Returns:
        None where each process holds all weights anyway.
    """
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        return None
    load_whole()  # the saved model, to be measured
    return trainer.accelerator.get_state_dict(trainer.model_wrapped)
