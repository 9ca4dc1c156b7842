"""Text in at one end, a verified model and an honest number out at the other: what `train` does, from its settings on.

How a model is fitted is told by its family. A recipe tells the same story in the open, for one kind of model, to be
read and changed.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.data.load import complete_splits, load_given_splits
from finetune.data.unlabeled import load_unlabeled
from finetune.distillation import ask_teacher
from finetune.errors import FinetuneError
from finetune.hub.push import push_run
from finetune.inference.evaluate import evaluate_run
from finetune.lookup import family_of
from finetune.pretraining.pretrain import pretrain_encoder
from finetune.run.run import Run
from finetune.search.choose import choose_settings
from finetune.settings.arguments import Arguments
from finetune.settings.parsing import parse_arguments

__all__ = ["DEFAULTS", "check_training", "parse_training", "run_training"]

DEFAULTS: dict[str, Any] = {
    "model_name_or_path": "embedded",
    "output_dir": "runs/{method}-seed{seed}",
    "max_length": 256,  # enough for most short texts; the summary says how many it cuts
    "num_train_epochs": 3,
    "per_device_train_batch_size": 16,
    "warmup_steps": 0.1,  # a share of all steps
    "weight_decay": 0.01,  # not on biases and LayerNorm, which the Trainer leaves out
    "label_smoothing_factor": 0.1,  # Szegedy et al. 2016; for one class of several alone
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 2,  # the best and the last
    "load_best_model_at_end": True,
    "metric_for_best_model": "accuracy",  # micro_f1 for several labels a text, mse for a number
    "logging_steps": 10,
}


def parse_training(argv: list[str]) -> Arguments:
    """Resolve and check the settings of `finetune train`, given as flags."""
    return parse_arguments("Fine-tune a text classifier, and measure it.", DEFAULTS, argv)


def check_training(flags: list[str], methods: Sequence[str]) -> None:
    """Refuse flags that none of several methods takes, before any of them is trained; what some take their runs tell.

    Raises:
        FinetuneError: The first method's, if all refuse them.
    """
    refused = []
    for method in methods:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the runs repeat them
                parse_training([*flags, f"--method={method}"])
        except FinetuneError as error:
            refused.append(error)
    if len(refused) == len(methods):
        raise refused[0]


def run_training(arguments: Arguments) -> Path:
    """Load the data, fit the model, save it, reload it and measure it; with `--push_to_hub` push it.

    Args:
        arguments: All settings, resolved.

    Returns:
        The run directory.

    Raises:
        FinetuneError: For what a user can mend, before anything is trained wherever that is possible.
        Interrupted: After SIGTERM or SIGINT, when a checkpoint is written.
    """
    with Run(arguments) as run:
        with run.main_process_first():
            given = load_given_splits(arguments.data)
            run.examine(given)
            splits = complete_splits(given, arguments.data)
            unlabeled = load_unlabeled(arguments.data, splits, given.task, given.encoding)
        task = run.record_data(splits, unlabeled)
        pretrain_encoder(run, splits["train"], unlabeled)
        taught = ask_teacher(run, splits, task, unlabeled)
        choose_settings(run, taught, task)
        model, tokenizer = family_of(arguments.method.method).fit(run, taught, task)
        run.save_model(model, tokenizer)
        evaluate_run(run, model, tokenizer, splits)
    push_run(run)
    return run.directory
