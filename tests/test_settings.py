"""Every setting acts, is refused, warns, or is declared to change no result: each is flipped, one at a time."""

import csv
import dataclasses
import hashlib
import json
import re
import warnings
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import GOOD, OTHER, ROOT, make_reviews, write_csv, write_tiny_bert
from safetensors.numpy import load_file
from transformers import TrainingArguments

import finetune
from finetune.errors import FinetuneError
from finetune.settings.declared import facts_of, own_settings
from finetune.settings.document import describe_settings
from finetune.settings.parts import PARTS

OURS = [
    field.name
    for part in [*(part for part, _ in PARTS.values()), *own_settings()]
    for field in dataclasses.fields(part)
]
UPSTREAM = [field.name for field in dataclasses.fields(TrainingArguments)]
STEPS = ["--eval_strategy", "steps", "--save_strategy", "steps", "--eval_steps", "4", "--save_steps", "4"]
WINDOWS = ["--max_length", "8", "--truncation", "window", "--window_stride", "2"]
TEXTCNN = ["--method", "textcnn"]
LORA = ["--method", "lora"]
COLUMNS = ["--train_file", "columns.csv", "--validation_file", "", "--test_file", ""]
SKEWED = ["--train_file", "skewed.csv"]
NUMBERS = ["--train_file", "numbers.csv", "--validation_file", "", "--test_file", ""]
LEAKING = ["--train_file", "leaking.csv"]
FRENCH = ["--train_file", "french.csv", "--validation_file", "", "--test_file", ""]
CARVED = ["--validation_file", "", "--test_file", ""]
STILL = ["--learning_rate", "0", "--num_train_epochs", "6"]

# For each setting a value that is not the one of the run beside it, and that run's own flags.
TAUGHT = ["--teacher", "teacher"]
FLIPS: dict[str, tuple[str, list[str]]] = {
    "dataset_name": ("embedded", []),
    "dataset_config_name": ("plain_text", []),
    "dataset_revision": ("main", []),
    "train_file": ("skewed.csv", []),
    "validation_file": ("skewed.csv", []),
    "test_file": ("skewed.csv", []),
    "text_column": ("other", COLUMNS),
    "text_pair_column": ("other", COLUMNS),
    "label_column": ("author", COLUMNS),
    "id_column": ("key", COLUMNS),
    "group_column": ("author", COLUMNS),
    "encoding": ("cp437", FRENCH),
    "problem_type": ("regression", NUMBERS),
    "label_delimiter": ("e", []),
    "label_columns": ("label,other", COLUMNS),
    "streaming": ("true", []),
    "remove_leakage": ("true", LEAKING),
    "max_length": ("6", []),
    "truncation": ("tail", ["--max_length", "8"]),
    "window_stride": ("3", WINDOWS),
    "window_pooling": ("max", WINDOWS),
    "max_train_windows": ("1", WINDOWS),
    "max_train_samples": ("20", []),
    "max_eval_samples": ("10", []),
    "split_seed": ("1", CARVED),
    "model_name_or_path": ("other-model", []),
    "model_revision": ("main", []),
    "word_vectors": ("vectors.txt", ["--method", "embeddings"]),
    "pretrain_epochs": ("1", []),
    "attention_dropout": ("0.3", []),
    "label_descriptions": ("pos=a good film;neg=a bad film", ["--method", "zero-shot"]),
    "textcnn_variant": ("static", TEXTCNN),
    "textcnn_tokenizer": ("model", TEXTCNN),
    "textcnn_embedding_dim": ("8", TEXTCNN),
    "textcnn_vocabulary_size": ("10", TEXTCNN),
    "textcnn_dropout": ("0.1", TEXTCNN),
    "method": ("bitfit", []),
    "peft_config": ("lora.yaml", LORA),
    "cost_matrix": ("costs.yaml", []),
    "num_layers": ("1", ["--method", "last_layers"]),
    "reinit_layers": ("1", []),
    "class_weights": ("balanced", SKEWED),
    "focal_gamma": ("2", []),
    "unlabeled_file": ("other.txt", TAUGHT),
    "teacher": ("teacher", []),
    "distillation_alpha": ("0.9", TAUGHT),
    "distillation_temperature": ("8", TAUGHT),
    "oversample": ("true", SKEWED),
    "lora_r": ("2", LORA),
    "lora_alpha": ("2", LORA),
    "lora_dropout": ("0.3", LORA),
    "layer_decay": ("0.5", []),
    "head_learning_rate": ("0.05", []),
    "lora_plus_ratio": ("16", LORA),
    "unfreeze_every": ("0.5", []),
    "lr_schedule": ("triangular", []),
    "num_cycles": ("1", ["--lr_schedule", "triangular"]),
    "max_tokens_per_micro_batch": ("20", []),
    "accelerated": ("false", []),
    "trials": ("2", ["--method", "tfidf"]),
    "budget": ("0.01s", ["--method", "tfidf", "--trials", "3"]),
    "tfidf_c": ("1", ["--method", "tfidf"]),
    "tfidf_max_ngram": ("1", ["--method", "tfidf"]),
    "early_stopping_patience": ("1", STILL),
    "per_device_train_batch_size": ("4", []),
    "num_train_epochs": ("1", []),
    "max_steps": ("3", []),
    "learning_rate": ("1e-3", []),
    "lr_scheduler_type": ("cosine", []),
    "lr_scheduler_kwargs": ('{"num_cycles": 2}', ["--lr_scheduler_type", "cosine"]),
    "warmup_steps": ("0.5", []),
    "optim": ("adafactor", []),
    "optim_args": ("foo=1", []),
    "optim_target_modules": ("all-linear", []),
    "weight_decay": ("0.5", []),
    "adam_beta1": ("0.5", []),
    "adam_beta2": ("0.5", []),
    "adam_epsilon": ("0.1", []),
    "gradient_accumulation_steps": ("2", []),
    "max_grad_norm": ("0.01", []),
    "label_smoothing_factor": ("0.5", []),
    "bf16": ("true", []),
    "fp16": ("true", []),
    "tf32": ("true", []),
    "torch_compile_backend": ("inductor", []),
    "torch_compile_mode": ("default", []),
    "liger_kernel_config": ('{"rope": true}', []),
    "neftune_noise_alpha": ("5", []),
    "auto_find_batch_size": ("true", []),
    "eval_strategy": ("no", ["--load_best_model_at_end", "false"]),
    "eval_steps": ("2", STEPS),
    "eval_delay": ("1.5", ["--load_best_model_at_end", "false"]),
    "eval_on_start": ("true", []),
    "save_strategy": ("no", ["--load_best_model_at_end", "false"]),
    "save_steps": ("8", STEPS),
    "load_best_model_at_end": (
        "false",
        ["--learning_rate", "0.05", "--num_train_epochs", "4", "--metric_for_best_model", "accuracy"],
    ),
    "metric_for_best_model": ("loss", ["--num_train_epochs", "6"]),
    "greater_is_better": ("false", ["--num_train_epochs", "6"]),
    "seed": ("1", []),
    "data_seed": ("1", []),
    "use_cpu": ("false", []),
    "accelerator_config": ('{"split_batches": true}', []),
    "fsdp": ("full_shard", []),
    "fsdp_config": ('{"version": 2}', []),
    "deepspeed": ("nowhere.json", []),
    "use_liger_kernel": ("true", []),
    "torch_compile": ("true", []),
    "include_for_metrics": ("inputs", []),
    "label_names": ("foo", []),
    "parallelism_config": ("{}", []),
}
VALUES = {"bool": "true", "int": "3", "float": "3", "str": "x"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files that the flips name."""
    folder = tmp_path_factory.mktemp("settings")
    write_tiny_bert(folder / "model")
    write_tiny_bert(folder / "other-model", seed=1)
    rows = make_reviews(48)
    write_csv(folder / "train.csv", rows)
    write_csv(folder / "validation.csv", make_reviews(20, offset=100))
    write_csv(folder / "test.csv", make_reviews(20, offset=200))
    write_csv(folder / "skewed.csv", [row for number, row in enumerate(make_reviews(60, offset=300))
                                      if row[1] == "pos" or number % 5 == 0])  # fmt: skip
    write_csv(folder / "leaking.csv", [*rows, *make_reviews(6, offset=200)])
    write_csv(folder / "numbers.csv", [(text, str(number % 2)) for number, (text, _) in enumerate(rows)])
    with (folder / "columns.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "text", "other", "label", "author"])
        for number, (text, label) in enumerate(rows):
            writer.writerow([f"k{number}", text, rows[number - 1][0], label, f"author {number % 7}"])
    french = [(f"déjà vu, à l'été, très {text}", label) for text, label in rows]
    text = "text,label\n" + "".join(f'"{text}",{label}\n' for text, label in french)
    (folder / "french.csv").write_bytes(text.encode("cp1252"))
    (folder / "shards").mkdir()
    columns = dict(zip(("text", "label"), zip(*rows, strict=True), strict=True))
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), folder / "shards/0.parquet")
    (folder / "lora.yaml").write_text("r: 2\n")
    (folder / "costs.yaml").write_text("neg: {pos: 1000}\n")
    (folder / "vectors.txt").write_text("".join(f"{word} {number % 5} 1\n" for number, word in enumerate(OTHER + GOOD)))
    (folder / "other.txt").write_text("\n".join(text for text, _ in make_reviews(30, offset=500)))
    splits = [pd.read_csv(folder / f"{name}.csv") for name in ("train", "validation", "test")]
    finetune.train(splits[0], validation=splits[1], test=splits[2], method="tfidf", output_dir=folder / "teacher")
    return folder


@pytest.fixture(scope="module")
def train(folder, classify):
    """Train with flags, once for each list of them, and return a hash of all that came out."""
    known: dict[tuple, str] = {}

    def train(flags):
        key = tuple(flags)
        if key not in known:
            known[key] = fingerprint(run(flags))
        return known[key]

    def run(flags):
        directory = folder / f"run-{len(known)}"
        words = {"--train_file": "train.csv", "--validation_file": "validation.csv", "--test_file": "test.csv",
                 "--model_name_or_path": "model", "--max_length": "24", "--num_train_epochs": "2",
                 "--learning_rate": "5e-3", "--per_device_train_batch_size": "8", "--bf16": "false",
                 "--num_threads": "1", "--floor": "false", "--logging_steps": "1",
                 "--output_dir": str(directory)}  # fmt: skip
        words |= dict(zip(flags[::2], flags[1::2], strict=True))
        classify.main([word for name, value in words.items() if value != "" for word in (name, value)])
        return Path(words["--output_dir"])

    return train


def fingerprint(directory):
    """Hash weights, predictions, metrics, what was logged when, the names of the checkpoints, the number of trials."""
    digest = hashlib.sha256()
    for file in sorted((directory / "model").glob("*.safetensors")):
        for name, tensor in sorted(load_file(file).items()):
            digest.update(f"{name} {tensor.shape}".encode() + tensor.tobytes())
    for split in ("validation", "test"):
        digest.update(str(pq.read_table(directory / f"predictions/{split}.parquet").to_pylist()).encode())
    record = json.loads((directory / "run.json").read_text())
    digest.update(json.dumps([record["metrics"], record.get("search", {}).get("trials")]).encode())
    history = directory / "history.jsonl"  # of what is trained in steps
    for line in history.read_text().splitlines() if history.exists() else ():
        entry = json.loads(line)
        digest.update(
            str({name: value for name, value in entry.items() if not re.search("runtime|per_second", name)}).encode()
        )
    digest.update(str(sorted(path.name for path in directory.glob("checkpoints/checkpoint-*"))).encode())
    return digest.hexdigest()


def flip_of(name):
    if name in FLIPS:
        return FLIPS[name]
    kind = {field.name: str(field.type) for field in dataclasses.fields(TrainingArguments)}[name]
    return next((value for part, value in VALUES.items() if part in kind), "x"), []


def names(setting, message):
    """Whether a message speaks of a setting, as a flag or in a list of settings."""
    return re.search(rf"(--|, |use for: ){setting}\b", message) is not None


COMPILED = ("torch_compile", "torch_compile_backend", "torch_compile_mode")  # by a C++ compiler
SHOWN = sorted(name for name in {*OURS, *UPSTREAM} if facts_of(name).changes == "nothing")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in COMPILED else [])
        for name in dict.fromkeys([*OURS, *UPSTREAM])
        if name not in SHOWN
    ],
)
def test_a_setting_acts_is_refused_or_warns(name, train, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    value, beside = flip_of(name)
    flags = [*beside, f"--{name}", value]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            flipped = train(flags)
        except FinetuneError as error:
            assert names(name, str(error))  # noqa: PT017
            return
    said = [str(warning.message) for warning in caught] + capsys.readouterr().err.splitlines()
    if any(names(name, line) for line in said if "usually" not in line):  # of a learning rate, which acts
        return
    assert flipped != train(beside), f"--{name} {value} changes nothing, and nothing is said of it"


def test_the_same_run_has_the_same_fingerprint(train, folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert train([]) == train(["--output_dir", str(folder / "again")]) != train(["--seed", "1"])


def test_the_page_of_settings_is_what_the_declarations_say():
    page = (ROOT / "docs/reference/settings.md").read_text()
    assert page == describe_settings(), "python -m finetune.settings.document > docs/reference/settings.md"


# Whoever adds a name here says that no result depends on it.
NO_RESULT = """
    abstain activation_checkpointing activation_checkpointing_kwargs calibrate class_conditional config coverage
    dataloader_num_workers dataloader_pin_memory ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb
    ddp_find_unused_parameters ddp_static_graph ddp_timeout disable_tqdm floor full_determinism gradient_checkpointing
    gradient_checkpointing_kwargs hub_model_id hub_private_repo hub_revision include_num_input_tokens_seen local_rank
    log_level log_level_replica log_on_each_node logging_dir logging_first_step logging_nan_inf_filter logging_steps
    logging_strategy no_store_text num_threads output_dir project push_to_hub report_to restart resume_with_changes
    run_name save_total_limit skip_memory_metrics trackio_bucket_id trackio_space_id trackio_static_space_id
"""


def test_what_changes_no_result_is_known():
    known = {*OURS, *UPSTREAM}  # an older transformers has fewer, and one has `logging_dir`
    assert [name for name in NO_RESULT.split() if name in known] == SHOWN
