"""One answer, whoever asks: Python, the command, files, the service, evaluate, an export, and what goes to the Hub."""

import csv
import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from conftest import CAN_EXPORT, OTHER, make_reviews, write_csv
from test_serve_page import post, served

import finetune
from finetune.cli import main
from finetune.data.embedded import load_embedded_reviews
from finetune.decisions.rules import Wishes
from finetune.hardware import fastest_precision
from finetune.hub.stage import stage
from finetune.inference.exported import load_exported
from finetune.inference.predict import load_predictor

# Where the processor is fastest in bfloat16, the order of a sum shows: what outlets that share torch may differ by.
TOLERANCE = 1e-5 if fastest_precision() == "fp32" else 0.02
FORMS = ["tfidf", "textcnn", *(pytest.param(name, marks=pytest.mark.slow) for name in ("500-tfidf", "500-encoder"))]


def make_doubtful(count, seed):
    """Make reviews whose labels are in their words, and half as many whose labels are drawn at random."""
    rng = np.random.default_rng(seed)
    vague = [(" ".join(rng.choice(OTHER, 6)), str(rng.choice(["neg", "pos"]))) for _ in range(count // 2)]
    return [*make_reviews(count, offset=seed), *vague]


def to_frame(rows):
    return pd.DataFrame(rows, columns=["text", "label"])


pytestmark = pytest.mark.timeout(3_600)  # the encoder's training and exports, on a busy core


@pytest.fixture(scope="module", params=FORMS)
def case(request, tmp_path_factory):
    """A run, and texts with their labels: 65 that were made up, or 500 real reviews that it was not trained on."""
    folder = tmp_path_factory.mktemp("outlets")
    kind = request.param.rpartition("-")[2]
    settings = {"output_dir": folder / "run", "num_threads": 1, "abstain": 0.85, "coverage": 0.9}
    if request.param in ("tfidf", "textcnn"):
        given = {"validation": to_frame(make_doubtful(200, 300)), "test": to_frame(make_doubtful(30, 600))}
        settings |= {"num_train_epochs": 8, "max_length": 24, "bf16": False} if kind == "textcnn" else {}
        run = finetune.train(to_frame(make_doubtful(200, 0)), method=kind, **given, **settings)
        return run, make_doubtful(40, 700) + [
            (text, "pos") for text in ("", "!", "the plot", "好电影 👍🏽", "a\tb\nc" * 3)
        ]
    settings |= {"method": kind, "abstain": 0.9}
    if kind == "encoder":
        settings |= {"method": "full", "max_length": 64, "num_train_epochs": 1, "abstain": 0.8}
    run = finetune.train("embedded", max_train_samples=2000, max_eval_samples=500, floor=False, **settings)
    used = {text for split in ("validation", "test") for text in read_texts(run, split)}
    reviews = load_embedded_reviews().shuffle(seed=1)
    names = reviews.features["label"].names
    labelled = zip(reviews["text"], reviews["label"], strict=True)
    return run, [(text, names[label]) for text, label in labelled if text not in used][:500]


def read_texts(run, split):
    return pq.read_table(run.directory / f"predictions/{split}.parquet", columns=["text"])["text"].to_pylist()


def same(found, expected, tolerance=TOLERANCE):
    """Compare probabilities, and labels, silence and sets, which beyond 1e-4 may differ where one is at a bound."""
    assert len(found) == len(expected)
    names = list(expected[0].all_probabilities)
    rows = [
        np.array([[one.all_probabilities[name] for name in names] for one in answers]) for answers in (found, expected)
    ]
    np.testing.assert_allclose(*rows, atol=tolerance, rtol=0)
    for what in (lambda one: one.labels, lambda one: one.is_given, lambda one: one.label_set):
        differ = sum(what(one) != what(other) for one, other in zip(found, expected, strict=True))
        assert differ == 0 if tolerance < 1e-4 else differ <= 0.02 * len(found)
    assert {one.is_given for one in expected} == {True, False}  # else silence is not compared


def test_python_and_the_saved_model(case):
    run, rows = case
    texts = [text for text, _ in rows]
    expected = run.predict(texts)
    same(load_predictor(run.directory / "model").predict(texts), expected)
    same(load_predictor(run.directory, wishes=Wishes(coverage=0.9)).predict(texts[::-1])[::-1], expected)
    same([run.predict(text)[0] for text in texts], expected)


def test_the_command(case, capsys):
    run, rows = case
    texts = [text for text, _ in rows if text.strip() and not text.startswith("-")][:60]
    capsys.readouterr()
    main(["predict", str(run.directory), "--coverage", "0.9", "--num_threads", "1", *texts])
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    for (label, probability, label_set, *_), one in zip(lines, run.predict(texts), strict=True):
        assert label == (one.label or "(not sure)")
        assert float(probability) == pytest.approx(max(one.all_probabilities.values()), abs=TOLERANCE + 5e-5)
        assert label_set == f"{{{', '.join(one.label_set)}}}"


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_files(case, ending, tmp_path):
    run, rows = case
    source, target = tmp_path / f"in{ending}", tmp_path / f"out{ending}"
    if ending == ".csv":
        write_csv(source, rows)
    else:
        source.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    main(["predict", str(run.directory), "--input_file", str(source), "--output_file", str(target), "--text_column",
          "text", "--num_threads", "1"])  # fmt: skip
    if ending == ".csv":
        with target.open(newline="", encoding="utf-8") as file:
            found = list(csv.DictReader(file))
        for one in found:
            one["prediction_set"] = json.loads(one["prediction_set"])
            one["is_answered"] = {"true": True, "false": False}[one["is_answered"].lower()]
    else:
        found = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    for row, one in zip(found, run.predict([text for text, _ in rows]), strict=True):
        assert (row["predicted_label"] or None) == one.label
        assert row["is_answered"] == one.is_given
        assert tuple(row["prediction_set"]) == one.label_set
        for name, value in one.all_probabilities.items():
            assert float(row[f"probability_{name}"]) == pytest.approx(value, abs=max(TOLERANCE, 1e-6))


def test_the_service(case):
    run, rows = case
    texts = [text for text, _ in rows]
    with served(load_predictor(run.directory, wishes=Wishes(coverage=0.9))) as address:
        found = [one for at in range(0, len(texts), 100)
                 for one in post(address, "predict", {"texts": texts[at : at + 100]})["predictions"]]  # fmt: skip
    for one, expected in zip(found, run.predict(texts), strict=True):
        assert one["labels"] == list(expected.labels)
        assert one["is_given"] == expected.is_given
        assert tuple(one["label_set"]) == expected.label_set
        assert one["probabilities"] == pytest.approx(dict(expected.all_probabilities), abs=TOLERANCE)


def test_evaluate(case, tmp_path):
    run, rows = case
    rows = [(text, label) for text, label in rows if text.strip()]
    path, measured = write_csv(tmp_path / "test.csv", rows), tmp_path / "m.json"
    main(["evaluate", str(run.directory), "--test_file", path, "--output_json", str(measured), "--num_threads", "1"])
    found = json.loads(measured.read_text())
    answers = list(zip(run.predict([text for text, _ in rows]), (label for _, label in rows), strict=True))
    given = [one.label == label for one, label in answers if one.is_given]
    assert found["answered"] == pytest.approx(len(given) / len(rows))
    assert found["answered_right"] == pytest.approx(np.mean(given))
    assert found["set_coverage"] == pytest.approx(np.mean([label in one.label_set for one, label in answers]))
    probable = [max(one.all_probabilities, key=one.all_probabilities.get) == label for one, label in answers]
    assert found["accuracy"] == pytest.approx(np.mean(probable))


def test_what_goes_to_the_hub(case, tmp_path):
    run, rows = case
    texts = [text for text, _ in rows]
    staged = stage(run.directory, tmp_path / "staged", "someone/model", None)
    same(load_predictor(staged.folder).predict(texts), run.predict(texts))


@pytest.mark.skipif(not CAN_EXPORT, reason="an export needs transformers 5.23")
@pytest.mark.parametrize("int8", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_exports(case, int8, tmp_path):
    run, rows = case
    if run.record.method == "tfidf":
        pytest.skip("TF-IDF needs no export")
    texts = [text for text, _ in rows]
    expected = load_predictor(run.directory, torch.float32).predict(texts)
    eight_bits = ["--int8", "--tolerance", "100"] if int8 else []
    main(
        ["export", str(run.directory), str(tmp_path / "export"), "--format", "onnx", "--num_threads", "1", *eight_bits]
    )
    found = load_exported(tmp_path / "export", 1).predict(texts)
    if not int8:
        same(found, expected, 1e-5)
        return
    rows = [np.array([list(one.all_probabilities.values()) for one in answers]) for answers in (found, expected)]
    assert np.abs(rows[0] - rows[1]).mean() < 0.02
    agree = np.mean([max(one.all_probabilities, key=one.all_probabilities.get)
                     == max(other.all_probabilities, key=other.all_probabilities.get)
                     for one, other in zip(found, expected, strict=True)])  # fmt: skip
    measured = json.loads((tmp_path / "export/export.json").read_text())["measured"]
    assert agree >= measured["agreement"] - 0.05  # as the export measured it on validation
