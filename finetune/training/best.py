"""The best checkpoint so far, where a resumed training is to choose it by another metric.

The best value by one metric says nothing of another: it would be compared with numbers of another kind, and a worse
checkpoint kept.
"""

import warnings
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback

from finetune.training.checkpoints import find_fault
from finetune.training.watch import Watch

__all__ = ["choose_best_anew"]


def choose_best_anew(trainer: Any, checkpoint: Path, before: str) -> None:
    """Choose the best of the checkpoints that are left by `metric_for_best_model`, and count the patience from it.

    Args:
        trainer: Its `state` is that of the checkpoint, with what all evaluations gave.
        checkpoint: The one that it goes on from.
        before: The metric that chose the best until now.
    """
    args, state = trainer.args, trainer.state
    metric = str(args.metric_for_best_model).removeprefix("eval_")
    values = {logged["step"]: logged[f"eval_{metric}"] for logged in state.log_history if f"eval_{metric}" in logged}
    left = [
        step
        for step in values
        if step == state.global_step or find_fault(checkpoint.with_name(f"checkpoint-{step}"), trainer.run_id) is None
    ]
    state.best_metric = state.best_global_step = state.best_model_checkpoint = None
    found = "none is left that was evaluated by it, so it begins anew"
    since = 0
    if left:
        best = (max if args.greater_is_better else min)(left, key=lambda step: values[step])
        state.best_metric, state.best_global_step = values[best], best
        state.best_model_checkpoint = str(checkpoint.with_name(f"checkpoint-{best}"))
        found = f"checkpoint-{best} is the best by it that is left ({values[best]:.4f})"
        since = sum(step > best for step in values)
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, EarlyStoppingCallback):
            callback.early_stopping_patience_counter = since
        if isinstance(callback, Watch):
            callback.values = list(map(float, values.values()))
    if args.process_index == 0:
        warnings.warn(
            f"the best checkpoint was chosen by {before.removeprefix('eval_')}, and is by {metric} now: {found}",
            stacklevel=2,
        )
