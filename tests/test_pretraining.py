"""Continued pretraining: on which objective, what it changes, what stays, and that it costs what it costs."""

import functools
import json
import shutil

import datasets
import numpy as np
import pytest
import torch
from conftest import make_frame, make_reviews, train_on_frames
from datasets import Dataset
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5Model,
)

import finetune
from finetune.comparison.report import build_report
from finetune.errors import FinetuneError, Interrupted
from finetune.hub.stage import stage
from finetune.inference.predict import load_predictor
from finetune.inference.reload import compute_logits_elsewhere
from finetune.models.load import fingerprint_model
from finetune.pretraining.objectives import MaskedWords, NextWords, Sentences, WordDecoder, load_objective
from finetune.pretraining.pretrain import list_texts
from finetune.settings.parts import ModelArguments

TEXTS = [text for text, _ in make_reviews(12, offset=700)] + ["", "good", "film bad " * 30]
QUICK = {
    "method": "full", "max_length": 24, "num_threads": 1, "floor": "false", "bf16": "false", "max_steps": 2,
    "pretrain_epochs": 3,
}  # fmt: skip
WORDS = "embeddings.word_embeddings.weight"

train = functools.partial(train_on_frames, QUICK)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def masked_bert(tiny_bert, tmp_path_factory):
    """A folder with a random `BertForMaskedLM`, its head included."""
    folder = tmp_path_factory.mktemp("masked-bert")
    shutil.copytree(tiny_bert, folder, dirs_exist_ok=True)
    torch.manual_seed(0)
    BertForMaskedLM(BertModel.from_pretrained(tiny_bert).config).save_pretrained(folder)
    return str(folder)


def objective_of(model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    return load_objective(ModelArguments(model_name_or_path=model), tokenizer, 3_072)


def test_the_objective_is_what_the_checkpoint_has_a_head_for(tiny_bert, masked_bert, tmp_path):
    assert isinstance(objective_of(masked_bert), MaskedWords)
    assert isinstance(objective_of(tiny_bert), Sentences)
    assert isinstance(objective_of(write_gpt2(tmp_path / "gpt2", tiny_bert)), NextWords)


def write_gpt2(folder, tokenizer):
    shutil.copytree(tokenizer, folder)
    config = GPT2Config(vocab_size=30, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=2, eos_token_id=3)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return str(folder)


def test_what_can_not_be_pretrained_is_refused_in_a_line(tiny_bert, tmp_path):
    shutil.copytree(tiny_bert, tmp_path / "t5")
    T5Model(T5Config(vocab_size=30, d_model=16, num_layers=1, num_heads=2, d_ff=16)).save_pretrained(tmp_path / "t5")
    with pytest.raises(FinetuneError, match=r"Expected an encoder or a decoder .* is of both .t5."):
        objective_of(str(tmp_path / "t5"))


def test_masked_words_are_drawn_among_words(masked_bert):
    torch.manual_seed(0)
    objective = objective_of(masked_bert)
    ids = torch.tensor([[2, *range(5, 25), 3, 0, 0]] * 500)
    inputs = {"input_ids": ids.clone()}
    targets = objective.make_targets(inputs)
    chosen = targets != -100
    assert torch.equal(targets[chosen], ids[chosen])
    assert not chosen[:, [0, 21, 22, 23]].any()
    assert chosen[:, 1:21].float().mean().item() == pytest.approx(0.15, abs=0.01)
    changed = inputs["input_ids"] != ids
    assert not changed[~chosen].any()
    masked = inputs["input_ids"][chosen] == 4
    assert masked.float().mean().item() == pytest.approx(0.8, abs=0.03)


def test_the_next_word_by_hand(tiny_bert, tmp_path):
    objective = objective_of(write_gpt2(tmp_path / "gpt2", tiny_bert))
    inputs = {"input_ids": torch.tensor([[7, 8, 9], [5, 6, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    assert objective.make_targets(inputs).tolist() == [[8, 9, -100], [6, -100, -100]]


def test_of_a_sentence_most_words_are_left_out_and_all_are_to_be_found_again(tiny_bert):
    torch.manual_seed(0)
    objective = objective_of(tiny_bert)
    ids = torch.tensor([[2, *range(5, 25), 3, 0, 0]] * 500 + [[2, 5, 3, *[0] * 21]])
    inputs = {"input_ids": ids.clone(), "attention_mask": (ids > 0).long(), "token_type_ids": (ids > 9).long()}
    targets = objective.make_targets(inputs)
    assert targets[0].tolist() == [*range(5, 25), 3, *[-100] * 3]
    kept, mask = inputs["kept_input_ids"], inputs["kept_attention_mask"]
    assert torch.equal(inputs["input_ids"], ids)
    assert kept.shape == mask.shape == (501, int(mask.sum(dim=1).max()))
    assert torch.equal(mask, (kept > 0).long())
    words = kept[:500].masked_fill(kept[:500] < 5, 0)
    assert (words > 0).sum().item() / 500 / 20 == pytest.approx(0.4, abs=0.02)
    for row in kept[:500]:
        row = row[row > 0].tolist()
        assert (row[0], row[-1], row) == (2, 3, [2, *sorted(row[1:-1]), 3])
        assert len(row) > 2
    assert kept[500, :3].tolist() == [2, 5, 3]  # a word stays
    assert torch.equal(inputs["kept_token_type_ids"], (kept > 9).long())


def test_a_decoder_sees_the_vector_and_no_word_that_comes_later(tiny_bert):
    torch.manual_seed(0)
    words = BertModel.from_pretrained(tiny_bert).get_input_embeddings()
    decoder = WordDecoder(16, words, 24).eval()
    vectors, ids, all_of_them = torch.eye(2, 16), torch.tensor([[7, 8, 9], [7, 8, 9]]), torch.ones(2, 3).bool()
    logits = decoder(vectors, ids, all_of_them).reshape(2, 3, -1)
    changed = decoder(vectors, torch.tensor([[7, 8, 20], [7, 8, 9]]), all_of_them).reshape(2, 3, -1)
    torch.testing.assert_close(changed[0, :2], logits[0, :2])
    assert not torch.allclose(changed[0, 2], logits[0, 2])
    assert not torch.allclose(logits[0, 0], logits[1, 0])
    logits.sum().backward()
    assert words.weight.grad is None
    assert not any(parameter is words.weight for parameter in decoder.parameters())


def test_the_loss_of_words_is_their_mean_over_all_micro_batches(tiny_bert, tmp_path):
    objective = objective_of(write_gpt2(tmp_path / "gpt2", tiny_bert))
    objective.model.eval()
    rows = [[7, 8, 9, 10], [5, 6], [11, 12, 13]]
    objective.collator.max_tokens = 4
    found = objective.add_gradients([{"input_ids": row} for row in rows], torch.device("cpu"), torch.float32)
    gradient = objective.model.transformer.wte.weight.grad.clone()
    objective.model.zero_grad()
    losses = []
    for row in rows:
        logits = objective.model(input_ids=torch.tensor([row])).logits[0]
        losses.append(torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(row[1:]), reduction="sum"))
    expected = sum(losses) / 6
    expected.backward()
    assert found == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(gradient, objective.model.transformer.wte.weight.grad)


@pytest.mark.parametrize("kind", ["masked words", "the next word", "sentences"])
def test_the_loss_falls(kind, tiny_bert, masked_bert, tmp_path, monkeypatch):
    models = {"masked words": masked_bert, "sentences": tiny_bert}
    model = models.get(kind) or write_gpt2(tmp_path / "gpt2", tiny_bert)
    for rate in ("LEARNING_RATE", "DRAWN_LEARNING_RATE"):
        monkeypatch.setattr(f"finetune.pretraining.loop.{rate}", 1e-2)
    made = train(tmp_path / "run", model, pretrain_epochs=30).record.pretraining
    assert made.objective == kind
    assert (made.texts, made.epochs, made.steps) == (60, 30, 60)
    assert made.last_loss < made.first_loss - 0.2
    assert made.encoder == fingerprint_model(str(tmp_path / "run/encoder"))


def test_the_encoder_is_changed_by_it_alone_and_what_it_was_is_recorded(tmp_path, tiny_bert, capsys):
    run = train(tmp_path / "run", tiny_bert, method="embeddings")
    assert (
        "pretraining: sentences (TSDAE, Wang et al. 2021) on 60 texts without labels, 3 epochs"
        in capsys.readouterr().err
    )
    before, made = load_file(f"{tiny_bert}/model.safetensors"), load_file(tmp_path / "run/encoder/model.safetensors")
    saved = load_file(tmp_path / "run/model/model.safetensors")
    assert before.keys() == made.keys()
    assert not torch.equal(made[WORDS], before[WORDS])
    assert torch.equal(saved[f"encoder.{WORDS}"], made[WORDS])
    assert torch.equal(made["pooler.dense.weight"], before["pooler.dense.weight"])  # which the objective doesn't read
    record = run.record
    assert record.pretrained == fingerprint_model(tiny_bert) != record.pretraining.encoder
    assert record.arguments.model["model_name_or_path"] == record.model.name == tiny_bert
    assert record.arguments.model["pretrain_epochs"] == 3
    assert record.costs.train_seconds > record.pretraining.seconds > 0
    assert record.costs.train_cpu_seconds > record.pretraining.cpu_seconds > 0
    without = train(tmp_path / "without", tiny_bert, method="embeddings", pretrain_epochs=0)
    assert torch.equal(load_file(tmp_path / "without/model/model.safetensors")[f"encoder.{WORDS}"], before[WORDS])
    assert without.record.pretraining is None
    assert not (tmp_path / "without/encoder").exists()


def test_what_the_checkpoint_lacks_is_not_made_up(tmp_path, masked_bert):
    train(tmp_path / "run", masked_bert)
    assert not any("pooler" in name for name in load_file(tmp_path / "run/encoder/model.safetensors"))
    assert not any(name.startswith("cls") for name in load_file(tmp_path / "run/encoder/model.safetensors"))


def bytes_of(folder):
    return (folder / "model/model.safetensors").read_bytes()


def test_the_same_bytes_twice_from_the_cache_and_after_a_kill(tmp_path, tiny_bert, monkeypatch):
    train(tmp_path / "first", tiny_bert)
    kept = list((tmp_path / "cache/finetune").glob("encoder-*"))
    assert sorted(path.suffix for path in kept) == ["", ".json"]
    with monkeypatch.context() as patch:
        patch.setattr("finetune.pretraining.pretrain.train_on_texts", lambda *settings: pytest.fail("made again"))
        cached = train(tmp_path / "cached", tiny_bert)
        lora = train(tmp_path / "lora", tiny_bert, method="lora", seed=5)
    assert lora.record.pretraining == cached.record.pretraining
    assert lora.record.costs.train_seconds > lora.record.pretraining.seconds

    def end(*settings):
        raise Interrupted("killed")

    weights = kept[0] if kept[0].is_dir() else kept[1]
    (weights / "model.safetensors").unlink()  # spoilt: it is made again
    with monkeypatch.context() as patch:
        patch.setattr("finetune.pretraining.pretrain._write_encoder", end)
        with pytest.raises(Interrupted):
            train(tmp_path / "killed", tiny_bert)
    train(tmp_path / "killed", tiny_bert)
    assert bytes_of(tmp_path / "first") == bytes_of(tmp_path / "cached") == bytes_of(tmp_path / "killed")


def test_from_a_checkpoint_it_goes_on_with_the_encoder_that_it_began_with(tmp_path, tiny_bert, monkeypatch):
    settings = {"method": "lora", "max_steps": None, "num_train_epochs": 2}
    straight = train(tmp_path / "straight", tiny_bert, **settings)

    def end(*rest):
        raise Interrupted("killed")

    with monkeypatch.context() as patch:
        patch.setattr("finetune.run.run.Run.save_model", end)
        for name in ("same", "changed"):
            with pytest.raises(Interrupted):
                train(tmp_path / name, tiny_bert, **settings)
    shutil.rmtree(tmp_path / "cache")
    adapter = "model/adapter_model.safetensors"
    monkeypatch.setattr("finetune.pretraining.pretrain.train_on_texts", lambda *rest: pytest.fail("made again"))
    same = train(tmp_path / "same", tiny_bert, **settings)
    assert (same.directory / adapter).read_bytes() == (straight.directory / adapter).read_bytes()
    assert same.record.pretraining.encoder == straight.record.pretraining.encoder
    changed = train(tmp_path / "changed", tiny_bert, **settings, resume_with_changes=True, weight_decay=0.5)
    assert changed.record.changes
    assert changed.record.pretraining.encoder == straight.record.pretraining.encoder
    with pytest.raises(FinetuneError, match="holds a finished run"):
        train(tmp_path / "same", tiny_bert, **settings)


def test_another_number_of_epochs_is_no_continuation(tmp_path, tiny_bert, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("finetune.run.run.Run.save_model", lambda *rest: (_ for _ in ()).throw(Interrupted("killed")))
        with pytest.raises(Interrupted):
            train(tmp_path / "run", tiny_bert)
    with pytest.raises(FinetuneError, match=r"pretrain_epochs \(3\.0 then, 1\.0 now\)"):
        train(tmp_path / "run", tiny_bert, pretrain_epochs=1)
    (tmp_path / "run/encoder/model.safetensors").unlink()
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr("finetune.pretraining.loop.LEARNING_RATE", 1e-3)
    with pytest.raises(FinetuneError, match="that this run was started with, but it is gone"):
        train(tmp_path / "run", tiny_bert)


@pytest.mark.parametrize("method", ["tfidf", "textcnn"])
def test_what_has_no_encoder_has_no_use_for_it(tmp_path, method, capsys):
    run = train(tmp_path / "run", "embedded", method=method)
    assert f"--method {method} has no use for: " in (said := capsys.readouterr().err)
    assert "pretrain_epochs" in said
    assert run.record.pretraining is None
    assert not (tmp_path / "run/encoder").exists()


@pytest.mark.parametrize(
    "method",
    [
        "full",
        "lora",
        "embeddings",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("contrastive", "zero-shot")),
    ],
)
def test_what_is_saved_reloads_is_shipped_and_says_it(tmp_path, tiny_bert, method):
    run = train(tmp_path / "run", tiny_bert, method=method, seed=3)
    expected = load_predictor(run.directory, torch.float32).compute_logits(TEXTS)[0]
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = load_predictor(tmp_path / "moved", torch.float32).compute_logits(TEXTS)[0]
    np.testing.assert_array_equal(moved, expected)
    stage(tmp_path / "moved", tmp_path / "shipped", "me/model", None)
    shutil.rmtree(tmp_path / "moved")
    shutil.rmtree(tmp_path / "cache")
    np.testing.assert_allclose(compute_logits_elsewhere(tmp_path / "shipped", TEXTS, None), expected, atol=1e-5)
    card = (tmp_path / "shipped/README.md").read_text()
    assert "the base was trained on texts alone: sentences (TSDAE, Wang et al. 2021) on 60 texts without labels" in card


def test_an_adapter_on_it_is_shipped_merged_or_not_at_all(tmp_path, tiny_bert):
    train(tmp_path / "run", tiny_bert, method="lora")
    with pytest.raises(FinetuneError, match="Push it merged: leave --adapter out"):
        stage(tmp_path / "run", tmp_path / "shipped", "me/model", None, adapter=True)
    with pytest.raises(FinetuneError, match="push that folder too, and train on that"):
        stage(tmp_path / "run/model", tmp_path / "bare", "me/model", None, adapter=True)


def test_the_base_of_the_embedded_model_is_named(tmp_path):
    train(tmp_path / "run", "embedded", method="lora", max_length=16, pretrain_epochs=0.1, max_steps=1)
    staged = stage(tmp_path / "run", tmp_path / "shipped", "me/model", None)
    assert staged.shipped.base[0] == "sentence-transformers/all-MiniLM-L6-v2"
    assert json.loads((tmp_path / "run/encoder/1_Pooling/config.json").read_text())["pooling_mode_mean_tokens"]
    with pytest.raises(FinetuneError, match="Push it merged"):
        stage(tmp_path / "run", tmp_path / "adapter", "me/model", None, adapter=True)


def test_a_report_keeps_runs_with_and_without_apart(tmp_path, tiny_bert):
    runs = [
        train(tmp_path / f"run{epochs}", tiny_bert, method="embeddings", pretrain_epochs=epochs) for epochs in (0, 2)
    ]
    report = build_report([run.directory for run in runs])
    names = {group.name for group in report.groups}
    assert names == {"embeddings (pretrain_epochs 0)", "embeddings (pretrain_epochs 2)"}
    assert any("pretrain_epochs 2" in line for line in report.conditions if line.startswith("Settings"))


@pytest.mark.slow
def test_recipe_and_search_have_it_too(tmp_path, imdb, flags, tiny_bert):
    imdb.main([*flags, "--pretrain_epochs", "1", "--output_dir", str(tmp_path / "recipe")])
    assert json.loads((tmp_path / "recipe/run.json").read_text())["pretraining"]["texts"] == 60
    pytest.importorskip("optuna")
    tuned = train(tmp_path / "tuned", tiny_bert, trials=2)
    assert tuned.record.search.trials == 2
    assert tuned.record.arguments.model["model_name_or_path"] == tiny_bert


def test_texts_without_labels_are_learnt_from_too(tmp_path, tiny_bert):
    texts = [f"a film of the year {year}" for year in range(1970, 2000)]
    (tmp_path / "texts.txt").write_text("\n".join([*texts, make_frame(20, 100)["text"][0]]) + "\n")  # one of validation
    settings = {"method": "embeddings", "unlabeled_file": str(tmp_path / "texts.txt")}
    record = train(tmp_path / "run", tiny_bert, **settings).record
    assert record.data.unlabeled.rows == 30
    assert record.pretraining.texts == 90
    with pytest.raises(FinetuneError, match=r"Expected --teacher .* or --pretrain_epochs"):
        train(tmp_path / "without", tiny_bert, **settings, pretrain_epochs=0)


def test_windows_are_texts_and_pairs_are_two(tmp_path, tiny_bert):
    split = Dataset.from_dict({"text": ["b", "a", " "], "text_pair": ["c", "a", None]})
    assert list_texts([split, Dataset.from_dict({"text": ["d"]})]) == ["a", "b", "c", "d"]
    whole = train(tmp_path / "whole", tiny_bert, max_length=8, pretrain_epochs=1).record.pretraining
    windows = train(
        tmp_path / "run", tiny_bert, max_length=8, truncation="window", pretrain_epochs=1
    ).record.pretraining
    assert (whole.texts, whole.steps) == (60, 2)
    assert windows.texts == 60
    assert windows.steps > 2


def test_a_head_is_dropped_aloud_and_that_of_inference_refused(tmp_path, tiny_bert, capsys):
    shutil.copytree(tiny_bert, tmp_path / "model")
    model = BertForSequenceClassification.from_pretrained(
        tiny_bert, num_labels=3, id2label={0: "entailment", 1: "neutral", 2: "contradiction"}
    )
    model.save_pretrained(tmp_path / "model")
    train(tmp_path / "run", str(tmp_path / "model"))
    assert "warning: --pretrain_epochs drops the classification head of" in capsys.readouterr().err
    with pytest.raises(FinetuneError, match="is a model of inference"):
        train(tmp_path / "zero", str(tmp_path / "model"), method="zero-shot")


def test_streams_are_refused(tmp_path):
    frame = make_frame()
    (tmp_path / "shards").mkdir()
    frame.to_parquet(tmp_path / "shards/0.parquet")
    with pytest.raises(FinetuneError, match="Expected no --pretrain_epochs with --streaming"):
        finetune.train(
            str(tmp_path / "shards"), validation=frame, test=frame, streaming=True, pretrain_epochs=1,
            output_dir=tmp_path / "run",
        )  # fmt: skip
