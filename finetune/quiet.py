"""Keep the libraries' own reports and bars out of what a person reads; warnings of ours become single lines."""

import contextlib
import sys
import warnings
from collections.abc import Iterator

from tqdm import tqdm
from transformers.utils import logging

from finetune.errors import show_warning

__all__ = ["quiet_loading", "quiet_program", "quiet_restored", "quietly"]


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Load a model without transformers' bar and its report of the head's new weights, which every fine-tuning has."""
    with _transformers_restored():
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        yield


@contextlib.contextmanager
def _transformers_restored() -> Iterator[None]:
    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()


def quiet_program() -> None:
    """Quieten the libraries for the rest of the process: for recipes and commands, not for use as a library."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tqdm.monitor_interval = 0  # a thread that gets no memory is waited for without end
    if "datasets" in sys.modules and not sys.stderr.isatty():  # a prediction never imports it
        sys.modules["datasets"].disable_progress_bars()
    warnings.filterwarnings("ignore", module=r"torch\..*|accelerate\..*|peft\..*|transformers\..*|datasets\..*")
    warnings.showwarning = show_warning


@contextlib.contextmanager
def quiet_restored() -> Iterator[None]:
    """Undo in the end what `quiet_program` did on the way, for callers that go on: a notebook, a script."""
    datasets, interval = sys.modules.get("datasets"), tqdm.monitor_interval
    has_bars = datasets is not None and not datasets.are_progress_bars_disabled()
    with warnings.catch_warnings(), _transformers_restored():
        try:
            yield
        finally:
            tqdm.monitor_interval = interval
            if datasets is not None and has_bars:
                datasets.enable_progress_bars()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Do something without the libraries' reports, for callers that go on: `quiet_program`, undone in the end."""
    with quiet_restored():
        quiet_program()
        yield
