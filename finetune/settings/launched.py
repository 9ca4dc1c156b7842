"""What `accelerate launch` and the environment say of a training, past every flag: taken as a setting, or refused.

accelerate reads these variables itself. A setting that nobody gave takes their value, so that what is recorded is what
runs; one that was given otherwise is refused.
"""

import os
from datetime import timedelta
from typing import Any

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from transformers import TrainingArguments

from finetune.errors import FinetuneError
from finetune.threads import count_launched

__all__ = ["check_launched", "join_processes", "launched_defaults", "launched_precision", "launched_to_cpu"]

COMPILES = {"torch_compile", "torch_compile_backend"}


def launched_precision() -> str:
    """Return the `--mixed_precision` of `accelerate launch`, "no" without one: accelerate obeys it past every flag."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()


def launched_to_cpu() -> bool:
    """Return whether `accelerate launch --cpu` started this process."""
    return _read_flag("ACCELERATE_USE_CPU")


def join_processes(timeout: timedelta, use_cpu: bool) -> bool:
    """Join the other processes that the launcher started; tells whether this is the main one.

    Args:
        timeout: After which one that has not come counts as missing.
        use_cpu: Whether they compute on CPUs.

    Raises:
        FinetuneError: If the launcher's variables don't say where the others are.
    """
    try:
        return PartialState(cpu=use_cpu, timeout=timeout).is_main_process
    except ValueError as error:
        raise FinetuneError(
            f"Expected the variables that launchers set for {count_launched()} processes, but got: {error}. Start them "
            "with accelerate launch or torchrun, or unset WORLD_SIZE."
        ) from error


def _read_flag(variable: str) -> bool:
    try:
        return parse_flag_from_env(variable)
    except ValueError:
        found = os.environ[variable]
        raise FinetuneError(
            f"Expected {variable}, which accelerate launch sets, to be true or false, but found {found!r}. Unset it."
        ) from None


def _launched_backend() -> str:
    return os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()


def launched_defaults(given: frozenset[str]) -> dict[str, Any]:
    """Return the settings of the compiler that the launcher chose, where no flag does.

    Args:
        given: The settings that the user chose.
    """
    defaults: dict[str, Any] = {}
    if _launched_backend() != "no" and not COMPILES & given:
        defaults["torch_compile_backend"] = _launched_backend()
    mode = os.environ.get("ACCELERATE_DYNAMO_MODE", "default")
    if mode != "default" and (defaults or COMPILES & given):
        defaults["torch_compile_mode"] = mode
    return defaults


def check_launched(training: TrainingArguments, given: frozenset[str]) -> None:
    """Refuse a launcher, or an environment, that contradicts the settings.

    Raises:
        FinetuneError: Naming both.
    """
    chosen, launched = "bf16" if training.bf16 else "fp16" if training.fp16 else "no", launched_precision()
    if launched not in ("no", chosen):
        own = "float32" if chosen == "no" else f"--{chosen}"
        raise FinetuneError(
            f"Expected one number format, but got --mixed_precision {launched} from accelerate launch, and {own}. "
            "Leave the former out, or set it to no in its --config_file."
        )
    backend = training.torch_compile_backend if training.torch_compile else "no"
    if _launched_backend() not in ("no", backend):
        raise FinetuneError(
            f"Expected one compiler, but got --dynamo_backend {_launched_backend()} from accelerate launch, and "
            f"--torch_compile_backend {backend}. Leave one of them out."
        )
    if launched_to_cpu() and "use_cpu" in given and not training.use_cpu:
        raise FinetuneError("Expected one device, but got --cpu from accelerate launch, and --use_cpu false. Drop one.")
    sharded = training.fsdp or _read_flag("ACCELERATE_USE_FSDP")
    if sharded and training.world_size == 1:
        flag = "--fsdp" if training.fsdp else "FSDP from accelerate launch"
        raise FinetuneError(f"Expected several processes with {flag}, but there is one. Start more, or leave it out.")
    steps, own_steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS"), training.gradient_accumulation_steps
    if steps not in (None, "1", "auto", str(own_steps)):  # 1 is what accelerate says where nothing was chosen
        raise FinetuneError(
            f"Expected one number of accumulation steps, but got {steps} from accelerate launch, and "
            f"--gradient_accumulation_steps {own_steps}. Pass the latter alone."
        )
