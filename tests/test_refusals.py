"""What push, export, merge, serve and predict refuse: spoilt runs, names, branches, paths, counts. In one line each."""

import io
import json
import shutil
import subprocess
import sys

import pytest
from conftest import needs_exporters

from finetune.cli import main as finetune_command
from finetune.errors import FinetuneError
from finetune.hub.stage import stage
from finetune.hub_client import parse_hub_id
from finetune.inference.bulk import predict_file

NO_COLUMNS = dict.fromkeys(("text_column", "text_pair_column", "encoding"))


def refusal(command, capsys):
    """Run a command that is to be refused; gives its one line."""
    with pytest.raises(SystemExit) as caught:
        finetune_command([str(word) for word in command])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.fixture
def spoilt(runs, tmp_path):
    return shutil.copytree(runs / "tfidf", tmp_path / "spoilt")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"status": "complete"}'])
def test_a_run_whose_record_is_spoilt_is_not_pushed(spoilt, tmp_path, content):
    (spoilt / "run.json").write_text(content)
    with pytest.raises(FinetuneError, match=r"Expected run.json and predictions/ in .* alone, without figures"):
        stage(spoilt, tmp_path / "staged", "me/x", None)


def test_predictions_that_are_spoilt_are_not_pushed(spoilt, tmp_path):
    (spoilt / "predictions/validation.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(FinetuneError, match="reading them gave"):
        stage(spoilt, tmp_path / "staged", "me/x", None)


@needs_exporters
def test_predictions_that_are_spoilt_are_not_exported_on(spoilt, runs, tmp_path, capsys):
    (spoilt / "predictions/validation.parquet").write_bytes(b"PAR1 and no more")
    shutil.copytree(runs / "textcnn/model", spoilt / "model", dirs_exist_ok=True)
    for name in ("tfidf.safetensors", "checksums.json"):  # else it is warned of first
        (spoilt / "model" / name).unlink()
    assert "as the run wrote it" in refusal(["export", spoilt, tmp_path / "out", "--format", "onnx"], capsys)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"problem_type": "x", "text": {"foo": 1}}'])
def test_a_model_whose_settings_are_spoilt_does_not_load(spoilt, capsys, content):
    (spoilt / "model/finetune_config.json").write_text(content)
    (spoilt / "model/checksums.json").unlink()  # else it is warned of first
    assert "finetune_config.json'" in refusal(["predict", spoilt, "a text"], capsys)


@pytest.mark.parametrize("name", ["me/a--b", "me/a.git", "me/-a", "me/..", "me/" + "a" * 97, "me/a b", "a/b/c", "me/"])
def test_these_are_no_names_on_the_hub(name):
    assert parse_hub_id(name) is None


@pytest.mark.parametrize("branch", ["", "a b", "../x", "refs/pr/1", "x/", "-x"])
def test_these_are_no_branches(runs, capsys, branch):
    error = refusal(["push", runs / "tfidf", "me/x", f"--revision={branch}"], capsys)
    assert "Expected --revision to be the name of a branch" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["merge", "RUNS/lora", "FILE/merged"], "File exists"),
        pytest.param(
            ["export", "RUNS/textcnn", "FILE/exported", "--format", "onnx"], "File exists", marks=needs_exporters
        ),
        pytest.param(
            ["export", "RUNS/textcnn", "/proc/nowhere/exported", "--format", "onnx"],
            "No such file or directory: /proc/nowhere",
            marks=needs_exporters,
        ),
        (["merge", "RUNS/lora", "/proc/nowhere/merged"], "No such file or directory: /proc/nowhere"),
        (["export", "RUNS/textcnn", "NEW", "--format", "onnx", "--max_samples", "0"], "at least 1, but got '0'"),
        (["predict", "RUNS/tfidf", "a text", "--num_threads", "-1"], "at least 1, but got '-1'"),
        (["predict", "RUNS/tfidf", "half \udcff"], "Expected texts in UTF-8"),
        (["serve", "RUNS/tfidf", "--host", ""], "Expected an address"),
        (["serve", "RUNS/tfidf", "--port", "70000"], "Expected a free address"),
        (["serve", "RUNS/tfidf", "--max_texts", "0"], "at least 1, but got '0'"),
    ],
)
def test_paths_and_counts_that_can_t_be_are_refused(runs, tmp_path, capsys, words, message):
    (tmp_path / "file").write_text("kept")
    places = {"RUNS": str(runs), "FILE": str(tmp_path / "file"), "NEW": str(tmp_path / "new")}
    for name, place in places.items():
        words = [word.replace(name, place) for word in words]
    assert message in refusal(words, capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_bytes_on_the_standard_input_that_are_no_text_are_refused(runs, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"good\n\xff\xfe\n"), encoding="utf-8"))
    assert "Expected lines in utf-8" in refusal(["predict", runs / "tfidf"], capsys)


def test_columns_of_the_input_stay_as_they_are_also_halves_of_characters(runs, tmp_path):
    rows = [
        {"text": "good \ud800", "prediction": 0.123456789, "word": "\u00e9t\u00e9"},
        {"text": "bad", "word": "\udfff"},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert predict_file(runs / "tfidf", tmp_path / "in.jsonl", tmp_path / "out.jsonl", NO_COLUMNS) == 2
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [{name: one[name] for name in row} for row, one in zip(rows, found, strict=True)] == rows


def test_a_reader_that_goes_away_is_no_error():
    program = "from finetune.cli import main\nfor _ in range(9): main(['methods'])"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 1
