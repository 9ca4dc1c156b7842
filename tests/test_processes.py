"""Several processes over gloo, as `accelerate launch` starts them: they train and measure as one does."""

import json
import subprocess
import sys
import time

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, make_reviews, write_csv
from safetensors.numpy import load_file
from transformers import BertConfig, BertModel

CONFIG = ROOT / "accelerate_configs/cpu_two_processes.yaml"
METHODS = {
    "full": [],
    "unfreezing": ["--unfreeze_every", "0.5"],
    "lora": ["--lora_dropout", "0"],
    "textcnn": ["--textcnn_dropout", "0"],
}
NUM_STEPS = 14  # two epochs of 53 rows, 8 at a step


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_bert):
    """Run directories by method and number of processes: the same global steps, two accumulation steps each."""
    folder = tmp_path_factory.mktemp("processes")
    still = BertConfig.from_pretrained(tiny_bert, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    BertModel.from_pretrained(tiny_bert, config=still).save_pretrained(folder / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "model" / name).write_bytes((ROOT / tiny_bert / name).read_bytes())
    data = {
        "--train_file": write_csv(folder / "train.csv", make_reviews(53)),
        "--validation_file": write_csv(folder / "validation.csv", make_reviews(21, offset=100)),
        "--test_file": write_csv(folder / "test.csv", make_reviews(31, offset=200)),  # divisible by neither 2 nor 4
    }
    common = [word for pair in data.items() for word in pair]
    common += ["--model_name_or_path", str(folder / "model"), "--max_length", "24", "--num_threads", "1",
               "--bf16", "false", "--num_train_epochs", "2", "--gradient_accumulation_steps", "2",
               "--logging_steps", "1", "--eval_strategy", "epoch", "--save_strategy", "epoch",
               "--max_tokens_per_micro_batch", "40", "--learning_rate", "1e-3", "--no_floor"]  # fmt: skip
    for num_processes in (1, 2, 4):
        own = ["--per_device_train_batch_size", str(4 // num_processes)]
        plan = [
            [*common, *own, "--method", method if method in ("lora", "textcnn") else "full", *flags,
             "--output_dir", str(folder / f"{method}-{num_processes}")]
            for method, flags in METHODS.items()
        ]  # fmt: skip
        (folder / "plan.json").write_text(json.dumps(plan))
        launch(num_processes, str(folder / "plan.json"))
    return folder


def launch_command(num_processes, plan):
    config = ROOT / f"accelerate_configs/{'cpu' if num_processes == 1 else 'cpu_two_processes'}.yaml"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    launcher += ["--main_process_port", "0", "--num_processes", str(num_processes)]
    return [*launcher, str(ROOT / "tests/train_in_processes.py"), plan]


def launch(num_processes, plan):
    done = subprocess.run(launch_command(num_processes, plan), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done


def history(run, key):
    entries = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return [entry[key] for entry in entries if key in entry]


@pytest.mark.parametrize("num_processes", [2, 4])
@pytest.mark.parametrize("method", METHODS)
def test_processes_train_and_measure_as_one(runs, method, num_processes):
    alone, shared = runs / f"{method}-1", runs / f"{method}-{num_processes}"
    losses = history(alone, "loss")
    assert len(losses) == NUM_STEPS
    np.testing.assert_allclose(history(shared, "loss"), losses, atol=1e-5, rtol=0)
    np.testing.assert_allclose(history(shared, "grad_norm"), history(alone, "grad_norm"), rtol=1e-3)
    assert history(shared, "eval_accuracy") == history(alone, "eval_accuracy")

    weights = "adapter_model.safetensors" if method == "lora" else "model.safetensors"
    expected, found = (load_file(run / "model" / weights) for run in (alone, shared))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name], tensor, atol=1e-4, rtol=0, err_msg=name)

    records = [json.loads((run / "run.json").read_text()) for run in (alone, shared)]
    assert [record["environment"]["num_processes"] for record in records] == [1, num_processes]
    assert records[0]["costs"]["train_tokens"] == records[1]["costs"]["train_tokens"]
    for split, num_examples in (("validation", 21), ("test", 31)):
        metrics = [record["metrics"][split] for record in records]
        assert metrics[1]["num_examples"] == num_examples
        for name in ("accuracy", "macro_f1", "mcc", "balanced_accuracy", "per_class"):
            assert metrics[1][name] == metrics[0][name], name
        tables = [pq.read_table(run / f"predictions/{split}.parquet").to_pydict() for run in (alone, shared)]
        assert tables[1]["id"] == tables[0]["id"]
        np.testing.assert_allclose(tables[1]["logits"], tables[0]["logits"], atol=1e-4)


def test_unfrozen_layers_moved(runs):
    frozen = load_file(runs / "model/model.safetensors")
    for num_processes in (1, 2, 4):
        trained = load_file(runs / f"unfreezing-{num_processes}/model/model.safetensors")
        moved = {name for name, tensor in frozen.items() if np.abs(trained[f"bert.{name}"] - tensor).max() > 1e-6}
        assert {name.split(".")[0] for name in moved} >= {"embeddings", "encoder"}


def test_a_dead_process_ends_the_job_and_it_resumes(runs, tmp_path):
    plan = json.loads((runs / "plan.json").read_text())[list(METHODS).index("textcnn")]
    plan += ["--num_train_epochs", "60", "--save_strategy", "steps", "--eval_strategy", "steps", "--save_steps", "20",
             "--eval_steps", "20", "--per_device_train_batch_size", "2"]  # the last of two flags counts  # fmt: skip
    directories = {name: tmp_path / name for name in ("straight", "cut")}
    for name, directory in directories.items():
        plan[plan.index("--output_dir") + 1] = str(directory)
        (tmp_path / f"{name}.json").write_text(json.dumps([plan]))
    launch(2, str(tmp_path / "straight.json"))

    cut = directories["cut"]
    process = subprocess.Popen(
        launch_command(2, str(tmp_path / "cut.json")), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
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
    assert process.returncode != 0
    assert "Expected 2 processes, but one ended" in errors or "exitcode  : -9" in errors, errors
    assert not (cut / "model").exists(), "the run ended before a process of it could be killed"

    launch(2, str(tmp_path / "cut.json"))
    weights = [load_file(directory / "model/model.safetensors") for directory in directories.values()]
    for name, tensor in weights[0].items():
        np.testing.assert_array_equal(weights[1][name], tensor, err_msg=name)


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
