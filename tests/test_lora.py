"""LoRA within the matrix products gives PEFT's own outputs and gradients, and leaves what it can't do to PEFT."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear
from torch import nn
from transformers.pytorch_utils import Conv1D

from finetune.accelerated.lora import _LowRankFunction, use_fused_lora
from finetune.accelerated.precision import autocast


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.lower, self.upper = nn.Linear(12, 24), nn.Linear(24, 8)

    def forward(self, x):
        return self.upper(torch.relu(self.lower(x)))


def make_pair(**settings):
    """PEFT's model, as if trained for a while, and a copy of it that computes at once."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["lower", "upper"], **settings)
    model = get_peft_model(Layers(), config).train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) / 4)
    fused = copy.deepcopy(model)
    use_fused_lora(fused)
    return model, fused


def run(model, inputs, dtype):
    inputs = inputs.clone().requires_grad_()
    torch.manual_seed(1)
    with autocast(torch.device("cpu"), dtype):
        outputs = model(inputs)
    outputs.float().square().mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return outputs, {**gradients, "inputs": inputs.grad}


@pytest.fixture
def num_fused(monkeypatch):
    """Counts the calls that were computed at once."""
    calls = []
    apply = _LowRankFunction.apply
    monkeypatch.setattr(_LowRankFunction, "apply", lambda *inputs: calls.append(1) or apply(*inputs))
    return calls


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.03)])
def test_outputs_and_gradients_are_those_of_peft(num_fused, dtype, tolerance, use_rslora):
    model, fused = make_pair(use_rslora=use_rslora)
    inputs = torch.randn(2, 5, 12)
    (expected, wanted), (found, got) = run(model, inputs, dtype), run(fused, inputs, dtype)
    assert len(num_fused) == 2
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, atol=tolerance * float(expected.detach().abs().max()), rtol=0)
    assert got.keys() == wanted.keys()
    assert len(got) == 5  # A and B of two layers, and the inputs
    for name, gradient in wanted.items():
        assert got[name].dtype == torch.float32
        torch.testing.assert_close(got[name], gradient, atol=tolerance * float(gradient.abs().max()), rtol=0, msg=name)


def test_in_evaluation_it_is_peft_itself(num_fused):
    model, fused = make_pair()
    inputs = torch.randn(3, 12)
    with torch.no_grad():
        assert torch.equal(fused.eval()(inputs), model.eval()(inputs))
        assert torch.equal(fused.train()(inputs), model(inputs))
    assert num_fused == []
    merged = fused.merge_and_unload()
    assert type(merged.lower) is nn.Linear
    torch.testing.assert_close(merged(inputs), model(inputs))


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_dropout": 0.3}, {"lora_bias": True}])
def test_what_it_can_not_do_is_left_to_peft(num_fused, settings):
    model, fused = make_pair(**settings)
    inputs = torch.randn(3, 12)
    (expected, wanted), (found, got) = run(model, inputs, torch.float32), run(fused, inputs, torch.float32)
    assert num_fused == []
    assert torch.equal(found, expected)
    assert all(torch.equal(got[name], gradient) for name, gradient in wanted.items())


def test_other_layers_than_linear_ones_are_left_to_peft(num_fused):
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(Conv1D(6, 5)), LoraConfig(r=2, target_modules=["0"], fan_in_fan_out=True))
    use_fused_lora(model)
    model.train()(torch.randn(3, 5)).sum().backward()
    assert num_fused == []
    assert any(isinstance(module, Linear) for module in model.modules())
