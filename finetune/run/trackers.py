"""What a tracker (`--report_to`) is told of a run: its name, its settings, and that it goes on after a cut.

transformers' callbacks do the talking; by themselves they know of no run, and begin another one at each start.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.integrations import TensorBoardCallback

from finetune.escape import blank_tokens
from finetune.run.record import RunRecord
from finetune.settings.arguments import Arguments
from finetune.training.trainer import FineTuningTrainer

__all__ = ["tracked"]

PROJECT = "finetune"
GO_ON = ("trackio", "tensorboard", "wandb")  # the trackers that are told which run it is


@contextlib.contextmanager
def tracked(
    trainer: FineTuningTrainer, arguments: Arguments, record: RunRecord, directory: Path, checkpoint: Path | None
) -> Iterator[None]:
    """Introduce a run to its trackers, while it trains.

    Args:
        trainer: Before its training.
        arguments: All settings of the run, which a tracker shows and filters by.
        record: Its id tells it from another one of the same method and seed, and stays when it goes on.
        directory: The run directory; TensorBoard's files go there, if `TENSORBOARD_LOGGING_DIR` says nothing else.
        checkpoint: What it goes on from.
    """
    args: Any = trainer.args
    trackers = args.report_to or []
    if not trackers:
        yield
        return
    if args.run_name is None:
        args.run_name = f"{record.method}-seed{record.seed}-{record.id[:6]}"
    if "project" not in arguments.given:
        args.project = PROJECT
    args.others = blank_tokens(arguments.settings_of_run())
    if checkpoint is not None and (unaware := sorted(set(trackers) - set(GO_ON))):
        warnings.warn(f"what follows is another run in {', '.join(unaware)}, which begins anew", stacklevel=2)
    if args.process_index == 0:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback):
                _go_on_in_tensorboard(callback, args.run_name, directory, checkpoint)
    with _environment({"WANDB_RUN_ID": str(record.id), "WANDB_RESUME": "allow"} if "wandb" in trackers else {}):
        yield


def _go_on_in_tensorboard(callback: Any, name: str, directory: Path, checkpoint: Path | None) -> None:
    """Write into one folder at each start, and hide what an earlier one has logged after the checkpoint."""
    chosen = os.environ.get("TENSORBOARD_LOGGING_DIR")
    folder = directory / "tensorboard" if chosen is None else Path(chosen).expanduser() / name
    first = 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2]) + 1
    callback.logging_dir = str(folder)
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        from tensorboardX import SummaryWriter  # type: ignore[import-not-found,no-redef]
    callback.tb_writer = SummaryWriter(log_dir=str(folder), purge_step=first or None)


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set what is not set already, for a while."""
    own = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(own)
    try:
        yield
    finally:
        for name in own:
            os.environ.pop(name, None)
