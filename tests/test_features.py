"""The head learns the same from features computed once as from the texts, and the encoder stays as it was."""

import numpy as np
import pytest
import torch
from test_methods import ENCODERS
from test_trainer import losses_and_weights, make_model, make_trainer
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from finetune.data.cutting import TextConfig
from finetune.data.load import read_examples
from finetune.data.tokenize import tokenize_dataset
from finetune.methods import features
from finetune.methods.features import encoder_replaced, find_feature_reader, has_frozen_encoder
from finetune.training import frozen_features


@pytest.mark.parametrize("model_type", [*ENCODERS, "modernbert-mean", "gpt2"])
def test_what_the_head_reads_is_found(model_type):
    torch.manual_seed(0)
    name, _, pooling = model_type.partition("-") if model_type == "modernbert-mean" else (model_type, "", "cls")
    settings = (
        {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 30, "pad_token_id": 0}
        if name == "gpt2"
        else ENCODERS[name][0]
    )
    config = AutoConfig.for_model(name, **settings, **({"classifier_pooling": pooling} if "modern" in name else {}))
    model = AutoModelForSequenceClassification.from_config(config).eval()
    tokens = torch.tensor([[2, 5, 6, 7, 3], [2, 9, 3, 0, 0]])
    inputs = {"input_ids": tokens, "attention_mask": tokens.ne(0).long()}
    read = find_feature_reader(model, inputs)
    assert read is not None
    with torch.no_grad():
        expected = model(**inputs).logits
        rows = read(model.base_model(**inputs), inputs["attention_mask"])
        with encoder_replaced(model):
            torch.testing.assert_close(model(inputs_embeds=rows.unsqueeze(1)).logits, expected)
        torch.testing.assert_close(model(**inputs).logits, expected)  # the encoder is back


def test_a_head_that_reads_something_else_has_no_reader(tiny_bert):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert).eval()
    forward = model.forward

    def odd_forward(input_ids=None, **inputs):
        outputs = forward(input_ids=input_ids, **inputs)
        if input_ids is not None:
            outputs.logits = outputs.logits + input_ids.sum()
        return outputs

    model.forward = odd_forward
    tokens = torch.tensor([[2, 5, 6, 7, 3]])
    assert find_feature_reader(model, {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}) is None


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    return AutoTokenizer.from_pretrained(tiny_bert)


@pytest.fixture(scope="module")
def tokenized(reviews, tokenizer):
    return tokenize_dataset(read_examples(reviews["--train_file"]), tokenizer, TextConfig(24))


def test_the_head_learns_the_same_from_features(tmp_path, tiny_bert, tokenizer, tokenized, monkeypatch):
    results = []
    for cached in (True, False):
        if not cached:
            monkeypatch.setattr(frozen_features, "has_frozen_encoder", lambda model: False)
        # Batches of all examples, since their order within an epoch differs: features all have one length.
        trainer = make_trainer(
            tmp_path, make_model(tiny_bert, tokenizer, "head"), tokenizer, tokenized,
            per_device_train_batch_size=60, max_steps=10, eval_strategy="epoch", learning_rate=1e-2,
        )  # fmt: skip
        passes = []
        trainer.model.bert.register_forward_hook(lambda *_, passes=passes: passes.append(1))
        before = {name: tensor.clone() for name, tensor in trainer.model.bert.state_dict().items()}
        losses, weights = losses_and_weights(trainer)
        evaluations = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        results.append((losses, evaluations, weights, len(passes)))
        after = trainer.model.bert.state_dict()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
        assert trainer.train_dataset is tokenized
    (losses, evaluations, weights, passes), plain = results
    np.testing.assert_allclose(losses, plain[0], atol=1e-5, rtol=0)
    np.testing.assert_allclose(evaluations, plain[1], atol=1e-5, rtol=0)
    assert losses[-1] < losses[0]
    for name, weight in weights.items():
        torch.testing.assert_close(weight, plain[2][name], atol=1e-5, rtol=0)
    assert (passes, plain[3]) == (4, 20)  # two trials and once over each split, not twice in every epoch


def test_costs_count_the_encoder_once(tmp_path, tiny_bert, tokenizer, tokenized):
    trainer = make_trainer(tmp_path, make_model(tiny_bert, tokenizer, "head"), tokenizer, tokenized)
    trainer.train()
    assert trainer.costs.train_tokens == sum(tokenized["length"])
    assert trainer.costs.train_seconds > 0


def test_only_a_frozen_encoder_is_replaced(tiny_bert, tokenizer):
    assert has_frozen_encoder(make_model(tiny_bert, tokenizer, "head"))
    for method in ("full", "lora", "textcnn"):
        assert not has_frozen_encoder(make_model(tiny_bert, tokenizer, method))
    model = make_model(tiny_bert, tokenizer, "head")
    model.bert.pooler.dense.weight.requires_grad_(True)
    assert not has_frozen_encoder(model)


def test_no_gradient_reaches_below_what_trains(tiny_bert, tokenizer):
    model = make_model(tiny_bert, tokenizer)
    for parameter in [*model.bert.embeddings.parameters(), *model.bert.encoder.layer[0].parameters()]:
        parameter.requires_grad_(False)
    outputs = []
    for layer in model.bert.encoder.layer:
        layer.register_forward_hook(lambda module, args, output: outputs.append(output))
    model(input_ids=torch.tensor([[2, 5, 6, 3]]))
    assert [output.requires_grad for output in outputs] == [False, True]


def test_features_of_a_run_are_stacked():
    collator = features.FeatureCollator()
    batch = collator([{"inputs_embeds": [1.0, 2.0], "labels": 1, "length": 1}] * 3)
    assert batch["num_examples"] == 3
    assert batch["micro_batches"][0]["inputs_embeds"].shape == (3, 1, 2)
    assert batch["micro_batches"][0]["labels"].tolist() == [1, 1, 1]
