"""Contrastive: an encoder tuned by which texts have the same labels, and a linear model on its vectors."""

import functools
import json
import re

import numpy as np
import pytest
import torch
from conftest import make_reviews, needs_exporters, train_on_frames
from safetensors.torch import load_file

from finetune.comparison.compare import TRAIN, Plan
from finetune.comparison.runs import load_run
from finetune.errors import FinetuneError
from finetune.export.onnx import export
from finetune.families.contrastive.tuning import MOST_STEPS, compute_pair_loss, count_steps, draw_batches
from finetune.hub.stage import stage
from finetune.inference.exported import load_exported
from finetune.inference.predict import load_predictor
from finetune.inference.reload import compute_logits_elsewhere
from finetune.settings.parsing import parse_arguments

TEXTS = [text for text, _ in make_reviews(12, offset=700)] + ["", "good", "film bad " * 30]
QUICK = {
    "method": "contrastive", "max_length": 24, "num_threads": 1, "floor": "false", "bf16": "false", "max_steps": 12,
    "learning_rate": 5e-3,
}  # fmt: skip


train = functools.partial(train_on_frames, QUICK)


@pytest.fixture(scope="module")
def trained(tiny_bert, tmp_path_factory):
    """A run, to be read only."""
    return train(tmp_path_factory.mktemp("contrastive") / "run", tiny_bert, max_steps=60)


def test_it_learns_the_word_that_carries_the_label(trained, tiny_bert):
    record = trained.record
    assert record.metrics.test.accuracy > 0.9
    assert record.model.architecture == "BertModel + LogisticRegression"
    assert record.model.trainable_parameters == record.model.total_parameters
    saved = load_file(trained.directory / "model/model.safetensors")
    before = load_file(f"{tiny_bert}/model.safetensors")
    name = "embeddings.word_embeddings.weight"
    assert not torch.equal(saved[f"encoder.{name}"], before[name])


def test_it_reloads_and_answers_alone_as_in_company(trained, tmp_path):
    predictor = load_predictor(trained.directory, torch.float32)
    together = predictor.compute_logits(TEXTS)[0]
    alone = np.concatenate([predictor.compute_logits([text])[0] for text in TEXTS])
    np.testing.assert_allclose(alone, together, atol=1e-4)
    stage(trained.directory, tmp_path / "model", "me/contrastive", None)
    np.testing.assert_allclose(compute_logits_elsewhere(tmp_path / "model", TEXTS, None), together, atol=1e-4)
    card = (tmp_path / "model/README.md").read_text()
    assert "Method `contrastive`: the encoder, by which texts are alike" in card
    assert "`learning_rate` 0.005" in card
    assert json.loads((tmp_path / "model/finetune_config.json").read_text())["family"] == "contrastive"


@pytest.fixture(scope="module")
def with_lora(tiny_bert, tmp_path_factory):
    """A run, to be read only."""
    settings = {"method": "contrastive_lora", "max_steps": 60, "learning_rate": 5e-3, "lora_r": 4}
    return train(tmp_path_factory.mktemp("lora") / "run", tiny_bert, **settings)


def test_lora_moves_the_linear_layers_alone_and_is_merged_into_them(with_lora, tiny_bert):
    saved = load_file(with_lora.directory / "model/model.safetensors")
    before = {f"encoder.{name}": weight for name, weight in load_file(f"{tiny_bert}/model.safetensors").items()}
    assert saved.keys() == {*(name for name in before if "pooler" not in name), "classifier.bias", "classifier.weight"}
    moved = {name for name, weight in before.items() if name in saved and not torch.equal(saved[name], weight)}
    linear = {name for name in saved if re.search(r"(query|key|value|dense)\.weight$", name)}
    assert moved == linear
    for name in linear:
        assert torch.linalg.matrix_rank(saved[name] - before[name], atol=1e-4) <= 4
    assert with_lora.record.metrics.test.accuracy > 0.6


def test_lora_counts_what_it_trains_and_is_stored_whole(with_lora, trained):
    record = with_lora.record
    layers = 2 * (4 * 4 * (16 + 16) + 2 * 4 * (16 + 32))  # A and B of rank 4, in two layers
    assert record.model.trainable_parameters == layers + 2 * 16 + 2
    assert record.model.total_parameters == trained.record.model.total_parameters
    assert load_run(with_lora.directory).cost("bytes") == record.model.bytes
    assert record.model.base_bytes == 0


def test_lora_reloads_and_goes_to_the_hub_as_an_encoder(with_lora, tmp_path):
    together = load_predictor(with_lora.directory, torch.float32).compute_logits(TEXTS)[0]
    stage(with_lora.directory, tmp_path / "model", "me/contrastive", None)
    np.testing.assert_allclose(compute_logits_elsewhere(tmp_path / "model", TEXTS, None), together, atol=1e-4)
    assert not (tmp_path / "model/adapter_config.json").exists()


@needs_exporters
@pytest.mark.slow
def test_lora_is_exported(with_lora, tmp_path):
    export(with_lora.directory, tmp_path / "onnx")
    expected = load_predictor(with_lora.directory, torch.float32).compute_logits(TEXTS)[0]
    np.testing.assert_allclose(load_exported(tmp_path / "onnx", 1).compute_logits(TEXTS)[0], expected, atol=1e-4)


def test_settings_of_lora_act_or_are_said_to_have_no_use(tmp_path, tiny_bert, capsys):
    file = tmp_path / "lora.yaml"
    file.write_text("target_modules: [query]\n")
    settings = {"method": "contrastive_lora", "max_steps": 2}
    run = train(tmp_path / "a", tiny_bert, **settings, lora_r=2, peft_config=str(file), lora_plus_ratio=4)
    assert run.record.model.trainable_parameters == 2 * 2 * (16 + 16) + 2 * 16 + 2
    assert "--method contrastive_lora has no use for: lora_plus_ratio\n" in capsys.readouterr().err
    train(tmp_path / "b", tiny_bert, max_steps=2, lora_r=2)
    assert "--method contrastive has no use for: lora_r\n" in capsys.readouterr().err
    file.write_text("target_modules: [nothing]\n")
    with pytest.raises(FinetuneError, match="Expected a LORA adapter that fits BertModel") as caught:
        train(tmp_path / "c", tiny_bert, **settings, peft_config=str(file))
    assert "\n" not in str(caught.value)


@needs_exporters
def test_it_is_exported(trained, tmp_path):
    export(trained.directory, tmp_path / "onnx")
    expected = load_predictor(trained.directory, torch.float32).compute_logits(TEXTS)[0]
    np.testing.assert_allclose(load_exported(tmp_path / "onnx", 1).compute_logits(TEXTS)[0], expected, atol=1e-4)


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(tmp_path, tiny_bert):
    runs = [train(tmp_path / name, tiny_bert, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    weights = [(run.directory / "model/model.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1] != weights[2]
    plan = Plan(TRAIN, ["contrastive"], [0, 1], tmp_path / "plan")
    assert len(plan.runs) == 2


def test_several_labels(tmp_path, tiny_bert):
    def change(table):
        return table.assign(label=table["label"] + np.where(table["text"].str.len() > 40, ";long", ""))

    run = train(tmp_path / "run", tiny_bert, change, label_delimiter=";", max_steps=60)
    assert run.metrics["test"]["micro_f1"] > 0.6


@pytest.mark.parametrize(
    ("change", "settings", "match"),
    [
        (lambda table: table.assign(label=table["text"].str.len() + 0.5), {}, "Expected labels for --method contrast"),
        (lambda table: table.assign(other=table["text"]), {"text_pair_column": "other"}, "Expected single texts for"),
        (lambda table: table, {"truncation": "window"}, "Expected --truncation head, tail or head.tail"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(tmp_path, tiny_bert, change, settings, match):
    with pytest.raises(FinetuneError, match=match) as caught:
        train(tmp_path / "run", tiny_bert, change, **settings)
    assert "\n" not in str(caught.value)


def test_the_loss_of_a_batch_by_hand():
    vectors = torch.tensor([[1.0, 0], [0.8, 0.6], [0, 1]])
    labels = torch.tensor([[1, 0], [1, 0], [0, 1]])
    alike, unlike = (1 - 0.8) ** 2, (0**2 + 0.6**2) / 2
    assert compute_pair_loss(vectors, labels).item() == pytest.approx((alike + unlike) / 2)
    several = torch.tensor([[1, 1], [1, 0], [0, 0]])
    alike, unlike = (0.5 - 0.8) ** 2, (0**2 + 0.6**2) / 2
    assert compute_pair_loss(vectors, several).item() == pytest.approx((alike + unlike) / 2)


def test_a_batch_of_one_text_has_no_pairs():
    vectors = torch.ones((1, 2), requires_grad=True)
    loss = compute_pair_loss(vectors, torch.tensor([[1, 0]]))
    loss.backward()
    assert (loss.item(), vectors.grad.tolist()) == (0.0, [[0.0, 0.0]])


def test_batches_hold_two_of_each_class_and_all_rows_before_any_comes_again():
    classes = np.repeat(np.arange(6), [2, 2, 4, 10, 20, 2])
    labels = np.eye(6, dtype=int)[classes]
    seen = np.zeros(len(labels), dtype=int)
    for rows in draw_batches(labels, 8, 60, seed=0):
        assert len(rows) == len(set(rows.tolist())) == 8
        counts = np.bincount(classes[rows])
        assert set(counts[counts > 0].tolist()) == {2}
        seen[rows] += 1
    for number in range(6):
        assert np.ptp(seen[classes == number]) <= 2
        assert seen[classes == number].sum() == 80
    again = [rows.tolist() for rows in draw_batches(labels, 8, 5, seed=1)]
    assert again == [rows.tolist() for rows in draw_batches(labels, 8, 5, seed=1)]


def test_a_class_of_one_row_is_never_twice_in_a_batch():
    labels = np.eye(3, dtype=int)[[0, 1, 1, 1, 1, 2, 2, 2, 2]]
    for rows in draw_batches(labels, 9, 20, seed=0):
        assert len(set(rows.tolist())) == len(rows)


def test_pairs_of_40_000_rows_take_no_memory():
    tracemalloc = pytest.importorskip("tracemalloc")
    labels = np.eye(2, dtype=np.int64)[np.arange(40_000) % 2]
    tracemalloc.start()
    batches = sum(len(rows) for rows in draw_batches(labels, 16, MOST_STEPS, seed=0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert batches == 16 * MOST_STEPS
    assert peak < 50 * 2**20


@pytest.mark.parametrize(
    ("words", "rows", "steps"),
    [
        ([], 16, 20),
        ([], 40_000, MOST_STEPS),
        (["--num_train_epochs", "1"], 40_000, 2_500),
        (["--max_steps", "7"], 40_000, 7),
        ([], 1, 2),
    ],
)
def test_steps(words, rows, steps, tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,b\n")
    fixed = ["--method", "contrastive", "--train_file", str(tmp_path / "a.csv"), "--output_dir", str(tmp_path / "run")]
    arguments = parse_arguments(None, {"num_train_epochs": 20, "per_device_train_batch_size": 16}, [*fixed, *words])
    assert count_steps(arguments, rows) == steps
