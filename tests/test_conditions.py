"""The conditions of a verdict: settings, what was read, unequal and missed classes, rows that were dropped."""

import dataclasses
import json

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from synthetic_runs import write_run

from finetune.comparison.conditions import describe_conditions
from finetune.comparison.groups import group_runs
from finetune.comparison.report import build_report, to_json
from finetune.comparison.runs import load_run
from finetune.data.split import drop_duplicates, remove_leakage
from finetune.metrics import MULTI_LABEL, SINGLE_LABEL, compute_metrics
from finetune.results import Comparison


def changed(**fields):
    """Return a change of a record: `arguments__training__learning_rate=1.0` sets that."""

    def change(record):
        for path, value in fields.items():
            *parts, last = path.split("__")
            place = record
            for part in parts:
                place = place[part]
            place[last] = value

    return change


def write_two(folder, of_lora, of_tfidf=None):
    write_run(folder / "lora", "lora", 0, 3.0, change=of_lora)
    write_run(folder / "tfidf", "tfidf", 0, 2.0, change=of_tfidf or changed(chosen=["train_file", "method"]))
    return build_report([folder]).conditions


def with_answers(run, logits, labels):
    """Return a run that gives these answers."""
    test = dataclasses.replace(run.test, labels=labels, logits=logits.astype(np.float32))
    metrics = compute_metrics(test.logits, labels, run.problem_type)
    return dataclasses.replace(run, test=test, metrics=metrics)


def test_defaults_and_chosen_settings(tmp_path):
    data = ["train_file", "method", "seed", "max_length", "output_dir", "num_threads"]
    lines = write_two(tmp_path / "defaults", changed(chosen=data))
    assert (
        lines[0] == "Settings: each method has its defaults, and none was tuned. Tuned, another method may be better."
    )
    lines = write_two(tmp_path / "chosen", changed(chosen=[*data, "learning_rate", "lora_r", "textcnn_dropout"]))
    assert lines[0] == (
        "Settings: lora with learning_rate 5e-05, lora_r 16; the other method has its defaults. What else was tried "
        "before is not known."
    )
    lines = write_two(tmp_path / "first", None)
    assert lines[0] == "Settings: some runs don't say which of theirs were chosen, and which are defaults."


@pytest.mark.parametrize(("truncation", "share", "words"), [
    ("head", 0.125, "lora read the first 256 tokens, which cuts 12.5% of the test texts"),
    ("head", 0.0, "lora read the first 256 tokens, which cuts none of the test texts"),
    ("head+tail", 0.125, "lora read the first and last 256 tokens, which cuts 12.5% of the test texts"),
    ("window", 0.0, "lora read whole texts in windows of 256 tokens"),
    ("tail", None, "lora read the last 256 tokens"),
])  # fmt: skip
def test_what_is_read_of_the_texts(tmp_path, truncation, share, words):
    change = changed(arguments__data__truncation=truncation, data__splits__test__truncated_share=share)
    lines = write_two(tmp_path, change)
    assert lines[1] == f"Texts: {words}; tfidf read whole texts."


def test_classes_that_a_method_never_answers_or_never_finds(tmp_path):
    names = ("a", "b", "c", "d")
    runs = [
        load_run(write_run(tmp_path / f"{method}", method, 0, 3.0, label_names=names)) for method in ("lora", "tfidf")
    ]
    labels = np.repeat([0, 1, 2], [100, 100, 100])  # no d
    right, never_b, wrong_c = labels.copy(), labels.copy(), labels.copy()
    never_b[labels == 1] = 3
    wrong_c[labels == 2] = 1
    wrong_c[:5] = 2
    groups, _ = group_runs([with_answers(run, np.eye(4)[answers], labels)
                            for run, answers in zip(runs, (never_b, wrong_c), strict=True)])  # fmt: skip
    lines = describe_conditions(groups, "accuracy", "tfidf")
    assert lines[2:] == [
        "Classes with F1 0: tfidf never finds 1 of 4 ('c').",
        "Classes with F1 0: lora never answers 1 of 4 ('b').",
    ]
    assert describe_conditions(groups, "accuracy", "lora")[2].startswith("Classes with F1 0: lora")
    groups, _ = group_runs([with_answers(run, np.eye(4)[right], labels) for run in runs])
    assert len(describe_conditions(groups, "accuracy", "tfidf")) == 2


def test_several_labels_that_are_never_answered(tmp_path):
    run = load_run(write_run(tmp_path, "lora", 0, 3.0, label_names=("a", "b", "c"), problem_type=MULTI_LABEL))
    labels = run.test.labels
    logits = np.where(labels > 0, 4.0, -4.0)
    logits[:, 1] = -4.0
    groups, _ = group_runs([with_answers(run, logits, labels)])
    assert describe_conditions(groups, "micro_f1", "lora")[2:] == [
        "Classes with F1 0: lora never answers 1 of 3 ('b')."
    ]


def test_accuracy_on_unequal_classes_is_not_taken_without_a_word(tmp_path):
    runs = [load_run(write_run(tmp_path / method, method, 0, 3.0)) for method in ("lora", "tfidf")]
    labels = np.repeat([0, 1], [280, 20])
    always, careful = np.zeros(300, int), labels.copy()
    always[-1] = 1
    careful[:25] = 1
    groups, _ = group_runs([with_answers(run, np.eye(2)[answers], labels)
                            for run, answers in zip(runs, (always, careful), strict=True)])  # fmt: skip
    (line,) = (line for line in describe_conditions(groups, "accuracy", "lora") if "test examples" in line)
    assert line.startswith(
        "Classes: 'negative' has 280 test examples, 'positive' 20; always answering 'negative' has an accuracy of 93.3%"
    )
    assert "by macro-F1 tfidf is best (" in line
    assert line.endswith("--metric macro_f1 judges by it.")
    assert not [line for line in describe_conditions(groups, "macro_f1", "lora") if "test examples" in line]
    same, _ = group_runs([with_answers(run, np.eye(2)[careful], labels) for run in runs])
    (line,) = (line for line in describe_conditions(same, "accuracy", "lora") if "test examples" in line)
    assert "by macro-F1 lora is best too" in line
    # Equal classes need no word; skewed ones do, though none is rare.
    for counts, said in (([160, 140], 0), ([240, 60], 1), ([230, 70], 0)):
        labels = np.repeat([0, 1], counts)
        groups, _ = group_runs([with_answers(run, np.eye(2)[labels], labels) for run in runs])
        found = [line for line in describe_conditions(groups, "accuracy", "lora") if "test examples" in line]
        assert len(found) == said


def test_rows_that_were_dropped_are_named_as_the_splits_note_them(tmp_path):
    train = Dataset.from_dict({"text": ["a", "b", "a", "c", "d"], "label": [0, 1, 0, 1, 1]})
    train.info.description = "file reviews.csv"
    test = Dataset.from_dict({"text": ["c"], "label": [1]})
    splits = remove_leakage(DatasetDict(train=drop_duplicates(train), test=test))
    origin = splits["train"].info.description
    lines = write_two(
        tmp_path, changed(data__splits__train__origin=origin), changed(data__splits__train__origin=origin)
    )
    assert lines[-1] == "Rows: 1 duplicates dropped, 1 rows whose text is in another split."


def test_conditions_and_findings_are_said_everywhere(tmp_path, capsys):
    from finetune.cli import main

    for method, skill in (("tfidf", 2.0), ("lora", 3.0)):
        folder = write_run(tmp_path / "runs" / method, method, 0, skill, problem_type=SINGLE_LABEL)
        found = [
            {"name": "exact_duplicates", "severity": "warning", "splits": ["train"], "num_rows": 3,
             "message": "train has 3 copies", "advice": "They count double.", "examples": []},
            {"name": "lengths", "severity": "note", "splits": ["train"], "num_rows": 3, "message": "all are short",
             "advice": "", "examples": []},
        ]  # fmt: skip
        (folder / "findings.json").write_text(json.dumps(found))
    main(["report", str(tmp_path / "runs"), "--output_dir", str(tmp_path / "out")])
    printed = " ".join(capsys.readouterr().out.split())
    report = build_report([tmp_path / "runs"])
    page, markdown = ((tmp_path / "out" / name).read_text() for name in ("report.html", "report.md"))
    content = to_json(report)
    assert content["conditions"] == report.conditions
    assert [one["name"] for one in content["findings"]] == ["exact_duplicates", "lengths"]
    verdict = Comparison([tmp_path / "runs"]).verdict
    assert len(report.conditions) >= 2
    for line in report.conditions:
        assert line in printed
        assert line.replace("'", "&#39;") in page
        assert line.split(" ", 1)[1][:20] in markdown
        assert line in verdict
    assert "data doctor: train has 3 copies" in printed
    assert "all are short" not in printed
    for text in (page, markdown):
        assert "train has 3 copies" in text
        assert "all are short" in text
    assert "<details open><summary>What the data doctor found: 2" in page
