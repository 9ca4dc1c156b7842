"""Model folders that lie: refused in one line, warned of, or answering as before. Nothing hangs, runs or is fetched.

pytest tests/test_lying_folders.py
python tests/test_lying_folders.py --folders 300 --seed 0     the table in docs/explanations/faults.md
"""

import argparse
import collections
import contextlib
import copy
import json
import os
import pickle
import random
import re
import resource
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
import onnxruntime  # noqa: F401  so that children have it
import pytest
import torch
from conftest import make_reviews, needs_exporters, recipe_of, write_csv, write_tiny_bert
from safetensors.numpy import load_file, save_file

from finetune.cli import main as finetune_command
from finetune.errors import FinetuneError, exit_on_error, failures_explained
from finetune.examination import patterns
from finetune.examination.checksums import CHECKSUMS_FILE
from finetune.examination.documents import read_object
from finetune.examination.folder import examine_export, examine_saved
from finetune.examination.graphs import check_graph
from finetune.examination.patterns import repeats_repetitions
from finetune.examination.weights import refuse_no_numbers
from finetune.inference.exported import MODEL_FILE
from finetune.inference.load import find_model_folder, load
from finetune.inference.predict import load_predictor
from finetune.models.load import resolve_model

TEXTS = ["a good film", "the plot was very dull and the actor poor", "☃ unknown words"]
METHODS = ("full", "lora", "textcnn", "tfidf", "embeddings")
SECONDS = 20
BAD = ("traceback", "hang", "out of memory")
GOOD_ENDS = ("refused", "warned", "as before", "other answers")
MEMORY = 6 * 2**30  # that a child may have beyond what it starts with
SETTINGS = ["--max_length", "24", "--bf16", "false", "--num_threads", "1", "--no_floor", "--num_train_epochs", "1"]
ENDLESS = r"(([a-z_0-9.])*)*[!]"
VALUES = [None, True, False, "", "x", "../x", 0, -1, 1, 2, 1.5, 10**9, 2**63, 1e308, [], {}, [[]], ["a", "a"],
          {"a": {}}, "a" * 10**6, [0] * 10**5]  # fmt: skip
# Entries that reach for code, files or the network: by the file that they go into.
HOSTILE = {
    "config.json": [
        {"_attn_implementation": "someone/kernel"}, {"attn_implementation": "someone/kernel@main:attention"},
        {"_experts_implementation": "someone/kernel"}, {"auto_map": {"AutoConfig": "someone/code--module.Class"}},
        {"dtype": "load"}, {"torch_dtype": "hub"}, {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"quantization_config": {"quant_method": "fp8", "dtype": "x", "modules_to_not_convert": None}},
        {"transformers_weights": "../x.safetensors"}, {"transformers_weights": "adapter_model.bin"},
        {"gguf_file": "/etc/passwd"}, {"num_hidden_layers": 300_000}, {"num_attention_heads": 0},
        {"num_attention_heads": 7}, {"pad_token_id": 10**6}, {"vocab_size": 10**8}, {"hidden_size": 10**7},
        {"intermediate_size": 10**6}, {"problem_type": "regression"}, {"id2label": {"0": "a", "2": "b"}},
        {"id2label": {"0": "a", "1": "a"}}, {"id2label": ["a", "b"]}, {"id2label": {"0": "neg", "1": ""}},
        {"num_labels": 3}, {"model_type": "someone/model"}, {"model_type": 3}, {"text_config": {"model_type": "bert"}},
        {"layer_norm_eps": "x"}, {"hidden_act": "no such"}, {"max_position_embeddings": 10**12},
        {"filter_widths": [300_000]}, {"num_filters": 0}, {"pooling": "none"}, {"is_decoder": True},
    ],
    "adapter_config.json": [
        {"target_modules": ENDLESS}, {"exclude_modules": ENDLESS}, {"rank_pattern": {ENDLESS: 4}},
        {"layers_pattern": ENDLESS, "layers_to_transform": [0]}, {"modules_to_save": "x"},
        {"prompt_tuning_init_state_dict_path": "x.pt"}, {"megatron_config": {}, "megatron_core": "os"},
        {"base_model_name_or_path": "no/such"}, {"base_model_name_or_path": None}, {"peft_type": "XLORA"},
        {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 10**9}, {"r": 10**9}, {"r": 0}, {"r": 2},
        {"layer_replication": [[0, 10**6]]}, {"corda_config": {"cache_file": "x.pt"}}, {"loftq_config": {"a": "b"}},
        {"tokenizer_name_or_path": "no/such", "inference_mode": False}, {"target_modules": ["query"]},
        {"auto_mapping": {"parent_library": "os", "base_model_class": "x"}}, {"lora_alpha": 1e308}, {"task_type": "x"},
        {"lora_alpha": 3}, {"use_dora": True}, {"fan_in_fan_out": True}, {"revision": 3}, {"bias": "all"},
    ],
    "tokenizer.json": [
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "(a|a)*$"}, "content": ""}},
        {"added_tokens": [{"id": 10**9, "content": "[PAD]", "single_word": False, "lstrip": False, "rstrip": False,
                           "normalized": False, "special": True}]},
        {"model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                   "max_input_chars_per_word": 100, "vocab": {"[PAD]": 0, "good": 1}}},
        {"model": {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {"[PAD]": 0, "[UNK]": 1, "a": 10**9}}},
        {"post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 10**6], "cls": ["[CLS]", 2]}},
        {"padding": {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                     "pad_type_id": 0, "pad_token": "[PAD]"}}, {"model": None},
    ],
    "tokenizer_config.json": [
        {"auto_map": {"AutoTokenizer": ["someone/code--module.Class", None]}, "tokenizer_class": "NoSuch"},
        {"vocab_file": "/etc/passwd"}, {"init_inputs": ["/etc/passwd"]},
        {"fast_tokenizer_files": ["../tokenizer.9.json"]},
        {"padding_side": "middle"}, {"model_max_length": -1}, {"model_max_length": "x"}, {"pad_token": "no such"},
        {"chat_template": "{{ cycler.__init__.__globals__ }}"}, {"tokenizer_class": "os.path"}, {"pad_token": 3},
        {"added_tokens_decoder": {"1000000000": {"content": "a"}}}, {"added_tokens_decoder": {"x": {"content": "a"}}},
        {"tokenizer_class": "GPT2Tokenizer"}, {"unk_token": None},
    ],
    "finetune_config.json": [
        {"problem_type": "regression"}, {"problem_type": "none"}, {"family": "os:path"}, {"family": "tfidf"},
        {"family": "textcnn"}, {"family": "encoder"}, {"family": "embeddings"}, {"family": 3}, {"thresholds": [0.5]},
        {"thresholds": ["x"]}, {"thresholds": [2, 2]}, {"text": {"max_length": 10**12}}, {"text": {"max_length": 0}},
        {"text": {"max_length": 24, "truncation": "none"}}, {"encoding": "no such"}, {"is_paired": True}, {"more": 1},
        {"four_bit": True}, {"text": {"max_length": 9, "truncation": "window", "window_stride": 9}},
    ],
    "label_names.json": [["neg", "neg"], ["neg", 3], {"0": "neg"}, ["neg"], ["neg", ""], ["neg", "pos", "new"], [],
                         ["pos", "neg"], "neg pos", [["neg"], ["pos"]]],
    "tfidf_terms.json": [[], ["a", "a"], ["a" + " b" * 10**5], "a b", [1, 2], {"a": 1}],
    "export.json": [{"int8": "x"}, [], {}],
}  # fmt: skip


class Pickled:
    """What leaves a mark if it is ever unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return (os.mkdir, (self.mark,))


def list_files(folder):
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.name != CHECKSUMS_FILE)


def walk(content):
    """List every place of a JSON value: what holds it, and its key or index."""
    places, layer = [], [content]
    while layer:
        one = layer.pop()
        keys = one.keys() if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else ()
        for key in list(keys)[:400]:
            places.append((one, key))
            layer.append(one[key])
    return places


def change_json(folder, draw, change):
    """Change one place in one of the JSON files."""
    file = draw.choice([one for one in list_files(folder) if one.suffix == ".json"])
    content = json.loads(file.read_text())
    holder, key = draw.choice(walk(content))
    told = change(holder, key)
    file.write_text(json.dumps(content))
    return f"{file.name} {str(key)[:30]} {told}"


def change_keys(folder, draw):
    def change(holder, key):
        if isinstance(holder, list) or draw.random() < 0.6:
            del holder[key]
            return "removed"
        holder[f"{key}{draw.choice('_s2 ')}"] = holder.pop(key)
        return "renamed"

    return change_json(folder, draw, change)


def change_types(folder, draw):
    def change(holder, key):
        holder[key] = copy.deepcopy(draw.choice(VALUES))
        return f"= {str(holder[key])[:30]}"

    return change_json(folder, draw, change)


def change_sizes(folder, draw):
    def change(holder, key):
        value = holder[key]
        if isinstance(value, int | float):
            holder[key] = draw.choice([0, -1, value + 1, value * 2, value - 1, 10**4, 10**6, 10**9, 2**63, 0.5])
        elif isinstance(value, list):
            holder[key] = draw.choice([value * 2, value[:1], value[1:], value * 10**4])
        elif isinstance(value, dict):
            holder[key] = draw.choice([dict(list(value.items())[1:]), {**value, **{str(n): n for n in range(10**4)}}])
        else:
            holder[key] = draw.choice([str(value) * 2, str(value) * 10**5, 10**9])
        return f"= {str(holder[key])[:30]}"

    return change_json(folder, draw, change)


def change_files(folder, draw, others):
    file = draw.choice(list_files(folder))
    what = draw.choice(["remove", "empty", "cut", "folder", "pipe", "link", "pickle", "swap", "add", "nest"])
    other = draw.choice([one for one in list_files(draw.choice(others)) if one.name != file.name])
    if what == "add":
        name = draw.choice(["adapter_config.json", "model.safetensors.index.json", "added_tokens.json",
                            "shard-00000-model-00000-of-00001.safetensors", "pytorch_model.bin",
                            "special_tokens_map.json", "config.json", "generation_config.json"])  # fmt: skip
        shutil.copy(other, folder / name)
        return f"{name} added from {other.name}"
    content = file.read_bytes()
    file.unlink()
    if what == "empty":
        file.write_bytes(b"")
    elif what == "cut":
        file.write_bytes(content[: draw.randrange(len(content) + 1)])
    elif what == "folder":
        file.mkdir()
    elif what == "pipe":
        os.mkfifo(file)
    elif what == "link":
        file.symlink_to(draw.choice(["/no/such", "/dev/zero", str(file), "/etc/passwd"]))
    elif what == "pickle":
        file.write_bytes(pickle.dumps(Pickled(folder / "unpickled")))
    elif what == "swap":
        shutil.copy(other, file)
    elif what == "nest":
        file.write_text("[" * 10**5 + "]" * 10**5)
    return f"{file.name} {what}"


def change_bytes(folder, draw):
    file = draw.choice(list_files(folder))
    content = bytearray(file.read_bytes())
    if file.suffix == ".safetensors" and draw.random() < 0.6:
        tensors = load_file(file)
        name = draw.choice(sorted(name for name, tensor in tensors.items() if tensor.dtype.kind == "f"))
        value = draw.choice([float("nan"), float("inf"), 1e38])
        tensors[name].reshape(-1)[draw.randrange(tensors[name].size)] = value
        save_file(tensors, file, metadata={"format": "pt"})
        return f"{file.name} {name} {value}"
    if file.suffix == ".onnx_data" and draw.random() < 0.6:
        where = 4 * draw.randrange(len(content) // 4)
        content[where : where + 4] = np.float32(draw.choice([float("nan"), float("inf")])).tobytes()
    for _ in range(draw.choice([1, 1, 2, 8])):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)
    return f"{file.name} bits"


def plant(folder, draw):
    """Put one of the entries that a library would follow into a file that is there."""
    names = sorted(name for name in HOSTILE if (folder / name).is_file())
    if (folder / "model.safetensors").is_file() and draw.random() < 0.1:
        return plant_index(folder, draw.choice(["pickle", "path", "link"]))
    name = draw.choice(names)
    entry = draw.choice(HOSTILE[name])
    write_entry(folder / name, entry)
    return f"{name} {str(entry)[:70]}"


def write_entry(file, entry):
    """Add entries to a JSON file, or replace all that it holds."""
    content = json.loads(file.read_text())
    is_added = isinstance(entry, dict) and isinstance(content, dict) and entry
    file.write_text(json.dumps({**content, **entry} if is_added else entry))


def plant_index(folder, what):
    """Replace the weights by an index that names a pickle, a path or a link out of the folder."""
    names = list(load_file(folder / "model.safetensors"))
    kept = folder.with_name(f"{folder.name}.elsewhere")
    (folder / "model.safetensors").rename(kept)
    named = {"pickle": "model.bin", "path": f"../{kept.name}", "link": "one.safetensors"}[what]
    if what == "pickle":
        torch.save({"x": Pickled(folder / "unpickled")}, folder / named)
    elif what == "link":
        (folder / named).symlink_to(kept)
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, named)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return f"index {what}"


def make_good(base):
    """Train five small models and export one; return their folders by name."""
    given = []
    for split, count, offset in (("train", 60, 0), ("validation", 20, 100), ("test", 30, 200)):
        given += [f"--{split}_file", write_csv(base / f"{split}.csv", make_reviews(count, offset))]
    flags = [*given, "--model_name_or_path", write_tiny_bert(base / "bert"), *SETTINGS]
    for method in METHODS:
        extra = ["--num_train_epochs", "4"] if method == "textcnn" else []
        recipe_of(method).main([*flags, *extra, "--method", method, "--output_dir", str(base / method)])
    finetune_command(["export", str(base / "full"), str(base / "onnx"), "--format", "onnx", "--num_threads", "1"])
    return {**{method: base / method / "model" for method in METHODS}, "onnx": base / "onnx"}


def ask(folder):
    """Answer the texts, as a program does: in the last line of the output, in full precision."""
    predictor = load_predictor(folder, torch.float32, num_threads=1)
    found = predictor.compute_probabilities(TEXTS)
    print(json.dumps([predictor.label_names, [[float(one).hex() for one in row] for row in found]]))


def run_apart(call, *given):
    """Call something in a fork of this process, which may not use the network, and return how it ended.

    Returns:
        Its exit status, None if it took more than 20 seconds, and what it wrote to both streams.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 99
        try:
            os.close(reader)
            os.setpgid(0, 0)
            os.dup2(writer, 1)
            os.dup2(writer, 2)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            socket.socket.connect = _refuse_network
            warnings.simplefilter("ignore")
            warnings.simplefilter("default", UserWarning)
            torch.set_num_threads(1)
            with exit_on_error():
                call(*given)
            status = 0
        except SystemExit as end:
            status = end.code
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status if isinstance(status, int) else 1)
    os.close(writer)
    said, end = bytearray(), time.monotonic() + SECONDS
    while time.monotonic() < end:
        if select.select([reader], [], [], max(0.0, end - time.monotonic()))[0]:
            piece = os.read(reader, 2**16)
            if not piece:
                break
            said += piece
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
        return None, said.decode(errors="replace")
    os.close(reader)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said.decode(errors="replace")


def _refuse_network(*_):
    print("NETWORK was asked")
    os._exit(98)


def judge(folder, good):
    """Return how a folder ended: refused, warned, as before, other answers, or what must not be."""
    status, said = run_apart(ask, folder)
    lines = said.strip().splitlines()
    if status is None:
        return "hang", said
    if "Traceback" in said or "panicked" in said or (folder / "unpickled").exists() or status not in (0, 2):
        return "traceback", said
    if status == 2:
        errors = [line for line in lines if line.startswith("error: ")]
        if len(errors) != 1:
            return "traceback", said
        return ("out of memory" if "more memory" in errors[0] else "refused"), errors[0]
    if any(line.startswith("warning: ") for line in lines):
        return "warned", said
    return ("as before" if lines[-1] == good else "other answers"), said


WAYS = {
    "keys": change_keys, "types": change_types, "sizes": change_sizes, "files": change_files, "bytes": change_bytes,
    "planted": plant,
}  # fmt: skip


def lie(good, name, way, draw, folder):
    """Copy a good folder and change it in one way; return what was changed."""
    shutil.copytree(good[name], folder)
    others = [one for one in good.values() if one != good[name]]
    return WAYS[way](folder, draw, others) if way == "files" else WAYS[way](folder, draw)


def run_many(good, workplace, count, seed, keeps_sums, report=print):
    """Try so many lying folders, the six good ones and the six ways in turns; return how each ended."""
    answers = {}
    for name, folder in good.items():
        if name != "onnx":  # what this process has imported and loaded once, its children don't have to
            load_predictor(folder, torch.float32).compute_probabilities(TEXTS)
        status, said = run_apart(ask, folder)
        assert status == 0, said
        assert "warning" not in said, said
        answers[name] = said.strip().splitlines()[-1]
    draw, ended = random.Random(seed), []
    for number in range(count):
        name, way = list(good)[number % 6], list(WAYS)[number // 6 % 6]
        folder = workplace / f"lying-{number}"
        what = lie(good, name, way, draw, folder)
        if not keeps_sums:
            (folder / CHECKSUMS_FILE).unlink()
        how, said = judge(folder, answers[name])
        ended.append((name, way, what, how))
        report(f"{number:4} {name:10} {way:8} {how:13} {what} | {said if how in BAD else said[:300]!r}")
        shutil.rmtree(folder)
    return ended


def tabulate(ended):
    """Return a Markdown table of how the folders of each kind ended."""
    columns = [*GOOD_ENDS, *BAD]
    rows = ["| | " + " | ".join(["folders", *columns]) + " |", "|---" * (len(columns) + 2) + "|"]
    for kind in (*dict.fromkeys(one[0] for one in ended), *WAYS, "all"):
        counts = collections.Counter(one[3] for one in ended if kind in (one[0], one[1], "all"))
        rows.append(f"| {kind} | {sum(counts.values())} | " + " | ".join(str(counts[one]) for one in columns) + " |")
    return "\n".join(rows)


@pytest.fixture(scope="module")
def good(runs, exports, flags, tmp_path_factory):
    """The six good folders by name, to be read only."""
    embeddings = tmp_path_factory.mktemp("embeddings") / "run"
    recipe_of("embeddings").main([*flags, "--no_floor", "--method", "embeddings", "--output_dir", str(embeddings)])
    methods = {method: runs / method / "model" for method in METHODS if method != "embeddings"}
    return {**methods, "embeddings": embeddings / "model", "onnx": exports / "full"}


@pytest.fixture
def lying(good, tmp_path):
    """Copy a good folder, without the sums of its files, to be changed."""

    def copy(name):
        folder = tmp_path / "model"
        shutil.copytree(good[name], folder)
        (folder / CHECKSUMS_FILE).unlink()
        return folder

    return copy


@needs_exporters
@pytest.mark.parametrize("keeps_sums", [True, False])
def test_no_lying_folder_answers_unseen(good, tmp_path, keeps_sums):
    ended = run_many(good, tmp_path, 12, 7 + keeps_sums, keeps_sums)
    assert not [one for one in ended if one[3] in BAD or (keeps_sums and one[3] == "other answers")]
    assert {one[3] for one in ended} & {"refused", "warned"}


# What was found, and its neighbours: which folder, which file, what is put into it, and what is said.
GROWING = {"type": "Sequence", "normalizers": [
    {"type": "Replace", "pattern": {"String": "o"}, "content": "o" * 100} for _ in range(3)
]}  # fmt: skip
REFUSED = [
    ("full", "config.json", {"_attn_implementation": "someone/kernel"}, "_attn_implementation to be built in"),
    ("full", "config.json", {"attn_implementation": {"text": "someone/kernel"}}, "attn_implementation to be built in"),
    ("full", "config.json", {"text_config": {"attn_implementation": "a/b"}}, "text_config.attn_implementation"),
    ("full", "config.json", {"_experts_implementation": "someone/kernel"}, "_experts_implementation to be built in"),
    ("full", "config.json", {"dtype": "load"}, "dtype of auto"),
    ("full", "config.json", {"transformers_weights": "../other.safetensors"}, "transformers_weights to be a safe"),
    ("full", "config.json", {"quantization_config": {"quant_method": "gptq"}}, "settings of bitsandbytes"),
    ("full", "config.json", {"num_hidden_layers": 300_000}, "at most 1,000 layers"),
    ("full", "config.json", {"num_hidden_layers": 12}, "num_hidden_layers of at most 2, for which"),
    ("full", "config.json", {"num_experts": 10**6}, "num_experts of at most 20,000"),
    ("full", "config.json", {"hidden_size": 4096}, "hidden_size to be the size of a weight"),
    ("full", "config.json", {"vocab_size": 10**6}, "vocab_size to be the size of a weight"),
    ("full", "config.json", {"num_attention_heads": 0}, "num_attention_heads of 1 or more"),
    ("full", "config.json", {"num_attention_heads": 3}, "num_attention_heads to divide the width 16"),
    ("full", "config.json", {"pad_token_id": 1000}, "pad_token_id to be the number of a token"),
    ("full", "config.json", {"id2label": {"0": "neg", "2": "pos"}}, "without gaps"),
    ("full", "config.json", {"id2label": {"0": "neg", "1": "neg"}}, "'neg' twice"),
    ("full", "config.json", {"id2label": {"0": "neg", "1": None}}, "None among them"),
    ("full", "config.json", {"problem_type": "regression"}, "the problem_type of a classifier"),
    ("full", "config.json", {"layer_norm_eps": float("nan")}, "it has NaN"),
    ("full", "finetune_config.json", {"problem_type": "regression"}, "the problem_type of a classifier"),
    (
        "full",
        "finetune_config.json",
        {"problem_type": "multi_label_classification"},
        "the problem_type of config.json, single",
    ),
    ("embeddings", "config.json", {"text_config": {"model_type": "bert", "num_attention_heads": 0}}, "of 1 or more"),
    ("textcnn", "config.json", {"embedding_dim": 10**6}, "embedding_dim to be the size of a weight"),
    ("lora", "label_names.json", ["neg", "neg"], "'neg' twice"),
    ("lora", "label_names.json", {"neg": 0, "pos": 1}, "a list of distinct label names"),
    ("lora", "label_names.json", ["neg", 1], "1 among them"),
    ("lora", "finetune_config.json", {"problem_type": "regression"}, "the problem_type of a classifier"),
    ("lora", "adapter_config.json", {"prompt_tuning_init_state_dict_path": "x.pt"}, "which may name a file"),
    ("lora", "adapter_config.json", {"corda_config": {"cache_file": "x.pt"}}, "which may name a file"),
    ("lora", "adapter_config.json", {"megatron_config": {"a": 1}}, "with which a module is imported"),
    ("lora", "adapter_config.json", {"auto_mapping": {"parent_library": "os"}}, "a parent_library of transformers"),
    ("lora", "adapter_config.json", {"tokenizer_name_or_path": "a/b", "inference_mode": False}, "may name a file"),
    ("lora", "adapter_config.json", {"a_field_of_tomorrow": "a/b"}, "which may name a file"),
    ("lora", "adapter_config.json", {"r": 10**9}, "r of at most 65,536"),
    ("lora", "adapter_config.json", {"init_lora_weights": "pissa_niter_1000000"}, "at most 100 steps as init_lora"),
    ("lora", "adapter_config.json", {"loftq_config": {"loftq_iter": 60_000}}, "at most 100 steps as loftq_config"),
    ("lora", "adapter_config.json", {"layer_replication": [[0, 10**6]]}, "layer_replication"),
    ("full", "tokenizer.json", HOSTILE["tokenizer.json"][0], "a pre_tokenizer whose patterns end"),
    ("full", "tokenizer.json", HOSTILE["tokenizer.json"][1], "a normalizer whose patterns end"),
    ("full", "tokenizer.json", HOSTILE["tokenizer.json"][2], "1000000000 of"),
    ("full", "tokenizer.json", HOSTILE["tokenizer.json"][3], "a tokenizer that reads any text"),
    ("full", "tokenizer.json", HOSTILE["tokenizer.json"][5], "a post_processor that adds tokens of its vocabulary"),
    ("full", "tokenizer_config.json", {"vocab_file": "/etc/passwd"}, "no vocab_file"),
    ("full", "tokenizer_config.json", {"fast_tokenizer_files": ["../tokenizer.9.json"]}, "names of files beside it"),
    ("full", "tokenizer_config.json", {"added_tokens_decoder": {"1" * 12: {"content": "a"}}}, "added_tokens_decoder"),
    ("full", "config.json", {"id2label": {"0": "neg\ud800", "1": "pos"}}, r"'neg\ud800' among them"),
    ("tfidf", "label_names.json", ["neg", "pos\udfff"], r"'pos\udfff' among them"),
    ("tfidf", "label_names.json", [str(number) for number in [*range(10**5), 10**5 - 1]], "'99999' twice"),
    ("full", "tokenizer.json", {"normalizer": GROWING}, "makes a text at most 1,000 times as long"),
    ("onnx", "tokenizer.json", {"normalizer": {"type": "Prepend", "prepend": "a " * 10**6}}, "a normalizer that makes"),
    ("onnx", "tokenizer.json", HOSTILE["tokenizer.json"][2], "1000000000 of"),
    ("onnx", "config.json", {"id2label": {"0": "neg", "1": "neg"}}, "'neg' twice"),
]


@needs_exporters
@pytest.mark.parametrize(("name", "file", "entry", "said"), REFUSED)
def test_what_lies_is_refused_in_one_line(lying, name, file, entry, said):
    folder = lying(name)
    write_entry(folder / file, entry)
    with pytest.raises(FinetuneError, match=re.escape(said)) as refusal:
        examine_export(folder, folder / MODEL_FILE) if name == "onnx" else examine_saved(folder)
    assert "\n" not in str(refusal.value)
    assert str(folder / file) in str(refusal.value)


@pytest.mark.parametrize("what", ["pickle", "path", "link"])
def test_an_index_names_weights_beside_it_alone(lying, what):
    folder = lying("full")
    plant_index(folder, what)
    for ask_for in (find_model_folder, resolve_model):
        with pytest.raises(FinetuneError, match="names of safetensors files that lie beside it"):
            ask_for(str(folder))
    assert not (folder / "unpickled").exists()


def test_shards_beside_their_index_are_read(lying):
    folder = lying("full")
    model, _ = load(folder)
    expected = load_predictor(folder, torch.float32).compute_logits(TEXTS)[0]
    model.save_pretrained(folder, max_shard_size="6KB")
    (folder / "model.safetensors").unlink()
    assert len(list(folder.glob("*.safetensors"))) > 1
    np.testing.assert_array_equal(load_predictor(folder, torch.float32).compute_logits(TEXTS)[0], expected)


@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "rank_pattern"])
def test_patterns_of_modules_end(lying, field, monkeypatch):
    monkeypatch.setattr(patterns, "LIMIT_SECONDS", 0.5)
    folder = lying("lora")
    write_entry(folder / "adapter_config.json", {field: {ENDLESS: 4} if field == "rank_pattern" else ENDLESS})
    with pytest.raises(FinetuneError, match="takes longer than"):
        load(folder)


def test_patterns_of_modules_still_work(lying):
    folder = lying("lora")
    expected = load_predictor(folder, torch.float32).compute_logits(TEXTS)[0]
    content = json.loads((folder / "adapter_config.json").read_text())
    names = "|".join(content["target_modules"])
    write_entry(folder / "adapter_config.json", {"target_modules": rf"(bert\.)*.*\b({names})"})
    np.testing.assert_array_equal(load_predictor(folder, torch.float32).compute_logits(TEXTS)[0], expected)


@pytest.mark.parametrize(("name", "file"), [("full", "model"), ("lora", "adapter_model"), ("tfidf", "tfidf")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_are_numbers(lying, name, file, value):
    folder = lying(name)
    tensors = load_file(folder / f"{file}.safetensors")
    one = tensors[sorted(tensors)[0]]
    one.reshape(-1)[-1] = value
    save_file(tensors, folder / f"{file}.safetensors", metadata={"format": "pt"})
    with pytest.raises(FinetuneError, match="weights that are numbers"):
        find_model_folder(folder)


def test_weights_in_half_precision_are_numbers(tmp_path):
    from safetensors.torch import save_file as save_tensors

    for dtype in (torch.bfloat16, torch.float16):
        numbers = torch.tensor([0.0, -1.0, 3e4, 1e-6], dtype=dtype)
        save_tensors({"a": numbers}, tmp_path / "a.safetensors")
        refuse_no_numbers(tmp_path / "a.safetensors")
        for value in (float("nan"), float("-inf")):
            save_tensors({"a": torch.cat([numbers, torch.tensor([value], dtype=dtype)])}, tmp_path / "a.safetensors")
            with pytest.raises(FinetuneError, match="NaN or infinite"):
                refuse_no_numbers(tmp_path / "a.safetensors")


@needs_exporters
def test_a_graph_has_its_weights_beside_it_and_no_loops(lying, tmp_path):
    import onnx

    folder = lying("onnx")
    file = folder / MODEL_FILE
    check_graph(file)
    whole = file.read_bytes()

    def changed(change):
        model = onnx.load_from_string(whole)
        change(model.graph)
        file.write_bytes(model.SerializeToString())

    def move(location):
        def change(graph):
            for tensor in graph.initializer:
                for one in tensor.external_data:
                    one.value = location if one.key == "location" else one.value

        return change

    for location in ("../model.onnx_data", "/etc/passwd", ".hidden", "missing"):
        changed(move(location))
        with pytest.raises(FinetuneError, match="weights in files that lie beside it"):
            check_graph(file)

    def foreign(graph):
        graph.node[0].domain = "someone.ops"

    changed(foreign)
    with pytest.raises(FinetuneError, match="operators that are built into onnxruntime"):
        check_graph(file)

    def keep_sparse(graph):
        graph.sparse_initializer.add().dims.extend([2, 2])

    changed(keep_sparse)
    with pytest.raises(FinetuneError, match="weights that are not sparse"):
        check_graph(file)

    def make_sparse(graph):
        graph.node[0].attribute.append(onnx.AttributeProto(name="value", sparse_tensor=onnx.SparseTensorProto()))

    changed(make_sparse)
    with pytest.raises(FinetuneError, match="weights that are not sparse"):
        check_graph(file)

    model = onnx.load_from_string(whole)  # each function calls the next one twice: 2^40 operators
    for number in range(40):
        calls = [onnx.helper.make_node(f"F{number + 1}", ["x"], ["x"], domain="f") for _ in range(2)]
        model.functions.append(onnx.helper.make_function("f", f"F{number}", ["x"], ["x"], calls, []))
    file.write_bytes(model.SerializeToString())
    with pytest.raises(FinetuneError, match=r"a graph without functions of its own in .*, but found 40"):
        check_graph(file)

    def loop(graph):
        graph.node[0].attribute.append(onnx.helper.make_attribute("body", onnx.GraphProto(name="body")))

    changed(loop)
    with pytest.raises(FinetuneError, match="a graph without loops"):
        check_graph(file)
    file.write_bytes(whole)
    data = folder / f"{MODEL_FILE}_data"
    content = bytearray(data.read_bytes())
    data.write_bytes(content[:-4])
    with pytest.raises(FinetuneError, match="bytes that model"):
        check_graph(file)
    content[:4] = np.float32("nan").tobytes()
    data.write_bytes(content)
    with pytest.raises(FinetuneError, match="weights that are numbers"):
        check_graph(file)


@needs_exporters
@pytest.mark.parametrize("name", ["full", "onnx"])
def test_what_a_library_in_rust_panics_at_is_one_line(lying, name):
    folder = lying(name)
    write_entry(folder / "tokenizer.json", {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}})
    with pytest.raises(FinetuneError, match="it gave up: Precompiled"), failures_explained():
        load_predictor(folder)


@pytest.mark.parametrize(("name", "family"), [("lora", "textcnn"), ("lora", "contrastive"), ("full", "tfidf")])
def test_a_folder_is_of_the_family_that_it_says(lying, name, family):
    folder = lying(name)
    write_entry(folder / "finetune_config.json", {"family": family})
    with pytest.raises(FinetuneError, match=r"files are of another|a whole model with a config"):
        load(folder)


@pytest.mark.parametrize("kind", ["folder", "pipe", "zeros", "nothing", "circle"])
def test_what_is_no_file_is_not_opened(lying, kind):
    folder = lying("full")
    file = folder / "tokenizer.json"
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to({"zeros": "/dev/zero", "nothing": folder / "missing", "circle": file}[kind])
    with pytest.raises(FinetuneError, match="something else, or a link to nothing"):
        find_model_folder(folder)


def test_json_is_bounded(tmp_path):
    file = tmp_path / "config.json"
    for content, said in (
        ("[" * 100_000 + "]" * 100_000, "reading it gave"), ("[" * 70 + "]" * 70, "at most 64 levels"), ("[]", "names"),
        ('{"a": NaN}', "NaN"), ("{", "JSON"), ("\xff", "JSON"), (" " * (2**26 + 1), "at most 67,108,864 bytes"),
    ):  # fmt: skip
        file.write_text(content, encoding="latin-1")
        with pytest.raises(FinetuneError, match=said):
            read_object(file)
    file.write_text('{"a": [0.0, Infinity]}')
    assert read_object(file)["a"][1] == float("inf")


def test_a_changed_byte_is_told(good, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(good["full"], folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find_model_folder(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.bias"] += 0.25
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(UserWarning, match=r"not as it was saved \(changed model.safetensors\)"):
        find_model_folder(folder)
    (folder / "tokenizer_config.json").unlink()
    (folder / "added_tokens.json").write_text("{}")
    with pytest.warns(UserWarning, match="without tokenizer_config.json, with an additional added_tokens.json"):
        find_model_folder(folder)


def test_a_config_of_fewer_layers_than_weights_is_warned_of(lying):
    folder = lying("full")
    write_entry(folder / "config.json", {"num_hidden_layers": 1})
    with pytest.warns(UserWarning, match="have no place in the network"):
        load(folder)


def test_an_adapter_config_of_fewer_modules_than_weights_is_warned_of(lying):
    folder = lying("lora")
    write_entry(folder / "adapter_config.json", {"target_modules": ["query"]})
    with pytest.warns(UserWarning, match="have no place where its adapter_config.json puts it"):
        load(folder)


@pytest.mark.parametrize(
    "pattern",
    [
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}]*[\p{Ll}\p{M}]+(?i:'s|'t)?|\p{N}{1,3}|\s*[\r\n]+|\s+(?!\S)|\s+",
        r" ?[^(\s|[.,!?…。，、।۔،])]+", r"\d{1,3}(?=(?:\d{3})*\b)", r"(?:\r\n|\n)+", r"\[(\d+)\]",
    ],
)  # fmt: skip
def test_the_patterns_of_known_tokenizers_pass(pattern):
    assert not repeats_repetitions(pattern)


@pytest.mark.parametrize(
    "pattern",
    [r"(a+)+$", r"(a*)*b", r"(a|a)*$", r"(?:a|aa)+$", r"(\w+\s?)*$", r"((a+)b?){2,}", r"([a-z]+)*", r"(\d|1)+"],
)
def test_patterns_that_repeat_repetitions_do_not(pattern):
    assert repeats_repetitions(pattern)


def test_training_starts_from_nothing_that_lies(tiny_bert, flags, tmp_path, capsys):
    base = tmp_path / "base"
    shutil.copytree(tiny_bert, base)
    write_entry(base / "config.json", {"_attn_implementation": "someone/kernel"})
    given = [str(base) if word == tiny_bert else word for word in flags]
    with pytest.raises(SystemExit), exit_on_error():
        recipe_of("full").main([*given, "--output_dir", str(tmp_path / "run")])
    assert "_attn_implementation to be built in" in capsys.readouterr().err


def test_an_answer_that_is_no_number_is_refused(good):
    predictor = load_predictor(good["full"], torch.float32)
    with torch.no_grad():
        predictor.model.classifier.bias[0] = float("nan")
    with pytest.raises(FinetuneError, match="NaN or infinity for text 0 of 3"):
        predictor.predict(TEXTS)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--folders", type=int, default=300, help="so many with sums, and so many without")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", default=os.devnull)
    parser.add_argument("--good", help="a folder where the good ones are, or are made")
    arguments = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as workplace, Path(arguments.log).open("w") as log:
        base = Path(arguments.good or workplace)
        base.mkdir(exist_ok=True)
        names = {**{method: base / method / "model" for method in METHODS}, "onnx": base / "onnx"}
        good = names if (base / "onnx").exists() else make_good(base)
        bad = 0
        for keeps_sums in (True, False):
            ended = run_many(good, Path(workplace), arguments.folders, arguments.seed, keeps_sums,
                             lambda line: print(line, file=log, flush=True))  # fmt: skip
            print(f"\n{'with' if keeps_sums else 'without'} the sums of its files\n\n{tabulate(ended)}")
            silent = "other answers" if keeps_sums else None
            bad += sum(one[3] in (*BAD, silent) for one in ended)
    print(f"{time.monotonic() - start:.0f} s")
    return bad


if __name__ == "__main__":
    sys.exit(bool(main()))
