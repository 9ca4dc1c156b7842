"""Zero-shot: labels by the similarity of their descriptions, without a training row."""

import functools
import json

import numpy as np
import pytest
import torch
from conftest import CAN_EXPORT, make_reviews, needs_exporters, train_on_frames
from transformers import AutoTokenizer, BertForSequenceClassification, pipeline

from finetune.comparison.compare import TRAIN, Plan
from finetune.errors import FinetuneError
from finetune.export.onnx import export
from finetune.families.embeddings.vectors import compute_vectors
from finetune.families.zero_shot.descriptions import SCALE, read_descriptions
from finetune.hub.stage import stage
from finetune.inference.exported import load_exported
from finetune.inference.load import load
from finetune.inference.predict import load_predictor
from finetune.inference.reload import compute_logits_elsewhere

TEXTS = [text for text, _ in make_reviews(12, offset=700)] + ["", "good", "film bad " * 30]
QUICK = {"method": "zero-shot", "max_length": 24, "num_threads": 1, "floor": "false", "bf16": "false"}


train = functools.partial(train_on_frames, QUICK)


@pytest.fixture(scope="module")
def trained(tiny_bert, tmp_path_factory):
    """A run, to be read only."""
    folder = tmp_path_factory.mktemp("zero-shot") / "run"
    return train(folder, tiny_bert, label_descriptions={"pos": "a good film", "neg": "a bad film"})


def test_the_logits_are_cosines_with_the_descriptions(trained):
    model, tokenizer = load(trained.directory)
    texts = ["a bad film", "a good film", *TEXTS]
    rows = [{"input_ids": ids} for ids in tokenizer(texts, truncation=True, max_length=24)["input_ids"]]
    vectors = compute_vectors(model, tokenizer, rows, [len(row["input_ids"]) for row in rows], torch.float32)
    found = load_predictor(trained.directory, torch.float32).compute_logits(TEXTS)[0]
    np.testing.assert_allclose(found, SCALE * vectors[2:] @ vectors[:2].T, atol=1e-4)
    assert trained.predict(["a good film"])[0].label == "pos"
    assert trained.predict(["a bad film"])[0].label == "neg"


def test_the_training_rows_change_nothing(trained, tiny_bert, tmp_path):
    def without(table):
        return table.iloc[10:] if len(table) == 60 else table

    other = train(tmp_path / "run", tiny_bert, without, label_descriptions="neg = a bad film; pos=a good film", seed=3)
    weights = [(run.directory / "model/model.safetensors").read_bytes() for run in (trained, other)]
    assert weights[0] == weights[1]


def test_the_record_and_the_card_say_what_it_is(trained, tmp_path):
    assert trained.record.model.architecture == "BertModel + cosine similarity"
    assert trained.record.model.trainable_parameters == 0
    stage(trained.directory, tmp_path / "model", "me/zero-shot", None)
    card = (tmp_path / "model/README.md").read_text()
    assert "Method `zero-shot`: nothing: the label whose --label_descriptions is most similar" in card
    assert "0 parameters trained" in card
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert config["label_descriptions"] == {"neg": "a bad film", "pos": "a good film"}
    np.testing.assert_allclose(
        compute_logits_elsewhere(tmp_path / "model", TEXTS, None),
        load_predictor(trained.directory, torch.float32).compute_logits(TEXTS)[0],
        atol=1e-4,
    )


@needs_exporters
def test_it_is_exported(trained, tmp_path):
    export(trained.directory, tmp_path / "onnx")
    expected = load_predictor(trained.directory, torch.float32).compute_logits(TEXTS)[0]
    np.testing.assert_allclose(load_exported(tmp_path / "onnx", 1).compute_logits(TEXTS)[0], expected, atol=1e-4)


def test_several_labels(tmp_path, tiny_bert):
    def change(table):
        return table.assign(label=table["label"] + np.where(table["text"].str.len() > 40, ";long", ""))

    run = train(tmp_path / "run", tiny_bert, change, label_delimiter=";")
    assert run.record.thresholds is not None
    assert run.metrics["test"]["micro_f1"] > 0


@pytest.mark.parametrize(
    ("change", "settings", "match"),
    [
        (lambda table: table.assign(label=table["text"].str.len() + 0.5), {}, "Expected labels for --method zero-shot"),
        (lambda table: table.assign(other=table["text"]), {"text_pair_column": "other"}, "Expected single texts for"),
        (lambda table: table, {"label_descriptions": "poss=good"}, "labels that the data has .neg, pos., but got one"),
        (lambda table: table, {"truncation": "window"}, "Expected --truncation head, tail or head.tail"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(tmp_path, tiny_bert, change, settings, match):
    with pytest.raises(FinetuneError, match=match) as caught:
        train(tmp_path / "run", tiny_bert, change, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {}),
        ("pos=a good film", {"pos": "a good film"}),
        ("pos = a = b ; neg=dull;", {"pos": "a = b", "neg": "dull"}),
        ('{"pos": "good; really"}', {"pos": "good; really"}),
    ],
)
def test_descriptions_are_read(given, expected):
    assert read_descriptions(given, ["neg", "pos"]) == expected


def test_descriptions_in_a_file(tmp_path):
    file = tmp_path / "labels.yaml"
    file.write_text("pos: a good film\nneg: a bad one\n", encoding="utf-8")
    assert read_descriptions(str(file), ["neg", "pos"]) == {"pos": "a good film", "neg": "a bad one"}


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ("a good film", "as a .yaml file, or as 'label=description"),
        ("missing.yaml", "to be a file that can be read, but 'missing.yaml' can't"),
        ("pos=", "that of 'pos' is empty"),
        ("{pos: [a]}", "Expected 'label: description' lines"),
        ("{pos: ", "Expected --label_descriptions in YAML"),
    ],
)
def test_what_is_no_description_is_refused(given, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FinetuneError, match=match):
        read_descriptions(given, ["neg", "pos"])


@pytest.fixture(scope="module")
def inference_model(tiny_bert, tmp_path_factory):
    """A random model of natural language inference."""
    folder = tmp_path_factory.mktemp("inference")
    torch.manual_seed(0)
    names = {0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}
    model = BertForSequenceClassification.from_pretrained(
        tiny_bert, id2label=names, label2id={name: number for number, name in names.items()}
    )
    model.classifier.weight.data.normal_()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    return str(folder)


def test_a_model_of_inference_is_asked_of_each_label(tmp_path, inference_model, monkeypatch):
    run = train(tmp_path / "run", inference_model, label_descriptions="pos=a good film")
    assert run.record.model.architecture == "BertForSequenceClassification + entailment"
    assert run.record.model.trainable_parameters == 0
    ask = pipeline("zero-shot-classification", model=inference_model)
    predicted = run.predict(TEXTS[:4])
    for text, prediction in zip(TEXTS[:4], predicted, strict=True):
        found = ask(text, ["a good film", "This example is neg."], hypothesis_template="{}")
        scores = dict(zip(found["labels"], found["scores"], strict=True))
        assert prediction.all_probabilities["pos"] == pytest.approx(scores["a good film"], abs=1e-2)
    together = load_predictor(run.directory, torch.float32).compute_logits(TEXTS)[0]
    np.testing.assert_allclose(compute_logits_elsewhere(run.directory / "model", TEXTS, None), together, atol=1e-5)
    refusal = "Expected a model that reads a text once" if CAN_EXPORT else r"Expected transformers 5\.23 or newer"
    with pytest.raises(FinetuneError, match=refusal):
        export(run.directory, tmp_path / "onnx")
    stage(run.directory, tmp_path / "model", "me/inference", None)
    np.testing.assert_allclose(compute_logits_elsewhere(tmp_path / "model", TEXTS, None), together, atol=1e-5)


def test_several_labels_by_inference(tmp_path, inference_model):
    def change(table):
        return table.assign(label=table["label"] + np.where(table["text"].str.len() > 40, ";long", ""))

    run = train(tmp_path / "run", inference_model, change, label_delimiter=";")
    assert sorted(run.predict(["a film"])[0].all_probabilities) == ["long", "neg", "pos"]


def test_without_chance_one_seed_is_enough(tmp_path):
    plan = Plan(TRAIN, ["zero-shot", "embeddings"], [0, 1], tmp_path)
    assert [(run.method, run.seed) for run in plan.runs] == [("zero-shot", 0), ("embeddings", 0)]
