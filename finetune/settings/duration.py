"""Times as people write them. Cheap to import."""

import re

from finetune.errors import FinetuneError

__all__ = ["read_duration"]

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}  # seconds


def read_duration(text: str) -> float:
    """Read a time such as `90s`, `10m` or `1.5h` as seconds.

    Raises:
        FinetuneError: If it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([smh]?)", text.strip())
    if found is None or not float(found[1]) > 0:
        raise FinetuneError(f"Expected a time such as 90s, 10m or 2h, but got {text!r}.")
    return float(found[1]) * UNITS[found[2]]
