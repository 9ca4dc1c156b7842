"""Prediction without padding on a CPU: inside of an encoder the tokens of a batch's texts stand in one row.

Texts of different lengths in one batch need padding, and padding needs masks, with which torch's fused attention takes
a quarter longer. And a batch with a number of tokens that has not been seen before lets oneDNN generate code for each
of its matrix products, 17 ms a batch on a Xeon with AMX, while all other cores wait. In one row that is filled up to a
round number of tokens neither happens, and each text's logits are those of the text alone. Training stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from finetune.adapted import without_adapter

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["ATTENTION_NAME", "PackedTexts", "attend_packed", "use_unpadding"]

ATTENTION_NAME = "finetune_cpu"
# By `model_type`: the module whose layers know tokens but no positions. The others either know positions in each layer
# (ModernBERT, MPNet, DeBERTa) or are decoders.
ENCODERS = {
    "bert": "encoder",
    "camembert": "encoder",
    "distilbert": "transformer",
    "electra": "encoder",
    "roberta": "encoder",
    "xlm-roberta": "encoder",
}


@dataclass(frozen=True)
class PackedTexts:
    """Goes through an encoder in place of its attention mask.

    Attributes:
        seen: The tokens that are no padding, boolean, `(batch, length)`.
        lengths: How many each text has; in the row the texts stand one after the other.
    """

    seen: torch.Tensor
    lengths: list[int]


def use_unpadding(model: PreTrainedModel | PeftModel) -> None:
    """Let an encoder that uses this package's attention compute without padding where it computes no gradients.

    Nothing changes for encoders of which `ENCODERS` does not know, for weights in four bits, whose products depend on
    how many rows there are, and in what is saved.
    """
    whole: Any = without_adapter(model)
    config = whole.base_model.config  # that of the encoder itself, also where it stands inside of another model
    if getattr(whole, "is_loaded_in_4bit", False) or config.model_type not in ENCODERS:
        return
    encoder = getattr(whole.base_model, ENCODERS[config.model_type])
    if _unpack not in encoder._forward_hooks.values():
        encoder.register_forward_pre_hook(partial(_pack, config), with_kwargs=True)
        encoder.register_forward_hook(_unpack, with_kwargs=True)


def attend_packed(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int], scale: float | None
) -> torch.Tensor:
    """Let each text's tokens attend to each other.

    Args:
        query: `(1, heads, tokens, head_dim)`.
        key: Likewise.
        value: Likewise.
        lengths: Of each text. Tokens after the last one are there to fill the row.
        scale: Factor of the products; 1 / √head_dim if None.

    Returns:
        `(1, tokens, heads, head_dim)`; zeros for what fills the row.
    """
    _, heads, tokens, head_dim = query.shape
    outputs, start = [], 0
    for length, texts in groupby(lengths):
        stop = start + length * len(list(texts))
        q, k, v = (part[0, :, start:stop].unflatten(1, (-1, length)).transpose(0, 1) for part in (query, key, value))
        attended = F.scaled_dot_product_attention(q, k, v, scale=scale)
        outputs.append(attended.transpose(1, 2).reshape(stop - start, heads, head_dim))
        start = stop
    outputs.append(query.new_zeros(tokens - start, heads, head_dim))
    return torch.cat(outputs).unsqueeze(0)


def _pack(
    config: PreTrainedConfig, encoder: nn.Module, args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any]] | None:
    """Replace hidden states `(batch, length, width)` by one row of their tokens, `(1, tokens, width)`."""
    hidden = args[0] if args else kwargs["hidden_states"]
    mask = kwargs.get("attention_mask")
    if (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or hidden.device.type != "cpu"
        or config._attn_implementation != ATTENTION_NAME
        or getattr(config, "is_decoder", False)
        or any(kwargs.get(name) is not None for name in ("past_key_values", "encoder_hidden_states"))
        or any(kwargs.get(name, getattr(config, name)) for name in ("output_hidden_states", "output_attentions"))
    ):
        return None
    if mask is None:
        seen = torch.ones(hidden.shape[:2], dtype=torch.bool)
    elif mask.dtype is torch.bool and mask.shape[1] == 1:
        seen = mask[:, 0, 0]
    else:
        return None
    lengths = seen.sum(dim=1).tolist()
    row = hidden.new_zeros(1, _round_up(sum(lengths)), hidden.shape[2])
    row[0, : sum(lengths)] = hidden[seen]
    kwargs = {**kwargs, "attention_mask": PackedTexts(seen, lengths)}
    if args:
        return (row, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": row}


def _unpack(encoder: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
    """Return the last hidden states as they would have come, `(batch, length, width)`, with zeros for padding."""
    texts = kwargs.get("attention_mask")
    if isinstance(texts, PackedTexts):
        row = output.last_hidden_state[0]
        output.last_hidden_state = row.new_zeros(*texts.seen.shape, row.shape[1])
        output.last_hidden_state[texts.seen] = row[: sum(texts.lengths)]
    return output


def _round_up(tokens: int) -> int:
    """Round to one of at most eight numbers between two powers of two: from 128 on by less than an eighth."""
    step = max(16, 2 ** (tokens.bit_length() - 4))
    return -(-tokens // step) * step
