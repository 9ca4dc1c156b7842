"""How many threads to compute with; cheap to import."""

import os

import psutil

__all__ = ["count_physical_cores", "default_num_threads"]


def count_physical_cores() -> int:
    """Count the physical cores that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or usable, usable))


def default_num_threads() -> int:
    """Divide the physical cores by the number of processes that the launcher started on this host."""
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, count_physical_cores() // local_processes)
