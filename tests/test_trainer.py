"""The loss is the mean over the step's examples, however the step is cut up."""

import copy

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, EarlyStoppingCallback, Trainer, TrainingArguments

from finetune.accelerated import enable
from finetune.data.cutting import TextConfig
from finetune.data.load import read_examples
from finetune.data.tokenize import tokenize_dataset
from finetune.errors import FinetuneError
from finetune.families.textcnn import TextCNNSettings, build_textcnn
from finetune.methods import apply_method, count_parameters
from finetune.metrics import SINGLE_LABEL, compute_metrics
from finetune.models.load import load_model
from finetune.settings.parts import MethodArguments, ModelArguments
from finetune.tasks import Task
from finetune.training import upstream
from finetune.training.trainer import FineTuningTrainer


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    return AutoTokenizer.from_pretrained(tiny_bert)


@pytest.fixture(scope="module")
def tokenized(reviews, tokenizer):
    return tokenize_dataset(read_examples(reviews["--train_file"]), tokenizer, TextConfig(24))


def make_model(tiny_bert, tokenizer, method="full", dropout=0.0):
    arguments, task = ModelArguments(model_name_or_path=tiny_bert), Task(SINGLE_LABEL, ["neg", "pos"])
    if method == "textcnn":
        model = build_textcnn(arguments, TextCNNSettings(), tokenizer, task, seed=0)
    else:
        model = apply_method(load_model(arguments, method, tokenizer, task, seed=0), MethodArguments(method=method))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    return enable(model)


def make_trainer(tmp_path, model, tokenizer, tokenized, max_tokens=10_000, use_cpu=True, **settings):
    settings = {
        "max_steps": 30,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "seed": 0,
        "save_strategy": "no",
        **settings,
    }
    return FineTuningTrainer(
        model=model,
        args=TrainingArguments(output_dir=str(tmp_path), use_cpu=use_cpu, **settings),
        train_dataset=tokenized,
        eval_dataset=tokenized,
        processing_class=tokenizer,
        compute_metrics=lambda prediction: compute_metrics(*prediction),
        max_tokens_per_micro_batch=max_tokens,
    )


def losses_and_weights(trainer):
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return np.array(losses), {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("method", ["full", "lora", "textcnn"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_accumulation_of_4_by_2_equals_batch_8(tmp_path, tiny_bert, tokenizer, tokenized, method, label_smoothing):
    results = []
    for batch_size, accumulation in ((8, 1), (2, 4)):
        trainer = make_trainer(
            tmp_path,
            make_model(tiny_bert, tokenizer, method),
            tokenizer,
            tokenized,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            label_smoothing_factor=label_smoothing,
        )
        results.append(losses_and_weights(trainer))
    (losses, weights), (accumulated_losses, accumulated_weights) = results
    assert len(losses) == 30
    np.testing.assert_allclose(accumulated_losses, losses, atol=1e-5, rtol=0)
    for name, weight in weights.items():
        torch.testing.assert_close(accumulated_weights[name], weight, atol=1e-4, rtol=0)


def test_micro_batches_equal_the_plain_step(tmp_path, tiny_bert, tokenizer, tokenized):
    results = [
        losses_and_weights(
            make_trainer(
                tmp_path,
                make_model(tiny_bert, tokenizer),
                tokenizer,
                tokenized,
                max_tokens=max_tokens,
                per_device_train_batch_size=8,
            )
        )
        for max_tokens in (10_000, 30)
    ]
    np.testing.assert_allclose(results[1][0], results[0][0], atol=1e-5, rtol=0)
    for name, weight in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], weight, atol=1e-5, rtol=0)


def test_loss_of_a_step_is_the_mean_cross_entropy_with_smoothing(tmp_path, tiny_bert, tokenizer, tokenized):
    model = make_model(tiny_bert, tokenizer).eval()
    epsilon, num_labels = 0.1, 2
    trainer = make_trainer(tmp_path, model, tokenizer, tokenized, label_smoothing_factor=epsilon)
    batch = trainer.data_collator.collate([tokenized[row] for row in range(6)])
    loss, outputs = trainer.compute_loss(model, dict(batch), return_outputs=True)
    log_probabilities = torch.log_softmax(outputs.logits, dim=-1)
    target = torch.full((6, num_labels), epsilon / num_labels)
    target[range(6), batch["labels"]] = 1 - epsilon + epsilon / num_labels
    torch.testing.assert_close(loss, -(target * log_probabilities).sum(-1).mean())


def test_evaluation_is_in_the_order_of_the_data_and_unsmoothed(tmp_path, tiny_bert, tokenizer, tokenized):
    model = make_model(tiny_bert, tokenizer)
    trainer = make_trainer(tmp_path, model, tokenizer, tokenized, max_tokens=50, label_smoothing_factor=0.5)
    output = trainer.predict(tokenized)
    model.eval()
    with torch.no_grad():
        expected = [model(torch.tensor([ids])).logits[0].numpy() for ids in tokenized["input_ids"]]
    np.testing.assert_allclose(output.predictions, np.array(expected), atol=1e-6)
    assert output.label_ids.tolist() == tokenized["labels"][:]
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(
        compute_metrics(np.array(expected), output.label_ids)["loss"], abs=1e-6
    )


def test_weight_decay_spares_biases_and_layer_norm(tmp_path, tiny_bert, tokenizer, tokenized):
    model = make_model(tiny_bert, tokenizer)
    trainer = make_trainer(tmp_path, model, tokenizer, tokenized, weight_decay=0.01)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, spared = (
        {names[id(parameter)] for parameter in group["params"]} for group in trainer.create_optimizer().param_groups
    )
    assert all(name.endswith("bias") or "LayerNorm" in name for name in spared)
    assert not any(name.endswith("bias") or "LayerNorm" in name for name in decayed)
    assert "classifier.weight" in decayed
    assert decayed | spared == set(names.values())


@pytest.mark.parametrize("method", ["head", "lora"])
def test_frozen_weights_stay_bit_equal_and_the_others_move(tmp_path, tiny_bert, tokenizer, tokenized, method):
    model = make_model(tiny_bert, tokenizer, method)
    before = copy.deepcopy(dict(model.named_parameters()))
    make_trainer(tmp_path, model, tokenizer, tokenized, max_steps=3).train()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def test_lora_starts_from_the_base_model(tiny_bert, tokenizer):
    tokens = torch.tensor([[2, 5, 6, 7, 3]])
    base, lora = make_model(tiny_bert, tokenizer).eval(), make_model(tiny_bert, tokenizer, "lora").eval()
    assert torch.equal(lora(tokens).logits, base(tokens).logits)
    trainable, total = count_parameters(lora)
    linear = 2 * 6 + 1  # of each layer, and the pooler
    assert "classifier" in "".join(name for name, p in lora.named_parameters() if p.requires_grad)
    assert sum("lora_A" in name for name, _ in lora.named_parameters()) == linear
    assert total - trainable == count_parameters(base)[1] - 34  # everything else: the classifier is 16 x 2 + 2


def test_the_best_checkpoint_is_kept_and_patience_ends_training(tmp_path, tiny_bert, tokenizer, tokenized):
    """A rate that first learns and then, rising, ruins the model: the best epoch is neither the last nor run out."""
    model = make_model(tiny_bert, tokenizer, "textcnn")
    trainer = make_trainer(
        tmp_path,
        model,
        tokenizer,
        tokenized,
        max_steps=-1,
        num_train_epochs=12,
        learning_rate=0.3,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=1.0 - 1e-9,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=False,
        weight_decay=0.0,
    )
    trainer.add_callback(EarlyStoppingCallback(2))
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    best = int(np.argmin(losses))
    assert len(losses) == best + 3  # two evaluations without a better one, then the end
    assert len(losses) < 12
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[best], abs=1e-6)


def test_warm_up_rises_to_the_rate_and_falls_to_nothing(tmp_path, tiny_bert, tokenizer, tokenized):
    model = make_model(tiny_bert, tokenizer)
    trainer = make_trainer(tmp_path, model, tokenizer, tokenized, max_steps=10, warmup_steps=0.4, learning_rate=1e-3)
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([1e-3 * min(step / 4, (10 - step) / 6) for step in range(10)])


def test_costs_count_every_token_once(tmp_path, tiny_bert, tokenizer, tokenized):
    model = make_model(tiny_bert, tokenizer)
    trainer = make_trainer(tmp_path, model, tokenizer, tokenized, max_tokens=40, max_steps=-1, num_train_epochs=2)
    trainer.train()
    assert trainer.costs.train_tokens == 2 * sum(tokenized["length"])
    assert trainer.costs.train_seconds > 0


def test_fewer_examples_than_processes_are_refused(tmp_path, tiny_bert, tokenizer, tokenized, monkeypatch):
    model = make_model(tiny_bert, tokenizer)
    trainer = make_trainer(tmp_path, model, tokenizer, tokenized.select(range(2)))
    monkeypatch.setattr(TrainingArguments, "world_size", 3)
    with pytest.raises(FinetuneError, match="each of 3 processes, but got 2"):
        trainer.get_train_dataloader()


@pytest.mark.slow
def test_compiled_steps_are_the_plain_ones(tmp_path, tiny_bert, tokenizer, tokenized):
    results = [
        losses_and_weights(
            make_trainer(
                tmp_path, make_model(tiny_bert, tokenizer), tokenizer, tokenized, max_steps=4, torch_compile=compiled
            )
        )[0]
        for compiled in (False, True)
    ]
    np.testing.assert_allclose(results[1], results[0], atol=1e-5, rtol=0)


def test_a_training_warns_of_a_changed_trainer(tmp_path, tiny_bert, tokenizer, tokenized, monkeypatch):
    monkeypatch.setitem(upstream.SIGNATURES[Trainer], "_save_checkpoint", "model trial metrics")
    with pytest.warns(UserWarning, match=r"Trainer\._save_checkpoint takes \(model, trial\)"):
        make_trainer(tmp_path, make_model(tiny_bert, tokenizer), tokenizer, tokenized)
