"""Settings in a line, as a report, a search and a summary name them. Cheap to import."""

from collections.abc import Mapping
from typing import Any

__all__ = ["describe_settings"]


def describe_settings(settings: Mapping[str, Any]) -> str:
    """Write settings with their values in a line."""
    return ", ".join(f"{name} {_show(value)}" for name, value in settings.items())


def _show(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
