"""Several processes over gloo, as `accelerate launch` starts them: they train and measure as one does."""

import json
import os
import subprocess
import sys

import numpy as np
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
        done = launch(num_processes, str(folder / "plan.json"))
        assert done.returncode == 0, done.stderr
    return folder


def launch(num_processes, plan):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG), "--main_process_port",
               "0", "--num_processes", str(num_processes)]  # fmt: skip
    if num_processes == 1:
        command[command.index(str(CONFIG))] = str(ROOT / "accelerate_configs/cpu.yaml")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command += [str(ROOT / "tests/train_in_processes.py"), plan]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


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
