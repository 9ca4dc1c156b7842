"""Write `docs/reference/settings.md` from the declarations.

python -m finetune.settings.document > docs/reference/settings.md
"""

import dataclasses
from typing import Any

from finetune.settings.declared import facts_of, own_settings
from finetune.settings.parts import PARTS
from finetune.settings.training import TRAINING

__all__ = ["describe_settings"]

CHANGES = {
    "results": "results",
    "rows": "the rows",
    "draws": "random draws",
    "nothing": "no result",
}
INTRODUCTION = """# Settings

Each is a flag (`--max_length 128`), a key of the YAML file behind `--config`, and a keyword. Recipe defaults < the
method's defaults < `--config file.yaml` < flags; an unknown name is an error. In the YAML file, settings below a
method's name are for that method alone. A setting that the method has no use for is warned about.

"Changes" says what depends on a setting: results; the rows of the splits; random draws, as of seeds, over which a
report averages; or no result, so that it may differ when a run is resumed.

This page is written by `python -m finetune.settings.document` from the declarations in `finetune/settings/`.
"""
UPSTREAM = """## TrainingArguments

Every field of transformers'
[`TrainingArguments`](https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments) is a
setting too. These are refused, because they could have no effect:

| setting | because |
|---|---|
"""


def describe_settings() -> str:
    """Return the page in Markdown: a table of each part, and what is refused of `TrainingArguments`."""
    page = INTRODUCTION
    parts = {name: part for name, (part, _) in PARTS.items()}
    listed = [
        part for part in own_settings() if part.__module__.startswith("finetune.")
    ]  # not those of a user's family
    parts |= {part.__name__.removesuffix("Settings"): part for part in listed}
    for name, part in parts.items():
        page += (
            f"\n## {name[0].upper()}{name[1:]}\n\n{part.__doc__}\n\n| setting | default | what it does | changes |\n"
        )
        page += "|---|---|---|---|\n"
        for field in dataclasses.fields(part):
            facts = facts_of(field.name)
            help_text = str(field.metadata["help"])
            allowed = ", ".join(f"`{choice}`" for choice in field.metadata.get("choices", ()))
            if allowed:
                help_text += f" One of {allowed}."
            if facts.bounds:
                help_text += f" {facts.bounds[0].upper()}{facts.bounds[1:]}."
            cells = (f"`--{field.name}`", _default(field.default), help_text.replace("|", "\\|"))
            page += f"| {' | '.join(cells)} | {CHANGES[facts.changes]} |\n"
    page += f"\n{UPSTREAM}"
    for name, facts in sorted(TRAINING.items()):
        if facts.refused:
            page += f"| `--{name}` | {facts.refused} |\n"
    return page


def _default(value: Any) -> str:
    return "" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    print(describe_settings(), end="")
