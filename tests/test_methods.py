"""Methods on encoders other than BERT: what the checkpoint lacked is found, trained, saved, and reloads."""

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from finetune.errors import FinetuneError
from finetune.families.encoder import Encoder
from finetune.families.save import write_model
from finetune.inference.load import load
from finetune.methods import apply_method
from finetune.metrics import SINGLE_LABEL
from finetune.models.load import load_model, newly_initialised_modules
from finetune.settings.parts import MethodArguments, ModelArguments
from finetune.tasks import Task

ABC, XY = Task(SINGLE_LABEL, ["a", "b", "c"]), Task(SINGLE_LABEL, ["x", "y"])
SMALL = {"vocab_size": 30, "max_position_embeddings": 40, "pad_token_id": 0, "hidden_size": 16, "num_hidden_layers": 2,
         "num_attention_heads": 2, "intermediate_size": 32}  # fmt: skip
# For each encoder its settings and the modules that `AutoModelForSequenceClassification` draws at random.
ENCODERS = {
    "bert": (SMALL, ["classifier"]),
    "roberta": (SMALL, ["classifier"]),
    "electra": ({**SMALL, "embedding_size": 16}, ["classifier"]),
    "distilbert": (
        {"vocab_size": 30, "dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2, "pad_token_id": 0},
        ["pre_classifier", "classifier"],
    ),
    "deberta-v2": (SMALL, ["pooler", "classifier"]),
    "modernbert": (
        {**SMALL, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3},
        ["head", "classifier"],
    ),
}


@pytest.fixture(scope="module", params=ENCODERS)
def encoder(request, tmp_path_factory, tiny_bert):
    """A folder with a random encoder without a head, and the names of what it lacks."""
    folder = tmp_path_factory.mktemp(request.param)
    settings, lacking = ENCODERS[request.param]
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(request.param, **settings)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    return str(folder), lacking


def make(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return load_model(ModelArguments(model_name_or_path=folder), "full", tokenizer, ABC, seed=0)


def test_what_the_checkpoint_lacked_is_found(encoder):
    folder, lacking = encoder
    assert newly_initialised_modules(make(folder)) == lacking


def test_the_head_depends_on_the_seed_alone(encoder):
    folder, _ = encoder
    torch.rand(7)
    first = make(folder).state_dict()
    torch.rand(3)
    second = make(folder).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("method", ["full", "head", "lora"])
def test_everything_that_trains_is_saved(encoder, method, tmp_path):
    folder, lacking = encoder
    model = apply_method(make(folder), MethodArguments(method=method))
    trains = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all(any(f"{module}." in name for name in trains) for module in lacking)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in model.named_parameters():
            if parameter.requires_grad:  # as if trained: everything trainable has moved
                parameter.add_(torch.randn(parameter.shape, generator=generator) / 10)
    write_model(tmp_path / "model", Encoder(), model, AutoTokenizer.from_pretrained(folder))
    tokens = torch.tensor([[2, 5, 6, 7, 3]])
    with torch.no_grad():
        expected = model.eval()(input_ids=tokens).logits
        reloaded, _ = load(tmp_path / "model")
        torch.testing.assert_close(reloaded(input_ids=tokens).logits, expected, atol=1e-6, rtol=0)
    assert reloaded.config.id2label == {0: "a", 1: "b", 2: "c"}


def test_a_model_with_a_head_has_none_to_train_afresh(tmp_path, tiny_bert):
    make(tiny_bert).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    model = load_model(ModelArguments(model_name_or_path=str(tmp_path)), "head", tokenizer, ABC, seed=0)
    with pytest.raises(FinetuneError, match="without a classification head"):
        apply_method(model, MethodArguments(method="head"))


def test_a_head_for_other_classes_is_drawn_anew(tmp_path, tiny_bert):
    make(tiny_bert).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    model = load_model(ModelArguments(model_name_or_path=str(tmp_path)), "full", tokenizer, XY, seed=0)
    assert newly_initialised_modules(model) == ["classifier"]
    assert model.classifier.out_features == 2


def test_lora_on_a_checkpoint_that_has_a_head(tmp_path, tiny_bert):
    make(tiny_bert).save_pretrained(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.save_pretrained(tmp_path / "base")
    arguments = ModelArguments(model_name_or_path=str(tmp_path / "base"))
    with pytest.warns(UserWarning, match=r"has a head .* its classes must be \['a', 'b', 'c'\], in this order"):
        base = load_model(arguments, "lora", tokenizer, ABC, seed=0)
    model = apply_method(base, MethodArguments("lora"))
    assert any("classifier" in name for name, parameter in model.named_parameters() if parameter.requires_grad)
    write_model(tmp_path / "model", Encoder(), model, tokenizer)
    tokens = torch.tensor([[2, 5, 6, 7, 3]])
    torch.testing.assert_close(load(tmp_path / "model")[0](tokens).logits, model.eval()(tokens).logits)


def test_a_folder_without_a_trained_head_is_refused(tiny_bert):
    with pytest.raises(FinetuneError, match=r"lack \['classifier.bias', 'classifier.weight'\]"):
        load(tiny_bert)
