"""Small real parts: a two-layer BERT of width 16 with its tokenizer, and sixty reviews that it can learn."""

import getpass
import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# What torch.compile has kept it takes for the present processor's, also where this switch plays an older one.
os.environ["TORCHINDUCTOR_CACHE_DIR"] = "/".join(
    [tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}", os.environ.get("ATEN_CPU_CAPABILITY", "native")]
)

import csv
import functools
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import pandas as pd
import pytest
import torch
import transformers
from filelock import FileLock
from huggingface_hub import constants
from packaging.version import Version
from transformers import BertConfig, BertModel, BertTokenizerFast

import finetune
from finetune.hub_client import reach_hub

METHODS = ("full", "lora", "head", "textcnn", "tfidf")
BROWSER, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
ROOT = Path(__file__).parent.parent
CAN_EXPORT = Version(transformers.__version__) >= Version("5.23")
needs_exporters = pytest.mark.skipif(not CAN_EXPORT, reason="an export needs transformers 5.23")
GOOD = ["good", "great", "fine", "lovely", "superb"]
BAD = ["bad", "awful", "dull", "poor", "boring"]
OTHER = ["the", "a", "film", "plot", "actor", "was", "is", "very", "and", "of", "!", ".", "story", "scene", "this"]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def write_tiny_bert(folder: Path, seed: int = 0) -> str:
    """Write a random `BertModel` (no classification head) and its tokenizer."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *OTHER]
    tokenizer = BertTokenizerFast(vocab={word: number for number, word in enumerate(words)}, model_max_length=32)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    torch.manual_seed(seed)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> str:
    """A folder with a random `BertModel` (no classification head) and its tokenizer."""
    return write_tiny_bert(tmp_path_factory.mktemp("tiny-bert"))


def find_weights(folder):
    """Find the file of weights in a model folder, beside the held-out rows."""
    (file,) = (file for file in Path(folder).glob("*.safetensors") if file.name != "validation.safetensors")
    return file


def make_reviews(count: int, offset: int = 0) -> list[tuple[str, str]]:
    """Make distinct reviews, labels in turns; the label is in one word."""
    rows = []
    for number in range(offset, offset + count):
        words = GOOD if number % 2 else BAD
        filler = [OTHER[(number * 7 + position * (number % 5 + 1)) % len(OTHER)] for position in range(3 + number % 9)]
        filler.insert(number % len(filler), words[number // 2 % len(words)])
        rows.append((" ".join([*filler, OTHER[number % 15], OTHER[number // 15 % 15]]), "pos" if number % 2 else "neg"))
    return rows


def make_frame(count: int = 60, offset: int = 0) -> pd.DataFrame:
    """Make reviews with columns `text` and `label`."""
    return pd.DataFrame(make_reviews(count, offset), columns=["text", "label"])


def train_on_frames(quick: dict, folder: Path, model: str, change=lambda frame: frame, **settings):
    """Train on sixty reviews, of which `change` makes another task, with 20 for validation and 30 for testing."""
    given = {"validation": change(make_frame(20, 100)), "test": change(make_frame(30, 200))}
    settings = {**quick, "model_name_or_path": model, **given, **settings}
    return finetune.train(change(make_frame()), output_dir=folder, **settings)


def write_csv(path: Path, rows: list[tuple[str, str]]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return str(path)


@pytest.fixture(scope="session")
def reviews(tmp_path_factory) -> dict[str, str]:
    """Three files of reviews, as the flags of a recipe."""
    folder = tmp_path_factory.mktemp("reviews")
    return {
        "--train_file": write_csv(folder / "train.csv", make_reviews(60)),
        "--validation_file": write_csv(folder / "validation.csv", make_reviews(20, offset=100)),
        "--test_file": write_csv(folder / "test.csv", make_reviews(30, offset=200)),
    }


@pytest.fixture(scope="session")
def flags(reviews, tiny_bert) -> list[str]:
    """The flags of a run that ends within a second: the three files, the tiny model, one epoch in fp32."""
    words = [word for pair in reviews.items() for word in pair]
    return [*words, "--model_name_or_path", tiny_bert, "--max_length", "24", "--num_train_epochs", "1",
            "--bf16", "false", "--num_threads", "1"]  # fmt: skip


def connect(server, patch, cache: Path, token: str) -> None:
    """Let this process, and those that it starts, talk to a hub of the tests, with caches of their own."""
    files, prepared = str(cache / "hub"), str(cache / "datasets")
    patch.setattr(constants, "ENDPOINT", server.url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "HF_HUB_CACHE", files)
    patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    patch.setattr(datasets.config, "HF_ENDPOINT", server.url)
    patch.setattr(datasets.config, "HUB_DATASETS_URL", server.url + "/datasets/{repo_id}/resolve/{revision}/{path}")
    patch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", Path(prepared))
    for name, value in {
        "HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_CACHE": files,
        "HF_DATASETS_CACHE": prepared, "HF_TOKEN_PATH": str(cache / "token"), "HF_TOKEN": token,
    }.items():  # fmt: skip
        patch.setenv(name, value)
    reach_hub.cache_clear()


def load_recipe(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"recipes/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def recipe_of(method):
    """The recipe that is written for a method; recipes/classify.py, which has them all, where there is none."""
    return load_recipe({"full": "imdb", "lora": "imdb", "textcnn": "textcnn"}.get(method, "classify"))


@pytest.fixture(scope="session")
def imdb():
    """The module recipes/imdb.py."""
    return recipe_of("full")


@pytest.fixture(scope="session")
def classify():
    """The module recipes/classify.py."""
    return recipe_of("any")


def make_once(tmp_path_factory, name: str, make: Callable[[Path], None]) -> Path:
    """Make a folder, to be read only; with pytest-xdist the first worker that needs it makes it for all."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            folder.mkdir()
            try:
                make(folder)
            except BaseException:
                shutil.rmtree(folder)
                raise
    return folder


@pytest.fixture(scope="session")
def runs(flags, tmp_path_factory):
    """One finished run of each method, to be read only."""

    def train(folder):
        for method in METHODS:
            extra = ["--num_train_epochs", "4"] if method == "textcnn" else []
            recipe_of(method).main([*flags, *extra, "--method", method, "--output_dir", str(folder / method)])

    return make_once(tmp_path_factory, "runs", train)


@pytest.fixture(scope="session")
def exports(runs, tmp_path_factory):
    """Runs as ONNX: an encoder, an adapter that is merged, a TextCNN, and the encoder in 8 bits."""
    if not CAN_EXPORT:
        pytest.skip("an export needs transformers 5.23")
    from finetune.cli import main

    def export(folder):
        for name in ("full", "lora", "textcnn"):
            main(["export", str(runs / name), str(folder / name), "--format", "onnx", "--num_threads", "1"])
        flags = ["--format", "onnx", "--int8", "--tolerance", "100", "--num_threads", "1"]
        main(["export", str(runs / "full"), str(folder / "int8"), *flags])

    return make_once(tmp_path_factory, "exports", export)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium with a profile of its own. Without it the tests are skipped, but fail where CI is set."""
    if BROWSER is None or DRIVER is None:
        message = "Expected chromium and chromedriver, but found no such command. On Debian: apt-get install chromium chromium-driver"  # noqa: E501
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking",
                 "disable-component-update", "disable-sync", "disable-dev-shm-usage",
                 f"user-data-dir={tmp_path_factory.mktemp('profile')}"):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def open_page(browser, address, width=1280, scheme="light"):
    """Open an address at a width of pixels and in a colour scheme, with logs that begin there."""
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(address)


def read_requests(browser):
    """List the addresses that were asked for since a page was opened, without those of the browser's own pages."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    return [url for url in sent if not url.startswith(("chrome://", "chrome-untrusted://"))]
