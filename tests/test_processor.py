"""What the processor is seen to do decides what is used; one without units for bfloat16 computes all the same."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, recipe_of

import finetune.models.predictor
import finetune.settings.checks
from finetune.accelerated import processor
from finetune.accelerated.processor import fuses_linear_layers, multiplies_fast
from finetune.errors import FinetuneError
from finetune.hardware import fastest_precision, is_out_of_memory, supports_bf16
from finetune.inference.predict import load_predictor
from finetune.run.run import Run
from finetune.settings.parsing import parse_arguments

TEXTS = ["a good film", "the plot was awful and dull !", "very fine"]
NO_PRIMITIVE = (  # as oneDNN says it on AVX2
    "could not create a primitive descriptor for the inner product forward propagation primitive. Run workload with "
    "environment variable ONEDNN_VERBOSE=all to get additional diagnostic information."
)
on_a_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU decides")


@pytest.fixture
def fresh():
    """Nothing has been tried yet; what is found in the test is forgotten after it."""
    for probe in (multiplies_fast, fuses_linear_layers):
        probe.cache_clear()
    yield
    for probe in (multiplies_fast, fuses_linear_layers):
        probe.cache_clear()


@pytest.fixture
def slow(monkeypatch):
    """A processor that multiplies in float32 alone."""
    for module in (finetune.settings.checks, finetune.models.predictor):
        monkeypatch.setattr(module, "multiplies_fast", lambda dtype: dtype is torch.float32)


@pytest.mark.parametrize("factor", [0.5, 2.6, 50])  # AVX512-BF16, AVX-512 and AVX2, as measured
def test_a_format_is_fast_if_it_takes_no_longer_than_float32(fresh, monkeypatch, factor):
    monkeypatch.setattr(processor, "_time_product", lambda dtype: 1.0 if dtype is torch.float32 else factor)
    assert multiplies_fast(torch.bfloat16) == (factor <= 1)
    assert multiplies_fast(torch.float32)


def test_a_format_that_can_not_be_multiplied_is_not_fast(fresh):
    assert not multiplies_fast(torch.bool)


def test_trying_draws_no_random_numbers_and_leaves_the_threads(fresh):
    torch.manual_seed(0)
    torch.set_num_threads(2)
    state = torch.get_rng_state()
    multiplies_fast(torch.bfloat16), fuses_linear_layers()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("what", ["missing", "wrong"])
def test_a_product_that_is_missing_or_wrong_is_not_used(fresh, monkeypatch, what):
    def pointwise(rows, weight, *args):
        if what == "missing":
            raise RuntimeError(NO_PRIMITIVE)
        return torch.zeros(len(rows), len(weight), dtype=rows.dtype)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", pointwise)
    assert not fuses_linear_layers()


# In a process of its own, since a processor's features are read once.
@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        ({"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}, "False False"),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, "False"),  # the product is emulated, if there is AVX-512
    ],
)
@pytest.mark.skipif(not torch.cpu._is_avx2_supported(), reason="the switches are for x86 with AVX2")
def test_an_older_processor_is_seen_through(switches, expected):
    lines = "from finetune.accelerated.processor import *; import torch; print(multiplies_fast(torch.bfloat16), fuses_linear_layers())"  # noqa: E501
    done = subprocess.run(
        [sys.executable, "-c", lines], env={**os.environ, **switches}, cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.startswith(expected), done.stderr


@on_a_cpu
def test_the_default_format_is_the_one_that_was_seen_to_be_fast():
    assert supports_bf16() == multiplies_fast(torch.bfloat16)
    assert fastest_precision() == ("bf16" if multiplies_fast(torch.bfloat16) else "fp32")


def test_a_product_that_the_processor_lacks_is_not_out_of_memory():
    assert not is_out_of_memory(RuntimeError(NO_PRIMITIVE))
    assert is_out_of_memory(RuntimeError("could not create a primitive"))  # its descriptor was found
    assert is_out_of_memory(RuntimeError("could not create a memory object"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert is_out_of_memory(MemoryError())


@on_a_cpu
@pytest.mark.parametrize("method", ["full", "lora", "head", "textcnn"])
def test_prediction_in_bfloat16_works_on_any_processor(runs, slow, method):
    exact = load_predictor(runs / method, torch.float32).compute_logits(TEXTS)[0]
    with pytest.warns(UserWarning, match=r"no units for torch\.bfloat16"):
        predictor = load_predictor(runs / method, torch.bfloat16)
    rounded = predictor.compute_logits(TEXTS)[0]
    np.testing.assert_allclose(rounded, exact, atol=0.05)
    assert not np.array_equal(rounded, exact)


@on_a_cpu
def test_prediction_in_its_own_format_warns_of_nothing(runs, recwarn):
    load_predictor(runs / "full")
    assert [str(warning.message) for warning in recwarn if "units" in str(warning.message)] == []


@on_a_cpu
@pytest.mark.parametrize("method", ["full", "lora", "head", "textcnn"])
@pytest.mark.parametrize("precision", ["bf16", "fp32", None])
def test_a_run_says_in_which_format_it_was_computed(flags, tmp_path, monkeypatch, method, precision):
    position, dtypes, of_training = flags.index("--bf16"), set(), set()
    words = flags[:position] + flags[position + 2 :]
    words += [] if precision is None else ["--bf16", str(precision == "bf16").lower()]
    linear, save_model = torch.nn.functional.linear, Run.save_model

    def record(inputs, weight, bias=None):
        output = linear(inputs, weight, bias)
        dtypes.add(output.dtype)
        return output

    monkeypatch.setattr(torch.nn.functional, "linear", record)
    monkeypatch.setattr(Run, "save_model", lambda *args: of_training.update(dtypes) or save_model(*args))
    recipe_of(method).main([*words, "--method", method, "--no_floor", "--output_dir", str(tmp_path / "run")])
    environment = json.loads((tmp_path / "run/run.json").read_text())["environment"]
    assert environment["precision"] == (precision or fastest_precision())
    assert (torch.bfloat16 in of_training) == (environment["precision"] == "bf16")
    assert environment["prediction_precision"] == fastest_precision()


@on_a_cpu
def test_training_in_bfloat16_without_units_is_warned_about(slow, tmp_path):
    words = ["--dataset_name", "embedded", "--output_dir", str(tmp_path), "--bf16"]
    with pytest.warns(UserWarning, match="--bf16 on a processor without units"):
        assert parse_arguments(None, {}, [*words, "true"]).training.bf16
    assert not parse_arguments(None, {}, [*words, "false"]).training.bf16


@on_a_cpu
def test_the_launchers_format_counts_as_a_flag(monkeypatch, tmp_path):
    words = ["--dataset_name", "embedded", "--output_dir", str(tmp_path)]
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert parse_arguments(None, {}, words).training.bf16
    assert parse_arguments(None, {}, [*words, "--bf16", "true"]).training.bf16
    with pytest.raises(FinetuneError, match="--mixed_precision bf16 from accelerate launch, and float32"):
        parse_arguments(None, {}, [*words, "--bf16", "false"])
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(FinetuneError, match="--mixed_precision fp8"):
        parse_arguments(None, {}, [*words, "--bf16", "true"])
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert parse_arguments(None, {}, [*words, "--bf16", "true"]).training.bf16
