"""Embeddings: vectors pooled as the encoder was made for, kept for the next fit, and a linear model over them."""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_frame, make_reviews, needs_exporters, train_on_frames, write_tiny_bert
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from transformers import AutoModel, AutoTokenizer, BartConfig, BartModel

import finetune
from finetune.cli import main as finetune_command
from finetune.comparison.compare import TRAIN, Plan
from finetune.data.labels import balanced_class_weights
from finetune.errors import FinetuneError
from finetune.export.onnx import export
from finetune.families.embeddings import fit
from finetune.families.embeddings.linear import INVERSE_PENALTIES, OF_SINGLE_ROWS, choose_inverse_penalty, fit_linear
from finetune.families.embeddings.pooled_encoder import combine_pair, pool
from finetune.families.embeddings.vectors import find_pooling, load_pooled_encoder
from finetune.hub.stage import stage
from finetune.inference.exported import find_graph, load_exported
from finetune.inference.predict import load_predictor
from finetune.inference.reload import compute_logits_elsewhere
from finetune.settings.parts import ModelArguments
from finetune.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Task

TEXTS = [text for text, _ in make_reviews(20, offset=700)] + ["", "good", "never seen words", "film bad " * 30]
PAIRS = [("good film", "a film that was very dull"), ("the plot was bad and boring", "bad"), ("", "good")]
QUICK = {"method": "embeddings", "max_length": 24, "num_threads": 1, "floor": "false", "bf16": "false"}


train = functools.partial(train_on_frames, QUICK)


@pytest.fixture(scope="module")
def trained(tiny_bert, tmp_path_factory):
    """A run, to be read only."""
    return train(tmp_path_factory.mktemp("embeddings") / "run", tiny_bert)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_pooling(folder, **content):
    (Path(folder) / "1_Pooling").mkdir()
    (Path(folder) / "1_Pooling/config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("mean", [2, 3]),
        ("cls", [1, 6]),
        ("max", [3, 6]),
        ("mean_sqrt_len_tokens", [6 / 3**0.5, 9 / 3**0.5]),
        ("weightedmean", [(1 + 2 * 3 + 3 * 2) / 6, (6 + 2 * 3 + 0) / 6]),
        ("lasttoken", [2, 0]),
    ],
)
@pytest.mark.parametrize("side", ["right", "left", "none"])
def test_pooling_by_hand(how, expected, side):
    tokens, padding = torch.tensor([[1.0, 6], [3, 3], [2, 0]]), torch.full((2, 2), 99.0)
    parts = {"right": ([tokens, padding], [1, 1, 1, 0, 0]), "left": ([padding, tokens], [0, 0, 1, 1, 1])}
    hidden, mask = parts.get(side, ([tokens], None))
    mask = None if mask is None else torch.tensor([mask])
    torch.testing.assert_close(pool(torch.cat(hidden)[None], mask, how), torch.tensor([expected], dtype=torch.float32))


def test_a_pair_is_combined_by_hand():
    found = combine_pair(torch.tensor([[1.0, -2]]), torch.tensor([[3.0, 2]]))
    assert found.tolist() == [[1, -2, 3, 2, 2, 4, 3, -4]]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_lasttoken": True}, "lasttoken"),
        ({"pooling_mode": "max"}, "max"),
        (None, None),
    ],
)
def test_an_encoder_says_how_it_is_pooled(tmp_path, content, expected):
    model = write_tiny_bert(tmp_path / "bert")
    if content is not None:
        write_pooling(model, **content)
    assert find_pooling(ModelArguments(model_name_or_path=model)) == expected


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "cls and mean"),
        ({"pooling_mode": "attention"}, "attention"),
        ({}, "none"),
    ],
)
def test_another_pooling_is_refused(tmp_path, content, found):
    model = write_tiny_bert(tmp_path / "bert")
    write_pooling(model, **content)
    with pytest.raises(FinetuneError, match=f"to name one of mean, cls.*but it has {found}. Take"):
        train(tmp_path / "run", model)


def test_the_embedded_encoder_is_pooled_by_the_mean():
    assert find_pooling(ModelArguments()) == "mean"


def test_a_module_that_is_left_out_is_said(tmp_path, capsys):
    model = write_tiny_bert(tmp_path / "bert")
    write_pooling(model, pooling_mode_mean_tokens=True)
    kinds = [{"type": f"sentence_transformers.models.{name}"} for name in ("Transformer", "Pooling", "Dense")]
    (Path(model) / "modules.json").write_text(json.dumps(kinds))
    train(tmp_path / "run", model)
    assert "the encoder and its pooling are used, and not its Dense" in capsys.readouterr().err


def test_the_logits_are_those_of_scikit_learn_on_plain_transformers(trained, tiny_bert):
    texts = make_frame()["text"].tolist() + TEXTS
    tokenizer, encoder = AutoTokenizer.from_pretrained(tiny_bert), AutoModel.from_pretrained(tiny_bert).eval()
    vectors = []
    with torch.inference_mode():
        for text in texts:
            hidden = encoder(**tokenizer(text, truncation=True, max_length=24, return_tensors="pt")).last_hidden_state
            vectors.append(torch.nn.functional.normalize(hidden[0].mean(dim=0), dim=0).numpy())
    vectors, labels = np.stack(vectors), (make_frame()["label"] == "pos").to_numpy()
    mean = vectors[:60].mean(axis=0)
    scale = np.sqrt(((vectors[:60] - mean) ** 2).sum(axis=1).mean())
    rows = (vectors - mean) / scale
    inverse = choose_inverse_penalty(rows[:60].astype(np.float32), labels.astype(int))
    regression = LogisticRegression(C=inverse, max_iter=1_000, tol=1e-8).fit(rows[:60], labels)
    found = load_predictor(trained.directory, torch.float32).compute_logits(TEXTS)[0]
    np.testing.assert_allclose(found[:, 1] - found[:, 0], regression.decision_function(rows[60:]), atol=2e-3)


def test_the_record_says_what_was_fitted(trained):
    record = trained.record
    assert record.model.architecture == "BertModel + LogisticRegression"
    assert record.model.trainable_parameters == 2 * 16 + 2
    assert (record.costs.train_steps, record.reload.max_difference) == (None, 0)
    assert record.data.splits.train.mean_tokens > 5
    assert record.pretrained is not None


def test_the_encoder_stays_as_it_was(trained, tiny_bert):
    saved, before = (
        load_file(trained.directory / "model/model.safetensors"),
        load_file(f"{tiny_bert}/model.safetensors"),
    )
    for name, tensor in before.items():
        if not name.startswith("pooler."):
            assert torch.equal(saved.pop(f"encoder.{name}"), tensor), name
    assert sorted(saved) == ["classifier.bias", "classifier.weight"]


@pytest.mark.parametrize("accelerated", [True, False])
def test_a_text_is_answered_alone_as_in_company_and_in_a_fresh_process(trained, accelerated):
    predictor = load_predictor(trained.directory, torch.float32, accelerated=accelerated)
    together = predictor.compute_logits(TEXTS)[0]
    alone = np.concatenate([predictor.compute_logits([text])[0] for text in TEXTS])
    np.testing.assert_allclose(alone, together, atol=1e-5)
    np.testing.assert_allclose(compute_logits_elsewhere(trained.directory / "model", TEXTS, None), together, atol=1e-5)
    assert np.ptp(together, axis=0).max() > 1e-2


def test_a_second_fit_reads_the_vectors_and_writes_the_same_bytes(tmp_path, tiny_bert, cache, monkeypatch):
    first = train(tmp_path / "a", tiny_bert)
    computed = []
    compute = fit.compute_vectors
    monkeypatch.setattr(fit, "compute_vectors", lambda *given: computed.append(1) or compute(*given))
    second = train(tmp_path / "b", tiny_bert)
    assert computed == []
    weights = [(run.directory / "model/model.safetensors").read_bytes() for run in (first, second)]
    assert weights[0] == weights[1]
    kept = next((tmp_path / "cache/finetune").glob("vectors-*"))
    wall, cpu = load_file(kept)["seconds"]
    assert second.record.costs.train_seconds > wall > 0
    assert second.record.costs.train_cpu_seconds > cpu > 0
    assert second.record.costs.tokenize_seconds > 0
    train(tmp_path / "c", tiny_bert, max_length=8)
    assert computed == [1]
    train(tmp_path / "d", write_tiny_bert(tmp_path / "other", seed=1))
    assert computed == [1, 1]
    for file in (tmp_path / "cache/finetune").glob("vectors-*"):
        file.write_bytes(file.read_bytes()[:-40])
    again = train(tmp_path / "e", tiny_bert)
    assert computed == [1, 1, 1]
    assert (again.directory / "model/model.safetensors").read_bytes() == weights[0]


def as_pairs(table):
    return table.assign(other=table["text"].str.split().str[::-1].str.join(" "))


def as_numbers(table):
    return table.assign(label=table["text"].str.split().str.len() + 0.5)


def as_several(table):
    is_long = table["text"].str.len() > 40
    return table.assign(label=table["label"] + np.where(is_long, ";long", ""))


@pytest.mark.parametrize(
    ("change", "settings"),
    [(as_pairs, {"text_pair_column": "other"}), (as_numbers, {}), (as_several, {"label_delimiter": ";"})],
)
def test_pairs_numbers_and_several_labels(tmp_path, tiny_bert, change, settings):
    run = train(tmp_path / "run", tiny_bert, change, **settings)
    test = run.metrics["test"]
    if change is as_numbers:
        assert run.record.model.architecture == "BertModel + Ridge"
        assert test["r2"] > 0.5
    elif change is as_several:
        assert test["micro_f1"] > 0.5
        assert run.record.thresholds is not None
    else:
        assert run.record.model.trainable_parameters == 2 * 4 * 16 + 2
    pairs = TEXTS[::-1] if change is as_pairs else None
    predictor = load_predictor(run.directory, torch.float32)
    together = predictor.compute_logits(TEXTS, pairs)[0]
    for number, text in enumerate(TEXTS[:5]):
        alone = predictor.compute_logits([text], None if pairs is None else [pairs[number]])[0]
        np.testing.assert_allclose(alone[0], together[number], atol=1e-4)
    np.testing.assert_allclose(
        compute_logits_elsewhere(run.directory / "model", TEXTS, pairs), together, rtol=1e-4, atol=1e-4
    )


@pytest.fixture(scope="module")
def of_pairs(tiny_bert, tmp_path_factory):
    """A run on pairs, to be read only."""
    return train(tmp_path_factory.mktemp("pairs") / "run", tiny_bert, as_pairs, text_pair_column="other")


def test_a_model_of_pairs_takes_pairs(of_pairs, tmp_path):
    with pytest.raises(FinetuneError, match="Expected pairs of texts"):
        of_pairs.predict(["a good film"])
    stage(of_pairs.directory, tmp_path / "model", "me/pairs", None)
    assert "finetune.load_classifier" in (tmp_path / "model/README.md").read_text()


def test_a_model_of_pairs_is_called_with_both_texts(of_pairs, trained):
    predictor = load_predictor(of_pairs.directory, torch.float32, accelerated=False)
    texts = [list(column) for column in zip(*PAIRS, strict=True)]
    first, second = (predictor.tokenizer(column, padding=True, return_tensors="pt") for column in texts)
    given = {name: tensor for name, tensor in first.items() if name != "token_type_ids"}
    pair = {f"pair_{name}": tensor for name, tensor in second.items() if name != "token_type_ids"}
    expected = predictor.compute_logits(*texts)[0]
    with torch.inference_mode():
        np.testing.assert_allclose(predictor.model(**given, **pair).logits, expected, atol=1e-5)
        with pytest.raises(ValueError, match="Expected pairs: pass pair_input_ids"):
            predictor.model(**given)
        with pytest.raises(ValueError, match="Expected single texts: leave out pair_input_ids"):
            load_predictor(trained.directory, torch.float32).model(**given, **pair)


@needs_exporters
@pytest.mark.slow
def test_a_model_of_pairs_is_exported(of_pairs, tmp_path):
    export(of_pairs.directory, tmp_path / "fp32")
    export(of_pairs.directory, tmp_path / "int8", int8=True, tolerance=100)
    expected, num_tokens = load_predictor(of_pairs.directory, torch.float32).compute_logits(TEXTS, TEXTS[::-1])
    assert np.ptp(expected, axis=0).max() > 1e-2
    for num_threads in (1, 3):
        exported, counts = load_exported(tmp_path / "fp32", num_threads), []
        found, found_tokens = exported.compute_logits(TEXTS, TEXTS[::-1], counts.append)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_array_equal(found_tokens, num_tokens)
        assert sum(counts) == len(TEXTS)
    alone = load_exported(tmp_path / "fp32", 1).compute_logits(TEXTS[:1], TEXTS[-1:])[0]
    np.testing.assert_allclose(alone, expected[:1], atol=1e-5)
    small = load_exported(tmp_path / "int8", 1).compute_logits(TEXTS, TEXTS[::-1])[0]
    assert 0 < np.abs(small - expected).max() < 0.2
    with pytest.raises(FinetuneError, match="Expected pairs of texts"):
        load_exported(tmp_path / "fp32", 1).compute_logits(TEXTS)


@needs_exporters
def test_it_is_exported(trained, tmp_path):
    export(trained.directory, tmp_path / "fp32")
    export(trained.directory, tmp_path / "int8", int8=True, tolerance=100)
    expected = load_predictor(trained.directory, torch.float32).compute_logits(TEXTS)[0]
    found = load_exported(tmp_path / "fp32", 1).compute_logits(TEXTS)[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    small = load_exported(tmp_path / "int8", 1).compute_logits(TEXTS)[0]
    assert 0 < np.abs(small - expected).max() < 0.2
    sizes = [(find_graph(tmp_path / name).parent / data).stat().st_size
             for name, data in (("int8", "model_quantized.onnx_data"), ("fp32", "model.onnx_data"))]  # fmt: skip
    assert sizes[0] < sizes[1]


def test_what_goes_to_the_hub_reloads_and_its_snippet_runs_by_transformers_alone(trained, tmp_path):
    staged = stage(trained.directory, tmp_path / "model", "me/embeddings", None)
    card = (tmp_path / "model/README.md").read_text()
    assert "Method `embeddings`: a linear model on the vectors of the frozen encoder" in card
    np.testing.assert_allclose(
        compute_logits_elsewhere(tmp_path / "model", staged.probes.texts, None), staged.logits, atol=1e-5
    )
    snippet = re.search(r"```python\n(.*?)\n```", card, re.DOTALL)[1]
    assert "trust_remote_code=True" in snippet
    code = "import sys; sys.modules['finetune'] = None\n" + snippet.replace("me/embeddings", str(staged.folder))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    predicted = finetune.load_classifier(trained.directory, calibrate=False).predict(["A text to classify."])[0]
    assert f"'label': '{predicted.label}'" in done.stdout
    assert float(re.search(r"'score': ([\d.]+)", done.stdout)[1]) == pytest.approx(predicted.probability, abs=5e-3)


def test_it_labels_a_file(trained, tmp_path):
    make_frame(30, 200).to_csv(tmp_path / "in.csv", index=False)
    files = ["--input_file", str(tmp_path / "in.csv"), "--output_file", str(tmp_path / "out.csv")]
    finetune_command(["predict", str(trained.directory), *files])
    written = pd.read_csv(tmp_path / "out.csv")
    expected = [one.label for one in trained.predict(written["text"].tolist())]
    assert written["predicted_label"].tolist() == expected


def test_without_chance_one_seed_is_enough(tmp_path):
    plan = Plan(TRAIN, ["embeddings", "tfidf"], [0, 1], tmp_path)
    assert [(run.method, run.seed) for run in plan.runs] == [("embeddings", 0), ("tfidf", 0)]


def test_what_it_has_no_use_for_is_said(tmp_path, tiny_bert, capsys):
    train(tmp_path / "run", tiny_bert, learning_rate=1e-3, lora_r=4)
    assert "--method embeddings has no use for: learning_rate, lora_r\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"truncation": "window"}, "Expected --truncation head, tail or head.tail with --method embeddings"),
        ({"max_length": 100}, "Expected --max_length of at most 32"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, tiny_bert, settings, match):
    with pytest.raises(FinetuneError, match=match) as caught:
        train(tmp_path / "run", tiny_bert, **settings)
    assert "\n" not in str(caught.value)


def test_it_does_not_merge(trained, tmp_path, capsys):
    with pytest.raises(SystemExit):
        finetune_command(["merge", str(trained.directory), str(tmp_path / "merged")])
    assert "Expected an adapter in" in capsys.readouterr().err


def test_an_encoder_with_a_decoder_is_refused(tmp_path, tiny_bert):
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    BartModel(BartConfig(vocab_size=40, **sizes, **heads)).save_pretrained(tmp_path / "bart")
    model, task = ModelArguments(model_name_or_path=str(tmp_path / "bart")), Task(SINGLE_LABEL, ["a", "b"])
    with pytest.raises(FinetuneError, match=r"Expected an encoder, but .* is of an encoder and a decoder \(bart\)"):
        load_pooled_encoder(model, AutoTokenizer.from_pretrained(tiny_bert), task, False)


def test_a_head_on_an_encoder_that_was_made_for_another_pooling_is_warned_of(tmp_path, capsys):
    model = write_tiny_bert(tmp_path / "bert")
    write_pooling(model, pooling_mode_mean_tokens=True)
    train(tmp_path / "run", model, method="head", num_train_epochs=1)
    assert "--method embeddings does, and needs a single pass" in capsys.readouterr().err


def make_clusters(rows, width=20, seed=0, noise=1.0):
    generator = np.random.default_rng(seed)
    labels = np.arange(rows) % 3
    return (np.eye(3, width)[labels] + noise * generator.normal(size=(rows, width))).astype(np.float32), labels


def test_the_penalty_is_chosen_by_cross_validation():
    easy, hard = (choose_inverse_penalty(*make_clusters(300, noise=noise)) for noise in (0.05, 2.0))
    assert easy > hard
    assert {easy, hard} <= set(INVERSE_PENALTIES)
    rows, labels = make_clusters(31)
    labels[-1] = 3
    assert choose_inverse_penalty(rows, labels) == OF_SINGLE_ROWS


def test_vectors_of_any_scale_and_centre_give_the_same_answers():
    rows, labels = make_clusters(300)
    plain, moved = fit_linear(rows, labels, 3, SINGLE_LABEL), fit_linear(50 + 9 * rows, labels, 3, SINGLE_LABEL)
    first = rows @ plain.weight.T + plain.bias
    np.testing.assert_allclose((50 + 9 * rows) @ moved.weight.T + moved.bias, first, atol=2e-2)
    assert (first.argmax(axis=1) == labels).mean() > 0.5


def test_vectors_that_are_all_the_same_give_the_shares_of_the_classes():
    linear = fit_linear(np.ones((40, 5), dtype=np.float32), np.arange(40) % 4 // 3, 2, SINGLE_LABEL)
    logits = np.ones(5) @ linear.weight.T + linear.bias
    assert 1 / (1 + np.exp(logits[0] - logits[1])) == pytest.approx(0.25, abs=0.01)


def test_a_label_that_all_or_no_rows_have():
    rows, labels = make_clusters(60)
    several = np.stack([labels == 0, np.ones(60), np.zeros(60)], axis=1).astype(int)
    linear = fit_linear(rows, several, 3, MULTI_LABEL)
    assert linear.penalties[1:] == [None, None]
    assert (rows @ linear.weight.T + linear.bias)[0, 1:].tolist() == [10.0, -10.0]


def test_balanced_classes_are_fitted_as_scikit_learn_weights_them():
    rows, labels = make_clusters(300)
    rows, labels = rows[20:], labels[20:].copy()
    kept = (labels != 2) | (np.arange(280) % 10 == 0)
    rows, labels = rows[kept], labels[kept]
    found = fit_linear(rows, labels, 3, SINGLE_LABEL, 1.0, class_weights=balanced_class_weights(labels, 3))
    scale = np.sqrt(np.square(rows - rows.mean(axis=0)).sum(axis=1).mean())
    expected = LogisticRegression(max_iter=1_000, class_weight="balanced").fit(
        (rows - rows.mean(axis=0)) / scale, labels
    )
    np.testing.assert_allclose(found.weight * scale, expected.coef_, atol=1e-3)
    plain = fit_linear(rows, labels, 3, SINGLE_LABEL, 1.0)
    counts = [((rows @ one.weight.T + one.bias).argmax(axis=1) == 2).sum() for one in (plain, found)]
    assert counts[0] < counts[1]
    several = np.stack([labels == 2, labels >= 0, labels > 2], axis=1).astype(int)
    fit = fit_linear(rows, several, 3, MULTI_LABEL, 1.0, class_weights=balanced_class_weights(several, 3))
    weights = {0: 1.0, 1: (labels != 2).sum() / (labels == 2).sum()}
    expected = LogisticRegression(max_iter=1_000, class_weight=weights)
    expected.fit((rows - rows.mean(axis=0)) / scale, labels == 2)
    np.testing.assert_allclose(fit.weight[0] * scale, expected.coef_[0], atol=1e-3)


def test_the_penalty_is_chosen_by_the_loss_that_is_asked_for():
    """Of a class with few rows and much noise a weak penalty costs most where it counts as much as the others."""
    rows, labels = make_clusters(300, noise=0.3)
    rare = np.flatnonzero(labels == 2)
    labels[rare[::2]] = 0
    weights = np.array([0.01, 0.01, 10.0])
    assert choose_inverse_penalty(rows, labels) != choose_inverse_penalty(rows, labels, weights)


@pytest.mark.parametrize("method", ["tfidf", "embeddings", "contrastive"])
def test_balanced_classes_are_asked_for_by_a_flag_and_kept_in_the_record(tmp_path, tiny_bert, method):
    """Words that all classes have leave the rarer ones to chance: a regression answers the most frequent one."""
    rows = [
        (f"the film was {['good', 'very', 'story', 'scene'][row % 4]} {row}", str(row % 6 == 0)) for row in range(96)
    ]
    settings = {**QUICK, "method": method}
    if method != "tfidf":
        settings["model"] = tiny_bert
    if method == "contrastive":
        settings["max_steps"] = 2
    answers = []
    for weights in ("none", "balanced"):
        run = finetune.train(
            pd.DataFrame(rows, columns=["text", "label"]),
            output_dir=tmp_path / weights,
            class_weights=weights,
            **settings,
        )
        record = json.loads((run.directory / "run.json").read_text())
        assert not [warning for warning in record.get("warnings", ()) if "class_weights" in str(warning)]
        predicted = run.predict([text for text, _ in rows])
        answers.append(sum(one.label == "True" for one in predicted))
    assert answers[0] < answers[1]


def test_numbers_are_fitted_by_ridge_regression():
    rows, _ = make_clusters(200)
    numbers = rows @ np.arange(20) + 1_000
    linear = fit_linear(rows, numbers, 1, REGRESSION)
    np.testing.assert_allclose((rows @ linear.weight.T + linear.bias)[:, 0], numbers, rtol=1e-3)
