"""The site of the docs builds without a warning and fetches nothing; README and docs name what exists."""

import dataclasses
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from conftest import ROOT
from markdown_it import MarkdownIt
from transformers import TrainingArguments

from finetune.cli import build_parser
from finetune.data_doctor.command import DoctorArguments
from finetune.settings.declared import own_settings
from finetune.settings.parts import DataArguments, MethodArguments, ModelArguments, RunArguments, TuningArguments

READMES = [ROOT / "README.md", ROOT / "README.zh.md"]
PAGES = [*READMES, *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
names = [str(page.relative_to(ROOT)) for page in PAGES]


class Fetched(HTMLParser):
    """Collects what a browser fetches to show a page."""

    def __init__(self):
        super().__init__()
        self.addresses = []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        fetched = tag in ("script", "img", "iframe", "source") or "stylesheet" in (values.get("rel") or "")
        self.addresses += [values[name] for name in ("src", "href") if fetched and values.get(name)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", folder / "read", ROOT / "docs"]
    done = subprocess.run([*command, folder / "html"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return folder / "html"


def test_the_site_fetches_nothing_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    fetched = set()
    for page in pages:
        parser = Fetched()
        parser.feed(page.read_text(encoding="utf-8"))
        fetched.update(parser.addresses)
    assert fetched
    assert not [address for address in fetched if re.match(r"(https?:)?//", address)]


def test_every_page_can_be_reached(site):
    index = (site / "index.html").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert f'href="{page.relative_to(ROOT / "docs").with_suffix(".html")}"' in index or page.stem == "index", page


def test_the_public_functions_are_described_by_their_docstrings(site):
    page = (site / "reference/python.html").read_text(encoding="utf-8")
    for name in ("train", "compare", "doctor", "load_classifier", "load", "enable", "Trainer"):
        assert f'id="finetune.{name}"' in page


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_files_that_a_page_names_exist(page):
    """Links, and paths in the repository between backticks; folders that a user makes are not among them."""
    tokens = [child for token in MarkdownIt().parse(TEXTS[page]) for child in token.children or ()]
    links = [str(token.attrs["href"]) for token in tokens if token.type == "link_open"]
    for link in links:
        target = link.partition("#")[0]
        assert not target or "://" in target or (page.parent / target).exists(), link
    for path in re.findall(r"`((?:recipes|benchmarks|accelerate_configs|docs|tests|docker)/[\w/.-]+\w)`", TEXTS[page]):
        assert (ROOT / path).exists(), path


def test_every_command_is_in_the_readme():
    commands = build_parser()._subparsers._group_actions[0].choices
    assert commands
    for readme in READMES:
        for name in commands:
            assert re.search(rf"\bfinetune {name}\b", TEXTS[readme]), name


def test_flags_that_readme_and_docs_name_exist():
    parts = (DataArguments, ModelArguments, MethodArguments, TuningArguments, RunArguments, TrainingArguments)
    known = {field.name for part in (*parts, DoctorArguments, *own_settings()) for field in dataclasses.fields(part)}
    for folder in ("finetune", "benchmarks", "tests"):  # of commands, benchmarks and tests
        for path in (ROOT / folder).rglob("*.py"):
            known |= set(re.findall(r'add_argument\(\s*(?:"\w+", )?[^)]*?"--(\w+)"', path.read_text()))
    flags = {flag for text in TEXTS.values() for flag in re.findall(r"finetune [^\n`]*?--(\w+)", text)}
    assert len(flags) > 20
    assert flags - known <= {"help", "version", "no_floor", "no_calibrate", "no_store_text"}
    ours = {field.name for part in parts[:-1] for field in dataclasses.fields(part)}
    settings = TEXTS[ROOT / "docs/reference/settings.md"]
    assert ours <= set(re.findall(r"^\| `--(\w+)`", settings, re.MULTILINE))  # and each of our own is described


def test_the_readmes_say_the_same():
    """The Chinese one has the same sections, commands but for comments, tables and links to pages."""
    english, chinese = (TEXTS[readme] for readme in READMES)
    assert len(english.splitlines()) <= 150
    for pattern in (r"^## ", r"^\| "):
        assert len(re.findall(pattern, english, re.MULTILINE)) == len(re.findall(pattern, chinese, re.MULTILINE))
    blocks = [re.findall(r"```\w+\n(.*?)```", text, re.DOTALL) for text in (english, chinese)]
    without_comments = [[re.sub(r" *#.*", "", block) for block in found] for found in blocks]
    assert without_comments[0] == without_comments[1]
    pages = [set(re.findall(r"\]\(([\w/.-]+)", text)) - {"README.md", "README.zh.md"} for text in (english, chinese)]
    assert pages[0] <= pages[1] <= pages[0] | {"docs/tutorials/chinese.md"}
