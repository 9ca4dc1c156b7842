"""A number to predict is learnt on its own scale, and the saved model gives it as it is, whatever loads it."""

import copy

import numpy as np
import pytest
import torch
from test_methods import ENCODERS
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments

from finetune.accelerated import enable
from finetune.accelerated.fused import cast_linear_layers
from finetune.accelerated.precision import autocast, compute_numbers_in_fp32
from finetune.data.batch import MicroBatchCollator
from finetune.data.cutting import TextConfig
from finetune.data.load import read_examples
from finetune.data.tokenize import tokenize_dataset
from finetune.families.encoder import Encoder
from finetune.families.save import write_model
from finetune.families.textcnn import TextCNN, TextCNNSettings, build_textcnn
from finetune.inference.load import load
from finetune.methods import apply_method
from finetune.metrics import REGRESSION, SINGLE_LABEL, compute_metrics
from finetune.models.answers import unit_of_logits
from finetune.models.load import load_model
from finetune.models.output_layer import Standard, find_output_layer
from finetune.models.predictor import Predictor
from finetune.settings.parts import MethodArguments, ModelArguments
from finetune.tasks import Task
from finetune.training.loss import ExampleLoss
from finetune.training.trainer import FineTuningTrainer

DECODER = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40, "vocab_size": 30, "pad_token_id": 0}
TOKENS = torch.tensor([[2, 5, 6, 7, 3], [2, 9, 3, 0, 0]])
INPUTS = {"input_ids": TOKENS, "attention_mask": TOKENS.ne(0).long()}
FAR = Standard(2000.0, 300.0)  # far from what a fresh head gives


def build(model_type, num_labels=1):
    settings = DECODER if model_type == "gpt2" else ENCODERS[model_type][0]
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **settings, num_labels=num_labels, problem_type=REGRESSION)
    return AutoModelForSequenceClassification.from_config(config).eval()


def test_standard_numbers_have_mean_0_and_spread_1():
    numbers = np.array([1.0, 3.0, 5.0, 7.0])
    standard = Standard.of(numbers)
    assert standard == Standard(4.0, 5**0.5)
    np.testing.assert_allclose(standard.apply(numbers), np.array([-3, -1, 1, 3]) / 5**0.5)
    np.testing.assert_allclose(standard.undo(standard.apply(numbers)), numbers)
    assert Standard.of(np.full(4, 7.0)) == Standard(7.0, 1.0)
    assert standard.without_mean() == Standard(0.0, float(np.sqrt(np.mean(numbers**2))))


@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize("model_type", [*ENCODERS, "gpt2"])
def test_the_output_layer_is_found_by_what_it_does(model_type, num_labels):
    model = build(model_type, num_labels)
    with torch.no_grad():
        before = model(**INPUTS).logits
        _, layer = find_output_layer(model, INPUTS)
        standard = FAR if layer.bias is not None else FAR.without_mean()
        assert (layer.bias is None) == (model_type == "gpt2")
        standard.put_into(layer)
        torch.testing.assert_close(model(**INPUTS).logits, standard.undo(before))
        standard.take_out_of(layer)
        torch.testing.assert_close(model(**INPUTS).logits, before, atol=1e-4, rtol=1e-4)
    assert not model.training


def square_logits(model):
    """Let no linear layer of a model give its logits."""
    forward = model.forward

    def squared(**inputs):
        outputs = forward(**inputs)
        outputs.logits = outputs.logits**2
        return outputs

    model.forward = squared


def test_a_model_whose_logits_no_layer_gives_has_none():
    model = build("bert")
    square_logits(model)
    assert find_output_layer(model, INPUTS) is None


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    return AutoTokenizer.from_pretrained(tiny_bert)


@pytest.fixture(scope="module")
def tokenized(reviews, tokenizer):
    """Reviews whose number is 2,300 for the good ones and 1,700 for the bad."""
    rows = tokenize_dataset(read_examples(reviews["--train_file"]), tokenizer, TextConfig(24))
    far = np.where(np.array(rows["labels"][:]) == 1, 2300.0, 1700.0)
    return rows.remove_columns("labels").add_column("labels", far)


def make_model(folder, tokenizer, method):
    task = Task(REGRESSION, ["value"])
    if method == "textcnn":
        return enable(build_textcnn(ModelArguments(), TextCNNSettings(), tokenizer, task, 0))
    model = load_model(ModelArguments(model_name_or_path=folder), method, tokenizer, task, 0)
    return enable(apply_method(model, MethodArguments(method=method)))


def make_trainer(tmp_path, model, tokenizer, tokenized, **settings):
    settings = {"max_steps": 20, "learning_rate": 3e-3, "seed": 0, "save_strategy": "no", "eval_strategy": "steps",
                "eval_steps": 10, "per_device_train_batch_size": 16, **settings}  # fmt: skip
    return FineTuningTrainer(
        model=model,
        args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings),
        train_dataset=tokenized,
        eval_dataset=tokenized,
        processing_class=tokenizer,
        compute_metrics=lambda prediction: compute_metrics(*prediction, REGRESSION),
        max_tokens_per_micro_batch=10_000,
        example_loss=ExampleLoss(REGRESSION, standard=Standard.of(tokenized["labels"][:])),
    )


@pytest.mark.parametrize("method", ["full", "lora", "head", "textcnn"])
def test_numbers_are_learnt_alike_on_any_scale_and_what_is_saved_gives_them(
    tmp_path, tiny_bert, tokenizer, tokenized, method
):
    near = tokenized.remove_columns("labels").add_column("labels", FAR.apply(np.array(tokenized["labels"][:])))
    assert Standard.of(near["labels"][:]) == Standard()
    assert Standard.of(tokenized["labels"][:]) == FAR
    trainers, histories = [], []
    for rows in (near, tokenized):
        trainer = make_trainer(tmp_path / "checkpoints", make_model(tiny_bert, tokenizer, method), tokenizer, rows)
        trainer.train()
        trainers.append(trainer)
        histories.append([entry["eval_r2"] for entry in trainer.state.log_history if "eval_r2" in entry])
    assert len(histories[0]) == 2
    np.testing.assert_allclose(histories[1], histories[0], atol=1e-3)
    assert trainers[1].evaluate()["eval_r2"] == pytest.approx(histories[1][-1], abs=1e-4)

    family = TextCNN() if method == "textcnn" else Encoder()
    write_model(tmp_path / "model", family, trainers[1].model, tokenizer, TextConfig(24))
    models = [trainers[1].model.eval(), load(tmp_path / "model")[0]]
    if method in ("full", "head"):
        models.append(AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval())
    collated = MicroBatchCollator(tokenizer, 10_000).collate([tokenized[row] for row in range(20)])
    del collated["labels"]
    with torch.no_grad():
        expected = FAR.undo(trainers[0].model.eval()(**collated).logits)
        for model in models:
            torch.testing.assert_close(model(**collated).logits, expected, atol=0.3, rtol=0)


def test_a_fresh_head_begins_at_the_mean_and_an_old_one_where_it_was(tmp_path, tiny_bert, tokenizer, tokenized):
    settings = {"learning_rate": 0.0, "max_steps": 1, "eval_strategy": "no"}
    model = make_model(tiny_bert, tokenizer, "full")
    trainer = make_trainer(tmp_path, copy.deepcopy(model), tokenizer, tokenized, **settings)
    trainer.train()
    assert trainer.evaluate()["eval_mae"] < 350

    trainer = make_trainer(tmp_path, model, tokenizer, tokenized, **settings)
    trainer.model.new_modules = []  # as of a checkpoint that brings its head along
    before = trainer.evaluate()["eval_mse"]
    trainer.train()
    assert trainer.evaluate()["eval_mse"] == pytest.approx(before, rel=1e-5)


def test_a_head_without_a_bias_learns_numbers_too(tmp_path, tokenizer, tokenized):
    trainer = make_trainer(tmp_path, build("gpt2"), tokenizer, tokenized, learning_rate=1e-2)
    trainer.model.new_modules = ["score"]
    before = trainer.evaluate()["eval_r2"]
    trainer.train()
    assert trainer.model.score.bias is None
    assert before < -40 < -1 < trainer.evaluate()["eval_r2"]


@pytest.mark.parametrize("standard", [Standard.of(np.array([1700.0, 2300.0])), Standard(5.0, 2.0)])
def test_a_resumed_training_keeps_the_scale_that_it_began_with(tmp_path, tiny_bert, tokenizer, tokenized, standard):
    settings = {"save_strategy": "steps", "save_steps": 5, "max_steps": 10, "eval_steps": 10}
    straight = make_trainer(tmp_path, make_model(tiny_bert, tokenizer, "full"), tokenizer, tokenized, **settings)
    straight.train()
    resumed = make_trainer(tmp_path, make_model(tiny_bert, tokenizer, "full"), tokenizer, tokenized, **settings)
    resumed.standard = standard  # maybe of other rows, if they have changed
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    for name, parameter in straight.model.named_parameters():
        assert torch.equal(resumed.model.get_parameter(name), parameter), name


def test_a_number_that_no_layer_gives_is_learnt_as_it_is_and_that_is_said(tmp_path, tiny_bert, tokenizer, tokenized):
    model = make_model(tiny_bert, tokenizer, "full")
    square_logits(model)
    trainer = make_trainer(tmp_path, model, tokenizer, tokenized, max_steps=1, eval_strategy="no", learning_rate=0.0)
    with pytest.warns(
        UserWarning, match=r"numbers to predict \(mean 2000, spread 300\) are not standardised, since no"
    ):
        trainer.train()
    assert trainer.evaluate()["eval_mae"] == pytest.approx(2000, rel=0.01)


@pytest.mark.filterwarnings("ignore:this processor has no units")
def test_large_numbers_are_not_rounded_to_bfloat16(tmp_path, tiny_bert, tokenizer):
    model = make_model(tiny_bert, tokenizer, "full")
    _, layer = find_output_layer(model.eval(), INPUTS)
    Standard(1990.0, 10.0).put_into(layer)
    texts = ["a good film", "a bad plot", "the story was dull", "superb acting !", "very fine", "this is awful"]
    exact = Predictor(copy.deepcopy(model), tokenizer, dtype=torch.float32).compute_logits(texts)[0]
    predictor = Predictor(model, tokenizer, dtype=torch.bfloat16)
    rounded = predictor.compute_logits(texts)[0]
    np.testing.assert_allclose(rounded, exact, atol=0.2)
    assert (rounded % 8 != 0).all()  # bfloat16 knows 1984 and 1992, and none between
    cast_linear_layers(model, torch.bfloat16)  # as a saved model is loaded
    np.testing.assert_allclose(predictor.compute_logits(texts)[0], rounded, atol=1e-3)
    classes = build("bert", num_labels=2)
    classes.config.problem_type = SINGLE_LABEL
    compute_numbers_in_fp32(classes)
    assert type(classes.classifier) is torch.nn.Linear


@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize("model_type", ["bert", "distilbert", "gpt2"])
@pytest.mark.parametrize("problem_type", [REGRESSION, None])
def test_a_plain_model_that_predicts_in_bfloat16_gives_whole_numbers(model_type, num_labels, problem_type):
    model = build(model_type, num_labels)
    model.config.problem_type = problem_type
    with torch.no_grad():
        _, layer = find_output_layer(model, INPUTS)
        (FAR if layer.bias is not None else Standard(0.0, 300.0)).put_into(layer)
        exact = model(**INPUTS).logits
        enable(model, predict_in=torch.bfloat16)
        with autocast(torch.device("cpu"), torch.bfloat16):
            found = model(**INPUTS).logits
    are_numbers = problem_type is not None or num_labels == 1  # as transformers takes them
    assert (found.dtype == torch.float32) == are_numbers
    if are_numbers:
        torch.testing.assert_close(found, exact, atol=30.0, rtol=0.02)
        assert not torch.equal(found.to(torch.bfloat16).float(), found)


def test_differences_of_numbers_are_measured_by_their_size():
    logits = np.array([[-250_000.0], [3.0]])
    assert unit_of_logits(logits, REGRESSION) == 250_000
    assert unit_of_logits(logits, SINGLE_LABEL) == 1
    assert unit_of_logits(logits / 1e6, REGRESSION) == 1
