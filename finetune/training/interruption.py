"""SIGTERM, SIGINT, SIGXCPU: finish the step, write a checkpoint, and end with a status that says "start me again"."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from finetune.errors import Interrupted

__all__ = ["Interruption"]

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGXCPU)  # the last where the limit of processor time is reached
SECONDS_BETWEEN = 2.0  # launchers pass on what the terminal or Slurm has sent already: that is one signal, not two


class Interruption:
    """Catches these signals; use it as a context, in the main thread.

    While `deferred()`, a first signal only sets `received`, for the loop that looks at it; otherwise it raises
    `Interrupted` where the program is, which is safe because files are written aside. A second signal ends the process
    at once, as SIGKILL would, which is safe for the same reason.

    Attributes:
        received: Whether a signal has come.
    """

    def __init__(self) -> None:
        self.received = False
        self.is_deferred = False
        self.first = 0.0
        self.process = os.getpid()
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Leave it to the code inside to look at `received`."""
        self.is_deferred = True
        try:
            yield
        finally:
            self.is_deferred = False

    def raise_if_received(self) -> None:
        """Raise `Interrupted` if a signal came when nothing looked at it any more."""
        if self.received:
            raise Interrupted("start the same command again to go on.")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:  # a data loader's worker, which ends with its loader, or when told so
            if number != signal.SIGINT:
                _end_at_once(number)
            return
        now = time.monotonic()
        name = signal.Signals(number).name
        if self.received:
            if number != signal.SIGXCPU and now - self.first >= SECONDS_BETWEEN:  # that one comes every second
                _end_at_once(number)
            return
        self.received, self.first = True, now
        if not self.is_deferred:
            raise Interrupted(f"{name} received: start the same command again to go on.")
        os.write(2, f"{name} received: this step, a checkpoint, then the end. Again: the end at once.\n".encode())


def _end_at_once(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
