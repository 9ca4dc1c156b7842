"""Read JSON that comes with a model: bounded in size and depth, numbers that are numbers, and refused in one line."""

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError, explain_failure, explain_shortage

__all__ = ["PLAIN_NAME", "check_file", "is_beside", "is_whole", "read_object", "read_value", "refusal", "show"]

MOST_BYTES = 64 * 2**20
MOST_LEVELS = 64
AGAIN = "Fetch the model again, or save it again."
# A file's name that is neither a path nor hidden.
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][\w.\-]*")


def refusal(file: Path, expected: str, found: str, fix: str = AGAIN) -> FinetuneError:
    """Return the one line that refuses a file.

    Args:
        file: Which.
        expected: What it should hold.
        found: What it holds.
        fix: What to do.
    """
    return FinetuneError(f"Expected {expected} in {str(file)!r}, but found {found}. {fix}")


def show(value: Any) -> str:
    """Return a value of a file as a message quotes it: in 60 characters, control characters escaped."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_whole(value: Any) -> bool:
    """Return whether a value is a whole number, which true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_file(file: Path) -> None:
    """Refuse what stands where a file should: a folder, a pipe that nobody writes to, a device without an end.

    Raises:
        FinetuneError: If it is there and no file, or may not be read.
    """
    try:
        is_odd = file.is_symlink() or file.exists()
        is_odd = is_odd and not file.is_file()
    except OSError:  # links that go in circles
        is_odd = True
    if is_odd:
        raise refusal(file, "a file", "something else, or a link to nothing")
    if file.exists() and not os.access(file, os.R_OK):  # safetensors would say that it is not there
        raise explain_failure(PermissionError(errno.EACCES, "", str(file))) or AssertionError


def is_beside(file: Path) -> bool:
    """Return whether a file lies in its folder itself, or where the Hub's cache keeps the files of its snapshots."""
    folder, found = file.parent.resolve(), file.resolve()
    blobs = folder.parent.parent / "blobs"
    return found.parent == folder or (folder.parent.name == "snapshots" and found.parent == blobs)


def read_object(file: Path, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """Read a JSON file that holds names and values.

    Raises:
        FinetuneError: If it can't be read, or holds something else.
    """
    content = read_value(file, most_bytes)
    if not isinstance(content, dict):
        raise refusal(file, "names and values", show(content))
    return content


def read_value(file: Path, most_bytes: int = MOST_BYTES) -> Any:
    """Read a JSON file.

    Raises:
        FinetuneError: If it is no file, too large, no JSON, nested too deeply, or has NaN.
    """
    check_file(file)
    try:
        size = file.stat().st_size
        if size > most_bytes:
            raise refusal(file, f"at most {most_bytes:,} bytes", f"{size:,}")
        content = json.loads(file.read_text(encoding="utf-8"), parse_constant=_parse_constant)
        levels = _count_levels(content)
    except FinetuneError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).strip() or type(error).__name__
        raise explain_shortage(error) or FinetuneError(
            f"Expected JSON in {str(file)!r}, but reading it gave: {reason}. {AGAIN}"
        ) from error
    if levels > MOST_LEVELS:
        raise refusal(file, f"JSON of at most {MOST_LEVELS} levels", f"{levels}")
    return content


def _parse_constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("it has NaN in place of a number")
    return float(name)  # some architectures have a limit that is infinite


def _count_levels(content: Any) -> int:
    """Count how deeply lists and objects are nested, without recursion."""
    levels, layer = 0, [content]
    while layer and levels <= MOST_LEVELS:
        inner = [one for one in layer if isinstance(one, dict | list)]
        layer = [value for one in inner for value in (one.values() if isinstance(one, dict) else one)]
        levels += bool(inner)
    return levels
