"""The tutorials do what they show: each page runs in an empty folder, and prints what stands below its commands.

pytest tests/test_tutorials.py                            pages that take seconds; -m slow for the others
python tests/test_tutorials.py docs/tutorials/serve.md    run one page, and show what each step prints
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import ROOT
from markdown_it import MarkdownIt

PAGES = ROOT / "docs/tutorials"
QUICK = ("several-labels", "chinese")
SLOW = (
    "first-model",
    "few-labels",
    "compare-and-decide",
    "long-texts",
    "ship-to-the-hub",
    "serve",
    "resume-on-spot-machines",
)
ELSEWHERE = ("add-a-family",)  # tests/test_families.py
IN_A_SHELL = re.compile(r"[|&;<>$`]|\buntil\b")


def read_steps(page):
    """List what a page runs: the language, the code, and the output that is shown below it, None where none is."""
    steps = []
    tokens = [token for token in MarkdownIt().parse(page.read_text(encoding="utf-8")) if token.block and token.content]
    for token in tokens:
        if token.type == "fence" and token.info in ("bash", "python"):
            steps.append([token.info, token.content, None])
        elif token.type == "fence" and token.info == "text" and steps and steps[-1][2] is None:
            steps[-1][2] = token.content
    return steps


class Tutorial:
    """A page at work in a folder: its Python shares names, its commands the folder."""

    def __init__(self, folder):
        self.names = {"__name__": "__main__"}
        (folder / "bin").mkdir()
        command = folder / "bin/finetune"
        command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m finetune "$@"\n')
        command.chmod(0o755)
        for name in ("recipes", "tests"):
            (folder / name).symlink_to(ROOT / name)
        path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        modules = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self.environment = {**os.environ, "PATH": path, "PYTHONPATH": modules, "OMP_WAIT_POLICY": "PASSIVE"}

    def run(self, language, code):
        """Run a step in the working folder and return what it prints."""
        if language == "bash" and IN_A_SHELL.search(code):
            command = ["bash", "-euo", "pipefail", "-c", code]
            done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=500)
            assert done.returncode == 0, done.stderr
            return done.stdout + done.stderr
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            if language == "python":
                exec(compile(code, "tutorial", "exec"), self.names)
            else:
                for line in code.replace("\\\n", " ").splitlines():
                    self.call(shlex.split(line, comments=True))
        return printed.getvalue()

    @staticmethod
    def call(words):
        """Run a command of finetune in this process."""
        from finetune.cli import main

        if words:
            assert words[0] == "finetune"
            try:
                main(words[1:])
            except SystemExit as end:
                if end.code:
                    raise


def missing_lines(shown, printed):
    """List the lines shown that were not printed in this order; numbers and blanks may differ, … is anything."""
    lines = [normalize(line) for line in printed.splitlines()]
    missing = []
    for line in shown.splitlines():
        if line.strip() == "…":
            continue
        wanted = [normalize(part) for part in line.split("…")]
        for number, found in enumerate(lines):
            if found.startswith(wanted[0]) and all(part in found for part in wanted) and found.endswith(wanted[-1]):
                lines = lines[number + 1 :]
                break
        else:
            missing.append(line)
    return missing


def normalize(line):
    return " ".join(re.sub(r"[-−+]?\d[\d.,e+-]*", "#", line).split())


def test_every_tutorial_is_run():
    pages = {page.stem for page in PAGES.glob("*.md")}
    assert pages == {*QUICK, *SLOW, *ELSEWHERE}


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_tutorial_prints_what_it_shows(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps = read_steps(PAGES / f"{name}.md")
    assert any(shown for _, _, shown in steps)
    tutorial = Tutorial(tmp_path)
    for language, code, shown in steps:
        printed = tutorial.run(language, code)
        assert not missing_lines(shown or "", printed), printed


def test_a_line_that_was_not_printed_is_missed():
    printed = "accuracy 88.0% (95 % interval 86.6%)\npositive\t0.99\tA film.\n"
    assert missing_lines("…\naccuracy 85.1% (95 % interval 80.0%)\npositive  0.91  A film.\n", printed) == []
    assert missing_lines("positive 0.99 A film.\naccuracy …", printed) == ["accuracy …"]  # in another order
    assert missing_lines("negative 0.99 A film.", printed) == ["negative 0.99 A film."]


def main() -> None:
    """Run a page, and show what each step prints."""
    page = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        tutorial = Tutorial(Path(folder))
        for language, code, shown in read_steps(page):
            print(f"### {code}", flush=True)
            printed = tutorial.run(language, code)
            print(printed, flush=True)
            print(*(f"MISSING: {line}" for line in missing_lines(shown or "", printed)), sep="\n", flush=True)


if __name__ == "__main__":
    main()
