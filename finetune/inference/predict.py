"""Load any saved model as an object that takes texts."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from finetune.decisions.rules import Wishes
from finetune.decisions.saved import read_rules, revise_rules
from finetune.errors import FinetuneError, explain_shortage
from finetune.inference.exported import is_exported, load_exported
from finetune.models.finetune_config import read_finetune_config

if TYPE_CHECKING:
    import torch

    from finetune.models.answers import TextClassifier

__all__ = ["load_predictor"]

PROBES = ["A text.", "nobody expected this \u2603"]


def load_predictor(
    path: str | Path,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
    accelerated: bool = True,
    num_threads: int | None = None,
    wishes: Wishes | None = None,
) -> TextClassifier:
    """Load a model for prediction.

    Args:
        path: A run directory, a model folder, also one that `finetune export` wrote, `user/name` or
            `user/name@revision` on the Hub.
        dtype: Number format of the computation; by default what the machine does fast.
        trust_remote_code: Whether a model on the Hub may run code of its own.
        accelerated: Whether to compute with `finetune.accelerated`; else a network is that of plain transformers.
        num_threads: Of an export, which runs without torch; by default one for each physical core.
        wishes: What is asked of its answers, in place of what was saved with it.

    Raises:
        FinetuneError: If there is none, or it can't be loaded.
    """
    folder = Path(path)
    if not is_exported(folder):  # which runs without what the others import
        from finetune.inference.load import find_model_folder, find_saved_family, load

        folder = find_model_folder(path, trust_remote_code)
    if is_exported(folder):
        predictor: TextClassifier = load_exported(folder, num_threads)
    else:
        model, tokenizer = load(folder, trust_remote_code)
        config = read_finetune_config(folder)
        with _in_one_line(folder):
            predictor = find_saved_family(folder, config).build_predictor(
                model, tokenizer, config.text, dtype, accelerated
            )
            predictor.follow(config, read_rules(folder, predictor.task, config.thresholds))
            predictor.compute_in()
    if not (accelerated or hasattr(predictor, "accelerated")):
        warnings.warn(
            f"{str(path)!r} is no network that torch computes: --no_accelerated (accelerated=False) changes nothing",
            stacklevel=2,
        )
    count = len(predictor.task.label_names)
    if np.size(predictor.rules.thresholds) not in (1, count):
        raise FinetuneError(
            f"Expected thresholds for {count} labels in {str(folder)!r}, but found "
            f"{np.size(predictor.rules.thresholds)}. Save the model again."
        )
    with _in_one_line(folder):
        _try(predictor)
    if wishes is not None:
        predictor.rules = revise_rules(folder, predictor.rules, wishes, predictor.task)
    return predictor


def _try(predictor: TextClassifier) -> None:
    """Let a model answer once, since some faults show only then."""
    logits = predictor.compute_logits(PROBES, PROBES[::-1] if predictor.is_paired else None)[0]
    expected = (len(PROBES), len(predictor.label_names))
    if logits.shape != expected:
        raise ValueError(f"logits of shape {logits.shape} in place of {expected}.")
    predictor.rules.to_probabilities(logits)


@contextlib.contextmanager
def _in_one_line(folder: Path) -> Iterator[None]:
    """Say in one line what three libraries raise about a model that can't answer.

    Raises:
        FinetuneError: In place of anything but a lack of memory.
    """
    try:
        yield
    except (FinetuneError, MemoryError):
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise explain_shortage(error) or FinetuneError(
            f"Expected a model that answers in {str(folder)!r}, but got: {reason}. Fetch it again, or save it again."
        ) from error
