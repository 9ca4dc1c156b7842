"""Two hosts, as two network namespaces joined by a cable: they train as one process does, and survive a cut."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, make_reviews, write_csv
from safetensors.numpy import load_file

CONFIG = ROOT / "accelerate_configs/multi_node.yaml"
ADDRESSES = ["10.77.0.1", "10.77.0.2"]


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True)


@pytest.fixture
def hosts():
    """The names of two network namespaces; `ft-cable-0` and `ft-cable-1` are the ends of what joins them."""
    names = ["ft-host-0", "ft-host-1"]
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and iproute2")
    try:
        ip("netns", "add", names[0])
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr}")
    ip("netns", "add", names[1])
    ip("link", "add", "ft-cable-0", "type", "veth", "peer", "name", "ft-cable-1")
    for number, name in enumerate(names):
        ip("link", "set", f"ft-cable-{number}", "netns", name)
        ip("-n", name, "addr", "add", f"{ADDRESSES[number]}/24", "dev", f"ft-cable-{number}")
        ip("-n", name, "link", "set", f"ft-cable-{number}", "up")
        ip("-n", name, "link", "set", "lo", "up")
    yield names
    for name in names:
        for process in ip("netns", "pids", name).stdout.split():  # of a test that failed
            os.kill(int(process), signal.SIGKILL)
        ip("netns", "delete", name)


def start(hosts, plan):
    """Start one process on each host, as the header of the configuration says."""
    processes = []
    for number, name in enumerate(hosts):
        command = ["ip", "netns", "exec", name, sys.executable, "-m", "accelerate.commands.launch", "--config_file",
                   str(CONFIG), "--machine_rank", str(number), "--main_process_ip", ADDRESSES[0],
                   str(ROOT / "tests/train_in_processes.py"), str(plan)]  # fmt: skip
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": f"ft-cable-{number}"}
        processes.append(
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
        )
    return processes


def finish(processes, seconds):
    deadline = time.monotonic() + seconds
    return [process.communicate(timeout=deadline - time.monotonic())[1] for process in processes]


@pytest.mark.slow
def test_two_hosts_train_as_one_and_resume_after_a_cut(hosts, classify, tmp_path):
    data = {
        "--train_file": write_csv(tmp_path / "train.csv", make_reviews(53)),
        "--validation_file": write_csv(tmp_path / "validation.csv", make_reviews(21, offset=100)),
        "--test_file": write_csv(tmp_path / "test.csv", make_reviews(31, offset=200)),
    }
    settings = [word for pair in data.items() for word in pair]
    settings += ["--method", "textcnn", "--textcnn_dropout", "0", "--bf16", "false", "--num_threads", "1",
                 "--max_length", "24", "--early_stopping_patience", "0",
                 "--num_train_epochs", "30", "--save_strategy", "steps", "--save_steps", "20",
                 "--eval_strategy", "steps", "--eval_steps", "20", "--logging_steps", "1", "--no_floor"]  # fmt: skip
    plans = {}
    for name in ("whole", "cut"):
        plans[name] = tmp_path / f"{name}.json"
        flags = [*settings, "--per_device_train_batch_size", "4", "--output_dir", str(tmp_path / name)]
        plans[name].write_text(json.dumps([flags]))
    classify.main([*settings, "--per_device_train_batch_size", "8", "--output_dir", str(tmp_path / "alone")])

    processes = start(hosts, plans["whole"])
    errors = finish(processes, 240)
    assert [process.returncode for process in processes] == [0, 0], errors
    compare(tmp_path / "alone", tmp_path / "whole", 1e-4)
    record = json.loads((tmp_path / "whole/run.json").read_text())
    assert record["environment"]["num_processes"] == 2

    processes = start(hosts, plans["cut"])
    deadline = time.monotonic() + 300
    while not (tmp_path / "cut/checkpoints/checkpoint-40").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    ip("-n", hosts[1], "link", "set", "ft-cable-1", "down")
    errors = finish(processes, 150)
    assert all(process.returncode for process in processes)
    for error in errors:
        assert "Expected 2 processes, but one ended or its host can't be reached" in error, error
    assert not (tmp_path / "cut/model").exists()

    ip("-n", hosts[1], "link", "set", "ft-cable-1", "up")
    processes = start(hosts, plans["cut"])
    errors = finish(processes, 240)
    assert [process.returncode for process in processes] == [0, 0], errors
    compare(tmp_path / "whole", tmp_path / "cut", 0)


def compare(expected, found, tolerance):
    weights = load_file(found / "model/model.safetensors")
    for name, tensor in load_file(expected / "model/model.safetensors").items():
        np.testing.assert_allclose(weights[name], tensor, atol=tolerance, rtol=0, err_msg=name)
