"""`finetune compare`: each run a process of its own, finished ones kept, failed ones said, interruptions survived."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from faulty import TOKEN

from finetune.comparison import compare as compare_module
from finetune.comparison.compare import Plan, Planned, estimate_time_left, run_plan
from finetune.errors import FinetuneError

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes/classify.py"


@pytest.fixture(scope="module")
def small(reviews):
    """Flags of runs that end within seconds."""
    words = [word for pair in reviews.items() for word in pair]
    return [*words, "--max_length", "24", "--num_train_epochs", "6", "--bf16", "false", "--num_threads", "1",
            "--per_device_train_batch_size", "10"]  # fmt: skip


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))


def read_logits(folder):
    return {
        path.name: np.array(pq.read_table(path / "predictions/test.parquet")["logits"].to_pylist())
        for path in sorted(folder.iterdir())
        if (path / "predictions").is_dir()
    }


def compare(words, **options):
    code = "from finetune.cli import main; main()"
    return subprocess.Popen([sys.executable, "-c", code, "compare", *words], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, **options)  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(small, tmp_path_factory):
    """A whole comparison, by the command."""
    folder = tmp_path_factory.mktemp("compare") / "runs"
    process = compare(
        [str(RECIPE), "--methods", "tfidf,textcnn", "--seeds", "0,1", "--output_dir", str(folder), "--", *small],
        env={**os.environ, "HF_TOKEN": TOKEN},
    )
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    (folder.parent / "printed").write_text(out + err)
    return folder, out


def test_each_method_and_seed_has_its_run_and_a_method_without_chance_only_one(undisturbed):
    folder, out = undisturbed
    assert sorted(path.name for path in folder.iterdir()) == [
        "comparison.json", "logs", "looks.json", "report", "textcnn-seed0", "textcnn-seed1", "tfidf-seed0"]  # fmt: skip
    for name in ("textcnn-seed0", "textcnn-seed1", "tfidf-seed0"):
        record = json.loads((folder / name / "run.json").read_text())
        assert record["status"] == "complete"
        assert "floor" not in record  # tfidf is one of the methods
    assert out.splitlines()[0] == (
        "2 methods × 2 seeds = 4 runs; tfidf is run once, since no seed changes it: 3 runs to do"
    )
    assert "[1/4] tfidf-seed0: started, time left: that of tfidf, textcnn not known yet" in out
    assert "[3/4] tfidf-seed1: not run, since no seed changes tfidf: tfidf-seed0 counts" in out
    assert "[4/4] textcnn-seed1: started, about" in out
    assert (folder / "report/report.html").is_file()
    assert (folder / "report/report.md").is_file()


def test_a_token_in_the_environment_is_in_no_byte_that_is_written(undisturbed):
    files = [path for path in undisturbed[0].parent.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"printed", "run.json", "model.safetensors", "report.html", "comparison.json", "trainer_state.json"} <= names
    for path in files:
        assert TOKEN.encode() not in path.read_bytes(), path


def test_what_is_finished_is_kept(undisturbed, small, capsys):
    folder, _ = undisturbed
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("run.json")}
    start = time.monotonic()
    assert run_plan(Plan(RECIPE, ["tfidf", "textcnn"], [0, 1], folder, small)) == []
    assert time.monotonic() - start < 5
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("run.json")} == before
    assert capsys.readouterr().out.count("finished before, test accuracy") == 3
    spent = json.loads((folder / "comparison.json").read_text())["seconds"]
    assert spent.keys() == {"tfidf-seed0", "textcnn-seed0", "textcnn-seed1"}
    for name, seconds in spent.items():  # the start of the processes counts as well
        assert seconds > json.loads((folder / name / "run.json").read_text())["costs"]["train_seconds"] + 2


def test_other_flags_are_refused(undisturbed, small):
    folder, _ = undisturbed
    with pytest.raises(FinetuneError, match="Use the same recipe and flags, or another --output_dir"):
        run_plan(Plan(RECIPE, ["tfidf"], [0], folder, [*small, "--weight_decay", "0.5"]))


def test_a_comparison_in_which_nothing_ran_gives_way(tmp_path):
    compare_module._open(Plan(RECIPE, ["tfidf"], [0], tmp_path / "runs", ["--max_length", "3"]))
    assert compare_module._open(Plan(RECIPE, ["tfidf"], [0], tmp_path / "runs", ["--max_length", "9"])) == {}
    assert "9" in (tmp_path / "runs/comparison.json").read_text()


def test_a_failed_run_is_said_and_the_rest_goes_on(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare_module, "SAID_SECONDS", 2)
    flags = [*small, "--model_name_or_path", str(tmp_path / "nowhere")]
    failures = run_plan(Plan(RECIPE, ["full", "tfidf"], [0], tmp_path / "runs", flags))
    assert len(failures) == 1
    assert failures[0].startswith("full-seed0 failed (status 1): error: Expected a model folder, but ")
    assert json.loads((tmp_path / "runs/tfidf-seed0/run.json").read_text())["status"] == "complete"
    out = capsys.readouterr().out
    assert "[2/2] tfidf-seed0: test accuracy" in out
    assert re.search(r"^\[2/2\] tfidf-seed0: \d+ s, \S", out, re.MULTILINE)  # what a long run does is said


@pytest.mark.slow  # a killed one goes on below in each run of the tests
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_started_again_it_gives_the_same_predictions(undisturbed, small, tmp_path, number):
    words = [
        str(RECIPE),
        "--methods",
        "tfidf,textcnn",
        "--seeds",
        "0",
        "--output_dir",
        str(tmp_path / "runs"),
        "--",
        *small,
    ]
    process = compare(words)
    history = tmp_path / "runs/textcnn-seed0/history.jsonl"
    while not history.exists():  # in the middle of the second run
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert json.loads((tmp_path / "runs/tfidf-seed0/run.json").read_text())["status"] == "complete"
    process = compare(words)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    expected, found = read_logits(undisturbed[0]), read_logits(tmp_path / "runs")
    assert found.keys() == expected.keys() - {"textcnn-seed1"}
    for name, logits in found.items():
        np.testing.assert_array_equal(logits, expected[name])


@pytest.mark.slow
def test_killed_and_started_again_it_waits_for_the_run_that_goes_on(undisturbed, small, tmp_path):
    """SIGKILL ends the comparison alone: the run at work goes on, and must neither fail nor be started twice."""
    words = [str(RECIPE), "--methods", "textcnn", "--seeds", "0", "--output_dir", str(tmp_path / "runs"), "--", *small]
    process = compare([*words, "--no_floor"])
    lock = tmp_path / "runs/textcnn-seed0/run.lock"
    while not (lock.exists() and lock.read_text()):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.kill()
    process.wait()
    run = int(re.match(r"process (\d+) ", lock.read_text())[1])
    os.kill(run, signal.SIGSTOP)  # or it might end before the second comparison has begun
    process = compare([*words, "--no_floor"], env={**os.environ, "PYTHONUNBUFFERED": "1"})
    while "is at work on it, waiting for its end" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    os.kill(run, signal.SIGCONT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    np.testing.assert_array_equal(
        read_logits(tmp_path / "runs")["textcnn-seed0"], read_logits(undisturbed[0])["textcnn-seed0"]
    )


def test_what_a_run_is_doing_is_said_every_minute_or_in_place_on_a_terminal(tmp_path, monkeypatch, capsys):
    log, clock = tmp_path / "run.log", iter([0.0, 30.0, 61.0, 62.0, 125.0])
    log.write_text("a line of an earlier start\n")
    monkeypatch.setattr(compare_module.time, "monotonic", lambda: next(clock))
    with compare_module._Ticker(log, "[2/6] lora-seed0") as ticker:
        ticker.tick()
        assert capsys.readouterr().out == ""
        ticker.tick()
        assert capsys.readouterr().out == "[2/6] lora-seed0: 1 min 1 s, loading\n"
        with log.open("a") as file:
            file.write("Loading: 10 %\rLoading: 100 %\nstep 5/20  loss 0.7\x1b[2J\n\n")
        ticker.tick()
        ticker.tick()
    assert capsys.readouterr().out == "[2/6] lora-seed0: 2 min 5 s, step 5/20  loss 0.7 [2J\n"
    clock = iter([0.0, 1.0])
    monkeypatch.setattr(compare_module.sys.stdout, "isatty", lambda: True, raising=False)
    with compare_module._Ticker(log, "[2/6] lora-seed0") as ticker:
        log.write_text("x" * 5_000 + "\n" + "step 6/20 " * 30)
        ticker.begin = 0
        ticker.tick()
        shown = capsys.readouterr().out
        assert shown.startswith("\r\x1b[K[2/6] lora-seed0: 1 s, step 6/20")
        assert len(shown) < 100
        assert "\n" not in shown
    assert capsys.readouterr().out == "\r\x1b[K"


def test_time_left_is_honest():
    runs = [Planned(method, seed, Path(f"{method}-seed{seed}")) for seed in (1, 2) for method in ("tfidf", "full")]
    assert estimate_time_left(runs, {}) == "time left: that of tfidf, full not known yet"
    assert estimate_time_left(runs, {"tfidf": [10.0]}) == "at least 20 s left, that of full not known yet"
    assert estimate_time_left(runs, {"tfidf": [10.0], "full": [3600.0, 4000.0]}) == "about 2 h 7 min left"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": Path("nothing.py")}, "Expected a recipe, but 'nothing.py' does not exist"),
        ({"methods": ["full", "magic"]}, "Expected --methods from .*, but got magic"),
        ({"methods": ["full", "full"]}, "each method and seed once"),
        ({"seeds": []}, "each method and seed once"),
        ({"flags": ["--seed=3"]}, "Expected no --seed after --"),
        ({"accelerate_config": Path("nothing.yaml")}, "--accelerate_config to be a file"),
    ],
)
def test_mistakes_are_one_line(tmp_path, changes, message):
    plan = {"recipe": RECIPE, "methods": ["full"], "seeds": [0], "output_directory": tmp_path / "runs", **changes}
    with pytest.raises(FinetuneError, match=message):
        Plan(**plan)
    assert not (tmp_path / "runs").exists()


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(FinetuneError, match="holds other files"):
        run_plan(Plan(RECIPE, ["tfidf"], [0], tmp_path))
