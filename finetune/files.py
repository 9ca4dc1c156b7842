"""Files and folders that are whole or not there: written aside, flushed to the disk, and renamed.

What is written aside has a name of its own, `X.1b9d6bcd.partial`, and is made exclusively: nobody's file is written to.
"""

import contextlib
import ctypes
import errno
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from finetune.errors import FinetuneError, find_number

__all__ = [
    "are_one",
    "flush",
    "flush_folder",
    "is_aside",
    "is_disk_full",
    "is_replaced",
    "move_new",
    "read_json",
    "read_yaml",
    "remove_asides",
    "replace_folder",
    "write_aside",
    "write_folder_aside",
    "write_json",
]  # fmt: skip

NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
AT_FDCWD, RENAME_NOREPLACE = -100, 1  # of Linux
MOST_CHARACTERS, MOST_VALUES = 10_000_000, 100_000  # of a YAML file
ASIDE = re.compile(r"\.[0-9a-f]{8}\.partial$")


@contextlib.contextmanager
def write_aside(path: Path, replaces: bool = True) -> Iterator[Path]:
    """Yield a path to write a file to; when all is written it becomes `path`, else it is removed.

    Args:
        path: In a folder that exists.
        replaces: Whether to take the place of a file of that name.

    Raises:
        FileExistsError: If it is not to replace what has that name by now.
    """
    aside = _name_aside(path)
    os.close(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        rights = aside.stat().st_mode
        yield aside
        aside.chmod(rights)  # safetensors lets nobody but their owner read its files, whatever the umask says
        flush(aside)
        if replaces:
            aside.replace(path)
        else:
            move_new(aside, path)
        flush(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        _name_what_failed(error, path)
        raise


@contextlib.contextmanager
def write_folder_aside(folder: Path, replaces: bool = False) -> Iterator[Path]:
    """Yield a folder to write to; when all is written it becomes `folder`, else it is removed.

    Args:
        folder: In a folder that exists.
        replaces: Whether to take the place of what has that name, which must be of our own making.

    Raises:
        FileExistsError: If it is not to replace what has that name by now, other than an empty folder.
    """
    aside = _name_aside(folder)
    aside.mkdir()
    try:
        yield aside
        if replaces:
            replace_folder(folder, aside)
        else:
            flush_folder(aside)
            _move_new_folder(aside, folder)
            flush(folder.parent)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        _name_what_failed(error, folder)
        raise


def is_replaced(output: Path, flag: str, inputs: Sequence[str | None]) -> bool:
    """Return whether there is a file that an output, which the user has named by a flag, takes the place of.

    Args:
        output: What the flag names.
        flag: Which.
        inputs: What is read, which it is not to replace; names that are no files count as little as None.

    Raises:
        FinetuneError: If something else is there, an input, or no folder that it could be in.
    """
    if output.is_file() and any(one and Path(one).is_file() and output.samefile(one) for one in inputs):
        raise FinetuneError(f"Expected {flag} to be another file than those that are read, but got {str(output)!r}.")
    if not output.parent.is_dir() or (os.path.lexists(output) and (output.is_symlink() or not output.is_file())):
        raise FinetuneError(
            f"Expected {flag} to be a file in a folder that exists, but got {str(output)!r}. Pass another one."
        )
    return output.is_file()


def move_new(file: Path, target: Path) -> None:
    """Rename a file, never onto another, as `os.rename` would.

    Raises:
        FileExistsError: If something has the name.
    """
    try:
        os.link(file, target, follow_symlinks=False)
    except FileExistsError:
        if not are_one(file, target):  # a network may have made it twice
            raise
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        _rename_new(file, target)
        return
    file.unlink()


def _rename_new(file: Path, target: Path) -> None:
    """Rename where a file can't have two names, as on exFAT; Linux 3.15 or newer."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None or rename(AT_FDCWD, os.fsencode(file), AT_FDCWD, os.fsencode(target), RENAME_NOREPLACE):
        number = errno.ENOSYS if rename is None else ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(file), None, str(target))


def _move_new_folder(folder: Path, target: Path) -> None:
    try:
        folder.rename(target)  # never onto a file or a folder that holds something
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.ENOTDIR):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        raise


def are_one(file: Path, other: Path) -> bool:
    """Return whether two names, both no symbolic links, are of the same file."""
    try:
        return os.path.samestat(file.lstat(), other.lstat())
    except FileNotFoundError:
        return False


def remove_asides(folder: Path) -> None:
    """Remove what killed processes were writing aside in a folder of our own making."""
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if is_aside(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def is_aside(name: str) -> bool:
    """Return whether a name is one that is written aside under."""
    return ASIDE.search(name) is not None


def write_json(path: Path, content: Any, replaces: bool = True) -> None:
    """Write JSON as `write_aside` does, so that a reader never sees half of it; NaN becomes null, which JSON has."""
    text = json.dumps(_without_nan(content), indent=2, ensure_ascii=False, default=str, allow_nan=False)
    with write_aside(path, replaces) as aside:
        aside.write_bytes(f"{text}\n".encode("utf-8", "backslashreplace"))  # as JSON spells a path that is not UTF-8


def read_json(path: Path) -> Any:
    """Read a JSON file; None if it is not there, or none."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None


def read_yaml(path: str, flag: str) -> Any:
    """Read a YAML file that a flag names.

    Raises:
        FinetuneError: If it can't be read, is none, or its aliases make it endless.
    """
    try:
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(MOST_CHARACTERS + 1)  # of a device there is no end
        if len(text) > MOST_CHARACTERS:
            raise ValueError(f"it has more than {MOST_CHARACTERS:,} characters.")
        content = yaml.safe_load(text)
    except FileNotFoundError:
        raise FinetuneError(f"Expected a YAML file after {flag}, but {path!r} does not exist.") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # also a NUL in the name
        reason = " ".join(str(error).split())
        raise FinetuneError(f"Expected a YAML file after {flag}, but {path!r} can't be read: {reason}") from error
    if _count_values(content) > MOST_VALUES:
        raise FinetuneError(
            f"Expected at most {MOST_VALUES:,} values after {flag}, but the aliases in {path!r} stand for more. Write "
            "out what they stand for."
        )
    return content


def _count_values(content: Any) -> int:
    """Count values, up to `MOST_VALUES` and one more; an alias holds all that it stands for, perhaps itself."""
    count, left = 0, [content]
    while left and count <= MOST_VALUES:
        value = left.pop()
        left += [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
        count += 1
    return count


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


def _name_aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")


def _name_what_failed(error: BaseException, path: Path) -> None:
    """Name what was written to an open file, whose name the system does not repeat."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is None:
        error.filename = str(path)


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _without_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
