"""An output in the making: what a kill leaves of it, and what the next start does with that.

It lies in a folder of its own beside the output, `OUTPUT.unfinished/`, which the first line of its journal tells from
folders of others. `docs/how-to/delivery.md` has the states.

journal.jsonl   what was asked for; after each chunk the rows and bytes that count from then on; before the output gets
                its name, which file is "placing"
rows            what is written so far; of CSV and JSON Lines the output itself in the end
whole           of Parquet, the output
"""

import contextlib
import fcntl
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from finetune.errors import FinetuneError, failures_explained
from finetune.files import are_one, flush, move_new

__all__ = ["Unfinished", "check_output"]

JOURNAL, ROWS, WHOLE = "journal.jsonl", "rows", "whole"
KEY = "unfinished output of finetune predict"
MARK = f'{{"{KEY}": '.encode()  # begins the journal


class Unfinished:
    """What is done of an output; use it as a context, in one process at a time.

    What fails before any row counts leaves nothing behind.

    Args:
        output: The file to be.
        asked: What its rows depend on, by name.

    Attributes:
        num_rows: How many rows count.
        is_placed: Whether the output has its name already: an earlier run was killed before it had tidied up.

    Raises:
        FinetuneError: On entering, if the output exists, the folder is none of ours or can't be made, something else
            was asked for, or another process is at it.
    """

    def __init__(self, output: Path, asked: dict[str, Any]):
        self.output = output
        self.asked = json.loads(json.dumps(asked, default=str))  # as the journal gives it back
        self.folder = output.with_name(f"{output.name}.unfinished")
        self.num_rows = 0
        self.num_bytes = 0
        self.is_placed = False
        self._journal: IO[bytes]
        self._rows: IO[bytes]

    def __enter__(self) -> "Unfinished":
        with contextlib.ExitStack() as opened:
            self._journal = opened.enter_context(self._lock())
            noted = self._read_journal()
            final = noted.get("placing")
            if final and (not (self.folder / final).exists() or are_one(self.folder / final, self.output)):
                self.is_placed = os.path.lexists(self.output)
                if not self.is_placed:  # but moved away since
                    self._remove(WHOLE, ROWS)
                    noted = {}
            before = noted.get(KEY, self.asked)
            changed = [name for name, value in self.asked.items() if before.get(name) != value]
            if self.is_placed:
                self._remove(WHOLE, ROWS, JOURNAL)
            if os.path.lexists(self.output) and not (self.is_placed and not changed):
                raise _refuse_output(self.output)
            if changed:
                raise FinetuneError(
                    f"Expected to continue the unfinished output with the same {' and '.join(changed)}, but found "
                    f"others. Restore them, or delete {str(self.folder)!r} to start over."
                )
            self.num_rows, self.num_bytes = noted.get("rows", 0), noted.get("bytes", 0)
            if not self.is_placed:
                self._rows = opened.enter_context(self._open_rows(is_new=not noted))
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        with failures_explained(self.folder / ROWS), self._opened:  # closing writes once more what found no room
            if self.num_rows == 0:
                self._remove(WHOLE, ROWS, JOURNAL)

    def append(self, content: bytes, num_rows: int) -> None:
        """Write rows; once they are on the disk, they count."""
        with failures_explained(self.folder / ROWS):  # what the system says of an open file does not name it
            self._rows.write(content)
            self._rows.flush()
            os.fsync(self._rows.fileno())
        self.num_rows += num_rows
        self.num_bytes += len(content)
        self._note(rows=self.num_rows, bytes=self.num_bytes)

    def finish(self, convert: Callable[[Path, Path], None] | None) -> None:
        """Give the output its name.

        Args:
            convert: Writes the output, given the path of all rows and the output's; None if the rows are the output.

        Raises:
            FinetuneError: If something has that name meanwhile; the rows are kept.
        """
        final = ROWS
        if convert is not None:
            final = WHOLE
            self._remove(WHOLE)  # of an earlier run, which was killed while it wrote it
            with failures_explained(self.folder / WHOLE):
                convert(self.folder / ROWS, self.folder / WHOLE)
                flush(self.folder / WHOLE)
        self._note(placing=final)
        try:
            move_new(self.folder / final, self.output)
        except FileExistsError:
            raise FinetuneError(
                f"Expected nothing at {str(self.output)!r}, but something was put there meanwhile. Move it away, and "
                f"give the same command again: all {self.num_rows:,} rows are kept."
            ) from None
        flush(self.output.parent)
        self._remove(WHOLE, ROWS, JOURNAL)

    def _lock(self) -> IO[bytes]:
        """Make the folder, if it isn't there, and open its journal for this process alone."""
        path = self.folder / JOURNAL
        try:
            with contextlib.suppress(FileExistsError):
                self.folder.mkdir()
            is_link = self.folder.is_symlink() or path.is_symlink()
            if is_link or (any(self.folder.iterdir()) and not path.is_file()):
                raise self._refuse_folder()
            journal = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+b")
        except NotADirectoryError:
            raise self._refuse_folder() from None
        except OSError as error:
            raise FinetuneError(
                f"Expected to write into {str(self.folder)!r}, but got: {error.strerror}. Pass another --output_file."
            ) from error
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            journal.close()
            if not isinstance(error, BlockingIOError):
                raise
            raise FinetuneError(
                f"Expected to write {str(self.output)!r} alone, but another process is at it. Wait for it to end."
            ) from None
        if os.fstat(journal.fileno()).st_nlink == 0:  # who had it ended between the two calls and removed it
            journal.close()
            return self._lock()
        return journal

    def _read_journal(self) -> dict[str, Any]:
        """Return what its whole lines say, later ones over earlier ones."""
        content = self._journal.read()
        whole = content[: content.rfind(b"\n") + 1]
        is_ours = content.startswith(MARK) or (MARK.startswith(content) and len(list(self.folder.iterdir())) == 1)
        try:
            noted = dict(itertools.chain(*(json.loads(line).items() for line in whole.splitlines())))
        except (ValueError, AttributeError):
            is_ours = False
        if not is_ours:
            raise self._refuse_folder()
        self._journal.seek(len(whole))
        return noted

    def _open_rows(self, is_new: bool) -> IO[bytes]:
        """Open the rows behind those that count; what an earlier run wrote beyond them, and noted, is cut off."""
        if is_new:
            self._journal.seek(0)
            self._journal.truncate()
            self._note(**{KEY: self.asked})
        rows = (self.folder / ROWS).open("ab")
        if rows.tell() < self.num_bytes:
            rows.close()
            raise FinetuneError(
                f"Expected {str(self.folder / ROWS)!r} as the journal beside it describes it, but one of them was "
                f"changed. Delete {str(self.folder)!r} to start over."
            )
        rows.truncate(self.num_bytes)
        self._journal.truncate()
        flush(self.folder)
        flush(self.folder.parent)
        return rows

    def _note(self, **what: Any) -> None:
        with failures_explained(self.folder / JOURNAL):
            self._journal.write(json.dumps(what).encode() + b"\n")
            self._journal.flush()
            os.fsync(self._journal.fileno())

    def _remove(self, *names: str) -> None:
        for name in names:
            (self.folder / name).unlink(missing_ok=True)
        if JOURNAL in names:
            with contextlib.suppress(OSError):  # somebody has put something into it
                self.folder.rmdir()

    def _refuse_folder(self) -> FinetuneError:
        return FinetuneError(
            f"Expected {str(self.folder)!r} to be free, or what an earlier run left there, but found something else. "
            "Move it away, or pass another --output_file."
        )


def check_output(output: Path) -> None:
    """Refuse an output that exists, unless an earlier run may have been killed as it gave it its name.

    Raises:
        FinetuneError: If it exists, or has no folder to be in.
    """
    unfinished = Unfinished(output, {})
    if os.path.lexists(output) and not (unfinished.folder / JOURNAL).is_file():
        raise _refuse_output(output)
    if not output.parent.is_dir():
        raise FinetuneError(f"Expected --output_file in a folder, but {str(output.parent)!r} is none. Make it.")


def _refuse_output(output: Path) -> FinetuneError:
    return FinetuneError(f"Expected a new --output_file, but {str(output)!r} exists. Pass another one.")
