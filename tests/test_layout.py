"""The rooms stand in the order of the data's path, and what a module defines in public it exports."""

import ast
import importlib
import re

import pytest
from conftest import ROOT

PACKAGE = ROOT / "finetune"
# Imports point back up this list. What stands first is used by everything.
ROOMS = ["escape", "errors", "files", "threads", "tasks", "examination", "progress_bar", "adapted", "accelerated",
         "hardware", "environment", "quiet", "hub_client", "metrics", "decisions", "evaluate_metrics", "family",
         "catalogue", "lookup", "settings", "data", "models", "data_doctor", "methods", "training", "families", "run",
         "pretraining", "comparison", "inference", "export", "serve", "hub", "distillation", "search",
         "engine", "results", "api", "cli", "__main__"]  # fmt: skip
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path):
    """Name what a module imports, at its top or in a function; what it names in annotations alone doesn't count."""
    tree = ast.parse(path.read_text())
    for_types = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    annotated = {id(inner) for node in for_types for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in annotated:
            continue
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_up_the_path_of_the_data(path):
    own = name_of(path).split(".")
    if len(own) == 1:
        return  # finetune/__init__.py offers load() from the end of the path, and imports it when called
    position = ROOMS.index(own[1])  # a new room has to take its place in the list
    for imported in imports_of(path):
        parts = imported.split(".")
        if parts[0] == "finetune" and len(parts) > 1:
            assert ROOMS.index(parts[1]) <= position, f"{name_of(path)} imports {imported}"


@pytest.mark.parametrize("path", [path for path in MODULES if "__all__" in path.read_text()], ids=name_of)
def test_all_is_what_is_defined_in_public(path):
    module = importlib.import_module(name_of(path))
    assert sorted(module.__all__) == sorted(set(module.__all__))
    defined = {
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    assert defined <= set(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


def test_the_architecture_page_names_what_is_there():
    text = (ROOT / "docs/explanations/architecture.md").read_text()
    answers = text.split("## Where is")[1]
    named = re.findall(r"`(\w+)` in `(finetune/[\w/]+\.py)`", answers)
    assert len(named) > 8
    for name, path in named:
        assert re.search(rf"^\s*(def|class) {name}\b", (ROOT / path).read_text(), re.MULTILINE), (name, path)
    for path in re.findall(r"`((?:finetune|tests)/[\w/]+\.py)`", answers):
        assert (ROOT / path).is_file(), path
    assert set(re.findall(r"`(\w+)`", text.split("| room |")[1].split("## Where")[0])) >= set(rooms_on_disk())


def rooms_on_disk():
    return [path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"]
