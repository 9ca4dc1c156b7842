"""Generated input through the entry points, in process: an answer or one line, no traceback, nothing half-written.

pytest tests/test_fuzz.py
python tests/test_fuzz.py --examples 10000 --commands 200 --output_json fuzz.json      the counts in docs/faults.md
"""

import argparse
import contextlib
import io
import json
import random
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

import datasets
import pytest
import yaml
from conftest import load_recipe, make_reviews, write_csv, write_tiny_bert
from faulty import Nursery
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.arguments import parse_arguments
from finetune.cli import main as finetune_command
from finetune.errors import exit_on_error
from finetune.training.checkpoints import find_resumable

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
WORDS = ["text", "label", "good film", "bad", '"', ",", "\n", "\r\n", "\t", ";", "é", "0", "1.5", "nan", "{", "}", "[",
         "]", ":", '"text":', '"label":', "pos", "neg", "\x00", "﻿", " "]  # fmt: skip
SUFFIXES = [".csv", ".tsv", ".json", ".jsonl", ".txt", ".parquet", ".csv.gz", ".jsonl.zst", ".xyz"]
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
COMMANDS = ["predict", "evaluate", "report"]


def ends_well(call, folder):
    """Run an entry point: it may answer, or end with a status and one line."""
    errors = io.StringIO()
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        warnings.simplefilter("ignore")
        status = 0
        try:
            with exit_on_error():
                call()
        except SystemExit as end:
            status = end.code
        finally:
            datasets.config.HF_DATASETS_CACHE = before
    lines = [line for line in errors.getvalue().splitlines() if line.startswith("error")]
    assert (status, len(lines)) in ((0, 0), (None, 0), (1, 0), (2, 1)), (status, errors.getvalue())
    assert not list(folder.rglob("*.partial"))


def try_flags(words, folder):
    ends_well(lambda: parse_arguments(None, {"dataset_name": "embedded", "output_dir": "runs"}, words), folder)


def try_config(content, folder):
    file = folder / "run.yaml"
    file.write_bytes(content)
    try_flags(["--config", str(file)], folder)


def try_file(name, content, folder):
    file = folder / name
    file.write_bytes(content)
    ends_well(lambda: finetune_command(["doctor", "--train_file", str(file)]), folder)


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


def try_run(finished, test_file, command, spoilt, folder):
    run = folder / "run"
    shutil.copytree(finished, run)
    for one in spoilt:
        damage(run, *one)
    argv = {
        "predict": ["predict", str(run), "a good film"],
        "evaluate": ["evaluate", str(run), "--test_file", test_file],
        "report": ["report", str(run), "--output_dir", str(folder / "report")],
    }[command]
    ends_well(lambda: finetune_command([*argv, *(["--num_threads", "1"] if command != "report" else [])]), folder)
    find_resumable(run / "checkpoints")


FLAGS = st.lists(st.tuples(st.sampled_from(NAMES), VALUES), max_size=4).map(
    lambda pairs: [word for name, value in pairs for word in (f"--{name}", value)]
)
CONFIGS = st.one_of(st.binary(max_size=80), SETTINGS.map(lambda found: yaml.safe_dump(found).encode()))


@pytest.fixture(scope="module")
def finished(imdb, flags, tmp_path_factory):
    """A finished run of TF-IDF and one of a TextCNN."""
    folder = tmp_path_factory.mktemp("finished")
    for method in ("tfidf", "textcnn"):
        imdb.main([*flags, "--method", method, "--no_floor", "--output_dir", str(folder / method)])
    return [folder / "tfidf", folder / "textcnn"]


@pytest.fixture
def scratch(tmp_path):
    """A folder that each example empties."""

    @contextlib.contextmanager
    def fresh():
        with tempfile.TemporaryDirectory(dir=tmp_path) as name:
            yield Path(name)

    return fresh


@QUICK
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
@given(number=st.integers(0, 1), command=st.sampled_from(COMMANDS), spoilt=st.lists(DAMAGE, min_size=1, max_size=2))
def test_run_directories(scratch, finished, reviews, number, command, spoilt):
    with scratch() as folder:
        try_run(finished[number], reviews["--test_file"], command, spoilt, folder)


def main():
    """Count how many generated inputs end well."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--commands", type=int, default=0, help="so many through the real command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_json")
    arguments = parser.parse_args()
    counts, failures = {}, []
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        files = {}
        for split, count, offset in (("train", 60, 0), ("validation", 20, 100), ("test", 30, 200)):
            files[split] = write_csv(base / f"{split}.csv", make_reviews(count, offset))
        given_files = [word for split, path in files.items() for word in (f"--{split}_file", path)]
        flags = [*given_files, "--model_name_or_path", write_tiny_bert(base / "bert"), "--max_length", "24",
                 "--bf16", "false", "--num_threads", "1", "--no_floor", "--num_train_epochs", "1"]  # fmt: skip
        recipe = load_recipe("imdb")
        for method in ("tfidf", "textcnn"):
            recipe.main([*flags, "--method", method, "--output_dir", str(base / method)])
        runs = st.tuples(
            st.sampled_from([base / "tfidf", base / "textcnn"]),
            st.just(files["test"]),
            st.sampled_from(COMMANDS),
            st.lists(DAMAGE, min_size=1, max_size=2),
        )
        kinds = {
            "flags": (FLAGS.map(lambda words: (words,)), try_flags),
            "YAML": (CONFIGS.map(lambda content: (content,)), try_config),
            "files": (st.tuples(st.sampled_from(SUFFIXES).map(lambda s: f"data{s}"), CONTENTS), try_file),
            "run directories": (runs, try_run),
        }
        for kind, (strategy, call) in kinds.items():
            counts[kind] = 0

            @settings(QUICK, max_examples=arguments.examples // len(kinds))
            @given(drawn=strategy)
            def run(drawn, call=call, kind=kind):
                counts[kind] += 1
                with tempfile.TemporaryDirectory(dir=base) as scratch:
                    try:
                        call(*drawn, Path(scratch))
                    except Exception as error:
                        failures.append({"kind": kind, "input": repr(drawn)[:500], "error": repr(error)[:500]})

            run()
            print(kind, counts[kind], "failures so far:", len(failures), flush=True)
        draw = random.Random(arguments.seed)
        simple = [
            "-1",
            "0",
            "1",
            "nan",
            "1e-3",
            "steps",
            "no",
            "epoch",
            "lora",
            "tfidf",
            "textcnn",
            "true",
            "tail",
            "x",
        ]
        with Nursery() as nursery:
            counts["the real command"] = arguments.commands
            for _ in range(arguments.commands):
                chosen = [word for _ in range(draw.randrange(4)) for word in (f"--{draw.choice(NAMES)}", draw.choice(simple))]  # fmt: skip # noqa: E501
                argv = [*flags, "--max_steps", "2", *chosen, "--output_dir", str(base / "run")]
                status = nursery.run(argv, base / "log", kill_after=None)
                text = (base / "log").read_text()
                if status not in (0, 2) or "Traceback" in text:
                    failures.append({"kind": "the real command", "input": chosen, "error": text[-500:]})
                shutil.rmtree(base / "run", ignore_errors=True)
    result = {"counts": counts, "failures": failures, "seconds": round(time.monotonic() - start)}
    print(json.dumps(result, indent=2))
    if arguments.output_json:
        Path(arguments.output_json).write_text(json.dumps(result, indent=2) + "\n")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
