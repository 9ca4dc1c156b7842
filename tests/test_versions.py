"""What the promised releases rest on: floors, two sets that are tested, and what is overridden in libraries."""

import inspect
import re
import tomllib

import pytest
from conftest import ROOT
from transformers import PreTrainedModel, Trainer

import finetune
from finetune.families.textcnn.textcnn import TextCNNForSequenceClassification
from finetune.training import upstream
from finetune.training.trainer import FineTuningTrainer

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
PLAIN = re.compile(r"[-_.]+")


def name_of(requirement):
    return PLAIN.sub("-", re.split(r"[\[<>=!~ ]", requirement)[0]).lower()


def read_pins(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    assert all(len(pin) == 2 for pin in pins)
    return {name_of(package): version for package, version in pins}


def floor_of(requirement):
    return re.search(r"[>=]=([\d.]+)", requirement)[1]


def is_release(version, floor):
    """Whether a version is the floor, which may leave out zeros at the end."""
    return (version + ".0.0").startswith(floor + ".") or version == floor


NEWEST, OLDEST = read_pins("constraints.txt"), read_pins("constraints-oldest.txt")
OWN = {name_of(line) for line in PROJECT["dependencies"]}
OPTIONAL = [line for name in EXTRAS if name != "test" for line in EXTRAS[name] if name_of(line) not in OWN]
RUNTIME = [*PROJECT["dependencies"], *OPTIONAL]


@pytest.mark.parametrize("requirement", [line for line in RUNTIME if name_of(line) != "torch"], ids=name_of)
def test_the_oldest_set_is_the_floors(requirement):
    assert is_release(OLDEST[name_of(requirement)], floor_of(requirement))


def test_both_sets_pin_what_is_required():
    required = {name_of(line) for line in [*PROJECT["dependencies"], *EXTRAS["test"]]}
    assert required <= OLDEST.keys()
    assert required <= NEWEST.keys()


def test_the_test_extra_has_every_other_extra():
    """But for newer versions of what is needed anyway, which would keep the oldest set from being tested."""
    assert set(OPTIONAL) <= set(EXTRAS["test"])


def test_no_requirement_names_the_project_itself():
    lines = [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
    assert {"finetune", name_of(PROJECT["name"])}.isdisjoint(map(name_of, lines))


def test_the_version_is_said_twice_the_same():
    assert PROJECT["version"] == finetune.__version__


def test_every_requirement_has_a_row_in_the_docs():
    rows = [line.split("|") for line in (ROOT / "docs/reference/versions.md").read_text(encoding="utf-8").splitlines()]
    table = {row[1].strip(" `"): (row[2].strip(), row[3].strip()) for row in rows if len(row) > 4}
    for line in RUNTIME:
        name = name_of(line)
        assert table[name] == (floor_of(line) if name == "torch" else OLDEST[name], NEWEST[name]), name


def test_ci_runs_the_documented_command_on_the_oldest_set():
    docs = (ROOT / "docs/reference/versions.md").read_text(encoding="utf-8")
    command = docs.split("<!-- oldest -->\n```bash\n")[1].split("\n```")[0]
    assert f"- run: {command}\n" in (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")


# What is overridden


def classes_of(ours):
    """The classes of this package among those that a class is made of."""
    return [one for one in ours.__mro__ if one.__module__.startswith("finetune.")]


def test_the_installed_libraries_are_as_tested():
    assert upstream.find_changes() == []


def test_the_tested_range_is_that_of_the_sets():
    assert (OLDEST["transformers"], NEWEST["transformers"]) == upstream.TESTED


@pytest.mark.parametrize(
    ("ours", "owner"), [(FineTuningTrainer, Trainer), (TextCNNForSequenceClassification, PreTrainedModel)]
)
def test_every_overridden_method_is_declared(ours, owner):
    """Constructors are called by name; `forward` is a model's own."""
    overridden = {
        name
        for one in classes_of(ours)
        for name, value in vars(one).items()
        if (inspect.isroutine(value) or isinstance(value, property)) and hasattr(owner, name)
    }
    missing = overridden - {"__init__", "forward"} - upstream.SIGNATURES[owner].keys()
    assert not missing, f"declare in finetune/training/upstream.py: {sorted(missing)}"


def test_every_private_name_of_the_trainer_is_declared():
    """Also those that are called or set without being overridden."""
    classes = classes_of(FineTuningTrainer)
    source = "".join(inspect.getsource(inspect.getmodule(one)) for one in classes)
    used = set(re.findall(r"(?:self|trainer|super\(\))\.(_[a-z]\w*)", source))
    own = {name for one in classes for name in vars(one) if not hasattr(Trainer, name)}
    declared = {*upstream.SIGNATURES[Trainer], *upstream.ATTRIBUTES, "_initial_global_step"}
    assert used - own - declared == set()
    assert {name for name in declared if name.startswith("_")} <= used | {name for one in classes for name in vars(one)}


class Changed(Trainer):
    def _save_checkpoint(self, model, trial, metrics=None):
        return super()._save_checkpoint(model, trial)


def test_a_changed_signature_is_found(monkeypatch):
    monkeypatch.setattr(Trainer, "_save_checkpoint", Changed._save_checkpoint)
    assert upstream.find_changes() == ["Trainer._save_checkpoint takes (model, trial, metrics)"]


def test_a_changed_release_is_one_plain_warning(monkeypatch):
    monkeypatch.delattr(Trainer, "_get_output_dir")
    monkeypatch.setattr(Trainer, "_save_checkpoint", Changed._save_checkpoint)
    with pytest.warns(UserWarning, match=r"tested, 5\.\d+\.\d+ to 5\.\d+\.\d+, where finetune overrides it") as caught:
        upstream.warn_if_changed()
    [warning] = caught
    text = str(warning.message)
    assert "Trainer._get_output_dir is gone; Trainer._save_checkpoint takes (model, trial, metrics)" in text
    assert "\n" not in text


def test_a_name_that_upstream_no_longer_reads_is_found(monkeypatch):
    monkeypatch.setattr(upstream, "ATTRIBUTES", (*upstream.ATTRIBUTES, "_total_loss"))
    assert upstream.find_changes() == ["Trainer._total_loss is not read"]
