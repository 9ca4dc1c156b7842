"""Generated input through the entry points, in process: an answer or one line, no traceback, nothing half-written.

pytest tests/test_fuzz.py
python tests/test_fuzz.py --examples 10000 --runs 200 --commands 200     the counts in docs/explanations/faults.md
"""

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import datasets
import pytest
import yaml
from conftest import ROOT, make_reviews, recipe_of, write_csv, write_tiny_bert
from faulty import Nursery
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from finetune.cli import main as finetune_command
from finetune.errors import exit_on_error
from finetune.settings.parsing import parse_arguments
from finetune.training.checkpoints import find_resumable

FINISHED = ("tfidf", "textcnn", "lora")
QUICK = settings(
    max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
NAMES = ["learning_rate", "num_train_epochs", "max_length", "method", "truncation", "seed", "eval_strategy", "bf16",
         "warmup_steps", "save_strategy", "metric_for_best_model", "lora_r", "unfreeze_every", "lr_schedule", "floor",
         "label_smoothing_factor", "focal_gamma", "peft_config", "hub_token", "optim", "lr_scheduler_type",
         "resume_from_checkpoint", "per_device_train_batch_size", "output_dir", "config", "nonsense", "train_file",
         "report_to", "window_stride", "max_steps", "logging_steps", "load_best_model_at_end", "textcnn_variant"]  # fmt: skip # noqa: E501
VALUES = st.one_of(
    st.sampled_from(
        [
            "",
            "0",
            "1",
            "-1",
            "nan",
            "inf",
            "-inf",
            "1e400",
            "true",
            "null",
            "{}",
            "[1]",
            "full",
            "lora",
            "steps",
            "no",
            "epoch",
            "head",
            "accuracy",
            "../..",
            "/",
            ".",
            "\x00",
            "9" * 30,
            "{seed}",
        ]
    ),
    st.text(max_size=12),
    st.integers().map(str),
    st.floats().map(str),
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12))
SETTINGS = st.dictionaries(
    st.one_of(st.sampled_from([*NAMES, "full", "lora", "textcnn"]), st.text(max_size=8), st.integers()),
    st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(st.sampled_from(NAMES), SCALARS, max_size=3)),
    max_size=4,
)
WORDS = ["text", "label", "good", "bad", "\\ud800", '"', ",", "\n", "\r\n", "\t", ";", "é", "0", "1.5", "nan", "{", "}",
         "[", "]", ":", '"text":', '"label":', "pos", "neg", "\x00", "﻿", " "]  # fmt: skip
SUFFIXES = [".csv", ".tsv", ".json", ".jsonl", ".txt", ".parquet", ".csv.gz", ".jsonl.zst", ".xyz"]
BULK = [".csv", ".tsv", ".jsonl", ".parquet"]
CONTENTS = st.one_of(
    st.binary(max_size=200),
    st.lists(st.sampled_from(WORDS), max_size=60).map(lambda words: "".join(words).encode()),
    st.lists(st.tuples(st.text(max_size=9), st.sampled_from(["pos", "neg", "", "1"])), max_size=12).map(
        lambda rows: "".join(f"{text},{label}\n" for text, label in [("text", "label"), *rows]).encode(errors="replace")
    ),
)  # fmt: skip
DAMAGE = st.tuples(
    st.integers(0, 10**6), st.sampled_from(["remove", "cut", "flip", "empty", "replace"]), st.integers(0)
)
STEP = "finetune.training.trainer:FineTuningTrainer.training_step"
SIMPLE = ["-1", "0", "1", "nan", "1e-3", "steps", "no", "epoch", "lora", "tfidf", "textcnn", "true", "tail", "x"]
COMMANDS = ["predict", "evaluate", "report", "merge", "push", "predict a file"]
# For the whole commands, in words that are mostly wrong; none of them starts a run.
PATHS = [
    "{run}",
    "{run}/model",
    "{run}/run.json",
    "{file}",
    "missing",
    "",
    ".",
    "..",
    "a/b",
    "a/b@c",
    "\x00",
    "x://y/z",
]
KNOWN = [
    "--pairs",
    "--input_file",
    "--output_file",
    "--text_column",
    "--text_pair_column",
    "--encoding",
    "--num_threads",
    "--test_file",
    "--label_column",
    "--label_delimiter",
    "--output_json",
    "--margin",
    "--metric",
    "--cost",
    "--output_dir",
    "--adapter",
    "--public",
    "--revision",
    "--message",
    "--card",
    "--help",
    "--version",
    "--seeds",
    "--accelerate_config",
    "--",
    "{new}",
    "{new}.csv",
    "{new}.parquet",
    "{new}.json",
    "text",
    "label",
    "utf-8",
    "utf-99",
    "1",
    "-1",
    "accuracy",
    "bytes",
    "0,x",
    "{seed}",
]
PARTS = st.one_of(st.sampled_from([*PATHS, *KNOWN]), VALUES)
WORDS_OF = {
    "predict": [["{run}"], ["{run}", "--input_file", "{file}", "--output_file", "{new}.csv"], []],
    "evaluate": [["{run}", "--test_file", "{file}"], []],
    "report": [["{run}", "--output_dir", "{new}"], []],
    "merge": [["{run}", "{new}"], []],
    "push": [["{run}", "me/reviews"], []],
    "compare": [["{file}", "--methods", "none,such", "--output_dir", "{new}"], ["missing.py", "--methods", "tfidf"]],
    "methods": [[]],
    "": [[]],
}
ARGV = st.sampled_from(sorted(WORDS_OF)).flatmap(
    lambda command: st.tuples(
        st.just([command]), st.sampled_from(WORDS_OF[command]), st.lists(PARTS, max_size=4), st.integers(0, 9)
    )
)


SECONDS = 300


def ends_well(call, folder):
    """Run an entry point: it may answer, or end with a status and one line."""
    errors = io.StringIO()
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    signal.signal(signal.SIGALRM, _is_hanging)
    signal.alarm(SECONDS)
    sys.stdin = io.StringIO("a good film\n")
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(errors),
        contextlib.chdir(folder),
    ):
        warnings.simplefilter("ignore")
        status = 0
        try:
            with exit_on_error():
                call()
        except SystemExit as end:
            status = end.code
        finally:
            signal.alarm(0)
            sys.stdin = sys.__stdin__
            datasets.config.HF_DATASETS_CACHE = before
    lines = [line for line in errors.getvalue().splitlines() if line.startswith("error")]
    assert (status, len(lines)) in ((0, 0), (None, 0), (1, 0), (2, 1)), (status, errors.getvalue())
    assert "Traceback" not in errors.getvalue(), errors.getvalue()
    assert not list(folder.rglob("*.partial"))
    return status


def _is_hanging(number, frame):
    raise TimeoutError(f"no end after {SECONDS} s")


def started_command(words):
    """Run `finetune` as it is installed, in a process of its own."""
    environment = {**os.environ, "HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE)}
    command = [Path(sys.executable).with_name("finetune"), *(word.replace("\0", "") for word in words)]
    ended = subprocess.run(command, input="a good film\n", capture_output=True, env=environment, text=True)
    sys.stderr.write(ended.stderr)
    sys.exit(ended.returncode)


def started_recipe(words, log):
    """Run recipes/imdb.py in a process of its own, and give its exit status."""
    with log.open("w") as output:
        command = [sys.executable, ROOT / "recipes/imdb.py", *words]
        return subprocess.run(command, stdout=output, stderr=output, timeout=SECONDS).returncode


def try_flags(words, folder):
    ends_well(lambda: parse_arguments(None, {"dataset_name": "embedded", "output_dir": "runs"}, words), folder)


def try_config(content, folder):
    file = folder / "run.yaml"
    file.write_bytes(content)
    try_flags(["--config", str(file)], folder)


def try_file(name, content, folder, run_command=finetune_command):
    file = folder / name
    file.write_bytes(content)
    ends_well(lambda: run_command(["doctor", "--train_file", str(file)]), folder)


def damage(folder, which, how, where):
    """Spoil one file of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    file = files[which % len(files)]
    content = bytearray(file.read_bytes())
    if how == "remove":
        file.unlink()
        return
    if how == "cut":
        content = content[: where % (len(content) + 1)]
    elif how == "flip" and content:
        content[where % len(content)] ^= 1 << where % 8
    elif how == "empty":
        content = bytearray()
    elif how == "replace":
        content = bytearray(b'{"a": [1, {}]}')
    file.write_bytes(content)


def try_run(finished, test_file, command, spoilt, folder, run_command=finetune_command):
    run = folder / "run"
    shutil.copytree(finished, run)
    for one in spoilt:
        damage(run, *one)
    new = folder / "new"
    argv = {
        "predict": ["predict", str(run), "a good film"],
        "predict a file": ["predict", str(run), "--input_file", test_file, "--output_file", f"{new}.csv"],
        "evaluate": ["evaluate", str(run), "--test_file", test_file],
        "report": ["report", str(run), "--output_dir", str(new)],
        "merge": ["merge", str(run), str(new)],
        "push": ["push", str(run), "me/reviews"],
    }[command]
    threads = ["--num_threads", "1"] if command.startswith(("predict", "evaluate")) else []
    if ends_well(lambda: run_command([*argv, *threads]), folder) == 2:
        assert not new.exists()
        assert not new.with_suffix(".csv").exists()
    find_resumable(run / "checkpoints", "")


def try_prediction(finished, name, content, folder):
    """Label a generated file."""
    (folder / name).write_bytes(content)
    output = folder / f"output{Path(name).suffix}"
    argv = ["predict", str(finished), "--input_file", str(folder / name), "--output_file", str(output)]
    assert (ends_well(lambda: finetune_command([*argv, "--num_threads", "1"]), folder) == 2) != output.exists()


def try_command(finished, file, drawn, folder, run_command=finetune_command):
    """Append words that may or may not fit a command."""
    command, usual, more, where = drawn
    words = [*usual[:where], *more, *usual[where:]]
    filled = [word.replace("{run}", str(finished)).replace("{file}", file).replace("{new}", str(folder / "new"))
              for word in (*command, *words)]  # fmt: skip
    ends_well(lambda: run_command(filled), folder)


FLAGS = st.lists(st.tuples(st.sampled_from(NAMES), VALUES), max_size=4).map(
    lambda pairs: [word for name, value in pairs for word in (f"--{name}", value)]
)
CONFIGS = st.one_of(st.binary(max_size=80), SETTINGS.map(lambda found: yaml.safe_dump(found).encode()))


@pytest.fixture(scope="module")
def finished(flags, tmp_path_factory):
    """Finished runs."""
    folder = tmp_path_factory.mktemp("finished")
    for method in FINISHED:
        recipe_of(method).main([*flags, "--method", method, "--no_floor", "--output_dir", str(folder / method)])
    return [folder / method for method in FINISHED]


@pytest.fixture
def scratch(tmp_path):
    """A folder that each example empties."""

    @contextlib.contextmanager
    def fresh():
        with tempfile.TemporaryDirectory(dir=tmp_path) as name:
            yield Path(name)

    return fresh


@QUICK
@example(words=["--config", "\x00"])
@given(words=FLAGS)
def test_flags(scratch, words):
    with scratch() as folder:
        try_flags(words, folder)


@QUICK
@given(content=CONFIGS)
def test_configs(scratch, content):
    with scratch() as folder:
        try_config(content, folder)


@QUICK
@given(suffix=st.sampled_from(SUFFIXES), content=CONTENTS)
def test_files(scratch, suffix, content):
    with scratch() as folder:
        try_file(f"data{suffix}", content, folder)


@QUICK
@given(number=st.integers(0, 2), command=st.sampled_from(COMMANDS), spoilt=st.lists(DAMAGE, min_size=1, max_size=2))
def test_run_directories(scratch, finished, reviews, number, command, spoilt):
    with scratch() as folder:
        try_run(finished[number], reviews["--test_file"], command, spoilt, folder)


@QUICK
@given(number=st.integers(0, 1), suffix=st.sampled_from(BULK), content=CONTENTS)
def test_predictions_of_files(scratch, finished, number, suffix, content):
    with scratch() as folder:
        try_prediction(finished[number], f"data{suffix}", content, folder)


@QUICK
@given(number=st.integers(0, 2), drawn=ARGV)
def test_commands(scratch, finished, reviews, number, drawn):
    with scratch() as folder:
        try_command(finished[number], reviews["--test_file"], drawn, folder)


def main():
    """Count how many generated inputs end well."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--examples", type=int, default=10_000, help="in process")
    parser.add_argument("--runs", type=int, default=0, help="so many of a recipe, in forked processes")
    parser.add_argument("--commands", type=int, default=0, help="so many through the real commands, started anew")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_json")
    arguments = parser.parse_args()
    counts, failures = {}, []
    start = time.monotonic()

    def write_result():
        result = {"counts": counts, "failures": failures, "seconds": round(time.monotonic() - start)}
        if arguments.output_json:
            Path(arguments.output_json).write_text(json.dumps(result, indent=2) + "\n")
        return result

    def note(kind, given_input, error):
        failures.append({"kind": kind, "input": repr(given_input)[:500], "error": error[:1500]})
        print(failures[-1], flush=True)

    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        files = {}
        for split, count, offset in (("train", 60, 0), ("validation", 20, 100), ("test", 30, 200)):
            files[split] = write_csv(base / f"{split}.csv", make_reviews(count, offset))
        given_files = [word for split, path in files.items() for word in (f"--{split}_file", path)]
        flags = [*given_files, "--model_name_or_path", write_tiny_bert(base / "bert"), "--max_length", "24",
                 "--bf16", "false", "--num_threads", "1", "--no_floor", "--num_train_epochs", "1"]  # fmt: skip
        for method in FINISHED:
            recipe_of(method).main([*flags, "--method", method, "--output_dir", str(base / method)])
        run = st.sampled_from([base / method for method in FINISHED])
        named = st.sampled_from(SUFFIXES).map(lambda suffix: f"data{suffix}")
        bulk = st.sampled_from(BULK).map(lambda suffix: f"data{suffix}")
        spoilt = st.tuples(run, st.just(files["test"]), st.sampled_from(COMMANDS), st.lists(DAMAGE, min_size=1, max_size=2))  # fmt: skip # noqa: E501
        words_of_commands = st.tuples(run, st.just(files["test"]), ARGV)
        recipe_commands = arguments.commands // 4
        commands = arguments.commands - recipe_commands
        in_process, started = {}, {"run_command": started_command}
        # how many of the inputs, what is drawn, what is done with it, and how
        kinds = {
            "flags of recipes": (0.25 * arguments.examples, st.tuples(FLAGS), try_flags, in_process),
            "YAML files": (0.2 * arguments.examples, st.tuples(CONFIGS), try_config, in_process),
            "files to the doctor": (0.2 * arguments.examples, st.tuples(named, CONTENTS), try_file, in_process),
            "files to predict": (0.1 * arguments.examples, st.tuples(run, bulk, CONTENTS), try_prediction, in_process),
            "words of commands": (0.15 * arguments.examples, words_of_commands, try_command, in_process),
            "spoilt run directories": (0.1 * arguments.examples, spoilt, try_run, in_process),
            "finetune, started with generated words": (0.6 * commands, words_of_commands, try_command, started),
            "finetune, started on generated files": (0.2 * commands, st.tuples(named, CONTENTS), try_file, started),
            "finetune, started on spoilt run directories": (0.2 * commands, spoilt, try_run, started),
        }
        for kind, (share, strategy, call, how) in kinds.items():
            if round(share) == 0:
                continue
            counts[kind] = 0
            before, used = time.monotonic(), time.process_time()

            @settings(QUICK, max_examples=round(share))
            @given(drawn=strategy)
            def run_all(drawn):
                counts[kind] += 1  # noqa: B023  called in the same turn
                with tempfile.TemporaryDirectory(dir=base) as scratch:
                    try:
                        call(*drawn, Path(scratch), **how)  # noqa: B023
                    except Exception as error:
                        where = traceback.extract_tb(error.__traceback__)[-1]
                        note(kind, drawn, f"{error!r} at {where.filename}:{where.lineno}")  # noqa: B023

            run_all()
            write_result()
            print(f"{kind}: {counts[kind]}, {time.process_time() - used:.0f} s of the processor's, "
                  f"{time.monotonic() - before:.0f} s of the clock's, {len(failures)} failures so far", flush=True)  # fmt: skip # noqa: E501
        draw, log = random.Random(arguments.seed), base / "log"
        with Nursery() as nursery:
            unfinished = base / "unfinished"
            argv = [*flags, "--save_strategy", "steps", "--save_steps", "2", "--eval_strategy", "no", "--load_best_model_at_end", "false"]  # fmt: skip # noqa: E501
            status = nursery.run([*argv, "--output_dir", str(unfinished)], log, [("SIGKILL", STEP, 4)])
            assert status == -signal.SIGKILL, log.read_text()
            ways = [("forked", nursery.run)] * arguments.runs + [("started", started_recipe)] * recipe_commands
            for number, (how, run_recipe) in enumerate(ways):
                if number % 2:
                    kind = f"recipes, {how} with generated flags"
                    chosen = [word for _ in range(draw.randrange(4)) for word in (f"--{draw.choice(NAMES)}", draw.choice(SIMPLE))]  # fmt: skip # noqa: E501
                    words = [*flags, "--max_steps", "2", *chosen, "--output_dir", str(base / "run")]
                else:
                    kind = f"recipes, {how} in spoilt unfinished run directories"
                    shutil.copytree(unfinished, base / "run")
                    hows = ["remove", "cut", "flip", "empty", "replace"]
                    chosen = [(draw.randrange(10**6), draw.choice(hows), draw.randrange(10**6)) for _ in range(draw.choice([1, 1, 2]))]  # fmt: skip # noqa: E501
                    for one in chosen:
                        damage(base / "run", *one)
                    words = [*argv, "--output_dir", str(base / "run")]
                counts[kind] = counts.get(kind, 0) + 1
                status = run_recipe(words, log)
                text = log.read_text()
                record = base / "run/run.json"
                is_complete = record.exists() and '"status": "complete"' in record.read_text(errors="replace")
                lines = [line for line in text.splitlines() if line.startswith("error: ")]
                ended = (status, len(lines), is_complete) in ((0, 0, True), (2, 1, False))
                if not ended or "Traceback" in text or list((base / "run").rglob("*.partial")):
                    note(kind, chosen, f"{status} {is_complete} {text[-1400:]}")
                shutil.rmtree(base / "run", ignore_errors=True)
                write_result()
    print(json.dumps(write_result(), indent=2))
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
