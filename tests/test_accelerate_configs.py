"""The files in `accelerate_configs/`: what accelerate makes of them, and two steps with each that needs GPUs."""

import importlib.util
import json
import shlex
import subprocess
import sys

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from conftest import ROOT

PATHS = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
DDP, FSDP, DEEPSPEED = DistributedType.MULTI_GPU, DistributedType.FSDP, DistributedType.DEEPSPEED
KINDS = {
    "cpu": DistributedType.NO,
    "cpu_two_processes": DDP,
    "deepspeed_zero2": DEEPSPEED,
    "deepspeed_zero3": DEEPSPEED,
    "fsdp2": FSDP,
    "multi_node": DDP,
    "several_gpus": DDP,
    "single_gpu": DistributedType.NO,
}
LAUNCH = "accelerate launch "


def command_of(path):
    """Return the words of the launch line at the file's top, after `accelerate launch`."""
    lines = [line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("# ")]
    return shlex.split(next(line for line in lines if line.startswith(LAUNCH)))[2:]


def parse(path):
    """Parse the launch line as the launcher does, without starting anything."""
    words = command_of(path)
    assert words[:2] == ["--config_file", f"accelerate_configs/{path.name}"]
    words[1] = str(path)
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert (ROOT / arguments.training_script).is_file()
    if arguments.use_deepspeed:  # what `launch_command` adds before it builds the environment
        arguments.deepspeed_fields_from_accelerate_config = ",".join(load_config_from_file(str(path)).deepspeed_config)
    return arguments


def test_every_file_is_known():
    assert {path.stem for path in PATHS} == KINDS.keys()


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_accelerate_takes_the_file_and_the_command_at_its_top(path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: not path.stem.startswith("cpu"))
    config = load_config_from_file(str(path))  # refuses keys that it does not know
    assert config.distributed_type == KINDS[path.stem]
    arguments = parse(path)
    assert arguments.use_cpu == path.stem.startswith("cpu")
    assert arguments.num_processes == (1 if KINDS[path.stem] == DistributedType.NO else arguments.num_processes)


def test_what_the_processes_are_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    fsdp = prepare_multi_gpu_env(parse(ROOT / "accelerate_configs/fsdp2.yaml"))
    told = ("ACCELERATE_USE_FSDP", "FSDP_VERSION", "FSDP_STATE_DICT_TYPE", "FSDP_AUTO_WRAP_POLICY")
    assert [fsdp[name] for name in told] == ["true", "2", "FULL_STATE_DICT", "TRANSFORMER_BASED_WRAP"]
    for stage in (2, 3):
        _, zero = prepare_deepspeed_cmd_env(parse(ROOT / f"accelerate_configs/deepspeed_zero{stage}.yaml"))
        assert zero["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == str(stage)
        assert zero["ACCELERATE_USE_DEEPSPEED"] == "true"
        assert zero["ACCELERATE_MIXED_PRECISION"] == "bf16"
    node = parse(ROOT / "accelerate_configs/multi_node.yaml")
    assert (node.num_machines, node.machine_rank, node.main_process_ip) == (2, 0, "10.0.0.1")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["single_gpu", "several_gpus", "multi_node", "fsdp2", "deepspeed_zero2",
                                  "deepspeed_zero3"])  # fmt: skip
def test_two_steps_on_gpus(name, reviews, tiny_bert, tmp_path):
    wanted = 1 if name == "single_gpu" else 2
    if torch.cuda.device_count() < wanted:
        pytest.skip(f"needs {wanted} GPUs")
    if name.startswith("deepspeed") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("needs DeepSpeed")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file",
                str(ROOT / f"accelerate_configs/{name}.yaml"), "--num_processes", str(wanted)]  # fmt: skip
    launcher += ["--num_machines", "1"] if name == "multi_node" else []  # both processes on this host
    data = [word for pair in reviews.items() for word in pair]
    command = [*launcher, str(ROOT / "recipes/classify.py"), *data, "--model_name_or_path", tiny_bert, "--method",
               "full", "--max_length", "24", "--max_steps", "2", "--save_strategy", "steps", "--save_steps", "1",
               "--eval_strategy", "steps", "--eval_steps", "1", "--no_floor",
               "--output_dir", str(tmp_path / "run")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["status"] == "complete"
    assert record["costs"]["train_steps"] == 2
    assert record["environment"]["num_processes"] == wanted
    assert record["reload"]["max_difference"] < 1e-4
