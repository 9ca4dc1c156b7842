"""Values within values: `--text_column data.text` is the text in {"data": {"text": …}}."""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["get_value", "has_field", "list_fields"]


def get_value(values: Mapping[str, Any], name: str) -> Any:
    """Return the value under a name, or, where there is no such column, along its parts between dots; None without.

    Example:
        >>> get_value({"data": {"texts": ["a", "b"]}}, "data.texts.1")
        'b'
    """
    if name in values or "." not in name:
        return values.get(name)
    found: Any = values
    for part in name.split("."):
        if isinstance(found, Mapping):
            found = found.get(part)
        elif isinstance(found, list) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        else:
            return None
    return found


def has_field(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Return whether any row has a value along the parts of a name."""
    return any(get_value(values, name) is not None for values in rows)


def list_fields(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """List the names, with dots, of the plain values within columns that hold objects."""
    found: dict[str, None] = {}

    def walk(prefix: str, value: Any, depth: int) -> None:
        if isinstance(value, Mapping) and depth < 4:
            for name, inner in value.items():
                walk(f"{prefix}.{name}" if prefix else str(name), inner, depth + 1)
        elif "." in prefix and not isinstance(value, list | Mapping):
            found.setdefault(prefix)

    for values in rows:
        walk("", values, 0)
    return list(found)
