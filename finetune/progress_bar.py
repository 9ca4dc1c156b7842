"""A bar on a terminal, nothing elsewhere; cheap to import, since a model without torch needs it too."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from tqdm import tqdm

__all__ = ["progress_bar"]


@contextlib.contextmanager
def progress_bar(total: int, description: str) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal, nothing elsewhere; gives the function that advances it."""
    if not sys.stderr.isatty():  # a bar that is disabled starts its thread too, which takes memory
        yield lambda count: None
        return
    with tqdm(total=total, desc=description, unit=" texts", leave=False) as bar:

        def advance(count: int) -> None:
            bar.update(count)

        yield advance
