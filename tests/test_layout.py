"""The rooms stand in the order of the data's path, and what a module defines in public it exports."""

import ast
import importlib

import pytest
from conftest import ROOT

PACKAGE = ROOT / "finetune"
# Imports point back up this list. What stands first is used by everything.
ROOMS = ["errors", "files", "threads", "tasks", "progress_bar", "accelerated", "hardware", "environment", "quiet",
         "hub", "metrics", "evaluate_metrics", "catalogue", "settings", "data", "models", "examination", "methods",
         "training", "run", "comparison", "delivery", "engine", "results", "api", "cli", "__main__"]  # fmt: skip
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
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
