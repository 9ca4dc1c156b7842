"""The fast dropout is dropout: share, scale, gradient, and reproducible from torch's seed."""

import pytest
import torch
from torch import nn

from finetune.accelerated.dropout import FastDropout, use_fast_dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_share_and_scale(p, dtype):
    torch.manual_seed(0)
    outputs = FastDropout(p)(torch.ones(1000, 1001, dtype=dtype))
    dropped = (outputs == 0).float().mean().item()
    assert dropped == pytest.approx(p, abs=4 * (p * (1 - p) / 1_001_000) ** 0.5)  # four standard errors
    assert outputs.unique().tolist() == [0.0, pytest.approx(1 / (1 - p), rel=4e-3)]


def test_elements_are_dropped_independently():
    torch.manual_seed(0)
    dropped = (FastDropout(0.5)(torch.ones(250_000, 4)) == 0).double()
    correlation = torch.corrcoef(dropped.T)  # the four elements that share a random number
    assert (correlation - torch.eye(4)).abs().max() < 0.01


def test_gradient_passes_where_the_value_does():
    torch.manual_seed(0)
    inputs = torch.randn(33, 7, requires_grad=True)
    outputs = FastDropout(0.3)(inputs)
    outputs.backward(torch.ones_like(outputs))
    torch.testing.assert_close(inputs.grad * inputs, outputs)


def test_same_seed_same_mask():
    masks = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        masks.append(FastDropout(0.5)(torch.ones(100)))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_nothing_is_dropped_in_evaluation_or_at_zero():
    inputs = torch.randn(10)
    assert FastDropout(0.5).eval()(inputs) is inputs
    assert FastDropout(0.0)(inputs) is inputs
    assert not FastDropout(1.0)(inputs).any()


def test_every_dropout_of_a_model_is_replaced():
    model = nn.Sequential(nn.Dropout(0.2), nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.3)))
    weights = model.state_dict().keys()
    use_fast_dropout(model)
    assert [module.p for module in model.modules() if isinstance(module, FastDropout)] == [0.2, 0.3]
    assert not [module for module in model.modules() if type(module) is nn.Dropout]
    assert model.state_dict().keys() == weights
