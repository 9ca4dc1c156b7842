"""What can't be built is said in one line before any data is read, and what can be built is taken."""

import dataclasses
import importlib.util
import re
import warnings

import pytest
import torch
from test_arguments import parse
from torch import nn
from transformers import SchedulerType, TrainingArguments, get_scheduler
from transformers.training_args import OptimizerNames

from finetune.errors import FinetuneError
from finetune.models.support import refuse_unsupported
from finetune.settings.dry_build import build_dry
from finetune.settings.parts import ModelArguments
from finetune.training.optimization import warn_of_rates

NEEDED = {"cosine_with_min_lr": '{"min_lr_rate": 0.1}', "cosine_warmup_with_min_lr": '{"min_lr_rate": 0.1}',
          "warmup_stable_decay": '{"num_decay_steps": 10}'}  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "named", "reason"),
    [
        (["--lr_scheduler_kwargs", '{"foo": 1}'], "--lr_scheduler_kwargs", "unexpected keyword argument 'foo'"),
        (["--lr_scheduler_kwargs", "foo"], "--lr_scheduler_kwargs", "in JSON"),
        (["--lr_scheduler_type", "cosine_with_min_lr"], "cosine_with_min_lr", "min_lr"),
        (["--lr_scheduler_type", "warmup_stable_decay"], "warmup_stable_decay", "num_decay_steps"),
        (["--lr_scheduler_type", "warmup_stable_decay", "--lr_scheduler_kwargs",
          '{"num_decay_steps": 5, "decay_type": "x"}'], "warmup_stable_decay", "decay_type|Unknown"),
        (["--lr_scheduler_type", "cosine", "--lr_scheduler_kwargs", '{"num_cycles": "two"}'], "cosine", "float"),
        (["--lr_scheduler_type", "polynomial", "--lr_scheduler_kwargs", '{"lr_end": 1}'], "polynomial", "smaller"),
        (["--lr_scheduler_type", "inverse_sqrt", "--lr_scheduler_kwargs", '{"timescale": 0}', "--warmup_steps", "0"],
         "inverse_sqrt", "division"),
        (["--lr_scheduler_type", "reduce_lr_on_plateau", "--lr_scheduler_kwargs", '{"factor": 2}',
          "--eval_strategy", "epoch"], "reduce_lr_on_plateau", "Factor"),
        (["--lr_scheduler_type", "reduce_lr_on_plateau", "--lr_scheduler_kwargs", '{"patience": "x"}',
          "--eval_strategy", "epoch"], "reduce_lr_on_plateau", "not supported"),
        (["--lr_scheduler_type", "greedy", "--lr_scheduler_kwargs", '{"threshold_mode": "x"}',
          "--eval_strategy", "epoch"], "greedy", "threshold mode"),
        (["--optim_args", "foo=1"], "--optim_args", "'foo'"),
        (["--optim", "sgd", "--optim_args", "momentum"], "--optim_args", "unpack"),
        (["--optim", "sgd", "--optim_args", "nesterov=true"], "--optim_args", "Nesterov"),
        (["--optim", "sgd", "--optim_args", "momentum=0.9,dampening=0.1,lambda=2"], "--optim_args", "'lambda'"),
        (["--optim", "rmsprop", "--optim_args", "alpha=much"], "--optim_args", "float"),
        (["--optim", "galore_adamw"], "--optim galore_adamw", "not supported"),
        (["--optim", "apollo_adamw"], "--optim apollo_adamw", "not supported"),
        (["--torch_compile_backend", "foo"], "--torch_compile_backend", "FOO"),
        (["--torch_compile_mode", "foo"], "--torch_compile_mode", "foo"),
        (["--gradient_checkpointing", "true", "--gradient_checkpointing_kwargs", '{"foo": 1}'],
         "--gradient_checkpointing_kwargs", "foo"),
        (["--gradient_checkpointing", "true", "--method", "textcnn"], "--gradient_checkpointing", "textcnn"),
        pytest.param(["--activation_checkpointing", "true", "--method", "head"], "--activation_checkpointing", "head",
                     marks=pytest.mark.skipif(not hasattr(TrainingArguments, "activation_checkpointing"),
                                              reason="an older transformers has --gradient_checkpointing alone")),
        (["--gradient_checkpointing", "true", "--method", "prefix"], "--gradient_checkpointing", "prefix"),
        (["--neftune_noise_alpha", "5", "--method", "head"], "--neftune_noise_alpha", "head"),
        (["--neftune_noise_alpha", "5", "--method", "textcnn"], "--neftune_noise_alpha", "textcnn"),
        (["--neftune_noise_alpha", "5", "--method", "prompt"], "--neftune_noise_alpha", "prompt"),
        (["--save_strategy", "best", "--metric_for_best_model", "accuracy"], "--save_strategy", "--eval_strategy"),
        (["--greater_is_better", "false", "--metric_for_best_model", "accuracy"], "--greater_is_better", "worst"),
        (["--greater_is_better", "true", "--metric_for_best_model", "loss"], "--greater_is_better", "worst"),
        (["--lr_scheduler_type", "reduce_lr_on_plateau", "--eval_strategy", "epoch", "--metric_for_best_model",
          "macro_f1", "--lr_scheduler_kwargs", '{"mode": "min"}'], "--lr_scheduler_kwargs", "'max'"),
        (["--load_best_model_at_end", "true", "--eval_strategy", "epoch", "--save_strategy", "steps"],
         "--load_best_model_at_end", "match"),
        (["--debug", "underflow_overflow"], "--debug", "named"),
        (["--dataloader_num_workers", "-1"], "--dataloader_num_workers", "at least 0"),
        (["--save_total_limit", "-1"], "--save_total_limit", "at least 0"),
        (["--eval_strategy", "steps", "--eval_steps", "-2"], "--eval_steps", "above 0"),
        (["--num_train_epochs", "inf"], "--num_train_epochs", "finite"),
        (["--learning_rate", "inf"], "--learning_rate", "finite"),
        (["--warmup_steps", "inf"], "--warmup_steps", "finite"),
        (["--data_seed", "-1"], "--data_seed", "4294967295"),
        (["--ddp_timeout", "0"], "--ddp_timeout", "at least 1"),
    ],
)  # fmt: skip
def test_what_can_t_be_built_is_one_line_before_any_data_is_read(flags, named, reason):
    with pytest.raises(FinetuneError, match=reason) as caught:
        parse(*flags)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [schedule.value for schedule in SchedulerType])
def test_every_schedule_is_built_with_what_it_needs(name):
    flags = ["--lr_scheduler_kwargs", NEEDED[name]] if name in NEEDED else []
    assert parse("--lr_scheduler_type", name, "--eval_strategy", "epoch", *flags).training.lr_scheduler_type == name


@pytest.mark.parametrize("name", [optimizer.value for optimizer in OptimizerNames])
def test_every_optimizer_is_built_or_is_one_line_that_names_it(name):
    try:
        parse("--optim", name)
    except FinetuneError as error:
        assert re.fullmatch(f".*--optim {name} .*", str(error))  # noqa: PT017  of one line


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("sgd", "momentum=0.9,nesterov=yes"), ("sgd", "momentum=0"), ("adagrad", "lr_decay=0.1"),
     ("rmsprop", "centered=true, alpha=0.9")],
)  # fmt: skip
def test_arguments_that_an_optimizer_reads_are_taken(name, arguments):
    training = parse("--optim", name, "--optim_args", arguments).training
    assert training.optim_args == arguments


def test_no_random_number_is_drawn():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    parse("--optim", "sgd", "--lr_scheduler_type", "cosine")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["schedule_free_adamw", "schedule_free_sgd"])
def test_what_averages_has_a_constant_rate_unless_told(name):
    if importlib.util.find_spec("schedulefree") is None:
        with pytest.raises(FinetuneError, match="pip install schedulefree"):
            parse("--optim", name)
        return
    assert parse("--optim", name).training.lr_scheduler_type == "constant"
    assert parse("--optim", name, "--lr_scheduler_type", "cosine").training.lr_scheduler_type == "cosine"


@pytest.mark.parametrize(
    ("type_", "num_warmup_steps", "num_steps", "settings", "message"),
    [
        ("linear", 1_000, 8, {}, "reaches 1% of --learning_rate at most in 8 steps, with 1000 to warm up"),
        ("cosine", 30, 10, {}, "reaches 30%"),
        ("linear", 1, 1, {}, "reaches 0%"),
        ("warmup_stable_decay", 1, 8, {"num_decay_steps": 5_000}, "reaches 0%"),
        ("cosine_with_min_lr", 1, 8, {"min_lr_rate": 2.0}, "times --learning_rate in 8 steps"),
        ("linear", 1, 8, {}, None),
        ("linear", 2, 3, {}, None),
        ("cosine_with_restarts", 0, 20, {"num_cycles": 3}, None),
        ("constant", 5, 3, {}, None),
    ],
)
def test_a_rate_that_the_schedule_never_reaches_is_said(type_, num_warmup_steps, num_steps, settings, message):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = get_scheduler(type_, optimizer, num_warmup_steps, num_steps, settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_rates(schedule, num_steps, num_warmup_steps)
    assert [message in str(warning.message) for warning in caught] == ([True] if message else [])


def test_a_model_that_can_t_is_refused_by_its_class(tmp_path, tiny_bert):
    from transformers import CanineConfig

    CanineConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32).save_pretrained(
        tmp_path
    )
    training = TrainingArguments(use_cpu=True, neftune_noise_alpha=5)
    refuse_unsupported(ModelArguments(model_name_or_path=tiny_bert), training)
    with pytest.raises(FinetuneError, match=r"--neftune_noise_alpha, but .* has none"):
        refuse_unsupported(ModelArguments(model_name_or_path=str(tmp_path)), training)
    refuse_unsupported(ModelArguments(model_name_or_path=str(tmp_path)), TrainingArguments(use_cpu=True))


def test_a_dry_build_leaves_the_settings_as_they_are():
    training = TrainingArguments(use_cpu=True, optim="sgd", optim_args="momentum=0.5")
    before = dataclasses.asdict(training)
    build_dry(training)
    assert dataclasses.asdict(training) == before
