"""What is to be measured on a GPU, rehearsed on a processor."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from finetune.engine import DEFAULTS
from finetune.settings.parsing import parse_arguments


@pytest.fixture(scope="module")
def gpu():
    """The module benchmarks/gpu.py, with what it imports from beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        return importlib.import_module("gpu")


def test_a_rehearsal_has_the_parts_of_the_real_thing_whose_flags_exist(gpu, tmp_path):
    rehearsed, real = gpu.list_parts(gpu.REHEARSAL, tmp_path), gpu.list_parts(gpu.Sizes(), tmp_path)
    assert [part.name for part in rehearsed] == [part.name for part in real]
    assert len({part.name for part in real}) == len(real)
    for part in [*rehearsed, *real]:
        flags = next((argument for argument in part.arguments if isinstance(argument, list)), None)
        if part.work is gpu.train_steps:
            gpu.training_throughput.build_options().parse_args(flags)
        elif part.work is gpu.predict:
            gpu.prediction_throughput.build_options().parse_args(flags)
        elif part.work is gpu.serve:
            gpu.serving.build_options().parse_args(flags)
        elif part.work in (gpu.train_run, gpu.train_in_two) and part.name != "qlora":  # which a processor refuses
            parse_arguments("", {**DEFAULTS, "output_dir": str(tmp_path)}, ["--dataset_name", *flags, "--no_floor"])


def fail():
    print("on the way")
    raise ValueError("no such thing")


def hang():
    subprocess.Popen(["sleep", "60"])
    time.sleep(60)


@pytest.mark.parametrize(
    ("work", "seconds", "first", "last"),
    [(fail, 60, "exit status 1", "ValueError: no such thing"), (hang, 0.3, "no end within 0 s", None)],
)
def test_a_part_that_fails_or_hangs_leaves_its_last_lines(gpu, tmp_path, work, seconds, first, last):
    found = gpu.work_apart(gpu.Part("any", work, (), 60), tmp_path, seconds)
    assert found["error"][0] == first
    assert found["seconds"] < 30
    assert last is None or found["error"][-1] == last
    gpu.write(tmp_path / "gpu.json", gpu.argparse.Namespace(rehearse=True), {"any": found})
    assert json.loads((tmp_path / "gpu.json").read_text())["parts"]["any"] == found


@pytest.mark.slow
def test_a_rehearsal_ends(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "benchmarks/gpu.py", "--rehearse", "--output_json"]
    done = subprocess.run([*command, str(tmp_path / "gpu.json")], cwd=ROOT, env=environment, check=False)
    record = json.loads(Path(tmp_path / "gpu.json").read_text())
    failed = {name: part["error"] for name, part in record["parts"].items() if "error" in part}
    # Attention without padding has no kernel for processors, which is no failure; torch.compile needs a compiler.
    assert not failed
    assert done.returncode == 0
    assert set(record["summary"]["targets"]) == {"times the default script", "share of the best product"}
    assert record["parts"]["full"]["result"]["reloaded_max_difference"] < 1e-3
