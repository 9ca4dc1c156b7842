"""Few rows get enough steps to learn, and too few validation rows choose no checkpoint."""

import json

import pandas as pd
import pytest
from conftest import make_reviews

import finetune
from finetune.engine import parse_training
from finetune.metrics import REGRESSION, SINGLE_LABEL


def settle(method, num_rows, num_validation, *flags):
    arguments = parse_training(["--train_file", __file__, "--method", method, *flags])
    notes = arguments.settle(SINGLE_LABEL, num_rows=num_rows, num_validation=num_validation)
    return arguments.training, notes


@pytest.mark.parametrize(
    ("method", "num_rows", "epochs"),
    [
        ("full", 16, 40),  # 40 steps: no more epochs than that
        ("lora", 128, 25),  # 200 steps of 8 a pass
        ("full", 1_000, 4),
        ("full", 5_000, 3),  # enough as it is
        ("head", 200, 16),
        ("textcnn", 500, 20),
        ("textcnn", 20_000, 5),
        ("tfidf", 16, 3),  # which has no steps
    ],
)
def test_few_rows_get_enough_steps(method, num_rows, epochs):
    training, notes = settle(method, num_rows, 1_000)
    assert training.num_train_epochs == epochs
    assert any("rows make few steps" in note for note in notes) == (epochs not in (3, 5))
    assert training.load_best_model_at_end


def test_what_is_chosen_stays():
    assert settle("full", 16, 1_000, "--num_train_epochs", "2")[0].num_train_epochs == 2
    assert settle("full", 16, 1_000, "--max_steps", "7")[0].num_train_epochs == 3
    wide, _ = settle("full", 128, 1_000, "--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "4")
    assert wide.num_train_epochs == 40  # 4 steps a pass
    training, _ = settle("full", 16, 1_000, "--eval_strategy", "epoch", "--save_strategy", "epoch")
    assert (training.num_train_epochs, training.save_strategy) == (40, "epoch")


def test_short_epochs_are_not_all_evaluated_and_saved():
    training, _ = settle("full", 128, 1_000)
    assert (training.eval_strategy, training.save_strategy) == ("steps", "steps")
    assert training.eval_steps == training.save_steps == 10  # of 200
    training, _ = settle("full", 1_000, 1_000)
    assert (training.eval_strategy, training.save_strategy) == ("epoch", "epoch")


@pytest.mark.parametrize(
    ("flags", "num_validation", "is_best"),
    [
        ([], 99, False),
        ([], 100, True),
        (["--load_best_model_at_end", "true"], 2, True),
        (["--metric_for_best_model", "macro_f1"], 2, True),
        (["--early_stopping_patience", "3"], 2, True),
        (["--load_best_model_at_end", "false"], 1_000, False),
    ],
)
def test_too_few_validation_rows_choose_no_checkpoint_unless_asked_to(flags, num_validation, is_best):
    training, notes = settle("full", 5_000, num_validation, *flags)
    assert training.load_best_model_at_end == is_best
    assert any("the last checkpoint counts" in note for note in notes) == (num_validation == 99)


def test_a_number_is_learnt_longer_too():
    arguments = parse_training(["--train_file", __file__])
    arguments.settle(REGRESSION, num_rows=128, num_validation=13)
    assert (arguments.training.num_train_epochs, arguments.training.load_best_model_at_end) == (25, False)


def test_sixteen_rows_are_learnt_and_it_is_said(tmp_path, tiny_bert, capsys):
    train, test = (
        pd.DataFrame(make_reviews(count, offset), columns=["text", "label"]) for count, offset in ((16, 0), (40, 100))
    )
    run = finetune.train(
        train, model=tiny_bert, test=test, output_dir=tmp_path / "run", max_length=24, learning_rate=5e-3,
        bf16=False, num_threads=1, floor=False,
    )  # fmt: skip
    answers = [answer.label for answer in run.predict(train["text"].tolist())]
    assert sum(answer == label for answer, label in zip(answers, train["label"], strict=True)) >= 13  # 14 were learnt
    record = json.loads((tmp_path / "run/run.json").read_text())
    training = record["arguments"]["training"]
    assert (training["num_train_epochs"], training["load_best_model_at_end"]) == (40, False)
    said = capsys.readouterr().err
    assert "40 epochs in place of 3, since 14 rows make few steps" in said
    assert "the last checkpoint counts, since 2 validation rows" in said
