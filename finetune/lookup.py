"""Methods and families by name: those of the catalogue, and others by where they are imported from.

One from elsewhere is `package.module:NAME`. Its module is imported for whoever names it, never because a file says so:
`import_…` is for names that the user gave, `find_…` for those in records and model folders.
"""

import difflib
import importlib
import re
import sys
from typing import Any

from finetune.catalogue import CATALOGUE, FAMILIES, Method
from finetune.errors import FinetuneError
from finetune.family import Family

__all__ = [
    "family_of",
    "file_name_of",
    "find_family",
    "find_method",
    "import_family",
    "import_method",
    "name_of",
    "suggest",
]

PATH = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)[:.]([A-Za-z_]\w*)")


def find_method(name: str) -> Method:
    """Return the method of that name, without importing anything.

    Of a name that is unknown, as in a record, no more than that it trains a network.
    """
    if name in CATALOGUE:
        return CATALOGUE[name]
    found = _find_imported(name)
    return found if isinstance(found, Method) else Method(name, "")


def import_method(name: str) -> str:
    """Make sure that a method that the user names is there, and import its module and its family's if it has one.

    Args:
        name: A name of the catalogue, or `package.module:NAME` (also with a dot) of a `Method`.

    Returns:
        The name by which it is recorded: that of the catalogue, or `package.module:NAME`.

    Raises:
        FinetuneError: If there is no such method.
    """
    if name in CATALOGUE:
        return name
    if PATH.fullmatch(name) is None:
        raise FinetuneError(
            f"Expected a method of {', '.join(CATALOGUE)}, or package.module:NAME of one of your own, but got {name!r}."
            f"{suggest(name)}"
        )
    name = _with_colon(name)
    found = _import_named(name, "a method")
    if not isinstance(found, Method):
        raise FinetuneError(
            f"Expected {name} to be a finetune.catalogue.Method, but it is {_article(type(found).__name__)}. "
            "docs/tutorials/add-a-family.md shows one."
        )
    import_family(found.family)
    return name


def suggest(name: str) -> str:
    """Suggest the method whose name is nearly that one, in a sentence after a space; empty if there is none."""
    close = difflib.get_close_matches(name, CATALOGUE, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def import_family(name: str) -> Family:
    """Return the family of that name; one that is not listed is imported.

    Args:
        name: A name of `FAMILIES`, or `package.module:Name` of one that the user named, or whose method the user named.

    Raises:
        FinetuneError: If there is no such family.
    """
    path = FAMILIES.get(name, name)
    if PATH.fullmatch(path) is None:
        raise FinetuneError(f"Expected a family of {', '.join(FAMILIES)}, or package.module:Name, but got {name!r}.")
    found = _import_named(path, "a family")
    if not (isinstance(found, type) and issubclass(found, Family)):
        raise FinetuneError(
            f"Expected {name} to be a class derived from finetune.family.Family, but it is "
            f"{_article(type(found).__name__)}. docs/tutorials/add-a-family.md shows one."
        )
    return found()


def find_family(name: str) -> Family | None:
    """Return the family of that name, as a model folder says it; None if it is neither listed nor imported already.

    So a folder, which may come from anywhere, can't make this process import a module.
    """
    if name in FAMILIES:
        return import_family(name)
    found = _find_imported(name)
    return found() if isinstance(found, type) and issubclass(found, Family) else None


def file_name_of(method: str) -> str:
    """Return a method's name as a part of a file's name, in which colons don't go everywhere."""
    return method.replace(":", ".")


def family_of(method: str) -> Family:
    """Return the family of a method; of one that is unknown, as in a record, that of most methods."""
    return find_family(find_method(method).family) or import_family(Method.family)


def name_of(family: Family) -> str:
    """Return the name by which a saved model says its family: that of `FAMILIES`, or where it is imported from."""
    path = f"{type(family).__module__}:{type(family).__qualname__}"
    return next((name for name, listed in FAMILIES.items() if listed == path), path)


def _import_named(path: str, what: str) -> Any:
    """Import what a path names."""
    module, name = _with_colon(path).split(":")
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # of a package that the module itself lacks
        raise FinetuneError(
            f"Expected to import {what} from {module!r}, but there is no module {error.name!r}. Install it, or put its "
            "folder on PYTHONPATH."
        ) from None
    if name not in vars(imported):
        raise FinetuneError(f"Expected {what} named {name!r} in {module!r}, but it has none. Check its name.")
    return vars(imported)[name]


def _find_imported(path: str) -> Any:
    """Return what a path names if its module has been imported; no code runs, as that of a module's `__getattr__`."""
    if PATH.fullmatch(path) is None:
        return None
    module, name = _with_colon(path).split(":")
    return vars(sys.modules[module]).get(name) if module in sys.modules else None


def _with_colon(path: str) -> str:
    match = PATH.fullmatch(path)
    assert match is not None
    return f"{match[1]}:{match[2]}"


def _article(word: str) -> str:
    return f"{'an' if word[0].lower() in 'aeiou' else 'a'} {word}"
