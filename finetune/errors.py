"""What a user did wrong, said in one line.

Raise `FinetuneError` with "expected what, but found what. The fix." for anything a user can mend. Entry points run
under `exit_on_error`, so that such an error ends the program with that line and status 2, without a traceback.
"""

import contextlib
import errno
import os
import re
import sys
import warnings
from collections.abc import Iterator

from finetune.escape import say

__all__ = ["RESUME_ME", "FinetuneError", "Interrupted", "exit_on_error", "show_warning"]

RESUME_ME = os.EX_TEMPFAIL  # 75: not a failure; the same command goes on from here
FIXES = {
    **dict.fromkeys(
        [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.EPERM],
        "Make room, or pass another folder.",
    ),
    **dict.fromkeys(
        [errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP],
        "Remove what is in the way, or pass another folder.",
    ),
    errno.ENOENT: "Pass a path that exists, or can be made.",
}


class FinetuneError(ValueError):
    """A mistake in the user's input: its message is one line that says what was expected, found, and the fix.

    Where it repeats what a library said, which ends in a full stop, ours is dropped.
    """

    def __init__(self, message: str = ""):
        super().__init__(re.sub(r"(?<=[\w)\]])\.\.(?=\s|$)", ".", message))


class Interrupted(KeyboardInterrupt):
    """SIGTERM or SIGINT ended a run that the same command continues."""


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """End the program with one line on standard error and a status instead of a traceback.

    2 for a `FinetuneError`, a disk that is full or can't be written to, a path where something else is or that can't be
    made, and memory that does not suffice; 75 for an interrupted run that can be resumed; 130 for Ctrl-C elsewhere.
    Where who read the output has gone, as `head` does, it ends with 1 and says nothing. Warnings are lines too.
    """
    warnings.showwarning = show_warning
    try:
        yield
    except FinetuneError as error:
        _exit(2, f"error: {error}")
    except Interrupted as interruption:
        _exit(RESUME_ME, f"interrupted: {interruption}")
    except KeyboardInterrupt:
        _exit(130, "interrupted")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes once more as it ends
        sys.exit(1)
    except OSError as error:
        if error.errno not in FIXES:
            raise
        file = error.filename2 or error.filename or "a file"
        _exit(2, f"error: {error.strerror}: {file}. {FIXES[error.errno]}")
    except MemoryError:
        _exit(2, "error: Expected more memory: an allocation failed. Free some, or pass a smaller model or batch.")


def show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning as one line, in place of `warnings.showwarning`."""
    say(f"warning: {' '.join(str(message).split())}")


def _exit(status: int, line: str) -> None:
    say(" ".join(line.split()))
    sys.exit(status)
