"""The public functions: data in every form that Python has it in, one way down, objects that show themselves."""

import contextlib
import json
import re
import subprocess
import sys

import datasets
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, make_reviews, write_csv

import finetune
from finetune.data.given import name_data
from finetune.data.load import load_given_splits
from finetune.errors import FinetuneError
from finetune.settings.parsing import to_flags
from finetune.settings.parts import DataArguments

ROWS = make_reviews(40)
TEXTS, LABELS = zip(*ROWS, strict=True)
SETTINGS = {"max_length": 24, "num_train_epochs": 1, "bf16": False, "num_threads": 1}


def frame():
    return pd.DataFrame(ROWS, columns=["text", "label"])


def test_what_is_public_is_named_and_documented():
    assert sorted(finetune.__all__) == finetune.__all__
    for name in finetune.__all__:
        assert getattr(finetune, name)
        assert name == "__version__" or getattr(finetune, name).__doc__


@pytest.fixture(scope="module")
def page(tiny_bert, tmp_path_factory):
    """What the example of docs/reference/api.md leaves, run as printed but for a smaller model and fewer passes."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs/reference/api.md").read_text(), re.DOTALL)[1]
    names = ", ".join(f'"{name}": {value!r}' for name, value in {**SETTINGS, "model_name_or_path": tiny_bert}.items())
    code = re.sub(r'output_dir="([^"]*)"\)', rf'output_dir="\1", **{{{names}}})', code)
    folder = tmp_path_factory.mktemp("page")
    with contextlib.chdir(folder):
        left = {"frame": frame()}
        exec(compile(code, "docs/reference/api.md", "exec"), left)
    return {**left, "folder": folder}


def test_the_page_of_the_api_says_what_is_so(page):
    assert (page["folder"] / "report.html").is_file()
    text = (ROOT / "docs/reference/api.md").read_text()
    for name in set(finetune.__all__) - {"__version__"}:
        assert f"{name}" in text


def test_importing_is_cheap():
    """Neither torch nor transformers, pandas or scikit-learn comes along."""
    code = "import finetune, sys; print(*(name.partition('.')[0] for name in sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "datasets", "pandas", "numpy", "sklearn", "pydantic"} & set(found)


FORMS = {
    "frame": frame,
    "categories": lambda: frame().astype({"label": "category"}),
    "dictionaries": lambda: [{"text": text, "label": label} for text, label in ROWS],
    "pair": lambda: (list(TEXTS), list(LABELS)),
    "arrays": lambda: (np.array(TEXTS), np.array(LABELS)),
    "dataset": lambda: datasets.Dataset.from_dict({"text": TEXTS, "label": LABELS}),
    "class names": lambda: datasets.Dataset.from_dict(
        {"text": TEXTS, "label": [int(label == "pos") for label in LABELS]},
        features=datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
        ),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_rows_gives_the_same_examples(form):
    train = load_given_splits(DataArguments(**name_data(FORMS[form]())))["train"]
    names = train.features["label"].names
    assert names == ["neg", "pos"]
    assert list(zip(train["text"], (names[label] for label in train["label"]), strict=True)) == ROWS


def test_splits_of_a_dictionary_and_beside_the_data(tmp_path):
    splits = datasets.DatasetDict({name: FORMS["dataset"]() for name in ("train", "test")})
    named = name_data(splits, validation=frame())
    assert set(named) == {"train_file", "validation_file", "test_file"}
    assert named["train_file"] == named["test_file"]  # the same content
    path = write_csv(tmp_path / "test.csv", ROWS)
    assert name_data(frame(), test=path)["test_file"] == path


def test_a_name_is_a_file_or_a_data_set(tmp_path):
    path = write_csv(tmp_path / "train.csv", ROWS)
    assert name_data(path) == {"train_file": path}
    assert name_data("embedded") == {"dataset_name": "embedded"}
    assert name_data("stanfordnlp/imdb") == {"dataset_name": "stanfordnlp/imdb"}
    assert name_data("nowhere.csv") == {"train_file": "nowhere.csv"}


@pytest.mark.parametrize(
    ("data", "validation", "message"),
    [
        (42, None, "^A int is no data that can be read"),
        ({"test": []}, None, "no split 'train' in the data"),
        ({"train": [], "validation": []}, [], "'validation' is in the data, and given beside it"),
        ((["a", "b"], ["x"]), None, "^There are 2 texts and 1 labels"),
        ([{"text": "a", "label": 1}, {"text": "b", "label": object()}], None, "fit into no column"),
        (pd.DataFrame([["a", "b"]]), None, "columns of a DataFrame need names"),
        (pd.DataFrame([["a", 1, 1]], columns=["text", "label", "label"]), None, "'label' is there again"),
    ],
)
def test_what_is_no_data_is_refused_in_one_line(data, validation, message):
    with pytest.raises(FinetuneError, match=message) as caught:
        name_data(data, validation)
    assert "\n" not in str(caught.value)


def test_settings_become_flags():
    assert to_flags({"bf16": False, "x": None, "lr_scheduler_kwargs": {"a": 1}, "report_to": ["none"]}) == [
        "--bf16=False", '--lr_scheduler_kwargs={"a": 1}', "--report_to", "none",
    ]  # fmt: skip
    assert to_flags({"no_floor": True, "no_accelerated": False}) == ["--floor=False", "--accelerated=True"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_bert):
    folder = tmp_path_factory.mktemp("api") / "run"
    validation, test = (pd.DataFrame(make_reviews(20, offset), columns=["text", "label"]) for offset in (100, 200))
    return finetune.train(
        frame(), method="lora", model=tiny_bert, output_dir=folder, validation=validation, test=test, **SETTINGS
    )


def test_a_run_measures_predicts_and_shows_itself(trained):
    record = json.loads((trained.directory / "run.json").read_text())
    assert trained.metrics["test"]["accuracy"] == record["metrics"]["test"]["accuracy"]
    assert len(trained.metrics["test"]["accuracy_interval"]) == 2
    (prediction,) = trained.predict(["a good film"])
    assert prediction.label in ("neg", "pos")
    assert prediction.probability == max(prediction.all_probabilities.values())
    assert set(prediction.all_probabilities) == {"neg", "pos"}
    assert "test             accuracy" in repr(trained)
    assert "<table>" in trained._repr_html_()


@pytest.mark.parametrize("method", ["full", "lora", "head", "textcnn", "tfidf"])
def test_every_family_loads_as_one_kind_of_object(runs, method):
    classifier = finetune.load_classifier(runs / method)
    assert classifier.label_names == ["neg", "pos"]
    (prediction,) = classifier.predict(["a good film"])
    assert list(prediction.all_probabilities) == classifier.label_names
    assert sum(prediction.all_probabilities.values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("method", ["full", "tfidf"])
def test_what_is_asked_is_a_text_or_texts(runs, method):
    classifier = finetune.load_classifier(runs / method)
    assert classifier.predict("a good film") == classifier.predict(["a good film"])
    assert classifier.predict(pd.Series(["a good film"])) == classifier.predict(["a good film"])
    assert classifier.predict([]) == []
    assert classifier.compute_probabilities([]).shape == (0, 2)


@pytest.mark.parametrize(
    ("texts", "pairs", "message"),
    [
        (["a", None], None, "text 1 is None. Fill it in"),
        (["a", float("nan")], None, "text 1 is nan. Fill it in"),
        ([3], None, r"text 0 is 3\. "),
        ([("a", "b")], None, r"text 0 is \('a', 'b'\). Second texts are passed as predict\(texts, pairs\)"),
        (pd.DataFrame({"text": ["a"]}), None, "got a DataFrame. Pass one of its columns"),
        ({"text": ["a"]}, None, "got a dict"),
        (7, None, "got a int"),
        (["a", "b"], ["c"], "a second text for each, but got 1 for 2"),
        (["a"], [None], "second text 0 is None"),
    ],
)
def test_what_is_no_text_is_refused(runs, texts, pairs, message):
    with pytest.raises(FinetuneError, match=message) as caught:
        finetune.load_classifier(runs / "tfidf").predict(texts, pairs)
    assert "\n" not in str(caught.value)


def test_a_mistake_in_a_comparison_is_said_before_anything_runs(tmp_path):
    folder = tmp_path / "runs"
    with pytest.raises(FinetuneError, match=r"found 'max_lenght'\. Did you mean 'max_length'"):
        finetune.compare(frame(), methods=["tfidf", "lora"], output_dir=folder, max_lenght=3)
    with pytest.raises(FinetuneError, match=r"'nowhere\.csv' does not exist"):
        finetune.compare("nowhere.csv", methods=["tfidf", "lora"], output_dir=folder)
    with pytest.raises(FinetuneError, match="Did you mean 'textcnn'"):
        finetune.compare(frame(), methods=["textcn"], output_dir=folder)
    assert not folder.exists()


def test_columns_of_labels_are_a_list():
    assert to_flags({"label_columns": ["a", "b"]}) == ["--label_columns=a,b"]


def test_training_leaves_the_libraries_as_loud_as_they_were(trained, tiny_bert, tmp_path):
    import warnings

    from transformers import logging

    before = logging.get_verbosity(), warnings.showwarning, datasets.are_progress_bars_disabled()
    finetune.train(frame(), method="tfidf", output_dir=tmp_path / "run")
    assert (logging.get_verbosity(), warnings.showwarning, datasets.are_progress_bars_disabled()) == before


def test_a_comparison_gives_a_verdict_a_table_and_a_page(page):
    found = page["comparison"]
    assert "tfidf" in found.verdict
    table = found.table()
    assert sorted(table.index) == ["lora", "tfidf"]
    assert 0 <= table.loc["tfidf", "accuracy_low"] <= table.loc["tfidf", "accuracy"]
    assert (page["folder"] / "report.html").read_text().startswith("<!doctype html>")
    assert "<table" in found._repr_html_()
    assert found.failures == []


def test_the_doctor_shows_its_findings():
    found = finetune.doctor([{"text": "the same", "label": "a"}, {"text": "the same", "label": "b"}] * 5)
    assert "same_text_different_labels" in [finding.name for finding in found]
    assert "same text different labels" in repr(found)
    assert "<table>" in found._repr_html_()


def test_train_by_the_command(reviews, tiny_bert, tmp_path, capsys):
    from finetune.cli import main

    words = [reviews["--train_file"], "--model_name_or_path", tiny_bert, "--output_dir", str(tmp_path / "run")]
    words += [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]
    main(["train", *words])
    assert "finetune predict" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.csv"], "'nowhere.csv' does not exist"),
        (["reviews.csv", "--methd", "lora"], "Did you mean 'method'"),
        (["--method", "lora"], "--dataset_name or --train_file, but got neither"),
    ],
)
def test_bad_words_end_train_with_one_line(words, message, tmp_path, capsys, monkeypatch):
    from finetune.cli import main

    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "reviews.csv", ROWS)
    with pytest.raises(SystemExit) as caught:
        main(["train", *words])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_help_shows_what_people_need_first(capsys):
    from finetune.cli import main

    main(["train", "--help"])
    short = capsys.readouterr().out
    assert short.index("DATA") < short.index("--method") < short.index("--model_name_or_path")
    assert len(short.splitlines()) < 50
    with pytest.raises(SystemExit):
        main(["train", "--help-all"])
    assert "--label_smoothing_factor" in capsys.readouterr().out


def test_the_wheel_says_that_it_is_typed():
    assert (ROOT / "finetune/py.typed").exists()
