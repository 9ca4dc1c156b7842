"""TextCNN: the worked examples of the textbooks, padding, short sentences, variants, and the Auto classes."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from finetune.families.textcnn import TextCNNSettings, build_textcnn, load_textcnn_tokenizer
from finetune.families.textcnn.textcnn import TextCNNConfig, TextCNNForSequenceClassification, convolve, max_over_time
from finetune.families.textcnn.vocabulary import train_word_tokenizer
from finetune.metrics import SINGLE_LABEL
from finetune.settings.parts import ModelArguments
from finetune.tasks import Task


def make_model(**settings):
    torch.manual_seed(0)
    return TextCNNForSequenceClassification(TextCNNConfig(vocab_size=20, embedding_dim=8, num_labels=3, **settings))


def test_worked_convolution():
    """The 3x3 input 1…9 under the filter [[1, 0], [0, 1]] gives 6 at (0, 0)."""
    image = torch.arange(1.0, 10).reshape(1, 3, 3)
    at_column_0 = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]])
    at_column_1 = torch.tensor([[[0.0, 1, 0], [0, 0, 1]]])
    left, right = convolve(image, [at_column_0, at_column_1])
    # Position 0 is the window that ends at the first row; full windows begin at position 1.
    assert left[0, 1:3, 0].tolist() == [6.0, 12.0]
    assert right[0, 1:3, 0].tolist() == [8.0, 14.0]


def test_worked_pooling():
    """2x2 max-pooling with stride 2 of 1…16 gives [[6, 8], [14, 16]]."""
    blocks = torch.arange(1.0, 17).reshape(2, 2, 2, 2).transpose(1, 2).reshape(4, 4, 1)  # four blocks of 2x2
    pooled = max_over_time(blocks, torch.full((4,), 4))
    assert pooled.reshape(2, 2).tolist() == [[6.0, 8.0], [14.0, 16.0]]


def test_worked_cross_entropy():
    """Probabilities (0.1, 0.7, 0.2) against the second class cost 0.357."""
    model = make_model().eval()
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.1, 0.7, 0.2]).log())
    output = model(torch.tensor([[3, 4, 5]]), labels=torch.tensor([1]))
    assert output.loss.item() == pytest.approx(0.357, abs=5e-4)


def test_convolution_equals_torch():
    torch.manual_seed(0)
    embedded = torch.randn(2, 7, 8)
    weights = [torch.randn(5, width, 8) for width in (1, 3, 5)]
    for weight, features in zip(weights, convolve(embedded, weights), strict=True):
        width = weight.shape[1]
        expected = F.conv1d(embedded.transpose(1, 2), weight.transpose(1, 2), padding=width - 1).transpose(1, 2)
        torch.testing.assert_close(features, expected)


def test_padding_changes_no_prediction():
    model = make_model().eval()
    tokens = torch.tensor([[5, 6, 7, 8]])
    padded = torch.tensor([[5, 6, 7, 8, 0, 0, 0, 0, 0], [9, 9, 9, 9, 9, 9, 9, 9, 9]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0, 0], [1] * 9])
    expected = model(tokens).logits[0]
    torch.testing.assert_close(model(padded, attention_mask=mask).logits[0], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(model(padded).logits[0], expected, atol=1e-6, rtol=0)  # mask from the padding token


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_sentences_shorter_than_the_widest_filter_work(length):
    logits = make_model().eval()(torch.arange(3, 3 + length)[None]).logits
    assert logits.shape == (1, 3)
    assert torch.isfinite(logits).all()


def test_an_empty_sentence_is_classified_by_the_bias():
    logits = make_model().eval()(torch.zeros(1, 4, dtype=torch.long)).logits
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("variant", ["static", "non-static", "multichannel"])
def test_pretrained_variants_start_from_the_given_vectors(tiny_bert, variant):
    arguments = ModelArguments(model_name_or_path=tiny_bert)
    settings = TextCNNSettings(textcnn_variant=variant)
    tokenizer = load_textcnn_tokenizer(arguments, settings, train=None, max_length=24)
    model = build_textcnn(arguments, settings, tokenizer, Task(SINGLE_LABEL, ["a", "b"]), seed=0)
    vectors = AutoModelForSequenceClassification.from_pretrained(tiny_bert).get_input_embeddings().weight
    assert torch.equal(model.embedding.weight[1:], vectors[1:])
    assert not model.embedding.weight[0].any()
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert ("embedding.weight" in trains) == (variant != "static")
    assert "static_embedding.weight" not in trains
    if variant == "multichannel":
        assert torch.equal(model.static_embedding.weight, model.embedding.weight)


def test_multichannel_adds_what_the_filters_give_on_both_copies():
    model = make_model(variant="multichannel").eval()
    with torch.no_grad():
        model.static_embedding.weight.normal_()
    tokens = torch.tensor([[3, 4, 5]])
    weights = list(model.filters)
    on_tuned = convolve(model.embedding(tokens), weights)
    on_static = convolve(model.static_embedding(tokens), weights)
    pooled = [
        (one + other + bias).relu().amax(1)
        for one, other, bias in zip(on_tuned, on_static, model.filter_biases, strict=True)
    ]
    torch.testing.assert_close(model(tokens).logits, model.classifier(torch.cat(pooled, 1)))


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="'dynamic'"):
        TextCNNConfig(variant="dynamic")


@pytest.mark.parametrize(
    "variant", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("rand", "static")), "multichannel"]
)
def test_a_stranger_reloads_it_with_transformers_alone(tmp_path, variant):
    model = make_model(variant=variant, id2label={0: "x", 1: "y", 2: "z"}, label2id={"x": 0, "y": 1, "z": 2}).eval()
    tokenizer = train_word_tokenizer(["a b c d e f g h"], 20, max_length=16)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    expected = model(**tokenizer("a b c", return_tensors="pt")).logits.detach().numpy()
    program = """
import sys, numpy
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
folder, out = sys.argv[1:]
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder)
numpy.save(out, model(**tokenizer("a b c", return_tensors="pt")).logits.detach().numpy())
answer = pipeline("text-classification", model=folder, trust_remote_code=True)("a b c", truncation=True)[0]
assert answer["label"] in "xyz", answer
assert "finetune" not in sys.modules
"""
    out = tmp_path / "logits.npy"
    subprocess.run([sys.executable, "-c", program, str(tmp_path), str(out)], check=True, cwd=tmp_path)
    np.testing.assert_array_equal(np.load(out), expected)


def test_vocabulary_is_of_training_words_and_reloads(tmp_path):
    tokenizer = train_word_tokenizer(["Good film, good plot!", "电影 好"], 100, max_length=16)
    assert tokenizer.tokenize("GOOD film? 好电影") == ["good", "film", "[UNK]", "好", "电", "影"]
    tokenizer.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "good plot , 好 unknown"
    assert reloaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert reloaded.model_max_length == 16
    assert len(train_word_tokenizer(["a b c d e f"], 5, max_length=16)) == 5


def test_defaults_are_those_of_the_paper():
    config = TextCNNConfig()
    assert (config.filter_widths, config.num_filters, config.classifier_dropout) == ([3, 4, 5], 100, 0.5)
    model = TextCNNForSequenceClassification(TextCNNConfig(vocab_size=500, num_labels=2))
    assert model.classifier.in_features == 300
    vectors = model.embedding.weight[1:].detach()
    assert vectors.abs().max() <= 0.25
    assert vectors.std().item() == pytest.approx(0.5 / 12**0.5, rel=0.02)  # of U(-0.25, 0.25)
