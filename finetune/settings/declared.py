"""The declarations of all settings by name: ours by part, and transformers' own. Cheap to import."""

import dataclasses
from typing import Any

from finetune.settings.declaration import Setting, read_declarations, trains_network
from finetune.settings.parts import PARTS
from finetune.settings.training import TRAINING

__all__ = ["default_values", "facts_of"]

DECLARED: dict[str, Setting] = {
    **TRAINING,
    **{name: facts for part, used_when in PARTS.values() for name, facts in read_declarations(part, used_when).items()},
}
OF_THE_TRAINER = Setting()  # a field of `TrainingArguments` of which nothing is declared


def facts_of(name: str) -> Setting:
    """Return what is declared of a setting."""
    facts = DECLARED.get(name, OF_THE_TRAINER)
    return facts if facts.used_when else dataclasses.replace(facts, used_when=trains_network)


def default_values() -> dict[str, Any]:
    """Return the defaults of our own settings by name, and None for the fields of `TrainingArguments`.

    The declarations may ask for a field that the installed transformers doesn't have.
    """
    own = {field.name: field.default for part, _ in PARTS.values() for field in dataclasses.fields(part)}
    return {**dict.fromkeys(TRAINING), **own}
