"""`run.json`: one typed model writes and reads it, the page says what it holds, and old ones are still read.

`tests/version1` is a run directory as `recipes/classify.py` wrote it before the record was typed.
"""

import ast
import json
import math
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from pydantic import ValidationError
from synthetic_runs import write_run

from finetune.catalogue import CATALOGUE
from finetune.comparison.report import build_report
from finetune.errors import FinetuneError
from finetune.metrics import METRICS
from finetune.run.document import build_page, describe_type, iterate_parts
from finetune.run.fields import Metrics
from finetune.run.record import CompleteRecord, RunRecord, read_status

VERSION1 = ROOT / "tests/version1"
PARTS = [part for _, part in iterate_parts(CompleteRecord)]
FIELDS = [(part, name) for part in PARTS for name in part.model_fields]


def content_of(directory):
    return json.loads((directory / "run.json").read_text())


def write_content(directory, content):
    (directory / "run.json").write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(VERSION1, tmp_path / "run")


def test_a_run_of_version_1_is_read_whole_and_reported(folder):
    record = CompleteRecord.read(folder)
    before = content_of(folder)
    record.write(folder)
    assert content_of(folder) == before
    assert record.thresholds.test.micro_f1 == before["thresholds"]["test"]["micro_f1"]
    report = build_report([folder])
    # Its metrics are at one half, but it answers by thresholds, and by these it is judged.
    assert report.rows[0].quality["micro_f1"].estimate == pytest.approx(before["thresholds"]["test"]["micro_f1"])
    assert report.rows[1].is_floor


def test_a_record_without_what_was_added_later_is_read(folder):
    content = content_of(folder)
    del content["id"], content["pretrained"]
    write_content(folder, content)
    record = CompleteRecord.read(folder)
    assert (record.id, record.pretrained) == ("", None)
    assert build_report([folder]).runs[0].method == "lora"


def test_a_field_of_a_later_release_is_passed_over_and_one_that_is_not_declared_is_not_written(folder):
    content = content_of(folder)
    content["carbon_grams"] = content["costs"]["carbon_grams"] = 12
    write_content(folder, content)
    record = CompleteRecord.read(folder)
    assert "carbon_grams" not in record.costs.to_dict()
    with pytest.raises(ValidationError):
        record.costs.carbon_grams = 12
    with pytest.raises(ValidationError):
        record.costs.train_steps = "16"
    with pytest.raises(ValidationError):
        type(record.costs)(**record.costs.to_dict(), carbon_grams=12)


def test_what_is_not_a_number_is_null_in_the_file(folder):
    record = CompleteRecord.read(folder)
    record.metrics.test.roc_auc = math.nan
    record.write(folder)
    assert content_of(folder)["metrics"]["test"]["roc_auc"] is None
    again = CompleteRecord.read(folder).metrics.test
    assert math.isnan(again.roc_auc)
    assert again.get("roc_auc") is None
    assert again.get("mae") is None
    assert again.interval("accuracy") == record.metrics.test.accuracy_interval


def test_a_running_record_says_nothing_that_is_not_known_yet(folder):
    content = content_of(folder)
    known = ["schema_version", "id", "started", "command", "method", "seed", "arguments", "environment"]
    running = {**{name: content[name] for name in known}, "status": "running"}
    write_content(folder, running)
    record = RunRecord.read(folder)
    record.write(folder)
    assert content_of(folder) == running
    assert read_status(folder) == "running"
    with pytest.raises(FinetuneError, match="the run is not complete, its status is 'running'"):
        CompleteRecord.read(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["environment"].pop("processor"), "its run.json lacks environment.processor"),
        (lambda content: content["environment"].update(gpus="none"), "its run.json has 'none' as environment.gpus"),
        (lambda content: content["metrics"]["test"].update(mcc="high"), "its run.json has 'high' as metrics.test.mcc"),
        (lambda content: content["floor"]["test"].update(accuracy_interval=[0.1]), "lacks floor.test.accuracy_inter"),
        (lambda content: content["thresholds"].update(values=0.5), "its run.json has 0.5 as thresholds.values"),
        (lambda content: content.update(status="done"), "the run is not complete, its status is 'done'"),
        (lambda content: content.pop("finished"), "its run.json lacks finished"),
    ],
)
def test_a_changed_record_is_refused_in_a_line_that_names_the_field(folder, change, message):
    content = content_of(folder)
    change(content)
    write_content(folder, content)
    with pytest.raises(FinetuneError, match=message) as caught:
        CompleteRecord.read(folder)
    assert "\n" not in str(caught.value)


def test_the_runs_that_tests_invent_are_such_records(tmp_path):
    folder = write_run(tmp_path / "run", "lora", 0, 3)
    assert CompleteRecord.read(folder).to_dict().keys() == content_of(folder).keys()


def test_the_page_is_what_the_record_says():
    page = (ROOT / "docs/reference/run.md").read_text(encoding="utf-8")
    assert page == build_page(), "run: python -m finetune.run.document > docs/reference/run.md"
    assert all(f"| `{method}` |" in page for method in CATALOGUE)


@pytest.mark.parametrize(("part", "name"), FIELDS, ids=[f"{part.__name__}.{name}" for part, name in FIELDS])
def test_every_field_says_what_it_is_and_when_it_is_not_there(part, name):
    field = part.model_fields[name]
    assert field.description
    if not field.is_required():
        assert "absent" in field.description
    elif "null" in describe_type(field.annotation).split(" by name")[0]:
        assert "null" in field.description
    if name.endswith("_bytes") or name == "bytes":
        assert "bytes" in field.description
    if name.endswith("_seconds"):
        assert "seconds" in field.description
    if "per_second" in name:
        assert "a second" in field.description


def test_every_metric_of_every_task_is_a_field():
    assert {name for metrics in METRICS.values() for name in metrics} <= Metrics.model_fields.keys()


def package():
    for path in sorted((ROOT / "finetune").rglob("*.py")):
        yield path.relative_to(ROOT / "finetune").as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def test_only_the_record_knows_its_file():
    named = {
        name
        for name, tree in package()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.split("/")[-1] == "run.json"
    }
    assert named == {"run/record.py"}


def test_nothing_of_the_record_is_asked_for_by_a_string():
    def is_record(node):
        return (isinstance(node, ast.Name) and node.id == "record") or (
            isinstance(node, ast.Attribute) and node.attr == "record"
        )

    found = []
    for name, tree in package():
        for node in ast.walk(tree):
            by_name = isinstance(node, ast.Subscript)
            by_name |= isinstance(node, ast.Attribute) and node.attr in ("get", "items", "update")
            if by_name and is_record(node.value):
                found.append(f"{name}:{node.lineno}")
    assert found == []


def test_reading_a_record_needs_no_torch():
    code = (
        "import sys, finetune.run.record; names = ('torch', 'transformers', 'datasets', 'sklearn', 'scipy', 'pandas'); "
        "print([name for name in names if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"
