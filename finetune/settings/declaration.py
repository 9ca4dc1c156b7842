"""What is declared of a setting beside its type, default and help: bounds, who has a use for it, what it changes.

A field of a part carries it in its annotation, as in `Annotated[int, Setting(at_least=3)]`; transformers' own
`TrainingArguments` have theirs in `finetune.settings.training`. Checking, "has no use for", what may change when a run
is resumed, what divides the groups of a report, and `docs/reference/settings.md` all follow from here.
"""

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from finetune.errors import FinetuneError
from finetune.lookup import family_of, find_method

__all__ = [
    "Condition",
    "Setting",
    "Values",
    "always",
    "belongs_to",
    "can_pretrain",
    "read_declarations",
    "starts_from_pretrained",
    "takes_adapter",
    "takes_word_vectors",
    "trains_encoder",
    "trains_network",
]


class Values:
    """Settings by name, as attributes, of a run that is to come or of a record; what a record lacks has its default."""

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any] | None = None):
        self._values = {**(defaults or {}), **values}

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(name) from None


Condition = Callable[[Values], bool]


def always(settings: Values) -> bool:
    """Return True: every method has a use for the setting."""
    return True


def trains_network(settings: Values) -> bool:
    """Return whether the method trains a network in steps."""
    return family_of(settings.method).trains_network


def trains_encoder(settings: Values) -> bool:
    """Return whether the method trains a pretrained encoder, or a part of one."""
    return family_of(settings.method).trains_encoder


def starts_from_pretrained(settings: Values) -> bool:
    """Return whether the method reads anything of `--model_name_or_path`."""
    return family_of(settings.method).starts_from_pretrained(settings)


def takes_word_vectors(settings: Values) -> bool:
    """Return whether the method reads the vectors of `--word_vectors`."""
    return family_of(settings.method).takes_word_vectors(settings)


def can_pretrain(settings: Values) -> bool:
    """Return whether a pretrained model computes in what the method fits, which texts alone can train before."""
    return family_of(settings.method).can_pretrain(settings)


def belongs_to(part: type) -> Condition:
    """Return the condition that the method's family declares these settings as its own."""
    return lambda settings: family_of(settings.method).settings is part


def takes_adapter(settings: Values) -> bool:
    """Return whether the method trains an adapter of PEFT."""
    return find_method(settings.method).takes_adapter


@dataclass(frozen=True)
class Setting:
    """The facts of a setting.

    Attributes:
        at_least: The least value that is allowed.
        above: A bound that the value must exceed.
        at_most: The greatest value that is allowed.
        below: A bound that the value must stay under.
        usual: What usually works, for whoever left the bounds.
        used_when: Whether it has a use, given all settings; by default as its part says.
        changes: "results"; "rows": which rows there are, which a report compares itself; "draws", as seeds do, so that
            runs that differ in it belong to one group; "nothing": it decides what is shown or kept, and may differ
            between a run and its continuation.
        refused: Why it is not taken, for fields of `TrainingArguments` that could have no effect here.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    usual: str = ""
    used_when: Condition | None = None
    changes: Literal["results", "rows", "draws", "nothing"] = "results"
    refused: str = ""

    @property
    def bounds(self) -> str:
        """The bounds in words, such as "in [0, 1)"; empty without any."""
        low = self.at_least if self.at_least is not None else self.above
        high = self.at_most if self.at_most is not None else self.below
        if high == math.inf:
            return "finite" if low is None else f"{replace(self, below=None).bounds} and finite"
        least, most = (f"{bound:g}" if isinstance(bound, float) else str(bound) for bound in (low, high))
        if low is not None and high is not None:
            opened, closed = "[" if self.at_least is not None else "(", "]" if self.at_most is not None else ")"
            return f"in {opened}{least}, {most}{closed}"
        if low is not None:
            return f"at least {least}" if self.at_least is not None else f"above {least}"
        return "" if high is None else f"at most {most}" if self.at_most is not None else f"below {most}"

    def is_used(self, settings: Values) -> bool:
        """Return whether the setting has a use beside the others."""
        return self.used_when is None or self.used_when(settings)

    def check(self, name: str, value: Any) -> None:
        """Check that a value is within the bounds; None is.

        Raises:
            FinetuneError: If it is not, or no number.
        """
        if value is None or not self.bounds:
            return
        fits = (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )
        if not fits:  # also where it is NaN
            bounds = f"to be {self.bounds}" if self.bounds.startswith(("at ", "finite")) else self.bounds
            raise FinetuneError(f"Expected --{name} {bounds}, but got {value}. {self.usual}".strip())


def read_declarations(part: type, used_when: Condition) -> dict[str, Setting]:
    """Read the declared facts of every field of a dataclass.

    Args:
        part: Its fields are annotated with their type, or with `Annotated[type, Setting(...)]`.
        used_when: For fields that don't say when they have a use.

    Returns:
        The facts by the field's name.
    """
    hints = typing.get_type_hints(part, include_extras=True)
    declared = {}
    for field in dataclasses.fields(part):
        facts = [fact for fact in getattr(hints[field.name], "__metadata__", ()) if isinstance(fact, Setting)]
        setting = facts[0] if facts else Setting()
        declared[field.name] = setting if setting.used_when else dataclasses.replace(setting, used_when=used_when)
    return declared
