"""What a user did wrong, said in one line.

Raise `FinetuneError` with "expected what, but found what. The fix." for anything a user can mend. Entry points run
under `exit_on_error`, so that such an error ends the program with that line and status 2, without a traceback.
"""

import contextlib
import sys
from collections.abc import Iterator

__all__ = ["FinetuneError", "exit_on_error"]


class FinetuneError(ValueError):
    """A mistake in the user's input: its message is one line that says what was expected, found, and the fix."""


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """Turn a `FinetuneError` into one line on standard error and exit status 2, Ctrl-C into status 130."""
    try:
        yield
    except FinetuneError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
