"""Names from outside are shown as they are, wherever a person reads them, and act nowhere; tokens are shown nowhere."""

import contextlib
import csv
import html.parser
import io
import json
import re
import shutil
import sys

import pytest
import yaml
from conftest import GOOD, make_reviews
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from finetune.cli import main as finetune_command
from finetune.data_doctor.findings import Finding, describe_findings
from finetune.errors import FinetuneError, exit_on_error
from finetune.escape import (
    blank_tokens,
    holds_token,
    show_hidden,
    to_html,
    to_markdown,
    to_markdown_code,
    to_terminal,
)
from finetune.family import Shipped
from finetune.hub.card import SECTIONS, build_card, check_card, read_results
from finetune.inference.load import find_saved_family
from finetune.models.finetune_config import read_finetune_config
from finetune.run.record import CompleteRecord

TOKEN = "hf_" + "aB3dE6gH9k" * 3
HOSTILE = [
    "a|b",
    "two\nlines\r\n# heading",
    "tick`s ``` fence\n```\n## How to use",
    "<img src=x onerror=alert(1)>",
    "\x1b[2J\x1b]0;owned\x07red\x9b31m",
    "\u202egnp.exe\u2066\u200b",
    "[x](javascript:alert) ![y](http://e.example/y)",
    "&lt;b&gt; $x^2$ ~~no~~ **no**",
    "- yes: no # comment",
    "---\nlibrary_name: evil\n---",
    "'\"; rm -rf / #",
    "  spaces  ",
]
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069]")
names = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=30))


@given(names)
def test_a_terminal_gets_one_line_without_any_control_character(name):
    shown = to_terminal(name)
    assert not CONTROLS.search(shown)
    assert shown == to_terminal(shown)
    if not CONTROLS.search(name) and name.isprintable() and not holds_token(name):
        assert shown == name


@given(names)
def test_html_shows_the_name_and_nothing_else(name):
    class Collector(html.parser.HTMLParser):
        text, tags = "", 0

        def handle_data(self, data):
            self.text += data

        def handle_starttag(self, tag, attrs):
            self.tags += 1
            self.attribute = dict(attrs).get("title")

    page = Collector()
    page.feed(f'<p title="{to_html(name)}">{to_html(name)}</p>')
    page.close()
    assert page.tags == 1
    assert page.text == page.attribute == to_terminal(name)


@given(names)
def test_code_in_markdown_is_a_cell_of_one_line(name):
    code = to_markdown_code(name, in_table=True)
    fence = re.match("`+", code)[0]
    assert "\n" not in code
    assert code.endswith(fence)
    assert fence not in re.findall("`+", code[len(fence) : -len(fence)])
    assert not re.search(r"(?<!\\)\|", code)
    assert not re.search(r"(?<!\\)[<>|`*_\[\]]", to_markdown(name))


@pytest.mark.parametrize(
    ("text", "blanked"),
    [
        (TOKEN, "[token]"),
        (f"my-{TOKEN}-run", "my-[token]-run"),
        (f"https://user:{TOKEN}@example.org/x.csv", "https://[token]@example.org/x.csv"),
        ("see https://me:pass@example.org:80/x?y=1.", "see https://[token]@example.org:80/x?y=1."),
        ("https://example.org/x?a=1&access_token=abc&b=2", "https://example.org/x?a=1&access_token=[token]&b=2"),
        ("google-bert/bert-base-uncased@main, hf_internal-testing", None),
        ("https://example.org/a@b?page=2 me@example.org", None),
    ],
)
def test_tokens_are_blanked_and_nothing_else(text, blanked):
    assert blank_tokens({"a": [text, 1, None]}) == {"a": [blanked or text, 1, None]}
    assert holds_token(text) == (blanked is not None)


def test_the_token_of_this_process_is_blanked_whatever_it_looks_like(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "an-odd-secret")
    assert to_terminal("with an-odd-secret in it") == "with [token] in it"


def test_an_error_a_warning_and_a_finding_are_lines_that_do_nothing(capsys):
    for name in HOSTILE:
        with pytest.raises(SystemExit), exit_on_error():
            raise FinetuneError(f"Expected a column, but got {name} {TOKEN}")
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert not CONTROLS.search(error[:-1])
        assert TOKEN not in error
        example = {"split": "t", "id": name, "label": name, "text": name}
        found = describe_findings([Finding("a", "note", ("train",), 1, f"saw {name}", "", (example,))])
        assert found.count("\n") == 2
        assert not CONTROLS.search(found.replace("\n", ""))


def with_labels(folder, names):
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("position", range(0, len(HOSTILE), 2))
def test_a_card_shows_hostile_names_and_is_whole(runs, tmp_path, position):
    labels = HOSTILE[position : position + 2]
    folder = shutil.copytree(runs / "full", tmp_path / "run")
    with_labels(folder / "model", labels)
    content = json.loads((folder / "run.json").read_text())
    text = json.dumps(content["metrics"]["test"]["per_class"])
    content["metrics"]["test"]["per_class"] = dict(zip(labels, json.loads(text).values(), strict=True))
    content["data"]["label_names"] = labels
    content["data"]["splits"]["test"]["origin"] = f"file {labels[0]}, {TOKEN}"
    content["arguments"]["data"]["test_file"] = f"/data/{labels[1]}.csv"
    content["command"] = ["imdb.py", "--train_file", labels[0], "--run_name", TOKEN]
    (folder / "run.json").write_text(json.dumps(content))
    record = CompleteRecord.read(folder)
    config = read_finetune_config(folder / "model")
    shipped = Shipped("me/x", None, find_saved_family(folder / "model", config), labels, config)
    card = build_card(shipped, record)
    check_card(card, shipped, record)
    assert TOKEN not in card
    assert not CONTROLS.search(card.replace("\n", ""))
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(card.split("\n---\n", 1)[1])
    inline = [child for token in tokens for child in token.children or ()]
    assert not {"html_block", "html_inline", "image", "link_open"} & {token.type for token in [*tokens, *inline]}
    headings = [tokens[at + 1].content for at, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings == ["x", *SECTIONS]
    code = [child.content.replace("\\|", "|") for child in inline if child.type == "code_inline"]
    assert all(code.count(to_terminal(label)) >= 2 for label in labels)  # in the first line, and in the table
    metadata = yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))
    assert metadata["library_name"] == "transformers"
    assert read_results(card)[("test", "accuracy")][0] == record.metrics.test.accuracy
    by_split = {one["dataset"]["split"]: one["dataset"]["name"] for one in metadata["model-index"][0]["results"]}
    assert by_split["validation"] == "validation.csv"
    assert by_split["test"] != by_split["validation"]


def test_predict_shows_on_a_terminal_and_hands_on_to_a_pipe(runs, tmp_path, monkeypatch):
    label, text = "\x1b[31mneg\u202e", f"{GOOD[0]} \x1b[2J film"
    folder = shutil.copytree(runs / "full/model", tmp_path / "model")
    with_labels(folder, [label, "pos"])
    labels = {}
    for is_terminal in (True, False):
        out = io.StringIO()
        out.isatty = lambda is_terminal=is_terminal: is_terminal
        monkeypatch.setattr(sys, "stdout", out)
        finetune_command(["predict", str(folder), text, "--num_threads", "1"])
        labels[is_terminal] = out.getvalue()
    assert not CONTROLS.search(labels[True].replace("\t", "").removesuffix("\n"))
    assert labels[False].rstrip("\n").split("\t")[2] == text
    assert show_hidden(labels[False].split("\t")[0]) == labels[True].split("\t")[0]


def test_a_run_on_hostile_names_says_them_in_lines_and_keeps_them_in_files(classify, tiny_bert, tmp_path, capfd):
    label, column = "\x1b[2Jbad|<b>", "te`xt\x1b[0m"
    file = tmp_path / "a\x1b[7m|b.csv"
    with file.open("w", newline="", encoding="utf-8") as opened:
        rows = [(text, label if name == "neg" else "pos") for text, name in make_reviews(90)]
        csv.writer(opened).writerows([(column, "label"), *rows])
    run = tmp_path / "run"
    words = ["--text_column", column, "--model_name_or_path", tiny_bert, "--method", "tfidf", "--no_floor",
             "--num_threads", "1", "--run_name", f"try-{TOKEN}", "--output_dir", str(run)]  # fmt: skip
    classify.main(["--train_file", str(file), *words])
    shown = capfd.readouterr()
    assert "\\x1b[2Jbad|<b>" in shown.out + shown.err
    assert not CONTROLS.search((shown.out + shown.err).replace("\n", ""))
    assert TOKEN not in shown.out + shown.err
    record = CompleteRecord.read(run)
    assert label in record.metrics.test.per_class
    assert record.arguments.training["run_name"] == "try-[token]"
    for path in run.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
    finetune_command(["predict", str(run), "good"])
    assert capfd.readouterr().out.split("\t")[0] in (label, "pos")


@pytest.mark.parametrize(
    "flag",
    ["train_file", "test_file", "dataset_name", "text_column", "label_column", "model_name_or_path", "output_dir",
     "method", "run_name", "teacher", "unlabeled_file", "word_vectors", "config", "lr_scheduler_type", "no_such_flag",
     "encoding"],
)  # fmt: skip
def test_a_token_in_any_flag_is_echoed_and_stored_nowhere(reviews, tiny_bert, tmp_path, flag, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    words = [word for pair in reviews.items() for word in pair]
    with contextlib.suppress(SystemExit):  # where nothing is called so; else it trains
        finetune_command(["train", *words, "--model_name_or_path", tiny_bert, "--method", "tfidf", "--num_threads", "1",
                          "--no_floor", f"--{flag}", TOKEN])  # fmt: skip
    shown = capfd.readouterr()
    assert "[token]" in shown.out + shown.err or flag in shown.err
    assert TOKEN not in shown.out + shown.err
    assert not any(TOKEN.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
