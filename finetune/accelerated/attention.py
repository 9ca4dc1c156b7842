"""Attention in bfloat16 on a CPU, as batched matrix products in pieces that the cache holds.

torch's fused kernel for a CPU is written for long sequences and wide heads. At the lengths of reviews and sentences
its backward pass takes one and a half to five times as long as the plain products do, if only these work on a few
examples at a time. Everywhere else (without gradients, on GPUs, in float32, with attention dropout or grouped heads, on
a processor without units for bfloat16, whose products take two to four times as long as the kernel) torch's kernel
stays.
"""

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from finetune.accelerated.processor import multiplies_fast
from finetune.accelerated.unpadding import ATTENTION_NAME, PackedTexts, attend_packed

__all__ = ["cpu_attention_forward", "use_cpu_attention"]

NAME = ATTENTION_NAME
PIECE_NUMEL = 2**21  # attention weights computed at once: 4 MiB in bfloat16


class _AttentionFunction(torch.autograd.Function):
    """softmax(scale · Q Kᵀ) V for `(batch, heads, length, head_dim)`, batch by pieces."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, hidden: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        batch, heads, length, _ = query.shape
        ctx.scale = scale
        ctx.step = max(1, PIECE_NUMEL // (heads * length * key.shape[2]))
        output = _empty_like_projection(query)
        weights = []
        for start in range(0, batch, ctx.step):
            piece = slice(start, start + ctx.step)
            q, k, v = (_flatten(tensor[piece]) for tensor in (query, key, value))
            scores = torch.bmm(q * scale, k.transpose(1, 2))
            if hidden is not None:
                scores.view(-1, heads, *scores.shape[1:]).masked_fill_(hidden[piece], torch.finfo(scores.dtype).min)
            weights.append(torch.softmax(scores, dim=-1))
            output[piece] = torch.bmm(weights[-1], v).view(-1, heads, *q.shape[1:])
        ctx.save_for_backward(query, key, value, *weights)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, *weights = ctx.saved_tensors
        gradients = tuple(_empty_like_projection(tensor) for tensor in (query, key, value))
        for number, p in enumerate(weights):
            piece = slice(number * ctx.step, (number + 1) * ctx.step)
            q, k, v, g = (_flatten(tensor[piece]) for tensor in (query, key, value, gradient))
            scores = torch._softmax_backward_data(torch.bmm(g, v.transpose(1, 2)), p, -1, p.dtype)
            for whole, part in zip(
                gradients,
                (
                    torch.bmm(scores, k).mul_(ctx.scale),
                    torch.bmm(scores.transpose(1, 2), q).mul_(ctx.scale),
                    torch.bmm(p.transpose(1, 2), g),
                ),
                strict=True,
            ):
                whole[piece] = part.view(-1, *whole.shape[1:])
        return *gradients, None, None


def _flatten(heads: torch.Tensor) -> torch.Tensor:
    return heads.reshape(-1, *heads.shape[2:])


def _empty_like_projection(heads: torch.Tensor) -> torch.Tensor:
    """Allocate `(batch, heads, length, head_dim)` as linear layers lay it out, all heads of a token side by side."""
    batch, num_heads, length, head_dim = heads.shape
    return heads.new_empty(batch, length, num_heads, head_dim).transpose(1, 2)


def cpu_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | PackedTexts | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention as transformers' attention interface wants it.

    Args:
        module: The attention layer.
        query: `(batch, heads, length, head_dim)`.
        key: Likewise.
        value: Likewise.
        attention_mask: None, booleans `(batch, 1, length, length)`: what may be seen, or texts packed into one row.
        dropout: Probability of dropping an attention weight.
        scaling: Factor of the products; 1 / √head_dim if None.
        is_causal: Whether a missing mask means that a token sees only those before it.
        **kwargs: Passed on to torch's kernel where that is used.

    Returns:
        `(batch, length, heads, head_dim)` and None for the attention weights.
    """
    if isinstance(attention_mask, PackedTexts):
        return attend_packed(query, key, value, attention_mask.lengths, scaling), None
    causal = attention_mask is None and (getattr(module, "is_causal", True) if is_causal is None else is_causal)
    ours = (
        torch.is_grad_enabled()
        and query.device.type == "cpu"
        and query.dtype is torch.bfloat16
        and multiplies_fast(torch.bfloat16)
        and dropout == 0.0
        and not causal
        and query.shape[:2] == key.shape[:2]
        and (attention_mask is None or attention_mask.dtype is torch.bool)
        and not any(kwargs.get(name) is not None for name in ("position_bias", "cache", "softcap"))
    )
    if not ours:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    hidden = None if attention_mask is None else ~attention_mask
    return _AttentionFunction.apply(query, key, value, hidden, scale).transpose(1, 2), None


AttentionInterface.register(NAME, cpu_attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)


def use_cpu_attention(model: PreTrainedModel) -> None:
    """Let a model that would use torch's fused kernel use this one where it is faster. What is saved stays the same."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)
