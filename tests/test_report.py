"""finetune report: from run directories, real and synthetic, whole and damaged, to figures and words."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import synthetic_runs
from conftest import ROOT, recipe_of
from scipy.special import expit
from sklearn.metrics import f1_score, recall_score
from synthetic_runs import COSTS, write_record, write_run

from finetune.cli import main
from finetune.comparison.command import report_runs
from finetune.comparison.costs import format_cost
from finetune.comparison.differences import find_confusions, find_differences
from finetune.comparison.groups import Group
from finetune.comparison.plots import embed_svg, plot_quality_by_cost, render_svg
from finetune.comparison.report import build_report, to_json
from finetune.comparison.runs import Predictions, StoredRun, find_run_directories, load_findings, load_run, load_runs
from finetune.comparison.statistics import Interval, find_support, mean_interval
from finetune.comparison.table import compute_scores, format_interval
from finetune.comparison.verdict import decide
from finetune.decisions.calibration import fit_temperature
from finetune.errors import FinetuneError
from finetune.hub.card import read_comparison
from finetune.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL, compute_metrics
from finetune.run.fields import DataRecord
from finetune.run.record import CompleteRecord

METHODS, SEEDS = ("tfidf", "textcnn", "head"), (0, 1)


@pytest.fixture(scope="module")
def real_runs(flags, tmp_path_factory):
    """Three methods, two seeds each, on the sixty reviews."""
    folder = tmp_path_factory.mktemp("real")
    for method in METHODS:
        for seed in SEEDS:
            epochs = ["--num_train_epochs", "4"] if method == "textcnn" else []
            chosen = ["--method", method, "--seed", str(seed), "--output_dir", str(folder / f"{method}-seed{seed}")]
            recipe_of(method).main([*flags, *epochs, *chosen, "--no_floor"])
            record_with("costs.slowdown", 1.0)(folder / f"{method}-seed{seed}")  # whatever else the machine does
    return folder


@pytest.fixture(scope="module")
def stored_runs(tmp_path_factory):
    """Synthetic runs of three methods: lora is best and full as good, tfidf is cheap and worse."""
    folder = tmp_path_factory.mktemp("stored")
    for method, skill in (("tfidf", 2.0), ("full", 3.4), ("lora", 3.5)):
        for seed in (0,) if method == "tfidf" else (0, 1, 2):
            write_run(folder / f"{method}-seed{seed}", method, seed, skill, num_test=2000)
    return folder


def report(folder, out, *words):
    """Run the command and give report.json."""
    main(["report", str(folder), "--output_dir", str(out), *words])
    return json.loads((out / "report.json").read_text())


def work_out(folder, **settings):
    """Return the content of report.json without drawing anything."""
    return json.loads(json.dumps(to_json(build_report([folder], **settings))))


# Everything at once


def test_a_report_is_drawn_from_real_run_directories(real_runs, tmp_path, capsys):
    content = report(real_runs, tmp_path / "out")
    printed = capsys.readouterr().out
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"report.html", "report.md", "report.json", "figures"}
    assert {group["name"]: group["seeds"] for group in content["groups"]} == {method: [0, 1] for method in METHODS}
    assert content["left_out"] == []
    assert content["warnings"] == []
    for group in content["groups"]:
        records = [json.loads((real_runs / f"{group['name']}-seed{seed}/run.json").read_text()) for seed in SEEDS]
        for name in ("accuracy", "macro_f1", "mcc"):
            recorded = [record["metrics"]["test"][name] for record in records]
            assert group["quality"][name]["by_seed"] == recorded
            assert group["quality"][name]["estimate"] == pytest.approx(np.mean(recorded))
            assert group["quality"][name]["low"] - 1e-9 <= np.mean(recorded) <= group["quality"][name]["high"] + 1e-9
        for name in ("peak_memory_bytes", "latency_seconds", "texts_per_second"):
            assert group["costs"][name]["mean"] == pytest.approx(np.mean([one["costs"][name] for one in records]))
        for name, more in (("train_seconds", "tokenize_seconds"), ("train_cpu_seconds", "tokenize_cpu_seconds")):
            seconds = [one["costs"][name] + one["costs"].get(more, 0) for one in records]
            assert group["costs"][name]["mean"] == pytest.approx(np.mean(seconds))
            assert all((more in one["costs"]) == (group["name"] != "tfidf") for one in records)
        assert group["costs"]["bytes"]["by_seed"] == [record["model"]["bytes"] for record in records]
        assert group["name"] in printed
    for name, split in json.loads((real_runs / "head-seed0/run.json").read_text())["data"]["splits"].items():
        for key in ("sha256", "rows", "origin"):
            assert content["data"]["splits"][name][key] == split[key]
    for run in content["runs"]:
        recorded = json.loads((Path(run["directory"]) / "run.json").read_text())
        assert {run[name] == recorded[name] for name in ("command", "environment", "arguments")} == {True}
    page = (tmp_path / "out/report.html").read_text()
    for sentence in content["verdict"]["sentences"]:
        assert sentence.replace("'", "&#39;") in page
        assert " ".join(sentence.split()) in " ".join(printed.split())


def test_the_interval_of_accuracy_is_that_of_right_and_wrong_answers(stored_runs):
    content = work_out(stored_runs)
    scores = []
    for seed in range(3):
        table = pq.read_table(stored_runs / f"full-seed{seed}/predictions/test.parquet").to_pydict()
        scores.append(np.array(table["logits"]).argmax(axis=1) == np.array(table["label"]))
    expected = mean_interval(np.array(scores, dtype=float))
    (full,) = (group for group in content["groups"] if group["name"] == "full")
    found = full["quality"]["accuracy"]
    assert (found["estimate"], found["low"], found["high"]) == pytest.approx(tuple(expected))


def test_the_verdict_is_that_of_the_chosen_metric_margin_and_cost(stored_runs):
    built = build_report([stored_runs], metric="macro_f1", margin=2.0, cost="latency_seconds")
    scores = {group.name: compute_scores(group, "macro_f1") for group in built.groups}
    expected = decide(
        scores, {name: COSTS[name][5] for name in scores}, 0.02, metric="macro-F1", deterministic={"tfidf"},
        support=find_support("macro_f1", built.runs[0].test.labels), look=built.verdict.look,
    )  # fmt: skip
    assert built.verdict == expected
    by_time, by_bytes = (work_out(stored_runs, cost=cost)["verdict"] for cost in ("train_seconds", "bytes"))
    assert list(by_time["comparisons"]) == ["tfidf", "full", "lora"]  # cheapest first
    assert list(by_bytes["comparisons"]) == ["tfidf", "lora", "full"]  # an adapter with its base
    assert by_time["comparisons"]["tfidf"]["worse"]


def test_neither_torch_nor_transformers_is_imported(real_runs, tmp_path):
    program = f"""
import sys
from finetune.cli import main
main(["report", {str(real_runs)!r}, "--output_dir", {str(tmp_path / "out")!r}])
heavy = {{"torch", "transformers", "datasets", "peft", "accelerate"}} & set(sys.modules)
assert not heavy, heavy
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, env=environment)
    assert (tmp_path / "out/report.html").exists()


@pytest.mark.parametrize(("problem_type", "pairs"), [(MULTI_LABEL, True), (REGRESSION, False)])
def test_other_tasks_are_reported_by_their_own_metrics(tmp_path, problem_type, pairs):
    names = ["red", "green", "blue"] if problem_type == MULTI_LABEL else ["value"]
    for method, skill in (("tfidf", 1.5), ("lora", 3.0)):
        write_run(
            tmp_path / f"runs/{method}", method, 0, skill, problem_type=problem_type, label_names=names, pairs=pairs
        )
    content = report(tmp_path / "runs", tmp_path / "out")
    assert content["metric"] == ("micro_f1" if problem_type == MULTI_LABEL else "mae")
    lora = content["groups"][0]
    assert lora["name"] == "lora"
    table = pq.read_table(tmp_path / "runs/lora/predictions/test.parquet").to_pydict()
    labels = np.array(table["label"], dtype=np.float32) if problem_type == REGRESSION else np.zeros((300, 3))
    for row, numbers in enumerate(table["label"] if problem_type == MULTI_LABEL else []):
        labels[row, numbers] = 1
    expected = compute_metrics(np.array(table["logits"], dtype=np.float32), labels, problem_type)
    for name, found in lora["quality"].items():
        assert found["estimate"] == pytest.approx(expected[name], rel=1e-6)
    assert (lora["calibration"] is None) == (problem_type == REGRESSION)
    if problem_type == REGRESSION:  # a hundredth of the standard deviation
        assert content["margin"] == pytest.approx(0.01 * labels.astype(float).std())
    assert ("The second text: " in (tmp_path / "out/report.html").read_text()) == pairs


def test_a_single_run_is_reported_without_a_verdict(stored_runs, tmp_path, capsys):
    content = report(stored_runs / "lora-seed0", tmp_path / "out")
    assert content["verdict"] is None
    assert content["differences"]["suspects"] is None  # one run contradicts nobody
    assert "There is one method, lora, so there is nothing to compare it with." in capsys.readouterr().out


def test_an_earlier_report_is_replaced_and_nothing_else(stored_runs, tmp_path):
    (tmp_path / "out/figures").mkdir(parents=True)
    (tmp_path / "out/figures/confusion-9.svg").write_text("old")
    (tmp_path / "out/figures/portrait.svg").write_text("my own")
    (tmp_path / "out/report.md").write_text("![nine](figures/confusion-9.svg)")
    with pytest.raises(FinetuneError, match=r"report\.md' is from no report"):
        report_runs([str(stored_runs)], str(tmp_path / "out"))
    assert len(list((tmp_path / "out").rglob("*.*"))) == 3
    (tmp_path / "out/report.json").write_text('{"finetune": "0.0.1", "groups": []}')
    report(stored_runs / "lora-seed0", tmp_path / "out")
    assert not (tmp_path / "out/figures/confusion-9.svg").exists()
    assert (tmp_path / "out/figures/portrait.svg").read_text() == "my own"
    assert "Report on lora" in (tmp_path / "out/report.html").read_text()
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_no_pipe_in_a_run_directory_is_waited_for(tmp_path):
    write_run(tmp_path / "runs/full", "full", 0, 1.0)
    for name in ("findings.json", "history.jsonl", "predictions/test.parquet"):
        (tmp_path / "runs/full" / name).unlink(missing_ok=True)
        os.mkfifo(tmp_path / "runs/full" / name)
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out/report.json")
    with pytest.raises(FinetuneError, match="is from no report"):
        report_runs([str(tmp_path / "runs")], str(tmp_path / "out"))
    with pytest.raises(FinetuneError, match="at least one complete run"):
        report_runs([str(tmp_path / "runs")], str(tmp_path / "new"))
    assert load_findings([SimpleNamespace(directory=tmp_path / "runs/full")]) == []
    assert read_comparison(tmp_path / "runs/full") is None


def rare(labels, num_rare):
    """Make all but a few examples of the last class examples of the first."""
    last = np.flatnonzero(labels == labels.max())
    labels[last[num_rare:]] = 0
    return labels


@pytest.mark.parametrize("num_rare", [0, 3, 40])
def test_a_verdict_over_classes_needs_examples_of_each(tmp_path, monkeypatch, num_rare):
    plain = synthetic_runs.make_labels
    monkeypatch.setattr(synthetic_runs, "make_labels", lambda *words: rare(plain(*words), num_rare))
    for method in ("full", "lora"):
        for seed in (0, 1):
            write_run(tmp_path / f"{method}-{seed}", method, seed, 3.4, label_names=list("abc"), num_test=600)
    content = work_out(tmp_path, metric="macro_f1")
    found = content["groups"][0]["quality"]["macro_f1"]
    if num_rare == 3:
        assert (content["verdict"], found["low"]) == (None, None)
        assert content["no_verdict"].startswith(
            "No verdict by macro-F1: it averages over classes, and the rarest has 3"
        )
        assert work_out(tmp_path)["verdict"] is not None  # by accuracy
    else:
        assert content["verdict"] is not None
        assert 0 < found["low"] < found["estimate"] < found["high"] <= 1
    said = [line for line in content["warnings"] if "no example of 1 of 3 classes" in line]
    assert len(said) == (num_rare == 0)
    if num_rare == 0:  # which is in no mean, though two models may have predicted it
        labels = load_run(tmp_path / "full-0").test.labels
        answers = [load_run(tmp_path / f"full-{seed}").decide() for seed in (0, 1)]
        f1 = [f1_score(labels, one, labels=[0, 1], average="macro") for one in answers]
        assert content["groups"][[group["name"] for group in content["groups"]].index("full")]["quality"]["macro_f1"][
            "estimate"
        ] == pytest.approx(np.mean(f1))


def test_several_labels_are_judged_by_the_thresholds_that_the_model_uses(tmp_path):
    def tuned(record):
        record["thresholds"] = {"values": [0.02, 0.5, 0.5], "validation": half, "test": half}

    half = {"micro_f1": 0.5, "macro_f1": 0.5, "accuracy": 0.5}
    for name, change in (("full", tuned), ("lora", None)):
        write_run(tmp_path / name, name, 0, 2.0, problem_type=MULTI_LABEL, label_names=list("abc"), change=change)
    run = load_run(tmp_path / "full")
    decided = (expit(run.test.logits) >= [0.02, 0.5, 0.5]).astype(int)
    assert np.array_equal(run.decide(), decided)
    assert not np.array_equal(decided, run.test.logits >= 0)
    content = work_out(tmp_path)
    (full,) = (group for group in content["groups"] if group["name"] == "full")
    labels = run.test.labels
    assert full["quality"]["micro_f1"]["estimate"] == pytest.approx(f1_score(labels, decided, average="micro"))
    assert full["per_class"]["a"]["recall"] == pytest.approx(recall_score(labels[:, 0], decided[:, 0]))
    assert content["verdict"]["as_trained"] == ["full", "lora"]


# What is refused


def edit(folder, change):
    record = json.loads((folder / "run.json").read_text())
    change(record)
    write_record(folder, record)


def edit_predictions(folder, split, change):
    path = folder / "predictions" / f"{split}.parquet"
    columns = pq.read_table(path).to_pydict()
    change(columns)
    pq.write_table(pa.table(columns), path)


def set_at(record, path, value):
    *parents, last = path.split(".")
    for name in parents:
        record = record[name]
    if value is ...:
        del record[last]
    else:
        record[last] = value


def test_runs_on_different_splits_are_refused_by_name(stored_runs, tmp_path):
    for split in ("train", "validation", "test"):
        shutil.copytree(stored_runs, tmp_path / split)
        edit(
            tmp_path / split / "lora-seed1",
            lambda record, split=split: set_at(record, f"data.splits.{split}.sha256", "0"),
        )
        with pytest.raises(FinetuneError, match=f"the same {split} split in one report, but found 2 of them") as caught:
            build_report([tmp_path / split])
        assert str(caught.value).count("\n") == 0
        assert str(caught.value).split("; ")[-1].startswith(str(tmp_path / split / "lora-seed1"))


@pytest.mark.parametrize("column", ["id", "label"])
def test_predictions_on_other_rows_are_refused(stored_runs, tmp_path, column):
    """The rows in another order: every metric is the same, and no pair of scores is."""
    shutil.copytree(stored_runs, tmp_path / "runs")

    def turn_round(columns):
        for name in columns:
            if column == "label" or name == column:
                columns[name] = columns[name][::-1]
        if column == "label":
            columns["id"] = columns["id"][::-1]

    edit_predictions(tmp_path / "runs/lora-seed1", "test", turn_round)
    with pytest.raises(FinetuneError, match=rf"the same {column}s in test\.parquet.*lora-seed1"):
        build_report([tmp_path / "runs"])


def test_another_task_is_refused(stored_runs, tmp_path):
    shutil.copytree(stored_runs, tmp_path / "runs")
    record_with("data.label_names", ["positive", "negative"])(tmp_path / "runs/lora-seed1")
    with pytest.raises(FinetuneError, match="the same task"):
        build_report([tmp_path / "runs"])


def truncate(name, size):
    def damage(run):
        path = run / name
        path.write_bytes(path.read_bytes()[:size])

    return damage


def drop_column(name, split="test"):
    return lambda run: edit_predictions(run, split, lambda columns: columns.pop(name))


def set_logit(value):
    def change(columns):
        columns["logits"][3][0] = value

    return lambda run: edit_predictions(run, "test", change)


def record_with(path, value):
    return lambda run: edit(run, lambda record: set_at(record, path, value))


def write_in(name, text):
    return lambda run: (run / name).write_text(text)


DAMAGES = {
    "no run.json": (lambda run: (run / "run.json").unlink(), "it has no run.json"),
    "half a run.json": (truncate("run.json", 700), "run.json can't be read"),
    "an empty run.json": (truncate("run.json", 0), "run.json can't be read"),
    "a run.json of bytes": (lambda run: (run / "run.json").write_bytes(b"\xff\xfe\x00"), "run.json can't be read"),
    "a list": (write_in("run.json", "[1, 2]"), "holds no record of a run"),
    "deep nesting": (write_in("run.json", "[" * 100_000), "run.json can't be read"),
    "still running": (record_with("status", "running"), "not complete, its status is 'running'"),
    "another schema": (record_with("schema_version", 2), "expected schema_version 1 in run.json, but found 2"),
    "no schema": (record_with("schema_version", ...), "expected schema_version 1 in run.json, but found None"),
    "no costs": (record_with("costs", ...), "run.json lacks costs"),
    "costs in words": (record_with("costs.train_seconds", "12"), "has '12' as costs.train_seconds"),
    "costs below 0": (record_with("costs.peak_memory_bytes", -1), "has -1 as costs.peak_memory_bytes"),
    "costs that are none": (record_with("costs.latency_seconds", None), "has None as costs.latency_seconds"),
    "costs beyond all numbers": (record_with("costs.train_seconds", 10**400), "as costs.train_seconds"),
    "a method in sentences": (record_with("method", "head\x1b[0m (best)"), "as method"),
    "a boolean seed": (record_with("seed", True), "has True as seed"),
    "labels as text": (record_with("data.label_names", "neg,pos"), "has 'neg,pos' as data.label_names"),
    "a label twice": (record_with("data.label_names", ["neg", "neg"]), "expected data.label_names to be distinct"),
    "too many labels": (record_with("data.label_names", ["a", "b", "c"]), "expected 3 logits a row, but found 2"),
    "an unknown task": (record_with("data.problem_type", "ranking"), "expected data.problem_type to be one of"),
    "no settings": (record_with("arguments.tuning", ...), "lacks arguments.tuning"),
    "no fingerprint": (record_with("data.splits.test.sha256", ...), "lacks data.splits.test.sha256"),
    "an edited metric": (record_with("metrics.test.accuracy", 0.999), "but run.json says 0.999"),
    "no metric": (record_with("metrics.test.macro_f1", None), "but run.json says None"),
    "labels withheld": (record_with("metrics.test", {"num_examples": 30, "labels_withheld": True}), "withheld"),
    "no predictions": (lambda run: shutil.rmtree(run / "predictions"), "has no predictions/validation.parquet"),
    "no test predictions": (lambda run: (run / "predictions/test.parquet").unlink(), "no predictions/test.parquet"),
    "half of the predictions": (truncate("predictions/test.parquet", 900), "test.parquet can't be read"),
    "no logits": (drop_column("logits"), "test.parquet can't be read|lacks the column logits"),
    "no labels": (drop_column("label"), "test.parquet can't be read|lacks the column label"),
    "no validation logits": (drop_column("logits", "validation"), "validation.parquet"),
    "a logit that is no number": (set_logit(math.nan), "expected numbers as logits, but found none in 1 rows"),
    "an infinite logit": (set_logit(math.inf), "expected numbers as logits"),
    "a missing logit": (set_logit(None), "expected numbers as logits"),
    "rows are missing": (
        lambda run: edit_predictions(run, "test", lambda columns: [values.pop() for values in columns.values()]),
        "expected 30 rows in test.parquet, as run.json says, but found 29",
    ),
    "a row without a label": (
        lambda run: edit_predictions(run, "test", lambda columns: columns["label"].__setitem__(0, None)),
        "expected a label in every row",
    ),
    "a label too large": (
        lambda run: edit_predictions(run, "test", lambda columns: columns["label"].__setitem__(0, 7)),
        "expected labels from 0 to 1, but found",
    ),
    "labels as words": (
        lambda run: edit_predictions(
            run, "test", lambda columns: columns.__setitem__("label", [str(label) for label in columns["label"]])
        ),
        "test.parquet",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_named_in_a_line_and_the_rest_is_reported(real_runs, tmp_path, damage):
    shutil.copytree(real_runs, tmp_path / "runs")
    change, message = DAMAGES[damage]
    change(tmp_path / "runs/head-seed1")
    content = work_out(tmp_path / "runs")
    (line,) = content["left_out"]
    assert line.startswith(str(tmp_path / "runs/head-seed1: "))
    assert re.search(message, line), line
    assert "\n" not in line
    assert {group["name"]: group["seeds"] for group in content["groups"]} == {
        "tfidf": [0, 1], "textcnn": [0, 1], "head": [0],
    }  # fmt: skip


def test_what_is_left_out_is_said_everywhere(real_runs, tmp_path, capsys):
    shutil.copytree(real_runs, tmp_path / "runs")
    (tmp_path / "runs/head-seed1/run.json").unlink()
    (line,) = report(tmp_path / "runs", tmp_path / "out")["left_out"]
    assert capsys.readouterr().err.splitlines() == [f"left out: {line}"]
    assert f"<li>{line}</li>" in (tmp_path / "out/report.html").read_text()
    assert "Left out" in (tmp_path / "out/report.md").read_text()


def test_what_only_a_curve_needs_may_be_damaged(real_runs, tmp_path):
    shutil.copytree(real_runs, tmp_path / "runs")
    history = tmp_path / "runs/head-seed1/history.jsonl"
    history.write_text(history.read_text()[:-20] + '\n[1]\n{"step": "x"}\n\x00\n')
    (tmp_path / "runs/head-seed0/findings.json").write_text('[{"name": 1}]')
    assert report(tmp_path / "runs", tmp_path / "out")["left_out"] == []
    assert (tmp_path / "out/figures/validation-curve.svg").exists()


def test_nothing_left_ends_with_one_line_and_status_2(real_runs, tmp_path, capsys):
    shutil.copytree(real_runs / "head-seed0", tmp_path / "run")
    (tmp_path / "run/predictions/test.parquet").unlink()
    (tmp_path / "empty").mkdir()
    words = [str(tmp_path / "run"), str(tmp_path / "empty"), "nowhere"]
    with pytest.raises(SystemExit) as caught:
        main(["report", *words, "--output_dir", str(tmp_path / "out")])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: Expected at least one complete run directory, but found none: ")
    for found in ("nowhere: there is no such folder", "empty: there is no run directory in it", "run: it has no pred"):
        assert found in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metric", "rouge"], "--metric for this task to be one of accuracy"),
        (["--metric", "mae"], "--metric for this task to be one of accuracy"),
        (["--margin", "0"], "Expected --margin above 0"),
        (["--margin", "nan"], "Expected --margin above 0"),
        (["--margin", "much"], "invalid float value"),
        (["--cost", "beauty"], "invalid choice: 'beauty'"),
        (["--output_dir", __file__], "to be a folder"),
    ],
)
def test_mistakes_end_with_one_line_and_status_2(stored_runs, tmp_path, monkeypatch, words, message, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["report", str(stored_runs), *words])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []


# Which runs belong together


def test_run_directories_are_found_at_any_depth_each_once(tmp_path):
    for name in ("a/run1", "a/run1/before-restart", "a/deep/er/run2", "b/run3"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "run.json").write_text("{}")
    (tmp_path / "a/logs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "b")
    (tmp_path / "a/deep/circle").symlink_to(tmp_path / "a")
    paths = [tmp_path / "a", tmp_path / "b", tmp_path / "b/run3", tmp_path / "link"]
    found = [str(path.relative_to(tmp_path)) for path in find_run_directories(paths)]
    assert found == ["a/deep/er/run2", "a/run1", "b/run3"]


def test_a_copied_run_does_not_pass_for_another_seed(stored_runs, tmp_path):
    shutil.copytree(stored_runs, tmp_path / "runs")
    shutil.copytree(stored_runs / "lora-seed1", tmp_path / "runs/zcopy")
    content = work_out(tmp_path / "runs")
    (line,) = content["left_out"]
    assert "zcopy: it has the method, settings and seed of" in line
    assert "a seed counts once" in line
    assert {tuple(group["seeds"]) for group in content["groups"]} == {(0,), (0, 1, 2)}


def test_runs_of_a_method_with_other_settings_are_apart_and_named_by_them(tmp_path):
    rates = {"training": {"learning_rate": 5e-4}}, {"training": {"learning_rate": 1e-3}, "method": {"lora_r": 4}}
    for number, arguments in enumerate(rates):
        for seed in (0, 1):
            write_run(tmp_path / f"lora{number}-{seed}", "lora", seed, 3, arguments=arguments)
    # Neither where the files lay, nor threads, nor what a method has no use for, divides runs.
    free = {"data": {"train_file": "copy.csv"}, "run": {"num_threads": 4}, "method": {"lora_r": 8}}
    write_run(tmp_path / "full-0", "full", 0, 3)
    write_run(tmp_path / "full-1", "full", 1, 3, arguments=free)
    write_run(tmp_path / "tfidf-0", "tfidf", 0, 2)
    write_run(tmp_path / "tfidf-1", "tfidf", 1, 2, arguments={"training": {"learning_rate": 1.0}})
    built = build_report([tmp_path])
    assert {group.name: group.seeds for group in built.groups} == {
        "lora (lora_r 16, learning_rate 0.0005)": [0, 1],
        "lora (lora_r 4, learning_rate 0.001)": [0, 1],
        "full": [0, 1],
        "tfidf": [0, 1],
    }


def test_every_setting_that_a_method_uses_divides_its_runs(tmp_path):
    decay = {"tuning": {"layer_decay": 0.9}}
    for number, arguments in enumerate(({}, decay)):
        write_run(tmp_path / f"full{number}", "full", number, 3, arguments=arguments)
    for number, rank in enumerate((8, 16)):

        def as_dora(record):
            record["method"] = record["arguments"]["method"]["method"] = "dora"

        write_run(tmp_path / f"dora{number}", "lora", number, 3, arguments={"method": {"lora_r": rank}}, change=as_dora)
    assert {group.name for group in build_report([tmp_path]).groups} == {
        "full (layer_decay 1)", "full (layer_decay 0.9)", "dora (lora_r 8)", "dora (lora_r 16)",
    }  # fmt: skip


def test_groups_are_numbered_where_their_settings_are_many(tmp_path, capsys):
    for number in range(2):
        arguments = {
            "model": {"model_name_or_path": f"an-organisation/a-model-of-size-{number}"},
            "training": {"learning_rate": 1e-4 * (number + 1)},
        }
        write_run(tmp_path / f"runs/{number}", "lora", 0, 3 + number, arguments=arguments)
    content = report(tmp_path / "runs", tmp_path / "out")
    assert [group["name"] for group in content["groups"]] == ["lora 2", "lora 1"]  # the better one first
    assert content["groups"][0]["settings"] == {
        "model_name_or_path": "an-organisation/a-model-of-size-1", "learning_rate": 2e-4,
    }  # fmt: skip
    described = "model_name_or_path an-organisation/a-model-of-size-1, learning_rate 0.0002"
    assert f"lora 2: {described}" in capsys.readouterr().out
    assert f"<b>lora 2</b>: {described}" in (tmp_path / "out/report.html").read_text()


def test_costs_of_different_machines_are_warned_about(tmp_path, capsys):
    write_run(tmp_path / "runs/lora", "lora", 0, 3)
    write_run(
        tmp_path / "runs/tfidf", "tfidf", 0, 2,
        change=lambda record: record["environment"].update(processor="Another", num_threads=8, gpus=["H100"]),
    )  # fmt: skip
    content = report(tmp_path / "runs", tmp_path / "out")
    printed = capsys.readouterr().err.splitlines()
    assert printed == [f"warning: {line}" for line in content["warnings"]]
    assert len(printed) == 3
    for what, line in zip(("processor", "GPUs", "threads per process"), printed, strict=True):
        assert f"different {what}, so their costs don't compare" in line
    assert content["warnings"][0].replace("'", "&#39;") in (tmp_path / "out/report.html").read_text()


def test_the_floor_that_runs_measured_has_a_row_unless_tfidf_ran_itself(real_runs, classify, flags, tmp_path):
    classify.main([*flags, "--method", "head", "--output_dir", str(tmp_path / "runs/head")])
    recorded = json.loads((tmp_path / "runs/head/run.json").read_text())["floor"]
    floor = report(tmp_path / "runs", tmp_path / "out")["floor"]
    assert floor["quality"]["accuracy"]["estimate"] == recorded["test"]["accuracy"]
    low, high = recorded["test"]["accuracy_interval"]
    assert (floor["quality"]["accuracy"]["low"], floor["quality"]["accuracy"]["high"]) == (low, high)
    assert floor["quality"]["mcc"]["low"] is None  # no predictions of the floor are kept
    assert floor["costs"]["train_seconds"] == recorded["train_seconds"]
    assert "floor: TF-IDF + linear" in (tmp_path / "out/report.html").read_text()
    shutil.copytree(real_runs / "tfidf-seed0", tmp_path / "runs/tfidf")
    assert work_out(tmp_path / "runs")["floor"] is None


# What is worked out


def stored_run(labels, logits, problem_type=SINGLE_LABEL, label_names=("no", "yes"), seed=0):
    """A run in memory, with predictions written by hand."""
    logits = np.array(logits, dtype=np.float32)
    predictions = Predictions(
        pa.array([str(row) for row in range(len(labels))]), np.ones(len(labels)), np.array(labels), logits
    )
    data = DataRecord.model_construct(problem_type=problem_type, label_names=list(label_names))
    record = CompleteRecord.model_construct(method="", seed=seed, data=data)
    return StoredRun(Path(), record, predictions, predictions, {}, [])


def test_differences_worked_by_hand():
    labels = [0, 0, 1, 1, 1]
    one = stored_run(labels, [[3, 0], [0, 1], [0, 4], [5, 0], [0, 1]])  # right, wrong, right, wrong, right
    two = stored_run(labels, [[0, 2], [1, 0], [0, 1], [4, 0], [0, 1]])  # wrong, right, right, wrong, right
    # Of a method's seeds all must be right, and all of the others' wrong.
    torn = stored_run(labels, [[2, 0], [1, 0], [0, 1], [4, 0], [0, 1]], seed=1)  # right, right, right, wrong, right
    groups = [Group("one", "one", {}, (one,)), Group("two", "two", {}, (two,))]
    found = find_differences(groups, {"one": [1.0], "two": [1.0]})
    assert found.num_only_right == {"one": 1, "two": 1}
    assert [example.row for example in found.only_right["one"]] == [0]
    assert [example.row for example in found.only_right["two"]] == [1]
    assert [example.row for example in found.mistakes["one"]] == [3, 1]  # the surest first
    assert [example.row for example in found.mistakes["two"]] == [3, 0]
    assert [example.row for example in found.suspects] == [3]
    assert found.num_suspects == 1
    (suspect,) = found.suspects
    assert suspect.label == "yes"
    # The softmax of (5, 0) and of (4, 0).
    assert {name: answer.text for name, answer in suspect.answers.items()} == {"one": "no 99%", "two": "no 98%"}
    assert [answer.is_right for answer in suspect.answers.values()] == [False, False]
    both = [Group("one", "one", {}, (one,)), Group("two", "two", {}, (two, torn))]
    found = find_differences(both, {"one": [1.0], "two": [1.0, 1.0]})
    assert found.num_only_right == {"one": 0, "two": 1}
    # At a temperature of 4 the second method says so with a probability of 73 %: not sure enough.
    assert find_differences(groups, {"one": [1.0], "two": [4.0]}).num_suspects == 0


def test_differences_of_several_labels_and_of_numbers():
    labels = np.array([[1, 0], [1, 1]], dtype=np.float32)
    names = ("a", "b")
    one = stored_run(labels, [[3, -3], [3, -3]], MULTI_LABEL, names)
    two = stored_run(labels, [[3, 3], [3, -3]], MULTI_LABEL, names)
    groups = [Group("one", "one", {}, (one,)), Group("two", "two", {}, (two,))]
    found = find_differences(groups, {"one": [1.0], "two": [1.0]})
    assert found.num_only_right == {"one": 1, "two": 0}
    assert found.only_right["one"][0].answers["two"].text == "a 95%, b 95%"
    assert [(example.row, example.label) for example in found.suspects] == [(1, "a, b")]
    numbers = np.array([1.0, 2.0], dtype=np.float32)
    one = stored_run(numbers, [[1.1], [5.0]], REGRESSION, ("value",))
    two = stored_run(numbers, [[3.0], [2.5]], REGRESSION, ("value",))
    groups = [Group("one", "one", {}, (one,)), Group("two", "two", {}, (two,))]
    found = find_differences(groups, {})
    assert [example.row for example in found.only_right["one"]] == [0]
    assert [example.row for example in found.mistakes["one"]] == [1, 0]
    assert found.only_right["one"][0].answers["two"].text == "3"
    assert found.suspects is None


def test_confusions_worked_by_hand():
    counts = np.array([[8.0, 2.0, 0.0], [1.0, 9.0, 0.0], [0.0, 3.0, 3.0]])
    first, second, third = find_confusions(counts, ["a", "b", "c"])
    assert tuple(first) == ("c", "b", 3.0, 0.5)
    assert tuple(second) == ("a", "b", 2.0, 0.2)
    assert tuple(third) == ("b", "a", 1.0, 0.1)


def test_temperatures_come_from_the_validation_split(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"runs/full-seed{seed}", "full", seed, 3.4, num_validation=3000)
    built = build_report([tmp_path / "runs"])
    for group in built.groups:
        expected = [fit_temperature(run.validation.logits, run.validation.labels) for run in group.runs]
        assert built.calibration[group.name].temperatures == expected
        assert len(set(expected)) == len(expected)


def test_quality_by_length_and_confusion_count_every_example(stored_runs):
    built = build_report([stored_runs])
    lengths = built.lengths
    assert lengths.unit == "characters"
    assert lengths.num_examples.sum() == 2000
    assert lengths.num_examples.min() > 300  # fifths
    for group in built.groups:
        accuracy = np.mean([run.metrics["accuracy"] for run in group.runs])
        assert lengths.quality[group.name] @ lengths.num_examples / 2000 == pytest.approx(accuracy)
        confusion = built.confusion[group.name]
        assert confusion.trace() / 2000 == pytest.approx(accuracy)
        np.testing.assert_allclose(confusion.sum(axis=1), np.bincount(group.runs[0].test.labels))


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("train_seconds", 4.0, "4 s"),
        ("train_seconds", 56.12, "56.1 s"),
        ("train_seconds", 9999.0, "9,999 s"),
        ("train_seconds", 36000.0, "10.0 h"),
        ("latency_seconds", 0.0008, "0.8 ms"),
        ("bytes", 2**30 * 1.5, "1.5 GiB"),
        ("bytes", 2**20 * 86.84, "86.8 MiB"),
        ("bytes", 900, "900 B"),
        ("trainable_parameters", 22_700_000, "22.7 M"),
        ("trainable_parameters", 770, "770"),
        ("tokens_per_second", 21_000.4, "21,000"),
        ("tokens_per_second", None, "–"),
    ],
)
def test_costs_are_written_with_their_units(name, value, text):
    assert format_cost(name, value) == text


def test_intervals_are_written_in_the_metric_s_unit():
    assert format_interval("accuracy", Interval(0.9241, 0.913, 0.9334)) == "92.4% (91.3 to 93.3)"
    assert format_interval("mcc", Interval(0.5, -0.1, 1.0)) == "0.500 (-0.100 to 1.000)"
    assert format_interval("mae", Interval(0.5, 0.25, 0.75)) == "0.5000 (0.2500 to 0.7500)"
    assert format_interval("r2", Interval(0.5, math.nan, math.nan)) == "0.500"
    assert format_interval("r2", Interval(math.nan, math.nan, math.nan)) == "–"


# What is written


def test_texts_labels_and_settings_are_shown_as_they_are(tmp_path, capsys):
    """What comes from outside is neither markup nor a control sequence, and cuts no table."""
    bad = "<script>document.title='broken'</script>"
    names = [f"{bad}|no", "$yes_\\frac"]
    esc = {"model": {"model_name_or_path": "`|<b>\x1b[31mred"}}
    for method, arguments in (("tfidf", {}), ("lora", esc), ("full", {})):
        write_run(tmp_path / f"runs/{method}", method, 0, 2.2, label_names=names, arguments=arguments)
        edit_predictions(
            tmp_path / f"runs/{method}", "test",
            lambda columns: columns.update(
                text=[f"{bad} ![x](http://x) | `y` " + "long " * 100] * 300, id=[f"{bad}\x1b[2J"] * 300
            ),
        )  # fmt: skip
    shutil.copytree(tmp_path / "runs/lora", tmp_path / "runs/lora2")
    record_with("arguments.model.model_name_or_path", "plain\x1b[0m")(tmp_path / "runs/lora2")
    report(tmp_path / "runs", tmp_path / "out")
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
    page, text = ((tmp_path / "out" / name).read_text() for name in ("report.html", "report.md"))
    assert page.count("<script>") == 1  # the page's own
    assert "&lt;script&gt;document.title" in page
    assert "http" not in page.replace("http-equiv", "").replace("(http://x)", "")  # nothing to fetch, no namespace
    outside_of_code = re.sub(r"`[^`\n]*`", "", text)
    assert "script" in outside_of_code
    assert not re.search(r"(?<!\\)<script", outside_of_code)
    assert not re.search(r"(?<!\\)\]\(http", outside_of_code)
    tables = [line for line in text.splitlines() if line.startswith("|")]
    cells = {len(re.findall(r"(?<!\\)\|", line)) for line in tables}
    assert cells == {14, 5}  # bars of the table of methods, and of that of splits
    for figure in (tmp_path / "out/figures").iterdir():
        ElementTree.parse(figure)


def test_markdown_names_the_figures_that_are_there(stored_runs, tmp_path):
    report(stored_runs, tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    named = re.findall(r"\]\((figures/[\w-]+\.svg)\)", text)
    assert sorted(named) == sorted(f"figures/{path.name}" for path in (tmp_path / "out/figures").iterdir())
    assert {
        f"figures/cost-{name}.svg" for name in ("train-seconds", "peak-memory-bytes", "bytes", "latency-seconds")
    } <= set(named)
    assert all(re.findall(r"!\[[^\]]{20,}\]\(figures/", text))


def test_without_texts_examples_are_named_by_their_ids(tmp_path):
    for method, skill in (("tfidf", 2.0), ("lora", 3.0)):
        write_run(tmp_path / f"runs/{method}", method, 0, skill, texts=False)
    content = report(tmp_path / "runs", tmp_path / "out")
    page = (tmp_path / "out/report.html").read_text()
    mistake = content["differences"]["mistakes"]["tfidf"][0]
    assert f"<code><bdi>{mistake['id']}</bdi></code>" in page
    assert "no_store_text" in page
    assert content["by_length"]["unit"].startswith("tokens of ")


def test_an_embedded_figure_has_ids_and_colours_of_the_page():
    names, quality = ["a", "b"], [Interval(0.8, 0.7, 0.9), Interval(0.9, 0.8, 0.95)]
    axes = plot_quality_by_cost(names, [1.0, 10.0], quality, "seconds", "accuracy")
    svg = render_svg(axes)
    assert svg == render_svg(plot_quality_by_cost(names, [1.0, 10.0], quality, "seconds", "accuracy"))
    embedded = embed_svg(svg, "fig", 'says "so"')
    root = ElementTree.fromstring(embedded)
    assert root.get("aria-label") == 'says "so"'
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert ids
    assert all(name.startswith("fig-") for name in ids)
    targets = re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", embedded)
    assert targets
    assert {one or other for one, other in targets} <= set(ids)
    assert "currentColor" in embedded
    assert "var(--colour-0, #0b62c4)" in embedded
    assert "#0b62c4" in svg
    assert "http" not in embedded
    texts = [element for element in root.iter() if element.tag == "text"]
    assert {"a", "b", "accuracy"} <= {element.text for element in texts}  # text that can be searched


def test_metrics_of_run_json_are_not_trusted_but_computed(stored_runs):
    run = load_run(stored_runs / "lora-seed0")
    assert run.metrics == compute_metrics(run.test.logits, run.test.labels)
    assert run.record.metrics.test.accuracy == run.metrics["accuracy"]
    runs, left_out = load_runs([stored_runs])
    assert len(runs) == 7
    assert left_out == []


def test_the_documented_flags_are_those_of_the_command():
    page = (ROOT / "docs/reference/report.md").read_text()
    documented = set(re.findall(r"--(\w+)", page))
    from finetune.cli import build_parser

    parser = build_parser()._subparsers._group_actions[0].choices["report"]
    own = {action.dest for action in parser._actions} - {"help", "runs"}
    assert own == {"cost", "explain", "margin", "metric", "num_threads", "output_dir"}
    assert own <= documented
