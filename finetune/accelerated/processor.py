"""What the processor is seen to do: each thing is done once, on a small product, and the answer is kept.

Asking is not enough. oneDNN is there on processors for which it has no bfloat16 products, a processor's own flags don't
know of `ONEDNN_MAX_CPU_ISA`, and a format without units of its own is emulated at a hundredth of the speed, silently.
"""

import functools
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

__all__ = ["fuses_linear_layers", "multiplies_fast"]

WIDTH = 256  # a third of a millisecond in float32, and long enough to be timed
TRIES = 5


@functools.cache
def multiplies_fast(dtype: torch.dtype) -> bool:
    """Return whether matrix products on the CPU take no longer in this format than in float32.

    With units for bfloat16 (AVX512-BF16) a product takes half as long as in float32; without, on AVX-512, two and a
    half times as long, on AVX2 fifty times. So the best of a few tries tells them apart, also beside other work.

    Args:
        dtype: A floating-point format.
    """
    if dtype is torch.float32:
        return True
    try:
        return _time_product(dtype) <= _time_product(torch.float32)
    except RuntimeError:
        return False


@functools.cache
def fuses_linear_layers() -> bool:
    """Return whether oneDNN computes a linear layer and its GELU in one pass in bfloat16 on this CPU."""
    rows = torch.linspace(-1, 1, 64).view(4, 16).bfloat16()
    weight, bias = torch.linspace(-1, 1, 128).view(8, 16).bfloat16(), torch.ones(8).bfloat16()
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):  # which may be on around the caller
        try:
            found = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "gelu", [], "none")
        except (AttributeError, RuntimeError):  # a torch without oneDNN; a oneDNN without this product
            return False
        expected = F.gelu(F.linear(rows.float(), weight.float(), bias.float()))
        return torch.allclose(found.float(), expected, atol=0.05, rtol=0.02)


def _time_product(dtype: torch.dtype) -> float:
    """Time a product on one thread, in seconds: others would have to be started, and forks could not use them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            matrix = torch.ones(WIDTH, WIDTH).to(dtype)  # not drawn: a run's random numbers stay what they are
            return min(_time(lambda: matrix @ matrix) for _ in range(TRIES))
    finally:
        torch.set_num_threads(threads)


def _time(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
