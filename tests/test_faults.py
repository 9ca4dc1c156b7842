"""Runs that are killed, starved, and tampered with: nothing is lost, and nothing broken looks finished.

pytest -m faults                                    a few moments of each kind
python tests/test_faults.py --kills 30 --output_json faults.json      the table in docs/explanations/faults.md
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import OTHER, make_reviews, write_csv, write_tiny_bert
from faulty import TOKEN, Nursery
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, BertTokenizerFast

from finetune.training.checkpoints import commit_checkpoint

pytestmark = pytest.mark.faults

STEP = "finetune.training.trainer:FineTuningTrainer.training_step"
EVALUATION = "finetune.models.logits:_compute_unless_out_of_memory"
SETTINGS = {
    "full": ["--method", "full"],
    "unfreezing": ["--method", "full", "--unfreeze_every", "0.5"],
    "lora": ["--method", "lora", "--lora_dropout", "0.1"],
    "adalora": ["--method", "adalora"],
    "head": ["--method", "head"],
    "textcnn": ["--method", "textcnn", "--textcnn_embedding_dim", "16"],
}
# 15 steps an epoch; checkpoints at 10, 20, … and none at an epoch's end, or at the ends alone.
BY_STEPS = ["--eval_strategy", "steps", "--eval_steps", "10", "--save_strategy", "steps", "--save_steps", "10",
            "--early_stopping_patience", "0"]  # fmt: skip
BY_EPOCHS = ["--early_stopping_patience", "1", "--max_tokens_per_micro_batch", "60"]
TIMES = {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "train_runtime",
         "train_samples_per_second", "train_steps_per_second"}  # fmt: skip


@pytest.fixture(scope="module")
def nursery():
    with Nursery() as started:
        yield started


@pytest.fixture(scope="module")
def settings(flags):
    return [
        *flags,
        "--num_train_epochs",
        "4",
        "--per_device_train_batch_size",
        "4",
        "--no_floor",
        "--logging_steps",
        "7",
    ]


@pytest.fixture(scope="module")
def straight(nursery, settings, tmp_path_factory):
    """From flags to the outcome of a run that nothing happened to."""
    known = {}

    def run(*own):
        if own not in known:
            folder = tmp_path_factory.mktemp("straight")
            assert nursery.run([*settings, *own, "--output_dir", str(folder / "run")], folder / "log") == 0
            known[own] = outcome(folder / "run"), disk_bytes(folder / "run/checkpoints") / 2
        return known[own]

    return run


def outcome(run):
    """Everything of a finished run that must not depend on how often it was cut off."""
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "complete"
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    files = [*(run / "model").iterdir(), *(run / "predictions").iterdir()]
    return {
        "files": {path.name: path.read_bytes() for path in files},
        "metrics": record["metrics"],
        "best": record["best_checkpoint_metric"],
        "costs": {name: record["costs"][name] for name in ("train_steps", "train_tokens")},
        "history": [{name: value for name, value in entry.items() if name not in TIMES} for entry in history],
    }


def assert_equal(found, expected):
    assert found["files"].keys() == expected["files"].keys()
    for name, content in expected["files"].items():
        assert found["files"][name] == content, name
    assert found["history"] == expected["history"]
    assert found == expected


def assert_no_token_in(folder):
    for path in folder.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


MOMENTS = [
    (STEP, 5),  # before there is a checkpoint
    ("torch:save", 2),  # while the first one is written
    (STEP, 14),
    ("finetune.training.checkpoints:replace_folder", 1),  # written, not yet in its place
    (EVALUATION, 2),
    ("finetune.training.checkpoints:_delete", 1),
    ("finetune.run.run:write_model", 1),  # the final save
    ("finetune.files:replace_folder", 1),
    ("finetune.inference.evaluate:write_predictions", 2),
]


@pytest.mark.parametrize(
    "method",
    ["textcnn", *(pytest.param(name, marks=pytest.mark.slow) for name in ("unfreezing", "lora", "adalora", "head"))],
)
def test_killed_again_and_again_it_ends_with_the_same_bits(nursery, settings, straight, tmp_path, method):
    own = [*SETTINGS[method], *BY_STEPS]
    cut, log = [*settings, *own, "--output_dir", str(tmp_path / "cut")], tmp_path / "cut.log"
    kills = 0
    for function, number in MOMENTS if method == "unfreezing" else MOMENTS[2::2]:
        status = nursery.run(cut, log, [("SIGKILL", function, number)])
        assert status == -signal.SIGKILL, (function, log.read_text())
        kills += 1
        assert not (tmp_path / "cut/run.json").exists() or '"running"' in (tmp_path / "cut/run.json").read_text()
    assert kills >= 4
    assert nursery.run(cut, log) == 0, log.read_text()
    assert "resuming from" in log.read_text()
    assert_equal(outcome(tmp_path / "cut"), straight(*own)[0])
    assert_no_token_in(tmp_path)


@pytest.mark.parametrize(
    ("method", "strategy"),
    [("unfreezing", BY_STEPS), ("head", BY_STEPS), ("unfreezing", BY_EPOCHS), ("head", BY_EPOCHS)],
)
def test_a_signal_ends_it_after_the_step_with_75(nursery, settings, straight, tmp_path, method, strategy):
    own = [*SETTINGS[method], *strategy]
    cut, log = [*settings, *own, "--output_dir", str(tmp_path / "cut")], tmp_path / "cut.log"
    for name, function, number, step in (
        ("SIGTERM", STEP, 7, 7),
        ("SIGINT", STEP, 8, 15),  # an epoch's last: its evaluation is still due
        ("SIGTERM", EVALUATION, 3 if method == "head" else 1, None),  # the features take the first two
        ("SIGXCPU", STEP, 4, None),
    ):
        status = nursery.run(cut, log, [(name, function, number)])
        assert status == 75, log.read_text()
        assert log.read_text().splitlines()[-1].startswith("interrupted: ")
        if step is not None:
            assert (tmp_path / f"cut/checkpoints/checkpoint-{step}/complete.json").exists()
    assert nursery.run(cut, log) == 0, log.read_text()
    assert_equal(outcome(tmp_path / "cut"), straight(*own)[0])


def test_killed_after_early_stopping_it_does_not_train_on(nursery, settings, straight, tmp_path):
    own = [*SETTINGS["textcnn"], *BY_EPOCHS, "--learning_rate", "1", "--num_train_epochs", "9"]
    expected = straight(*own)[0]
    assert expected["costs"]["train_steps"] < 9 * 15
    cut = [*settings, *own, "--output_dir", str(tmp_path / "cut")]
    assert nursery.run(cut, tmp_path / "log", [("SIGKILL", "finetune.run.run:write_model", 1)]) == -9
    assert nursery.run(cut, tmp_path / "log") == 0
    assert_equal(outcome(tmp_path / "cut"), expected)


def test_a_signal_outside_of_training_ends_it_at_once_with_75(nursery, settings, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    fault = ("SIGTERM", "finetune.run.run:Run.record_tokens", 1)
    assert nursery.run([*settings, "--output_dir", str(run)], log, [fault]) == 75
    assert log.read_text().splitlines()[-1] == "interrupted: SIGTERM received: start the same command again to go on."
    assert not run.exists()


def test_a_signal_after_completion_does_not_say_start_me_again(nursery, settings, tmp_path):
    fault = ("SIGTERM", "finetune.run.run:summarize", 1)
    argv = [*settings, "--method", "tfidf", "--output_dir", str(tmp_path / "run")]
    assert nursery.run(argv, tmp_path / "log", [fault]) == -signal.SIGTERM
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "complete"


def test_a_broken_checkpoint_is_skipped_and_said(nursery, settings, straight, tmp_path):
    own = [*settings, *SETTINGS["full"], *BY_STEPS, "--save_total_limit", "9"]
    cut, log = tmp_path / "cut", tmp_path / "cut.log"
    assert nursery.run([*own, "--output_dir", str(cut)], log, [("SIGKILL", STEP, 33)]) == -9
    names = sorted(path.name for path in (cut / "checkpoints/checkpoint-30").iterdir())
    assert {"complete.json", "loop_state.json", "model.safetensors", "optimizer.pt", "rng_state.pth",
            "scheduler.pt", "trainer_state.json"} <= set(names)  # fmt: skip
    assert "training_args.bin" not in names
    for name in ("optimizer.pt", "loop_state.json"):
        broken = cut / "checkpoints/checkpoint-30" / name
        content = bytearray(broken.read_bytes())
        content[len(content) // 2] ^= 4
        broken.write_bytes(content)
        fault = [("SIGKILL", STEP, 13)] if name == "optimizer.pt" else []
        nursery.run([*own, "--output_dir", str(cut)], log, fault)
        assert f"checkpoint-30: {name} has changed" in log.read_text()
        assert f"resuming from {cut}/checkpoints/checkpoint-20" in log.read_text()
    assert_equal(outcome(cut), straight(*SETTINGS["full"], *BY_STEPS)[0])


def test_a_second_run_in_the_directory_is_refused(nursery, settings, tmp_path):
    argv = [*settings, *SETTINGS["full"], *BY_STEPS, "--output_dir", str(tmp_path / "run")]
    assert nursery.run(argv, tmp_path / "log", [("SIGSTOP", STEP, 12)]) is None
    first = nursery.pid
    assert nursery.run(argv, tmp_path / "second.log") == 2
    assert f"process {first} on " in (tmp_path / "second.log").read_text()
    assert nursery.run([*argv, "--restart"], tmp_path / "second.log") == 2
    os.kill(first, signal.SIGKILL)
    time.sleep(0.2)
    assert nursery.run(argv, tmp_path / "log") == 0
    assert "resuming from" in (tmp_path / "log").read_text()


def test_changed_settings_are_listed_and_refused_unless_confirmed(nursery, settings, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    argv = [*settings, *SETTINGS["full"], *BY_STEPS, "--lr_scheduler_type", "constant", "--output_dir", str(run)]
    assert nursery.run(argv, log, [("SIGKILL", STEP, 25)]) == -9
    changed = [*argv, "--learning_rate", "1e-2", "--weight_decay", "0.1"]
    assert nursery.run(changed, log) == 2
    (line,) = [line for line in log.read_text().splitlines() if line.startswith("error")]
    assert "learning_rate (5e-05 then, 0.01 now)" in line
    assert "weight_decay (0.01 then, 0.1 now)" in line
    assert nursery.run([*changed, "--resume_with_changes", "--attention_dropout", "0.1"], log) == 2  # another model
    assert nursery.run([*argv, "--resume_with_changes", "--weight_decay", "0"], log) == 2
    assert "parameters otherwise" in log.read_text()
    assert nursery.run([*changed, "--resume_with_changes"], log) == 0, log.read_text()
    (change,) = json.loads((run / "run.json").read_text())["changes"]
    assert change["after_step"] == 20
    rates = [json.loads(entry).get("learning_rate") for entry in (run / "history.jsonl").open()]
    rates = [rate for rate in rates if rate is not None]
    assert rates[:2] == [5e-05, 5e-05]  # logged after 7 and 14 steps
    assert set(rates[2:]) == {0.01}


def test_another_model_under_the_same_name_is_refused(nursery, settings, tiny_bert, tmp_path):
    base, log = tmp_path / "base", tmp_path / "log"
    shutil.copytree(tiny_bert, base)
    argv = [*settings, *SETTINGS["lora"], *BY_STEPS, "--model_name_or_path", str(base), "--output_dir", str(tmp_path / "run")]  # fmt: skip # noqa: E501
    assert nursery.run(argv, log, [("SIGKILL", STEP, 12)]) == -9
    weights = load_file(base / "model.safetensors")
    save_file({name: 2 * tensor for name, tensor in weights.items()}, base / "model.safetensors", {"format": "pt"})
    assert nursery.run([*argv, "--resume_with_changes"], log) == 2
    assert f"these differ: the model {str(base)!r} (its files have changed)." in log.read_text()


class Planted:
    def __reduce__(self):
        return os.mkdir, ("planted",)


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth"])
def test_nothing_that_is_planted_in_a_checkpoint_is_run(nursery, settings, tmp_path, name):
    run, log = tmp_path / "run", tmp_path / "log"
    argv = [*settings, *SETTINGS["full"], *BY_STEPS, "--output_dir", str(run)]
    assert nursery.run(argv, log, [("SIGKILL", STEP, 12)]) == -9
    checkpoint = run / "checkpoints/checkpoint-10"
    run_id = json.loads((run / "run.json").read_text())["id"]
    torch.save({"state": Planted()}, checkpoint / name)
    checkpoint.rename(tmp_path / "aside")
    (tmp_path / "aside/complete.json").unlink()
    commit_checkpoint(tmp_path / "aside", checkpoint, run_id)  # by somebody who can write hashes too
    assert nursery.run(argv, log) == 2
    assert "error: Expected tensors and numbers alone in " in log.read_text()
    assert not Path("planted").exists()


def mounted(folder, size, *options):
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a file system takes root")
    return folder


@pytest.fixture
def small_disk(tmp_path):
    yield lambda size, *options: mounted(tmp_path / "disk", size, *options)
    subprocess.run(["umount", str(tmp_path / "disk")], capture_output=True)


def disk_bytes(folder):
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))


@pytest.mark.parametrize("share", [0.5, 1.5, 2.3])
def test_a_full_disk_costs_no_earlier_checkpoint(nursery, settings, straight, tmp_path, small_disk, share):
    own = [*settings, *SETTINGS["full"], *BY_STEPS]
    expected, size = straight(*SETTINGS["full"], *BY_STEPS)
    disk, log = small_disk(int(size * share) + 40_000), tmp_path / "cut.log"
    argv = [*own, "--output_dir", str(disk / "run")]
    assert nursery.run(argv, log) == 2, log.read_text()
    line = log.read_text().splitlines()[-1]
    assert line.startswith("error: Expected "), log.read_text()
    assert "bytes free in" in line
    kept = [path.name for path in (disk / "run").glob("checkpoints/checkpoint-*")]
    assert kept == {0.5: [], 1.5: ["checkpoint-10"]}.get(share, kept)
    subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
    assert nursery.run(argv, log) == 0, log.read_text()
    assert ("resuming from" in log.read_text()) == (share > 1)
    assert_equal(outcome(disk / "run"), expected)


def test_a_read_only_directory_is_said_before_training(nursery, settings, tmp_path, small_disk):
    disk, log = small_disk("1m", "ro"), tmp_path / "log"
    assert nursery.run([*settings, "--output_dir", str(disk / "run")], log) == 2
    (line,) = log.read_text().splitlines()
    assert line == (
        f"error: Expected to make --output_dir '{disk}/run', but got: Read-only file system. Pass another one."
    )


def test_a_step_without_a_finite_loss_is_left_out_and_three_end_the_run(nursery, settings, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    argv = [*settings, *SETTINGS["full"], *BY_STEPS, "--output_dir", str(run)]
    loss = "finetune.training.loss:ExampleLoss.__call__"
    assert nursery.run(argv, log, [("nan", loss, number) for number in (25, 26, 27)]) == 2
    text = log.read_text()
    assert text.count("the step is left out") == 2
    steps = [int(step) for step in re.findall(r"the loss of step (\d+) is NaN or infinite, on train\.csv-", text)]
    assert steps == [steps[0], steps[0] + 1, steps[0] + 2]
    assert steps[0] > 20  # the loss is also computed before the first step, to see what the model does
    assert "in 3 steps in a row" in text.splitlines()[-1]
    assert nursery.run(argv, log) == 0
    assert "checkpoints/checkpoint-20" in log.read_text()
    weights = load_file(run / "model/model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_weights_that_blow_up_are_never_checkpointed(nursery, settings, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    own = ["--learning_rate", "1e38", "--warmup_steps", "0", "--max_grad_norm", "0", "--optim", "sgd"]
    argv = [*settings, *SETTINGS["full"], *BY_STEPS, *own, "--output_dir", str(run)]
    assert nursery.run(argv, log) == 2, log.read_text()
    assert "Traceback" not in log.read_text()
    for path in run.glob("checkpoints/checkpoint-*/model.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values()), path


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model whose activations are large for its size, and 64 long texts."""
    folder = tmp_path_factory.mktemp("wide")
    write_tiny_bert(folder)
    tokenizer = BertTokenizerFast.from_pretrained(folder, model_max_length=128)
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=2048,
        max_position_embeddings=128, hidden_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    rows = [(" ".join([text, *OTHER * 8])[:600], label) for text, label in make_reviews(64)]
    return ["--model_name_or_path", str(folder), "--max_length", "128", "--bf16", "false", "--num_threads", "1",
            "--train_file", write_csv(folder / "train.csv", rows), "--per_device_train_batch_size", "64",
            "--max_steps", "2", "--max_tokens_per_micro_batch", "8192", "--no_floor", "--eval_strategy", "no",
            "--save_strategy", "no", "--load_best_model_at_end", "false", "--warmup_steps", "0"]  # fmt: skip


def test_memory_that_does_not_suffice_halves_the_micro_batches(nursery, reviews, wide, tmp_path):
    others = [word for name in ("--validation_file", "--test_file") for word in (name, reviews[name])]
    weights = {}
    for name, faults in (("free", []), ("bound", [(f"memory {250 * 2**20}", STEP, 1)])):
        log = tmp_path / f"{name}.log"
        assert nursery.run([*wide, *others, "--output_dir", str(tmp_path / name)], log, faults) == 0, log.read_text()
        assert ("out of memory in step 1" in log.read_text()) == bool(faults)
        weights[name] = load_file(tmp_path / name / "model/model.safetensors")
    for name, tensor in weights["free"].items():
        np.testing.assert_allclose(weights["bound"][name], tensor, atol=2e-5, err_msg=name)


def test_memory_that_does_not_suffice_halves_the_batches_of_an_evaluation(nursery, reviews, wide, tmp_path):
    rows = [(" ".join([text, *OTHER * 8])[:600], label) for text, label in make_reviews(64, 300)]
    long = write_csv(tmp_path / "long.csv", rows)
    own = ["--train_file", reviews["--train_file"], "--validation_file", long, "--test_file", reviews["--test_file"],
           "--eval_strategy", "epoch"]  # fmt: skip
    losses = {}
    for name, faults in (("free", []), ("bound", [(f"memory {100 * 2**20}", EVALUATION, 1)])):
        log = tmp_path / f"{name}.log"
        assert nursery.run([*wide, *own, "--output_dir", str(tmp_path / name)], log, faults) == 0, log.read_text()
        assert ("out of memory: from now on at most" in log.read_text()) == bool(faults)
        history = [json.loads(line) for line in (tmp_path / name / "history.jsonl").read_text().splitlines()]
        losses[name] = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert len(losses["free"]) == 2
    assert losses["bound"] == pytest.approx(losses["free"], abs=1e-5)


def test_memory_for_not_even_one_text_ends_with_one_line(nursery, reviews, wide, tmp_path):
    others = [word for name in ("--validation_file", "--test_file") for word in (name, reviews[name])]
    log = tmp_path / "log"
    status = nursery.run([*wide, *others, "--output_dir", str(tmp_path / "run")], log, [("memory 0", STEP, 1)])
    assert status == 2, log.read_text()
    assert log.read_text().splitlines()[-1].startswith("error: Expected ")
    record = tmp_path / "run/run.json"  # is there if the memory sufficed for training, and not for what comes after
    assert not record.exists() or json.loads(record.read_text())["status"] != "complete"


def main():
    """Kill, tamper with and starve runs at random, resume each to its end, and count those that end the same."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--kills", type=int, default=30, help="for each of the methods")
    parser.add_argument("--methods", default="full,unfreezing,lora,textcnn")
    parser.add_argument("--changed_files", action="store_true", help="each file of a checkpoint, in three ways")
    parser.add_argument("--full_disks", type=int, default=0, help="of random sizes; takes root")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_json")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    counts = {}

    def note(name, count):
        counts[name] = count
        print(name, json.dumps(count), flush=True)
        if arguments.output_json:
            Path(arguments.output_json).write_text(json.dumps(counts, indent=2) + "\n")

    with tempfile.TemporaryDirectory() as name, Nursery() as nursery:
        folder = Path(name)
        flags = ["--model_name_or_path", write_tiny_bert(folder / "bert"), "--max_length", "24", "--bf16", "false",
                 "--num_threads", "1", "--num_train_epochs", "3", "--per_device_train_batch_size", "4", "--no_floor",
                 "--logging_steps", "7"]  # fmt: skip
        for split, count, offset in (("train", 60, 0), ("validation", 20, 100), ("test", 30, 200)):
            flags += [f"--{split}_file", write_csv(folder / f"{split}.csv", make_reviews(count, offset))]
        straight = folder / "straight"
        for method in arguments.methods.split(",") if arguments.kills else ():
            own = [*flags, *SETTINGS[method], *BY_STEPS]
            for _ in range(2):  # the first one fills the caches
                end(nursery, [*own, "--restart", "--output_dir", str(straight)], folder)
            count_kills(nursery, own, nursery.seconds, outcome(straight), arguments.kills, draw, folder, note, method)
        own = [*flags, *SETTINGS["full"], *BY_STEPS]
        if arguments.changed_files or arguments.full_disks:
            end(nursery, [*own, "--restart", "--output_dir", str(straight)], folder)
        if arguments.changed_files:
            note("changed files", count_changed_files(nursery, own, outcome(straight), draw, folder))
        if arguments.full_disks:
            size = disk_bytes(straight)
            note("full disks", count_full_disks(nursery, own, outcome(straight), size, arguments.full_disks, draw, folder))  # fmt: skip # noqa: E501
    return any(count["equal"] < count["trials"] for count in counts.values())


def end(nursery, argv, folder):
    """Run to the end; gives what was printed."""
    status, text = nursery.run(argv, folder / "log"), (folder / "log").read_text()
    assert status == 0, text
    return text


def count_kills(nursery, own, seconds, expected, kills, draw, folder, note, name):
    """Kill at moments uniform over the processor time of a whole run, and resume."""
    count = {"trials": 0, "equal": 0, "resumed from a checkpoint": 0, "killed during": {}}
    cut = folder / "cut"
    while count["trials"] < kills:
        argv = [*own, "--output_dir", str(cut)]
        status = nursery.run(argv, folder / "log", kill_after=draw.uniform(0, seconds))
        if status == -signal.SIGKILL:
            phase = nursery.phase
            record = cut / "run.json"
            if record.exists() and json.loads(record.read_text())["status"] == "complete":
                assert_equal(outcome(cut), expected)  # nothing was left to do but to print the summary
                shutil.rmtree(cut)
                continue
            text = end(nursery, argv, folder)
            count["trials"] += 1
            count["equal"] += outcome(cut) == expected
            count["resumed from a checkpoint"] += "resuming from" in text
            count["killed during"][phase] = count["killed during"].get(phase, 0) + 1
            note(name, count)
        else:
            assert status == 0, (folder / "log").read_text()
        shutil.rmtree(cut)


def count_changed_files(nursery, own, expected, draw, folder):
    """Change each file of the newest checkpoint, and resume from the one before."""
    count = {"trials": 0, "equal": 0, "skipped and said": 0, "files": 0}
    cut, kept = folder / "cut", folder / "kept"
    argv = [*own, "--save_total_limit", "9", "--output_dir", str(cut)]
    assert nursery.run(argv, folder / "log", [("SIGKILL", STEP, 33)]) == -signal.SIGKILL
    cut.rename(kept)
    for path in sorted((kept / "checkpoints/checkpoint-30").iterdir()):
        count["files"] += 1
        for how in ("removed", "truncated", "flipped"):
            shutil.copytree(kept, cut)
            broken = cut / "checkpoints/checkpoint-30" / path.name
            content = bytearray(path.read_bytes())
            where = draw.randrange(len(content))
            if how == "removed":
                broken.unlink()
            elif how == "truncated":
                broken.write_bytes(content[:where])
            else:
                content[where] ^= 1 << draw.randrange(8)
                broken.write_bytes(content)
            text = end(nursery, argv, folder)
            count["trials"] += 1
            count["equal"] += outcome(cut) == expected
            from_earlier = f"resuming from {cut}/checkpoints/checkpoint-20"
            count["skipped and said"] += f"warning: skipped {broken.parent}: " in text and from_earlier in text
            shutil.rmtree(cut)
    return count


def count_full_disks(nursery, own, expected, size, trials, draw, folder):
    """Run on a disk that is too small, make it larger, and resume."""
    count = {"trials": 0, "equal": 0, "one line": 0, "bytes needed": 0, "resumed from a checkpoint": 0}
    disk = folder / "disk"
    disk.mkdir()
    while count["trials"] < trials:
        options = f"size={draw.randrange(8192, 2 * size)}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], check=True)
        try:
            argv = [*own, "--output_dir", str(disk / "run")]
            status = nursery.run(argv, folder / "log")
            lines = (folder / "log").read_text().splitlines()
            if status == 0:
                continue
            subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
            text = end(nursery, argv, folder)
            count["trials"] += 1
            count["equal"] += outcome(disk / "run") == expected
            errors = [line for line in lines if line.startswith("error: ")]
            is_said = status == 2 and len(errors) == 1 and not any("Traceback" in line for line in lines)
            count["one line"] += is_said
            count["bytes needed"] += is_said and re.search(r"Expected [\d,]+ bytes free ", errors[0]) is not None
            if not is_said:
                print("\n".join(lines), flush=True)
            count["resumed from a checkpoint"] += "resuming from" in text
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    return count


if __name__ == "__main__":
    sys.exit(main())
