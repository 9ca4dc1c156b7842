"""`enable` puts every fast piece on a model, once; without it, and with --no_accelerated, a model is upstream's."""

import copy
import json

import pytest
import torch
from conftest import load_recipe
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForSequenceClassification

import finetune.engine
from finetune.accelerated import enable, fused
from finetune.accelerated.dropout import FastDropout
from finetune.accelerated.lora import _FusedLinear as FusedLora
from finetune.accelerated.unpadding import ATTENTION_NAME
from finetune.cli import main as command
from finetune.inference.predict import load_predictor
from finetune.training.trainer import FineTuningTrainer

TOKENS = torch.tensor([[2, 5, 6, 7, 3], [2, 9, 3, 0, 0]])
INPUTS = {"input_ids": TOKENS, "attention_mask": TOKENS.ne(0).long()}


def build(folder, adapter=False):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(folder, attention_probs_dropout_prob=0.0)
    return get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2)) if adapter else model


def own_pieces(model):
    """Name what of a model is not upstream's."""
    pieces = {
        type(module).__qualname__
        for module in model.modules()
        if type(module).__module__.startswith("finetune.accelerated")
    }
    hooks = [
        hook
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]
    pieces |= {"a hook"} if hooks else set()
    return pieces | ({"attention"} if model.config._attn_implementation == ATTENTION_NAME else set())


@pytest.mark.parametrize("adapter", [False, True])
def test_every_piece_is_put_on_once_and_what_is_saved_stays_the_same(tiny_bert, adapter):
    model = build(tiny_bert, adapter)
    assert own_pieces(model) == set()
    assert model.config._attn_implementation == "sdpa"
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = model.config.to_dict()
    assert enable(model) is model
    assert own_pieces(model) == {"FastDropout", "a hook", "attention"} | ({"_FusedLinear"} if adapter else set())
    assert any(isinstance(module, FusedLora) for module in model.modules()) == adapter
    encoder = model.get_base_model().bert.encoder if adapter else model.bert.encoder
    for _ in range(2):
        assert len(encoder._forward_pre_hooks) == len(encoder._forward_hooks) == 1
        assert {len(module._forward_hooks) for module in model.modules() if isinstance(module, nn.Embedding)} == {1}
        enable(model)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.config.to_dict() == config


@pytest.mark.parametrize("adapter", [False, True])
def test_logits_and_gradients_are_those_of_the_plain_model(tiny_bert, adapter):
    plain = build(tiny_bert, adapter)
    for module in plain.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    fast = enable(copy.deepcopy(plain))
    for model in (plain, fast):
        model.train()(**INPUTS, labels=torch.tensor([0, 1])).loss.backward()
        model.eval()
    for (name, one), (_, other) in zip(plain.named_parameters(), fast.named_parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, atol=1e-6, rtol=1e-4, msg=name)
    with torch.inference_mode():
        torch.testing.assert_close(fast(**INPUTS).logits, plain(**INPUTS).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_cast_for_prediction_alone(tiny_bert, dtype):
    model = build(tiny_bert)
    enable(model)
    assert model.classifier.weight.dtype is torch.float32
    enable(model, predict_in=dtype)
    assert model.classifier.weight.dtype is dtype
    if dtype is torch.bfloat16:
        assert isinstance(model.classifier, fused._FusedLinear) == fused.fuses_linear_layers()


@pytest.mark.skipif(torch.cuda.is_available(), reason="CPU pieces")
@pytest.mark.parametrize(
    ("recipe", "method"),
    [("imdb", "full"), ("imdb", "lora"), ("textcnn", "textcnn"), ("classify", "head"), ("classify", "lora")],
)
@pytest.mark.parametrize("accelerated", [True, False])
def test_a_run_is_accelerated_unless_the_flag_says_no(flags, tmp_path, monkeypatch, recipe, method, accelerated):
    module, seen = load_recipe(recipe), {}
    story = finetune.engine if recipe == "classify" else module  # which has the steps that the recipe takes
    init, evaluate_run = FineTuningTrainer.__init__, story.evaluate_run

    def note_trainer(self, model, *args, **kwargs):
        seen["begin"] = own_pieces(model)
        init(self, model, *args, **kwargs)

    def note_end(run, model, *args):
        evaluate_run(run, model, *args)
        seen["end"] = own_pieces(model)

    def note_predictor(*args, **kwargs):
        predictor = load_predictor(*args, **kwargs)
        compute_in = predictor.compute_in
        predictor.compute_in = lambda dtype: (compute_in(dtype), seen.update(predictor=own_pieces(predictor.model)))
        return predictor

    monkeypatch.setattr(FineTuningTrainer, "__init__", note_trainer)
    monkeypatch.setattr(story, "evaluate_run", note_end)
    monkeypatch.setattr("finetune.inference.evaluate.load_predictor", note_predictor)
    words = [*flags, "--method", method, "--no_floor", "--output_dir", str(tmp_path / "run")]
    module.main(words if accelerated else [*words, "--accelerated", "false"])
    assert json.loads((tmp_path / "run/run.json").read_text())["arguments"]["run"]["accelerated"] is accelerated
    assert seen.keys() == {"begin", "end", "predictor"}
    for when, pieces in seen.items():
        assert bool(pieces) == accelerated, when
    if accelerated and method != "textcnn":
        assert {"FastDropout", "a hook", "attention"} <= seen["begin"]
        assert {"a hook", "attention"} <= seen["predictor"]


def test_without_acceleration_a_predictor_leaves_the_model_as_it_is(runs):
    plain = load_predictor(runs / "full", torch.float32, accelerated=False)
    assert own_pieces(plain.model) == set()
    assert plain.model.config._attn_implementation == "sdpa"
    assert not any(isinstance(module, FastDropout) for module in plain.model.modules())
    logits = plain.compute_logits(["a good film", "dull"])[0]
    fast = load_predictor(runs / "full", torch.float32).compute_logits(["a good film", "dull"])[0]
    torch.testing.assert_close(torch.from_numpy(fast), torch.from_numpy(logits), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("words", [["predict", "a good film"], ["predict", "--input_file"], ["evaluate"], ["serve"]])
@pytest.mark.parametrize("accelerated", [True, False])
def test_a_command_leaves_the_model_as_it_is_where_its_flag_says_so(
    runs, reviews, tmp_path, monkeypatch, words, accelerated
):
    used = []
    monkeypatch.setattr("finetune.models.predictor.enable", lambda model, **how: used.append(how) or model)
    monkeypatch.setattr("finetune.serve.service.serve", lambda load, *args: load())
    given = {
        "--input_file": [reviews["--test_file"], "--output_file", str(tmp_path / "out.csv")],
        "evaluate": ["--test_file", reviews["--test_file"]],
    }.get(words[-1], [])
    flags = [*given, "--num_threads", "1", *([] if accelerated else ["--no_accelerated"])]
    command([words[0], str(runs / "full"), *words[1:], *flags])
    assert bool(used) == accelerated


def test_the_flag_is_said_to_change_nothing_where_no_network_computes(runs, capsys):
    command(["predict", str(runs / "tfidf"), "a good film", "--num_threads", "1", "--no_accelerated"])
    said = capsys.readouterr().err
    assert said.endswith(
        "tfidf' is no network that torch computes: --no_accelerated (accelerated=False) changes nothing\n"
    )
    assert said.count("warning: ") == said.count("\n") == 1
    finetune.load_classifier(runs / "tfidf", accelerated=False)
    assert capsys.readouterr().err == said
    plain = finetune.load_classifier(runs / "lora", accelerated=False)
    assert own_pieces(plain.model) == set()
    assert capsys.readouterr().err == ""
