"""The command `finetune`: quick help, one-line errors, nothing undocumented."""

import subprocess
import sys

import pytest
from conftest import ROOT

from finetune.cli import main


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
