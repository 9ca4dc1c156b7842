"""One run at a time in a directory."""

import fcntl
import os
from pathlib import Path

from finetune.errors import FinetuneError, failures_explained

__all__ = ["LOCK_FILE", "DirectoryLock", "find_holder"]

LOCK_FILE = "run.lock"


class DirectoryLock:
    """A lock on a directory, which the operating system gives back when this process ends, however it ends.

    It belongs to the process alone: neither data loader workers nor other children hold it on.

    Args:
        directory: Exists already.
    """

    def __init__(self, directory: Path):
        self.path = directory / LOCK_FILE
        self.descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            FinetuneError: If another process has it, or the directory can't be written to.
        """
        directory = str(self.path.parent)
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise FinetuneError(
                f"Expected to write into --output_dir {directory!r}, but got: {error.strerror}. Pass another folder."
            ) from error
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = os.pread(descriptor, 100, 0).decode("ascii", "replace") or "another process"
            os.close(descriptor)
            raise FinetuneError(
                f"Expected --output_dir {directory!r} for this run alone, but {holder} is at work in it. "
                "Wait for its end, or pass another folder."
            ) from None
        except OSError as error:  # a file system without locks
            os.close(descriptor)
            raise FinetuneError(
                f"Expected a file system that can lock files in {directory!r}, but got: {error.strerror}. "
                "Pass a folder on another one."
            ) from error
        if not self.path.exists() or self.path.stat().st_ino != os.fstat(descriptor).st_ino:
            os.close(descriptor)  # the run that had it ended between the two calls and removed the file
            return self.acquire()
        os.ftruncate(descriptor, 0)
        with failures_explained(self.path):
            os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}".encode("ascii", "replace"), 0)
        self.descriptor = descriptor

    def release(self) -> None:
        """Remove the file and give the lock back."""
        if self.descriptor is not None:
            self.path.unlink(missing_ok=True)
            os.close(self.descriptor)
            self.descriptor = None


def find_holder(directory: Path) -> str | None:
    """Return which process has the lock of a directory; None if none has."""
    try:
        descriptor = os.open(directory / LOCK_FILE, os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return os.pread(descriptor, 100, 0).decode("ascii", "replace") or "another process"
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None
