"""Families: one that no file of the package names is added here, and does all that the others do."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, make_reviews
from safetensors.numpy import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

import finetune
from finetune.catalogue import CATALOGUE, FAMILIES, Method
from finetune.cli import main as finetune_command
from finetune.comparison.compare import TRAIN, Plan
from finetune.data.labels import task_of
from finetune.data.split import iterate_texts
from finetune.engine import parse_training
from finetune.errors import FinetuneError
from finetune.families.network import NetworkFamily
from finetune.families.textcnn.vocabulary import train_word_tokenizer
from finetune.family import Family, ModelFacts
from finetune.hub.stage import stage
from finetune.inference.load import load
from finetune.inference.predict import load_predictor
from finetune.inference.reload import compute_logits_elsewhere
from finetune.lookup import family_of, find_family, find_method, import_method
from finetune.models.answers import TextClassifier
from finetune.settings import declared
from finetune.settings.declaration import Setting
from finetune.settings.declared import declare, default_values
from finetune.settings.parts import setting
from finetune.tasks import Task

TESTS = ROOT / "tests"
LSTM_PATH, SHARES_PATH = "test_families:LSTM", "test_families:SHARES"
TEXTS = ["a good film", "dull and poor", "the plot was lovely !"]
QUICK = {"max_length": 24, "bf16": "false", "num_threads": 1, "floor": "false"}


class LSTMConfig(PreTrainedConfig):
    model_type = "lstm-of-the-tests"

    def __init__(self, vocab_size: int = 100, size: int = 16, pad_token_id: int = 0, **kwargs: Any):
        self.vocab_size, self.size, self.pad_token_id = vocab_size, size, pad_token_id
        super().__init__(**kwargs)


class LSTMForSequenceClassification(PreTrainedModel):
    config_class = LSTMConfig

    def __init__(self, config: LSTMConfig):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.size, padding_idx=config.pad_token_id)
        self.lstm = nn.LSTM(config.size, config.size, batch_first=True, bidirectional=True)
        self.classifier = nn.Linear(2 * config.size, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding | nn.LSTM | nn.Linear):
            module.reset_parameters()

    def forward(self, input_ids, attention_mask=None, labels=None):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        states = self.lstm(self.embedding(input_ids))[0].masked_fill(mask[..., None] == 0, float("-inf"))
        logits = self.classifier(states.amax(dim=1))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


AutoConfig.register(LSTMConfig.model_type, LSTMConfig, exist_ok=True)
AutoModelForSequenceClassification.register(LSTMConfig, LSTMForSequenceClassification, exist_ok=True)


@dataclass
class LSTMSettings:
    """The size of an LSTM."""

    _argument_group_name = "LSTM"

    lstm_size: Annotated[int, Setting(at_least=1)] = setting(16, "Size of its state.")


class LSTMFamily(NetworkFamily):
    """A bidirectional LSTM (Hochreiter and Schmidhuber 1997), its states pooled by their maximum."""

    settings = LSTMSettings

    def learns_tokens(self, settings):
        return True

    def load_tokenizer(self, arguments, train):
        return train_word_tokenizer(iterate_texts(train), 1_000, arguments.data.max_length)

    def build_model(self, arguments, tokenizer, task):
        size = arguments.family.lstm_size
        return LSTMForSequenceClassification(
            LSTMConfig(len(tokenizer), size, tokenizer.pad_token_id, **task.to_config())
        )


LSTM = Method(
    "an LSTM from scratch",
    "Hochreiter and Schmidhuber 1997",
    {"learning_rate": 2e-2, "num_train_epochs": 8, "warmup_steps": 0},
    family="test_families:LSTMFamily",
)


class SharesOfLabels(TextClassifier):
    """Gives every text the logarithms of the labels' shares."""

    def __init__(self, shares: np.ndarray, names: list[str]):
        self.shares, self.task = shares, Task("single_label_classification", names)

    def compute_logits(self, texts, pairs=None, on_batch=lambda num_examples: None):
        on_batch(len(texts))
        logits = np.tile(np.log(self.shares).astype(np.float32), (len(texts), 1))
        return logits, np.array([len(text.split()) for text in texts])


class SharesFamily(Family):
    """No network, and no chance in it."""

    is_deterministic = True
    precision = "fp64"
    also_uses = frozenset({"max_length"})

    def fit_rows(self, train, arguments):
        names = task_of(train.features).label_names
        return SharesOfLabels(np.bincount(train["label"], minlength=len(names)) / len(train), names)

    def save(self, model, tokenizer, folder, weights=None):
        save_file({"shares": model.shares}, folder / "shares.safetensors")
        (folder / "names.json").write_text(json.dumps(model.label_names))

    def load(self, folder, config, trust_remote_code=False):
        names = json.loads((folder / "names.json").read_text())
        return SharesOfLabels(load_file(folder / "shares.safetensors")["shares"], names), None

    def build_predictor(self, model, tokenizer, text_config=None, dtype=None, accelerated=True):
        return model

    def task_of(self, model):
        return model.task

    def describe(self, model):
        return ModelFacts("SharesOfLabels", model.shares.size, model.shares.size)

    def count_bytes(self, model):
        return model.shares.nbytes


SHARES = Method("the shares of the labels", "no paper", family="test_families:SharesFamily")


def frame(count=60, offset=0):
    return pd.DataFrame(make_reviews(count, offset), columns=["text", "label"])


def data():
    return {"validation": frame(20, 100), "test": frame(30, 200)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the LSTM, and one of the shares; to be read only."""
    folder = tmp_path_factory.mktemp("families")
    lstm = finetune.train(frame(), method=LSTM_PATH, output_dir=folder / "lstm", lstm_size=24, **data(), **QUICK)
    shares = finetune.train(frame(), method=SHARES_PATH, output_dir=folder / "shares", **data(), num_threads=1)
    return {"lstm": lstm, "shares": shares}


@pytest.fixture
def elsewhere(monkeypatch):
    """Other processes find this file."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(ROOT)]))


def test_an_lstm_learns_and_its_record_says_what_it_is(trained):
    record = trained["lstm"].record
    assert record.metrics.test.accuracy > 0.9
    assert record.method == LSTM_PATH
    assert record.arguments.family == {"lstm_size": 24}
    assert record.model.architecture == "LSTMForSequenceClassification"
    assert record.model.name is None
    assert record.arguments.training["learning_rate"] == 2e-2
    assert record.reload.max_difference < 1e-5
    assert json.loads((trained["lstm"].directory / "model/finetune_config.json").read_text())["family"] == (
        "test_families:LSTMFamily"
    )


def test_what_is_no_network_is_fitted_at_once(trained):
    record = trained["shares"].record
    assert record.metrics.test.accuracy == 0.5
    assert record.floor is not None
    assert record.costs.train_steps is None
    assert (record.environment.precision, record.model.architecture) == ("fp64", "SharesOfLabels")
    assert trained["shares"].predict(["any"])[0].probability == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["lstm", "shares"])
def test_it_predicts_and_reloads_in_a_fresh_process(trained, name, elsewhere):
    directory = trained[name].directory
    here = load_predictor(directory, torch.float32).compute_logits(TEXTS)[0]
    there = compute_logits_elsewhere(directory / "model", TEXTS, None)
    np.testing.assert_allclose(there, here, atol=1e-6)
    assert {one.label for one in finetune.load_classifier(directory).predict(TEXTS)} <= {"pos", "neg"}


def test_a_process_that_was_not_told_does_not_import_it(trained, elsewhere):
    code = f"import finetune, sys; finetune.load_classifier({str(trained['lstm'].directory)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "is of 'test_families:LSTMFamily', whose code would have to be run" in last
    assert "`import test_families` first, or pass --family test_families:LSTMFamily" in last


@pytest.mark.slow
def test_the_command_line_names_the_family(trained, elsewhere):
    command = [sys.executable, "-m", "finetune", "predict", str(trained["lstm"].directory), "good", "dull"]
    named = [*command, "--family", "test_families:LSTMFamily"]
    done = subprocess.run(named, capture_output=True, text=True, check=True)
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["pos", "neg"]


@pytest.mark.slow
def test_it_is_compared(tmp_path, elsewhere):
    found = finetune.compare(
        frame(), methods=[LSTM_PATH, "tfidf"], seeds=1, output_dir=tmp_path / "runs", **data(), **QUICK
    )
    assert found.failures == []
    assert sorted(path.name for path in (tmp_path / "runs").glob("*-seed*")) == [
        "test_families.LSTM-seed0",
        "tfidf-seed0",
    ]
    assert set(found.table().index) == {LSTM_PATH, "tfidf"}
    assert LSTM_PATH in found.verdict or "tfidf" in found.verdict


def test_without_chance_one_seed_is_enough(tmp_path):
    plan = Plan(TRAIN, [LSTM_PATH, "test_families.SHARES"], [0, 1], tmp_path)
    assert [(run.method, run.seed) for run in plan.runs] == [(LSTM_PATH, 0), (SHARES_PATH, 0), (LSTM_PATH, 1)]


def test_its_folder_has_a_name_that_goes_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = finetune.train(frame(), method=SHARES_PATH, num_threads=1, floor="false", **data())
    assert run.directory == Path("runs/test_families.SHARES-seed42")


def test_its_card_says_how_it_is_loaded(trained, tmp_path, elsewhere):
    staged = stage(trained["lstm"].directory, tmp_path / "model", "me/lstm", None)
    card = (tmp_path / "model/README.md").read_text()
    assert "Method `test_families:LSTM`: an LSTM from scratch (Hochreiter and Schmidhuber 1997)." in card
    assert "`lstm_size` 24" in card
    assert "library_name: finetune" in card
    assert 'finetune predict me/lstm "A text to classify." --family test_families:LSTMFamily' in card
    snippet = re.search(r"```python\n(.*?)\n```", card, re.DOTALL)[1]
    assert "import test_families" in snippet
    ran = subprocess.run(
        [sys.executable, "-c", snippet.replace("me/lstm", str(staged.folder))],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Prediction(labels=" in ran.stdout


def test_its_settings_are_checked_and_have_no_use_for_others(tmp_path, capsys):
    with pytest.raises(FinetuneError, match="Expected --lstm_size to be at least 1, but got 0"):
        finetune.train(frame(), method=LSTM_PATH, output_dir=tmp_path / "a", lstm_size=0, **data())
    others = {"lstm_size": 8, "textcnn_dropout": 0.1}
    finetune.train(frame(), method="tfidf", output_dir=tmp_path / "b", num_threads=1, **others, **data())
    assert "--method tfidf has no use for: lstm_size, textcnn_dropout" in capsys.readouterr().err


def test_a_yaml_file_names_it_and_has_settings_for_it_alone(tmp_path):
    (tmp_path / "train.csv").write_text(frame().to_csv(index=False))
    (tmp_path / "run.yaml").write_text(
        "method: test_families.LSTM\nlstm_size: 8\n"
        "test_families:LSTM:\n  learning_rate: 0.5\n"
        "elsewhere:OTHER:\n  its_own: 1\n"
        "tfidf:\n  max_train_samples: 10\n"
    )
    words = ["--train_file", str(tmp_path / "train.csv"), "--config", str(tmp_path / "run.yaml")]
    arguments = parse_training(words)
    assert (arguments.method.method, arguments.family.lstm_size) == (LSTM_PATH, 8)
    assert (arguments.training.learning_rate, arguments.data.max_train_samples) == (0.5, None)
    assert parse_training([*words, "--method", "tfidf"]).data.max_train_samples == 10
    with pytest.raises(FinetuneError, match="Expected a setting that is known, but found 'lstm_sizes'"):
        parse_training([*words, "--lstm_sizes", "3"])


def test_a_family_says_what_else_it_uses(tmp_path, capsys):
    words = {"max_length": 24, "truncation": "tail"}
    finetune.train(frame(), method=SHARES_PATH, output_dir=tmp_path / "run", num_threads=1, **words, **data())
    assert "has no use for: truncation\n" in capsys.readouterr().err


@pytest.mark.parametrize("declared_again", [True, False])
def test_a_module_that_is_loaded_again_declares_its_settings_again(monkeypatch, declared_again):
    for known in ("DECLARED", "OWN"):
        monkeypatch.setattr(declared, known, dict(getattr(declared, known)))
    part = make_dataclass("AgainSettings", [("again_size", int, setting(1, "A size."))])
    declare(part)
    other = make_dataclass("AgainSettings" if declared_again else "Other", [("again_size", int, setting(2, "A size."))])
    if declared_again:
        declare(other)
        assert default_values()["again_size"] == 2
    else:
        with pytest.raises(FinetuneError, match="'again_size' is taken"):
            declare(other)


@pytest.mark.parametrize("taken", ["max_length", "textcnn_dropout", "adam_beta1", "optim"])
def test_a_setting_whose_name_is_taken_is_refused(tmp_path, monkeypatch, taken):
    part = make_dataclass("Taking", [(taken, float, setting(0.5, "What it does."))])
    family = type("TakingFamily", (LSTMFamily,), {"settings": part, "__module__": "test_families"})
    monkeypatch.setitem(globals(), "TakingFamily", family)
    monkeypatch.setitem(globals(), "TAKING", Method("", "", family="test_families:TakingFamily"))
    with pytest.raises(FinetuneError, match=f"Expected settings with names of their own.*{taken}") as caught:
        finetune.train(frame(), method="test_families:TAKING", output_dir=tmp_path / "run", **data())
    assert "\n" not in str(caught.value)


def test_a_method_of_ones_own_can_be_of_a_family_that_is_there(tmp_path, tiny_bert, monkeypatch):
    module = tmp_path / "my_methods.py"
    module.write_text(
        "from finetune.catalogue import Method\n"
        'SMALL = Method("LoRA of rank 2", "Hu et al. 2022", {"learning_rate": 5e-4}, "LORA", {"r": 2})\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = finetune.train(
        frame(), method="my_methods.SMALL", model=tiny_bert, output_dir=tmp_path / "run", max_steps=2, **data(), **QUICK
    )
    assert run.record.method == "my_methods:SMALL"
    assert run.record.model.trainable_parameters < 1_000
    assert json.loads((run.directory / "model/adapter_config.json").read_text())["r"] == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("magic", "Expected a method of full, .*, or package.module:NAME of one of your own, but got 'magic'"),
        ("no_such_module:LSTM", "there is no module 'no_such_module'"),
        ("finetune.nowhere:LSTM", "there is no module 'finetune.nowhere'"),
        ("test_families:NOTHING", "Expected a method named 'NOTHING' in 'test_families', but it has none"),
        ("test_families:LSTMFamily", "Expected test_families:LSTMFamily to be a finetune.catalogue.Method"),
    ],
)
def test_what_is_no_method_is_refused_in_a_line(name, message):
    with pytest.raises(FinetuneError, match=message) as caught:
        import_method(name)
    assert "\n" not in str(caught.value)


def test_a_method_whose_family_is_none_is_refused(monkeypatch):
    monkeypatch.setitem(globals(), "ODD", Method("", "", family="test_families:LSTMConfig"))
    with pytest.raises(FinetuneError, match="Expected test_families:LSTMConfig to be a class derived from"):
        import_method("test_families:ODD")


def test_no_folder_and_no_record_makes_a_process_import_a_module(runs, tmp_path, monkeypatch, capsys):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'was_here')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    run = shutil.copytree(runs / "tfidf", tmp_path / "run")
    for name, key in (("model/finetune_config.json", "family"), ("run.json", "method")):
        content = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps({**content, key: "evil:Family"}))
    assert find_family("evil:Family") is None
    assert find_method("evil:Family").what == "evil:Family"
    assert find_family("os:system") is None
    for path in (run, run / "model"):
        with pytest.raises(
            FinetuneError, match=r"is of 'evil:Family', whose code would have to be run\. If you trust it"
        ):
            load(path)
    finetune_command(["report", str(run), "--output_dir", str(tmp_path / "report")])
    assert "evil:Family" in capsys.readouterr().out
    assert not (tmp_path / "was_here").exists()
    assert "evil" not in sys.modules


@pytest.mark.parametrize("method", ["full", "lora", "head", "textcnn", "tfidf"])
def test_folders_that_do_not_say_their_family_are_told_apart(runs, tmp_path, method):
    folder = shutil.copytree(runs / method / "model", tmp_path / "model")
    content = json.loads((folder / "finetune_config.json").read_text())
    assert content.pop("family") == CATALOGUE[method].family
    (folder / "finetune_config.json").write_text(json.dumps(content))
    expected = load_predictor(runs / method, torch.float32).compute_logits(TEXTS)[0]
    np.testing.assert_array_equal(load_predictor(folder, torch.float32).compute_logits(TEXTS)[0], expected)


def test_every_family_of_the_package_is_listed_and_cheap_to_import():
    code = (
        "import sys\nfrom finetune.catalogue import CATALOGUE, FAMILIES\nfrom finetune.lookup import import_family\n"
        "for name in FAMILIES:\n    import_family(name)\n"
        "assert {method.family for method in CATALOGUE.values()} <= set(FAMILIES)\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert [family_of(name).is_deterministic for name in ("full", "textcnn", "tfidf")] == [False, False, True]


@pytest.mark.parametrize("way", ["in Python", "by the command"])
def test_tfidf_predicts_without_torch(runs, way):
    folder = str(runs / "tfidf")
    code = {
        "in Python": f"import finetune; print(finetune.load_classifier({folder!r}).predict(['good'])[0].label)",
        "by the command": f"from finetune.cli import main; main(['predict', {folder!r}, 'good'])",
    }[way]
    heavy = {"torch", "transformers", "datasets", "huggingface_hub", "sklearn", "pandas"}
    code = f"import sys\n{code}\nassert not {heavy} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("pos")


# Names by which somebody could ask for a family; those of the encoder's methods are data of that family.
ASKED = {*FAMILIES, *(name for name, method in CATALOGUE.items() if method.family != "encoder")}
LISTED = {path.partition(":")[0] for path in FAMILIES.values()}


def find_questions(source):
    """Find where a module compares with the name of a family, imports one, or asks for a class of one."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in ASKED:
            yield f"{node.lineno}: {node.value!r}"
        if isinstance(node, ast.ImportFrom):
            modules = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        for module in modules:
            if any(f"{module}.".startswith(f"{listed}.") for listed in LISTED):
                yield f"{node.lineno}: import of {module}"


def test_nothing_outside_asks_for_a_family_by_name():
    package = ROOT / "finetune"
    files = [path for path in package.rglob("*.py") if path.relative_to(package).parts[0] != "families"]
    assert len(files) > 100
    asking = {
        str(path.relative_to(ROOT)): found
        for path in files
        # To whoever makes modules fast or counts layers, "encoder" and "embeddings" are parts of transformers' models;
        # in a run directory "encoder" is a folder; and pretraining pools as a checkpoint says, whatever the method.
        if not ({"catalogue.py", "accelerated", "depth.py", "adapted.py", "pretraining"} & set(path.parts))
        and (found := list(find_questions(path.read_text())))
    }
    assert asking == {}
    inside = {
        path.relative_to(package).parts[1]: list(find_questions(path.read_text()))
        for path in (package / "families").rglob("*.py")
    }
    assert inside["network.py"] == inside["save.py"] == []  # what all share asks neither


@pytest.mark.parametrize(
    "source",
    [
        'if method == "tfidf": pass',
        'match method:\n    case "textcnn": pass',
        'kinds = {"encoder": 1}',
        "from finetune.families.tfidf.classifier import TfidfClassifier",
        "from finetune.families import encoder",
        "import finetune.families.textcnn.textcnn",
    ],
)
def test_whoever_asked_would_be_found(source):
    assert list(find_questions(source)) != []


def test_the_example_of_the_docs_trains_and_reloads(tmp_path, monkeypatch):
    text = (ROOT / "docs/tutorials/add-a-family.md").read_text(encoding="utf-8")
    example, use = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[:2]
    (tmp_path / "averaging.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"frame": frame()}
    exec(use, names)
    assert names["run"].metrics["test"]["accuracy"] > 0.5
    assert names["run"].record.method == "averaging:AVERAGING"
    assert names["prediction"].label in ("pos", "neg")
