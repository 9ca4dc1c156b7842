"""The command `finetune`: quick help, one-line errors, nothing undocumented."""

import dataclasses
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from transformers import TrainingArguments

from finetune.cli import build_parser, main
from finetune.data_doctor.command import DoctorArguments
from finetune.settings.declared import own_settings
from finetune.settings.parts import DataArguments, MethodArguments, ModelArguments, RunArguments, TuningArguments


def test_help_imports_no_heavy_library():
    program = "import sys; sys.argv = ['finetune', '--help']\nimport finetune.cli\ntry: finetune.cli.main()\nexcept SystemExit: pass\nassert not {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)"  # fmt: skip # noqa: E501
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["fly"], "invalid choice: 'fly'"),
        (["predict"], "required: PATH"),
        (["predict", "nowhere", "text"], "'nowhere' does not exist"),
        (["predict", str(ROOT / "recipes"), "text"], "found none of config.json"),
        (["evaluate", "nowhere", "--test_file", "nothing.csv"], "'nowhere' does not exist"),
    ],
)
def test_mistakes_end_with_one_line_and_status_2(argv, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_every_command_is_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    commands = build_parser()._subparsers._group_actions[0].choices
    assert commands
    for name in commands:
        assert re.search(rf"^finetune {name}\b", readme, re.MULTILINE), name


def test_flags_that_the_readme_names_exist():
    readme = (ROOT / "README.md").read_text()
    parts = (DataArguments, ModelArguments, MethodArguments, TuningArguments, RunArguments, TrainingArguments)
    known = {field.name for part in (*parts, DoctorArguments, *own_settings()) for field in dataclasses.fields(part)}
    known |= {"config_file", "quiet", "num_processes"} | {"help", "no_floor"}  # accelerate's and the parsers' own
    for folder in ("finetune", "benchmarks"):  # of commands and benchmarks
        for path in (ROOT / folder).rglob("*.py"):
            known |= set(re.findall(r'add_argument\([^)]*?"--(\w+)"', path.read_text()))
    flags = set(re.findall(r"--(\w+)", re.sub(r"pytest -n .*|pip wheel .*", "", readme)))
    assert len(flags) > 20
    assert flags <= known
    ours = {field.name for part in parts[:-1] for field in dataclasses.fields(part)}
    described = set(re.findall(r"^\| `--(\w+)`", (ROOT / "docs/reference/settings.md").read_text(), re.MULTILINE))
    assert ours <= described  # and each of our own is described
    assert not re.search(r"@[A-Z]+@|TODO", readme)


def test_files_that_the_readme_names_exist():
    readme = (ROOT / "README.md").read_text()
    paths = re.findall(r"(?:recipes|benchmarks|accelerate_configs|docs|tests)/[\w/.-]+\w", readme)
    assert paths
    for path in paths:
        assert (ROOT / path).exists(), path
