"""From the Hub and back: repositories laid out as the real ones, every method with an encoder, online and offline.

The hub is `hub_server.py`; bert-base-uncased has two layers of width 16, and imdb a few dozen short reviews.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import BAD, GOOD, OTHER, ROOT, connect, find_weights, make_reviews, recipe_of
from hub_server import HubServer
from huggingface_hub import ModelCard, constants
from huggingface_hub.repocard_data import model_index_to_eval_results
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, BertConfig, BertForPreTraining, BertTokenizerFast

import finetune.engine
import finetune.models.load
from finetune.catalogue import CATALOGUE
from finetune.cli import main as finetune_command
from finetune.data.load import load_given_splits
from finetune.errors import FinetuneError
from finetune.hub_client import find_commit, reach_hub
from finetune.inference.load import load
from finetune.inference.predict import load_predictor
from finetune.models.load import load_encoder
from finetune.settings.parts import DataArguments, ModelArguments

TOKEN = "hf_" + "klmnopqrst" * 3
BERT, IMDB = "google-bert/bert-base-uncased", "stanfordnlp/imdb"
PRESET = str(ROOT / "recipes/configs/imdb_canonical.yaml")
TEXTS = ["a great film", "this was awful !", "good", "the plot of the story was very dull and boring . " * 9]
# The blocks that bitsandbytes quantizes for qlora are wider than this model.
METHODS = [name for name in CATALOGUE if name not in ("qlora", "tfidf")]
QUICK = ["--max_steps", "2", "--max_length", "40", "--per_device_train_batch_size", "8", "--eval_strategy", "no",
         "--save_strategy", "no", "--load_best_model_at_end", "false", "--bf16", "false", "--num_threads", "1",
         "--no_floor"]  # fmt: skip
NEVER_FETCHED = ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "rust_model.ot", "model.onnx")


def write_bert(folder: Path, seed: int = 0) -> Path:
    """Write what the real repository has: a checkpoint for pretraining under its old names, and other frameworks'."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *OTHER]
    tokenizer = BertTokenizerFast(vocab={word: number for number, word in enumerate(words)}, do_lower_case=True)
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true, "model_max_length": 512}')
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(words), **sizes)
    weights = BertForPreTraining(config).state_dict()
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {
        re.sub("LayerNorm.(weight|bias)$", lambda match: old[match[0]], name): weight.clone()
        for name, weight in weights.items()
        if not name.endswith("position_ids")
    }
    assert {name.split(".")[0] for name in renamed} == {"bert", "cls"}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(
        json.dumps(
            {"architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1, "gradient_checkpointing": False,
             "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "initializer_range": 0.02, "layer_norm_eps": 1e-12,
             "max_position_embeddings": 512, "model_type": "bert", "pad_token_id": 0,
             "position_embedding_type": "absolute", "transformers_version": "4.6.0.dev0", "type_vocab_size": 2,
             "use_cache": True, "vocab_size": len(words), **sizes}
        )
    )  # fmt: skip
    for name in NEVER_FETCHED:
        (folder / name).write_bytes(b"\x80\x04not for us")
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\ndatasets: [bookcorpus]\n---\n# BERT\n")
    return folder


def write_imdb(folder: Path, num_train: int = 60, card: str = "imdb") -> Path:
    """Write what the real repository has: sorted Parquet files with features, and a card that describes them."""
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    rows = {"train": make_reviews(num_train), "test": make_reviews(30, offset=200)}
    rows["unsupervised"] = [(text, -1) for text, _ in make_reviews(12, offset=300)]
    (folder / "plain_text").mkdir(parents=True)
    described = []
    for split, examples in rows.items():
        ordered = sorted(examples, key=lambda row: str(row[1]))
        columns = {"text": [text for text, _ in ordered], "label": [label for _, label in ordered]}
        file = folder / f"plain_text/{split}-00000-of-00001.parquet"
        datasets.Dataset.from_dict(columns, features=features).to_parquet(str(file))
        described.append(f"  - name: {split}\n    num_bytes: 1\n    num_examples: {len(examples)}\n")
    files = "".join(f"  - split: {split}\n    path: plain_text/{split}-*\n" for split in rows)
    (folder / "README.md").write_text(
        "---\nlanguage:\n- en\npretty_name: IMDB\ndataset_info:\n  config_name: plain_text\n  features:\n"
        "  - name: text\n    dtype: string\n  - name: label\n    dtype:\n      class_label:\n        names:\n"
        "          '0': neg\n          '1': pos\n  splits:\n" + "".join(described) + "  download_size: 1\n"
        "  dataset_size: 1\nconfigs:\n- config_name: plain_text\n  data_files:\n" + files + "  default: true\n---\n"
        f"# {card}\n"
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub with BERT and IMDb, public and private, that this process and those that it starts talk to."""
    folder = tmp_path_factory.mktemp("repositories")
    with (
        HubServer(tmp_path_factory.mktemp("hub")).running() as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        bert, imdb = write_bert(folder / "bert"), write_imdb(folder / "imdb")
        server.add_repository(BERT, bert)
        server.add_repository("me/private-bert", bert, private=True)
        server.add_repository(f"datasets/{IMDB}", imdb)
        server.add_repository("datasets/me/private-imdb", imdb, private=True)
        connect(server, patch, tmp_path_factory.mktemp("cache"), TOKEN)
        yield server
    reach_hub.cache_clear()


@contextlib.contextmanager
def offline():
    """Take the network away: the libraries have only their caches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setenv("HF_HUB_OFFLINE", "1")
        reach_hub.cache_clear()
        yield
    reach_hub.cache_clear()


@pytest.fixture
def moving(hub, tmp_path):
    """A model and a data set of their own, and a function that moves their `main`; gives its new commit."""
    number = len(hub.repositories)
    names = f"me/bert-{number}", f"me/imdb-{number}"
    hub.add_repository(names[0], write_bert(tmp_path / "bert"))
    hub.add_repository(f"datasets/{names[1]}", write_imdb(tmp_path / "imdb"))

    def move(name, **changes):
        number = len(list(tmp_path.iterdir()))
        if name in hub.repositories:
            return hub.add_commit(name, write_bert(tmp_path / f"bert-{number}", **changes))
        return hub.add_commit(f"datasets/{name}", write_imdb(tmp_path / f"imdb-{number}", **changes))

    return *names, move


def head_of(hub, name, branch="main"):
    return hub.repositories[name]["branches"][branch]


def train(output_dir, method, *words):
    extra = ["--textcnn_variant", "static"] if method == "textcnn" else []
    if method == "peft":
        file = output_dir.with_suffix(".yaml")
        file.write_text("{peft_type: LOHA, r: 2, target_modules: [query, value]}")
        extra = ["--peft_config", str(file)]
    recipe_of(method).main(
        ["--config", PRESET, *QUICK, "--method", method, *extra, *words, "--output_dir", str(output_dir)]
    )
    return json.loads((output_dir / "run.json").read_text())


def logits_of(path):
    return load_predictor(path, torch.float32).compute_logits(TEXTS)[0]


def weights_of(run):
    file = find_weights(run / "model")
    return load_file(file)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_from_the_hub_and_then_from_its_cache_to_the_same_weights(hub, tmp_path, method):
    commits = head_of(hub, BERT), head_of(hub, f"datasets/{IMDB}")
    record = train(tmp_path / "online", method)
    assert (record["pretrained"], record["data"]["commit"]) == commits
    asked = record["arguments"]
    assert (asked["model"]["model_revision"], asked["data"]["dataset_revision"]) == (None, None)
    assert {name: split["rows"] for name, split in record["data"]["splits"].items()} == {
        "train": 54, "validation": 6, "test": 30
    }  # fmt: skip
    file = tmp_path / "online/model/adapter_config.json"
    assert file.exists() == (method == "peft" or CATALOGUE[method].saves_adapter)
    if file.exists():
        adapter = json.loads(file.read_text())
        assert (adapter["base_model_name_or_path"], adapter["revision"]) == (BERT, commits[0])
    before = len(hub.requests)
    with offline():
        again = train(tmp_path / "offline", method)
        assert (again["pretrained"], again["data"]["commit"]) == commits
        assert len(hub.requests) == before
    online, from_cache = weights_of(tmp_path / "online"), weights_of(tmp_path / "offline")
    assert online.keys() == from_cache.keys()
    assert all(torch.equal(weight, from_cache[name]) for name, weight in online.items())
    assert not [line for line in hub.requests if line.startswith("GET") and line.endswith(NEVER_FETCHED)]


def test_the_checkpoint_of_the_real_layout_lacks_the_head_alone(hub, tmp_path):
    model = load_encoder(ModelArguments(model_name_or_path=BERT), {"id2label": {0: "neg", 1: "pos"}})
    assert model.missing_weights == ["classifier.bias", "classifier.weight"]
    assert model.hub_commit == head_of(hub, BERT)
    stored = load_file(write_bert(tmp_path / "bert") / "model.safetensors")
    assert torch.equal(model.bert.embeddings.LayerNorm.weight, stored["bert.embeddings.LayerNorm.gamma"])
    assert torch.equal(model.bert.pooler.dense.weight, stored["bert.pooler.dense.weight"])


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[] if name == "lora" else pytest.mark.slow) for name in METHODS]
)
def test_every_method_goes_to_the_hub_and_back(hub, tmp_path, method, capsys):
    name = f"me/pushed-{method}"
    merges = CATALOGUE[method].merges is not False and method != "peft"
    push = ["--push_to_hub", "--hub_model_id", name] if merges else []
    record = train(tmp_path / "run", method, *push)
    if not merges:
        finetune_command(["push", str(tmp_path / "run"), name, "--adapter"])
    assert "downloaded into an empty cache: " in capsys.readouterr().out
    np.testing.assert_allclose(logits_of(name), logits_of(tmp_path / "run"), atol=1e-5)
    with offline():
        np.testing.assert_allclose(logits_of(name), logits_of(tmp_path / "run"), atol=1e-5)
    card = ModelCard(hub.files_of(name)["README.md"].decode())
    assert card.data.base_model == BERT
    assert f"revision `{record['pretrained']}`" in card.text
    _, results = model_index_to_eval_results(card.data.to_dict()["model-index"])
    assert {(one.dataset_type, one.dataset_revision) for one in results} == {(IMDB, record["data"]["commit"])}


def test_an_adapter_stays_on_the_commit_that_it_was_trained_on(hub, moving, tmp_path, capsys):
    base, _, move = moving
    record = train(tmp_path / "run", "lora", "--model_name_or_path", base)
    expected, commit = logits_of(tmp_path / "run"), head_of(hub, base)
    foreign = tmp_path / "foreign"  # as PEFT writes it where nobody told it a revision
    shutil.copytree(tmp_path / "run/model", foreign)
    settings = json.loads((foreign / "adapter_config.json").read_text())
    (foreign / "adapter_config.json").write_text(json.dumps({**settings, "revision": None}))
    finetune_command(["push", str(foreign), "me/on-a-moving-base", "--adapter"])
    pushed = json.loads(hub.files_of("me/on-a-moving-base")["adapter_config.json"])
    assert (pushed["base_model_name_or_path"], pushed["revision"]) == (base, commit)
    assert move(base, seed=1) != commit == record["pretrained"]
    np.testing.assert_array_equal(logits_of(tmp_path / "run"), expected)
    np.testing.assert_allclose(logits_of("me/on-a-moving-base"), expected, atol=1e-6)
    assert np.abs(logits_of(foreign) - expected).max() > 1e-3  # it follows the branch, as it says
    capsys.readouterr()


@pytest.mark.parametrize(
    ("method", "steps"),
    [
        ("head", ("load_given_splits", "load_tokenizer", "load_model")),
        ("full", ("load_given_splits", "locate_checkpoint", "fit_to_checkpoint", "set_seed")),
    ],
)
def test_what_is_recorded_is_trained_even_if_both_branches_move_meanwhile(
    hub, moving, tmp_path, monkeypatch, method, steps
):
    base, data, move = moving
    commits = head_of(hub, base), head_of(hub, f"datasets/{data}")

    def after_a_move(what):
        def load(*args, **settings):
            move(base, seed=len(hub.requests))
            move(data, num_train=40)
            return what(*args, **settings)

        return load

    story = finetune.engine if method == "head" else recipe_of(method)
    for name in steps:
        place = story if hasattr(story, name) else finetune.models.load  # where a family takes it from
        monkeypatch.setattr(place, name, after_a_move(getattr(place, name)))
    words = ["--model_name_or_path", base, "--dataset_name", data, "--learning_rate", "0"]
    record = train(tmp_path / "run", method, *words)
    assert (record["pretrained"], record["data"]["commit"]) == commits
    assert record["data"]["splits"]["train"]["rows"] == 54
    trained, stored = weights_of(tmp_path / "run"), load_file(tmp_path / "bert/model.safetensors")
    name = "bert.encoder.layer.1.attention.self.query.weight"
    assert torch.equal(trained[name], stored[name])


def test_a_run_is_not_resumed_on_another_commit_unless_it_changes_nothing(hub, moving, tmp_path, monkeypatch, capsys):
    base, data, move = moving
    words = ["--model_name_or_path", base, "--dataset_name", data, "--save_strategy", "steps", "--save_steps", "1"]
    commits = head_of(hub, base), head_of(hub, f"datasets/{data}")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("finetune.run.run.Run.save_model", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", "lora", *words)
    move(base, seed=1)
    with pytest.raises(FinetuneError, match=rf"the model '{base}' \(pass --model_revision {commits[0]}\)"):
        train(tmp_path / "run", "lora", *words)
    words += ["--model_revision", commits[0]]
    move(data, num_train=40)
    with pytest.raises(
        FinetuneError, match=rf"split 'train' has changed since \(pass --dataset_revision {commits[1]}\)"
    ):
        train(tmp_path / "run", "lora", *words)
    same_rows = move(data, card="Another card")
    record = train(tmp_path / "run", "lora", *words)
    assert f"the data set moved from commit {commits[1]} to {same_rows}" in capsys.readouterr().err
    assert (record["pretrained"], record["data"]["commit"]) == (commits[0], same_rows)


def test_a_resume_on_the_data_set_s_earlier_commit(hub, moving, tmp_path, monkeypatch):
    _, data, move = moving
    words = ["--dataset_name", data, "--save_strategy", "steps", "--save_steps", "1"]
    commit = head_of(hub, f"datasets/{data}")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("finetune.run.run.Run.save_model", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", "head", *words)
    move(data, num_train=40)
    record = train(tmp_path / "run", "head", *words, "--dataset_revision", commit)
    assert (record["status"], record["data"]["commit"]) == ("complete", commit)
    assert "changes" not in record


def test_private_repositories_and_branches_are_taken_with_a_token_and_then_from_the_cache(hub, moving, tmp_path):
    base, data, _ = moving
    commits = (
        hub.add_commit(base, write_bert(tmp_path / "small", seed=2), branch="small"),
        hub.add_commit(f"datasets/{data}", write_imdb(tmp_path / "short", num_train=40), branch="short"),
    )
    words = ["--model_name_or_path", base, "--dataset_name", data, "--model_revision", "small",
             "--dataset_revision", "short"]  # fmt: skip
    private = ["--model_name_or_path", "me/private-bert", "--dataset_name", "me/private-imdb"]
    for where in (contextlib.nullcontext(), offline()):
        with where:
            folder = tmp_path / type(where).__name__
            record = train(folder / "branch", "lora", *words)
            assert (record["pretrained"], record["data"]["commit"]) == commits
            assert record["data"]["splits"]["train"]["rows"] == 36
            record = train(folder / "private", "lora", *private)
            assert record["pretrained"] == head_of(hub, "me/private-bert")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model_name_or_path", "me/private-bert"], r"'me/private-bert' on .* is private \(401\)"),
        (["--dataset_name", "me/private-imdb"], r"'me/private-imdb' on .* is private \(401\)"),
        (["--model_revision", "v9"], f"No revision 'v9' of the model '{BERT}' on the Hub. Pass another --model_rev"),
        (["--dataset_revision", "v9"], f"No revision 'v9' of the data set '{IMDB}' on the Hub. Pass another --data"),
        (["--model_name_or_path", "me/x--y"], "No model can be named 'me/x--y' on the Hub"),
        (["--model_revision", "1" * 40], f"Expected the revision in '{BERT}'"),
        # Older versions of datasets turn to the cache where the Hub has no such commit.
        (
            ["--dataset_revision", "1" * 40],
            f"Expected to load the data set '{IMDB}' from the Hub|No copy of the .* 1{{40}} is",
        ),
    ],
)
def test_what_is_not_on_the_hub_is_said_in_one_line_and_leaves_nothing(hub, tmp_path, monkeypatch, words, message):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(FinetuneError, match=message) as caught:
        train(tmp_path / "run", "full", *words)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_hub_that_is_down_is_said_and_the_cache_is_taken_only_when_asked_for(hub, monkeypatch, capsys):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    commit = find_commit(BERT)
    hub.inject("503", 0, times=1000)
    with pytest.raises(FinetuneError, match=r"the Hub answered 503\. Run .* later, or set HF_HUB_OFFLINE=1"):
        find_commit(BERT)
    hub.faults.clear()
    with offline():
        assert find_commit(BERT) == commit
    capsys.readouterr()


def test_the_libraries_don_t_ask_a_hub_that_did_not_answer_once(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    reach_hub.cache_clear()
    assert not reach_hub()
    before = len(hub.requests)
    with pytest.raises(OSError, match="offline mode"):
        AutoConfig.from_pretrained("me/never-loaded")
    with pytest.raises(ConnectionError, match=r"OfflineModeIsEnabled|Offline mode"):
        datasets.load_dataset("me/never-loaded")  # whose own setting still names the hub that runs
    assert len(hub.requests) == before
    reach_hub.cache_clear()


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_what_is_not_in_the_cache_is_said_in_one_line(hub, moving, tmp_path, kind):
    name = moving[kind == "dataset"]
    flag, instead = {
        "model": ("--model_name_or_path", "--model_name_or_path embedded or a folder"),
        "dataset": ("--dataset_name", "--dataset_name embedded or your own --train_file"),
    }[kind]
    train(tmp_path / "online", "full")
    with (
        offline(),
        pytest.raises(FinetuneError, match=f"^No copy of the .* '{name}' in the cache.*{instead}") as caught,
    ):
        train(tmp_path / "run", "full", flag, name)
    assert "\n" not in str(caught.value)


def test_offline_no_other_version_of_the_data_takes_the_place_of_the_one_asked_for(hub, moving):
    _, data, move = moving
    rows = {head_of(hub, f"datasets/{data}"): 60, move(data, num_train=40): 40}
    for commit, count in rows.items():
        given = load_given_splits(DataArguments(dataset_name=data, dataset_revision=commit))
        assert len(given["train"]) == count
    refused = []
    with offline():
        for commit, count in rows.items():
            try:
                given = load_given_splits(DataArguments(dataset_name=data, dataset_revision=commit))
            except FinetuneError as error:
                refused.append(str(error))
            else:
                assert len(given["train"]) == count
    assert len(refused) < 2
    assert all(
        re.match(r"No copy of .* whose latest is at \w{40}\. Pass that as --dataset_revision", line) for line in refused
    )


def test_a_data_set_without_a_card_and_one_in_a_folder(hub, tmp_path):
    folder = write_imdb(tmp_path / "imdb")
    (folder / "README.md").unlink()
    commit = hub.add_repository("datasets/me/bare", folder)
    arguments = DataArguments(dataset_name="me/bare")
    for where in (contextlib.nullcontext(), offline()):
        with where:
            assert find_commit("me/bare", None, "dataset") == commit
            assert len(load_given_splits(arguments)["train"]) == 60
    assert len(load_given_splits(DataArguments(dataset_name=str(folder)))["test"]) == 30


@pytest.mark.slow
def test_the_canonical_command_as_it_is_typed(hub, tmp_path):
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_TOKEN_PATH"):
        del environment[name]
    weights = []
    for where, words in (
        ("online", ["--push_to_hub", "--hub_model_id", "me/canonical", "--hub_private_repo", "false"]),
        ("offline", []),
    ):
        environment["HF_HUB_OFFLINE"] = str(int(where == "offline"))
        command = [
            sys.executable,
            str(ROOT / "recipes/imdb.py"),
            "--config",
            PRESET,
            "--method",
            "lora",
            *QUICK,
            *words,
        ]
        done = subprocess.run(
            [*command, "--output_dir", str(tmp_path / where)],
            capture_output=True, text=True, env=environment, cwd=tmp_path, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        weights.append((tmp_path / where / "model/adapter_model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert load("me/canonical")[0].config.id2label == {0: "neg", 1: "pos"}
