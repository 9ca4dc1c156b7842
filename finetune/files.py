"""Files and folders that are whole or not there: written aside, flushed to the disk, and renamed."""

import contextlib
import errno
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.errors import find_number

__all__ = ["flush", "flush_folder", "is_disk_full", "read_json", "replace_folder", "write_aside", "write_json"]


@contextlib.contextmanager
def write_aside(path: Path, is_shared: bool = False) -> Iterator[Path]:
    """Yield a path to write a file to; when all is written it takes the place of `path`, else it is removed.

    Args:
        path: In a folder that exists, unless the file is shared.
        is_shared: Whether other processes may be writing it too, as one of a cache; its folder is made.
    """
    if is_shared:
        path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial" if is_shared else f"{path.name}.partial")
    try:
        aside.touch()
        rights = aside.stat().st_mode
        yield aside
        aside.chmod(rights)  # safetensors lets nobody but their owner read its files, whatever the umask says
        flush(aside)
        aside.replace(path)
        flush(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # of writing to an open file, whose name the system does not repeat
        raise


def write_json(path: Path, content: Any, is_shared: bool = False) -> None:
    """Write JSON aside and rename it, so that a reader never sees half of it; NaN becomes null, which JSON has."""
    text = json.dumps(_without_nan(content), indent=2, ensure_ascii=False, default=str, allow_nan=False)
    with write_aside(path, is_shared) as aside:
        aside.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file; None if it is not there, or none."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None


def replace_folder(folder: Path, aside: Path) -> None:
    """Flush a folder that was written aside, and let it take the place of `folder`, if there is one.

    What stood there is kept as `<name>.replaced` until the new one stands.
    """
    flush_folder(aside)
    replaced = folder.with_name(folder.name + ".replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    aside.rename(folder)
    flush(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def flush_folder(folder: Path) -> None:
    """Wait until every file in a folder is on the disk."""
    for path in sorted(folder.rglob("*")):
        flush(path)
    flush(folder)


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error, or what it came from, says that the disk or the quota is full."""
    return find_number(error) in (errno.ENOSPC, errno.EDQUOT)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _without_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
