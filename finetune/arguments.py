"""Settings: recipe defaults < method defaults < `--config run.yaml` < command-line flags, all checked before any work.

`parse_arguments` gives one `Arguments` with five parts: `data`, `model`, `method`, `run`, and `training`, which is
transformers' own `TrainingArguments`. A key that nobody knows is an error, in the YAML file as on the command line.
"""

import difflib
import json
import math
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from accelerate import PartialState
from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.utils import is_torch_tf32_available

from finetune.catalogue import CATALOGUE, METHOD_DEFAULTS
from finetune.errors import FinetuneError
from finetune.hardware import default_num_threads, fastest_precision
from finetune.hub import parse_hub_id
from finetune.metrics import (
    DEFAULT_METRIC,
    GREATER_IS_BETTER,
    METRICS,
    MULTI_LABEL,
    PROBLEM_TYPES,
    REGRESSION,
    SINGLE_LABEL,
)

__all__ = [
    "Arguments",
    "DataArguments",
    "HubTarget",
    "MethodArguments",
    "ModelArguments",
    "RunArguments",
    "TuningArguments",
    "parse_arguments",
    "read_peft_config",
]

# A process that waits for a dead or unreachable one gives up after two minutes, not after half an hour.
DDP_TIMEOUT = 120
# What a network from scratch needs before it has learnt small data: so many steps, though not more epochs than these.
TEXTCNN_STEPS, TEXTCNN_EPOCHS = 1_000, 20
# Flags of `TrainingArguments` that would be taken and then have no effect here.
REFUSED = {
    "resume_from_checkpoint": "a run resumes by itself from its --output_dir",
    "train_sampling_strategy": "examples are always drawn at random, grouped by length",
    "auto_find_batch_size": "--max_tokens_per_micro_batch bounds the memory",
    "per_device_eval_batch_size": "evaluation is batched by --max_tokens_per_micro_batch",
    "dataloader_drop_last": "no example is dropped",
    "dataloader_persistent_workers": "the loader needs no workers",
    "bf16_full_eval": "evaluation computes as training does",
    "fp16_full_eval": "evaluation computes as training does",
    "prediction_loss_only": "the metrics need the predictions",
    "remove_unused_columns": "only what a model takes is handed to it",
    "enable_jit_checkpoint": "a run checkpoints by itself on SIGTERM and SIGINT",
    "save_only_model": "a run that is cut off could not resume",
    "save_on_each_node": "the main process writes the run directory",
    "restore_callback_states_from_checkpoint": "a run restores them by itself",
    "ignore_data_skip": "a resumed run would train on other examples",
    "hub_strategy": "the finished model is pushed, once",
    "hub_always_push": "the finished model is pushed, once",
    "do_train": "a recipe trains and evaluates",
    "do_eval": "a recipe trains and evaluates",
    "do_predict": "a recipe trains and evaluates",
}


@dataclass
class DataArguments:
    """Where the text comes from and how it is cut."""

    _argument_group_name = "data"

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "A data set on the Hub, or 'embedded': the 25,000 film reviews of the quickstart extra."},
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "The data set's configuration."})
    dataset_revision: str | None = field(
        default=None, metadata={"help": "The data set's version: a branch, tag or commit on the Hub."}
    )
    train_file: str | None = field(
        default=None,
        metadata={
            "help": "Training examples instead of a data set: .csv, .tsv, .jsonl, .json, .parquet, each also .gz or "
            ".zst; lines 'label text'; or a folder with a folder of .txt files for each class."
        },
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "Validation examples; without it they are carved from the training split."}
    )
    test_file: str | None = field(
        default=None, metadata={"help": "Test examples; without it they are carved from the training split."}
    )
    text_column: str | None = field(default=None, metadata={"help": "The column of the text. Default: by its name."})
    text_pair_column: str | None = field(
        default=None, metadata={"help": "The column of a second text, for pairs. Default: by its name, as in GLUE."}
    )
    label_column: str | None = field(default=None, metadata={"help": "The column of the label. Default: by its name."})
    id_column: str | None = field(
        default=None, metadata={"help": "The column of an id. Default: the file's name and the row."}
    )
    group_column: str | None = field(
        default=None, metadata={"help": "Rows with one value here, such as an author, stay in one carved split."}
    )
    encoding: str | None = field(
        default=None, metadata={"help": "How the files' bytes are read as text. Default: UTF-8, else it is found out."}
    )
    problem_type: str | None = field(
        default=None,
        metadata={
            "choices": PROBLEM_TYPES,
            "help": "What is predicted. Default: several labels where the column holds lists or --label_delimiter is "
            "given, a number where it holds fractions, else one class.",
        },
    )
    label_delimiter: str | None = field(
        default=None, metadata={"help": "What separates several labels of a text in one column."}
    )
    label_columns: str | None = field(
        default=None, metadata={"help": "Columns of 0 and 1, one for each label, with commas between their names."}
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read the training texts from disk while training: --train_file is a folder of Parquet files. For "
            "data larger than memory."
        },
    )
    remove_leakage: bool = field(
        default=False, metadata={"help": "Drop training texts that are also in the given validation or test split."}
    )
    max_length: int = field(default=512, metadata={"help": "Tokens a text is cut to, special tokens included."})
    truncation: str = field(
        default="head",
        metadata={
            "choices": ["head", "tail", "head+tail", "window"],
            "help": "What is kept of a text longer than max_length: its head; its tail; a quarter of the tokens from "
            "the head and the rest from the tail (Sun et al. 2019); or all of it, in windows.",
        },
    )
    window_stride: int | None = field(
        default=None, metadata={"help": "Tokens that a window shares with the one before it. Default: max_length / 4."}
    )
    window_pooling: str = field(
        default="mean",
        metadata={
            "choices": ["mean", "max", "vote"],
            "help": "How the logits of a text's windows are combined: their mean, their maximum, or a vote.",
        },
    )
    max_train_windows: int = field(
        default=8, metadata={"help": "Most windows of a text that train in a step, evenly spread over it."}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on a stratified sample of this many examples."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Evaluate on stratified samples of at most this many examples, in each split."}
    )
    split_seed: int = field(
        default=0, metadata={"help": "Seed of the carved splits and samples; apart from --seed, so runs share splits."}
    )


@dataclass
class ModelArguments:
    """What is fine-tuned."""

    _argument_group_name = "model"

    model_name_or_path: str = field(
        default="embedded",
        metadata={"help": "A model on the Hub, a folder, or 'embedded': all-MiniLM-L6-v2 of the quickstart extra."},
    )
    model_revision: str | None = field(
        default=None, metadata={"help": "The model's version: a branch, tag or commit on the Hub."}
    )
    attention_dropout: float = field(
        default=0.0,
        metadata={"help": "Dropout on the attention weights. 0 keeps the fused kernel; checkpoints often say 0.1."},
    )
    textcnn_variant: str = field(
        default="rand",
        metadata={
            "choices": ["rand", "static", "non-static", "multichannel"],
            "help": "Kim 2014: word vectors from scratch, or those of --model_name_or_path kept, tuned, or both.",
        },
    )
    textcnn_tokenizer: str = field(
        default="own",
        metadata={
            "choices": ["own", "model"],
            "help": "TextCNN's tokens: words of the training texts, or the tokenizer of --model_name_or_path. "
            "Variants with pretrained vectors always use the model's.",
        },
    )
    textcnn_embedding_dim: int = field(
        default=300, metadata={"help": "Size of TextCNN's word vectors when learnt from scratch."}
    )
    textcnn_vocabulary_size: int = field(
        default=30_000, metadata={"help": "Most words that TextCNN's own tokenizer keeps."}
    )
    textcnn_dropout: float = field(default=0.5, metadata={"help": "Dropout before TextCNN's linear head."})


@dataclass
class MethodArguments:
    """Which parameters move."""

    _argument_group_name = "method"

    method: str = field(
        default="full",
        metadata={
            "choices": list(CATALOGUE),
            "help": "What moves, and how: `finetune methods` describes each.",
        },
    )
    peft_config: str | None = field(
        default=None,
        metadata={
            "help": "A YAML file of fields for PEFT's config class; --method peft takes its peft_type from there."
        },
    )
    num_layers: int = field(default=2, metadata={"help": "How many layers --method last_layers trains, from the top."})
    reinit_layers: int = field(
        default=0, metadata={"help": "Draw this many of the top layers anew before training (Zhang et al. 2021)."}
    )
    class_weights: str = field(
        default="none",
        metadata={
            "choices": ["none", "balanced"],
            "help": "balanced: weight each class in the loss by rows / (classes x its rows); for several labels the "
            "presence of each by rows without / rows with it.",
        },
    )
    focal_gamma: float = field(
        default=0.0,
        metadata={"help": "Focal loss (Lin et al. 2017): weight an example by (1 - p)^gamma; 2 is usual, 0 is off."},
    )
    oversample: bool = field(
        default=False, metadata={"help": "Repeat training rows of rarer classes until all classes have as many."}
    )
    lora_r: int | None = field(
        default=None, metadata={"help": "Rank of the adapter's matrices. Default: the method's."}
    )
    lora_alpha: int | None = field(
        default=None, metadata={"help": "Scale: the update is multiplied by alpha / r. Default: the method's."}
    )
    lora_dropout: float | None = field(
        default=None, metadata={"help": "Dropout on the input of the adapter's matrices. Default: the method's."}
    )


@dataclass
class TuningArguments:
    """How fast each parameter moves, and when."""

    _argument_group_name = "tuning"

    layer_decay: float = field(
        default=1.0,
        metadata={"help": "Factor on the learning rate for each layer further down (Sun et al. 2019: 0.95)."},
    )
    head_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the classification head. Default: --learning_rate."}
    )
    lora_plus_ratio: float = field(
        default=1.0, metadata={"help": "How many times as fast LoRA's B matrices learn as A (Hayou et al. 2024: 16)."}
    )
    unfreeze_every: float | None = field(
        default=None,
        metadata={
            "help": "Unfreeze gradually (Howard and Ruder 2018): the head first, after each of this many epochs one "
            "layer more from the top, the embeddings last."
        },
    )
    lr_schedule: str | None = field(
        default=None,
        metadata={
            "choices": ["slanted_triangular", "triangular", "triangular2", "exp_range"],
            "help": "A schedule that --lr_scheduler_type does not have: a slanted triangle (Howard and Ruder 2018) or "
            "cycles (Smith 2017). Without warm-up.",
        },
    )
    num_cycles: float = field(default=2.0, metadata={"help": "Cycles of --lr_schedule over the training."})


@dataclass
class RunArguments:
    """How it runs on this machine."""

    _argument_group_name = "run"

    config: str | None = field(
        default=None, metadata={"help": "A YAML file of settings, named like the flags; flags win over it."}
    )
    num_threads: int | None = field(
        default=None,
        metadata={"help": "Threads for torch in each process. Default: physical cores / processes on this host."},
    )
    max_tokens_per_micro_batch: int | None = field(
        default=None,
        metadata={
            "help": "A step's examples are worked off in pieces of at most this many tokens, padding included, which "
            "bounds memory. Default: 3,072 on a CPU, whose cache then holds the activations; 16,384 on a GPU."
        },
    )
    early_stopping_patience: int = field(
        default=2,
        metadata={"help": "Stop after this many evaluations without a better metric_for_best_model; 0: never."},
    )
    floor: bool = field(
        default=True,
        metadata={"help": "Fit TF-IDF + logistic regression on the same rows too and show it beside the result."},
    )
    no_store_text: bool = field(default=False, metadata={"help": "Leave the texts out of predictions/."})
    restart: bool = field(default=False, metadata={"help": "Delete the run that --output_dir holds and start it over."})
    resume_with_changes: bool = field(
        default=False,
        metadata={
            "help": "Go on from the checkpoint although settings or data have changed since; run.json says which."
        },
    )


@dataclass(frozen=True)
class HubTarget:
    """Where a finished run goes: taken out of `TrainingArguments`, whose `Trainer` would push at every checkpoint.

    Attributes:
        model_id: `user/name` on the Hub.
        private: Whether only its owner can see it.
        revision: The branch; None for main.
    """

    model_id: str
    private: bool = True
    revision: str | None = None


@dataclass
class Arguments:
    """All settings of a run, resolved and checked, and the names of those that the user chose."""

    data: DataArguments
    model: ModelArguments
    method: MethodArguments
    tuning: TuningArguments
    run: RunArguments
    training: TrainingArguments
    given: frozenset[str]
    hub: HubTarget | None = None

    def settle(self, problem_type: str, is_paired: bool = False, num_rows: int | None = None) -> None:
        """Set what depends on the task and the number of training rows, and refuse what does not fit the task.

        Raises:
            FinetuneError: If a chosen metric, smoothing, weighting or truncation is not defined for the task.
        """
        if is_paired and self.data.truncation != "head":
            raise FinetuneError(
                f"Expected --truncation head for pairs of texts, but got {self.data.truncation!r}. "
                "The longer one is cut."
            )
        method, training = self.method, self.training
        if method.method == "textcnn" and num_rows and not {"num_train_epochs", "max_steps"} & self.given:
            step = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
            wanted = math.ceil(TEXTCNN_STEPS * step / num_rows)
            training.num_train_epochs = max(training.num_train_epochs, min(wanted, TEXTCNN_EPOCHS))
        what = {MULTI_LABEL: "several labels a text", REGRESSION: "a number to predict"}.get(problem_type, "classes")
        metric = (training.metric_for_best_model or "loss").removeprefix("eval_")
        chosen = "metric_for_best_model" in self.given
        if metric not in METRICS[problem_type] or (problem_type != SINGLE_LABEL and not chosen):
            if chosen:
                raise FinetuneError(
                    f"Expected --metric_for_best_model for {what} to be one of {', '.join(METRICS[problem_type])}, "
                    f"but got {metric!r}."
                )
            metric = DEFAULT_METRIC[problem_type]
            training.metric_for_best_model = metric
        if "greater_is_better" not in self.given:
            training.greater_is_better = METRICS[problem_type][metric]
        if problem_type == SINGLE_LABEL:
            return
        if training.label_smoothing_factor and "label_smoothing_factor" in self.given:
            raise FinetuneError(
                f"Expected no --label_smoothing_factor with {what}: it is defined for single classes. Leave it out."
            )
        training.label_smoothing_factor = 0.0
        if method.oversample or (problem_type == REGRESSION and (method.class_weights != "none" or method.focal_gamma)):
            names = "--oversample" if method.oversample else "--class_weights or --focal_gamma"
            raise FinetuneError(f"Expected no {names} with {what}: it is defined for classes. Leave it out.")
        if problem_type == REGRESSION and self.data.truncation == "window" and self.data.window_pooling != "mean":
            raise FinetuneError("Expected --window_pooling mean with a number to predict. Leave it out.")

    def unused(self) -> set[str]:
        """Name the settings that the method has no use for."""
        method, variant = self.method.method, self.model.textcnn_variant
        unused: set[str] = set()
        if method == "tfidf":
            text = {"max_length", "truncation", "window_stride", "window_pooling", "max_train_windows"}
            parts = (self.model, self.method, self.tuning, self.run, self.training)
            network = text.union(*(vars(part) for part in parts))
            used = {
                "method",
                "output_dir",
                "seed",
                "config",
                "restart",
                "resume_with_changes",
                "num_threads",
                "no_store_text",
            }
            unused = network - used - {"push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision"}
        else:
            takes_adapter = method == "peft" or CATALOGUE[method].peft_type is not None
            prefixes = [] if takes_adapter else ["lora_"]
            prefixes += [] if method == "textcnn" else ["textcnn_"]
            names = [name for part in (self.model, self.method, self.tuning) for name in vars(part)]
            unused = {name for name in names if name.startswith(tuple(prefixes))}
            if method != "last_layers":
                unused.add("num_layers")
            if self.tuning.lr_schedule in (None, "slanted_triangular"):
                unused.add("num_cycles")
            if self.data.truncation != "window":
                unused |= {"window_stride", "window_pooling", "max_train_windows"}
        if method == "textcnn":
            own_tokens = variant == "rand" and self.model.textcnn_tokenizer == "own"
            unused |= {"attention_dropout", *(("model_name_or_path",) if own_tokens else ("textcnn_vocabulary_size",))}
            unused |= {"textcnn_tokenizer", "textcnn_embedding_dim"} if variant != "rand" else set()
        if not self.training.load_best_model_at_end:
            unused.add("early_stopping_patience")
        return unused

    def to_dict(self) -> dict[str, Any]:
        """Give every setting by part and name, without tokens, for `run.json`."""
        parts = {part: vars(getattr(self, part)).copy() for part in ("data", "model", "method", "tuning", "run")}
        if self.method.peft_config is not None:
            parts["method"]["peft_config"] = read_peft_config(self.method.peft_config)  # the file may change
        training = {name: value for name, value in self.training.to_dict().items() if not name.endswith("_token")}
        return {**parts, "training": training}


class _Parser(HfArgumentParser):
    """Raises one-line errors instead of printing two hundred lines of usage."""

    def error(self, message: str) -> NoReturn:
        raise FinetuneError(f"{message}. --help lists every flag.")


def parse_arguments(description: str | None, defaults: dict[str, Any], argv: Sequence[str] | None = None) -> Arguments:
    """Resolve and check all settings of a recipe.

    Args:
        description: The recipe's docstring, shown by `--help`.
        defaults: The recipe's own defaults by flag name.
        argv: Command-line flags; `sys.argv[1:]` if None.

    Returns:
        The settings, with every default filled in.

    Raises:
        FinetuneError: If a setting is unknown, has the wrong type, or is outside its range.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    methods = dict.fromkeys(_values_of("method", argv))
    if len(methods) > 1:
        raise FinetuneError(f"Expected one --method, but got {' and '.join(methods)}. Drop all but one.")
    parts: Any = [DataArguments, ModelArguments, MethodArguments, TuningArguments, RunArguments, TrainingArguments]
    parser = _Parser(
        parts, usage="%(prog)s [--config FILE.yaml] [--name value ...]", description=description, allow_abbrev=False
    )
    known = {action.dest for action in parser._actions}
    config = _read_config(argv, known)
    method = _value_of("method", argv) or str(config.get("method", defaults.get("method", "full")))
    for_methods = {name: config.pop(name, None) or {} for name in METHOD_DEFAULTS}
    config.update(for_methods.get(method, {}))

    given = frozenset(config) | frozenset(_flags_to_names(argv, known))
    parser.set_defaults(**{**_machine_defaults(given), **defaults, **METHOD_DEFAULTS.get(method, {})})
    words = [word for name, value in config.items() for word in _to_flag(name, value)] + argv
    try:
        _join_processes(words)
        data, model, method_arguments, tuning, run, training, unknown = parser.parse_args_into_dataclasses(
            words, return_remaining_strings=True, look_for_args_file=False
        )
    except FinetuneError:
        raise
    except torch.distributed.DistError as error:
        raise FinetuneError(
            f"Expected {os.environ.get('WORLD_SIZE')} processes to start within --ddp_timeout, but not all of them "
            f"came ({error}). Look for a message of the others, and for the address and number of each host."
        ) from error
    except (ValueError, TypeError, ImportError) as error:  # TrainingArguments checks itself while it is built
        raise FinetuneError(f"The training settings don't fit together: {error}") from error
    if unknown:
        raise FinetuneError(_unknown_setting(unknown[0].lstrip("-").split("=")[0], known, "on the command line"))

    arguments = Arguments(data, model, method_arguments, tuning, run, training, given, _take_hub_target(training))
    _fill_in(arguments)
    _check(arguments)
    return arguments


def _join_processes(words: Sequence[str]) -> None:
    """On CPUs, join the other processes with --ddp_timeout; TrainingArguments would do it with torch's half hour."""
    timeout = _value_of("ddp_timeout", words) or str(DDP_TIMEOUT)
    use_cpu = not torch.cuda.is_available() or "--use_cpu" in words or os.environ.get("ACCELERATE_USE_CPU") == "True"
    if use_cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1 and timeout.isdigit():
        PartialState(cpu=True, timeout=timedelta(seconds=int(timeout)))


def read_peft_config(path: str) -> dict[str, Any]:
    """Read the fields of a PEFT config from a YAML file.

    Raises:
        FinetuneError: If it is not a file of names and values.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FinetuneError(f"Expected a YAML file after --peft_config, but {path!r} can't be read: {error}") from error
    if not isinstance(content, dict):
        raise FinetuneError(f"Expected 'name: value' lines in {path!r}, but found a {type(content).__name__}.")
    return content


def _machine_defaults(given: frozenset[str]) -> dict[str, Any]:
    """Choose device and number format, unless the user chose either of the half formats."""
    defaults: dict[str, Any] = {"use_cpu": not torch.cuda.is_available(), "ddp_timeout": DDP_TIMEOUT}
    if not {"bf16", "fp16"} & given:
        precision = fastest_precision()
        defaults |= {"bf16": precision == "bf16", "fp16": precision == "fp16"}
    if is_torch_tf32_available():
        defaults["tf32"] = True  # for the products that stay in float32
    return defaults


def _read_config(argv: Sequence[str], known: set[str]) -> dict[str, Any]:
    """Read the YAML file that `--config` names, if any, and check its keys.

    A key named like a method holds settings for that method alone.
    """
    path = _value_of("config", argv)
    if path is None:
        return {}
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FinetuneError(f"Expected a YAML file after --config, but {path!r} does not exist.") from None
    except (OSError, ValueError, yaml.YAMLError) as error:  # also a NUL in the name
        raise FinetuneError(f"Expected a YAML file after --config, but {path!r} can't be read: {error}") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise FinetuneError(f"Expected 'name: value' lines in {path!r}, but found a {type(settings).__name__}.")
    for part in (settings, *(settings.get(method) for method in METHOD_DEFAULTS)):
        if part is not None and not isinstance(part, dict):
            raise FinetuneError(f"Expected 'name: value' lines below a method in {path!r}, but found {part!r}.")
        for key, value in (part or {}).items():
            if key in METHOD_DEFAULTS and part is settings:
                continue
            if key not in known or key in ("config", "help"):
                raise FinetuneError(_unknown_setting(str(key), known, f"in {path}"))
            if value is None or isinstance(value, list):
                raise FinetuneError(
                    f"Expected one value for {key!r} in {path!r}, but found {value!r}. Give it a value."
                )
    return settings


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


def _to_flag(name: str, value: Any) -> list[str]:
    """Write a YAML entry as command-line words, so that it passes through the same types and checks as a flag."""
    return [f"--{name}={json.dumps(value) if isinstance(value, dict) else value}"]


def _unknown_setting(name: str, known: set[str], where: str) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {close[0]!r}?" if close else "--help lists every setting."
    return f"Expected a setting that the recipe knows, but found {name!r} {where}. {hint}"


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
    if training.torch_compile:
        os.environ.setdefault("ACCELERATE_DYNAMO_USE_DYNAMIC", "1")  # micro-batches differ in shape
    if "max_length" not in arguments.given:  # virtual tokens take positions of the text
        data.max_length -= CATALOGUE[arguments.method.method].peft_config.get("num_virtual_tokens", 0)
    if data.window_stride is None:
        data.window_stride = data.max_length // 4
    if run.max_tokens_per_micro_batch is None:
        run.max_tokens_per_micro_batch = 3_072 if training.use_cpu else 16_384
    if data.train_file is not None and "dataset_name" not in arguments.given:
        data.dataset_name = None
    metric = (training.metric_for_best_model or "loss").removeprefix("eval_")
    if metric in GREATER_IS_BETTER and "greater_is_better" not in arguments.given:
        training.greater_is_better = GREATER_IS_BETTER[metric]
    for name, value in (("method", arguments.method.method), ("seed", training.seed)):
        training.output_dir = str(training.output_dir).replace(f"{{{name}}}", str(value))


def _check(arguments: Arguments) -> None:
    """Refuse what can't work, before anything is downloaded, read or written."""
    data, run, training = arguments.data, arguments.run, arguments.training
    if "hub_token" in arguments.given:
        raise FinetuneError("Expected no --hub_token: it would be stored with the model. Set HF_TOKEN instead.")
    for name, instead in REFUSED.items():
        if name in arguments.given:
            raise FinetuneError(f"Expected no --{name}, because {instead}. Leave it out.")
    if training.fp16 and training.use_cpu:
        raise FinetuneError("Expected no --fp16 on a CPU, which trains in bf16 or fp32. Leave it out.")
    method = arguments.method
    if method.oversample and method.class_weights != "none":
        raise FinetuneError(
            "Expected --oversample or --class_weights balanced, but got both, which would correct twice. Drop one."
        )
    if method.focal_gamma and training.label_smoothing_factor and "label_smoothing_factor" in arguments.given:
        raise FinetuneError("Expected --focal_gamma or --label_smoothing_factor, but got both. Drop one of them.")
    if method.focal_gamma:
        training.label_smoothing_factor = 0.0
    if not 0 <= training.label_smoothing_factor < 1:
        raise FinetuneError(
            f"Expected --label_smoothing_factor in [0, 1), but got {training.label_smoothing_factor}. 0.1 is usual."
        )
    metric = (training.metric_for_best_model or "loss").removeprefix("eval_")
    if metric not in GREATER_IS_BETTER:
        raise FinetuneError(
            f"Expected --metric_for_best_model to be one of {', '.join(GREATER_IS_BETTER)}, but got {metric!r}."
        )
    for name, value, least in (
        ("max_length", data.max_length, 3),
        ("max_train_samples", data.max_train_samples, 2),
        ("max_eval_samples", data.max_eval_samples, 2),
        ("num_threads", run.num_threads, 1),
        ("max_tokens_per_micro_batch", run.max_tokens_per_micro_batch, 1),
        ("early_stopping_patience", run.early_stopping_patience, 0),
        ("window_stride", data.window_stride, 0),
        ("max_train_windows", data.max_train_windows, 1),
        ("focal_gamma", arguments.method.focal_gamma, 0),
        ("lora_r", arguments.method.lora_r, 1),
        ("reinit_layers", arguments.method.reinit_layers, 0),
        ("num_cycles", arguments.tuning.num_cycles, 0.5),
        ("head_learning_rate", arguments.tuning.head_learning_rate, 0),
        ("lora_plus_ratio", arguments.tuning.lora_plus_ratio, 0),
        ("textcnn_embedding_dim", arguments.model.textcnn_embedding_dim, 1),
        ("textcnn_vocabulary_size", arguments.model.textcnn_vocabulary_size, 3),
        ("per_device_train_batch_size", training.per_device_train_batch_size, 1),
        ("gradient_accumulation_steps", training.gradient_accumulation_steps, 1),
        ("split_seed", data.split_seed, 0),
        ("seed", training.seed, 0),
        ("learning_rate", training.learning_rate, 0),
        ("weight_decay", training.weight_decay, 0),
    ):
        if value is not None and not value >= least:  # written so that NaN is refused too
            raise FinetuneError(f"Expected --{name} to be at least {least}, but got {value}.")
    if training.max_steps <= 0 and not training.num_train_epochs > 0:
        raise FinetuneError(f"Expected --num_train_epochs above 0, but got {training.num_train_epochs}.")
    installed = get_available_reporting_integrations()
    absent = [name for name in training.report_to or [] if name not in installed]
    if absent:
        raise FinetuneError(
            f"Expected --report_to none or an installed tracker {installed}, but got {absent}. Install it with pip, or "
            "leave --report_to out."
        )
    _check_tuning(arguments)
    if data.truncation == "window" and (data.window_stride or 0) > data.max_length - 3:
        raise FinetuneError(
            f"Expected --window_stride below --max_length {data.max_length}, but got {data.window_stride}. "
            "A quarter of it is usual."
        )
    if arguments.model.model_revision is not None and (
        arguments.model.model_name_or_path == "embedded" or Path(arguments.model.model_name_or_path).exists()
    ):
        raise FinetuneError(
            f"Expected --model_revision with a model on the Hub, but {arguments.model.model_name_or_path!r} has none. "
            "Leave it out."
        )
    if data.dataset_name is None or data.dataset_name == "embedded":
        for name in ("dataset_config_name", "dataset_revision"):
            if getattr(data, name) is not None:
                raise FinetuneError(f"Expected --{name} with a --dataset_name on the Hub only. Leave it out.")
    for name, share in (
        ("attention_dropout", arguments.model.attention_dropout),
        ("textcnn_dropout", arguments.model.textcnn_dropout),
        ("lora_dropout", arguments.method.lora_dropout or 0.0),
    ):
        if not 0 <= share < 1:
            raise FinetuneError(f"Expected --{name} in [0, 1), but got {share}.")
    if data.dataset_name is None and data.train_file is None:
        raise FinetuneError("Expected --dataset_name or --train_file, but got neither. Pass one of them.")
    if data.dataset_name is not None and data.train_file is not None:
        raise FinetuneError("Expected --dataset_name or --train_file, but got both. Drop one of them.")
    for name in ("train_file", "validation_file", "test_file"):
        path = getattr(data, name)
        if path is not None and not Path(path).exists():
            raise FinetuneError(f"Expected --{name} to be a file or folder, but {path!r} does not exist.")

    if data.streaming:
        _check_streaming(arguments)


def _check_streaming(arguments: Arguments) -> None:
    """Refuse what needs all training texts at once."""
    data, method = arguments.data, arguments.method
    if data.train_file is None or not Path(data.train_file).is_dir():
        raise FinetuneError("Expected --train_file to be a folder of Parquet files with --streaming, but it is not.")
    if data.validation_file is None or data.test_file is None:
        raise FinetuneError(
            "Expected --validation_file and --test_file with --streaming, which can't carve splits. Pass both."
        )
    wants_all = {
        "--method tfidf": method.method == "tfidf",
        "--oversample": method.oversample,
        "--class_weights balanced": method.class_weights == "balanced",
        "--max_train_samples": data.max_train_samples is not None,
        "--remove_leakage": data.remove_leakage,
    }
    found = [name for name, is_set in wants_all.items() if is_set]
    if found:
        raise FinetuneError(f"Expected no {found[0]} with --streaming: it needs all training texts at once.")


def _check_tuning(arguments: Arguments) -> None:
    """Refuse settings of the method that contradict one another."""
    method, tuning, training = arguments.method, arguments.tuning, arguments.training
    if not 0 < tuning.layer_decay <= 1:
        raise FinetuneError(f"Expected --layer_decay in (0, 1], but got {tuning.layer_decay}. 0.95 is usual.")
    if (method.method == "peft") != (method.peft_config is not None) and CATALOGUE[method.method].peft_type is None:
        raise FinetuneError(
            f"Expected --peft_config with --method peft or an adapter, but got --method {method.method} "
            f"{'with' if method.peft_config else 'without'} it. Give both, or neither."
        )
    if method.peft_config is not None:
        read_peft_config(method.peft_config)
    if method.method == "qlora" and training.use_cpu:
        raise FinetuneError(
            "Expected a GPU for --method qlora: on a CPU bitsandbytes packs the weights at the first evaluation, and "
            "they can't be trained further. Take --method lora."
        )
    _warn_of_learning_rate(arguments)
    if (
        method.reinit_layers
        and method.method != "full"
        and not (method.method == "last_layers" and method.reinit_layers <= method.num_layers)
    ):
        raise FinetuneError(
            f"Expected --reinit_layers with --method full, or last_layers and as many --num_layers, but got --method "
            f"{method.method}: it would freeze layers that were drawn at random. Leave it out."
        )
    if tuning.unfreeze_every is not None and method.method != "full":
        raise FinetuneError(
            f"Expected --unfreeze_every with --method full, but got --method {method.method}, which freezes for good."
        )
    if tuning.unfreeze_every is not None and not tuning.unfreeze_every > 0:
        raise FinetuneError(f"Expected --unfreeze_every above 0 epochs, but got {tuning.unfreeze_every}.")
    if tuning.lr_schedule is not None:
        for name in ("lr_scheduler_type", "warmup_steps"):
            if name in arguments.given:
                raise FinetuneError(f"Expected --lr_schedule or --{name}, but got both. Drop one of them.")
        training.warmup_steps = 0


def _warn_of_learning_rate(arguments: Arguments) -> None:
    """Warn of a rate for full fine-tuning given to an adapter, and of the reverse."""
    method, rate = arguments.method.method, arguments.training.learning_rate
    usual = CATALOGUE[method].defaults.get("learning_rate")
    if "learning_rate" not in arguments.given or usual is None:
        return
    if rate <= usual / 8:
        what = " and is one for full fine-tuning" if rate <= 1e-4 < usual else ""
        warnings.warn(
            f"--learning_rate {rate:g} is far below the {usual:g} that --method {method} usually needs{what}: "
            "it will hardly move",
            stacklevel=2,
        )
    elif rate >= usual * 8:
        what = " and is one for adapters" if usual <= 1e-4 <= rate else ""
        warnings.warn(
            f"--learning_rate {rate:g} is far above the {usual:g} that --method {method} usually takes{what}: "
            "it may forget what it was pretrained for",
            stacklevel=2,
        )
