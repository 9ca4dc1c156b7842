"""Push to a real HTTP server that speaks the Hub's protocol, pull it back, and use it as a stranger would.

`python tests/test_push.py --times 20` injects each fault that often, at random points.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import connect, recipe_of
from hub_server import HubServer, forms_of
from huggingface_hub import HfApi, ModelCard, constants
from huggingface_hub.repocard_data import model_index_to_eval_results
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from finetune import hub_client as hub_module
from finetune.cli import main as finetune_command
from finetune.data.cutting import TextConfig
from finetune.data.embedded import EMBEDDED_MODEL_ID, EMBEDDED_MODEL_REVISION, find_embedded_model
from finetune.errors import FinetuneError
from finetune.families.encoder import Encoder
from finetune.families.save import write_model
from finetune.family import Shipped
from finetune.hub.push import upload_folder
from finetune.inference.load import load
from finetune.inference.predict import load_predictor
from finetune.methods.merging import merge_adapter
from finetune.models.finetune_config import read_finetune_config

TOKEN = "hf_" + "abcdefghij" * 3
TEXTS = ["a great film", "this was awful !", "good", "the plot of the story was very dull and boring . " * 9]
RETRIED = ("500", "503", "reset", "lost", "slow")
REFUSED = {"401": "log in", "403": "forbids", "404": "does not exist", "409": "somebody else"}
NAMES = {name: f"me/{name}" for name in ("full", "lora", "textcnn", "tfidf", "adapter")}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub that this process and those that it starts talk to, with an empty cache of it."""
    with (
        HubServer(tmp_path_factory.mktemp("hub"), secret=TOKEN).running() as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        connect(server, patch, tmp_path_factory.mktemp("cache"), TOKEN)
        yield server
    hub_module.reach_hub.cache_clear()


@pytest.fixture(scope="module")
def more_runs(imdb, flags, runs, tmp_path_factory):
    """The runs of conftest, and one whose adapter is on the embedded model."""
    folder = tmp_path_factory.mktemp("more")
    imdb.main(
        [*flags, "--method", "lora", "--output_dir", str(folder / "adapter"), "--no_floor",
         "--model_name_or_path", "embedded", "--max_steps", "2", "--eval_strategy", "steps", "--save_strategy",
         "steps", "--eval_steps", "2", "--save_steps", "2"]
    )  # fmt: skip
    return {**{name: runs / name for name in NAMES if name != "adapter"}, "adapter": folder / "adapter"}


@pytest.fixture(scope="module")
def workplaces(tmp_path_factory):
    """The temporary folders of pushes, which are kept here, and a log of all that any library has to say."""
    folder = tmp_path_factory.mktemp("workplaces")

    @contextlib.contextmanager
    def kept():
        yield tempfile.mkdtemp(dir=folder)

    handler = logging.FileHandler(folder / "everything.log")
    logging.root.addHandler(handler)
    level = logging.root.level
    logging.root.setLevel(logging.DEBUG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetune.hub.push.tempfile", SimpleNamespace(TemporaryDirectory=kept))
        yield folder
    logging.root.setLevel(level)
    logging.root.removeHandler(handler)


@pytest.fixture(scope="module")
def pushed(hub, more_runs, workplaces):
    """All of them on the hub, by the command, with faults on the way; gives what it printed."""
    printed = {}
    for number, (method, name) in enumerate(NAMES.items()):
        hub.inject(RETRIED[number % len(RETRIED)], number + 3)
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            finetune_command(["push", str(more_runs[method]), name, *(["--adapter"] if method == "adapter" else [])])
        printed[method] = out.getvalue()
    hub.faults.clear()
    return printed


STRANGER = """
import json, sys
import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

torch.set_num_threads(1)
found = {}
for method, (name, snippet) in json.loads(sys.argv[1]).items():
    if method == "tfidf":
        continue
    space = {}
    exec(snippet, space)
    classify = space["classify"]
    found[method] = [{one["label"]: one["score"] for one in all_of_them}
                     for all_of_them in classify(json.loads(sys.argv[2]), truncation=True, top_k=None)]
print(json.dumps(found))
"""


def snippet_of(hub, name):
    card = hub.files_of(name)["README.md"].decode()
    return re.search(r"```python\n(.*?)\n```", card, re.DOTALL)[1]


def test_a_stranger_gets_the_same_probabilities_by_the_card_s_snippet(hub, pushed, more_runs, tmp_path):
    hub.add_repository(EMBEDDED_MODEL_ID, find_embedded_model(), EMBEDDED_MODEL_REVISION)
    asked = {method: (name, snippet_of(hub, name)) for method, name in NAMES.items()}
    environment = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "PYTHONPATH")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", STRANGER, json.dumps(asked), json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for method in NAMES.keys() - {"tfidf"}:
        logits = load_predictor(more_runs[method], torch.float32).compute_logits(TEXTS)[0]
        expected = torch.from_numpy(logits).softmax(dim=1)
        for row, probabilities in zip(expected, found[method], strict=True):
            assert probabilities == {
                "neg": pytest.approx(float(row[0]), abs=1e-5), "pos": pytest.approx(float(row[1]), abs=1e-5)
            }, method  # fmt: skip


@pytest.mark.parametrize("method", NAMES)
def test_push_says_what_it_checked_and_the_pulled_model_has_equal_logits(hub, pushed, more_runs, method):
    assert "reloaded in a fresh process: " in pushed[method]
    assert ", private" in pushed[method]
    assert "downloaded into an empty cache: " in pushed[method]
    assert hub.repositories[NAMES[method]]["private"]
    commit = re.search(r"commit (\w{40})", pushed[method])[1]
    found = load_predictor(f"{NAMES[method]}@{commit}", torch.float32).compute_logits(TEXTS)[0]
    expected = load_predictor(more_runs[method], torch.float32).compute_logits(TEXTS)[0]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_lies_on_the_hub_is_these_files_and_names_nothing_of_this_machine(hub, pushed, more_runs, tiny_bert):
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    whole = {"config.json", "model.safetensors", *tokenizer}
    files = {
        "full": whole, "lora": whole, "textcnn": whole | {"textcnn.py"},
        "adapter": {"adapter_config.json", "adapter_model.safetensors", "label_names.json", *tokenizer},
        "tfidf": {"label_names.json", "tfidf.safetensors", "tfidf_terms.json"},
    }  # fmt: skip
    beside = {".gitattributes", "README.md", "finetune_config.json", "decisions.json", "validation.safetensors",
              "checksums.json"}  # fmt: skip
    local = [str(Path(tiny_bert).parent), str(Path.home()), str(more_runs["full"].parent), str(find_embedded_model())]
    for method, name in NAMES.items():
        stored = hub.files_of(name)
        assert stored.keys() == files[method] | beside, method
        for path, content in stored.items():
            assert TOKEN.encode() not in content, path
            assert not [word for word in local if word.encode() in content], (method, path)
            assert b"optimizer" not in content or path.endswith((".json", ".safetensors", ".md")), path
    adapter = json.loads(hub.files_of(NAMES["adapter"])["adapter_config.json"])
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == (EMBEDDED_MODEL_ID, EMBEDDED_MODEL_REVISION)


def test_the_card_claims_the_figures_of_the_run(hub, pushed, more_runs):
    for method, name in NAMES.items():
        record = json.loads((more_runs[method] / "run.json").read_text())
        card = ModelCard(hub.files_of(name)["README.md"].decode())
        _, results = model_index_to_eval_results(card.data.to_dict()["model-index"])
        claimed = {(result.dataset_split, result.metric_name): result for result in results}
        assert len(claimed) == 10
        for (split, metric), result in claimed.items():
            measured = record["metrics"][split]
            assert result.metric_value == measured[metric]
            assert result.metric_args["num_examples"] == measured["num_examples"]
            if metric == "accuracy":
                assert result.metric_args["interval_95"] == measured["accuracy_interval"]
            assert result.dataset_args["sha256"] == record["data"]["splits"][split]["sha256"]
        assert record["command"][0] in card.text
        assert "`neg`" in card.text


def test_predict_and_evaluate_take_a_name_on_the_hub(hub, pushed, reviews, more_runs, capsys):
    finetune_command(["predict", "me/textcnn", *TEXTS, "--num_threads", "1"])
    from_hub = capsys.readouterr().out
    finetune_command(["predict", str(more_runs["textcnn"]), *TEXTS, "--num_threads", "1"])
    assert from_hub == capsys.readouterr().out
    finetune_command(["evaluate", "me/textcnn@main", "--test_file", reviews["--test_file"], "--num_threads", "1"])
    accuracy = json.loads((more_runs["textcnn"] / "run.json").read_text())["metrics"]["test"]["accuracy"]
    assert f"{accuracy:.4f}" in capsys.readouterr().out


def test_a_recipe_trains_and_pushes(hub, flags, workplaces, tmp_path, capsys):
    words = ["--method", "textcnn", "--push_to_hub", "--hub_model_id", "me/recipe", "--hub_private_repo", "false"]
    recipe_of("textcnn").main([*flags, *words, "--no_floor", "--output_dir", str(tmp_path / "run")])
    assert "downloaded into an empty cache: " in capsys.readouterr().out
    assert not hub.repositories["me/recipe"]["private"]
    assert {"README.md", "model.safetensors", "textcnn.py"} <= hub.files_of("me/recipe").keys()
    expected = load_predictor(tmp_path / "run").compute_logits(TEXTS)[0]
    np.testing.assert_allclose(load_predictor("me/recipe").compute_logits(TEXTS)[0], expected, atol=1e-6)


@pytest.mark.slow
def test_a_merged_model_replaces_the_adapter_that_was_pushed_before(hub, more_runs, capsys):
    finetune_command(["push", str(more_runs["adapter"]), "me/both", "--adapter", "--revision", "small"])
    finetune_command(["push", str(more_runs["lora"]), "me/both", "--revision", "small", "--message", "Merged"])
    files = hub.files_of("me/both", "small")
    assert {"model.safetensors", "config.json"} <= files.keys()
    assert not {"adapter_config.json", "adapter_model.safetensors", "label_names.json"} & files.keys()
    assert hub.files_of("me/both").keys() == {".gitattributes"}  # main
    assert 'revision="small"' in files["README.md"].decode()
    capsys.readouterr()


@pytest.fixture
def folder(tmp_path):
    """A folder with a small file and a large one."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "model.safetensors").write_bytes(random.Random(0).randbytes(200_000))
    return folder


def push_folder(server, folder, name, message="m"):
    return upload_folder(HfApi(endpoint=server.url, token=TOKEN), folder, name, message=message)


def count_requests(server, folder, name):
    before = len(server.requests)
    push_folder(server, folder, name)
    return len(server.requests) - before


def push_with_fault(server, folder, name, fault, at):
    """Push while a request fails; tell what was said, and whether the whole folder is there, or nothing of it."""
    server.inject(fault, at)
    try:
        commit, error = push_folder(server, folder, name), None
    except FinetuneError as refusal:
        commit, error = None, str(refusal)
    server.faults.clear()
    files = server.files_of(name) if name in server.repositories else {}
    files.pop(".gitattributes", None)
    wanted = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert files in ({}, wanted), f"{fault} at request {at} left {sorted(files)}"
    assert (commit is not None) == (error is None)
    if commit is not None:
        assert files == wanted
    return error


def no_waiting(patch):
    """Let the client try again at once; the server's slowness is not `time.sleep`."""
    patch.setattr(time, "sleep", lambda seconds: None)


@pytest.mark.parametrize("fault", RETRIED)
def test_what_passes_is_tried_again(hub, folder, fault, monkeypatch, capsys):
    no_waiting(monkeypatch)
    hub.slow_seconds = 0.2
    count = count_requests(hub, folder, f"me/count-{fault}")
    random.seed(fault)
    for at in sorted({*random.sample(range(count), 3), count - 1}):
        assert push_with_fault(hub, folder, f"me/{fault}-{at}", fault, at) is None
    shas = {name: list(one["commits"]) for name, one in hub.repositories.items() if name.startswith(f"me/{fault}-")}
    assert all(len(commits) == 2 for commits in shas.values())  # the first, and ours, once
    capsys.readouterr()


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_refused_says_so_in_one_line(hub, folder, fault, monkeypatch):
    no_waiting(monkeypatch)
    count = count_requests(hub, folder, f"me/count-{fault}")
    random.seed(fault)
    said = [push_with_fault(hub, folder, f"me/{fault}-{at}", fault, at) for at in random.sample(range(count), 3)]
    said.append(push_with_fault(hub, folder, f"me/{fault}-last", fault, count - 1))
    assert REFUSED[fault] in said[-1]
    assert all("\n" not in line for line in said if line)


def test_pushing_again_changes_nothing(hub, folder):
    first = push_folder(hub, folder, "me/again")
    assert push_folder(hub, folder, "me/again") == first
    (folder / "config.json").write_text('{"a": 2}')
    assert push_folder(hub, folder, "me/again") != first


def test_a_hub_that_stays_broken_is_given_up_on(hub, folder, monkeypatch, capsys):
    no_waiting(monkeypatch)
    hub.inject("503", 0, times=1000)
    with pytest.raises(FinetuneError, match="answered 503"):
        push_folder(hub, folder, "me/broken")
    hub.faults.clear()
    assert "trying again" in capsys.readouterr().err
    assert "me/broken" not in hub.repositories


@pytest.mark.parametrize(
    ("token", "name", "extra", "message"),
    [
        ("", "me/x", [], "hf auth login"),
        ("hf_wrong", "me/x", [], "refuses it (401)"),
        ("hf_read", "me/new", [], "forbids it (403)"),
        (TOKEN, "you/x", [], "Pass me/x"),
        (TOKEN, "x", [], "as user/name"),
        (TOKEN, "me/public", [], "Pass --public"),
        (TOKEN, "me/x", ["--adapter"], "it is a whole model"),
        (TOKEN, "me/x", ["--card", "CARD"], "no section '## Results'"),
    ],
)
def test_what_can_t_be_pushed_ends_with_one_line(
    hub, pushed, runs, token, name, extra, message, monkeypatch, capsys, tmp_path
):
    no_waiting(monkeypatch)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    else:
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    if name == "me/public":
        HfApi(token=TOKEN).create_repo(name, private=False, exist_ok=True)
    if "CARD" in extra:
        card = hub.files_of("me/full")["README.md"].decode().replace("## Results", "## Figures")
        (tmp_path / "card.md").write_text(card)
        extra = ["--card", str(tmp_path / "card.md")]
    with pytest.raises(SystemExit) as caught:
        finetune_command(["push", str(runs / "head"), name, *extra])
    assert caught.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1]
    assert TOKEN not in "".join(error)
    assert "me/x" not in hub.repositories


def test_a_model_that_does_not_reload_is_not_pushed(hub, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("finetune.hub.push.compute_logits_elsewhere", lambda *_: np.zeros((16, 2)))
    with pytest.raises(SystemExit):
        finetune_command(["push", str(runs / "head"), "me/unequal"])
    assert "Nothing was pushed" in capsys.readouterr().err
    assert "me/unequal" not in hub.repositories


def test_without_a_network(hub, runs, monkeypatch, capsys):
    monkeypatch.setattr(constants, "ENDPOINT", "http://localhost:1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub_module.reach_hub.cache_clear()
    for command in (["push", str(runs / "head"), "me/x"], ["predict", "me/nothing", "a text"]):
        with pytest.raises(SystemExit):
            finetune_command(command)
        error = capsys.readouterr().err
        assert "does not answer" in error
        assert error.count("\n") == 1
    hub_module.reach_hub.cache_clear()


def test_a_model_of_pairs_takes_pairs_alone_and_its_snippet_gives_one(tiny_bert, tmp_path, capsys):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert, id2label={0: "no", 1: "yes"})
    folder = tmp_path / "model"
    write_model(folder, Encoder(), model, AutoTokenizer.from_pretrained(tiny_bert), TextConfig(24), is_paired=True)
    predictor = load_predictor(folder, torch.float32)
    with pytest.raises(FinetuneError, match="Expected pairs of texts"):
        predictor.predict(["a good film"])
    config = read_finetune_config(folder)
    exec(Encoder().write_snippet(Shipped(str(folder), None, Encoder(), ["no", "yes"], config)), {})
    printed = capsys.readouterr().out
    expected = predictor.compute_probabilities(["A text to classify."], ["Its second text."])[0]
    assert float(re.search(r"'score': ([\d.]+)", printed)[1]) == pytest.approx(expected.max(), abs=1e-5)


@pytest.mark.parametrize("method", ["ia3", "vera", "oft", "lora"])
def test_adapters_merge_under_a_head_of_several_layers(tmp_path, tiny_bert, method):
    from test_reload import TOKENS, train_and_save, write_base

    base = write_base("roberta", tmp_path, tiny_bert)
    (tmp_path / "saved").mkdir()
    expected = train_and_save(tmp_path / "saved", base, method)["logits"]
    finetune_command(["merge", str(tmp_path / "saved" / method), str(tmp_path / "merged")])
    model, _ = load(tmp_path / "merged")
    with torch.no_grad():
        found = model(input_ids=torch.tensor(TOKENS)).logits
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=0)
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert not (tmp_path / "merged/adapter_config.json").exists()


def test_virtual_tokens_don_t_merge(tmp_path, tiny_bert):
    from test_reload import train_and_save, write_base

    base = write_base("bert", tmp_path, tiny_bert)
    (tmp_path / "saved").mkdir()
    train_and_save(tmp_path / "saved", base, "prompt")
    model, _ = load(tmp_path / "saved/prompt")
    with pytest.raises(FinetuneError, match="--adapter"):
        merge_adapter(model)


def test_a_token_is_in_the_authorization_of_requests_and_nowhere_else(
    hub, pushed, more_runs, folder, workplaces, monkeypatch, capfd
):
    no_waiting(monkeypatch)
    count = count_requests(hub, folder, "me/watched")
    for fault in (*RETRIED, *REFUSED):
        for at in (1, count - 1):
            push_with_fault(hub, folder, f"me/watched-{fault}-{at}", fault, at)
    written = [*pushed.values(), *capfd.readouterr()]
    files = [file for root in (workplaces, hub.folder, Path(constants.HF_HUB_CACHE), *more_runs.values())
             for file in root.rglob("*") if file.is_file()]  # fmt: skip
    assert {"README.md", "everything.log", "model.safetensors", "run.json"} <= {file.name for file in files}
    for form in forms_of(TOKEN):
        assert not [text for text in written if form.decode() in text]
        assert not [file for file in files if form in file.read_bytes()]
    assert hub.leaks == []
    assert "trying again" in "".join(written)


def test_the_search_for_a_token_finds_one(folder, tmp_path):
    (folder / "config.json").write_text(f'{{"a": "{TOKEN}"}}')  # in base64 in the commit
    (folder / "model.safetensors").write_bytes(b"1" + TOKEN.encode())  # as it is in an upload of LFS
    with HubServer(tmp_path / "hub", secret=TOKEN).running() as own:
        push_folder(own, folder, "me/leaking")
        assert {line.split()[0] for line in own.leaks} == {"POST", "PUT"}


def main() -> None:
    """Inject each fault many times at random points, and say what came of it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = False, True
    workplace = Path(tempfile.mkdtemp())
    (workplace / "folder").mkdir()
    (workplace / "folder/config.json").write_text('{"a": 1}')
    (workplace / "folder/model.safetensors").write_bytes(random.randbytes(3_000_000))
    with HubServer(workplace / "hub").running() as server, pytest.MonkeyPatch.context() as patch:
        server.slow_seconds = 0.3
        no_waiting(patch)
        count = count_requests(server, workplace / "folder", "me/count")
        for fault in (*RETRIED, *REFUSED):
            whole = 0
            for turn in range(options.times):
                name = f"me/{fault}-{turn}"
                whole += push_with_fault(server, workplace / "folder", name, fault, random.randrange(count)) is None
            print(f"{fault:<6} {options.times} times: {whole} whole, {options.times - whole} refused with a message")
    shutil.rmtree(workplace)


if __name__ == "__main__":
    main()
