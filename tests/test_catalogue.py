"""What the catalogue says of each method is so."""

import subprocess
import sys
from pathlib import Path

import pytest

from finetune.catalogue import CATALOGUE
from finetune.methods import apply_method, count_parameters
from finetune.metrics import SINGLE_LABEL
from finetune.models.load import load_model, load_pretrained_tokenizer
from finetune.settings.parts import MethodArguments, ModelArguments
from finetune.tasks import Task

ROOT = Path(__file__).parent.parent
WITH_SHARE = [name for name, method in CATALOGUE.items() if method.trainable_share is not None]


@pytest.mark.parametrize("name", [name for name in WITH_SHARE if name != "qlora"])
def test_share_of_the_embedded_model_that_trains(name):
    tokenizer = load_pretrained_tokenizer("embedded")
    model = load_model(ModelArguments(), name, tokenizer, Task(SINGLE_LABEL, ["negative", "positive"]), seed=0)
    trainable, total = count_parameters(apply_method(model, MethodArguments(name)))
    assert CATALOGUE[name].trainable_share == pytest.approx(trainable / total, rel=0.02)


def test_qlora_trains_what_lora_trains():
    assert CATALOGUE["qlora"].trainable_share == CATALOGUE["lora"].trainable_share
    assert CATALOGUE["qlora"].peft_config == CATALOGUE["lora"].peft_config


def test_the_command_lists_every_method_without_importing_torch_and_the_docs_show_it():
    code = "import sys; from finetune.cli import main; main(['methods']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == list(CATALOGUE)
    assert done.stdout in (ROOT / "docs/reference/methods.md").read_text(encoding="utf-8")


def test_every_method_has_a_paragraph_in_the_docs():
    text = (ROOT / "docs/reference/methods.md").read_text(encoding="utf-8")
    assert [name for name in CATALOGUE if f"**`{name}" not in text] == []
