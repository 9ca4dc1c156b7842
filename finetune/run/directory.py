"""The life of a run directory: opened by one run at a time, started over, gone on in, and left as if nothing had been.

run.json        settings, versions, hardware, data, costs, metrics; `status` says whether the run is complete
findings.json   what the data doctor found
history.jsonl   what was logged, one JSON object a line
trials.jsonl    with --trials or --budget: what was tried before
encoder/        with --pretrain_epochs: what training starts from
model/          what `finetune.load` and `from_pretrained` reload
predictions/    validation.parquet and test.parquet
checkpoints/    to resume from
tensorboard/    with --report_to tensorboard
"""

import contextlib
import shutil
from pathlib import Path

from finetune.adapted import ENCODER_FOLDER
from finetune.errors import FinetuneError
from finetune.escape import say
from finetune.files import is_aside, remove_asides
from finetune.run.lock import LOCK_FILE, DirectoryLock
from finetune.run.record import RECORD_FILE, RunRecord, has_record
from finetune.training.checkpoints import find_resumable, list_checkpoints, tidy

__all__ = ["FINDINGS_FILE", "HISTORY_FILE", "TRIALS_FILE", "TRIAL_FOLDER", "RunDirectory"]

FINDINGS_FILE = "findings.json"
HISTORY_FILE = "history.jsonl"
TRIALS_FILE = "trials.jsonl"
TRIAL_FOLDER = "trial"  # the checkpoints of the trial at work
FILES = (RECORD_FILE, FINDINGS_FILE, HISTORY_FILE)
ENTRIES = (
    *FILES,
    TRIALS_FILE,
    TRIAL_FOLDER,
    ENCODER_FOLDER,
    f"{ENCODER_FOLDER}.replaced",
    "model",
    "model.replaced",
    "predictions",
    "checkpoints",
    "tensorboard",
)


class RunDirectory:
    """A directory in which one run is at work; only its main process opens, writes and closes it.

    Args:
        path: Need not exist.
    """

    def __init__(self, path: Path):
        self.path = path
        self.model = path / "model"
        self.encoder = path / ENCODER_FOLDER
        self.checkpoints = path / "checkpoints"
        self.set_aside = path / "before-restart"
        self.lock: DirectoryLock | None = None
        self.started_here = True

    def open(self, restart: bool, hint: str = "") -> RunRecord | None:
        """Make the directory, or accept the one that this run left behind; nobody else may be at work in it.

        Args:
            restart: Whether to set an earlier run aside and start over.
            hint: Ends the message about a finished run.

        Returns:
            The record of the unfinished run that was found; None if this one starts anew.

        Raises:
            FinetuneError: If the directory holds something else or a finished run, can't be written to, or another
                process is at work in it.
        """
        if self.path.exists() and not self.path.is_dir():
            raise FinetuneError(f"Expected --output_dir to be a folder, but {str(self.path)!r} is a file.")
        if self._holds_something() and not self.set_aside.exists():
            self._read_record()  # a folder of other things is left as it is, without a lock in it
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FinetuneError(
                f"Expected to make --output_dir {str(self.path)!r}, but got: {error.strerror}. Pass another one."
            ) from error
        lock = DirectoryLock(self.path)
        lock.acquire()
        self.lock = lock
        if self.set_aside.is_dir() and not (self.path / RECORD_FILE).exists():  # killed while it started over
            self._bring_back()
        if not self._holds_something():
            remove_asides(self.path)
            return None
        before = self._read_record()
        for folder in (self.path, self.path / "predictions"):
            remove_asides(folder)
        if restart:
            self._start_over(before.status == "complete")
            return None
        if before.status == "complete":
            raise FinetuneError(
                f"Expected an empty --output_dir, but {str(self.path)!r} holds a finished run. "
                f"Pass another folder, or --restart to delete it and run again.{hint}"
            )
        return before

    def find_checkpoint(self, run_id: str) -> Path | None:
        """Find the newest checkpoint of a run that is whole, and say which were skipped and why."""
        if self.checkpoints.is_dir():
            tidy(self.checkpoints)
        self.started_here = not list_checkpoints(self.checkpoints)
        checkpoint, skipped = find_resumable(self.checkpoints, run_id)
        for line in skipped:
            say(f"warning: {line}")
        if checkpoint is None and skipped:
            say("warning: no checkpoint is whole: starting from the first step")
        return checkpoint

    def leave_nothing_behind(self) -> None:
        """Remove what a run wrote that failed before a checkpoint or a trial; bring back what `--restart` set aside."""
        has_work = bool(list_checkpoints(self.checkpoints)) or (self.path / TRIALS_FILE).exists()
        if self.started_here and not has_work and not self.model.exists():
            for name in ENTRIES:
                _remove(self.path / name)
            if self.set_aside.exists():
                self._bring_back()

    def forget_set_aside(self) -> None:
        """Delete the run that `--restart` set aside: the new one is complete."""
        shutil.rmtree(self.set_aside, ignore_errors=True)

    def close(self) -> None:
        """Release the lock, and remove the directory if nothing is in it."""
        if self.lock is not None:
            self.lock.release()
        if self.path.is_dir() and not any(self.path.iterdir()):
            with contextlib.suppress(OSError):  # a link, or where a disk is mounted
                self.path.rmdir()

    def _bring_back(self) -> None:
        """Put back what `--restart` set aside, the record last."""
        for path in sorted(self.set_aside.iterdir(), key=lambda path: path.name == RECORD_FILE):
            _remove(self.path / path.name)
            path.rename(self.path / path.name)
        self.set_aside.rmdir()

    def _start_over(self, is_complete: bool) -> None:
        """Set the earlier run's files aside; they are deleted when this one is complete.

        What an unfinished restart left is removed: the run that it set aside stays there. What a complete one had set
        aside, and was killed while it deleted it, goes.
        """
        is_second = not is_complete and self.set_aside.is_dir() and any(self.set_aside.iterdir())
        if not is_second:
            shutil.rmtree(self.set_aside, ignore_errors=True)
        self.set_aside.mkdir(exist_ok=True)
        for name in ENTRIES:
            if is_second:
                _remove(self.path / name)
            elif (self.path / name).exists():
                (self.path / name).rename(self.set_aside / name)

    def _holds_something(self) -> bool:
        """Return whether there is anything but what a process leaves that was killed before its first line."""
        names = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
        return any(name != LOCK_FILE and not (name.startswith(RECORD_FILE) and is_aside(name)) for name in names)

    def _read_record(self) -> RunRecord:
        found = "other files"
        if has_record(self.path):
            try:
                return RunRecord.read(self.path)
            except FinetuneError as error:
                found = f"a {RECORD_FILE} that no run wrote: {error}"
                if isinstance(error.__cause__, OSError):
                    found = f"a {RECORD_FILE} that can't be read: {error.__cause__.strerror}"
        raise FinetuneError(
            f"Expected an empty --output_dir or an earlier run, but {str(self.path)!r} holds {found}. "
            "Pass another folder."
        )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
