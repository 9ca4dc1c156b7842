"""The loss of each example against values worked by hand, and right whatever the step is cut into."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from test_trainer import losses_and_weights, make_model, make_trainer
from torch.nn import functional as F
from transformers import AutoTokenizer

from finetune.data.cutting import TextConfig
from finetune.data.labels import balanced_class_weights
from finetune.data.load import read_examples
from finetune.data.tokenize import tokenize_dataset
from finetune.errors import FinetuneError
from finetune.metrics import MULTI_LABEL, REGRESSION
from finetune.training.loss import ExampleLoss, oversample

LOGITS = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]])  # probabilities 1/2, 1/2 and 1/4, 3/4
LABELS = torch.tensor([0, 1])


def test_cross_entropy_smoothing_weights_and_focus_by_hand():
    plain = ExampleLoss()(LOGITS, LABELS, None)
    torch.testing.assert_close(plain, torch.tensor([math.log(2), math.log(4 / 3)]))
    smoothed = ExampleLoss(label_smoothing=0.2)(LOGITS, LABELS, None)
    torch.testing.assert_close(smoothed[1], torch.tensor(0.9 * math.log(4 / 3) + 0.1 * math.log(4)))
    weighted = ExampleLoss(class_weights=torch.tensor([2.0, 5.0]))(LOGITS, LABELS, None)
    torch.testing.assert_close(weighted, plain * torch.tensor([2.0, 5.0]))
    focused = ExampleLoss(focal_gamma=2.0)(LOGITS, LABELS, None)
    torch.testing.assert_close(focused, plain * torch.tensor([1 / 4, 1 / 16]))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_a_focal_loss_of_certain_answers_has_a_gradient(gamma):
    logits = torch.tensor([[40.0, -40.0], [1.0, 0.0]], requires_grad=True)
    ExampleLoss(focal_gamma=gamma)(logits, torch.tensor([0, 0]), None).sum().backward()
    assert logits.grad[0].tolist() == pytest.approx([0, 0])
    assert logits.grad[1, 0] < 0
    logits = torch.tensor([[40.0, -40.0]], requires_grad=True)
    ExampleLoss(MULTI_LABEL, focal_gamma=gamma)(logits, torch.tensor([[1.0, 0.0]]), None).sum().backward()
    assert logits.grad[0].tolist() == pytest.approx([0, 0])


def test_a_focal_loss_is_not_smoothed():
    with pytest.raises(FinetuneError, match=r"got focal_gamma 2 and label_smoothing 0\.1, which undo each other"):
        ExampleLoss(focal_gamma=2.0, label_smoothing=0.1)


def test_several_labels_by_hand():
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    losses = ExampleLoss(MULTI_LABEL)(LOGITS, labels, None)
    torch.testing.assert_close(losses, torch.tensor([math.log(2), (math.log(2) + math.log(4 / 3)) / 2]))
    weighted = ExampleLoss(MULTI_LABEL, class_weights=torch.tensor([3.0, 1.0]))(LOGITS, labels, None)
    torch.testing.assert_close(weighted[0], torch.tensor((3 * math.log(2) + math.log(2)) / 2))
    focused = ExampleLoss(MULTI_LABEL, focal_gamma=1.0)(LOGITS, labels, None)
    torch.testing.assert_close(focused[1], torch.tensor((math.log(2) / 2 + math.log(4 / 3) / 4) / 2))


def test_a_number_has_the_squared_error():
    losses = ExampleLoss(REGRESSION)(torch.tensor([[1.0], [2.5]]), torch.tensor([3.0, 2.0], dtype=torch.float64), None)
    torch.testing.assert_close(losses, torch.tensor([4.0, 0.25]))


def test_windows_are_combined_before_the_loss():
    logits = torch.tensor([[0.0, 2.0], [1.0, 0.0], [3.0, 1.0]])  # two windows of the first text, one of the second
    labels, num_windows = torch.tensor([1, 0]), torch.tensor([2, 1])
    for pooling, first in (("mean", [0.5, 1.0]), ("max", [1.0, 2.0])):
        losses = ExampleLoss(window_pooling=pooling)(logits, labels, num_windows)
        expected = F.cross_entropy(torch.tensor([first, [3.0, 1.0]]), labels, reduction="none")
        torch.testing.assert_close(losses, expected)
    of_windows = F.cross_entropy(logits, torch.tensor([1, 1, 0]), reduction="none")
    losses = ExampleLoss(window_pooling="vote")(logits, labels, num_windows)
    torch.testing.assert_close(losses, torch.stack([of_windows[:2].mean(), of_windows[2]]))


def test_balanced_weights_have_mean_one_over_the_rows():
    labels = np.array([0] * 6 + [1] * 2)
    weights = balanced_class_weights(labels, 2)
    assert weights.tolist() == pytest.approx([8 / (2 * 6), 8 / (2 * 2)])
    assert weights[labels].mean() == pytest.approx(1)
    several = balanced_class_weights(np.array([[1, 0], [1, 1], [0, 1], [1, 0]]), 2)
    assert several.tolist() == pytest.approx([1 / 3, 2 / 2])


def test_oversampling_repeats_rarer_classes_to_the_most_frequent():
    dataset = Dataset.from_dict({"labels": [0] * 7 + [1] * 3 + [2] * 2, "row": list(range(12))})
    rows = oversample(dataset, seed=0)
    assert np.bincount(rows["labels"]).tolist() == [7, 7, 7]
    counts = np.bincount(rows["row"])
    assert counts[:7].tolist() == [1] * 7
    assert sorted(counts[7:10]) == [2, 2, 3]
    assert rows["row"][:] == oversample(dataset, seed=0)["row"][:]


@pytest.mark.parametrize(
    "loss",
    [
        ExampleLoss(class_weights=torch.tensor([0.3, 4.0])),
        ExampleLoss(class_weights=torch.tensor([0.3, 4.0]), label_smoothing=0.1),
        ExampleLoss(focal_gamma=2.0),
        ExampleLoss(window_pooling="mean"),
        ExampleLoss(window_pooling="max"),
    ],
    ids=["weights", "weights-smoothing", "focal", "windows-mean", "windows-max"],
)
def test_accumulation_and_micro_batches_change_nothing(tmp_path, tiny_bert, reviews, loss):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    config = TextConfig(6, "window", 1) if loss.window_pooling else TextConfig(24)
    tokenized = tokenize_dataset(read_examples(reviews["--train_file"]), tokenizer, config)
    results = []
    for batch_size, accumulation, max_tokens in ((8, 1, 10_000), (2, 4, 30)):
        trainer = make_trainer(
            tmp_path, make_model(tiny_bert, tokenizer), tokenizer, tokenized, max_tokens, max_steps=10,
            per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        trainer.example_loss = loss
        results.append(losses_and_weights(trainer))
    np.testing.assert_allclose(results[1][0], results[0][0], atol=1e-5, rtol=0)
    for name, weight in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], weight, atol=1e-4, rtol=0)
