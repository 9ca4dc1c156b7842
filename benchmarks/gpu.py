"""All that is to be known of finetune on a GPU, in eight minutes and one command.

    python benchmarks/gpu.py --output_json benchmarks/results/gpu.json

Each part works in a process of its own with a time limit. What it found is written at once, and a part that fails
leaves its last lines there while the others go on, so a run that is cut short keeps what it has. Parts that no time is
left for are named. The order is that of importance:

- training throughput against transformers' own `Trainer` as `run_classification.py` sets it up, in bfloat16 both, with
  an encoder of BERT's base size (random weights) and with the embedded one; the share of the best bfloat16 product of
  the same run that the work on real tokens amounts to; a profile of the toolkit's steps: how long the GPU works, and
  how often the host waits for it;
- `full`, `lora` and `qlora` on the embedded reviews: accuracy, seconds, peak memory, and the saved model reloaded;
- the tests marked `gpu`;
- prediction against transformers' `pipeline`, and the service under load;
- what only a measurement can decide: attention with a mask, without, and without padding; micro-batches of more
  tokens; two processes, on one device if there is one alone; `torch.compile`.

`--rehearse` does the same in tiny sizes on a processor. On a host without a network `benchmarks/gpu_wheels.sh` brings
what is missing.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # the other way of asking for a GPU would be felt in forked processes

import prediction_throughput
import pytest
import serving
import torch
import training_throughput
from torch.nn import functional as F
from training_throughput import COMPILED, DYNAMIC, OURS, PADDED, now
from transformers import BertConfig, BertForSequenceClassification, BertModel, TrainerCallback

from finetune.cli import main as run_finetune
from finetune.data.embedded import load_embedded_reviews
from finetune.data.split import sample_stratified
from finetune.files import write_aside
from finetune.hardware import describe_hardware
from finetune.models.load import load_tokenizer
from finetune.settings.parts import ModelArguments

ROOT = Path(__file__).parent.parent
WANTED_RATIO, WANTED_SHARE = 3.0, 0.4  # times the default script; of the best product at base size with 512 tokens
LAST_LINES = 15
REVIEWS = "reviews.parquet"
SETTINGS = (PADDED, DYNAMIC, OURS)
PREDICTING = (prediction_throughput.OURS, prediction_throughput.ONE_BY_ONE, prediction_throughput.BATCHED)
MANY_TOKENS = (4_096, 16_384, 65_536)
LOADED = BertForSequenceClassification  # before any process is forked, which then need not import it


@dataclass(frozen=True)
class Part:
    """What one process measures.

    Attributes:
        name: Its key in the results.
        work: Gives what JSON can hold.
        arguments: Of `work`.
        seconds: After which it is ended.
        not_rehearsed: Why it is left out of a rehearsal that doesn't name it.
    """

    name: str
    work: Callable[..., dict[str, Any]]
    arguments: tuple[Any, ...]
    seconds: int
    not_rehearsed: str = ""


@dataclass(frozen=True)
class Sizes:
    """How much is done: on a GPU, or when rehearsed on a processor."""

    training: tuple[str, ...] = ("--bf16", "--steps", "60", "--max_tokens_per_micro_batch", "16384")
    larger_step: tuple[str, ...] = ("--bf16", "--steps", "8", "--batch_size", "256")
    profiled_steps: int = 8
    run: tuple[str, ...] = ("--max_length", "256", "--num_train_epochs", "1")
    short_run: tuple[str, ...] = ("--max_length", "256", "--num_train_epochs", "1", "--max_train_samples", "2000")
    steps: tuple[str, ...] = ("--max_length", "256", "--max_steps", "40")
    prediction: tuple[str, ...] = ("--turns", "1", "--num_texts", "2000")
    serving: tuple[str, ...] = ("--clients", "64", "--seconds", "10")
    one_client: tuple[str, ...] = ("--clients", "1", "--seconds", "5")
    encoder: tuple[tuple[str, int], ...] = ()  # the config's defaults are BERT's base size
    reviews: int | None = None  # of the embedded ones; None is all
    patience: int = 1  # how many times as long a part may take
    attention: tuple[int, int, int, int] = (32, 12, 512, 64)
    product_size: int | None = None


TINY_STEPS = ("--bf16", "--steps", "2", "--batch_size", "2", "--max_length", "16", "--product_size", "64")
TINY_RUN = ("--max_length", "16", "--max_steps", "2")
REHEARSAL = Sizes(
    training=TINY_STEPS,
    larger_step=TINY_STEPS,
    profiled_steps=2,
    run=TINY_RUN,
    short_run=TINY_RUN,
    steps=TINY_RUN,
    prediction=("--turns", "1", "--num_texts", "8"),
    serving=("--clients", "4", "--seconds", "1"),
    one_client=("--clients", "1", "--seconds", "1"),
    encoder=(("hidden_size", 32), ("num_hidden_layers", 2), ("num_attention_heads", 2), ("intermediate_size", 64)),
    attention=(2, 2, 16, 8),
    product_size=64,
    reviews=160,
    patience=10,
)


def list_parts(sizes: Sizes, folder: Path) -> list[Part]:
    """List what is measured, the most important first.

    Args:
        sizes: How much of it.
        folder: For models and runs, which later parts use.
    """
    base, full = str(folder / "base"), str(folder / "full")
    reviews = "embedded" if sizes.reviews is None else str(folder / REVIEWS)

    def train(name: str, method: str, flags: Sequence[str], seconds: int) -> Part:
        return Part(name, train_run, ([reviews, "--method", method, *flags], folder / name), seconds)

    def throughput(kind: str, model: str, setting: str, flags: Sequence[str], seconds: int = 60) -> Part:
        return Part(f"{kind}, {setting}", train_steps, (setting, ["--model", model, *flags]), seconds)

    return [
        Part("hardware", look_at_hardware, (sizes.product_size,), 60),
        Part("encoder and reviews", write_inputs, (folder, dict(sizes.encoder), sizes.reviews), 60),
        *(throughput("base", base, setting, sizes.training) for setting in SETTINGS),
        *(throughput("embedded", "embedded", setting, sizes.training) for setting in SETTINGS),
        Part("profile", profile_steps, (["--model", base, *sizes.training], sizes.profiled_steps), 60),
        train("full", "full", sizes.run, 120),
        train("lora", "lora", sizes.run, 120),
        Part("tests", run_tests, (folder / "tests.xml",), 120),
        replace(train("qlora", "qlora", sizes.short_run, 90), not_rehearsed="it needs a GPU"),
        *(Part(f"prediction, {one}", predict, (one, [full, *sizes.prediction]), 60) for one in PREDICTING),
        Part("prediction, 32,768 tokens at once", predict,
             (prediction_throughput.OURS, [full, *sizes.prediction, "--max_tokens", "32768"]), 60),
        Part("serving", serve, ([full, *sizes.serving],), 60),
        Part("serving, 1 client", serve, ([full, *sizes.one_client],), 60),
        Part("attention", time_attention, sizes.attention, 40),
        train("1 process", "full", (*sizes.steps, "--per_device_train_batch_size", "16"), 60),
        Part("2 processes", train_in_two, ([reviews, "--method", "full", *sizes.steps], folder / "2 processes"), 90),
        *(
            Part(_name_larger(most), train_steps,
                 (OURS, ["--model", base, *sizes.larger_step, "--max_tokens_per_micro_batch", str(most)]), 60)
            for most in MANY_TOKENS
        ),
        replace(throughput("base", base, COMPILED, sizes.training, 120), not_rehearsed="compiling takes minutes"),
    ]  # fmt: skip


def _name_larger(most: int) -> str:
    return f"base, larger steps, {most:,} tokens at once"


def look_at_hardware(product_size: int | None) -> dict[str, Any]:
    """Describe the machine, and time its best matrix products, in floating-point operations a second."""
    hardware = describe_hardware()
    if torch.cuda.is_available():
        of_device = torch.cuda.get_device_properties(0)
        hardware |= {"gpu_memory_bytes": of_device.total_memory, "capability": f"{of_device.major}.{of_device.minor}"}
    formats = {"bf16": torch.bfloat16, "fp32": torch.float32}
    products = {name: training_throughput.best_matrix_product(dtype, product_size) for name, dtype in formats.items()}
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "python": sys.version.split()[0]}
    return {**hardware, "versions": versions, "matrix_products_per_second": products}


def write_inputs(folder: Path, shape: dict[str, int], num_reviews: int | None) -> dict[str, Any]:
    """Write a `BertModel` with random weights and the embedded encoder's tokenizer, and a sample of the reviews."""
    tokenizer = load_tokenizer(ModelArguments(), 512)
    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=len(tokenizer), **shape))
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    if num_reviews is not None:
        sample_stratified(load_embedded_reviews(), num_reviews, seed=0).to_parquet(folder / REVIEWS)
    return {"parameters": model.num_parameters()}


def train_steps(setting: str, flags: list[str]) -> dict[str, Any]:
    """Train an epoch to warm up and one that is timed."""
    if setting == COMPILED:
        os.environ["ACCELERATE_DYNAMO_USE_DYNAMIC"] = "1"  # as --torch_compile sets it
    return training_throughput.measure(setting, training_throughput.build_options().parse_args(flags))


class _Profiling(TrainerCallback):
    """Profiles the steps of the second epoch."""

    def __init__(self, first: int, num_steps: int):
        self.first, self.last = first, first + num_steps
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self.profiler = torch.profiler.profile(activities=activities)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.first:
            self.start = now()
            self.profiler.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.last:
            self.seconds = now() - self.start
            self.profiler.stop()
            control.should_training_stop = True


def profile_steps(flags: list[str], num_steps: int) -> dict[str, Any]:
    """Find how long the GPU works in a step, how often the host waits for it, and what takes longest.

    The profiler itself takes time on the host, so the GPU's share is a lower bound.
    """
    options = training_throughput.build_options().parse_args(flags)
    trainer, _, _ = training_throughput.build_trainer(OURS, options)
    profiling = _Profiling(options.steps, num_steps)
    trainer.add_callback(profiling)
    trainer.train()
    events = profiling.profiler.events() or []
    on_gpu = [one for one in events if one.device_type == torch.autograd.DeviceType.CUDA and not one.is_user_annotation]
    spans = sorted((one.time_range.start, one.time_range.end) for one in on_gpu)
    busy, until = 0.0, float("-inf")
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    totals = sorted(
        profiling.profiler.key_averages(), key=lambda one: one.self_device_time_total or one.self_cpu_time_total
    )
    waits = {name: sum(one.name == name for one in events) / num_steps
             for name in ("cudaStreamSynchronize", "cudaDeviceSynchronize", "aten::_local_scalar_dense")}  # fmt: skip
    return {
        "milliseconds_a_step": profiling.seconds / num_steps * 1e3,
        "gpu_works": busy / 1e6 / profiling.seconds if spans else None,
        "kernels_a_step": len(on_gpu) / num_steps,
        "waits_a_step": waits,
        "longest": [
            {
                "name": one.key[:100],
                "milliseconds_a_step": (one.self_device_time_total or one.self_cpu_time_total) / num_steps / 1e3,
                "calls_a_step": one.count / num_steps,
            }
            for one in totals[:-16:-1]
        ],
    }


def train_run(flags: list[str], folder: Path) -> dict[str, Any]:
    """Train on reviews as a user does, and take from `run.json` what is to be known."""
    run_finetune(["train", *flags, "--no_floor", "--output_dir", str(folder)])
    return read_run(folder)


def read_run(folder: Path) -> dict[str, Any]:
    """Take figures of a finished run."""
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    costs, test = record["costs"], record["metrics"]["test"]
    names = ("train_seconds", "tokens_per_second", "evaluation_seconds", "peak_memory_bytes", "latency_seconds",
             "texts_per_second", "stored_bytes")  # fmt: skip
    return {
        **{name: costs[name] for name in names if name in costs},
        "test_accuracy": test["accuracy"],
        "test_accuracy_interval": test["accuracy_interval"],
        "precision": record["environment"]["precision"],
        "optimizer": record["arguments"]["training"]["optim"],
        "reloaded_max_difference": record["reload"]["max_difference"],
    }


def run_tests(report: Path) -> dict[str, Any]:
    """Run the tests marked `gpu`; without a GPU each is skipped."""
    os.chdir(ROOT)
    flags = ["-q", "-p", "no:cacheprovider", "-m", "gpu", f"--junitxml={report}", "tests/test_gpu.py"]
    status = int(pytest.main(flags))
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))

    failed, skipped = {}, 0
    for case in cases:
        skipped += case.find("skipped") is not None
        for kind in ("error", "failure"):
            what = case.find(kind)
            if what is not None:
                failed[case.get("name", "")] = (what.get("message") or "")[:500]
    return {"status": status, "tests": len(cases), "skipped": skipped, "failed": failed}


def predict(setting: str, flags: list[str]) -> dict[str, Any]:
    """Label reviews."""
    return prediction_throughput.measure(setting, 0, prediction_throughput.build_options().parse_args(flags))


def serve(flags: list[str]) -> dict[str, Any]:
    """Serve a run to clients."""
    return serving.measure(serving.build_options().parse_args(flags))


def time_attention(batch: int, heads: int, length: int, head_dim: int) -> dict[str, Any]:
    """Time attention, forward and backward, over texts of half to all of a length.

    Returns:
        Milliseconds, the median of 20; None where this torch or device has no such kernel.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lengths = torch.linspace(length // 2, length, batch).long()
    seen = (torch.arange(length) < lengths[:, None]).to(device)
    mask = seen[:, None, None].expand(-1, 1, length, -1)
    bounds = F.pad(lengths.cumsum(0), (1, 0)).int().to(device)

    def draw(*shape: int) -> list[torch.Tensor]:
        return [torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]

    padded, packed = draw(batch, heads, length, head_dim), draw(int(lengths.sum()), heads, head_dim)

    def without_padding() -> torch.Tensor:
        from torch.nn.attention.varlen import varlen_attn  # not in every torch that finetune takes

        return varlen_attn(*packed, bounds, bounds, length, length)

    variants = {
        "with a mask": lambda: F.scaled_dot_product_attention(*padded, attn_mask=mask),
        "without a mask": lambda: F.scaled_dot_product_attention(*padded),
        "without padding": without_padding,
    }
    found: dict[str, Any] = {"padding": 1 - int(lengths.sum()) / (batch * length)}
    for name, attend in variants.items():
        times = []
        try:
            for _ in range(25):
                start = now()
                attend().sum().backward()
                times.append(now() - start)
        except (ImportError, RuntimeError, NotImplementedError) as error:
            found[name], found[f"{name}: why not"] = None, str(error).strip().splitlines()[0][:300]
            continue
        found[name] = statistics.median(times[5:]) * 1e3
    return found


def train_in_two(flags: list[str], folder: Path) -> dict[str, Any]:
    """Train in two processes, with gloo on one device if there is one alone, since NCCL takes one process a device."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    backend = ["--ddp_backend", "gloo"] if torch.cuda.is_available() and torch.cuda.device_count() == 1 else []
    flags = [*flags, *backend, "--per_device_train_batch_size", "8", "--num_threads", "1"]
    method = multiprocessing.get_start_method()
    torch.multiprocessing.start_processes(_train_as_one_of_two, (port, flags, folder), 2, start_method=method)
    return {**read_run(folder), "backend": backend[-1] if backend else "default"}


def _train_as_one_of_two(rank: int, port: int, flags: list[str], folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    run_finetune(["train", *flags, "--no_floor", "--output_dir", str(folder)])


def work_apart(part: Part, folder: Path, seconds: float) -> dict[str, Any]:
    """Do a part in a process of its own.

    Returns:
        `result`, or `error`, a list of lines; and `seconds`.
    """
    log, answer = folder / "log.txt", folder / "answer.json"
    answer.unlink(missing_ok=True)
    start = time.perf_counter()
    process = multiprocessing.Process(target=_answer, args=(part, log, answer))
    process.start()
    process.join(seconds)
    is_late = process.is_alive()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid or 0, signal.SIGKILL)  # also what it has started and left
    process.join()
    found: dict[str, Any] = {"seconds": round(time.perf_counter() - start, 1)}
    if process.exitcode == 0 and not is_late:
        return {**found, "result": json.loads(answer.read_text(encoding="utf-8"))}
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
    what = f"no end within {seconds:.0f} s" if is_late else f"exit status {process.exitcode}"
    return {**found, "error": [what, *lines]}


def _answer(part: Part, log: Path, answer: Path) -> None:
    os.setsid()
    with log.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    answer.write_text(json.dumps(part.work(*part.arguments)), encoding="utf-8")


def summarise(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Compare what is there to be compared."""
    results = {name: part["result"] for name, part in parts.items() if "result" in part}
    summary: dict[str, Any] = {}
    for kind in ("base", "embedded"):
        turns = {name: [results[f"{kind}, {name}"]] for name in (*SETTINGS, COMPILED) if f"{kind}, {name}" in results}
        if OURS in turns:
            summary[kind] = training_throughput.summarise(turns)
    if all(f"prediction, {name}" in results for name in PREDICTING):
        turns = {name: [results[f"prediction, {name}"]] for name in PREDICTING}
        summary["prediction"] = prediction_throughput.summarise(turns)
    if {"1 process", "2 processes"} <= results.keys():
        one, two = (results[name]["tokens_per_second"] for name in ("1 process", "2 processes"))
        summary["2 processes over 1"] = two / one
    larger = {most: results[_name_larger(most)] for most in MANY_TOKENS if _name_larger(most) in results}
    summary["share of the best product by tokens at once"] = {
        most: found["texts_per_second"] * found["operations_per_text"] / found["best_matrix_product_per_second"]
        for most, found in larger.items()
    }
    if PADDED in summary.get("base", {}).get("ratios", {}):
        base = summary["base"]
        summary["targets"] = {
            "times the default script": {"wanted": WANTED_RATIO, "found": base["ratios"][PADDED]},
            "share of the best product": {"wanted": WANTED_SHARE, "found": base["share_of_peak"]},
        }
    return summary


def write(path: Path, options: argparse.Namespace, parts: dict[str, dict[str, Any]]) -> None:
    """Write what has been found so far."""
    shown = {
        name: {**part, "result": {key: value for key, value in part["result"].items()
                                  if key not in ("labels", "probabilities")}}
        if "result" in part else part
        for name, part in parts.items()
    }  # fmt: skip
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "rehearsed": options.rehearse,
        "hardware": parts.get("hardware", {}).get("result"),
        "summary": summarise(parts),
        "parts": shown,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_aside(path) as aside:
        aside.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write and print.

    Returns:
        The number of parts that failed.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_json", type=Path, default=ROOT / "benchmarks/results/gpu.json")
    parser.add_argument("--rehearse", action="store_true", help="the same parts in tiny sizes, on a processor")
    parser.add_argument("--seconds", type=float, help="after which no part goes on; 480, when rehearsed an hour")
    parser.add_argument("--only", nargs="+", default=[], help="parts whose names begin with one of these")
    options = parser.parse_args(argv)
    if options.rehearse:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not torch.cuda.is_available():
        parser.error("Expected a GPU, but torch sees none. --rehearse does the same parts on a processor.")
    multiprocessing.set_start_method("fork", force=True)  # which imports nothing again
    until = time.monotonic() + (options.seconds or (3_600 if options.rehearse else 480))
    parts: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        sizes = REHEARSAL if options.rehearse else Sizes()
        for part in list_parts(sizes, Path(temporary)):
            if options.only and not part.name.startswith(tuple(options.only)):
                continue
            left = until - time.monotonic()
            if options.rehearse and not options.only and part.not_rehearsed:
                parts[part.name] = {"left_out": part.not_rehearsed}
            elif left < 1:
                parts[part.name] = {"left_out": "no time was left"}
            else:
                seconds = min(part.seconds * sizes.patience, left)
                parts[part.name] = work_apart(part, Path(temporary), seconds)
                if part.name == "hardware" and "error" in parts[part.name]:  # a library has set up CUDA when imported
                    multiprocessing.set_start_method("spawn", force=True)
                    parts[part.name] = work_apart(part, Path(temporary), seconds)
            write(options.output_json, options, parts)
            print(f"{part.name:<40} {_show(parts[part.name])}", flush=True)
    print(json.dumps(summarise(parts), indent=2))
    return sum("error" in part for part in parts.values())


def _show(part: dict[str, Any]) -> str:
    if "left_out" in part:
        return part["left_out"]
    if "error" in part:
        return f"failed after {part['seconds']} s: {part['error'][-1]}"
    numbers = {name: value for name, value in part["result"].items() if isinstance(value, int | float)}
    return f"{part['seconds']} s  " + "  ".join(f"{name} {value:.4g}" for name, value in list(numbers.items())[:4])


if __name__ == "__main__":
    sys.exit(min(main(), 1))
