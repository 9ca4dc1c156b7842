"""The declarations of all settings by name: ours by part, those of each family, transformers' own. Cheap to import."""

import dataclasses
from collections.abc import Collection
from typing import Any

from finetune.catalogue import FAMILIES
from finetune.errors import FinetuneError
from finetune.lookup import family_of, import_family
from finetune.settings.declaration import Condition, Setting, Values, belongs_to, read_declarations, trains_network
from finetune.settings.parts import PARTS
from finetune.settings.training import TRAINING

__all__ = ["declare", "default_values", "facts_of", "is_used", "own_settings"]

DECLARED: dict[str, Setting] = {
    **TRAINING,
    **{name: facts for part, used_when in PARTS.values() for name, facts in read_declarations(part, used_when).items()},
}
# The settings that families have of their own, by where they are from, in the order in which they were declared.
OWN: dict[str, type] = {}
OF_THE_TRAINER = Setting()  # a field of `TrainingArguments` of which nothing is declared


def facts_of(name: str) -> Setting:
    """Return what is declared of a setting."""
    facts = DECLARED.get(name, OF_THE_TRAINER)
    return facts if facts.used_when else dataclasses.replace(facts, used_when=trains_network)


def is_used(name: str, settings: Values) -> bool:
    """Return whether a setting has a use beside the others, by its declaration or because the family says so."""
    return name in family_of(settings.method).also_uses or facts_of(name).is_used(settings)


def default_values() -> dict[str, Any]:
    """Return the defaults of our own settings by name, and None for the fields of `TrainingArguments`.

    The declarations may ask for a field that the installed transformers doesn't have.
    """
    parts = [*(part for part, _ in PARTS.values()), *OWN.values()]
    own = {field.name: field.default for part in parts for field in dataclasses.fields(part)}
    return {**dict.fromkeys(TRAINING), **own}


def own_settings() -> list[type]:
    """Return the dataclasses of the settings that families have of their own."""
    return list(OWN.values())


def declare(part: type, upstream: Collection[str] = ()) -> None:
    """Make the settings known that a family has of its own. They have a use for its methods alone.

    Args:
        part: A dataclass.
        upstream: The fields of `TrainingArguments`.

    Raises:
        FinetuneError: If a name is taken.
    """
    path = f"{part.__module__}:{part.__qualname__}"
    before = OWN.get(path)
    if part is before:
        return
    # Its module may have been loaded again, as happens in a notebook.
    known = set(DECLARED) - {field.name for field in (() if before is None else dataclasses.fields(before))}
    for field in dataclasses.fields(part):
        if field.name in known or field.name in upstream:
            raise FinetuneError(
                f"Expected settings with names of their own in {part.__name__}, but {field.name!r} is taken. Put the "
                "family's name before it."
            )
    is_own = belongs_to(part)
    for name, facts in read_declarations(part, is_own).items():
        DECLARED[name] = dataclasses.replace(facts, used_when=_both(is_own, facts.used_when))
    OWN[path] = part


def _both(first: Condition, second: Condition | None) -> Condition:
    return first if second is None else lambda settings: first(settings) and second(settings)


for _listed in FAMILIES:
    if (_part := import_family(_listed).settings) is not None:
        declare(_part)
