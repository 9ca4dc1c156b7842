"""On a GPU: the same loss, the number format that it has units for, and a model that reloads."""

import json

import numpy as np
import pytest
import torch
from conftest import recipe_of
from test_trainer import losses_and_weights, make_model, make_trainer
from transformers import AutoTokenizer

from finetune.data.cutting import TextConfig
from finetune.data.load import read_examples
from finetune.data.tokenize import tokenize_dataset
from finetune.hardware import fastest_precision

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    return AutoTokenizer.from_pretrained(tiny_bert)


@pytest.fixture(scope="module")
def tokenized(reviews, tokenizer):
    return tokenize_dataset(read_examples(reviews["--train_file"]), tokenizer, TextConfig(24))


@pytest.mark.parametrize("method", ["full", "lora", "textcnn"])
def test_micro_batches_equal_the_plain_step(tmp_path, tiny_bert, tokenizer, tokenized, method):
    results = [
        losses_and_weights(
            make_trainer(
                tmp_path,
                make_model(tiny_bert, tokenizer, method),
                tokenizer,
                tokenized,
                max_tokens=max_tokens,
                per_device_train_batch_size=8,
                use_cpu=False,
                tf32=False,
                max_steps=10,
            )
        )[0]
        for max_tokens in (10_000, 30)
    ]
    np.testing.assert_allclose(results[1], results[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["full", "head", "lora", "qlora", "textcnn"])
def test_a_run_ends_and_reloads(flags, tmp_path, method):
    position = flags.index("--bf16")  # the machine's own format instead of float32
    words = flags[:position] + flags[position + 2 :]
    recipe_of(method).main([*words, "--method", method, "--output_dir", str(tmp_path / "run")])
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["status"] == "complete"
    assert record["environment"]["precision"] == fastest_precision() != "fp32"
    assert record["arguments"]["training"]["optim"] == "adamw_torch_fused"
    assert record["reload"]["max_difference"] < 1e-4
    assert record["costs"]["peak_memory_bytes"] > 0
