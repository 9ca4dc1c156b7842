"""What is known of a run before it trains, and of its data and its model: the parts of the record, filled in."""

import sys
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from datasets import Dataset, DatasetDict

from finetune.data.split import describe_split
from finetune.environment import describe_environment
from finetune.escape import blank_tokens
from finetune.family import Family
from finetune.hardware import fastest_precision, measure_precision
from finetune.lookup import family_of
from finetune.run.fields import Compilation, DataRecord, Environment, ModelRecord, Settings
from finetune.run.record import SCHEMA_VERSION, RunRecord
from finetune.settings.arguments import Arguments
from finetune.tasks import Task

__all__ = ["describe_computation", "describe_data", "describe_model", "now", "start_record"]


def start_record(arguments: Arguments) -> RunRecord:
    """Return the record of a run that begins now."""
    return RunRecord(
        schema_version=SCHEMA_VERSION,
        id=uuid.uuid4().hex,
        status="running",
        started=now(),
        command=blank_tokens([Path(sys.argv[0]).name, *sys.argv[1:]]),
        method=arguments.method.method,
        seed=arguments.training.seed,
        arguments=Settings(**arguments.to_dict()),
        chosen=sorted(arguments.given),
        environment=Environment(
            **describe_environment(),
            num_threads=arguments.run.num_threads or 1,
            num_processes=arguments.training.world_size,
            precision=_precision(arguments),
            prediction_precision=_prediction_precision(arguments),
        ),
    )


def describe_computation(accelerator: Accelerator) -> tuple[str, Compilation | None]:
    """Return the number format and the compiler of a training, as accelerate has set them up.

    Args:
        accelerator: The trainer's.
    """
    precision = str(accelerator.mixed_precision)
    if precision == "no":
        precision = measure_precision(accelerator.device)
    compiler: Any = accelerator.state.dynamo_plugin
    if compiler.backend == DynamoBackend.NO:
        return precision, None
    return precision, Compilation(
        backend=compiler.backend.value.lower(),
        mode=str(compiler.mode),
        is_dynamic=bool(compiler.dynamic),
        is_whole_graph=bool(compiler.fullgraph),
        is_by_layer=bool(compiler.use_regional_compilation),
    )


def now() -> str:
    """Return the time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def describe_data(
    task: Task,
    splits: DatasetDict,
    commit: str | None = None,
    understood: Sequence[str] = (),
    unlabeled: Dataset | None = None,
) -> DataRecord:
    """Return the task, the origin, size and content hash of each split, and the commit of a data set on the Hub."""
    return DataRecord.model_validate(
        {
            "problem_type": task.problem_type,
            "understood": list(understood),
            **({} if commit is None else {"commit": commit}),
            "label_names": task.label_names,
            "splits": {name: describe_split(split) for name, split in splits.items()},
            **({} if unlabeled is None else {"unlabeled": describe_split(unlabeled)}),
        }
    )


def describe_model(model: Any, family: Family, name: str | None, folder: Path) -> ModelRecord:
    """Return what a model is, and the size of the folder that it was saved in.

    Args:
        model: In memory.
        family: That of its method.
        name: What it was made from; None if from nothing.
        folder: Its `model/`.
    """
    described = ModelRecord(
        name=name,
        **family.describe(model)._asdict(),
        bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
    )
    if base_bytes := family.count_base_bytes(model):
        described.base_bytes = base_bytes
    return described


def _precision(arguments: Arguments) -> str:
    training = arguments.training
    chosen = "bf16" if training.bf16 else "fp16" if training.fp16 else measure_precision(training.device)
    return family_of(arguments.method.method).precision or chosen


def _prediction_precision(arguments: Arguments) -> str:
    return family_of(arguments.method.method).precision or fastest_precision()
