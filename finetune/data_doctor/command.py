"""`finetune doctor`: the data flags of the recipes, and what to look for."""

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from transformers import HfArgumentParser

from finetune.data.load import load_given_splits
from finetune.data.understood import describe_understanding
from finetune.data_doctor.examine import examine
from finetune.data_doctor.findings import describe_findings, has_errors, to_json
from finetune.errors import FinetuneError
from finetune.escape import say
from finetune.files import is_replaced, write_json
from finetune.models.load import load_pretrained_tokenizer
from finetune.quiet import quiet_program
from finetune.settings.parts import DataArguments

__all__ = ["DoctorArguments", "main"]

# Data flags that act after the examination, on what was found to be good.
UNUSED = (
    "remove_leakage",
    "truncation",
    "window_stride",
    "window_pooling",
    "max_train_windows",
    "max_train_samples",
    "max_eval_samples",
    "split_seed",
)


@dataclass
class DoctorArguments:
    """What to look for, and where to write it."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Tell how many texts --max_length cuts by this model's tokens."},
    )
    check_labels: bool = field(
        default=False, metadata={"help": "Also look for labels that are likely wrong (needs the extra 'doctor')."}
    )
    output_json: str | None = field(default=None, metadata={"help": "Also write the findings to this file."})


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise FinetuneError(f"{message}. See finetune doctor --help.")


def main(argv: Sequence[str]) -> int:
    """Examine the data that the flags name.

    Returns:
        1 if there are errors among the findings, else 0.

    Raises:
        FinetuneError: If a flag is wrong or the data can't be read.
    """
    parts: Any = [DataArguments, DoctorArguments]
    parser = _Parser(
        parts, prog="finetune doctor", usage="%(prog)s --train_file FILE [--name value ...]", allow_abbrev=False
    )
    data, doctor, unknown = parser.parse_args_into_dataclasses(
        list(argv), return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        parser.error(f"Expected flags that the doctor knows, but found {unknown[0]!r}")
    if (data.dataset_name is None) == (data.train_file is None):
        raise FinetuneError("Expected one of --train_file and --dataset_name. Pass one of them.")
    if data.max_length < 3:
        raise FinetuneError(f"Expected --max_length of at least 3, but got {data.max_length}.")
    output = Path(doctor.output_json).absolute() if doctor.output_json else None
    inputs = [data.train_file, data.validation_file, data.test_file]
    replaces = output is not None and is_replaced(output, "--output_json", inputs)
    quiet_program()
    unused = [f"--{name}" for name in UNUSED if any(word.split("=")[0] == f"--{name}" for word in argv)]
    if unused:
        names = ", ".join(unused)
        warnings.warn(f"finetune doctor examines the data as it lies and has no use for: {names}", stacklevel=2)
    splits = load_given_splits(data)
    tokenizer = load_pretrained_tokenizer(doctor.model_name_or_path) if doctor.model_name_or_path else None
    findings = examine(splits, tokenizer, data.max_length, doctor.check_labels)
    say(*describe_understanding(splits), file=sys.stdout)
    say(*describe_findings(findings).split("\n"), file=sys.stdout)
    if output:
        write_json(output, to_json(findings), replaces)
    return int(has_errors(findings))
