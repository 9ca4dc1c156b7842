"""What a launcher or the environment says is taken and recorded, or refused; what is recorded is what ran."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DynamoBackend, TorchDynamoPlugin
from conftest import ROOT
from test_arguments import parse

from finetune.errors import FinetuneError
from finetune.hardware import measure_precision
from finetune.run.describe import describe_computation


def test_the_launcher_s_compiler_is_a_setting(monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    assert not parse().training.torch_compile
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "AOT_EAGER")
    training = parse().training
    assert (training.torch_compile, training.torch_compile_backend) == (True, "aot_eager")
    assert parse("--torch_compile_backend", "aot_eager").training.torch_compile_mode is None
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    monkeypatch.setenv("ACCELERATE_DYNAMO_MODE", "reduce-overhead")
    assert parse("--torch_compile", "true").training.torch_compile_mode == "reduce-overhead"


@pytest.mark.parametrize(
    ("variables", "flags", "message"),
    [
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, ["--torch_compile", "false"], "one compiler.* inductor .* no"),
        ({"ACCELERATE_DYNAMO_BACKEND": "EAGER"}, ["--torch_compile_backend", "inductor"], "one compiler"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, ["--bf16", "false"], "one number format"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, [], "one number format"),
        ({"ACCELERATE_USE_CPU": "True"}, ["--use_cpu", "false", "--bf16", "false"], "one device"),
        ({"ACCELERATE_USE_FSDP": "true"}, [], "several processes with FSDP from accelerate launch"),
        ({"ACCELERATE_USE_CPU": "maybe"}, [], "ACCELERATE_USE_CPU, .* to be true or false, but found 'maybe'"),
        ({"WORLD_SIZE": "two"}, [], "WORLD_SIZE, .* to be a number of processes, but found 'two'"),
        ({"LOCAL_WORLD_SIZE": "0"}, [], "LOCAL_WORLD_SIZE, .* but found '0'"),
        ({}, ["--fsdp", "full_shard"], "several processes with --fsdp"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, [], "one number of accumulation steps"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, ["--gradient_accumulation_steps", "2"], "got 4 from"),
        ({"TORCHDYNAMO_DISABLE": "1"}, ["--torch_compile", "true"], "TORCHDYNAMO_DISABLE"),
        ({"TORCH_COMPILE_DISABLE": "1"}, ["--torch_compile_mode", "default"], "TORCH_COMPILE_DISABLE"),
    ],
)
def test_a_launcher_that_contradicts_is_refused(monkeypatch, variables, flags, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(FinetuneError, match=message):
        parse(*flags)


@pytest.mark.parametrize("value", ["1", "auto", "4"])
def test_a_launcher_that_agrees_is_not(monkeypatch, value):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", value)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    training = parse("--gradient_accumulation_steps", "4").training
    assert (training.gradient_accumulation_steps, training.use_cpu) == (4, True)


def test_the_precision_of_products_is_measured(monkeypatch):
    assert measure_precision(torch.device("cpu")) == "fp32"
    for bits, name in ((10, "tf32"), (7, "bf16"), (23, "fp32")):
        monkeypatch.setattr(torch, "eye", lambda width, device, bits=bits: Rounding(bits))
        assert measure_precision(torch.device("cpu")) == name


class Rounding:
    """An identity matrix whose products round their elements to so many bits behind the point."""

    def __init__(self, bits, value=1.0):
        self.bits, self.value = bits, value

    def __mul__(self, factor):
        return Rounding(self.bits, self.value * factor)

    def __matmul__(self, other):
        return torch.tensor([round(other.value * 2**self.bits) / 2**self.bits], dtype=torch.float64)


@pytest.mark.parametrize(
    ("mixed", "plugin", "expected"),
    [
        ("no", TorchDynamoPlugin(backend="no"), ("fp32", None)),
        ("bf16", TorchDynamoPlugin(backend="no"), ("bf16", None)),
        ("fp16", TorchDynamoPlugin(backend="eager", dynamic=True), ("fp16", "eager")),
    ],
)
def test_what_accelerate_was_set_up_with_is_what_is_recorded(mixed, plugin, expected):
    accelerator = SimpleNamespace(
        mixed_precision=mixed, device=torch.device("cpu"), state=SimpleNamespace(dynamo_plugin=plugin)
    )
    precision, compilation = describe_computation(accelerator)
    assert (precision, compilation and compilation.backend) == expected
    assert compilation is None or compilation.is_dynamic


@pytest.mark.slow
def test_accelerate_launch_compiles_for_all_shapes_and_the_record_says_it(flags, tmp_path):
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--dynamo_backend", "eager"]
    command = [*launcher, str(ROOT / "recipes/classify.py"), *flags, "--no_floor", "--output_dir", str(tmp_path / "r")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "r/run.json").read_text())
    assert record["arguments"]["training"]["torch_compile_backend"] == "eager"
    assert record["environment"]["compilation"]["backend"] == "eager"
    assert record["environment"]["compilation"]["is_dynamic"]  # though the launcher says False
    assert record["costs"]["compile_seconds"] > 0
    assert record["environment"]["precision"] == "fp32"
    assert DynamoBackend.EAGER.value == "EAGER"
