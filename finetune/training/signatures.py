"""What is taken from the insides of other libraries, as it was when the tests last passed.

The `Trainer` here overrides methods of transformers' own that may change in any release, some of them private. A
change rarely fails where it matters: a renamed method is simply not called any more, and checkpoints, say, would be
written in place again. So a training compares the signatures first. What the methods do is not compared.
"""

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import transformers
from accelerate.state import GradientState
from transformers import PreTrainedModel, Trainer

__all__ = ["find_changes", "warn_if_changed"]

TESTED = "5.10.1", "5.23.0"  # the oldest transformers and the newest
# Methods that are overridden, or private and called, and their parameters after `self`.
SIGNATURES: dict[type, dict[str, str]] = {
    Trainer: {
        "_evaluate": "trial ignore_keys_for_eval skip_scheduler",
        "_finalize_training": "trial num_train_samples start_time",
        "_get_grad_norm": "model grad_norm",
        "_get_num_items_in_batch": "batch_samples device",
        "_get_output_dir": "trial",
        "_init_training_state": "max_steps num_update_steps_per_epoch num_train_epochs resume_from_checkpoint trial",
        "_load_best_model": "",
        "_load_from_checkpoint": "resume_from_checkpoint model",
        "_load_optimizer_and_scheduler": "checkpoint",
        "_load_rng_state": "checkpoint",
        "_maybe_log_save_evaluate": "tr_loss grad_norm model trial epoch ignore_keys_for_eval start_time learning_rate",
        "_prepare_inputs": "inputs",
        "_push_from_checkpoint": "checkpoint_folder",
        "_run_epoch": "model epoch train_dataloader steps_in_epoch num_update_steps_per_epoch trial "
        "ignore_keys_for_eval start_time resume_from_checkpoint epochs_trained steps_trained_in_current_epoch",
        "_save_checkpoint": "model trial",
        "_track_num_input_tokens": "inputs",
        "compute_loss": "model inputs return_outputs num_items_in_batch",
        "create_optimizer": "model",
        "create_scheduler": "num_training_steps optimizer",
        "evaluation_loop": "dataloader description prediction_loss_only ignore_keys metric_key_prefix",
        "floating_point_ops": "inputs",
        "get_batch_samples": "epoch_iterator num_batches device",
        "get_eval_dataloader": "eval_dataset",
        "get_test_dataloader": "test_dataset",
        "get_train_dataloader": "",
        "train": "resume_from_checkpoint trial ignore_keys_for_eval",
        "training_step": "model inputs num_items_in_batch",
    },
    PreTrainedModel: {"_init_weights": "module"},
    GradientState: {"_set_sync_gradients": "sync_gradients"},
}
# Attributes that are set from outside of the `Trainer`, whose methods then have to read them. Not among them:
# `_initial_global_step`, which older ones don't have and don't need.
ATTRIBUTES = (
    "_created_lr_scheduler", "_globalstep_last_logged", "_total_loss_scalar", "_tr_loss",
    "model_accepts_loss_kwargs", "optimizer_cls_and_kwargs",
)  # fmt: skip


def find_changes() -> list[str]:
    """Compare the installed libraries with those that were tested; a phrase for each difference."""
    changes = []
    for owner, methods in SIGNATURES.items():
        for name, tested in methods.items():
            method = getattr(owner, name, None)
            if method is None:
                changes.append(f"{owner.__name__}.{name} is gone")
            elif (found := _parameters(method)) != tested.split():
                changes.append(f"{owner.__name__}.{name} takes ({', '.join(found)})")
    read = {name for code in map(_code_of, vars(Trainer).values()) if code for name in code.co_names}
    changes += [f"Trainer.{name} is not read" for name in ATTRIBUTES if name not in read]
    return changes


def warn_if_changed() -> None:
    """Warn, in one line, if something that is overridden is not what was tested."""
    changes = find_changes()
    if changes:
        warnings.warn(
            f"transformers {transformers.__version__} differs from the versions that were tested, {TESTED[0]} to "
            f"{TESTED[1]}, where finetune overrides it: {'; '.join(changes)}. The training may go wrong: install one "
            "of those",
            stacklevel=2,
        )


def _parameters(method: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(method).parameters)[1:]


def _code_of(attribute: Any) -> Any:
    return getattr(inspect.unwrap(attribute) if callable(attribute) else attribute, "__code__", None)
