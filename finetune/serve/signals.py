"""SIGTERM and SIGINT from the command's first line on, before anything slow is imported."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["end_at_once", "on_stop"]


@contextlib.contextmanager
def on_stop(act: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Let SIGTERM and SIGINT call a function while in the context."""
    earlier = {number: signal.signal(number, act) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def end_at_once(*_: object) -> None:
    """End the process with status 0, whatever its threads do.

    An exception would do where nothing catches it, but this may be in the middle of any library's import.
    """
    os._exit(0)
