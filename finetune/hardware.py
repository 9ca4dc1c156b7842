"""What the machine can do: threads, number formats, memory; read by the arguments and written into `run.json`."""

import ctypes
import hashlib
import os
import platform
import re
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import torch

from finetune.accelerated.processor import multiplies_fast
from finetune.errors import OUT_OF_MEMORY
from finetune.threads import count_physical_cores, default_num_threads

__all__ = [
    "count_physical_cores",
    "cpu_seconds",
    "default_num_threads",
    "describe_hardware",
    "fastest_precision",
    "is_out_of_memory",
    "measure_precision",
    "peak_memory_bytes",
    "processor_name",
    "release_memory",
    "supports_bf16",
    "time_hashes",
    "use_processor",
]

HASHED = bytes(2**18)  # a seventh of a millisecond: less than a process gets at once beside others
HASHING_SECONDS = 0.05
PROBE_WIDTH = 512  # rows of a product that is as large as those of a layer
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def use_processor(num_threads: int) -> None:
    """Set torch's threads, and let glibc keep the memory that torch frees.

    `accelerate launch` exports `OMP_NUM_THREADS=1`, which this overrides. By default glibc gives every piece of more
    than 128 KiB to 32 MiB back to the system, whose pages are faulted in again in the next step: a tenth of its time.
    """
    torch.set_num_threads(num_threads)
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def release_memory() -> None:
    """Return to the system what torch has freed and `use_processor` keeps.

    Micro-batches differ in shape, so that the holes between what is in use grow over hundreds of steps.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is an allocator's: of a GPU, of the system, or of a library below torch."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None


def supports_bf16() -> bool:
    """Return whether the GPU has units for matrix products in bfloat16; without a GPU, whether the CPU is seen to."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return multiplies_fast(torch.bfloat16)


def fastest_precision() -> str:
    """Name the number format in which this machine multiplies matrices fastest: "bf16", "fp16" or "fp32"."""
    if supports_bf16():
        return "bf16"
    return "fp16" if torch.cuda.is_available() else "fp32"


def measure_precision(device: torch.device) -> str:
    """Find the number format in which products of float32 matrices are computed: "fp32", "tf32" or "bf16".

    Settings of torch, and the environment past them (`NVIDIA_TF32_OVERRIDE`, `ONEDNN_DEFAULT_FPMATH_MODE`), let a
    device round their elements: to 10 bits behind the point in TF32, to 7 in bfloat16.
    """
    identity = torch.eye(PROBE_WIDTH, device=device)
    kept = [float((identity @ (identity * (1 + 2.0**-bits))).max()) > 1 for bits in (12, 9)]
    return "fp32" if kept[0] else "tf32" if kept[1] else "bf16"


def describe_hardware() -> dict[str, object]:
    """Describe the host: processor, cores, memory in bytes, and the GPUs that torch sees."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "platform": platform.platform(),
        "processor": processor_name(),
        "physical_cores": count_physical_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": gpus,
    }


def processor_name() -> str:
    """Name the processor as the operating system does."""
    if sys.platform.startswith("linux"):
        with Path("/proc/cpuinfo").open() as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def peak_memory_bytes() -> int:
    """Return the most memory held so far: allocated on the GPU if one is used, else resident in this process.

    On Linux not from `getrusage`, whose figure a process inherits from the one that started it: under a notebook that
    holds a large frame every run would seem to need as much.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform.startswith("linux"):
        found = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        if found is not None:
            return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def cpu_seconds() -> float:
    """Return the seconds that processors have worked for this process, in all threads and children that have ended."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def time_hashes(num_threads: int) -> list[float]:
    """Time a short computation again and again, in as many threads as will train, each by itself.

    On a machine with nothing else to do all take as long as the shortest. Where other programs take turns with this
    one, some take many times as long, and their mean by as much longer as everything else does.

    Returns:
        Wall seconds of each, over a twentieth of a second; at least one of each thread.
    """
    until = time.perf_counter() + HASHING_SECONDS

    def hash_until(_: int) -> list[float]:
        seconds: list[float] = []
        while (start := time.perf_counter()) < until or not seconds:
            hashlib.sha256(HASHED).digest()
            seconds.append(time.perf_counter() - start)
        return seconds

    num_threads = min(num_threads, count_physical_cores())
    with ThreadPoolExecutor(num_threads) as pool:
        return [seconds for part in pool.map(hash_until, range(num_threads)) for seconds in part]
