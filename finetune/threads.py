"""How many threads to compute with, and work on several of them; cheap to import."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import psutil

from finetune.errors import FinetuneError

__all__ = ["compute_side_by_side", "count_launched", "count_physical_cores", "default_num_threads"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def count_physical_cores() -> int:
    """Count the physical cores that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or usable, usable))


def default_num_threads() -> int:
    """Divide the physical cores by the number of processes that the launcher started on this host."""
    return max(1, count_physical_cores() // count_launched("LOCAL_WORLD_SIZE"))


def count_launched(variable: str = "WORLD_SIZE") -> int:
    """Return how many processes the launcher says that it started, here or on all hosts; 1 if it says nothing.

    Raises:
        FinetuneError: If that is no number.
    """
    given = os.environ.get(variable) or "1"
    if not (given.isascii() and given.isdecimal() and int(given)):
        raise FinetuneError(
            f"Expected {variable}, which launchers set, to be a number of processes, but found {given!r}. Unset it, or "
            "start several processes with accelerate launch or torchrun."
        )
    return int(given)


def compute_side_by_side(
    compute: Callable[[Item], Result],
    items: Sequence[Item],
    num_workers: int,
    start: Callable[[], object] | None = None,
) -> Iterator[Result]:
    """Call a function on each item, on several threads, for work that holds no lock of Python's.

    Args:
        compute: What it raises ends the iteration; items that no thread has begun are left then.
        items: Begun in their order.
        num_workers: Threads.
        start: Called once on each of them.

    Yields:
        The results, in the order of the items.
    """
    if num_workers == 1 and start is None:  # a thread that gets no memory is waited for without end
        yield from map(compute, items)
        return
    pool = ThreadPoolExecutor(num_workers, initializer=start)
    try:
        yield from pool.map(compute, items)
    finally:
        pool.shutdown(cancel_futures=True)
