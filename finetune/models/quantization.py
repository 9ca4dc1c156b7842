"""Weights held in four bits, for `--method qlora` (Dettmers et al. 2023): NormalFloat-4 with double quantization."""

import importlib.util
import sys
from collections.abc import Collection
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from finetune.errors import FinetuneError

__all__ = ["four_bit_settings", "is_four_bit"]


def four_bit_settings(full_modules: Collection[str]) -> dict[str, Any]:
    """Return what `from_pretrained` takes to hold a model's linear layers in four bits, on this process's device.

    Args:
        full_modules: Names of modules that keep their format: the head, and whatever else trains in full.

    Raises:
        FinetuneError: If bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise FinetuneError(
            "Expected bitsandbytes for --method qlora, but it is not installed. Install it: pip install bitsandbytes."
        )
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=sorted(full_modules),
    )
    device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    return {"quantization_config": config, "device_map": {"": device}}


def is_four_bit(model: PreTrainedModel) -> bool:
    """Return whether a model's weights are held in four bits."""
    bitsandbytes = sys.modules.get("bitsandbytes")  # which loading such weights imports
    return bitsandbytes is not None and any(isinstance(one, bitsandbytes.nn.Linear4bit) for one in model.modules())
