"""What makes a processor fast and changes no result beyond rounding: `enable(model)`, or leave plain transformers.

Every piece is used where the processor was seen to do what it needs (`processor.py`), and falls back by itself to what
it stands for. Nothing here knows of settings, runs or data: it takes ordinary models of transformers and PEFT. What
would change results (attention dropout, the number format) is not decided here.
"""

import sys
from typing import Any

import torch

from finetune.accelerated.attention import use_cpu_attention
from finetune.accelerated.dropout import use_fast_dropout
from finetune.accelerated.fused import cast_linear_layers
from finetune.accelerated.precision import compute_numbers_in_fp32, keep_activations_in_bf16
from finetune.accelerated.unpadding import use_unpadding

__all__ = ["enable"]


def enable(model: Any, predict_in: torch.dtype | None = None) -> Any:
    """Make a model train and predict faster on a CPU, in place.

    In training it replaces

    - torch's fused attention, in bfloat16, where the CPU has units for bfloat16 (AVX512-BF16, AMX): `attention`;
    - the residual stream in float32, under autocast to bfloat16: `precision`;
    - `nn.Dropout`: `dropout`;
    - the forward and backward passes of PEFT's LoRA layers: `lora`;

    and in prediction

    - padded batches inside BERT and its kin: `unpadding`;
    - linear layers, with the GELU after them where the CPU has AVX-512 and oneDNN, in `predict_in`: `fused`.

    Results are those of the model as it was, up to rounding; dropout draws other numbers of the same distribution. What
    is saved stays the same. On a GPU, and where the processor lacks what a piece needs, it computes what it stands
    for. A second call changes nothing.

    Args:
        model: A `PreTrainedModel`, or a `PeftModel` around one. An adapter that is added later needs a second call.
        predict_in: If given, the model is only going to predict, under autocast to this format: the weights of its
            linear layers are cast once and for good, not in every batch. float32 casts nothing. The
            layer that gives the numbers of a regression stays in float32.

    Returns:
        The same model.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
        >>> type(enable(BertForSequenceClassification(config)).dropout).__name__
        'FastDropout'
    """
    use_fast_dropout(model)
    use_cpu_attention(model)
    use_unpadding(model)
    keep_activations_in_bf16(model)
    if "peft" in sys.modules:  # else there is no layer of LoRA, and PEFT takes a second to import
        from finetune.accelerated.lora import use_fused_lora

        use_fused_lora(model)
    if predict_in is not None:
        compute_numbers_in_fp32(model)
        cast_linear_layers(model, predict_in)
    return model
