"""Several processes over gloo, as `accelerate launch` starts them: they train and measure as one does."""

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, find_weights, make_reviews, write_csv
from safetensors.numpy import load_file
from transformers import BertConfig, BertForMaskedLM, BertModel

from finetune.cli import main as finetune_command
from finetune.errors import FinetuneError

CONFIG = ROOT / "accelerate_configs/cpu_two_processes.yaml"
SHARDED = ROOT / "accelerate_configs/fsdp2.yaml"
METHODS = {
    "full": ["--method", "full"],
    "unfreezing": ["--method", "full", "--unfreeze_every", "0.5"],
    "lora": ["--method", "lora", "--lora_dropout", "0"],
    "head": ["--method", "head"],
    "textcnn": ["--method", "textcnn", "--textcnn_dropout", "0"],
    "pretrained": ["--method", "full", "--pretrain_epochs", "1"],
    "streamed": ["--method", "textcnn", "--textcnn_dropout", "0", "--streaming"],
}
EXAMPLES = 8  # in a step, over all processes and two accumulation steps
NUM_STEPS = 14  # two epochs of 53 rows
MOST = {"validation": 21, "test": 31}  # divisible by neither 2 nor 4
NUM_MANY = 5_000  # two chunks, each of several batches
LONG = ["--num_train_epochs", "20", "--save_strategy", "steps", "--eval_strategy", "steps", "--save_steps", "20",
        "--eval_steps", "20", "--early_stopping_patience", "0"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_bert):
    """Three files, the training rows also as two shards, and a model without dropout."""
    folder = tmp_path_factory.mktemp("processes")
    still = BertConfig.from_pretrained(tiny_bert, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    BertModel.from_pretrained(tiny_bert, config=still).save_pretrained(folder / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "model" / name).write_bytes((ROOT / tiny_bert / name).read_bytes())
    shutil.copytree(folder / "model", folder / "masked")
    BertForMaskedLM(still).save_pretrained(folder / "masked")
    rows = make_reviews(53)
    write_csv(folder / "train.csv", rows)
    write_csv(folder / "validation.csv", make_reviews(MOST["validation"], offset=100))
    write_csv(folder / "test.csv", make_reviews(MOST["test"], offset=200))
    (folder / "shards").mkdir()
    for shard, part in enumerate((rows[:10], rows[10:])):
        texts, labels = zip(*part, strict=True)
        pq.write_table(pa.table({"text": texts, "label": labels}), folder / f"shards/{shard}.parquet")
    return folder


def flags_of(folder, name, num_processes, directory, *extra):
    train = folder / ("shards" if name == "streamed" else "train.csv")
    model = folder / ("masked" if name == "pretrained" else "model")
    return [
        "--train_file", str(train), "--validation_file", str(folder / "validation.csv"),
        "--test_file", str(folder / "test.csv"), "--model_name_or_path", str(model),
        "--max_length", "24", "--num_threads", "1", "--bf16", "false", "--num_train_epochs", "2",
        "--gradient_accumulation_steps", "2", "--per_device_train_batch_size", str(EXAMPLES // 2 // num_processes),
        "--logging_steps", "1", "--eval_strategy", "epoch", "--save_strategy", "epoch", "--learning_rate", "1e-3",
        "--max_tokens_per_micro_batch", "40", "--no_floor", *METHODS[name], *extra, "--output_dir", str(directory),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def alone(folder, classify):
    """Run directories by method, of one process."""
    for name in METHODS:
        classify.main(flags_of(folder, name, 1, folder / f"{name}-1"))
    return folder


@pytest.fixture(scope="module")
def by_two(folder):
    """Run directories by method, of two processes, a longer run, "straight", and a large file's predictions."""
    write_csv(folder / "many.csv", make_reviews(NUM_MANY))
    plan = [flags_of(folder, name, 2, folder / f"{name}-2") for name in METHODS]
    plan.append(flags_of(folder, "textcnn", 2, folder / "straight", *LONG))
    launch(2, write_plan(folder / "two.json", [*plan, prediction(folder, 2)]))
    return folder


def prediction(folder, num_processes):
    return ["predict", str(folder / "textcnn-2"), "--input_file", str(folder / "many.csv"), "--output_file",
            str(folder / f"labelled-{num_processes}.csv"), "--num_threads", "1"]  # fmt: skip


@pytest.fixture(scope="module")
def by_four(folder):
    """Run directories by method, of four processes."""
    launch(4, write_plan(folder / "four.json", [flags_of(folder, name, 4, folder / f"{name}-4") for name in METHODS]))
    return folder


def write_plan(path, plan):
    path.write_text(json.dumps(plan))
    return path


def launch_command(num_processes, plan, config=CONFIG, script="train_in_processes.py"):
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    launcher += ["--main_process_port", "0", "--num_processes", str(num_processes)]
    return [*launcher, str(ROOT / "tests" / script), str(plan)]


def launch(num_processes, plan, environment=None, **more):
    command = launch_command(num_processes, plan, **more)
    environment = {**os.environ, **(environment or {})}
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done


def history(run, key):
    entries = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return [entry[key] for entry in entries if key in entry]


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_train_and_measure_as_one(alone, by_two, method):
    compare(alone / f"{method}-1", by_two / f"{method}-2", 2)


@pytest.mark.slow
def test_a_changed_learning_rate_holds_in_every_process(alone, by_two, classify, tmp_path):
    """Of runs that end after their first epoch and go on with another rate."""
    changed = ["--learning_rate", "1e-2", "--lr_scheduler_type", "constant", "--resume_with_changes"]
    plans = {}
    for number, base in ((1, alone), (2, by_two)):
        run = shutil.copytree(base / f"full-{number}", tmp_path / f"full-{number}")
        shutil.rmtree(run / f"checkpoints/checkpoint-{NUM_STEPS}")
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({**record, "status": "running"}))
        plans[number] = flags_of(base, "full", number, run, *changed)
    classify.main(plans[1])
    launch(2, write_plan(tmp_path / "plan.json", [plans[2]]))
    assert history(tmp_path / "full-2", "learning_rate")[-1] == 1e-2
    compare(tmp_path / "full-1", tmp_path / "full-2", 2)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_four_processes_train_and_measure_as_one(alone, by_four, method):
    compare(alone / f"{method}-1", by_four / f"{method}-4", 4)


def test_divided_weights_train_and_measure_as_whole_ones(alone, tmp_path):
    """FSDP 2: full fine-tuning, and an adapter, whose frozen weights are divided as well."""
    methods = ("full", "lora")
    plan = [flags_of(alone, name, 2, tmp_path / f"{name}-2") for name in methods]
    launch(2, write_plan(tmp_path / "plan.json", plan), config=SHARDED, script="sharded_on_cpu.py")
    for name in methods:
        compare(alone / f"{name}-1", tmp_path / f"{name}-2", 2)
        config = tmp_path / f"{name}-2/model/config.json"
        assert not config.exists() or "FSDP" not in config.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_zero_trains_and_measures_as_whole_weights_do(alone, tmp_path, stage):
    """DeepSpeed, in float32, on the CPU."""
    pytest.importorskip("deepspeed", reason="needs DeepSpeed")
    config = tmp_path / "zero.yaml"
    file = ROOT / f"accelerate_configs/deepspeed_zero{stage}.yaml"
    config.write_text(file.read_text().replace("mixed_precision: bf16", 'mixed_precision: "no"'))
    methods = ("full", "lora")
    plan = [flags_of(alone, name, 2, tmp_path / f"{name}-2") for name in methods]
    launch(2, write_plan(tmp_path / "plan.json", plan), config=config, environment={"DS_ACCELERATOR": "cpu"})
    for name in methods:
        compare(alone / f"{name}-1", tmp_path / f"{name}-2", 2)


def compare(one, several, num_processes):
    losses = history(one, "loss")
    assert len(losses) == NUM_STEPS
    np.testing.assert_allclose(history(several, "loss"), losses, atol=1e-5, rtol=0)
    np.testing.assert_allclose(history(several, "grad_norm"), history(one, "grad_norm"), rtol=1e-3)
    assert history(several, "eval_accuracy") == history(one, "eval_accuracy")

    weights = find_weights(one / "model").name
    for part in ("model", f"checkpoints/checkpoint-{NUM_STEPS}"):  # the best by validation, and the last
        expected, found = (load_file(run / part / weights) for run in (one, several))
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            np.testing.assert_allclose(found[name], tensor, atol=1e-4, rtol=0, err_msg=name)

    records = [json.loads((run / "run.json").read_text()) for run in (one, several)]
    assert [record["environment"]["num_processes"] for record in records] == [1, num_processes]
    assert records[0]["costs"]["train_tokens"] == records[1]["costs"]["train_tokens"]
    for split, num_examples in MOST.items():
        metrics = [record["metrics"][split] for record in records]
        assert metrics[1]["num_examples"] == num_examples
        for name in ("accuracy", "macro_f1", "mcc", "balanced_accuracy", "per_class"):
            assert metrics[1][name] == metrics[0][name], name
        tables = [pq.read_table(run / f"predictions/{split}.parquet").to_pydict() for run in (one, several)]
        assert tables[1]["id"] == tables[0]["id"]
        # Weights that differ in their last bits can round a logit in bfloat16 to the number beside it.
        precision = records[0]["environment"]["prediction_precision"]
        rtol = 2**-7 if precision == "bf16" else 1e-7
        np.testing.assert_allclose(tables[1]["logits"], tables[0]["logits"], atol=1e-4, rtol=rtol)


def test_unfrozen_layers_moved(by_two):
    frozen = load_file(by_two / "model/model.safetensors")
    trained = load_file(by_two / f"unfreezing-2/checkpoints/checkpoint-{NUM_STEPS}/model.safetensors")
    moved = {name for name, tensor in frozen.items() if np.abs(trained[f"bert.{name}"] - tensor).max() > 1e-6}
    assert {name.split(".")[0] for name in moved} >= {"embeddings", "encoder"}


def test_a_file_is_labelled_by_two_processes_as_by_one(by_two):
    finetune_command(prediction(by_two, 1))
    labelled = (by_two / "labelled-2.csv").read_bytes()
    assert labelled.count(b"\n") == NUM_MANY + 1
    assert labelled == (by_two / "labelled-1.csv").read_bytes()


def test_a_dead_process_ends_the_job_and_it_resumes(by_two, classify, tmp_path):
    cut = tmp_path / "cut"
    plan = write_plan(tmp_path / "plan.json", [flags_of(by_two, "textcnn", 2, cut, *LONG)])
    process = subprocess.Popen(launch_command(2, plan), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        wait_for(lambda: (cut / "checkpoints/checkpoint-40").exists())
        second = next(
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if child.environ().get("LOCAL_RANK") == "1"
        )
        second.kill()
        killed = time.monotonic()
        _, errors = process.communicate(timeout=150)
        assert time.monotonic() - killed < 150
    finally:
        process.terminate()  # which the launcher hands on
    assert process.returncode != 0
    assert "Expected 2 processes, but one ended" in errors or "exitcode  : -9" in errors, errors
    assert not (cut / "model").exists(), "the run ended before a process of it could be killed"

    shutil.copytree(cut, tmp_path / "copy")
    with pytest.raises(FinetuneError, match=r"these differ: num_processes \(2 then, 1 now\)"):
        classify.main(flags_of(by_two, "textcnn", 2, tmp_path / "copy", *LONG))

    launch(2, plan)
    weights = [load_file(directory / "model/model.safetensors") for directory in (by_two / "straight", cut)]
    for name, tensor in weights[0].items():
        np.testing.assert_array_equal(weights[1][name], tensor, err_msg=name)


def wait_for(condition, seconds=400):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
