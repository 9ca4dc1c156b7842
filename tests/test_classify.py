"""recipes/classify.py end to end: one file in, a model of each kind of task out, that predicts and evaluates."""

import csv
import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import make_reviews

from finetune.cli import main as finetune_command
from finetune.errors import FinetuneError
from finetune.inference.predict import load_predictor

FAST = ["--max_length", "24", "--bf16", "false", "--num_threads", "1", "--num_train_epochs", "1"]


@pytest.fixture(scope="module")
def run(classify, tiny_bert):
    def start(folder, *words):
        classify.main([*FAST, "--model_name_or_path", tiny_bert, *map(str, words), "--output_dir", str(folder / "run")])
        return json.loads((folder / "run/run.json").read_text())

    return start


def write_table(path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_one_file_and_nothing_else(run, tmp_path):
    path = write_table(tmp_path / "reviews.csv", ["review", "sentiment"], make_reviews(60))
    record = run(tmp_path, "--train_file", path)
    assert record["status"] == "complete"
    assert record["data"]["label_names"] == ["neg", "pos"]
    assert {name: split["rows"] for name, split in record["data"]["splits"].items()} == {
        "train": 48, "validation": 6, "test": 6,
    }  # fmt: skip
    findings = json.loads((tmp_path / "run/findings.json").read_text())
    assert "lengths" in {finding["name"] for finding in findings}


@pytest.mark.parametrize("method", ["full", "lora", "head", "textcnn", "tfidf"])
@pytest.mark.parametrize("kind", ["several", "number", "pairs"])
def test_every_kind_of_task_with_every_method(run, tmp_path, capsys, kind, method):
    reviews = make_reviews(60)
    if kind == "several":
        rows = [(text, ";".join([label, *(["long"] if len(text.split()) > 8 else [])])) for text, label in reviews]
        path = write_table(tmp_path / "topics.csv", ["text", "labels"], rows)
        record = run(tmp_path, "--train_file", path, "--label_delimiter", ";", "--method", method)
        assert record["data"]["problem_type"] == "multi_label_classification"
        assert record["data"]["label_names"] == ["long", "neg", "pos"]
        assert {"micro_f1", "per_class"} <= record["metrics"]["test"].keys()
        assert record["arguments"]["training"]["metric_for_best_model"] == "micro_f1"
    elif kind == "number":
        rows = [(text, len(text.split()) / 4) for text, _ in reviews]
        path = write_table(tmp_path / "lengths.csv", ["text", "score"], rows)
        record = run(tmp_path, "--train_file", path, "--method", method)
        assert record["data"]["problem_type"] == "regression"
        assert record["metrics"]["test"]["mae"] > 0
        assert record["arguments"]["training"]["greater_is_better"] is False
    else:
        rows = [
            (text, other, label) for (text, label), (other, _) in zip(reviews, reviews[7:] + reviews[:7], strict=True)
        ]
        path = write_table(tmp_path / "pairs.csv", ["sentence1", "sentence2", "label"], rows)
        record = run(tmp_path, "--train_file", path, "--method", method)
        assert record["data"]["label_names"] == ["neg", "pos"]
    assert record["reload"]["max_difference"] < 1e-4
    table = pq.read_table(tmp_path / "run/predictions/test.parquet")
    predictor = load_predictor(tmp_path / "run")
    pairs = table["text_pair"].to_pylist() if kind == "pairs" else None
    logits, _ = predictor.compute_logits(table["text"].to_pylist(), pairs)
    np.testing.assert_allclose(logits, np.array(table["logits"].to_pylist()), atol=1e-4)
    capsys.readouterr()
    finetune_command(["predict", str(tmp_path / "run"), "a great film", *(["--pairs", "a bad one"] if pairs else [])])
    assert capsys.readouterr().out.endswith("\ta great film\ta bad one\n" if pairs else "\ta great film\n")
    delimiter = ["--label_delimiter", ";"] if kind == "several" else []
    finetune_command(["evaluate", str(tmp_path / "run"), "--test_file", str(path), *delimiter])
    shown = capsys.readouterr().out
    assert ("mae" if kind == "number" else "accuracy") in shown


@pytest.mark.parametrize("truncation", ["tail", "head+tail", "window"])
def test_how_texts_are_cut_travels_with_the_model(run, tmp_path, truncation):
    path = write_table(tmp_path / "reviews.csv", ["text", "label"], make_reviews(60))
    run(tmp_path, "--train_file", path, "--max_length", 6, "--truncation", truncation, "--window_pooling", "max")
    config = json.loads((tmp_path / "run/model/finetune_config.json").read_text())
    assert config["text"]["truncation"] == truncation
    assert load_predictor(tmp_path / "run").text_config.max_length == 6
    table = pq.read_table(tmp_path / "run/predictions/test.parquet")
    logits, num_tokens = load_predictor(tmp_path / "run").compute_logits(table["text"].to_pylist())
    np.testing.assert_allclose(logits, np.array(table["logits"].to_pylist()), atol=1e-4)
    assert (max(num_tokens) > 6) == (truncation == "window")


def test_withheld_test_labels_are_predicted_and_never_scored(run, tmp_path, capsys):
    train = write_table(tmp_path / "train.csv", ["text", "label"], make_reviews(60))
    test = write_table(tmp_path / "test.csv", ["text", "label"], [(text, -1) for text, _ in make_reviews(10, 100)])
    record = run(tmp_path, "--train_file", train, "--test_file", test)
    assert record["metrics"]["test"] == {"num_examples": 10, "labels_withheld": True}
    table = pq.read_table(tmp_path / "run/predictions/test.parquet")
    assert table.num_rows == 10
    assert "label" not in table.column_names
    assert "10 rows predicted, not scored" in capsys.readouterr().out


def test_rare_classes_weights_and_oversampling(run, tmp_path):
    rows = [*make_reviews(60), ("the story of this scene", "rare"), ("this plot and film", "rare")]
    path = write_table(tmp_path / "reviews.csv", ["text", "label"], rows)
    for words in (["--class_weights", "balanced", "--label_smoothing_factor", "0.1"], ["--oversample", "--restart"]):
        record = run(tmp_path, "--train_file", path, *words)
        assert record["data"]["splits"]["train"]["labels"]["rare"] == 2
        assert record["metrics"]["test"]["per_class"]["rare"]["num_examples"] == 0


def test_groups_stay_together(run, tmp_path):
    rows = [(text, label, f"author {number // 3}") for number, (text, label) in enumerate(make_reviews(90))]
    path = write_table(tmp_path / "reviews.csv", ["text", "label", "author"], rows)
    run(tmp_path, "--train_file", path, "--group_column", "author", "--method", "tfidf")
    groups = {text: group for text, _, group in rows}
    found = [
        {groups[text] for text in pq.read_table(tmp_path / f"run/predictions/{split}.parquet")["text"].to_pylist()}
        for split in ("validation", "test")
    ]
    assert not found[0] & found[1]
    assert all(len(one) >= 2 for one in found)


def test_leakage_is_reported_and_removed_from_train_when_asked(run, tmp_path, capsys):
    train = write_table(tmp_path / "train.csv", ["text", "label"], make_reviews(60))
    test = write_table(tmp_path / "test.csv", ["text", "label"], make_reviews(20))
    words = ["--train_file", train, "--test_file", test, "--method", "tfidf"]
    record = run(tmp_path, *words)
    assert "20 rows of test (20 texts) are also in train" in capsys.readouterr().err
    assert record["data"]["splits"]["test"]["rows"] == 20
    record = run(
        tmp_path, "--train_file", train, "--test_file", test, "--method", "tfidf", "--remove_leakage", "--restart"
    )
    assert record["data"]["splits"]["train"]["rows"] == 36  # of 40, less those carved for validation
    assert record["data"]["splits"]["test"]["rows"] == 20


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metric_for_best_model", "accuracy"], "for a number to predict to be one of mse"),
        (["--label_smoothing_factor", "0.1"], "no --label_smoothing_factor with a number"),
        (["--class_weights", "balanced"], "no --class_weights or --focal_gamma with a number"),
        (["--oversample"], "no --oversample with a number"),
        (["--truncation", "window", "--window_pooling", "vote"], "--window_pooling mean with a number"),
        (["--focal_gamma", "2", "--label_smoothing_factor", "0.1"], "but got both"),
        (["--truncation", "window", "--window_stride", "30"], "--window_stride below --max_length"),
        (["--oversample", "--class_weights", "balanced"], "--oversample or --class_weights balanced, but got both"),
        (["--model_revision", "main"], "--model_revision with a model on the Hub"),
        (["--dataset_revision", "main"], "with a --dataset_name on the Hub only"),
    ],
)
def test_settings_that_do_not_fit_are_one_line_and_leave_nothing(run, tmp_path, words, message):
    rows = [(text, len(text) / 7) for text, _ in make_reviews(60)]
    path = write_table(tmp_path / "lengths.csv", ["text", "score"], rows)
    with pytest.raises(FinetuneError, match=message):
        run(tmp_path, "--train_file", path, *words)
    assert not (tmp_path / "run").exists()


def test_errors_among_the_findings_stop_a_training(run, tmp_path, capsys):
    path = tmp_path / "null.jsonl"
    rows = [{"text": text, "label": label} for text, label in make_reviews(60)] + [{"text": None, "label": "pos"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(FinetuneError, match=r"1 rows of train have no text \(null.jsonl-60\). Remove them"):
        run(tmp_path, "--train_file", path)
    assert not (tmp_path / "run").exists()
    said = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in said] == ["task", "train"]  # what was understood, and no finding


@pytest.mark.parametrize("truncation", ["tail", "head+tail", "window"])
def test_pairs_are_cut_at_their_end_alone(run, tmp_path, truncation):
    rows = [(text, text[::-1], label) for text, label in make_reviews(60)]
    path = write_table(tmp_path / "pairs.csv", ["sentence1", "sentence2", "label"], rows)
    with pytest.raises(FinetuneError, match=f"--truncation head for pairs of texts, but got '{re.escape(truncation)}'"):
        run(tmp_path, "--train_file", path, "--truncation", truncation)
    assert not (tmp_path / "run").exists()


def test_texts_without_a_word_are_classified_by_how_frequent_each_class_is(run, tmp_path):
    rows = [("👍" * (number + 1), "up" if number % 3 else "down") for number in range(60)]
    path = write_table(tmp_path / "signs.csv", ["text", "label"], rows)
    record = run(tmp_path, "--train_file", path, "--method", "tfidf")
    assert record["metrics"]["test"]["per_class"]["up"]["recall"] == 1.0
