"""`Trainer` in scripts that were written for transformers: the import changes, and what was wrong becomes right."""

import copy
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from conftest import ROOT, make_reviews
from datasets import Dataset
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    TrainingArguments,
    default_data_collator,
)

from finetune.data.batch import cut_batch
from finetune.data.lengths import find_lengths
from finetune.training import upstream
from finetune.training.trainer import FineTuningTrainer, Trainer
from finetune.training.trial import try_model

UPSTREAM = transformers.Trainer
BOTH = pytest.mark.parametrize("trainer_class", [UPSTREAM, Trainer], ids=["upstream", "ours"])
SETTINGS = {"learning_rate": 1e-3, "logging_steps": 1, "save_strategy": "no", "seed": 0, "report_to": "none"}


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    return AutoTokenizer.from_pretrained(tiny_bert)


def tokenize(tokenizer, count, offset=0, padding=False):
    texts, labels = zip(*make_reviews(count, offset), strict=True)
    tokens = tokenizer(list(texts), truncation=True, max_length=24, padding="max_length" if padding else False)
    return Dataset.from_dict({**tokens, "text": texts, "label": [int(label == "pos") for label in labels]})


@pytest.fixture(scope="module")
def rows(tokenizer):
    return tokenize(tokenizer, 48)


def make_model(tiny_bert, dropout=0.0, **settings):
    torch.manual_seed(0)
    settings = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout, **settings}
    return AutoModelForSequenceClassification.from_pretrained(tiny_bert, **settings)


def make_trainer(trainer_class, folder, model, rows, tokenizer, arguments=None, **keywords):
    keywords = {"train_dataset": rows, "eval_dataset": rows, "processing_class": tokenizer, **keywords}
    given = TrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, **{**SETTINGS, **(arguments or {})})
    return trainer_class(model=model, args=given, **keywords)


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(axis=-1) == prediction.label_ids).mean())}


def logged(trainer, name="loss"):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


# Where upstream is right and a step is the same whoever draws it: all rows in one batch.
WHOLE = {"per_device_train_batch_size": 48, "max_steps": 6, "per_device_eval_batch_size": 16}


@pytest.mark.parametrize("padding", [False, True], ids=["dynamic", "to the maximum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_gradients_and_evaluations_are_upstream_s(tmp_path, tiny_bert, tokenizer, padding, smoothing):
    rows = tokenize(tokenizer, 48, padding=padding)
    collator = default_data_collator if padding else None
    results = []
    for trainer_class in (UPSTREAM, Trainer):
        trainer = make_trainer(
            trainer_class, tmp_path, make_model(tiny_bert), rows, tokenizer,
            {**WHOLE, "eval_strategy": "steps", "eval_steps": 2, "label_smoothing_factor": smoothing},
            compute_metrics=accuracy, data_collator=collator,
            **({"max_tokens_per_micro_batch": 100} if trainer_class is Trainer else {}),
        )  # fmt: skip
        trainer.train()
        results.append(trainer)
    for name in ("loss", "grad_norm", "learning_rate", "eval_loss", "eval_accuracy", "epoch"):
        expected, found = (logged(trainer, name) for trainer in results)
        assert len(found) >= 3
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    metrics = [trainer.evaluate() for trainer in results]
    assert metrics[0].keys() == metrics[1].keys()
    outputs = [trainer.predict(rows, metric_key_prefix="predict") for trainer in results]
    np.testing.assert_allclose(outputs[1].predictions, outputs[0].predictions, atol=1e-4)
    assert outputs[1].label_ids.tolist() == outputs[0].label_ids.tolist()
    assert outputs[0].metrics.keys() == outputs[1].metrics.keys()
    unlabelled = [trainer.predict(rows.remove_columns("label")) for trainer in results]
    np.testing.assert_allclose(unlabelled[1].predictions, outputs[0].predictions, atol=1e-4)
    assert [output.label_ids for output in unlabelled] == [None, None]
    assert unlabelled[0].metrics.keys() == unlabelled[1].metrics.keys()


def test_accumulation_is_right_where_upstream_s_is_four_times_too_much(tmp_path, tiny_bert, tokenizer, rows):
    def train(trainer_class, size, accumulation):
        arguments = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation, "max_steps": 12}
        trainer = make_trainer(trainer_class, tmp_path, make_model(tiny_bert), rows, tokenizer, arguments)
        trainer.train()
        return trainer

    whole, accumulated = train(Trainer, 8, 1), train(Trainer, 2, 4)
    np.testing.assert_allclose(logged(accumulated), logged(whole), atol=1e-5, rtol=0)
    np.testing.assert_allclose(logged(accumulated, "grad_norm"), logged(whole, "grad_norm"), atol=1e-4, rtol=0)
    for name, parameter in whole.model.named_parameters():
        torch.testing.assert_close(accumulated.model.get_parameter(name), parameter, atol=1e-4, rtol=0)
    wrong = train(UPSTREAM, 2, 4)
    assert logged(wrong)[0] == pytest.approx(4 * logged(whole)[0], rel=0.1)  # else this class has nothing to mend


@pytest.mark.parametrize("kind", ["one class", "several labels", "a number"])
def test_what_the_labels_are_is_found(tmp_path, tiny_bert, tokenizer, rows, kind):
    labels, num_labels = np.array(rows["label"][:]), {"one class": 2, "several labels": 3, "a number": 1}[kind]
    if kind == "several labels":
        labels = np.stack([labels, 1 - labels, np.arange(48) % 3 == 0], axis=1).astype(np.float32)
    elif kind == "a number":
        labels = labels * 3.5
    data = rows.remove_columns("label").add_column("labels", list(labels))
    results = []
    for trainer_class in (UPSTREAM, Trainer):
        model = make_model(tiny_bert, num_labels=num_labels)
        trainer = make_trainer(trainer_class, tmp_path, model, data, tokenizer, WHOLE)
        trainer.train()
        results.append((logged(trainer), trainer.evaluate()["eval_loss"], trainer.predict(data).label_ids))
        assert model.config.problem_type is not None
    assert trainer.cuts_batches()
    np.testing.assert_allclose(results[1][0], results[0][0], atol=1e-5, rtol=1e-5)
    assert results[1][1] == pytest.approx(results[0][1], abs=1e-5)
    np.testing.assert_array_equal(results[1][2], results[0][2])
    assert results[1][2].dtype == results[0][2].dtype


class ByHand(torch.utils.data.Dataset):
    """As in tutorials: encodings and labels, put together when they are asked for."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, row):
        columns = ("input_ids", "attention_mask", "token_type_ids")
        example = {name: torch.tensor(self.rows[row][name]) for name in columns}
        return {**example, "labels": torch.tensor(self.rows[row]["label"])}


def on_the_fly(rows, tokenizer):
    texts = rows.select_columns(["text", "label"])
    texts.set_transform(lambda batch: {**tokenizer(batch["text"]), "label": batch["label"]})
    return texts


@pytest.mark.parametrize("form", ["torch format", "a frame", "by hand", "list", "on the fly", "as a stream"])
def test_any_data_set_is_taken(tmp_path, tiny_bert, tokenizer, rows, form):
    forms = {
        "torch format": lambda: rows.with_format("torch"),
        "a frame": lambda: rows.with_format("pandas"),
        "by hand": lambda: ByHand(rows),
        "list": lambda: [ByHand(rows)[row] for row in range(len(rows))],
        "on the fly": lambda: on_the_fly(rows, tokenizer),
        "as a stream": lambda: rows.to_iterable_dataset(),
    }
    arguments = {**WHOLE, "remove_unused_columns": form != "on the fly"}
    results = []
    for trainer_class in (UPSTREAM, Trainer):
        data = forms[form]()
        trainer = make_trainer(trainer_class, tmp_path, make_model(tiny_bert), data, tokenizer, arguments)
        trainer.train()
        results.append([*logged(trainer), trainer.evaluate()["eval_loss"]])
    assert (trainer.behaviour is None) == (form == "as a stream")
    np.testing.assert_allclose(results[1], results[0], atol=1e-5, rtol=0)


def test_examples_are_looked_at_once_for_their_lengths(tmp_path, tiny_bert, tokenizer, rows):
    looked = []

    class Counted(ByHand):
        def __getitem__(self, row):
            looked.append(row)
            return super().__getitem__(row)

    arguments = {**WHOLE, "max_steps": 3, "eval_strategy": "steps", "eval_steps": 1}
    data = Counted(rows)
    make_trainer(Trainer, tmp_path, make_model(tiny_bert), data, tokenizer, arguments).train()
    assert len(looked) <= (1 + 3 + 3) * len(rows) + 10  # the lengths, three steps of all rows, three evaluations


def test_padding_to_the_maximum_is_not_computed(tmp_path, tiny_bert, tokenizer):
    rows = tokenize(tokenizer, 48, padding=True)
    trainer = make_trainer(
        Trainer, tmp_path, make_model(tiny_bert), rows, tokenizer,
        {"per_device_train_batch_size": 8, "num_train_epochs": 1}, data_collator=default_data_collator,
        max_tokens_per_micro_batch=96,
    )  # fmt: skip
    computed = []
    trainer.model.bert.embeddings.register_forward_hook(
        lambda module, args, output: computed.append(output.shape[0] * output.shape[1]) if module.training else None
    )
    trainer.train()
    tokens = sum(map(sum, rows["attention_mask"]))
    assert tokens <= sum(computed) < 1.15 * tokens < 48 * 24 / 1.5
    assert trainer.costs.train_tokens == tokens


def test_padding_stays_where_the_model_reads_it(tmp_path, tokenizer, rows):
    class ReadsPadding(BertForSequenceClassification):
        def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, labels=None):
            return super().forward(input_ids=input_ids, token_type_ids=token_type_ids, labels=labels)

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(tokenizer), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes)
    model = ReadsPadding(config)
    nn.init.normal_(model.classifier.weight)
    results = []
    for trainer_class in (UPSTREAM, Trainer):
        trainer = make_trainer(
            trainer_class, tmp_path, copy.deepcopy(model), rows, tokenizer, {**WHOLE, "per_device_eval_batch_size": 48}
        )
        trainer.train()
        results.append([*logged(trainer), trainer.evaluate()["eval_loss"]])
    assert not trainer.behaviour.ignores_padding
    np.testing.assert_allclose(results[1], results[0], atol=1e-5, rtol=0)


@BOTH
def test_a_loss_of_one_s_own_is_called_as_upstream_calls_it(tmp_path, tiny_bert, tokenizer, rows, trainer_class):
    seen = []

    def summed(outputs, labels, num_items_in_batch=None):
        seen.append((len(labels), int(num_items_in_batch)))
        return nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch

    arguments = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3, "max_steps": 2}
    model = make_model(tiny_bert)
    trainer = make_trainer(trainer_class, tmp_path, model, rows, tokenizer, arguments, compute_loss_func=summed)
    trainer.train()
    assert seen == [(4, 12)] * 6
    assert logged(trainer)[0] == pytest.approx(np.log(2), abs=0.2)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(np.log(2), abs=0.2)


def test_a_compute_loss_of_a_subclass_gets_whole_batches_and_is_averaged(tmp_path, tiny_bert, tokenizer, rows):
    weights, sizes = torch.tensor([1.0, 3.0]), []

    class Weighted(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            sizes.append(len(labels))
            loss = nn.functional.cross_entropy(outputs.logits, labels, weights)
            return (loss, outputs) if return_outputs else loss

    arguments = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3, "max_steps": 2}
    trainer = make_trainer(Weighted, tmp_path, make_model(tiny_bert), rows, tokenizer, arguments)
    trainer.train()
    assert sizes == [4] * 6
    assert logged(trainer)[0] == pytest.approx(np.log(2), abs=0.2)  # upstream's is three times as much
    assert trainer.evaluate()["eval_loss"] == pytest.approx(np.log(2), abs=0.2)


def test_a_model_with_another_loss_than_the_mean_is_not_cut(tmp_path, tiny_bert, tokenizer, rows):
    class Summed(BertForSequenceClassification):
        def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, labels=None):
            outputs = super().forward(input_ids, attention_mask, token_type_ids, labels=labels)
            return {"loss": 2 * outputs.loss, "logits": outputs.logits} if labels is not None else outputs

    model = make_model(tiny_bert)
    model.__class__ = Summed
    results = []
    for trainer_class in (UPSTREAM, Trainer):
        trainer = make_trainer(trainer_class, tmp_path, copy.deepcopy(model), rows, tokenizer, WHOLE)
        trainer.train()
        results.append([*logged(trainer), trainer.evaluate()["eval_loss"]])
    assert not trainer.cuts_batches()
    np.testing.assert_allclose(results[1], results[0], atol=1e-5, rtol=0)


class Doubled(BertForSequenceClassification):
    """Twice the mean, or of whatever number of items it is told: no loss that can be cut."""

    divides = False

    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, labels=None, **told):
        count = told.pop("num_items_in_batch", None)
        outputs = super().forward(input_ids, attention_mask, token_type_ids, **told)
        if labels is not None:
            losses = nn.functional.cross_entropy(outputs.logits, labels, reduction="none")
            outputs.loss = 2 * losses.sum() / (count if self.divides and count is not None else len(losses))
        return outputs


@pytest.mark.parametrize("divides", [False, True], ids=["a mean", "divided by what it is told"])
def test_whether_a_model_divides_its_loss_by_what_it_is_told_is_found_out(
    tmp_path, tiny_bert, tokenizer, rows, divides
):
    found = {}
    for trainer_class, size in [(UPSTREAM, 8), (UPSTREAM, 2), (Trainer, 8), (Trainer, 2)]:
        model = make_model(tiny_bert)
        model.__class__, model.divides = Doubled, divides
        arguments = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size, "max_steps": 3,
                     "train_sampling_strategy": "sequential"}  # fmt: skip
        trainer = make_trainer(trainer_class, tmp_path, model, rows, tokenizer, arguments)
        trainer.predict(rows.select(range(4)).remove_columns("label"))  # of which nothing can be told
        trainer.train()
        found[trainer_class, size] = logged(trainer)
    assert not trainer.cuts_batches()
    for size in (8, 2):
        np.testing.assert_allclose(found[Trainer, size], found[UPSTREAM, 8], atol=1e-5, rtol=0)
    assert found[UPSTREAM, 2][0] == pytest.approx(found[UPSTREAM, 8][0] * (1 if divides else 4), rel=1e-4)


@pytest.mark.parametrize("kind", ["tokens", "masked words"])
def test_a_model_that_classifies_no_texts_is_trained_as_upstream_trains_it(tmp_path, tiny_bert, tokenizer, rows, kind):
    data = rows.remove_columns(["label", "text"])
    if kind == "tokens":
        data = data.add_column("labels", [[token % 3 for token in row] for row in rows["input_ids"]])
    results = []
    for trainer_class in (UPSTREAM, Trainer):
        torch.manual_seed(0)
        if kind == "tokens":
            model = transformers.BertForTokenClassification.from_pretrained(tiny_bert, num_labels=3)
            collator = transformers.DataCollatorForTokenClassification(tokenizer)
        else:  # whose masks are drawn by the collator
            model = transformers.BertForMaskedLM.from_pretrained(tiny_bert)
            collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3)
        trainer = make_trainer(
            trainer_class, tmp_path, model, data, tokenizer,
            {"per_device_train_batch_size": 8, "max_steps": 4, "gradient_accumulation_steps": 2},
            data_collator=collator,
        )  # fmt: skip
        trainer.train()
        results.append([*logged(trainer), trainer.evaluate()["eval_loss"]])
    assert results[0] == results[1]


def test_the_constructor_s_other_arguments_work(tmp_path, tiny_bert, tokenizer, rows):
    model = make_model(tiny_bert)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    seen = []

    class Seen(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(state.global_step)

    trainer = make_trainer(
        Trainer, tmp_path, model, rows, tokenizer, {**WHOLE, "max_steps": 3, "eval_strategy": "steps", "eval_steps": 3},
        optimizers=(optimizer, schedule), callbacks=[Seen()], eval_dataset={"a": rows, "b": rows.select(range(10))},
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(dim=-1),
        compute_metrics=lambda prediction: {"right": np.mean(prediction.predictions == prediction.label_ids)},
    )  # fmt: skip
    trainer.train()
    assert seen == [1, 2, 3]
    assert logged(trainer, "learning_rate") == pytest.approx([0.5, 0.25, 0.5 / 3])
    last = {name: value for entry in trainer.state.log_history for name, value in entry.items()}
    assert {"eval_a_loss", "eval_b_loss", "eval_a_right", "eval_b_right", "eval_a_runtime"} <= last.keys()
    assert type(last["eval_a_right"]) is float

    trainer = make_trainer(
        Trainer, tmp_path, None, rows, tokenizer, WHOLE, model_init=lambda: make_model(tiny_bert),
        optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.1}), eval_dataset=None,
    )  # fmt: skip
    first, second = (trainer.train().training_loss for _ in range(2))
    assert first == second
    with pytest.raises(ValueError, match="requires an eval_dataset"):
        trainer.evaluate()


@pytest.mark.parametrize("asked", ["inputs", "loss", "by batches", "hidden states"])
def test_more_than_logits_is_given_as_upstream_gives_it(tmp_path, tiny_bert, tokenizer, rows, asked):
    results = []
    for trainer_class in (UPSTREAM, Trainer):
        found = []

        def compute_metrics(prediction, compute_result=True, found=found):
            found.append([np.shape(part) for part in (prediction.losses, prediction.inputs, prediction.label_ids)])
            return {"count": len(found)}

        arguments = {"include_for_metrics": [asked]} if asked in ("inputs", "loss") else {}
        arguments |= {"batch_eval_metrics": True} if asked == "by batches" else {}
        model = make_model(tiny_bert, output_hidden_states=asked == "hidden states")
        trainer = make_trainer(
            trainer_class, tmp_path, model, rows, tokenizer, arguments, compute_metrics=compute_metrics
        )
        predictions = trainer.predict(rows).predictions
        results.append((found, [np.shape(part) for part in predictions]))
    assert results[0] == results[1]


@pytest.mark.parametrize("arguments", [{}, {"data_seed": 3}, {"train_sampling_strategy": "sequential"}], ids=str)
def test_the_order_of_the_rows_is_the_script_s(tmp_path, tiny_bert, tokenizer, rows, arguments):
    results = []
    for trainer_class in (UPSTREAM, Trainer):
        arguments = {**arguments, "per_device_train_batch_size": 7, "num_train_epochs": 2}
        trainer = make_trainer(trainer_class, tmp_path, make_model(tiny_bert), rows, tokenizer, arguments)
        trainer.train()
        results.append([*logged(trainer), *logged(trainer, "grad_norm")])
    assert len(results[0]) == 2 * 2 * 7
    np.testing.assert_allclose(results[1], results[0], atol=1e-5, rtol=0)


def test_steps_are_grouped_by_length_where_the_script_says_so(tmp_path, tiny_bert, tokenizer, rows):
    arguments = {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 8, "num_train_epochs": 1}
    trainer = make_trainer(Trainer, tmp_path, make_model(tiny_bert), rows, tokenizer, arguments)
    spreads = [
        int(lengths.max() - lengths.min())
        for lengths in (batch["attention_mask"].sum(dim=1) for batch in trainer.get_train_dataloader())
    ]
    lengths = sorted(map(len, rows["input_ids"]))
    assert len(spreads) == 6
    assert sum(spreads) / len(spreads) < (lengths[-1] - lengths[0]) / 3
    trainer.train()
    assert trainer.costs.train_tokens == sum(lengths)


@BOTH
def test_an_incomplete_batch_can_be_dropped(tmp_path, tiny_bert, tokenizer, rows, trainer_class):
    arguments = {"per_device_train_batch_size": 10, "dataloader_drop_last": True, "num_train_epochs": 2}
    trainer = make_trainer(trainer_class, tmp_path, make_model(tiny_bert), rows, tokenizer, arguments)
    sizes = [sum(len(batch["labels"]) for batch in [batch]) for batch in trainer.get_train_dataloader()]
    assert sizes == [10] * 4
    assert trainer.train().global_step == 8


BEST = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True, "num_train_epochs": 12,
        "metric_for_best_model": "loss", "learning_rate": 0.05, "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 1.0 - 1e-9, "save_total_limit": 1}  # fmt: skip


def test_the_best_checkpoint_and_early_stopping(tmp_path, tiny_bert, tokenizer, rows):
    trainer = make_trainer(
        Trainer, tmp_path, make_model(tiny_bert), rows, tokenizer, BEST, callbacks=[EarlyStoppingCallback(2)]
    )
    trainer.train()
    losses = logged(trainer, "eval_loss")
    best = int(np.argmin(losses))
    assert len(losses) == best + 3 < 12
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[best], abs=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == [f"checkpoint-{6 * (best + 1)}"]


# As scripts are: arguments, a map, a Trainer. What a checkpoint is written with decides nothing of what comes after.
SCRIPT = """
import json, os, signal, sys
import torch
from datasets import Dataset
from transformers import (AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding,
                          TrainerCallback, TrainingArguments, set_seed)
from transformers import Trainer

model_name, data_file, output_dir, kill_at = sys.argv[1:5]
torch.set_num_threads(1)
training_args = TrainingArguments(
    output_dir, num_train_epochs=3, per_device_train_batch_size=8, gradient_accumulation_steps=2, learning_rate=1e-3,
    save_strategy="steps", save_steps=4, eval_strategy="steps", eval_steps=4, logging_steps=3, use_cpu=True,
    load_best_model_at_end=True, save_total_limit=2, warmup_steps=0.2, weight_decay=0.01, report_to="none", seed=7,
)
set_seed(training_args.seed)
tokenizer = AutoTokenizer.from_pretrained(model_name)
raw = Dataset.from_json(data_file)
tokenized = raw.map(lambda batch: tokenizer(batch["text"], truncation=True, max_length=24), batched=True)
model = AutoModelForSequenceClassification.from_pretrained(model_name, num_labels=2)

class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == int(kill_at):
            os.kill(os.getpid(), int(sys.argv[5]))

def compute_metrics(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

trainer = Trainer(
    model=model, args=training_args, train_dataset=tokenized.select(range(44)),
    eval_dataset=tokenized.select(range(44, 60)), compute_metrics=compute_metrics, processing_class=tokenizer,
    data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8), callbacks=[Kill()],
)
resume = any(name.startswith("checkpoint-") for name in os.listdir(output_dir))
train_result = trainer.train(resume_from_checkpoint=resume)
trainer.save_model()
metrics = {**train_result.metrics, "train_samples": 44}
trainer.log_metrics("train", metrics)
trainer.save_metrics("train", metrics)
trainer.save_state()
metrics = trainer.evaluate(eval_dataset=tokenized.select(range(44, 60)))
trainer.log_metrics("eval", metrics)
trainer.save_metrics("eval", metrics)
predictions = trainer.predict(tokenized.remove_columns("label"), metric_key_prefix="predict").predictions
trainer.create_model_card(finetuned_from=model_name, tasks="text-classification")
json.dump({"predictions": predictions.tolist(), "history": trainer.state.log_history},
          open(os.path.join(output_dir, "result.json"), "w"))
"""
CHANGED = SCRIPT.replace("from transformers import Trainer\n", "from finetune.training.trainer import Trainer\n")
TIMES = re.compile("runtime|per_second")


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "reviews.json"
    lines = [{"text": text, "label": int(label == "pos")} for text, label in make_reviews(60)]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def run_script(script, tiny_bert, data_file, output_dir, kill_at=-1, number=signal.SIGKILL):
    output_dir.mkdir(exist_ok=True)
    command = [sys.executable, "-c", script, tiny_bert, str(data_file), str(output_dir), str(kill_at), str(int(number))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if kill_at >= 0:
        assert done.returncode == -number, done.stderr
        return None
    assert done.returncode == 0, done.stderr
    result = json.loads((output_dir / "result.json").read_text())
    history = [{k: v for k, v in entry.items() if not TIMES.search(k)} for entry in result["history"]]
    return result["predictions"], history


def test_a_script_ends_as_if_it_had_never_been_killed(tmp_path, tiny_bert, data_file):
    straight = run_script(CHANGED, tiny_bert, data_file, tmp_path / "straight")
    run_script(CHANGED, tiny_bert, data_file, tmp_path / "killed", 6, signal.SIGTERM)
    run_script(CHANGED, tiny_bert, data_file, tmp_path / "killed", 8)  # before the checkpoint of step 8
    assert run_script(CHANGED, tiny_bert, data_file, tmp_path / "killed") == straight
    names = [{path.name for path in (tmp_path / name).iterdir()} for name in ("straight", "killed")]
    assert names[0] == names[1] >= {"model.safetensors", "all_results.json", "trainer_state.json", "README.md"}


@pytest.mark.slow
def test_a_script_goes_on_from_what_upstream_wrote_and_says_what_is_missing(tmp_path, tiny_bert, data_file):
    run_script(SCRIPT, tiny_bert, data_file, tmp_path / "run", 6)
    checkpoint = tmp_path / "run/checkpoint-4"
    assert not (checkpoint / "complete.json").exists()
    _, history = run_script(CHANGED, tiny_bert, data_file, tmp_path / "run")
    assert [entry["step"] for entry in history if "eval_loss" in entry][:3] == [4, 8, 9]


IN_PROCESSES = """
import json, sys
import torch
from datasets import load_from_disk
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments
from finetune.training.trainer import Trainer
model_name, data, output = sys.argv[1:]
torch.set_num_threads(1)
torch.manual_seed(0)
model = AutoModelForSequenceClassification.from_pretrained(
    model_name, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
args = TrainingArguments(output, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=4,
                         use_cpu=True, learning_rate=1e-3, logging_steps=1, save_strategy="no", seed=0)
rows = load_from_disk(data)
trainer = Trainer(model=model, args=args, train_dataset=rows, eval_dataset=rows, max_tokens_per_micro_batch=40,
                  processing_class=AutoTokenizer.from_pretrained(model_name))
trainer.train()
predicted = trainer.predict(rows)
if trainer.is_world_process_zero():
    result = {"losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
              "loss": trainer.evaluate()["eval_loss"], "labels": predicted.label_ids.tolist(),
              "predictions": predicted.predictions.tolist()}
    json.dump(result, open(output + "/result.json", "w"))
else:
    trainer.evaluate()
"""


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path, tiny_bert, tokenizer, rows):
    data = rows.select(range(44))
    data.save_to_disk(tmp_path / "data")
    (tmp_path / "script.py").write_text(IN_PROCESSES)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = [str(tmp_path / "script.py"), tiny_bert, str(tmp_path / "data"), str(tmp_path)]
    done = subprocess.run([*command, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    arguments = {"per_device_train_batch_size": 8, "max_steps": 4}
    trainer = make_trainer(Trainer, tmp_path, make_model(tiny_bert), data, tokenizer, arguments)
    trainer.train()
    np.testing.assert_allclose(result["losses"], logged(trainer), atol=1e-5, rtol=0)
    assert result["loss"] == pytest.approx(trainer.evaluate()["eval_loss"], abs=1e-5)
    assert result["labels"] == data["label"][:]
    np.testing.assert_allclose(result["predictions"], trainer.predict(data).predictions, atol=1e-4)


def test_the_example_of_the_page_runs(tmp_path, tiny_bert):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/how-to/trainer.md").read_text(), re.DOTALL)
    code = code.replace('"bert-base-uncased"', repr(tiny_bert)).replace('"output"', f"{str(tmp_path)!r}, use_cpu=True")
    space = {}
    exec(code, space)
    assert space["trainer"].state.global_step == 24
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-8", "checkpoint-16", "checkpoint-24"}


def test_a_training_that_has_ended_goes_on_where_more_steps_are_asked_for(tmp_path, tiny_bert, tokenizer, rows):
    def train(folder, max_steps, resume=False):
        arguments = {"per_device_train_batch_size": 16, "save_strategy": "steps", "save_steps": 2,
                     "max_steps": max_steps, "lr_scheduler_type": "constant"}  # fmt: skip
        trainer = make_trainer(Trainer, tmp_path / folder, make_model(tiny_bert, 0.1), rows, tokenizer, arguments)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    straight = train("straight", 8)
    train("prolonged", 4)
    assert train("prolonged", 4, resume=True).state.global_step == 4
    prolonged = train("prolonged", 8, resume=True)
    assert prolonged.state.global_step == 8
    assert logged(prolonged) == logged(straight)
    for name, parameter in straight.model.named_parameters():
        assert torch.equal(prolonged.model.get_parameter(name), parameter), name


def test_a_checkpoint_that_has_changed_is_not_gone_on_from(tmp_path, tiny_bert, tokenizer, rows):
    arguments = {"per_device_train_batch_size": 16, "save_strategy": "steps", "save_steps": 2, "max_steps": 6}

    def build():
        return make_trainer(Trainer, tmp_path, make_model(tiny_bert), rows, tokenizer, arguments)

    first = build()
    first.train()
    (tmp_path / "checkpoint-6/optimizer.pt").write_bytes(b"")
    second = build()
    with pytest.warns(UserWarning, match=r"skipped .*checkpoint-6: optimizer.pt has 0 bytes"):
        second.train(resume_from_checkpoint=True)
    for name, parameter in first.model.named_parameters():
        assert torch.equal(second.model.get_parameter(name), parameter), name
    (tmp_path / "checkpoint-4/scheduler.pt").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-4' as it was written, but scheduler.pt is missing"):
        build().train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    (tmp_path / "checkpoint-4/complete.json").unlink()
    with pytest.warns(UserWarning, match="has no scheduler.pt: the optimizer and the learning rate begin anew"):
        build().train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_a_batch_is_cut_by_hand():
    batch = {
        "input_ids": torch.tensor([[0, 0, 1], [1, 2, 3], [0, 4, 5]]),
        "attention_mask": torch.tensor([[0, 0, 1], [1, 1, 1], [0, 1, 1]]),
        "labels": torch.tensor([1, -100, 0]),
        "weight": torch.tensor([0.1, 0.2, 0.3]),
    }
    cut = cut_batch(batch, 4)
    assert (cut["num_examples"], cut["num_tokens"]) == (2, 6)
    first, second = cut["micro_batches"]
    assert first["input_ids"].tolist() == [[1, 2, 3]]
    assert second["input_ids"].tolist() == [[4, 5], [0, 1]]
    assert second["weight"].tolist() == pytest.approx([0.3, 0.1])
    whole = cut_batch(batch, 6, trims=False)["micro_batches"]
    assert [part["input_ids"].shape for part in whole] == [(1, 3), (2, 3)]


def test_lengths_leave_padding_out():
    rows = {"input_ids": [[1, 2, 0], [], [1, 0, 0]], "attention_mask": [[1, 1, 0], [], [1, 0, 0]]}
    data = Dataset.from_dict(rows)
    for given in (data, data.with_format("torch"), [data[row] for row in range(3)]):
        assert find_lengths(given).tolist() == [2, 0, 1]
    assert find_lengths(data.select([2, 0])).tolist() == [1, 2]
    assert find_lengths(data.remove_columns("attention_mask")).tolist() == [3, 0, 3]
    assert find_lengths([{"pixel_values": [0.5]}]) is None
    assert find_lengths(Dataset.from_dict({"input_ids": [[[1, 2], [3]]]})) is None


def test_a_model_is_tried_without_a_trace(tiny_bert, tokenizer, rows):
    model = make_model(tiny_bert, dropout=0.5).train()
    batch = DataCollatorWithPadding(tokenizer)([rows.remove_columns("text")[row] for row in range(4)])
    state, before = torch.get_rng_state(), {name: p.clone() for name, p in model.named_parameters()}
    found = try_model(model, batch, None, 0.0)
    assert (found.num_logits, found.ignores_padding, found.gives_logits_alone) == (2, True, True)
    assert found.example_loss.problem_type == "single_label_classification"
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in model.named_parameters())


def test_private_methods_of_upstream_are_overridden_in_one_module_and_all_are_declared():
    own = [cls for cls in FineTuningTrainer.__mro__ if cls.__module__.startswith("finetune")]
    overridden = {cls: {name for name in vars(cls) if hasattr(UPSTREAM, name)} - set(vars(object)) for cls in own}
    overridden = {cls: {name for name in names if not name.startswith("__")} for cls, names in overridden.items()}
    private = {cls for cls, names in overridden.items() if any(name.startswith("_") for name in names)}
    assert private == {upstream.UpstreamTrainer}
    assert set().union(*overridden.values()) <= upstream.SIGNATURES[UPSTREAM].keys()
    assert upstream.find_changes() == []
