"""The CPU's own attention is attention: outputs and gradients of the plain formula, whatever the pieces."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from finetune.accelerated import attention
from finetune.accelerated.attention import cpu_attention_forward, use_cpu_attention
from finetune.accelerated.fused import cast_linear_layers
from finetune.accelerated.precision import autocast, keep_activations_in_bf16


class Layer(nn.Module):
    is_causal = False


def make_inputs(dtype, length=7):
    generator = torch.Generator().manual_seed(0)
    shape = (5, length, 3, 4)  # batch, length, heads, head_dim
    tensors = [torch.randn(shape, generator=generator).to(dtype).transpose(1, 2).requires_grad_() for _ in range(3)]
    seen = torch.ones(5, 1, length, length, dtype=torch.bool)
    seen[1, :, :, 4:] = False
    return tensors, seen


def attend(query, key, value, seen, scale=0.5):
    """Vaswani et al. 2017, equation 1, in float64."""
    scores = query.double() @ key.double().transpose(2, 3) * scale
    weights = torch.softmax(scores.masked_fill(~seen, -torch.inf), dim=-1)
    return (weights @ value.double()).transpose(1, 2)


@pytest.mark.parametrize("piece_numel", [1, 3 * 7 * 7 * 2, 2**21])
@pytest.mark.parametrize("masked", [True, False])
def test_outputs_and_gradients_are_those_of_the_formula(monkeypatch, piece_numel, masked):
    monkeypatch.setattr(attention, "PIECE_NUMEL", piece_numel)
    monkeypatch.setattr(attention, "multiplies_fast", lambda dtype: True)
    tensors, seen = make_inputs(torch.bfloat16)
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    output, weights = cpu_attention_forward(Layer(), *tensors, seen if masked else None, scaling=0.5)
    expected = attend(*exact, seen if masked else torch.ones_like(seen))
    assert weights is None
    assert output.dtype is torch.bfloat16
    torch.testing.assert_close(output.double(), expected, atol=0.03, rtol=0)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    output.backward(upstream.bfloat16())
    expected.backward(upstream)
    for tensor, reference in zip(tensors, exact, strict=True):
        torch.testing.assert_close(tensor.grad.double(), reference.grad, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("case", ["fp32", "dropout", "causal", "no gradient", "no units"])
def test_elsewhere_torch_computes(monkeypatch, case):
    called = []
    monkeypatch.setattr(attention, "multiplies_fast", lambda dtype: case != "no units")
    monkeypatch.setattr(attention, "sdpa_attention_forward", lambda *args, **kwargs: called.append(kwargs))
    tensors, seen = make_inputs(torch.float32 if case == "fp32" else torch.bfloat16)
    mask = None if case == "causal" else seen
    with torch.set_grad_enabled(case != "no gradient"):
        cpu_attention_forward(
            Layer(), *tensors, mask, dropout=0.1 if case == "dropout" else 0.0, is_causal=case == "causal"
        )
    assert len(called) == 1


def test_a_model_computes_the_same_in_bf16(tiny_bert):
    plain = AutoModelForSequenceClassification.from_pretrained(tiny_bert).eval()
    fast = AutoModelForSequenceClassification.from_pretrained(tiny_bert).eval()
    fast.load_state_dict(plain.state_dict())
    use_cpu_attention(fast)
    keep_activations_in_bf16(fast)
    tokens = torch.tensor([[2, 5, 6, 7, 3], [2, 9, 3, 0, 0]])
    inputs = {"input_ids": tokens, "attention_mask": tokens.ne(0).long()}
    seen = []
    fast.bert.encoder.layer[1].register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    with torch.no_grad():
        expected = plain(**inputs).logits
        torch.testing.assert_close(fast(**inputs).logits, expected)  # float32 is left alone
        with autocast(torch.device("cpu"), torch.bfloat16):
            logits = fast(**inputs).logits
            once = copy.deepcopy(fast)
            cast_linear_layers(once, torch.bfloat16)
            torch.testing.assert_close(once(**inputs).logits, logits, atol=0.02, rtol=0)
    torch.testing.assert_close(logits.float(), expected, atol=0.05, rtol=0)
    assert seen[0][0].dtype is torch.float32
    assert seen[1][0].dtype is torch.bfloat16  # the residual stream
    assert fast.config.to_dict() == plain.config.to_dict()  # nothing of it is saved
    assert {parameter.dtype for parameter in fast.parameters()} == {torch.float32}
