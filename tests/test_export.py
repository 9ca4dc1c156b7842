"""Exports give the logits of what they were made from, run without torch, and exist only if they are good."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_reviews, needs_exporters, write_csv
from scipy.special import softmax
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

import finetune
from finetune.cli import main as finetune_command
from finetune.data.cutting import TextConfig, group_equal
from finetune.data.embedded import find_embedded_model
from finetune.data.tokens import encode_texts
from finetune.errors import FinetuneError
from finetune.export import onnx as export_onnx
from finetune.export.onnx import read_validation
from finetune.inference.exported import ExportedPredictor, _TextTokenizer, find_graph, load_exported, pool_windows
from finetune.inference.predict import load_predictor
from finetune.models.inputs import fit_tokenizer
from finetune.models.logits import pool_windows as pool_windows_in_torch
from finetune.tasks import MULTI_LABEL, SINGLE_LABEL

# Of npm's @huggingface/transformers: dist/transformers.node.mjs.
TRANSFORMERS_JS = Path(os.environ.get("TRANSFORMERS_JS", "none"))
TEXTS = [text for text, _ in make_reviews(40, offset=700)] + ["", "good", "never seen words", "film bad " * 30]


@pytest.mark.parametrize("name", ["full", "lora", "textcnn"])
def test_logits_are_those_of_the_original(runs, exports, name):
    expected, num_tokens = load_predictor(runs / name, torch.float32).compute_logits(TEXTS)
    exported = load_exported(exports / name, 1)
    found, found_tokens = exported.compute_logits(TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert np.ptp(expected, axis=0).max() > 4e-5  # the texts differ by more than that
    np.testing.assert_array_equal(found_tokens, num_tokens if name != "textcnn" else np.maximum(num_tokens, 1))
    one_by_one = np.concatenate([exported.compute_logits([text])[0] for text in TEXTS])
    np.testing.assert_allclose(found, one_by_one, atol=1e-5)
    assert exported.predict(TEXTS[:5]) == load_predictor(exports / name).predict(TEXTS[:5])
    assert exported.compute_logits([])[0].shape == (0, 2)


@pytest.mark.parametrize("name", ["full", "lora", "textcnn", "int8"])
def test_plain_onnxruntime_gives_the_same_alone_and_padded(exports, name):
    import onnxruntime

    folder = exports / name
    tokenizer = AutoTokenizer.from_pretrained(folder)
    session = onnxruntime.InferenceSession(find_graph(folder))

    def compute(texts):
        return session.run(["logits"], dict(tokenizer(texts, padding=True, truncation=True, return_tensors="np")))[0]

    texts = [text for text in TEXTS if text] + ["film bad " * 90]
    together = compute(texts)
    np.testing.assert_allclose(together, np.concatenate([compute([text]) for text in texts]), atol=1e-5)
    np.testing.assert_allclose(together, load_exported(folder, 1).compute_logits(texts)[0], atol=1e-5)
    assert np.ptp(together, axis=0).max() > 2e-5
    saved = json.loads((folder / "tokenizer.json").read_text())
    assert saved["padding"] is saved["truncation"] is None


@pytest.mark.skipif(not (shutil.which("node") and TRANSFORMERS_JS.is_file()), reason="TRANSFORMERS_JS names no package")
@pytest.mark.parametrize("name", ["full", "lora", "textcnn", "int8"])
def test_transformers_js_takes_the_folder_as_it_is(exports, name):
    texts = [text for text in TEXTS if text] + ["film bad " * 90]
    command = ["node", str(Path(__file__).with_name("pipeline.mjs")), str(TRANSFORMERS_JS), str(exports / name)]
    lines = "\n".join(map(json.dumps, texts))
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    exported = load_exported(exports / name, 1)
    expected = softmax(exported.compute_logits(texts)[0], axis=1)
    for found in json.loads(done.stdout).values():
        scores = [{one["label"]: one["score"] for one in every} for every in found]
        shown = [[one[label] for label in exported.task.label_names] for one in scores]
        np.testing.assert_allclose(shown, expected, atol=1e-4)


@pytest.mark.parametrize("int8", [False, True])
def test_an_export_of_the_first_layout_still_loads(exports, tmp_path, int8):
    import onnx

    folder = shutil.copytree(exports / ("int8" if int8 else "full"), tmp_path / "old")
    graph = find_graph(folder)
    model = onnx.load(str(graph))
    onnx.save(model, str(folder / "model.onnx"), save_as_external_data=True, location="model.onnx.data")
    shutil.rmtree(folder / "onnx")
    manifest = json.loads((folder / "export.json").read_text())
    manifest.pop("num_scale_texts", None)
    (folder / "export.json").write_text(json.dumps(manifest))
    old = load_exported(folder, 1)
    assert old.max_tokens == (1 if int8 else 512)
    expected = load_exported(exports / ("int8" if int8 else "full"), 1).compute_logits(TEXTS[:3])[0]
    np.testing.assert_allclose(old.compute_logits(TEXTS[:3])[0], expected, atol=1e-6)
    (folder / "model.onnx").unlink()
    with pytest.raises(FinetuneError, match=r"there is neither\. Export the model again"):
        load_exported(folder, 1)


ARCHITECTURES = {
    "distilbert": {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2},
    "modernbert": {"local_attention": 4, "global_attn_every_n_layers": 2, "num_hidden_layers": 3, "cls_token_id": 2,
                   "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8},
    "electra": {"embedding_size": 16},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 2, "eos_token_id": 3},
    "llama": {"num_key_value_heads": 1},
    "bart": {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "eos_token_id": 3},
}  # fmt: skip


@needs_exporters
@pytest.mark.slow
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_padding_changes_no_architecture_s_answers(tiny_bert, tmp_path, model_type):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model_type,
        **{**sizes, **ARCHITECTURES[model_type]},
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        pad_token_id=0,
        initializer_range=0.5,
        id2label={0: "neg", 1: "pos"},
        label2id={"neg": 0, "pos": 1},
    )
    model = AutoModelForSequenceClassification.from_config(config)
    fit_tokenizer(tokenizer, model, model_type)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    texts = write_csv(tmp_path / "texts.csv", make_reviews(24))
    finetune_command(["export", str(tmp_path / "model"), str(tmp_path / "out"), "--format", "onnx", "--num_threads",
                      "1", "--validation_file", texts])  # fmt: skip
    measured = json.loads((tmp_path / "out/export.json").read_text())["measured"]
    assert measured["max_logit_difference"] < 1e-3 * measured["logit_unit"]
    assert measured["max_padded_difference"] < 1e-4 * measured["logit_unit"]


def test_it_loads_as_the_same_kind_of_object_as_a_run(exports):
    classifier = finetune.load_classifier(exports / "full")
    assert classifier.predict(["a good film"])[0].label in classifier.label_names == ["neg", "pos"]


def test_eight_bits_are_smaller_and_about_the_same(runs, exports):
    expected = load_predictor(runs / "full", torch.float32).compute_logits(TEXTS)[0]
    found = load_exported(exports / "int8", 1).compute_logits(TEXTS)[0]
    assert 0 < np.abs(found - expected).max() < 0.01
    exported = load_exported(exports / "int8", 1)  # what else is there changes nothing
    np.testing.assert_array_equal(found, np.concatenate([exported.compute_logits([text])[0] for text in TEXTS]))
    import onnx

    graph = onnx.load(str(exports / "int8/onnx/model_quantized.onnx"), load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("MatMulIntegerToFloat") >= 12  # six of each of the two layers
    assert not {"DynamicQuantizeLinear", "MatMulInteger"} & set(kinds)
    whole = onnx.load(str(exports / "full/onnx/model.onnx"), load_external_data=False).graph
    assert not {"MatMulIntegerToFloat", "QuantizeLinear", "Dropout", "BFloat16"} & {one.op_type for one in whole.node}
    for one in (graph, whole):
        assert [put.name for put in one.input] == ["input_ids", "token_type_ids", "attention_mask"]


@pytest.mark.parametrize("name", ["full", "textcnn", "int8"])
def test_texts_side_by_side_on_several_threads_give_the_same(exports, name):
    expected, expected_tokens = load_exported(exports / name, 1).compute_logits(TEXTS)
    exported, counts = load_exported(exports / name, 3), []
    found, num_tokens = exported.compute_logits(TEXTS, on_batch=counts.append)
    assert "single_threaded_session" in vars(exported)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(num_tokens, expected_tokens)
    assert sum(counts) == len(TEXTS)
    assert max(counts) > 1
    alone = load_exported(exports / name, 3)
    np.testing.assert_allclose(alone.compute_logits(TEXTS[:1])[0], expected[:1], atol=1e-6)
    assert "single_threaded_session" not in vars(alone)  # all threads on one text
    exported.single_threaded_session = None
    with pytest.raises(AttributeError):  # what goes wrong on a thread is heard of
        exported.compute_logits(TEXTS)


def test_the_folder_has_all_that_its_use_needs_and_says_what_was_measured(runs, exports):
    for name, graph in (("full", "model.onnx"), ("int8", "model_quantized.onnx")):
        folder = exports / name
        assert {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} == {
            f"onnx/{graph}", f"onnx/{graph}_data", "export.json", "config.json", "finetune_config.json",
            "tokenizer.json", "tokenizer_config.json", "checksums.json", "decisions.json", "validation.safetensors",
        }  # fmt: skip
    record = json.loads((exports / "full/export.json").read_text())
    assert record["export_format"] == "onnx"  # it is transformers' manifest too
    assert record["int8"] is False
    assert record["measured"]["max_padded_difference"] < 1e-6
    measured = record["measured"]
    assert measured["num_texts"] == 20
    assert measured["agreement"] == 1
    assert measured["max_logit_difference"] < 1e-4
    change, low, high = measured["score_difference"]
    assert low < change == 0 < high
    assert measured["score"]["original"][0] == measured["score"]["exported"][0]
    metrics = json.loads((runs / "full/run.json").read_text())["metrics"]["validation"]
    assert measured["score"]["original"][0] == pytest.approx(metrics["accuracy"])
    for name in ("latency_p50_seconds", "latency_p95_seconds", "texts_per_second", "bytes"):
        assert min(measured[name].values()) > 0
    assert measured["latency_p50_seconds"]["exported"] <= measured["latency_p95_seconds"]["exported"]
    assert str(runs) not in json.dumps(record)


def test_predict_imports_neither_torch_nor_transformers(exports, tmp_path):
    source, target = write_csv(tmp_path / "in.csv", make_reviews(20)), str(tmp_path / "out.csv")
    program = (
        "import sys; from finetune.cli import main\n"
        f"main(['predict', {str(exports / 'int8')!r}, 'a good film', 'dull', '--num_threads', '1', "
        "'--no_accelerated'])\n"
        f"main(['predict', {str(exports / 'int8')!r}, '--input_file', {source!r}, '--output_file', {target!r}, "
        "'--num_threads', '1'])\n"
        "heavy = {'torch', 'transformers', 'datasets', 'sklearn', 'peft', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "--no_accelerated" in line]
    assert line.startswith("warning: ")
    expected = load_exported(exports / "int8", 1).predict(["a good film", "dull"])
    shown = [f"{one.labels[0]}\t{one.probabilities[0]:.4f}" for one in expected]
    assert done.stdout.splitlines()[:2] == [f"{shown[0]}\ta good film", f"{shown[1]}\tdull"]
    with Path(target).open() as file:
        labelled = [row["predicted_label"] for row in csv.DictReader(file)]
    predictions = load_exported(exports / "int8", 1).predict([text for text, _ in make_reviews(20)])
    assert labelled == [one.labels[0] for one in predictions]


def test_evaluate_and_files_take_an_export(runs, exports, reviews, tmp_path, capsys):
    for path in (runs / "textcnn", exports / "textcnn"):
        finetune_command(["evaluate", str(path), "--test_file", reviews["--test_file"], "--num_threads", "1"])
    shown = capsys.readouterr().out
    half = len(shown) // 2
    assert shown[:half].splitlines()[0] == shown[half:].splitlines()[0]  # accuracy
    target = tmp_path / "out.csv"
    finetune_command(["predict", str(exports / "textcnn"), "--input_file", reviews["--test_file"],
                      "--output_file", str(target), "--num_threads", "1"])  # fmt: skip
    assert len(target.read_text().splitlines()) == 31


@needs_exporters
def test_several_labels_in_windows_and_numbers_of_pairs(classify, tiny_bert, tmp_path):
    texts = [text for text, _ in make_reviews(90)]
    several = [[text * 2, "pos;any" if number % 2 else "any"] for number, text in enumerate(texts)]
    paired = [[text, texts[-number], f"{number % 7 / 2 + 0.1:.2f}"] for number, text in enumerate(texts)]
    flags = ["--model_name_or_path", tiny_bert, "--num_train_epochs", "1", "--num_threads", "1", "--no_floor"]
    for name, header, rows, extra in (
        ("several", ["text", "label"], several, ["--label_delimiter", ";", "--truncation", "window"]),
        ("number", ["sentence1", "sentence2", "label"], paired, []),
    ):
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
        run, folder = tmp_path / name, tmp_path / f"{name}-onnx"
        classify.main(["--train_file", str(tmp_path / f"{name}.csv"), "--output_dir", str(run), "--max_length", "12",
                       *flags, *extra])  # fmt: skip
        finetune_command(["export", str(run), str(folder), "--format", "onnx", "--num_threads", "1"])
        original, exported = load_predictor(run, torch.float32), load_exported(folder, 1)
        pairs = texts[::-1] if name == "number" else None
        found = exported.compute_logits(texts, pairs)[0]
        np.testing.assert_allclose(found, original.compute_logits(texts, pairs)[0], atol=1e-5)
        assert exported.task == original.task
        assert np.all(exported.rules.thresholds == original.rules.thresholds)
        for one, other in zip(exported.predict(texts, pairs), original.predict(texts, pairs), strict=True):
            assert one.labels == other.labels
        measured = json.loads((folder / "export.json").read_text())["measured"]
        assert measured["agreement"] == 1
        assert (measured["score"]["original"][0] < 0) == (name == "number")


@needs_exporters
def test_too_much_lost_leaves_nothing(runs, tmp_path, monkeypatch, capsys):
    class Wrong(ExportedPredictor):
        def compute_logits(self, *arguments, **named):
            logits, lengths = super().compute_logits(*arguments, **named)
            return np.stack([np.full(len(logits), 9.0), np.zeros(len(logits))], axis=1).astype(np.float32), lengths

    monkeypatch.setattr(export_onnx, "ExportedPredictor", Wrong)
    labels = read_validation(runs / "textcnn", load_predictor(runs / "textcnn").task).labels
    assert (labels == 1).any()  # which it never says
    flags = ["export", str(runs / "textcnn"), str(tmp_path / "out"), "--format", "onnx", "--num_threads", "1"]
    for extra, message in (([], "please report this"), (["--int8"], "lose at most 0.5 points")):
        with pytest.raises(SystemExit) as caught:
            finetune_command([*flags, *extra])
        assert caught.value.code == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert list(tmp_path.iterdir()) == []
    finetune_command([*flags, "--int8", "--tolerance", "100"])
    assert (tmp_path / "out/export.json").is_file()


def test_an_older_transformers_is_said_in_one_line(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers.exporters", None)
    with pytest.raises(SystemExit) as caught:
        finetune_command(["export", str(runs / "full"), str(tmp_path / "out"), "--format", "onnx"])
    assert caught.value.code == 2
    assert re.fullmatch(r"error: Expected transformers 5\.23 or newer .*\n", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


@needs_exporters
@pytest.mark.parametrize(
    ("source", "extra", "message"),
    [
        ("tfidf", [], "is a TfidfClassifier"),
        ("full/model", [], "--validation_file"),
        ("full", ["--tolerance", "-1"], "--tolerance of at least 0"),
        ("nowhere", [], "does not exist"),
    ],
)
def test_what_can_t_be_exported_is_said_in_one_line(runs, tmp_path, capsys, source, extra, message):
    with pytest.raises(SystemExit) as caught:
        finetune_command(["export", str(runs / source), str(tmp_path / "out"), "--format", "onnx", *extra])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("truncation", ["head", "tail", "head+tail", "window"])
def test_tokens_are_those_of_transformers(tiny_bert, truncation):
    config = TextConfig(12, truncation, window_stride=3)
    for folder in (tiny_bert, find_embedded_model()):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ours = _TextTokenizer(Path(folder))
        columns = encode_texts(TEXTS, tokenizer, config)
        rows, types, counts = ours.encode(TEXTS, None, config)
        windows = columns["input_ids"] if truncation == "window" else [[row] for row in columns["input_ids"]]
        assert rows == [row for several in windows for row in several]
        assert counts == [len(several) for several in windows]
        assert types == [[0] * len(row) for row in rows]
    pairs = TEXTS[::-1]
    columns = encode_texts(TEXTS, tokenizer, config, pairs)
    rows, types, counts = ours.encode(TEXTS, pairs, config)
    assert rows == columns["input_ids"]
    assert types == columns["token_type_ids"]


@pytest.mark.parametrize("how", ["mean", "max", "vote"])
@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL])
def test_windows_are_pooled_as_in_torch(how, problem_type):
    logits = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    counts = [1, 4, 2, 2]
    expected = pool_windows_in_torch(torch.from_numpy(logits), torch.tensor(counts), how, problem_type)
    np.testing.assert_allclose(pool_windows(logits, counts, how, problem_type), expected, atol=1e-6)


def test_groups_hold_one_length_and_every_row_once():
    lengths = np.random.default_rng(0).integers(1, 9, 50).tolist()
    groups = group_equal(lengths, 16)
    assert sorted(at for group in groups for at in group) == list(range(50))
    for group in groups:
        assert len({lengths[at] for at in group}) == 1
        assert len(group) == 1 or len(group) * lengths[group[0]] <= 16
