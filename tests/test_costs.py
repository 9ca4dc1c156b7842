"""What runs cost: what is counted, what isn't, and how it compares."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT
from peft import PeftModel
from synthetic_runs import write_run
from test_trainer import make_model, make_trainer
from transformers import TrainerControl, TrainerState, TrainingArguments

from finetune.comparison.report import build_report
from finetune.comparison.runs import load_run
from finetune.data.cutting import TextConfig
from finetune.data.load import read_examples
from finetune.data.tokenize import tokenize_dataset
from finetune.errors import FinetuneError
from finetune.families.encoder import Encoder
from finetune.hardware import cpu_seconds, time_hashes
from finetune.inference import evaluate
from finetune.inference.predict import load_predictor
from finetune.run.record import CompleteRecord
from finetune.run.summary import summarize
from finetune.training import frozen_features
from finetune.training.progress import CostMeter


def work(seconds):
    """Keep a processor busy for so many seconds of its own."""
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass


def test_evaluations_are_no_part_of_training(tmp_path):
    meter, args, control = CostMeter(), TrainingArguments(str(tmp_path)), TrainerControl()
    meter.on_train_begin(args, TrainerState(), control)
    work(0.1)
    with meter.evaluating():
        work(0.5)
    meter.on_step_end(args, TrainerState(global_step=1), control)
    assert 0.1 <= meter.train_cpu_seconds < 0.3
    assert meter.train_seconds >= 0.1
    assert 0.5 <= meter.evaluation_cpu_seconds < 0.7
    assert meter.evaluation_seconds >= 0.5
    with meter.training():
        work(0.1)
    assert 0.2 <= meter.train_cpu_seconds < 0.5
    again = CostMeter(**meter.state()["args"])
    assert vars(again).items() <= vars(meter).items()


def test_features_of_validation_rows_are_evaluation(tmp_path, tiny_bert, reviews, monkeypatch):
    model = make_model(tiny_bert, tokenizer := load_tokenizer(tiny_bert), "head")
    tokenized = tokenize_dataset(read_examples(reviews["--train_file"]), tokenizer, TextConfig(24))
    compute, seconds = frozen_features.compute_features, iter((0.0, 2.0))

    def compute_slowly(*arguments):
        work(next(seconds))  # of train, then of validation
        return compute(*arguments)

    monkeypatch.setattr(frozen_features, "compute_features", compute_slowly)
    trainer = make_trainer(tmp_path, model, tokenizer, tokenized, max_steps=2)
    trainer.train()
    assert trainer.costs.evaluation_cpu_seconds > 2
    assert trainer.costs.train_cpu_seconds < 2


def load_tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_memory_is_that_of_the_run_and_not_of_what_started_it():
    child = "from finetune.hardware import peak_memory_bytes; print(peak_memory_bytes())"
    parent = (
        "import subprocess, sys; held = bytearray(1_500_000_000); "
        f"print(subprocess.run([sys.executable, '-c', {child!r}], capture_output=True, text=True, check=True).stdout)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    found = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True, env=environment)
    assert 1e7 < int(found.stdout) < 1.4e9


def test_a_busy_machine_shows():
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3 * (os.cpu_count() or 1))]
    try:
        time.sleep(0.5)
        seconds = [one for _ in range(5) for one in time_hashes(1)]
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert np.mean(seconds) > 1.5 * min(seconds)


def test_processor_seconds_count_all_threads():
    before, start = cpu_seconds(), time.perf_counter()
    time.sleep(0.2)
    assert cpu_seconds() - before < 0.15
    work(0.2)
    assert 0.2 <= cpu_seconds() - before <= (time.perf_counter() - start) * (os.cpu_count() or 1)


def test_an_adapter_is_stored_with_its_base(tiny_bert):
    tokenizer, family = load_tokenizer(tiny_bert), Encoder()
    full = make_model(tiny_bert, tokenizer, "full")
    assert family.count_base_bytes(full) == 0
    base = sum(weight.numel() * weight.element_size() for weight in full.bert.parameters())
    assert family.count_base_bytes(make_model(tiny_bert, tokenizer, "lora")) == base


def test_what_a_run_records(runs):
    full, lora, tfidf = (CompleteRecord.read(runs / method) for method in ("full", "lora", "tfidf"))
    assert lora.model.base_bytes > 0 == full.model.base_bytes
    for record in (full, lora, tfidf):
        costs = record.costs
        assert costs.slowdown >= 1
        assert 0 < costs.start_memory_bytes <= costs.peak_memory_bytes
        assert costs.train_cpu_seconds > 0
        assert (costs.tokenize_seconds is None) == (record is tfidf)
        assert "train_file" in record.chosen
        assert "weight_decay" not in record.chosen
    assert full.floor.train_cpu_seconds > 0
    words = summarize(full, runs / "full")
    assert "s of processors)" in words
    assert "of it before any data or model was loaded" in words
    assert ("busy with other programs" in words) == (full.costs.slowdown > 1.25)


def test_latency_is_that_of_a_merged_adapter(runs):
    predictor = load_predictor(runs / "lora", torch.float32)
    texts = ["a great film", "the plot was awful"]
    expected = predictor.compute_logits(texts)[0]
    merged = evaluate._merge(predictor, "lora")
    assert not isinstance(merged.model, PeftModel)
    np.testing.assert_allclose(merged.compute_logits(texts)[0], expected, atol=1e-5)
    whole = load_predictor(runs / "full", torch.float32)
    assert evaluate._merge(whole, "full") is whole


# In a report


def with_costs(**costs):
    return lambda record: record["costs"].update(costs)


def write_runs(folder, *changes):
    """Write a run each of tfidf, full and lora."""
    for method, change in zip(("tfidf", "full", "lora"), changes, strict=False):
        write_run(folder / method, method, 0, 2.5, change=change)
    return folder


def test_the_default_cost_is_the_one_that_a_busy_machine_changes_least(tmp_path):
    known = [with_costs(train_cpu_seconds=seconds) for seconds in (9.0, 8.0, 7.0)]
    report = build_report([write_runs(tmp_path / "known", *known)])
    assert report.cost == "train_cpu_seconds"
    assert list(report.verdict.comparisons) == ["lora", "full", "tfidf"]
    # In the first runs it is not known, and where a GPU worked it says little.
    first = write_runs(tmp_path / "first", known[0], None, known[2])
    assert build_report([first]).cost == "train_seconds"
    with pytest.raises(FinetuneError, match="cost of every method, but found none of full"):
        build_report([first], cost="train_cpu_seconds")

    def on_gpu(record):
        known[1](record)
        record["environment"]["gpus"] = ["A GPU"]

    assert build_report([write_runs(tmp_path / "gpu", known[0], on_gpu)]).cost == "train_seconds"
    with pytest.raises(FinetuneError, match=r"Expected --cost to be one of train_cpu_seconds, .* but got 'euros'"):
        build_report([first], cost="euros")


def test_training_includes_tokenizing_and_an_adapter_its_base(tmp_path):
    def change(record):
        record["costs"] |= {"train_seconds": 10.0, "tokenize_seconds": 2.0}
        record["costs"] |= {"train_cpu_seconds": 15.0, "tokenize_cpu_seconds": 3.0}
        record["model"] |= {"bytes": 5, "base_bytes": 70}

    run = load_run(write_run(tmp_path / "lora", "lora", 0, 2.5, change=change))
    assert [run.cost(name) for name in ("train_seconds", "train_cpu_seconds", "bytes")] == [12, 18, 75]
    first = load_run(write_run(tmp_path / "first", "lora", 0, 2.5))
    assert first.cost("bytes") == 2_600_000 + 4 * (22_700_000 - 600_000)
    assert load_run(write_run(tmp_path / "full", "full", 0, 2.5)).cost("bytes") == 91_000_000


def test_a_busy_machine_is_warned_of(tmp_path):
    folder = write_runs(tmp_path, with_costs(slowdown=1.1), with_costs(slowdown=1.9))
    warnings = build_report([folder]).warnings
    (line,) = (line for line in warnings if "busy" in line)
    assert line.startswith("The machine was busy with other programs during 1 of 2 runs (most in ")
    assert "about 1.9 times as long" in line
    record = json.loads((folder / "full/run.json").read_text())
    record["costs"]["slowdown"] = 1.2
    (folder / "full/run.json").write_text(json.dumps(record))
    assert not [line for line in build_report([folder]).warnings if "busy" in line]
