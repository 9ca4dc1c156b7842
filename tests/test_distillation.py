"""What a teacher's answers do: to the loss, to linear models, to run, record and report; what of them is refused."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import load_recipe, make_frame, train_on_frames
from datasets import Dataset, DatasetDict
from safetensors.numpy import load_file, save_file
from torch.nn import functional as F

import finetune
from finetune.comparison.report import build_report
from finetune.data.soft_labels import count_labelled_rows, soften_labels, weigh_classes
from finetune.data.unlabeled import load_unlabeled
from finetune.errors import FinetuneError
from finetune.families.embeddings.linear import fit_linear
from finetune.families.tfidf import LABEL_NAMES_FILE, WEIGHTS_FILE
from finetune.families.tfidf.fit import fit_tfidf
from finetune.family import Shipped
from finetune.hub.card import build_card
from finetune.lookup import family_of
from finetune.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from finetune.models.finetune_config import FinetuneConfig
from finetune.models.output_layer import Standard
from finetune.run.record import CompleteRecord
from finetune.search.choose import _divide
from finetune.settings.parts import DataArguments
from finetune.tasks import Task
from finetune.training.loss import ExampleLoss

QUICK = {"max_length": 24, "bf16": False, "num_threads": 1, "floor": False}


def train(folder, model, change=lambda frame: frame, **settings):
    return train_on_frames(QUICK, folder, model, change, **settings)


@pytest.fixture(scope="module")
def teacher(tiny_bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "run"
    return str(train(folder, tiny_bert, method="tfidf").directory)


@pytest.fixture(scope="module")
def unlabeled(tmp_path_factory):
    """Forty texts, one a line, of which the last two are in train and test."""
    path = tmp_path_factory.mktemp("unlabeled") / "texts.txt"
    known = [make_frame(60).text[0], make_frame(30, 200).text[0]]
    path.write_text("\n".join([*make_frame(38, 700).text, *known]) + "\n")
    return str(path)


# The loss


def test_the_loss_is_hintons():
    torch.manual_seed(0)
    logits, answers, labels = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    share = torch.tensor([0.5, 0.5, 0.2, 1.0, 1.0])
    found = ExampleLoss(temperature=3.0)(logits, labels, None, torch.cat([share[:, None], answers], dim=1))
    soft = -(F.softmax(answers / 3, -1) * F.log_softmax(logits / 3, -1)).sum(-1) * 9
    expected = (1 - share) * F.cross_entropy(logits, labels, reduction="none") + share * soft
    torch.testing.assert_close(found, expected)


def test_a_teacher_that_agrees_has_no_gradient():
    answers = torch.randn(4, 3)
    for task, temperature in ((SINGLE_LABEL, 2.0), (MULTI_LABEL, 1.0), (REGRESSION, 1.0)):
        width = 1 if task == REGRESSION else 3
        logits = answers[:, :width].clone().requires_grad_()
        labels = torch.zeros(4, 3) if task == MULTI_LABEL else torch.zeros(4, dtype=torch.long)
        taught = torch.cat([torch.ones(4, 1), answers[:, :width]], dim=1)
        ExampleLoss(task, temperature=temperature)(logits, labels, None, taught).sum().backward()
        assert logits.grad.abs().max() < 1e-6


def test_numbers_of_a_teacher_are_standardised_as_labels_are():
    loss = ExampleLoss(REGRESSION, standard=Standard(100.0, 10.0))
    taught = torch.tensor([[1.0, 110.0]])
    assert loss(torch.tensor([[1.0]]), torch.tensor([0.0]), None, taught).item() == 0


def test_the_answers_count_for_a_text_in_windows_once():
    loss, logits = ExampleLoss(window_pooling="mean"), torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
    taught = torch.tensor([[1.0, 0.0, 0.0], [1.0, 3.0, 0.0]])
    found = loss(logits, torch.tensor([0, 0]), torch.tensor([2, 1]), taught)
    torch.testing.assert_close(found[0], torch.tensor(np.log(2), dtype=torch.float32))


# Labels with probabilities in their place


def rows_of(task, labels, taught):
    rows = Dataset.from_dict({"text": ["a"] * len(labels), "label": labels})
    rows = rows.cast_column("label", task.feature)
    return rows.add_column("teacher", np.asarray(taught, dtype=np.float32).tolist())


def test_labels_and_answers_are_mixed_by_the_share():
    task = Task(SINGLE_LABEL, ["a", "b"])
    soft = soften_labels(rows_of(task, [0, 1], [[0.5, 0.0, 0.0], [1.0, 0.0, np.log(3)]]), task)
    np.testing.assert_allclose(soft, [[0.75, 0.25], [0.25, 0.75]], atol=1e-6)
    several = Task(MULTI_LABEL, ["a", "b"])
    soft = soften_labels(rows_of(several, [[0], [0, 1]], [[0.5, 0.0, 0.0], [1.0, 0.0, -np.log(3)]]), several)
    np.testing.assert_allclose(soft, [[0.75, 0.25], [0.5, 0.25]], atol=1e-6)
    number = Task(REGRESSION, ["stars"])
    np.testing.assert_allclose(soften_labels(rows_of(number, [1.0], [[0.5, 3.0]]), number), [2.0])


def test_soft_labels_that_are_certain_fit_what_labels_fit():
    generator = np.random.default_rng(0)
    vectors, labels = generator.normal(size=(60, 8)).astype(np.float32), generator.integers(0, 3, 60)
    hard = fit_linear(vectors, labels, 3, SINGLE_LABEL, 1.0)
    soft = fit_linear(vectors, labels, 3, SINGLE_LABEL, 1.0, np.eye(3)[labels])
    np.testing.assert_allclose(soft.weight, hard.weight, atol=1e-4)
    texts = [f"word{row % 7} word{label} word{label}" for row, label in enumerate(labels)]
    one = fit_tfidf(texts, labels, list("abc"), 0)
    other = fit_tfidf(texts, labels, list("abc"), 0, soft_labels=np.eye(3)[labels])
    np.testing.assert_allclose(one.compute_logits(texts), other.compute_logits(texts), atol=1e-3)


def test_a_linear_model_fits_the_probabilities_it_is_taught():
    vectors = np.repeat([[-1.0], [1.0]], 200, axis=0)
    soft = np.repeat([[0.9, 0.1], [0.3, 0.7]], 200, axis=0)
    found = fit_linear(vectors, np.array([0, 1]), 2, SINGLE_LABEL, 1e4, soft)
    logits = np.array([[-1.0], [1.0]]) @ found.weight.T + found.bias
    np.testing.assert_allclose(1 / (1 + np.exp(logits[:, 0] - logits[:, 1])), [0.1, 0.7], atol=0.01)


def test_what_is_negligible_is_not_fitted():
    soft = np.array([[1 - 1e-6, 1e-6], [0.4, 0.6]])
    rows, classes, weights = weigh_classes(np.array([0, 1]), soft)
    assert (rows.tolist(), classes.tolist()) == ([0, 1, 1], [0, 0, 1])
    np.testing.assert_allclose(weights, [1, 0.4, 0.6], atol=1e-5)
    _, _, both = weigh_classes(np.array([0, 1]), soft, np.array([1.0, 3.0]))
    np.testing.assert_allclose(both, [1, 0.4, 1.8], atol=1e-5)
    rows, classes, weights = weigh_classes(np.array([0, 1]))
    assert (rows, classes.tolist(), weights) == (None, [0, 1], None)


# Texts without labels


def splits_of():
    task = Task(SINGLE_LABEL, ["neg", "pos"])
    frames = {"train": make_frame(60), "validation": make_frame(20, 100), "test": make_frame(30, 200)}
    splits = {name: Dataset.from_pandas(frame).cast_column("label", task.feature) for name, frame in frames.items()}
    return DatasetDict(splits), task


def test_no_text_of_a_split_is_among_the_unlabelled(unlabeled):
    splits, task = splits_of()
    found = load_unlabeled(DataArguments(unlabeled_file=unlabeled), splits, task)
    assert found.column_names == ["id", "text"]
    assert not set(found["text"]) & {text for split in splits.values() for text in split["text"]}
    assert len(set(found["text"])) == len(found) >= 30
    assert "or in a split" in found.info.description


@pytest.mark.parametrize(
    "make", [list, lambda texts: pd.DataFrame({"text": texts}), lambda texts: Dataset.from_dict({"text": texts})]
)
def test_texts_are_given_as_python_has_them(make, teacher, tiny_bert, tmp_path):
    texts = make_frame(20, 700).text.tolist()
    run = train(tmp_path / "run", tiny_bert, method="tfidf", teacher=teacher, unlabeled=make(texts))
    assert run.record.data.unlabeled.rows == len(set(texts) - set(make_frame(60).text))
    with pytest.raises(FinetuneError, match="Expected texts among the unlabelled ones, but found a int"):
        train(tmp_path / "bad", tiny_bert, method="tfidf", teacher=teacher, unlabeled=[1])


@pytest.mark.parametrize("ending", [".csv", ".txt"])
def test_labels_beside_the_texts_are_left_out(tmp_path, ending):
    splits, task = splits_of()
    frame, path = make_frame(20, 700), tmp_path / f"a{ending}"
    if ending == ".csv":
        frame.to_csv(path, index=False)
    else:
        path.write_text("\n".join(f"{label} {text}" for text, label in zip(frame.text, frame.label, strict=True)))
    found = load_unlabeled(DataArguments(unlabeled_file=str(path)), splits, task)
    assert set(found["text"]) <= set(frame.text)
    assert found.column_names == ["id", "text"]


def test_unlabelled_texts_that_are_all_known_are_refused(tmp_path):
    splits, task = splits_of()
    path = tmp_path / "a.txt"
    path.write_text("\n".join(make_frame(60).text))
    with pytest.raises(FinetuneError, match="that are in no split, but found none"):
        load_unlabeled(DataArguments(unlabeled_file=str(path)), splits, task)


# Runs


@pytest.mark.parametrize("method", ["textcnn", "tfidf", "embeddings", "head", "lora"])
def test_students_learn_and_say_of_whom(method, teacher, unlabeled, tiny_bert, tmp_path):
    settings = {"method": method, **({"max_steps": 4} if method in ("textcnn", "head", "lora") else {})}
    alone = train(tmp_path / "alone", tiny_bert, **settings)
    taught = train(tmp_path / "taught", tiny_bert, **settings, teacher=teacher, unlabeled_file=unlabeled)
    again = train(tmp_path / "again", tiny_bert, **settings, teacher=teacher, unlabeled_file=unlabeled)
    record = CompleteRecord.read(taught.directory)
    assert (record.teacher.name, record.teacher.method) == (teacher, "tfidf")
    assert record.teacher.run_id == CompleteRecord.read(Path(teacher)).id
    assert record.data.unlabeled.rows >= 30
    assert record.data.splits.train.rows == 60
    assert alone.record.teacher is None
    weights = [load_file(next(one.directory.glob("model/*.safetensors"))) for one in (alone, taught, again)]
    assert all(np.array_equal(weights[1][name], weights[2][name]) for name in weights[1])
    shared = [name for name in weights[0] if weights[0][name].shape == weights[1][name].shape]
    assert any(not np.array_equal(weights[0][name], weights[1][name]) for name in shared)


def to_several(frame):
    return frame.assign(label=["good;long" if label == "pos" else "" for label in frame.label])


def to_numbers(frame):
    return frame.assign(label=[4.5 if label == "pos" else 1.25 for label in frame.label])


@pytest.mark.parametrize(("change", "extra"), [(to_several, {"label_delimiter": ";"}), (to_numbers, {})])
@pytest.mark.parametrize("method", ["tfidf", "full"])
def test_several_labels_and_numbers_are_taught(change, extra, method, unlabeled, tiny_bert, tmp_path):
    teacher = train(tmp_path / "teacher", tiny_bert, change, method="tfidf", **extra)
    settings = {"teacher": str(teacher.directory), "unlabeled_file": unlabeled, **extra}
    steps = {"max_steps": 3} if method == "full" else {}
    taught = train(tmp_path / "run", tiny_bert, change, method=method, **steps, **settings)
    assert taught.record.teacher.method == "tfidf"
    finetune.load_classifier(taught.directory).predict(["a text"])


def test_answers_are_joined_by_the_names_of_the_labels(teacher, tiny_bert, tmp_path):
    """A teacher that numbers the classes the other way round teaches the same."""
    folder = tmp_path / "turned"
    shutil.copytree(f"{teacher}/model", folder)
    assert json.loads((folder / LABEL_NAMES_FILE).read_text()) == ["neg", "pos"]
    (folder / LABEL_NAMES_FILE).write_text('["pos", "neg"]')
    arrays = load_file(folder / WEIGHTS_FILE)
    turned = {name: -array if name in ("coefficients", "intercepts") else array for name, array in arrays.items()}
    save_file(turned, folder / WEIGHTS_FILE)
    students = [
        train(tmp_path / f"student-{number}", tiny_bert, method="tfidf", teacher=str(name)).directory / "model"
        for number, name in enumerate((teacher, folder))
    ]
    one, other = (load_file(student / WEIGHTS_FILE) for student in students)
    np.testing.assert_allclose(one["coefficients"], other["coefficients"], atol=1e-6)


def test_a_teacher_of_other_labels_is_refused(teacher, tiny_bert, tmp_path):
    def rename(frame):
        return frame.assign(label=frame.label.map({"pos": "good", "neg": "bad"}))

    with pytest.raises(
        FinetuneError, match=r"Expected a teacher with the labels \['bad', 'good'\], but .* has \['neg'"
    ):
        train(tmp_path / "run", tiny_bert, rename, method="tfidf", teacher=teacher)
    with pytest.raises(FinetuneError, match="Expected a teacher for regression"):
        train(tmp_path / "numbers", tiny_bert, to_numbers, method="tfidf", teacher=teacher)


def test_a_teacher_with_another_test_split_is_said(teacher, tiny_bert, tmp_path, capsys):
    train(tmp_path / "same", tiny_bert, method="tfidf", teacher=teacher)
    assert "the teacher" not in capsys.readouterr().err
    train(tmp_path / "run", tiny_bert, method="tfidf", teacher=teacher, test=make_frame(30, 500))
    assert "kept another test split aside: if it was trained on test texts" in capsys.readouterr().err
    train(tmp_path / "folder", tiny_bert, method="tfidf", teacher=f"{teacher}/model")
    assert "says nothing of its test split" in capsys.readouterr().err


def test_what_has_no_use_for_a_teacher_says_so(teacher, tiny_bert, tmp_path, capsys):
    train(tmp_path / "run", tiny_bert, method="contrastive", teacher=teacher, max_steps=2)
    assert "--method contrastive has no use for: teacher" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": "nowhere"}, "'nowhere' does not exist"),
        ({"unlabeled_file": "texts.txt"}, "Expected --teacher with --unlabeled_file"),
        ({"teacher": "x", "unlabeled_file": "no.txt"}, "Expected --unlabeled_file to be a file or folder"),
        ({"teacher": "x", "distillation_alpha": 1.0}, r"--distillation_alpha in \(0, 1\)"),
        ({"teacher": "x", "distillation_temperature": 0.0}, "--distillation_temperature"),
    ],
)
def test_settings_that_can_not_be_used_are_refused(settings, message, tiny_bert, tmp_path):
    with pytest.raises(FinetuneError, match=message):
        train(tmp_path / "run", tiny_bert, method="tfidf", **settings)


def test_recipes_refuse_a_teacher(flags, teacher, tmp_path):
    with pytest.raises(FinetuneError, match="Expected no --teacher, since this recipe trains once"):
        load_recipe("textcnn").main([*flags, "--teacher", teacher, "--output_dir", str(tmp_path / "run")])


def test_a_teacher_judges_no_trial():
    task = Task(SINGLE_LABEL, ["a", "b"])
    taught = [[0.5, 0.0, 1.0]] * 20 + [[1.0, 0.0, 1.0]] * 30
    rows = rows_of(task, [0, 1] * 25, taught).add_column("id", [str(row) for row in range(50)])
    assert count_labelled_rows(rows) == 20
    folds = list(_divide(DatasetDict(train=rows, validation=rows.select(range(2))), task))
    judged = sorted(int(row) for fold in folds for row in fold["validation"]["id"])
    assert judged == list(range(20))
    assert all("teacher" not in fold["validation"].column_names for fold in folds)
    assert all(len(fold["train"]) + len(fold["validation"]) == 50 for fold in folds)


def test_a_report_sets_the_taught_beside_the_others_and_names_the_teacher(teacher, unlabeled, tiny_bert, tmp_path):
    settings = {"teacher": teacher, "unlabeled_file": unlabeled}
    other = str(shutil.copytree(teacher, tmp_path / "another place"))
    for seed, one in enumerate((teacher, other)):
        train(tmp_path / f"alone-{seed}", tiny_bert, method="textcnn", max_steps=4, seed=seed)
        train(tmp_path / f"taught-{seed}", tiny_bert, method="textcnn", max_steps=4, seed=seed,
              **{**settings, "teacher": one})  # fmt: skip
    report = build_report([str(path) for path in sorted(tmp_path.glob("*-[01]"))])
    assert {group.name: group.seeds for group in report.groups} == {"textcnn": [0, 1], "textcnn (taught)": [0, 1]}
    line = next(line for line in report.conditions if line.startswith("Teacher"))
    assert re.search(r"textcnn \(taught\) learnt from the answers of the method tfidf, also on \d+ texts without", line)
    record = CompleteRecord.read(tmp_path / "taught-0")
    shipped = Shipped("me/it", None, family_of("textcnn"), ["neg", "pos"], FinetuneConfig(problem_type=SINGLE_LABEL))
    assert f"`{record.teacher.sha256}`" in build_card(shipped, record)
