"""Files and folders that are written aside: nobody's file is written to, and what comes into being meanwhile stays."""

import errno
import json
import os
from pathlib import Path

import pytest
from synthetic_runs import write_run

from finetune.cli import main as finetune_command
from finetune.comparison import command
from finetune.comparison.command import report_runs
from finetune.comparison.drawings import draw_report
from finetune.comparison.report import build_report
from finetune.errors import FinetuneError
from finetune.export import merge
from finetune.files import is_aside, is_replaced, move_new, remove_asides, write_aside, write_folder_aside, write_json
from finetune.run.directory import RunDirectory


def put(*paths):
    for path in paths:
        path.write_text("mine")


def list_all(folder):
    return {str(path.relative_to(folder)): path.is_file() and path.read_text() for path in folder.rglob("*")}


@pytest.mark.parametrize("fails", [False, True])
def test_names_beside_an_output_are_not_touched(tmp_path, fails):
    put(tmp_path / "a.json.partial", tmp_path / "a.json.0a1b2c3d.partial")
    for name in ("a.partial", "a.replaced", "a.0a1b2c3d.partial"):
        (tmp_path / name).mkdir()
        put(tmp_path / name / "mine")
    before = list_all(tmp_path)
    try:
        with write_aside(tmp_path / "a.json") as aside, write_folder_aside(tmp_path / "a") as folder:
            assert is_aside(aside.name)
            assert is_aside(folder.name)
            assert (aside.stat().st_mode, folder.stat().st_mode) == (0o100644, 0o040755)  # as the user's umask says
            put(aside, folder / "file")
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert list_all(tmp_path) == before | ({} if fails else {"a.json": "mine", "a": False, "a/file": "mine"})


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
@pytest.mark.parametrize("has_links", [True, False])
def test_what_comes_into_being_meanwhile_stays(tmp_path, monkeypatch, kind, has_links):
    def appear(path):
        if kind == "folder":
            path.mkdir()
            put(path / "mine")
        else:
            path.symlink_to("nowhere") if kind == "link" else put(path)

    if not has_links:
        monkeypatch.setattr(os, "link", refuse_links)
    for write, path in ((write_aside, tmp_path / "a.json"), (write_folder_aside, tmp_path / "a")):
        appear(tmp_path / "like")
        like = os.lstat(tmp_path / "like").st_mode
        with pytest.raises(FileExistsError), write(path, replaces=False) as aside:  # noqa: PT012
            appear(path)
            put(aside if write is write_aside else aside / "file")
        assert os.lstat(path).st_mode == like
        (tmp_path / "like").rename(tmp_path / f"like-{path.name}")
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "a", "like-a.json", "like-a"}


def refuse_links(*args, **kwargs):
    raise PermissionError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_moves_where_nothing_is(tmp_path, monkeypatch, has_links):
    if not has_links:
        monkeypatch.setattr(os, "link", refuse_links)
    put(tmp_path / "a")
    move_new(tmp_path / "a", tmp_path / "b")
    assert list_all(tmp_path) == {"b": "mine"}


def test_a_link_that_a_network_has_made_twice_is_no_fault(tmp_path, monkeypatch):
    link = os.link
    monkeypatch.setattr(os, "link", lambda *args, **named: [link(*args, **named), link(*args, **named)])
    put(tmp_path / "a")
    move_new(tmp_path / "a", tmp_path / "b")
    assert list_all(tmp_path) == {"b": "mine"}


def test_asides_of_killed_processes_are_removed_from_folders_of_ours(tmp_path):
    put(tmp_path / "a.0a1b2c3d.partial", tmp_path / "a.partial", tmp_path / "a.0a1b2c3d.partial.txt")
    (tmp_path / "model.0a1b2c3d.partial").mkdir()
    put(tmp_path / "model.0a1b2c3d.partial/file")
    remove_asides(tmp_path)
    assert set(list_all(tmp_path)) == {"a.partial", "a.0a1b2c3d.partial.txt"}
    remove_asides(tmp_path / "nowhere")


def test_a_run_directory_is_opened_without_asides(tmp_path):
    write_run(tmp_path / "run", "full", 0, 1.0, change=lambda record: record.update(status="running"))
    put(tmp_path / "run/findings.json.0a1b2c3d.partial", tmp_path / "run/predictions/test.parquet.0a1b2c3d.partial")
    directory = RunDirectory(tmp_path / "run")
    assert directory.open(restart=False) is not None
    directory.close()
    assert not list(tmp_path.rglob("*.partial"))
    put(tmp_path / "run.json.0a1b2c3d.partial")  # killed while it wrote its first line
    (tmp_path / "new").mkdir()
    (tmp_path / "run.json.0a1b2c3d.partial").rename(tmp_path / "new/run.json.0a1b2c3d.partial")
    directory = RunDirectory(tmp_path / "new")
    assert directory.open(restart=False) is None
    directory.close()
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("name", ["nowhere/a.json", "folder", "link.json", "null"])
def test_an_output_in_json_is_a_file(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.json").symlink_to("nowhere")
    os.mkfifo(tmp_path / "null")
    with pytest.raises(FinetuneError, match="to be a file in a folder that exists"):
        is_replaced(tmp_path / name, "--output_json", [])
    with pytest.raises(FinetuneError, match="to be a file"):
        is_replaced(Path("/dev/null"), "--output_json", [])


def test_an_output_in_json_is_replaced_if_it_was_there_and_only_then(tmp_path):
    assert not is_replaced(tmp_path / "a.json", "--output_json", [])
    write_json(tmp_path / "a.json", [1], replaces=False)
    assert is_replaced(tmp_path / "a.json", "--output_json", [])
    with pytest.raises(FileExistsError):
        write_json(tmp_path / "a.json", [2], replaces=False)
    write_json(tmp_path / "a.json", [3], replaces=True)
    assert json.loads((tmp_path / "a.json").read_text()) == [3]


def test_no_output_takes_the_place_of_an_input(tmp_path, capsys):
    data = tmp_path / "in.csv"
    data.write_text("text,label\n" + "".join(f"film {number},{number % 2}\n" for number in range(20)))
    (tmp_path / "linked.csv").hardlink_to(data)
    before = data.read_bytes()
    for output in (data, tmp_path / "linked.csv", tmp_path / "." / "in.csv"):
        with pytest.raises(SystemExit):
            finetune_command(["doctor", "--train_file", str(data), "--output_json", str(output)])
        assert "to be another file than those that are read" in capsys.readouterr().err
    assert data.read_bytes() == before


def test_what_is_no_text_in_a_name_is_written_as_json_spells_it(tmp_path):
    write_json(tmp_path / "a.json", {"path": "caf\udce9.csv"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"path": "caf\udce9.csv"}


def test_findings_do_not_take_the_place_of_a_file_that_came_into_being(tmp_path, monkeypatch, capsys):
    from finetune.data_doctor import command as doctor

    (tmp_path / "in.csv").write_text("text,label\n" + "".join(f"film {number},{number % 2}\n" for number in range(20)))
    describe = doctor.describe_findings
    monkeypatch.setattr(doctor, "describe_findings", lambda found: [put(tmp_path / "a.json"), describe(found)][1])
    with pytest.raises(SystemExit) as caught:
        finetune_command(
            ["doctor", "--train_file", str(tmp_path / "in.csv"), "--output_json", str(tmp_path / "a.json")]
        )
    assert caught.value.code == 2
    assert "File exists" in capsys.readouterr().err
    assert (tmp_path / "a.json").read_text() == "mine"
    assert not list(tmp_path.glob("*.partial"))


def test_a_report_replaces_what_was_there_as_it_began_and_only_of_a_report(tmp_path, monkeypatch):
    write_run(tmp_path / "runs/full", "full", 0, 1.0)
    drawings = draw_report(build_report([str(tmp_path / "runs")]))[:1]
    monkeypatch.setattr(command, "draw_report", lambda report: drawings)
    report_runs([str(tmp_path / "runs")], str(tmp_path / "out"))
    figure = next((tmp_path / "out/figures").iterdir()).relative_to(tmp_path / "out")
    report_runs([str(tmp_path / "runs")], str(tmp_path / "out"))
    build = command.build_page

    def put_and_build(*args):
        (tmp_path / "new").mkdir(exist_ok=True)
        put(tmp_path / "new/report.html")
        return build(*args)

    monkeypatch.setattr(command, "build_page", put_and_build)
    with pytest.raises(FinetuneError, match=r"report\.html' is from no report"):
        report_runs([str(tmp_path / "runs")], str(tmp_path / "new"))
    assert list_all(tmp_path / "new") == {"report.html": "mine"}
    monkeypatch.setattr(command, "build_page", build)
    (tmp_path / "other/figures").mkdir(parents=True)
    put(tmp_path / "other" / figure)
    with pytest.raises(FinetuneError, match=r"is from no report"):
        report_runs([str(tmp_path / "runs")], str(tmp_path / "other"))
    assert list_all(tmp_path / "other") == {"figures": False, str(figure): "mine"}


def test_a_merged_model_does_not_take_the_place_of_what_came_into_being(runs, tmp_path, monkeypatch, capsys):
    merge_adapter = merge.merge_adapter

    def put_and_merge(model):
        (tmp_path / "merged").mkdir()
        put(tmp_path / "merged/mine")
        return merge_adapter(model)

    monkeypatch.setattr(merge, "merge_adapter", put_and_merge)
    for name in ("merged.partial", "merged.replaced"):
        (tmp_path / name).mkdir()
        put(tmp_path / name / "mine")
    with pytest.raises(SystemExit) as caught:
        finetune_command(["merge", str(runs / "lora"), str(tmp_path / "merged")])
    assert caught.value.code == 2
    assert "File exists" in capsys.readouterr().err
    assert list_all(tmp_path) == {
        f"merged{end}{name}": "mine" if name else False
        for end in ("", ".partial", ".replaced")
        for name in ("", "/mine")
    }
