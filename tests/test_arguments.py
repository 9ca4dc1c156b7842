"""Recipe defaults < method defaults < YAML < flags, and what is refused."""

import dataclasses

import pytest
from transformers import TrainingArguments

from finetune.errors import FinetuneError
from finetune.hardware import count_physical_cores
from finetune.settings.parsing import parse_arguments
from finetune.settings.parts import DataArguments, MethodArguments, ModelArguments, RunArguments

DEFAULTS = {"dataset_name": "embedded", "output_dir": "runs/x/{method}-seed{seed}", "num_train_epochs": 2}


def parse(*argv):
    return parse_arguments("A recipe.", DEFAULTS, argv)


def test_layers_win_in_order(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("method: textcnn\nlearning_rate: 2e-3\nmax_length: 64\nload_best_model_at_end: false\n")
    assert parse().training.num_train_epochs == 2  # the recipe's
    arguments = parse("--config", str(config), "--max_length", "32")
    assert arguments.method.method == "textcnn"
    assert arguments.training.num_train_epochs == 5  # TextCNN's
    assert arguments.training.learning_rate == 2e-3  # YAML reads 2e-3 as a string; the flag's type makes it a number
    assert arguments.data.max_length == 32  # the flag's
    assert arguments.given == {"config", "method", "learning_rate", "max_length", "load_best_model_at_end"}


def test_yaml_settings_below_a_method_are_for_it_alone(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("max_length: 64\nlora:\n  learning_rate: 3e-4\n  lora_r: 4\n")
    lora, full = (parse("--config", str(config), "--method", method) for method in ("lora", "full"))
    assert (lora.training.learning_rate, lora.method.lora_r, lora.data.max_length) == (3e-4, 4, 64)
    assert (full.training.learning_rate, full.method.lora_r, full.data.max_length) == (5e-5, None, 64)


def test_learning_rate_depends_on_the_method_unless_given():
    assert parse().training.learning_rate == 5e-5
    assert parse("--method", "lora").training.learning_rate == 5e-4
    assert parse("--method=lora").training.learning_rate == 5e-4
    assert parse("--method", "lora", "--learning_rate", "1e-5").training.learning_rate == 1e-5


@pytest.mark.parametrize(
    ("rows", "flags", "epochs"),
    [
        (20_000, [], 5),
        (10_000, [], 5),
        (9_999, [], 6),
        (2_500, [], 20),
        (100, [], 20),
        (2_500, ["--per_device_train_batch_size", "25"], 10),
        (2_500, ["--gradient_accumulation_steps", "2", "--per_device_train_batch_size", "25"], 20),
        (2_500, ["--num_train_epochs", "2"], 2),
        (2_500, ["--max_steps", "7"], 5),
        (2_500, ["--method", "full"], 2),
        (None, [], 5),
    ],
)
def test_textcnn_takes_a_thousand_steps_or_twenty_epochs_unless_told(rows, flags, epochs):
    arguments = parse(*(flags if "--method" in flags else ["--method", "textcnn", *flags]))
    arguments.settle("single_label_classification", num_rows=rows)
    assert arguments.training.num_train_epochs == epochs


def test_virtual_tokens_take_positions_of_the_text_unless_its_length_is_given():
    most = parse().data.max_length
    assert parse("--method", "prompt").data.max_length == most - 10
    assert parse("--method", "prompt", "--max_length", "300").data.max_length == 300


@pytest.mark.parametrize(
    ("problem_type", "message"),
    [
        ("multi_label_classification", "Expected no --label_smoothing_factor with several labels a text"),
        ("regression", "Expected no --label_smoothing_factor with a number to predict"),
    ],
)
def test_label_smoothing_is_for_single_classes(problem_type, message):
    arguments = parse()
    arguments.training.label_smoothing_factor = 0.1  # a recipe's default gives way
    arguments.settle(problem_type)
    assert arguments.training.label_smoothing_factor == 0.0
    with pytest.raises(FinetuneError, match=message):
        parse("--label_smoothing_factor", "0.1").settle(problem_type)


def test_output_dir_names_method_and_seed():
    assert parse("--method", "head", "--seed", "3").training.output_dir == "runs/x/head-seed3"
    assert parse("--output_dir", "a{b}-{method}").training.output_dir == "a{b}-full"


@pytest.mark.parametrize(("metric", "direction"), [("accuracy", True), ("eval_mcc", True), ("loss", False)])
def test_direction_of_the_metric_is_known(metric, direction):
    assert parse("--metric_for_best_model", metric).training.greater_is_better is direction


def test_threads_are_shared_among_the_processes_of_the_host(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert parse().run.num_threads == count_physical_cores()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert parse().run.num_threads == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--method", "fulll"],
            r"Expected a method of full, head, .*lora.*, or package.module:NAME of one of your own, but got 'fulll'",
        ),
        (["--report_to", "wand"], r"Expected --report_to none or an installed tracker .*, but got \['wand'\]"),
        (["--method", "lora", "--method", "head"], "Expected one --method, but got lora and head"),
        (["--method=lora,head"], "but got 'lora,head'"),
        (["--method", "full", "--peft_config", "x.yaml"], "--peft_config with --method peft or an adapter"),
        (
            ["--method", "lora", "--peft_config", "nowhere.yaml"],
            "after --peft_config, but 'nowhere.yaml' does not exist",
        ),
        (["--method", "lora", "--reinit_layers", "1"], "would freeze layers that were drawn at random"),
        (["--method", "last_layers", "--reinit_layers", "3"], "--reinit_layers with --method full, or last_layers"),
        (["--learning_rat", "1"], "found 'learning_rat'. Did you mean 'learning_rate'"),
        (["--max_length", "many"], "invalid int value: 'many'"),
        (["--label_smoothing_factor", "1"], r"in \[0, 1\), but got 1.0"),
        (["--label_smoothing_factor", "-0.1"], r"in \[0, 1\), but got -0.1"),
        (["--metric_for_best_model", "acuracy"], "one of accuracy, .* but got 'acuracy'"),
        (["--hub_token", "secret"], "Set HF_TOKEN"),
        (["--push_to_hub"], "--hub_model_id user/name"),
        (["--hub_model_id", "me/x"], "the latter alone"),
        (["--train_file", "nowhere.csv"], "'nowhere.csv' does not exist"),
        (["--dataset_name", "embedded", "--train_file", "x.csv"], "but got both"),
        (["--lora_r", "0"], "at least 1, but got 0"),
        (["--method", "lora", "--lora_alpha", "-1"], "at least 1, but got -1"),
        (["--method", "lora_plus", "--lora_plus_ratio", "0"], "above 0, but got 0"),
        (["--max_steps", "0"], "at least 1, but got 0"),
        (["--adam_epsilon", "inf"], "finite, but got inf"),
        (["--attention_dropout", "1.5"], r"in \[0, 1\)"),
        (["--fp16", "--bf16", "true"], "fp16 and bf16"),
        (["--fp16", "--use_cpu"], "no --fp16 on a CPU"),
        (["--resume_from_checkpoint", "x"], "resumes by itself"),
        (["--auto_find_batch_size"], "bounds the memory"),
        (["--num_train_epochs", "0"], "above 0, but got 0.0"),
        (["--learning_rate", "nan"], "at least 0 and finite, but got nan"),
        (["--seed", "-1"], "4294967295\\], but got -1"),
        (["--config", "nowhere.yaml"], "'nowhere.yaml' does not exist"),
    ],
)
def test_bad_settings_are_refused_in_one_line(argv, message):
    with pytest.raises(FinetuneError, match=message) as caught:
        parse(*argv)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lerning_rate: 1", "found 'lerning_rate' in .*Did you mean 'learning_rate'"),
        ("max_length: [1, 2]", "one value for 'max_length'"),
        ("max_length:", "one value for 'max_length' in .*, but found None"),
        ("lora:\n  lerning_rate: 1", "found 'lerning_rate' in .*Did you mean 'learning_rate'"),
        ("lora: 3", "lines below a method"),
        ("just words", "Expected 'name: value' lines"),
        ("a: [", "can't be read"),
        ("[" * 5_000, "can't be read"),
        ("max_length: &a [*a]", "the aliases in .* stand for more"),
        ("&a {seed: *a}", "the aliases in .* stand for more"),
        ("a0: &a0 [1]\n" + "".join(f"a{n + 1}: &a{n + 1} [{f'*a{n}, ' * 10}]\n" for n in range(9)), "at most 100,000"),
    ],
)
def test_bad_yaml_is_refused_in_one_line(tmp_path, content, message):
    config = tmp_path / "run.yaml"
    config.write_text(content)
    with pytest.raises(FinetuneError, match=message):
        parse("--config", str(config))


def test_settings_are_not_read_without_end():
    with pytest.raises(FinetuneError, match="can't be read: it has more than 10,000,000 characters"):
        parse("--config", "/dev/zero")


def test_help_documents_every_setting(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in (DataArguments, ModelArguments, MethodArguments, RunArguments, TrainingArguments):
        for field in dataclasses.fields(part):
            assert f"--{field.name}" in text
            assert field.metadata.get("help"), field.name


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--method", "lora", "--learning_rate", "5e-5"], "far below the 0.0005 .* is one for full fine-tuning"),
        (["--method", "bitfit", "--learning_rate", "2e-5"], "far below the 0.001 .* is one for full fine-tuning"),
        (["--method", "full", "--learning_rate", "1e-3"], "far above the 5e-05 .* is one for adapters: it may forget"),
        (
            ["--method", "textcnn", "--learning_rate", "0.05"],
            "far above the 0.001 .* usually takes: it may learn nothing",
        ),
        (["--method", "textcnn", "--learning_rate", "0"], "--learning_rate 0 moves no weight"),
    ],
)
def test_a_learning_rate_of_another_kind_of_method_is_warned_about(argv, message):
    with pytest.warns(UserWarning, match=message):
        parse(*argv)


@pytest.mark.parametrize(
    "argv",
    [[], ["--method", "lora"], ["--method", "lora", "--learning_rate", "1e-4"], ["--learning_rate", "1e-5"]],
)
def test_a_usual_learning_rate_is_not(argv, recwarn):
    parse(*argv)
    assert [str(warning.message) for warning in recwarn if "learning_rate" in str(warning.message)] == []


def test_what_a_method_uses_is_not_called_unused():
    for method in ("lora", "dora", "adalora", "peft", "vera"):
        arguments = parse()
        arguments.method.method = method
        assert not {"lora_r", "lora_alpha", "lora_dropout"} & arguments.unused()
    assert {"lora_r", "lora_plus_ratio", "num_layers", "num_cycles"} <= parse().unused()
    assert "num_layers" not in parse("--method", "last_layers").unused()
    assert "num_cycles" not in parse("--lr_schedule", "triangular").unused()
    assert {"layer_decay", "lora_r"} <= parse("--method", "tfidf").unused()


def test_the_record_holds_what_the_peft_config_says(tmp_path):
    path = tmp_path / "peft.yaml"
    path.write_text("peft_type: IA3\ntarget_modules: [query]\n")
    written = parse("--method", "peft", "--peft_config", str(path)).to_dict()["method"]["peft_config"]
    assert written == {"peft_type": "IA3", "target_modules": ["query"]}


def test_settings_are_written_without_tokens():
    assert not [name for name in parse().to_dict()["training"] if name.endswith("_token")]
