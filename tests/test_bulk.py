"""`finetune predict` on files: the same rows out in every format, and an interrupted output continued exactly."""

import csv
import gzip
import io
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_reviews, write_csv

from finetune.cli import main as finetune_command
from finetune.decisions.rules import DecisionRules
from finetune.families.tfidf.fit import fit_tfidf
from finetune.inference import bulk
from finetune.inference.predict import load_predictor
from finetune.inference.unfinished import KEY, Unfinished
from finetune.metrics import MULTI_LABEL, tune_thresholds
from finetune.models.answers import TextClassifier

COUNT = 50


@pytest.fixture
def rows():
    return [
        {"id": str(number), "text": f"{text}, {number}" if number % 3 else text, "label": label, "note": 'a "b"\nc'}
        for number, (text, label) in enumerate(make_reviews(COUNT, offset=500))
    ]


def write(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def read(path):
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


def predict(run, source, target, *extra):
    finetune_command(["predict", str(run), "--input_file", str(source), "--output_file", str(target), *extra])


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_the_output_is_the_input_with_label_and_probabilities(runs, rows, tmp_path, monkeypatch, capsys, ending):
    monkeypatch.setattr(bulk, "ROWS_AT_ONCE", 16)
    source = write(tmp_path / f"in{ending}", rows)
    predict(runs / "textcnn", source, tmp_path / f"out{ending}", "--num_threads", "1")
    expected = load_predictor(runs / "textcnn").predict([row["text"] for row in rows])
    found = read(tmp_path / f"out{ending}")
    assert len(found) == COUNT
    for row, one, prediction in zip(rows, found, expected, strict=True):
        assert {name: one[name] for name in row} == row
        assert one["predicted_label"] == prediction.labels[0]
        probability = float(one[f"probability_{prediction.labels[0]}"])
        assert probability == pytest.approx(prediction.probabilities[0], abs=1e-2)  # bf16, and other batches
        assert probability + float(one[f"probability_{'neg' if prediction.labels[0] == 'pos' else 'pos'}"]) == (
            pytest.approx(1, abs=1e-5)
        )
        assert len(one) == len(row) + 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"in{ending}", f"out{ending}"]
    assert f"{COUNT} rows" in capsys.readouterr().out


REVIEWS = make_reviews(12, offset=900)
OBJECTS = [{"text": text, "label": label, "n": 1234567.5} for text, label in REVIEWS]
LAYOUTS = {
    "a.tab": ("out.tsv", "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in REVIEWS)),
    "orange.tab": (
        "out.tsv", "text\tmood\nstring\tdiscrete\nmeta\tclass\n" + "".join(f"{a}\t{b}\n" for a, b in REVIEWS)
    ),
    "bars.csv": ("out.csv", "text|label\n" + "".join(f"{text}|{label}\n" for text, label in REVIEWS)),
    "a.json": ("out.jsonl", json.dumps(OBJECTS)),
    "data.json": ("out.jsonl", json.dumps({"data": OBJECTS}, indent=1)),
    "a.ndjson.gz": ("out.jsonl", "".join(json.dumps(row) + "\n" for row in OBJECTS)),
    "a.xlsx": ("out.csv", None),
    "folder": ("out.csv", None),
    "labels.txt": ("out.csv", "".join(f"{label} {text}\n" for text, label in REVIEWS)),
    "behind.txt.gz": ("out.csv", "".join(f"{text}\t{label}\n" for text, label in REVIEWS)),
    "fasttext": ("out.csv", "".join(f"__label__{label} {text}\n" for text, label in REVIEWS)),
    "plain.txt": ("out.csv", "\ufeff" + "".join(f"{text}\n" for text, _ in REVIEWS)),
    "other.txt": ("out.csv", "".join(f"n{row % 3} {text}\n" for row, (text, _) in enumerate(REVIEWS))),
}  # fmt: skip


def write_layout(path, content):
    if path.name == "a.xlsx":
        book = pytest.importorskip("openpyxl").Workbook()
        for row in [("text", "label", "n"), *(tuple(row.values()) for row in OBJECTS)]:
            book.active.append(row)
        book.save(path)
    elif path.name == "folder":
        for number, (text, label) in enumerate(REVIEWS):
            (path / label).mkdir(parents=True, exist_ok=True)
            (path / label / f"{number:02}.txt").write_text(text)
    else:
        path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())


@pytest.mark.parametrize("name", LAYOUTS)
def test_whatever_training_reads_is_labelled_and_measured(runs, tmp_path, capsys, name):
    target, content = LAYOUTS[name]
    write_layout(tmp_path / name, content)
    predict(runs / "tfidf", tmp_path / name, tmp_path / target)
    found = read(tmp_path / target)
    prefix = {"other.txt": [f"n{row % 3} " for row in range(12)]}.get(name, [""] * 12)
    texts = [one + text for one, (text, _) in zip(prefix, REVIEWS, strict=True)]
    assert sorted(row["text"] for row in found) == sorted(texts)
    answers = {
        text: one.labels[0] for text, one in zip(texts, load_predictor(runs / "tfidf").predict(texts), strict=True)
    }
    assert {row["text"]: row["predicted_label"] for row in found} == answers
    if "n" in found[0]:
        assert {float(row["n"]) for row in found} == {1234567.5}  # the user's numbers are as they were
    capsys.readouterr()
    if name in ("plain.txt", "other.txt"):
        return
    finetune_command(["evaluate", str(runs / "tfidf"), "--test_file", str(tmp_path / name)])
    right = sum(answers[text] == label for text, label in REVIEWS)
    assert f"{'accuracy':<18} {right / 12:.4f}" in capsys.readouterr().out


def test_lines_of_which_some_begin_with_a_label_are_refused(runs, tmp_path, capsys):
    (tmp_path / "in.txt").write_text("pos a good film\nthe plot was bad\n" * 3)
    with pytest.raises(SystemExit):
        predict(runs / "tfidf", tmp_path / "in.txt", tmp_path / "out.csv")
    assert "in all lines of" in (line := capsys.readouterr().err)
    assert "line 1 has one and line 2 has none" in line
    assert not (tmp_path / "out.csv").exists()


class PowerCut(BaseException):
    """Ends the process, for all that the code can tell."""


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_an_interrupted_output_is_continued_exactly(runs, rows, tmp_path, monkeypatch, capsys, ending):
    monkeypatch.setattr(bulk, "ROWS_AT_ONCE", 8)
    source = write(tmp_path / f"in{ending}", rows)
    predict(runs / "tfidf", source, tmp_path / f"whole{ending}")
    note, left = Unfinished._note, [2]

    def cut(self, **what):
        if left[0] == 0 and "rows" in what:
            raise PowerCut  # its rows are in the file already, and don't count yet
        left[0] -= what.get("rows", 0) > 0
        note(self, **what)

    answered = []
    compute = TextClassifier.compute_probabilities

    def counted(self, texts, pairs=None):
        answered.append(len(texts))
        return compute(self, texts, pairs)

    monkeypatch.setattr(Unfinished, "_note", cut)
    target = tmp_path / f"cut{ending}"
    with pytest.raises(PowerCut):
        predict(runs / "tfidf", source, target)
    assert not target.exists()
    monkeypatch.setattr(Unfinished, "_note", note)
    monkeypatch.setattr(TextClassifier, "compute_probabilities", counted)
    predict(runs / "tfidf", source, target)
    assert sum(answered) == COUNT - 2 * 8
    assert target.read_bytes() == (tmp_path / f"whole{ending}").read_bytes()
    assert not list(tmp_path.glob("*.unfinished"))


def test_an_unfinished_output_of_another_input_is_left_alone(runs, rows, tmp_path, capsys):
    source, target = write(tmp_path / "in.csv", rows), tmp_path / "out.csv"
    (folder := tmp_path / "out.csv.unfinished").mkdir()
    lines = [{KEY: {"input": "another"}}, {"rows": 3, "bytes": 5}]
    (folder / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "rows").write_text("12345")
    with pytest.raises(SystemExit):
        predict(runs / "tfidf", source, target)
    assert "to continue the unfinished output" in capsys.readouterr().err
    assert (folder / "rows").read_text() == "12345"


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("in.csv", "out.jsonl", "to end in .csv, as"),
        ("in.csv", "out.txt", "to end in .csv, as"),
        ("in.json", "out.json", "to end in .jsonl, as"),
        ("in.csv", "there.csv", "exists"),
        ("in.csv", "nowhere/out.csv", "in a folder"),
        ("in.json", "out.jsonl", "to tell the text column"),
        ("in.parquet.gz", "out.parquet", "Unpack it"),
        ("missing.csv", "out.csv", "does not exist"),
        ("pipe.csv", "out.csv", "is a pipe or a device"),
        ("/dev/zero", "out.csv", "is a pipe or a device"),
        ("taken.csv", "out.csv", "without the columns ['predicted_label']"),
    ],
)
def test_files_that_don_t_fit_are_refused(runs, rows, tmp_path, capsys, source, target, message):
    write(tmp_path / "in.csv", rows)
    (tmp_path / "in.json").write_text("[]")
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "in.parquet.gz").write_bytes(b"")
    write(tmp_path / "taken.csv", [{**row, "predicted_label": "x"} for row in rows])
    (tmp_path / "there.csv").write_text("kept")
    with pytest.raises(SystemExit) as caught:
        predict(runs / "tfidf", tmp_path / source, tmp_path / target)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "there.csv").read_text() == "kept"
    assert not list(tmp_path.glob("out*"))


def test_compressed_texts_and_missing_ones_are_labelled(runs, tmp_path):
    lines = ['{"text": NaN}', '{"text": null}', '{"id": 3}', '{"text": ""}']
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress("\n".join([*lines, '{"text": "good"}']).encode()))
    predict(runs / "tfidf", tmp_path / "in.jsonl.gz", tmp_path / "out.jsonl")
    found = read(tmp_path / "out.jsonl")
    assert len({row["probability_pos"] for row in found[:4]}) == 1
    assert found[4]["predicted_label"] == "pos"


@pytest.mark.parametrize(("row", "message"), [('{"text": "bad', "line 201 is not"), ('{"text": ["a"]}', "has a list")])
def test_a_broken_row_leaves_nothing_that_looks_finished(runs, tmp_path, capsys, row, message):
    (tmp_path / "in.jsonl").write_text('{"text": "good"}\n' * 200 + row + "\n")
    with pytest.raises(SystemExit):
        predict(runs / "tfidf", tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


# The libraries are imported once; then this process becomes two that share the work, of which the second is killed.
TWO_PROCESSES = """
import os, signal, sys, time
from pathlib import Path
from finetune.cli import main
from finetune.inference import bulk, predict
bulk.ROWS_AT_ONCE = 256
children = []
for rank in "01":
    child = os.fork()
    children.append(child)
    if child == 0:
        os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
        try:
            main(sys.argv[2:])
        except SystemExit as end:
            os._exit(end.code)
        os._exit(0)
while not Path(sys.argv[1]).exists():
    time.sleep(0.01)
os.kill(children[1], signal.SIGKILL)
print("ended with", os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]))
main(sys.argv[2:])
"""


def test_a_process_that_dies_is_said_in_one_line_and_the_same_command_goes_on(runs, tmp_path):
    count = 6_000
    source, target = (
        write(tmp_path / "in.csv", [{"text": text} for text, _ in make_reviews(count)]),
        tmp_path / "out.csv",
    )
    words = ["predict", str(runs / "textcnn"), "--input_file", str(source), "--output_file", str(target)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = subprocess.run(
        [sys.executable, "-c", TWO_PROCESSES, f"{target}.unfinished/journal.jsonl", *words, "--num_threads", "1"],
        capture_output=True, text=True, timeout=500, check=False,
        env={**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ended with 2" in done.stdout, done.stderr
    errors = [line for line in done.stderr.splitlines() if "[Gloo]" not in line]
    assert len(errors) == 1, done.stderr
    assert "Expected 2 processes, but one ended" in errors[0]
    assert [row["text"] for row in read(target)] == [row["text"] for row in read(source)]


def test_rows_without_a_text_are_counted(runs, tmp_path, capsys):
    rows = [{"text": "a good film"}, {"text": None}, {"text": ""}, {"text": "dull"}]
    predict(runs / "tfidf", write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl")
    error = capsys.readouterr().err
    assert "warning: line 2 and 1 more have no text: the answer is that to an empty one" in error, error
    assert len(read(tmp_path / "out.jsonl")) == 4


def test_lines_of_the_standard_input_are_labelled(runs, monkeypatch, capsys):
    texts = ["a great film", "", "this was awful !"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{text}\n" for text in texts)))
    finetune_command(["predict", str(runs / "tfidf")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[2] for line in lines] == texts


def test_thresholds_are_the_best_cuts_worked_by_hand():
    # Probabilities 0.9, 0.6, 0.4, 0.2; true are the 1st and the 3rd. F1 of the first k: 2/3, 1/2, 4/5, 2/3.
    probabilities = np.array([0.6, 0.2, 0.9, 0.4])
    labels = np.array([[0, 1, 1], [0, 1, 0], [1, 1, 1], [1, 1, 0]])
    logits = np.log(probabilities / (1 - probabilities))
    logits, labels = np.repeat(logits, 10), np.repeat(labels, 10, axis=0)  # fewer than ten would say too little
    found = tune_thresholds(np.stack([logits, logits, logits], axis=1), labels)
    assert found == pytest.approx([0.3, 0.5, 0.5])  # all have the second label; the third is parted between 0.6 and 0.4


def test_tuned_thresholds_travel_with_the_model_and_decide(classify, tmp_path, capsys):
    reviews = make_reviews(120)
    path = write_csv(tmp_path / "data.csv", [(text, "pos;any" if label == "pos" else "any") for text, label in reviews])
    run = tmp_path / "run"
    classify.main(["--train_file", path, "--label_delimiter", ";", "--method", "tfidf", "--output_dir", str(run)])
    record = json.loads((run / "run.json").read_text())
    values = json.loads((run / "model/finetune_config.json").read_text())["thresholds"]
    assert record["thresholds"]["values"] == values
    assert values[record["data"]["label_names"].index("any")] == 0.5  # every text has it
    predictor = load_predictor(run)
    assert predictor.rules.thresholds.tolist() == values
    table = pq.read_table(run / "predictions/test.parquet").to_pydict()
    probabilities = predictor.rules.to_probabilities(np.array(table["logits"]))
    for one, row in zip(predictor.predict(table["text"]), probabilities, strict=True):
        wanted = np.flatnonzero(row >= values)
        assert one.labels == tuple(predictor.task.label_names[number] for number in wanted)
    capsys.readouterr()
    predict(run, path, tmp_path / "out.csv", "--text_column", "text")
    found = read(tmp_path / "out.csv")
    assert {row["predicted_labels"] for row in found} <= {'["any"]', '["any", "pos"]', '["pos"]', "[]"}


def test_memory_does_not_grow_with_the_file(tmp_path):
    """Ten times the rows, in a process of their own each, within a few megabytes."""
    texts = [text for text, _ in make_reviews(60)]
    model = fit_tfidf(texts, np.arange(60) % 2, ["neg", "pos"], seed=0)
    folder = tmp_path / "model"
    folder.mkdir()
    model.save_pretrained(folder)
    program = """
import resource, sys
from pathlib import Path
from finetune.inference.bulk import predict_file
none = {"text_column": None, "text_pair_column": None, "encoding": None}
print(predict_file(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), none))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peaks = []
    for count in (10_000, 100_000):
        source = tmp_path / f"{count}.csv"
        with source.open("w") as file:
            file.write("text\n")
            file.writelines(f"{texts[row % 60]} {row}\n" for row in range(count))
        command = [sys.executable, "-c", program, str(folder), str(source), str(tmp_path / f"out{count}.csv")]
        done = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert int(done[-2]) == count
        peaks.append(int(done[-1]) / 1024)
    assert peaks[1] < peaks[0] + 30, peaks


def test_a_task_of_several_labels_decides_by_thresholds():
    rules = DecisionRules(MULTI_LABEL, thresholds=np.array([0.2, 0.9]))
    assert rules.decide(np.array([[0.3, 0.8], [0.1, 0.95]])).tolist() == [[True, False], [False, True]]
