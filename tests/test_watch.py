"""Warnings that save a day: each fires where it should, and is silent where all is well."""

import copy
import warnings

import pytest
import torch
from test_trainer import make_model, make_trainer
from transformers import AutoTokenizer

from finetune.data.cutting import TextConfig
from finetune.data.load import read_examples
from finetune.data.tokenize import tokenize_dataset
from finetune.methods import apply_method
from finetune.methods.adapters import add_adapter
from finetune.settings.parts import MethodArguments


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    return AutoTokenizer.from_pretrained(tiny_bert, model_max_length=24)  # as a run sets it


@pytest.fixture(scope="module")
def tokenized(reviews, tokenizer):
    return tokenize_dataset(read_examples(reviews["--train_file"]), tokenizer, TextConfig(24))


@pytest.fixture
def train(tmp_path, tokenizer, tokenized):
    """Trains a model for some steps and gives what was warned about."""

    def train_and_listen(model, **settings):
        settings = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, **settings}
        trainer = make_trainer(tmp_path, model, tokenizer, tokenized, **settings)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.train()
        return [str(warning.message) for warning in caught if warning.category is UserWarning]

    return train_and_listen


@pytest.fixture
def model(tiny_bert, tokenizer):
    return make_model(tiny_bert, tokenizer)


def named(lines, *words):
    return [line for line in lines if all(word in line for word in words)]


def test_where_all_is_well_nothing_is_said(train, model):
    said = train(model, max_steps=40, eval_steps=20, learning_rate=5e-3)
    assert named(said, "had no gradient") + named(said, "does not train") + named(said, "nothing was learnt") == []


@pytest.mark.parametrize("method", ["lora", "prompt", "ia3", "head"])
def test_nothing_is_said_of_gradients_and_heads_of_any_method(train, model, method, tmp_path):
    config = None
    if method == "prompt":
        config = str(tmp_path / "peft.yaml")
        (tmp_path / "peft.yaml").write_text("num_virtual_tokens: 4")
    said = train(apply_method(model, MethodArguments(method, peft_config=config)), eval_strategy="no")
    assert named(said, "had no gradient") + named(said, "does not train") == []


def test_a_parameter_that_the_loss_does_not_depend_on(train, model):
    model.bert.encoder.layer[0].forgotten = torch.nn.Parameter(torch.zeros(3))
    (line,) = named(train(model), "had no gradient")
    assert line.startswith("1 trainable parameters had no gradient in the first 3 steps, among them bert.encoder")


def test_a_head_that_does_not_train(train, model):
    for parameter in model.classifier.parameters():
        parameter.requires_grad_(False)
    (line,) = named(train(model), "does not train")
    assert line.startswith("the classification head does not train (classifier.weight, classifier.bias): name its")


def test_a_head_whose_name_peft_does_not_know(train, model):
    class Other(type(model)):
        """A checkpoint's own head under another name: PEFT trains what is called `classifier` or `score`."""

        def __init__(self, config):
            super().__init__(config)
            self.verdict = self.classifier
            del self.classifier

        def forward(self, input_ids, attention_mask=None, **kwargs):
            pooled = self.bert(input_ids=input_ids, attention_mask=attention_mask).pooler_output
            return {"logits": self.verdict(pooled)}

    other = Other(copy.deepcopy(model.config))
    said = train(add_adapter(other, "lora", {"target_modules": ["query"]}, []), eval_strategy="no")
    (line,) = named(said, "does not train")
    assert "(verdict." in line


def test_a_metric_that_never_moved_and_a_single_answer(train, model):
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([9.0, -9.0]))
    said = train(model, learning_rate=1e-9, metric_for_best_model="accuracy")
    (line,) = named(said, "nothing was learnt")
    assert line.startswith("the validation metric was 0.5000 at all 2 evaluations")
    assert len(named(said, "validation texts are predicted as")) == 2
    assert "all 60 validation texts are predicted as" in named(said, "are predicted as")[0]
