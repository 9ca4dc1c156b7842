"""Texts in one row give the logits that padded texts give, for every encoder that is packed; also on threads."""

import copy
import threading
import time

import numpy as np
import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSequenceClassification

from finetune.accelerated import fused, unpadding
from finetune.accelerated.attention import use_cpu_attention
from finetune.accelerated.fused import cast_linear_layers
from finetune.accelerated.processor import fuses_linear_layers
from finetune.accelerated.unpadding import ENCODERS, use_unpadding
from finetune.models.logits import compute_rows
from finetune.threads import compute_side_by_side

SETTINGS = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 64, "max_position_embeddings": 40, "num_labels": 3}  # fmt: skip
DISTILBERT = {"vocab_size": 50, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "num_labels": 3}
LENGTHS = [9, 9, 7, 1, 9, 3]


def build(model_type):
    torch.manual_seed(0)
    settings = DISTILBERT if model_type == "distilbert" else SETTINGS
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(model_type, **settings)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def make_inputs(lengths=LENGTHS, side="right"):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, 50, (len(lengths), max(lengths)), generator=generator)
    place = torch.arange(max(lengths)).expand(len(lengths), -1)
    kept = torch.tensor(lengths).unsqueeze(1)
    mask = (place < kept) if side == "right" else (place >= max(lengths) - kept)
    return {"input_ids": tokens.where(mask, 0), "attention_mask": mask.long()}


def packed(model):
    """A copy that packs, and a list to which each of its layers adds the shape of what it is given."""
    model = copy.deepcopy(model)
    use_cpu_attention(model)
    use_unpadding(model)
    shapes = []
    for layer in next(part for part in model.modules() if isinstance(part, nn.ModuleList)):
        layer.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape)))
    return model, shapes


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("model_type", ENCODERS)
def test_logits_are_those_of_padded_texts(model_type, side):
    plain, inputs = build(model_type), make_inputs(side=side)
    model, shapes = packed(plain)
    with torch.inference_mode():
        if side == "right":  # else heads would read the first token of padding
            torch.testing.assert_close(model(**inputs).logits, plain(**inputs).logits, atol=1e-4, rtol=1e-4)
        hidden = model.base_model(**inputs).last_hidden_state
        expected = plain.base_model(**inputs).last_hidden_state
    seen = inputs["attention_mask"].bool()
    torch.testing.assert_close(hidden[seen], expected[seen], atol=1e-4, rtol=1e-4)
    assert (hidden[~seen] == 0).all()
    assert set(shapes) == {(1, 48, 32)}  # 38 tokens, rounded up


def test_texts_of_one_length_need_no_mask():
    plain, inputs = build("bert"), make_inputs([8] * 4)
    model, shapes = packed(plain)
    with torch.inference_mode():
        torch.testing.assert_close(model(**inputs).logits, plain(**inputs).logits, atol=1e-4, rtol=1e-4)
    assert set(shapes) == {(1, 32, 32)}


def test_training_and_what_asks_for_hidden_states_stay_padded():
    plain, inputs = build("bert"), make_inputs()
    model, shapes = packed(plain)
    torch.testing.assert_close(model(**inputs).logits, plain(**inputs).logits, atol=1e-4, rtol=1e-4)
    with torch.inference_mode():
        states = model(**inputs, output_hidden_states=True).hidden_states
        assert [tuple(state.shape) for state in states] == [(6, 9, 32)] * 3
        model.set_attn_implementation("eager")
        model(**inputs)
    assert set(shapes) == {(6, 9, 32)}


@pytest.mark.parametrize("config", [LoraConfig, PromptTuningConfig, PrefixTuningConfig])
def test_adapters_too(config):
    more = {} if config is LoraConfig else {"num_virtual_tokens": 3}
    plain, inputs = get_peft_model(build("bert"), config(task_type="SEQ_CLS", **more)).eval(), make_inputs()
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.3)
    model, shapes = packed(plain)
    with torch.inference_mode():
        torch.testing.assert_close(model(**inputs).logits, plain(**inputs).logits, atol=1e-4, rtol=1e-4)
    assert set(shapes) == {
        LoraConfig: {(1, 48, 32)}, PromptTuningConfig: {(1, 64, 32)}, PrefixTuningConfig: {(6, 9, 32)},
    }[config]  # fmt: skip


def test_it_is_put_on_once_and_only_where_it_is_known_to_fit():
    model, _ = packed(build("bert"))
    use_unpadding(model)
    assert len(model.bert.encoder._forward_pre_hooks) == len(model.bert.encoder._forward_hooks) == 1
    other = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("albert", **SETTINGS, embedding_size=8))
    use_unpadding(other)
    assert not any(part._forward_pre_hooks for part in other.modules())


def test_rows_have_few_lengths():
    rounded = [unpadding._round_up(tokens) for tokens in range(1, 8193)]
    assert all(tokens <= row <= max(16, tokens * 9 / 8) for tokens, row in enumerate(rounded, 1) if tokens > 128)
    assert len({row for row in rounded if 2048 < row <= 4096}) == 8
    assert unpadding._round_up(1) == 16
    assert unpadding._round_up(4096) == 4096


def test_texts_do_not_see_each_other_nor_what_fills_the_row():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 16, 4, generator=generator) for _ in range(3))
    output = unpadding.attend_packed(query, key, value, [5, 5, 2], scale=0.5)
    assert output.shape == (1, 16, 2, 4)
    for start, stop in ((0, 5), (5, 10), (10, 12)):
        q, k, v = (part[:, :, start:stop].double() for part in (query, key, value))
        expected = torch.softmax(q @ k.transpose(2, 3) * 0.5, dim=-1) @ v
        torch.testing.assert_close(output[:, start:stop].double(), expected.transpose(1, 2), atol=1e-5, rtol=1e-5)
    assert (output[:, 12:] == 0).all()


@pytest.fixture(params=["fused", "not fused"])
def is_fused(request, monkeypatch):
    """Whether layers fuse: both, where the processor can."""
    if request.param == "fused" and not fuses_linear_layers():
        pytest.skip("oneDNN has no bfloat16 product with a GELU for this processor")
    monkeypatch.setattr(fused, "fuses_linear_layers", lambda: request.param == "fused")
    return request.param == "fused"


@pytest.mark.parametrize("rows", [1, 7, 300])
def test_cast_layers_compute_what_linear_layers_and_gelu_do(is_fused, rows):
    model = build("bert")
    exact = copy.deepcopy(model).bert.encoder.layer[0].intermediate.bfloat16()
    cast_linear_layers(model, torch.bfloat16)
    layer, head = model.bert.encoder.layer[0], model.classifier
    assert (type(head) is not nn.Linear) == isinstance(layer.intermediate.intermediate_act_fn, nn.Identity) == is_fused
    x = torch.randn(2, rows, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.inference_mode():
        found = layer.intermediate(x)
        expected = F.gelu(F.linear(x.double(), exact.dense.weight.double(), exact.dense.bias.double()))
        tolerance = {"atol": 1e-3, "rtol": 2**-8} if is_fused else {"atol": 0.01, "rtol": 2**-7}  # rounds twice
        torch.testing.assert_close(found.double(), expected, **tolerance)
        torch.testing.assert_close(head(x), F.linear(x, head.weight, head.bias))
    assert {parameter.dtype for parameter in layer.attention.self.parameters()} == {torch.bfloat16}
    assert layer.output.LayerNorm.weight.dtype is torch.float32


@pytest.fixture
def three_threads():
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(1)


def collate(numbers):
    return {"x": torch.tensor(numbers, dtype=torch.float32)}


def compute(forward, lengths, max_tokens, seen):
    device = torch.device("cpu")
    return compute_rows(forward, 1, lengths, lengths, collate, max_tokens, device, seen.append)


def test_batches_side_by_side_give_the_same_rows(three_threads):
    lengths = np.random.default_rng(0).integers(1, 512, 200).tolist()
    seen, threads, inference_modes = [], set(), set()

    def forward(inputs):
        threads.add((threading.get_ident(), torch.get_num_threads()))
        inference_modes.add(torch.is_inference_mode_enabled())
        return inputs["x"].unsqueeze(1) * 2

    rows = compute(forward, lengths, 4_096, seen)
    assert rows[:, 0].tolist() == [2 * length for length in lengths]
    assert sum(seen) == 200
    assert inference_modes == {True}
    assert {count for _, count in threads} == {1}
    assert threading.get_ident() not in {thread for thread, _ in threads}
    assert torch.get_num_threads() == 3
    threads.clear()
    compute(forward, lengths, 1_024, seen)  # a few tokens at once are not worth a thread each
    assert threads == {(threading.get_ident(), 3)}


def test_memory_that_does_not_suffice_for_batches_side_by_side_halves_them(three_threads):
    lengths, sizes = [100] * 300, []

    def forward(inputs):
        sizes.append(len(inputs["x"]))
        if len(inputs["x"]) > 9:
            raise MemoryError
        return inputs["x"].unsqueeze(1)

    with pytest.warns(UserWarning, match="from now on at most 650 tokens"):
        rows = compute(forward, lengths, 4_096, [])
    assert (rows == 100).all()
    assert sizes.count(13) == 23  # of 1,365 tokens a thread; the last text stands alone
    assert sum(size for size in sizes if size < 13) == 300


def test_what_goes_wrong_ends_the_work_of_all_threads():
    begun = []

    def fail(item):
        begun.append(item)
        time.sleep(0.001)
        if item == 3:
            raise ValueError("item 3")
        return item

    results = compute_side_by_side(fail, range(1_000), 2)
    assert [next(results), next(results), next(results)] == [0, 1, 2]
    with pytest.raises(ValueError, match="item 3"):
        list(results)
    assert len(begun) < 1_000
    assert list(compute_side_by_side(lambda item: item * item, range(5), 3)) == [0, 1, 4, 9, 16]
