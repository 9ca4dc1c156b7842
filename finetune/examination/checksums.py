"""The SHA-256 of every file of a saved model, beside them: a byte that has changed since is noticed.

It tells damage and edits, not a forger, who can write the sums as well.
"""

import hashlib
import warnings
from pathlib import Path

from finetune.examination.documents import check_file, read_object
from finetune.files import write_json

__all__ = ["CHECKSUMS_FILE", "READ", "warn_of_changes", "write_checksums"]

CHECKSUMS_FILE = "checksums.json"
# What libraries read of a model. Code beside it is not, unless it is trusted, nor is a card.
READ = {".json", ".safetensors", ".txt", ".model", ".onnx", ".data"}


def write_checksums(folder: Path) -> None:
    """Write the sums of the files in a folder that libraries read; call it when all of them are written."""
    write_json(folder / CHECKSUMS_FILE, {file.name: _hash(file) for file in _list(folder)})


def warn_of_changes(folder: Path) -> None:
    """Warn of files that are not as they were saved; of a folder without sums nothing is said.

    Raises:
        FinetuneError: If the sums can't be read.
    """
    file = folder / CHECKSUMS_FILE
    check_file(file)
    if not file.is_file():
        return
    saved, found = read_object(file), {file.name: file for file in _list(folder)}
    changed = [name for name in sorted(saved.keys() & found.keys()) if _hash(found[name]) != saved[name]]
    told = [
        f"{what} {', '.join(names)}"
        for what, names in (
            ("changed", changed),
            ("without", sorted(saved.keys() - found.keys())),
            ("with an additional", sorted(found.keys() - saved.keys())),
        )
        if names
    ]
    if told:
        warnings.warn(
            f"the model in {str(folder)!r} is not as it was saved ({', '.join(told)}): its answers may be others than "
            f"those that were measured. If that is meant, remove its {CHECKSUMS_FILE}",
            stacklevel=2,
        )


def _list(folder: Path) -> list[Path]:
    return [
        file
        for file in sorted(folder.iterdir())
        if file.suffix in READ and file.name != CHECKSUMS_FILE and file.is_file()
    ]


def _hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
