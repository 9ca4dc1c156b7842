"""What a user did wrong, or the machine refused, said in one line.

Raise `FinetuneError` with "expected what, but found what. The fix." for anything a user can mend. What the machine
refuses (a full disk, a limit, a folder that is gone, memory) reaches Python as exceptions of many libraries: here is
the one table that turns them into such lines. Entry points run under `exit_on_error`, so that such an error ends the
program with its line and status 2, without a traceback; what is called from Python under `failures_explained`, which
raises a `FinetuneError` with the same line. Any other exception is a mistake of this package, and keeps its traceback.
"""

import contextlib
import errno
import io
import os
import re
import resource
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

from finetune.escape import say

__all__ = [
    "OUT_OF_MEMORY",
    "RESUME_ME",
    "FinetuneError",
    "Interrupted",
    "exit_on_error",
    "explain_failure",
    "explain_shortage",
    "failures_explained",
    "find_number",
    "show_warning",
]

RESUME_ME = os.EX_TEMPFAIL  # 75: not a failure; the same command goes on from here
FIXES = {
    **dict.fromkeys([errno.ENOSPC, errno.EDQUOT], "Make room, or pass another folder."),
    **dict.fromkeys(
        [errno.EROFS, errno.EACCES, errno.EPERM], "Change who may read and write it, or pass another folder."
    ),
    **dict.fromkeys(
        [errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.EREMOTEIO, errno.ENOTCONN],
        "Look after the disk, or pass another folder.",
    ),
    **dict.fromkeys(
        [
            errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTEMPTY, errno.EBUSY,
            errno.ETXTBSY,
        ],
        "Remove what is in the way, or pass another folder.",
    ),
    errno.ENOENT: "Pass a path that exists, or can be made.",
    errno.EFBIG: "Raise the limit of a file's size (ulimit -f), or pass a folder on another file system.",
    **dict.fromkeys([errno.EMFILE, errno.ENFILE], "Raise the limit of open files (ulimit -n)."),
    errno.EAGAIN: "Raise the limit of processes and threads (ulimit -u), or lower --num_threads.",
    errno.ENOMEM: "Free some, raise the limit of memory (ulimit -v), or pass a smaller model or batch.",
}  # fmt: skip
SHORTAGES = (errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.EIO, errno.EACCES, errno.EPERM)
OUT_OF_MEMORY = re.compile(
    "can't allocate memory"  # torch on a CPU
    "|not enough memory"
    "|bad_alloc"
    "|could not create a memory object"  # oneDNN
    # oneDNN too, for its code and scratchpad. A product that it does not have for this processor has no descriptor
    # already, which is never a matter of memory.
    "|could not create a primitive(?! descriptor)"
    "|ALLOC_FAILED"  # cuBLAS, cuDNN
)
# What libraries that are not written in Python say in words of their own, by the number of the system's error.
IN_WORDS = (
    (re.compile(f"{OUT_OF_MEMORY.pattern}|out of memory|failed to map segment|memory allocation of"), errno.ENOMEM),
    (re.compile("can't start new thread|[Tt]hread creation failed|ThreadPoolBuildError|failed to spawn"), errno.EAGAIN),
)
# Of torch, whose archive writer says which of its steps failed, and not why.
TORCH_WRITES = re.compile("PytorchStreamWriter failed|unexpected pos|file write failed|iostream error")
NUMBER = re.compile(r"\b(?:os error|[Ee]rrno:?|[Ee]rror code:?) (\d+)\b")
SYSTEMS_WORDS = {os.strerror(number): number for number in FIXES}
# What Python says where it finds no folder, and the variable that names one.
NO_FOLDER = (
    (re.compile("No usable temporary directory"), "for temporary files", "TMPDIR"),
    (re.compile("determine home directory"), "of yours", "HOME"),
    (
        re.compile(r"getpwuid\(\): uid not found|No username set"),
        "or name of yours",
        "HOME and USER",
    ),
)
NO_THREAD = f"error: Expected more memory: a thread could not begin. {FIXES[errno.ENOMEM]}\n".encode()
TEMPORARY = re.compile(r".*/tmp[a-z0-9_]{8}/.*")  # as `tempfile` names folders
# Exceptions that stand for a mistake in a program, whatever they say.
MISTAKES = (TypeError, AttributeError, LookupError, AssertionError, NameError)


class FinetuneError(ValueError):
    """A mistake in the user's input: its message is one line that says what was expected, found, and the fix.

    Where it repeats what a library said, which ends in a full stop, ours is dropped.
    """

    def __init__(self, message: str = ""):
        super().__init__(re.sub(r"(?<=[\w)\]])\.\.(?=\s|$)", ".", message))


class Interrupted(KeyboardInterrupt):
    """SIGTERM or SIGINT ended a run that the same command continues."""


class _TimeUsedUp(KeyboardInterrupt):
    """The system's limit of processor time has been reached; no `except Exception` on the way may take it."""


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    r"""End the program with one line on standard error and a status instead of a traceback.

    2 for a `FinetuneError` and for what `explain_failure` explains; 75 for an interrupted run that can be resumed; 130
    for Ctrl-C elsewhere. Where who read the output has gone, as `head` does, it ends with 1 and says nothing. Warnings
    are lines too. Standard streams that are closed count as empty, and what a terminal has no character for is shown
    as an escape such as \xe9.
    """
    warnings.showwarning = show_warning
    _open_streams()
    sys.unraisablehook = _end_without_thread
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGXCPU, _refuse_more_time)
    try:
        try:
            yield
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except Interrupted as interruption:
        _exit(RESUME_ME, f"interrupted: {interruption}")
    except _TimeUsedUp:
        _exit(
            2, "error: The processor time of this process is used up. Raise its limit (ulimit -t), and start it again."
        )
    except KeyboardInterrupt:
        _exit(130, "interrupted")
    except BrokenPipeError:
        _let_go_of_output()
        sys.exit(1)
    except SystemExit:
        raise
    except BaseException as error:  # also what code in Rust raises when it gives up, which is no Exception
        explained = explain_failure(error)
        if explained is None:
            raise
        _exit(2, f"error: {explained}")


@contextlib.contextmanager
def failures_explained(where: Path | None = None) -> Iterator[None]:
    """Raise what `explain_failure` explains as a `FinetuneError`, from what it explains; also a decorator.

    Args:
        where: What is written or read, for errors that don't name it.

    Raises:
        FinetuneError: For what the machine refuses.
    """
    try:
        yield
    except BaseException as error:
        explained = explain_failure(error, where)
        if explained is None or explained is error:
            raise
        raise explained from error


def explain_failure(error: BaseException, where: Path | None = None) -> FinetuneError | None:
    """Explain in one line what the machine refused, whichever library says so, and how to mend it.

    Args:
        error: Any exception.
        where: What was written or read, for one that doesn't name it.

    Returns:
        An error to raise in its place; `error` itself if it is one already; None for anything else: a mistake in a
        program, or what somebody asked for, such as Ctrl-C.
    """
    if isinstance(error, FinetuneError):
        return error
    if isinstance(error, BrokenPipeError | KeyboardInterrupt | SystemExit | GeneratorExit):
        return None
    if type(error).__name__ == "PanicException":  # each library in Rust has a class of its own, which is no Exception
        reason = next(iter(str(error).strip().splitlines()), "it panicked").rstrip(".")
        return FinetuneError(
            f"Expected what a library can read, but it gave up: {reason}. Fetch the model again, or save it again."
        )
    for words, what, variable in NO_FOLDER:
        if words.search(str(error)):
            return FinetuneError(f"Expected a folder {what}, but found none. Set {variable}.")
    number = _number_of(error)
    if number not in FIXES:
        return None if error.__cause__ is None else explain_failure(error.__cause__, where)
    if number == errno.ENOMEM:
        return FinetuneError(f"Expected more memory: an allocation failed. {FIXES[number]}")
    if number == errno.EAGAIN:
        return FinetuneError(f"Expected to start a thread or a process, but the system refused it. {FIXES[number]}")
    named = (isinstance(error, OSError) and (error.filename2 or error.filename)) or where
    if named:
        path = os.fsdecode(named) if isinstance(named, str | bytes | os.PathLike) else str(named)
        return FinetuneError(f"{os.strerror(number)}: {path}. {_fix(number, path)}")
    stream = _find_unwritable_stream()
    if stream is not None:
        return FinetuneError(f"{os.strerror(number)}: standard {stream}. Make room, or send it elsewhere.")
    if number == errno.ENOENT and not _has_working_folder():
        return FinetuneError("Expected a working folder, but it has been deleted. Change to another one (cd).")
    said = "a file" if isinstance(error, OSError) else next(iter(str(error).strip().splitlines()), "a file")
    return FinetuneError(f"{os.strerror(number)}: {said.rstrip('.')}. {FIXES[number]}")


def explain_shortage(error: BaseException) -> FinetuneError | None:
    """Explain an exception as `explain_failure` does, if the machine has too little of something or forbids to read.

    Whoever takes all that a library raises on a file for a fault of the file asks this first.
    """
    return explain_failure(error) if find_number(error) in SHORTAGES else None


def find_number(error: BaseException) -> int | None:
    """Find the number of the system's error (`errno`) that an exception, or what it came from, stands for."""
    number = _number_of(error)
    return number if number is not None or error.__cause__ in (None, error) else find_number(error.__cause__)


def _number_of(error: BaseException) -> int | None:
    """Return the number of the system's error that an exception stands for; None if it stands for none."""
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if isinstance(error, MISTAKES):
        return None
    text = str(error)
    if found := NUMBER.search(text):
        return int(found[1])
    if isinstance(error, RuntimeError) and TORCH_WRITES.search(text):
        has_limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY
        return errno.EFBIG if has_limit else errno.ENOSPC
    return next(
        (number for words, number in IN_WORDS if words.search(text)),
        next((number for words, number in SYSTEMS_WORDS.items() if words in text), None),
    )


def _fix(number: int, path: str) -> str:
    """Return how to mend what befell a path: by the variable that names its folder, where the user named none."""
    if number in (errno.EMFILE, errno.ENFILE, errno.EFBIG):
        return FIXES[number]
    home = Path(os.environ.get("HOME") or "/")
    hub = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "huggingface")
    for variable, folder in (
        ("HF_DATASETS_CACHE", Path(os.environ.get("HF_DATASETS_CACHE") or hub / "datasets")),
        ("HF_HUB_CACHE", Path(os.environ.get("HF_HUB_CACHE") or hub / "hub")),
        ("HF_HOME", hub),
    ):
        above = list(folder.parents)[:2] if variable == "HF_HOME" else []
        if folder in (Path(path), *Path(path).parents) or Path(path) in above:
            return f"Set {variable} to a folder that can be written to, with room in it."
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) and TEMPORARY.fullmatch(path):
        return "Set TMPDIR to a folder that can be written to, with room in it."
    return FIXES[number]


def _has_working_folder() -> bool:
    try:
        os.getcwd()  # noqa: PTH109
    except OSError:
        return False
    return True


def _open_streams() -> None:
    """Open the standard streams that are closed, and let no character be one too many for them.

    Else the next file to be opened would get the number of such a stream, and whatever a library prints. Of standard
    input that is closed Python's own None stays, for whoever reads it to see.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            _open_nothing(number)
            os.set_inheritable(number, True)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper) and sys.stdin.encoding.lower() in (
        "ascii",
        "us-ascii",
        "ansi_x3.4-1968",
    ):
        sys.stdin.reconfigure(encoding="utf-8")  # of which ASCII is a part


def _refuse_more_time(*_: object) -> None:
    raise _TimeUsedUp


def _end_without_thread(ignored: "sys.UnraisableHookArgs") -> None:
    """End the process where a thread had no memory to begin: whoever started it waits for that without end."""
    if isinstance(ignored.exc_value, MemoryError) and "thread started" in (ignored.err_msg or ""):
        os.write(2, NO_THREAD)
        os._exit(2)
    sys.__unraisablehook__(ignored)


def _find_unwritable_stream() -> str | None:
    """Name the standard stream that does not take what is written to it."""
    for name, stream in (("output", sys.stdout), ("error", sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):
            return name
        except AttributeError:
            continue
    return None


def _let_go_of_output() -> None:
    """Let what is still to be written to broken streams go nowhere: Python flushes them once more as it ends."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):
            _open_nothing(number)


def _open_nothing(number: int) -> None:
    """Let a descriptor stand for nothing; it is closed first, since there may be no other."""
    with contextlib.suppress(OSError):
        os.close(number)
    opened = os.open(os.devnull, os.O_RDWR)
    if opened != number:
        os.dup2(opened, number)
        os.close(opened)


def show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning as one line, in place of `warnings.showwarning`."""
    say(f"warning: {' '.join(str(message).split())}")


def _exit(status: int, line: str) -> None:
    warnings.simplefilter("ignore")  # what is left half-made by then may say so as it goes
    sys.unraisablehook = lambda _: None
    with contextlib.suppress(OSError):  # standard error may be what could not be written to
        say(" ".join(line.split()))
    _let_go_of_output()
    sys.exit(status)
