"""What would fail while a training is built fails before any data is read: it is built once on a module of one layer.

The constructors of optimizers, schedules and compilers check their settings themselves, each in its own way; which ones
there are changes with every release. So nothing is listed here: whatever they raise becomes one line.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import TorchDynamoPlugin
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.checkpoint import checkpoint
from transformers import Trainer, TrainingArguments, get_scheduler

from finetune.errors import FinetuneError, explain_shortage

__all__ = ["build_dry"]

WIDTH = 64  # 4,096 weights, from which on bitsandbytes keeps its state in eight bits
NUM_STEPS = 1_000  # of the schedule, where only the data will say how many there are
OF_TRANSFORMERS = ("every_n_layers", "offload")  # it takes these out of what torch's `checkpoint` gets
NO_VALUE = "no_such_value"  # that no optimizer takes for anything


def build_dry(training: TrainingArguments, has_own_schedule: bool = False) -> None:
    """Build the optimizer, the schedule and the compiled model that the settings ask for, on a layer of zeros.

    No random number is drawn.

    Args:
        training: The settings.
        has_own_schedule: Whether `--lr_schedule` takes the place of `--lr_scheduler_type`.

    Raises:
        FinetuneError: If one of them can't be built with these settings, or lacks its package.
    """
    layer = _build_layer(training.device)
    optimizer = _build_optimizer(training, layer)
    if not has_own_schedule:
        _build_schedule(training, optimizer)
    if training.torch_compile:
        _compile(training, layer)
    again: Any = training.gradient_checkpointing_kwargs
    if training.gradient_checkpointing and again:
        with _in_one_line(f"--gradient_checkpointing_kwargs {again}", "Leave it out"):
            options = {name: value for name, value in again.items() if name not in OF_TRANSFORMERS}
            checkpoint(layer, torch.zeros(1, WIDTH, device=training.device), **{"use_reentrant": False, **options})


def _value(setting: Any) -> str:
    return str(getattr(setting, "value", setting))


def _build_layer(device: torch.device) -> nn.Module:
    layer = nn.utils.skip_init(nn.Linear, WIDTH, WIDTH, device=device)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    return layer


def _build_optimizer(training: TrainingArguments, layer: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer and let it take a step."""
    given = training.optim_args
    flags = f"--optim {_value(training.optim)}" + (f" --optim_args {given}" if given else "")
    with _in_one_line(flags, "Mend these, or take --optim adamw_torch"), torch.random.fork_rng(devices=[]):
        optimizer_class, settings = Trainer.get_optimizer_cls_and_kwargs(training, layer)  # type: ignore[arg-type]
        optimizer = optimizer_class(settings.pop("params", layer.parameters()), **settings)
        if hasattr(optimizer, "train"):
            optimizer.train()
        optimizer.step()
    for argument in (given or "").replace(" ", "").split(",") if given else ():
        name = argument.partition("=")[0]
        if not _reads(training, layer, name):
            raise FinetuneError(
                f"Expected --optim_args that --optim {_value(training.optim)} reads, but got {name!r}. Leave it out."
            )
    return optimizer


def _reads(training: TrainingArguments, layer: nn.Module, name: str) -> bool:
    """Return whether an argument has any effect on an optimizer: a value that means nothing fails, or shows."""
    given = training.optim_args
    try:
        training.optim_args = None
        without = Trainer.get_optimizer_cls_and_kwargs(training, layer)[1]  # type: ignore[arg-type]
        training.optim_args = f"{name}={NO_VALUE}"
        return Trainer.get_optimizer_cls_and_kwargs(training, layer)[1] != without  # type: ignore[arg-type]
    except (ValueError, TypeError, AttributeError):
        return True
    finally:
        training.optim_args = given


def _build_schedule(training: TrainingArguments, optimizer: torch.optim.Optimizer) -> None:
    """Build the schedule and look at the learning rates of a few steps."""
    settings: Any = training.lr_scheduler_kwargs
    name = _value(training.lr_scheduler_type)
    flags = f"--lr_scheduler_type {name}" + (f" --lr_scheduler_kwargs {settings}" if settings else "")
    if settings and not isinstance(settings, dict):
        raise FinetuneError(
            f"Expected --lr_scheduler_kwargs to be names and values in JSON, but got {settings!r}. Write "
            "'{\"num_cycles\": 2}', say."
        )
    num_steps = training.max_steps if training.max_steps > 0 else NUM_STEPS
    with _in_one_line(flags, "Mend --lr_scheduler_kwargs, or take another schedule"):
        schedule = get_scheduler(
            training.lr_scheduler_type,
            optimizer,
            num_warmup_steps=training.get_warmup_steps(num_steps),
            num_training_steps=num_steps,
            scheduler_specific_kwargs=settings,
        )
        if isinstance(schedule, LambdaLR):
            for step in {0, 1, num_steps // 2, num_steps}:
                for factor in schedule.lr_lambdas:
                    float(factor(step))
        else:  # it looks at a metric
            for metric in (0.0, 1.0, 0.0):
                schedule.step(metric)


def _compile(training: TrainingArguments, layer: nn.Module) -> None:
    """Let the compiler accept its settings; compiling takes too long to be tried."""
    for name in ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE"):
        if os.environ.get(name) == "1":
            raise FinetuneError(f"Expected no {name}=1 with --torch_compile, which it switches off. Unset it.")
    backend, mode = training.torch_compile_backend, training.torch_compile_mode
    flags = f"--torch_compile_backend {backend}" + (f" --torch_compile_mode {mode}" if mode else "")
    with _in_one_line(flags, "Leave both out for --torch_compile true alone"):
        torch.compile(layer, **TorchDynamoPlugin(backend=backend, mode=mode).to_kwargs())  # type: ignore[arg-type]


@contextlib.contextmanager
def _in_one_line(flags: str, fix: str) -> Iterator[None]:
    """Name the settings that an error is about."""
    try:
        yield
    except Exception as error:  # whatever a constructor raises is about its settings
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        shortage = explain_shortage(error)
        raise shortage or FinetuneError(
            f"Expected settings that can be built, but {flags} gives: {reason}. {fix}."
        ) from error
