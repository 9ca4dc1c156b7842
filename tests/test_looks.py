"""Looks at the same question are counted beside the runs, and each has its part of the level."""

import json
import os
import shutil

import pytest
from synthetic_runs import write_run

from finetune.comparison.command import report_runs
from finetune.comparison.looks import LOOKS_FILE
from finetune.comparison.report import build_report
from finetune.errors import FinetuneError


def write_runs(folder, seeds=(0, 1), num_test=300, methods=("full", "lora")):
    for method in methods:
        for seed in seeds:
            if not (folder / f"{method}-{seed}").exists():
                write_run(folder / f"{method}-{seed}", method, seed, 3.0, num_test=num_test)
    return folder


def look_at(*folders):
    return build_report([*folders]).verdict.look


def test_other_seeds_methods_or_examples_are_another_look_and_the_same_runs_are_not(tmp_path, capsys):
    runs = write_runs(tmp_path / "runs")
    assert [look_at(runs), look_at(runs)] == [1, 1]
    report_runs([str(runs)], str(tmp_path / "report"))
    assert "look" not in capsys.readouterr().err
    write_runs(runs, (0, 1, 2))
    assert look_at(runs) == 2
    write_runs(runs, (0, 1, 2), methods=("textcnn",))
    assert [look_at(runs), look_at(runs / "full-0", runs / "full-1", runs / "lora-0", runs / "lora-1")] == [3, 1]
    shutil.move(runs / LOOKS_FILE, tmp_path / LOOKS_FILE)
    shutil.rmtree(runs)
    shutil.move(tmp_path / LOOKS_FILE, write_runs(runs, num_test=900) / LOOKS_FILE)  # the same methods and seeds
    assert look_at(runs) == 4
    looks = json.loads((runs / LOOKS_FILE).read_text())
    assert [look["test_examples"] for look in looks] == [300, 300, 300, 900]
    assert looks[1]["seeds"] == {"full": [0, 1, 2], "lora": [0, 1, 2]}


def test_a_later_look_asks_for_more(tmp_path):
    runs = write_runs(tmp_path / "runs")
    first = build_report([runs]).verdict
    write_runs(runs, (0, 1, 2))
    second = build_report([runs]).verdict
    assert second.level == pytest.approx(first.level / 4)
    assert any("This is look 2" in line for line in second.assumptions)


def test_one_method_alone_is_no_look(tmp_path):
    assert build_report([write_runs(tmp_path / "runs", methods=("full",))]).verdict is None
    assert not (tmp_path / "runs" / LOOKS_FILE).exists()


def test_what_cannot_be_kept_is_said(tmp_path):
    far = write_runs(tmp_path / "a/b/c/d", methods=("full",)), write_runs(tmp_path / "e", methods=("lora",))
    report = build_report([*far])
    assert report.verdict.look == 1
    assert any("far apart" in line for line in report.warnings)

    runs = write_runs(tmp_path / "runs")
    (runs / LOOKS_FILE).write_text("{")
    with pytest.raises(FinetuneError, match=r"looks.json', but it can't be read. Restore it"):
        build_report([runs])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_only_read_is_reported_with_a_warning(tmp_path):
    runs = write_runs(tmp_path / "runs")
    runs.chmod(0o555)
    report = build_report([runs])
    runs.chmod(0o755)
    assert any("this look is not kept" in line for line in report.warnings)
