"""What is declared of transformers' `TrainingArguments`, whose fields are settings here too.

A field that is not named below trains a network and changes its results, within no bounds of ours.
"""

import math

from finetune.settings.declaration import Setting, Values, always, trains_network
from finetune.threads import count_launched

__all__ = ["TRAINING"]


SEEDS = 2**32 - 1  # the largest that numpy takes
# Schedules that look at a metric instead of at the step, and those without a warm-up.
BY_METRIC = ("reduce_lr_on_plateau", "greedy")
WITHOUT_WARMUP = (*BY_METRIC, "constant")


def _looks_at_metric(settings: Values) -> bool:
    return trains_network(settings) and (
        settings.load_best_model_at_end
        or _value(settings.save_strategy) == "best"
        or (settings.lr_schedule is None and _value(settings.lr_scheduler_type) in BY_METRIC)
    )


def _warms_up(settings: Values) -> bool:
    if _value(settings.optim) in ("schedule_free_adamw", "schedule_free_sgd"):  # they do it themselves
        return trains_network(settings)
    return trains_network(settings) and _value(settings.lr_scheduler_type) not in WITHOUT_WARMUP


def _takes_schedule_arguments(settings: Values) -> bool:
    return (
        trains_network(settings)
        and settings.lr_schedule is None
        and _value(settings.lr_scheduler_type) not in ("constant", "constant_with_warmup")
    )


def _evaluates(settings: Values) -> bool:
    return trains_network(settings) and _value(settings.eval_strategy) != "no"


def _evaluates_by_steps(settings: Values) -> bool:
    return trains_network(settings) and _value(settings.eval_strategy) == "steps"


def _saves_by_steps(settings: Values) -> bool:
    return trains_network(settings) and _value(settings.save_strategy) == "steps"


def _logs_by_steps(settings: Values) -> bool:
    return trains_network(settings) and _value(settings.logging_strategy) == "steps"


def _checkpoints_activations(settings: Values) -> bool:
    return trains_network(settings) and bool(settings.gradient_checkpointing or settings.activation_checkpointing)


def _compiles(settings: Values) -> bool:
    return trains_network(settings) and bool(
        settings.torch_compile or settings.torch_compile_backend or settings.torch_compile_mode
    )


def _value(setting: object) -> str:
    return str(getattr(setting, "value", setting))


def _reports_to_trackio(settings: Values) -> bool:
    return trains_network(settings) and "trackio" in (settings.report_to or [])


def _has_processes(settings: Values) -> bool:
    return trains_network(settings) and count_launched() > 1


def _pushes(settings: Values) -> bool:
    return bool(settings.push_to_hub)


def _shows(**facts: object) -> Setting:
    return Setting(changes="nothing", **facts)  # type: ignore[arg-type]


LOADER = "the loader reads tokens that are ready, in their order"
WHOLE = "metrics are computed over the logits of all examples at once"
TRAINING: dict[str, Setting] = {
    "output_dir": _shows(used_when=always),
    "seed": Setting(at_least=0, at_most=SEEDS, used_when=always, changes="draws"),
    "data_seed": Setting(at_least=0, at_most=SEEDS, changes="draws"),
    "per_device_train_batch_size": Setting(at_least=1),
    "gradient_accumulation_steps": Setting(at_least=1),
    "num_train_epochs": Setting(below=math.inf),  # above 0 where --max_steps does not say how long
    "learning_rate": Setting(at_least=0, below=math.inf),
    "lr_scheduler_kwargs": Setting(used_when=_takes_schedule_arguments),
    "weight_decay": Setting(at_least=0, below=math.inf),
    "warmup_steps": Setting(at_least=0, below=math.inf, used_when=_warms_up),
    "adam_beta1": Setting(at_least=0, below=1),
    "adam_beta2": Setting(at_least=0, below=1),
    "adam_epsilon": Setting(at_least=0, below=math.inf),
    "max_grad_norm": Setting(at_least=0),
    "neftune_noise_alpha": Setting(at_least=0, below=math.inf),
    "label_smoothing_factor": Setting(at_least=0, below=1, usual="0.1 is usual."),
    "metric_for_best_model": Setting(used_when=_looks_at_metric),
    "greater_is_better": Setting(used_when=_looks_at_metric),
    "eval_steps": Setting(above=0, below=math.inf, used_when=_evaluates_by_steps),
    "eval_delay": Setting(at_least=0, below=math.inf, used_when=_evaluates),
    "save_steps": Setting(above=0, used_when=_saves_by_steps),
    "gradient_checkpointing_kwargs": _shows(used_when=_checkpoints_activations),
    "activation_checkpointing_kwargs": _shows(used_when=_checkpoints_activations),
    "torch_compile_backend": Setting(used_when=_compiles),
    "torch_compile_mode": Setting(used_when=_compiles),
    "liger_kernel_config": Setting(used_when=lambda s: trains_network(s) and s.use_liger_kernel),
    "fsdp_config": Setting(used_when=lambda s: trains_network(s) and bool(s.fsdp)),
    # What is shown and kept, and how fast; no result depends on it.
    **dict.fromkeys(
        [
            "logging_dir",
            "logging_strategy",
            "logging_first_step",
            "log_on_each_node",
            "logging_nan_inf_filter",
            "log_level",
            "log_level_replica",
            "disable_tqdm",
            "report_to",
            "run_name",
            "include_num_input_tokens_seen",
            "skip_memory_metrics",
            "dataloader_pin_memory",
            "activation_checkpointing",
            "gradient_checkpointing",
            "full_determinism",
        ],
        _shows(),
    ),
    "logging_steps": _shows(at_least=0, used_when=_logs_by_steps),
    "save_total_limit": _shows(at_least=0),
    "dataloader_num_workers": _shows(at_least=0),
    "project": _shows(used_when=_reports_to_trackio),
    **dict.fromkeys(
        ["trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"], _shows(used_when=_reports_to_trackio)
    ),
    **dict.fromkeys(
        ["ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend"],
        _shows(used_when=_has_processes),
    ),
    "ddp_timeout": _shows(at_least=1, used_when=_has_processes),
    "local_rank": _shows(used_when=_has_processes),
    "push_to_hub": _shows(used_when=always),
    "hub_model_id": _shows(used_when=always),
    **dict.fromkeys(["hub_private_repo", "hub_revision"], _shows(used_when=_pushes)),
    # What would be taken and then have no effect.
    **{
        name: Setting(refused=reason)
        for name, reason in {
            "hub_token": "it would be stored with the model. Set HF_TOKEN instead",
            "resume_from_checkpoint": "a run resumes by itself from its --output_dir",
            "train_sampling_strategy": "examples are always drawn at random, grouped by length",
            "length_column_name": "lengths are counted",
            "optim_target_modules": "GaLore and APOLLO, which it is for, are not supported",
            "parallelism_config": "processes share the batch, and nothing else",
            "auto_find_batch_size": "--max_tokens_per_micro_batch bounds the memory",
            "torch_empty_cache_steps": "freed memory is given back by itself",
            "average_tokens_across_devices": "the loss is the mean over the examples of all processes",
            "per_device_eval_batch_size": "evaluation is batched by --max_tokens_per_micro_batch",
            "bf16_full_eval": "evaluation computes as training does",
            "fp16_full_eval": "evaluation computes as training does",
            "prediction_loss_only": "the metrics need the predictions",
            "eval_accumulation_steps": "logits leave the device after each batch",
            "eval_do_concat_batches": WHOLE,
            "eval_use_gather_object": WHOLE,
            "batch_eval_metrics": WHOLE,
            "include_for_metrics": "the metrics take logits and labels",
            "label_names": "labels are in the column that --label_column names",
            "remove_unused_columns": "only what a model takes is handed to it",
            "use_cache": "a classifier generates nothing that a cache would serve",
            "dataloader_drop_last": "no example is dropped",
            "dataloader_persistent_workers": LOADER,
            "dataloader_prefetch_factor": LOADER,
            "dataloader_multiprocessing_context": LOADER,
            "dataloader_in_order": LOADER,
            "accelerator_config": "batches are divided among the processes by their sampler",
            "enable_jit_checkpoint": "a run checkpoints by itself on SIGTERM and SIGINT",
            "save_only_model": "a run that is cut off could not resume",
            "save_on_each_node": "the main process writes the run directory",
            "restore_callback_states_from_checkpoint": "a run restores them by itself",
            "ignore_data_skip": "a resumed run would train on other examples",
            "hub_strategy": "the finished model is pushed, once",
            "hub_always_push": "the finished model is pushed, once",
            "debug": "a step whose loss or gradient is no number is named as it is",
            "do_train": "a recipe trains and evaluates",
            "do_eval": "a recipe trains and evaluates",
            "do_predict": "a recipe trains and evaluates",
        }.items()
    },
}
