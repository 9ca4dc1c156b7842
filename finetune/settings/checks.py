"""What is refused before anything is downloaded, read or written: values out of bounds, and what contradicts itself."""

import importlib.util
import warnings
from pathlib import Path

import torch
from transformers.integrations import get_available_reporting_integrations

from finetune.accelerated.processor import multiplies_fast
from finetune.decisions.cost_matrix import read_cost_matrix
from finetune.errors import FinetuneError
from finetune.lookup import family_of, find_method
from finetune.metrics import GREATER_IS_BETTER
from finetune.settings.arguments import Arguments
from finetune.settings.declaration import Values
from finetune.settings.declared import facts_of
from finetune.settings.dry_build import build_dry
from finetune.settings.duration import read_duration
from finetune.settings.launched import check_launched
from finetune.settings.peft_config import read_peft_config

__all__ = ["check_arguments"]


def check_arguments(arguments: Arguments) -> None:
    """Refuse what can't work, before anything is downloaded, read or written."""
    data, training = arguments.data, arguments.training
    for name in sorted(arguments.given):
        if facts_of(name).refused:
            raise FinetuneError(f"Expected no --{name}, because {facts_of(name).refused}. Leave it out.")
    if training.fp16 and training.use_cpu:
        raise FinetuneError("Expected no --fp16 on a CPU, which trains in bf16 or fp32. Leave it out.")
    check_launched(training, arguments.given)
    if training.bf16 and training.use_cpu and not multiplies_fast(torch.bfloat16):
        warnings.warn(
            "--bf16 on a processor without units for it: products in bfloat16 take longer than in float32 here. Pass "
            "--bf16 false",
            stacklevel=2,
        )
    optimizer = str(getattr(training.optim, "value", training.optim))
    if optimizer.startswith(("galore", "apollo", "lomo", "adalomo")):
        raise FinetuneError(
            f"--optim {optimizer} is not supported, because it divides the parameters itself. Take adamw_torch_fused."
        )
    if "use_cpu" in arguments.given and not training.use_cpu and not torch.cuda.is_available():
        raise FinetuneError("Expected a GPU with --use_cpu false, but torch finds none. Leave it out.")
    decisions = arguments.decisions
    if decisions.cost_matrix is not None:
        read_cost_matrix(decisions.cost_matrix)
    if decisions.class_conditional and decisions.coverage is None:
        raise FinetuneError("Expected --coverage with --class_conditional. Give it, or leave the flag out.")
    method = arguments.method
    if method.oversample and method.class_weights != "none":
        raise FinetuneError(
            "Expected --oversample or --class_weights balanced, but got both, which would correct twice. Drop one."
        )
    if method.focal_gamma and training.label_smoothing_factor and "label_smoothing_factor" in arguments.given:
        raise FinetuneError("Expected --focal_gamma or --label_smoothing_factor, but got both. Drop one of them.")
    if method.focal_gamma:
        training.label_smoothing_factor = 0.0
    metric = (training.metric_for_best_model or "loss").removeprefix("eval_")
    if metric not in GREATER_IS_BETTER:
        raise FinetuneError(
            f"Expected --metric_for_best_model to be one of {', '.join(GREATER_IS_BETTER)}, but got {metric!r}."
        )
    if "metric_for_best_model" in arguments.given:
        arguments.check_direction(metric, GREATER_IS_BETTER[metric])
    for name, value in arguments.values().items():
        facts_of(name).check(name, value)
    if "max_steps" in arguments.given and training.max_steps < 1 and training.max_steps != -1:
        raise FinetuneError(f"Expected --max_steps to be at least 1, but got {training.max_steps}.")
    if training.max_steps <= 0 and not training.num_train_epochs > 0:
        raise FinetuneError(f"Expected --num_train_epochs above 0, but got {training.num_train_epochs}.")
    installed = get_available_reporting_integrations()
    absent = [name for name in training.report_to or [] if name not in installed]
    if absent:
        raise FinetuneError(
            f"Expected --report_to none or an installed tracker {installed}, but got {absent}. Install it with pip, or "
            "leave --report_to out."
        )
    if training.save_strategy == "best" and training.eval_strategy == "no":
        raise FinetuneError(
            "Expected an --eval_strategy with --save_strategy best, but got no: nothing would say what is best. Pass "
            "--eval_strategy epoch."
        )
    _check_tuning(arguments)
    _check_search(arguments)
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
    if data.dataset_name is None and data.train_file is None:
        raise FinetuneError("Expected --dataset_name or --train_file, but got neither. Pass one of them.")
    if data.dataset_name is not None and data.train_file is not None:
        raise FinetuneError("Expected --dataset_name or --train_file, but got both. Drop one of them.")
    if data.unlabeled_file is not None and method.teacher is None and not arguments.model.pretrain_epochs:
        raise FinetuneError(
            "Expected --teacher with --unlabeled_file, to label its texts, or --pretrain_epochs, to train on them so. "
            "Pass a model's folder, or a number of epochs."
        )
    for name in ("train_file", "validation_file", "test_file", "unlabeled_file"):
        path = getattr(data, name)
        if path is not None and not Path(path).exists():
            raise FinetuneError(f"Expected --{name} to be a file or folder, but {path!r} does not exist.")

    vectors = arguments.model.word_vectors
    if vectors is not None and not Path(vectors).exists():
        raise FinetuneError(
            f"Expected --word_vectors to be a file or folder, but {vectors!r} does not exist. Check the path; what is "
            "on the Hub has to be downloaded first."
        )
    if data.streaming:
        _check_streaming(arguments)
    if family_of(method.method).trains_network:
        build_dry(training, has_own_schedule=arguments.tuning.lr_schedule is not None)


def _check_search(arguments: Arguments) -> None:
    """Refuse a search that can't be made."""
    run = arguments.run
    if "trials" in arguments.unused() or not (run.trials or run.budget):
        return
    if run.budget is not None:
        read_duration(run.budget)
    flag = "--trials" if run.trials else "--budget"
    if arguments.training.world_size > 1:
        raise FinetuneError(f"Expected one process with {flag}, but got {arguments.training.world_size}. Leave it out.")
    if importlib.util.find_spec("optuna") is None:
        raise FinetuneError(
            f"Expected the package optuna with {flag}, but it is not installed. Install it with: "
            "pip install -c constraints.txt '.[tune]'"
        )


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
        f"--method {method.method}": not family_of(method.method).can_stream,
        "--oversample": method.oversample,
        "--class_weights balanced": method.class_weights == "balanced",
        "--max_train_samples": data.max_train_samples is not None,
        "--remove_leakage": data.remove_leakage,
        "--pretrain_epochs": arguments.model.pretrain_epochs > 0 and "pretrain_epochs" not in arguments.unused(),
        "--teacher": method.teacher is not None,
    }
    found = [name for name, is_set in wants_all.items() if is_set]
    if found:
        raise FinetuneError(f"Expected no {found[0]} with --streaming: it needs all training texts at once.")


def _check_tuning(arguments: Arguments) -> None:
    """Refuse settings of the method that contradict one another."""
    method, tuning, training = arguments.method, arguments.tuning, arguments.training
    if (method.method == "peft") != (method.peft_config is not None) and find_method(method.method).peft_type is None:
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
    _check_passes(arguments)
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
    if tuning.lr_schedule is not None:
        for name in ("lr_scheduler_type", "warmup_steps"):
            if name in arguments.given:
                raise FinetuneError(f"Expected --lr_schedule or --{name}, but got both. Drop one of them.")
        training.warmup_steps = 0


def _check_passes(arguments: Arguments) -> None:
    """Refuse what happens on the way through an encoder's layers where the method has no such way, or another one."""
    method, training = arguments.method, arguments.training
    again = "activation_checkpointing" if "activation_checkpointing" in arguments.given else "gradient_checkpointing"
    wanted = {"neftune_noise_alpha": training.neftune_noise_alpha, again: training.gradient_checkpointing}
    names = [name for name, value in wanted.items() if value]
    if not names:
        return
    what = f"Expected no --{names[0]} with --method {method.method}"
    if not (family_of(method.method).trains_encoder and find_method(method.method).trains_through_layers):
        raise FinetuneError(f"{what}, which trains no layer of an encoder. Leave it out.")
    kind = find_method(method.method).peft_type
    if method.peft_config is not None:
        kind = str(read_peft_config(method.peft_config).get("peft_type", kind))
    if training.gradient_checkpointing and kind == "PREFIX_TUNING":
        raise FinetuneError(f"{what}: a layer that is computed again has lost the prefix. Leave it out.")
    if training.neftune_noise_alpha and kind in ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"):
        raise FinetuneError(f"{what}, whose virtual tokens have no embedding to add noise to. Leave it out.")


def _warn_of_learning_rate(arguments: Arguments) -> None:
    """Warn of a rate for full fine-tuning given to an adapter, and of the reverse."""
    method, rate = arguments.method.method, arguments.training.learning_rate
    if rate == 0 and family_of(method).trains_network:
        warnings.warn("--learning_rate 0 moves no weight: nothing will be learnt", stacklevel=2)
        return
    usual = find_method(method).defaults.get("learning_rate")
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
        pretrained = family_of(method).starts_from_pretrained(Values(arguments.values()))
        then = "it may forget what it was pretrained for" if pretrained else "it may learn nothing"
        warnings.warn(
            f"--learning_rate {rate:g} is far above the {usual:g} that --method {method} usually takes{what}: {then}",
            stacklevel=2,
        )
