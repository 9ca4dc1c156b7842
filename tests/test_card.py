"""The card's snippets run as they are printed, on texts of any length; its figures name the data that they are of."""

import json
import shutil

import pytest
from conftest import train_on_frames, write_tiny_bert

from finetune.errors import FinetuneError
from finetune.family import Shipped
from finetune.hub.card import build_card, read_results
from finetune.inference.load import find_saved_family, load
from finetune.inference.predict import load_predictor
from finetune.models.finetune_config import read_finetune_config
from finetune.run.record import CompleteRecord

LONG = "good film " * 200
QUICK = {"max_length": 24, "bf16": False, "num_threads": 1, "floor": False, "max_steps": 2}


def as_pairs(frame):
    return frame.assign(text_pair=frame.text[::-1].to_numpy())


def ship(folder, **how):
    config = read_finetune_config(folder)
    family = find_saved_family(folder, config)
    labels = load_predictor(folder).task.label_names
    return Shipped("me/model", None, family, labels, config, **how)


@pytest.mark.parametrize("name", ["full", "lora", "textcnn", "tfidf"])
def test_snippets_run_as_printed_on_long_texts(runs, name, capsys):
    folder = runs / name / "model"
    shipped = ship(folder, is_adapter=name == "lora")
    snippet = shipped.family.write_snippet(shipped)
    assert snippet.count("A text to classify.") == 1
    program = snippet.replace("me/model", str(folder)).replace("A text to classify.", LONG)
    exec(program, {})
    shown = capsys.readouterr().out
    assert load_predictor(folder).predict([LONG])[0].label in shown
    card = build_card(shipped, CompleteRecord.read(runs / name))
    assert ("5.17" in card) == (name == "lora")
    assert ("`truncation=True`" in card) == (name != "tfidf")


def test_a_snippet_of_pairs_runs_on_long_texts(tiny_bert, tmp_path, capsys):
    run = train_on_frames(QUICK, tmp_path / "run", tiny_bert, as_pairs, text_pair_column="text_pair")
    folder = run.directory / "model"
    shipped = ship(folder)
    snippet = shipped.family.write_snippet(shipped)
    for text in ("A text to classify.", "Its second text."):
        assert snippet.count(text) == 1
        snippet = snippet.replace(text, LONG)
    exec(snippet.replace("me/model", str(folder)), {})
    assert "score" in capsys.readouterr().out


def test_figures_name_the_file_that_they_were_measured_on(runs):
    record = CompleteRecord.read(runs / "full")
    card = build_card(ship(runs / "full/model"), record)
    named = {}
    for line in card.split("model-index")[1].splitlines():
        if line.strip().startswith("name: ") and line.strip().endswith(".csv"):
            name = line.strip().removeprefix("name: ")
        if line.strip().startswith("split: "):
            named[line.strip().removeprefix("split: ")] = name
    assert named == {"validation": "validation.csv", "test": "test.csv"}
    assert {split for split, _ in read_results(card)} == set(named)


def test_an_adapter_whose_base_is_gone_says_so_and_takes_another_place(tmp_path):
    base = tmp_path / "base"
    run = train_on_frames(QUICK, tmp_path / "run", write_tiny_bert(base), method="lora")
    expected = run.predict(["a good film"])[0]
    shutil.move(base, tmp_path / "elsewhere")
    config = run.directory / "model/adapter_config.json"
    with pytest.raises(FinetuneError, match=r"the base model '.*base', on which the adapter in") as caught:
        load(run.directory)
    assert f"base_model_name_or_path into {str(config)!r}" in str(caught.value)
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, "base_model_name_or_path": str(tmp_path / "elsewhere")}))
    assert load_predictor(run.directory).predict(["a good film"])[0] == expected
