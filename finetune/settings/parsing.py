"""Settings: defaults < method defaults < `--config run.yaml` < command-line flags, all checked before any work.

`parse_arguments` gives one `Arguments`, whose parts are `data`, `model`, `method`, `tuning`, `run`, and `training`,
transformers' own `TrainingArguments`; `parse_flags` leaves the latter to a recipe, which writes them out, over the
method's defaults. A key that nobody knows is an error, in the YAML file as on the command line.
"""

import difflib
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any, NoReturn

import torch
from transformers import HfArgumentParser, SchedulerType, TrainingArguments
from transformers.utils import is_torch_tf32_available

from finetune.catalogue import METHOD_DEFAULTS
from finetune.errors import FinetuneError, explain_shortage
from finetune.escape import blank_tokens, holds_token
from finetune.files import read_yaml
from finetune.hardware import default_num_threads, fastest_precision
from finetune.hub_client import parse_hub_id
from finetune.lookup import family_of, file_name_of, find_method, import_method
from finetune.metrics import GREATER_IS_BETTER
from finetune.settings.arguments import Arguments
from finetune.settings.checks import check_arguments
from finetune.settings.declared import declare, own_settings
from finetune.settings.launched import join_processes, launched_defaults, launched_precision, launched_to_cpu
from finetune.settings.parts import (
    PARTS,
    DataArguments,
    DecisionArguments,
    HubTarget,
    MethodArguments,
    ModelArguments,
    RunArguments,
    TuningArguments,
)
from finetune.settings.tracked import track
from finetune.threads import count_launched

__all__ = ["Flags", "parse_arguments", "parse_flags", "to_flags"]

# A process that waits for a dead or unreachable one gives up after two minutes, not after half an hour.
DDP_TIMEOUT = 120
NAMES = ("run_name", "project")
# What these settings need and the toolkit does not bring along: the package's name in Python, and that to install.
PACKAGES = {"deepspeed": ("deepspeed", "deepspeed"), "use_liger_kernel": ("liger_kernel", "liger-kernel")}


class _Parser(HfArgumentParser):
    """Raises one-line errors instead of printing two hundred lines of usage."""

    def error(self, message: str) -> NoReturn:
        raise FinetuneError(f"{message}. --help lists every flag.")


@dataclass
class Flags:
    """What flags and `--config` say: our parts, and what they leave of `TrainingArguments` to a recipe.

    Attributes:
        data: The first of our parts; their settings have all their defaults filled in.
        method: Which parameters move.
        model: What is fine-tuned.
        tuning: How fast.
        decisions: How probabilities become answers.
        run: How it runs on this machine.
        family: The settings that the method's family has of its own, in its dataclass; None if it has none.
        given: Names of the settings that flags or `--config` name.
    """

    data: DataArguments
    model: ModelArguments
    method: MethodArguments
    tuning: TuningArguments
    decisions: DecisionArguments
    run: RunArguments
    family: Any
    given: frozenset[str]
    _training: dict[str, Any]
    _parser: "_Parser"
    _wants_help: bool

    def over(self, **written: Any) -> dict[str, Any]:
        """Put the flags over keyword arguments of `TrainingArguments` that a recipe writes out.

        Args:
            **written: What holds where neither a flag nor `--config` says otherwise.

        Returns:
            Keyword arguments for `TrainingArguments`.

        Raises:
            FinetuneError: If `TrainingArguments` refuses them, in one line.
            SystemExit: With `--help`, which shows what is written out among the defaults.
        """
        if self._wants_help:
            self._parser.set_defaults(**written)
            self._parser.print_help()
            sys.exit(0)
        chosen = {**self._training, **{name: value for name, value in written.items() if name not in self.given}}
        _build_training(chosen)
        return chosen

    def complete(self, training: TrainingArguments) -> Arguments:
        """Fill in what depends on the machine, and check all settings before any work.

        Raises:
            FinetuneError: If a setting is outside its range, or two contradict each other.
        """
        track(training)
        parts = self.data, self.model, self.method, self.tuning, self.decisions, self.run
        arguments = Arguments(*parts, training, self.given, self.family, _take_hub_target(training))
        _fill_in(arguments)
        check_arguments(arguments)
        return arguments


def parse_arguments(description: str | None, defaults: dict[str, Any], argv: Sequence[str] | None = None) -> Arguments:
    """Resolve and check all settings.

    Args:
        description: Shown by `--help`.
        defaults: By flag name; what a method needs otherwise wins over them.
        argv: Command-line flags; `sys.argv[1:]` if None.

    Returns:
        The settings, with every default filled in.

    Raises:
        FinetuneError: If a setting is unknown, has the wrong type, or is outside its range.
    """
    flags = _parse(description, argv, defaults, {}, str(defaults.get("method", "full")))
    return flags.complete(TrainingArguments(**flags.over()))


def parse_flags(
    description: str | None, argv: Sequence[str] | None = None, *, methods: Sequence[str], **defaults: Any
) -> Flags:
    """Read the flags of a recipe that writes its `TrainingArguments` out.

        flags = parse_flags(__doc__, argv, methods=["full", "lora"], max_length=512)
        training_args = TrainingArguments(**flags.over(output_dir="runs", num_train_epochs=2))
        settings = flags.complete(training_args)

    Args:
        description: The recipe's docstring, shown by `--help`.
        argv: Command-line flags; `sys.argv[1:]` if None.
        methods: Those that the recipe is written for, the default first.
        **defaults: The recipe's own, of settings that are no `TrainingArguments`.

    Raises:
        FinetuneError: If a setting is unknown or has the wrong type, or the method is another.
    """
    return _parse(description, argv, {}, defaults, methods[0], methods)


def _parse(
    description: str | None,
    argv: Sequence[str] | None,
    before_method: dict[str, Any],
    after_method: dict[str, Any],
    default_method: str,
    methods: Sequence[str] | None = None,
) -> Flags:
    """Parse flags and `--config`, over defaults before and after those of the method; None takes every method."""
    words = list(sys.argv[1:] if argv is None else argv)
    argv = [word for word in words if word not in ("-h", "--help")]  # shown when all defaults are known
    wants_help = argv != words
    named = dict.fromkeys(_values_of("method", argv))
    if len(named) > 1:
        raise FinetuneError(f"Expected one --method, but got {' and '.join(named)}. Drop all but one.")
    config = _read_config(argv)
    method = import_method(next(iter(named), str(config.get("method", default_method))))
    if methods is not None and method not in methods:
        raise FinetuneError(
            f"Expected --method {' or '.join(methods)}, which this recipe is written for, but got {method}. "
            "`finetune train` has every method, and takes the same flags."
        )
    family = family_of(method)
    if family.settings is not None:
        declare(family.settings, {field.name for field in fields(TrainingArguments)})
    parts: Any = [*(part for part, _ in PARTS.values()), *own_settings(), TrainingArguments]
    parser = _Parser(
        parts, usage="%(prog)s [--config FILE.yaml] [--name value ...]", description=description, allow_abbrev=False
    )
    known = {action.dest for action in parser._actions}
    config = _take_for_method(config, method, known, _value_of("config", argv))

    given = frozenset(config) | frozenset(_flags_to_names(argv, known))
    beyond = {"trials", "budget", "teacher", "unlabeled_file"} & given
    if methods is not None and beyond:
        what = "tries several" if beyond & {"trials", "budget"} else "learns from more"
        raise FinetuneError(
            f"Expected no --{min(beyond)}, since this recipe trains once, on labels, with the settings that it shows. "
            f"`finetune {'tune' if beyond & {'trials', 'budget'} else 'train'}` {what}, and takes the same flags."
        )
    defaults = {**before_method, **find_method(method).defaults, **after_method}
    parser.set_defaults(**{**_machine_defaults(given), "method": method, **defaults})
    words = to_flags(config) + argv
    for name, (module, package) in PACKAGES.items():
        if name in given and importlib.util.find_spec(module) is None:
            raise FinetuneError(f"Expected the package {package} with --{name}, but it is not installed. Install it.")
    namespace, unknown = parser.parse_known_args(words)
    if unknown:
        raise FinetuneError(_unknown_setting(unknown[0].lstrip("-").split("=")[0], known))
    values = vars(namespace)
    data, model, of_method, tuning, decisions, run = (_take(part, values) for part, _ in PARTS.values())
    of_method.method = method
    own = None if family.settings is None else _take(family.settings, values)
    training = {field.name: values[field.name] for field in fields(TrainingArguments) if field.init}
    _keep_tokens_out(training)
    if not wants_help:
        _join_processes(words)
    return Flags(data, model, of_method, tuning, decisions, run, own, given, training, parser, wants_help)


def _keep_tokens_out(training: dict[str, Any]) -> None:
    """Blank a token in a name, and refuse it in a path: what `TrainingArguments` hold is stored with checkpoints.

    Raises:
        FinetuneError: If a path holds one.
    """
    for name, value in training.items():
        if not isinstance(value, str) or not holds_token(value):
            continue
        if name not in NAMES:
            raise FinetuneError(
                f"Expected no token or password in --{name}, which would be stored. Pass another one, and a token as "
                "HF_TOKEN."
            )
        training[name] = blank_tokens(value)
        warnings.warn(f"--{name} holds what looks like a token, which is left out: {training[name]}", stacklevel=2)


def _take(part: Any, values: Mapping[str, Any]) -> Any:
    """Build one of our dataclasses of what was parsed for all of them."""
    return part(**{field.name: values[field.name] for field in fields(part)})


def _build_training(values: dict[str, Any]) -> TrainingArguments:
    """Build `TrainingArguments`, which check themselves, and on several processes join these.

    Raises:
        FinetuneError: If they don't fit together, or not all processes come.
    """
    try:
        return TrainingArguments(**values)
    except FinetuneError:
        raise
    except torch.distributed.DistError as error:
        raise _not_all_came(error) from error
    except Exception as error:  # they check themselves, and read files, while they are built
        reason = " ".join(str(error).split()) or type(error).__name__
        shortage = explain_shortage(error)
        raise shortage or FinetuneError(f"The training settings don't fit together: {reason}") from error


def _not_all_came(error: Exception) -> FinetuneError:
    return FinetuneError(
        f"Expected {os.environ.get('WORLD_SIZE')} processes to start within --ddp_timeout, but not all of them "
        f"came ({error}). Look for a message of the others, and for the address and number of each host."
    )


def _join_processes(words: Sequence[str]) -> None:
    """On CPUs, join the other processes with --ddp_timeout; TrainingArguments would do it with torch's half hour."""
    timeout = _value_of("ddp_timeout", words) or str(DDP_TIMEOUT)
    use_cpu = not torch.cuda.is_available() or "--use_cpu" in words or launched_to_cpu()
    if use_cpu and count_launched() > 1 and timeout.isdigit():
        try:
            join_processes(timedelta(seconds=int(timeout)), use_cpu=True)
        except torch.distributed.DistError as error:
            raise _not_all_came(error) from error


def _machine_defaults(given: frozenset[str]) -> dict[str, Any]:
    """Choose device and number format, unless the user chose either of the half formats."""
    use_cpu = launched_to_cpu() or not torch.cuda.is_available()
    defaults: dict[str, Any] = {"use_cpu": use_cpu, "ddp_timeout": DDP_TIMEOUT, **launched_defaults(given)}
    if not {"bf16", "fp16"} & given:
        launched = launched_precision()
        precision = fastest_precision() if launched == "no" else launched
        defaults |= {"bf16": precision == "bf16", "fp16": precision == "fp16"}
    if is_torch_tf32_available():
        defaults["tf32"] = True  # for the products that stay in float32
    return defaults


def _read_config(argv: Sequence[str]) -> dict[str, Any]:
    """Read the YAML file that `--config` names, if any."""
    path = _value_of("config", argv)
    if path is None:
        return {}
    settings = read_yaml(path, "--config")
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise FinetuneError(f"Expected 'name: value' lines in {path!r}, but found a {type(settings).__name__}.")
    return settings


def _take_for_method(settings: dict[str, Any], method: str, known: set[str], path: str | None) -> dict[str, Any]:
    """Check the keys of the YAML file, and take what is for this method.

    A key named like a method holds settings for that method alone; those of another one's own family aren't known here.
    """
    sections = {name for name in settings if name in METHOD_DEFAULTS or ":" in str(name)}
    for part in (settings, *(settings[name] for name in sections)):
        if part is not None and not isinstance(part, dict):
            raise FinetuneError(f"Expected 'name: value' lines below a method in {path!r}, but found {part!r}.")
    for part in (settings, *(settings[name] for name in sections if name in (method, *METHOD_DEFAULTS))):
        for key, value in (part or {}).items():
            if key in sections and part is settings:
                continue
            if key not in known or key in ("config", "help"):
                raise FinetuneError(_unknown_setting(str(key), known, f" in {path}"))
            if value is None or isinstance(value, list):
                raise FinetuneError(
                    f"Expected one value for {key!r} in {path!r}, but found {value!r}. Give it a value."
                )
    common = {name: value for name, value in settings.items() if name not in sections}
    return {**common, **(settings.get(method) or {})}


def _values_of(name: str, argv: Sequence[str]) -> list[str]:
    """Find the values of `--name value` and `--name=value`."""
    values = []
    for position, word in enumerate(argv):
        if word == f"--{name}" and position + 1 < len(argv):
            values.append(argv[position + 1])
        elif word.startswith(f"--{name}="):
            values.append(word.split("=", 1)[1])
    return values


def _value_of(name: str, argv: Sequence[str]) -> str | None:
    """Find the last value of a flag, which is the one that counts."""
    return next(reversed(_values_of(name, argv)), None)


def _flags_to_names(argv: Sequence[str], known: set[str]) -> set[str]:
    """Name the settings that appear as flags: `--no_tf32` and `--tf32` both set `tf32`."""
    names = {word.split("=")[0].lstrip("-").replace("-", "_") for word in argv if word.startswith("--")}
    return {name if name in known else name.removeprefix("no_") for name in names}


def to_flags(settings: Mapping[str, Any]) -> list[str]:
    """Write settings as flags, so that they pass through the same types and checks; None leaves one at its default."""
    flags = []
    for name, value in settings.items():
        if name.startswith("no_") and isinstance(value, bool):  # the flag that turns a setting off, which has no value
            name, value = name.removeprefix("no_"), not value
        if name == "label_columns" and isinstance(value, list | tuple):
            value = ",".join(map(str, value))
        if isinstance(value, list | tuple):
            flags += [f"--{name}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags


def _unknown_setting(name: str, known: set[str], where: str = "") -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {close[0]!r}?" if close else "docs/reference/settings.md lists every setting."
    return f"Expected a setting that is known, but found {name!r}{where}. {hint}"


def _take_hub_target(training: TrainingArguments) -> HubTarget | None:
    """Take what says where to push out of the settings of the `Trainer`, which would make the repository at once."""
    wanted, name, revision = training.push_to_hub, training.hub_model_id, training.hub_revision
    private = training.hub_private_repo is not False
    training.push_to_hub, training.hub_model_id, training.hub_private_repo = False, None, None
    training.hub_revision = None
    if not wanted:
        if name is not None:
            raise FinetuneError("Expected --push_to_hub with --hub_model_id, but got the latter alone. Add it.")
        return None
    if name is None or parse_hub_id(name) is None or "@" in name:
        raise FinetuneError(f"Expected --hub_model_id user/name with --push_to_hub, but got {name!r}.")
    return HubTarget(name, private, revision)


def _fill_in(arguments: Arguments) -> None:
    """Set what depends on the machine or on other settings, unless the user chose it."""
    data, run, training = arguments.data, arguments.run, arguments.training
    if run.num_threads is None:
        run.num_threads = default_num_threads()
    chosen = {"lr_scheduler_type", "lr_schedule"} & arguments.given
    optimizer = str(getattr(training.optim, "value", training.optim))
    if optimizer.startswith("schedule_free") and not chosen:
        training.lr_scheduler_type = SchedulerType.CONSTANT  # it averages instead of lowering the rate
    if "max_length" not in arguments.given:  # virtual tokens take positions of the text
        data.max_length -= find_method(arguments.method.method).peft_config.get("num_virtual_tokens", 0)
    if data.window_stride is None:
        data.window_stride = data.max_length // 4
    if run.max_tokens_per_micro_batch is None:
        run.max_tokens_per_micro_batch = 3_072 if training.use_cpu else 16_384
    if data.train_file is not None and "dataset_name" not in arguments.given:
        data.dataset_name = None
    metric = (training.metric_for_best_model or "loss").removeprefix("eval_")
    if metric in GREATER_IS_BETTER and "greater_is_better" not in arguments.given:
        training.greater_is_better = GREATER_IS_BETTER[metric]
    family_of(arguments.method.method).fill_in(arguments)
    for name, value in (("method", file_name_of(arguments.method.method)), ("seed", training.seed)):
        training.output_dir = str(training.output_dir).replace(f"{{{name}}}", str(value))
