"""Checkpoints that are whole or don't count.

checkpoints/
  checkpoint-120/           what the `Trainer` writes, without its pickled arguments, and
    loop_state.json         where in the loop it was written, and the sums that the `Trainer` itself forgets
    complete.json           the run that wrote it, its own name, size and SHA-256 of every other file; written last
  writing/                  one that is being written, or deleted; never read

A checkpoint is written aside, flushed to the disk, and renamed. It is read only if every file is as `complete.json`
says and none has been added, so nothing is unpickled or trained on that this run did not write.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from finetune.files import replace_folder

__all__ = [
    "WRITING",
    "best_of",
    "commit_checkpoint",
    "find_fault",
    "find_resumable",
    "find_unsealed",
    "is_sealed",
    "list_checkpoints",
    "rotate_checkpoints",
    "tidy",
]

MANIFEST = "complete.json"
STATE = "trainer_state.json"
WRITING = "writing"
UNUSED = ("training_args.bin", "README.md")  # a pickle that nothing reads, and PEFT's empty card


def commit_checkpoint(aside: Path, folder: Path, run_id: str | None) -> None:
    """Seal a checkpoint that was written aside and move it to its place, also where a broken one stands.

    Args:
        aside: Holds all its files.
        folder: `checkpoints/checkpoint-<step>`.
        run_id: Whose it is; None where nobody asks.
    """
    for name in UNUSED:
        (aside / name).unlink(missing_ok=True)
    files = {
        str(path.relative_to(aside)): {"bytes": path.stat().st_size, "sha256": _hash(path)}
        for path in sorted(aside.rglob("*"))
        if path.is_file()
    }
    (aside / MANIFEST).write_text(_to_text(files, run_id, folder.name), encoding="utf-8")
    replace_folder(folder, aside)


def is_sealed(checkpoint: Path) -> bool:
    """Return whether `commit_checkpoint` wrote a checkpoint; transformers' own ones have no such file."""
    return (checkpoint / MANIFEST).exists()


def find_fault(checkpoint: Path, run_id: str | None) -> str | None:
    """Return why a run can't resume from a checkpoint; None if it is exactly what this run wrote.

    Args:
        checkpoint: A folder.
        run_id: Who has to have written it; None for anybody.
    """
    try:
        text = (checkpoint / MANIFEST).read_text(encoding="utf-8")
        content = json.loads(text)
        files, owner, name = content["files"], content["run"], content["checkpoint"]
        if text != _to_text(files, owner, name):
            return f"{MANIFEST} has changed"
        if run_id is not None and owner != run_id:
            return "another run wrote it"
        if name != checkpoint.name:
            return f"it was written as {name}"
        present = {str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()}
        for name, expected in files.items():
            if name not in present:
                return f"{name} is missing"
            size = (checkpoint / name).stat().st_size
            if size != expected["bytes"]:
                return f"{name} has {size:,} bytes instead of {expected['bytes']:,}"
        added = sorted(present - files.keys() - {MANIFEST})
        if added:
            return f"{added[0]} was added to it"
        for name, expected in files.items():
            if _hash(checkpoint / name) != expected["sha256"]:
                return f"{name} has changed"
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so it was not written to the end"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{MANIFEST} can't be read: {error}"
    return None


def list_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints in a folder, whole or not, the oldest first."""
    return sorted((path for path in folder.glob("checkpoint-*") if _step(path) is not None), key=_step_of)


def find_resumable(folder: Path, run_id: str | None) -> tuple[Path | None, list[str]]:
    """Find the newest checkpoint of a run that is whole, and whose best checkpoint so far is whole too.

    Returns:
        The checkpoint or None; and for each newer one that was skipped a line that says why.
    """
    skipped: list[str] = []
    for checkpoint in reversed(list_checkpoints(folder)):
        fault = find_fault(checkpoint, run_id)
        if fault is None:
            best = best_of(checkpoint)
            if best is None or best == checkpoint:
                return checkpoint, skipped
            fault = find_fault(best, run_id)
            if fault is None:
                return checkpoint, skipped
            fault = f"the best one before it, {best.name}, is not whole: {fault}"
        skipped.append(f"skipped {checkpoint}: {fault}")
    return None, skipped


def find_unsealed(folder: Path) -> Path | None:
    """Find the newest checkpoint that transformers' own `Trainer` has written to the end: its state comes last."""
    written = [path for path in list_checkpoints(folder) if not is_sealed(path) and (path / STATE).exists()]
    return written[-1] if written else None


def best_of(checkpoint: Path) -> Path | None:
    """Find the best checkpoint so far, as a whole checkpoint names it; the run directory may have been moved since."""
    best = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["best_model_checkpoint"]
    return None if best is None else checkpoint.with_name(Path(best).name)


def rotate_checkpoints(folder: Path, limit: int | None, best: str | None) -> None:
    """Delete the oldest checkpoints, so that `limit` are left; never the newest, nor the best.

    Args:
        folder: Holds the checkpoints; the newest has just been written.
        limit: How many to keep; None or 0 for all.
        best: The name of the best one.
    """
    checkpoints = list_checkpoints(folder)
    surplus = len(checkpoints) - limit if limit else 0
    for checkpoint in checkpoints[:-1]:
        if surplus > 0 and checkpoint.name != best:
            _delete([checkpoint], folder)
            surplus -= 1


def tidy(folder: Path) -> None:
    """Clear what a process left behind that was killed while it wrote, replaced or deleted a checkpoint."""
    for replaced in folder.glob("checkpoint-*.replaced"):
        intended = replaced.with_suffix("")
        if not intended.exists():
            replaced.rename(intended)
        else:
            _delete([replaced], folder)
    if all(path.name.startswith("checkpoint-") for path in (folder / WRITING).glob("*")):  # else somebody else's
        shutil.rmtree(folder / WRITING, ignore_errors=True)


def _delete(checkpoints: Iterable[Path], folder: Path) -> None:
    """Move checkpoints out of sight before their files go, so that no half of one is ever found."""
    (folder / WRITING).mkdir(exist_ok=True)
    for checkpoint in checkpoints:
        out_of_sight = folder / WRITING / checkpoint.name
        checkpoint.rename(out_of_sight)
        shutil.rmtree(out_of_sight, ignore_errors=True)
    with contextlib.suppress(OSError):  # it holds something of somebody else's
        (folder / WRITING).rmdir()


def _step(path: Path) -> int | None:
    number = path.name.rpartition("-")[2]
    return int(number) if path.is_dir() and number.isascii() and number.isdigit() else None


def _step_of(path: Path) -> int:
    return _step(path) or 0


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_text(files: dict[str, Any], run_id: str | None, name: str) -> str:
    """Write the manifest in the one form that is accepted, so that any changed byte of it shows."""
    content = {"checkpoint": name, "files": files, "run": run_id}
    return json.dumps(content, indent=1, sort_keys=True) + "\n"
