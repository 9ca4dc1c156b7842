"""Wait for processes that work for minutes, but not for one that is gone.

A barrier has a single time limit, which is too short while the main process reads a large file or fits the floor, and
too long when a host was cut off. So each process has a thread that exchanges with the others, a few times a second,
how often it has come to a meeting point: who works on is still heard, and who is silent is missed.
"""

import threading
import time
from datetime import timedelta

import torch
from torch import distributed

__all__ = ["WaitingRoom", "is_lost_connection"]

SECONDS_BETWEEN = 0.2


def is_lost_connection(error: RuntimeError) -> bool:
    """Return whether it was another process that failed: gloo has no exception class of its own."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error).lower() or "by peer" in str(error)


class WaitingRoom:
    """Where the processes of a job meet. Every one of them makes it, and leaves it, at the same places.

    Args:
        timeout: How long the others may be silent.
    """

    def __init__(self, timeout: timedelta):
        self.group = distributed.new_group(backend="gloo", timeout=timeout)
        self.changed = threading.Condition()
        self.own_arrivals = self.common_arrivals = 0
        self.is_leaving = self.is_broken_off = False
        self.error: RuntimeError | None = None
        self.thread = threading.Thread(target=self._exchange, daemon=True)
        self.thread.start()

    def wait(self) -> None:
        """Wait until every process has called this as often, however long its work takes.

        Raises:
            RuntimeError: If one of them has ended, or was silent for too long.
        """
        with self.changed:
            self.own_arrivals += 1
            self.changed.wait_for(lambda: self.common_arrivals >= self.own_arrivals or self.error is not None)
            if self.common_arrivals < self.own_arrivals:
                assert self.error is not None
                raise self.error

    def leave(self, at_once: bool = False) -> None:
        """Leave together with all others, or, after an error, alone: they notice when this process ends."""
        self.is_leaving, self.is_broken_off = True, at_once
        self.thread.join(1 if at_once else None)

    def _exchange(self) -> None:
        has_ended = False
        try:
            while not has_ended:
                numbers = torch.tensor([self.own_arrivals, int(self.is_leaving)])
                distributed.all_reduce(numbers, distributed.ReduceOp.MIN, self.group)
                with self.changed:
                    self.common_arrivals = int(numbers[0])
                    self.changed.notify_all()
                has_ended = bool(numbers[1]) or self.is_broken_off
                time.sleep(0 if has_ended else SECONDS_BETWEEN)
        except RuntimeError as error:
            with self.changed:
                self.error = error
                self.changed.notify_all()
